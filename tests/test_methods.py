"""The contract of every method in the folder; a new file there is tested unasked."""

import dataclasses
import json
import typing

import pytest
import torch
from conftest import (
    CLOSE,
    TWEMOJI,
    bits,
    edit_directly,
    encoder_paths,
    farthest,
    layer_at,
    outputs,
    python,
)

from concept_erase import methods
from concept_erase.adapter import Adapter
from concept_erase.attach import attached
from concept_erase.errors import InputError
from concept_erase.methods import Edit, available, describe, make, method_class, settings_of

every_method = pytest.mark.parametrize("name", available())


# -- what a method says of itself ----------------------------------------------------------------------------------


def test_both_families_of_methods_are_there():
    assert {"uce", "encoder"} <= set(available())


@every_method
def test_every_setting_is_described_and_defaults_are_as_in_the_class(name):
    described, cls = describe(name), method_class(name)
    assert [s for s, *_ in described.settings] == [f.name for f in dataclasses.fields(cls)]
    for setting, kind, default, meaning in described.settings:
        assert len(meaning) > 8, f"{name}.{setting} has no doc string"
        assert kind
        assert default == str(getattr(cls(), setting))
    assert described.summary == cls.summary
    assert described.paper == cls.paper


@every_method
def test_a_method_is_frozen_and_its_settings_round_trip_through_json(name):
    method = make(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"
    settings = json.loads(json.dumps(settings_of(method)))
    assert make(name, settings) == method


@every_method
def test_settings_may_be_given_as_text(name):
    texts = {k: None if v is None else str(v) for k, v in settings_of(make(name)).items()}
    assert make(name, texts) == make(name)


@every_method
def test_an_unknown_setting_lists_the_known_ones(name):
    with pytest.raises(InputError, match=f"{name} has no setting 'colour'; it has ") as refused:
        make(name, {"colour": 1})
    assert all(setting in str(refused.value) for setting, *_ in describe(name).settings)


@every_method
def test_a_value_of_the_wrong_type_names_the_setting(name):
    numbers = [f for f, hint in typing.get_type_hints(method_class(name)).items() if hint is int]
    for setting in numbers:
        with pytest.raises(InputError, match=f"setting {setting} of {name} is 'many'"):
            make(name, {setting: "many"})


@pytest.mark.parametrize("name", ["", "UCE", "../uce", "_hidden", "os"])
def test_an_unknown_method_lists_the_known_ones(name):
    for ask in (make, describe, method_class):
        with pytest.raises(InputError, match=r"choose one of .*encoder.*uce"):
            ask(name)


def test_methods_are_listed_and_described_without_torch():
    script = "import sys; from concept_erase import methods; [methods.describe(n) for n in methods.available()]; "
    done = python("-c", script + "print(*{'torch', 'diffusers', 'transformers'} & set(sys.modules))")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_a_new_file_in_the_folder_is_a_new_method(tmp_path, monkeypatch):
    (tmp_path / "nothing.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom concept_erase.methods import Edit\n"
        "@dataclass(frozen=True)\nclass Nothing:\n"
        "    name: ClassVar[str] = 'nothing'\n    summary: ClassVar[str] = 'does nothing'\n"
        "    paper: ClassVar[str] = 'none'\n    edits: ClassVar[str] = 'denoiser'\n"
        "    size: int = 3\n    '''how much of nothing'''\n"
        "    def edit(self, model, concepts, run=None):\n        return Edit({})\n"
    )
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    assert available() == ("nothing",)
    assert describe("nothing").settings == (("size", "int", "3", "how much of nothing"),)
    assert make("nothing", {"size": "5"}).edit(None, ()) == Edit({})


# -- what its edits keep to ----------------------------------------------------------------------------------------


def test_the_edit_is_finite_and_fits_the_layers_of_the_model(erased, model):
    adapter = erased.adapter
    editable = {*model.stream_layers(), *encoder_paths(model)}
    assert adapter.changes
    assert set(adapter.changes) <= editable
    for path, change in adapter.changes.items():
        assert change.shape == tuple(model.weight(path).shape)
        assert change.up.isfinite().all()
        assert change.down.isfinite().all()
        assert change.rank <= 32
    assert any(change.delta().norm() > 0 for change in adapter.changes.values())
    assert all(isinstance(value, float) for value in erased.measures.values())


def test_attaching_edits_the_weights_and_leaving_restores_every_bit(erased, pipe):
    before = bits(pipe)
    original = {path: layer_at(pipe, path).weight.detach().clone() for path in erased.adapter.changes}
    with attached(pipe, erased.adapter) as inside:
        assert inside is pipe
        assert bits(pipe) != before
        for path, change in erased.adapter.changes.items():
            expected = original[path].double() + change.up.double() @ change.down.double()
            assert torch.allclose(layer_at(pipe, path).weight.double(), expected, atol=1e-5)
    assert bits(pipe) == before


@pytest.mark.parametrize("form", ["adapter", "adapter_peft"])
def test_the_file_round_trips(erased, form):
    loaded = Adapter.load(erased.files[form])
    made = erased.adapter
    for path, change in made.changes.items():
        assert torch.allclose(loaded.changes[path].delta().double(), change.delta().double(), atol=1e-5)
    for path in set(loaded.changes) - set(made.changes):
        assert not loaded.changes[path].delta().any()
    assert (loaded.concepts, loaded.method, loaded.family) == (made.concepts, made.method, made.family)
    assert loaded.settings == json.loads(json.dumps(made.settings))
    assert make(loaded.method, loaded.settings) == make(made.method, made.settings)
    assert loaded.base == made.base


@pytest.mark.parametrize("form", ["adapter", "adapter_peft"])
def test_plain_diffusers_loads_the_file_as_the_directly_edited_weights(erased, pipe, pristine, form):
    path = erased.files[form]
    unedited = outputs(pristine)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    loaded = outputs(pipe)
    pipe.unload_lora_weights()
    edit_directly(pipe, erased.adapter.changes)
    direct = outputs(pipe)
    off = farthest(loaded, direct)
    assert max(off) < CLOSE, off
    moved = farthest(unedited, direct)
    assert moved[1] > 1e-2, "the edit must be visible, or this test shows nothing"
    assert moved[2] > 1e-2


def test_a_folder_with_both_files_loads_without_naming_one(erased, pipe):
    folder = erased.files["adapter_peft"].parent
    pipe.load_lora_weights(str(folder))
    loaded = outputs(pipe)
    pipe.unload_lora_weights()
    edit_directly(pipe, erased.adapter.changes)
    assert max(farthest(loaded, outputs(pipe))) < CLOSE


def test_the_concept_moves_towards_its_anchor_and_preserved_ones_move_less(erased, pipe, pristine, model):
    def seen(pipeline, name):
        """What the layers that read the text make of prompts with a name, position by position."""
        lines = [f"a {context} in {name} style" for context in ("cat", "car", "dog", "sun", "tree")]
        ids = pipeline.tokenizer(lines, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            states = pipeline.text_encoder(ids).last_hidden_state
            return torch.cat([layer_at(pipeline, path)(states) for path in model.stream_layers()], dim=-1)

    before = {name: seen(pristine, name) for name in ("twemoji", "fluent", *TWEMOJI.preserve)}
    edit_directly(pipe, erased.adapter.changes)
    after = {name: seen(pipe, name) for name in before}
    moved = {name: (after[name] - before[name]).norm().item() for name in before}
    assert all(moved["twemoji"] > 1.5 * moved[name] for name in TWEMOJI.preserve), moved
    way, left = (torch.dist(side["twemoji"], before["fluent"]) for side in (before, after))
    assert left < 0.85 * way
