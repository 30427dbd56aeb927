"""The pass of a CLIP text encoder over the distinct beginnings of many prompts, each computed once.

The encoder is causal: a state depends on the tokens up to its own. What prompts have in common at their front ("a cat
in ...") is one beginning of all of them, so everything but attention is computed on beginnings, not on prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from concept_erase.layers import unwrapped

_TOKENS = 4096  # of the prompts that are computed together; bounds the memory


def plain(encoder: nn.Module) -> bool:
    """Whether the pass here is that of the module: a CLIPTextModel as transformers makes it, in float32 on the CPU.

    Embeddings, norms, projections and MLPs are called as they are, whatever was put on them. What holds them is passed
    by, so nothing may hang on it but accelerate's hooks, which only move tensors.
    """
    if type(encoder).__name__ != "CLIPTextModel" or encoder.training:
        return False
    if getattr(encoder.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    for module in encoder.modules():
        if not _on_cpu(getattr(module, "_hf_hook", None)):
            return False
    inner, blocks = _parts(encoder)
    holders = [encoder, inner, inner.embeddings, unwrapped(inner.encoder), *blocks, *(b.self_attn for b in blocks)]
    if not all(map(_untouched, map(unwrapped, holders))):
        return False
    weights = list(encoder.parameters())
    return all(
        type(w) is nn.Parameter and w.dtype is torch.float32 and w.device.type in ("cpu", "meta") for w in weights
    )


def _parts(encoder: Any) -> tuple[Any, list[Any]]:
    """The transformer, which earlier versions of transformers hold one level down, and its blocks."""
    inner = unwrapped(getattr(encoder, "text_model", encoder))
    return inner, [unwrapped(block) for block in unwrapped(inner.encoder).layers]


def _untouched(module: nn.Module) -> bool:
    own = "forward" not in vars(module) or hasattr(module, "_hf_hook")
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith("transformers.") and own and not hooked


def _on_cpu(hook: Any) -> bool:
    """Whether accelerate's hook, if there is one, leaves the computing on the CPU."""
    devices = (getattr(h, "execution_device", None) for h in getattr(hook, "hooks", (hook,)))
    return all(device is None or str(device) == "cpu" for device in devices)


@dataclass(frozen=True, eq=False)
class Fronts:
    """Beginnings that many prompts share, passed through the encoder once for all calls that follow.

    Attributes:
        numbers: (number of the beginning before, last token of this one) -> its number; -1 is before the first.
        seen: Of each block the keys and values, each (n, d).
        states: Last hidden states, (n, d).
    """

    numbers: dict[tuple[int, int], int]
    seen: list[tuple[Tensor, Tensor]]
    states: Tensor


def fronts(encoder: nn.Module, rows: Sequence[Sequence[int]]) -> Fronts:
    """Of the beginnings `rows`, none of them empty, what `states` needs not compute again.

    Args:
        encoder: For which `plain` holds.
    """
    return _pass(encoder, rows, None)[1]


def states(encoder: nn.Module, rows: Sequence[Sequence[int]], known: Fronts | None = None) -> list[Tensor]:
    """Last hidden states of token rows, for each (length of the row, d) float32.

    Args:
        encoder: For which `plain` holds.
        known: Beginnings that are passed already.
    """
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))  # neighbours begin alike
    start = 0
    while start < len(order):
        stop, widest = start, 0
        while stop < len(order):
            widest = max(widest, len(rows[order[stop]]))
            if stop > start and widest * (stop + 1 - start) > _TOKENS:
                break
            stop += 1
        mine = order[start:stop]
        for i, h in zip(mine, _pass(encoder, [rows[i] for i in mine], known)[0], strict=True):
            found[i] = h
        start = stop
    return found


def _pass(encoder: Any, rows: Sequence[Sequence[int]], known: Fronts | None) -> tuple[list[Tensor], Fronts]:
    """The states of the rows, and what is known after them."""
    inner, blocks = _parts(encoder)
    width = max(map(len, rows))
    numbers = dict(known.numbers) if known else {}
    old = len(numbers)
    ends: list[tuple[int, int]] = []  # of each new beginning its token and position
    firsts: list[int] = []  # where it stands first among all positions of all rows
    places = torch.zeros(len(rows), width, dtype=torch.long)  # behind a row's end anything: nothing looks there
    for r, row in enumerate(rows):
        before = -1
        for p, token in enumerate(row):
            if (before, token) not in numbers:
                numbers[before, token] = old + len(ends)
                ends.append((token, p))
                firsts.append(r * width + p)
            before = numbers[before, token]
            places[r, p] = before
    tokens, positions = torch.tensor(ends, dtype=torch.long).view(-1, 2).T
    first = torch.tensor(firsts, dtype=torch.long)
    seen: list[tuple[Tensor, Tensor]] = []
    x = inner.embeddings.token_embedding(tokens) + inner.embeddings.position_embedding(positions)
    for number, layer in enumerate(blocks):
        attention = unwrapped(layer.self_attn)
        h = layer.layer_norm1(x)

        def by_row(projected: Tensor, heads: int = attention.num_heads) -> Tensor:
            return projected[places].unflatten(-1, (heads, -1)).transpose(1, 2)

        query, key, value = attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)
        if known:
            key, value = (torch.cat(side) for side in zip(known.seen[number], (key, value), strict=True))
            query = torch.cat([query.new_zeros(old, query.shape[1]), query])  # nobody reads what these find
        seen.append((key, value))
        mixed = nn.functional.scaled_dot_product_attention(
            by_row(query), by_row(key), by_row(value), is_causal=True, scale=attention.scale
        )
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2).flatten(0, 1)[first])
        x = x + layer.mlp(layer.layer_norm2(x))
    x = inner.final_layer_norm(x)
    if known:
        x = torch.cat([known.states, x])
    return [x[places[r, : len(row)]] for r, row in enumerate(rows)], Fronts(numbers, seen, x)
