"""The tokenizer (byte-level BPE in CLIPTokenizer form) and the captions as tokens."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from . import art

VOCABULARY = 3000
LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's pattern


def captions() -> dict[str, list[str]]:
    """Every training caption by kind; "pair" is ordered (style, object, template)."""
    styles, objects = art.style_names(), art.object_names()
    return {
        "pair": [t.format(s=s, o=o) for s in styles for o in objects for t in art.PAIR_CAPTIONS],
        "object": [t.format(o=o) for o in objects for t in art.OBJECT_CAPTIONS],
        "style": [t.format(s=s) for s in styles for t in art.STYLE_CAPTIONS],
    }


def build_tokenizer(work: Path) -> CLIPTokenizer:
    """Train on the captions and the words of every icon name; write CLIP's vocab.json and merges.txt."""
    folder = work / "tokenizer"
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            end_of_word_suffix="</w>",
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        known = [line for lines in captions().values() for line in lines]
        bpe.train_from_iterator([*known, *art.icon_words(work)], trainer)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
        # Every byte, inside a word and at its end, so that any string has tokens.
        tokens = [*alphabet, *(a + "</w>" for a in alphabet)]
        room = VOCABULARY - len(tokens) - 2
        tokens += list(dict.fromkeys("".join(m) for m in merges[:room]))
        tokens += [START, END]
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
        lines = ["#version: 0.2", *(" ".join(m) for m in merges[:room])]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH, pad_token=END
    )


def tokenize(tokenizer: CLIPTokenizer, lines: list[str]) -> Tensor:
    """(n, LENGTH) token ids; a line that does not fit is an error, not a silent cut."""
    ids = tokenizer(lines, padding="max_length", max_length=LENGTH).input_ids
    longest = max(len(row) for row in ids)
    if longest > LENGTH:
        raise ValueError(f"a caption takes {longest} tokens, the text encoder holds {LENGTH}")
    return torch.tensor(ids)
