"""Unified concept editing: closed form, on everything that reads the text stream (arXiv:2308.14761)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from concept_erase.concepts import Concept
from concept_erase.errors import InputError, NumericalError
from concept_erase.lowrank import LowRank
from concept_erase.methods import Edit, Run
from concept_erase.model import Model
from concept_erase.moments import ILL_CONDITIONED, UNFACTORED, Kept, Moments, of_pairs
from concept_erase.names import distinct, without
from concept_erase.retained import kept
from concept_erase.streams import Tokens, columns, fold, read
from concept_erase.surroundings import concept_prompts

if TYPE_CHECKING:
    from concept_erase.statistics import Estimate

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
CHECKED = 8  # prompts by which the strength is chosen: it is one number
COLLATERAL = 4.0  # weight of what is done to the rest against what is left undone
SELDOM = 10.0  # per cent of pictures that may still be taken for the target when the strength is chosen
STRONGER = 3  # strengths that are looked at beside the first


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
    fit = Moments.of(C, G, torch.zeros(len(C), len(C), dtype=torch.float64))
    return _spectrum(fit, Kept.of(P).factor(ridge, preserve_scale)).operator(erase_scale, rank)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The solutions of all strengths a: `D(a) = Y diag(a / (1 + a S)) T`.

    With `K = ridge I + P P^T` the solution is `a M C^T (K + a C C^T)^-1`, M = G - C. Of few columns k = n, and
    `C^T K^-1 C = V S V^T` gives `Y = M V` and `T = V^T C^T K^-1`. Of their moments k = d, and with `K = L L^T`
    `L^-1 C C^T L^-T = U S U^T` gives `T = U^T L^-1` and `Y = M C^T T^T`.

    Attributes:
        Y, T: (d, k) and (k, d).
        S: (k,) not negative.
        energy: (k,) the diagonal of `T C C^T T^T`, which is diagonal.
    """

    Y: Tensor
    T: Tensor
    S: Tensor
    energy: Tensor

    def weights(self, strength: float) -> Tensor:
        """a / (1 + a S), (k,).

        Raises:
            NumericalError: the system is too ill-conditioned to be trusted.
        """
        if 1 + strength * float(self.S.max()) > 1e15:
            raise NumericalError(ILL_CONDITIONED)
        return strength / (1 + strength * self.S)

    def operator(self, strength: float, rank: int | None) -> LowRank:
        """D(a), balanced, its outputs projected onto the `rank` directions that carry most of the move `D C` of C."""
        weights = self.weights(strength)
        down = weights[:, None] * self.T
        if rank is None or rank >= len(down):
            return LowRank(self.Y, down).balanced()
        moved = self.Y * (weights * self.energy.sqrt())  # moved moved^T = D C C^T D^T
        if len(weights) < len(self.Y):  # its directions from the smaller of its two products
            _, inner = torch.linalg.eigh(moved.T @ moved)
            kept = torch.linalg.qr(moved @ inner[:, -rank:]).Q
        else:
            kept = torch.linalg.eigh(moved @ moved.T)[1][:, -rank:].contiguous()
        return LowRank(kept, (kept.T @ self.Y) @ down).balanced()


def _spectrum(fit: Moments, factor: Tensor) -> Spectrum:
    """
    Args:
        factor: L (d, d), lower, with `L L^T = K`.
    Raises:
        NumericalError: the embeddings are not finite.
    """
    if fit.columns:
        C, M = fit.columns
        seen = torch.linalg.solve_triangular(factor, C, upper=False)
        S, V = _eigh(seen.T @ seen)
        T = torch.linalg.solve_triangular(factor.T, seen @ V, upper=True).T
        return Spectrum(M @ V, T, S, S.square())
    half = torch.linalg.solve_triangular(factor, fit.CC, upper=False)
    S, U = _eigh(torch.linalg.solve_triangular(factor, half.T, upper=False))
    T = torch.linalg.solve_triangular(factor.T, U, upper=True).T
    return Spectrum(fit.MC @ T.T, T, S, S)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and eigenvectors of a positive semidefinite matrix."""
    if not matrix.isfinite().all():
        raise NumericalError(UNFACTORED)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.clamp_min(0), vectors


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
    least, the second weighted by `COLLATERAL`, at the strength that is taken, before the bound on the rank. Moments
    stand for the columns of `solve`: nothing else of them is needed.

    Returns:
        The operator, and its "strength", "undone" and "damage".
    """
    found = _spectrum(fit, kept.factor(ridge))
    strength = strengths[0] if len(strengths) == 1 else _strongest(found, unseen, unseen_kept, gram, strengths)
    operator = found.operator(strength, rank)
    way = (unseen.way / max(1, unseen.n)) ** 0.5 or 1.0  # 0 where target and anchor are equal: nothing moves then
    undone = unseen.undone(operator.up, operator.down, gram)
    damage = unseen_kept.damage(operator.up, operator.down, gram) / way
    return operator, {"strength": float(strength), "undone": undone, "damage": damage}


def _strongest(found: Spectrum, unseen: Moments, kept: Kept, gram: Tensor, strengths: Sequence[float]) -> float:
    """The strength of least `cost`; undone and damage are quadratic forms of its weights."""
    if unseen.way <= 0:  # nothing moves at any
        return strengths[0]
    seen = found.Y.T @ gram
    sizes = seen @ found.Y  # (k, k)
    share = (
        COLLATERAL * unseen.n / (unseen.way * max(1, kept.n))
    )  # makes a mean over what is kept relative to the mean way
    square = sizes * (unseen.within(found.T) / unseen.way + kept.within(found.T) * share)
    towards = unseen.across(seen, found.T) / unseen.way

    def costs(strength: float) -> float:
        weights = found.weights(strength)
        return float(weights @ square @ weights - 2 * (weights @ towards))

    return min(strengths, key=costs)


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
        fit = self.fit + other.fit
        alike = self.unseen is self.fit and other.unseen is other.fit
        return Gathered(fit, fit if alike else self.unseen + other.unseen)

    def tensors(self) -> dict[str, Tensor]:
        """For a file; float64."""
        parts = {"fit": self.fit} if self.unseen is self.fit else {"fit": self.fit, "unseen": self.unseen}
        return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.tensors().items()}


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
    """how many contexts a concept is placed in, those without any among them"""
    preserve_prompts: int = 400
    """how many prompts of neighbours hold the rest in place"""
    padding: int = 4
    """how many positions behind a prompt's end are computed; the last one stands for all that follow"""
    bare: bool = False
    """the published form: the bare name, without templates and contexts, and only what is listed to preserve"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", Tokens(self.tokens))
        if self.ridge <= 0 or (self.strength is not None and self.strength <= 0):
            raise ValueError(f"ridge and strength must be positive, got {self.ridge} and {self.strength}")
        least = self.contexts, self.padding, 1 if self.rank is None else self.rank
        if min(least) < 1 or self.preserve_prompts < 0:
            raise ValueError("contexts, padding and rank must be at least 1, preserve_prompts at least 0")

    def edit(self, model: Model, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Move every concept onto its anchor on the text stream, its neighbours held in place."""
        if self.bare:  # few tokens each: what all names have in common is encoded once
            return self.finish(model, concepts, self._bare(model, concepts), run)
        gathered = self.gather(model, concepts[0])
        for concept in concepts[1:]:
            gathered = gathered + self.gather(model, concept)
        return self.finish(model, concepts, gathered, run)

    def ahead(self, model: Model, concepts: Sequence[Concept]) -> dict[tuple[int, ...], Tensor]:
        """Of bare names, which are a handful of tokens each, the states in one call; names that do not fit are left
        out."""
        if not self.bare:
            return {}
        wanted: dict[tuple[int, ...], int] = {}
        for name in distinct(name for c in concepts for name in (c.target, c.anchor) if name):
            with suppress(InputError):
                prompt = read(model, "{target}", name)
                wanted[prompt.ids] = min(prompt.end + 1 + self.padding, model.length)
        return dict(zip(wanted, model.encode(tuple(wanted), tuple(wanted.values())), strict=True)) if wanted else {}

    def _bare(self, model: Model, concepts: Sequence[Concept]) -> Gathered:
        pairs = []
        for concept in concepts:
            target, anchor = read(model, "{target}", concept.target), read(model, "{target}", concept.anchor or "")
            if target.ids == anchor.ids:
                told = f"{concept.target!r} and its anchor {concept.anchor!r} are the same tokens"
                raise InputError(f"{told}; name another anchor.")
            pairs.append((target, anchor))
        fit = of_pairs(model, pairs, self.tokens, self.padding, slots=False)
        return Gathered(fit, fit)

    def gather(self, model: Model, concept: Concept) -> Gathered:
        """Of one concept all that the solve needs; its sum over concepts is what a joint solve needs."""
        if self.bare:
            return self._bare(model, [concept])
        fit = of_pairs(model, concept_prompts(model, concept, self.contexts), self.tokens, self.padding)
        if not self.checked:
            return Gathered(fit, fit)
        prompts = concept_prompts(model, concept, CHECKED, part=1)
        return Gathered(fit, of_pairs(model, prompts, self.tokens, self.padding))

    def regathered(self, tensors: dict[str, Tensor]) -> Gathered:
        """What `Gathered.tensors` returned, read back."""
        parts: dict[str, dict[str, Tensor]] = {"fit": {}, "unseen": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        fit = Moments.read(parts["fit"])
        return Gathered(fit, Moments.read(parts["unseen"]) if parts["unseen"] else fit)

    @property
    def checked(self) -> bool:
        """Whether the strength is chosen, for which prompts are needed that the solve does not see."""
        return self.strength is None and not self.bare

    def solved(
        self, model: Model, concepts: Sequence[Concept], gathered: Gathered, strength: float | None = None
    ) -> tuple[LowRank, dict[str, float]]:
        """The operator on the text stream, (d, d), and its measures.

        Args:
            strength: This one, whatever is set.
        """
        kept = self._kept(model, concepts)
        unseen_kept = self._kept(model, concepts, part=1) if self.checked else kept
        rank = None if self.rank is None else min(self.rank * len(concepts), len(model.gram))
        given = self.strength if strength is None else strength
        strengths = STRENGTHS if given is None else (given,)
        return solve_strongest(
            gathered.fit, kept, gathered.unseen, unseen_kept, model.gram,
            strengths=strengths, ridge=self.ridge, rank=rank,
        )  # fmt: skip

    def finish(self, model: Model, concepts: Sequence[Concept], gathered: Gathered, run: Run = Run()) -> Edit:
        """The edit of all concepts from their gathered sum."""
        look = run.still if self.strength is None else None
        operator, measures, changes, how = self._strong_enough(model, concepts, gathered, look)
        undone, damage = measures["undone"], measures["damage"]
        where = "prompts the solve did not see" if self.checked else "the prompts it was fitted on"
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
        return Edit(changes, tuple(notes), measures, operator)

    def _strong_enough(
        self,
        model: Model,
        concepts: Sequence[Concept],
        gathered: Gathered,
        look: Callable[[dict[str, LowRank]], Estimate | None] | None,
    ) -> tuple[LowRank, dict[str, float], dict[str, LowRank], str]:
        """Operator, measures, changes, and in words how the strength was found.

        It is the one of least cost, if pictures under it are seldom taken for the targets; else the first stronger one
        of which that is true, or the one with the fewest. What is left undone cannot tell: pictures do.
        """
        operator, measures = self.solved(model, concepts, gathered)
        found = operator, measures, fold(model, operator)
        how = "given" if self.strength is not None else f"best of {len(STRENGTHS)}"
        if look is None or (least := look(found[2])) is None:
            return *found, how
        first, told = measures["strength"], f"{least.k} of {least.n} pictures under it are still taken for"
        for strength in [s for s in STRENGTHS if s > first][:STRONGER]:
            if least.value <= SELDOM:
                break
            operator, measures = self.solved(model, concepts, gathered, strength)
            changes = fold(model, operator)
            if (rate := look(changes)) is not None and rate.value < least.value:
                found, least = (operator, measures, changes), rate
        what = "the target" if len(concepts) == 1 else "the targets"
        if found[1]["strength"] == first:
            return *found, f"{how}, and {told} {what}"
        return *found, f"{first:g} is {how}, but {told} {what}, under this one {least.k} of {least.n}"

    def _kept(self, model: Model, concepts: Sequence[Concept], part: int = 0) -> Kept:
        """Of what must stay; part 1 has other contexts than part 0."""
        if not self.bare:
            return kept(model, concepts, self.preserve_prompts, self.tokens, part, self.padding)
        names = distinct(without((p for c in concepts for p in c.preserve), *(c.target for c in concepts)))

        def make() -> Kept:
            return Kept.of(columns(model, [read(model, "{target}", p) for p in names], self.tokens))

        return model.remembered((UCE._kept, names, self.tokens), make)  # many concepts share it, factored
