"""What must stay on a base that no list describes: computed once for a base and kept on disk.

The moments of all prompts of its vocabulary are a sum; a concept takes away those in which it is said, and counts those
of its nearest words more. So the retain set of a further concept costs a few products and no encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from concept_erase import memory
from concept_erase.concepts import Concept
from concept_erase.model import Model, one_thread
from concept_erase.moments import Kept, beginnings, of_kept
from concept_erase.streams import PADDING, Prompt, Tokens, condensed_columns
from concept_erase.surroundings import (
    WEIGHT,
    Spoken,
    close_words,
    empty_prompt,
    free_of,
    named,
    preserved_groups,
    said_of_words,
)

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Retained:
    """Attributes:
    spoken: The prompts.
    states: Token ids of each -> its embeddings, as far as they are needed.
    total: Moments of all.
    """

    spoken: tuple[Spoken, ...]
    states: dict[tuple[int, ...], Tensor]
    total: Kept


def kept(
    model: Model, concepts: Sequence[Concept], n: int, tokens: Tokens, part: int = 0, padding: int = PADDING
) -> Kept:
    """Moments of all that must stay: those of `preserved_groups`, to rounding."""
    if model.is_embedded or n == 0:
        return of_kept(model, preserved_groups(model, concepts, n, part), tokens, padding)
    around = tuple((c.target, c.kind, c.preserve) for c in concepts)  # whatever each of them becomes
    make = partial(_kept, model, concepts, n, tokens, part, padding)
    return model.remembered((kept, around, n, tokens, part, padding), make)


def _kept(model: Model, concepts: Sequence[Concept], n: int, tokens: Tokens, part: int, padding: int) -> Kept:
    held = model.remembered((Retained, n, tokens, part, padding), lambda: _retained(model, n, tokens, part, padding))
    free = free_of(held.spoken, concepts)
    stays, near = {s.prompt for s in free}, close_words(model, concepts)
    found = of_kept(model, [(empty_prompt(model),), *named(model, concepts, part)], tokens, padding) + held.total
    found = found - _of(model, held, [s.prompt for s in held.spoken if s.prompt not in stays], tokens, padding)
    return found + _of(model, held, [s.prompt for s in free if s.word in near], tokens, padding).times(WEIGHT - 1)


def _of(model: Model, held: Retained, prompts: Sequence[Prompt], tokens: Tokens, padding: int) -> Kept:
    """Moments of some of the prompts, their first tokens among them."""
    if not prompts:
        return Kept.none(model)
    with model.serving(held.states):
        P, _, n = condensed_columns(model, [(p, p) for p in prompts], tokens, padding)
    return Kept.of(P, n) + beginnings(model, len(prompts))


def _retained(model: Model, n: int, tokens: Tokens, part: int, padding: int) -> Retained:
    spoken = said_of_words(model, n, part)
    rows = tuple(s.prompt.ids for s in spoken)
    upto = tuple(min(s.prompt.end + 1 + padding, model.length) for s in spoken)
    on = {"text encoder": model.text_hash, "version": _VERSION, "rows": rows, "upto": upto}

    def encoded() -> dict[str, Tensor]:
        return {"states": torch.cat(model.encode(rows, upto))}

    with one_thread():  # whoever computes it gets the same bits
        states = memory.kept({**on, "what": "states"}, encoded)["states"]
        served = dict(zip(rows, states.split(list(upto)), strict=True))
        held = Retained(spoken, served, Kept.none(model))
        places = [(s.prompt.first, s.prompt.last) for s in spoken]

        def summed() -> dict[str, Tensor]:
            total = _of(model, held, [s.prompt for s in spoken], tokens, padding)
            return {"PP": total.PP, "n": torch.tensor(float(total.n))}

        known = {**on, "what": "moments", "tokens": tokens.value, "padding": padding, "places": places}
        sums = memory.kept(known, summed)
    return Retained(spoken, served, Kept(sums["PP"], int(sums["n"])))
