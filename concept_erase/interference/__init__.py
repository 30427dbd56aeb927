"""How each adapter moves each other's target and what must stay; in the metric the denoiser sees, without a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from concept_erase.adapter import Adapter
from concept_erase.concepts import Concept, Kind, kept_though
from concept_erase.errors import InputError
from concept_erase.interference.bundle import Bundle
from concept_erase.interference.heatmap import draw as draw
from concept_erase.interference.movement import Columns, Movement, few_slots
from concept_erase.methods import Progress
from concept_erase.model import Model, Source, open_model
from concept_erase.names import Lookup, apart, distinct, folded, normalise, without
from concept_erase.streams import PADDING, read
from concept_erase.surroundings import spread, surroundings

MANY = 64  # adapters; above, one prompt per concept is enough, and the summary holds the worst pairs only
PROMPTS = 6  # per concept
KEPT = 24  # preserved concepts, where the user names none
WORST = 100  # pairs in a summary

TOGETHER = "all together"


@dataclass(frozen=True, eq=False)
class Interference:
    """How far each of K adapters, alone, and all of them together move each of M concepts.

    The movement of an embedding x is `sqrt(sum_l ||(W_l + dW_l) x' - W_l x||^2)` over the layers l that read the text,
    x' being what the adapter's text encoder makes of the same token. A concept's movement is the root mean square of
    it over the prompts of the concept and, in each, over every token of the concept and all that follows. `moved` is
    that over the way from the target to its own anchor, measured in the same way: 1 is a move as far as the anchor
    is. What must stay has no anchor; its movement is taken over the mean of the ways of all targets.

    Attributes:
        adapters: Their titles, told apart where two are the same.
        concepts: Names; first the targets of all adapters, then what must stay.
        erased: (M,) bool, whether an adapter erases the concept.
        own: (K, M) bool, whether the concept is a target of this adapter.
        moved: (K, M) float64.
        together: (M,) float64, with the changes of all adapters added up.
        prompts: Prompts per concept it was measured on.
        notices: What was merged or left out, in words.
    """

    adapters: tuple[str, ...]
    concepts: tuple[str, ...]
    erased: NDArray[np.bool_]
    own: NDArray[np.bool_]
    moved: NDArray[np.float64]
    together: NDArray[np.float64]
    prompts: int
    notices: tuple[str, ...] = ()

    def worst(self, n: int = 10) -> list[dict[str, Any]]:
        """The n largest moves of what an adapter does not erase: {"adapter", "concept", "moved"}, largest first."""
        foreign = np.where(self.own, -1.0, self.moved).ravel()
        order = np.argsort(-foreign, kind="stable")[: max(0, n)]
        pairs = [divmod(int(i), len(self.concepts)) for i in order if foreign[i] >= 0]
        return [
            {"adapter": self.adapters[k], "concept": self.concepts[j], "moved": _rounded(self.moved[k, j])}
            for k, j in pairs
        ]

    def per_adapter(self) -> list[dict[str, Any]]:
        """For each adapter the mean move of its own targets and the largest of any other concept (None: no other)."""
        rows = []
        for k, name in enumerate(self.adapters):
            foreign = np.where(self.own[k], -1.0, self.moved[k])
            j = int(np.argmax(foreign))
            other = foreign[j] >= 0
            rows.append(
                {
                    "adapter": name,
                    "own": _rounded(self.moved[k, self.own[k]].mean()),
                    "concept": self.concepts[j] if other else None,
                    "moved": _rounded(foreign[j]) if other else None,
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """What `interference.json` holds; the whole matrix up to 64 adapters, the worst pairs always."""
        whole = len(self.adapters) <= MANY
        return {
            "unit": "1 is as far as the way from a target to its anchor",
            "prompts": self.prompts,
            "adapters": list(self.adapters),
            "concepts": [{"name": n, "erased": bool(e)} for n, e in zip(self.concepts, self.erased, strict=True)],
            "moved": [[_rounded(v) for v in row] for row in self.moved] if whole else None,
            "together": [_rounded(v) for v in self.together],
            "per_adapter": self.per_adapter(),
            "worst": self.worst(WORST),
            "notices": list(self.notices),
        }


def interference(
    model: Source,
    adapters: Iterable[Adapter | Path | str],
    preserved: Sequence[str | Concept] | None = None,
    *,
    prompts: int | None = None,
    padding: int = PADDING,
    check: bool = True,
    progress: Progress | None = None,
) -> Interference:
    """Measure how adapters move each other's targets and what must stay.

    Changes of the denoiser are measured in closed form by their low-rank factors; of layers that read the text there is
    one small matrix per adapter, so thousands are feasible. Where the operator that a closed form was folded from lies
    beside an adapter, it stands for it. For changes of the text encoder the prompts
    are encoded again by a copy that carries them, one adapter at a time.

    Args:
        model: The base; whatever `open_model` takes.
        adapters: Adapters, files or folders. Files are read one at a time and not kept.
        preserved: Concepts that must stay; a text is of the kind most adapters have. None takes what the adapters'
            concepts preserve and then neighbours that nobody erases, 24 in all, evenly spread.
        prompts: Per concept; the kind's templates in turn, each with another context. None takes 6, or 1 if there are
            more than 64 adapters.
        padding: How many positions behind a prompt's end are looked at, the last one standing for all that follow; 1
            where there is one prompt per concept.
        check: Compare the recorded hash of each adapter's base with the model. Shapes are always compared.
    Raises:
        BaseMismatchError: an adapter is for another base.
        AdapterFileError: a file cannot be used.
        InputError: no adapter is given, or none says what its target becomes.
    """
    model = open_model(model)
    tell = progress or (lambda done, total, what: None)
    bundle = Bundle(model, check=check)
    sources = list(adapters)
    for i, source in enumerate(sources):
        bundle.add(source)
        tell(i + 1, len(sources), "reading adapters")
    if not bundle.kept:
        raise InputError("no adapter was given; pass at least one file or folder.")
    number = prompts if prompts is not None else (1 if len(bundle.kept) > MANY else PROMPTS)
    if number < 1:
        raise InputError(f"prompts must be at least 1, got {number}.")

    targets = bundle.targets()
    stay = _preserved(model, targets, preserved, bundle.notices)
    names = Lookup(c.target for c in targets)
    pairs = []
    for concept in (*targets, *stay):
        filled = few_slots(model, concept, number, names)
        anchor = concept.anchor or concept.target
        pairs.append([(read(model, t, concept.target, c), read(model, t, anchor, c)) for t, c in filled])
    few = 1 if number == 1 else padding
    columns, _ = Columns.of(model, pairs, few)
    before = columns.states(model, lambda done, total: tell(done, total, "embeddings of the concepts"))
    _, goals = Columns.of(model, pairs[: len(targets)], few)
    there = goals.states(model, lambda done, total: tell(done, total, "embeddings of the anchors"))
    ways = Movement(model, goals, before[: len(there)]).to(there)
    aimed = torch.tensor([any(t.ids != a.ids for t, a in listed) for listed in pairs[: len(targets)]])
    if not aimed.any():
        raise InputError("no adapter says what its target becomes, so there is no way to compare with; erase it again.")
    typical = ways[aimed].mean()
    ways = torch.cat([torch.where(aimed, ways, typical), typical.expand(len(stay))])

    movement = Movement(model, columns, before)
    moved = bundle.moves(movement, tell) / ways
    together = bundle.moved_together(movement) / ways if len(moved) > 1 else moved[0]
    own = np.zeros(moved.shape, bool)
    for k, member in enumerate(bundle.kept):
        mine = Lookup(c.target for c in member.concepts)
        own[k, : len(targets)] = [c.target in mine for c in targets]
    return Interference(
        _distinct(
            [(m.title, f"{m.title} ({m.method})", f"{m.title} ({m.method}, {m.digest[:8]})") for m in bundle.kept]
        ),
        _distinct([(c.target, f"{c.target} to {c.anchor}", f"{c.target} to {c.anchor} ({c.kind})") for c in targets])
        + tuple(c.target for c in stay),
        np.arange(len(pairs)) < len(targets),
        own,
        moved.numpy(),
        together.numpy(),
        number,
        tuple(bundle.notices),
    )


# -- concepts ------------------------------------------------------------------------------------------------------


def _preserved(
    model: Model, targets: Sequence[Concept], wanted: Sequence[str | Concept] | None, notices: list[str]
) -> list[Concept]:
    """What must stay, each with the kind that picks its prompts; nothing that an adapter erases."""
    erased = Lookup(c.target for c in targets)
    if wanted is not None:
        usual = Counter(c.kind for c in targets)
        kind = max(Kind, key=lambda k: usual[k])
        given = [c if isinstance(c, Concept) else Concept(normalise(c, "preserve"), kind) for c in wanted]
        clash = [c.target for c in given if c.target in erased]
        if clash:
            notices.append(f"erased by an adapter, so not among what must stay: {', '.join(distinct(clash))}.")
        by_name = {folded(c.target): Concept(c.target, c.kind) for c in reversed(given)}
        stay = without(distinct(c.target for c in given), *erased.names)
        notices += kept_though(stay, erased)
        return [by_name[folded(name)] for name in stay]

    def listed(pairs: Iterable[tuple[Kind, str]]) -> dict[str, Concept]:
        named = {folded(name): Concept(name, kind) for kind, name in sorted(pairs, reverse=True)}
        kept = {folded(name) for name in apart((c.target for c in named.values()), erased, preserved)}
        return {n: c for n, c in sorted(named.items(), key=lambda item: (item[1].kind, item[0])) if n in kept}

    preserved = [p for c in targets for p in c.preserve]
    said = listed((c.kind, p) for c in targets for p in c.preserve)
    chosen = [said[name] for name in spread(list(said), KEPT)]
    # One target of a kind speaks for all of it: the neighbours of the kind, less that target.
    first = {c.kind: Concept(c.target, c.kind) for c in reversed(targets)}
    more = listed((c.kind, n) for c in first.values() for n in surroundings(model, c).neighbours)
    kinds = [[name for name, c in more.items() if c.kind is kind and name not in said] for kind in sorted(first)]
    others: list[str] = []
    for i, names in enumerate(sorted(kinds, key=len)):  # equal shares; what a short list leaves goes to the others
        others += spread(names, max(0, KEPT - len(chosen) - len(others)) // (len(kinds) - i))
    return [*chosen, *(more[name] for name in sorted(others, key=list(more).index))]


def _distinct(candidates: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Of each list of ever longer names the first that nothing else has."""
    names = [c[0] for c in candidates]
    for level in range(1, max(len(c) for c in candidates)):
        count = Counter(folded(name) for name in names)
        names = [c[level] if count[folded(n)] > 1 else n for n, c in zip(names, candidates, strict=True)]
    return tuple(names)


def _rounded(value: float) -> float:
    return round(float(value), 4)
