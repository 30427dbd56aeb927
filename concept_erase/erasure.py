"""One full way through the house: a concept becomes an adapter, its scores and its report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from concept_erase import __version__, anchors, methods
from concept_erase.adapter import Adapter
from concept_erase.concepts import Concept, Kind, check_together, same
from concept_erase.errors import BusyError, InputError, MissingModelError, OutputError
from concept_erase.files import atomic_write
from concept_erase.generate import Sampling, generate
from concept_erase.lowrank import check_finite
from concept_erase.methods import Method, Run, settings_of
from concept_erase.model import Model, Source, open_model
from concept_erase.scores import Judges, Scores, Shot, plan, score
from concept_erase.statistics import Estimate, rate

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Erasure:
    """What `erase` returns.

    Attributes:
        adapter: The edit; `adapter.save(folder)` writes both files.
        scores: None when nothing was scored; `unscored` says why.
        notes: Choices made and warnings, in words.
        measures: Closed-form quantities of the edit.
        files: What was written, by role; empty without `out`.
    """

    adapter: Adapter
    scores: Scores | None
    unscored: str | None
    notes: tuple[str, ...]
    measures: dict[str, float]
    files: dict[str, Path]

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
            "scores": self.scores.as_dict() if self.scores else None,
            "not_scored": self.unscored,
            "notes": list(self.notes),
            "files": {role: path.name for role, path in self.files.items()},
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
    progress: Progress | None = None,
) -> Erasure:
    """Make a generator forget concepts, as an adapter with its scores.

    Args:
        concepts: One concept (a text is a style) or several, solved jointly.
        model: None for the embedded generator, a live pipeline, a folder or a hub name.
        method: Name of a method, or a method with its settings.
        out: Folder for both adapter files, card, report and picture; None writes nothing.
        n: Pictures of the erased concepts to score on, and as many of what must stay; 0 does not score.
        scorer: An open_clip model; needed on other bases than the embedded one, or nothing is scored.
        dtype: Of the adapter files, float32 or float16.
        strict: Refuse what would otherwise be a warning about the concepts.
    Raises:
        ConceptEraseError: bad input, NaN, a missing model; nothing is written then.
        BusyError: another process writes to `out`.
    """
    if isinstance(concepts, str):
        concepts = Concept(concepts)
    listed, notes = check_together([concepts] if isinstance(concepts, Concept) else list(concepts), strict=strict)
    eraser = methods.make(method) if isinstance(method, str) else method
    with _locked(Path(out) if out is not None else None) as folder:
        model = open_model(model)
        judges, unscored = _judges(model, listed, scorer) if n > 0 else (None, "scoring was switched off")
        own_rate = _own_rate(model, judges, sampling, progress) if judges else None
        anchored = []
        for concept in listed:
            for name in (concept.target, *([concept.anchor] if concept.anchor else ()), *concept.preserve):
                model.token_ids(name)  # refuses a name beyond the text encoder's limit before any work is done
            look = partial(own_rate, concept) if own_rate else None
            chosen, reason = anchors.choose(model, concept, [c.target for c in listed], look)
            anchored.append(chosen)
            notes.append(reason)
        _refuse_anchor_chain(anchored)
        for shot in plan(model, anchored, n) if judges else ():
            model.token_ids(shot.prompt)  # a prompt of the scores that does not fit is refused before the work

        settings = settings_of(eraser)
        base = {"name": model.name, "revision": model.revision, "hash": model.fingerprint}
        # A checkpoint belongs to exactly this work: another concept, setting, base or version never picks it up.
        work = repr((anchored, eraser.name, sorted(settings.items()), base["hash"], __version__))
        checkpoint = folder / f".training-{hashlib.sha256(work.encode()).hexdigest()[:16]}.pt" if folder else None
        edit = eraser.edit(model, anchored, Run(progress, checkpoint))
        check_finite(edit.changes)
        adapter = Adapter(edit.changes, model.family, tuple(anchored), eraser.name, settings, base)
        scores = None
        if judges:
            scores = score(model, adapter, n=n, scorer=scorer, sampling=sampling, progress=progress)
        erasure = Erasure(adapter, scores, unscored, (*notes, *edit.notes), edit.measures, {})
        return _written(erasure, folder, dtype) if folder else erasure


def _judges(model: Model, concepts: Sequence[Concept], scorer: str | None) -> tuple[Judges | None, str | None]:
    try:
        return Judges(model, concepts, scorer), None
    except MissingModelError as error:
        return None, str(error)
    except ImportError as error:
        return None, f"the scorer's packages cannot be imported ({error}); install open-clip-torch with its torchvision"


def _own_rate(
    model: Model, judges: Judges, sampling: Sampling, progress: Progress | None
) -> Callable[[Concept, str, Sequence[str]], Estimate]:
    """Draws pictures of a candidate anchor and counts how many are taken for the concept."""

    def measure(concept: Concept, name: str, prompts: Sequence[str]) -> Estimate:
        seeds = list(range(len(prompts)))
        images = generate(model, prompts, seeds, sampling=sampling, progress=progress, what=f"pictures of {name!r}")
        shots = [Shot(p, s, name, "", False, concept.kind is Kind.STYLE) for p, s in zip(prompts, seeds, strict=True)]
        taken = judges.look(shots, images).concepts
        return rate(sum(same(t, concept.target) for t in taken), len(taken))

    return measure


def _refuse_anchor_chain(concepts: Sequence[Concept]) -> None:
    """An anchor that is itself erased would lead nowhere."""
    targets = {c.target.casefold() for c in concepts}
    for concept in concepts:
        if concept.anchor and concept.anchor.casefold() in targets:
            raise InputError(
                f"the anchor {concept.anchor!r} of {concept.target!r} is itself erased; name another anchor."
            )


@contextmanager
def _locked(folder: Path | None) -> Iterator[Path | None]:
    """The output folder, held by this process alone."""
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
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


def _written(erasure: Erasure, folder: Path, dtype: torch.dtype) -> Erasure:
    """Everything in the folder, the report last: where it is, all is."""
    from concept_erase import card, picture

    kohya, peft = erasure.adapter.save(folder, dtype=dtype)
    files = {"adapter": kohya, "adapter_peft": peft}
    if erasure.scores:
        files["picture"] = folder / "before_after.png"
        scores = erasure.scores
        picture.save(picture.before_after(scores.shots, *scores.images, erasure.adapter.title), files["picture"])
    files["card"] = folder / "README.md"
    files["report"] = folder / "report.json"
    done = Erasure(erasure.adapter, erasure.scores, erasure.unscored, erasure.notes, erasure.measures, files)
    atomic_write(files["card"], card.text(done.adapter, files, done.scores, done.unscored, done.notes))
    atomic_write(files["report"], json.dumps(done.report(), indent=2, ensure_ascii=False) + "\n")
    return done
