"""How long work takes, from what was measured here: seconds of each stage of the jobs that this demo has finished."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from concept_erase.errors import OutputError
from concept_erase.files import atomic_write

SURE = 3  # units after which this run's own speed counts instead of an earlier one's
SCORED = ("pictures before", "pictures after")  # stages that grow with the number of pictures asked for
BOTH = 2  # groups of pictures in each: what is erased, and what must stay
AFTERWARDS = 0.2  # what follows a stage, as a part of it, until it was measured: solving, judging, writing


@dataclass
class Span:
    """One stage of a job; times in seconds of one clock."""

    what: str
    first: int
    done: int
    total: int
    began: float
    seen: float

    @property
    def units(self) -> int:
        """What was really worked on: pictures that were kept from earlier do not count."""
        return self.done - self.first


@dataclass
class Trail:
    """What a job has told so far."""

    began: float
    spans: list[Span] = field(default_factory=list)

    def tell(self, what: str, done: int, total: int, now: float) -> None:
        """One message of progress."""
        name = stage(what)
        last = self.spans[-1] if self.spans else None
        if last is None or last.what != name or last.total != total or done < last.done:
            self.spans.append(Span(name, done, done, total, now, now))
        else:
            last.done, last.seen = done, now

    def each(self, name: str) -> float | None:
        """Seconds a unit of a stage takes in this job; pictures are as good as other pictures."""
        alike = [s for s in self.spans if s.units > 0 and _alike(s.what, name)]
        units = sum(s.units for s in alike)
        return sum(s.seen - s.began for s in alike) / units if units >= SURE else None


@dataclass(frozen=True)
class Stage:
    """A stage as it was measured: seconds for a unit (None: nothing had to be done), and until the next one began."""

    what: str
    total: int
    each: float | None
    after: float


def stage(what: str) -> str:
    """A stage without what changes from job to job: "pictures of 'noto'" and "training, loss 0.2" are stages too."""
    return re.sub(r"'.*'|\".*\"", "a candidate", what.partition(",")[0])


def _alike(a: str, b: str) -> bool:
    return a == b or (a.startswith("pictures") and b.startswith("pictures"))


class Pace:
    """The measurements of one demo, kept in a file; what cannot be read or written is measured anew.

    Args:
        file: JSON.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            self._jobs: dict[str, Any] = dict(kept["jobs"])
            self._picture: dict[str, float] = {str(k): float(v) for k, v in kept["picture"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._jobs, self._picture = {}, {}

    # -- measured ------------------------------------------------------------------------------------------------

    def learn(self, what: str, arguments: dict[str, Any], trail: Trail, now: float) -> None:
        """Keep what a job that is done has taken."""
        spans = trail.spans
        if not spans:
            return
        ends = [*(s.began for s in spans[1:]), now]
        stages = [
            [s.what, s.total, (s.seen - s.began) / s.units if s.units > 0 else None, max(0.0, end - s.seen)]
            for s, end in zip(spans, ends, strict=True)
        ]
        with self._lock:
            earlier = {str(row[0]): row[2] for row in (self._jobs.get(_key(what, arguments)) or {}).get("stages", ())}
            for row in stages:  # what was at hand this time was measured another time
                row[2] = earlier.get(str(row[0])) if row[2] is None else row[2]
            record = {"pictures": arguments.get("pictures"), "waking": spans[0].began - trail.began, "stages": stages}
            self._jobs[_key(what, arguments)] = record
            drawn = trail.each("pictures") if what == "erase" else None
            if drawn is not None:
                self._picture[_generator(arguments)] = drawn
            text = json.dumps({"jobs": self._jobs, "picture": self._picture}, indent=1)
        with contextlib.suppress(OutputError):
            atomic_write(self.file, text)

    def _plan(self, what: str, arguments: dict[str, Any]) -> tuple[float | None, list[Stage]]:
        """Seconds until a job begins to tell, and its stages; roughly, if there was none like it."""
        number = int(arguments.get("pictures") or 0)
        record = self._jobs.get(_key(what, arguments))
        if not record:
            expected = [Stage(name, BOTH * number, None, -1.0) for name in SCORED if number and what == "erase"]
            return None, expected
        was = int(record.get("pictures") or 0)
        stages = []
        for name, total, each, after in record["stages"]:
            grows = name in SCORED and what == "erase"
            if grows and not number:
                continue
            share = number / was if grows and was else 1.0
            stages.append(Stage(str(name), round(int(total) * share), each, float(after) * share))
        if number and not was and what == "erase":
            stages += [Stage(name, BOTH * number, None, -1.0) for name in SCORED]
        return float(record["waking"]), stages

    # -- told ----------------------------------------------------------------------------------------------------

    def left(self, what: str, arguments: dict[str, Any], trail: Trail, now: float) -> float | None:
        """Seconds until a job is done, over all its stages; None as long as nothing like it was measured here."""
        waking, stages = self._plan(what, arguments)
        if not trail.spans:
            if waking is None:
                return None
            rest = self._of(stages, trail, arguments, ())
            return None if rest is None else _passed(waking, now - trail.began) + rest
        place = -1
        for span in trail.spans:
            place = next((i for i in range(place + 1, len(stages)) if stages[i].what == span.what), place)
        current, seen = trail.spans[-1], [s.what for s in trail.spans]
        known = stages[place] if place >= 0 and stages[place].what == current.what else None
        to_go = current.total - current.done
        each = self._each(current.what, trail, arguments, known)
        if to_go > 0 and each is None:
            return None
        busy = _busy(stages, trail)
        gap = known.after * busy if known and known.after >= 0 else AFTERWARDS * current.total * (each or 0.0)
        if to_go > 0:
            mine = _passed(to_go * (each or 0.0), now - current.seen) + gap
        else:
            mine = _passed(gap, now - current.seen)
        rest = self._of(stages[place + 1 :], trail, arguments, seen, busy)
        return None if rest is None else mine + rest

    def whole(self, what: str, arguments: dict[str, Any]) -> float | None:
        """Seconds of a job that has not begun; None as long as nothing like it was measured here."""
        waking, stages = self._plan(what, arguments)
        rest = self._of(stages, Trail(0.0), arguments, ())
        if what == "erase" and waking is None:
            waking = next((float(r["waking"]) for k, r in self._jobs.items() if k.startswith("erase")), None)
        return None if rest is None or waking is None else waking + rest

    def batch(self, arguments: dict[str, Any], concepts: int) -> float | None:
        """Seconds of a list of so many concepts: from a batch of the same kind, else from the pictures it draws."""
        record = self._jobs.get(_key("batch", arguments))
        if record:
            stages = [Stage(str(n), int(t), e, float(a)) for n, t, e, a in record["stages"]]
            before = next((s.total for s in stages if s.what == "concepts"), 0)
            each = next((s.each for s in stages if s.what == "concepts" and s.each is not None), None)
            if each is not None and before:
                others = sum((s.what != "concepts") * s.total * (s.each or 0.0) + s.after for s in stages)
                return float(record["waking"]) + each * concepts + others * max(1.0, concepts / before)
        drawn = self._picture.get(_generator(arguments))
        if drawn is None:
            return None
        number = int(arguments.get("pictures") or 0)
        # Of each concept: both groups before and after, candidates; then a share of the joint adapter's pictures.
        return 10.0 + concepts * (1.0 + drawn * (2 * BOTH * number * 1.2 + (16 if number else 0)))

    def _of(
        self, stages: Sequence[Stage], trail: Trail, arguments: dict[str, Any], seen: Sequence[str], busy: float = 1.0
    ) -> float | None:
        """Seconds of stages that are still to come; pictures that were drawn before in the same job are at hand."""
        total, had = 0.0, set(seen)
        for s in stages:
            each = self._each(s.what, trail, arguments, s)
            if each is None and s.total and s.what not in had:
                return None
            own = 0.0 if s.what in had else s.total * (each or 0.0)
            total += own + (s.after * busy if s.after >= 0 else AFTERWARDS * own)
            if s.what in SCORED:
                had.add(s.what)
        return total

    def _each(self, name: str, trail: Trail, arguments: dict[str, Any], known: Stage | None) -> float | None:
        live = trail.each(name)
        if live is not None:
            return live
        if known is not None and known.each is not None:
            return known.each
        return self._picture.get(_generator(arguments)) if name.startswith("pictures") else None


def _busy(stages: Sequence[Stage], trail: Trail) -> float:
    """How much slower than then this run is, where both were measured; what is not counted slows down alike."""
    ratios = [
        live / s.each for s in stages if s.each and s.what in {span.what for span in trail.spans}
        and (live := trail.each(s.what)) is not None
    ]  # fmt: skip
    return min(4.0, max(0.25, ratios[-1])) if ratios else 1.0


def _passed(expected: float, waited: float) -> float:
    """What is left of a wait; one that lasts longer than expected is likely to last a while more."""
    return max(expected - waited, 0.2 * expected, 0.3 * (waited - expected))


def _generator(arguments: dict[str, Any]) -> str:
    return f"{arguments.get('model') or 'embedded'}, {arguments.get('steps')} steps"


def _key(what: str, arguments: dict[str, Any]) -> str:
    """Jobs of one kind; those of a batch are told per concept, so that the number of pictures belongs to it."""
    of = f", {arguments.get('pictures')} pictures" if what == "batch" else ""
    return f"{what}: {_generator(arguments)}, {arguments.get('method')}{of}"
