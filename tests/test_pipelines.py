"""pipelines/: opened through diffusers as a user does, verified, and hard to talk out of an erasure."""

import ast
import copy
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import (
    CLOSE,
    ROOT,
    adapter_of,
    bits,
    build_pipeline,
    edit_directly,
    farthest,
    layer_at,
    outputs,
    random_changes,
    raw_safetensors,
    split_safetensors,
)
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

from concept_erase import Concept, operators
from concept_erase.adapter import slug
from concept_erase.attach import attached
from concept_erase.concepts import Kind
from concept_erase.lowrank import LowRank
from concept_erase.model import open_model
from concept_erase.streams import fold

ERASED = ROOT / "pipelines" / "erased_text_to_image.py"
GATED = ROOT / "pipelines" / "gated_text_to_image.py"
STYLE, BOMB = Concept("twemoji", anchor="fluent"), Concept("bomb", Kind.VIOLENCE, "hat")
ERASURE, OTHER = slug([STYLE], "uce"), f"{slug([Concept('sketch')], 'uce')}.safetensors"
SMALL = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    """diffusers copies a custom pipeline into a cache folder: not into the user's."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@cache
def class_in(path: Path):
    """The pipeline class of a file, imported the plain way."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == path.stem and issubclass(c, StableDiffusionPipeline)
    )


def opened(folder, code: Path, **settings):
    """As a user opens it."""
    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(code), trust_remote_code=True, safety_checker=None, **settings
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def around(pipe, code: Path, **settings):
    """A pipeline of the class in `code` over the components of another."""
    made = class_in(code)(**pipe.components, requires_safety_checker=False, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe, prompt, seed: int = 1, **settings):
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **SMALL, **settings).images


@pytest.fixture
def kohya(unet_edit, tmp_path):
    return unet_edit.save(tmp_path / "adapter")[0]


@pytest.fixture
def other(model, tmp_path):
    """A folder with another LoRA, as users have them."""
    other = adapter_of(random_changes(model, model.stream_layers()[:4], seed=9), model, Concept("sketch"))
    return other.save(tmp_path / "other")[0].parent


# -- erased: loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["file", "folder"])
def test_diffusers_opens_the_erased_pipeline_with_its_erasures(base_folder, pipe, unet_edit, kohya, tmp_path, form):
    code = ERASED
    if form == "folder":
        code = tmp_path / "code"
        code.mkdir()
        shutil.copy(ERASED, code / "pipeline.py")
    erased = opened(base_folder, code, erasures=[kohya])
    assert type(erased).__name__ == "ErasedStableDiffusionPipeline"
    (record,) = erased.erasures
    assert (record.concepts, record.strength, record.name) == (("twemoji",), 1.0, ERASURE)
    edit_directly(pipe, unet_edit.changes)
    assert max(farthest(outputs(erased), outputs(pipe))) < CLOSE


@pytest.mark.parametrize("form", [0, 1], ids=["kohya", "peft"])
@pytest.mark.parametrize("kind", ["unet_edit", "mixed_edit"])
def test_an_erasure_equals_the_same_file_as_a_plain_lora(pipe, request, kind, form, tmp_path):
    file = request.getfixturevalue(kind).save(tmp_path / "adapter")[form]
    erased = around(copy.deepcopy(pipe), ERASED, erasures=[file if form == 0 else file.parent])
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert max(farthest(outputs(erased), outputs(pipe))) < CLOSE


@pytest.mark.parametrize("code", [ERASED, GATED], ids=["erased", "gated"])
def test_the_fingerprint_is_that_of_the_package(pipe, model, other, code):
    assert around(pipe, code).fingerprint() == model.fingerprint
    pipe.load_lora_weights(other, weight_name=OTHER)
    assert around(pipe, code).fingerprint() == model.fingerprint  # underneath the LoRA
    pipe.unload_lora_weights()
    pipe.unet.half()
    assert around(pipe, code).fingerprint() == model.fingerprint == open_model(pipe).fingerprint
    assert around(build_pipeline(seed=1), code).fingerprint() != model.fingerprint


def test_another_base_is_refused_and_stays_as_it_was(kohya):
    stranger = build_pipeline(seed=1)
    before = bits(stranger)
    with pytest.raises(ValueError, match=r"made for 'tiny'.* another base"):
        around(stranger, ERASED, erasures=[kohya])
    assert bits(stranger) == before
    with pytest.raises(ValueError, match="another base"):
        around(build_pipeline(width=16), ERASED, erasures=[kohya])


def test_the_hash_of_the_file_must_be_the_one_asked_for(pipe, kohya):
    erased = around(pipe, ERASED)
    before = bits(pipe)
    for wrong in ("0" * 64, ["0" * 64]):
        with pytest.raises(ValueError, match="SHA-256"):
            erased.load_erasures(kohya, sha256=wrong)
    with pytest.raises(ValueError, match="1 SHA-256 were given for 2"):
        erased.load_erasures([kohya, kohya], sha256=["0" * 64])
    assert bits(pipe) == before
    right = hashlib.sha256(kohya.read_bytes()).hexdigest()
    assert erased.load_erasures([kohya], sha256=[right.upper()])[0].sha256 == right


def damaged(path: Path, kind: str) -> Path:
    """A file with one thing wrong."""
    header, body = split_safetensors(path)
    first = next(key for key in header if key.endswith("lora_up.weight"))
    start, _ = header[first]["data_offsets"]
    record = json.loads(header["__metadata__"]["concept_erase"])
    if kind in ("nan", "inf"):
        value = torch.tensor([float(kind)]).numpy().tobytes()
        body = body[:start] + value + body[start + 4 :]
    elif kind == "path-like name":
        header["../" + first] = header.pop(first)
    elif kind == "unknown layer":
        header[first.replace("lora_unet", "lora_unet_more")] = header.pop(first)
    elif kind == "other shape":
        header[first]["shape"] = header[first]["shape"][::-1]
    elif kind == "half a pair":
        header = {k: v for k, v in header.items() if not k.endswith("lora_up.weight")} | {
            "__metadata__": header["__metadata__"]
        }
    elif kind == "no header":
        del header["__metadata__"]
    elif kind == "no base":
        header["__metadata__"]["concept_erase"] = json.dumps(record | {"base": {}})
    elif kind == "no concepts":
        header["__metadata__"]["concept_erase"] = json.dumps(record | {"concepts": [1]})
    elif kind == "truncated":
        body = body[:-4]
    elif kind == "left over":
        body += b"\0\0\0\0"
    text = json.dumps(header)
    if kind == "twice":
        text = text[:-1] + f', "{first}": {json.dumps(header[first])}}}'
    elif kind == "deep":
        text = "[" * 100_000
    elif kind == "no json":
        text = "{"
    return raw_safetensors(path, text, body)


DAMAGES = (
    "nan", "inf", "path-like name", "unknown layer", "other shape", "half a pair", "no header", "no base",
    "no concepts", "truncated", "left over", "twice", "deep", "no json",
)  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_adapter_is_refused_and_changes_nothing(pipe, unet_edit, kohya, tmp_path, kind):
    good = adapter_of(unet_edit.changes, None, BOMB)
    good.base.update(unet_edit.base)
    intact = good.save(tmp_path / "good")[0]
    erased, before = around(pipe, ERASED), bits(pipe)
    with pytest.raises(ValueError, match=str(kohya.name)):
        erased.load_erasures([intact, damaged(kohya, kind)])
    assert bits(pipe) == before
    assert erased.erasures == ()


def test_what_is_no_adapter_is_refused(pipe, model, kohya, tmp_path):
    erased, before = around(pipe, ERASED), bits(pipe)
    pickled = tmp_path / "erase.pt"
    pickled.write_bytes(kohya.read_bytes())
    write_operator(tmp_path, model)
    for path, why in (
        (pickled, "pickled weights are never read"),
        (tmp_path / "none.safetensors", "exists"),
        (tmp_path / "twemoji.operator", "for the other pipeline"),
        (tmp_path, "exists"),
    ):
        with pytest.raises(ValueError, match=why):
            erased.load_erasures(path)
    for entry in ([], [(kohya, 0)], [(kohya, -1)], [(kohya, float("nan"))], [(kohya, True)], [(kohya, "1")], [1.0]):
        with pytest.raises(ValueError, match=r"empty|strength|path"):
            erased.load_erasures(entry)
    assert bits(pipe) == before


def test_strengths_and_several_erasures_add_up(pristine, model, unet_edit, mixed_edit, tmp_path):
    second = adapter_of(mixed_edit.changes, model, BOMB).save(tmp_path / "second")[0]
    first = unet_edit.save(tmp_path / "first")[0]
    expected = copy.deepcopy(pristine)
    edit_directly(expected, unet_edit.changes, 0.5)
    edit_directly(expected, mixed_edit.changes, 1.5)
    at_once = around(copy.deepcopy(pristine), ERASED, erasures=[(first, 0.5), (second, 1.5)])
    in_turn = around(copy.deepcopy(pristine), ERASED, erasures=[(second, 1.5)])
    in_turn.load_erasures([(first, 0.5)])
    for erased in (at_once, in_turn):
        assert sorted((e.concepts, e.strength) for e in erased.erasures) == [(("bomb",), 1.5), (("twemoji",), 0.5)]
        assert max(farthest(outputs(erased), outputs(expected))) < CLOSE


def test_the_same_erasure_is_not_loaded_twice(pipe, unet_edit, tmp_path):
    one, same = unet_edit.save(tmp_path)
    erased = around(pipe, ERASED, erasures=[one])
    before = bits(pipe)
    with pytest.raises(ValueError, match="same erasure"):
        erased.load_erasures(same)
    assert bits(pipe) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions_keep_the_erasures(pipe, unet_edit, kohya, dtype):
    erased = around(pipe, ERASED, erasures=[kohya]).to(dtype)
    erased.check_erasures()
    if dtype is torch.float16:  # loading in half precision is the same base
        half = around(build_pipeline().to(dtype), ERASED, erasures=[kohya])
        half.check_erasures()
        for path in unet_edit.changes:
            torch.testing.assert_close(layer_at(half, path).weight, layer_at(erased, path).weight, rtol=2e-3, atol=2e-3)


def test_weights_that_are_offloaded_are_checked_where_they_are(pipe, kohya):
    from accelerate import cpu_offload

    erased = around(copy.deepcopy(pipe), ERASED, erasures=[kohya])
    for each in (pipe, erased):
        cpu_offload(each.unet, torch.device("cpu"))
    assert erased.unet.conv_in.weight.is_meta
    erased.check_erasures()
    with pytest.raises(RuntimeError, match="before enabling sequential offloading"):
        around(pipe, ERASED, erasures=[kohya])


def test_a_pipeline_is_made_from_another(pipe, unet_edit, kohya):
    expected = copy.deepcopy(pipe)
    edit_directly(expected, unet_edit.changes)
    erased = class_in(ERASED).from_pipe(pipe, erasures=[kohya])
    assert max(farthest(outputs(erased), outputs(expected))) < CLOSE
    assert bits(pipe) == bits(erased)  # they share their weights, as documented


# -- erased: staying -----------------------------------------------------------------------------------------------


def test_it_does_not_draw_without_erasures(base_folder, pipe):
    with pytest.raises(RuntimeError, match="no erasures"):
        opened(base_folder, ERASED)("a cat", **SMALL)
    with pytest.raises(RuntimeError, match="no erasures"):
        around(pipe, ERASED)("a cat", **SMALL)


def with_other(pipe, folder, name="sketch"):
    pipe.load_lora_weights(folder, weight_name=OTHER, adapter_name=name)


def test_whatever_is_done_with_other_loras_the_erasures_stay(pipe, unet_edit, kohya, other, caplog):
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    erased = around(pipe, ERASED, erasures=[kohya])
    alone = outputs(erased)
    with_other(plain, other)
    both = outputs(plain)
    assert min(farthest(alone, both)[1:]) > 100 * CLOSE

    with_other(erased, other)
    assert max(farthest(outputs(erased), both)) < CLOSE
    erased.set_adapters("sketch", 0.0)
    assert max(farthest(outputs(erased), alone)) < CLOSE
    erased.set_adapters(["sketch"], [1.0])
    assert max(farthest(outputs(erased), both)) < CLOSE
    prompt = "a cat in twemoji style"
    off = drawn(erased, prompt, cross_attention_kwargs={"scale": 0.0})
    assert (off - alone[2]).abs().max() < CLOSE
    for switch, says in (("disable_lora", True), ("enable_lora", False), ("fuse_lora", False), ("unfuse_lora", True)):
        caplog.clear()
        getattr(erased, switch)()
        assert max(farthest(outputs(erased), alone if switch == "disable_lora" else both)) < CLOSE
        assert ("'twemoji' stay erased" in caplog.text) == says
    caplog.clear()
    erased.delete_adapters("sketch")
    assert max(farthest(outputs(erased), alone)) < CLOSE
    with_other(erased, other, "again")
    erased.unload_lora_weights()
    assert max(farthest(outputs(erased), alone)) < CLOSE
    assert caplog.text.count("stay erased") == 2


def test_an_erasure_is_no_adapter_that_can_be_named(pipe, kohya, other):
    erased = around(pipe, ERASED, erasures=[kohya])
    with_other(erased, other)
    for call in (
        lambda: erased.set_adapters(["sketch", ERASURE], [1.0, 0.0]),
        lambda: erased.delete_adapters(ERASURE),
    ):
        with pytest.raises(ValueError, match="always on"):
            call()


def test_a_lora_that_was_loaded_before_does_not_matter(pipe, unet_edit, kohya, other):
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    for each in (plain, pipe):
        with_other(each, other)
    erased = around(pipe, ERASED, erasures=[kohya])
    assert max(farthest(outputs(erased), outputs(plain))) < CLOSE


def test_a_fused_lora_is_another_base(pipe, kohya, other):
    with_other(pipe, other)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="fused with a LoRA"):
        around(pipe, ERASED, erasures=[kohya])


def test_it_sees_that_an_erasure_is_gone(pristine, pipe, kohya):
    erased = around(pipe, ERASED, erasures=[kohya])
    layer = pipe.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_v")
    edited = layer.weight.data
    layer.weight.data = pristine.unet.get_submodule(
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    ).weight.data
    with pytest.raises(RuntimeError, match=r"1 of 14 erased layers .*mid_block.*to_v"):
        erased("a cat", **SMALL)
    layer.weight.data = edited
    erased.check_erasures()
    erased.unet = UNet2DConditionModel.from_config(pristine.unet.config)
    for call in (lambda: erased("a cat", **SMALL), lambda: erased.save_pretrained("nowhere")):
        with pytest.raises(RuntimeError, match="14 of 14 erased layers"):
            call()


def test_the_saved_pipeline_is_a_plain_one_without_the_concepts(pipe, kohya, other, tmp_path):
    erased = around(pipe, ERASED, erasures=[kohya])
    erased.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    assert type(again) is StableDiffusionPipeline
    assert bits(again) == bits(erased)
    with_other(erased, other)
    with pytest.raises(RuntimeError, match="unload_lora_weights"):
        erased.save_pretrained(tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


# -- erased: whatever is read in place of the edited weights ---------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after", "fused, unfused, fused", "compiled"])
def test_what_is_read_in_place_of_the_weights_holds_the_erasures(pipe, unet_edit, kohya, other, when):
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    erased = around(pipe, ERASED)
    if when == "compiled":
        inside, erased.unet = erased.unet, torch.compile(erased.unet, backend="eager")
        erased.load_erasures([kohya])
        erased.check_erasures()
        erased.unet = inside
        assert max(farthest(outputs(erased), outputs(plain))) < CLOSE
        return
    if when != "after":
        erased.fuse_qkv_projections(vae=False)
    if when == "fused, unfused, fused":
        erased.unfuse_qkv_projections(vae=False)
    erased.load_erasures([kohya])
    if when != "before":
        erased.fuse_qkv_projections(vae=False)
    assert max(farthest(outputs(erased), outputs(plain))) < CLOSE
    with_other(erased, other)
    erased.fuse_lora()
    with pytest.raises(RuntimeError, match="projections after that"):
        drawn(erased, "a cat")  # what was fused before lacks the LoRA
    erased.unfuse_qkv_projections(vae=False)
    drawn(erased, "a cat")


def test_it_sees_what_reads_other_weights(pipe, pristine, kohya):
    erased = around(pipe, ERASED, erasures=[kohya])
    fused = copy.deepcopy(pristine)
    fused.fuse_qkv_projections(vae=False)
    erased.fuse_qkv_projections(vae=False)
    for name, layer in erased.unet.named_modules():
        if name.endswith("attn2.to_kv"):
            layer.weight.data = fused.unet.get_submodule(name).weight.data
    with pytest.raises(RuntimeError, match="14 of 14 erased layers"):
        drawn(erased, "a cat")
    erased.unfuse_qkv_projections(vae=False)
    drawn(erased, "a cat")
    own = CustomDiffusionAttnProcessor(hidden_size=64, cross_attention_dim=32, train_q_out=False)
    erased.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(own)
    with pytest.raises(RuntimeError, match=r"CustomDiffusionAttnProcessor around unet.mid_block.*weights of its own"):
        drawn(erased, "a cat")
    fresh = copy.deepcopy(pristine)
    fresh.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(own)
    before = bits(fresh)
    with pytest.raises(RuntimeError, match="weights of its own"):
        around(fresh, ERASED).load_erasures([kohya])
    assert bits(fresh) == before


@pytest.mark.parametrize("code", [ERASED, GATED], ids=["erased", "gated"])
def test_a_rounded_base_is_the_same_and_an_erased_one_is_not(model, unet_edit, operator, tmp_path, code):
    file = dataclasses.replace(unet_edit, base=model.base).save(tmp_path / "adapter")[0]
    files = {"erasures": [file]} if code is ERASED else {"operators": [operator]}
    for dtype in (torch.float16, torch.bfloat16):
        around(build_pipeline().to(dtype), code, **files)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        coarse = build_pipeline()
        coarse.unet.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
        drawn(around(coarse, code, **files), "a cat")
    scaled = build_pipeline()
    for name, layer in scaled.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            factor = layer.weight.data.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            layer.weight.data = (layer.weight.data / factor).to(torch.float8_e4m3fn).float() * factor
    drawn(around(scaled, code, **files), "a cat")
    fused = build_pipeline()
    edit_directly(fused, unet_edit.changes)
    reason = "already, at strength 1" if code is ERASED else "one that was edited"
    with pytest.raises(ValueError, match=reason):
        around(fused, code, **files)
    with pytest.raises(ValueError, match=r"differ by about 1[0-9]{2}"):
        around(build_pipeline(seed=1), code, **files)


def test_both_tell_bases_by_the_same_numbers_as_the_package(pipe, model):
    for code in (ERASED, GATED):
        base = sys.modules[class_in(code).__module__].base_of(pipe.unet)
        assert base.hash == model.identity.hash
        assert tuple(base.sketch.tolist()) == model.identity.sketch
        assert (base.dtype, base.size, base.rounding) == (
            model.identity.dtype, model.identity.size, model.identity.rounding,
        )  # fmt: skip


def test_what_the_files_repeat_is_the_same_to_the_letter():
    """Each stands alone, so what both need is in both; what the package has as well is the package's."""
    ours = ROOT / "concept_erase" / "identity.py"
    erased, gated, package = (dict(defined_in(file)) for file in (ERASED, GATED, ours))
    both = erased.keys() & gated.keys()
    assert {"read_file", "check_record", "Base", "base_of", "unwrapped", "weight_of"} <= both
    assert {name: erased[name] for name in both} == {name: gated[name] for name in both}
    repeated = {"NUMBERS", "SCALED", "FLOATS", "FINEST", "SCALE_ERROR", "holds", "spacing", "rounding_in"}
    assert {name: erased[name] for name in repeated} == {name: package[name] for name in repeated}


def defined_in(file: Path):
    """Name and text of each function, class and constant of a file."""
    text = file.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        name = node.targets[0].id if isinstance(node, ast.Assign) else getattr(node, "name", None)
        if name:
            yield name, ast.get_source_segment(text, node)


# -- erased: files as they come --------------------------------------------------------------------------------------


def resaved(file: Path, kind: str) -> Path:
    """Our own file as other tools write it again."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    if kind == "bfloat16":
        tensors = {k: v.to(torch.bfloat16) for k, v in tensors.items()}
    elif kind == "no alpha":
        tensors = {k: v for k, v in tensors.items() if not k.endswith(".alpha")}
    elif kind == "lora.down":
        tensors = {k.replace("lora_down", "lora.down").replace("lora_up", "lora.up"): v for k, v in tensors.items()}
    elif kind == "old diffusers":
        tensors = {
            k.replace(".to_", ".processor.to_").replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up"): v
            for k, v in tensors.items()
        }
    again = file.with_name("again.SAFETENSORS" if kind == "ending" else "again.safetensors")
    save_file(tensors, again, metadata)
    return again


@pytest.mark.parametrize("kind", ["bfloat16", "no alpha", "lora.down", "old diffusers", "ending"])
def test_a_file_that_was_saved_again_is_read(pipe, unet_edit, tmp_path, kind):
    kohya, peft = unet_edit.save(tmp_path)
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    erased = around(pipe, ERASED, erasures=[resaved(peft if kind == "old diffusers" else kohya, kind)])
    for path, change in unet_edit.changes.items():
        error = (layer_at(erased, path).weight - layer_at(plain, path).weight).norm() / change.delta().norm()
        assert error < (0.01 if kind == "bfloat16" else 1e-5)


def test_a_folder_means_the_one_file_of_its_kind(pipe, kohya, operator, model, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(kohya, folder / kohya.name)
    (folder / f"{kohya.stem}.safetensors").rename(folder / "a.safetensors")
    shutil.copy(operator, folder / "a.operator")
    for code, files in ((ERASED, "erasures"), (GATED, "operators")):
        (record,) = getattr(around(copy.deepcopy(pipe), code, **{files: folder}), files)
        assert record.name == "a" if code is GATED else not (folder / "pytorch_lora_weights.safetensors").exists()
    shutil.copy(folder / "a.operator", folder / "operator.safetensors")  # what it was called once
    around(copy.deepcopy(pipe), ERASED, erasures=folder)
    (folder / "a.operator").unlink()
    assert around(copy.deepcopy(pipe), GATED, operators=folder).operators[0].name == "mixed"
    for ending in ("safetensors", "operator"):
        for name in ("b", "c"):
            shutil.copy(kohya, folder / f"{name}.{ending}")
    with pytest.raises(ValueError, match=r"holds a.safetensors, b.safetensors, c.safetensors"):
        around(pipe, ERASED, erasures=folder)
    with pytest.raises(ValueError, match=r"holds b.operator, c.operator"):
        around(pipe, GATED, operators=folder)


# -- gated ---------------------------------------------------------------------------------------------------------


def random_operator(d: int = 32, seed: int = 0) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(d, 2, generator=rng).double() / d**0.5, torch.randn(2, d, generator=rng).double())


def write_operator(folder: Path, model, concepts=(STYLE,), change: LowRank | None = None) -> Path:
    path = folder / f"{concepts[0].target}.operator"
    operators.write(path, model, list(concepts), change or random_operator())
    return path


@pytest.fixture
def operator(model, tmp_path):
    return write_operator(tmp_path / "style", model)


def encoded(pipe, prompt, **settings):
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", settings.pop("num_images_per_prompt", 1), True, **settings)


WITHOUT = ["a cat", "", "an icon of a dog, blob style", "emoji of a twin"]


def test_diffusers_opens_the_gated_pipeline_and_other_prompts_stay_bit_for_bit(base_folder, pipe, operator):
    gated = opened(base_folder, GATED, operators=operator.parent)
    assert type(gated).__name__ == "GatedStableDiffusionPipeline"
    assert gated.operators[0].concepts == ("twemoji",)
    for prompt in WITHOUT:
        assert torch.equal(drawn(gated, prompt), drawn(pipe, prompt))
    assert (drawn(gated, "a twemoji cat") - drawn(pipe, "a twemoji cat")).abs().max() > 100 * CLOSE


def test_only_rows_and_positions_with_the_concept_move(pipe, operator):
    gated = around(pipe, GATED, operators=operator)
    prompts = ["a cat", "a cat in twemoji style", "a dog", "twemoji"]
    plain, _ = encoded(pipe, prompts, negative_prompt=["twemoji"] * 4)
    ours, _ = encoded(gated, prompts, negative_prompt=["twemoji"] * 4)
    d = random_operator().delta().float()
    for row, start in enumerate((None, 4, None, 1)):
        if start is None:
            assert torch.equal(ours[row], plain[row])
        else:
            assert torch.equal(ours[row, :start], plain[row, :start])
            expected = plain[row, start:] + plain[row, start:] @ d.T
            assert (ours[row, start:] - expected).abs().max() < CLOSE
            assert (ours[row, start:] - plain[row, start:]).abs().amin(1).max() > CLOSE


def test_negative_prompts_are_left_alone(pipe, operator):
    gated = around(pipe, GATED, operators=operator)
    for prompt in ("a cat", "a twemoji cat"):
        theirs, ours = (encoded(p, prompt, negative_prompt="ugly twemoji")[1] for p in (pipe, gated))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prompt", ["a TWEMOJI cat", "a  Twemoji\tcat", "a twemoji's cat", "a (twemoji) cat"])
def test_case_spacing_and_punctuation_do_not_matter(pipe, operator, prompt):
    gated = around(pipe, GATED, operators=operator)
    plain, ours = encoded(pipe, prompt)[0], encoded(gated, prompt)[0]
    start = 3 if "(" in prompt else 2
    assert torch.equal(ours[:, :start], plain[:, :start])
    assert not torch.equal(ours[:, start], plain[:, start])


def test_a_concept_beyond_the_limit_is_not_there(pipe, operator):
    gated = around(pipe, GATED, operators=operator)
    prompt = "cat " * 30 + "twemoji"
    assert torch.equal(encoded(gated, prompt)[0], encoded(pipe, prompt)[0])


def test_every_picture_of_a_prompt_is_gated(pipe, operator):
    gated = around(pipe, GATED, operators=operator)
    one, three = (encoded(gated, ["a twemoji cat", "a dog"], num_images_per_prompt=n)[0] for n in (1, 3))
    assert torch.equal(three, one.repeat_interleave(3, 0))


def test_at_the_front_it_is_the_lora(pipe, model, tmp_path):
    """Where the concept opens the prompt, all that is left out is BOS: an operator that ignores it is the same edit."""
    (bos,) = model.encode([model.token_ids("")[:1]], [1])
    axis = torch.nn.functional.normalize(bos[0].double(), dim=0)
    d = random_operator()
    d = LowRank(d.up, d.down - (d.down @ axis)[:, None] * axis)
    gated = around(pipe, GATED, operators=write_operator(tmp_path, model, change=d))
    settings = {"guidance_scale": 1.0}  # without the negative prompt, which a LoRA changes as well
    ours = drawn(gated, "twemoji cat", **settings)
    before = drawn(pipe, "twemoji cat", **settings)
    with attached(pipe, adapter_of(fold(model, d), model)):
        theirs = drawn(pipe, "twemoji cat", **settings)
    assert (ours - theirs).abs().max() < CLOSE
    assert (ours - before).abs().max() > 100 * CLOSE


def test_several_operators_act_each_on_its_own_concept(pipe, model, tmp_path):
    d, e = random_operator(), random_operator(seed=1)
    style, bomb = write_operator(tmp_path / "a", model), write_operator(tmp_path / "b", model, [BOMB], e)
    gated = around(pipe, GATED, operators=[(style, 0.5), bomb.parent])
    plain = encoded(pipe, ["a bomb", "a twemoji bomb", "twemoji"])[0]
    ours = encoded(gated, ["a bomb", "a twemoji bomb", "twemoji"])[0]
    D, E = 0.5 * d.delta().float().T, e.delta().float().T
    expected = plain.clone()
    expected[0, 2:] += plain[0, 2:] @ E
    expected[1, 2:] += plain[1, 2:] @ D
    expected[1, 3:] += plain[1, 3:] @ E
    expected[2, 1:] += plain[2, 1:] @ D
    assert (ours - expected).abs().max() < CLOSE
    assert gated.starts(["a bomb", "a twemoji bomb", "twemoji"]) == [[None, 2], [2, 3], [1, None]]


def test_one_operator_of_several_concepts_acts_where_any_is_present(pipe, model, tmp_path):
    gated = around(pipe, GATED, operators=write_operator(tmp_path, model, [STYLE, BOMB]))
    assert gated.starts(["a cat", "a bomb", "a twemoji bomb"]) == [[None], [2], [2]]


def test_it_does_not_draw_without_operators(base_folder):
    gated = opened(base_folder, GATED)
    for call in (lambda: gated("a cat", **SMALL), lambda: encoded(gated, "a cat")):
        with pytest.raises(RuntimeError, match="no operators"):
            call()


def test_embeddings_without_text_need_a_probe(pipe, operator):
    gated = around(pipe, GATED, operators=operator)
    assert gated.operators[0].blind == ("twemoji",)  # none can be fitted on a random text encoder
    with pytest.raises(ValueError, match=r"only text tells whether 'twemoji' is meant.*concept-erase gates"):
        gated(prompt_embeds=torch.zeros(1, 24, 32), **SMALL)


@pytest.mark.parametrize("kind", ["nan", "truncated", "shape", "words", "base", "adapter", "hash", "strength", "twice"])
def test_a_wrong_operator_file_is_refused(pipe, model, operator, kohya, kind):
    gated = around(pipe, GATED)
    settings, entry = {}, operator
    header, body = split_safetensors(operator)
    record = json.loads(header["__metadata__"]["concept_erase"])
    if kind == "nan":
        start = header["up"]["data_offsets"][0]
        raw_safetensors(
            operator, header, body[:start] + torch.tensor([torch.nan]).numpy().tobytes() + body[start + 4 :]
        )
    elif kind == "truncated":
        operator.write_bytes(operator.read_bytes()[:-8])
    elif kind == "shape":
        header["up"]["shape"] = header["up"]["shape"][::-1]
        raw_safetensors(operator, header, body)
    elif kind in ("words", "base"):
        if kind == "words":
            record["concepts"][0]["words"] = [[]]
        else:
            record["base"] = open_model(build_pipeline(seed=1)).base
        header["__metadata__"]["concept_erase"] = json.dumps(record)
        raw_safetensors(operator, header, body)
    elif kind == "adapter":
        entry = kohya
    elif kind == "hash":
        settings = {"sha256": "0" * 64}
    elif kind == "strength":
        entry = [(operator, -1.0)]
    elif kind == "twice":
        entry = [operator, operator.parent]
    with pytest.raises(ValueError, match=r"safetensors|operator|strength"):
        gated.load_operators(entry, **settings)
    assert gated.operators == ()


def test_another_tokenizer_or_text_encoder_is_refused(pipe, operator, model, tmp_path):
    header, body = split_safetensors(operator)
    record = json.loads(header["__metadata__"]["concept_erase"])
    record["concepts"][0]["words"] = [[5, 6]]  # as another tokenizer would split it
    header["__metadata__"]["concept_erase"] = json.dumps(record)
    raw_safetensors(operator, header, body)
    with pytest.raises(ValueError, match="does not recognise its own concept"):
        around(pipe, GATED, operators=operator)
    pipe.text_encoder = build_pipeline(width=16).text_encoder
    with pytest.raises(ValueError, match="another size"):
        around(pipe, GATED, operators=write_operator(tmp_path / "b", model))


# -- on the embedded generator, where there are probes -----------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    return open_model()


@pytest.fixture(scope="module")
def style(embedded, tmp_path_factory):
    """An erasure of the embedded generator, with both files and probes."""
    from concept_erase import erase
    from concept_erase.operators import add_probes

    files = erase(STYLE, embedded, out=tmp_path_factory.mktemp("style"), n=0).files
    add_probes(files["operator"], embedded)
    return files


def test_on_the_embedded_generator_from_the_files_of_an_erasure(embedded, style):
    """The smoke test of both pipelines: opened as a user does, one picture each."""
    erased = opened(embedded.folder, ERASED, erasures=[style["adapter"]])
    gated = opened(embedded.folder, GATED, operators=style["operator"])
    prompt, settings = "a cat in twemoji style", {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 4.0}
    seen = [
        p(prompt, generator=torch.Generator().manual_seed(0), **settings).images for p in (embedded.pipe, erased, gated)
    ]
    assert all((picture - seen[0]).abs().mean() > 0.01 for picture in seen[1:])
    assert (seen[1] - seen[2]).abs().mean() < (
        seen[1] - seen[0]
    ).abs().mean() / 2  # the same edit but for the positions


def test_a_probe_recognises_embeddings_without_text(embedded, style):
    gated = opened(embedded.folder, GATED, operators=style["operator"])
    prompts = ["a cat in twemoji style", "a cat in noto style", "twemoji art of a bus", ""]
    plain = encoded(embedded.pipe, prompts)[0]
    passed = plain.clone()
    ours = encoded(gated, None, prompt_embeds=passed, negative_prompt=[""] * 4)[0]
    assert torch.equal(passed, plain)  # what the caller gave is not written to
    assert torch.equal(ours, encoded(gated, prompts)[0])
    assert torch.equal(ours[1], plain[1])
    assert torch.equal(ours[3], plain[3])
    assert not torch.equal(ours[0], plain[0])
    again = encoded(gated, None, prompt_embeds=ours, negative_prompt=[""] * 4)[0]
    assert torch.equal(again, ours)  # what was moved is not moved again


def test_a_probe_recognises_the_concept_under_another_name(embedded, style):
    gated = opened(embedded.folder, GATED, operators=style["operator"])
    learned = gated.text_encoder.get_input_embeddings().weight[558].detach().clone()
    assert gated.tokenizer("twemoji").input_ids[1] == 558
    gated.load_textual_inversion({"<mine>": learned}, token="<mine>")
    named, alias = encoded(gated, ["a cat in twemoji style", "a cat in <mine> style"])[0]
    assert (named - alias).abs().max() < CLOSE
    plain = encoded(embedded.pipe, "a cat in twemoji style")[0][0]
    assert (alias - plain).abs().max() > 100 * CLOSE


def test_with_clip_skip_words_alone_decide(embedded, style):
    """The probes know the last layer; they must not open a gate on another."""
    gated = opened(embedded.folder, GATED, operators=style["operator"])
    gated.text_encoder.__dict__["text_model"] = gated.text_encoder  # diffusers reads it where transformers took it away
    prompts = ["a cat in noto style", "a cat in twemoji style"]
    with torch.no_grad():
        plain = StableDiffusionPipeline.encode_prompt(gated, prompts, "cpu", 1, False, clip_skip=1)[0]
    ours = encoded(gated, prompts, clip_skip=1)[0]
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1, :4], plain[1, :4])
    assert not torch.equal(ours[1, 4], plain[1, 4])


def test_a_text_encoder_with_other_weights_is_refused(embedded, style):
    pipe = opened(embedded.folder, GATED)
    for parameter in pipe.text_encoder.parameters():
        parameter.data = parameter.data.roll(1, 0)
    with pytest.raises(ValueError, match="does not recognise its own concept"):
        pipe.load_operators(style["operator"])


# -- alone ---------------------------------------------------------------------------------------------------------


def test_both_files_run_alone_where_the_package_is_not_installed(base_folder, kohya, operator, tmp_path):
    script = """
import sys
sys.modules["concept_erase"] = None  # importing it raises
from diffusers import DiffusionPipeline
base, erased, gated, adapter, operator = sys.argv[1:]
for code, files in ((erased, {"erasures": [adapter]}), (gated, {"operators": [operator]})):
    pipe = DiffusionPipeline.from_pretrained(base, custom_pipeline=code, trust_remote_code=True, **files)
    pipe("a twemoji cat", num_inference_steps=1, height=16, width=16)
    print(type(pipe).__name__)
"""
    alone = [shutil.copy(code, tmp_path / code.name) for code in (ERASED, GATED)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", script, base_folder, *alone, kohya, operator],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["ErasedStableDiffusionPipeline", "GatedStableDiffusionPipeline"], done.stderr


def test_what_both_files_share_is_the_same(tmp_path):
    shared = [code.read_text().partition("# -- the same in both pipelines")[2] for code in (ERASED, GATED)]
    assert shared[0] == shared[1] != ""
