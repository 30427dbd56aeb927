from itertools import pairwise

import pytest
import torch
from conftest import TWEMOJI
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.concepts import Concept
from concept_erase.errors import InputError, NumericalError
from concept_erase.methods import Run, make, uce
from concept_erase.methods.uce import STRENGTHS, Gathered, _spectrum, solve, solve_strongest
from concept_erase.moments import Kept, Moments
from concept_erase.statistics import rate

problems = st.tuples(st.integers(2, 12), st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**32 - 1))
scales = st.floats(0.05, 20)


def columns(problem):
    """C, G, P and a layer's weight."""
    d, n, m, seed = problem
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, k, generator=rng, dtype=torch.float64) for rows, k in ((d, n), (d, n), (d, m), (7, d))]


def near(a, b, tolerance=1e-8) -> bool:
    return bool((a - b).norm() <= tolerance * (1 + b.norm()))


# -- laws of the solve ---------------------------------------------------------------------------------------------


@given(problems, scales, scales, scales)
def test_the_solve_equals_the_published_formula_of_every_layer(problem, a, b, ridge):
    C, G, P, W = columns(problem)
    identity = torch.eye(len(C), dtype=torch.float64)
    published = (a * W @ G @ C.T + b * W @ P @ P.T + ridge * W) @ torch.linalg.inv(
        a * C @ C.T + b * P @ P.T + ridge * identity
    )
    D = solve(C, G, P, erase_scale=a, preserve_scale=b, ridge=ridge)
    assert near(W @ (identity + D.delta()), published)
    assert near(W + D.folded_into(W).delta(), published)


@given(problems)
def test_the_solve_minimises_its_objective(problem):
    C, G, P, _ = columns(problem)
    D = solve(C, G, P, erase_scale=2, preserve_scale=3, ridge=0.5).delta().requires_grad_(True)
    (2 * (C + D @ C - G).square().sum() + 3 * (D @ P).square().sum() + 0.5 * D.square().sum()).backward()
    assert D.grad.norm() < 1e-7 * (1 + C.norm() ** 2)


@given(problems, st.one_of(st.none(), st.integers(1, 9)))
def test_the_rank_is_at_most_the_number_of_embeddings_and_the_bound(problem, rank):
    C, G, P, _ = columns(problem)
    D = solve(C, G, P, rank=rank)
    bound = min(C.shape[1], rank or C.shape[1])
    assert D.rank <= bound
    assert torch.linalg.matrix_rank(D.delta(), rtol=1e-9) <= bound


@given(problems, scales, st.integers(1, 9))
def test_a_rank_bound_never_moves_a_preserved_embedding_further(problem, a, rank):
    C, G, P, _ = columns(problem)
    free = solve(C, G, P, erase_scale=a).delta() @ P
    bound = solve(C, G, P, erase_scale=a, rank=rank).delta() @ P
    assert (bound.norm(dim=0) <= free.norm(dim=0) + 1e-9).all()


@given(problems)
def test_a_rank_bound_that_does_not_bind_changes_nothing(problem):
    C, G, P, _ = columns(problem)
    assert near(solve(C, G, P, rank=len(C)).delta(), solve(C, G, P).delta(), 1e-6)


@given(problems)
def test_a_large_ridge_leaves_the_weights_alone(problem):
    C, G, P, W = columns(problem)
    moved = [solve(C, G, P, ridge=ridge).folded_into(W).delta().norm() for ridge in (1e-2, 1e3, 1e9)]
    assert moved[0] >= moved[1] >= moved[2]
    assert moved[2] < 1e-6 * W.norm() * (1 + C.norm() ** 2 + C.norm() * G.norm())


@given(problems, st.one_of(st.none(), st.integers(1, 5)))
def test_an_anchor_equal_to_the_target_gives_the_zero_edit(problem, rank):
    C, _, P, _ = columns(problem)
    assert torch.equal(solve(C, C, P, rank=rank).delta(), torch.zeros(len(C), len(C), dtype=torch.float64))


@given(problems, st.randoms(use_true_random=False))
def test_the_order_of_the_columns_does_not_matter(problem, random):
    C, G, P, _ = columns(problem)
    order, kept = (random.sample(range(x.shape[1]), x.shape[1]) for x in (C, P))
    assert near(solve(C[:, order], G[:, order], P[:, kept]).delta(), solve(C, G, P).delta())


def test_strong_targets_reach_their_anchors_and_heavy_preserved_ones_stay():
    C, G, P, _ = columns((12, 3, 4, 0))
    D = solve(C, G, P, erase_scale=1e8, preserve_scale=1e8, ridge=1e-2).delta()
    assert near(C + D @ C, G, 1e-6)
    assert (D @ P).norm() < 1e-5


def test_single_precision_is_solved_in_double():
    C, G, P, _ = (x.float() for x in columns((8, 3, 4, 1)))
    D = solve(C, G, P)
    assert D.up.dtype is D.down.dtype is torch.float64
    assert torch.equal(D.delta(), solve(C.double(), G.double(), P.double()).delta())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"G": torch.zeros(6, 2)}, "must match column by column"),
        ({"ridge": 0.0}, "must be positive"),
        ({"ridge": -1.0}, "must be positive"),
        ({"erase_scale": 0.0}, "must be positive"),
    ],
)
def test_what_cannot_be_solved_is_refused(change, message):
    C, G, P, _ = columns((6, 3, 2, 0))
    with pytest.raises(ValueError, match=message):
        solve(**{"C": C, "G": G, "P": P, **change})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_with_nan_or_inf_are_refused(value):
    C, G, P, _ = columns((6, 3, 2, 0))
    C[2, 1] = value
    with pytest.raises(NumericalError, match="cannot be factored"):
        solve(C, G, P)


def test_an_ill_conditioned_system_is_refused():
    C = torch.zeros(4, 1, dtype=torch.float64)
    C[0] = 1e9
    with pytest.raises(NumericalError, match=r"ill-conditioned.*raise the ridge"):
        solve(C, C.flip(0), torch.zeros(4, 0), ridge=1e-3)


def straightforward(C, G, P, a, ridge, rank):
    """D by the formula, its outputs projected onto the directions of the largest moves of C."""
    D = a * (G - C) @ C.T @ torch.linalg.inv(ridge * torch.eye(len(C)).double() + a * C @ C.T + P @ P.T)
    left = torch.linalg.svd(D @ C).U[:, : rank or len(C)]
    return left @ left.T @ D


@pytest.mark.parametrize("n", [1, 5, 11, 12, 13, 40])
@pytest.mark.parametrize("rank", [None, 1, 4])
def test_one_factoring_serves_all_strengths(n, rank):
    """Few columns are solved as they are, many by their moments; both are the formula of every strength."""
    C, G, P, _ = columns((12, n, 9, n))
    fit, kept = Moments.of(C, G, torch.eye(12).double()), Kept.of(P)
    assert (fit.columns is None) == (n > 12)
    spectrum = _spectrum(fit, kept.factor(0.7))
    sums = _spectrum(Moments(fit.way, n, sums=(C @ C.T, (G - C) @ C.T)), kept.factor(0.7))
    for strength in STRENGTHS:
        expected = straightforward(C, G, P, strength, 0.7, rank)
        for found in (spectrum, sums):
            D = found.operator(strength, rank)
            assert near(D.delta(), expected)
            assert rank is None or D.rank <= rank


def test_what_is_kept_is_factored_once():
    kept = Kept.of(columns((6, 1, 4, 0))[2])
    assert kept.factor(0.5) is kept.factor(0.5)
    L = kept.factor(2.0, 3.0)
    assert near(L @ L.T, 2 * torch.eye(6).double() + 3 * kept.PP)


# -- the strength --------------------------------------------------------------------------------------------------


def test_the_strength_is_the_one_of_least_cost_and_its_measures_are_what_they_say():
    C, G, P, W = columns((10, 4, 6, 2))
    gram = W.T @ W
    unseen = columns((10, 5, 7, 9))[:3]
    moments = Moments.of(C, G, gram), Kept.of(P), Moments.of(*unseen[:2], gram), Kept.of(unseen[2])
    operator, measures = solve_strongest(*moments, gram, ridge=1.0)

    def size(x):
        return (W @ x).square().sum(0).mean().sqrt()

    def costs(strength):
        D = solve(C, G, P, erase_scale=strength, ridge=1.0).delta()
        way = size(unseen[0] - unseen[1])
        undone = size(unseen[0] + D @ unseen[0] - unseen[1]) / way
        return undone.item(), (size(D @ unseen[2]) / way).item()

    best = min(STRENGTHS, key=lambda s: sum(c * c for c in costs(s)))
    assert measures["strength"] == best
    assert (measures["undone"], measures["damage"]) == pytest.approx(costs(best))
    assert near(operator.delta(), solve(C, G, P, erase_scale=best, ridge=1.0).delta())


@pytest.mark.parametrize("bad", ["strength", "kept"])
def test_a_strength_that_cannot_be_trusted_is_refused(bad):
    C, G, P, W = columns((5, 2, 3, 4))
    gram = W.T @ W
    fit, kept = Moments.of(C, G, gram), Kept.of(1e9 * P if bad == "kept" else P)
    with pytest.raises(NumericalError, match=r"the UCE system .* raise the ridge"):
        solve_strongest(fit, kept, fit, kept, gram, strengths=(1e20,) if bad == "strength" else STRENGTHS, ridge=1e-3)


def test_nothing_to_move_costs_nothing():
    C, _, P, W = columns((10, 4, 6, 3))
    still, kept = Moments.of(C, C, W.T @ W), Kept.of(P)
    operator, measures = solve_strongest(still, kept, still, kept, W.T @ W)
    assert not operator.delta().any()
    assert (measures["undone"], measures["damage"]) == (0, 0)


@pytest.mark.parametrize("n", [2, 30])
@pytest.mark.parametrize("checked", [False, True])
def test_what_is_gathered_is_the_same_from_a_file(n, checked):
    C, G, _, W = columns((6, n, 0, 5))
    fit = Moments.of(C, G, W.T @ W)
    one = Gathered(fit, Moments.of(2 * C, G, W.T @ W) if checked else fit)
    for gathered in (one, one + one):
        tensors = gathered.tensors()
        again = make("uce", {}).regathered(tensors)
        assert all(t.dtype is torch.float64 for t in tensors.values())
        assert (again.unseen is again.fit) == (gathered.unseen is gathered.fit) == (not checked)
        for part in ("fit", "unseen"):
            here, there = getattr(gathered, part), getattr(again, part)
            assert (there.way, there.n) == (here.way, here.n)
            assert torch.equal(there.CC, here.CC)
            assert torch.equal(there.MC, here.MC)


# -- the method on a generator -------------------------------------------------------------------------------------


def edit(model, concepts, **settings):
    return make("uce", {"contexts": 6, "preserve_prompts": 60, **settings}).edit(model, concepts)


def test_one_operator_serves_every_layer_that_reads_the_text(model):
    changes = edit(model, [TWEMOJI]).changes
    assert sorted(changes) == sorted(model.stream_layers())
    downs = [change.down for change in changes.values()]
    assert all(torch.equal(down, downs[0]) for down in downs)


def test_the_order_of_concepts_in_a_joint_solve_does_not_matter(model):
    names = {"twemoji": "fluent", "pixel art": "blue ink", "blob": "noto"}
    concepts = [Concept(target, anchor=anchor) for target, anchor in names.items()]
    one, other = (edit(model, order, strength=1.0).changes for order in (concepts, concepts[::-1]))
    for path, change in one.items():
        assert near(other[path].delta(), change.delta(), 1e-6)


@pytest.mark.parametrize(("rank", "members", "expected"), [(1, 1, 1), (3, 1, 3), (2, 2, 4), (None, 1, 32)])
def test_the_rank_setting_bounds_the_rank_of_every_layer_per_concept(model, rank, members, expected):
    concepts = [Concept("twemoji", anchor="fluent"), Concept("blob", anchor="noto")][:members]
    assert {change.rank for change in edit(model, concepts, rank=rank).changes.values()} == {expected}


@pytest.mark.parametrize(("tokens", "columns_per_concept"), [("subject", 1), ("subject_to_end", 23), ("all", 23)])
def test_the_bare_form_edits_the_name_alone(model, tokens, columns_per_concept):
    assert len(model.token_ids("twemoji")) == 3  # BOS, one token, EOS
    changes = edit(model, [TWEMOJI], bare=True, tokens=tokens, rank=None).changes
    assert {change.rank for change in changes.values()} == {columns_per_concept}


@pytest.mark.parametrize(
    ("counts", "steps", "said"),
    [
        ([0], 0, "best of 7, and 0 of 16 pictures under it are still taken for the target"),
        ([1, 0], 0, "best of 7, and 1 of 16"),
        ([9, 1], 1, "best of 7, but 9 of 16 pictures under it are still taken for the target, under this one 1 of 16"),
        ([9, 5, 0], 2, "under this one 0 of 16"),
        ([9, 4, 6, 5], 1, "under this one 4 of 16"),  # none will do: the one with the fewest
        ([2, 2, 3, 2], 0, "best of 7, and 2 of 16"),
        ([None], 0, "best of 7; on"),  # nothing could be drawn
        ([9, None, 0], 2, "under this one 0 of 16"),
    ],
)
def test_pictures_decide_whether_the_strength_is_enough(model, monkeypatch, counts, steps, said):
    """From the strength of least cost upwards, until its own pictures are seldom taken for the target."""
    monkeypatch.setattr(uce, "COLLATERAL", 100.0)  # so that the strength of least cost is a small one
    method = make("uce", {"contexts": 6, "preserve_prompts": 60})
    first = method.edit(model, [TWEMOJI])
    place = STRENGTHS.index(first.measures["strength"])
    assert place + 3 < len(STRENGTHS), "the case has room for stronger ones"
    seen, answers = [], iter(counts)

    def still(changes):
        seen.append(changes)
        count = next(answers)
        return None if count is None else rate(count, 16)

    found = method.edit(model, [TWEMOJI], Run(still=still))
    assert found.measures["strength"] == STRENGTHS[place + steps]
    assert said in found.notes[0]
    expected = make("uce", {"contexts": 6, "preserve_prompts": 60, "strength": STRENGTHS[place + steps]})
    for path, change in expected.edit(model, [TWEMOJI]).changes.items():
        assert near(found.changes[path].delta(), change.delta())
    assert all(a is not b for a, b in pairwise(seen))
    assert len(seen) <= len(counts)


def test_a_given_strength_is_not_looked_at(model):
    def still(changes):
        raise AssertionError("it was given")

    assert edit(model, [TWEMOJI], strength=1.0).measures["strength"] == 1.0
    made = make("uce", {"contexts": 6, "preserve_prompts": 60, "strength": 1.0}).edit(
        model, [TWEMOJI], Run(still=still)
    )
    assert "strength 1: given" in made.notes[0]


def test_a_given_strength_is_used_and_said(model):
    weak, strong = (edit(model, [TWEMOJI], strength=s) for s in (0.01, 10.0))
    assert weak.measures["strength"] == 0.01
    assert "strength 0.01: given" in weak.notes[0]
    assert weak.measures["undone"] > strong.measures["undone"]
    assert any("more than half of the way is left undone" in note for note in weak.notes)


def test_a_larger_ridge_stays_closer_to_the_weights(model):
    def size(ridge):
        return sum(c.delta().norm() for c in edit(model, [TWEMOJI], strength=1.0, ridge=ridge).changes.values())

    assert size(1e9) < 1e-3 * size(1.0)


@pytest.mark.parametrize("bare", [False, True])
def test_a_target_whose_tokens_equal_its_anchors_is_refused(model, bare):
    concept = Concept("style2", anchor="style 2")
    assert model.token_ids(concept.target) == model.token_ids(concept.anchor)
    with pytest.raises(InputError, match="same tokens"):
        edit(model, [concept], bare=bare)


@pytest.mark.parametrize(
    "settings",
    [
        {"ridge": 0},
        {"strength": -1},
        {"contexts": 0},
        {"rank": 0},
        {"padding": 0},
        {"preserve_prompts": -1},
        {"tokens": "some"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        make("uce", settings)
