"""Counts with honest intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: The estimate; per cent where it is a rate.
        n: How many pictures it rests on.
        low, high: Bounds of the 95% interval, in the unit of `value`.
        k: For a rate, how many of the n; None for a mean.
    """

    value: float
    n: int
    low: float
    high: float
    k: int | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        return {key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def rate(k: int, n: int) -> Estimate:
    """k of n in per cent, with the Wilson score interval (Wilson, 1927); 0 of 50 means "at most 7.1%".

    Raises:
        ValueError: not 0 <= k <= n, or n is 0.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"a rate needs 0 <= k <= n and n > 0, got {k} of {n}.")
    p, z2 = k / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if k == 0 else 100 * max(0.0, centre - half)
    high = 100.0 if k == n else 100 * min(1.0, centre + half)
    return Estimate(100 * p, n, low, high, k)


def newcombe(a: Estimate, b: Estimate) -> Estimate:
    """The difference a - b of two independent rates in per cent, with Newcombe's interval (1998, method 10).

    It is made of the two Wilson intervals, which makes it fit for small counts and for rates of 0 and 100.
    """
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, min(a.n, b.n), max(low, -100.0), min(high, 100.0))


def mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean with a percentile bootstrap interval.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value.")
    n, rng = len(values), random.Random(seed)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(resamples))
    return Estimate(sum(values) / n, n, means[int(0.025 * resamples)], means[int(0.975 * resamples)])


def harmonic(parts: Sequence[Estimate]) -> Estimate:
    """Harmonic mean of rates; its bounds are those of all lower and all upper bounds, hence conservative."""

    def of(values: Sequence[float]) -> float:
        return len(values) / sum(1 / v for v in values) if min(values) > 0 else 0.0

    bounds = (of([p.low for p in parts]), of([p.high for p in parts]))
    return Estimate(of([p.value for p in parts]), min(p.n for p in parts), *bounds)


def kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Cohen's kappa of two judges over the same pictures: 1 is full agreement, 0 is chance."""
    n = len(a)
    agreed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = sum((list(a).count(label) / n) * (list(b).count(label) / n) for label in set(a) | set(b))
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)
