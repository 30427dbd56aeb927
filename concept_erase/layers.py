"""Names of layers, and what lies beneath whatever was put around them.

transformers 5.6 dropped the "text_model." level of the CLIP text encoder. Paths here always carry it, as adapter files
do; it is taken off only when a live module is looked up. Wrappers (torch.compile, DataParallel, PEFT) and the layers
that a LoRA was put on add no level.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from concept_erase.errors import InputError


def live_to_canonical(component: str, name: str) -> str:
    if component.startswith("text_encoder") and not name.startswith("text_model."):
        return f"text_model.{name}"
    return name


def canonical_to_live(module: torch.nn.Module, name: str) -> str:
    if name.startswith("text_model.") and not hasattr(unwrapped(module), "text_model"):
        return name.removeprefix("text_model.")
    return name


def linear(module: torch.nn.Module, name: str) -> torch.nn.Linear:
    """The linear layer at a path, underneath a LoRA and whatever wraps it or a part above it.

    Raises:
        AttributeError: there is none.
    """
    layer: Any = _bare(module)
    for part in name.split("."):
        layer = _bare(getattr(layer, part))
    return layer


def walk(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module with its path, as if nothing were wrapped around any; a LoRA's own layers are left out."""
    module = _bare(module)
    yield path, module
    for name, child in module.named_children():
        yield from walk(child, f"{path}.{name}" if path else name)


def matching(component: str, module: torch.nn.Module, pattern: str) -> list[str]:
    """Canonical paths of all that has a matrix of weights in a component and whose path a pattern finds, sorted."""
    named = ((live_to_canonical(component, name), inner) for name, inner in walk(module))
    return sorted(
        f"{component}.{name}"
        for name, inner in named
        if re.search(pattern, name) and getattr(inner, "weight", None) is not None and inner.weight.ndim == 2
    )


def unwrapped(module: Any) -> Any:
    """A component beneath what was put around it as a whole: torch.compile, DataParallel, PEFT and their kin.

    Hooks of accelerate replace `forward` and add no level, so they need nothing here.
    """
    while True:
        inside = getattr(module, "_modules", {})
        names = ["_orig_mod", "module", "_fsdp_wrapped_module"]
        if hasattr(module, "peft_config"):
            names += ["base_model", "model"]  # a PeftModel holds a tuner, which holds what it tunes
        inner = next((inside[name] for name in names if inside.get(name) is not None), None)
        if inner is None or len(inside) != 1:
            return module
        module = inner


def _bare(module: Any) -> Any:
    module = unwrapped(module)
    while "base_layer" in getattr(module, "_modules", {}):
        module = unwrapped(module._modules["base_layer"])
    return module


def too_coarse(module: torch.nn.Module) -> torch.dtype | None:
    """The type of weights that nothing can be computed in as they are (float8); None where all can be.

    Those that diffusers' layerwise casting makes finer at every call can be.
    """
    for part in module.modules():
        if not hasattr(part, "_diffusers_hook"):
            for weight in part.parameters(recurse=False):
                if weight.is_floating_point() and weight.element_size() == 1:
                    return weight.dtype
    return None


def tensor(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter as a forward pass would read it, also where accelerate has moved it out of the module.

    Raises:
        InputError: its numbers are not at hand.
    """
    held = getattr(module, name)
    if held.device.type != "meta":
        return held.detach()
    place, key = _place(module, name)
    kept = place.get(key)
    if kept is None:
        raise InputError(f"{OFFLOADED}; erase before offloading.")
    return kept.detach()


OFFLOADED = "the pipeline's weights are offloaded to where they cannot be read"


def on_disk(module: torch.nn.Module) -> bool:
    """Whether diffusers' group offloading wrote a component to files and left memory without content."""
    for part in module.modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        if any(getattr(getattr(hook, "group", None), "offload_to_disk_path", None) for hook in hooks.values()):
            return True
    return False


def loras(module: torch.nn.Module) -> tuple[set[str], set[str]]:
    """Names of the LoRAs (PEFT adapters of any kind) that act on a component: switched on, and fused into its weights.

    One at strength 0 does nothing and is not among them.
    """
    active: set[str] = set()
    fused: set[str] = set()
    for layer in module.modules():
        if "base_layer" not in layer._modules:
            continue
        mine: Any = layer
        fused.update(getattr(mine, "merged_adapters", ()))
        if not getattr(mine, "disable_adapters", False):
            strengths = getattr(mine, "scaling", None)
            active.update(
                name for name in getattr(mine, "active_adapters", ()) if strengths is None or strengths.get(name)
            )
    return active - fused, fused


def refuse_loras(name: str, pipe: Any) -> None:
    """Refuse a live pipeline that does not compute what its own weights say.

    Raises:
        InputError: a LoRA is switched on, or was fused into the weights.
    """
    active: set[str] = set()
    fused = set(getattr(pipe, "fused_loras", ()) or ())  # diffusers remembers them when they were unloaded
    for component in ("unet", "text_encoder"):
        module = getattr(pipe, component, None)
        if isinstance(module, torch.nn.Module):
            on, merged = loras(module)
            active, fused = active | on, fused | merged
    if fused:
        raise InputError(
            f"LoRAs are fused into the weights of {name} ({', '.join(sorted(fused))}): an edit would depend on them "
            "without saying so. Call unfuse_lora(), or open the base again; to erase from the mixture, call "
            "unload_lora_weights() and save_pretrained(), and pass that folder."
        )
    if active:
        raise InputError(
            f"LoRAs are switched on in {name} ({', '.join(sorted(active))}): an edit would depend on them without "
            "saying so. Call disable_lora() or unload_lora_weights() first; they can be loaded again afterwards."
        )


_FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


class Kept:
    """The weight of a linear layer, read and written where it is kept: accelerate offloads it to somewhere else."""

    def __init__(self, path: str, layer: torch.nn.Linear) -> None:
        self.path, self.layer = path, layer

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features

    def read(self) -> torch.Tensor:
        """The weight itself.

        Raises:
            InputError: it is computed at every call, offloaded out of reach, quantised or spread over devices.
        """
        parameter = self.layer._parameters.get("weight")
        if parameter is None:
            raise InputError(
                f"{self.path} computes its weight anew at every call (pruned, normalised or parametrized); make that "
                "permanent first."
            )
        weight = parameter.data
        if parameter.is_meta:
            place, key = _place(self.layer, "weight")
            weight = place.get(key)
            if weight is None:
                raise InputError(f"{self.path} is offloaded out of reach; do this before offloading the pipeline.")
            weight = weight.data
        if type(weight) is not torch.Tensor or weight.dtype not in _FLOATS:
            kind = weight.dtype if type(weight) is torch.Tensor else type(weight).__name__
            raise InputError(f"{self.path} is stored as {kind}; do this with float weights, before quantising.")
        return weight

    def write(self, value: torch.Tensor) -> None:
        """Put another tensor in its place."""
        if not self.layer.weight.is_meta:
            self.layer.weight.data = value
            return
        place, key = _place(self.layer, "weight")
        if not isinstance(place, dict):
            raise InputError(f"{self.path} is offloaded out of reach; do this before offloading the pipeline.")
        place[key] = value


def _place(module: torch.nn.Module, key: str) -> tuple[Any, str]:
    """Where accelerate's hook takes an offloaded tensor from, beneath views and files on disk; {} if unknown."""
    hook: Any = getattr(module, "_hf_hook", None)
    maps = (getattr(h, "weights_map", None) for h in getattr(hook, "hooks", (hook,)))
    place: Any = next((m for m in maps if m is not None), {})
    while hasattr(place, "dataset") and hasattr(place, "prefix"):
        place, key = place.dataset, f"{place.prefix}{key}"
    if hasattr(place, "state_dict") and key in place.state_dict:  # what is in memory goes before what is on disk
        place = place.state_dict
    return place, key
