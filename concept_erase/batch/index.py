"""The index of a batch: `index.json` for programs, `index.html` for people, each made from what the units left.

OUT/index.json, index.html            what was erased, with scores
OUT/concepts/NAME-KEY/                one adapter with its report, card and picture
OUT/joint/TAG-KEY/                    the same for each tag, and "all"
OUT/interference.json, .png           how the adapters move each other's concepts
OUT/log.txt                           when what was done
OUT/.work/                            what the next run needs to find what is done
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase import __version__, typed
from concept_erase.batch import gallery
from concept_erase.files import atomic_write

if TYPE_CHECKING:
    from concept_erase.batch.runner import Plan
    from concept_erase.batch.units import Joint


def build(
    plan: Plan,
    outcomes: dict[str, dict[str, Any]],
    joints: dict[str, dict[str, Any]],
    matrix: dict[str, Any] | None,
    notices: Sequence[str] = (),
) -> dict[str, Any]:
    """What `index.json` holds: nothing that differs between two runs of the same list."""
    entries = []
    for unit in plan.units:
        entry = unit.entry.model_dump(mode="json")
        outcome = _told(outcomes[unit.key])
        entries.append({"row": unit.row, **entry, **_nothing(), **outcome})
        if outcome["state"] == "failed":
            entries[-1]["anchor"] = unit.entry.anchor
    return {
        "version": __version__,
        "base": plan.base,
        "job": _shown(plan),
        "entries": entries,
        "joint": [
            {"tag": j.tag, "members": _members(j, outcomes), **_nothing(), **_told(found)}
            for j in plan.joints
            if (found := joints.get(j.key))
        ],
        "problems": [vars(p) for p in plan.listing.problems],
        "notices": [*plan.listing.notices, *notices],
        "interference": {"file": "interference.json", "picture": "interference.png", "worst": matrix["worst"][:10]}
        if matrix
        else None,
    }


def write(index: dict[str, Any], out: Path) -> None:
    """The page first: where `index.json` is, all is."""
    _update(out / "index.html", gallery.page(index))
    _update(out / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")


def _update(file: Path, text: str) -> None:
    """Written only where it differs: a run that finds everything done changes no file."""
    if not file.is_file() or file.read_bytes() != text.encode():
        atomic_write(file, text)


def _shown(plan: Plan) -> dict[str, Any]:
    """How the list was erased, without the paths of this machine."""
    job = plan.setup.job.model_dump(mode="json")
    by_base, clip = typed.scorer(job["scorer"])
    scorers = [*([typed.BASE] if by_base else []), *([Path(clip).name] if clip else [])]
    return {**job, "model": plan.base["name"], "scorer": "+".join(scorers) or None}


def _members(joint: Joint, outcomes: dict[str, dict[str, Any]]) -> list[str]:
    return [unit.entry.target for unit in joint.units if outcomes[unit.key]["state"] == "done"]


def _told(outcome: dict[str, Any]) -> dict[str, Any]:
    """An outcome without what only the next run wants to know."""
    return {k: v for k, v in outcome.items() if k not in ("key", "unknown", "score_again")}


def _nothing() -> dict[str, Any]:
    names = ("error", "folder", "adapter", "rank", "bytes", "picture", "scores", "knowledge", "not_scored")
    return {**dict.fromkeys(names), "notes": []}
