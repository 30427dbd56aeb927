"""Unified concept editing: closed form, on everything that reads the text stream (arXiv:2308.14761)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from concept_erase.concepts import Concept
from concept_erase.errors import InputError, NumericalError
from concept_erase.lowrank import LowRank
from concept_erase.methods import Edit, Run
from concept_erase.model import Model
from concept_erase.streams import Tokens, columns, fold, paired_columns, read, seen_size
from concept_erase.surroundings import concept_prompts, preserved_prompts

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def solve(
    C: Tensor,
    G: Tensor,
    P: Tensor,
    *,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    ridge: float = 0.5,
    rank: int | None = None,
) -> LowRank:
    """Operator on the text stream that moves each column of C onto the matching column of G.

    UCE, eq. 7 (arXiv:2308.14761), factored: the preserve terms cancel from the numerator, which leaves
    `D = a (G - C) C^T (lambda I + a C C^T + b P P^T)^-1`.

    Args:
        C: Target embeddings, (d, n), unnormalised.
        G: Anchor embeddings, (d, n).
        P: Preserved embeddings, (d, m); m may be 0.
        erase_scale: a > 0, the weight of the targets.
        preserve_scale: b >= 0, the weight of the preserved.
        ridge: lambda > 0; larger stays closer to the original weights.
        rank: Bound on the rank of D. Its outputs are projected onto the directions that carry most of the move of
            C, so a preserved embedding is never moved further than without the bound.
    Returns:
        Operator (d, d) of rank at most n, and at most `rank`.
    Raises:
        ValueError: column counts differ, or ridge or erase_scale is not positive.
        NumericalError: the system is too ill-conditioned to be trusted.
    """
    if C.shape != G.shape:
        raise ValueError(f"C {tuple(C.shape)} and G {tuple(G.shape)} must match column by column.")
    if ridge <= 0 or erase_scale <= 0:
        raise ValueError(f"ridge and erase_scale must be positive, got {ridge} and {erase_scale}.")
    C, G, P = C.double(), G.double(), P.double()
    d, n = C.shape
    system = ridge * torch.eye(d, dtype=torch.float64) + erase_scale * C @ C.T + preserve_scale * P @ P.T
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed or not factor.isfinite().all():
        raise NumericalError("the UCE system cannot be factored; raise the ridge, or check the embeddings for NaN.")
    diagonal = factor.diagonal()
    if (diagonal.max() / diagonal.min()).square() > 1e15:  # a lower bound on the condition number
        raise NumericalError("the UCE system is ill-conditioned (above 1e15); raise the ridge.")
    if rank is None and n <= d:
        return LowRank(erase_scale * (G - C), torch.cholesky_solve(C, factor).T)
    D = torch.cholesky_solve(erase_scale * C @ (G - C).T, factor).T
    moves = D @ C
    _, directions = torch.linalg.eigh(moves @ moves.T)
    kept = directions[:, -min(rank or d, n, d) :]
    return LowRank(kept.contiguous(), (kept.T @ D).contiguous())


def solve_strongest(
    C: Tensor,
    G: Tensor,
    P: Tensor,
    unseen: tuple[Tensor, Tensor, Tensor],
    gram: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    ridge: float = 1.0,
    rank: int | None = None,
) -> tuple[LowRank, dict[str, float]]:
    """`solve` with the erase_scale that leaves least undone and does least damage, on prompts it does not see.

    Both are sizes as the denoiser sees them (the metric of `gram`), relative to the way from the target to its anchor:
    `undone` of what remains of that way, `damage` of how far preserved embeddings move. The sum of their squares is
    least at the strength that is taken.

    Returns:
        The operator, and "strength", "undone" and "damage".
    """
    unseen_C, unseen_G, unseen_P = unseen
    way = seen_size(unseen_C - unseen_G, gram) or 1.0  # 0 where target and anchor are equal: nothing moves then
    found: list[tuple[float, LowRank, dict[str, float]]] = []
    for strength in strengths:
        D = solve(C, G, P, erase_scale=strength, ridge=ridge, rank=rank)
        undone = seen_size(unseen_C + D.up @ (D.down @ unseen_C) - unseen_G, gram) / way
        damage = seen_size(D.up @ (D.down @ unseen_P), gram) / way
        measures = {"strength": float(strength), "undone": undone, "damage": damage}
        found.append((undone**2 + damage**2, D, measures))
    _, operator, measures = min(found, key=lambda item: item[0])
    return operator, measures


@dataclass(frozen=True)
class UCE:
    """Closed-form edit of the cross-attention projections."""

    name: ClassVar[str] = "uce"
    summary: ClassVar[str] = "closed form on the cross-attention keys and values, solved once for all layers"
    paper: ClassVar[str] = "arXiv:2308.14761"

    tokens: Tokens = Tokens.ALL
    """which positions move: the concept's last token, from it to the end, or all of its tokens and all that follow"""
    strength: float | None = None
    """weight of the targets against the preserved; chosen from closed-form quantities when not given"""
    ridge: float = 1.0
    """pull towards the original weights"""
    rank: int | None = 8
    """bound on the rank per concept; none keeps all directions"""
    contexts: int = 24
    """how many contexts a concept is placed in"""
    preserve_prompts: int = 400
    """how many prompts of neighbours hold the rest in place"""
    bare: bool = False
    """the published form: the bare name, without templates and contexts, and only what is listed to preserve"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", Tokens(self.tokens))
        if self.ridge <= 0 or (self.strength is not None and self.strength <= 0):
            raise ValueError(f"ridge and strength must be positive, got {self.ridge} and {self.strength}")
        if self.contexts < 1 or self.preserve_prompts < 0 or (self.rank is not None and self.rank < 1):
            raise ValueError("contexts and rank must be at least 1, preserve_prompts at least 0")

    def edit(self, model: Model, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Move every concept onto its anchor on the text stream, its neighbours held in place."""
        C, G, P = self._columns(model, concepts)
        unseen = (C, G, P) if self.bare else self._columns(model, concepts, part=1)
        rank = None if self.rank is None else min(self.rank * len(concepts), C.shape[0])
        strengths = STRENGTHS if self.strength is None else (self.strength,)
        operator, measures = solve_strongest(
            C, G, P, unseen, model.gram, strengths=strengths, ridge=self.ridge, rank=rank
        )
        undone, damage = measures["undone"], measures["damage"]
        where = "the prompts it was fitted on" if self.bare else "prompts the solve did not see"
        how = "given" if self.strength is not None else f"best of {len(STRENGTHS)}"
        notes = [
            f"strength {measures['strength']:g}: {how}; on {where} {undone:.0%} of the way is left, "
            f"and the rest moves by {damage:.0%} of it."
        ]
        if damage > 0.25:
            notes.append(
                "warning: what shall stay moves by more than a quarter of the way; preserve it, or lower strength."
            )
        if undone > 0.5:
            notes.append(
                "warning: more than half of the way is left undone; choose a nearer anchor or a higher strength."
            )
        return Edit(fold(model, operator), tuple(notes), measures)

    def _columns(self, model: Model, concepts: Sequence[Concept], part: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """C, G and P; part 1 has other contexts than part 0."""
        if self.bare:
            pairs = [(read(model, "{target}", c.target), read(model, "{target}", c.anchor or "")) for c in concepts]
            for concept, (target, anchor) in zip(concepts, pairs, strict=True):
                if target.ids == anchor.ids:
                    told = f"{concept.target!r} and its anchor {concept.anchor!r} are the same tokens"
                    raise InputError(f"{told}; name another anchor.")
            names = dict.fromkeys(p for c in concepts for p in c.preserve)
            return (
                *paired_columns(model, pairs, self.tokens),
                columns(model, [read(model, "{target}", p) for p in names], self.tokens),
            )
        pairs = [pair for c in concepts for pair in concept_prompts(model, c, self.contexts, part)]
        kept = preserved_prompts(model, concepts, self.preserve_prompts, part)
        # BOS opens every prompt, so it counts once per kept prompt.
        (bos,) = model.encode([kept[0].ids[:1]], [1])
        P = torch.cat([columns(model, kept, self.tokens), bos.T.double() * len(kept) ** 0.5], dim=1)
        return (*paired_columns(model, pairs, self.tokens), P)
