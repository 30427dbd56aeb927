"""What a concept lives among: the contexts it appears in, the neighbours that must stay, what it may become."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

from concept_erase import embedded
from concept_erase.concepts import PROFILES, Concept, Kind, KindProfile
from concept_erase.errors import InputError
from concept_erase.model import Model
from concept_erase.names import Lookup, apart, distinct, folded, holds
from concept_erase.streams import Prompt, read
from concept_erase.vocabulary import knows, nearest, vocabulary, whole_words

_ALONE = ("a {target}", "a picture of a {target}", "{target}")  # a context without any concept
_NEAR = 16  # words of a base that are nearest to a concept: they weigh more among what must stay
WEIGHT = 4  # how often each of their prompts counts
_PRESERVED, _GIVEN = 60, 480  # prompts of a name that the user preserves, and of all such names of a concept
_FEW = 8  # names that a domain has at least
_JOINT = 32  # concepts of one solve up to which each one's nearest words weigh more


@dataclass(frozen=True)
class Surroundings:
    """The domain of one concept on one base.

    Attributes:
        contexts: What fills `{context}` in the prompts of the scores.
        neighbours: Concepts of the same kind that must stay; in-domain concepts of the scores.
        anchors: Candidates for what the concept becomes.
        complete: Whether contexts and neighbours are the base's whole vocabulary (the embedded generator).
    """

    contexts: tuple[str, ...]
    neighbours: tuple[str, ...]
    anchors: tuple[str, ...]
    complete: bool


def profile(model: Model, kind: Kind) -> KindProfile:
    """The prompts in which a base speaks of a kind of concept."""
    return embedded.PROFILES[kind] if model.is_embedded else PROFILES[kind]


def alone(model: Model) -> tuple[str, ...]:
    """The prompts in which a base speaks of a context without any concept."""
    return embedded.ALONE if model.is_embedded else _ALONE


def surroundings(model: Model, concept: Concept) -> Surroundings:
    """What the base and the user say about the concept's domain.

    The embedded generator's domain is listed. Of any other base it is what its text encoder knows: of the built-in
    names of the kind, and of its tokenizer's words those that are nearest to the concept. What contains the target as
    whole words ("Claude Monet", where "Monet" is erased) is none of its surroundings, unless the user preserves it.
    """
    target = [concept.target]
    if model.is_embedded:
        style = concept.kind is Kind.STYLE
        domain = embedded.styles() if style else embedded.objects()
        contexts = embedded.objects() if style else embedded.styles()
        harmless = domain if style else embedded.objects(violent=False)
        neighbours = distinct((*concept.preserve, *apart(domain, target)))
        return Surroundings(apart(contexts, target), neighbours, apart(harmless, target), True)
    key = (Surroundings, folded(concept.target), concept.kind, concept.preserve)
    return model.remembered(key, lambda: _looked_up(model, concept))


def _looked_up(model: Model, concept: Concept) -> Surroundings:
    target, own = [concept.target], PROFILES[concept.kind]
    near = nearby(model, concept)[:_FEW]
    styled = concept.kind in (Kind.STYLE, Kind.OBJECT)
    neighbours = concept.preserve or _enough(_known(model, apart(own.neighbours, target)), near if styled else ())
    # A neighbour of the same domain is a better anchor than a neutral word, whose prior may hold the concept itself;
    # but what is violent becomes something harmless that a person named.
    candidates = (*neighbours, *near) if styled else own.neighbours if concept.kind is Kind.VIOLENCE else ()
    anchors = _known(model, apart(distinct((*candidates, *own.anchors)), target))
    words = vocabulary(model)
    more = words.known if concept.kind is Kind.STYLE else words.modifiers
    contexts = _enough(_known(model, apart(own.contexts, target)), apart(more, target))
    return Surroundings(contexts, neighbours, anchors, False)


def candidates(model: Model, kind: Kind) -> tuple[str, ...]:
    """Names that might be among the anchors of a concept of a kind, beside what it preserves; more than there are, and
    nothing is encoded for it."""
    if model.is_embedded:
        return embedded.styles() if kind is Kind.STYLE else embedded.objects(violent=False)
    own = PROFILES[kind]
    return (*own.neighbours, *own.anchors, *whole_words(model))


def _known(model: Model, names: Sequence[str]) -> tuple[str, ...]:
    """The names that the base's text encoder knows; all, where it knows none."""
    known = model.remembered((knows, tuple(names)), lambda: knows(model, names))
    return tuple(name for name, is_known in zip(names, known, strict=True) if is_known) or tuple(names)


def _enough(names: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return distinct((*names, *more[: max(0, _FEW - len(names))]))


def nearby(model: Model, concept: Concept) -> tuple[str, ...]:
    """Words of a base that are nearest to a concept; none that the target is made of or that contain it."""
    key = (nearby, folded(concept.target), concept.kind)
    words = model.remembered(key, lambda: tuple(word for word, _ in nearest(model, concept)[: 2 * _NEAR]))
    return tuple(w for w in apart(words, [concept.target]) if not holds(concept.target, w))[:_NEAR]


def spread(names: Sequence[str], n: int) -> tuple[str, ...]:
    """At most n of the names, evenly over the list and the same each time."""
    if len(names) <= n:
        return tuple(names)
    return tuple(names[i * len(names) // n] for i in range(n))


def combining(model: Model, kind: Kind) -> tuple[str, ...]:
    """What a concept of a kind is fitted with: all that an unlisted base knows, or what can be said of things there."""
    if model.is_embedded:
        return embedded.objects() if kind is Kind.STYLE else embedded.styles()
    words = vocabulary(model)
    own = _known(model, PROFILES[kind].contexts)
    return distinct((*own, *(words.known if kind is Kind.STYLE else words.modifiers)))


def slots(model: Model, concept: Concept, contexts: int, part: int = 0) -> list[tuple[str, str]]:
    """(template, context), so many: first the templates of the kind that stand alone, whose context is "".

    They are the same for all concepts of a kind, less those that hold the concept or its anchor, so that what a list
    of concepts becomes is encoded once.

    Args:
        part: 0 for fitting, 1 for others that check the fit: contexts in between, and none alone. A short list (under
            16) serves both.
    """
    places = model.remembered((slots, concept.kind, part), lambda: _places(model, concept.kind, part))
    mine = [name for name in (concept.target, concept.anchor) if name]
    free = [(t, c) for t, c in places if not c or not any(holds(c, name) for name in mine)]
    others = [place for place in free if place[1]]
    return (others if part and others else free)[:contexts]


def _places(model: Model, kind: Kind, part: int) -> list[tuple[str, str]]:
    names = combining(model, kind)
    templates = profile(model, kind).templates
    pairs = list(product((t for t in templates if "{context}" in t), names if len(names) < 16 else names[part::2]))
    random.Random(part if len(names) < 16 else 0).shuffle(pairs)
    return [(t, "") for t in templates if "{context}" not in t] + pairs


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
    """Prompts that must not move, in groups that many concepts share; a group that is there several times weighs more.

    The empty prompt first. On the embedded generator about n prompts for each kind of concept: contexts alone, then
    each neighbour in its own templates and contexts. On any other base three prompts of each of the n best known words
    of its vocabulary, of which those nearest to the concepts count `WEIGHT` times, as do those of what is named to be
    preserved. Whatever else is erased, a name's prompts are the same, so a list of concepts encodes them once.
    """
    if n == 0:
        return [(empty_prompt(model),)]
    if not model.is_embedded:
        spoken, near = said_of_words(model, n, part), close_words(model, concepts)
        free = free_of(spoken, concepts)
        broad = tuple(s.prompt for s in free)
        close = tuple(s.prompt for s in free if s.word in near)
        return [(empty_prompt(model),), broad, *[close] * (WEIGHT - 1 if close else 0), *named(model, concepts, part)]
    erased = Lookup(c.target for c in concepts)
    groups: dict[Hashable, tuple[Prompt, ...]] = {}
    for concept in concepts:
        around = surroundings(model, concept)
        contexts = _part(around.contexts, n // 8, part)
        bare = (concept.kind, contexts)
        if bare not in groups:
            groups[bare] = _prompts(model, [(t, c, "") for c in contexts for t in alone(model)])
        share = max(1, (n - len(groups[bare])) // max(1, len(around.neighbours)))
        half = _part(around.contexts, len(around.contexts) // 2, part)
        for name in apart(around.neighbours, erased, concept.preserve):
            key = (concept.kind, name, half, share)
            if key not in groups:
                places = [
                    (t, name, c)
                    for t in profile(model, concept.kind).templates
                    for c in (half if "{context}" in t else ("",))
                ]
                chosen = random.Random(name).sample(places, min(share, len(places)))
                groups[key] = _prompts(model, chosen)
    return [(empty_prompt(model),), *groups.values()]


def empty_prompt(model: Model) -> Prompt:
    return Prompt(tuple(model.token_ids("")), 1, 1)


@dataclass(frozen=True)
class Spoken:
    """A prompt of a word of the base's vocabulary, with another as its context, "" if it has none."""

    word: str
    context: str
    prompt: Prompt


def said_of_words(model: Model, n: int, part: int) -> tuple[Spoken, ...]:
    """Three prompts of each of the n best known words, two as a thing and one as a style: of the base alone."""

    def make() -> tuple[Spoken, ...]:
        found: dict[tuple[int, ...], Spoken] = {}
        for word in vocabulary(model).top[:n]:
            for template, context in _said(model, word, (Kind.OBJECT, Kind.OBJECT, Kind.STYLE), part):
                prompt = read(model, template, word, context)
                found.setdefault(prompt.ids, Spoken(word, context, prompt))
        return tuple(found.values())

    return model.remembered((Spoken, n, part), make)


def free_of(spoken: Sequence[Spoken], concepts: Sequence[Concept]) -> list[Spoken]:
    """Those in which nothing that is erased is said."""
    erased = Lookup(c.target for c in concepts)
    held = {w for w in {s.word for s in spoken} | {s.context for s in spoken} if w and erased.within(w)}
    return [s for s in spoken if s.word not in held and s.context not in held]


def close_words(model: Model, concepts: Sequence[Concept]) -> frozenset[str]:
    """Words that are nearest to the concepts; none where these are too many to be looked up."""
    if len(concepts) > _JOINT:
        return frozenset()
    return frozenset(word for concept in concepts for word in nearby(model, concept))


def named(model: Model, concepts: Sequence[Concept], part: int) -> list[tuple[Prompt, ...]]:
    """Prompts of what the user preserves, or of the built-in names of the kind that the base knows, `WEIGHT` times."""
    erased = Lookup(c.target for c in concepts)
    wanted: dict[tuple[str, Kind], int] = {}
    for concept in concepts:
        own = () if concept.preserve else apart(_known(model, PROFILES[concept.kind].neighbours), erased)
        wanted |= dict.fromkeys(((name, concept.kind) for name in own), 3)
    for concept in concepts:
        given = apart(concept.preserve, erased, concept.preserve)
        count = min(_PRESERVED, max(3, _GIVEN // max(1, len(given))))
        for name in given:
            wanted[name, concept.kind] = max(count, wanted.get((name, concept.kind), 0))
    groups = []
    for (name, kind), count in wanted.items():
        places = [(t, name, c) for t, c in _said(model, name, (kind,) * count, part) if not erased.within(c)]
        groups += [_prompts(model, places)] * WEIGHT
    return [group for group in groups if group]


def _said(model: Model, name: str, kinds: Sequence[Kind], part: int) -> list[tuple[str, str]]:
    """(template, context) of a prompt for each kind; the same for a name whatever else is asked for."""
    dice = random.Random(f"{name} {part}")
    places = []
    for kind in kinds:
        slot = dice.choice(model.remembered((slots, kind, part), lambda kind=kind: _places(model, kind, part)))  # type: ignore[misc]
        if not holds(slot[1], name) and _fits(model, (slot[0], name, slot[1])):
            places.append(slot)
    return places


def _fits(model: Model, place: tuple[str, str, str]) -> bool:
    try:
        return bool(read(model, *place))
    except InputError:
        return False


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
