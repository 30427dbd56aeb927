import pytest
import torch
from conftest import TWEMOJI
from hypothesis import given
from hypothesis import strategies as st

from concept_erase import moments
from concept_erase.moments import Kept, Moments, of_kept, of_pairs
from concept_erase.streams import Tokens, condensed_columns, paired_columns, read
from concept_erase.surroundings import concept_prompts, preserved_groups

SEEDS, WIDTHS, COUNTS, RANKS = st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 9), st.integers(1, 4)


def draw(seed: int, *shapes):
    """Random float64 matrices."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes]


def metric(seed: int, d: int):
    """A random gram matrix, positive semidefinite and sometimes singular."""
    (W,) = draw(seed ^ 1, (1 + seed % 9, d))
    return W.T @ W


def size(x, gram) -> float:
    """Root of the summed squares of columns, as the denoiser sees them: the definition, column by column."""
    return sum(float(column @ gram @ column) for column in x.T) ** 0.5


def close(a, b, rtol: float = 1e-9) -> bool:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


# -- what the matrices are -----------------------------------------------------------------------------------------


@given(SEEDS, WIDTHS, COUNTS)
def test_moments_are_sums_over_columns(seed, d, n):
    C, G = draw(seed, (d, n), (d, n))
    gram = metric(seed, d)
    found = Moments.of(C, G, gram)
    assert found.n == n
    assert close(found.CC, sum(torch.outer(c, c) for c in C.T))
    assert close(found.MC, sum(torch.outer(g - c, c) for c, g in zip(C.T, G.T, strict=True)))
    assert close(found.way, size(G - C, gram) ** 2)
    assert close(Kept.of(C).PP, found.CC)
    assert Kept.of(C).n == n


@given(SEEDS, WIDTHS, COUNTS, COUNTS, st.randoms(use_true_random=False))
def test_moments_of_columns_side_by_side_are_the_sum(seed, d, n, m, order):
    C, G = draw(seed, (d, n + m), (d, n + m))
    gram = metric(seed, d)
    places = list(range(n + m))
    order.shuffle(places)
    whole = Moments.of(C[:, places], G[:, places], gram)
    parts = Moments.of(C[:, :n], G[:, :n], gram) + Moments.of(C[:, n:], G[:, n:], gram)
    for name in ("CC", "MC", "way"):
        assert close(getattr(parts, name), getattr(whole, name))
    assert parts.n == whole.n == n + m
    kept = Kept.of(C[:, :n]) + Kept.of(C[:, n:])
    assert close(kept.PP, Kept.of(C).PP)
    assert kept.n == n + m


def test_single_precision_columns_are_summed_in_double():
    C, G = (x.float() * 1e4 for x in draw(0, (3, 500), (3, 500)))
    found = Moments.of(C, G, torch.eye(3, dtype=torch.float64))
    assert {found.CC.dtype, found.MC.dtype, Kept.of(C).PP.dtype} == {torch.float64}
    assert close(found.CC, C.double() @ C.double().T)
    assert close(found.MC, (G.double() - C.double()) @ C.double().T)


# -- undone and damage ---------------------------------------------------------------------------------------------


@given(SEEDS, WIDTHS, COUNTS, RANKS)
def test_undone_is_what_remains_of_the_way(seed, d, n, r):
    C, G, up, down = draw(seed, (d, n), (d, n), (d, r), (r, d))
    gram = metric(seed, d)
    remains = size(C + up @ down @ C - G, gram) / size(C - G, gram)
    assert Moments.of(C, G, gram).undone(up, down, gram) == pytest.approx(remains, rel=1e-6, abs=1e-6)


@given(SEEDS, WIDTHS, COUNTS, RANKS)
def test_damage_is_the_root_mean_square_of_the_move(seed, d, n, r):
    P, up, down = draw(seed, (d, n), (d, r), (r, d))
    gram = metric(seed, d)
    moved = size(up @ down @ P, gram) / n**0.5
    assert Kept.of(P).damage(up, down, gram) == pytest.approx(moved, rel=1e-6, abs=1e-9)


@given(SEEDS, WIDTHS, RANKS, st.floats(1e-3, 1e3))
def test_sizes_follow_the_metric(seed, d, r, scale):
    C, G, up, down = draw(seed, (d, 4), (d, 4), (d, r), (r, d))
    gram = metric(seed, d)
    relative, larger = (Moments.of(C, G, g).undone(up, down, g) for g in (gram, scale * gram))
    assert larger == pytest.approx(relative, rel=1e-6, abs=1e-6)
    damage, larger = (Kept.of(C).damage(up, down, g) for g in (gram, scale * gram))
    assert larger == pytest.approx(scale**0.5 * damage, rel=1e-6)


@given(SEEDS, WIDTHS)
def test_an_operator_that_goes_all_the_way_leaves_nothing_undone(seed, d):
    C, M = draw(seed, (d, d), (d, d))
    C = C + 5 * d * torch.eye(d, dtype=torch.float64)  # well away from singular
    found = Moments.of(C, C + M, torch.eye(d, dtype=torch.float64))
    assert found.undone(M, torch.linalg.inv(C), torch.eye(d, dtype=torch.float64)) == pytest.approx(0, abs=1e-6)


def test_no_operator_no_way_and_nothing_kept():
    C, G = draw(3, (4, 5), (4, 5))
    gram = metric(3, 4)
    nothing = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    some = draw(4, (4, 2), (2, 4))
    assert Moments.of(C, G, gram).undone(*nothing, gram) == pytest.approx(1)
    assert Kept.of(C).damage(*nothing, gram) == 0
    assert Moments.of(C, C, gram).undone(*some, gram) == 0
    assert Kept.of(C[:, :0]).damage(*some, gram) == 0
    assert close(Kept.of(C[:, :0]).PP, torch.zeros(4, 4))


# -- of prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", Tokens)
def test_moments_of_prompts_are_those_of_their_columns(model, tokens):
    pairs = concept_prompts(model, TWEMOJI, 6)
    C, G = paired_columns(model, pairs, tokens)
    # What is encoded together may change last bits.
    assert close(of_pairs(model, pairs, tokens, model.length).CC, C @ C.T, rtol=1e-5)
    C, G, n = condensed_columns(model, pairs, tokens, slots=True)
    found = of_pairs(model, pairs, tokens)
    assert found.n == n
    assert close(found.CC, C @ C.T)
    assert close(found.MC, (G - C) @ C.T)
    assert found.way == pytest.approx(size(G - C, model.gram) ** 2, rel=1e-9)
    halves = [of_pairs(model, part, tokens) for part in (pairs[:4], pairs[4:])]
    assert close((halves[0] + halves[1]).CC, found.CC, rtol=1e-5)


@pytest.mark.parametrize("tokens", Tokens)
def test_what_is_kept_counts_bos_once_per_prompt(model, tokens):
    groups = preserved_groups(model, [TWEMOJI], 40)
    prompts = [prompt for group in groups for prompt in group]
    parts = [condensed_columns(model, [(p, p) for p in group], tokens) for group in groups]
    P = torch.cat([P for P, _, _ in parts], dim=1)
    (bos,) = model.encode([prompts[0].ids[:1]], [1])
    found = of_kept(model, groups, tokens)
    assert found.n == sum(n for _, _, n in parts) + 1
    assert close(found.PP, P @ P.T + len(prompts) * bos.double().T @ bos.double())


def test_each_group_is_computed_once_for_a_model(base_folder, monkeypatch):
    from concept_erase.model import open_model

    model, computed = open_model(base_folder), []
    real = moments._kept
    monkeypatch.setattr(moments, "_kept", lambda m, group, *how: (computed.append(group), real(m, group, *how))[1])
    groups = [(read(model, "a {target}", name),) for name in ("cat", "dog", "horse")]
    first = of_kept(model, groups, Tokens.ALL)
    again = of_kept(model, groups[::-1], Tokens.ALL)
    assert computed == groups
    assert close(first.PP, again.PP)
    of_kept(model, groups, Tokens.SUBJECT)
    assert len(computed) == 6
