"""The operator of a closed form as a file of its own, with gates that tell whether a concept is in a prompt.

A gated pipeline applies the operator to the prompt embeddings only where a concept is present. A gate knows the concept
by its token ids, and, once one was fitted (`add_probes`), by a probe on the text encoder's hidden states where no text
is at hand: the linear discriminant between prompts with the concept and prompts without it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concept_erase import __version__
from concept_erase.concepts import Concept, Kind, fill
from concept_erase.errors import AdapterFileError, InputError
from concept_erase.formats import OPERATOR_ENDING as ENDING
from concept_erase.formats import read_safetensors, write_safetensors
from concept_erase.lowrank import LowRank, check_finite
from concept_erase.model import Model
from concept_erase.names import holds
from concept_erase.streams import read as read_prompt
from concept_erase.surroundings import alone, slots, spread, surroundings

_OLD_NAME = "operator.safetensors"  # what earlier versions wrote
_CONTEXTS = 16  # a direction needs few
_OTHERS = 160  # prompts of other concepts, and as many of random words
_WHOLE = 8  # how many of them are read to the last padding position
_RIDGE = 1e-3  # of the mean variance
_HITS = 0.95  # of the prompts with the concept that a probe must find to be kept; of the others none

Words = tuple[tuple[int, ...], ...]  # token ids, each in one piece
Read = tuple[str, tuple[int, ...], Tensor]  # a prompt, its token ids, and its hidden states (n, d) that are looked at


@dataclass(frozen=True, eq=False)
class Gate:
    """How a concept is recognised in a prompt.

    Attributes:
        words: Token ids that mean the concept, in one piece; the tokenizer has taken case and spacing away.
        direction, threshold: The probe: where a hidden state x (d) has `x @ direction > threshold`, the concept is
            there. None where no probe tells the concept from its neighbours.
        hits, alarms: (found, of how many) of held-out prompts with and without the concept, by the probe.
    """

    words: Words
    direction: Tensor | None
    threshold: float
    hits: tuple[int, int]
    alarms: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Operator:
    """What an operator file (`.operator`, in the safetensors layout) holds.

    Attributes:
        change: The operator D = up @ down on the text stream, (d, d): an embedding x becomes x + D x.
        concepts, gates: What it erases, and how each is recognised.
        base: What identifies the base model, as `Model.base` has it.
        family: Row of the families table.
        version: Of the package that wrote it.
    """

    change: LowRank
    concepts: tuple[Concept, ...]
    gates: tuple[Gate, ...]
    base: dict[str, Any]
    family: str
    version: str


def write(
    path: Path, model: Model, concepts: Sequence[Concept], operator: LowRank, *, probes: bool = False
) -> Operator:
    """Write an operator with its gates; the same operator gives the same bytes.

    Args:
        operator: D (d, d) on the text stream, as `Edit.operator` holds it.
        probes: Fit each gate's probe, which takes longer than most edits; without, a concept is known by its words
            alone, and nothing is encoded.
    Raises:
        NumericalError: it is not finite.
        OutputError: the file cannot be written; none is left then.
    """
    change = (operator if operator.even else operator.balanced()).to(torch.float32)
    check_finite({"the text stream": change})
    gates = tuple(
        gate(model, concept) if probes else Gate(_words(model, concept), None, 0.0, (0, 0), (0, 0))
        for concept in concepts
    )
    base = model.base
    written = Operator(change, tuple(concepts), gates, base, model.family.name, __version__)
    none = torch.zeros(change.shape[1])
    tensors = {
        "up": change.up.contiguous(),
        "down": change.down.contiguous(),
        "directions": torch.stack([none if g.direction is None else g.direction for g in gates]),
        "thresholds": torch.tensor([g.threshold for g in gates], dtype=torch.float32),
    }
    ours = {
        "form": "operator",
        "concepts": [_described(c, g) for c, g in zip(concepts, gates, strict=True)],
        "base": base,
        "family": model.family.name,
        "version": __version__,
    }
    write_safetensors(path, tensors, {"concept_erase": json.dumps(ours, ensure_ascii=False, sort_keys=True)})
    return written


def _described(concept: Concept, gate: Gate) -> dict[str, Any]:
    return {
        "target": concept.target,
        "kind": concept.kind.value,
        "anchor": concept.anchor,
        "preserve": list(concept.preserve),
        "words": [list(ids) for ids in gate.words],
        "probe": gate.direction is not None,
        "hits": list(gate.hits),
        "alarms": list(gate.alarms),
    }


def read(path: Path | str) -> Operator:
    """Read an operator file; a folder means the one in it.

    Raises:
        AdapterFileError: truncated, not safetensors, NaN or Inf, or no operator of this tool.
    """
    path = file_in(Path(path))
    tensors, metadata = read_safetensors(path, (ENDING, ".safetensors"))
    try:
        ours = json.loads(metadata["concept_erase"])
        if ours["form"] != "operator":
            raise KeyError("form")
        change = LowRank(tensors["up"], tensors["down"])
        directions, thresholds, listed = tensors["directions"], tensors["thresholds"], ours["concepts"]
        if change.shape != (directions.shape[1],) * 2 or not len(listed) == len(directions) == len(thresholds):
            raise ValueError(f"{change.shape}, {tuple(directions.shape)} and {len(listed)} concepts do not fit")
        concepts = tuple(Concept.recorded(c) for c in listed)
        gates = tuple(
            Gate(
                tuple(tuple(int(i) for i in ids) for ids in c["words"]),
                direction if c["probe"] else None,
                threshold.item(),
                (int(c["hits"][0]), int(c["hits"][1])),
                (int(c["alarms"][0]), int(c["alarms"][1])),
            )
            for c, direction, threshold in zip(listed, directions, thresholds, strict=True)
        )
        return Operator(change, concepts, gates, dict(ours["base"]), str(ours["family"]), str(ours["version"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise AdapterFileError(f"{path} is no operator file of this tool ({error}); pass a {ENDING} file.") from error


def add_probes(path: Path | str, model: Model) -> Operator:
    """Fit the probes of a file's gates and write it again; a folder means the one in it.

    Raises:
        AdapterFileError: it is no operator file of this tool.
        InputError: it was made for another base.
        OutputError: it cannot be written; it is as it was then.
    """
    path = file_in(Path(path))
    found = read(path)
    reason = model.identity.difference(found.base)
    if reason:
        raise InputError(f"{path} was made for {found.base.get('name')!r}: {reason}; pass that base as the model.")
    return write(path, model, found.concepts, found.change, probes=True)


def beside(adapter: Path) -> Path:
    """Where the operator of an adapter file lies."""
    return adapter.with_suffix(ENDING)


def file_in(path: Path) -> Path:
    """The operator file that a path means: itself, or the one in a folder.

    Raises:
        AdapterFileError: the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{ENDING}")) or sorted(path.glob(_OLD_NAME))
    if len(found) != 1:
        what = f"several operators ({', '.join(p.name for p in found[:3])})" if found else "no operator"
        raise AdapterFileError(f"{path} holds {what}; name a {ENDING} file, which closed forms write.")
    return found[0]


# -- gates ---------------------------------------------------------------------------------------------------------


def gate(model: Model, concept: Concept) -> Gate:
    """How the concept is recognised on this base.

    The probe is fitted on the kind's templates with a few contexts, and checked on other contexts: it is kept only if
    it finds the concept there and takes no other prompt for it. Among the others are the words of a name of several
    ("crying face"), each alone: where the text encoder cannot tell them from the name ("pixel" is "pixel art" to it),
    there is no probe.
    """
    words = _words(model, concept)
    held_out, others = _with(model, concept, 1), _without(model, concept, words, 1)
    direction, threshold, apart = discriminant(_with(model, concept, 0), _without(model, concept, words, 0))
    hits = sum(_found(rows, direction, threshold) for rows in held_out)
    alarms = sum(_found(rows, direction, threshold) for rows in others)
    usable = apart and hits >= _HITS * len(held_out) and alarms == 0
    return Gate(words, direction if usable else None, threshold, (hits, len(held_out)), (alarms, len(others)))


def discriminant(positives: Sequence[Tensor], negatives: Sequence[Tensor]) -> tuple[Tensor, float, bool]:
    """Linear discriminant in closed form: `w = (S + r I)^-1 (m1 - m0)`, S the covariance of the negatives.

    Args:
        positives: For each prompt with the concept, hidden states (n, d) at positions that carry it.
        negatives: For each prompt without it, states at all positions but the first.
    Returns:
        w (d,) float32 of length 1; a threshold two thirds of the way from the largest value on the negatives to the
        least of the positive prompts' largest; whether these two are in that order.
    """
    X1, X0 = torch.cat(list(positives)).double(), torch.cat(list(negatives)).double()
    m0 = X0.mean(0)
    S = (X0 - m0).T @ (X0 - m0) / len(X0)
    S.diagonal().add_(_RIDGE * S.trace() / len(S))
    w = torch.linalg.solve(S, X1.mean(0) - m0)
    w = (w / w.norm()).float()
    low = max(float((rows @ w).max()) for rows in negatives)
    high = min(float((rows @ w).max()) for rows in positives)
    return w, (low + 2 * high) / 3, low < high


def _found(rows: Tensor, direction: Tensor, threshold: float) -> bool:
    return bool((rows @ direction).max() > threshold)


def _words(model: Model, concept: Concept) -> Words:
    """Token ids of the name, also without the punctuation around it, which merges with what follows."""
    bare = concept.target.strip("".join(c for c in set(concept.target) if not c.isalnum()))
    if concept.target in model.tokenizer.added_tokens_encoder:
        bare = ""  # "<cat>" of a textual inversion is no cat
    found = dict.fromkeys(tuple(model.token_ids(name)[1:-1]) for name in (concept.target, bare) if name)
    return tuple(ids for ids in found if ids)


def _holds(ids: Sequence[int], words: Words) -> bool:
    return any(tuple(ids[i : i + len(w)]) == w for w in words for i in range(len(ids) - len(w) + 1))


def _encoded(model: Model, lines: Sequence[str], whole: int = 0) -> list[Read]:
    """Each distinct prompt with its states after BOS, to EOS; of the first `whole` to the last padding position."""
    rows: dict[tuple[int, ...], str] = {}
    for line in lines:
        rows.setdefault(model.tokenize(line), line)
    fitting = [ids for ids in rows if len(ids) <= model.length and max(ids) < model.vocabulary]
    upto = [model.length if i < whole else len(ids) for i, ids in enumerate(fitting)]
    states = model.encode(fitting, upto)
    return [(rows[ids], ids, of[1:]) for ids, of in zip(fitting, states, strict=True)]


def _with(model: Model, concept: Concept, part: int) -> list[Tensor]:
    """States of prompts with the concept, from its last token to EOS."""
    places = [("{target}", ""), *slots(model, concept, _CONTEXTS, part)]
    prompts = list({p.ids: p for p in (read_prompt(model, t, concept.target, c) for t, c in places)}.values())
    states = model.encode([p.ids for p in prompts], [p.end + 1 for p in prompts])
    return [s[p.last :] for p, s in zip(prompts, states, strict=True)]


def _others(model: Model, kind: Kind, part: int) -> list[Read]:
    """Prompts of the whole domain of a kind, and of random words and syllables; read once for a model."""

    def make() -> list[Read]:
        anybody = Concept("nobody", kind)  # so that the domain is complete, with the concept that is asked for
        around = surroundings(model, anybody)
        rng = random.Random(part)
        places = [(t, n, c) for n in around.neighbours for t, c in slots(model, anybody, 24, part)]
        lines = ["", *(fill(*place) for place in rng.sample(places, min(_OTHERS, len(places))))]
        lines += [f"a {name}" for name in around.neighbours]
        lines += [fill(t, c) for c in spread(around.contexts, 24) for t in alone(model)]
        pieces = sorted(p.replace("</w>", " ") for p in model.tokenizer.get_vocab())
        pieces = [p for p in pieces if p.isascii() and p.strip().isalpha()]
        lines += ["".join(rng.sample(pieces, rng.randint(1, 9))) for _ in range(_OTHERS)]
        return _encoded(model, lines, whole=_WHOLE)

    return model.remembered((Gate, kind, part), make)


def _without(model: Model, concept: Concept, words: Words, part: int) -> list[Tensor]:
    """States of prompts without the concept: of its domain, of what the user preserves, of each of its words alone."""
    template = ("a {}", "{} art")[part]
    lines = [template.format(name) for name in concept.preserve]
    pieces = concept.target.split()
    if len(pieces) > 1:
        lines += [template.format(piece) for piece in pieces] + (pieces if part == 0 else [])
    mine = _encoded(model, lines) if lines else []
    others = (*_others(model, concept.kind, part), *mine)
    return [rows for line, ids, rows in others if not _holds(ids, words) and not holds(line, concept.target)]
