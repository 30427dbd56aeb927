"""What a concept lives among: the contexts it appears in, the neighbours that must stay, what it may become."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from concept_erase import embedded
from concept_erase.concepts import Concept, Kind
from concept_erase.errors import InputError
from concept_erase.model import Model
from concept_erase.names import Lookup, apart, distinct
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
    """What the base and the user say about the concept's domain; a built-in list per kind where they say nothing.

    What contains the target as whole words ("Claude Monet", where "Monet" is erased) is none of its surroundings,
    unless the user preserves it.
    """
    target = [concept.target]
    if model.is_embedded:
        style = concept.kind is Kind.STYLE
        domain = embedded.styles() if style else embedded.objects()
        contexts = embedded.objects() if style else embedded.styles()
        harmless = domain if style else embedded.objects(violent=False)
        neighbours = distinct((*concept.preserve, *apart(domain, target)))
        return Surroundings(apart(contexts, target), neighbours, apart(harmless, target), True)
    profile = concept.profile
    neighbours = concept.preserve or apart(profile.neighbours, target)
    # A neighbour of the same domain is a better anchor than a neutral word, whose prior may hold the concept itself.
    near = neighbours if concept.kind in (Kind.STYLE, Kind.OBJECT) else ()
    anchors = apart(distinct((*near, *profile.anchors)), target)
    return Surroundings(apart(profile.contexts, target), neighbours, anchors, False)


def spread(names: Sequence[str], n: int) -> tuple[str, ...]:
    """At most n of the names, evenly over the list and the same each time."""
    if len(names) <= n:
        return tuple(names)
    return tuple(names[i * len(names) // n] for i in range(n))


def slots(model: Model, concept: Concept, contexts: int, part: int = 0) -> list[tuple[str, str]]:
    """(template, context) over the kind's templates and at most so many contexts.

    Args:
        contexts: On a small vocabulary all of them.
        part: 0 for fitting, 1 for others that check the fit: the contexts in between.
    """
    chosen = _part(surroundings(model, concept).contexts, contexts, part)
    return [(t, c) for t in concept.profile.templates for c in (chosen if "{context}" in t else ("",))]


def concept_prompts(model: Model, concept: Concept, contexts: int, part: int = 0) -> list[tuple[Prompt, Prompt]]:
    """Prompts of the target with the matching ones of its anchor, in the same `slots`."""
    if concept.anchor is None:
        raise InputError(f"{concept.target!r} has no anchor; choose one first.")
    places = slots(model, concept, contexts, part)
    pairs = [(read(model, t, concept.target, c), read(model, t, concept.anchor, c)) for t, c in places]
    if all(target.ids == anchor.ids for target, anchor in pairs):
        raise InputError(
            f"{concept.target!r} and its anchor {concept.anchor!r} are the same tokens; name another anchor."
        )
    return pairs


def preserved_groups(model: Model, concepts: Sequence[Concept], n: int, part: int = 0) -> list[tuple[Prompt, ...]]:
    """Prompts that must not move, about n for each kind of concept, in groups that many concepts share.

    The empty prompt first, then contexts alone, then each neighbour in its own templates and contexts. Whatever else
    is erased, a neighbour's group is the same, so a list of concepts encodes it once.
    """
    empty = (Prompt(tuple(model.token_ids("")), 1, 1),)
    if n == 0:
        return [empty]
    erased = Lookup(c.target for c in concepts)
    groups: dict[Hashable, tuple[Prompt, ...]] = {}
    for concept in concepts:
        around = surroundings(model, concept)
        contexts = _part(around.contexts, n // 8, part)
        alone = (concept.kind, contexts)
        if alone not in groups:
            groups[alone] = _prompts(model, [(t, c, "") for c in contexts for t in ALONE])
        share = max(1, (n - len(groups[alone])) // max(1, len(around.neighbours)))
        half = _part(around.contexts, len(around.contexts) // 2, part)
        for name in apart(around.neighbours, erased, concept.preserve):
            key = (concept.kind, name, half, share)
            if key not in groups:
                places = [
                    (t, name, c) for t in concept.profile.templates for c in (half if "{context}" in t else ("",))
                ]
                chosen = random.Random(name).sample(places, min(share, len(places)))
                groups[key] = _prompts(model, chosen)
    return [empty, *groups.values()]


def preserved_prompts(model: Model, concepts: Sequence[Concept], n: int, part: int = 0) -> list[Prompt]:
    """The prompts of all `preserved_groups`, each once."""
    groups = preserved_groups(model, concepts, n, part)
    return list({p.ids: p for group in groups for p in group}.values())


def _prompts(model: Model, places: Sequence[tuple[str, str, str]]) -> tuple[Prompt, ...]:
    """Distinct prompts of (template, name, context)."""

    def make() -> tuple[Prompt, ...]:
        return tuple({p.ids: p for p in (read(model, *place) for place in places)}.values())

    return model.remembered((Prompt, tuple(places)), make)


def _part(names: Sequence[str], n: int, part: int) -> tuple[str, ...]:
    """n of every second name, starting at `part`; of a short list (under 16) all names serve both parts."""
    return spread(names if len(names) < 16 else names[part::2], max(1, n))
