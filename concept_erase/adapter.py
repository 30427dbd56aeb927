"""Adapter files: an edit as LoRA safetensors that drop into diffusers and the interfaces, and attaching them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concept_erase import __version__
from concept_erase.concepts import Concept
from concept_erase.errors import AdapterFileError, BaseMismatchError, InputError, NumericalError
from concept_erase.families import FAMILIES, Family
from concept_erase.files import atomic_write
from concept_erase.lowrank import LowRank, check_finite
from concept_erase.model import canonical_to_live, linear, open_model

PEFT_NAME = "pytorch_lora_weights.safetensors"
HEADER_LIMIT = 100_000_000  # bytes; what the safetensors library allows
_TYPES = {"F32": torch.float32, "F16": torch.float16}
_KEY = re.compile(r"[A-Za-z0-9_.]{1,300}")


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

    def save(self, folder: Path | str, *, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
        """Write both files; each appears whole or not at all.

        Args:
            dtype: float32, or float16 for half the size; bfloat16 is refused (its 8 bits lose 5% of an edit).
        Returns:
            The kohya-form file for interfaces and diffusers, and the PEFT-form file for diffusers.
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
        kohya, peft = folder / f"{self.slug}.safetensors", folder / PEFT_NAME
        metadata = self._metadata(kohya.stem, rounded)
        _write(kohya, _kohya_tensors(rounded, self.family), metadata)
        _write(peft, _peft_tensors(rounded), metadata)
        return kohya, peft

    def _modules(self) -> dict[str, LowRank]:
        """Changes as files want them: factors of equal size, one rank, whole attention blocks in the text encoder."""
        rank = self.rank
        modules = {path: change.balanced().padded(rank) for path, change in self.changes.items()}
        required = self.family.encoder_required
        for path in list(modules):
            part = next((name for name in required if path.endswith(name)), None)
            if part is None:
                continue
            shape = modules[path].shape
            for name in required:  # readers drop a layer, in silence, that lacks one of the four
                modules.setdefault(path.removesuffix(part) + name, LowRank.zeros(*shape, rank))
        return dict(sorted(modules.items()))

    def _metadata(self, name: str, stored: dict[str, LowRank]) -> dict[str, str]:
        moment = datetime.fromtimestamp(
            int(os.environ.get("SOURCE_DATE_EPOCH", 0)) or datetime.now(UTC).timestamp(), UTC
        )
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
            "modelspec.date": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
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
            concepts = tuple(
                Concept(c["target"], c["kind"], c["anchor"], tuple(c["preserve"])) for c in ours["concepts"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterFileError(
                f"{path} carries no concept_erase header; it was not written by this tool."
            ) from error
        kohya = any(key.endswith(".alpha") for key in tensors)
        changes = _from_kohya(path, tensors, family) if kohya else _from_peft(path, tensors)
        return cls(changes, family, concepts, ours["method"], ours["settings"], ours["base"])


def slug(targets: Sequence[str], method: str) -> str:
    """A file name without surprises: letters, digits and dashes."""
    name = "-".join(targets[:2]) + (f"-{len(targets)}" if len(targets) > 2 else "")
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60]
    return f"erase-{plain or hashlib.sha256(name.encode()).hexdigest()[:12]}-{method}"


# -- the two key forms ---------------------------------------------------------------------------------------------


def _kohya_tensors(modules: dict[str, LowRank], family: Family) -> dict[str, Tensor]:
    tensors = {}
    for path, change in modules.items():
        component, _, name = path.partition(".")
        key = f"{family.kohya[component]}_{name.replace('.', '_')}"
        tensors[f"{key}.alpha"] = torch.tensor(float(change.rank), dtype=change.up.dtype)
        tensors[f"{key}.lora_down.weight"] = change.down.contiguous()
        tensors[f"{key}.lora_up.weight"] = change.up.contiguous()
    return tensors


def _peft_tensors(modules: dict[str, LowRank]) -> dict[str, Tensor]:
    tensors = {}
    for path, change in modules.items():
        tensors[f"{path}.lora_A.weight"] = change.down.contiguous()
        tensors[f"{path}.lora_B.weight"] = change.up.contiguous()
    return tensors


def _from_peft(path: Path, tensors: dict[str, Tensor]) -> dict[str, LowRank]:
    names = sorted({key.rpartition(".lora_")[0] for key in tensors})
    try:
        return {n: LowRank(tensors[f"{n}.lora_B.weight"], tensors[f"{n}.lora_A.weight"]) for n in names}
    except (KeyError, ValueError) as error:
        raise AdapterFileError(
            f"{path} has an incomplete or misshapen pair of factors ({error}); fetch it again."
        ) from error


# Underscores in module names make the way back from a kohya key ambiguous; these are all names that hold one.
_COMPOUND = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_k", "to_v", "to_q", "to_out", "text_model",
    "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "proj_in", "proj_out",
)  # fmt: skip


def _from_kohya(path: Path, tensors: dict[str, Tensor], family: Family) -> dict[str, LowRank]:
    changes = {}
    for key in sorted(k.removesuffix(".alpha") for k in tensors if k.endswith(".alpha")):
        component = next((c for c, prefix in family.kohya.items() if key.startswith(f"{prefix}_")), None)
        if component is None:
            raise AdapterFileError(f"{path} holds {key!r}, which no {family.name} component owns.")
        name = key.removeprefix(f"{family.kohya[component]}_")
        for compound in _COMPOUND:
            name = re.sub(rf"(?<![A-Za-z]){compound}(?![A-Za-z])", compound.replace("_", "\0"), name)
        name = name.replace("_", ".").replace("\0", "_")
        try:
            change = LowRank(tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"])
        except (KeyError, ValueError) as error:
            raise AdapterFileError(f"{path} has an incomplete or misshapen pair for {key!r} ({error}).") from error
        changes[f"{component}.{name}"] = change.scaled(tensors[f"{key}.alpha"].item() / change.rank)
    return changes


# -- bytes ---------------------------------------------------------------------------------------------------------


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    bare = save(tensors)
    body = bare[8 + struct.unpack("<Q", bare[:8])[0] :]
    digest = hashlib.sha256(body).hexdigest()  # interfaces look models up by this hash of the bytes after the header
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    atomic_write(path, save(tensors, metadata={**metadata, **hashes}))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that nobody vouches for; stricter than the safetensors library.

    Raises:
        AdapterFileError: not a regular file, truncated, overlapping or duplicate entries, unsafe names, NaN or Inf.
    """
    if path.suffix != ".safetensors":
        raise AdapterFileError(f"{path} is no .safetensors file; pickled and archived weights are never read.")
    if not path.is_file():
        raise AdapterFileError(f"{path} does not exist; give a .safetensors file or the folder of an adapter.")
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else HEADER_LIMIT + 1
    if size > HEADER_LIMIT or 8 + size > len(data):
        raise AdapterFileError(f"{path} is truncated or no safetensors file; fetch it again.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if twice:
            raise AdapterFileError(f"{path} names {twice[0]!r} twice; it is malformed, do not use it.")
        return dict(pairs)

    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=unique)
        metadata = header.pop("__metadata__", {})
        body, tensors, end = data[8 + size :], {}, 0
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if not _KEY.fullmatch(key) or ".." in key:
                raise AdapterFileError(f"{path} holds a tensor with the unsafe name {key[:80]!r}; do not use it.")
            start, stop = entry["data_offsets"]
            if start != end or entry["dtype"] not in _TYPES:
                raise AdapterFileError(f"{path}: {key} overlaps, leaves a gap, or is not float32 or float16.")
            end = stop
            raw = torch.frombuffer(bytearray(body[start:stop] or b"\0\0\0\0"), dtype=_TYPES[entry["dtype"]])
            tensors[key] = raw.reshape(entry["shape"])
    except AdapterFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise AdapterFileError(f"{path} is truncated or malformed ({error}); fetch it again.") from error
    if end != len(body):
        raise AdapterFileError(f"{path} is truncated or has bytes at its end that nothing names; fetch it again.")
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterFileError(f"{path} holds NaN or Inf in {key}; it would break the model, do not use it.")
    return tensors, metadata


# -- attaching -----------------------------------------------------------------------------------------------------


def _layer(pipe: Any, path: str) -> torch.nn.Linear:
    component, _, name = path.partition(".")
    try:
        module = getattr(pipe, component)
        return linear(module, canonical_to_live(module, name))
    except AttributeError as error:
        raise BaseMismatchError(f"the pipeline has no layer {path}; the adapter is for another base.") from error


def check_base(pipe: Any, adapter: Adapter) -> None:
    """Compare an adapter with the live pipeline.

    Raises:
        BaseMismatchError: a layer is missing or of another shape, or the recorded hash is of another base.
    """
    for path, change in adapter.changes.items():
        shape = tuple(_layer(pipe, path).weight.shape)
        if shape != change.shape:
            raise BaseMismatchError(
                f"{path} is {shape} in this pipeline, the adapter changes {change.shape}: another base."
            )
    recorded = adapter.base.get("hash")
    if recorded and open_model(pipe).fingerprint != recorded:
        raise BaseMismatchError(
            f"the adapter was made for {adapter.base.get('name')!r} (hash {recorded[:12]}), this pipeline's weights "
            "differ; erase the concept from this base, or pass check=False to use it all the same."
        )


@contextmanager
def attached(
    pipe: Any, adapters: Adapter | Sequence[Adapter], scale: float = 1.0, *, check: bool = True
) -> Iterator[Any]:
    """The pipeline with `scale` times the edit added to its weights; leaving restores every bit.

    Args:
        pipe: A live diffusers pipeline; it is changed in place and yielded.
        adapters: One erasure, or several at once.
        check: Compare the recorded base with the pipeline first.
    Raises:
        BaseMismatchError: the adapter is for another base; nothing was changed.
    """
    listed = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    if check:
        for adapter in listed:
            check_base(pipe, adapter)
    saved: dict[str, Tensor] = {}
    try:
        for adapter in listed:
            for path, change in adapter.changes.items():
                weight = _layer(pipe, path).weight
                saved.setdefault(path, weight.data)
                delta = change.to(torch.float32).delta() * scale
                edited = weight.data.to(torch.float32) + delta.to(weight.device)
                weight.data = edited.to(weight.dtype)  # a new tensor: the original is kept aside, bit for bit
        yield pipe
    finally:
        for path, tensor in saved.items():
            _layer(pipe, path).weight.data = tensor


def load_erasure(
    pipe: Any, path: Path | str, *, name: str | None = None, scale: float = 1.0, check: bool = True
) -> str:
    """Load an adapter file as a diffusers LoRA, verified, next to the LoRAs that are loaded already.

    Loading a LoRA switches earlier ones off in diffusers; here those that were active stay so. The change of every
    module is compared with the file, and on any failure the pipeline is put back as it was.

    Args:
        path: Either form of the file, or a folder with the PEFT form.
        name: Adapter name, without dots; derived from the concepts when None.
        scale: Strength.
    Returns:
        The adapter name, for `pipe.set_adapters` and `pipe.delete_adapters`.
    Raises:
        BaseMismatchError: the adapter is for another base.
        NumericalError: the loaded change differs from the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PEFT_NAME
    adapter = Adapter.load(path)
    if check:
        check_base(pipe, adapter)
    name = name or adapter.slug.replace(".", "_")
    if "." in name:
        raise InputError(f"adapter name {name!r} holds a dot, which diffusers cannot handle; use dashes.")
    active = _active_adapters(pipe)
    if name in active or any(name in names for names in pipe.get_list_adapters().values()):
        raise InputError(f"an adapter named {name!r} is loaded already; pass another name, or delete it first.")
    try:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        _verify_loaded(pipe, adapter, name)
        weights = {**active, name: scale}
        pipe.set_adapters(list(weights), list(weights.values()))
    except BaseException:
        if any(name in names for names in pipe.get_list_adapters().values()):
            pipe.delete_adapters(name)
        if active:
            pipe.set_adapters(list(active), list(active.values()))
        raise
    return name


def _lora_layers(pipe: Any) -> Iterator[tuple[str, Any]]:
    for component in ("unet", "text_encoder"):
        module = getattr(pipe, component, None)
        if isinstance(module, torch.nn.Module):
            for name, layer in module.named_modules():
                if hasattr(layer, "lora_A"):
                    yield f"{component}.{name}", layer


def _active_adapters(pipe: Any) -> dict[str, float]:
    """Names and strengths of the LoRAs that are switched on."""
    found: dict[str, float] = {}
    for _, layer in _lora_layers(pipe):
        if not layer.disable_adapters:
            for name in layer.active_adapters:
                if name in layer.scaling and name not in found:
                    found[name] = layer.scaling[name] * layer.r[name] / layer.lora_alpha[name]
    return found


def _verify_loaded(pipe: Any, adapter: Adapter, name: str) -> None:
    for path, change in adapter.changes.items():
        component, _, inner = path.partition(".")
        module = getattr(pipe, component)
        layer = module.get_submodule(canonical_to_live(module, inner))
        expected = change.to(torch.float32).delta()
        if not hasattr(layer, "lora_A") or name not in layer.lora_A:
            if expected.abs().max() == 0:
                continue
            raise NumericalError(f"diffusers dropped {path} from the adapter; use a newer diffusers, or attached().")
        loaded = layer.get_delta_weight(name).to("cpu", torch.float32)
        error = (loaded - expected).norm() / expected.norm().clamp_min(1e-12)
        if error > 0.02:  # half-precision pipelines round; a dropped or doubled module is far off
            raise NumericalError(
                f"{path} was loaded with an error of {error:.0%} of its change; use attached() instead."
            )
