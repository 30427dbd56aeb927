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
    positions = [aligned(target, anchor, tokens, model.length) for target, anchor in pairs]
    sides = []
    for side in (0, 1):  # targets and anchors are encoded apart: an anchor serves many targets
        wanted: dict[tuple[int, ...], int] = {}  # every distinct prompt once, no further than needed
        for pair, matched in zip(pairs, positions, strict=True):
            ids = pair[side].ids
            wanted[ids] = max(wanted.get(ids, 0), 1 + max(place[side] for place in matched))
        encoded = model.states(tuple(wanted), tuple(wanted.values()))
        states = dict(zip(wanted, encoded, strict=True))
        rows = [
            states[pair[side].ids][[place[side] for place in matched]]
            for pair, matched in zip(pairs, positions, strict=True)
        ]
        sides.append(torch.cat(rows).T.double())
    return sides[0], sides[1]


def columns(model: Model, prompts: Sequence[Prompt], tokens: Tokens) -> Tensor:
    """Embeddings of prompts at the positions that `tokens` names: (d, n) float64."""
    if not prompts:
        return torch.empty(model.gram.shape[0], 0, dtype=torch.float64)
    return paired_columns(model, [(p, p) for p in prompts], tokens)[0]


def fold(model: Model, operator: LowRank) -> dict[str, LowRank]:
    """The operator D on the text stream as a change of every layer that reads it: `W' = W (I + D)`."""
    return {path: operator.folded_into(model.weight(path)) for path in model.stream_layers()}


def seen_size(x: Tensor, gram: Tensor) -> float:
    """Root mean square over columns of `||W x||`, summed over layers: how large the denoiser sees x (d, n)."""
    if x.shape[1] == 0:
        return 0.0
    return (x * (gram @ x)).sum().clamp_min(0).div(x.shape[1]).sqrt().item()
