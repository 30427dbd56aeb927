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
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path} could not be written ({reason}); free space or choose another --out.") from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)
