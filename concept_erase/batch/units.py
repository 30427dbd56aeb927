"""Units of work of a batch: what a worker does with one, and how it is known to be done.

A unit is keyed by all that its files depend on. Its report is written last and holds the key, so a folder with the
right report is done, and any other is made again, to the same bytes: every unit runs on one thread, and what is encoded
in one call depends on nothing but the unit and its chunk.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase import __version__, embedded, words
from concept_erase.errors import InputError, NumericalError, UnknownConceptError
from concept_erase.files import atomic_write
from concept_erase.schema import Entry, Job

if TYPE_CHECKING:
    from torch import Tensor

    from concept_erase.concepts import Concept
    from concept_erase.erasure import Work
    from concept_erase.methods import Method
    from concept_erase.model import Model

WORK = ".work"  # folder of what a finished batch no longer needs
# Modules that decide nothing of what a unit's files hold. All others do, one that is new too, and a change in one of
# them makes the units anew. No unit may import one of these: a test holds that.
ASIDE = ("cli/", "demos/", "lists/", "batch/cluster", "batch/engines", "batch/estimate", "batch/gallery", "batch/index")
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "open-clip-torch", "torchvision")


@dataclass(frozen=True)
class Setup:
    """What all units of a batch share.

    Attributes:
        out: Folder of the batch.
        job: How the list is erased.
    """

    out: Path
    job: Job


@dataclass(frozen=True)
class Unit:
    """One concept.

    Attributes:
        row: Where it stands in the list.
        entry: What to erase; its method is set.
        key: SHA-256 of all that the files depend on.
        folder: Below the batch's folder.
        taken: Targets of the list, this one too, that an anchor might contain; none does.
    """

    row: int
    entry: Entry
    key: str
    folder: str
    taken: tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """Units that one worker does one after the other, and whose sums are kept together.

    Attributes:
        key: SHA-256 over its units and groups.
        groups: Names of the joint adapters -> keys of the units here that belong to each.
    """

    key: str
    units: tuple[Unit, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def title(self) -> str:
        return self.units[0].entry.target


@dataclass(frozen=True)
class Joint:
    """One adapter for several concepts.

    Attributes:
        tag: The group, or "all".
        units: Its members, in the order of the list.
        chunks: Keys of the chunks that hold their sums.
    """

    tag: str
    key: str
    folder: str
    units: tuple[Unit, ...]
    chunks: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"joint adapter {self.tag!r}"


@dataclass(frozen=True)
class Solve:
    """The edit of a joint adapter, kept aside until it is scored."""

    joint: Joint

    @property
    def title(self) -> str:
        return self.joint.title


@dataclass(frozen=True)
class Draw:
    """One batch of the pictures that a joint adapter is scored on, drawn ahead by whichever worker is free.

    Attributes:
        edited: Whether the adapter is attached.
        start: Number of the first picture.
    """

    joint: Joint
    edited: bool
    start: int

    @property
    def title(self) -> str:
        return f"pictures of {self.joint.title}"


@dataclass(frozen=True)
class Matrix:
    """How the adapters of the batch move each other's concepts.

    Attributes:
        files: Adapters, below the batch's folder.
    """

    key: str
    files: tuple[str, ...]

    @property
    def title(self) -> str:
        return "interference"


Task = Chunk | Solve | Draw | Joint | Matrix


def digest(*parts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


@cache
def code_version() -> str:
    """The version, and a hash of all that shapes a unit's files: modules, shipped weights, versions of libraries."""
    content = hashlib.sha256()
    for name in shaping(Path(__file__).parent.parent):
        content.update((Path(__file__).parent.parent / name).read_bytes())
    content.update((embedded.folder() / "manifest.json").read_bytes())
    content.update(" ".join(f"{name} {version(name)}" for name in LIBRARIES).encode())
    return f"{__version__}+{content.hexdigest()[:12]}"


def shaping(package: Path) -> list[str]:
    """The modules of the package, as files below it, that decide what a unit's files hold."""
    names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return [name for name in names if not name.removesuffix(".py").startswith(ASIDE)]


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The report of a unit that is done: it has the key, and all its files are there in full."""
    try:
        report = json.loads((folder / "report.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in report["bytes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if report.get("key") == key and whole else None


def perform(setup: Setup, task: Task) -> dict[str, Any]:
    """Do a task; a plain dictionary comes back. Runs in a worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's load or the number of workers
    started = time.monotonic()
    try:
        result = _chunk(setup, task) if isinstance(task, Chunk) else _of_several(setup, task)
    finally:
        torch.set_num_threads(threads)
    return {**result, "seconds": time.monotonic() - started}


# -- one concept after the other -----------------------------------------------------------------------------------


def record_file(setup: Setup, chunk: str) -> Path:
    """Where a chunk's outcomes are kept; it is written after all that it tells of."""
    return setup.out / WORK / "chunks" / f"{chunk}.json"


def sums_file(setup: Setup, chunk: str) -> Path:
    """Where a chunk's sums are kept until the joint adapters are made."""
    return setup.out / WORK / "sums" / f"{chunk}.safetensors"


def _chunk(setup: Setup, chunk: Chunk) -> dict[str, Any]:
    from safetensors.torch import save

    wanted = bool(chunk.groups) and not sums_file(setup, chunk.key).is_file()
    outcomes, gathered = [], {}
    with _model(setup).serving(_ahead(setup, chunk)):
        for unit in chunk.units:
            try:
                outcome, part = _unit(setup, unit, wanted)
            except (InputError, NumericalError) as error:  # of this concept; what concerns the machine ends the batch
                unknown = {"unknown": True} if isinstance(error, UnknownConceptError) else {}
                outcome, part = {"state": "failed", "error": str(error), **unknown}, None
            outcomes.append({"key": unit.key, **outcome})
            if part is not None:
                gathered[unit.key] = part
    if wanted:
        tensors: dict[str, Tensor] = {}
        for tag, members in chunk.groups:
            parts = [gathered[key] for key in members if key in gathered]
            if parts:
                summed = sum(parts[1:], parts[0])
                # Clones: a group of one, or parts that are equal, share memory, which the file format refuses.
                tensors |= {f"{digest(tag)[:16]}.{name}": tensor.clone() for name, tensor in summed.tensors().items()}
        atomic_write(sums_file(setup, chunk.key), save(tensors))
    record = {"outcomes": outcomes}
    atomic_write(record_file(setup, chunk.key), json.dumps(record, ensure_ascii=False) + "\n")
    return record


def _ahead(setup: Setup, chunk: Chunk) -> dict[tuple[int, ...], Tensor]:
    """What the method wants encoded at once for all units; for all, also of a chunk that was interrupted, so that it
    is the same to the last bit."""
    from concept_erase.methods import Foresighted

    method = _method(setup.job, chunk.units[0].entry.method or setup.job.method)
    concepts = [unit.entry.concept for unit in chunk.units]
    return method.ahead(_model(setup), concepts) if isinstance(method, Foresighted) else {}


def _unit(setup: Setup, unit: Unit, wanted: bool) -> tuple[dict[str, Any], Any]:
    """The outcome of a unit, and what a joint solve needs of it, if that is wanted and the method can add it up."""
    from concept_erase.methods import Additive

    folder = setup.out / unit.folder
    report = finished(folder, unit.key)
    work = _work(setup, unit.entry.method or setup.job.method, [unit.entry.concept])
    adds_up = isinstance(work.method, Additive)
    if report and report.get("score_again"):
        report = _scored_again(setup, unit.folder, unit.key, report, work, unit)
    if report and not (wanted and adds_up):
        return outcome_of(unit.folder, report), None
    if report:
        return outcome_of(unit.folder, report), work.method.gather(work.model, members_of(report)[0])  # type: ignore[attr-defined]
    _clean(folder)
    work.check([unit.entry.concept])
    told = work.look([unit.entry.concept], force=setup.job.force)
    concept, reason = work.anchored(unit.entry.concept, unit.taken)
    if isinstance(work.method, Additive):
        gathered = work.method.gather(work.model, concept)
        edit = work.method.finish(work.model, [concept], gathered, work.run([concept]))
    else:
        gathered = None
        edit = work.method.edit(work.model, [concept], work.run([concept], folder / ".training.pt"))
    report = _written(setup, unit.folder, unit.key, work.completed([concept], edit, [*told, reason]))
    return outcome_of(unit.folder, report), gathered if wanted else None


def _written(setup: Setup, folder: str, key: str, erasure: Any, files: dict[str, Path] | None = None) -> dict[str, Any]:
    """The report of what is written; `files` by role are there already."""
    import torch

    from concept_erase.erasure import write

    dtype = torch.float16 if setup.job.half else torch.float32
    how: dict[str, Any] = {"dtype": dtype, "whole": False, "dated": False}
    write(erasure, setup.out / folder, _model(setup), **how, key=key, files=files)
    return json.loads((setup.out / folder / "report.json").read_text())


def _scored_again(
    setup: Setup, folder: str, key: str, report: dict[str, Any], work: Work, unit: Unit | None = None
) -> dict[str, Any]:
    """The report of an adapter that could not be scored for a reason of the machine, scored now.

    The adapter stays, unless pictures that can be drawn now choose another anchor or strength for a unit.
    """
    from concept_erase.adapter import Adapter
    from concept_erase.erasure import Erasure
    from concept_erase.methods import Additive

    files = {role: setup.out / folder / name for role, name in report["files"].items()}
    files = {role: file for role, file in files.items() if role in ("adapter", "operator")}
    before = {words.knowledge(told) for told in report["knowledge"]}
    # It is made: whether the base knows the concept is said, and no reason to take the adapter away.
    told = work.look(members_of(report), force=True) if report["knowledge"] else []
    notes = (*told, *(note for note in report["notes"] if note not in before))
    method = report["method"]  # in the order of a run that nothing interrupted; the file has another one
    if unit and work.judges and isinstance(work.method, Additive):
        concept, reason = work.anchored(unit.entry.concept, unit.taken)
        gathered = work.method.gather(work.model, concept)
        edit = work.method.finish(work.model, [concept], gathered, work.run([concept]))
        if ([concept], edit.measures) != (members_of(report), method["measures"]):
            (setup.out / "interference.json").unlink(missing_ok=True)  # it tells of the other adapter
            return _written(setup, folder, key, work.completed([concept], edit, [*told, reason]))
        notes = (*told, reason, *edit.notes)
    adapter = replace(Adapter.load(files["adapter"]), settings=method["settings"], base=report["base"])
    erasure = Erasure(
        adapter, None, work.unscored, notes, method["measures"], {}, None, work.knowledge, work.score_again
    )
    return _written(setup, folder, key, work.scored(erasure), files)


def outcome_of(folder: str, report: dict[str, Any]) -> dict[str, Any]:
    """What the index says of a unit that is done."""
    adapter = report["files"]["adapter"]
    scores = report["scores"]
    return {
        "state": "done",
        "error": None,
        "folder": folder,
        "anchor": report["concept"].get("anchor"),
        "adapter": adapter,
        "rank": report["rank"],
        "bytes": report["bytes"][adapter],
        "picture": report["files"].get("picture"),
        "scores": _told(scores) if scores else None,
        "knowledge": report["knowledge"],
        "not_scored": report["not_scored"],
        "notes": report["notes"],
        **({"score_again": True} if report.get("score_again") else {}),
    }


def _told(scores: dict[str, Any]) -> dict[str, Any]:
    """The scores that the index tells, with what tells whether there was anything to erase."""
    return {
        **{name: scores[name] for name in ("UA", "IRA", "CRA", "H")},
        "nonsense": scores["controls"].get("nonsense"),
    }


def members_of(report: dict[str, Any]) -> list[Concept]:
    """The concepts of a report, with their anchors."""
    from concept_erase.concepts import Concept

    return [Concept(c["target"], c["kind"], c["anchor"], tuple(c["preserve"])) for c in report["concepts"]]


def _of_several(setup: Setup, task: Solve | Draw | Joint | Matrix) -> dict[str, Any]:
    """What concerns several units; when it fails for what they are, the batch goes on without it."""
    try:
        if isinstance(task, Solve):
            return _solve(setup, task.joint)
        if isinstance(task, Draw):
            return _draw(setup, task)
        return _joint(setup, task) if isinstance(task, Joint) else _matrix(setup, task)
    except (InputError, NumericalError) as error:
        return {"failed": str(error)}


# -- several at once -----------------------------------------------------------------------------------------------


def solved_folder(setup: Setup, joint: Joint) -> Path:
    """Where the edit of a joint adapter is kept until it is scored."""
    return setup.out / WORK / "joint" / joint.key


def _solve(setup: Setup, joint: Joint) -> dict[str, Any]:
    from concept_erase import operators
    from concept_erase.adapter import Adapter
    from concept_erase.lowrank import compose
    from concept_erase.methods import Additive, Edit

    folder = solved_folder(setup, joint)
    if (folder / "edit.json").is_file():
        return {"concepts": len(json.loads((folder / "edit.json").read_text())["concepts"])}
    concepts, edits, names = [], [], []
    for name in sorted({unit.entry.method or "" for unit in joint.units}):
        members, files = [], []
        for unit in joint.units:
            report = finished(setup.out / unit.folder, unit.key) if unit.entry.method == name else None
            if report:
                members += members_of(report)
                files.append(setup.out / unit.folder / report["files"]["adapter"])
        if not members:
            continue
        method = _method(setup.job, name)
        if isinstance(method, Additive):
            edits.append(method.finish(_model(setup), members, _total(setup, joint, method)))
        else:  # what cannot be solved jointly is composed
            edits.append(Edit(compose([Adapter.load(file).changes for file in files])))
        concepts += members
        names.append(name)
    if not edits:
        return {"concepts": 0}
    edit = edits[0]
    if len(edits) > 1:
        edit = Edit(compose([e.changes for e in edits]), tuple(n for e in edits for n in e.notes))
    erasure = _work(setup, names[0], [], scored=False).completed(concepts, edit, [], "+".join(names))
    file = erasure.adapter.save(folder, peft=False, dated=False, replace=True)[0]
    kept = {
        "adapter": file.name,
        "method": names[0],
        "concepts": [c.target for c in concepts],
        "notes": list(edit.notes),
        "measures": edit.measures,
    }
    if edit.operator is not None:
        operators.write(operators.beside(file), _model(setup), concepts, edit.operator)
    atomic_write(folder / "edit.json", json.dumps(kept))
    return {"concepts": len(concepts)}


def _total(setup: Setup, joint: Joint, method: Any) -> Any:
    """The gathered sum of a group over its chunks, in their order."""
    from safetensors.torch import load_file

    total, prefix = None, f"{digest(joint.tag)[:16]}."
    for key in joint.chunks:
        tensors = load_file(sums_file(setup, key))
        mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if mine:
            part = method.regathered(mine)
            total = part if total is None else total + part
    return total


def pictures_of(job: Job, concepts: int) -> int:
    """How many pictures of each group a joint adapter is scored on: its concepts', but no more than 200 for that."""
    return min(job.pictures * concepts, max(200, job.pictures))


def _draw(setup: Setup, task: Draw) -> dict[str, Any]:
    """Fills the cache with one batch, in just the composition that scoring the joint adapter asks for."""
    from contextlib import nullcontext

    from concept_erase.attach import attached
    from concept_erase.generate import Sampling, generate
    from concept_erase.scores import plan

    adapter, _ = _solved(setup, task.joint)
    model, sampling = _model(setup), Sampling(setup.job.steps, setup.job.guidance)
    shots = plan(model, adapter.concepts, pictures_of(setup.job, len(adapter.concepts)))
    mine = shots[task.start : task.start + sampling.batch]
    with attached(model.pipe, adapter) if task.edited else nullcontext():
        variant = adapter.digest if task.edited else ""
        generate(model, [s.prompt for s in mine], [s.seed for s in mine], sampling=sampling, variant=variant)
    return {}


def _solved(setup: Setup, joint: Joint) -> tuple[Any, dict[str, Any]]:
    from concept_erase.adapter import Adapter

    kept = json.loads((solved_folder(setup, joint) / "edit.json").read_text())
    return Adapter.load(solved_folder(setup, joint) / kept["adapter"]), kept


def _joint(setup: Setup, joint: Joint) -> dict[str, Any]:
    from concept_erase import operators
    from concept_erase.methods import Edit

    folder = setup.out / joint.folder
    report = finished(folder, joint.key)
    if report and report.get("score_again"):
        members = members_of(report)
        work = _work(setup, joint.units[0].entry.method or setup.job.method, members)
        report = _scored_again(setup, joint.folder, joint.key, report, work)
    if report is None:
        _clean(folder)
        adapter, kept = _solved(setup, joint)
        work = _work(setup, kept["method"], adapter.concepts)
        file = operators.beside(solved_folder(setup, joint) / kept["adapter"])
        operator = operators.read(file).change if file.is_file() else None
        edit = Edit(adapter.changes, tuple(kept["notes"]), kept["measures"], operator)
        report = _written(setup, joint.folder, joint.key, work.completed(adapter.concepts, edit, [], adapter.method))
    return outcome_of(joint.folder, report)


def _matrix(setup: Setup, task: Matrix) -> dict[str, Any]:
    from concept_erase import interference, picture

    found = interference.interference(_model(setup), [setup.out / file for file in task.files])
    picture.save(interference.draw(found), setup.out / "interference.png")
    summary = {"key": task.key, **found.summary()}
    atomic_write(setup.out / "interference.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return {}


def _clean(folder: Path) -> None:
    """Remove what a writer that was killed left behind."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


# -- what a worker keeps between units -----------------------------------------------------------------------------

_models: dict[str | None, Model] = {}


def _model(setup: Setup) -> Model:
    from concept_erase.model import open_model

    if setup.job.model not in _models:
        _models[setup.job.model] = open_model(setup.job.model)
    return _models[setup.job.model]


def _work(setup: Setup, method: str, concepts: Sequence[Concept], scored: bool = True) -> Work:
    from concept_erase.erasure import Work
    from concept_erase.generate import Sampling

    job = setup.job
    n = job.pictures if len(concepts) == 1 else pictures_of(job, len(concepts))
    sampling = Sampling(job.steps, job.guidance)
    return Work(_model(setup), _method(job, method), concepts, n if scored else 0, job.scorer, sampling)


def _method(job: Job, name: str) -> Method:
    """The job's settings are for its own method; others of a row have their defaults."""
    from concept_erase.methods import make

    return make(name, job.settings if name == job.method else {})
