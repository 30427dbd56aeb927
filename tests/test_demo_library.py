"""The demo's library: what lies in its folder, and nothing else."""

import json
import shutil
import zipfile

import pytest
from conftest import adapter_of, random_changes

from concept_erase.adapter import Adapter
from concept_erase.concepts import Concept
from concept_erase.errors import InputError, OutputError
from concept_erase.lowrank import compose
from concept_erase.names import file_name
from demos import library, shelf
from demos.library import Library, remove, zipped
from demos.studio import Defaults, Studio


@pytest.fixture
def studio(tmp_path):
    made = Studio(tmp_path / "studio", defaults=Defaults(pictures=0, steps=2))
    yield made
    made.close()


def put(studio, model, name, seed, *, place="erasures", concept=None):
    """An adapter in the library, as `erase` leaves it."""
    concept = concept or Concept(name, anchor="fluent")
    adapter = adapter_of(random_changes(model, model.stream_layers()[:3], seed=seed), model, concept)
    folder = studio.root / place / file_name([name], also=[str(seed)])
    kohya, peft = adapter.save(folder)
    report = {
        "concepts": [{"target": name, "kind": concept.kind.value, "anchor": concept.anchor, "preserve": []}],
        "method": {"name": "uce", "settings": {}}, "base": adapter.base, "scores": None, "notes": [],
        "files": {"adapter": kohya.name, "adapter_peft": peft.name},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    return studio.library.of_folder(folder)


def test_adapters_are_listed_the_newest_first(studio, model):
    import os

    first, second = put(studio, model, "noto", 1), put(studio, model, "blob", 2)
    batch = put(studio, model, "twemoji", 3, place="batches/list-1/concepts")
    os.utime(first.folder / "report.json", (1, 1))
    os.utime(second.folder / "report.json", (9e9, 9e9))
    items = studio.library.items()
    assert [item.title for item in items] == ["blob", "twemoji", "noto"]
    assert [item.origin for item in items] == ["erasure", "batch", "erasure"]
    assert studio.library.get(batch.id).folder == batch.folder
    assert studio.library.within(studio.root / "batches" / "list-1")[0].id == batch.id


def test_damaged_and_unfinished_folders_are_not_listed(studio, model):
    put(studio, model, "noto", 1)
    for name, content in (("a", None), ("b", "{"), ("c", "[]"), ("d", "{}"), ("e", '{"concepts": []}')):
        place = studio.root / "erasures" / name
        place.mkdir()
        if content is not None:
            (place / "report.json").write_text(content)
    assert [item.title for item in studio.library.items()] == ["noto"]


@pytest.mark.parametrize("key", ["", ".", "..", "../../etc", "/etc/passwd", "0" * 12, None, 7, ["x"], {"path": "x"}])
def test_unknown_ids_are_refused(studio, model, key):
    put(studio, model, "noto", 1)
    with pytest.raises(InputError):
        studio.library.get(key)
    with pytest.raises(InputError):
        studio.library.some([key])


def test_ids_are_stable_and_hold_no_path(studio, model):
    item = put(studio, model, "noto", 1)
    assert Library(studio.root).items()[0].id == item.id
    assert len(item.id) == 12
    assert int(item.id, 16) >= 0


def test_composing_concatenates_ranks(studio, model):
    items = [put(studio, model, "noto", 1), put(studio, model, "blob", 2)]
    parts = [item.adapter() for item in items]
    made = shelf.compose(studio, [item.id for item in items])
    assert made.origin == "composed"
    assert sorted(made.targets) == ["blob", "noto"]
    expected = compose([part.changes for part in parts])
    for form in (made.kohya, made.peft):
        changes = Adapter.load(form).changes
        assert changes.keys() == expected.keys()
        for path, change in changes.items():
            assert (change.delta() - expected[path].delta()).abs().max() < 1e-5
    again = shelf.compose(studio, [item.id for item in reversed(items)])
    assert (again.id, again.made) == (made.id, made.made), "the same choice is composed once"
    assert studio.library.items()[0].id == made.id


def test_composing_refuses_what_does_not_go_together(studio, model):
    first = put(studio, model, "noto", 1)
    same = put(studio, model, "Noto", 2)
    for keys in ([], [first.id], [first.id, first.id], "abc", None):
        with pytest.raises(InputError, match="between 2 and 50"):
            shelf.compose(studio, keys)
    with pytest.raises(InputError, match="erased twice over"):
        shelf.compose(studio, [first.id, same.id])
    clash = put(studio, model, "blob", 3, concept=Concept("blob", anchor="fluent", preserve=("noto",)))
    with pytest.raises(InputError, match="erased and preserved at once"):
        shelf.compose(studio, [first.id, clash.id])
    report = json.loads((clash.folder / "report.json").read_text())
    other = put(studio, model, "fluent", 4, concept=Concept("fluent", anchor="noto"))
    (other.folder / "report.json").write_text(json.dumps({**report, "concepts": [{"target": "fluent"}]}))
    changed = other.adapter()
    Adapter(changed.changes, changed.family, changed.concepts, "uce", {}, {"name": "b", "hash": "0" * 64}).save(
        other.folder, replace=True
    )
    with pytest.raises(InputError, match="different generators"):
        shelf.compose(studio, [clash.id, other.id])
    assert len(studio.library.items()) == 4, "nothing was made"


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_adapters_of_a_rounded_base_go_together(studio, model, pipe, base_folder, dtype):
    import torch

    from concept_erase.model import open_model

    first, second = put(studio, model, "noto", 1), put(studio, model, "blob", 2)
    for weight in pipe.unet.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))
    coarse = {**open_model(pipe).base, "name": f"tiny-{dtype}"}
    assert coarse["hash"] != model.base["hash"]
    for item, base in ((first, model.base), (second, coarse)):
        made = item.adapter()
        shutil.rmtree(item.folder)
        Adapter(made.changes, made.family, made.concepts, "uce", {}, base).save(item.folder)
        (item.folder / "report.json").write_text(json.dumps({**item.report, "base": base}))
    keys = [first.id, second.id]
    assert sorted(shelf.compose(studio, keys).targets) == ["blob", "noto"]
    assert len(shelf.measure(studio, keys, str(base_folder)).adapters) == 2


def test_interference_is_measured_on_the_chosen_generator(studio, model, base_folder):
    items = [put(studio, model, "noto", 1), put(studio, model, "blob", 2)]
    found = shelf.measure(studio, [item.id for item in items], str(base_folder))
    assert len(found.adapters) == 2
    assert {"noto", "blob"} <= set(found.concepts)
    with pytest.raises(InputError, match="the base it was made for"):
        shelf.measure(studio, [item.id for item in items], "")


def test_deleting_forgets_the_request(studio, model):
    item = put(studio, model, "noto", 1)
    other = put(studio, model, "blob", 2)
    shelf.delete(studio, item.id)
    assert not item.folder.exists()
    assert [left.id for left in studio.library.items()] == [other.id]
    assert sorted(p.name for p in (studio.root / "erasures").iterdir()) == [other.folder.name]
    with pytest.raises(InputError, match="no such adapter"):
        shelf.delete(studio, item.id)


def test_adapters_of_a_batch_are_not_deleted_one_by_one(studio, model):
    item = put(studio, model, "noto", 1, place="batches/list-1/concepts")
    with pytest.raises(InputError, match="belongs to a batch"):
        shelf.delete(studio, item.id)
    assert item.folder.is_dir()


def test_an_export_holds_both_forms_and_nothing_else(studio, model, tmp_path):
    item = put(studio, model, "noto", 1)
    (item.folder / ".training-x.pt").write_bytes(b"work")
    (item.folder / "notes.bin").write_bytes(b"other")
    item.kohya.with_suffix(".operator").write_bytes(b"operator")
    (tmp_path / "secret.txt").write_text("secret")
    (item.folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    path = shelf.export(studio, [item.id])
    assert path.is_relative_to(studio.uploads)
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        assert archive.testzip() is None
    assert names == {item.kohya.name, f"{item.kohya.stem}.operator", "pytorch_lora_weights.safetensors", "report.json"}


def test_a_full_disk_leaves_no_half_zip(studio, model, tmp_path, monkeypatch):
    from conftest import no_space

    item = put(studio, model, "noto", 1)
    monkeypatch.setattr(library.zipfile.ZipFile, "write", no_space)
    with pytest.raises(OutputError, match="free space"):
        zipped([item.folder], tmp_path / "out" / "a.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_removed_says_so(tmp_path):
    with pytest.raises(OutputError, match="could not be deleted"):
        remove(tmp_path / "nothing" / "here")
