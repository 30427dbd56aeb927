"""What the tests of lists share: a short list on the tiny generator, and what a batch's folder holds."""

import hashlib
import json
from pathlib import Path

from concept_erase.adapter import Adapter
from concept_erase.lists import Listing, parse_list
from concept_erase.schema import Job

SETTINGS = {"contexts": 2, "preserve_prompts": 20}  # of uce; as quick as it gets
ROWS = (
    {"target": "twemoji", "anchor": "fluent", "tags": "flat"},
    {"target": "Turner", "tags": "flat;painted"},
    {"target": "cat", "kind": "object", "preserve": "dog;horse"},
    {"target": "Van Gogh", "tags": "painted"},
)
TOO_LONG = "very " * 30 + "long"  # for the tiny generator's text encoder


def listed(*rows) -> Listing:
    """A list of names, or of dictionaries with the fields of an entry."""
    return parse_list(json.dumps(rows or ROWS).encode(), "list.json")


def job_of(base: Path, **changes) -> Job:
    """How the tests erase a list: quickly, and without pictures if nothing else is said."""
    return Job(**{"model": str(base), "pictures": 0, "settings": SETTINGS, **changes})


def files_of(folder: Path) -> list[Path]:
    """All files of a batch that are results: neither log, nor lock, nor what the next run needs."""
    found = (p for p in folder.rglob("*") if not p.is_dir() and p.name not in ("log.txt", ".lock"))
    return sorted(p for p in found if p.relative_to(folder).parts[0] != ".work")


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every result."""
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files_of(folder)}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> inode and time of every result: both change when a file is written again."""
    return {p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files_of(folder)}


def temporaries(folder: Path) -> list[str]:
    """Half-written files, wherever they are."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*.tmp")]


def adapter_in(folder: Path, outcome: dict) -> Adapter:
    """The adapter that an entry of the index tells of."""
    return Adapter.load(folder / outcome["folder"] / outcome["adapter"])
