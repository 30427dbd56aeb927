import copy
import json

import pytest
import torch
from batches import ROWS, SETTINGS, TOO_LONG, adapter_in, hashes, job_of, listed, stamps, temporaries
from conftest import CLOSE, edit_directly, farthest, outputs
from PIL import Image
from typer.testing import CliRunner

from concept_erase import Concept, erase, erase_list, load_erasure, operators, unload_erasure
from concept_erase.adapter import Adapter
from concept_erase.batch import runner
from concept_erase.batch.engines import Here, Processes
from concept_erase.cli import app
from concept_erase.errors import AdapterFileError, InputError, NumericalError
from concept_erase.generate import Sampling
from concept_erase.methods import make
from concept_erase.names import holds

ENCODER = {"steps": 3, "contexts": 2, "preserve_prompts": 20, "forget_batch": 4, "retain_batch": 4}


def concepts_of(entries) -> list[Concept]:
    """The concepts of an index's entries, with the anchors that were chosen."""
    return [Concept(e["target"], e["kind"], e["anchor"], tuple(e["preserve"])) for e in entries]


def deltas(changes) -> dict:
    """Layer -> dense change, float64; layers that do not change are left out."""
    dense = {path: change.up.double() @ change.down.double() for path, change in changes.items()}
    return {path: delta for path, delta in dense.items() if delta.abs().max() > 0}


def assert_same_changes(one, other):
    """The same edit, up to the single precision of a file."""
    a, b = deltas(one), deltas(other)
    assert sorted(a) == sorted(b)
    for path, delta in a.items():
        assert torch.allclose(delta, b[path], rtol=0, atol=1e-5 * b[path].abs().max().item()), path


def summed(*edits) -> dict:
    """The plain sum of several edits, dense."""
    total: dict = {}
    for changes in edits:
        for path, delta in deltas(changes).items():
            total[path] = total.get(path, 0) + delta
    return total


@pytest.fixture(scope="module")
def batch(base_folder, tmp_path_factory):
    """Folder and index of the list that most tests look at."""
    folder = tmp_path_factory.mktemp("batch")
    return folder, erase_list(listed(), job_of(base_folder), folder)


# -- one adapter each ----------------------------------------------------------------------------------------------


def test_each_adapter_is_what_erase_makes_of_the_concept(batch, base_folder):
    folder, index = batch
    for row, entry in zip(ROWS, index["entries"], strict=True):
        preserve = tuple(filter(None, row.get("preserve", "").split(";")))
        concept = Concept(row["target"], row.get("kind", "style"), row.get("anchor"), preserve)
        alone = erase(concept, base_folder, make("uce", SETTINGS), n=0).adapter
        stored = adapter_in(folder, entry)
        assert stored.concepts == alone.concepts
        assert (stored.method, stored.settings, stored.base) == (alone.method, alone.settings, alone.base)
        assert_same_changes(stored.changes, alone.changes)


def test_trained_methods_too(base_folder, tmp_path):
    index = erase_list(listed(*ROWS[:2]), job_of(base_folder, method="encoder", settings=ENCODER), tmp_path)
    for concept, entry in zip(concepts_of(index["entries"]), index["entries"], strict=True):
        alone = erase(concept, base_folder, make("encoder", ENCODER), n=0).adapter
        assert_same_changes(adapter_in(tmp_path, entry).changes, alone.changes)
    both = next(j for j in index["joint"] if j["tag"] == "all")
    parts = [adapter_in(tmp_path, entry).changes for entry in index["entries"]]
    composed = adapter_in(tmp_path, both)
    assert composed.rank == sum(entry["rank"] for entry in index["entries"])
    expected, found = summed(*parts), deltas(composed.changes)
    assert sorted(found) == sorted(expected)
    assert all(torch.allclose(found[p], expected[p], rtol=0, atol=1e-6 * expected[p].abs().max()) for p in expected)


def test_an_anchor_is_never_another_target_and_never_contains_one(base_folder, tmp_path):
    names = ["Monet", "Pablo Picasso", "Rembrandt", "Vermeer", "Dali", "Munch", "photo", "Warhol", "Klimt"]
    rows = [*names, {"target": "art", "kind": "object"}, {"target": "dog", "kind": "object"}]
    index = erase_list(listed(*rows), job_of(base_folder, joint=False), tmp_path)
    anchors = [entry["anchor"].casefold() for entry in index["entries"]]
    targets = [entry["target"].casefold() for entry in index["entries"]]
    assert len(anchors) == len(rows)
    assert [(a, t) for a in anchors for t in targets if holds(a, t)] == []


# -- the folders ---------------------------------------------------------------------------------------------------


def test_every_folder_opens_everywhere(batch, pipe, tmp_path):
    folder, index = batch
    places = [folder / e["folder"] for e in (index["entries"][0], index["joint"][0])]
    for place in places:
        adapter = Adapter.load(place)
        assert [p.name for p in place.glob("*.safetensors")] == [f"{adapter.slug}.safetensors"]
        assert operators.read(place).concepts == adapter.concepts
        told = CliRunner().invoke(app, ["info", str(place)])
        assert told.exit_code == 0
        assert adapter.concepts[0].target in told.output
        pipe.load_lora_weights(str(place), adapter_name="plain")
        plain = outputs(pipe)
        pipe.delete_adapters("plain")
        pipe.unload_lora_weights()
        name = load_erasure(pipe, place)
        assert max(farthest(plain, outputs(pipe))) < CLOSE
        unload_erasure(pipe, name)
        edited = copy.deepcopy(pipe)
        edit_directly(edited, adapter.changes)
        assert max(farthest(plain, outputs(edited))) < CLOSE
    with pytest.raises(AdapterFileError, match="a folder in it, as"):
        Adapter.load(folder)


def test_adapters_gathered_from_a_batch_stay_apart(batch):
    folder, _ = batch
    files = list(folder.glob("*/*/*.safetensors"))
    assert len({file.name.casefold() for file in files}) == len(files) == 7


# -- joint adapters ------------------------------------------------------------------------------------------------


def test_a_joint_adapter_is_the_joint_edit_of_its_members(batch, model):
    folder, index = batch
    members = {
        "all": index["entries"],
        "flat": [e for e in index["entries"] if "flat" in e["tags"]],
        "painted": [e for e in index["entries"] if "painted" in e["tags"]],
    }
    assert [j["tag"] for j in index["joint"]] == list(members)
    for joint in index["joint"]:
        concepts = concepts_of(members[joint["tag"]])
        stored = adapter_in(folder, joint)
        assert stored.concepts == tuple(concepts)
        assert joint["members"] == [c.target for c in concepts]
        assert_same_changes(stored.changes, make("uce", SETTINGS).edit(model, concepts).changes)


def test_sums_of_many_chunks_are_the_sum_of_one(batch, base_folder, tmp_path, monkeypatch):
    folder, index = batch
    monkeypatch.setattr(runner, "CHUNK", 1)
    split = erase_list(listed(), job_of(base_folder), tmp_path)
    assert [e["folder"] for e in split["entries"]] == [e["folder"] for e in index["entries"]]
    for one, other in zip(split["joint"], index["joint"], strict=True):
        assert_same_changes(adapter_in(tmp_path, one).changes, adapter_in(folder, other).changes)


def test_methods_that_are_mixed_are_composed(base_folder, model, tmp_path):
    rows = [{**row, "method": method} for row, method in zip(ROWS, ("uce", "encoder", "uce", "encoder"), strict=True)]
    index = erase_list(listed(*rows), job_of(base_folder, method="encoder", settings=ENCODER), tmp_path)
    assert [e["method"] for e in index["entries"]] == ["uce", "encoder", "uce", "encoder"]
    closed = make("uce").edit(model, concepts_of(e for e in index["entries"] if e["method"] == "uce"))
    trained = [adapter_in(tmp_path, e).changes for e in index["entries"] if e["method"] == "encoder"]
    joint = adapter_in(tmp_path, next(j for j in index["joint"] if j["tag"] == "all"))
    expected, found = summed(closed.changes, *trained), deltas(joint.changes)
    assert joint.method == "encoder+uce"
    assert {c.target for c in joint.concepts} == {row["target"] for row in ROWS}
    assert sorted(found) == sorted(expected)
    assert all(torch.allclose(found[p], expected[p], rtol=0, atol=1e-5 * expected[p].abs().max()) for p in expected)


def test_without_joint_there_is_none(base_folder, tmp_path):
    index = erase_list(listed(*ROWS[:2]), job_of(base_folder, joint=False), tmp_path)
    assert index["joint"] == []
    assert not (tmp_path / "joint").exists()


# -- rows that fail ------------------------------------------------------------------------------------------------


def test_a_row_that_fails_does_not_stop_the_rest(base_folder, tmp_path):
    rows = [ROWS[0], {"target": TOO_LONG, "tags": "flat"}, {"target": "cat", "kind": "mood"}, " ", ROWS[1]]
    index = erase_list(listed(*rows), job_of(base_folder), tmp_path)
    assert [e["state"] for e in index["entries"]] == ["done", "failed", "done"]
    failed = index["entries"][1]
    assert "the text encoder of tiny holds 24; shorten it" in failed["error"]
    assert (failed["row"], failed["target"], failed["anchor"], failed["folder"]) == (2, TOO_LONG.strip(), None, None)
    assert [(p["row"], p["field"]) for p in index["problems"]] == [(3, "kind"), (4, "target")]
    assert all(p["message"] for p in index["problems"])
    assert [j["members"] for j in index["joint"]] == [["twemoji", "Turner"]] * 2 + [["Turner"]]
    assert json.loads((tmp_path / "index.json").read_text()) == index


def test_a_list_whose_every_row_fails_still_has_an_index(base_folder, tmp_path):
    rows = [
        TOO_LONG,
        {"target": "cat", "anchor": f"{TOO_LONG} hat", "tags": "x"},
        {"target": "dog", "preserve": [f"{TOO_LONG} coat"]},
    ]
    for _ in range(2):  # and a second run finds the same
        index = erase_list(listed(*rows), job_of(base_folder), tmp_path)
        assert [e["state"] for e in index["entries"]] == ["failed"] * 3
        assert (index["joint"], index["interference"]) == ([], None)
        assert sorted(hashes(tmp_path)) == ["index.html", "index.json"]


def test_strict_refuses_problems_and_warnings_before_any_work(base_folder, tmp_path):
    for rows, told in (
        ([*ROWS, " "], "row 5, target"),
        ([ROWS[0], {"target": "blob", "anchor": "twemoji icons"}], "contains 'twemoji'"),
    ):
        with pytest.raises(InputError, match=told):
            erase_list(listed(*rows), job_of(base_folder, strict=True), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert erase_list(listed(*rows), job_of(base_folder, joint=False), tmp_path / "lenient")["entries"]


def test_a_method_or_setting_that_does_not_exist_is_refused_before_any_work(base_folder, tmp_path):
    for changes, told in (({"settings": {"contexts": "many"}}, "contexts"), ({"settings": {"magic": 1}}, "magic")):
        with pytest.raises(InputError, match=told):
            erase_list(listed(), job_of(base_folder, **changes), tmp_path)
    assert hashes(tmp_path) == {}


def test_a_joint_adapter_that_fails_does_not_stop_the_rest(base_folder, tmp_path, monkeypatch):
    from concept_erase.methods.uce import UCE

    finish = UCE.finish

    def ill_conditioned(self, model, concepts, *how):
        if len(concepts) == 4:
            raise NumericalError("the UCE system is ill-conditioned")
        return finish(self, model, concepts, *how)

    monkeypatch.setattr(UCE, "finish", ill_conditioned)
    index = erase_list(listed(), job_of(base_folder), tmp_path)
    assert [e["state"] for e in index["entries"]] == ["done"] * 4
    assert {j["tag"]: j["state"] for j in index["joint"]} == {"all": "failed", "flat": "done", "painted": "done"}
    failed = index["joint"][0]
    assert "ill-conditioned" in failed["error"]
    assert (failed["folder"], failed["adapter"]) == (None, None)
    assert failed["members"] == [row["target"] for row in ROWS]
    assert index["interference"]
    assert json.loads((tmp_path / "index.json").read_text()) == index
    assert (tmp_path / "index.html").is_file()
    monkeypatch.undo()
    assert {j["state"] for j in erase_list(listed(), job_of(base_folder), tmp_path)["joint"]} == {"done"}


def test_interference_that_cannot_be_measured_does_not_stop_the_rest(base_folder, tmp_path):
    fits_alone = " ".join("abcdefghijklmnopqrst")  # but not "an icon in ... style"
    rows = [{"target": fits_alone, "anchor": "toy"}, {"target": "Van Gogh", "anchor": "art"}]
    index = erase_list(listed(*rows), job_of(base_folder, settings={"bare": True}), tmp_path)
    assert [e["state"] for e in index["entries"] + index["joint"]] == ["done"] * 3
    assert index["interference"] is None
    assert any("interference" in notice and "shorten it" in notice for notice in index["notices"])
    assert json.loads((tmp_path / "index.json").read_text()) == index


# -- scored, and by several processes ------------------------------------------------------------------------------


def test_every_adapter_is_scored_and_drawn(base_folder, scorer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("concept_erase.perceptual._alexnet_distance", lambda: None)  # it would try to fetch weights
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path / "cache"))
    job = job_of(base_folder, pictures=2, scorer=str(scorer_folder), steps=1, force=True)
    index = erase_list(listed(*ROWS[:2], ROWS[3]), job, tmp_path / "out")
    alone = erase(
        Concept("twemoji", anchor="fluent"), base_folder, make("uce", SETTINGS), n=2, scorer=str(scorer_folder),
        sampling=Sampling(1), force=True,
    )  # fmt: skip
    plain = alone.scores.as_dict()
    expected = {n: plain[n] for n in ("UA", "IRA", "CRA", "H")} | {"nonsense": plain["controls"]["nonsense"]}
    assert index["entries"][0]["scores"] == expected
    for outcome in index["entries"] + index["joint"]:
        n = 2 * len(outcome.get("members", [1]))
        assert outcome["not_scored"] is None
        assert outcome["scores"]["UA"]["before"]["n"] == outcome["scores"]["UA"]["after"]["n"] == n
        with Image.open(tmp_path / "out" / outcome["folder"] / outcome["picture"]) as picture:
            assert picture.width > 128
    assert temporaries(tmp_path) == []


def test_a_row_that_the_base_does_not_know_fails_and_is_made_with_force(
    base_folder, scorer_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("concept_erase.perceptual._alexnet_distance", lambda: None)

    def taken(self, images, concepts, shots):
        own = len(images) != 24 and len(images) < 24  # the first look at two pictures of its own
        return {c.target: len(images) * (own and c.target == "twemoji") for c in concepts}

    monkeypatch.setattr("concept_erase.scores.Judges.taken", taken)
    job = {"pictures": 2, "scorer": str(scorer_folder), "steps": 1}
    rows = [{"target": "twemoji", "anchor": "fluent"}, {"target": "Xqzzk", "anchor": "art"}]
    index = erase_list(listed(*rows), job_of(base_folder, **job), tmp_path)
    assert [e["state"] for e in index["entries"]] == ["done", "failed"]
    assert "does not seem to know 'Xqzzk'" in index["entries"][1]["error"]
    assert index["joint"][0]["members"] == ["twemoji"]
    assert "does not seem to know" in (tmp_path / "index.html").read_text()
    kept = stamps(tmp_path / index["entries"][0]["folder"])
    forced = erase_list(listed(*rows), job_of(base_folder, **job, force=True), tmp_path)
    assert [e["state"] for e in forced["entries"]] == ["done", "done"]
    assert forced["entries"][1]["knowledge"][0]["state"] == "unknown"
    assert forced["joint"][0]["members"] == ["twemoji", "Xqzzk"]
    assert stamps(tmp_path / index["entries"][0]["folder"]) == kept, "what is done is not done again"


def test_two_processes_make_what_one_makes(batch, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CHUNK", 1)
    indices = [erase_list(listed(), job_of(base_folder), tmp_path / e.__class__.__name__, engine=e)
               for e in (Here(), Processes(2))]  # fmt: skip
    assert indices[0] == indices[1]
    one, two = (hashes(tmp_path / name) for name in ("Here", "Processes"))
    assert one == two
    assert {name for name in one if name.startswith("concepts/")} < set(hashes(batch[0]))


# -- the index -----------------------------------------------------------------------------------------------------

OUTCOME = {
    "state", "error", "folder", "anchor", "adapter", "rank", "bytes", "picture", "scores", "knowledge", "not_scored",
    "notes",
}  # fmt: skip


def test_the_index_tells_all_of_every_adapter(batch, base_folder):
    folder, index = batch
    assert json.loads((folder / "index.json").read_text()) == index
    assert set(index) == {
        "version", "base", "job", "entries", "joint", "problems", "notices", "interference",
    }  # fmt: skip
    assert index["base"]["name"] == "tiny"
    assert index["job"] == {**job_of(base_folder).model_dump(mode="json"), "model": "tiny"}
    for row, (source, entry) in enumerate(zip(ROWS, index["entries"], strict=True), 1):
        assert set(entry) == OUTCOME | {"row", "target", "kind", "preserve", "method", "tags"}
        assert (entry["row"], entry["target"], entry["method"]) == (row, source["target"], "uce")
        assert entry["anchor"] == source.get("anchor", entry["anchor"]) is not None
    for joint in index["joint"]:
        assert set(joint) == OUTCOME | {"tag", "members"}
    for outcome in index["entries"] + index["joint"]:
        file = folder / outcome["folder"] / outcome["adapter"]
        assert (outcome["state"], outcome["error"]) == ("done", None)
        assert outcome["bytes"] == file.stat().st_size
        assert outcome["rank"] == Adapter.load(file).rank
        assert (outcome["picture"], outcome["scores"]) == (None, None)
        assert outcome["not_scored"] == "scoring was switched off"
        assert outcome["notes"]
        report = json.loads((file.parent / "report.json").read_text())
        assert report["notes"] == outcome["notes"]
    assert index["interference"]["file"] == "interference.json"
    for pair in index["interference"]["worst"]:
        assert sorted(pair) == ["adapter", "concept", "moved"]
    with Image.open(folder / index["interference"]["picture"]) as picture:
        assert picture.width > 100


def test_two_runs_of_a_list_are_equal_byte_for_byte(batch, base_folder, tmp_path):
    folder, index = batch
    assert erase_list(listed(), job_of(base_folder), tmp_path / "again") == index
    assert hashes(tmp_path / "again") == hashes(folder)


def test_progress_ends_at_the_total(base_folder, tmp_path):
    told: dict = {}
    erase_list(
        listed(*ROWS[:2]), job_of(base_folder), tmp_path, progress=lambda *a: told.setdefault(a[2], []).append(a)
    )
    for what in ("concepts", "joint adapters"):
        done = [d for d, _, _ in told[what]]
        total = told[what][-1][1]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)
        assert total == 2 if what == "concepts" else total == 3
