"""Second moments of embeddings: all that a closed form needs of its prompts, additive over prompts and concepts.

A joint edit of thousands of concepts is the sum of their moments, in the memory of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from concept_erase.errors import NumericalError
from concept_erase.model import Model
from concept_erase.streams import PADDING, Prompt, Tokens, condensed_columns


class Moments:
    """Of targets C and their anchors G, both (d, n): how they lie, and where they shall go.

    Few columns are held as they are, which makes a solve cheaper; where they would outgrow their moments, these are.

    Attributes:
        columns: C and `G - C`, each (d, k) float64 with k <= d, or None where only the moments are at hand.
        CC: `C C^T`, (d, d) float64.
        MC: `(G - C) C^T`, (d, d) float64.
        way: Sum over columns of the squared size of `G - C` as the denoiser sees it.
        n: Number of columns that all this stands for.
    """

    def __init__(
        self,
        way: float,
        n: int,
        *,
        columns: tuple[Tensor, Tensor] | None = None,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """
        Args:
            columns: As the attribute; or
            sums: CC and MC.
        """
        if columns is not None:
            C, M = columns
            if C.shape[1] > len(C):
                columns, sums = None, _sums(C, M)
        self.way, self.n, self.columns, self._given = way, n, columns, sums

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        if self._given is not None:
            return self._given
        assert self.columns is not None, "moments have one or the other"
        return _sums(self.columns[0], self.columns[1])

    @property
    def CC(self) -> Tensor:  # noqa: N802
        return self._both[0]

    @property
    def MC(self) -> Tensor:  # noqa: N802
        return self._both[1]

    def __add__(self, other: Moments) -> Moments:
        way, n = self.way + other.way, self.n + other.n
        if self.columns and other.columns and self.columns[0].shape[1] + other.columns[0].shape[1] <= len(self):
            C, M = (torch.cat(side, dim=1) for side in zip(self.columns, other.columns, strict=True))
            return Moments(way, n, columns=(C, M))
        return Moments(way, n, sums=(self.CC + other.CC, self.MC + other.MC))

    def __len__(self) -> int:
        """d."""
        return len(self.columns[0] if self.columns else self.CC)

    @staticmethod
    def of(C: Tensor, G: Tensor, gram: Tensor, n: int | None = None) -> Moments:
        """Moments of columns (d, k), which stand for n."""
        C, M = C.double(), G.double() - C.double()
        return Moments(float((M * (gram @ M)).sum()), C.shape[1] if n is None else n, columns=(C, M))

    def tensors(self) -> dict[str, Tensor]:
        """For a file; float64."""
        names = ("C", "M") if self.columns else ("CC", "MC")
        parts = dict(zip(names, self.columns or self._both, strict=True))
        return {**parts, **_scalars(way=self.way, n=self.n)}

    @staticmethod
    def read(tensors: Mapping[str, Tensor]) -> Moments:
        """What `tensors` returned, read back."""
        way, n = float(tensors["way"]), int(tensors["n"])
        if "C" in tensors:
            return Moments(way, n, columns=(tensors["C"], tensors["M"]))
        return Moments(way, n, sums=(tensors["CC"], tensors["MC"]))

    def within(self, down: Tensor) -> Tensor:
        """`down C C^T down^T` for down (r, d): (r, r)."""
        if self.columns:
            seen = down @ self.columns[0]
            return seen @ seen.T
        return down @ self.CC @ down.T

    def across(self, left: Tensor, down: Tensor) -> Tensor:
        """Diagonal of `left (G - C) C^T down^T` for left and down (r, d): (r,)."""
        if self.columns:
            C, M = self.columns
            return ((left @ M) * (down @ C)).sum(1)
        return ((left @ self.MC) * down).sum(1)

    def undone(self, up: Tensor, down: Tensor, gram: Tensor) -> float:
        """What remains of the way under the operator `up @ down`, relative to it; 0 where there is no way."""
        if self.way <= 0:
            return 0.0
        seen = up.T @ gram  # (r, d)
        moved = ((seen @ up) * self.within(down)).sum()
        return float((moved - 2 * self.across(seen, down).sum() + self.way).clamp_min(0) / self.way) ** 0.5


def _scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _sums(C: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    return C @ C.T, M @ C.T


class Kept:
    """Of what must stay, P (d, n).

    Attributes:
        PP: `P P^T`, (d, d) float64.
        n: Number of columns.
    """

    def __init__(self, PP: Tensor, n: int) -> None:
        self.PP, self.n = PP, n
        self._factors: dict[tuple[float, float], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """With the factor that a solve will make of it."""
        return 2 * self.PP.nbytes

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.PP + other.PP, self.n + other.n)

    def __sub__(self, other: Kept) -> Kept:
        return Kept(self.PP - other.PP, self.n - other.n)

    def times(self, weight: int) -> Kept:
        """Every column so many times."""
        return Kept(weight * self.PP, weight * self.n)

    @staticmethod
    def none(model: Model, n: int = 0) -> Kept:
        return Kept(torch.zeros_like(model.gram), n)

    @staticmethod
    def of(P: Tensor, n: int | None = None) -> Kept:
        """Moments of columns (d, k), which stand for n; k may be 0."""
        return Kept(P.double() @ P.double().T, P.shape[1] if n is None else n)

    def factor(self, ridge: float, scale: float = 1.0) -> Tensor:
        """Cholesky factor L (d, d) of `ridge I + scale P P^T`; computed once, as many concepts share what must stay.

        Raises:
            NumericalError: it cannot be factored, or is too ill-conditioned to be trusted.
        """
        if (ridge, scale) not in self._factors:
            system = ridge * torch.eye(len(self.PP), dtype=torch.float64) + scale * self.PP
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed or not factor.isfinite().all():
                raise NumericalError(UNFACTORED)
            diagonal = factor.diagonal()
            if (diagonal.max() / diagonal.min()).square() > 1e15:  # a lower bound on the condition number
                raise NumericalError(ILL_CONDITIONED)
            self._factors[ridge, scale] = factor
        return self._factors[ridge, scale]

    def within(self, down: Tensor) -> Tensor:
        """`down P P^T down^T` for down (r, d): (r, r)."""
        return down @ self.PP @ down.T

    def damage(self, up: Tensor, down: Tensor, gram: Tensor) -> float:
        """Root mean square size of the move under `up @ down`, as the denoiser sees it."""
        if self.n == 0:
            return 0.0
        return float(((up.T @ gram @ up) * self.within(down)).sum().clamp_min(0) / self.n) ** 0.5


UNFACTORED = "the UCE system cannot be factored; raise the ridge, or check the embeddings for NaN."
ILL_CONDITIONED = "the UCE system is ill-conditioned (above 1e15); raise the ridge."


def of_pairs(
    model: Model, pairs: Sequence[tuple[Prompt, Prompt]], tokens: Tokens, padding: int = PADDING, slots: bool = True
) -> Moments:
    """Moments of target prompts and the matching prompts of their anchor.

    Args:
        padding: How many positions behind EOS are computed; the last one stands for all that follow.
        slots: They are one name in many places, see `condensed_columns`.
    """
    C, G, n = condensed_columns(model, pairs, tokens, padding, slots)
    return Moments.of(C, G, model.gram, n)


def of_kept(model: Model, groups: Sequence[tuple[Prompt, ...]], tokens: Tokens, padding: int = PADDING) -> Kept:
    """Moments of groups of prompts that must stay. Each group, and the whole, is computed once for a model.

    BOS opens every prompt, so it is counted once per prompt.
    """

    def part(group: tuple[Prompt, ...]) -> Kept:
        return model.remembered((Kept, group, tokens, padding), lambda: _kept(model, group, tokens, padding))

    def whole() -> Kept:
        return sum(map(part, groups), beginnings(model, sum(map(len, groups))) + Kept.none(model, 1))

    return model.remembered((Kept, tuple(groups), tokens, padding), whole)


def beginnings(model: Model, prompts: int) -> Kept:
    """BOS of so many prompts, which counts as no column: its move is 0 or nobody's concern."""
    (bos,) = model.states((tuple(model.token_ids("")[:1]),), (1,))
    return Kept(prompts * bos.T.double() @ bos.double(), 0)


def _kept(model: Model, group: tuple[Prompt, ...], tokens: Tokens, padding: int) -> Kept:
    P, _, n = condensed_columns(model, [(p, p) for p in group], tokens, padding)
    return Kept.of(P, n)
