"""Names of layers.

transformers 5.6 dropped the "text_model." level of the CLIP text encoder. Paths here always carry it, as adapter files
do; it is taken off only when a live module is looked up.
"""

from __future__ import annotations

from typing import Any

import torch

from concept_erase.errors import InputError


def live_to_canonical(component: str, name: str) -> str:
    if component.startswith("text_encoder") and not name.startswith("text_model."):
        return f"text_model.{name}"
    return name


def canonical_to_live(module: torch.nn.Module, name: str) -> str:
    if name.startswith("text_model.") and not hasattr(module, "text_model"):
        return name.removeprefix("text_model.")
    return name


def linear(module: torch.nn.Module, name: str) -> torch.nn.Linear:
    """The linear layer at a path, underneath a LoRA wrapper if one is attached."""
    layer: Any = module.get_submodule(name)
    return getattr(layer, "base_layer", layer)


def unwrapped(module: Any) -> Any:
    """A component beneath what was put around it as a whole: torch.compile, DataParallel and its kin.

    Hooks of accelerate replace `forward` and add no level, so they need nothing here.
    """
    while True:
        for name in ("_orig_mod", "module", "_fsdp_wrapped_module"):
            inner = getattr(module, "_modules", {}).get(name)
            if inner is not None and len(module._modules) == 1:
                module = inner
                break
        else:
            return module


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
            place, key = self._place()
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
        place, key = self._place()
        if not isinstance(place, dict):
            raise InputError(f"{self.path} is offloaded out of reach; do this before offloading the pipeline.")
        place[key] = value

    def _place(self) -> tuple[Any, str]:
        """Where accelerate's hook takes an offloaded weight from, beneath views and files on disk; {} if unknown."""
        hook: Any = getattr(self.layer, "_hf_hook", None)
        maps = (getattr(h, "weights_map", None) for h in getattr(hook, "hooks", (hook,)))
        place: Any = next((m for m in maps if m is not None), {})
        key = "weight"
        while hasattr(place, "dataset") and hasattr(place, "prefix"):
            place, key = place.dataset, f"{place.prefix}{key}"
        if hasattr(place, "state_dict") and key in place.state_dict:  # what is in memory goes before what is on disk
            place = place.state_dict
        return place, key
