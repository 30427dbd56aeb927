"""What was computed of a base once, kept on disk by the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from concept_erase.errors import OutputError
from concept_erase.files import atomic_write

MOST = 2 * 2**30  # bytes that are kept in all; what was used longest ago goes first


def cache_folder() -> Path:
    """Where pictures and descriptions of bases are kept: `CONCEPT_ERASE_CACHE`, or `concept_erase` in the user's cache
    folder."""
    root = os.environ.get("CONCEPT_ERASE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(root) if os.environ.get("CONCEPT_ERASE_CACHE") else Path(root) / "concept_erase"


def kept(depends_on: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` returned for these plain values, in this process or another.

    A file that is damaged is made again; a folder that cannot be written costs time, nothing else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    file = cache_folder() / "bases" / f"{key}.safetensors"
    if file.is_file():
        try:
            tensors = load(file.read_bytes())
            os.utime(file)  # it was used
            return tensors
        except (SafetensorError, OSError):
            pass
    tensors = make()
    try:
        atomic_write(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        _prune(file)
    except OutputError:
        pass
    return tensors


def _prune(newest: Path) -> None:
    files = sorted((f for f in newest.parent.glob("*.safetensors") if f != newest), key=lambda f: -f.stat().st_mtime)
    size = newest.stat().st_size
    for file in files:
        size += file.stat().st_size
        if size > MOST:
            file.unlink(missing_ok=True)
