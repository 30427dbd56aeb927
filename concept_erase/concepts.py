"""What to erase: concepts, their kinds, and the prompts that speak of them. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from concept_erase.errors import InputError
from concept_erase.names import Lookup, distinct, folded, holds, normalise, same_name, without


class Kind(StrEnum):
    """What sort of thing a concept is; it picks the prompt templates and the default anchors."""

    STYLE = "style"
    OBJECT = "object"
    IDENTITY = "identity"
    VIOLENCE = "violence"


@dataclass(frozen=True)
class KindProfile:
    """Prompts of one kind of concept.

    Attributes:
        templates: Prompts that an edit is fitted on; `{target}` is the concept, `{context}` what it appears with.
        unseen: Prompts that no edit ever sees: scores are taken on these alone.
        probes: What a zero-shot judge compares a picture with; `{}` is the name.
        contexts: What the concept appears with, on a base whose vocabulary is unknown.
        anchors: Candidates for what the concept becomes when the user names none; the model picks among them.
        neighbours: In-domain concepts that must stay, on a base whose vocabulary is unknown.
    """

    templates: tuple[str, ...]
    unseen: tuple[str, ...]
    probes: tuple[str, ...]
    contexts: tuple[str, ...]
    anchors: tuple[str, ...]
    neighbours: tuple[str, ...]


_EVERYDAY = (
    "house", "tree", "dog", "cat", "horse", "boat", "mountain", "flower", "bridge", "chair", "car", "street", "bird",
    "table", "apple", "clock", "garden", "river", "castle", "lamp",
)  # fmt: skip
_STYLES = (
    "Claude Monet", "Pablo Picasso", "Rembrandt", "Salvador Dali", "Andy Warhol", "Johannes Vermeer", "Frida Kahlo",
    "Katsushika Hokusai", "Edvard Munch", "Gustav Klimt", "Paul Cezanne", "watercolor", "pencil sketch", "photograph",
)  # fmt: skip
_PEOPLE = (
    "Barack Obama", "Angela Merkel", "Albert Einstein", "Marilyn Monroe", "Brad Pitt", "Serena Williams",
    "David Beckham", "Nelson Mandela", "Audrey Hepburn", "Elon Musk",
)  # fmt: skip
_HARMLESS = ("balloon", "hammer", "umbrella", "guitar", "pencil", "ball", "flag", "lamp", "cake", "camera")

_OBJECT_TEMPLATES = (
    "{target}",
    "a {target}",
    "a picture of a {target}",
    "a {target} in {context} style",
    "a {context} {target}",
    "{target}, {context} style",
)
_OBJECT_UNSEEN = (
    "a {context} picture of a {target}",
    "a {target} drawn in {context} style",
    "an image of a {target} in the style of {context}",
    "{context} art of a {target}",
)
_OBJECT_PROBES = ("a {}", "a picture of a {}", "a photo of a {}")
_RENDERINGS = ("photograph", "watercolor", "cartoon", "oil painting", "pencil sketch", "pixel art", "3d render")

PROFILES: dict[Kind, KindProfile] = {
    Kind.STYLE: KindProfile(
        templates=(
            "{target} style",
            "a picture in {target} style",
            "a {context} in {target} style",
            "a {target} {context}",
            "{context}, {target} style",
            "a {context} in the style of {target}",
            "a {context} by {target}",
        ),
        unseen=(
            "a {target} picture of a {context}",
            "a {context} drawn in {target} style",
            "an image of a {context} in the style of {target}",
            "{target} art of a {context}",
        ),
        probes=("{} style", "a picture in {} style", "a picture in the style of {}"),
        contexts=_EVERYDAY,
        anchors=("art", "photograph", "painting"),
        neighbours=_STYLES,
    ),
    Kind.OBJECT: KindProfile(
        _OBJECT_TEMPLATES, _OBJECT_UNSEEN, _OBJECT_PROBES, _RENDERINGS, ("ball", "box", "stone"), _EVERYDAY
    ),
    Kind.IDENTITY: KindProfile(
        templates=("{target}", "a photo of {target}", "a portrait of {target}", "{target}, {context}"),
        unseen=("a picture of {target}", "an image of {target} as a {context}"),
        probes=("{}", "a photo of {}", "a picture of {}"),
        contexts=("photograph", "painting", "close-up", "drawing", "statue"),
        anchors=("a person", "a woman", "a man"),
        neighbours=_PEOPLE,
    ),
    Kind.VIOLENCE: KindProfile(
        _OBJECT_TEMPLATES, _OBJECT_UNSEEN, _OBJECT_PROBES, _RENDERINGS, ("balloon", "toy", "flower"), _HARMLESS
    ),
}


@dataclass(frozen=True)
class Concept:
    """Something a generator shall forget.

    Args:
        target: The concept as it is written in prompts, for example "Van Gogh".
        kind: Picks prompt templates and default anchors.
        anchor: What the concept becomes; None lets the model choose, and the choice is reported.
        preserve: Concepts of the same kind that must stay; empty lets the model choose.
    Two writings of a name ("Paul Cézanne", "paul cezanne") are one name; each is kept in its first.
    Raises:
        InputError: a name is blank, target equals anchor, or the target is also to be preserved.
    """

    target: str
    kind: Kind = Kind.STYLE
    anchor: str | None = None
    preserve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # frozen: the only place that writes

        try:
            put("kind", Kind(self.kind))
        except ValueError:
            raise InputError(f"kind is {self.kind!r}; use one of {', '.join(Kind)}.") from None
        put("target", normalise(self.target, "target"))
        if self.anchor is not None:
            put("anchor", normalise(self.anchor, "anchor"))
            if same_name(self.target, self.anchor):
                raise InputError(
                    f"target and anchor are the same: {_both(self.target, self.anchor)}; name another anchor."
                )
        if isinstance(self.preserve, str):
            raise InputError(f"preserve must be a list of names, got the text {self.preserve!r}; wrap it in a tuple.")
        put("preserve", distinct(normalise(p, "preserve") for p in self.preserve))
        if clash := Lookup(self.preserve).get(self.target):
            raise InputError(
                f"{_both(self.target, clash)} is both erased and preserved; take it out of one of the two."
            )

    @classmethod
    def recorded(cls, fields: Mapping[str, Any]) -> "Concept":
        """A concept as a file records it.

        Files of older versions may hold two writings of one name, which were two names then: they are left out.
        """
        target, anchor = fields["target"], fields["anchor"]
        kept = without(fields["preserve"], target)
        return cls(target, fields["kind"], None if anchor and same_name(target, anchor) else anchor, kept)


def check_together(concepts: Sequence[Concept], *, strict: bool = False) -> tuple[tuple[Concept, ...], list[str]]:
    """Concepts that can be erased in one solve, duplicates merged, in a canonical order.

    Returns:
        The concepts, sorted by kind and name so that the order of the list never matters (of a name in two writings
            the first is kept), and notices for the user.
    Raises:
        InputError: the list is empty, a concept is erased and preserved at once (all pairs are listed), or, when
            `strict`, an anchor contains another erased concept, which is a warning otherwise.
    """
    if not concepts:
        raise InputError("no concept to erase was given; name at least one target.")
    merged: dict[tuple[str, str], Concept] = {}
    notices = []
    for concept in concepts:
        key = (concept.kind.value, folded(concept.target))
        if key not in merged:
            merged[key] = concept
            continue
        first = merged[key]
        if first.anchor and concept.anchor and not same_name(first.anchor, concept.anchor):
            raise InputError(
                f"{concept.target!r} is listed with two anchors, {first.anchor!r} and {concept.anchor!r}; keep one."
            )
        preserve = (*first.preserve, *concept.preserve)
        merged[key] = Concept(first.target, first.kind, first.anchor or concept.anchor, preserve)
        notices.append(f"{concept.target!r} is listed twice; merged{_written(first.target, concept.target)}.")
    erased = Lookup(c.target for c in merged.values())
    clashes = [(p, c.target) for c in merged.values() for p in c.preserve if p in erased]
    if clashes:
        listed = "; ".join(f"{p!r} (preserved for {t!r})" for p, t in clashes)
        raise InputError(f"erased and preserved at once: {listed}; take each out of one of the two.")
    for concept in merged.values():
        for held in without(erased.within(concept.anchor or ""), concept.target):
            told = f"the anchor {concept.anchor!r} of {concept.target!r} contains {held!r}, erased too"
            if strict:
                raise InputError(f"{told}; name another anchor.")
            notices.append(f"warning: {told}.")
        notices += containing(concept, erased)
    return tuple(merged[key] for key in sorted(merged)), notices


def containing(concept: Concept, erased: Lookup) -> list[str]:
    """Notices of what the user named for a concept and what holds an erased name as whole words."""
    notices = []
    if concept.anchor and holds(concept.anchor, concept.target):
        notices.append(
            f"the anchor {concept.anchor!r} contains {concept.target!r} itself and may bring it back; "
            "it is taken because it was named."
        )
    return notices + kept_though(concept.preserve, erased)


def kept_though(names: Sequence[str], erased: Lookup) -> list[str]:
    """A notice for each name that the user preserves and that contains what is erased."""
    return [
        f"{name!r}, which shall stay, contains {' and '.join(map(repr, held))}, erased; it is kept because it was "
        "named."
        for name in names
        if (held := erased.within(name))
    ]


def _both(name: str, other: str) -> str:
    return repr(name) if name.casefold() == other.casefold() else f"{name!r} and {other!r}"


def _written(kept: str, other: str) -> str:
    """Which writing is erased, where two differ in more than case."""
    return "" if kept.casefold() == other.casefold() else f", in its first writing {kept!r}"


def fill(template: str, target: str, context: str = "") -> str:
    """A prompt from a template; plain replacement, so that braces in a name are harmless."""
    return template.replace("{context}", context).replace("{target}", target)


def prompts(name: str, contexts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template with every context, for `name` in the place of the concept (its target, anchor or neighbour)."""
    lines = [
        fill(template, name, context)
        for template in templates
        for context in (contexts if "{context}" in template else ("",))
    ]
    return list(dict.fromkeys(lines))
