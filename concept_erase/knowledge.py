"""Does the base know a concept at all? Asked before anything is erased: what was never there cannot be forgotten.

The rate at which a judge recognises the base's own pictures of the concept is compared with that of pictures of
nonsense names of the same shape. The own pictures are those that scoring draws anyway, in the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from PIL import Image

from concept_erase import embedded, words
from concept_erase.concepts import Concept, Kind
from concept_erase.errors import UnknownConceptError
from concept_erase.generate import Sampling, generate
from concept_erase.model import Model
from concept_erase.names import folded
from concept_erase.scores import NULL, Judges, Shot, nulls, plan, themselves
from concept_erase.statistics import Estimate, newcombe, rate

Progress = Callable[[int, int, str], None]

FIRST = 32  # own pictures of a concept that are looked at first, where scoring draws so many
FIRM = 24  # own pictures without which nothing is called unknown
CLOSE = (96, 72 // NULL)  # own pictures, and blocks of nonsense, where the first ones leave room for doubt
WORTH = 5.0  # per cent above nonsense that are worth a closer look: what is a picture or two costs none
CLOSER = 8  # concepts that are looked at more closely in one erasure


class State(StrEnum):
    """What the pictures say."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    UNSURE = "unsure"  # too few pictures to say, or a judge that takes nonsense for something too
    NOT_LOOKED = "not looked"


@dataclass(frozen=True)
class Knowledge:
    """Whether a base knows a concept.

    Attributes:
        state: Known where the difference of the two rates is above 0 by its 95% interval.
        own: How often the base's pictures of the concept are recognised as it.
        null: How often its pictures of nonsense names are; of a style that is the style floor.
        difference: own - null.
        judge: Who looked.
        why: Why nobody looked.
        itself: Where the base itself judges, how often its pictures of nonsense names are recognised as what they name.
    """

    target: str
    state: State
    own: Estimate | None = None
    null: Estimate | None = None
    judge: str = ""
    why: str = ""
    itself: Estimate | None = None

    @property
    def difference(self) -> Estimate | None:
        return newcombe(self.own, self.null) if self.own and self.null else None

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`; `words.knowledge` tells it."""
        rates = {"own": self.own, "nonsense": self.null, "difference": self.difference}
        plain = {name: e.as_dict() if e else None for name, e in rates.items()}
        itself = {"nonsense_itself": self.itself.as_dict()} if self.itself else {}
        told = {"judge": self.judge, "why": self.why}
        return {"target": self.target, "state": self.state.value, **plain, **itself, **told}


@dataclass
class Look:
    """What was found of all concepts, and what was drawn for it: pictures of the unedited base by prompt and seed."""

    found: list[Knowledge]
    drawn: dict[tuple[str, int], Image.Image] = field(default_factory=dict)


def unasked(concepts: Sequence[Concept], why: str) -> Look:
    """Of each concept it is not known whether the base knows it."""
    return Look([Knowledge(c.target, State.NOT_LOOKED, why=why) for c in concepts])


def look(
    model: Model,
    judges: Judges,
    concepts: Sequence[Concept],
    n: int,
    *,
    sampling: Sampling = Sampling(),
    progress: Progress | None = None,
) -> Look:
    """Look at the base's pictures of each concept, and of nonsense names.

    At first at the batches of the scores' own pictures that hold the first `FIRST` of each concept; at more where that
    leaves doubt, of `CLOSER` concepts at most.

    Args:
        n: Pictures of the erased concepts that scoring will draw.
    """
    found = Look([])

    def draw(shots: Sequence[Shot]) -> list[Image.Image]:
        jobs = [(s.prompt, s.seed) for s in shots]
        new = list(dict.fromkeys(job for job in jobs if job not in found.drawn))
        prompts, seeds = [p for p, _ in new], [s for _, s in new]
        images = generate(model, prompts, seeds, sampling=sampling, progress=progress, what="first look") if new else []
        found.drawn.update(zip(new, images, strict=True))
        return [found.drawn[job] for job in jobs]

    shots = plan(model, concepts, n)
    own = {c.target: [s for s in shots if s.erased and s.concept == c.target][:FIRST] for c in concepts}
    wanted = {(s.prompt, s.seed) for some in own.values() for s in some}
    batches = [shots[i : i + sampling.batch] for i in range(0, len(shots), sampling.batch)]
    draw([s for batch in batches if any((s.prompt, s.seed) in wanted for s in batch) for s in batch])
    null = nulls(model, judges, [c for c in concepts if own[c.target]], draw)
    closer = 0
    for concept in concepts:
        mine = own[concept.target]
        if not mine or concept.target not in null:
            found.found.append(Knowledge(concept.target, State.NOT_LOOKED, why=_why(bool(mine))))
            continue
        rates, closely = (_rate(judges, concept, mine, draw), null[concept.target]), False
        for size, blocks in ((FIRM, 1), CLOSE):
            # What is not clear is looked at again; but only what might be known at more than that.
            doubt = newcombe(*rates).low <= 0 and (len(mine) < FIRM or newcombe(*rates).value > WORTH)
            if not doubt or len(mine) >= size or (closer >= CLOSER and not closely):
                continue
            closer, closely = closer + (not closely), True
            mine = [s for s in plan(model, [concept], size) if s.erased][:size]
            more = nulls(model, judges, [concept], draw, blocks) if blocks > 1 else null
            rates = _rate(judges, concept, mine, draw), more[concept.target]
        state = State.KNOWN if newcombe(*rates).low > 0 else State.UNKNOWN if len(mine) >= FIRM else State.UNSURE
        itself = themselves(model, judges, concept, draw) if state is State.KNOWN else None
        if itself and newcombe(rates[0], itself).low <= 0:
            state = State.UNSURE
        found.found.append(Knowledge(concept.target, state, *rates, judge=judges.judge_of(concept), itself=itself))
    return found


def _rate(
    judges: Judges, concept: Concept, shots: Sequence[Shot], draw: Callable[[Sequence[Shot]], list[Image.Image]]
) -> Estimate:
    return rate(judges.taken(draw(shots), [concept], shots)[concept.target], len(shots))


def _why(planned: bool) -> str:
    if planned:
        return "no nonsense name of its shape fits the text encoder"
    return "of so many concepts only a sample is looked at"


def refuse_unknown(model: Model, concepts: Sequence[Concept], found: Sequence[Knowledge]) -> None:
    """Stop before the work when there is nothing to erase.

    Raises:
        UnknownConceptError: the base does not seem to know a concept; all such are named, with their numbers.
    """
    unknown = {k.target: k for k in found if k.state is State.UNKNOWN}
    if not unknown:
        return
    told = [words.knowledge(k.as_dict()) for k in unknown.values()]
    hints = [hint for c in concepts if c.target in unknown and (hint := _meant(model, c))]
    raise UnknownConceptError(" ".join([*told, *hints, UnknownConceptError.FORCE]))


def _meant(model: Model, concept: Concept) -> str:
    """Another name or kind that the embedded base does know; "" if there is none."""
    if not model.is_embedded:
        return ""
    style = concept.kind is Kind.STYLE
    name = folded(concept.target)
    own, other = (embedded.styles(), embedded.objects()) if style else (embedded.objects(), embedded.styles())
    known = {folded(n): n for n in own}
    elsewhere = {folded(n): n for n in other}
    if name in elsewhere:
        kind = "object" if style else "style"
        if style and elsewhere[name] in embedded.objects(violent=True):
            kind = "violence"
        return f"It knows {elsewhere[name]!r} of another kind: try --kind {kind}."
    near = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"Perhaps {known[near[0]]!r} is meant instead of {concept.target!r}." if near else ""
