"""What a concept becomes when the user does not say: chosen by closed-form distance and by looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from concept_erase.concepts import Concept
from concept_erase.errors import InputError
from concept_erase.model import Model
from concept_erase.statistics import Estimate
from concept_erase.streams import Tokens, columns, read, seen_size
from concept_erase.surroundings import spread, surroundings

# How often pictures of a candidate are taken for the target: (candidate, prompts) -> rate in per cent.
OwnRate = Callable[[str, Sequence[str]], Estimate]
ACCEPTED = 10.0  # per cent


def choose(
    model: Model, concept: Concept, taken: Sequence[str] = (), own_rate: OwnRate | None = None
) -> tuple[Concept, str]:
    """The concept with an anchor, and the reason for it in words.

    The nearest candidate of the domain, as the denoiser sees it, needs the smallest edit. But a candidate whose own
    pictures are taken for the target would erase nothing, so where pictures can be judged the nearest one that
    passes is taken.

    Args:
        taken: Targets that are erased in the same solve; no anchor contains one of them.
        own_rate: Draws and judges pictures of a candidate; None decides by distance alone.
    """
    if concept.anchor is not None:
        return concept, f"{concept.target!r} becomes {concept.anchor!r}: given."
    around = surroundings(model, concept)
    candidates = [a for a in around.anchors if not any(t.casefold() in a.casefold() for t in taken)]
    if not candidates:
        raise InputError(f"every candidate for the anchor of {concept.target!r} is erased itself; name an anchor.")
    ways = distances(model, concept, candidates)
    ranked = sorted(candidates, key=ways.__getitem__)
    place = f"nearest of {len(candidates)} in what the denoiser sees (distance {ways[ranked[0]]:.2f})"
    if own_rate is None:
        return replace(concept, anchor=ranked[0]), f"{concept.target!r} becomes {ranked[0]!r}: {place}."
    passed_over: list[str] = []
    for candidate in ranked[:4]:
        prompts = [
            t.replace("{target}", candidate).replace("{context}", c)
            for t in concept.profile.templates[2:4]
            for c in spread(around.contexts, 8)
        ]
        own = own_rate(candidate, prompts)
        if own.value <= ACCEPTED:
            rank = place if not passed_over else f"nearest after {', '.join(map(repr, passed_over))}"
            seen = f"{own.k} of {own.n} of its own pictures are taken for {concept.target!r}"
            return replace(concept, anchor=candidate), f"{concept.target!r} becomes {candidate!r}: {rank}; {seen}."
        passed_over.append(candidate)
    return (
        replace(concept, anchor=ranked[0]),
        f"{concept.target!r} becomes {ranked[0]!r}: {place}; warning: its own pictures and those of the next three are "
        f"often taken for {concept.target!r}, name an anchor.",
    )


def distances(model: Model, concept: Concept, names: Sequence[str]) -> dict[str, float]:
    """How far each name's embeddings are from the target's, relative to the mean distance: (dimensionless)."""
    contexts = spread(surroundings(model, concept).contexts, 6)
    templates = concept.profile.templates

    def centre(name: str) -> torch.Tensor:
        prompts = [read(model, t, name, c) for t in templates for c in (contexts if "{context}" in t else ("",))]
        return columns(model, prompts, Tokens.SUBJECT_TO_END).mean(1, keepdim=True)

    target = centre(concept.target)
    sizes = {name: seen_size(centre(name) - target, model.gram) for name in names}
    typical = sum(sizes.values()) / len(sizes) or 1.0
    return {name: size / typical for name, size in sizes.items()}
