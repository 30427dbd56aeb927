"""Several adapters at once, read one at a time: what is kept of each, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from concept_erase import operators
from concept_erase.adapter import Adapter
from concept_erase.concepts import Concept
from concept_erase.errors import AdapterFileError, BaseMismatchError
from concept_erase.identity import sketch_of
from concept_erase.interference.movement import Movement, Total, operator_factor, seen_factor
from concept_erase.layers import canonical_to_live, linear
from concept_erase.lowrank import LowRank, concatenate
from concept_erase.methods import Progress
from concept_erase.model import Model
from concept_erase.names import folded
from concept_erase.streams import fold

HELD = 2**29  # bytes of reduced adapters that are kept between reading and measuring; others are read again
ROWS = 512  # of factors that are multiplied at once
ROUNDED = 2e-3  # of a change: so far half precision may take a file from its operator


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
    """

    def __init__(self, model: Model, *, check: bool) -> None:
        self.model, self.check = model, check
        self.kept: list[Member] = []
        self.notices: list[str] = []
        self._total = Total()
        self._stream: Tensor | None = None  # sum of the operators on the text stream, (d, d)
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
        operator = None if encoder else self._operator(source, stream)
        factor: Tensor | None
        if operator is not None:
            factor = operator_factor(operator, self.model.gram)
            whole = operator.to(torch.float64).delta()
            self._stream = whole if self._stream is None else self._stream.add_(whole)
        else:
            factor = None if encoder else seen_factor(stream, self.model.gram.shape[0])
            self._total.add({**stream, **encoder})
        if factor is not None:
            self._held += factor.nbytes
            if self._held > HELD:
                self._held -= factor.nbytes
                factor = None
        self.kept.append(Member(source, adapter.title, adapter.method, digest, adapter.concepts, factor))

    def moved_together(self, movement: Movement) -> Tensor:
        """(M,) root mean square movement of each concept by the sum of all changes."""
        stream = None if self._stream is None else LowRank(self._stream, torch.eye(len(self._stream)).double())
        if stream is None:
            return movement.of(*parts(self.model, self._total.changes()))
        if not self._total:  # operators alone: no layer has to be looked at
            return movement.of_streams([operator_factor(stream, self.model.gram)])[0]
        changes = self._total.changes()
        for path, change in fold(self.model, stream).items():
            changes[path] = concatenate([changes[path], change]) if path in changes else change
        return movement.of(*parts(self.model, changes))

    def _operator(self, source: Adapter | Path | str, stream: Mapping[str, LowRank]) -> LowRank | None:
        """What the changes are folded from, if it lies beside their file: one small matrix instead of one per layer."""
        if isinstance(source, Adapter) or stream.keys() != set(self.model.stream_layers()):
            return None
        place = Path(source)
        try:
            operator = operators.read(place if place.is_dir() else operators.beside(place)).change
        except (AdapterFileError, OSError):
            return None
        path = min(stream, key=lambda path: stream[path].up.shape[0])  # one layer tells whether it is that of this file
        if operator.shape != (stream[path].shape[1],) * 2:
            return None
        folded, own = operator.to(torch.float64).folded_into(self.model.weight(path)), stream[path].to(torch.float64)
        apart = concatenate([folded, own.scaled(-1.0)])
        return operator if _size(apart) <= ROUNDED * _size(own) else None

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
        if not self.check or adapter.base.get("hash") in (None, "", model.fingerprint):
            return
        reason = model.identity.difference(adapter.base, sketch_of(adapter.changes, model.stream_layers()))
        if reason:
            raise BaseMismatchError(
                f"{name} was made for {adapter.base.get('name')!r}, and in {model.name} {reason}; "
                "pass that base, or erase the concept from this one."
            )


def _size(change: LowRank) -> float:
    """Frobenius norm of a change."""
    return float(((change.up.T @ change.up) * (change.down @ change.down.T)).sum().clamp_min(0)) ** 0.5


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
