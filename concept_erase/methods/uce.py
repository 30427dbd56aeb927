"""Unified concept editing: closed form, on everything that reads the text stream (arXiv:2308.14761)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from concept_erase.concepts import Concept
from concept_erase.errors import InputError, NumericalError
from concept_erase.lowrank import LowRank
from concept_erase.methods import Edit, Run
from concept_erase.model import Model
from concept_erase.moments import Kept, Moments, of_kept, of_pairs
from concept_erase.names import distinct, without
from concept_erase.streams import Tokens, columns, fold, read
from concept_erase.surroundings import concept_prompts, preserved_groups

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
COLLATERAL = 4.0  # weight of what is done to the rest against what is left undone


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
    C, G = C.double(), G.double()
    factor = _factored(C @ C.T, Kept.of(P), erase_scale, preserve_scale, ridge)
    if rank is None and C.shape[1] <= C.shape[0]:
        return LowRank(erase_scale * (G - C), torch.cholesky_solve(C, factor).T)
    D = torch.cholesky_solve(erase_scale * C @ (G - C).T, factor).T
    return bounded(D, C @ C.T, min(rank or len(C), C.shape[1]))


def _factored(CC: Tensor, kept: Kept, erase_scale: float, preserve_scale: float, ridge: float) -> Tensor:
    """Cholesky factor of `lambda I + a C C^T + b P P^T`."""
    if ridge <= 0 or erase_scale <= 0:
        raise ValueError(f"ridge and erase_scale must be positive, got {ridge} and {erase_scale}.")
    system = ridge * torch.eye(len(CC), dtype=torch.float64) + erase_scale * CC + preserve_scale * kept.PP
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed or not factor.isfinite().all():
        raise NumericalError("the UCE system cannot be factored; raise the ridge, or check the embeddings for NaN.")
    diagonal = factor.diagonal()
    if (diagonal.max() / diagonal.min()).square() > 1e15:  # a lower bound on the condition number
        raise NumericalError("the UCE system is ill-conditioned (above 1e15); raise the ridge.")
    return factor


def bounded(D: Tensor, CC: Tensor, rank: int) -> LowRank:
    """D (d, d) with its outputs projected onto the `rank` directions that carry most of the move `D C` of C (d, n)."""
    _, directions = torch.linalg.eigh(D @ CC @ D.T)
    kept = directions[:, -min(rank, len(D)) :]
    return LowRank(kept.contiguous(), (kept.T @ D).contiguous())


def solve_strongest(
    fit: Moments,
    kept: Kept,
    unseen: Moments,
    unseen_kept: Kept,
    gram: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    ridge: float = 1.0,
    rank: int | None = None,
) -> tuple[LowRank, dict[str, float]]:
    """`solve` with the erase_scale that leaves least undone and does least damage, on prompts it does not see.

    Both are sizes as the denoiser sees them (the metric of `gram`), relative to the way from the target to its anchor:
    `undone` of what remains of that way, `damage` of how far preserved embeddings move. The sum of their squares is
    least, the second weighted by `COLLATERAL`, at the strength that is taken.
    Moments stand for the columns of `solve`: nothing else of them is needed.

    Returns:
        The operator, and "strength", "undone" and "damage".
    """
    way = (unseen.way / max(1, unseen.n)) ** 0.5 or 1.0  # 0 where target and anchor are equal: nothing moves then
    found: list[tuple[float, LowRank, dict[str, float]]] = []
    for strength in strengths:
        factor = _factored(fit.CC, kept, strength, 1.0, ridge)
        D = torch.cholesky_solve(strength * fit.MC.T, factor).T
        operator = bounded(D, fit.CC, min(rank or len(D), fit.n))
        undone = unseen.undone(operator.up, operator.down, gram)
        damage = unseen_kept.damage(operator.up, operator.down, gram) / way
        measures = {"strength": float(strength), "undone": undone, "damage": damage}
        found.append((cost(measures), operator, measures))
    _, operator, measures = min(found, key=lambda item: item[0])
    return operator, measures


def cost(measures: Mapping[str, float]) -> float:
    """What strengths and anchors are chosen by, from "undone" and "damage": the less the better."""
    return measures["undone"] ** 2 + COLLATERAL * measures["damage"] ** 2


@dataclass(frozen=True, eq=False)
class Gathered:
    """What `UCE` needs of a concept; adds up over concepts.

    Attributes:
        fit: Moments of the prompts that the edit is fitted on.
        unseen: Moments of others that check it.
    """

    fit: Moments
    unseen: Moments

    def __add__(self, other: Gathered) -> Gathered:
        return Gathered(self.fit + other.fit, self.unseen + other.unseen)

    def tensors(self) -> dict[str, Tensor]:
        """For a file; float64."""
        return {
            f"{part}.{name}": torch.as_tensor(value, dtype=torch.float64)
            for part, moments in (("fit", self.fit), ("unseen", self.unseen))
            for name, value in vars(moments).items()
        }


@dataclass(frozen=True)
class UCE:
    """Closed-form edit of the cross-attention projections."""

    name: ClassVar[str] = "uce"
    summary: ClassVar[str] = "closed form on the cross-attention keys and values, solved once for all layers"
    paper: ClassVar[str] = "arXiv:2308.14761"
    edits: ClassVar[str] = "denoiser"

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
        gathered = self.gather(model, concepts[0])
        for concept in concepts[1:]:
            gathered = gathered + self.gather(model, concept)
        return self.finish(model, concepts, gathered)

    def gather(self, model: Model, concept: Concept) -> Gathered:
        """Of one concept all that the solve needs; its sum over concepts is what a joint solve needs."""
        if self.bare:
            target, anchor = read(model, "{target}", concept.target), read(model, "{target}", concept.anchor or "")
            if target.ids == anchor.ids:
                told = f"{concept.target!r} and its anchor {concept.anchor!r} are the same tokens"
                raise InputError(f"{told}; name another anchor.")
            fit = of_pairs(model, [(target, anchor)], self.tokens)
        else:
            fit = of_pairs(model, concept_prompts(model, concept, self.contexts), self.tokens)
        if not self.checked:
            return Gathered(fit, fit)
        return Gathered(fit, of_pairs(model, concept_prompts(model, concept, self.contexts, part=1), self.tokens))

    def regathered(self, tensors: dict[str, Tensor]) -> Gathered:
        """What `Gathered.tensors` returned, read back."""
        fit, unseen = (
            Moments(
                tensors[f"{part}.CC"], tensors[f"{part}.MC"], float(tensors[f"{part}.way"]), int(tensors[f"{part}.n"])
            )
            for part in ("fit", "unseen")
        )
        return Gathered(fit, unseen)

    @property
    def checked(self) -> bool:
        """Whether the strength is chosen, for which prompts are needed that the solve does not see."""
        return self.strength is None and not self.bare

    def solved(self, model: Model, concepts: Sequence[Concept], gathered: Gathered) -> tuple[LowRank, dict[str, float]]:
        """The operator on the text stream, (d, d), and its measures."""
        kept = self._kept(model, concepts)
        unseen_kept = self._kept(model, concepts, part=1) if self.checked else kept
        rank = None if self.rank is None else min(self.rank * len(concepts), len(model.gram))
        strengths = STRENGTHS if self.strength is None else (self.strength,)
        return solve_strongest(
            gathered.fit, kept, gathered.unseen, unseen_kept, model.gram,
            strengths=strengths, ridge=self.ridge, rank=rank,
        )  # fmt: skip

    def finish(self, model: Model, concepts: Sequence[Concept], gathered: Gathered) -> Edit:
        """The edit of all concepts from their gathered sum."""
        operator, measures = self.solved(model, concepts, gathered)
        undone, damage = measures["undone"], measures["damage"]
        where = "prompts the solve did not see" if self.checked else "the prompts it was fitted on"
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
        return Edit(fold(model, operator), tuple(notes), measures, operator)

    def _kept(self, model: Model, concepts: Sequence[Concept], part: int = 0) -> Kept:
        """Of what must stay; part 1 has other contexts than part 0."""
        if not self.bare:
            groups = preserved_groups(model, concepts, self.preserve_prompts, part)
            return of_kept(model, groups, self.tokens)
        names = distinct(without((p for c in concepts for p in c.preserve), *(c.target for c in concepts)))
        return Kept.of(columns(model, [read(model, "{target}", p) for p in names], self.tokens))
