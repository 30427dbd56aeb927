"""Bytes of adapter files: the two key forms, and a reader that is stricter than the safetensors library."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concept_erase.errors import AdapterFileError
from concept_erase.families import Family
from concept_erase.files import atomic_write
from concept_erase.lowrank import LowRank

HEADER_LIMIT = 100_000_000  # bytes; what the safetensors library allows
_TYPES = {"F32": torch.float32, "F16": torch.float16}
_KEY = re.compile(r"[A-Za-z0-9_.]{1,300}")

# -- the two key forms ---------------------------------------------------------------------------------------------


def kohya_tensors(modules: dict[str, LowRank], family: Family) -> dict[str, Tensor]:
    tensors = {}
    for path, change in modules.items():
        component, _, name = path.partition(".")
        key = f"{family.kohya[component]}_{name.replace('.', '_')}"
        tensors[f"{key}.alpha"] = torch.tensor(float(change.rank), dtype=change.up.dtype)
        tensors[f"{key}.lora_down.weight"] = change.down.contiguous()
        tensors[f"{key}.lora_up.weight"] = change.up.contiguous()
    return tensors


def peft_tensors(modules: dict[str, LowRank]) -> dict[str, Tensor]:
    tensors = {}
    for path, change in modules.items():
        tensors[f"{path}.lora_A.weight"] = change.down.contiguous()
        tensors[f"{path}.lora_B.weight"] = change.up.contiguous()
    return tensors


def from_peft(path: Path, tensors: dict[str, Tensor]) -> dict[str, LowRank]:
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


def from_kohya(path: Path, tensors: dict[str, Tensor], family: Family) -> dict[str, LowRank]:
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
            changes[f"{component}.{name}"] = change.scaled(tensors[f"{key}.alpha"].item() / change.rank)
        except (KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise AdapterFileError(f"{path} has an incomplete or misshapen pair for {key!r} ({error}).") from error
    return changes


# -- bytes ---------------------------------------------------------------------------------------------------------


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    bare = save(tensors)
    body = bare[8 + struct.unpack("<Q", bare[:8])[0] :]
    digest = hashlib.sha256(body).hexdigest()  # interfaces look models up by this hash of the bytes after the header
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    # The library writes metadata in random order: the header is made here, so that equal edits are equal files.
    entries = json.loads(bare[8 : len(bare) - len(body)])
    header = {"__metadata__": dict(sorted({**metadata, **hashes}.items())), **entries}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    atomic_write(path, struct.pack("<Q", len(text)) + text + body)


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
            if any(type(side) is not int or side < 0 for side in entry["shape"]):
                raise AdapterFileError(f"{path}: {key} has the impossible shape {entry['shape']}; do not use it.")
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
