"""Writing files so that nothing half-written is ever seen."""

import os
import tempfile
from pathlib import Path

from concept_erase.errors import OutputError


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename.

    Raises:
        OutputError: disk full or folder not writable; what was there before is intact and no temporary is left.
    """
    for last in (False, False, True):
        try:
            _write(path, data)
            return
        except OSError as error:
            # the temporary is gone when another worker was given the same task and cleaned up before it began
            if last or not isinstance(error, FileNotFoundError):
                reason = error.strerror or error
                told = f"{path} could not be written ({reason}); free space or choose another --out."
                raise OutputError(told) from error


def _write(path: Path, data: bytes | str) -> None:
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        partial = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        if partial:
            partial.unlink(missing_ok=True)
