import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.errors import NumericalError
from concept_erase.lowrank import LowRank, balanced, check_finite, compose, concatenate

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 9)
shapes = st.tuples(sizes, sizes, sizes)  # d_out, d_in, rank: the rank may exceed both


def random(shape, seed) -> LowRank:
    d_out, d_in, rank = shape
    rng = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((d_out, rank), (rank, d_in)))
    return LowRank(up, down)


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@given(shapes, seeds)
def test_delta_is_the_product_and_scales(shape, seed):
    change = random(shape, seed)
    assert torch.equal(change.delta(), change.up @ change.down)
    assert change.shape == change.delta().shape == shape[:2]
    assert change.rank == shape[2]
    assert close(change.scaled(-2.5).delta(), -2.5 * change.delta())


@given(sizes, sizes, sizes, seeds)
def test_folding_an_operator_into_a_weight_is_exact(d_out, d, rank, seed):
    operator = random((d, d, rank), seed)
    weight = random((d_out, d, 1), seed + 1).delta()
    folded = operator.folded_into(weight)
    whole = weight @ (torch.eye(d, dtype=torch.float64) + operator.delta())
    assert folded.rank == rank
    assert close(weight + folded.delta(), whole)


@given(st.lists(sizes, min_size=1, max_size=4), sizes, sizes, seeds)
def test_concatenating_ranks_adds_the_changes(ranks, d_out, d_in, seed):
    changes = [random((d_out, d_in, rank), seed + i) for i, rank in enumerate(ranks)]
    total = concatenate(changes)
    assert total.rank == sum(ranks)
    assert close(total.delta(), sum(c.delta() for c in changes))


@given(shapes, st.integers(1, 12), seeds)
def test_compressing_is_the_truncated_svd_and_reports_the_lost_energy(shape, rank, seed):
    change = random(shape, seed)
    u, s, vh = torch.linalg.svd(change.delta())
    kept = min(rank, len(s))
    best = u[:, :kept] @ s[:kept].diag() @ vh[:kept]
    small, lost = change.compressed(rank)
    assert small.rank <= rank
    assert close(small.delta(), best)
    assert lost == pytest.approx((s[rank:].square().sum() / s.square().sum()).item(), abs=1e-12)


def test_compressing_nothing_loses_nothing():
    small, lost = LowRank.zeros(5, 4, rank=3).compressed(1)
    assert lost == 0
    assert torch.equal(small.delta(), torch.zeros(5, 4, dtype=torch.float64))


@given(shapes, seeds, st.floats(1e-6, 1e6))
def test_balancing_keeps_the_change_and_gives_factors_of_equal_size(shape, seed, tilt):
    change = random(shape, seed)
    tilted = LowRank(change.up * tilt, change.down / tilt)
    found = tilted.balanced()
    assert close(found.delta(), change.delta())
    assert close(found.up.norm(dim=0), found.down.norm(dim=1))
    assert found.rank <= min(*shape)


@given(shapes, st.lists(st.tuples(seeds, st.floats(-7, 7), st.floats(0, 9)), min_size=1, max_size=4))
def test_balancing_many_layers_is_balancing_each(shape, layers):
    changes = {}
    for number, (seed, tilt, fall) in enumerate(layers):
        change = random(shape, seed)
        sizes = torch.logspace(0, -fall, change.rank, dtype=torch.float64)  # from alike to hardly there
        changes[f"{number}"] = LowRank(change.up * 10**tilt, sizes[:, None] * change.down / 10**tilt)
    changes["even"] = random(shape, 1).balanced()
    found = balanced(changes)
    assert list(found) == list(changes)
    assert found["even"] is changes["even"]
    for path, change in changes.items():
        assert close(found[path].delta(), change.delta())
        assert found[path].even
        assert found[path].up.dtype is change.up.dtype


def test_layers_that_cannot_be_balanced_by_their_squares_are_balanced_all_the_same():
    twice = concatenate([random((6, 5, 1), 0)] * 2)  # one direction, written twice
    nothing = LowRank.zeros(6, 5, rank=2)
    for path, found in balanced({"twice": twice, "nothing": nothing}).items():
        assert found.even
        assert close(found.delta(), {"twice": twice, "nothing": nothing}[path].delta())


@given(shapes, seeds)
def test_what_is_balanced_is_even_also_in_single_precision_and_padded(shape, seed):
    change = random(shape, seed)
    assert not LowRank(change.up * 1.1, change.down / 1.1).balanced().scaled(1.01).even
    for found in (change.balanced(), change.balanced().to(torch.float32)):
        assert found.even
        assert found.rank == min(*shape) or found.padded(found.rank + 1).even
    twice = concatenate([change.balanced()] * 2)
    assert twice.even == (twice.rank <= min(*shape[:2]))  # of more columns than a layer has room for, some can go


@given(shapes, st.integers(0, 5), seeds)
def test_padding_keeps_the_change(shape, extra, seed):
    change = random(shape, seed)
    padded = change.padded(change.rank + extra)
    assert padded.rank == change.rank + extra
    assert close(padded.delta(), change.delta())


def test_precision_survives_a_change_of_type():
    change = random((4, 3, 2), 0).to(torch.float32)
    assert change.up.dtype is torch.float32
    assert change.balanced().up.dtype is torch.float32
    assert change.padded(5).down.dtype is torch.float32
    assert change.compressed(1)[0].down.dtype is torch.float32


def test_composing_edits_adds_them_layer_by_layer():
    a, b, c = (random((4, 3, 2), seed) for seed in range(3))
    edit = compose([{"x": a, "y": b}, {"y": c}])
    assert sorted(edit) == ["x", "y"]
    assert close(edit["x"].delta(), a.delta())
    assert close(edit["y"].delta(), b.delta() + c.delta())


@pytest.mark.parametrize(
    ("up", "down"), [((4, 2), (3, 5)), ((4,), (4, 5)), ((4, 2, 1), (2, 5)), ((4, 2), (2,))], ids=str
)
def test_factors_that_do_not_fit_are_refused_with_their_shapes(up, down):
    with pytest.raises(ValueError, match="do not fit") as refused:
        LowRank(torch.zeros(up), torch.zeros(down))
    assert str(up) in str(refused.value)


def test_what_has_no_meaning_is_refused():
    change = random((4, 3, 2), 0)
    with pytest.raises(ValueError, match="compress it instead"):
        change.padded(1)
    with pytest.raises(ValueError, match="at least 1"):
        change.compressed(0)
    with pytest.raises(ValueError, match="different layers"):
        concatenate([change, random((3, 4, 2), 0)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["up", "down"])
def test_nan_and_inf_are_found_and_the_layer_is_named(value, factor):
    bad = random((4, 3, 2), 0)
    getattr(bad, factor)[1, 1] = value
    check_finite({"fine": random((4, 3, 2), 1)})
    with pytest.raises(NumericalError, match=r"unet\.broken"):
        check_finite({"fine": random((4, 3, 2), 1), "unet.broken": bad})
