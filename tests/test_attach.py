import pytest
import torch
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
from diffusers.utils import delete_adapter_layers

from concept_erase.attach import attached, load_erasure
from concept_erase.errors import BaseMismatchError, InputError, NumericalError
from concept_erase.lowrank import LowRank


@pytest.fixture
def style(model, tmp_path):
    """A LoRA of somebody else, on the UNet and the text encoder, as a file; and its changes."""
    changes = random_changes(model, seed=7, size=0.05)
    changes |= random_changes(model, encoder_paths(model), seed=8, size=0.02)
    folder = tmp_path / "style"
    return adapter_of(changes).save(folder)[1], changes


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
    name = load_erasure(pipe, unet_edit.save(tmp_path)[0], check=False)
    loaded = outputs(pipe)
    pipe.delete_adapters(name)
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
    with pytest.raises(RuntimeError, match="size"):
        attached(pipe, adapter_of(changes), check=False).__enter__()
    assert bits(pipe) == before


# -- loading as a diffusers LoRA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [0, 1, "folder"])
def test_load_erasure_gives_the_outputs_of_the_edited_weights(mixed_edit, pipe, tmp_path, form):
    saved = mixed_edit.save(tmp_path)
    name = load_erasure(pipe, tmp_path if form == "folder" else saved[form], scale=0.7)
    assert name == "erase-twemoji-c0abe417-uce"
    loaded = outputs(pipe)
    assert name in pipe.get_active_adapters()
    pipe.unload_lora_weights()
    edit_directly(pipe, mixed_edit.changes, 0.7)
    assert max(farthest(loaded, outputs(pipe))) < CLOSE


def test_a_half_precision_pipeline_is_the_same_base(mixed_edit, pipe, tmp_path):
    pipe.to(torch.float16)
    with attached(pipe, mixed_edit):
        pass
    assert load_erasure(pipe, mixed_edit.save(tmp_path)[0], name="gone") == "gone"
    assert pipe.get_active_adapters() == ["gone"]


@pytest.mark.parametrize("strengths", [0.6, {"unet": 0.6, "text_encoder": 0.2}], ids=str)
def test_an_earlier_lora_stays_active_at_its_strength(unet_edit, style, pipe, tmp_path, strengths):
    file, changes = style
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="style")
    pipe.set_adapters(["style"], [strengths])
    name = load_erasure(pipe, unet_edit.save(tmp_path)[0], name="gone", scale=0.9)
    assert sorted(pipe.get_active_adapters()) == [name, "style"] == ["gone", "style"]
    both = outputs(pipe)
    pipe.unload_lora_weights()
    edit_directly(pipe, unet_edit.changes, 0.9)
    for component in ("unet", "text_encoder"):
        strength = strengths[component] if isinstance(strengths, dict) else strengths
        edit_directly(pipe, {p: c for p, c in changes.items() if p.startswith(f"{component}.")}, strength)
    assert max(farthest(both, outputs(pipe))) < CLOSE


def test_a_lora_that_was_switched_off_stays_off(unet_edit, style, pipe, tmp_path):
    pipe.load_lora_weights(str(style[0].parent), weight_name=style[0].name, adapter_name="style")
    pipe.disable_lora()
    load_erasure(pipe, unet_edit.save(tmp_path)[0], name="gone")
    pipe.enable_lora()
    alone = outputs(pipe)
    pipe.unload_lora_weights()
    edit_directly(pipe, unet_edit.changes)
    assert max(farthest(alone, outputs(pipe))) < CLOSE


def test_two_erasures_are_both_active(unet_edit, mixed_edit, pipe, tmp_path):
    load_erasure(pipe, unet_edit.save(tmp_path / "a")[0], name="first")
    load_erasure(pipe, mixed_edit.save(tmp_path / "b")[1], name="second")
    both = outputs(pipe)
    pipe.unload_lora_weights()
    edit_directly(pipe, unet_edit.changes)
    edit_directly(pipe, mixed_edit.changes)
    assert max(farthest(both, outputs(pipe))) < CLOSE


@pytest.mark.parametrize("name", ["a.b", ".", "v1.0"])
def test_names_with_dots_are_refused(unet_edit, pipe, tmp_path, name):
    before = bits(pipe)
    with pytest.raises(InputError, match="holds a dot"):
        load_erasure(pipe, unet_edit.save(tmp_path)[0], name=name)
    assert bits(pipe) == before


def test_a_name_that_is_taken_is_refused(unet_edit, pipe, tmp_path):
    path = unet_edit.save(tmp_path)[0]
    load_erasure(pipe, path, name="gone")
    loaded = outputs(pipe)
    with pytest.raises(InputError, match="'gone' is loaded already"):
        load_erasure(pipe, path, name="gone")
    assert farthest(outputs(pipe), loaded) == [0, 0, 0]


@pytest.mark.parametrize("fault", ["doubled", "dropped", "raised"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failed_load_is_rolled_back(mixed_edit, style, pipe, tmp_path, monkeypatch, fault, earlier):
    if earlier:
        pipe.load_lora_weights(str(style[0].parent), weight_name=style[0].name, adapter_name="style")
        pipe.set_adapters(["style"], [0.6])
    before, cls = outputs(pipe), type(pipe)
    honest = cls.load_lora_weights

    def faulty(self, *args, **kwargs):
        """A reader that loads twice the change, forgets the text encoder, or gives up after the UNet."""
        honest(self, *args, **kwargs)
        name = kwargs["adapter_name"]
        if fault == "doubled":
            layer_at(self, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k").scaling[name] *= 2
        else:
            delete_adapter_layers(self.text_encoder, name)
        if fault == "raised":
            raise IndexError("list index out of range")

    monkeypatch.setattr(cls, "load_lora_weights", faulty)
    expected = IndexError if fault == "raised" else NumericalError
    with pytest.raises(expected):
        load_erasure(pipe, mixed_edit.save(tmp_path)[0], name="gone")
    assert max(farthest(outputs(pipe), before)) < 1e-6
    assert [n for names in pipe.get_list_adapters().values() for n in set(names)] == ["style"] * 2 * earlier
    monkeypatch.setattr(cls, "load_lora_weights", honest)
    assert load_erasure(pipe, mixed_edit.save(tmp_path)[0], name="gone") == "gone"


def test_what_load_erasure_names_can_be_deleted_again(unet_edit, pipe, tmp_path):
    before = outputs(pipe)
    name = load_erasure(pipe, unet_edit.save(tmp_path)[0])
    assert farthest(outputs(pipe), before)[1] > 1e-2
    pipe.delete_adapters(name)
    assert max(farthest(outputs(pipe), before)) < 1e-6
