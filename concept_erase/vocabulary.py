"""What a base can know, told by its own tokenizer and text encoder: no list of ours describes it.

A tokenizer holds as whole words what was frequent where it was made. A word means something to a text encoder if it
moves the embedding further than a nonsense word does; words that move it in the same direction are neighbours; and a
word that is said of things and leaves them apart ("pixel", "blue") combines with them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from concept_erase import memory, nonsense
from concept_erase.concepts import PROFILES, Concept, Kind, fill
from concept_erase.errors import InputError
from concept_erase.model import Model, one_thread

_VERSION = 1  # of what is kept on disk; another one is computed anew
_SEEN = 2000  # whole words that are looked at, the most frequent first
_NONSENSE = 64  # names that they are compared with
_QUANTILE, _MARGIN = 0.95, 1.3  # a word is known that is so much further away than this share of nonsense names
_LEAST = 48  # words that are taken to be known where nonsense is as far away as they are
_TOP = 400  # best known words: those that are tried as styles, and that hold a base in place
_THINGS = 12  # that words are said of as styles
_MODIFIERS = 48

_SAID = ("a {target}",)
_STYLED = ("{target} {context}",)  # of what was tried this tells styles from things best, and it is the shortest


@dataclass(frozen=True, eq=False)
class Slot:
    """Where words were put, and what each of them does there.

    Attributes:
        places: (template, context) of each prompt.
        null: Mean embeddings of nonsense names there, (places, d).
        words: Those that were put there.
        effects: How far each one's embedding is from `null`, the mean over the places, (words, d).
    """

    places: tuple[tuple[str, str], ...]
    null: Tensor
    words: tuple[str, ...]
    effects: Tensor


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words of a base, best known first.

    Attributes:
        words: Whole words of the tokenizer.
        known: Those that move the embedding further than nonsense does.
        modifiers: Known words that leave what they are said of as it is, the best first.
        things: Slot in which words are things, which has all `words`.
        styles: Slot in which they are styles, which has those of the first known words that mean something there.
    """

    words: tuple[str, ...]
    known: tuple[str, ...]
    modifiers: tuple[str, ...]
    things: Slot
    styles: Slot

    @property
    def top(self) -> tuple[str, ...]:
        """The words that hold a base in place: known or next to it."""
        return self.words[:_TOP]


def whole_words(model: Model) -> tuple[str, ...]:
    """Words of three letters or more that are one token each, the most frequent first; nothing is encoded.

    The pieces that end a word ("moji", "yle") are among them: only the text encoder tells them apart.
    """

    def make() -> tuple[str, ...]:
        pieces = model.tokenizer.get_vocab().items()
        ranked = sorted((i, piece.removesuffix("</w>")) for piece, i in pieces if piece.endswith("</w>"))
        return tuple(word for _, word in ranked if len(word) > 2 and word.isascii() and word.isalpha())

    return model.remembered((whole_words, len(model.tokenizer)), make)  # a textual inversion makes it longer


def vocabulary(model: Model) -> Vocabulary:
    """The words of a base; computed once for a text encoder, and kept on disk."""
    return model.remembered(Vocabulary, lambda: _described(model))


def nearest(model: Model, concept: Concept, names: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """Words that do what the concept does, as the denoiser sees it, nearest first, with the cosine of the two effects.

    Args:
        names: To be ranked; the known words when None.
    """
    words = vocabulary(model)
    slot = words.styles if concept.kind is Kind.STYLE else words.things
    if names is None:
        listed, effects = list(slot.words[: len(words.known)]), slot.effects[: len(words.known)]
    else:
        listed, effects = list(names), _effects(model, slot, names)
    mine = _effects(model, slot, [concept.target])[0]
    seen = effects.double() @ model.gram
    sizes = (seen * effects).sum(1).clamp_min(1e-12).sqrt() * (mine @ model.gram @ mine).clamp_min(1e-12).sqrt()
    cosines = (seen @ mine) / sizes
    order = cosines.argsort(descending=True, stable=True).tolist()
    return [(listed[i], float(cosines[i])) for i in order]


def knows(model: Model, names: Sequence[str]) -> list[bool]:
    """Whether each name moves the embedding further than nonsense of as many words does.

    That is no proof that it can be drawn.
    """
    slot = vocabulary(model).things
    found = []
    for name, effect in zip(names, _effects(model, slot, names), strict=True):
        alike = _nonsense_states(model, min(len(name.split()), 3))
        null = alike.mean(0)
        moved = effect + (slot.null - null).mean(0)
        found.append(bool(effect.any()) and float(moved.norm()) > _bound(null, alike))
    return found


# -- computing it --------------------------------------------------------------------------------------------------


def _described(model: Model) -> Vocabulary:
    seen = whole_words(model)[:_SEEN]
    on = {"text encoder": model.text_hash, "version": _VERSION}

    def things() -> dict[str, Tensor]:
        return {"words": _states(model, seen, [(t, "") for t in _SAID]), "nonsense": _nonsense_states(model)}

    with one_thread():  # whoever computes it gets the same bits
        said = memory.kept({**on, "what": "things", "words": seen}, things)
    null = said["nonsense"].mean(0)
    effects = said["words"] - null
    sizes = effects.mean(1).norm(dim=1)
    order = sizes.argsort(descending=True, stable=True).tolist()
    words = tuple(seen[i] for i in order)
    known = int((sizes > _bound(null, said["nonsense"])).sum())
    known = min(max(known, _LEAST), len(words))
    slot = Slot(tuple((t, "") for t in _SAID), null, words, effects.mean(1)[order])
    tried = words[: min(known, _TOP)]
    contexts = random.Random(0).sample(tried[:100], min(_THINGS, len(tried)))
    places = tuple((t, c) for t in _STYLED for c in contexts)

    def styles() -> dict[str, Tensor]:
        few = _names(model)[: _NONSENSE // 2]
        return {"words": _states(model, tried, places), "nonsense": _states(model, few, places)}

    with one_thread():
        styled = memory.kept({**on, "what": "styles", "words": tried, "places": places}, styles)
    ground = styled["nonsense"].mean(0)
    moved = (styled["words"] - ground).mean(1)
    meaning = (moved.norm(dim=1) > _bound(ground, styled["nonsense"])).nonzero().flatten().tolist()
    if len(meaning) < _LEAST:
        meaning = sorted(moved.norm(dim=1).argsort(descending=True, stable=True).tolist()[:_LEAST])
    stay = _stay(styled["words"], ground, len(contexts))
    modifiers = sorted(meaning, key=lambda i: -float(stay[i]))[:_MODIFIERS]
    styles_slot = Slot(places, ground, tuple(tried[i] for i in meaning), moved[meaning])
    return Vocabulary(words, words[:known], tuple(tried[i] for i in modifiers), slot, styles_slot)


def _stay(states: Tensor, ground: Tensor, contexts: int) -> Tensor:
    """How far things stay apart when a word is said of them: 1 as under a nonsense word, 0 if they become one.

    Args:
        states: (words, places, d), the contexts of each template one after the other.
        ground: The same of nonsense, (places, d).
    """
    n, _, d = states.shape
    apart = states.view(n, -1, contexts, d)
    apart = apart - apart.mean(2, keepdim=True)
    before = ground.view(-1, contexts, d)
    before = before - before.mean(1, keepdim=True)
    return (apart * before).sum((1, 2, 3)) / before.square().sum().clamp_min(1e-12)


def _bound(null: Tensor, nonsense_states: Tensor) -> float:
    sizes = (nonsense_states - null).mean(1).norm(dim=1)
    return _MARGIN * float(sizes.quantile(_QUANTILE))


def _names(model: Model, words: int = 1) -> list[str]:
    known = set(whole_words(model))
    return nonsense.names(nonsense.Shape("LATIN", words, 6), _NONSENSE, known.__contains__)


def _nonsense_states(model: Model, words: int = 1) -> Tensor:
    """Of nonsense names of so many words, said as things: (names, places, d)."""

    def make() -> Tensor:
        return _states(model, _names(model, words), [(t, "") for t in _SAID])

    return model.remembered((Vocabulary, words), make)


def _effects(model: Model, slot: Slot, names: Sequence[str]) -> Tensor:
    """What names do in the places of a slot, (names, d) float64; 0 for one that does not fit the text encoder."""
    listed = dict(zip(slot.words, slot.effects, strict=True)) | _built_in(model, slot)
    rows = [
        listed[name]
        if name in listed
        else model.remembered((Slot, slot.places, name), lambda name=name: _effect(model, slot, name))  # type: ignore[misc]
        for name in names
    ]
    return torch.stack(rows).double() if rows else torch.zeros(0, slot.null.shape[1], dtype=torch.float64)


def _effect(model: Model, slot: Slot, name: str) -> Tensor:
    try:
        return (_states(model, [name], slot.places)[0] - slot.null).mean(0)
    except InputError:
        return torch.zeros_like(slot.null[0])


def _built_in(model: Model, slot: Slot) -> dict[str, Tensor]:
    """Effects of the names that every base is asked for, kept on disk."""
    styled = len(slot.places) > len(_SAID)
    kinds = (Kind.STYLE,) if styled else tuple(Kind)
    asked = [n for kind in kinds for n in (*PROFILES[kind].neighbours, *PROFILES[kind].anchors)]
    asked += () if styled else [n for kind in kinds for n in PROFILES[kind].contexts]
    names = tuple(dict.fromkeys(asked))

    def make() -> dict[str, Tensor]:
        return {"effects": torch.stack([_effect(model, slot, name) for name in names])}

    def kept() -> dict[str, Tensor]:
        on = {"text encoder": model.text_hash, "version": _VERSION, "what": "names"}
        with one_thread():
            found = memory.kept({**on, "names": names, "places": slot.places}, make)
        return dict(zip(names, found["effects"], strict=True))

    return model.remembered((Slot, slot.places), kept)


def _states(model: Model, names: Sequence[str], places: Sequence[tuple[str, str]]) -> Tensor:
    """The embeddings of EOS, (names, places, d) float32."""
    rows = [model.token_ids(fill(t, name, c)) for name in names for t, c in places]
    states = model.encode(rows, [len(row) for row in rows])
    return torch.stack([state[-1] for state in states]).view(len(names), len(places), -1)
