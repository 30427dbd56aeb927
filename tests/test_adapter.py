import hashlib
import json
import os
import re

import pytest
import torch
from conftest import (
    CLOSE,
    adapter_of,
    edit_directly,
    farthest,
    names_in,
    no_space,
    outputs,
    random_changes,
    split_safetensors,
    untouched,
)
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from concept_erase.adapter import PEFT_NAME, Adapter, file_in
from concept_erase.concepts import Concept
from concept_erase.errors import AdapterFileError, InputError, NumericalError, OutputError
from concept_erase.families import SD1
from concept_erase.formats import write_safetensors
from concept_erase.lowrank import LowRank
from concept_erase.names import file_name

# -- file format ---------------------------------------------------------------------------------------------------


def test_the_kohya_file_has_its_keys_with_alpha_equal_to_rank(mixed_edit, tmp_path):
    tensors = load_file(mixed_edit.save(tmp_path)[0])
    modules = {key.partition(".")[0] for key in tensors}
    assert all(re.fullmatch(r"lora_(unet_\w+_attn2_to_[kv]|te_text_model_encoder_layers_\d_\w+)", m) for m in modules)
    assert any(m.startswith("lora_te_text_model_encoder_layers_1_mlp_fc1") for m in modules)
    for module in modules:
        down, up, alpha = (tensors.pop(f"{module}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert alpha.shape == ()
        assert alpha.item() == len(down) == up.shape[1]
    assert tensors == {}


def test_the_peft_file_has_its_keys_without_alpha_and_with_the_text_model_level(mixed_edit, tmp_path):
    tensors = load_file(mixed_edit.save(tmp_path)[1])
    pattern = r"(unet\.\w+(\.\w+)*\.attn2\.to_[kv]|text_encoder\.text_model\.encoder\.layers\.\d\.(self_attn|mlp)\.\w+)"
    assert all(re.fullmatch(pattern + r"\.lora_[AB]\.weight", key) for key in tensors)
    assert {key.replace("lora_B", "lora_A") for key in tensors} == {k for k in tensors if "lora_A" in k}


@pytest.mark.parametrize("form", [0, 1])
def test_one_rank_fills_a_file(mixed_edit, tmp_path, form):
    tensors = load_file(mixed_edit.save(tmp_path)[form])
    downs = [t for key, t in tensors.items() if "lora_down" in key or "lora_A" in key]
    assert {len(down) for down in downs} == {mixed_edit.rank} == {3}


def test_every_edited_encoder_layer_carries_all_four_attention_projections(mixed_edit, tmp_path):
    tensors = load_file(mixed_edit.save(tmp_path)[1])
    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    assert tensors[f"{layer}.q_proj.lora_B.weight"].any()
    for projection in ("k_proj", "v_proj", "out_proj"):
        assert not tensors[f"{layer}.{projection}.lora_A.weight"].any()
        assert not tensors[f"{layer}.{projection}.lora_B.weight"].any()


def test_a_layer_of_which_only_the_mlp_is_edited_carries_the_projections_too(mixed_edit, tmp_path):
    tensors = load_file(mixed_edit.save(tmp_path)[1])
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert f"text_encoder.text_model.encoder.layers.1.self_attn.{projection}.lora_A.weight" in tensors


def test_factors_have_equal_size(model, tmp_path):
    path = model.stream_layers()[0]
    (change,) = random_changes(model, [path]).values()
    lopsided = adapter_of({path: LowRank(change.up * 1e6, change.down * 1e-6)})
    tensors = load_file(lopsided.save(tmp_path)[1])
    up, down = tensors[f"{path}.lora_B.weight"], tensors[f"{path}.lora_A.weight"]
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("form", [0, 1])
def test_the_header_says_what_readers_look_for(model, tmp_path, form):
    concept = Concept("Van Gogh 🌻", anchor="art", preserve=("Monet",))
    adapter = adapter_of(random_changes(model), model, concept)
    header, body = split_safetensors(adapter.save(tmp_path)[form])
    meta = header["__metadata__"]
    digest = hashlib.sha256(body).hexdigest()
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "Erases Van Gogh 🌻",
        "modelspec.hash_sha256": f"0x{digest}",
        "sshs_model_hash": digest,
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_dim": "2",
        "ss_network_alpha": "2",
        "ss_output_name": adapter.slug,
    }
    if form == 1:  # interfaces must not list it
        assert not [key for key in meta if key.startswith("ss_")]
        expected = {key: value for key, value in expected.items() if not key.startswith("ss_")}
    assert {key: meta.get(key) for key in expected} == expected
    for key in ("description", "author", "implementation", "resolution"):
        assert meta[f"modelspec.{key}"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", meta["modelspec.date"])
    assert "modelspec.trigger_phrase" not in meta
    assert "lora_adapter_metadata" not in meta
    assert all(isinstance(value, str) for value in meta.values())
    ours = json.loads(meta["concept_erase"])
    assert ours["concepts"] == [{"target": "Van Gogh 🌻", "kind": "style", "anchor": "art", "preserve": ["Monet"]}]
    assert (ours["method"], ours["settings"], ours["family"]) == ("uce", {}, "sd1")
    assert ours["base"] == {"name": "tiny", "revision": None, "hash": model.fingerprint}
    assert ours["version"]


def test_the_same_edit_gives_the_same_bytes(unet_edit, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = unet_edit.save(tmp_path / "a"), unet_edit.save(tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert split_safetensors(first[0])[0]["__metadata__"]["modelspec.date"] == "2023-11-14T22:13:20Z"


def test_half_precision_halves_the_file_and_keeps_the_edit(unet_edit, tmp_path):
    whole, half = unet_edit.save(tmp_path / "32")[1], unet_edit.save(tmp_path / "16", dtype=torch.float16)[1]
    assert {t.dtype for t in load_file(half).values()} == {torch.float16}
    assert len(split_safetensors(half)[1]) * 2 == len(split_safetensors(whole)[1])
    for path, change in Adapter.load(half).changes.items():
        exact = unet_edit.changes[path].delta()
        assert (change.delta().double() - exact).norm() < 2e-3 * exact.norm()


@pytest.mark.parametrize("form", [0, 1])
def test_what_overflows_half_precision_is_stored_in_single(model, tmp_path, form):
    changes = random_changes(model, size=1e11)
    file = adapter_of(changes).save(tmp_path, dtype=torch.float16)[form]
    assert {t.dtype for t in load_file(file).values()} == {torch.float32}
    for path, change in Adapter.load(file).changes.items():
        assert torch.allclose(change.delta().double(), changes[path].delta(), rtol=1e-3, atol=1e6)


def test_bfloat16_is_refused(unet_edit, tmp_path):
    with pytest.raises(InputError, match="float32 or float16"):
        unet_edit.save(tmp_path, dtype=torch.bfloat16)
    assert names_in(tmp_path) == []


def test_an_edit_with_nan_is_not_saved(unet_edit, tmp_path):
    next(iter(unet_edit.changes.values())).up[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="holds NaN or Inf"):
        unet_edit.save(tmp_path)
    assert names_in(tmp_path) == []


def test_a_failing_write_keeps_the_old_files(unet_edit, mixed_edit, tmp_path, monkeypatch):
    unet_edit.save(tmp_path)
    monkeypatch.setattr(os, "replace", no_space)
    with untouched(tmp_path), pytest.raises(OutputError, match="No space left"):
        mixed_edit.save(tmp_path)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
@example(["../../etc/passwd"])
@example(["a.b\\c:d\0"])
@example(["فان جوخ"])
@example(["\ud800"])
def test_file_names_are_harmless(targets):
    name = file_name(targets)
    assert re.fullmatch(r"([a-z0-9-]{1,48}-)?[0-9a-f]{8}", name)
    assert name == file_name(targets)


TOGETHER = (
    ["C++"], ["C#"], ["Édouard"], ["douard"], ["Edouard"], ["فان جوخ"], ["北斎"], ["🎨"], ["🌻"],
    ["twemoji", "noto", "blob"], ["twemoji", "noto", "fluent"], ["twemoji", "noto"], ["x" * 200], ["x" * 199 + "y"],
)  # fmt: skip


def test_adapters_of_many_folders_stay_apart_in_one(model, tmp_path):
    changes = random_changes(model, model.stream_layers()[:1])
    edits = [Adapter(changes, SD1, tuple(map(Concept, names)), "uce") for names in TOGETHER]
    edits.append(Adapter(changes, SD1, (Concept("C++", "object"),), "uce"))
    edits.append(Adapter(changes, SD1, (Concept("C++"),), "encoder"))
    for edit in edits:
        edit.save(tmp_path, peft=False)
    files = names_in(tmp_path)
    assert len({name.casefold() for name in files}) == len(edits)
    called = [split_safetensors(tmp_path / name)[0]["__metadata__"]["ss_output_name"] for name in files]
    assert [f"{name}.safetensors" for name in called] == files
    assert not any("." in edit.slug for edit in edits), "diffusers takes no dots in an adapter's name"
    found = {(a.title, a.concepts[0].kind, a.method) for a in (Adapter.load(tmp_path / name) for name in files)}
    assert found == {(edit.title, edit.concepts[0].kind, edit.method) for edit in edits}


# -- folders -------------------------------------------------------------------------------------------------------


def other_edits(model, edit):
    """Edits that are another erasure, each in one way."""
    base = {**edit.base, "hash": "0" * 64}
    return {
        "concept": Adapter(edit.changes, SD1, (Concept("noto", anchor="fluent"),), "uce", {}, edit.base),
        "kind": Adapter(edit.changes, SD1, (Concept("twemoji", "object", "fluent"),), "uce", {}, edit.base),
        "more concepts": Adapter(edit.changes, SD1, (*edit.concepts, Concept("noto")), "uce", {}, edit.base),
        "method": Adapter(edit.changes, SD1, edit.concepts, "encoder", {}, edit.base),
        "base": Adapter(edit.changes, SD1, edit.concepts, "uce", {}, base),
    }


@pytest.mark.parametrize("way", ["concept", "kind", "more concepts", "method", "base"])
def test_a_file_of_another_erasure_is_not_replaced(model, unet_edit, tmp_path, way):
    unet_edit.save(tmp_path)
    with untouched(tmp_path), pytest.raises(InputError, match=r"the erasure of 'twemoji' by uce.*another folder"):
        other_edits(model, unet_edit)[way].save(tmp_path)


def test_the_same_erasure_replaces_its_files(model, unet_edit, tmp_path):
    unet_edit.save(tmp_path)
    again = Adapter(random_changes(model, seed=5), SD1, (Concept("Twemoji"),), "uce", {"ridge": 2}, unet_edit.base)
    files = again.save(tmp_path)
    assert names_in(tmp_path) == sorted(file.name for file in files)
    for file in files:
        assert Adapter.load(file).settings == {"ridge": 2}


def test_files_that_are_no_adapters_are_not_replaced(unet_edit, tmp_path):
    (tmp_path / PEFT_NAME).write_bytes(b"mine")
    with untouched(tmp_path), pytest.raises(InputError, match="this tool did not write"):
        unet_edit.save(tmp_path)


@pytest.mark.parametrize("peft", [True, False])
def test_a_folder_means_the_adapter_in_it(unet_edit, tmp_path, peft):
    files = unet_edit.save(tmp_path, peft=peft)
    write_safetensors(tmp_path / "operator.safetensors", {}, {"concept_erase": '{"form": "operator"}'})
    assert file_in(tmp_path) == files[-1]
    assert Adapter.load(tmp_path).digest == Adapter.load(files[-1]).digest
    assert file_in(files[0]) == files[0]


def test_a_folder_of_several_adapters_or_none_says_so(model, unet_edit, tmp_path):
    with pytest.raises(AdapterFileError, match="holds no adapter"):
        file_in(tmp_path)
    (tmp_path / "concepts" / "a-1").mkdir(parents=True)
    (tmp_path / "concepts" / "a-1" / "report.json").write_text("{}")
    with pytest.raises(AdapterFileError, match=r"a folder in it, as .*a-1"):
        file_in(tmp_path)
    unet_edit.save(tmp_path, peft=False)
    other_edits(model, unet_edit)["concept"].save(tmp_path, peft=False)
    with pytest.raises(AdapterFileError, match=r"several adapters \(erase-.*name the file"):
        file_in(tmp_path)


def test_a_title_names_three_concepts_and_counts_the_rest(model):
    concepts = tuple(Concept(name) for name in "abcde")
    assert Adapter(random_changes(model), SD1, concepts, "uce").title == "Erases a, b, c and 2 more"


def test_the_digest_belongs_to_the_edit(model, unet_edit, tmp_path):
    again = adapter_of(random_changes(model, seed=1))
    assert again.digest == unet_edit.digest
    assert adapter_of(random_changes(model, seed=2)).digest != unet_edit.digest


# -- both forms loaded by plain diffusers --------------------------------------------------------------------------


@pytest.mark.parametrize("form", [0, 1])
def test_plain_diffusers_loads_a_mixed_file_exactly(mixed_edit, pipe, tmp_path, form):
    path = mixed_edit.save(tmp_path)[form]
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    loaded = outputs(pipe)
    pipe.unload_lora_weights()
    unedited = outputs(pipe)
    edit_directly(pipe, mixed_edit.changes)
    direct = outputs(pipe)
    assert max(farthest(loaded, direct)) < CLOSE
    assert min(farthest(unedited, direct)) > 1e-2
