"""Where checkpoints come from: the hub's cache, the hub, a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from concept_erase.errors import MissingModelError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NEEDED = (
    "model_index.json",
    "tokenizer/*",
    "text_encoder/*.json",
    "text_encoder/model.safetensors",
    "unet/*.json",
    "unet/diffusion_pytorch_model*.safetensors",
)


def fetch(name: str) -> tuple[Path, str]:
    """The cached snapshot of a hub model, completed with what a closed-form edit needs; the cache comes first."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    def incomplete(folder: Path) -> list[str]:
        return [pattern for pattern in NEEDED if not any(folder.glob(pattern))]

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if not incomplete(cached):
            return cached, cached.name
    except (LocalEntryNotFoundError, OSError):
        pass
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(NEEDED), ignore_patterns=["*non_ema*", "*.fp16.*"]))
    except RepositoryNotFoundError as error:
        raise MissingModelError(f"the hub knows no model {name!r}; check the name, or pass a folder.") from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:  # HTTPError: refused, no such host, proxy, time-out
        raise MissingModelError(
            f"{name!r} is neither in the local cache nor can the hub be reached; needed are {', '.join(NEEDED)}. "
            "Pass a folder that holds them."
        ) from error
    missing = incomplete(folder)
    if missing:
        raise MissingModelError(
            f"{name!r} lacks {', '.join(missing)}; is it a Stable Diffusion 1 model in diffusers form?"
        )
    return folder, folder.name


def load_pipeline(source: str, revision: str | None = None) -> DiffusionPipeline:
    """A full pipeline in float32, quietly; only safetensors are read and no remote code is run."""
    from diffusers import DiffusionPipeline

    with quiet():
        pipe = DiffusionPipeline.from_pretrained(source, revision=revision, use_safetensors=True).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if torch.get_default_device().type == "cpu":
        pipe.unet.to(memory_format=torch.channels_last)  # 0.31 to 0.23 s a picture at batch 32 on 4 cores
    return pipe


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and remarks of transformers and diffusers while a model loads."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, (bars, level) in zip(libraries, before, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
