"""Second moments of embeddings: all that a closed form needs of its prompts, additive over prompts and concepts.

A joint edit of thousands of concepts is the sum of their moments, in the memory of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from concept_erase.model import Model
from concept_erase.streams import Prompt, Tokens, paired_columns


@dataclass(frozen=True, eq=False)
class Moments:
    """Of targets C and their anchors G, both (d, n): how they lie, and where they shall go.

    Attributes:
        CC: `C C^T`, (d, d) float64.
        MC: `(G - C) C^T`, (d, d) float64.
        way: Sum over columns of the squared size of `G - C` as the denoiser sees it.
        n: Number of columns.
    """

    CC: Tensor
    MC: Tensor
    way: float
    n: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.CC + other.CC, self.MC + other.MC, self.way + other.way, self.n + other.n)

    @staticmethod
    def of(C: Tensor, G: Tensor, gram: Tensor) -> Moments:
        """Moments of columns (d, n)."""
        C, M = C.double(), G.double() - C.double()
        return Moments(C @ C.T, M @ C.T, float((M * (gram @ M)).sum()), C.shape[1])

    def undone(self, up: Tensor, down: Tensor, gram: Tensor) -> float:
        """What remains of the way under the operator `up @ down`, relative to it; 0 where there is no way."""
        if self.way <= 0:
            return 0.0
        seen = up.T @ gram  # (r, d)
        moved = ((seen @ up) * (down @ self.CC @ down.T)).sum()
        towards = (seen * (down @ self.MC.T)).sum()
        return float((moved - 2 * towards + self.way).clamp_min(0) / self.way) ** 0.5


@dataclass(frozen=True, eq=False)
class Kept:
    """Of what must stay, P (d, n).

    Attributes:
        PP: `P P^T`, (d, d) float64.
        n: Number of columns.
    """

    PP: Tensor
    n: int

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.PP + other.PP, self.n + other.n)

    @staticmethod
    def of(P: Tensor) -> Kept:
        """Moments of columns (d, n); n may be 0."""
        return Kept(P.double() @ P.double().T, P.shape[1])

    def damage(self, up: Tensor, down: Tensor, gram: Tensor) -> float:
        """Root mean square size of the move under `up @ down`, as the denoiser sees it."""
        if self.n == 0:
            return 0.0
        return float(((up.T @ gram @ up) * (down @ self.PP @ down.T)).sum().clamp_min(0) / self.n) ** 0.5


def of_pairs(model: Model, pairs: Sequence[tuple[Prompt, Prompt]], tokens: Tokens) -> Moments:
    """Moments of target prompts and the matching prompts of their anchor."""
    return Moments.of(*paired_columns(model, pairs, tokens), model.gram)


def of_kept(model: Model, groups: Sequence[tuple[Prompt, ...]], tokens: Tokens) -> Kept:
    """Moments of groups of prompts that must stay. Each group is computed once for a model.

    BOS opens every prompt, so it is counted once per prompt.
    """
    parts = [model.remembered((Kept, group, tokens), lambda g=group: _kept(model, g, tokens)) for group in groups]  # type: ignore[misc]
    prompts = sum(len(group) for group in groups)
    (bos,) = model.encode([groups[0][0].ids[:1]], [1])
    return sum(parts, Kept(prompts * bos.T.double() @ bos.double(), 1))


def _kept(model: Model, group: tuple[Prompt, ...], tokens: Tokens) -> Kept:
    P, _ = paired_columns(model, [(p, p) for p in group], tokens)
    return Kept.of(P)
