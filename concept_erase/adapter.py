"""The adapter: an edit with everything needed to make it again, saved as LoRA files that drop in everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
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
    from_kohya,
    from_peft,
    kohya_tensors,
    peft_tensors,
    read_safetensors,
    write_safetensors,
)
from concept_erase.lowrank import LowRank, check_finite

PEFT_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, eq=False)
class Adapter:
    """An erasure: the change of each layer, and everything needed to make it again.

    Attributes:
        changes: Layer path ("unet.down_blocks.0...attn2.to_k") -> change of its weight.
        family: Row of the families table.
        concepts: What it erases.
        method: Name of the method.
        settings: The method's configuration.
        base: "name", "revision" and "hash" of the base model.
    """

    changes: dict[str, LowRank]
    family: Family
    concepts: tuple[Concept, ...]
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    base: dict[str, str | None] = field(default_factory=dict)

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
        return slug([c.target for c in self.concepts], self.method)

    @property
    def rank(self) -> int:
        """The one rank of all layers in a file: the largest."""
        return max(change.rank for change in self.changes.values())

    def save(
        self, folder: Path | str, *, dtype: torch.dtype = torch.float32, peft: bool = True, dated: bool = True
    ) -> tuple[Path, ...]:
        """Write the files; each appears whole or not at all.

        Args:
            dtype: float32, or float16 for half the size; bfloat16 is refused (its 8 bits lose 5% of an edit).
            peft: Write the PEFT form as well.
            dated: Record the time; without it the same edit gives the same bytes.
        Returns:
            The kohya-form file for interfaces and diffusers, and with `peft` the PEFT-form file for diffusers.
        Raises:
            NumericalError: a change is not finite, also after rounding to float16 (float32 is then tried once).
        """
        if dtype not in (torch.float32, torch.float16):
            raise InputError(f"adapters are stored in float32 or float16, not {dtype}; choose one of them.")
        check_finite(self.changes)
        folder = Path(folder)
        modules = self._modules()
        rounded = {path: change.to(dtype) for path, change in modules.items()}
        if dtype is torch.float16 and not all(
            c.up.isfinite().all() and c.down.isfinite().all() for c in rounded.values()
        ):
            rounded = {path: change.to(torch.float32) for path, change in modules.items()}
        check_finite(rounded)
        kohya, other = folder / f"{self.slug}.safetensors", folder / PEFT_NAME
        metadata = self._metadata(kohya.stem, rounded)
        if dated:
            moment = int(os.environ.get("SOURCE_DATE_EPOCH", 0)) or datetime.now(UTC).timestamp()
            metadata["modelspec.date"] = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        write_safetensors(kohya, kohya_tensors(rounded, self.family), metadata)
        if not peft:
            return (kohya,)
        write_safetensors(other, peft_tensors(rounded), metadata)
        return kohya, other

    def _modules(self) -> dict[str, LowRank]:
        """Changes as files want them: factors of equal size, one rank, whole attention blocks in the text encoder."""
        rank = self.rank
        modules = {path: change.balanced().padded(rank) for path, change in self.changes.items()}
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
        """Read either form; a folder means the PEFT form in it.

        Raises:
            AdapterFileError: truncated, not safetensors, duplicate or path-like names, NaN or Inf, or not ours.
        """
        path = Path(path)
        if path.is_dir():
            path = path / PEFT_NAME
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
        kohya = any(key.endswith(".alpha") for key in tensors)
        changes = from_kohya(path, tensors, family) if kohya else from_peft(path, tensors)
        if not changes:
            raise AdapterFileError(f"{path} changes no layer; fetch it again.")
        return cls(changes, family, concepts, method, settings, base)


def slug(targets: Sequence[str], method: str) -> str:
    """A file name without surprises: letters, digits and dashes."""
    name = "-".join(targets[:2]) + (f"-{len(targets)}" if len(targets) > 2 else "")
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60]
    return f"erase-{plain or hashlib.sha256(name.encode()).hexdigest()[:12]}-{method}"
