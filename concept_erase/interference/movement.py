"""How far changes of weights move the embeddings of concepts, as the denoiser sees them; no picture is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from concept_erase.concepts import Concept
from concept_erase.layers import canonical_to_live, linear
from concept_erase.lowrank import LowRank, concatenate
from concept_erase.model import Model
from concept_erase.names import Lookup, apart
from concept_erase.streams import PADDING, Prompt, Tokens, aligned
from concept_erase.surroundings import profile, spread, surroundings

CHUNK = 8192  # columns that are held in double precision at once
NOISE = 1e-12  # squared directions below this share of the largest are rounding, in files of single precision

Tell = Callable[[int, int], None]  # (done, total)


def few_slots(
    model: Model, concept: Concept, prompts: int, avoid: Iterable[str] | Lookup = ()
) -> list[tuple[str, str]]:
    """(template, context) of at most `prompts` prompts: the kind's templates in turn, each with another context.

    Args:
        avoid: Names that no context is or contains: a prompt that holds an erased concept moves on its account.
    """
    templates: Sequence[str] = profile(model, concept.kind).templates
    contexts: Sequence[str] = ()
    if any("{context}" in template for template in templates[:prompts]):
        contexts = apart(surroundings(model, concept).contexts, avoid)
        if not contexts:
            templates = [t for t in templates if "{context}" not in t]
    names = spread(contexts, prompts)
    chosen = [templates[i % len(templates)] for i in range(prompts)]
    pairs = [(t, names[i % len(names)] if "{context}" in t else "") for i, t in enumerate(chosen)]
    return list(dict.fromkeys(pairs))


@dataclass(frozen=True, eq=False)
class Columns:
    """Places of embeddings, by concept; `states` fills them in for one text encoder.

    Attributes:
        rows: Distinct prompts as token ids, shortest first.
        upto: How many positions of each are wanted.
        picks: For each row, the columns it fills and the positions they are at.
        concept: (n,) which concept a column belongs to; ascending.
        weight: (n,) float64 share of a column in its concept; the shares of one concept add up to 1.
    """

    rows: tuple[tuple[int, ...], ...]
    upto: tuple[int, ...]
    picks: tuple[tuple[Tensor, Tensor], ...]
    concept: Tensor
    weight: Tensor

    @staticmethod
    def of(
        model: Model, pairs: Sequence[Sequence[tuple[Prompt, Prompt]]], padding: int = PADDING
    ) -> tuple[Columns, Columns]:
        """Columns of the first prompts of all pairs, and those of the second ones that mean the same.

        Positions are those of `Tokens.ALL`: every token of the concept and all that follows.

        Args:
            pairs: For each concept its prompts, each with that of its anchor, or with itself.
            padding: How many positions behind a prompt's end are looked at; the last one stands for all that follow,
                so that little has to be encoded.
        """
        places: tuple[list[tuple[Prompt, int]], list[tuple[Prompt, int]]] = ([], [])
        concept: list[int] = []
        weight: list[float] = []
        for number, listed in enumerate(pairs):
            start = len(weight)
            for here, there in listed:
                for p, q in aligned(here, there, Tokens.ALL, model.length):
                    if p > here.end + padding:
                        continue
                    places[0].append((here, p))
                    places[1].append((there, q))
                    concept.append(number)
                    weight.append(model.length - p if p == here.end + padding else 1)
            total = sum(weight[start:])
            weight[start:] = [w / total for w in weight[start:]]
        owners, shares = torch.tensor(concept), torch.tensor(weight, dtype=torch.float64)
        first, second = (Columns._at(side, owners, shares) for side in places)
        return first, second

    @staticmethod
    def _at(places: Sequence[tuple[Prompt, int]], concept: Tensor, weight: Tensor) -> Columns:
        found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for column, (prompt, position) in enumerate(places):
            found.setdefault(prompt.ids, []).append((column, position))
        upto = {ids: 1 + max(position for _, position in listed) for ids, listed in found.items()}
        rows = sorted(found, key=lambda ids: (upto[ids], ids))
        picks = tuple((torch.tensor([c for c, _ in found[r]]), torch.tensor([p for _, p in found[r]])) for r in rows)
        return Columns(tuple(rows), tuple(upto[r] for r in rows), picks, concept, weight)

    @torch.no_grad()
    def states(self, model: Model, tell: Tell | None = None, batch: int = 64) -> Tensor:
        """(n, d) float32: the last hidden state at each place."""
        out = torch.empty(len(self.concept), model.gram.shape[0])
        for start in range(0, len(self.rows), batch):
            part = slice(start, start + batch)
            for state, (columns, positions) in zip(
                model.encode(self.rows[part], self.upto[part]), self.picks[part], strict=True
            ):
                out[columns] = state[positions]
            if tell:
                tell(min(start + batch, len(self.rows)), len(self.rows))
        return out

    def rms(self, squares: Tensor) -> Tensor:
        """Root mean square over the columns of each concept: (n,) -> (concepts,)."""
        sums = torch.zeros(int(self.concept[-1]) + 1, dtype=torch.float64)
        return sums.index_add_(0, self.concept, squares * self.weight).clamp_min(0).sqrt()


# -- changes of weights --------------------------------------------------------------------------------------------


def seen_factor(changes: Mapping[str, LowRank], d: int) -> Tensor:
    """F with `sum_l ||dW_l x||^2 = ||F x||^2` for every embedding x: (r, d) float64.

    With `up = Q R`, `||up down x|| = ||R down x||`; the rows of all R down are then turned onto their principal
    directions. For a closed-form edit of rank r, whose layers share one row space, r of them are left: directions that
    are no larger than the rounding of the stored factors are dropped. In half precision that is a thousandth of the
    largest; kept, they would make a factor of rank 8 one of 256, and thousands of adapters take thirty times as long.
    """
    if not changes:
        return torch.zeros(0, d, dtype=torch.float64)
    groups: dict[tuple[int, int], list[LowRank]] = {}
    for change in changes.values():  # layers of one shape go through LAPACK together
        groups.setdefault((change.shape[0], change.rank), []).append(change)
    rows = []
    for members in groups.values():
        R = torch.linalg.qr(torch.stack([c.up for c in members]).double(), mode="r").R
        rows.append((R @ torch.stack([c.down for c in members]).double()).flatten(0, 1))
    S = torch.cat(rows)
    noise = max(NOISE, *(torch.finfo(c.down.dtype).eps ** 2 for c in changes.values()))
    if len(S) <= d:
        values, vectors = torch.linalg.eigh(S @ S.T)
        F = vectors.T @ S
    else:
        values, vectors = torch.linalg.eigh(S.T @ S)
        F = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return F[values > noise * values.max().clamp_min(0)]


def operator_factor(operator: LowRank, gram: Tensor) -> Tensor:
    """`seen_factor` of an operator on the text stream, from r x r matrices: (r, d) float64."""
    up, down = operator.up.double(), operator.down.double()
    values, vectors = torch.linalg.eigh(up.T @ gram @ up)
    return values.clamp_min(0).sqrt()[:, None] * (vectors.T @ down)


class Total:
    """The sum of many changes; a layer is held dense once its factors outgrow it, so that memory stays bounded."""

    def __init__(self) -> None:
        self._factors: dict[str, list[LowRank]] = {}
        self._dense: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._factors)

    def add(self, changes: Mapping[str, LowRank]) -> None:
        for path, change in changes.items():
            factors = self._factors.setdefault(path, [])
            factors.append(change)
            d_out, d_in = change.shape
            if sum(f.rank for f in factors) * (d_out + d_in) > d_out * d_in:
                whole = concatenate([f.to(torch.float64) for f in factors])
                if path in self._dense:
                    self._dense[path].addmm_(whole.up, whole.down)
                else:
                    self._dense[path] = whole.delta()
                factors.clear()

    def changes(self) -> dict[str, LowRank]:
        """Layer path -> the sum of all its changes, float64."""
        summed = {}
        for path, factors in self._factors.items():
            parts = [f.to(torch.float64) for f in factors]
            if path in self._dense:
                dense = self._dense[path]
                parts.append(LowRank(dense, torch.eye(dense.shape[1], dtype=torch.float64)))
            summed[path] = concatenate(parts)
        return summed


# -- movement ------------------------------------------------------------------------------------------------------


class Movement:
    """Sizes of what changes of weights do to one set of embeddings.

    Args:
        columns: Where the embeddings are.
        before: (n, d) their states on the unchanged model.
    """

    def __init__(self, model: Model, columns: Columns, before: Tensor) -> None:
        self.model, self.columns, self.before = model, columns, before

    @property
    def concepts(self) -> int:
        return int(self.columns.concept[-1]) + 1

    def of_streams(self, factors: Sequence[Tensor]) -> Tensor:
        """Root mean square of `||F x||` per concept for each `seen_factor`: (factors, concepts).

        `seen_factor` is that of changes of the layers that read the text. Several are multiplied at once.
        """
        rows = torch.cat(list(factors))
        member = torch.repeat_interleave(torch.arange(len(factors)), torch.tensor([len(f) for f in factors]))
        found = []
        for part in self.before.split(CHUNK):
            squares = torch.zeros(len(factors), len(part), dtype=torch.float64)
            found.append(squares.index_add_(0, member, (rows @ part.double().T).square_()))
        return torch.stack([self.columns.rms(squares) for squares in torch.cat(found, dim=1)])

    def to(self, other: Tensor) -> Tensor:
        """Root mean square of `||W (y - x)||` per concept, W all layers that read the text: other (n, d) holds y."""
        return self.columns.rms(self._squares(other, torch.zeros(0, other.shape[1], dtype=torch.float64), None))

    def of(self, stream: Mapping[str, LowRank], encoder: Mapping[str, LowRank]) -> Tensor:
        """Root mean square of `sqrt(sum_l ||(W_l + dW_l) x' - W_l x||^2)` per concept, x' from the changed encoder."""
        factor = seen_factor(stream, self.before.shape[1])
        if not encoder:
            return self.of_streams([factor])[0]
        with self._encoder_changed_by(encoder) as edited:
            after = self.columns.states(edited)
        cross = None
        if stream:
            cross = torch.zeros_like(self.model.gram)
            for path, change in stream.items():
                cross.addmm_(self.model.weight(path).double().T @ change.up.double(), change.down.double())
        return self.columns.rms(self._squares(after, factor, cross))

    def _squares(self, after: Tensor, factor: Tensor, cross: Tensor | None) -> Tensor:
        """`||W e + dW x'||^2` per column with e = x' - x: `e^T G e + 2 e^T (sum W^T dW) x' + ||F x'||^2`."""
        found = []
        for x, y in zip(self.before.split(CHUNK), after.split(CHUNK), strict=True):
            y = y.double()
            e = y - x
            squares = (e * (e @ self.model.gram)).sum(1) + (y @ factor.T).square().sum(1)
            if cross is not None:
                squares += 2 * (e * (y @ cross.T)).sum(1)
            found.append(squares)
        return torch.cat(found)

    @cached_property
    def _edited(self) -> Model:
        """The model with a copy of its text encoder, on which changes can be put."""
        return self.model.changeable()

    @contextmanager
    def _encoder_changed_by(self, changes: Mapping[str, LowRank]) -> Iterator[Model]:
        """One change at a time on the one copy; the weights of the copy are put back afterwards."""
        module = self._edited.text_encoder
        saved: list[tuple[Tensor, Tensor]] = []
        try:
            for path, change in changes.items():
                weight = linear(module, canonical_to_live(module, path.partition(".")[2])).weight
                saved.append((weight, weight.data))
                delta = change.to(torch.float64).delta().to(weight.device)
                weight.data = (weight.data.double() + delta).to(weight.dtype)
            yield self._edited
        finally:
            for weight, data in reversed(saved):
                weight.data = data
