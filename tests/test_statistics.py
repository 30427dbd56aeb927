import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.statistics import Estimate, harmonic, kappa, mean, newcombe, rate

counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 50, 0.0, 7.13),
        (50, 50, 92.87, 100.0),
        (5, 10, 23.66, 76.34),
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
    ],
)
def test_wilson_interval_has_the_published_values(k, n, low, high):
    estimate = rate(k, n)
    assert estimate.low == pytest.approx(low, abs=0.006)
    assert estimate.high == pytest.approx(high, abs=0.006)
    assert estimate.value == pytest.approx(100 * k / n)
    assert (estimate.k, estimate.n) == (k, n)


def test_none_of_fifty_reads_as_at_most_seven_per_cent():
    assert str(rate(0, 50)) == "0.0 [0.0, 7.1]"


@given(counts)
def test_wilson_interval_holds_the_rate_and_mirrors(count):
    k, n = count
    estimate, mirrored = rate(k, n), rate(n - k, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 100
    assert estimate.low == pytest.approx(100 - mirrored.high)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.83, 0.97])
@pytest.mark.parametrize("n", [24, 50, 200])
def test_wilson_interval_covers_the_truth_about_95_per_cent_of_the_time(p, n):
    def probability(k):
        return math.comb(n, k) * p**k * (1 - p) ** (n - k)

    covered = sum(probability(k) for k in range(n + 1) if rate(k, n).low <= 100 * p <= rate(k, n).high)
    assert 0.90 < covered < 0.995


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        rate(k, n)


def test_bootstrap_mean_is_the_same_each_time_and_depends_on_its_seed():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert mean(values) == mean(values)
    assert (mean(values).low, mean(values).high) != (mean(values, seed=1).low, mean(values, seed=1).high)
    assert mean(values).value == 6.2
    assert mean(values).k is None


def test_bootstrap_interval_is_about_two_standard_errors_wide():
    values = [float(i % 10) for i in range(400)]
    error = 1.96 * math.sqrt(8.25 / 400)
    assert mean(values).low == pytest.approx(4.5 - error, abs=0.05)
    assert mean(values).high == pytest.approx(4.5 + error, abs=0.05)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_bootstrap_interval_stays_within_the_values(values):
    estimate = mean(values, resamples=200)
    slack = 1e-9
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_harmonic_mean_of_known_rates():
    h = harmonic([rate(60, 100), rate(15, 50)])
    assert h.value == pytest.approx(40)
    assert h.n == 50
    assert harmonic([rate(0, 10), rate(10, 10)]).value == 0


@given(st.lists(counts, min_size=1, max_size=4))
def test_harmonic_mean_is_at_most_the_mean_and_within_its_bounds(parts):
    rates = [rate(k, n) for k, n in parts]
    h = harmonic(rates)
    assert h.low <= h.value + 1e-9
    assert h.value <= h.high + 1e-9
    assert h.value <= sum(r.value for r in rates) / len(rates) + 1e-9


def test_kappa_of_known_tables():
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(a, b) == pytest.approx(0.4)
    assert kappa(a, a) == 1
    assert kappa(["yes", "no"] * 8, ["yes", "yes", "no", "no"] * 4) == pytest.approx(0)
    assert kappa(["x"] * 4, ["x"] * 4) == 1


def test_kappa_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="zip"):
        kappa(["a", "b"], ["a"])


def test_an_estimate_as_plain_values():
    assert Estimate(1 / 3, 9, 0.1, 0.5, 3).as_dict() == {"value": 0.3333, "n": 9, "low": 0.1, "high": 0.5, "k": 3}


# -- differences of rates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table II, method 10
    [((56, 70), (48, 80), 5.24, 33.39), ((9, 10), (3, 10), 17.05, 80.90), ((5, 56), (0, 29), -3.81, 19.26),
     ((0, 10), (0, 20), -16.11, 27.75), ((10, 10), (0, 10), 60.75, 100.0)],
)  # fmt: skip
def test_newcombes_interval_has_the_published_values(a, b, low, high):
    found = newcombe(rate(*a), rate(*b))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


@given(counts, counts)
def test_a_difference_of_rates_mirrors_and_holds_its_value(a, b):
    found, other = newcombe(rate(*a), rate(*b)), newcombe(rate(*b), rate(*a))
    assert -100 <= found.low <= found.value <= found.high <= 100
    assert found.low == pytest.approx(-other.high)


@pytest.mark.parametrize("p", [0.0, 0.05, 0.4])
def test_two_equal_rates_are_seldom_told_apart(p):
    def chance(k, n):
        return math.comb(n, k) * p**k * (1 - p) ** (n - k)

    wrong = sum(
        chance(k, 32) * chance(j, 24)
        for k in range(33)
        for j in range(25)
        if newcombe(rate(k, 32), rate(j, 24)).low > 0
    )
    assert wrong < 0.04
