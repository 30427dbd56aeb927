"""Two writings of a name are one name, and what contains an erased name is none to keep: everywhere."""

import pytest
from conftest import adapter_of, random_changes
from PIL import Image

from concept_erase import operators, scores, words
from concept_erase.adapter import Adapter
from concept_erase.batch import gallery
from concept_erase.clip import load_scorer
from concept_erase.concepts import Concept, Kind
from concept_erase.erasure import erase
from concept_erase.errors import InputError
from concept_erase.interference import interference
from concept_erase.methods.uce import UCE
from concept_erase.scores import Judges, Shot, Verdicts, compare, plan
from concept_erase.surroundings import preserved_prompts

BLANK = Image.new("RGB", (4, 4))
CEZANNE = Concept("Paul Cézanne", anchor="art")
MONET = Concept("Monet", anchor="art")
REMBRANDT = Concept("Rembrandt", anchor="art")


def held(model, prompts, name):
    """Whether any prompt holds the tokens of a name in one piece."""
    ids = tuple(model.token_ids(name)[1:-1])
    return any(p.ids[i : i + len(ids)] == ids for p in prompts for i in range(len(p.ids)))


@pytest.mark.parametrize(
    ("erased", "kept"), [([CEZANNE], "Paul Cezanne"), ([REMBRANDT, MONET], "Claude Monet"), ([MONET], "Claude Monet")]
)
def test_scores_and_the_solve_keep_neither_another_writing_nor_what_contains_it(model, erased, kept):
    shots = plan(model, erased, 200)
    assert kept not in {s.concept for s in shots}
    assert {s.concept for s in shots if s.erased} == {c.target for c in erased}
    assert "Pablo Picasso" in {s.concept for s in shots}
    assert not held(model, preserved_prompts(model, erased, 200), kept)
    assert held(model, preserved_prompts(model, [Concept("dog", anchor="art")], 200), kept)


def test_what_the_user_preserves_is_kept_and_scored_although_it_contains_the_target(model):
    concept = Concept("Monet", anchor="art", preserve=("Claude Monet", "Rembrandt"))
    assert {s.concept for s in plan(model, [concept], 100) if not s.erased} == {"Claude Monet", "Rembrandt"}
    assert held(model, preserved_prompts(model, [concept], 200), "Claude Monet")


def test_the_labels_of_a_judge_hold_each_name_once(model, scorer_folder):
    judges = Judges(
        model, [Concept("paul cezanne"), MONET, Concept("Klee", preserve=("The Rembrandt",))], str(scorer_folder)
    )
    assert "Paul Cezanne" not in judges.styles
    assert "Claude Monet" not in judges.styles  # it would take pictures from "Monet"
    assert [s for s in judges.styles if "rembrandt" in s.casefold()] == ["Rembrandt"]
    kept = Judges(model, [Concept("Monet", preserve=("Claude Monet",))], str(scorer_folder))
    assert kept.styles == ["Monet", "Claude Monet"]


def test_a_scorer_takes_two_labels_of_a_name_for_one(scorer_folder):
    scorer = load_scorer(str(scorer_folder))
    vectors = scorer.embed_images([Image.new("RGB", (32, 32), color) for color in ("red", "blue", "white")])
    assert set(scorer.classify(vectors, ["Cézanne", "cezanne", "CEZANNE"], ["{}"])) == {"Cézanne"}


def test_a_judge_that_writes_a_name_in_its_own_way_is_understood(monkeypatch):
    monkeypatch.setattr(scores.perceptual, "distances", lambda *_: None)
    shots = [Shot("p", 0, "Pixel-Art", "Police-Car", True, True), Shot("p", 1, "Blue_Ink", "police car", False, True)]
    look = Verdicts(["pixel art", "blue ink"], ["police car"] * 2, ["Pixel-Art", "Blue_Ink"], [1.0, 1.0])

    class Fake:
        net, name, scorer_name = None, "", ""

        def look(self, shots, images):
            return look

    found = compare(Fake(), shots, [BLANK] * 2, [BLANK] * 2)
    assert [found.after[name].value for name in ("UA", "IRA", "CRA", "clip_accuracy_erased")] == [0, 100, 100, 100]
    assert found.controls["kappa"] == 1
    taken = Verdicts(["noto", "PIXEL ART"], ["x"] * 2, ["noto"] * 2, [1.0, 1.0])
    look = taken
    assert compare(Fake(), shots, [BLANK] * 2, [BLANK] * 2).controls["null"].k == 1


def test_interference_knows_targets_in_any_writing(model):
    one = adapter_of(random_changes(model, seed=1), model, CEZANNE)
    two = adapter_of(random_changes(model, seed=2), model, Concept("paul cezanne", anchor="Art"))
    found = interference(model, [one, two], prompts=1)
    assert found.concepts[0] == "Paul Cézanne"
    assert found.erased.sum() == 1
    assert found.own[:, 0].all()
    assert "Paul Cezanne" not in found.concepts
    three = adapter_of(random_changes(model, seed=3), model, MONET)
    stay = interference(model, [three], prompts=1)
    assert not {"Claude Monet", "Monet"} & set(stay.concepts[1:])
    named = interference(model, [one], ["Paul-Cezanne", "Monet", "monet"], prompts=1)
    assert named.concepts == ("Paul Cézanne", "Monet")
    assert "erased by an adapter, so not among what must stay: Paul-Cezanne." in named.notices
    kept = interference(model, [three], ["Claude Monet"], prompts=1)
    assert kept.concepts == ("Monet", "Claude Monet")
    assert any("'Claude Monet', which shall stay, contains 'Monet'" in notice for notice in kept.notices)


def test_the_bare_closed_form_preserves_each_name_once(model):
    bare = UCE(bare=True)
    concepts = [
        Concept("cat", anchor="art", preserve=("Cézanne", "dog")),
        Concept("Dog", "object", "art", ("cezanne",)),
    ]
    once = [Concept("cat", anchor="art", preserve=("Cézanne",))]
    both, alone = bare._kept(model, concepts), bare._kept(model, once)
    assert (both.n, both.PP.tolist()) == (alone.n, alone.PP.tolist())


def test_a_gate_never_learns_another_writing_as_something_else(model):
    with_it = operators._others(model, Kind.STYLE, 0)
    words_ = operators._words(model, CEZANNE)
    kept = operators._without(model, CEZANNE, words_, 0)
    spoken = [line for line, _, _ in with_it if "Cezanne" in line]
    assert spoken
    assert len(kept) == len(with_it) - len(spoken) + 4  # the pieces of the name, in a template and alone


def test_an_anchor_that_is_erased_in_another_writing_is_refused(base_folder):
    with pytest.raises(InputError, match="is itself erased"):
        erase([Concept("cat", anchor="Cezanne"), Concept("Cézanne", anchor="art")], base_folder, n=0)


def test_reports_and_pages_know_names_in_any_writing():
    def rate(value):
        return {"value": value, "n": 10, "k": round(value / 10), "low": 0.0, "high": 100.0}

    lost = {"before": rate(100.0), "after": rate(0.0)}
    assert words.hurt_most({"paul cezanne": lost}, ["Paul Cézanne"]) == ""
    assert words.hurt_most({"paul cezanne": lost}, ["Monet"]).startswith("Hurt most: paul cezanne")
    one = {"tag": "all", "members": ["Water-Pistol"], "state": "done", "folder": "joint/all", "scores": None}
    assert gallery._joint_card(one, {"water pistol": "violence"})["hidden"]


def test_files_of_older_versions_can_still_be_read(model, tmp_path, monkeypatch):
    adapter = adapter_of(random_changes(model), model, CEZANNE)
    metadata = Adapter._metadata

    def as_it_was(self, *arguments):
        written = metadata(self, *arguments)
        return written | {
            "concept_erase": written["concept_erase"].replace('"anchor": "art"', '"anchor": "Paul Cezanne"')
        }

    monkeypatch.setattr(Adapter, "_metadata", as_it_was)
    path, *_ = adapter.save(tmp_path)
    assert Adapter.load(path).concepts == (Concept("Paul Cézanne"),)
