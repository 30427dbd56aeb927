"""What is done again and what is not: keys, damage, other lists, a full disk, a second process."""

import ast
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from batches import ROWS, SETTINGS, adapter_in, files_of, hashes, job_of, listed, stamps, temporaries
from conftest import no_space, untouched
from filelock import FileLock
from safetensors.torch import load_file, save_file

from concept_erase import erase_list, erasure, generate
from concept_erase.batch import runner, units
from concept_erase.errors import (
    BaseMismatchError,
    BusyError,
    InputError,
    MissingModelError,
    NumericalError,
    OutputError,
    ResourceError,
)
from concept_erase.lists import Listing
from concept_erase.statistics import rate


def folders(index) -> dict[str, str]:
    """Target -> folder of every entry."""
    return {entry["target"]: entry["folder"] for entry in index["entries"]}


def keys(listing, job) -> dict[str, str]:
    """Target -> key of every unit, and joint tag -> key."""
    planned = runner.plan(listing, job, Path("unused"))
    return {u.entry.target: u.key for u in planned.units} | {f"joint {j.tag}": j.key for j in planned.joints}


def inside(found: dict, *tops: str) -> dict:
    """Of names -> something, those below one of the folders."""
    return {name: value for name, value in found.items() if name.startswith(tuple(f"{top}/" for top in tops))}


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """Folder and index of a batch that is done; nothing may change it."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, erase_list(listed(), job_of(base_folder), folder)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


# -- what a unit depends on ----------------------------------------------------------------------------------------


def test_a_second_run_changes_no_file(copy, finished, base_folder):
    before = stamps(copy)
    assert erase_list(listed(), job_of(base_folder), copy) == finished[1]
    assert stamps(copy) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {**SETTINGS, "ridge": 2.0}},
        {"settings": {**SETTINGS, "rank": None}},
        {"half": True},
        {"pictures": 3},
        {"scorer": "another"},
        {"steps": 7},
        {"guidance": 3.0},
        {"method": "encoder", "settings": {}},
    ],
    ids=str,
)
def test_another_setting_means_other_units(base_folder, changes):
    plain, other = (keys(listed(), job_of(base_folder, **c)) for c in ({}, changes))
    assert sorted(plain) == sorted(other)
    assert not set(plain.values()) & set(other.values())


@pytest.mark.parametrize("changes", [{"joint": False}, {"strict": True}], ids=str)
def test_what_changes_no_adapter_changes_no_key(base_folder, changes):
    plain, other = (keys(listed(), job_of(base_folder, **c)) for c in ({}, changes))
    assert plain == {**plain, **other}


@pytest.mark.parametrize(
    "row",
    [
        {"target": "Van Gogh", "anchor": "photograph"},
        {"target": "Van Gogh", "preserve": "Rembrandt"},
        {"target": "Van Gogh", "kind": "identity"},
        {"target": "Van Gogh", "method": "encoder"},
        {"target": "van gogh"},
    ],
    ids=str,
)
def test_another_concept_means_another_unit_and_leaves_the_others(base_folder, row):
    plain, other = (keys(listed(*ROWS[:3], last), job_of(base_folder)) for last in (ROWS[3], row))
    assert not {plain["Van Gogh"], plain["joint all"]} & set(other.values())
    assert all(other[r["target"]] == plain[r["target"]] for r in ROWS[:3])
    assert other["joint flat"] == plain["joint flat"]


def test_another_code_version_means_other_units(base_folder, monkeypatch):
    plain = keys(listed(), job_of(base_folder))
    monkeypatch.setattr(runner, "code_version", lambda: "another")
    assert not set(plain.values()) & set(keys(listed(), job_of(base_folder)).values())


PACKAGE = Path(units.__file__).parent.parent


def test_every_module_counts_but_those_set_aside(tmp_path):
    package = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    counted = set(units.shaping(package))
    every = {p.relative_to(package).as_posix() for p in package.rglob("*.py")}
    assert {name for name in every - counted if not name.startswith(units.ASIDE)} == set()
    assert {"hub.py", "embedded.py", "schema.py", "names.py", "methods/uce.py", "batch/units.py"} <= counted
    for new in ("fresh.py", "methods/fresh.py", "fresh/__init__.py", "batch/fresh.py"):
        (package / new).parent.mkdir(exist_ok=True)
        (package / new).write_text("")
        assert new in units.shaping(package)


def imported(file: Path) -> set[Path]:
    """Modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "no relative imports here"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            package, *inside = name.split(".")
            place = PACKAGE.joinpath(*inside)
            if package == PACKAGE.name and inside:
                found |= {p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}
    return found


def test_no_unit_uses_a_module_that_is_set_aside():
    seen, todo = set(), {PACKAGE / "batch" / "units.py", *(PACKAGE / "methods").glob("*.py")}
    while todo:
        seen |= todo
        todo = {module for file in todo for module in imported(file)} - seen
    used = {file.relative_to(PACKAGE).as_posix() for file in seen}
    assert {"erasure.py", "interference/__init__.py", "hub.py"} <= used, "imports within functions are seen too"
    assert used <= set(units.shaping(PACKAGE))


@pytest.mark.parametrize("part", ["hub.py", "methods/fresh.py", "library", "weights"])
def test_a_change_of_what_shapes_units_is_another_code_version(tmp_path, monkeypatch, part):
    code_version = units.code_version.__wrapped__
    package = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "manifest.json").write_text("{}")
    monkeypatch.setattr(units, "__file__", str(package / "batch" / "units.py"))
    monkeypatch.setattr(units.embedded, "folder", lambda: weights)
    before = code_version()
    for name in ("cli/erase.py", "lists/rows.py", "batch/gallery.py"):
        (package / name).write_text("changed")
    assert code_version() == before
    if part == "library":
        monkeypatch.setattr(units, "version", lambda name: "0")
    elif part == "weights":
        (weights / "manifest.json").write_text("{ }")
    else:
        (package / part).write_text("changed")
    assert code_version() != before


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_another_base_means_other_units(base_folder, base_copy, part):
    assert keys(listed(), job_of(base_copy)) == keys(listed(), job_of(base_folder)), "only its content counts"
    file = base_copy / f"{part}.safetensors"
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "attn" in n and n.endswith(("to_k.weight", "q_proj.weight")))
    tensors[name] = tensors[name] * 1.5
    if part.startswith("unet"):
        name = next(n for n in sorted(tensors) if n.endswith("attn2.to_k.weight"))
        tensors[name] = tensors[name] * 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    changed = keys(listed(), job_of(base_copy))
    assert not set(changed.values()) & set(keys(listed(), job_of(base_folder)).values())


def test_tags_and_other_rows_do_not_change_a_unit(base_folder):
    plain = keys(listed(), job_of(base_folder))
    untagged = [{k: v for k, v in row.items() if k != "tags"} for row in ROWS]
    other = keys(listed({"target": "Piranesi", "anchor": "noto"}, *untagged), job_of(base_folder))
    assert all(other[row["target"]] == plain[row["target"]] for row in ROWS)


def test_a_row_that_takes_a_candidate_for_an_anchor_renews_those_that_might_have_used_it(base_folder):
    plain, other = (keys(listed(*rows), job_of(base_folder)) for rows in (ROWS, [*ROWS, "Rembrandt"]))
    changed = {row["target"] for row in ROWS if other[row["target"]] != plain[row["target"]]}
    assert changed == {"Turner", "Van Gogh"}, "not the one with an anchor of its own, nor the one of another kind"


# -- other lists in the same folder --------------------------------------------------------------------------------


def test_the_order_of_rows_changes_no_byte_of_any_unit(finished, base_folder, tmp_path):
    folder, index = finished
    turned = erase_list(listed(*ROWS[::-1]), job_of(base_folder), tmp_path)
    assert folders(turned) == folders(index)
    assert inside(hashes(tmp_path), "concepts") == inside(hashes(folder), "concepts")
    theirs = {joint["tag"]: joint for joint in index["joint"]}
    for joint in turned["joint"]:
        one, other = (adapter_in(*of).changes for of in ((tmp_path, joint), (folder, theirs[joint["tag"]])))
        assert all(torch.allclose(one[p].delta(), other[p].delta(), rtol=0, atol=1e-5) for p in one)


def test_duplicates_are_merged_to_the_same_bytes(finished, base_folder, tmp_path):
    repeats = [{**ROWS[0], "target": " Twemoji ", "tags": "FLAT"}, {"target": "turner", "anchor": ""}]
    index = erase_list(listed(*ROWS, *repeats), job_of(base_folder), tmp_path)
    assert folders(index) == folders(finished[1])
    assert sum("merged" in notice for notice in index["notices"]) == 2
    for place in ("concepts", "joint"):
        assert inside(hashes(tmp_path), place) == inside(hashes(finished[0]), place)


def test_another_row_does_only_what_is_new(copy, finished, base_folder):
    before, index = stamps(copy), finished[1]
    new = {"target": "Piranesi", "anchor": "noto", "tags": "painted"}
    longer = erase_list(listed(new, *ROWS), job_of(base_folder), copy)
    flat = next(j["folder"] for j in longer["joint"] if j["tag"] == "flat")
    assert inside(stamps(copy), *folders(index).values(), flat) == inside(before, *folders(index).values(), flat)
    fresh = {e["folder"] for e in longer["entries"] + longer["joint"]} - {j["folder"] for j in index["joint"]}
    made = {name.rpartition("/")[0] for name in set(stamps(copy)) - set(before)}
    assert made == fresh - set(folders(index).values())
    assert [j["members"] for j in longer["joint"] if j["tag"] == "painted"] == [["Piranesi", "Turner", "Van Gogh"]]


def test_another_setting_leaves_what_is_there_and_makes_the_rest(copy, finished, base_folder):
    before = stamps(copy)
    index = erase_list(listed(), job_of(base_folder, half=True), copy)
    units = inside(before, "concepts", "joint")
    assert inside(stamps(copy), "concepts", "joint").items() >= units.items()
    assert not set(folders(index).values()) & set(folders(finished[1]).values())
    changes = [adapter_in(copy, e).changes for e in index["entries"] + index["joint"]]
    assert {c.up.dtype for edit in changes for c in edit.values()} == {torch.float16}


# -- damage --------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "adapter cut": ("concepts/turner-*/*.safetensors", cut),
    "adapter gone": ("concepts/turner-*/*.safetensors", Path.unlink),
    "card gone": ("concepts/turner-*/README.md", Path.unlink),
    "report gone": ("concepts/turner-*/report.json", Path.unlink),
    "report cut": ("concepts/turner-*/report.json", lambda p: p.write_bytes(p.read_bytes()[:50])),
    "report of another unit": (
        "concepts/turner-*/report.json",
        lambda p: p.write_text('{"key": "other", "bytes": {}}'),
    ),
    "report empty": ("concepts/turner-*/report.json", lambda p: p.write_text("{}")),
    "report a list": ("concepts/turner-*/report.json", lambda p: p.write_text("[]")),
    "report not text": ("concepts/turner-*/report.json", lambda p: p.write_bytes(b"\xff\xfe\x00")),
    "folder gone": ("concepts/turner-*", shutil.rmtree),
    "joint adapter cut": ("joint/flat-*/*.safetensors", cut),
    "joint report gone": ("joint/all-*/report.json", Path.unlink),
    "joint folder gone": ("joint/all-*", shutil.rmtree),
    "interference cut": ("interference.json", lambda p: p.write_bytes(p.read_bytes()[:50])),
    "interference a list": ("interference.json", lambda p: p.write_text("[]")),
    "interference undrawn": ("interference.png", Path.unlink),
    "index gone": ("index.json", Path.unlink),
    "page gone": ("index.html", Path.unlink),
    "record gone": (".work/chunks/*.json", Path.unlink),
    "record cut": (".work/chunks/*.json", cut),
    "record empty": (".work/chunks/*.json", lambda p: p.write_text("{}")),
    "work gone": (".work", shutil.rmtree),
    "temporary left": ("concepts/turner-*/report.json", lambda p: p.rename(p.with_name(".report.json.x1.tmp"))),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged_is_made_again_and_nothing_else(copy, finished, base_folder, case):
    pattern, damage = DAMAGE[case]
    before = stamps(copy)
    victims = list(copy.glob(pattern))
    assert victims
    for path in victims:
        damage(path)
    erase_list(listed(), job_of(base_folder), copy)
    assert hashes(copy) == hashes(finished[0])
    assert temporaries(copy) == []
    place = pattern.split("*")[0]
    others = {name: stamp for name, stamp in before.items() if not name.startswith((place, "interference.", "index."))}
    assert stamps(copy).items() >= others.items()


# -- the disk and other processes ----------------------------------------------------------------------------------


def failing_after(calls: int, name: str):
    """The system call `os.NAME`, until the disk is full."""
    real, left = getattr(os, name), [calls]

    def call(*arguments, **keywords):
        left[0] -= 1
        return real(*arguments, **keywords) if left[0] >= 0 else no_space()

    return call


@pytest.mark.parametrize("calls", [0, 1, 4, 13, 15, 20, 27])
def test_a_full_disk_keeps_what_is_done_and_the_next_run_goes_on(finished, base_folder, tmp_path, monkeypatch, calls):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_after(calls, "fsync"))
        with pytest.raises(OutputError, match="No space left") as failed:
            erase_list(listed(), job_of(base_folder), tmp_path)
    assert failed.value.exit_code == 74
    assert temporaries(tmp_path) == []
    kept = {name: stamp for name, stamp in stamps(tmp_path).items() if name.startswith("concepts/")}
    done = {name.rpartition("/")[0] for name in kept if name.endswith("report.json")}
    erase_list(listed(), job_of(base_folder), tmp_path)
    assert hashes(tmp_path) == hashes(finished[0])
    assert inside(stamps(tmp_path), *done) == inside(kept, *done) if done else calls < 4


def test_a_full_disk_leaves_an_earlier_batch_as_it_was(copy, base_folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)
    with untouched(copy), pytest.raises(OutputError, match="No space left"):
        erase_list(listed("blob", *ROWS), job_of(base_folder), copy)


def test_a_folder_that_cannot_be_written_is_an_output_error(copy, base_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            erase_list(listed(), job_of(base_folder), out)
    assert (tmp_path / "file").read_text() == "mine"

    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", read_only)  # root may write everywhere
    with untouched(copy), pytest.raises(OutputError, match=r"Permission denied.*choose another --out"):
        erase_list(listed("blob", *ROWS), job_of(base_folder), copy)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_output_error(copy, base_folder):
    copy.chmod(0o555)
    try:
        with untouched(copy), pytest.raises(OutputError, match="cannot be written"):
            erase_list(listed("blob", *ROWS), job_of(base_folder), copy)
    finally:
        copy.chmod(0o755)


# -- what the machine could not score ------------------------------------------------------------------------------

SCORED = ({"target": "twemoji", "anchor": "fluent"}, {"target": "Turner", "anchor": "art"})


def refusing(monkeypatch, error: Exception) -> None:
    """No picture can be drawn, and none is taken from a cache."""

    def draw(*_: object) -> list:
        raise error

    monkeypatch.setattr(generate, "_draw", draw)


@pytest.fixture
def scored_job(base_folder, scorer_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path / "cache"))
    return job_of(base_folder, scorer=str(scorer_folder), pictures=2, steps=1, force=True)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ResourceError("memory does not suffice"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (MemoryError(), True),
        (OSError(28, "No space left on device"), True),
        (OutputError("the disk is full"), True),
        (ImportError("No module named 'open_clip'"), True),
        (MissingModelError("the scorer cannot be reached"), True),
        (InputError("the prompt is too long"), False),
        (BaseMismatchError("another base"), False),
        (NumericalError("NaN"), False),
        (RuntimeError("The size of tensor a (9) must match the size of tensor b (4)"), False),
        (KeyError("sample_size"), False),
    ],
    ids=repr,
)
def test_what_concerns_the_machine_passes(error, passes):
    assert erasure.passing(error) is passes


def test_what_the_machine_could_not_score_is_scored_by_the_next_run(scored_job, tmp_path, monkeypatch):
    with monkeypatch.context() as short:
        refusing(short, MemoryError())
        first = erase_list(listed(*SCORED), scored_job, tmp_path / "out")
    both = [*first["entries"], *first["joint"]]
    assert [e["state"] for e in both] == ["done"] * 3
    assert all(e["scores"] is None and "memory does not suffice" in e["not_scored"] for e in both)
    assert not any("score_again" in e for e in both)
    adapters = {n: s for n, s in stamps(tmp_path / "out").items() if n.endswith((".safetensors", ".operator"))}
    second = erase_list(listed(*SCORED), scored_job, tmp_path / "out")
    assert all(e["scores"] and e["not_scored"] is None for e in [*second["entries"], *second["joint"]])
    after = stamps(tmp_path / "out")
    assert {name: after[name] for name in adapters} == adapters  # kept, not made again
    erase_list(listed(*SCORED), scored_job, tmp_path / "fresh")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")
    assert erase_list(listed(*SCORED), scored_job, tmp_path / "out") == second
    assert stamps(tmp_path / "out") == after


def test_pictures_that_can_be_drawn_now_choose_as_in_a_run_without_a_failure(scored_job, tmp_path, monkeypatch):
    seen = Counter()

    def every_second(self, concepts, changes):
        """The first strength that is looked at will not do, the next one will."""
        seen[concepts[0].target] += 1
        return rate(16 * (seen[concepts[0].target] % 2), 16)

    monkeypatch.setattr(erasure.Work, "_still", every_second)
    with monkeypatch.context() as short:
        refusing(short, MemoryError())
        erase_list(listed(*SCORED), scored_job, tmp_path / "out")
    assert not seen, "nothing could be drawn"
    before = hashes(tmp_path / "out")
    found = erase_list(listed(*SCORED), scored_job, tmp_path / "out")
    assert all("under this one 0 of 16" in " ".join(e["notes"]) for e in found["entries"])
    assert erase_list(listed(*SCORED), scored_job, tmp_path / "fresh") == found
    after = hashes(tmp_path / "out")
    assert after == hashes(tmp_path / "fresh")
    changed = {name for name in after if name.endswith(".safetensors") and after[name] != before[name]}
    assert len(changed) == len(SCORED)
    assert after["interference.json"] != before["interference.json"]


@pytest.mark.parametrize("again", [MemoryError(), ValueError("of the base")], ids=repr)
def test_an_adapter_outlives_a_second_failure(scored_job, tmp_path, monkeypatch, again):
    job = scored_job.model_copy(update={"joint": False})
    refusing(monkeypatch, MemoryError())
    before = erase_list(listed(SCORED[0]), job, tmp_path / "out")["entries"][0]
    refusing(monkeypatch, again)
    found = erase_list(listed(SCORED[0]), job, tmp_path / "out")["entries"][0]
    assert adapter_in(tmp_path / "out", found).digest == adapter_in(tmp_path / "out", before).digest
    report = json.loads((tmp_path / "out" / found["folder"] / "report.json").read_text())
    assert report.get("score_again", False) is isinstance(again, MemoryError)
    assert sum("not known" in note for note in found["notes"]) == 1


def test_what_the_base_cannot_draw_stays_unscored(scored_job, tmp_path, monkeypatch):
    refusing(monkeypatch, ValueError("of the base"))
    first = erase_list(listed(SCORED[0]), scored_job, tmp_path / "out")
    before = stamps(tmp_path / "out")
    monkeypatch.undo()
    assert erase_list(listed(SCORED[0]), scored_job, tmp_path / "out") == first
    assert stamps(tmp_path / "out") == before


def test_the_folder_of_another_process_is_left_alone(copy, base_folder):
    with FileLock(copy / ".lock"), untouched(copy), pytest.raises(BusyError) as busy:
        erase_list(listed(), job_of(base_folder, half=True), copy)
    assert busy.value.exit_code == 75
    assert erase_list(listed(), job_of(base_folder), copy)["entries"]


def test_what_a_finished_batch_leaves_beside_its_results(finished):
    folder, _ = finished
    left = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p not in files_of(folder)]
    assert all(name == ".lock" or name.startswith((".work/chunks/", ".work/times.jsonl")) for name in left)
    assert temporaries(folder) == []


# -- names ---------------------------------------------------------------------------------------------------------

HOSTILE = (
    "../../etc/passwd", "..", "/tmp/x", "a/b", "a\\b", "C:\\x", "<script>alert(1)</script>", "{{ 7*7 }}", "$(id)",
    "%s%n", "'; drop", '"quoted"', "CON", "nul", ".hidden", "-rf", "~", "*", "?", "a:b", "a|b;c", "🎨", "🎨🎨",
    "فان جوخ", "ゴッホ", "Ä" * 10, "e\u0301cole", "école 2", "Foo Bar", "foo-bar", "foo_bar", "FOO  BAR!", "x" * 200,
    "x" * 199 + "y", "ﬁne", "fine",
)  # fmt: skip


def test_no_name_leaves_the_folder_or_meets_another(base_folder, tmp_path):
    rows = [{"target": name, "anchor": "art", "tags": f"tag {i % 3}"} for i, name in enumerate(HOSTILE)]
    tags = ["..a", "a", "A b", "a-b", "ä", "🎨 2"]
    rows += [{"target": f"plain {i}", "anchor": "art", "tags": tag} for i, tag in enumerate(tags) if tag != "..a"]
    found = listed(*rows)
    kept = {entry.target for entry in found.entries}
    assert len(kept) > 30, found.problems
    out = tmp_path / "deep" / "out"
    index = erase_list(found, job_of(base_folder, settings={**SETTINGS, "strength": 1.0}), out)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    done = [e for e in index["entries"] + index["joint"] if e["state"] == "done"]
    assert len(done) > 25
    places = [entry["folder"] for entry in done]
    assert len({place.casefold() for place in places}) == len(places)
    assert {e["target"] for e in done if "target" in e} == {
        adapter_in(out, e).concepts[0].target for e in done if "target" in e
    }
    for place in places:
        top, name = place.split("/")
        assert top in ("concepts", "joint")
        assert len(name) < 60
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    every = [p.relative_to(out).as_posix() for p in out.rglob("*")]
    assert len({name.casefold() for name in every}) == len(every)
    assert json.loads((out / "index.json").read_text())["entries"] == index["entries"]


def test_a_listing_made_by_hand_is_erased_like_one_from_a_file(finished, base_folder, tmp_path):
    found = listed()
    index = erase_list(Listing(found.entries, found.rows, (), ()), job_of(base_folder), str(tmp_path))
    assert index == finished[1]
