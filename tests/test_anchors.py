"""What a concept lives among, and what it becomes."""

from dataclasses import replace

import pytest
from conftest import TWEMOJI

from concept_erase import anchors, embedded
from concept_erase import surroundings as around_module
from concept_erase.anchors import ACCEPTED, AS_GOOD, NEAREST, TRIAL, choose
from concept_erase.concepts import PROFILES, Concept, Kind
from concept_erase.errors import InputError
from concept_erase.families import SD1
from concept_erase.methods.uce import STRENGTHS, UCE, Gathered, cost
from concept_erase.model import Model
from concept_erase.moments import of_pairs
from concept_erase.scores import trial_shots
from concept_erase.statistics import rate
from concept_erase.surroundings import (
    WEIGHT,
    alone,
    candidates,
    combining,
    concept_prompts,
    nearby,
    preserved_groups,
    preserved_prompts,
    profile,
    slots,
    spread,
    surroundings,
)
from concept_erase.vocabulary import nearest, vocabulary

FREE = Concept("twemoji", preserve=TWEMOJI.preserve)


@pytest.fixture(scope="module")
def house():
    """The embedded generator as far as its vocabulary goes; no weights are read."""
    return Model(SD1, embedded.NAME, folder=None, pipe=None)


# -- surroundings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_an_unlisted_base_is_described_by_what_its_text_encoder_knows(model, kind):
    concept = Concept("dog", kind)
    around = surroundings(model, concept)
    profile, known = PROFILES[kind], {*vocabulary(model).known, *vocabulary(model).modifiers}
    assert not around.complete
    assert set(around.contexts) <= {*profile.contexts, *known}
    assert set(around.neighbours) <= {*profile.neighbours, *known}
    assert set(around.anchors) <= {*candidates(model, concept.kind), *concept.preserve}
    assert min(map(len, (around.contexts, around.neighbours, around.anchors))) > 0
    assert not any("dog" in names for names in (around.contexts, around.neighbours, around.anchors))


def test_what_is_violent_becomes_what_a_person_named(model):
    anchors = surroundings(model, Concept("knife", Kind.VIOLENCE)).anchors
    assert set(anchors) <= {*PROFILES[Kind.VIOLENCE].anchors, *PROFILES[Kind.VIOLENCE].neighbours}


def test_what_the_user_preserves_are_the_neighbours_of_an_unknown_base(model):
    assert surroundings(model, FREE).neighbours == TWEMOJI.preserve


def test_only_the_embedded_base_is_spoken_to_of_icons(model, house):
    for kind in Kind:
        spoken = (*alone(model), *profile(model, kind).templates, *profile(model, kind).unseen)
        assert not any("icon" in line or "emoji" in line for line in spoken)
    assert any("icon" in line for line in alone(house))


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
def test_another_writing_and_what_contains_the_target_are_none_of_its_surroundings(
    model, monkeypatch, target, kind, gone
):
    monkeypatch.setattr(around_module, "knows", lambda model, names: [True] * len(names))
    blind = Model(model.family, model.name, folder=model.folder, pipe=None)
    around = surroundings(blind, Concept(target, kind))
    listed = {*PROFILES[kind].neighbours, *PROFILES[kind].anchors}
    assert gone in listed
    assert listed - {gone} <= {*around.neighbours, *around.anchors}
    assert gone not in {*around.neighbours, *around.anchors}


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


def test_the_slots_are_the_same_for_all_concepts_less_those_that_hold_them(model):
    names = combining(model, Kind.STYLE)
    mine, other = slots(model, Concept(names[0]), 1000), slots(model, Concept("nobody"), 1000)
    assert [place for place in other if names[0] not in place[1].split()] == mine
    assert slots(model, Concept("nobody"), 6) == other[:6]
    assert not other[0][1]
    assert all(c for _, c in slots(model, Concept("nobody"), 6, part=1))
    anchored = slots(model, Concept("nobody", anchor=names[2]), 1000)
    assert names[2] in {c for _, c in other} - {c for _, c in anchored}


def test_the_nearest_words_weigh_more_and_none_holds_the_target(model):
    concept = Concept("cat", Kind.OBJECT)
    groups = preserved_groups(model, [concept], 40)
    counted = {group: groups.count(group) for group in groups}
    (close,) = [group for group, times in counted.items() if times == WEIGHT - 1]
    (broad,) = [group for group in counted if set(close) < set(group)]
    assert counted[broad] == 1
    near = nearby(model, concept)
    heads = {model.token_ids(word)[1] for word in near}
    assert near
    assert all(heads & set(prompt.ids) for prompt in close)
    assert all(times == WEIGHT for group, times in counted.items() if group not in (broad, close, groups[0]))
    assert not any("cat" in word.split() for word in near)
    cat = model.token_ids("cat")[1:-1]
    assert not any(set(cat) <= set(prompt.ids) for group in groups for prompt in group)


def test_a_concept_without_an_anchor_has_no_pairs(model):
    with pytest.raises(InputError, match="'twemoji' has no anchor"):
        concept_prompts(model, FREE, 6)


# -- anchors -------------------------------------------------------------------------------------------------------


def _cost(model, concept):
    """Of a whole edit in a trial's contexts: fitted on half of them, its strength chosen by the other half."""
    prompts = concept_prompts(model, concept, TRIAL.contexts)
    fit, unseen = (of_pairs(model, prompts[half::2], TRIAL.tokens, TRIAL.padding) for half in (0, 1))
    every = [TRIAL.solved(model, [concept], Gathered(fit, unseen), strength)[1] for strength in STRENGTHS]
    return min(map(cost, every))


@pytest.fixture(scope="module")
def ranked(model):
    """Candidates for FREE, best first: by what a trial edit leaves and damages, the furthest of those as good."""

    closeness = dict(nearest(model, FREE, surroundings(model, FREE).anchors)[:NEAREST])
    costs = {name: _cost(model, replace(FREE, anchor=name)) for name in closeness}
    good = [name for name in closeness if costs[name] <= AS_GOOD * min(costs.values())]
    rest = sorted(set(closeness) - set(good), key=costs.__getitem__)
    return [*sorted(good, key=closeness.__getitem__), *rest]


def test_a_given_anchor_is_kept_and_said(model):
    assert choose(model, TWEMOJI) == (TWEMOJI, "'twemoji' becomes 'fluent': given.")


def test_the_best_of_the_nearest_candidates_is_taken_and_said(model, ranked):
    chosen, reason = choose(model, FREE)
    assert chosen == replace(FREE, anchor=ranked[0])
    assert reason.startswith(f"'twemoji' becomes {ranked[0]!r}: best of the {len(ranked)} nearest")
    assert choose(model, FREE) == (chosen, reason)


def test_trials_read_only_what_an_edit_onto_the_anchor_needs(model, monkeypatch):
    read = []
    monkeypatch.setattr(
        anchors, "of_pairs", lambda model, pairs, *rest: (read.append(pairs), of_pairs(model, pairs, *rest))[1]
    )
    chosen, _ = choose(model, FREE)
    needed = set(concept_prompts(model, chosen, UCE().contexts))
    mine = [pair for pairs in read for pair in pairs if pair in needed]
    assert len(mine) == len(set(mine)) == TRIAL.contexts
    assert {target for pairs in read for target, _ in pairs} <= {target for target, _ in needed}


def test_a_name_is_nearest_to_itself(model):
    ranked = nearest(model, FREE, ["noto", "twemoji", "blob"])
    assert ranked[0] == ("twemoji", pytest.approx(1))
    assert [cosine for _, cosine in ranked] == sorted((cosine for _, cosine in ranked), reverse=True)


def test_what_is_erased_too_or_contains_it_is_no_anchor(model, ranked):
    best = choose(model, FREE, taken=["twemoji", ranked[0].upper()])[0].anchor
    assert best != ranked[0]
    last = ranked[0].split()[-1]
    assert choose(model, FREE, taken=[last])[0].anchor != ranked[0]


def test_no_candidate_left_is_refused(model):
    with pytest.raises(InputError, match="name an anchor"):
        choose(model, FREE, taken=surroundings(model, FREE).anchors)


@pytest.mark.parametrize("name", [None, "fluent"])
def test_pictures_of_a_trial_name_what_they_are_drawn_for(model, name):
    """Of a candidate, which stands in the target's place, or of the targets in turn; what else they show is told."""
    other = Concept("blob")
    shots = trial_shots(model, [FREE] if name else [FREE, other], name)
    assert len({shot.prompt for shot in shots}) == len(shots) == 16
    for number, shot in enumerate(shots):
        drawn = name or ("twemoji", "blob")[number % 2]
        assert drawn in shot.prompt
        assert (shot.concept, shot.erased, shot.seed) == (drawn, name is None, number)
        assert shot.context in shot.prompt
        assert not name or "twemoji" not in shot.prompt


def test_candidates_whose_own_pictures_are_taken_for_the_target_are_passed_over(model, ranked):
    asked = []

    def own_rate(name):
        asked.append(name)
        return rate(0 if name == ranked[2] else 5, 16)

    chosen, reason = choose(model, FREE, own_rate=own_rate)
    assert chosen.anchor == ranked[2]
    assert asked == ranked[:3]
    assert f"after {ranked[0]!r}, {ranked[1]!r}; 0 of 16 of its own pictures are taken for 'twemoji'" in reason
    assert rate(5, 16).value > ACCEPTED


def test_if_every_candidate_looks_like_the_target_the_best_is_taken_with_a_warning(model, ranked):
    asked = []
    chosen, reason = choose(model, FREE, own_rate=lambda name: (asked.append(name), rate(16, 16))[1])
    assert chosen.anchor == ranked[0]
    assert "warning" in reason
    assert asked == ranked[:4]
