"""Make text-to-image generators forget a concept, as LoRA files that drop in everywhere.

>>> from concept_erase import Concept, erase, load_erasure, score
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from concept_erase.imports import unswept

__version__ = "0.1.0"

if TYPE_CHECKING:
    from concept_erase.adapter import Adapter as Adapter
    from concept_erase.attach import attached as attached
    from concept_erase.attach import check_erasures as check_erasures
    from concept_erase.attach import erasures as erasures
    from concept_erase.attach import load_erasure as load_erasure
    from concept_erase.attach import unload_erasure as unload_erasure
    from concept_erase.batch.runner import erase_list as erase_list
    from concept_erase.concepts import Concept as Concept
    from concept_erase.concepts import Kind as Kind
    from concept_erase.erasure import Erasure as Erasure
    from concept_erase.erasure import erase as erase
    from concept_erase.lists import read_list as read_list
    from concept_erase.lowrank import LowRank as LowRank
    from concept_erase.model import Model as Model
    from concept_erase.model import open_model as open_model
    from concept_erase.scores import Scores as Scores
    from concept_erase.scores import score as score

# Imported on first use: torch and diffusers take seconds, a help text should not.
_HOME = {
    "Adapter": "adapter",
    "Concept": "concepts",
    "Erasure": "erasure",
    "Kind": "concepts",
    "LowRank": "lowrank",
    "Model": "model",
    "Scores": "scores",
    "attached": "attach",
    "check_erasures": "attach",
    "erase": "erasure",
    "erasures": "attach",
    "erase_list": "batch.runner",
    "load_erasure": "attach",
    "open_model": "model",
    "read_list": "lists",
    "score": "scores",
    "unload_erasure": "attach",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with unswept():
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
