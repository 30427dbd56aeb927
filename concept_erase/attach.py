"""Putting an adapter on a live pipeline: for the length of a block, or as a LoRA that stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from concept_erase.adapter import Adapter, file_in
from concept_erase.errors import BaseMismatchError, InputError, NumericalError
from concept_erase.layers import canonical_to_live, linear
from concept_erase.model import open_model


def _layer(pipe: Any, path: str) -> torch.nn.Linear:
    component, _, name = path.partition(".")
    try:
        module = getattr(pipe, component)
        layer = linear(module, canonical_to_live(module, name))
        if not isinstance(layer, torch.nn.Linear):
            raise AttributeError(name)
        return layer
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
        path: Either form of the file, or the folder of an erasure.
        name: Adapter name, without dots; derived from the concepts when None.
        scale: Strength.
    Returns:
        The adapter name, for `pipe.set_adapters` and `pipe.delete_adapters`.
    Raises:
        BaseMismatchError: the adapter is for another base.
        NumericalError: the loaded change differs from the file.
    """
    path = file_in(Path(path))
    adapter = Adapter.load(path)
    if check:
        check_base(pipe, adapter)
    name = name or adapter.slug
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


def _active_adapters(pipe: Any) -> dict[str, float | dict[str, float]]:
    """Names and strengths, by component, of the LoRAs that are switched on."""
    found: dict[str, dict[str, float]] = {}
    for path, layer in _lora_layers(pipe):
        if not layer.disable_adapters:
            for name in layer.active_adapters:
                if name in layer.scaling:
                    strength = layer.scaling[name] * layer.r[name] / layer.lora_alpha[name]
                    found.setdefault(name, {}).setdefault(path.partition(".")[0], strength)
    return {
        name: strengths if len(strengths) > 1 else next(iter(strengths.values())) for name, strengths in found.items()
    }


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
