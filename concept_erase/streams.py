"""The text stream of a model: which embeddings of a concept pair with which of its anchor, and folding an operator.

An edit of the form `W' = W (I + D)` has one `D` for all layers that read the same stream, so it is solved once,
in float64, and folded into each layer exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from concept_erase.concepts import fill
from concept_erase.errors import InputError
from concept_erase.lowrank import LowRank
from concept_erase.model import Model

PADDING = 4  # positions behind EOS that stand for all; see `condensed_columns`
TRIED = 8  # prompts of a name that are encoded apart, so that a trial with these alone is a part of the whole


class Tokens(StrEnum):
    """Which positions of a prompt an edit moves."""

    SUBJECT = "subject"  # the last token of the concept
    SUBJECT_TO_END = "subject_to_end"  # that one, the words after it, EOS and the padding
    ALL = "all"  # every token of the concept and all that follows


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt and the place of the concept in it.

    Attributes:
        ids: Token ids from BOS to EOS, unpadded.
        first, last: Positions of the concept's first and last token.
    """

    ids: tuple[int, ...]
    first: int
    last: int

    @property
    def end(self) -> int:
        """Position of EOS."""
        return len(self.ids) - 1


def read(model: Model, template: str, name: str, context: str = "") -> Prompt:
    """Tokenize a template with `name` in the place of `{target}`.

    Raises:
        InputError: the prompt exceeds the text encoder's limit.
    """
    before, _, after = template.replace("{context}", context).partition("{target}")
    ids = model.token_ids(fill(template, name, context))
    front = len(model.token_ids(before.rstrip())) - 1  # BOS and the words before
    tail = len(model.token_ids(after.lstrip())) - 1  # the words after and EOS
    last = len(ids) - tail - 1
    if last < front:
        raise InputError(
            f"{name!r} has no tokens of its own in {fill(template, name, context)!r}; name it differently."
        )
    return Prompt(tuple(ids), front, last)


def aligned(target: Prompt, anchor: Prompt, tokens: Tokens, length: int) -> list[tuple[int, int]]:
    """Pairs (position in target, position in anchor) that mean the same.

    Concept tokens pair from their last one backwards, following words by their distance from the concept, EOS with
    EOS, and padding by its absolute position. What stands before the concept is equal in both (the encoder is causal)
    and is left out.
    """
    pairs = [(target.last, anchor.last)]
    if tokens is Tokens.SUBJECT:
        return pairs
    if tokens is Tokens.ALL:
        pairs = [
            (p, max(anchor.last - (target.last - p), anchor.first)) for p in range(target.first, target.last)
        ] + pairs
    pairs += [(target.last + k, min(anchor.last + k, anchor.end)) for k in range(1, target.end - target.last + 1)]
    pairs += [(p, min(max(p, anchor.end + 1), length - 1)) for p in range(target.end + 1, length)]
    return pairs


def paired_columns(model: Model, pairs: Sequence[tuple[Prompt, Prompt]], tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Embeddings of the targets and, in the same order, of what they shall become.

    Returns:
        C and G, each (d, n) float64.
    """
    return _columns(model, pairs, [aligned(target, anchor, tokens, model.length) for target, anchor in pairs])


def condensed_columns(
    model: Model, pairs: Sequence[tuple[Prompt, Prompt]], tokens: Tokens, padding: int = PADDING, slots: bool = False
) -> tuple[Tensor, Tensor, int]:
    """`paired_columns` in fewer columns of nearly the same second moments, with most of the padding not computed.

    Behind EOS the states of a prompt come to rest, and what still changes from position to position changes much alike
    in all prompts. So the last of `padding` positions stands for all that follow, which are taken to differ from it as
    those of the empty prompt do: it is moved to their mean and counted as often, and how they spread around that, which
    is equal in targets and anchors, is added once for all prompts. The shorter of the two goes on in the same way
    until the longer one rests.

    Args:
        padding: How many positions behind its end are computed of a prompt.
        slots: The pairs are a name in places that other names come into as well: what stands before it is computed
            once for all of them, and the first `TRIED` pairs in a call of their own, which a trial with them shares.
    Returns:
        C and G, (d, k) float64, multiplied by the roots of their numbers, and n, how many columns they stand for.
    """
    length = model.length
    places = [aligned(target, anchor, tokens, length) for target, anchor in pairs]
    n = sum(map(len, places))
    lasts = [max(target.end, anchor.end) + padding for target, anchor in pairs]
    if tokens is Tokens.SUBJECT or min(lasts) >= length - 1:
        return *_columns(model, pairs, places, slots=slots), n
    few = [[place for place in matched if place[0] <= last] for matched, last in zip(places, lasts, strict=True)]
    C, G = _columns(model, pairs, few, padding, slots)
    rest = _reference(model)  # (length, d)
    ends = torch.tensor([len(matched) for matched in few]).cumsum(0) - 1
    numbers = torch.ones(C.shape[1], dtype=torch.float64)
    spread = torch.zeros(length, length, dtype=torch.float64)  # over positions of the empty prompt
    for end, last in zip(ends.tolist(), lasts, strict=True):
        if last < length - 1:
            numbers[end] = length - last
            ahead = rest[last:].mean(0) - rest[last]
            C[:, end] += ahead
            G[:, end] += ahead
            spread[last:, last:] += torch.eye(length - last) - 1 / (length - last)
    values, vectors = torch.linalg.eigh(spread)
    around = rest.T @ (vectors * values.clamp_min(0).sqrt())[:, values > 1e-9]
    C, G = (torch.cat([side * numbers.sqrt(), around], dim=1) for side in (C, G))
    return C, G, n


def _reference(model: Model) -> Tensor:
    """States of the empty prompt at all positions, (length, d) float64."""

    def make() -> Tensor:
        (states,) = model.encode([model.token_ids("")], [model.length])
        return states.double()

    return model.remembered("the empty prompt", make)


def _columns(
    model: Model,
    pairs: Sequence[tuple[Prompt, Prompt]],
    positions: Sequence[Sequence[tuple[int, int]]],
    padding: int | None = None,
    slots: bool = False,
) -> tuple[Tensor, Tensor]:
    """The states of both sides at matching positions, each (d, n) float64.

    Args:
        padding: As in `condensed_columns`; None computes all.
    """
    sides = []
    for side in (0, 1):  # targets and anchors are encoded apart: an anchor serves many targets
        rows = []
        for start, stop in ((0, TRIED), (TRIED, None)) if slots else ((0, None),):
            prompts = [pair[side] for pair in pairs[start:stop]]
            places = [[place[side] for place in matched] for matched in positions[start:stop]]
            rows += _at(model, prompts, places, padding, slots)
        sides.append(torch.cat(rows).T)
    return sides[0], sides[1]


def _at(
    model: Model, prompts: Sequence[Prompt], places: Sequence[Sequence[int]], padding: int | None, slots: bool
) -> list[Tensor]:
    """Of each prompt the states at its places, (places, d) float64; all prompts are encoded in one call."""
    wanted: dict[tuple[int, ...], int] = {}  # every distinct prompt once, no further than needed
    for prompt, mine in zip(prompts, places, strict=True):
        need = 1 + max(mine) if padding is None else min(prompt.end + 1 + padding, model.length)
        wanted[prompt.ids] = max(wanted.get(prompt.ids, 0), need)
    fronts = tuple(prompt.ids[: prompt.first] for prompt in prompts) if slots else ()
    encoded = model.states(tuple(wanted), tuple(wanted.values()), fronts)
    states = {ids: found.double() for ids, found in zip(wanted, encoded, strict=True)}
    rows = []
    for prompt, mine in zip(prompts, places, strict=True):
        held, need = states[prompt.ids], 1 + max(mine)
        if need > len(held):
            rest = _reference(model)
            held = torch.cat([held, held[-1] + rest[len(held) : need] - rest[len(held) - 1]])
        rows.append(held[list(mine)])
    return rows


def columns(model: Model, prompts: Sequence[Prompt], tokens: Tokens) -> Tensor:
    """Embeddings of prompts at the positions that `tokens` names: (d, n) float64."""
    if not prompts:
        return torch.empty(model.gram.shape[0], 0, dtype=torch.float64)
    return paired_columns(model, [(p, p) for p in prompts], tokens)[0]


def fold(model: Model, operator: LowRank) -> dict[str, LowRank]:
    """The operator D on the text stream as a change of every layer that reads it: `W' = W (I + D)`.

    Multiplied in the weights' single precision, as files hold no more: in double the conversion of all weights takes
    longer than the product.
    """
    single = LowRank(operator.up.float(), operator.down)
    folded = {path: single.folded_into(model.weight(path)) for path in model.stream_layers()}
    return {path: LowRank(change.up.to(operator.up.dtype), operator.down) for path, change in folded.items()}


def seen_size(x: Tensor, gram: Tensor) -> float:
    """Root mean square over columns of `||W x||`, summed over layers: how large the denoiser sees x (d, n)."""
    if x.shape[1] == 0:
        return 0.0
    return (x * (gram @ x)).sum().clamp_min(0).div(x.shape[1]).sqrt().item()
