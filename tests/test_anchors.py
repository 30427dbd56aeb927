"""What a concept lives among, and what it becomes."""

from dataclasses import replace

import pytest
from conftest import TWEMOJI

from concept_erase import embedded
from concept_erase.anchors import ACCEPTED, NEAREST, TRIAL, choose, distances
from concept_erase.concepts import PROFILES, Concept, Kind
from concept_erase.errors import InputError
from concept_erase.families import SD1
from concept_erase.model import Model
from concept_erase.statistics import rate
from concept_erase.surroundings import concept_prompts, preserved_prompts, spread, surroundings

FREE = Concept("twemoji", preserve=TWEMOJI.preserve)


@pytest.fixture(scope="module")
def house():
    """The embedded generator as far as its vocabulary goes; no weights are read."""
    return Model(SD1, embedded.NAME, folder=None, pipe=None)


# -- surroundings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_the_built_in_lists_serve_an_unknown_base(model, kind):
    around = surroundings(model, Concept("dog", kind))
    profile = PROFILES[kind]
    assert not around.complete
    assert set(around.contexts) == set(profile.contexts) - {"dog"}
    assert set(around.neighbours) == set(profile.neighbours) - {"dog"}
    assert "dog" not in around.anchors
    assert set(profile.anchors) <= set(around.anchors)


def test_what_the_user_preserves_are_the_neighbours_of_an_unknown_base(model):
    assert surroundings(model, FREE).neighbours == TWEMOJI.preserve


@pytest.mark.parametrize(
    ("target", "kind", "gone"),
    [
        ("Paul Cézanne", Kind.STYLE, "Paul Cezanne"),
        ("Monet", Kind.STYLE, "Claude Monet"),
        ("Kahlo", Kind.STYLE, "Frida Kahlo"),
        ("Merkel", Kind.IDENTITY, "Angela Merkel"),
        ("The Person", Kind.IDENTITY, "a person"),
    ],
)
def test_another_writing_and_what_contains_the_target_are_none_of_its_surroundings(model, target, kind, gone):
    around = surroundings(model, Concept(target, kind))
    listed = {*PROFILES[kind].neighbours, *PROFILES[kind].anchors}
    assert gone in listed
    assert {*around.neighbours, *around.anchors} == listed - {gone}


def test_on_the_embedded_generator_too(house):
    car = surroundings(house, Concept("Car", Kind.OBJECT))
    assert {"car", "police car"} <= set(embedded.objects())
    assert not {"car", "police car"} & {*car.neighbours, *car.anchors}
    assert "police car" in surroundings(house, Concept("car", Kind.OBJECT, preserve=("police car",))).neighbours
    assert "police car" not in surroundings(house, Concept("car", Kind.OBJECT, preserve=("police car",))).anchors
    assert "police car" not in surroundings(house, Concept("Car")).contexts  # a style of this name
    art = surroundings(house, Concept("Pixel-Art", preserve=("High-Contrast",)))
    assert "pixel art" not in art.neighbours
    assert [n for n in art.neighbours if "contrast" in n.casefold()] == ["High-Contrast"]


def test_what_the_user_preserves_stays_although_it_contains_the_target(model):
    around = surroundings(model, Concept("Monet", preserve=("Claude Monet", "Rembrandt")))
    assert around.neighbours == ("Claude Monet", "Rembrandt")
    assert "Claude Monet" not in around.anchors


def test_the_embedded_generator_knows_its_vocabulary(house):
    style = surroundings(house, Concept("Twemoji", preserve=("noto",)))
    assert style.complete
    assert style.contexts == embedded.objects()
    assert set(style.neighbours) == set(embedded.styles()) - {"twemoji"}
    assert style.neighbours[0] == "noto"
    thing = surroundings(house, Concept("bomb", Kind.VIOLENCE))
    assert thing.contexts == embedded.styles()
    assert set(thing.neighbours) == set(embedded.objects()) - {"bomb"}


def test_violence_never_becomes_violence_on_the_embedded_generator(house):
    anchors = surroundings(house, Concept("bomb", Kind.VIOLENCE)).anchors
    assert anchors
    assert not set(anchors) & set(embedded.objects(violent=True))


@pytest.mark.parametrize(("have", "want"), [(0, 3), (3, 3), (10, 3), (145, 24), (5, 9)])
def test_spreading_takes_distinct_names_evenly(have, want):
    names = tuple(map(str, range(have)))
    taken = spread(names, want)
    assert len(taken) == len(set(taken)) == min(have, want)
    assert list(taken) == sorted(taken, key=int)
    assert set(taken) <= set(names)


def test_fitting_and_checking_use_other_contexts(model):
    fit, check = ({p.ids for pair in concept_prompts(model, TWEMOJI, 6, part) for p in pair} for part in (0, 1))
    with_context = {ids for ids in fit if ids in check}
    assert len(with_context) < len(fit) / 2


def test_nothing_that_is_erased_is_preserved(model):
    erased = [FREE, Concept("noto", anchor="art")]
    ids = model.token_ids("noto")[1:-1]
    kept = preserved_prompts(model, [FREE], 200), preserved_prompts(model, erased, 200)
    assert any(set(ids) <= set(prompt.ids) for prompt in kept[0])
    assert not any(set(ids) <= set(prompt.ids) for prompt in kept[1])
    assert all(len({p.ids for p in prompts}) == len(prompts) for prompts in kept)
    empty = tuple(model.token_ids(""))
    assert all(empty in {p.ids for p in prompts} for prompts in kept)


def test_a_concept_without_an_anchor_has_no_pairs(model):
    with pytest.raises(InputError, match="'twemoji' has no anchor"):
        concept_prompts(model, FREE, 6)


# -- anchors -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranked(model):
    """Candidates for FREE, best first: of the nearest, by what a trial edit leaves undone and damages."""

    def cost(name):
        measures = TRIAL.edit(model, [replace(FREE, anchor=name)]).measures
        return measures["undone"] ** 2 + measures["damage"] ** 2

    ways = distances(model, FREE, surroundings(model, FREE).anchors)
    return sorted(sorted(ways, key=ways.__getitem__)[:NEAREST], key=cost)


def test_a_given_anchor_is_kept_and_said(model):
    assert choose(model, TWEMOJI) == (TWEMOJI, "'twemoji' becomes 'fluent': given.")


def test_the_best_of_the_nearest_candidates_is_taken_and_said(model, ranked):
    chosen, reason = choose(model, FREE)
    assert chosen == replace(FREE, anchor=ranked[0])
    assert reason.startswith(f"'twemoji' becomes {ranked[0]!r}: best of the {len(ranked)} nearest")
    assert choose(model, FREE) == (chosen, reason)


def test_distances_are_relative_to_their_mean_and_zero_to_itself(model):
    ways = distances(model, FREE, ["noto", "fluent", "blob"])
    assert sum(ways.values()) / 3 == pytest.approx(1)
    assert distances(model, FREE, ["twemoji", "noto"])["twemoji"] == pytest.approx(0, abs=1e-6)


def test_what_is_erased_too_or_contains_it_is_no_anchor(model, ranked):
    best = choose(model, FREE, taken=["twemoji", ranked[0].upper()])[0].anchor
    assert best != ranked[0]
    last = ranked[0].split()[-1]
    assert choose(model, FREE, taken=[last])[0].anchor != ranked[0]


def test_no_candidate_left_is_refused(model):
    with pytest.raises(InputError, match="name an anchor"):
        choose(model, FREE, taken=surroundings(model, FREE).anchors)


def test_candidates_whose_own_pictures_are_taken_for_the_target_are_passed_over(model, ranked):
    asked = []

    def own_rate(name, prompts):
        asked.append(name)
        assert prompts
        assert all(name in prompt and "twemoji" not in prompt for prompt in prompts)
        return rate(0 if name == ranked[2] else 5, 16)

    chosen, reason = choose(model, FREE, own_rate=own_rate)
    assert chosen.anchor == ranked[2]
    assert asked == ranked[:3]
    assert f"after {ranked[0]!r}, {ranked[1]!r}; 0 of 16 of its own pictures are taken for 'twemoji'" in reason
    assert rate(5, 16).value > ACCEPTED


def test_if_every_candidate_looks_like_the_target_the_best_is_taken_with_a_warning(model, ranked):
    asked = []
    chosen, reason = choose(model, FREE, own_rate=lambda name, prompts: (asked.append(name), rate(16, 16))[1])
    assert chosen.anchor == ranked[0]
    assert "warning" in reason
    assert asked == ranked[:4]
