"""One name in two writings: how names are compared, and what they are called on disk. No torch here."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from concept_erase.errors import InputError

_ARTICLES = ("the", "a", "an")
_LETTERS = str.maketrans(
    {"ø": "o", "œ": "oe", "æ": "ae", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ħ": "h", "ŧ": "t"}
)
_DASHES = re.compile(r"[-‐‑‒–—―_/·・]+")
_GAPS = re.compile(r"[.,:;()\[\]]")  # not + # & @: "C++" is not "C#"
_MARKS = re.compile(r"['’‘ʼ`´\"“”„!?¡¿]")
_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")  # where a combining mark is an accent; elsewhere it is part of the letter
_SUFFIX = re.compile(r"(jr|sr|ii|iii|iv|inc|ltd|llc|esq|ph\.?d|m\.?d)\.?$", re.IGNORECASE)
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_INVISIBLE = frozenset("\u200b\u2060\ufeff\u00ad")


def normalise(text: str, field: str) -> str:
    """NFC, single spaces, nothing invisible at the ends.

    Raises:
        InputError: `text` is blank, or holds control or bidirectional control characters.
    """
    if not isinstance(text, str):
        raise InputError(f"{field} must be text, got {type(text).__name__}; pass a string.")
    bad = sorted(
        {
            f"U+{ord(c):04X}"
            for c in text
            if c in _BIDI_CONTROLS or (unicodedata.category(c) in ("Cc", "Cs") and not c.isspace())
        }
    )
    if bad:
        raise InputError(f"{field} holds control characters ({', '.join(bad)}): {text!r}; remove them.")
    clean = _plain(text)
    if all(c == " " or unicodedata.category(c) in ("Cf", "Mn") for c in clean):
        raise InputError(f"{field} is blank: {text!r}; name a concept.")
    return clean


def _plain(text: str) -> str:
    visible = "".join(c for c in text if c not in _INVISIBLE)
    return " ".join(unicodedata.normalize("NFC", visible).split())


@lru_cache(maxsize=2**17)  # more than the rows of the longest list: each name is folded once
def folded(name: str) -> str:
    """What two writings of one name have in common: no case, accents, articles, hyphens or punctuation.

    "Paul Cézanne" and "paul cezanne", "Vincent Van-Gogh" and "vincent van gogh", "The Scream" and "scream", "J.M.W.
    Turner" and "J. M. W. Turner" are the same; "C++" and "C#" are not. Any text can be folded, also what is no name.
    """
    plain = _plain(name).casefold()
    letters: list[str] = []
    for letter in unicodedata.normalize("NFKD", plain):
        if letter == "\N{VARIATION SELECTOR-16}" or (
            unicodedata.category(letter) == "Mn" and letters and unicodedata.name(letters[-1], "").startswith(_SCRIPTS)
        ):
            continue
        letters.append(letter)
    text = unicodedata.normalize("NFC", "".join(letters)).translate(_LETTERS)
    words = _MARKS.sub("", _GAPS.sub(" ", _DASHES.sub(" ", text))).split()
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    joined = " ".join(words)
    # Initials belong together, however they are spaced.
    joined = re.sub(r"(?<!\S)\w(?: \w)+(?!\S)", lambda run: run[0].replace(" ", ""), joined)
    return joined or plain


def same_name(a: str, b: str) -> bool:
    """Whether two names are two writings of one."""
    return folded(a) == folded(b)


def holds(name: str, part: str) -> bool:
    """Whether a name contains another as whole words: "Claude Monet" holds "Monet", "Monetary" does not."""
    return f" {folded(part)} " in f" {folded(name)} "


def without(names: Iterable[str], *taken: str | None) -> tuple[str, ...]:
    """The names that are, in any writing, none of those taken."""
    gone = {folded(t) for t in taken if t}
    return tuple(n for n in names if folded(n) not in gone)


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in its first writing."""
    return Lookup(names).names


class Lookup:
    """Names that are looked up in any writing, alone and as whole words inside of others; quick for thousands.

    Attributes:
        names: Each once, in its first writing.
        lengths: How many words they have.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._first: dict[str, str] = {}
        for name in names:
            self._first.setdefault(folded(name), name)
        self.names = tuple(self._first.values())
        self.lengths = frozenset(1 + key.count(" ") for key in self._first)

    def __contains__(self, name: str) -> bool:
        return folded(name) in self._first

    def get(self, name: str) -> str | None:
        """The first writing of a name; None if it is not there."""
        return self._first.get(folded(name))

    def within(self, name: str) -> tuple[str, ...]:
        """Those that a name is or contains as whole words, each once."""
        words = folded(name).split(" ")
        spans = (
            " ".join(words[i : i + n])
            for n in sorted(self.lengths)
            if n <= len(words)
            for i in range(len(words) - n + 1)
        )
        return tuple(dict.fromkeys(self._first[span] for span in spans if span in self._first))


def apart(names: Iterable[str], taken: Iterable[str] | Lookup, given: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that neither are one of those taken nor contain one as whole words.

    Args:
        given: Named by the user, so they may contain one.
    """
    gone = taken if isinstance(taken, Lookup) else Lookup(taken)
    said = Lookup(given)
    return tuple(n for n in names if n not in gone and (n in said or not gone.within(n)))


def several(text: str) -> list[str]:
    """The names in a text that separates them by commas, semicolons or tabs; one, if it reads like one name.

    "10,000 Maniacs" and "Robert Downey, Jr." are one; so is "AC;DC".
    """
    parts = re.split(r"(?<!\d),(?=\S)|,\s+|(?<=\d),(?=\D)|[，、،؛；|\t]|;\s+|(?<=\w{3});(?=\w{3})", text)
    parts = [part.strip() for part in parts if part.strip()]
    named = parts[:1]
    for part in parts[1:]:
        if _SUFFIX.match(part):
            named[-1] = f"{named[-1]}, {part}"
        else:
            named.append(part)
    return named if len(named) > 1 else [text]


# -- on disk -------------------------------------------------------------------------------------------------------


def short_hash(*parts: str) -> str:
    """Eight hex digits over texts."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:8]


def file_name(names: Sequence[str], *, also: Sequence[str] = (), most: int = 48) -> str:
    """A name for files and folders: plain letters, then a short hash of all the names.

    Two lists of names that differ in anything but order and case have different ones, however they are gathered in
    one folder. Accents are folded before what is no letter is dropped: "Édouard Manet" is edouard-manet-..., and a
    name in another script is its hash alone.

    Args:
        also: What else tells it from others of these names; it enters the hash alone.
    """
    shown = "-".join(names[:2]) + (f"-{len(names)}" if len(names) > 2 else "")
    letters = unicodedata.normalize("NFKD", shown.casefold().translate(_LETTERS)).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:most].strip("-")
    key = short_hash(*sorted(" ".join(unicodedata.normalize("NFC", name).casefold().split()) for name in names), *also)
    return f"{plain}-{key}" if plain else key
