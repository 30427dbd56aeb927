"""Names that nobody has, to compare with: what does a generator draw for a name that it never saw?

A nonsense name has the shape of a real one: its script, the number of its words and about their length. Names of one
shape are the same for every concept, so their pictures are drawn once. No torch here.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from concept_erase.names import folded

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_WHOLE = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "SYMBOL")  # few signs say much: their number is kept as it is
_SYMBOLS = range(0x1F700, 0x1F774)  # alchemical: as many bytes as an emoji, and hardly ever seen


@dataclass(frozen=True)
class Shape:
    """What a nonsense name has in common with a real one.

    Attributes:
        script: As Unicode names it ("LATIN", "ARABIC"), or "SYMBOL" for emoji and their kin.
        words: 1 to 3.
        letters: Of each word: 4, 6 or 9; of scripts with a sign for a syllable or a word, 1 to 4.
    """

    script: str
    words: int
    letters: int


def shape(name: str) -> Shape:
    """The shape of a name."""
    words = folded(name).split()
    signs = [sign for word in words for sign in word if unicodedata.category(sign)[0] in "LNS"]
    scripts = Counter(script for sign in signs if (script := _script(sign)))
    script = scripts.most_common(1)[0][0] if scripts else "LATIN"
    if not _alphabet(script):
        script = "LATIN"
    mean = len(signs) / len(words)
    if script in _WHOLE:
        return Shape(script, min(len(words), 3), min(max(round(mean), 1), 4))
    return Shape(script, min(len(words), 3), 4 if mean < 5 else 6 if mean < 7.5 else 9)


def names(of: Shape, n: int, taken: Callable[[str], bool] = lambda word: False) -> list[str]:
    """n distinct nonsense names; the same each time, and the first ones of a longer list.

    Args:
        taken: Whether a word means something; such words are passed over.
    """
    rng = random.Random(repr(of))
    found: dict[str, None] = {}
    for _ in range(1000 * n):
        name = " ".join(_word(of, rng) for _ in range(of.words))
        if not any(taken(word) for word in name.split()):
            found.setdefault(name)
        if len(found) == n:
            break
    return list(found)


def _word(of: Shape, rng: random.Random) -> str:
    if of.script != "LATIN":
        return "".join(rng.choice(_alphabet(of.script)) for _ in range(of.letters))
    first = rng.randrange(2)
    return "".join(rng.choice(_VOWELS if (i + first) % 2 else _CONSONANTS) for i in range(of.letters))


def _script(sign: str) -> str | None:
    """The script of a letter, None for what belongs to any."""
    category = unicodedata.category(sign)
    if category == "So":
        return "SYMBOL"
    return unicodedata.name(sign, "").split(" ")[0] or None if category[0] == "L" else None


@cache
def _alphabet(script: str) -> tuple[str, ...]:
    """The letters of a script, of an alphabet its first 32, which are the usual ones; none beyond the basic plane."""
    if script == "SYMBOL":
        return tuple(map(chr, _SYMBOLS))
    named = ((chr(code), unicodedata.name(chr(code), "")) for code in range(0x61, 0xD7A4))
    letters = [
        letter
        for letter, name in named
        if name.startswith(f"{script} ") and " WITH " not in name and unicodedata.category(letter) in ("Ll", "Lo")
    ]
    return tuple(letters if script in _WHOLE else letters[:32])
