"""Several adapters at once, read one at a time: what is kept of each, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from concept_erase.adapter import Adapter
from concept_erase.concepts import Concept
from concept_erase.errors import BaseMismatchError
from concept_erase.identity import sketch_of
from concept_erase.interference.movement import Movement, Total, seen_factor
from concept_erase.layers import canonical_to_live, linear
from concept_erase.lowrank import LowRank
from concept_erase.methods import Progress
from concept_erase.model import Model
from concept_erase.names import folded

HELD = 2**29  # bytes of reduced adapters that are kept between reading and measuring; others are read again
ROWS = 512  # of factors that are multiplied at once


@dataclass(frozen=True, eq=False)
class Member:
    """What is kept of an adapter after it was read.

    Attributes:
        source: Where to read it again.
        factor: `seen_factor` of its changes of the denoiser; None if it changes the text encoder too, or is too large.
    """

    source: Adapter | Path | str
    title: str
    method: str
    digest: str
    concepts: tuple[Concept, ...]
    factor: Tensor | None


class Bundle:
    """Adapters read one at a time: checked, told apart, reduced to what is measured, and added up.

    Attributes:
        kept: The adapters, duplicates left out.
        notices: Which were duplicates.
        total: The sum of all their changes.
    """

    def __init__(self, model: Model, *, check: bool) -> None:
        self.model, self.check = model, check
        self.kept: list[Member] = []
        self.notices: list[str] = []
        self.total = Total()
        self._names: dict[str, str] = {}  # digest -> how the user calls it
        self._held = 0

    def add(self, source: Adapter | Path | str) -> None:
        """Read one adapter.

        Raises:
            BaseMismatchError: it is for another base.
            AdapterFileError: the file cannot be used.
        """
        adapter = source if isinstance(source, Adapter) else Adapter.load(source)
        name = repr(adapter.title) if isinstance(source, Adapter) else str(source)
        self._check_base(adapter, name)
        digest = adapter.digest
        if digest in self._names:
            self.notices.append(f"{name} is the same edit as {self._names[digest]}; counted once.")
            return
        self._names[digest] = name
        stream, encoder = parts(self.model, adapter.changes)
        factor = None
        if not encoder:
            factor = seen_factor(stream, self.model.gram.shape[0])
            self._held += factor.nbytes
            if self._held > HELD:
                self._held -= factor.nbytes
                factor = None
        self.total.add({**stream, **encoder})
        self.kept.append(Member(source, adapter.title, adapter.method, digest, adapter.concepts, factor))

    def targets(self) -> list[Concept]:
        """Each pair of target and anchor once, in the order of the adapters."""
        found: dict[tuple[str, str, str], Concept] = {}
        for member in self.kept:
            for c in member.concepts:
                key = (folded(c.target), folded(c.anchor or ""), c.kind.value)
                merged = found.get(key, Concept(c.target, c.kind, c.anchor))
                found[key] = Concept(merged.target, c.kind, merged.anchor, (*merged.preserve, *c.preserve))
        return list(found.values())

    def moves(self, movement: Movement, progress: Progress) -> Tensor:
        """(K, M) root mean square movement of each concept by each adapter."""
        out = torch.zeros(len(self.kept), movement.concepts, dtype=torch.float64)
        batch: list[int] = []
        for k, member in enumerate(self.kept):
            if member.factor is None:
                adapter = member.source if isinstance(member.source, Adapter) else Adapter.load(member.source)
                out[k] = movement.of(*parts(self.model, adapter.changes))
            else:
                batch.append(k)
            held = [f for i in batch if (f := self.kept[i].factor) is not None]
            if held and (k + 1 == len(self.kept) or sum(len(f) for f in held) >= ROWS):
                out[batch] = movement.of_streams(held)
                batch = []
            progress(k + 1, len(self.kept), "movement by each adapter")
        return out

    def _check_base(self, adapter: Adapter, name: str) -> None:
        model = self.model
        known = set(model.stream_layers())
        for path, change in adapter.changes.items():
            shape = tuple(model.weight(path).shape) if path in known else _encoder_shape(model, path)
            if shape is None:
                raise BaseMismatchError(
                    f"{name} changes {path}, which {model.name} does not have or which does not carry the text; "
                    "pass the base it was made for."
                )
            if shape != change.shape:
                raise BaseMismatchError(
                    f"{path} is {shape} in {model.name}, {name} changes {change.shape}; pass the base it was made for."
                )
        if not (self.check and adapter.base.get("hash")):
            return
        reason = model.identity.difference(adapter.base, sketch_of(adapter.changes, model.stream_layers()))
        if reason:
            raise BaseMismatchError(
                f"{name} was made for {adapter.base.get('name')!r}, and in {model.name} {reason}; "
                "pass that base, or erase the concept from this one."
            )


def _encoder_shape(model: Model, path: str) -> tuple[int, ...] | None:
    component, _, name = path.partition(".")
    if component != "text_encoder":
        return None
    try:
        layer = linear(model.text_encoder, canonical_to_live(model.text_encoder, name))
    except AttributeError:
        return None
    return tuple(layer.weight.shape) if isinstance(layer, torch.nn.Linear) else None


def parts(model: Model, changes: Mapping[str, LowRank]) -> tuple[dict[str, LowRank], dict[str, LowRank]]:
    """Changes of the layers that read the text, and those of the text encoder that are not zero."""
    known = set(model.stream_layers())
    stream = {path: change for path, change in changes.items() if path in known}
    rest = {path: change for path, change in changes.items() if path not in known}
    return stream, {path: change for path, change in rest.items() if change.up.any() and change.down.any()}
