"""What a concept lives among: the contexts it appears in, the neighbours that must stay, what it may become."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from concept_erase import embedded
from concept_erase.concepts import Concept, Kind, same
from concept_erase.errors import InputError
from concept_erase.model import Model
from concept_erase.streams import Prompt, read

ALONE = ("a {target}", "an icon of a {target}", "{target}")  # a context without any concept


@dataclass(frozen=True)
class Surroundings:
    """The domain of one concept on one base.

    Attributes:
        contexts: What fills `{context}` in prompts.
        neighbours: Concepts of the same kind that must stay; in-domain concepts of the scores.
        anchors: Candidates for what the concept becomes.
        complete: Whether contexts and neighbours are the base's whole vocabulary (the embedded generator).
    """

    contexts: tuple[str, ...]
    neighbours: tuple[str, ...]
    anchors: tuple[str, ...]
    complete: bool


def surroundings(model: Model, concept: Concept) -> Surroundings:
    """What the base and the user say about the concept's domain; a built-in list per kind where they say nothing."""

    def without(names: Sequence[str], *taken: str | None) -> tuple[str, ...]:
        return tuple(n for n in names if not any(t and same(n, t) for t in taken))

    if model.is_embedded:
        style = concept.kind is Kind.STYLE
        domain = embedded.styles() if style else embedded.objects()
        contexts = embedded.objects() if style else embedded.styles()
        neighbours = without(domain, concept.target)
        known = concept.preserve or neighbours
        harmless = domain if style else embedded.objects(violent=False)
        return Surroundings(
            contexts, tuple(dict.fromkeys((*known, *neighbours))), without(harmless, concept.target), True
        )
    profile = concept.profile
    contexts = without(profile.contexts, concept.target)
    neighbours = without(concept.preserve or profile.neighbours, concept.target)
    # A neighbour of the same domain is a better anchor than a neutral word, whose prior may hold the concept itself.
    domain = neighbours if concept.kind in (Kind.STYLE, Kind.OBJECT) else ()
    return Surroundings(contexts, neighbours, without((*domain, *profile.anchors), concept.target), False)


def spread(names: Sequence[str], n: int) -> tuple[str, ...]:
    """At most n of the names, evenly over the list and the same each time."""
    if len(names) <= n:
        return tuple(names)
    return tuple(names[i * len(names) // n] for i in range(n))


def concept_prompts(model: Model, concept: Concept, contexts: int, part: int = 0) -> list[tuple[Prompt, Prompt]]:
    """Prompts of the target with the matching ones of its anchor, over the kind's templates and contexts.

    Args:
        contexts: How many contexts at most; on a small vocabulary all of them.
        part: 0 for fitting, 1 for others that check the fit: the contexts in between.
    """
    if concept.anchor is None:
        raise InputError(f"{concept.target!r} has no anchor; choose one first.")
    names = surroundings(model, concept).contexts
    chosen = _part(names, contexts, part)
    slots = [(t, c) for t in concept.profile.templates for c in (chosen if "{context}" in t else ("",))]
    pairs = [(read(model, t, concept.target, c), read(model, t, concept.anchor, c)) for t, c in slots]
    if all(target.ids == anchor.ids for target, anchor in pairs):
        raise InputError(
            f"{concept.target!r} and its anchor {concept.anchor!r} are the same tokens; name another anchor."
        )
    return pairs


def preserved_prompts(model: Model, concepts: Sequence[Concept], n: int, part: int = 0) -> list[Prompt]:
    """About n prompts that must not move: neighbours in their templates and contexts, contexts alone, the empty one."""
    erased = [c.target for c in concepts]
    prompts = [Prompt(tuple(model.token_ids("")), 1, 1)]
    share = max(1, n // len(concepts))
    for concept in concepts:
        around = surroundings(model, concept)
        neighbours = [p for p in around.neighbours if not any(same(p, e) for e in erased)]
        alone = [read(model, t, c) for c in _part(around.contexts, share // 8, part) for t in ALONE]
        templates = concept.profile.templates
        slots = [
            (t, name, context)
            for name in neighbours
            for i, t in enumerate(templates)
            for context in (_part(around.contexts, len(around.contexts) // 2, part) if "{context}" in t else ("",))
        ]
        prompts += alone
        prompts += [read(model, *slot) for slot in _shuffled(slots)[: max(0, share - len(alone))]]
    return list({p.ids: p for p in prompts}.values())


def _part(names: Sequence[str], n: int, part: int) -> tuple[str, ...]:
    """n of every second name, starting at `part`; of a short list (under 16) all names serve both parts."""
    return spread(names if len(names) < 16 else names[part::2], max(1, n))


def _shuffled(items: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return random.Random(0).sample(items, len(items))
