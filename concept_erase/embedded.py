"""The generator, scorer and judge that ship with the project: where they are, and that they are unchanged."""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from concept_erase.concepts import PROFILES as GENERAL
from concept_erase.concepts import Kind
from concept_erase.errors import AdapterFileError, MissingModelError

NAME = "embedded"

_STYLE = replace(
    GENERAL[Kind.STYLE],
    templates=(
        "{target} style",
        "an icon in {target} style",
        "a {context} in {target} style",
        "a {target} {context}",
        "{target} icon of a {context}",
        "{context}, {target} style",
    ),
    unseen=(
        "a {target} emoji of a {context}",
        "a {context} drawn in {target} style",
        "a picture of a {context} in the style of {target}",
        "{target} art of a {context}",
    ),
    probes=("an icon in {} style", "{} style", "a picture in the style of {}"),
)
_OBJECT = replace(
    GENERAL[Kind.OBJECT],
    templates=(
        "{target}",
        "a {target}",
        "an icon of a {target}",
        "a {target} in {context} style",
        "a {context} {target}",
        "{context} icon of a {target}",
        "{target}, {context} style",
    ),
    unseen=(
        "a {context} emoji of a {target}",
        "a {target} drawn in {context} style",
        "a picture of a {target} in the style of {context}",
        "{context} art of a {target}",
    ),
    probes=("an icon of a {}", "a {}", "a picture of a {}"),
)
ALONE = ("a {target}", "an icon of a {target}", "{target}")  # a context without any concept
PROFILES = {Kind.STYLE: _STYLE, Kind.OBJECT: _OBJECT, Kind.IDENTITY: GENERAL[Kind.IDENTITY], Kind.VIOLENCE: _OBJECT}


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
