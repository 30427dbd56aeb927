"""The adapter: an edit with everything needed to make it again, saved as LoRA files that drop in everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from concept_erase import __version__
from concept_erase.concepts import Concept
from concept_erase.errors import AdapterFileError, InputError
from concept_erase.families import FAMILIES, Family
from concept_erase.formats import (
    OPERATOR_ENDING,
    kohya_tensors,
    low_rank_changes,
    peft_tensors,
    read_safetensors,
    record_in,
    write_safetensors,
)
from concept_erase.lowrank import LowRank, all_finite, balanced, check_finite
from concept_erase.names import file_name, folded

PEFT_NAME = "pytorch_lora_weights.safetensors"
_BESIDE = ("README.md", "report.json", "before_after.png", "pictures")  # what an erasure's folder holds too
Identity = tuple[tuple[tuple[str, str], ...], str, str | None]


@dataclass(frozen=True, eq=False)
class Adapter:
    """An erasure: the change of each layer, and everything needed to make it again.

    Attributes:
        changes: Layer path ("unet.down_blocks.0...attn2.to_k") -> change of its weight.
        family: Row of the families table.
        concepts: What it erases.
        method: Name of the method.
        settings: The method's configuration.
        base: What identifies the base model, as `Model.base` has it; of older files "name", "revision" and "hash".
    """

    changes: dict[str, LowRank]
    family: Family
    concepts: tuple[Concept, ...]
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        names = [c.target for c in self.concepts]
        return f"Erases {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    @property
    def digest(self) -> str:
        """SHA-256 of the edit itself, whatever file it came from."""
        digest = hashlib.sha256()
        for path, change in sorted(self.changes.items()):
            digest.update(path.encode())
            for factor in (change.up, change.down):
                digest.update(factor.to(torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def slug(self) -> str:
        """Its file's name without the ending, and what diffusers calls it: no dots, apart from other erasures'."""
        return slug(self.concepts, self.method)

    @property
    def identity(self) -> Identity:
        """What makes it another erasure than others: concepts, method and base; not the settings."""
        return identity(self.concepts, self.method, self.base)

    @property
    def rank(self) -> int:
        """The one rank of all layers in a file: the largest."""
        return max(change.rank for change in self.changes.values())

    def save(
        self,
        folder: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        peft: bool = True,
        dated: bool = True,
        replace: bool = False,
    ) -> tuple[Path, ...]:
        """Write the files; each appears whole or not at all, and replaces none but that of the same erasure.

        Args:
            dtype: float32, or float16 for half the size; bfloat16 is refused (its 8 bits lose 5% of an edit).
            peft: Write the PEFT form as well.
            dated: Record the time; without it the same edit gives the same bytes.
            replace: Replace files of these names whatever they hold.
        Returns:
            The kohya-form file for interfaces and diffusers, and with `peft` the PEFT-form file for diffusers.
        Raises:
            InputError: a file of these names holds another erasure, or none.
            NumericalError: a change is not finite, also after rounding to float16 (float32 is then tried once).
        """
        if dtype not in (torch.float32, torch.float16):
            raise InputError(f"adapters are stored in float32 or float16, not {dtype}; choose one of them.")
        check_finite(self.changes)
        folder = Path(folder)
        modules = self._modules()
        rounded = {path: change.to(dtype) for path, change in modules.items()}
        if not all(map(all_finite, rounded.values())):
            rounded = {path: change.to(torch.float32) for path, change in modules.items()}
            check_finite(rounded)
        kohya, other = folder / f"{self.slug}.safetensors", folder / PEFT_NAME
        for file in () if replace else (kohya, other)[: 1 + peft]:
            if file.exists() and _identity_in(file) != self.identity:
                raise InputError(f"{file} holds {_held(file)}; save to another folder, or delete it first.")
        metadata = self._metadata(kohya.stem, rounded)
        if dated:
            moment = int(os.environ.get("SOURCE_DATE_EPOCH", 0)) or datetime.now(UTC).timestamp()
            metadata["modelspec.date"] = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        write_safetensors(kohya, kohya_tensors(rounded, self.family), metadata)
        if not peft:
            return (kohya,)
        # With an ss_ entry interfaces list this form too, and then load half of it or nothing.
        metadata = {key: value for key, value in metadata.items() if not key.startswith("ss_")}
        write_safetensors(other, peft_tensors(rounded), metadata)
        return kohya, other

    def _modules(self) -> dict[str, LowRank]:
        """Changes as files want them: factors of equal size, one rank, whole attention blocks in the text encoder."""
        rank = self.rank
        # What was read from a file is even already; a joint adapter of thousands would take seconds to balance again.
        modules = {path: change.padded(rank) for path, change in balanced(self.changes).items()}
        required = self.family.encoder_required
        for path in list(modules):
            layer = re.match(r"text_encoder\.(?:.*\.)?layers\.\d+\.", path)
            if layer is None:
                continue
            width = min(modules[path].shape)
            for name in required:  # readers drop a layer, in silence, that lacks one of the four
                modules.setdefault(layer[0] + name, LowRank.zeros(width, width, rank))
        return dict(sorted(modules.items()))

    def _metadata(self, name: str, stored: dict[str, LowRank]) -> dict[str, str]:
        ours = {
            "concepts": [
                {"target": c.target, "kind": c.kind.value, "anchor": c.anchor, "preserve": list(c.preserve)}
                for c in self.concepts
            ],
            "method": self.method,
            "settings": self.settings,
            "base": self.base,
            "family": self.family.name,
            "version": __version__,
            "dtype": str(next(iter(stored.values())).up.dtype).removeprefix("torch."),
        }
        return {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": self.family.architecture,
            "modelspec.title": self.title,
            "modelspec.description": f"{self.title} from {self.base.get('name')} ({self.method}); load at strength 1.",
            "modelspec.author": "concept_erase",
            "modelspec.implementation": "https://github.com/huggingface/diffusers",
            "modelspec.resolution": "64x64" if self.base.get("name") == "embedded" else "512x512",
            "ss_base_model_version": self.family.base_version,
            "ss_v2": str(self.family.v2),
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": str(self.rank),
            "ss_output_name": name,
            "concept_erase": json.dumps(ours, ensure_ascii=False, sort_keys=True),
        }

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Read either form, as it was written or resaved by another tool; a folder means the adapter in it.

        Raises:
            AdapterFileError: truncated, not safetensors, duplicate or path-like names, NaN or Inf, or not ours.
        """
        path = file_in(Path(path))
        tensors, metadata = read_safetensors(path)
        try:
            ours = json.loads(metadata["concept_erase"])
            family = FAMILIES[ours["family"]]
            concepts = tuple(Concept.recorded(c) for c in ours["concepts"])
            method, settings, base = str(ours["method"]), dict(ours["settings"]), dict(ours["base"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterFileError(
                f"{path} carries no concept_erase header; it was not written by this tool."
            ) from error
        changes = low_rank_changes(path, tensors, family)
        if not changes:
            raise AdapterFileError(f"{path} changes no layer; fetch it again.")
        return cls(changes, family, concepts, method, settings, base)


def slug(concepts: Sequence[Concept], method: str) -> str:
    """A file name without surprises: letters, digits and dashes, with a hash of all that is erased and as what."""
    kinds = sorted(f"{c.kind.value} {folded(c.target)}" for c in concepts)
    return f"erase-{file_name([c.target for c in concepts], also=kinds)}-{method}"


# -- folders -------------------------------------------------------------------------------------------------------


def _files(folder: Path, *endings: str) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in endings and not p.name.startswith("."))


def file_in(path: Path) -> Path:
    """The adapter file that a path means: itself, or in a folder the PEFT form, else the one file that is there.

    Raises:
        AdapterFileError: the folder holds no adapter, or several.
    """
    if not path.is_dir():
        return path
    if (path / PEFT_NAME).is_file():
        return path / PEFT_NAME
    found = [p for p in _files(path, ".safetensors") if (record_in(p) or {}).get("form") != "operator"]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(p.name for p in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise AdapterFileError(f"{path} holds several adapters ({listed}); name the file.")
    inside = sorted(p.parent for p in path.glob("*/*/report.json"))
    remedy = f"a folder in it, as {inside[0]}" if inside else "a .safetensors file or the folder of an erasure"
    raise AdapterFileError(f"{path} holds no adapter, neither {PEFT_NAME} nor another; give {remedy}.")


def identity(concepts: Sequence[Concept], method: str, base: Mapping[str, Any]) -> Identity:
    """What makes an erasure another one; two writings of a name are one."""
    return tuple(sorted((folded(c.target), c.kind.value) for c in concepts)), method, base.get("hash")


def _recorded(record: Any, method: Any) -> Identity | None:
    """The same from a header or a report."""
    try:
        concepts = [Concept(c["target"], c["kind"]) for c in record["concepts"]]
        return identity(concepts, str(method), record["base"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _identity_in(file: Path) -> Identity | None:
    record = record_in(file)
    return _recorded(record, record.get("method")) if record else None


def _held(file: Path) -> str:
    """What a file of weights holds, in words."""
    record = record_in(file)
    if record is None:
        return "weights that this tool did not write"
    return _told(record, record.get("method"))


def _told(record: Any, method: Any) -> str:
    try:
        names = [str(c["target"]) for c in record["concepts"]]
        base = record["base"]
        told = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"the erasure of {told} by {method} from {base.get('name')!r} (hash {str(base.get('hash'))[:12]})"
    except (KeyError, TypeError, AttributeError):
        return "something else"


def refuse_another(folder: Path, wanted: Identity) -> None:
    """Refuse a folder for an erasure if what lies there is not of the same erasure and would be lost, or be in its way.

    An empty folder will do, or one with an earlier run of the same concepts, method and base. Other weights are in the
    way: diffusers takes any file of a folder that it is given.

    Raises:
        InputError: another erasure, foreign weights, or files of our names that nothing of ours explains.
    """
    remedy = "choose another --out, or delete what is there"
    report, ours = folder / "report.json", False
    if report.is_file():
        try:
            record = json.loads(report.read_text(encoding="utf-8"))
            method = record["method"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            record = method = None
        if _recorded(record, method) != wanted:
            raise InputError(f"{folder} holds {_told(record, method)}; {remedy}.")
        ours = True
    for file in _files(folder, ".safetensors", OPERATOR_ENDING):
        if not _same(file, wanted):
            raise InputError(f"{folder} holds {file.name}, {_held(file)}; {remedy}.")
        ours = True
    if not ours and (found := [name for name in _BESIDE if (folder / name).exists()]):
        raise InputError(f"{folder} holds {found[0]}, which is of no erasure and would be lost; {remedy}.")


def _same(file: Path, wanted: Identity) -> bool:
    """Whether a file is of an erasure; an operator's does not say by which method."""
    record = record_in(file) or {}
    return _recorded(record, wanted[1] if record.get("form") == "operator" else record.get("method")) == wanted


def remove_older(folder: Path, written: Collection[Path]) -> None:
    """Remove what an earlier run of the same erasure left under other names than those written now."""
    for file in _files(folder, ".safetensors", OPERATOR_ENDING):
        if file not in written:
            file.unlink(missing_ok=True)
