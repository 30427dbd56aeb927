"""Tokenizer and text encoder of a Stable Diffusion 1 model: opened, checked, copied."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from concept_erase.checkpoint import Checkpoint
from concept_erase.errors import InputError, MissingModelError
from concept_erase.imports import unswept
from concept_erase.layers import tensor, walk

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

_TOKENIZERS = {"CLIPTokenizer", "CLIPTokenizerFast"}


def open_tokenizer(checkpoint: Checkpoint) -> CLIPTokenizer:
    """The tokenizer of a folder.

    Raises:
        InputError: it is of another kind.
        MissingModelError: it cannot be read.
    """
    with unswept():
        from transformers import CLIPTokenizer

    place, kind = checkpoint.part("tokenizer"), checkpoint.tokenizer_class
    if kind is not None and kind not in _TOKENIZERS:
        raise _of_another_kind(checkpoint.name, kind)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(place)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingModelError(f"the tokenizer in {place} cannot be read ({reason}); fetch it again.") from error
    # What is too long is refused by `Model.token_ids`, in a sentence of ours.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def check_tokenizer(name: str, tokenizer: CLIPTokenizer) -> None:
    """Refuse a tokenizer that is not that of CLIP, or does not put a text between its first and last token.

    Args:
        name: Of the base, for the message.
    """
    if not _TOKENIZERS & {kind.__name__ for kind in type(tokenizer).__mro__}:
        raise _of_another_kind(name, type(tokenizer).__name__)
    if tokenizer("").input_ids != [tokenizer.bos_token_id, tokenizer.eos_token_id] or tokenizer.pad_token_id is None:
        raise InputError(
            f"the tokenizer of {name} does not put a text between a first and a last token, or has none for padding; "
            "it is not that of a Stable Diffusion 1 model: fetch it again."
        )


def _of_another_kind(name: str, kind: str) -> InputError:
    return InputError(
        f"the tokenizer of {name} is a {kind}; Stable Diffusion 1 models have a CLIPTokenizer: pass one of those."
    )


def plain_copy(encoder: CLIPTextModel) -> CLIPTextModel:
    """A text encoder made anew with the weights of a live one, without its LoRAs, hooks and wrappers; on the CPU.

    Raises:
        InputError: it has more or other weights than its class.
    """
    with torch.random.fork_rng(devices=[]):
        twin = type(encoder)(copy.deepcopy(encoder.config)).float()
    own = {f"{p}.{name}": (m, name) for p, m in walk(encoder) for name, _ in m.named_parameters(recurse=False)}
    weights = dict(twin.named_parameters())
    if own.keys() != weights.keys():
        raise InputError(
            f"the text encoder was changed: {min(own.keys() ^ weights.keys())!r} is new in it or missing; open the "
            "base again."
        )
    for path, (module, name) in own.items():
        weights[path].data.copy_(tensor(module, name))
    return twin.eval().requires_grad_(False)
