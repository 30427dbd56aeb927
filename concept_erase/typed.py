"""Names as somebody types them: several in one text, or one in several; asked about, never guessed. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from concept_erase import embedded
from concept_erase.concepts import PROFILES
from concept_erase.errors import InputError, MissingModelError
from concept_erase.names import Lookup, several

# Names of several words that people are likely to type without quotes, beside the built-in lists.
_FAMOUS = (
    "Van Gogh", "Vincent van Gogh", "Da Vinci", "Leonardo da Vinci", "Greg Rutkowski", "Thomas Kinkade",
    "Kelly McKernan", "Tyler Edlin", "Kilian Eng", "Studio Ghibli", "Hayao Miyazaki", "Tim Burton",
    "Roy Lichtenstein", "Henri Matisse", "Paul Gauguin", "Egon Schiele", "Caspar David Friedrich", "Norman Rockwell",
    "Georgia O'Keeffe", "Alphonse Mucha", "Hieronymus Bosch", "Keith Haring", "Jackson Pollock", "Mark Rothko",
    "Wes Anderson", "Pixel Art", "Oil Painting", "Comic Book", "Mickey Mouse", "Minnie Mouse", "Donald Duck",
    "Hello Kitty", "Super Mario", "Grumpy Cat", "Darth Vader", "Harry Potter", "Spider Man", "Iron Man",
    "Bugs Bunny", "Homer Simpson", "Donald Trump", "Joe Biden", "Taylor Swift", "Tom Cruise", "Emma Watson",
    "Emma Stone", "Anne Hathaway", "Leonardo DiCaprio", "Michael Jackson", "Van Halen", "Golden Gate Bridge",
    "Eiffel Tower", "Cassette Player", "French Horn", "Garbage Truck", "Gas Pump", "Golf Ball", "Chain Saw",
    "English Springer", "Machine Gun", "Hot Dog",
)  # fmt: skip
_JOINTS = frozenset(
    ("of", "the", "de", "da", "del", "della", "di", "von", "der", "den", "du", "des", "la", "le", "el", "and", "with",
     "a", "an", "bin", "al", "in", "on", "y", "und", "et")
)  # fmt: skip


BASE = "base"  # as a scorer: the base itself


def scorer(name: str | None) -> tuple[bool, str | None]:
    """Whether the base itself shall judge, and the open_clip model that shall: "base", "NAME" or "base+NAME"."""
    first, _, rest = (name or "").partition("+")
    if first.strip().casefold() != BASE:
        return False, name or None
    return True, rest.strip() or None


def one(name: str) -> str:
    """A name so written that it is taken as one, whatever it holds."""
    return f'"{name}"'


def names(texts: Sequence[str], field: str, *, shell: bool = False) -> tuple[list[str], list[str]]:
    """Names from texts that were typed one by one, and notices.

    A name in double quotes of its own is one name, whatever it holds.

    Args:
        field: For messages.
        shell: They are arguments of a command, which a shell takes apart at spaces, or values of an option.
    Raises:
        InputError: a text reads like several names, or several texts like one name.
    """
    found = [_taken(text, field, shell=shell, several_fit=True) for text in texts]
    return found, _of_words(texts) if shell and not field.startswith("--") else []


def single(text: str | None, field: str, *, shell: bool = False) -> str | None:
    """The name in a field that takes one, under the same rule; None where nothing was typed.

    Raises:
        InputError: the text reads like several names.
    """
    if text is None or not text.strip():
        return None
    return _taken(text, field, shell=shell, several_fit=False)


def _taken(text: str, field: str, *, shell: bool, several_fit: bool) -> str:
    """The name that a text is, without double quotes of its own.

    Raises:
        InputError: it reads like several.
    """
    bare = text.strip()
    if len(bare) > 2 and bare[0] == bare[-1] == '"' and bare[1:-1].strip():
        return bare[1:-1]
    parts = several(text)
    if len(parts) == 1 or text in known():
        return text
    listed = ", ".join(map(repr, parts[:5])) + (" and more" if len(parts) > 5 else "")
    option = f"{field} " if field.startswith("--") else ""
    apart = " ".join(option + shlex.quote(part) for part in parts[:5]) if shell else "one by one"
    remedy = f"If they are several, give them apart: {apart}" if several_fit else "It takes one: choose one of them"
    whole = shlex.quote(one(bare)) if shell else one(bare)
    raise InputError(
        f"{field} {text[:100]!r} reads like {len(parts):,} names ({listed}). {remedy}; if it is one name, in double "
        f"quotes: {whole}."
    )


def _of_words(texts: Sequence[str]) -> list[str]:
    """Notices of arguments that might be the words of one name.

    Raises:
        InputError: together they are a known name, or one is a word that only joins others.
    """
    single = [len(text.split()) == 1 and not text.startswith('"') for text in texts]
    for start in range(len(texts)):
        for end in range(len(texts), start + 1, -1):
            run = texts[start:end]
            together = known().get(" ".join(run))
            if all(single[start:end]) and together and not all(word in known() for word in run):
                raise _torn(texts, start, end, f"together are the name {together!r}")
    for i, text in enumerate(texts):
        if len(texts) > 1 and single[i] and text.casefold() in _JOINTS:
            start, end = i, i + 1
            while start > 0 and single[start - 1]:
                start -= 1
            while end < len(texts) and single[end]:
                end += 1
            raise _torn(texts, start, end, f"hold {text!r}, which is no concept")
    if len(texts) > 1 and any(a and b for a, b in pairwise(single)):
        listed = ", ".join(map(repr, texts[:-1]))
        return [f"{len(texts)} concepts: {listed} and {texts[-1]!r}; put a name of several words in quotes."]
    return []


def _torn(texts: Sequence[str], start: int, end: int, why: str) -> InputError:
    run, name = texts[start:end], " ".join(texts[start:end])
    arguments = [*texts[:start], name, *texts[end:]]
    listed = ", ".join(map(repr, run))
    return InputError(
        f"{listed} are {len(run)} arguments, so {len(run)} concepts, but {why}. Put a name of several words in quotes: "
        f"{shlex.join(arguments)}; or, if they are meant apart, each in quotes of its own: "
        f"{' '.join(shlex.quote(one(word)) for word in run)}."
    )


@cache
def known() -> Lookup:
    """Names that are known without a model: the embedded vocabulary, the built-in lists, and some that are famous."""
    try:
        embedded_names = (*embedded.styles(), *embedded.objects())
    except MissingModelError:
        embedded_names = ()
    listed = [name for p in PROFILES.values() for name in (*p.neighbours, *p.contexts, *p.anchors)]
    return Lookup((*embedded_names, *listed, *_FAMOUS))
