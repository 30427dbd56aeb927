import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TOKENIZER, TWEMOJI, build_pipeline, encoder_paths, layer_at, quick
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from concept_erase import erase
from concept_erase.errors import ConceptEraseError, InputError, MissingModelError, NumericalError
from concept_erase.families import SD1
from concept_erase.generate import Sampling, generate
from concept_erase.model import open_model

UNET_FILE = Path("unet", "diffusion_pytorch_model.safetensors")
ENCODER_FILE = Path("text_encoder", "model.safetensors")


def change_tensors(path, change):
    """Rewrite a safetensors file with `change(name, tensor)`; None leaves a tensor out."""
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file({name: t for name, t in tensors.items() if t is not None}, path, metadata={"format": "pt"})


# -- what is read --------------------------------------------------------------------------------------------------


def test_only_tokenizer_text_encoder_and_edited_projections_are_read(base_copy, model, monkeypatch):
    for part in ("vae", "scheduler"):
        shutil.rmtree(base_copy / part)
    (base_copy / "unet" / "config.json").unlink()
    change_tensors(base_copy / UNET_FILE, lambda name, t: t if re.search(r"attn2\.to_[kv]\.weight$", name) else None)
    stripped = open_model(base_copy)
    outcome = erase(TWEMOJI, stripped, quick("uce"), n=0)
    assert stripped._pipe is None
    assert "pipe" not in vars(stripped)
    assert outcome.adapter.digest == erase(TWEMOJI, model, quick("uce"), n=0).adapter.digest


def test_nothing_is_read_before_it_is_asked_for(base_copy):
    opened = open_model(base_copy)
    for part in ("text_encoder", "unet", "vae", "tokenizer"):
        shutil.rmtree(base_copy / part)
    assert (opened.family, opened.name, opened.revision, opened.folder) == (SD1, "tiny", None, base_copy)
    assert not opened.is_embedded


def test_layers_and_weights_on_disk_are_those_of_the_live_pipeline(model, pristine):
    live = open_model(pristine)
    assert model.stream_layers() == live.stream_layers()
    assert encoder_paths(model) == encoder_paths(live)
    assert all(path.startswith("text_encoder.text_model.encoder.layers.") for path in encoder_paths(live))
    for path in model.stream_layers() + encoder_paths(model):
        assert torch.equal(model.weight(path), layer_at(pristine, path).weight)
        assert torch.equal(live.weight(path), layer_at(pristine, path).weight)
    assert model.fingerprint == live.fingerprint


def test_gram_is_the_sum_over_all_layers_that_read_the_text(model, pristine):
    weights = [layer_at(pristine, path).weight.detach().double() for path in model.stream_layers()]
    exact = sum(w.T @ w for w in weights)
    assert (model.gram - exact).norm() < 1e-6 * exact.norm()
    assert model.gram.dtype is torch.float64


def test_an_opened_model_is_passed_on_and_its_pipeline_built_once(model):
    assert open_model(model) is model
    assert open_model(str(model.folder)).fingerprint == model.fingerprint
    assert model.pipe is model.pipe


# -- text ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["", "a cat", "pixel art", "a big dog, noto style"]), st.integers(1, 24))))
def test_truncated_encodings_equal_the_full_ones(model, pristine, wanted):
    rows = [model.token_ids(text) for text, _ in wanted]
    states = model.encode(rows, [upto for _, upto in wanted], batch=3)
    for (text, upto), state in zip(wanted, states, strict=True):
        ids = pristine.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            full = pristine.text_encoder(ids).last_hidden_state[0]
        assert state.shape == (upto, 32)
        assert torch.allclose(state, full[:upto], atol=1e-5)


def test_the_limit_of_the_text_encoder_is_kept_to_the_token(model):
    assert model.length == 24
    assert len(model.token_ids("a " * 22)) == 24
    with pytest.raises(InputError, match="takes 25 tokens, the text encoder of tiny holds 24"):
        model.token_ids("a " * 23)


# -- how bases are stored ------------------------------------------------------------------------------------------

STORED = {
    "sharded": {"max_shard_size": "100KB"},
    "variant": {"variant": "fp16"},
    "sharded variant": {"variant": "fp16", "max_shard_size": "100KB"},
}


@pytest.mark.parametrize("how", STORED)
def test_other_ways_to_store_a_base_give_the_same_model(how, model, pipe, tmp_path):
    if "variant" in how:
        pipe.to(torch.float16)
    pipe.save_pretrained(tmp_path, **STORED[how])
    if "sharded" in how:
        assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    stored = open_model(tmp_path)
    assert stored.stream_layers() == model.stream_layers()
    assert stored.fingerprint == model.fingerprint
    ids = model.token_ids("a cat in pixel art style")
    (ours,), (theirs,) = stored.encode([ids], [24]), model.encode([ids], [24])
    assert torch.allclose(ours, theirs, atol=0.02)
    assert stored.weight(stored.stream_layers()[0]).dtype is torch.float32


def test_a_base_stored_in_half_precision_draws_in_single(pipe, tmp_path):
    pipe.to(torch.float16).save_pretrained(tmp_path)
    built = open_model(tmp_path).pipe
    assert {getattr(built, part).dtype for part in ("unet", "vae", "text_encoder")} == {torch.float32}
    assert built(["a cat"], num_inference_steps=1, height=16, width=16, output_type="pt").images.isfinite().all()


def test_full_precision_is_preferred_to_a_variant_beside_it(base_copy, model):
    half = {name: torch.zeros_like(t) for name, t in load_file(base_copy / UNET_FILE).items()}
    save_file(half, base_copy / UNET_FILE.with_suffix(".fp16.safetensors"))
    assert open_model(base_copy).fingerprint == model.fingerprint


def test_the_fingerprint_tells_bases_apart(model):
    assert open_model(build_pipeline(seed=1)).fingerprint != model.fingerprint


# -- bases that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_an_edited_layer_is_refused_and_the_layer_named(base_copy, model, value):
    broken = model.stream_layers()[3]

    def poison(name, tensor):
        if broken == f"unet.{name.removesuffix('.weight')}":
            tensor[1, 2] = value
        return tensor

    change_tensors(base_copy / UNET_FILE, poison)
    with pytest.raises(NumericalError, match=f"{re.escape(broken)}.*NaN or Inf.*intact checkpoint"):
        erase(TWEMOJI, base_copy, quick("uce"), n=0)


def test_nan_in_a_live_pipeline_is_refused(pipe, model):
    layer_at(pipe, model.stream_layers()[0]).weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="hold NaN or Inf"):
        erase(TWEMOJI, pipe, quick("uce"), n=0)


@pytest.mark.parametrize("method", ["uce", "encoder"])
def test_nan_in_the_text_encoder_is_refused(base_copy, method):
    def poison(name, tensor):
        return tensor * float("nan") if "final_layer_norm.weight" in name else tensor

    change_tensors(base_copy / ENCODER_FILE, poison)
    with pytest.raises(NumericalError):
        erase(TWEMOJI, base_copy, quick(method), n=0)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("name", ["FluxPipeline", "evil.Pipeline", None])
def test_a_folder_of_an_unknown_class_without_the_parts_of_a_family_is_refused_by_name(base_copy, name, part):
    index = json.loads((base_copy / "model_index.json").read_text())
    del index[part]
    (base_copy / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    with pytest.raises(InputError, match=f"no family knows the pipeline '{name}'.*supported: StableDiffusion"):
        open_model(base_copy)


def test_a_live_pipeline_of_an_unknown_class_is_refused(pristine):
    from diffusers import DDIMPipeline

    with pytest.raises(InputError, match="no family knows the pipeline 'DDIMPipeline'"):
        open_model(DDIMPipeline(pristine.unet, pristine.scheduler))


def others(pipe):
    """Pipelines of the same parts whose classes no family lists."""
    from diffusers import (
        ControlNetModel,
        StableDiffusionControlNetInpaintPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionInstructPix2PixPipeline,
        StableDiffusionPAGPipeline,
    )

    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"} | {"requires_safety_checker": False}
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    yield StableDiffusionControlNetPipeline(**parts, controlnet=control)
    yield StableDiffusionControlNetInpaintPipeline(**parts, controlnet=control)
    yield StableDiffusionPAGPipeline(**parts)
    yield StableDiffusionInstructPix2PixPipeline(**parts)


def test_any_pipeline_of_a_familys_parts_is_taken(pipe, model):
    plain = erase(TWEMOJI, pipe, quick("uce"), n=0).adapter
    for made in others(pipe):
        opened = open_model(made)
        assert (opened.family, opened.fingerprint) == (SD1, model.fingerprint)
        assert erase(TWEMOJI, made, quick("uce"), n=0).adapter.digest == plain.digest
    image = generate(open_model(next(others(pipe))), ["a cat"], [1], sampling=Sampling(steps=1))[0]
    assert image.tobytes() == generate(open_model(pipe), ["a cat"], [1], sampling=Sampling(steps=1))[0].tobytes()


UNLISTED = {
    "PAG": ("StableDiffusionPAGPipeline", {}),
    "another layout's name": ("StableDiffusionXLPipeline", {}),
    "a part that was not copied": ("AnimateDiffPipeline", {"motion_adapter": ["diffusers", "MotionAdapter"]}),
    "unknown to diffusers": ("MyPipeline", {"mine": ["my_file", "Mine"], "number": 3}),
    "custom": (["my_file", "MyPipeline"], {}),
}


@pytest.mark.parametrize("kind", UNLISTED)
def test_a_folder_of_any_class_with_the_parts_of_a_family_is_taken_and_drawn_from(base_copy, model, kind):
    name, more = UNLISTED[kind]
    index = json.loads((base_copy / "model_index.json").read_text())
    (base_copy / "model_index.json").write_text(json.dumps(index | {"_class_name": name} | more))
    opened = open_model(base_copy)
    assert (opened.family, opened.fingerprint, opened.undrawable) == (SD1, model.fingerprint, None)
    (usual,) = generate(model, ["a cat"], [1], sampling=Sampling(steps=1))
    assert generate(opened, ["a cat"], [1], sampling=Sampling(steps=1))[0].tobytes() == usual.tobytes()


def test_a_controlnet_folder_is_taken_and_drawn_from_without_its_controlnet(pipe, model, tmp_path):
    next(others(pipe)).save_pretrained(tmp_path)
    assert (tmp_path / "controlnet").is_dir()
    opened = open_model(tmp_path)
    plain = erase(TWEMOJI, model, quick("uce"), n=0).adapter
    assert erase(TWEMOJI, opened, quick("uce"), n=0).adapter.digest == plain.digest
    (usual,) = generate(model, ["a cat"], [1], sampling=Sampling(steps=1))
    assert generate(opened, ["a cat"], [1], sampling=Sampling(steps=1))[0].tobytes() == usual.tobytes()


def test_a_controlnet_folder_for_inpainting_is_erased_from_and_says_why_it_is_not_scored(base_copy, pipe):
    from diffusers import UNet2DConditionModel

    plain = erase(TWEMOJI, pipe, quick("uce"), n=0).adapter
    unet = UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 9})
    state = {name: tensor for name, tensor in pipe.unet.state_dict().items() if name != "conv_in.weight"}
    unet.load_state_dict(state, strict=False)
    pipe.unet = unet
    made = list(others(pipe))[1]
    made.save_pretrained(base_copy)
    outcome = erase(TWEMOJI, base_copy, quick("uce"), n=2)
    assert outcome.adapter.digest == plain.digest
    assert outcome.scores is None
    assert "9 input channels" in outcome.unscored


def test_a_denoiser_of_another_class_is_erased_from_and_not_drawn(base_copy):
    index = json.loads((base_copy / "model_index.json").read_text())
    changed = {"_class_name": "MyPipeline", "unet": ["my_file", "MyUNet"]}
    (base_copy / "model_index.json").write_text(json.dumps(index | changed))
    outcome = erase(TWEMOJI, base_copy, quick("uce"), n=2)
    assert outcome.scores is None
    assert "is a MyUNet" in outcome.unscored
    with pytest.raises(InputError, match="is a MyUNet"):
        generate(open_model(base_copy), ["a cat"], [1], sampling=Sampling(steps=1))


@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline", "StableDiffusionXLPipeline", "MyPipeline"])
def test_a_folder_of_an_unlisted_class_and_another_layout_is_refused(base_copy, name):
    index = json.loads((base_copy / "model_index.json").read_text())
    (base_copy / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    config = base_copy / "unet" / "config.json"
    held = json.loads(config.read_text())
    for changed, layout in (
        ({"cross_attention_dim": 1024}, "Stable Diffusion 2"),
        ({"cross_attention_dim": 2048}, "SDXL"),
    ):
        config.write_text(json.dumps(held | changed))
        with pytest.raises(InputError, match=f"{layout} layout.*pass one of those"):
            open_model(base_copy)
    config.write_text(json.dumps(held))
    text = base_copy / "text_encoder" / "config.json"
    text.write_text(json.dumps(json.loads(text.read_text()) | {"model_type": "t5"}))
    with pytest.raises(InputError, match="of the kind 't5'"):
        open_model(base_copy)


def test_an_unlisted_pipeline_of_another_layout_is_refused(pipe):
    made = next(others(pipe))
    made.unet.register_to_config(cross_attention_dim=1024)
    with pytest.raises(InputError, match="Stable Diffusion 2 layout"):
        open_model(made)
    made.unet.register_to_config(cross_attention_dim=32)
    made.text_encoder = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="no family knows the pipeline 'StableDiffusionControlNetPipeline'"):
        open_model(made)
    made.text_encoder = None
    with pytest.raises(InputError, match="no family knows"):
        open_model(made)


def test_a_subclass_of_a_known_pipeline_is_taken(pristine):
    class Mine(type(pristine)):
        pass

    assert open_model(Mine(**pristine.components, requires_safety_checker=False)).family is SD1


def test_an_index_that_is_no_json_is_refused(base_copy):
    (base_copy / "model_index.json").write_text("{")
    with pytest.raises(ConceptEraseError, match=r"model_index\.json"):
        open_model(base_copy)


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(MissingModelError, match=r"has no model_index\.json"):
        open_model(tmp_path)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet"])
def test_a_folder_that_lacks_a_part_says_which(base_copy, part):
    shutil.rmtree(base_copy / part)
    with pytest.raises(MissingModelError, match=part):
        erase(TWEMOJI, base_copy, quick("uce"), n=0)


def test_pickled_weights_are_not_read(base_copy):
    weights = load_file(base_copy / UNET_FILE)
    (base_copy / UNET_FILE).unlink()
    torch.save(weights, base_copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(MissingModelError, match="no safetensors file; pickled weights are not read"):
        erase(TWEMOJI, base_copy, quick("uce"), n=0)


@pytest.mark.parametrize("sharded", [False, True])
def test_truncated_weights_are_refused_and_the_file_named(pipe, tmp_path, sharded):
    pipe.save_pretrained(tmp_path, max_shard_size="100KB" if sharded else "10GB")
    files = sorted((tmp_path / "unet").glob("*.safetensors"))
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"not a valid safetensors file.*fetch it again"):
        erase(TWEMOJI, tmp_path, quick("uce"), n=0)


def test_a_base_without_editable_layers_is_refused(base_copy):
    change_tensors(base_copy / UNET_FILE, lambda name, t: None if "attn2" in name else t)
    with pytest.raises(InputError, match=r"lacks .*attn2\.to_k\.weight.*fetch or save it again"):
        open_model(base_copy).stream_layers()


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "no-such-folder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_name_is_refused(name):
    with pytest.raises(MissingModelError, match="is no folder; pass a folder of a diffusers pipeline, or a hub name"):
        open_model(name)


def test_a_hub_name_that_cannot_be_reached_says_which_files_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingModelError) as refused:
        open_model("nobody/nothing")
    for needed in ("'nobody/nothing'", "model_index.json", "tokenizer/", "text_encoder/", "unet/", "Pass a folder"):
        assert needed in str(refused.value)


def test_a_cached_hub_model_is_found_offline_with_its_revision(base_folder, monkeypatch, tmp_path, model):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--one"
    shutil.copytree(base_folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = open_model("some/one")
    assert (found.name, found.revision) == ("some/one", revision)
    assert found.fingerprint == model.fingerprint


def test_a_cached_hub_model_that_is_incomplete_says_what_it_lacks(base_folder, monkeypatch, tmp_path):
    snapshot = tmp_path / "models--some--one" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(TOKENIZER, snapshot / "tokenizer")
    shutil.copy(base_folder / "model_index.json", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingModelError, match=r"'some/one' lacks .*text_encoder.*unet"):
        open_model("some/one")
