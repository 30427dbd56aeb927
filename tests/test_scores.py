import itertools
from types import SimpleNamespace

import pytest
from conftest import TWEMOJI, adapter_of, bits, random_changes
from PIL import Image

from concept_erase import embedded, scores
from concept_erase.concepts import PROFILES, Concept, Kind, prompts
from concept_erase.errors import InputError, MissingModelError
from concept_erase.generate import Sampling
from concept_erase.model import open_model
from concept_erase.scores import NULL, Judges, Shot, Verdicts, compare, nonsense_shots, nulls, plan, score
from concept_erase.statistics import rate
from concept_erase.surroundings import surroundings

BLANK = Image.new("RGB", (4, 4))


@pytest.fixture(autouse=True)
def _no_backbone(monkeypatch):
    monkeypatch.setattr(scores.perceptual, "distances", lambda net, before, after: [0.5] * len(before))


class FakeJudges:
    """Says what it was told to say: first of the pictures before, then of those after."""

    net, name, scorer_name = None, "fake judge", "fake scorer"

    def __init__(self, before: Verdicts, after: Verdicts) -> None:
        self.verdicts = itertools.cycle([before, after])

    def look(self, shots, images):
        return next(self.verdicts)


def compared(shots, before, after):
    return compare(FakeJudges(before, after), shots, [BLANK] * len(shots), [BLANK] * len(shots))


def verdicts(names: str, contexts: str = "", clip: str = "", similar=None) -> Verdicts:
    """From words such as "cat dog cat"."""
    n = len(names.split())
    return Verdicts(
        names.split(),
        contexts.split() or ["x"] * n,
        clip.split() or names.split(),
        similar or [1.0 * i for i in range(n)],
    )


# -- arithmetic ----------------------------------------------------------------------------------------------------

# Four pictures of the erased "cat", five of what must stay; the last has no context in its prompt.
SHOTS = [
    Shot("p", seed, name, context, erased=name == "Cat", style=False)
    for seed, (name, context) in enumerate(
        [("Cat", "red"), ("Cat", "blue")] * 2
        + [("dog", "red"), ("dog", "blue"), ("owl", "red"), ("owl", "blue"), ("owl", "")]
    )
]
BEFORE = verdicts("cat cat cat fox  dog dog owl cat owl", "red blue red red  red blue red blue green")
AFTER = verdicts("fox fox cat dog  dog fox owl owl cat", "red red red red  red blue blue red green")


def test_ua_ira_and_cra_are_counted_as_defined():
    result = compared(SHOTS, BEFORE, AFTER)
    counts = {(t, name): (getattr(result, t)[name].k, getattr(result, t)[name].n) for t in ("before", "after") for name
              in ("UA", "IRA", "CRA")}  # fmt: skip
    assert counts == {
        ("before", "UA"): (1, 4),
        ("before", "IRA"): (4, 5),
        ("before", "CRA"): (4, 4),
        ("after", "UA"): (3, 4),
        ("after", "IRA"): (3, 5),
        ("after", "CRA"): (2, 4),
    }
    assert result.after["H"].value == pytest.approx(3 / (1 / 75 + 1 / 60 + 1 / 50))
    assert result.before["CRA_erased"].k == 3


def test_the_scorers_numbers_are_taken_by_group():
    before = verdicts("a " * 9, clip="cat cat cat cat dog dog owl owl owl", similar=[30.0] * 4 + [20.0] * 5)
    after = verdicts("a " * 9, clip="dog dog dog cat dog dog owl owl cat", similar=[10.0] * 4 + [21.0] * 5)
    result = compared(SHOTS, before, after)
    assert (result.before["clip_accuracy_erased"].k, result.after["clip_accuracy_erased"].k) == (4, 1)
    assert (result.before["clip_accuracy_kept"].k, result.after["clip_accuracy_kept"].k) == (5, 4)
    assert result.after["clip_score_erased"].value == 10
    assert result.change["clip_score_erased"].value == -20
    assert result.change["clip_score_kept"].value == 1
    assert (result.change["lpips_erased"].value, result.change["lpips_erased"].n) == (0.5, 4)


def test_controls_are_of_the_unedited_base():
    result = compared(SHOTS, BEFORE, AFTER)
    assert (result.controls["positive"].k, result.controls["positive"].n) == (3, 4)
    assert (result.controls["null"].k, result.controls["null"].n) == (1, 5)
    assert result.controls["kappa"] == 1
    other = verdicts("cat cat cat fox dog dog owl cat owl", clip="dog dog dog dog cat cat cat dog cat")
    assert compared(SHOTS, other, other).controls["kappa"] < 0


def test_a_perfect_erasure_and_none_at_all():
    truth = verdicts("cat cat cat cat dog dog owl owl owl", "red blue red blue red blue red blue x")
    gone = verdicts("fox fox fox fox dog dog owl owl owl", "red blue red blue red blue red blue x")
    result = compared(SHOTS, truth, gone)
    assert [result.before[name].value for name in ("UA", "IRA", "CRA", "H")] == [0, 100, 100, 0]
    assert [result.after[name].value for name in ("UA", "IRA", "CRA", "H")] == [100, 100, 100, pytest.approx(100)]


def test_as_dict_is_looked_up_by_time_and_by_score():
    plain = compared(SHOTS, BEFORE, AFTER).as_dict()
    for name, time in itertools.product(("UA", "IRA", "CRA"), ("before", "after")):
        assert plain[name][time] == plain[time][name]
        assert set(plain[time][name]) == {"value", "k", "n", "low", "high"}
        found = plain[time][name]
        assert found["value"] == pytest.approx(100 * found["k"] / found["n"], abs=1e-4)
        assert found["low"] <= found["value"] <= found["high"]
    assert plain["after"]["UA"] == {"value": 75.0, "k": 3, "n": 4, "low": 30.0642, "high": 95.4413}
    assert (plain["judge"], plain["scorer"]) == ("fake judge", "fake scorer")
    assert {"null", "positive", "kappa"} == set(plain["controls"])


def test_names_are_compared_without_regard_to_case():
    shots = [Shot("p", 0, "CAT", "RED", True, False), Shot("p", 0, "Dog", "Red", False, False)]
    result = compared(shots, verdicts("cat dog", "red red"), verdicts("cat dog", "red red"))
    assert (result.after["UA"].k, result.after["IRA"].k, result.after["CRA"].k) == (0, 1, 1)


# -- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_no_prompt_of_the_plan_is_one_that_an_edit_sees(model, kind):
    concept = Concept("bomb", kind)
    around = surroundings(model, concept)
    seen = {
        p for name in ("bomb", *around.neighbours) for p in prompts(name, around.contexts, PROFILES[kind].templates)
    }
    shots = plan(model, [concept], 40)
    assert not seen & {shot.prompt for shot in shots}
    assert all(shot.concept in shot.prompt and shot.context in shot.prompt for shot in shots)
    assert all(shot.erased == (shot.concept == "bomb") for shot in shots)
    assert all(shot.style == (kind is Kind.STYLE) for shot in shots)


def test_of_more_concepts_than_pictures_a_sample_is_drawn(model):
    concepts = [Concept(name) for name in ("twemoji", "fluent", "blob", "Claude Monet", "Rembrandt")]
    shots = plan(model, concepts, 2)
    assert sum(shot.erased for shot in shots) == len({shot.concept for shot in shots if shot.erased}) == 2
    assert shots == plan(model, concepts, 2)
    kept = {shot.concept for shot in plan(model, concepts, 3) + shots if not shot.erased}
    assert not kept & {c.target for c in concepts}, "what is erased is never counted as kept, drawn or not"


@pytest.mark.parametrize("n", [3, 7, 100, 1000])
@pytest.mark.parametrize("members", [1, 3])
def test_a_plan_has_at_least_n_shots_of_each_group_and_the_same_each_time(model, n, members):
    concepts = [Concept(name) for name in ("twemoji", "fluent", "blob")[:members]]
    shots = plan(model, concepts, n)
    for erased in (True, False):
        group = [shot for shot in shots if shot.erased is erased]
        assert n <= len(group) < n + members
        assert len({(shot.prompt, shot.seed) for shot in group}) == len(group), "no picture is counted twice"
    assert shots == plan(model, concepts, n)
    targets = {c.target for c in concepts}
    assert {shot.concept for shot in shots if shot.erased} == targets
    assert not targets & {shot.concept for shot in shots if not shot.erased}


def test_every_prompt_comes_once_before_any_comes_twice(model):
    around = surroundings(model, TWEMOJI)
    distinct = len(PROFILES[TWEMOJI.kind].unseen) * len(around.contexts)
    erased = [shot.prompt for shot in plan(model, [TWEMOJI], distinct) if shot.erased]
    assert len(set(erased)) == distinct
    twice = [shot.prompt for shot in plan(model, [TWEMOJI], 2 * distinct) if shot.erased]
    assert sorted(twice) == sorted(2 * erased)


def test_a_plan_of_nothing_is_refused(model):
    with pytest.raises(InputError, match="must be positive, got 0"):
        plan(model, [TWEMOJI], 0)


# -- scoring -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """What `score` asks to be drawn, and the weights at that moment; nothing is drawn."""
    asked = []

    def generate(model, prompts, seeds, *, sampling, variant="", **_):
        asked.append((list(prompts), list(seeds), sampling, variant, bits(model.pipe)))
        return [BLANK] * len(prompts)

    class Judges(FakeJudges):
        def __init__(self, model, concepts, scorer, progress):
            self.asked = (model, list(concepts), scorer)

        def look(self, shots, images):
            n = len(shots)
            return Verdicts(["x"] * n, ["x"] * n, ["x"] * n, [0.0] * n)

        def taken(self, images, concepts, shots):
            return dict.fromkeys((c.target for c in concepts), len(images) // 2)

    monkeypatch.setattr(scores, "generate", generate)
    monkeypatch.setattr(scores, "Judges", Judges)
    return asked


def test_before_and_after_have_equal_prompts_and_seeds_and_only_after_is_edited(drawn, pipe):
    model = open_model(pipe)
    adapter = adapter_of(random_changes(model))
    untouched = bits(pipe)
    result = score(model, adapter, n=5, sampling=Sampling(3))
    before, after, null = drawn
    assert before[:3] == after[:3]
    assert before[2] == Sampling(3)
    assert len(before[0]) == len(result.shots) == 10
    assert (before[3], after[3]) == ("", adapter.digest)
    assert before[4] == untouched != after[4]
    assert bits(pipe) == untouched == null[4]
    assert null[3] == "", "nonsense is drawn by the unedited base"


def test_the_base_is_scored_against_itself_without_an_adapter(drawn, model):
    result = score(model, concepts=TWEMOJI, n=3)
    assert [len(prompts) for prompts, *_ in drawn] == [6, NULL]
    assert result.images[0] == result.images[1]


def test_nothing_to_score_is_refused(model):
    with pytest.raises(InputError, match="neither an adapter nor a concept"):
        score(model)


def test_another_base_needs_a_scorer_to_be_named(model):
    with pytest.raises(MissingModelError, match=r"no scorer was named for 'tiny'; pass --scorer"):
        score(model, concepts=TWEMOJI)


def test_the_scorer_alone_judges_other_bases(model, scorer_folder):
    judges = Judges(model, [TWEMOJI], str(scorer_folder))
    assert judges.net is None
    assert judges.name == f"{scorer_folder.name} (zero-shot)"
    shots = plan(model, [TWEMOJI], 2)
    looked = judges.look(shots, [BLANK] * len(shots))
    assert looked.concepts == looked.clip_concepts
    assert set(looked.concepts) <= {"twemoji", *TWEMOJI.preserve}
    assert set(looked.contexts) <= set(surroundings(model, TWEMOJI).contexts)
    assert all(-100 <= value <= 100 for value in looked.clip_scores)


# -- what nonsense is taken for ------------------------------------------------------------------------------------


def test_a_score_that_was_no_better_than_nonsense_is_not_known():
    known = compare(FakeJudges(BEFORE, AFTER), SHOTS, [BLANK] * 9, [BLANK] * 9, rate(0, 24))
    unknown = compare(FakeJudges(BEFORE, AFTER), SHOTS, [BLANK] * 9, [BLANK] * 9, rate(14, 24))
    assert (known.known, unknown.known, compared(SHOTS, BEFORE, AFTER).known) == (True, False, None)
    assert (known.as_dict()["known"], unknown.as_dict()["known"]) == (True, False)
    assert unknown.as_dict()["controls"]["nonsense"]["k"] == 14


def test_score_takes_its_own_null(drawn, model):
    result = score(model, concepts=TWEMOJI, n=3)
    assert (result.controls["nonsense"].k, result.controls["nonsense"].n) == (NULL // 2, NULL)
    assert result.known is False


def test_concepts_of_one_shape_share_their_nonsense_on_templates_that_no_edit_sees(model):
    shots = nonsense_shots(model, TWEMOJI)
    assert len(shots) == NULL == len({s.concept for s in shots})
    assert shots == nonsense_shots(model, Concept("pinterest"[:7]))
    assert shots != nonsense_shots(model, TWEMOJI, 1)
    seen = set(prompts("x", surroundings(model, TWEMOJI).contexts, PROFILES[TWEMOJI.kind].templates))
    assert not any(s.prompt.replace(s.concept, "x") in seen for s in shots)
    assert all(len(model.token_ids(s.concept)) > 3 for s in shots), "no word of the tokenizer's"


def test_many_shapes_cost_no_more_pictures_than_a_few(model):
    names = ("abcd", "abcdef", "abcdefghi", "Paul Klee", "Rembrandt van Rijn", "فان", "x y z", "Ван Гог", "葛飾北斋")
    drawn = []

    class Counting:
        def taken(self, images, concepts, shots):
            return {c.target: 3 for c in concepts}

    found = nulls(model, Counting(), [Concept(n) for n in names], lambda s: drawn.append(len(s)) or [BLANK] * len(s))
    assert set(found) == set(names)
    assert all(e.k == 3 for e in found.values())
    assert len(drawn) <= 4


def test_a_name_that_the_classifier_has_no_class_for_is_left_to_the_scorer(scorer_folder, monkeypatch, model):
    class Net:
        styles, objects = ["Twemoji"], ["cat"]

        def name(self, images):
            return ["Twemoji"] * len(images), ["cat"] * len(images)

    monkeypatch.setattr(scores.Judge, "load", lambda folder: Net())
    house = SimpleNamespace(is_embedded=True, name="embedded", family=model.family)
    concepts = [TWEMOJI, Concept("steampunk")]
    judges = Judges(house, concepts, str(scorer_folder))
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "white", "blue")]
    shots = [Shot("p", 0, name, "cat", True, True) for name in ("twemoji", "steampunk", "twemoji")]
    taken = judges.taken(images, concepts, shots)
    zero_shot = judges.scorer.classify(
        judges.scorer.embed_images(images), judges.styles, embedded.PROFILES[Kind.STYLE].probes
    )
    assert taken == {"twemoji": 3, "steampunk": zero_shot.count("steampunk")}
    assert judges.judge_of(TWEMOJI) != judges.judge_of(concepts[1])
    assert "zero-shot) for other names" in judges.name
    assert judges.look(shots, images).concepts == ["Twemoji", zero_shot[1], "Twemoji"]
