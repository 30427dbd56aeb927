"""Erasing a list: a plan of units, done by an engine, each once, whatever interrupts it.

The way through: list -> entries -> units -> chunks of units (one adapter each, and their sums) -> joint adapters from
the sums -> interference -> index. Each step's files are written whole or not at all; the next run of the same command
finds what is done and does the rest, and the files are the same as those of a run that nothing interrupted.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concept_erase.batch import index
from concept_erase.batch.engines import Engine, Here
from concept_erase.batch.units import (
    WORK,
    Chunk,
    Draw,
    Joint,
    Matrix,
    Setup,
    Solve,
    Task,
    Unit,
    code_version,
    digest,
    finished,
    outcome_of,
    pictures_of,
    record_file,
    solved_folder,
    sums_file,
)
from concept_erase.concepts import Kind
from concept_erase.erasure import locked
from concept_erase.errors import InputError
from concept_erase.generate import Sampling
from concept_erase.lists import Listing
from concept_erase.methods import Additive, make
from concept_erase.model import Model, files_digest, open_model
from concept_erase.names import Lookup, file_name
from concept_erase.schema import JOINT_OF_ALL, Job
from concept_erase.surroundings import candidates

Progress = Callable[[int, int, str], None]
CHUNK = 16  # units of a closed form whose sums are kept together
SCORED_CHUNK = 4  # the same when they are scored, which takes long
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a batch consists of.

    Attributes:
        base: Name, revision and hash.
        chunks: All units.
        joints: Joint adapters, the one of the whole list first.
    """

    setup: Setup
    listing: Listing
    base: dict[str, str | None]
    chunks: tuple[Chunk, ...]
    joints: tuple[Joint, ...]

    @property
    def units(self) -> list[Unit]:
        """In the order of the list."""
        return sorted((unit for chunk in self.chunks for unit in chunk.units), key=lambda unit: unit.row)


def plan(listing: Listing, job: Job, out: Path) -> Plan:
    """The units of a list with their keys; the base is opened, nothing is computed.

    Raises:
        InputError: a method or setting that does not exist, an anchor that nothing is left for.
    """
    model = open_model(job.model)
    if job.strict:
        _refuse_what_does_not_fit(model, listing)
    base = {"name": model.name, "revision": model.revision, "hash": model.fingerprint}
    methods = {name: make(name, job.settings if name == job.method else {}) for name in _methods(listing, job)}
    assert model.folder is not None, "a batch's base is on disk, where workers find it"
    parts = ("tokenizer", "text_encoder", *(("unet", "vae", "scheduler") if job.pictures else ()))
    read = files_digest(model.folder, parts)
    common = (
        base["hash"],
        read,
        job.pictures,
        job.scorer,
        vars(Sampling(job.steps, job.guidance)),
        job.half,
        code_version(),
    )
    taken = _taken(model, listing)
    units = []
    for row, entry in zip(listing.rows, listing.entries, strict=True):
        method = entry.method or job.method
        entry = entry.model_copy(update={"method": method})
        others = () if entry.anchor else taken[entry.kind]
        key = digest(common, repr(entry.concept), method, repr(methods[method]), others)
        units.append(Unit(row, entry, key, f"concepts/{file_name([entry.target], also=[key])}", others))
    groups = _groups(units) if job.joint else {}
    chunks = [chunk for name in methods for chunk in _chunks(name, methods[name], units, groups, job)]
    joints = []
    for tag, members in groups.items():
        keys = {unit.key for unit in members}
        forced = ["force"] if job.force else []  # it has other members then
        key = digest("joint", tag, common, [unit.key for unit in members], *forced)
        held = tuple(c.key for c in chunks if isinstance(methods[_method(c)], Additive) and keys & _keys(c))
        joints.append(Joint(tag, key, f"joint/{file_name([tag], also=[key])}", tuple(members), held))
    return Plan(Setup(out, job), listing, base, tuple(chunks), tuple(joints))


def erase_list(
    listing: Listing, job: Job, out: Path | str, *, engine: Engine | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Erase every entry of a list; go on where an earlier run was interrupted.

    Args:
        listing: What `lists.read_list` returned.
        out: Folder of the batch; see the layout in `batch.index`.
        engine: Who does the work; this process when None.
    Returns:
        The index: what `index.json` holds.
    Raises:
        InputError: with `job.strict`, any row has a problem.
        BusyError: another process works on this folder.
        OutputError, ResourceError: the machine's disk or memory ran out; what is done is kept.
    """
    if job.strict and (listing.problems or any(n.startswith("warning") for n in listing.notices)):
        told = [f"row {p.row}, {p.field}: {p.message}" for p in listing.problems]
        raise InputError("\n".join(["--strict, and the list has problems:", *told, *listing.notices]))
    with locked(Path(out)) as folder:
        assert folder is not None, "a batch always has a folder"
        _clean(folder)
        engine = engine or Here()
        try:
            return _Batch(plan(listing, job, folder), engine, progress).run()
        finally:
            engine.close()


class _Batch:
    def __init__(self, plan: Plan, engine: Engine, progress: Progress | None) -> None:
        self.plan, self.engine, self.progress = plan, engine, progress
        self.setup = plan.setup
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.notices: list[str] = []

    def run(self) -> dict[str, Any]:
        self._chunks()
        joints = self._joints()
        matrix = self._matrix()
        found = index.build(self.plan, self.outcomes, joints, matrix, self.notices)
        index.write(found, self.setup.out)
        shutil.rmtree(self.setup.out / WORK / "sums", ignore_errors=True)
        shutil.rmtree(self.setup.out / WORK / "joint", ignore_errors=True)
        failed = sum(entry["state"] == "failed" for entry in found["entries"])
        log.info("done: %d adapters, %d joint, %d failed", len(self.outcomes) - failed, len(joints), failed)
        return found

    def _chunks(self) -> None:
        """One adapter for each concept."""
        open_joints = {chunk for joint in self._open_joints() for chunk in joint.chunks}
        todo, total = [], len(self.plan.units)
        for chunk in self.plan.chunks:
            record = self._record(chunk)
            if record is None or (chunk.key in open_joints and not sums_file(self.setup, chunk.key).is_file()):
                todo.append(chunk)
            else:
                self.outcomes |= {o["key"]: o for o in record["outcomes"]}
        log.info("%d of %d concepts are done already", len(self.outcomes), total)
        self._tell(len(self.outcomes), total, "concepts")
        with self._watched(todo, total):
            self._done(todo, total)

    def _done(self, todo: Sequence[Chunk], total: int) -> None:
        for task, result in self.engine.run(self.setup, todo):
            self.outcomes |= {o["key"]: o for o in result["outcomes"]}
            with (self.setup.out / WORK / "times.jsonl").open("a") as times:  # for estimates of later runs
                times.write(json.dumps({"seconds": result["seconds"], "concepts": len(result["outcomes"])}) + "\n")
            log.info("%s and %d more: %.1f s", task.title, len(result["outcomes"]) - 1, result["seconds"])
            for outcome in result["outcomes"]:
                if outcome["state"] == "failed":
                    log.warning("%s", outcome["error"])
            self._tell(len(self.outcomes), total, "concepts")

    @contextmanager
    def _watched(self, todo: Sequence[Chunk], total: int) -> Iterator[None]:
        """Tells of units that are done while their chunk is not: a report is the last file of a unit."""
        ended = threading.Event()

        def watch() -> None:
            waiting = {unit.key: self.setup.out / unit.folder / "report.json" for c in todo for unit in c.units}
            known = {key for key, file in waiting.items() if file.is_file()}  # of an earlier run: gone through again
            told = 0
            while not ended.wait(1.0):
                known -= self.outcomes.keys()
                new = sum(f.is_file() for k, f in waiting.items() if k not in self.outcomes and k not in known)
                if new != told:
                    self._tell(len(self.outcomes) + new, total, "concepts")
                told = new

        thread = threading.Thread(target=watch, daemon=True)
        if self.progress:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()
        self._tell(len(self.outcomes), total, "concepts")

    def _record(self, chunk: Chunk) -> dict[str, Any] | None:
        """The outcomes of a chunk, if all its units are done and their files are there."""
        try:
            record = json.loads(record_file(self.setup, chunk.key).read_text())
            states = {o["key"]: o["state"] for o in record["outcomes"]}
            refused = any(o.get("unknown") for o in record["outcomes"])
            unscored = any(o.get("score_again") for o in record["outcomes"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # What was refused is made now, and what the machine could not score is scored; what is done is found done.
        if unscored or (refused and self.setup.job.force):
            return None
        for unit in chunk.units:
            if states.get(unit.key) != "failed" and finished(self.setup.out / unit.folder, unit.key) is None:
                return None
        return record

    def _open_joints(self) -> list[Joint]:
        return [j for j in self.plan.joints if finished(self.setup.out / j.folder, j.key) is None]

    def _unscored_joints(self) -> list[Joint]:
        """Those that an earlier run made and the machine could not score."""
        reports = ((j, finished(self.setup.out / j.folder, j.key)) for j in self.plan.joints)
        return [joint for joint, report in reports if report and report.get("score_again")]

    def _joints(self) -> dict[str, dict[str, Any]]:
        """Joint adapters: solved, then the pictures of their scores drawn by all workers, then judged."""
        todo = self._open_joints()
        solved: list[tuple[Joint, int]] = []
        failed: dict[str, str] = {}
        solves = [Solve(joint) for joint in todo]
        for i, (task, result) in enumerate(self._each(solves, "joint adapters")):
            joint: Joint = task.joint  # type: ignore[union-attr]
            if "failed" in result:
                failed[joint.key] = result["failed"]
            else:
                solved.append((joint, result["concepts"]))
            log.info("%s solved: %.1f s", task.title, result["seconds"])
            self._tell(i + 1, len(solves), "joint adapters")
        draws = [draw for joint, concepts in solved for draw in self._draws(joint, concepts)]
        for i, _ in enumerate(self._each(draws, "pictures of joint adapters")):
            self._tell(i + 1, len(draws), "pictures of joint adapters")
        worth = [joint for joint, concepts in solved if concepts] + self._unscored_joints()
        for i, (task, result) in enumerate(self._each(worth, "scores of joint adapters")):
            if "failed" in result:
                failed[task.key] = result["failed"]  # type: ignore[union-attr]
            log.info("%s written: %.1f s", task.title, result["seconds"])
            self._tell(i + 1, len(worth), "scores of joint adapters")
        reports = {j.key: (j, finished(self.setup.out / j.folder, j.key)) for j in self.plan.joints}
        for message in failed.values():
            log.warning("%s", message)
        done = {key: outcome_of(joint.folder, report) for key, (joint, report) in reports.items() if report}
        return {**done, **{key: {"state": "failed", "error": message} for key, message in failed.items()}}

    def _each(self, tasks: Sequence[Task], what: str) -> Any:
        if tasks:
            self._tell(0, len(tasks), what)
        return self.engine.run(self.setup, tasks)

    def _draws(self, joint: Joint, concepts: int) -> list[Draw]:
        """All batches of the pictures before and after."""
        from concept_erase.scores import plan as shots

        job = self.setup.job
        if not concepts or job.pictures == 0 or not _scored(self.outcomes.values()):
            return []
        from concept_erase.adapter import Adapter

        folder = solved_folder(self.setup, joint)
        adapter = Adapter.load(folder / json.loads((folder / "edit.json").read_text())["adapter"])
        total = len(shots(open_model(job.model), adapter.concepts, pictures_of(job, concepts)))
        starts = range(0, total, Sampling().batch)
        return [Draw(joint, edited, start) for edited in (False, True) for start in starts]

    def _matrix(self) -> dict[str, Any] | None:
        """The interference of all adapters with each other; None if there is none."""
        done = [o for unit in self.plan.units if (o := self.outcomes[unit.key])["state"] == "done"]
        if not done:
            return None
        key = digest("interference", [o["key"] for o in done])
        file = self.setup.out / "interference.json"
        known = _json(file)
        if not known or known.get("key") != key or not (self.setup.out / "interference.png").is_file():
            files = tuple(f"{o['folder']}/{o['adapter']}" for o in done)
            for _, result in self._each([Matrix(key, files)], "interference"):
                log.info("interference: %.1f s", result["seconds"])
                if "failed" in result:
                    self.notices.append(f"warning: the interference could not be measured: {result['failed']}")
                    log.warning("%s", self.notices[-1])
                    return None
            known = _json(file)
        return known

    def _tell(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, what)


def _scored(outcomes: Any) -> bool:
    return any(o.get("scores") for o in outcomes)


def _methods(listing: Listing, job: Job) -> list[str]:
    return sorted({entry.method or job.method for entry in listing.entries})


def _method(chunk: Chunk) -> str:
    return chunk.units[0].entry.method or ""


def _keys(chunk: Chunk) -> set[str]:
    return {unit.key for unit in chunk.units}


def _refuse_what_does_not_fit(model: Model, listing: Listing) -> None:
    """With --strict a row that this base cannot take stops the batch before anything is done."""
    told = []
    for row, entry in zip(listing.rows, listing.entries, strict=True):
        for name in (entry.target, *([entry.anchor] if entry.anchor else ()), *entry.preserve):
            try:
                model.token_ids(name)
            except InputError as error:
                told.append(f"row {row}: {error}")
    if told:
        raise InputError("--strict, and rows that do not fit this base:\n" + "\n".join(told[:20]))


def _taken(model: Model, listing: Listing) -> dict[Kind, tuple[str, ...]]:
    """By kind, the targets that a candidate for an anchor contains: all that a unit needs to know of the others."""
    names = Lookup(sorted(entry.target for entry in listing.entries))
    taken = {}
    open_to_choice = [entry for entry in listing.entries if not entry.anchor]
    for kind in {entry.kind for entry in open_to_choice}:
        kept = {name for entry in open_to_choice if entry.kind is kind for name in entry.preserve}
        pool = kept | set(candidates(model, kind))
        taken[kind] = tuple(sorted({held for candidate in pool for held in names.within(candidate)}))
    return taken


def _groups(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The members of each joint adapter; tags are equal up to case."""
    groups: dict[str, list[Unit]] = {JOINT_OF_ALL: list(units)}
    names: dict[str, str] = {}
    for unit in units:
        for tag in unit.entry.tags:
            groups.setdefault(names.setdefault(tag.casefold(), tag), []).append(unit)
    return groups


def _chunks(name: str, method: Any, units: Sequence[Unit], groups: dict[str, list[Unit]], job: Job) -> list[Chunk]:
    """Units of one method in chunks, with the groups that each adds to."""
    size = 1 if not isinstance(method, Additive) else SCORED_CHUNK if job.pictures else CHUNK
    mine = [unit for unit in units if unit.entry.method == name]
    members = {tag: {unit.key for unit in of} for tag, of in groups.items()}
    chunks = []
    for start in range(0, len(mine), size):
        part = tuple(mine[start : start + size])
        adds = isinstance(method, Additive)
        sums = tuple(
            (tag, keys)
            for tag, of in members.items()
            if adds and (keys := tuple(unit.key for unit in part if unit.key in of))
        )
        chunks.append(Chunk(digest([unit.key for unit in part], sums), part, sums))
    return chunks


def _clean(folder: Path) -> None:
    """Remove what a writer that was killed left in the folders that belong to no unit."""
    for place in (folder, folder / WORK, folder / WORK / "chunks", folder / WORK / "sums"):
        for left in place.glob(".*.tmp"):
            left.unlink(missing_ok=True)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
