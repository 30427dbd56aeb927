"""What a concept becomes when the user does not say: chosen by closed-form distance and by looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from concept_erase.concepts import Concept
from concept_erase.errors import InputError
from concept_erase.methods.uce import UCE, Gathered, cost
from concept_erase.model import Model
from concept_erase.moments import of_pairs
from concept_erase.names import apart
from concept_erase.statistics import Estimate
from concept_erase.surroundings import concept_prompts, surroundings
from concept_erase.vocabulary import nearest

OwnRate = Callable[[str], Estimate]  # candidate -> how often its pictures are taken for the target, in per cent
ACCEPTED = 10.0  # per cent
NEAREST = 6
AS_GOOD = 1.25  # times the least cost: among these the furthest is taken, whose pictures resemble the target's least
TRIAL = UCE(contexts=8)  # its strength is chosen too: at any one strength anchors look alike that are not


def choose(
    model: Model,
    concept: Concept,
    taken: Sequence[str] = (),
    own_rate: OwnRate | None = None,
    *,
    contexts: int = TRIAL.contexts,
) -> tuple[Concept, str]:
    """The concept with an anchor, and the reason for it in words.

    Of the candidates of the domain that are nearest to the target, as the denoiser sees it, the one whose closed-form
    edit leaves least undone at least damage is best; of those that are about as good the furthest is taken. But a
    candidate whose own pictures are taken for the target would erase nothing, so where pictures can be judged the best
    one that passes is taken.

    Args:
        taken: Targets that are erased in the same solve; no anchor contains one of them as whole words.
        contexts: How many contexts the trials are made in.
        own_rate: Draws and judges pictures of a candidate; None decides by closed-form quantities alone.
    Raises:
        InputError: no candidate is left.
    """
    if concept.anchor is not None:
        return concept, f"{concept.target!r} becomes {concept.anchor!r}: given."
    around = surroundings(model, concept)
    candidates = apart(around.anchors, taken)
    if not candidates:
        raise InputError(f"every candidate for the anchor of {concept.target!r} is erased itself; name an anchor.")
    closeness = dict(nearest(model, concept, candidates)[:NEAREST])
    near = list(closeness)
    trials = {name: _trial(model, replace(concept, anchor=name), contexts) for name in near}
    costs = {name: cost(trials[name]) for name in near}
    good = AS_GOOD * min(costs.values())
    ranked = sorted(
        near, key=lambda name: (costs[name] > good, closeness[name] if costs[name] <= good else costs[name])
    )

    def told(name: str) -> str:
        undone, damage = trials[name]["undone"], trials[name]["damage"]
        place = f"best of the {len(near)} nearest of {len(candidates)}" if name == ranked[0] else "next best"
        trial = f"a trial edit leaves {undone:.0%} of the way and moves the rest by {damage:.0%}"
        return f"{concept.target!r} becomes {name!r}: {place} ({trial})"

    if own_rate is None:
        return replace(concept, anchor=ranked[0]), f"{told(ranked[0])}."
    passed_over: list[str] = []
    for candidate in ranked[:4]:
        own = own_rate(candidate)
        if own.value <= ACCEPTED:
            after = f" after {', '.join(map(repr, passed_over))}" if passed_over else ""
            seen = f"{own.k} of {own.n} of its own pictures are taken for {concept.target!r}"
            return replace(concept, anchor=candidate), f"{told(candidate)}{after}; {seen}."
        passed_over.append(candidate)
    return (
        replace(concept, anchor=ranked[0]),
        f"{told(ranked[0])}; warning: its own pictures and those of the next {len(passed_over) - 1} are often taken "
        f"for {concept.target!r}, name an anchor.",
    )


def _trial(model: Model, concept: Concept, contexts: int) -> dict[str, float]:
    """Measures of an edit that is fitted on every second prompt and checked on the others: none is encoded for it that
    the edit itself does not need."""
    prompts = concept_prompts(model, concept, contexts)
    fit, unseen = (
        of_pairs(model, half, TRIAL.tokens, TRIAL.padding) for half in (prompts[::2], prompts[1::2] or prompts)
    )
    return TRIAL.solved(model, [concept], Gathered(fit, unseen))[1]
