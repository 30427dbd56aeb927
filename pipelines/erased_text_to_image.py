"""Stable Diffusion 1.x with concepts erased: adapters verified, added to the weights, and checked at every call.

    pipe = DiffusionPipeline.from_pretrained(
        base, custom_pipeline="pipelines/erased_text_to_image.py", trust_remote_code=True,
        erasures=["erase-van-gogh-uce.safetensors", ("erase-bomb-uce.safetensors", 0.8)],
    )

Needs torch, diffusers, transformers and safetensors weights; nothing else of the project this file comes from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

logger = logging.get_logger(__name__)

PEFT_NAME = "pytorch_lora_weights.safetensors"  # what a folder is taken to mean
TOLERANCE = 0.25  # of an edit: half precision loses up to 5% of it, a layer without it 100%
_TYPES = {"F32": torch.float32, "F16": torch.float16}
_PARTS = {".alpha": "alpha", ".lora_up.weight": "up", ".lora_down.weight": "down"}
_PARTS |= {".lora_B.weight": "up", ".lora_A.weight": "down"}


@dataclass(frozen=True)
class Erasure:
    """An adapter that is in the weights.

    Attributes:
        name: File name without its ending, or the folder's name.
        concepts: What it erases.
        strength: What its change was multiplied by.
        sha256: Of the file's bytes.
        record: What the file says of itself, as text: base, concepts, method, settings.
    """

    name: str
    concepts: tuple[str, ...]
    strength: float
    sha256: str
    record: str


class ErasedStableDiffusionPipeline(StableDiffusionPipeline):
    """Text to image without the erased concepts.

    Erasures are added to the weights themselves, so whatever is done with other LoRAs, they stay:

    - `load_lora_weights`, `set_adapters`, `enable_lora`, `cross_attention_kwargs={"scale": ...}`: act on other LoRAs
      alone. Naming an erasure in `set_adapters` or `delete_adapters` is an error.
    - `unload_lora_weights`, `disable_lora`, `delete_adapters`, `unfuse_lora`: take other LoRAs away, and log that the
      erasures stay.
    - `fuse_lora`, `unfuse_lora`: allowed between two checks of the erasures.
    - `save_pretrained`: writes a plain `StableDiffusionPipeline` with the erased weights.

    Every call first verifies that the edited weights are in place, and refuses to draw without erasures.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        erasures: Sequence | str | Path | None = None,
        sha256: Sequence | str | None = None,
    ) -> None:
        """
        Args:
            erasures, sha256: As for `load_erasures`, which can be called later instead.
        """
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self._erasures: tuple[Erasure, ...] = ()
        self._base: str | None = None  # fingerprint of the weights before the first erasure
        self._changes: dict[str, list[tuple[Tensor, Tensor]]] = {}  # layer -> factors, strength included
        self._expected: dict[str, tuple[Tensor, Tensor, float]] = {}  # layer -> directions, W @ directions, size
        if erasures is not None:
            self.load_erasures(erasures, sha256=sha256)

    # -- loading -----------------------------------------------------------------------------------------------

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """What is erased."""
        return self._erasures

    def load_erasures(
        self, erasures: Sequence | str | Path, *, sha256: Sequence | str | None = None
    ) -> tuple[Erasure, ...]:
        """Verify adapters and add them to the weights: all of them, or none.

        Args:
            erasures: Files, or folders with the PEFT form, each alone or as (path, strength); kohya or PEFT form.
            sha256: The hash that each file must have, in the same order; None, also for single files, asks for none.
        Returns:
            All erasures that are now in the weights.
        Raises:
            ValueError: a file is damaged, unsafe, no erasure, for another base, or not the one whose hash was given;
                a strength is not positive. Nothing was changed.
            RuntimeError: the weights cannot be edited, or earlier erasures are not in place.
        """
        listed = [_entry(e) for e in ([erasures] if isinstance(erasures, (str, Path)) else erasures)]
        hashes = [sha256] if isinstance(sha256, str) else list(sha256 or [None] * len(listed))
        if not listed:
            raise ValueError("the list of erasures is empty; name at least one adapter file.")
        if len(hashes) != len(listed):
            raise ValueError(f"{len(hashes)} SHA-256 were given for {len(listed)} erasures; give one each, or None.")
        if self._erasures:
            self.check_erasures()
        base = self._base or self.fingerprint()
        layers = dict(self._linears())
        loaded, changes = list(self._erasures), {path: list(parts) for path, parts in self._changes.items()}
        for (path, strength), expected in zip(listed, hashes, strict=True):
            tensors, record, digest = read_file(path, expected)
            concepts = check_record(path, record, base, form=None)
            found = _factors(path, tensors, layers)
            twin = next((e for e in loaded if e.record == record), None)
            if twin:
                raise ValueError(f"{path} is the same erasure as {twin.name!r}, which is in the weights; list it once.")
            name = path.parent.name if path.name == PEFT_NAME else path.stem
            loaded.append(Erasure(name, concepts, strength, digest, record))
            for layer, (up, down) in found.items():
                changes.setdefault(layer, []).append((up * strength, down))
        self._edit(layers, changes)
        self._base, self._erasures, self._changes = base, tuple(loaded), changes
        return self._erasures

    def fingerprint(self) -> str:
        """SHA-256 over the keys and values of the cross-attention in half precision: it identifies a base."""
        return fingerprint(self.unet)

    def _linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Every linear layer that an erasure may change, by its path in files; underneath LoRA wrappers."""
        for component in ("unet", "text_encoder"):
            module = getattr(self, component)
            for name, layer in getattr(module, "_orig_mod", module).named_modules():
                name, inside = name.removesuffix(".base_layer"), ".lora_" in name
                if isinstance(layer, nn.Linear) and not inside:
                    if component == "text_encoder" and not name.startswith("text_model."):
                        name = f"text_model.{name}"  # transformers 5.6 dropped this level, files keep it
                    yield f"{component}.{name}", layer

    def _edit(self, layers: dict[str, nn.Linear], changes: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
        """Add what is not yet in the weights, and note how to recognise it."""
        edited, expected = {}, {}
        for path, parts in changes.items():
            weight = weight_of(path, layers[path])
            if layers[path].weight.is_meta:
                raise RuntimeError(f"{path} is offloaded; load the erasures before enabling sequential offloading.")
            new = parts[len(self._changes.get(path, [])) :]
            total = weight.to(torch.float32)
            for up, down in new:
                total = total + (up @ down).to(total.device)
            if not total.to(weight.dtype).isfinite().all():
                raise RuntimeError(f"{path} overflows in {weight.dtype} when edited; load the base in float32.")
            edited[path] = total.to(weight.dtype)
            directions, size = _directions(parts)
            if size > 0:
                expected[path] = (directions, (total @ directions.to(total.device)).cpu(), size)
        for path, value in edited.items():
            layers[path].weight.data = value  # a new tensor: files that are mapped into memory are never written to
        self._expected = expected

    # -- checking ----------------------------------------------------------------------------------------------

    def check_erasures(self) -> None:
        """Compare the weights with what the erasures made of them.

        Raises:
            RuntimeError: nothing is erased, or an erased layer no longer holds its change.
        """
        if not self._erasures:
            raise RuntimeError("this pipeline has no erasures and will not draw without; call load_erasures([...]).")
        layers = dict(self._linears())
        gone = [path for path in self._expected if path not in layers]
        if not gone:
            errors = []
            for path, (directions, expected, size) in self._expected.items():
                weight = weight_of(path, layers[path])
                now = weight.to(torch.float32) @ directions.to(weight.device)
                errors.append((now - expected.to(weight.device)).norm().cpu() / size)
            gone = [path for path, error in zip(self._expected, errors, strict=True) if not error <= TOLERANCE]
        if gone:
            raise RuntimeError(
                f"{len(gone)} of {len(self._expected)} erased layers no longer hold their change, {gone[0]} first: the "
                "weights or a component were changed behind the pipeline's back. Open the base again and load the "
                "erasures; fuse LoRAs with pipe.fuse_lora."
            )

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check_erasures()
        return super().__call__(*args, **kwargs)

    # -- other LoRAs: none of this touches the erasures ----------------------------------------------------------

    def set_adapters(self, adapter_names: list[str] | str, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, for other LoRAs. Erasures are always on; naming one is an error."""
        self._refuse_names(adapter_names)
        super().set_adapters(adapter_names, *args, **kwargs)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """As in diffusers, for other LoRAs. Erasures cannot be deleted; naming one is an error."""
        self._refuse_names(adapter_names)
        super().delete_adapters(adapter_names)
        self._note("delete_adapters")

    def unload_lora_weights(self) -> None:
        """Takes other LoRAs away; the erasures stay."""
        super().unload_lora_weights()
        self._note("unload_lora_weights")

    def disable_lora(self) -> None:
        """Switches other LoRAs off; the erasures stay on."""
        super().disable_lora()
        self._note("disable_lora")

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, for other LoRAs; the erasures are checked before, and noted anew with the LoRA in it."""
        with _Between(self):
            super().fuse_lora(*args, **kwargs)

    def unfuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, for other LoRAs; the erasures stay."""
        with _Between(self):
            super().unfuse_lora(*args, **kwargs)
        self._note("unfuse_lora")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write a plain `StableDiffusionPipeline` whose weights are the erased ones.

        Raises:
            RuntimeError: the erasures are not in place, or other LoRAs are loaded, which cannot be saved with it.
        """
        self.check_erasures()
        if any(self.get_list_adapters().values()):
            raise RuntimeError("other LoRAs are loaded and would damage the saved files; unload_lora_weights() first.")
        plain = StableDiffusionPipeline(**self.components, requires_safety_checker=self.config.requires_safety_checker)
        plain.save_pretrained(*args, **kwargs)

    def _refuse_names(self, names: list[str] | str) -> None:
        named = {names} if isinstance(names, str) else set(names)
        ours = named & {erasure.name for erasure in self._erasures}
        if ours:
            raise ValueError(f"{sorted(ours)[0]!r} is an erasure: it is in the weights and always on; leave it out.")

    def _note(self, what: str) -> None:
        if self._erasures:
            concepts = ", ".join(repr(c) for e in self._erasures for c in e.concepts)
            logger.warning(f"{what} leaves the erasures in place: {concepts} stay erased.")


class _Between:
    """A change of the weights by the pipeline itself: erasures must be in place before, and are noted anew after."""

    def __init__(self, pipe: ErasedStableDiffusionPipeline) -> None:
        self.pipe = pipe

    def __enter__(self) -> None:
        if self.pipe._erasures:
            self.pipe.check_erasures()

    def __exit__(self, *error: object) -> None:
        layers = dict(self.pipe._linears())
        for path, (directions, _, size) in self.pipe._expected.items():
            weight = weight_of(path, layers[path]).to(torch.float32)
            self.pipe._expected[path] = (directions, (weight @ directions.to(weight.device)).cpu(), size)


def _entry(entry: Any) -> tuple[Path, float]:
    path, strength = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1.0)
    if not isinstance(path, (str, Path)):
        raise ValueError(f"an erasure is a path or (path, strength), got {entry!r}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < math.inf:
        raise ValueError(f"the strength of {path} is {strength!r}; it must be a positive number.")
    path = Path(path)
    return path / PEFT_NAME if path.is_dir() else path, float(strength)


def _directions(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """Up to four input directions (d_in, k) that a change moves most, and how far it moves them."""
    up, down = torch.cat([u for u, _ in parts], dim=1), torch.cat([d for _, d in parts])
    q, r = torch.linalg.qr(down.T)
    _, _, vh = torch.linalg.svd(torch.linalg.qr(up).R @ r.T, full_matrices=False)
    directions = q @ vh[:4].T
    return directions, float((up @ (down @ directions)).norm())


def _factors(path: Path, tensors: dict[str, Tensor], layers: dict[str, nn.Linear]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (up, down) float32, alpha included; layers that a file does not change are left out.

    Raises:
        ValueError: a name is unknown here, a pair is incomplete or misshapen, or nothing is changed.
    """
    kohya = {f"lora_unet_{p[5:].replace('.', '_')}": p for p in layers if p.startswith("unet.")}
    kohya |= {f"lora_te_{p[13:].replace('.', '_')}": p for p in layers if p.startswith("text_encoder.")}
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((e for e in _PARTS if key.endswith(e)), "")
        name = key.removesuffix(ending)
        layer = kohya.get(name, name if name in layers else None)
        if not ending or layer is None:
            raise ValueError(f"{path} holds {key!r}, which is no layer of this pipeline; it is for another base.")
        modules.setdefault(layer, {})[_PARTS[ending]] = tensor.to(torch.float32)
    found = {}
    for layer, parts in modules.items():
        up, down = parts.get("up"), parts.get("down")
        shape = (layers[layer].out_features, layers[layer].in_features)
        if up is None or down is None or up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"{path} has an incomplete or misshapen pair for {layer}; fetch it again.")
        if (up.shape[0], down.shape[1]) != shape:
            raise ValueError(f"{path} changes {layer} as {(up.shape[0], down.shape[1])}, it is {shape}: another base.")
        if "alpha" in parts:
            if parts["alpha"].numel() != 1:
                raise ValueError(f"{path} has an alpha for {layer} that is no number; fetch it again.")
            up = up * (parts["alpha"].item() / down.shape[0])
        if up.any() and down.any():
            found[layer] = (up, down)
    if not found:
        raise ValueError(f"{path} changes no layer; fetch it again.")
    return found


# -- the same in both pipelines of this folder -----------------------------------------------------------------------


def read_file(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str, str]:
    """Tensors, record and SHA-256 of a file that nobody vouches for; stricter than the safetensors library.

    Args:
        sha256: The hash it must have.
    Raises:
        ValueError: another hash, truncated, overlapping or duplicate entries, unsafe names, NaN or Inf, or not
            written by concept_erase.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"{path} is no .safetensors file that exists; pickled weights are never read.")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{path} has the SHA-256 {digest}, {sha256} was asked for; fetch it again.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice in its header")
        return dict(pairs)

    tensors: dict[str, Tensor] = {}
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size], object_pairs_hook=unique)
        record = header.pop("__metadata__", {}).get("concept_erase")
        body, end = data[8 + size :], 0
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            if not re.fullmatch(r"[A-Za-z0-9_.]{1,300}", key) or ".." in key:
                raise ValueError(f"unsafe name {key[:80]!r}")
            if start != end or stop < start or min(entry["shape"], default=0) < 0:
                raise ValueError(f"{key} overlaps, leaves a gap, or has an impossible shape")
            raw = torch.frombuffer(bytearray(body[start:stop] or b"\0\0\0\0"), dtype=_TYPES[entry["dtype"]])
            tensors[key], end = raw.reshape(entry["shape"]), stop
        if end != len(body):
            raise ValueError("bytes are missing, or left over at its end")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or malformed ({error}); do not use it, fetch it again.") from error
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path} holds NaN or Inf in {key}; it would break the model, do not use it.")
    try:
        if not isinstance(json.loads(record)["concepts"], list):
            raise TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} carries no concept_erase header; load it with load_lora_weights.") from error
    return tensors, record, digest


def check_record(path: Path, record: str, base: str, *, form: str | None) -> tuple[str, ...]:
    """What a file erases, after its record was compared with the pipeline.

    Args:
        base: Fingerprint of the pipeline's weights.
        form: "operator" for `operator.safetensors`, None for adapters.
    Raises:
        ValueError: it is of the other form, does not say which base it is for, or it is another one.
    """
    try:
        said = json.loads(record)
        concepts = tuple(str(c["target"]) for c in said["concepts"])
        name, recorded = said["base"]["name"], said["base"]["hash"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not record its concepts and base, so it cannot be verified.") from error
    if said.get("form") != form:
        raise ValueError(f"{path} is {said.get('form') or 'an adapter'}, for the other pipeline of this project.")
    if recorded != base:
        raise ValueError(
            f"{path} was made for {name!r} (hash {str(recorded)[:12]}), the weights of this pipeline have {base[:12]}: "
            "another base, or one that was edited, fused with a LoRA or rounded to bfloat16 before. Open that base, "
            "or erase the concept from this one."
        )
    return concepts


def fingerprint(unet: nn.Module) -> str:
    """SHA-256 over the keys and values of the cross-attention in half precision: it identifies a base.

    Raises:
        RuntimeError: they are not in memory, or quantised.
    """
    digest, layers = hashlib.sha256(), {}
    for name, layer in getattr(unet, "_orig_mod", unet).named_modules():
        name = name.removesuffix(".base_layer")  # underneath LoRA wrappers
        if isinstance(layer, nn.Linear) and re.search(r"attn2\.to_[kv]$", name):
            layers[f"unet.{name}"] = layer
    for path, layer in sorted(layers.items()):
        digest.update(path.encode())
        digest.update(weight_of(path, layer).to("cpu", torch.float32).half().numpy().tobytes())
    return digest.hexdigest()


def weight_of(path: str, layer: nn.Linear) -> Tensor:
    """The weight of a layer, also where accelerate keeps it elsewhere.

    Raises:
        RuntimeError: it is not in memory, or quantised.
    """
    weight: Tensor | None = layer.weight.data
    if layer.weight.is_meta:
        weight = (getattr(getattr(layer, "_hf_hook", None), "weights_map", None) or {}).get("weight")
    if weight is None:
        raise RuntimeError(f"{path} is not in memory; load the erasures before offloading the pipeline.")
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise RuntimeError(f"{path} is stored as {weight.dtype}; erase before quantising, from float weights.")
    return weight
