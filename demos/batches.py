"""Lists of concepts: uploaded, checked row by row, queued."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase.errors import ConceptEraseError, InputError
from concept_erase.files import atomic_write
from concept_erase.names import file_name
from concept_erase.schema import Job as Settings
from concept_erase.schema import build

from .jobs import Job, job_id
from .studio import Studio
from .uploads import take_list

if TYPE_CHECKING:
    from concept_erase.batch.estimate import Estimate
    from concept_erase.lists import Listing

HOW = ("method", "settings", "pictures", "steps", "model", "scorer", "half")
_NAME = re.compile(r"jobs/lists/[0-9a-f]{16}\.[a-z]{2,6}")


@dataclass(frozen=True)
class Checked:
    """A list of concepts, checked, before anything runs.

    Attributes:
        name: Of the kept copy, relative to the demo's folder.
        listing: Entries, problems, notices.
        estimate: Time and disk; None if it could not be told, and `unknown` says why.
    """

    name: str
    listing: Listing
    estimate: Estimate | None
    unknown: str


def check(studio: Studio, path: object, **how: Any) -> Checked:
    """Read an uploaded list and say what is wrong with which row, and what it will take.

    Args:
        path: What the upload field gave.
        how: Those of `HOW`, as in `Studio.erase`.
    Raises:
        InputError: the file as a whole cannot be used.
    """
    from concept_erase.batch.estimate import estimate
    from concept_erase.lists import parse_list

    file = take_list(path, studio.uploads)
    listed = parse_list(file.read_bytes(), file.name)
    name = f"jobs/lists/{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}{file.suffix.lower()}"
    if not (studio.root / name).is_file():
        atomic_write(studio.root / name, file.read_bytes())
    plain = {key: value for key, value in _how(studio, how).items() if key != "content"}
    try:
        told = estimate(listed, build(Settings, plain), studio.root / "batches", os.cpu_count() or 1)
        here = studio.queue.pace.batch(plain, len(listed.entries))
        return Checked(name, listed, told if here is None else replace(told, seconds=here, basis="measured here"), "")
    except ConceptEraseError as error:
        return Checked(name, listed, None, str(error))


def submit(studio: Studio, name: object, title: object = "", *, force: object = False, **how: Any) -> Job:
    """Queue a checked list.

    Args:
        name: `Checked.name`; nothing else is read.
        title: For people.
        force: Erase also the rows that the generator does not seem to know.
        how: Those of `HOW`, as in `Studio.erase`.
    Raises:
        InputError: there is no such list.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError("there is no such list; upload it, and look at its rows first.")
    if not (studio.root / name).is_file():
        raise InputError("this list is not here any more; upload it again.")
    arguments = {"list": name, **_how(studio, how), **({"force": True} if force else {})}
    shown = title if isinstance(title, str) and title.strip() else "a list"
    folder = f"batches/{file_name([Path(shown).stem], also=[job_id('batch', arguments)])}"
    return studio.queue.submit("batch", arguments, f"Batch {shown[:80]}", folder)


def listing(studio: Studio, name: str) -> Listing | None:
    """The kept copy of a list, read; None if it is gone."""
    try:
        return _read(studio.root / name)
    except (ConceptEraseError, OSError):
        return None


@lru_cache(maxsize=4)
def _read(path: Path) -> Listing:
    from concept_erase.lists import parse_list

    return parse_list(path.read_bytes(), path.name)  # named by its content, so it never changes


def _how(studio: Studio, how: dict[str, Any]) -> dict[str, Any]:
    return studio.settings(**{key: how.get(key) for key in HOW})
