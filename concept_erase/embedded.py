"""The generator, scorer and judge that ship with the project: where they are, and that they are unchanged."""

import hashlib
import json
from functools import cache
from pathlib import Path

from concept_erase.errors import AdapterFileError, MissingModelError

NAME = "embedded"


@cache
def folder() -> Path:
    """The `weights/` folder: inside the installed package, or at the root of a checkout.

    Raises:
        MissingModelError: neither is there.
    """
    package = Path(__file__).parent
    for candidate in (package / "weights", package.parent / "weights"):
        if (candidate / "manifest.json").is_file():
            return candidate
    raise MissingModelError(f"the embedded weights are not in {package}; install the package again or use a checkout.")


@cache
def verified() -> Path:
    """`folder()`, after every file's SHA-256 was compared with `manifest.json`.

    Raises:
        AdapterFileError: a file is missing or differs.
    """
    root = folder()
    for name, expected in json.loads((root / "manifest.json").read_text())["files"].items():
        path = root / name
        if not path.is_file():
            raise AdapterFileError(f"{path} is missing; install the package again.")
        if sha256(path) != expected:
            raise AdapterFileError(f"{path} differs from manifest.json; install the package again.")
    return root


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base() -> Path:
    return verified() / "base"


def scorer() -> Path:
    return verified() / "scorer"


def judge() -> Path:
    return verified() / "judge"


@cache
def styles() -> tuple[str, ...]:
    """The house styles the embedded generator knows."""
    return tuple(s["name"] for s in _vocabulary()["styles"])


@cache
def objects(violent: bool | None = None) -> tuple[str, ...]:
    """The objects the embedded generator knows: all, only the violent or sensitive ones, or only the harmless."""
    entries = _vocabulary()["objects"]
    return tuple(o["name"] for o in entries if violent is None or (o["group"] == "violence") == violent)


@cache
def _vocabulary() -> dict[str, list[dict[str, str]]]:
    return json.loads((folder() / "vocabulary.json").read_text())
