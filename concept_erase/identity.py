"""Which base it is: a hash for equal weights, and a few numbers that survive rounding for those that are merely close.

A hash changes with the last bit, so a base that was rounded to bfloat16 or float8 has another one, and so has one in
"scaled" float8, where each layer or each of its rows has a factor of its own. The *sketch* beside it holds `u^T W v`
of each layer W with fixed vectors u and v of +1 and -1. Over such vectors the square of `u^T W v` has the mean
`||W||^2`, so the distance of two sketches estimates that of the weights; and it is linear in W, so what an edit does to
a sketch follows from the edit's factors alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from concept_erase.lowrank import LowRank

NUMBERS = 4  # of a sketch, for each layer
SCALED = "scaled "  # but for a factor of each row
FLOATS = (  # from coarse to fine
    "float8_e5m2", f"{SCALED}float8_e5m2", "float8_e4m3fn", f"{SCALED}float8_e4m3fn", "bfloat16", "float16", "float32",
)  # fmt: skip
FINEST = 2e-4  # of the weights, about the rounding of float16: nothing closer is told apart
SCALE_ERROR = 2.0**-7  # of a value: bfloat16 rounds the value and its row's factor by half of that in all
SLACK = 2.0  # times the expected rounding: few numbers estimate it, and fewer where few layers outweigh the rest
CLEAR = 4.0  # standard errors that an edit must stand out by to be called present


@dataclass(frozen=True)
class Identity:
    """What is kept of a base's weights to know them again.

    Attributes:
        hash: SHA-256 of paths and weights in half precision.
        dtype: The type of `FLOATS` that holds all weights as they are, whatever they are stored in; of several the one
            that rounds them most.
        rounding: Root mean square error of rounding weights like these to that type, relative to them.
        sketch: `NUMBERS` for each layer, in the order of the layers.
        size: What a sketch of these weights is long on average.
    """

    hash: str
    dtype: str
    rounding: float
    sketch: tuple[float, ...]
    size: float

    @property
    def record(self) -> dict[str, Any]:
        """What an adapter says of its base."""
        rounding, sketch = float(f"{self.rounding:.3g}"), [float(f"{x:.6g}") for x in self.sketch]
        return {"hash": self.hash, "dtype": self.dtype, "rounding": rounding, "sketch": sketch}

    def difference(self, recorded: Mapping[str, Any], change: Tensor | None = None) -> str | None:
        """Why these weights are not the recorded base, in words; None if they are, within rounding.

        Args:
            recorded: `record` of the base an adapter was made for; of older files the hash alone.
            change: What that adapter does to a sketch, to find it in the weights.
        """
        if recorded.get("hash") == self.hash:
            return None
        if not _is_sketch(recorded.get("sketch"), len(self.sketch)):
            return (
                f"the weights have the hash {self.hash[:12]} where {str(recorded.get('hash'))[:12]} is recorded, and "
                "nothing to compare them by but that: another base, one rounded to bfloat16 or less, or a fused LoRA"
            )
        there = torch.tensor(recorded["sketch"], dtype=torch.float64)
        gap = (torch.tensor(self.sketch, dtype=torch.float64) - there) / self.size
        noise = math.hypot(self.rounding, rounding_in(recorded), FINEST)
        if change is not None and change.any():
            edit = change.double() / self.size
            share = float(gap @ edit / (edit @ edit))
            error = noise / math.sqrt(len(gap)) / float(edit.norm())
            if share > max(0.2, CLEAR * error) and float((gap - share * edit).norm()) <= SLACK * noise:
                return f"this erasure is in these weights already, at strength {share:.2g}"
        if float(gap.norm()) <= SLACK * noise:
            return None
        return (
            f"the weights differ by about {float(gap.norm()):.2%} of their size, of which rounding explains "
            f"{SLACK * noise:.2%}: another base, a fine-tune, or one with a LoRA or another erasure fused in"
        )


def identity(weights: Mapping[str, Tensor]) -> Identity:
    """Of the layers that read the text, by path in the order that is hashed; (d_out, d_in) each, of any float type."""
    digest, sketch, square = hashlib.sha256(), [], 0.0
    holding = list(FLOATS)
    errors, part = dict.fromkeys(FLOATS, 0.0), 0.0
    for path, stored in weights.items():
        weight = stored.to("cpu", torch.float32)
        digest.update(path.encode())
        digest.update(weight.half().contiguous().numpy().tobytes())
        double = weight.double()
        square += float(double.square().sum())
        sketch += [float(left @ (double @ right)) for left, right in probes(path, *weight.shape)]
        holding = [name for name in holding if holds(name, weight)]
        rows = double[:: max(1, len(double) // 16)]  # rounding is much the same in all rows
        part += float(rows.square().sum())
        for name in holding:
            errors[name] += float(spacing(rows, name).square().sum()) / 12
    dtype = max(holding or ["float32"], key=errors.__getitem__)
    rounding = math.sqrt(errors[dtype] / part) if part else 0.0
    return Identity(digest.hexdigest(), dtype, rounding, tuple(sketch), math.sqrt(NUMBERS * square) or 1.0)


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of one base within rounding, neither base being at hand.

    How large the weights are is estimated from the sketch.
    """
    if one.get("hash") == other.get("hash"):
        return True
    sketch = one.get("sketch")
    if not isinstance(sketch, list) or not _is_sketch(sketch, len(sketch)):
        return False
    size = math.sqrt(sum(x * x for x in sketch)) or 1.0
    known = Identity(str(one.get("hash")), str(one.get("dtype")), rounding_in(one), tuple(sketch), size)
    return known.difference(other) is None


def sketch_of(changes: Mapping[str, LowRank], paths: Iterable[str]) -> Tensor:
    """What an edit adds to the sketch over the layers `paths`: (NUMBERS x layers,) float64."""
    numbers = []
    for path in paths:
        change = changes.get(path)
        if change is None:
            numbers += [0.0] * NUMBERS
            continue
        up, down = change.up.double(), change.down.double()
        numbers += [float((left @ up) @ (down @ right)) for left, right in probes(path, *change.shape)]
    return torch.tensor(numbers, dtype=torch.float64)


def probes(path: str, d_out: int, d_in: int) -> list[tuple[Tensor, Tensor]]:
    """The vectors u (d_out) and v (d_in) of a layer: the bits of a hash of its path, so the same everywhere."""
    return [(_signs(f"{path} {i} left", d_out), _signs(f"{path} {i} right", d_in)) for i in range(NUMBERS)]


def _signs(seed: str, length: int) -> Tensor:
    raw = hashlib.shake_128(seed.encode()).digest(length)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).remainder(2).double() * 2 - 1


def holds(name: str, weight: Tensor) -> bool:
    """Whether a float type holds all weights as they are; scaled, but for a factor of each row."""
    kind = getattr(torch, name.removeprefix(SCALED))
    if not name.startswith(SCALED):
        return torch.equal(weight.to(kind).to(torch.float32), weight)
    rows = weight[:: max(1, len(weight) // 16)]  # of other weights not even one row fits by chance
    largest = rows.abs().amax(1, keepdim=True)
    fits = largest[:, 0] == 0
    for step in range(4, 8) if "e5m2" in name else range(8, 16):  # what the row's largest value may be in the type
        top = step * 2.0 ** math.floor(math.log2(torch.finfo(kind).max / step))
        values = rows / largest.clamp_min(torch.finfo(torch.float32).tiny) * top
        apart = (values.to(kind).to(torch.float32) - values).abs()
        fits |= (apart <= SCALE_ERROR * values.abs()).all(1)
    return bool(fits.all())


def spacing(values: Tensor, name: str) -> Tensor:
    """The distance of neighbouring numbers of a float type around each value: the step of a rounding."""
    limits = torch.finfo(getattr(torch, name.removeprefix(SCALED)))
    power = torch.where(values == 0, 0.0, torch.exp2(torch.frexp(values).exponent.double() - 1))
    # What is scaled fills the type's range, so hardly a value is below its normal numbers.
    return limits.eps * (power if name.startswith(SCALED) else power.clamp_min(limits.smallest_normal))


def rounding_in(recorded: Mapping[str, Any]) -> float:
    """The rounding of a recorded base; of a record that does not say, that of its float type for usual weights."""
    told, kind = recorded.get("rounding"), recorded.get("dtype")
    if isinstance(told, (int, float)) and 0 <= told < 1:
        return float(told)
    if kind not in FLOATS or str(kind).startswith(SCALED):
        return 0.0
    # Mantissas are about even between 1 and 2, so numbers are about sqrt(7/3) times the power of two beneath them.
    return torch.finfo(getattr(torch, str(kind))).eps / math.sqrt(12 * 7 / 3)


def _is_sketch(numbers: object, length: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == length
        and all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers)
    )
