"""The noun that crosses every wall: a low-rank change of a linear layer, `delta_W = up @ down`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from concept_erase.errors import NumericalError

_APART = 1e-10  # squared singular values below this share of the largest are too near to rounding
_UPRIGHT = 0.01  # cosine between rows that are orthogonal; half precision leaves a tenth of it


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change `up @ down` of a (d_out, d_in) weight.

    Attributes:
        up: (d_out, r).
        down: (r, d_in).
    """

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise ValueError(
                f"up {tuple(self.up.shape)} and down {tuple(self.down.shape)} do not fit; need (d_out, r), (r, d_in)."
            )

    @property
    def rank(self) -> int:
        """Number of columns of `up`: a bound on the matrix rank."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the layer it changes."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        """The change as a dense (d_out, d_in) matrix."""
        return self.up @ self.down

    def to(self, dtype: torch.dtype) -> LowRank:
        return LowRank(self.up.to(dtype), self.down.to(dtype))

    def scaled(self, scale: float) -> LowRank:
        """`scale` times the change."""
        return LowRank(self.up * scale, self.down)

    def folded_into(self, weight: Tensor) -> LowRank:
        """`W (I + D) = W + (W up) down`: this operator D on a layer's input, as a change of its weight, exactly.

        Args:
            weight: (d_out, d), where this operator is (d, d).
        """
        return LowRank(weight.to(self.up.dtype) @ self.up, self.down)

    def padded(self, rank: int) -> LowRank:
        """The same change with zero rows and columns up to `rank`: some readers want one rank per file."""
        extra = rank - self.rank
        if extra < 0:
            raise ValueError(f"cannot pad rank {self.rank} down to {rank}; compress it instead.")
        if extra == 0:
            return self
        up = torch.cat([self.up, self.up.new_zeros(self.up.shape[0], extra)], dim=1)
        return LowRank(up, torch.cat([self.down, self.down.new_zeros(extra, self.down.shape[1])]))

    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thin SVD of the product without ever forming it; float64."""
        q_up, r_up = torch.linalg.qr(self.up.double())
        q_down, r_down = torch.linalg.qr(self.down.double().T)
        u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
        return q_up @ u, s, vh @ q_down.T

    def balanced(self) -> LowRank:
        """The same change as `U sqrt(S)` and `sqrt(S) V^T`: factors of equal size, kind to half precision."""
        u, s, vh = self._svd()
        root = s.sqrt()
        return LowRank((u * root).to(self.up.dtype), (root[:, None] * vh).to(self.down.dtype))

    @property
    def even(self) -> bool:
        """Whether the factors are of equal size already, column by column, as `balanced` leaves them."""
        sizes = self.up.double().norm(dim=0), self.down.double().norm(dim=1)
        equal = torch.allclose(*sizes, rtol=1e-5, atol=1e-5 * float(sizes[0].max()))
        return equal and (self.rank <= min(self.shape) or upright(self.down))

    def scaled_even(self) -> LowRank:
        """The same change, each column and its row brought to equal size: balanced, if the rows are `upright`."""
        sizes = self.up.double().norm(dim=0), self.down.double().norm(dim=1)
        there = (sizes[0] > 0) & (sizes[1] > 0)  # else the two make nothing
        up, down = (torch.where(there, (sizes[1 - i] / sizes[i]).sqrt(), 0.0).to(self.up.dtype) for i in (0, 1))
        return LowRank(self.up * up, self.down * down[:, None])

    def compressed(self, rank: int) -> tuple[LowRank, float]:
        """The nearest change of at most `rank`, and the share of the squared Frobenius norm that is lost.

        Eckart-Young: truncated SVD. 0 <= lost <= 1; a zero change loses 0.
        """
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}.")
        u, s, vh = self._svd()
        total = s.square().sum()
        lost = (s[rank:].square().sum() / total).item() if total > 0 else 0.0
        root = s[:rank].sqrt()
        return LowRank((u[:, :rank] * root).to(self.up.dtype), (root[:, None] * vh[:rank]).to(self.down.dtype)), lost

    @staticmethod
    def zeros(d_out: int, d_in: int, rank: int = 1, dtype: torch.dtype = torch.float64) -> LowRank:
        return LowRank(torch.zeros(d_out, rank, dtype=dtype), torch.zeros(rank, d_in, dtype=dtype))


def balanced(changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """`LowRank.balanced` of all that are not `even`; those of one shape together, by their Gram matrices.

    Where the rows are `upright`, nothing cancels in the sum over columns, and their sizes are all that there is to do.
    With `A = up^T up = L L^T` and `L^T (down down^T) L = Q S^2 Q^T` the factors become `up L^-T Q sqrt(S)` and
    `sqrt(S)^-1 Q^T L^T down`, whose Gram matrices are S. Where the squares are too far apart for that, an SVD does it.
    """
    found = {path: change for path, change in changes.items() if change.even}
    standing: dict[int, bool] = {}  # an operator's changes share their rows
    for path, change in changes.items():
        if path in found:
            continue
        if id(change.down) not in standing:
            standing[id(change.down)] = upright(change.down)
        if standing[id(change.down)]:
            found[path] = change.scaled_even()
    groups: dict[tuple[tuple[int, int], int, torch.dtype], list[str]] = {}
    for path, change in changes.items():
        if path not in found:
            groups.setdefault((change.shape, change.rank, change.up.dtype), []).append(path)
    for (shape, rank, _), paths in groups.items():
        together = _balanced([changes[path] for path in paths]) if rank <= min(shape) else None
        one_by_one = together or [changes[path].balanced() for path in paths]
        found |= dict(zip(paths, one_by_one, strict=True))
    return {path: found[path] for path in changes}


def upright(rows: Tensor) -> bool:
    """Whether all rows of (r, d) are orthogonal to each other, within what half precision leaves; some may be 0."""
    rows = torch.nn.functional.normalize(rows.float(), dim=1)
    return float((rows @ rows.T).fill_diagonal_(0).abs().max()) < _UPRIGHT


def _balanced(changes: Sequence[LowRank]) -> list[LowRank] | None:
    """Of changes of one shape and rank; None where an SVD is needed."""
    up = torch.stack([change.up for change in changes]).double()
    down = torch.stack([change.down for change in changes]).double()
    L, failed = torch.linalg.cholesky_ex(up.mT @ up)
    squares, Q = torch.linalg.eigh(L.mT @ (down @ down.mT) @ L)
    diagonal = L.diagonal(dim1=1, dim2=2)
    least = torch.cat([(diagonal.amin(1) / diagonal.amax(1)).square(), squares.amin(1) / squares.amax(1)])
    if failed.any() or not bool((least > _APART).all()):  # NaN is not larger either
        return None
    roots = squares.flip(1).pow(0.25)  # of the singular values, the largest first
    Q = Q.flip(2)
    ups = up @ torch.linalg.solve_triangular(L.mT, Q * roots[:, None, :], upper=True)
    downs = (Q / roots[:, None, :]).mT @ (L.mT @ down)
    dtype = changes[0].up.dtype
    return [LowRank(u.to(dtype), d.to(dtype)) for u, d in zip(ups, downs, strict=True)]


def concatenate(changes: Sequence[LowRank]) -> LowRank:
    """The sum of changes, by concatenating ranks; summing the factors would add cross-terms."""
    if len({c.shape for c in changes}) != 1:
        raise ValueError(f"changes of different layers cannot be added: {sorted({c.shape for c in changes})}.")
    return LowRank(torch.cat([c.up for c in changes], dim=1), torch.cat([c.down for c in changes]))


def compose(edits: Sequence[dict[str, LowRank]]) -> dict[str, LowRank]:
    """Several edits at once: per layer, the concatenated ranks of all that change it."""
    paths = sorted({path for edit in edits for path in edit})
    return {path: concatenate([edit[path] for edit in edits if path in edit]) for path in paths}


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf: one pass over it, where `isfinite` takes several."""
    return tensor.numel() == 0 or all(map(math.isfinite, torch.stack(torch.aminmax(tensor)).tolist()))


def all_finite(change: LowRank) -> bool:
    """Whether both factors are."""
    return finite(change.up) and finite(change.down)


def check_finite(edit: dict[str, LowRank]) -> None:
    """Raises NumericalError naming the first layer whose change holds NaN or Inf."""
    for path, change in edit.items():
        if not all_finite(change):
            raise NumericalError(f"the change of {path} holds NaN or Inf; raise the ridge or lower the learning rate.")
