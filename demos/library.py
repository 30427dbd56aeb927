"""The adapters in the demo's folder: found, exported, deleted. All are looked up by id, never by path."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase.errors import InputError, OutputError
from concept_erase.names import file_name

if TYPE_CHECKING:
    from concept_erase.adapter import Adapter

PLACES = {"erasures": "*", "batches": "*/concepts/*", "joint": "*/joint/*"}
EXPORTED = (".safetensors", ".operator", ".json", ".md", ".png", ".html", ".txt")
MOST_COMPOSED = 50


@dataclass(frozen=True)
class Item:
    """One adapter of the library.

    Attributes:
        id: Stands for the folder; what clients pass.
        folder: Where it lies.
        report: Its `report.json`.
        origin: "erasure", "composed" or "batch".
        made: Seconds since 1970.
    """

    id: str
    folder: Path
    report: dict[str, Any]
    origin: str
    made: float

    @property
    def targets(self) -> list[str]:
        return [str(c.get("target", "?")) for c in self.report.get("concepts", [])]

    @property
    def title(self) -> str:
        names = self.targets
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    @property
    def method(self) -> str:
        return str(self.report.get("method", {}).get("name", "?"))

    @property
    def base(self) -> str:
        return str(self.report.get("base", {}).get("name") or "?")

    @property
    def scores(self) -> dict[str, Any] | None:
        return self.report.get("scores")

    @property
    def kohya(self) -> Path | None:
        """The file for interfaces."""
        files = sorted(self.folder.glob("erase-*.safetensors"))
        return files[0] if files else None

    @property
    def peft(self) -> Path | None:
        """The file that diffusers looks for; adapters of a batch come without."""
        path = self.folder / "pytorch_lora_weights.safetensors"
        return path if path.is_file() else None

    def adapter(self) -> Adapter:
        """The edit itself.

        Raises:
            InputError: the files are gone or damaged.
        """
        from concept_erase.adapter import Adapter

        path = self.peft or self.kohya
        if path is None:
            raise InputError(f"the files of {self.title!r} are gone; erase it again.")
        return Adapter.load(path)


class Library:
    """What lies in a demo's folder.

    Args:
        root: The demo's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, tuple[int, dict[str, Any]]] = {}

    def items(self) -> list[Item]:
        """All adapters, the newest first."""
        found = []
        for place, pattern in PLACES.items():
            top = self.root / ("erasures" if place == "erasures" else "batches")
            for path in top.glob(f"{pattern}/report.json"):
                item = self._item(path, "batch" if place != "erasures" else "erasure")
                if item is not None:
                    found.append(item)
        return sorted(found, key=lambda item: (-item.made, item.id))

    def get(self, key: object) -> Item:
        """The adapter of an id.

        Raises:
            InputError: there is none.
        """
        for item in self.items() if isinstance(key, str) else ():
            if item.id == key:
                return item
        raise InputError("there is no such adapter in the library; it may have been deleted.")

    def some(self, keys: object, *, least: int = 1, most: int = MOST_COMPOSED) -> list[Item]:
        """The adapters of several ids, each once.

        Raises:
            InputError: too few, too many or unknown ones.
        """
        listed = list(keys) if isinstance(keys, list | tuple) and all(isinstance(k, str) for k in keys) else []
        if not least <= (count := len(set(listed))) <= most:
            raise InputError(f"choose between {least} and {most} adapters, got {count}.")
        known = {item.id: item for item in self.items()}
        try:
            return [known[key] for key in dict.fromkeys(listed)]
        except KeyError:
            raise InputError("one of these adapters is not in the library any more; choose again.") from None

    def within(self, folder: Path) -> list[Item]:
        """The adapters of one batch that are done, one for each concept."""
        found = (self._item(path, "batch") for path in folder.glob("concepts/*/report.json"))
        return [item for item in found if item is not None]

    def of_folder(self, folder: Path) -> Item | None:
        """The adapter that lies in a folder of this library."""
        return self._item(folder / "report.json", "batch" if "batches" in folder.parts else "erasure")

    def _item(self, path: Path, origin: str) -> Item | None:
        try:
            status = path.stat()
            if path not in self._read or self._read[path][0] != status.st_mtime_ns:
                report = json.loads(path.read_text(encoding="utf-8"))
                self._read[path] = (status.st_mtime_ns, report if isinstance(report, dict) else {})
        except (OSError, ValueError):
            return None
        report = self._read[path][1]
        if not report.get("concepts"):
            return None
        if report.get("method", {}).get("settings", {}).get("composed_of"):
            origin = "composed"
        relative = path.parent.relative_to(self.root).as_posix()
        key = hashlib.sha256(relative.encode()).hexdigest()[:12]
        return Item(key, path.parent, report, origin, status.st_mtime)

    # -- what can be done with them --------------------------------------------------------------------------

    def delete(self, key: object) -> Item:
        """Remove an adapter with its folder.

        Raises:
            InputError: it belongs to a batch, which is deleted as a whole.
        """
        item = self.get(key)
        if item.origin == "batch":
            raise InputError(f"{item.title!r} belongs to a batch; delete the batch as a whole.")
        remove(item.folder)
        return item

    def export(self, keys: object, target: Path) -> Path:
        """A zip of everything that belongs to the adapters: both forms, report, card, pictures.

        Args:
            target: Folder for the zip.
        """
        items = self.some(keys, most=2000)
        name = file_name([name for item in items for name in item.targets])
        return zipped([item.folder for item in items], target / f"{name}.zip")


def remove(folder: Path) -> None:
    """Delete a folder so that a half-deleted one is never seen as whole.

    Raises:
        OutputError: it cannot be deleted.
    """
    try:
        aside = Path(tempfile.mkdtemp(prefix=".deleted-", dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder.name} could not be deleted ({error.strerror}); close what uses it.") from error


def zipped(folders: Sequence[Path], target: Path) -> Path:
    """Folders as one zip, each under its own name; links and work files are left out.

    Raises:
        OutputError: the disk is full; no half zip is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{time.time_ns()}.tmp")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for folder in folders:
                for path in sorted(folder.rglob("*")):
                    inside = path.relative_to(folder)
                    hidden = any(part.startswith(".") for part in inside.parts)
                    if not hidden and path.is_file() and not path.is_symlink() and path.suffix in EXPORTED:
                        archive.write(path, f"{folder.name}/{inside.as_posix()}")
        partial.replace(target)
    except OSError as error:
        raise OutputError(f"the zip could not be written ({error.strerror or error}); free space.") from error
    finally:
        partial.unlink(missing_ok=True)
    return target
