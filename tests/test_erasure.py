import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import (
    CLOSE,
    TWEMOJI,
    adapter_of,
    bits,
    edit_directly,
    farthest,
    names_in,
    no_space,
    outputs,
    quick,
    random_changes,
    untouched,
)
from filelock import FileLock
from PIL import Image

from concept_erase import Concept, erase, erasure, knowledge, scores
from concept_erase.adapter import Adapter
from concept_erase.errors import (
    BusyError,
    InputError,
    NumericalError,
    OutputError,
    ResourceError,
    UnknownConceptError,
)  # fmt: skip
from concept_erase.generate import Sampling
from concept_erase.lowrank import LowRank
from concept_erase.methods import Edit, available, make
from concept_erase.surroundings import concept_prompts


@dataclasses.dataclass(frozen=True)
class Counting:
    """A method that does what it is told and counts how often it is asked."""

    name: ClassVar[str] = "counting"
    summary: ClassVar[str] = "for tests"
    paper: ClassVar[str] = "none"
    value: float = 0.1
    calls: list = dataclasses.field(default_factory=list)

    def edit(self, model, concepts, run=None):
        self.calls.append(concepts)
        path = model.stream_layers()[0]
        d_out, d_in = model.weight(path).shape
        return Edit({path: LowRank(torch.full((d_out, 1), self.value), torch.ones(1, d_in))})


@pytest.fixture
def one_moment(monkeypatch):
    """All files are made at the same time, so that equal edits are equal files."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- what is written -----------------------------------------------------------------------------------------------


def test_the_folder_holds_both_adapters_a_card_and_the_report(erased):
    folder = erased.files["report"].parent
    name = erased.adapter.slug
    closed = erased.operator is not None
    files = [f"{name}.safetensors", "pytorch_lora_weights.safetensors", "README.md", "report.json"]
    assert names_in(folder) == sorted(files + [f"{name}.operator"] * closed)
    assert sorted(erased.files) == sorted(["adapter", "adapter_peft", "card", "report"] + ["operator"] * closed)
    assert all(path.is_file() for path in erased.files.values())


def test_the_report_says_what_was_done_and_that_nothing_was_scored(erased):
    report = json.loads(erased.files["report"].read_text())
    assert report == json.loads(json.dumps(erased.report()))
    assert report["concept"] == {
        "target": "twemoji", "kind": "style", "anchor": "fluent", "preserve": list(TWEMOJI.preserve),
    }  # fmt: skip
    assert report["method"]["name"] == erased.adapter.method
    assert report["method"]["settings"]
    assert make(erased.adapter.method, report["method"]["settings"]) == quick(erased.adapter.method)
    assert report["base"]["name"] == "tiny"
    assert len(report["base"]["hash"]) == 64
    assert report["scores"] is None
    assert report["not_scored"] == "scoring was switched off"
    assert "'twemoji' becomes 'fluent': given." in report["notes"]
    assert all((erased.files["report"].parent / name).is_file() for name in report["files"].values())


def test_the_card_has_front_matter_and_names_the_files(erased):
    import yaml

    card = erased.files["card"].read_text()
    _, front, body = card.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert (meta["library_name"], meta["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert {"lora", "diffusers", "template:sd-lora", "concept-erasure"} == set(meta["tags"])
    assert meta["base_model_relation"] == "adapter"
    assert erased.files["adapter"].name in body
    assert "| twemoji | style | fluent |" in body
    assert "Not scored: scoring was switched off." in body


def test_scores_and_a_picture_come_with_a_scorer(base_folder, scorer_folder, tmp_path):
    outcome = erase(
        TWEMOJI,
        base_folder,
        quick("uce"),
        out=tmp_path,
        n=3,
        scorer=str(scorer_folder),
        sampling=Sampling(2),
        force=True,
    )
    assert outcome.unscored is None
    report = json.loads((tmp_path / "report.json").read_text())
    for name in ("UA", "IRA", "CRA", "H"):
        assert report["scores"][name]["after"]["n"] >= 1
    assert report["scores"]["after"]["UA"]["n"] == 3
    assert report["not_scored"] is None
    with Image.open(tmp_path / "before_after.png") as picture:
        assert picture.width > 128
    assert "| UA" in (tmp_path / "README.md").read_text()


def test_without_a_scorer_the_adapter_is_written_and_the_report_says_so(base_folder, tmp_path):
    outcome = erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=5)
    assert outcome.scores is None
    report = json.loads((tmp_path / "report.json").read_text())
    assert "no scorer was named for 'tiny'" in report["not_scored"]
    assert report["scores"] is None
    assert Adapter.load(tmp_path).concepts == (TWEMOJI,)
    assert not (tmp_path / "before_after.png").exists()


def test_a_scorer_that_is_not_there_costs_the_scores_only(base_folder, tmp_path):
    outcome = erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=5, scorer=str(tmp_path / "no-scorer"))
    assert "no-scorer" in outcome.unscored
    assert outcome.files["adapter"].is_file()


def test_nothing_is_written_without_a_folder(base_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert erase(TWEMOJI, base_folder, quick("uce"), n=0).files == {}
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("method", available())
def test_folder_live_pipeline_and_opened_model_give_the_same_edit(method, base_folder, model, pipe):
    before = bits(pipe)
    outcomes = [erase(TWEMOJI, source, quick(method), n=0).adapter for source in (base_folder, model, pipe)]
    assert bits(pipe) == before
    for other in outcomes[1:]:
        assert other.base["hash"] == outcomes[0].base["hash"]
        for path, change in outcomes[0].changes.items():
            assert torch.allclose(other.changes[path].delta(), change.delta(), atol=1e-6)


def test_a_lora_that_is_loaded_is_refused_or_has_no_part_in_the_closed_form(base_folder, model, pipe, tmp_path):
    path = adapter_of(random_changes(model)).save(tmp_path)[1]
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    with pytest.raises(InputError, match=r"LoRAs are switched on.*disable_lora"):
        erase(TWEMOJI, pipe, quick("uce"), n=0)
    pipe.disable_lora()
    with_lora, without = (erase(TWEMOJI, source, quick("uce"), n=0).adapter for source in (pipe, base_folder))
    assert with_lora.base["hash"] == without.base["hash"]
    assert sorted(with_lora.changes) == sorted(without.changes)
    for path, change in without.changes.items():
        assert torch.allclose(with_lora.changes[path].delta(), change.delta(), atol=1e-6)


# -- several concepts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", available())
def test_order_and_duplicates_give_the_same_files(method, base_folder, tmp_path, one_moment):
    a, b = Concept("twemoji", anchor="fluent"), Concept("pixel art", anchor="noto")
    for name, concepts in {"once": [a, b], "twice": [b, a, Concept(" Twemoji"), b]}.items():
        outcome = erase(concepts, base_folder, quick(method), out=tmp_path / name, n=0)
        assert sum("listed twice" in note for note in outcome.notes) == 2 * (name == "twice")
    once, twice = (contents(tmp_path / name) for name in ("once", "twice"))
    assert sorted(once) == sorted(twice)
    assert all(once[file] == twice[file] for file in once if file.endswith(".safetensors"))


def test_an_anchor_that_is_itself_erased_is_refused(base_folder):
    concepts = [Concept("twemoji", anchor="fluent"), Concept("Fluent", anchor="noto")]
    with pytest.raises(InputError, match="'fluent' of 'twemoji' is itself erased"):
        erase(concepts, base_folder, quick("uce"), n=0)


def test_an_anchor_that_contains_an_erased_concept_is_a_warning_or_refused_when_strict(base_folder):
    concepts = [Concept("twemoji", anchor="pixel art icon"), Concept("pixel art", anchor="noto")]
    told = "the anchor 'pixel art icon' of 'twemoji' contains 'pixel art', erased too"
    assert f"warning: {told}." in erase(concepts, base_folder, quick("uce"), n=0).notes
    with pytest.raises(InputError, match=told):
        erase(concepts, base_folder, quick("uce"), n=0, strict=True)


def test_a_concept_erased_and_preserved_is_refused_before_any_work(base_folder):
    method = Counting()
    with pytest.raises(InputError, match="erased and preserved at once"):
        erase([TWEMOJI, Concept("noto", anchor="art")], base_folder, method, n=0)
    assert method.calls == []


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["target", "anchor", "preserve"])
def test_a_name_beyond_the_text_encoders_limit_is_refused_before_any_work(base_folder, tmp_path, field):
    long = "very " * 30 + "long"
    values = {"target": "twemoji", "anchor": "fluent"} | {field: (long,) if field == "preserve" else long}
    method = Counting()
    with pytest.raises(InputError, match=r"takes \d+ tokens, the text encoder of tiny holds 24; shorten it"):
        erase(Concept(**values), base_folder, method, out=tmp_path / "out", n=0)
    assert method.calls == []
    assert names_in(tmp_path / "out") == []


def test_an_edit_is_not_lost_to_a_prompt_that_only_the_scores_use(base_folder, model, scorer_folder, tmp_path):
    concept = Concept(" ".join("abcdefghijklmnop"), anchor="fluent")
    assert concept_prompts(model, concept, 20), "it fits every prompt of an edit, but not the longer ones of the scores"
    method = Counting()
    scoring = {"n": 20, "scorer": str(scorer_folder), "sampling": Sampling(1), "force": True}
    try:
        outcome = erase(concept, base_folder, method, out=tmp_path, **scoring)
    except InputError:
        assert method.calls == [], "refused, but only after the work was done"
    else:
        assert outcome.files["adapter"].is_file()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_edit_that_is_not_finite_leaves_no_file(base_folder, tmp_path, value):
    for out in (tmp_path, None):
        with pytest.raises(NumericalError, match="holds NaN or Inf"):
            erase(TWEMOJI, base_folder, Counting(value), out=out, n=0)
    assert names_in(tmp_path) == []


def test_a_text_is_a_style(base_folder):
    method = Counting()
    adapter = erase("twemoji", base_folder, method, n=0).adapter
    (concept,) = adapter.concepts
    assert (concept.target, concept.kind.value) == ("twemoji", "style")
    assert concept.anchor is not None
    assert method.calls == [[concept]]


# -- the folder ----------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_left_alone(base_folder, tmp_path):
    method = Counting()
    erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=0)
    with FileLock(tmp_path / ".lock"), untouched(tmp_path), pytest.raises(BusyError, match="another process") as busy:
        erase(TWEMOJI, base_folder, method, out=tmp_path, n=0)
    assert busy.value.exit_code == 75
    assert method.calls == []
    assert erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=0).files
    assert not (tmp_path / ".lock").exists()


def test_a_file_in_the_place_of_the_folder_is_an_output_error(base_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    method = Counting()
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(OutputError, match=r"cannot be written.*choose another --out") as failed:
            erase(TWEMOJI, base_folder, method, out=out, n=0)
        assert failed.value.exit_code == 74
    assert method.calls == []
    assert (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_the_old_files_and_no_temporary(base_folder, tmp_path, monkeypatch):
    erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=0)
    monkeypatch.setattr(os, "fsync", no_space)
    with untouched(tmp_path), pytest.raises(OutputError, match="No space left"):
        erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=0)


OTHERS = {
    "another concept": (Concept("noto", anchor="fluent"), Counting()),
    "another kind": (Concept("twemoji", "object", "fluent"), Counting()),
    "one concept more": ([TWEMOJI, Concept("Turner", anchor="fluent")], Counting()),
    "another method": (TWEMOJI, quick("uce")),
}


@pytest.fixture(scope="module")
def held(base_folder, tmp_path_factory):
    """A folder that holds an erasure; nothing may change it."""
    folder = tmp_path_factory.mktemp("held")
    erase(TWEMOJI, base_folder, Counting(), out=folder, n=0)
    return folder


@pytest.mark.parametrize("left", ["all", "report", "adapters"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_folder_of_another_erasure_is_refused_before_the_work(held, base_folder, tmp_path, case, left):
    folder = Path(shutil.copytree(held, tmp_path / "held"))
    for file in folder.iterdir():
        if left != "all" and (file.name == "report.json") != (left == "report"):
            file.unlink()
    concepts, method = OTHERS[case]
    told = r"the erasure of 'twemoji' by counting from 'tiny'.*choose another --out, or delete"
    with untouched(folder), pytest.raises(InputError, match=told):
        erase(concepts, base_folder, method, out=folder, n=0)
    assert getattr(method, "calls", []) == []


def test_a_folder_of_another_base_is_refused(held, pristine):
    other = copy.deepcopy(pristine)
    other.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.data *= 2
    with untouched(held), pytest.raises(InputError, match="from 'tiny'"):
        erase(TWEMOJI, other, Counting(), out=held, n=0)


@pytest.mark.parametrize(
    "name", ["other.safetensors", "OTHER.SAFETENSORS", "x.operator", "README.md", "report.json", "pictures"]
)
def test_what_is_not_ours_is_neither_replaced_nor_mixed_with(base_folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    method = Counting()
    with untouched(tmp_path), pytest.raises(InputError, match=rf"(?s){name}|something else.*choose another --out"):
        erase(TWEMOJI, base_folder, method, out=tmp_path, n=0)
    assert method.calls == []


def test_other_files_of_the_user_are_left_alone(base_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    erase(TWEMOJI, base_folder, Counting(), out=tmp_path, n=0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_same_erasure_again_replaces_what_earlier_runs_named_otherwise(base_folder, tmp_path):
    first = erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=0)
    names = names_in(tmp_path)
    first.files["adapter"].rename(tmp_path / "erase-twemoji-uce.safetensors")  # as version 0.1 named them
    first.files["operator"].rename(tmp_path / "operator.safetensors")
    concept = dataclasses.replace(TWEMOJI, target="Twemoji", preserve=())  # another writing, other settings
    again = erase(concept, base_folder, make("uce", {"contexts": 2, "preserve_prompts": 20}), out=tmp_path, n=0)
    assert names_in(tmp_path) == names
    for file in (again.files["adapter"], again.files["adapter_peft"]):
        assert Adapter.load(file).settings["contexts"] == 2


def test_a_folder_that_a_kill_left_without_a_report_is_gone_on_with(held, base_folder, tmp_path):
    folder = Path(shutil.copytree(held, tmp_path / "held"))
    (folder / "report.json").unlink()
    assert erase(TWEMOJI, base_folder, Counting(), out=folder, n=0).files["report"].is_file()


def test_plain_diffusers_loads_the_folder(erased, pipe):
    pipe.load_lora_weights(str(erased.files["report"].parent), adapter_name=erased.adapter.slug)
    loaded = outputs(pipe)
    pipe.unload_lora_weights()
    edit_directly(pipe, erased.adapter.changes)
    assert max(farthest(loaded, outputs(pipe))) < CLOSE


def test_the_report_is_written_last(base_folder, tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(os.path.basename(b)), replace(a, b))[1])  # noqa: PTH119
    erase(TWEMOJI, base_folder, quick("uce"), out=tmp_path, n=0)
    assert order[-1] == "report.json"
    assert len(order) == 5


# -- interruptions -------------------------------------------------------------------------------------------------


def train(base_folder, out, concept=TWEMOJI, stop_at=None, **settings):
    """Erase by training; a KeyboardInterrupt comes at one step. Returns the steps that were taken."""
    steps = []

    def progress(done, total, what):
        steps.append(done)
        if done == stop_at:
            raise KeyboardInterrupt

    method = quick("encoder", **{"steps": 110, **settings})
    erase(concept, base_folder, method, out=out, n=0, progress=progress)
    return steps


@pytest.fixture(scope="module")
def interrupted(base_folder, tmp_path_factory):
    """The folder of a run that was stopped a few steps after its first checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        train(base_folder, folder, stop_at=105)
    return folder


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(base_folder, interrupted, tmp_path, one_moment):
    assert len(names_in(interrupted)) == 1, "the state of the training, and nothing that looks like a result"
    broken = shutil.copytree(interrupted, tmp_path / "broken")
    assert train(base_folder, broken) == list(range(101, 111))
    assert train(base_folder, tmp_path / "unbroken") == list(range(1, 111))
    assert contents(broken) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(
    "other", [{"concept": Concept("twemoji", anchor="noto")}, {"seed": 1}, {"lr": 1e-3}, {"rank": 2}], ids=str
)
def test_other_work_in_the_same_folder_does_not_go_on_from_it(base_folder, interrupted, tmp_path, other):
    shared = shutil.copytree(interrupted, tmp_path / "shared")
    with pytest.raises(KeyboardInterrupt):
        train(base_folder, shared, stop_at=1, **other)


# -- whether the base knows it -------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch):
    """Says how often pictures of a concept, and of nonsense, are taken for it: (own, null) per target, as shares."""
    shares: dict[str, tuple[float, float]] = {}
    nonsense: set[int] = set()

    def generate(model, prompts, seeds, **_):
        images = [Image.new("RGB", (16, 16)) for _ in prompts]
        nonsense.update(id(i) for i, seed in zip(images, seeds, strict=True) if seed >= 900_000_000)
        kept.extend(images)
        return images

    kept: list = []

    def taken(self, images, concepts, shots):
        return {c.target: round(len(images) * shares[c.target][id(images[0]) in nonsense]) for c in concepts}

    monkeypatch.setattr(knowledge, "generate", generate)
    monkeypatch.setattr(scores.Judges, "taken", taken)
    monkeypatch.setattr(erasure, "score", lambda *_, **__: None)
    return shares


def scored(base_folder, scorer_folder, concepts=TWEMOJI, n=8, **more):
    return erase(
        concepts, base_folder, more.pop("method", quick("uce")), n=n, scorer=str(scorer_folder), sampling=Sampling(1),
        **more,
    )  # fmt: skip


def test_what_the_base_does_not_know_is_refused_before_any_work(base_folder, scorer_folder, judged, tmp_path):
    judged.update({"twemoji": (0.4, 0.4), "pixel art": (1, 0), "blob": (0, 0)})
    method = Counting()
    concepts = [Concept(name, anchor="fluent") for name in judged]
    with pytest.raises(UnknownConceptError) as refused:
        scored(base_folder, scorer_folder, concepts, method=method, out=tmp_path / "out")
    told = str(refused.value)
    assert refused.value.exit_code == 2
    assert "does not seem to know 'blob': 0 of 24" in told
    assert "'twemoji': 10 of 24 of its pictures are" in told
    assert "'pixel art'" not in told
    assert told.endswith("--force (force=True in Python).")
    assert method.calls == []
    assert names_in(tmp_path / "out") == []


def test_with_force_it_is_erased_and_the_report_says_so(base_folder, scorer_folder, judged, tmp_path):
    judged["twemoji"] = (0, 0)
    told = []
    outcome = scored(base_folder, scorer_folder, out=tmp_path, force=True, tell=told.append)
    (found,) = json.loads((tmp_path / "report.json").read_text())["knowledge"]
    assert (found["state"], found["own"]["k"], found["nonsense"]["n"]) == ("unknown", 0, 24)
    assert told == [outcome.notes[0]]
    assert told[0].startswith("The base does not seem to know 'twemoji'")


def test_the_strength_is_looked_at(base_folder, scorer_folder, judged, monkeypatch):
    """Pictures of the target under the edit are drawn and judged; an anchor that was given is not."""
    judged["twemoji"] = (1, 0)
    seen = []
    real = erasure.generate
    monkeypatch.setattr(
        erasure, "generate", lambda *of, **how: seen.append((of[1], how["variant"])) or real(*of, **how)
    )
    outcome = scored(base_folder, scorer_folder)
    assert any("16 of 16 pictures under it are still taken for the target" in note for note in outcome.notes)
    assert seen
    assert all(variant for _, variant in seen)
    assert len({variant for _, variant in seen}) == len(seen), "another strength is another edit"
    assert all("twemoji" in prompt for prompts, _ in seen for prompt in prompts)
    assert seen[0][1] == outcome.adapter.digest, "none was better, so the first one stays"


def test_pictures_that_cannot_be_drawn_cost_no_strength(base_folder, scorer_folder, judged, monkeypatch):
    judged["twemoji"] = (1, 0)

    def failing(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(erasure, "generate", failing)
    outcome = scored(base_folder, scorer_folder)
    assert any(note.startswith("strength ") and "pictures" not in note for note in outcome.notes)


def test_what_it_knows_is_said_first(base_folder, scorer_folder, judged):
    judged["twemoji"] = (1, 0.25)
    method, told = Counting(), []
    scored(base_folder, scorer_folder, method=method, tell=lambda text: told.append((text, list(method.calls))))
    ((text, calls),) = told
    assert text.startswith(
        "The base knows 'twemoji': 8 of 8 of its pictures are recognised as it (at least 68%), 6 of 24"
    )
    assert calls == []


@pytest.mark.parametrize(
    ("own", "null", "n", "state", "looked"),
    [(1, 0, 1, "known", 1), (1, 0.4, 3, "known", 24), (0, 0, 3, "unknown", 24), (0.25, 0.1, 200, "known", 96),
     (0.1, 0.2, 200, "unknown", 32), (0.15, 0.1, 40, "unknown", 96), (0.1, 0.4, 24, "unknown", 24)],
)  # fmt: skip
def test_more_pictures_are_looked_at_where_the_first_leave_doubt(
    model, scorer_folder, judged, own, null, n, state, looked
):
    judged["twemoji"] = (own, null)
    judges = scores.Judges(model, [TWEMOJI], str(scorer_folder))
    (found,) = knowledge.look(model, judges, [TWEMOJI], n).found
    assert (found.state.value, found.own.n) == (state, looked)
    assert (found.difference.low > 0) == (state == "known")


def test_of_many_concepts_a_few_are_looked_at_more_closely(model, scorer_folder, judged):
    concepts = [Concept(f"artist {a}{b}") for a in "abcde" for b in "vwxyz"]
    judged.update({c.target: (0, 0) for c in concepts})
    found = knowledge.look(model, scores.Judges(model, concepts, str(scorer_folder)), concepts, 50)
    states = [k.state.value for k in found.found]
    assert (states.count("unknown"), states.count("unsure")) == (knowledge.CLOSER, 25 - knowledge.CLOSER)
    assert len(found.drawn) < 2 * 50 + 25 * knowledge.CLOSER + 100
    sampled = knowledge.look(model, scores.Judges(model, concepts, str(scorer_folder)), concepts, 5)
    assert sum(k.why == "of so many concepts only a sample is looked at" for k in sampled.found) == 20


def test_the_own_pictures_are_those_of_the_scores_in_the_same_batches(model, scorer_folder, judged, monkeypatch):
    judged["twemoji"] = (1, 0)
    drawn = knowledge.look(model, scores.Judges(model, [TWEMOJI], str(scorer_folder)), [TWEMOJI], 40).drawn
    first = [(s.prompt, s.seed) for s in scores.plan(model, [TWEMOJI], 40)[:32]]
    assert list(drawn)[:32] == first
    assert len(drawn) == 32 + scores.NULL


def test_without_a_scorer_it_is_not_known_whether_the_base_knows_it(base_folder):
    outcome = erase(TWEMOJI, base_folder, Counting(), n=0)
    assert outcome.notes[0] == "It is not known whether the base knows 'twemoji': scoring was switched off."
    outcome = erase(TWEMOJI, base_folder, Counting(), n=4)
    assert outcome.notes[0].startswith("It is not known whether the base knows 'twemoji': no scorer was named")
    assert outcome.report()["knowledge"][0]["state"] == "not looked"


# -- scoring that fails --------------------------------------------------------------------------------------------

FAULTS = {
    "refused": (InputError("this base needs a picture to paint in."), "this base needs a picture to paint in"),
    "memory": (ResourceError("memory does not suffice."), "memory does not suffice"),
    "import": (ImportError("no torchvision"), "scoring failed (ImportError: no torchvision)"),
    "anything": (IndexError("list index"), "scoring failed (IndexError: list index)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_scoring_that_fails_never_costs_the_adapter(base_folder, scorer_folder, tmp_path, judged, monkeypatch, fault):
    error, told = FAULTS[fault]
    judged["twemoji"] = (1, 0)

    def fail(*_, **__):
        assert Adapter.load(tmp_path).concepts == (TWEMOJI,), "it is on disk by then"
        raise error

    monkeypatch.setattr(erasure, "score", fail)
    outcome = scored(base_folder, scorer_folder, out=tmp_path)
    assert outcome.unscored == told
    assert json.loads((tmp_path / "report.json").read_text())["not_scored"] == told
    assert f"Not scored: {told}." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("fault", FAULTS)
def test_drawing_that_fails_at_the_first_look_never_costs_the_adapter(
    base_folder, scorer_folder, tmp_path, monkeypatch, fault
):
    error, told = FAULTS[fault]
    asked = []

    def fail(*_, **__):
        asked.append(1)
        raise error

    monkeypatch.setattr(knowledge, "generate", fail)
    outcome = scored(base_folder, scorer_folder, Concept("twemoji"), out=tmp_path)
    assert (outcome.scores, outcome.unscored, len(asked)) == (None, told, 1)
    assert outcome.notes[0] == f"It is not known whether the base knows 'twemoji': {told}."
    assert Adapter.load(tmp_path).concepts[0].target == "twemoji"


def test_an_interrupt_while_scoring_leaves_the_adapter_and_no_report(
    base_folder, scorer_folder, tmp_path, judged, monkeypatch
):
    judged["twemoji"] = (1, 0)
    scored(base_folder, scorer_folder, out=tmp_path)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(erasure, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        scored(base_folder, scorer_folder, out=tmp_path)
    assert Adapter.load(tmp_path).concepts == (TWEMOJI,)
    assert "report.json" not in names_in(tmp_path), "an earlier report would tell of other files"
