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
from collections.abc import Iterator, Mapping, Sequence
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

PEFT_NAME = "pytorch_lora_weights.safetensors"  # what a folder is taken to mean, if it is there
TOLERANCE = 0.25  # of an edit: half precision loses up to 5% of it, a layer without it 100%
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PARTS = {".alpha": "alpha", ".lora_up.weight": "up", ".lora_down.weight": "down"}
_PARTS |= {".lora_B.weight": "up", ".lora_A.weight": "down"}
_PARTS |= {f"{old}.{part}.weight": part for old in (".lora", "_lora", ".lora_linear_layer") for part in ("up", "down")}
# Layers that diffusers makes of others (`fuse_qkv_projections`), row under row, and reads in their place.
_FUSED = {"to_kv": ("to_k", "to_v"), "to_qkv": ("to_q", "to_k", "to_v")}


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
    - `fuse_qkv_projections`, before or after: what is fused holds the erasures too.
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
        self._base: Base | None = None  # the weights before the first erasure
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
            erasures: Files, or folders with one, each alone or as (path, strength); kohya or PEFT form.
            sha256: The hash that each file must have, in the same order; None, also for single files, asks for none.
        Returns:
            All erasures that are now in the weights.
        Raises:
            ValueError: a file is damaged, unsafe, no erasure, for another base, or not the one whose hash was given;
                a strength is not positive. Nothing was changed.
            RuntimeError: the weights cannot be edited, or earlier erasures are not in place.
        """
        listed = [_adapter_file(e) for e in ([erasures] if isinstance(erasures, (str, Path)) else erasures)]
        hashes = [sha256] if isinstance(sha256, str) else list(sha256 or [None] * len(listed))
        if not listed:
            raise ValueError("the list of erasures is empty; name at least one adapter file.")
        if len(hashes) != len(listed):
            raise ValueError(f"{len(hashes)} SHA-256 were given for {len(listed)} erasures; give one each, or None.")
        if self._erasures:
            self.check_erasures()
        base = self._base or base_of(self.unet)
        layers = dict(self._linears())
        loaded, changes = list(self._erasures), {path: list(parts) for path, parts in self._changes.items()}
        for (path, strength), expected in zip(listed, hashes, strict=True):
            tensors, record, digest = read_file(path, expected)
            concepts, made_for = check_record(path, record, form=None)
            found = _factors(path, tensors, layers)
            base.check(path, made_for, _sketch(found, base))
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
        """SHA-256 over the keys and values of the cross-attention in half precision, as files record it."""
        return base_of(self.unet).hash

    def _linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Every linear layer that an erasure may change, by its path in files; underneath LoRA wrappers."""
        for component in ("unet", "text_encoder"):
            module = getattr(self, component)
            for name, layer in unwrapped(module).named_modules():
                name, inside = name.removesuffix(".base_layer"), ".lora_" in name
                if isinstance(layer, nn.Linear) and not inside:
                    if component == "text_encoder" and not name.startswith("text_model."):
                        name = f"text_model.{name}"  # transformers 5.6 dropped this level, files keep it
                    yield f"{component}.{name}", layer

    def _edit(self, layers: dict[str, nn.Linear], changes: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
        """Add what is not yet in the weights, and note how to recognise it."""
        edited, expected = [], {}
        for component in (unwrapped(self.unet), unwrapped(self.text_encoder)):
            hooks = (getattr(part, "_diffusers_hook", None) for part in component.modules())
            if any(hook is not None and hook.get_hook("group_offloading") for hook in hooks):
                raise RuntimeError("group offloading would put back the weights it keeps; load the erasures before it.")
        for path, parts in changes.items():
            weight = weight_of(path, layers[path])
            if layers[path].weight.is_meta:
                raise RuntimeError(f"{path} is offloaded; load the erasures before enabling sequential offloading.")
            self._refuse_processor(path)
            new = parts[len(self._changes.get(path, [])) :]
            total = weight.to(torch.float32)
            for up, down in new:
                total = total + (up @ down).to(total.device)
            value = total.to(weight.dtype)
            if not value.to(torch.float32).isfinite().all():
                raise RuntimeError(f"{path} overflows in {weight.dtype} when edited; load the base in float32.")
            directions, size = _directions(parts)
            if size > 0:
                expected[path] = (directions, (total @ directions.to(total.device)).cpu(), size)
                if not _error(value, *expected[path]) <= TOLERANCE:
                    raise RuntimeError(f"{path} is stored as {weight.dtype}, too coarse to hold this change.")
            edited.append((layers[path], slice(None), value))
            for fused, rows in self._fused(path):
                if torch.equal(fused.weight.data[rows].to(torch.float32), weight.to(torch.float32)):
                    edited.append((fused, rows, value))
                elif self._reads_fused(path):
                    raise RuntimeError(
                        f"the projections around {path} were fused from other weights; call unfuse_qkv_projections()."
                    )
        for layer, rows, value in edited:  # new tensors: files that are mapped into memory are never written to
            whole = layer.weight.data.clone() if len(value) < layer.out_features else torch.empty_like(value)
            whole[rows] = value
            layer.weight.data = whole
        self._expected = expected

    def _around(self, path: str) -> nn.Module:
        """The attention that a projection belongs to."""
        component, _, name = path.partition(".")
        module = unwrapped(getattr(self, component))
        if component == "text_encoder" and not hasattr(module, "text_model"):
            name = name.removeprefix("text_model.")
        return module.get_submodule(name.rpartition(".")[0])

    def _fused(self, path: str) -> list[tuple[nn.Linear, slice]]:
        """Layers that were made of a projection and others, each with the rows that came from it."""
        attention, leaf = self._around(path), path.rpartition(".")[2]
        found = []
        for name, parts in _FUSED.items():
            layer = getattr(attention, name, None)
            if isinstance(layer, nn.Linear) and leaf in parts:
                sizes = [getattr(attention, part).out_features for part in parts]
                start = sum(sizes[: parts.index(leaf)])
                found.append((layer, slice(start, start + sizes[parts.index(leaf)])))
        return found

    def _reads_fused(self, path: str) -> bool:
        """Whether the attention around a projection reads fused layers, or may: a processor of somebody else."""
        kind = type(getattr(self._around(path), "processor", None))
        return "Fused" in kind.__name__ or not kind.__module__.startswith(("diffusers.", "builtins"))

    def _refuse_processor(self, path: str) -> None:
        """Raises RuntimeError: an attention processor brings keys and values of its own for the text."""
        processor = getattr(self._around(path), "processor", None)
        if isinstance(processor, nn.Module):
            own = [name for name, _ in processor.named_parameters() if "_ip" not in name]  # an image prompt's may be
        else:
            own = [n for n, v in getattr(processor, "__dict__", {}).items() if isinstance(v, (Tensor, nn.Module))]
        if own:
            raise RuntimeError(
                f"the attention processor {type(processor).__name__} around {path} reads weights of its own "
                f"({own[0]}), which hold no erasure; call unet.set_default_attn_processor()."
            )

    # -- checking ----------------------------------------------------------------------------------------------

    def check_erasures(self) -> None:
        """Compare the weights with what the erasures made of them.

        Raises:
            RuntimeError: nothing is erased, an erased layer or what was fused from it does not hold its change, or an
                attention processor reads other weights.
        """
        if not self._erasures:
            raise RuntimeError("this pipeline has no erasures and will not draw without; call load_erasures([...]).")
        layers = dict(self._linears())
        gone = [path for path in self._expected if path not in layers]
        if not gone:
            for path, noted in self._expected.items():
                held = [weight_of(path, layers[path])]
                if self._reads_fused(path):
                    held += [weight_of(path, fused)[rows] for fused, rows in self._fused(path)]
                if not all(_error(weight, *noted) <= TOLERANCE for weight in held):
                    gone.append(path)
                self._refuse_processor(path)
        if gone:
            raise RuntimeError(
                f"{len(gone)} of {len(self._expected)} erased layers no longer hold their change, {gone[0]} first: the "
                "weights or a component were changed behind the pipeline's back. Open the base again and load the "
                "erasures; fuse LoRAs with pipe.fuse_lora, and projections after that."
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


def _adapter_file(entry: Any) -> tuple[Path, float]:
    path, strength = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1.0)
    if not isinstance(path, (str, Path)):
        raise ValueError(f"an erasure is a path or (path, strength), got {entry!r}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < math.inf:
        raise ValueError(f"the strength of {path} is {strength!r}; it must be a positive number.")
    path = Path(path)
    if path.is_dir() and not (path / PEFT_NAME).is_file():
        found = [p for p in sorted(path.iterdir()) if p.suffix.lower() == ".safetensors" and p.stem != "operator"]
        if len(found) != 1:
            listed = ", ".join(p.name for p in found) or "none"
            raise ValueError(f"one adapter file is wanted, {path} holds {listed}; name a file that exists.")
        return found[0], float(strength)
    return path / PEFT_NAME if path.is_dir() else path, float(strength)


def _directions(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """Up to four input directions (d_in, k) that a change moves most, and how far it moves them."""
    up, down = torch.cat([u for u, _ in parts], dim=1), torch.cat([d for _, d in parts])
    q, r = torch.linalg.qr(down.T)
    _, _, vh = torch.linalg.svd(torch.linalg.qr(up).R @ r.T, full_matrices=False)
    directions = q @ vh[:4].T
    return directions, float((up @ (down @ directions)).norm())


def _error(weight: Tensor, directions: Tensor, expected: Tensor, size: float) -> float:
    """How far a weight is from what it must be, where an edit moves it most; relative to that move."""
    now = weight.to(torch.float32) @ directions.to(weight.device)
    return float((now - expected.to(weight.device)).norm()) / size


def _sketch(found: dict[str, tuple[Tensor, Tensor]], base: Base) -> Tensor:
    """What an edit adds to the sketch of a base."""
    numbers = []
    for path, shape in base.shapes.items():
        if path in found:
            up, down = (factor.double() for factor in found[path])
            numbers += [float((left @ up) @ (down @ right)) for left, right in probes(path, *shape)]
        else:
            numbers += [0.0] * NUMBERS
    return torch.tensor(numbers, dtype=torch.float64)


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
        name = key.removesuffix(ending).replace(".processor.", ".")  # as diffusers wrote it once
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
    if path.suffix.lower() not in (".safetensors", ".operator") or not path.is_file():
        raise ValueError(f"{path} is no .safetensors or .operator file that exists; pickled weights are never read.")
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


def check_record(path: Path, record: str, *, form: str | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What a file erases, and what it says of the base it was made for.

    Args:
        form: "operator" for operator files, None for adapters.
    Raises:
        ValueError: it is of the other form, or does not say what it erases or which base it is for.
    """
    try:
        said = json.loads(record)
        concepts, base = tuple(str(c["target"]) for c in said["concepts"]), dict(said["base"])
        if not (base["name"] and base["hash"]):
            raise KeyError("hash")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not record its concepts and base, so it cannot be verified.") from error
    if said.get("form") != form:
        raise ValueError(f"{path} is {said.get('form') or 'an adapter'}, for the other pipeline of this project.")
    return concepts, base


NUMBERS = 4  # of a sketch, for each layer
SCALED = "scaled "  # but for a factor of each row
FLOATS = (  # from coarse to fine
    "float8_e5m2", f"{SCALED}float8_e5m2", "float8_e4m3fn", f"{SCALED}float8_e4m3fn", "bfloat16", "float16", "float32",
)  # fmt: skip
FINEST = 2e-4  # of the weights, about the rounding of float16: nothing closer is told apart
SCALE_ERROR = 2.0**-7  # of a value: bfloat16 rounds the value and its row's factor by half of that in all


@dataclass(frozen=True, eq=False)
class Base:
    """What the weights of the cross-attention's keys and values are known by.

    Attributes:
        hash: SHA-256 of them in half precision.
        dtype: The type of `FLOATS` that holds them all as they are, and of several the one that rounds them most.
        rounding: Root mean square error of rounding weights like these to that type, relative to them.
        sketch: Products u^T W v with fixed vectors of +1 and -1, which survive rounding: where the hash differs, the
            distance of two sketches estimates that of the weights.
        size: What a sketch of these weights is long on average.
        shapes: Path -> (d_out, d_in) of each layer, in order.
    """

    hash: str
    dtype: str
    rounding: float
    sketch: Tensor
    size: float
    shapes: dict[str, tuple[int, int]]

    def check(self, path: Path, recorded: dict[str, Any], change: Tensor | None = None) -> None:
        """Compare with the base that a file was made for.

        Args:
            recorded: What the file says of its base.
            change: What the file's edit adds to a sketch, to find it in the weights.
        Raises:
            ValueError: it is another one, with the reason.
        """
        if recorded["hash"] == self.hash:
            return
        listed = recorded.get("sketch")
        if not isinstance(listed, list) or len(listed) != len(self.sketch):
            reason = (
                f"the weights have the hash {self.hash[:12]} where {str(recorded['hash'])[:12]} is recorded: another "
                "base, or one that was edited, fused with a LoRA or rounded to bfloat16 before"
            )
        else:
            try:
                there = torch.tensor(listed, dtype=torch.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} has a sketch of its base that is no list of numbers; fetch it again."
                ) from error
            gap = (self.sketch - there) / self.size
            noise = math.hypot(self.rounding, rounding_in(recorded), FINEST)
            share = 0.0
            if change is not None and change.any():
                edit = change / self.size
                share = float(gap @ edit / (edit @ edit))
                error_of_share = noise / math.sqrt(len(gap)) / float(edit.norm())
                if share <= max(0.2, 4 * error_of_share) or float((gap - share * edit).norm()) > 2 * noise:
                    share = 0.0
            if share:
                reason = f"this erasure is in these weights already, at strength {share:.2g}"
            elif float(gap.norm()) <= 2 * noise:
                return
            else:
                reason = (
                    f"the weights differ by about {float(gap.norm()):.2%} of their size, of which rounding explains "
                    f"{2 * noise:.2%}: another base, a fine-tune, or one that was edited or fused with a LoRA before"
                )
        raise ValueError(
            f"{path} was made for {recorded['name']!r}, and here {reason}. Open that base, or erase the concept from "
            "this one."
        )


def base_of(unet: nn.Module) -> Base:
    """What identifies a base, from its cross-attention; the same numbers as in the files' records.

    Raises:
        RuntimeError: the weights are not in memory, or quantised.
    """
    layers = {}
    for name, layer in unwrapped(unet).named_modules():
        name = name.removesuffix(".base_layer")  # underneath LoRA wrappers
        if isinstance(layer, nn.Linear) and re.search(r"attn2\.to_[kv]$", name):
            layers[f"unet.{name}"] = layer
    digest, numbers, square, part = hashlib.sha256(), [], 0.0, 0.0
    holding, errors, shapes = list(FLOATS), dict.fromkeys(FLOATS, 0.0), {}
    for path, layer in sorted(layers.items()):
        weight = weight_of(path, layer).to("cpu", torch.float32)
        digest.update(path.encode())
        digest.update(weight.half().contiguous().numpy().tobytes())
        double, shapes[path] = weight.double(), (weight.shape[0], weight.shape[1])
        square += float(double.square().sum())
        numbers += [float(left @ (double @ right)) for left, right in probes(path, *shapes[path])]
        holding = [name for name in holding if holds(name, weight)]
        rows = double[:: max(1, len(double) // 16)]  # rounding is much the same in all rows
        part += float(rows.square().sum())
        for name in holding:
            errors[name] += float(spacing(rows, name).square().sum()) / 12
    dtype = max(holding or ["float32"], key=errors.__getitem__)
    rounding = math.sqrt(errors[dtype] / part) if part else 0.0
    sketch = torch.tensor(numbers, dtype=torch.float64)
    return Base(digest.hexdigest(), dtype, rounding, sketch, math.sqrt(NUMBERS * square) or 1.0, shapes)


def holds(name: str, weight: Tensor) -> bool:
    """Whether a float type holds all weights as they are; scaled, but for a factor of each row."""
    kind = getattr(torch, name.removeprefix(SCALED))
    if not name.startswith(SCALED):
        return torch.equal(weight.to(kind).to(torch.float32), weight)
    rows = weight[:: max(1, len(weight) // 16)]  # of other weights not even one row fits by chance
    largest = rows.abs().amax(1, keepdim=True)
    fits = largest[:, 0] == 0
    for step in range(4, 8) if "e5m2" in name else range(8, 16):  # what the row's largest value may be in the type
        top = step * 2.0 ** math.floor(math.log2(torch.finfo(kind).max / step))
        values = rows / largest.clamp_min(torch.finfo(torch.float32).tiny) * top
        apart = (values.to(kind).to(torch.float32) - values).abs()
        fits |= (apart <= SCALE_ERROR * values.abs()).all(1)
    return bool(fits.all())


def rounding_in(recorded: Mapping[str, Any]) -> float:
    """The rounding of a recorded base; of a record that does not say, that of its float type for usual weights."""
    told, kind = recorded.get("rounding"), recorded.get("dtype")
    if isinstance(told, (int, float)) and 0 <= told < 1:
        return float(told)
    if kind not in FLOATS or str(kind).startswith(SCALED):
        return 0.0
    # Mantissas are about even between 1 and 2, so numbers are about sqrt(7/3) times the power of two beneath them.
    return torch.finfo(getattr(torch, str(kind))).eps / math.sqrt(12 * 7 / 3)


def spacing(values: Tensor, name: str) -> Tensor:
    """The distance of neighbouring numbers of a float type around each value: the step of a rounding."""
    limits = torch.finfo(getattr(torch, name.removeprefix(SCALED)))
    power = torch.where(values == 0, 0.0, torch.exp2(torch.frexp(values).exponent.double() - 1))
    # What is scaled fills the type's range, so hardly a value is below its normal numbers.
    return limits.eps * (power if name.startswith(SCALED) else power.clamp_min(limits.smallest_normal))


def probes(path: str, d_out: int, d_in: int) -> list[tuple[Tensor, Tensor]]:
    """The vectors u (d_out) and v (d_in) of a layer: the bits of a hash of its path."""

    def signs(seed: str, length: int) -> Tensor:
        raw = hashlib.shake_128(seed.encode()).digest(length)
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).remainder(2).double() * 2 - 1

    return [(signs(f"{path} {i} left", d_out), signs(f"{path} {i} right", d_in)) for i in range(NUMBERS)]


def unwrapped(module: Any) -> Any:
    """A component beneath torch.compile, DataParallel and their kin."""
    while True:
        inner = [getattr(module, "_modules", {}).get(n) for n in ("_orig_mod", "module", "_fsdp_wrapped_module")]
        if len(getattr(module, "_modules", {})) != 1 or not any(inner):
            return module
        module = next(filter(None, inner))


def weight_of(path: str, layer: nn.Linear) -> Tensor:
    """The weight of a layer, also where accelerate keeps it elsewhere.

    Raises:
        RuntimeError: it is not in memory, computed at every call, quantised, or spread over devices.
    """
    parameter = layer._parameters.get("weight")
    if parameter is None:
        raise RuntimeError(f"{path} computes its weight at every call (pruned or parametrized); make that permanent.")
    weight: Tensor | None = parameter.data
    if parameter.is_meta:
        weight = (getattr(getattr(layer, "_hf_hook", None), "weights_map", None) or {}).get("weight")
    if weight is None:
        raise RuntimeError(f"{path} is not in memory; load the erasures before offloading the pipeline.")
    weight = weight.data
    if type(weight) is not Tensor or str(weight.dtype).removeprefix("torch.") not in FLOATS:
        kind = weight.dtype if type(weight) is Tensor else type(weight).__name__
        raise RuntimeError(f"{path} is stored as {kind}; erase before quantising, from float weights.")
    return weight
