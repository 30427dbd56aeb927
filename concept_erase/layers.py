"""Names of layers.

transformers 5.6 dropped the "text_model." level of the CLIP text encoder. Paths here always carry it, as adapter files
do; it is taken off only when a live module is looked up.
"""

from __future__ import annotations

from typing import Any

import torch


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
