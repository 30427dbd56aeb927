"""One full way through the house: a concept becomes an adapter, its scores and its report."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from concept_erase import __version__, anchors, knowledge, methods, operators, words
from concept_erase.adapter import Adapter, identity, refuse_another, remove_older
from concept_erase.attach import attached
from concept_erase.concepts import Concept, check_together
from concept_erase.errors import (
    BusyError,
    ConceptEraseError,
    InputError,
    MissingModelError,
    NumericalError,
    OutputError,
    ResourceError,
)
from concept_erase.files import atomic_write
from concept_erase.generate import Sampling, generate
from concept_erase.knowledge import Knowledge
from concept_erase.lowrank import LowRank, check_finite
from concept_erase.methods import Edit, Method, Run, settings_of
from concept_erase.model import Model, Source, open_model
from concept_erase.names import Lookup
from concept_erase.scores import Judges, Scores, Shot, plan, score, trial_shots
from concept_erase.statistics import Estimate, rate

Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)
_OF_THE_MACHINE = re.compile(r"out of memory|not enough memory|can't allocate memory|CUDA error|NCCL|cuDNN", re.I)


@dataclass(frozen=True, eq=False)
class Erasure:
    """What `erase` returns.

    Attributes:
        adapter: The edit; `adapter.save(folder)` writes both files.
        scores: None when nothing was scored; `unscored` says why.
        notes: Choices made and warnings, in words.
        measures: Closed-form quantities of the edit.
        files: What was written, by role; empty without `out`.
        operator: Of a closed form, the operator on the text stream that the changes are folded from.
        knowledge: Of each concept, whether the base knew it at all.
        score_again: Whether it is not scored for a reason of the machine, which may be another one next time.
    """

    adapter: Adapter
    scores: Scores | None
    unscored: str | None
    notes: tuple[str, ...]
    measures: dict[str, float]
    files: dict[str, Path]
    operator: LowRank | None = None
    knowledge: tuple[Knowledge, ...] = ()
    score_again: bool = False

    def report(self) -> dict[str, Any]:
        """Everything that `report.json` holds."""
        concepts = [
            {"target": c.target, "kind": c.kind.value, "anchor": c.anchor, "preserve": list(c.preserve)}
            for c in self.adapter.concepts
        ]
        return {
            "concept": concepts[0] if len(concepts) == 1 else {"target": self.adapter.title, "members": concepts},
            "concepts": concepts,
            "method": {"name": self.adapter.method, "settings": self.adapter.settings, "measures": self.measures},
            "base": self.adapter.base,
            "rank": self.adapter.rank,
            "knowledge": [k.as_dict() for k in self.knowledge],
            "scores": self.scores.as_dict() if self.scores else None,
            "not_scored": self.unscored,
            **({"score_again": True} if self.score_again else {}),
            "notes": list(self.notes),
            "files": {role: path.name for role, path in self.files.items()},
            "bytes": {p.name: p.stat().st_size for role, p in self.files.items() if role not in ("report", "pictures")},
            "version": __version__,
        }


def erase(
    concepts: str | Concept | Sequence[Concept],
    model: Source = None,
    method: str | Method = "uce",
    *,
    out: Path | str | None = None,
    n: int = 200,
    scorer: str | None = None,
    sampling: Sampling = Sampling(),
    dtype: torch.dtype = torch.float32,
    strict: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Erasure:
    """Make a generator forget concepts, as an adapter with its scores.

    Args:
        concepts: One concept (a text is a style) or several, solved jointly.
        model: None for the embedded generator, a live pipeline, a folder or a hub name.
        method: Name of a method, or a method with its settings.
        out: Folder for both adapter files, card, report and picture; None writes nothing.
        n: Pictures of the erased concepts to score on, and as many of what must stay; 0 does not score.
        scorer: "base" for the base itself, or an open_clip model; needed on other bases than the embedded one, or
            nothing is scored.
        dtype: Of the adapter files, float32 or float16.
        strict: Refuse what would otherwise be a warning about the concepts.
        force: Erase also what the base does not seem to know.
        tell: Is told in words, before the work, whether the base knows each concept; the notes say it too.
    Raises:
        UnknownConceptError: the base does not seem to know a concept.
        ConceptEraseError: bad input, NaN, a missing model; nothing is written then.
        InputError: `out` holds another erasure, or files that are none of ours; they are as they were.
        BusyError: another process writes to `out`.
    """
    if isinstance(concepts, str):
        concepts = Concept(concepts)
    listed, notes = check_together([concepts] if isinstance(concepts, Concept) else list(concepts), strict=strict)
    eraser = methods.make(method) if isinstance(method, str) else method
    with locked(Path(out) if out is not None else None) as folder:
        work = Work(open_model(model), eraser, listed, n, scorer, sampling, progress)
        if folder:
            refuse_another(folder, identity(listed, eraser.name, work.base))
        work.check(listed)
        for told in work.look(listed, force=force):
            notes.append(told)
            if tell:
                tell(told)
        taken = [c.target for c in listed]
        anchored = []
        for concept in listed:
            chosen, reason = work.anchored(concept, taken)
            anchored.append(chosen)
            notes.append(reason)
        _refuse_anchor_chain(anchored)
        work.check(anchored)
        checkpoint = folder / f".training-{work.key(anchored)[:16]}.pt" if folder else None
        edit = eraser.edit(work.model, anchored, work.run(anchored, checkpoint))
        erasure = work.made(anchored, edit, notes)
        files = None
        if folder and work.judges:  # scoring takes long and may fail: by then the adapter is on disk
            files = write_adapter(erasure, folder, work.model, dtype=dtype)
            (folder / "report.json").unlink(missing_ok=True)  # an earlier one tells of other files
        erasure = work.scored(erasure)
        return write(erasure, folder, work.model, dtype=dtype, files=files) if folder else erasure


class Work:
    """What erasing takes beside the concept: the base, the method, and how it is scored."""

    def __init__(
        self,
        model: Model,
        method: Method,
        concepts: Sequence[Concept],
        n: int,
        scorer: str | None = None,
        sampling: Sampling = Sampling(),
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            concepts: What will be judged.
            n: Pictures of what is erased, and as many of what must stay; 0 does not score.
        """
        self.model, self.method, self.n, self.scorer = model, method, n, scorer
        self.sampling, self.progress = sampling, progress
        self.settings = settings_of(method)
        self.base = model.base
        self.knowledge: tuple[Knowledge, ...] = ()
        self.drawn: dict[tuple[str, int], Any] = {}
        self.judges: Judges | None = None
        self.unscored: str | None = "scoring was switched off"
        self.score_again = False
        if n > 0:
            self._judge(concepts)

    def key(self, concepts: Sequence[Concept]) -> str:
        """SHA-256 of all that an edit depends on: another concept, setting, base or version has another one."""
        work = repr((concepts, self.method.name, sorted(self.settings.items()), self.base["hash"], __version__))
        return hashlib.sha256(work.encode()).hexdigest()

    def look(self, concepts: Sequence[Concept], *, force: bool = False) -> list[str]:
        """See whether the base knows the concepts, before anything is erased; a sentence about each.

        Where nothing can be drawn or judged, that is said, and nothing is scored either.

        Args:
            force: Go on with what the base does not seem to know.
        Raises:
            UnknownConceptError: without `force`.
        """
        found = knowledge.unasked(concepts, self.unscored or "")
        if self.judges:
            try:
                found = knowledge.look(
                    self.model, self.judges, concepts, self.n, sampling=self.sampling, progress=self.progress
                )
            except Exception as error:
                self.judges, self.unscored, self.score_again = None, _reason(error), passing(error)
                found = knowledge.unasked(concepts, self.unscored)
        self.knowledge, self.drawn = tuple(found.found), found.drawn
        if not force:
            knowledge.refuse_unknown(self.model, concepts, self.knowledge)
        return [words.knowledge(k.as_dict()) for k in self.knowledge]

    def anchored(self, concept: Concept, taken: Sequence[str]) -> tuple[Concept, str]:
        """The concept with its anchor, and the reason in words.

        Args:
            taken: Targets that are erased as well; no anchor contains one of them.
        Raises:
            InputError: a name is beyond the text encoder's limit, or no anchor is left.
        """
        for name in (concept.target, *([concept.anchor] if concept.anchor else ()), *concept.preserve):
            self.model.token_ids(name)
        contexts = min(anchors.TRIAL.contexts, getattr(self.method, "contexts", anchors.TRIAL.contexts))
        look = partial(self._own_rate, concept) if self.judges else None
        return anchors.choose(self.model, concept, taken, look, contexts=contexts)

    def run(self, concepts: Sequence[Concept], checkpoint: Path | None = None) -> Run:
        """How their edit is carried out."""
        return Run(self.progress, checkpoint, partial(self._still, concepts) if self.judges else None)

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse, before the work, a prompt of the scores that does not fit the text encoder."""
        for shot in plan(self.model, concepts, self.n) if self.judges else ():
            self.model.token_ids(shot.prompt)

    def completed(
        self, concepts: Sequence[Concept], edit: Edit, notes: Sequence[str], method: str | None = None
    ) -> Erasure:
        """The erasure of an edit, scored."""
        return self.scored(self.made(concepts, edit, notes, method))

    def made(self, concepts: Sequence[Concept], edit: Edit, notes: Sequence[str], method: str | None = None) -> Erasure:
        """The erasure of an edit, not scored yet.

        Args:
            method: What the adapter says it was made with; this one's name when None.
        """
        check_finite(edit.changes)
        adapter = Adapter(
            edit.changes, self.model.family, tuple(concepts), method or self.method.name, self.settings, self.base
        )
        told = (*notes, *edit.notes)
        erasure = Erasure(adapter, None, self.unscored, told, edit.measures, {}, edit.operator, self.knowledge)
        return replace(erasure, score_again=self.score_again)

    def scored(self, erasure: Erasure) -> Erasure:
        """With scores; where scoring fails, with the reason: that never costs an adapter."""
        if not self.judges:
            return erasure
        how: dict[str, Any] = {"n": self.n, "scorer": self.scorer, "sampling": self.sampling}
        try:
            scores = score(self.model, erasure.adapter, **how, drawn=self.drawn, progress=self.progress)
        except Exception as error:
            return replace(erasure, unscored=_reason(error), score_again=passing(error))
        return replace(erasure, scores=scores, unscored=None, score_again=False)

    def _judge(self, concepts: Sequence[Concept]) -> None:
        """Have judges, or the reason why there are none."""
        if self.model.undrawable:
            self.unscored = self.model.undrawable.rstrip(".")
            return
        try:
            self.judges, self.unscored = Judges(self.model, concepts, self.scorer, self.progress), None
        except MissingModelError as error:  # one that was named may be there or reachable another time
            self.unscored, self.score_again = str(error), self.scorer is not None
        except ImportError as error:
            told = f"the scorer's packages cannot be imported ({error}); install open-clip-torch with its torchvision"
            self.unscored, self.score_again = told, True
        except Exception as error:
            self.unscored, self.score_again = _reason(error), passing(error)

    def _own_rate(self, concept: Concept, name: str) -> Estimate:
        """Draws pictures of a candidate anchor and counts how many are taken for the concept."""
        return self._taken(trial_shots(self.model, [concept], name), [concept], f"pictures of {name!r}")

    def _still(self, concepts: Sequence[Concept], changes: dict[str, LowRank]) -> Estimate | None:
        """Draws pictures of the concepts under an edit and counts how many are still taken for them."""
        edited = Adapter(changes, self.model.family, tuple(concepts), self.method.name, self.settings, self.base)
        try:
            shots = trial_shots(self.model, concepts)
            with attached(self.model.pipe, edited):
                return self._taken(shots, concepts, "pictures of a trial", edited.digest)
        except Exception as error:  # it costs a choice, not an adapter; scoring will say what it was
            log.warning("no pictures under the edit: %s", _reason(error))
            return None

    def _taken(self, shots: Sequence[Shot], concepts: Sequence[Concept], what: str, variant: str = "") -> Estimate:
        """How many pictures of the concepts, or of another name in their place, are taken for them."""
        assert self.judges is not None, "without judges nothing is looked at"
        prompts, seeds = [s.prompt for s in shots], [s.seed for s in shots]
        how: dict[str, Any] = {"sampling": self.sampling, "variant": variant, "progress": self.progress, "what": what}
        images = generate(self.model, prompts, seeds, **how)
        taken = 0
        for i, concept in enumerate(concepts):
            mine = slice(i, None, len(concepts))  # the concepts take turns
            if shots[mine]:
                taken += self.judges.taken(images[mine], [concept], shots[mine])[concept.target]
        return rate(taken, len(shots))


def passing(error: Exception) -> bool:
    """Whether an error is of the machine as it was (memory, disk, network), and not of the concept or the base."""
    if isinstance(error, InputError | NumericalError):
        return False
    if isinstance(error, ResourceError | BusyError | MissingModelError | MemoryError | OSError | ImportError):
        return True
    # torch has a class of its own for a GPU's memory alone.
    return isinstance(error, RuntimeError) and bool(_OF_THE_MACHINE.search(str(error)))


def _reason(error: Exception) -> str:
    """Why nothing was scored, in a line."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, ConceptEraseError):
        return text.rstrip(".")
    return f"scoring failed ({type(error).__name__}{f': {text}' if text else ''})"


def _refuse_anchor_chain(concepts: Sequence[Concept]) -> None:
    """An anchor that is itself erased would lead nowhere."""
    targets = Lookup(c.target for c in concepts)
    for concept in concepts:
        if concept.anchor and concept.anchor in targets:
            raise InputError(
                f"the anchor {concept.anchor!r} of {concept.target!r} is itself erased; name another anchor."
            )


@contextmanager
def locked(folder: Path | None) -> Iterator[Path | None]:
    """The output folder, held by this process alone.

    Raises:
        BusyError: another process holds it.
        OutputError: it cannot be written.
    """
    if folder is None:
        yield None
        return
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise BusyError(f"another process writes to {folder}; wait for it, or choose another --out.") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another --out.") from error
    try:
        yield folder
    finally:
        # While the lock is held: whoever waits sees that this file has no name any more, and opens a new one.
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def write(
    erasure: Erasure,
    folder: Path,
    model: Model | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    whole: bool = True,
    dated: bool = True,
    key: str | None = None,
    files: dict[str, Path] | None = None,
) -> Erasure:
    """Everything in the folder, the report last: where it is, all is.

    Args:
        model: The base; with it the operator of a closed form is written too.
        whole: With the PEFT form and single pictures; a batch leaves them out.
        dated: With the time of writing in the adapter; without it the same edit gives the same bytes.
        key: Recorded in the report, for whoever asks whether the folder holds what it should; the folder is then
            this erasure's by its name, and whatever lies there is replaced.
        files: What `write_adapter` wrote already.
    Raises:
        InputError: without `key`, the folder holds another erasure, or files that are none of ours.
    """
    from concept_erase import card, picture

    if files is None:
        if key is None:
            refuse_another(folder, erasure.adapter.identity)
        files = write_adapter(erasure, folder, model, dtype=dtype, whole=whole, dated=dated)
    if erasure.scores:
        shots, (before, after) = erasure.scores.shots, erasure.scores.images
        files["picture"] = folder / "before_after.png"
        picture.save(picture.before_after(shots, before, after, erasure.adapter.title), files["picture"])
        if whole:
            files["pictures"] = picture.save_pairs(shots, before, after, folder / "pictures")
    files["card"] = folder / "README.md"
    files["report"] = folder / "report.json"
    done = replace(erasure, files=files)
    atomic_write(files["card"], card.text(done.adapter, files, done.scores, done.unscored, done.notes))
    remove_older(folder, files.values())
    report = {**done.report(), **({"key": key} if key else {})}
    atomic_write(files["report"], json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return done


def write_adapter(
    erasure: Erasure,
    folder: Path,
    model: Model | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    whole: bool = True,
    dated: bool = True,
) -> dict[str, Path]:
    """The edit alone, by role, as `write` does it: what scoring cannot cost."""
    saved = erasure.adapter.save(folder, dtype=dtype, peft=whole, dated=dated, replace=True)
    files = dict(zip(("adapter", "adapter_peft"), saved, strict=False))
    if erasure.operator is not None and model is not None:
        files["operator"] = operators.beside(files["adapter"])
        operators.write(files["operator"], model, erasure.adapter.concepts, erasure.operator)
    return files
