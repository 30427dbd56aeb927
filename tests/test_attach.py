"""Erasures in live weights: attached for a block, loaded to stay, and what the pipeline reads at every call."""

import copy
import dataclasses
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.utils.prune
from conftest import (
    CLOSE,
    adapter_of,
    bits,
    build_pipeline,
    edit_directly,
    encoder_paths,
    farthest,
    layer_at,
    outputs,
    random_changes,
)
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor, IPAdapterAttnProcessor2_0

from concept_erase.attach import attached, check_erasures, erasures, load_erasure, unload_erasure
from concept_erase.errors import BaseMismatchError, ConceptEraseError, ErasureLostError, InputError, NumericalError
from concept_erase.layers import Kept
from concept_erase.lowrank import LowRank


@pytest.fixture
def style(model, tmp_path):
    """A LoRA of somebody else, on the UNet and the text encoder, as a file; and its changes."""
    changes = random_changes(model, seed=7, size=0.05)
    changes |= random_changes(model, encoder_paths(model), seed=8, size=0.02)
    folder = tmp_path / "style"
    return adapter_of(changes).save(folder)[1], changes


def drawn(pipe):
    rng = torch.Generator().manual_seed(1)
    return pipe(
        "a cat in twemoji style", num_inference_steps=2, height=16, width=16, generator=rng, output_type="pt"
    ).images


# -- attaching -----------------------------------------------------------------------------------------------------


def test_an_exception_inside_restores_every_bit(mixed_edit, pipe):
    before = bits(pipe)

    def use():
        with attached(pipe, mixed_edit):
            assert bits(pipe) != before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        use()
    assert bits(pipe) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_leaving_restores_every_bit_in_half_precision(mixed_edit, pipe, dtype):
    pipe.to(dtype)
    before = bits(pipe)
    with attached(pipe, mixed_edit, check=False):
        assert bits(pipe) != before
        assert {p.dtype for p in pipe.unet.parameters()} == {dtype}
    assert bits(pipe) == before


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0, 2.0])
def test_scale_is_the_strength(mixed_edit, pipe, scale):
    with attached(pipe, mixed_edit, scale):
        inside = outputs(pipe)
    edit_directly(pipe, mixed_edit.changes, scale)
    assert max(farthest(inside, outputs(pipe))) < CLOSE


def test_several_erasures_add_up_together_and_nested(unet_edit, mixed_edit, pipe):
    before = bits(pipe)
    with attached(pipe, [unet_edit, mixed_edit]):
        together = outputs(pipe)
    with attached(pipe, unet_edit), attached(pipe, mixed_edit, check=False):
        nested = outputs(pipe)
    assert bits(pipe) == before
    edit_directly(pipe, unet_edit.changes)
    edit_directly(pipe, mixed_edit.changes)
    assert max(farthest(together, outputs(pipe))) < CLOSE
    assert max(farthest(nested, outputs(pipe))) < CLOSE


def test_attaching_nothing_changes_nothing(pipe):
    before = bits(pipe)
    with attached(pipe, []):
        assert bits(pipe) == before


def other_base(kind):
    return build_pipeline(seed=1) if kind == "hash" else build_pipeline(width=48)


@pytest.mark.parametrize("kind", ["hash", "shape"])
def test_another_base_is_refused_before_anything_changes(unet_edit, kind, tmp_path):
    pipe = other_base(kind)
    before = bits(pipe)
    with pytest.raises(BaseMismatchError, match="another base" if kind == "shape" else "made for 'tiny'"):
        attached(pipe, unet_edit).__enter__()
    assert bits(pipe) == before
    for path in unet_edit.save(tmp_path):
        with pytest.raises(BaseMismatchError):
            load_erasure(pipe, path)
    assert bits(pipe) == before
    assert pipe.get_list_adapters() == {}


def test_another_base_of_the_same_shape_can_be_insisted_on(unet_edit, tmp_path):
    pipe = build_pipeline(seed=1)
    load_erasure(pipe, unet_edit.save(tmp_path)[0], check=False)
    loaded = outputs(pipe)
    unload_erasure(pipe)
    with attached(pipe, unet_edit, check=False):
        assert max(farthest(loaded, outputs(pipe))) < CLOSE


@pytest.mark.parametrize("path", ["unet.no.such.layer", "unet.down_blocks.0", "unet.conv_in", "vae.x", "nowhere.x"])
def test_an_edit_of_what_is_no_linear_layer_is_refused(pipe, path, model):
    (change,) = random_changes(model, model.stream_layers()[:1]).values()
    before = bits(pipe)
    with pytest.raises(BaseMismatchError):
        attached(pipe, adapter_of({path: change})).__enter__()
    assert bits(pipe) == before


def test_a_failure_half_way_restores_what_was_done(pipe, model):
    first, second = model.stream_layers()[:2]
    changes = random_changes(model, [first])
    changes[second] = LowRank(torch.zeros(3, 1), torch.zeros(1, 5))
    before = bits(pipe)
    with pytest.raises(BaseMismatchError, match="another base"):
        attached(pipe, adapter_of(changes), check=False).__enter__()
    assert bits(pipe) == before


@pytest.mark.parametrize("when", ["before", "inside"])
def test_fused_projections_get_the_edit_and_lose_it_again(unet_edit, pipe, when):
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    if when == "before":
        pipe.fuse_qkv_projections(vae=False)
    before = outputs(pipe)
    with attached(pipe, unet_edit):
        if when == "inside":
            pipe.fuse_qkv_projections(vae=False)
        assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    assert farthest(outputs(pipe), before) == [0, 0, 0] or when == "inside"
    assert max(farthest(outputs(pipe), before)) < CLOSE


# -- loading to stay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [0, 1, "folder"])
def test_load_erasure_gives_the_outputs_of_the_edited_weights(mixed_edit, pipe, tmp_path, form):
    saved, before = mixed_edit.save(tmp_path), bits(pipe)
    name = load_erasure(pipe, tmp_path if form == "folder" else saved[form], scale=0.7)
    assert erasures(pipe) == {name: 0.7}
    loaded = outputs(pipe)
    unload_erasure(pipe, name)
    assert bits(pipe) == before
    edit_directly(pipe, mixed_edit.changes, 0.7)
    assert max(farthest(loaded, outputs(pipe))) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_pipeline_is_the_same_base(model, mixed_edit, pipe, tmp_path, dtype):
    with_sketch = dataclasses.replace(mixed_edit, base=model.base)
    pipe.to(dtype)
    before = bits(pipe)
    assert load_erasure(pipe, with_sketch.save(tmp_path)[0], name="gone") == "gone"
    assert {p.dtype for p in pipe.unet.parameters()} == {dtype}
    check_erasures(pipe)
    pipe.to(torch.float32)
    check_erasures(pipe)
    pipe.to(dtype)
    unload_erasure(pipe)
    assert bits(pipe) == before


OTHERS = {
    "loaded before": None,
    "load_lora_weights": lambda pipe: None,
    "disable_lora": lambda pipe: pipe.disable_lora(),
    "set_adapters": lambda pipe: pipe.set_adapters("style", 0.0),
    "delete_adapters": lambda pipe: pipe.delete_adapters("style"),
    "unload_lora_weights": lambda pipe: pipe.unload_lora_weights(),
    "fuse_lora": lambda pipe: pipe.fuse_lora(),
    "fuse and unfuse": lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora()),
    "fuse and unload": lambda pipe: (pipe.fuse_lora(), pipe.unload_lora_weights()),
}


@pytest.mark.parametrize("what", OTHERS)
def test_nothing_that_is_done_with_other_loras_switches_it_off(unet_edit, style, pipe, tmp_path, what):
    file, before = style[0], bits(pipe)
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes, 0.9)
    for each in (plain, pipe):
        if each is plain or what == "loaded before":
            each.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="style")
    name = load_erasure(pipe, unet_edit.save(tmp_path)[0], name="gone", scale=0.9)
    if what != "loaded before":
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="style")
        for each in (plain, pipe):
            OTHERS[what](each)
    assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    unload_erasure(pipe, name)
    edit_directly(plain, unet_edit.changes, -0.9)
    assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    if "fuse" not in what:
        pipe.unload_lora_weights()
        assert bits(pipe) == before


@pytest.mark.parametrize("order", ["ab", "ba", "all"])
def test_two_erasures_at_two_strengths_go_in_any_order(unet_edit, mixed_edit, pipe, tmp_path, order):
    before, plain = bits(pipe), copy.deepcopy(pipe)
    load_erasure(pipe, unet_edit.save(tmp_path / "a")[0], name="a", scale=0.5)
    load_erasure(pipe, mixed_edit.save(tmp_path / "b")[1], name="b", scale=1.5)
    assert erasures(pipe) == {"a": 0.5, "b": 1.5}
    edit_directly(plain, unet_edit.changes, 0.5)
    edit_directly(plain, mixed_edit.changes, 1.5)
    assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    if order == "all":
        unload_erasure(pipe)
    else:
        unload_erasure(pipe, order[0])
        edit_directly(plain, *((unet_edit.changes, -0.5) if order == "ab" else (mixed_edit.changes, -1.5)))
        assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
        unload_erasure(pipe, order[1])
    assert bits(pipe) == before
    assert type(pipe) is StableDiffusionPipeline
    with pytest.raises(InputError, match="none is loaded"):
        unload_erasure(pipe, "a")


def test_what_is_there_already_is_refused(unet_edit, mixed_edit, style, pipe, tmp_path):
    kohya, peft = unet_edit.save(tmp_path)
    second = mixed_edit.save(tmp_path / "b")[0]
    load_erasure(pipe, kohya, name="gone")
    pipe.load_lora_weights(str(style[0].parent), weight_name=style[0].name, adapter_name="style")
    before = bits(pipe)
    for path, name, match in (
        (peft, "other", "already, as 'gone'"),
        (kohya, None, "already"),
        (second, "gone", "'gone' is loaded already"),
        (second, "style", "'style' is loaded already"),
        (second, " ", "pass some text"),
    ):
        with pytest.raises(InputError, match=match):
            load_erasure(pipe, path, name=name)
    for scale in (0, -1.0, float("nan"), True):
        with pytest.raises(InputError, match="positive"):
            load_erasure(pipe, second, scale=scale)
    for call in (pipe.delete_adapters, pipe.set_adapters):
        with pytest.raises(InputError, match="unload_erasure"):
            call("gone")
    assert bits(pipe) == before
    assert erasures(pipe) == {"gone": 1.0}


def test_a_failure_while_writing_puts_everything_back(mixed_edit, pipe, tmp_path, monkeypatch):
    file, before = mixed_edit.save(tmp_path)[0], bits(pipe)
    written, honest = [], Kept.write

    def faulty(kept, value):
        written.append(kept.path)
        if len(written) == 9:
            raise MemoryError
        honest(kept, value)

    monkeypatch.setattr(Kept, "write", faulty)
    with pytest.raises(MemoryError):
        load_erasure(pipe, file)
    assert len(written) > 9
    assert bits(pipe) == before
    assert erasures(pipe) == {}
    assert type(pipe) is StableDiffusionPipeline


# -- whatever is read in place of the edited weights ---------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after", "fused, unfused, fused"])
def test_fused_projections_hold_the_erasure(unet_edit, pipe, tmp_path, when):
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    before = outputs(pipe)
    if when != "after":
        pipe.fuse_qkv_projections(vae=False)
    if when == "fused, unfused, fused":
        pipe.unfuse_qkv_projections(vae=False)
    name = load_erasure(pipe, unet_edit.save(tmp_path)[0])
    if when != "before":
        pipe.fuse_qkv_projections(vae=False)
    assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    pipe.unfuse_qkv_projections(vae=False)
    assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    pipe.fuse_qkv_projections(vae=False)
    unload_erasure(pipe, name)
    assert max(farthest(outputs(pipe), before)) < CLOSE


def replaced_unet(pipe, pristine):
    pipe.unet = copy.deepcopy(pristine.unet)


def replaced_encoder(pipe, pristine):
    pipe.text_encoder = copy.deepcopy(pristine.text_encoder)


def loaded_over(pipe, pristine):
    pipe.unet.load_state_dict(pristine.unet.state_dict())


def loaded_over_in_place(pipe, pristine):
    for parameter, plain in zip(pipe.unet.parameters(), pristine.unet.parameters(), strict=True):
        parameter.data.copy_(plain.data)


def fused_from_others(pipe, pristine):
    other = copy.deepcopy(pristine)
    other.fuse_qkv_projections(vae=False)
    pipe.fuse_qkv_projections(vae=False)
    for name, layer in pipe.unet.named_modules():
        if name.endswith("attn2.to_kv"):
            layer.weight.data = other.unet.get_submodule(name).weight.data


def custom_diffusion(pipe, _):
    processors = {}
    for name, processor in pipe.unet.attn_processors.items():
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        own = CustomDiffusionAttnProcessor(hidden_size=width, cross_attention_dim=32, train_q_out=False)
        processors[name] = own if "attn2" in name else processor
    pipe.unet.set_attn_processor(processors)


def one_layer(pipe, pristine):
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    pipe.unet.get_submodule(path).weight.data = pristine.unet.get_submodule(path).weight.data.clone()


LOSSES = (
    replaced_unet, replaced_encoder, loaded_over, loaded_over_in_place, fused_from_others, custom_diffusion, one_layer,
)  # fmt: skip


@pytest.mark.parametrize("lose", LOSSES)
def test_a_pipeline_that_would_read_other_weights_refuses_to_draw(mixed_edit, pipe, pristine, tmp_path, lose):
    load_erasure(pipe, mixed_edit.save(tmp_path)[0], name="gone")
    drawn(pipe)
    lose(pipe, pristine)
    with pytest.raises(ErasureLostError):
        drawn(pipe)
    if lose is loaded_over:  # what was lost can be dropped, and loaded anew
        unload_erasure(pipe)
        assert bits(pipe) == bits(pristine)
        load_erasure(pipe, mixed_edit.save(tmp_path)[0], name="gone")
        drawn(pipe)


@pytest.mark.parametrize("state", [custom_diffusion, fused_from_others])
def test_what_is_never_read_is_not_edited(unet_edit, pipe, pristine, tmp_path, state):
    edit_directly(pristine := copy.deepcopy(pristine), unet_edit.changes)  # so that what is fused from it differs
    state(pipe, pristine)
    before = bits(pipe)
    with pytest.raises(ConceptEraseError, match=r"processor|fused from other"):
        load_erasure(pipe, unet_edit.save(tmp_path)[0])
    assert bits(pipe) == before


def test_the_weights_of_an_image_prompt_are_no_obstacle(unet_edit, pipe, tmp_path):
    processors = {}
    for name, processor in pipe.unet.attn_processors.items():
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        processors[name] = IPAdapterAttnProcessor2_0(width, 32) if "attn2" in name else processor
    pipe.unet.set_attn_processor(processors)
    before = bits(pipe)
    load_erasure(pipe, unet_edit.save(tmp_path)[0])
    check_erasures(pipe)
    unload_erasure(pipe)
    assert bits(pipe) == before


@pytest.mark.parametrize("kind", ["pruned", "normalised", "quantised", "group offloading"])
def test_weights_that_cannot_be_edited_are_refused_in_a_sentence(unet_edit, pipe, tmp_path, kind):
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    if kind == "pruned":
        torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5)
    elif kind == "normalised":
        torch.nn.utils.parametrizations.weight_norm(layer)
    elif kind == "quantised":
        layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)
    else:
        pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    before = bits(pipe)
    with pytest.raises(InputError, match=r"pruned|quantis|group offloading"):
        load_erasure(pipe, unet_edit.save(tmp_path)[0], check=False)
    assert bits(pipe) == before
    assert erasures(pipe) == {}


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_weights_are_edited_where_they_are_kept(unet_edit, pipe, tmp_path, where):
    from accelerate import cpu_offload, disk_offload

    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    if where == "memory":
        cpu_offload(pipe.unet, torch.device("cpu"))
    else:
        disk_offload(pipe.unet, str(tmp_path / "unet"), torch.device("cpu"))
    file = unet_edit.save(tmp_path)[0]
    if where == "disk":
        with pytest.raises(InputError, match="offload"):
            load_erasure(pipe, file)
        return
    name = load_erasure(pipe, file)
    assert (drawn(pipe) - drawn(plain)).abs().max() < CLOSE
    edit_directly(plain, unet_edit.changes, -1.0)
    unload_erasure(pipe, name)
    assert (drawn(pipe) - drawn(plain)).abs().max() < CLOSE


def test_a_compiled_or_parallel_component_is_looked_through(unet_edit, pipe, tmp_path):
    plain = copy.deepcopy(pipe)
    edit_directly(plain, unet_edit.changes)
    inside = SimpleNamespace(unet=pipe.unet, text_encoder=pipe.text_encoder)
    file, before = unet_edit.save(tmp_path)[0], bits(inside)
    compiled = copy.copy(pipe)
    compiled.unet = torch.compile(inside.unet, backend="eager")
    parallel = SimpleNamespace(unet=torch.nn.DataParallel(compiled.unet), text_encoder=inside.text_encoder)
    for wrapped in (compiled, parallel):
        load_erasure(wrapped, file)
        check_erasures(wrapped)
        for path in unet_edit.changes:
            assert (layer_at(inside, path).weight - layer_at(plain, path).weight).abs().max() < CLOSE
        unload_erasure(wrapped)
        assert bits(inside) == before


@pytest.mark.parametrize("late", [False, True])
def test_float8_storage_holds_an_erasure_or_refuses(model, unet_edit, pipe, tmp_path, late):
    adapter = dataclasses.replace(unet_edit, base=model.base)
    file = adapter.save(tmp_path)[0]
    settings = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    if not late:
        pipe.unet.enable_layerwise_casting(**settings)
    name = load_erasure(pipe, file)
    if late:
        pipe.unet.enable_layerwise_casting(**settings)
    assert layer_at(pipe, next(iter(unet_edit.changes))).weight.dtype == torch.float8_e4m3fn
    drawn(pipe)
    unload_erasure(pipe, name)
    tiny = adapter_of({p: c.scaled(0.01) for p, c in unet_edit.changes.items()})
    with pytest.raises(NumericalError, match="too coarse"):
        load_erasure(pipe, tiny.save(tmp_path / "tiny")[0])
    assert erasures(pipe) == {}


# -- any pipeline --------------------------------------------------------------------------------------------------


def test_it_needs_only_the_layers(unet_edit, pipe, tmp_path):
    file, before = unet_edit.save(tmp_path)[0], bits(pipe)
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    for made in (
        StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False),
        StableDiffusionImg2ImgPipeline.from_pipe(pipe),
        StableDiffusionInpaintPipeline.from_pipe(pipe),
        SimpleNamespace(unet=pipe.unet, text_encoder=None),
    ):
        name = load_erasure(made, file)
        assert bits(pipe) != before
        assert type(made).__name__ == type(made).__mro__[1 if callable(made) else 0].__name__
        unload_erasure(made, name)
        assert bits(pipe) == before


def test_a_controlnet_pipeline_verifies_too(unet_edit, pipe, pristine, tmp_path):
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    made = StableDiffusionControlNetPipeline(**parts, controlnet=control.eval(), requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    load_erasure(made, unet_edit.save(tmp_path)[0])
    settings = {"image": torch.zeros(1, 3, 16, 16), "num_inference_steps": 1, "output_type": "pt"}
    made("a cat", **settings)
    made.unet = pristine.unet
    with pytest.raises(ErasureLostError, match="replaced"):
        made("a cat", **settings)


def test_a_pipeline_that_lacks_the_edited_component_is_refused(mixed_edit, pipe, tmp_path):
    pipe.text_encoder = None
    with pytest.raises(BaseMismatchError, match="no text_encoder"):
        load_erasure(pipe, mixed_edit.save(tmp_path)[0])


def test_copies_and_siblings_keep_what_they_hold(unet_edit, pipe, pristine, tmp_path):
    file = unet_edit.save(tmp_path)[0]
    load_erasure(pipe, file, name="gone")
    for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert isinstance(twin, StableDiffusionPipeline)
        assert erasures(twin) == {"gone": 1.0}
        assert bits(twin) == bits(pipe)
        unload_erasure(twin)
        assert bits(twin) == bits(pristine)
    pipe.save_pretrained(tmp_path / "saved")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    assert bits(again) == bits(pipe)

    sibling = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert erasures(sibling) == {"gone": 1.0}
    before = bits(pipe)
    with pytest.raises(InputError, match="already"):
        load_erasure(sibling, file, scale=0.5)
    assert load_erasure(sibling, file) == "gone"  # now it verifies as well; the weights stay
    assert bits(pipe) == before
    sibling.unet = pristine.unet
    with pytest.raises(ErasureLostError):
        sibling("a cat", image=torch.zeros(1, 3, 16, 16), num_inference_steps=2)
    drawn(pipe)
    unload_erasure(pipe)
    assert bits(pipe) == bits(pristine)


def test_an_edit_can_be_tried_on_top_of_what_is_loaded(unet_edit, mixed_edit, pipe, tmp_path):
    plain = copy.deepcopy(pipe)
    load_erasure(pipe, unet_edit.save(tmp_path)[0])
    before = bits(pipe)
    edit_directly(plain, unet_edit.changes)
    edit_directly(plain, mixed_edit.changes, 0.5)
    with attached(pipe, mixed_edit, 0.5):
        assert max(farthest(outputs(pipe), outputs(plain))) < CLOSE
    assert bits(pipe) == before


# -- why it is another base ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["this erasure", "half of it", "another erasure", "a LoRA", "another base"])
def test_the_reason_is_told(model, unet_edit, style, pipe, tmp_path, what):
    adapter = dataclasses.replace(unet_edit, base=model.base)
    if what in ("this erasure", "half of it"):
        edit_directly(pipe, unet_edit.changes, 1.0 if what == "this erasure" else 0.5)
        match = f"already, at strength {'1' if what == 'this erasure' else '0.5'}"
    elif what == "another erasure":
        edit_directly(pipe, random_changes(model, seed=5))
        match = "another erasure fused in"
    elif what == "a LoRA":
        pipe.load_lora_weights(str(style[0].parent), weight_name=style[0].name, adapter_name="style")
        pipe.fuse_lora()
        match = r"Fused here: 'style'; pipe.unfuse_lora\(\)"
    else:
        pipe = build_pipeline(seed=1)
        match = "differ by about 1[0-9]{2}"
    before = bits(pipe)
    with pytest.raises(BaseMismatchError, match=match):
        load_erasure(pipe, adapter.save(tmp_path)[0])
    assert bits(pipe) == before


def test_an_unfused_lora_leaves_the_same_base(model, unet_edit, style, pipe, tmp_path):
    pipe.load_lora_weights(str(style[0].parent), weight_name=style[0].name, adapter_name="style")
    pipe.fuse_lora()
    pipe.unfuse_lora()
    load_erasure(pipe, dataclasses.replace(unet_edit, base=model.base).save(tmp_path)[0])
