"""Bytes of adapter files: the two key forms, and a reader that is stricter than the safetensors library."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concept_erase.errors import AdapterFileError
from concept_erase.families import Family
from concept_erase.files import atomic_write
from concept_erase.layers import live_to_canonical
from concept_erase.lowrank import LowRank, finite

HEADER_LIMIT = 100_000_000  # bytes; what the safetensors library allows
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
OPERATOR_ENDING = ".operator"  # not .safetensors: interfaces and diffusers take any of those for a LoRA
_KEPT = (torch.float32, torch.float16)  # others become float32 when they are read
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


# How tools have written the two factors and the scale of a module, after the module's name.
_PARTS = re.compile(
    r"(?P<module>.+?)(?:\.(?P<alpha>alpha)|"
    r"(?:(?:_lora|\.lora|\.lora_linear_layer)\.|\.lora_)(?P<side>up|down|A|B)(?:\.[A-Za-z0-9_]+)?\.weight)"
)
_SIDES = {"up": "up", "B": "up", "down": "down", "A": "down"}
# What is no low-rank pair, by what its keys hold; such a file must not be read in part.
_OTHER_FORMS = {
    "dora_scale": "DoRA, which rescales whole weights",
    "lora_magnitude_vector": "DoRA, which rescales whole weights",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "a LoRA of convolutions (LoCon)",
    "diff": "dense differences of weights",
    "bias": "changes of biases",
}
# Underscores in module names make the way back from a kohya key ambiguous; these are all names that hold one.
_COMPOUND = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_k", "to_v", "to_q", "to_out", "text_model",
    "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "proj_in", "proj_out",
)  # fmt: skip


def low_rank_changes(path: Path, tensors: dict[str, Tensor], family: Family) -> dict[str, LowRank]:
    """The changes that a file holds, in any of the ways in which tools name the factors of a module.

    Kohya's (`lora_unet_..._to_k.lora_up.weight`), PEFT's (`unet...to_k.lora_B.weight`, also below `base_model.model.`),
    and those of older diffusers (`....lora.up.weight`, `....processor.to_k_lora.up.weight`,
    `....lora_linear_layer.up.weight`). Without an alpha the scale is 1, as all readers have it.

    Args:
        path: For messages.
    Raises:
        AdapterFileError: a key is of another form, or no component owns it; a pair is incomplete, double or misshapen.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _PARTS.fullmatch(key)
        if found is None:
            raise AdapterFileError(f"{path} holds {key!r}: {_other_form(key)}; save the erasure as a plain LoRA.")
        module = _module(path, found["module"], family)
        role = found["alpha"] or _SIDES[found["side"]]
        if parts.setdefault(module, {}).setdefault(role, tensor) is not tensor:
            raise AdapterFileError(f"{path} holds the {role} of {module} twice, in two forms; fetch it again.")
    changes = {}
    for module, held in sorted(parts.items()):
        try:
            change = LowRank(held["up"], held["down"])
            changes[module] = change.scaled(held["alpha"].item() / change.rank) if "alpha" in held else change
            if change.rank == 0:
                raise ValueError("no rank")
        except (KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise AdapterFileError(
                f"{path} has an incomplete or misshapen pair of factors for {module} ({error}); fetch it again."
            ) from error
    return changes


def _other_form(key: str) -> str:
    return next(
        (f"{what}, which cannot be read" for mark, what in _OTHER_FORMS.items() if mark in key),
        "neither a factor of a low-rank change nor its alpha",
    )


def _module(path: Path, name: str, family: Family) -> str:
    """Path of a layer, from what a file calls it."""
    for component, prefix in family.kohya.items():
        if "." not in name and name.startswith(f"{prefix}_"):
            return f"{component}.{_dotted(name.removeprefix(f'{prefix}_'))}"
    name = name.removeprefix("base_model.model.")
    if name.startswith(("text_model.", "encoder.layers.")):  # PEFT saves a component without saying which
        name = f"text_encoder.{name}"
    elif name.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
        name = f"unet.{name}"
    component, _, inner = name.partition(".")
    if component not in family.kohya:
        raise AdapterFileError(f"{path} holds {name!r}, which no {family.name} component owns.")
    inner = re.sub(r"\.processor\.(?=to_[kqv]$|to_out$)", ".", inner.removeprefix("base_model.model."))
    return f"{component}.{live_to_canonical(component, inner)}"


@lru_cache(4096)  # the same few hundred names in thousands of files
def _dotted(name: str) -> str:
    for compound in _COMPOUND:
        name = re.sub(rf"(?<![A-Za-z]){compound}(?![A-Za-z])", compound.replace("_", "\0"), name)
    return name.replace("_", ".").replace("\0", "_")


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


def record_in(path: Path) -> dict[str, Any] | None:
    """What a file says of itself in our header, read without its tensors; None where there is nothing of ours."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size) if size <= HEADER_LIMIT else b"")
        ours = json.loads(header["__metadata__"]["concept_erase"])
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return None
    return ours if isinstance(ours, dict) else None


def read_safetensors(
    path: Path, endings: tuple[str, ...] = (".safetensors",)
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, in float32 or float16, and metadata of a file that nobody vouches for; stricter than the library.

    Raises:
        AdapterFileError: not a regular file, truncated, overlapping or duplicate entries, unsafe names, numbers of
            another type, NaN or Inf.
    """
    if path.suffix.lower() not in endings:
        raise AdapterFileError(f"{path} is no {endings[0]} file; pickled and archived weights are never read.")
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
            if start != end:
                raise AdapterFileError(f"{path}: {key} overlaps or leaves a gap; it is malformed, do not use it.")
            if entry["dtype"] not in _TYPES:
                raise AdapterFileError(
                    f"{path}: {key} is stored as {entry['dtype']}, too coarse for an erasure or no number of its kind; "
                    "use the file in float32 or float16."
                )
            end = stop
            dtype, shape = _TYPES[entry["dtype"]], entry["shape"]
            if any(type(side) is not int or side < 0 for side in shape):
                raise AdapterFileError(f"{path}: {key} has the impossible shape {shape}; do not use it.")
            if math.prod(shape) * dtype.itemsize != stop - start:
                raise AdapterFileError(f"{path}: {key} has not the bytes of its shape {shape}; fetch it again.")
            empty = start == stop  # torch reads no empty buffer
            raw = torch.empty(shape) if empty else torch.frombuffer(bytearray(body[start:stop]), dtype=dtype)
            tensors[key] = raw.reshape(shape).to(dtype if dtype in _KEPT else torch.float32)
    except AdapterFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise AdapterFileError(f"{path} is truncated or malformed ({error}); fetch it again.") from error
    if end != len(body):
        raise AdapterFileError(f"{path} is truncated or has bytes at its end that nothing names; fetch it again.")
    for key, tensor in tensors.items():
        if not finite(tensor):
            raise AdapterFileError(f"{path} holds NaN or Inf in {key}; it would break the model, do not use it.")
    return tensors, metadata
