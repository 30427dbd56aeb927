"""Pictures from prompts: batched, the same for the same seed, and never made twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from concept_erase.errors import InputError, OutputError, ResourceError
from concept_erase.files import atomic_write
from concept_erase.model import Model

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        steps: Denoising steps.
        guidance: Classifier-free guidance; None means 4 on the embedded generator, 7.5 elsewhere.
        batch: Pictures at a time; halved when memory runs out.
    """

    steps: int = 25
    guidance: float | None = None
    batch: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"steps and batch must be at least 1, got {self.steps} and {self.batch}.")


def cache_folder() -> Path:
    """Where pictures are kept: `CONCEPT_ERASE_CACHE`, or `concept_erase` in the user's cache folder."""
    root = os.environ.get("CONCEPT_ERASE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(root) if os.environ.get("CONCEPT_ERASE_CACHE") else Path(root) / "concept_erase"


def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampling: Sampling = Sampling(),
    variant: str | None = "",
    progress: Progress | None = None,
    what: str = "pictures",
) -> list[Image.Image]:
    """One picture per prompt and seed.

    Args:
        variant: What distinguishes the live weights from the base: "" for the base itself, a hash of the attached
            edit, or None when that is not known and nothing may be cached.
    Returns:
        Pictures in the order of the prompts.
    """
    identity = _identity(model, variant, sampling)
    keys = [_key(identity, p, s) for p, s in zip(prompts, seeds, strict=True)] if identity else [None] * len(prompts)
    images: list[Image.Image | None] = [_cached(key) for key in keys]
    missing = [i for i, image in enumerate(images) if image is None]
    done, total = len(images) - len(missing), len(images)
    if progress:
        progress(done, total, what)
    batch = sampling.batch
    while missing:
        chunk = missing[:batch]
        try:
            drawn = _draw(model, [prompts[i] for i in chunk], [seeds[i] for i in chunk], sampling)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if batch == 1:
                raise ResourceError(
                    "memory does not suffice for a single picture; free some, or use a smaller base."
                ) from error
            batch = max(1, batch // 2)
            continue
        for i, image in zip(chunk, drawn, strict=True):
            images[i] = image
            _store(keys[i], image)
        missing = missing[len(chunk) :]
        done += len(chunk)
        if progress:
            progress(done, total, what)
    return [image for image in images if image is not None]


def _draw(model: Model, prompts: list[str], seeds: list[int], sampling: Sampling) -> list[Image.Image]:
    pipe: Any = model.pipe
    for prompt in prompts:
        model.token_ids(prompt)  # refuses what the pipeline would cut in silence
    guidance = sampling.guidance if sampling.guidance is not None else (4.0 if model.is_embedded else 7.5)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    with torch.inference_mode():
        return pipe(
            prompts,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=sampling.steps,
            guidance_scale=guidance,
            height=side,
            width=side,
        ).images


def _identity(model: Model, variant: str | None, sampling: Sampling) -> dict[str, Any] | None:
    """What a picture depends on beside prompt and seed; None when the weights are not known well enough."""
    if variant is None or model.folder is None:
        return None
    files = sorted(p for p in model.folder.rglob("*") if p.is_file())
    if model.is_embedded:
        content: Any = (
            model.fingerprint + hashlib.sha256((model.folder.parent / "manifest.json").read_bytes()).hexdigest()
        )
    else:
        content = [(p.relative_to(model.folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return {
        "content": content,
        "variant": variant,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "torch": torch.__version__,
    }


def _key(identity: dict[str, Any], prompt: str, seed: int) -> str:
    return hashlib.sha256(json.dumps([identity, prompt, seed]).encode()).hexdigest()


def _path(key: str) -> Path:
    return cache_folder() / "pictures" / key[:2] / f"{key}.png"


def _cached(key: str | None) -> Image.Image | None:
    if key is None or not _path(key).is_file():
        return None
    try:
        with Image.open(_path(key)) as image:
            return image.convert("RGB")
    except OSError:
        return None  # damaged: draw it again


def _store(key: str | None, image: Image.Image) -> None:
    if key is None:
        return
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    try:
        atomic_write(_path(key), buffer.getvalue())
    except OutputError:
        return  # a cache that cannot be written costs time, nothing else
