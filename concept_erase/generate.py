"""Pictures from prompts: batched, the same for the same seed, and never made twice."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from concept_erase.errors import InputError, OutputError, ResourceError
from concept_erase.files import atomic_write
from concept_erase.layers import unwrapped
from concept_erase.memory import cache_folder
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


def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampling: Sampling = Sampling(),
    variant: str | None = "",
    drawn: Mapping[tuple[str, int], Image.Image] | None = None,
    progress: Progress | None = None,
    what: str = "pictures",
) -> list[Image.Image]:
    """One picture per prompt and seed.

    Args:
        variant: What distinguishes the live weights from the base: "" for the base itself, a hash of the attached
            edit, or None when that is not known and nothing may be cached.
        drawn: Pictures of these weights by prompt and seed; a batch that is there in full is not drawn again.
    Returns:
        Pictures in the order of the prompts.
    Raises:
        InputError: the base does not draw from a text alone, or a prompt is too long for it.
    """
    if model.undrawable:
        raise InputError(model.undrawable)
    identity = _identity(model, variant, sampling)
    jobs = list(zip(prompts, seeds, strict=True))
    chunks = [jobs[i : i + sampling.batch] for i in range(0, len(jobs), sampling.batch)]
    keys = [_key(identity, chunk) for chunk in chunks]
    # A batch is cached as a whole: what a picture is drawn with may change its last bits, so a run that was interrupted
    # goes on with the batches that it would have drawn.
    had = drawn or {}
    found = [
        [had[job] for job in chunk] if all(job in had for job in chunk) else _cached(key, len(chunk))
        for key, chunk in zip(keys, chunks, strict=True)
    ]
    done, total = sum(len(chunk) for chunk, images in zip(chunks, found, strict=True) if images), len(jobs)
    if progress:
        progress(done, total, what)
    for i, (key, chunk) in enumerate(zip(keys, chunks, strict=True)):
        if found[i] is not None:
            continue
        found[i] = images = _drawn(model, chunk, sampling)
        _store(key, images)
        done += len(chunk)
        if progress:
            progress(done, total, what)
    return [image for images in found for image in images or ()]


def _drawn(model: Model, jobs: Sequence[tuple[str, int]], sampling: Sampling) -> list[Image.Image]:
    """Pictures of one batch; in halves, down to one at a time, when memory runs out."""
    try:
        return _draw(model, [prompt for prompt, _ in jobs], [seed for _, seed in jobs], sampling)
    except (torch.OutOfMemoryError, MemoryError) as error:
        if len(jobs) == 1:
            raise ResourceError(
                "memory does not suffice for a single picture; free some, or use a smaller base."
            ) from error
    middle = len(jobs) // 2
    return _drawn(model, jobs[:middle], sampling) + _drawn(model, jobs[middle:], sampling)


def _draw(model: Model, prompts: list[str], seeds: list[int], sampling: Sampling) -> list[Image.Image]:
    for prompt in prompts:
        model.token_ids(prompt)  # refuses what the pipeline would cut in silence
    guidance = sampling.guidance if sampling.guidance is not None else (4.0 if model.is_embedded else 7.5)
    with text_to_image(model) as pipe, torch.inference_mode():
        side = unwrapped(pipe.unet).config.sample_size * pipe.vae_scale_factor
        return pipe(
            prompts,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=sampling.steps,
            guidance_scale=guidance,
            height=side,
            width=side,
        ).images


@contextmanager
def text_to_image(model: Model) -> Iterator[Any]:
    """The model's pipeline as one that takes a text; its tokenizer pads to what the text encoder holds meanwhile."""
    from diffusers import StableDiffusionPipeline

    pipe: Any = model.pipe
    if not isinstance(pipe, StableDiffusionPipeline):  # one of the same parts that asks for a picture as well
        parts = {name: pipe.components.get(name) for name in _PARTS}
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=parts["safety_checker"] is not None)
        pipe.set_progress_bar_config(disable=True)
    allowed = pipe.tokenizer.model_max_length
    try:
        pipe.tokenizer.model_max_length = model.length  # some say nothing, which means without end
        yield pipe
    finally:
        pipe.tokenizer.model_max_length = allowed


_PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")


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
        "threads": torch.get_num_threads(),  # sums in another order: the last bits may differ
    }


def _key(identity: dict[str, Any] | None, jobs: Sequence[tuple[str, int]]) -> str | None:
    return hashlib.sha256(json.dumps([identity, jobs]).encode()).hexdigest() if identity else None


def _path(key: str, i: int) -> Path:
    return cache_folder() / "pictures" / key[:2] / key / f"{i:03d}.png"


def _cached(key: str | None, n: int) -> list[Image.Image] | None:
    if key is None or not _path(key, n - 1).is_file():
        return None
    images = []
    for i in range(n):
        try:
            with Image.open(_path(key, i)) as image:
                images.append(image.convert("RGB"))
        except OSError:
            return None  # missing or damaged: draw the batch again
    return images


def _store(key: str | None, images: Sequence[Image.Image]) -> None:
    if key is None:
        return
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        try:
            atomic_write(_path(key, i), buffer.getvalue())
        except OutputError:
            return  # a cache that cannot be written costs time, nothing else
