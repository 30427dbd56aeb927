"""Where checkpoints come from: the hub's cache, the hub, a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from concept_erase.checkpoint import Checkpoint, complete
from concept_erase.errors import InputError, MissingModelError
from concept_erase.families import FAMILIES
from concept_erase.imports import unswept

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# For a closed-form edit, and what drawing takes beside; weights in any variant.
NEEDED = (
    "model_index.json",
    "tokenizer/*",
    "text_encoder/*.json",
    "text_encoder/model*.safetensors",
    "unet/*.json",
    "unet/diffusion_pytorch_model*.safetensors",
)
DRAWING = (
    "vae/*.json",
    "vae/diffusion_pytorch_model*.safetensors",
    "scheduler/*",
    "feature_extractor/*",
    "safety_checker/*.json",
    "safety_checker/model*.safetensors",
)
_VARIANTS = ["*non_ema*", "*.fp16*.safetensors", "*.bf16*.safetensors"]


# What transformers and diffusers raise, each in its own way, for files that they cannot use.
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError)


def fetch(name: str, revision: str | None = None, *, drawing: bool = False) -> Path:
    """The cached snapshot of a hub model, completed with what is needed; the cache comes first.

    Args:
        drawing: With all that pictures take, not only what a closed-form edit reads.
    Raises:
        MissingModelError: it is neither cached nor can it be reached, or it lacks something.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = [*NEEDED, *(DRAWING if drawing else ())]
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if not _lacking(cached, wanted):
            return cached
    except (LocalEntryNotFoundError, OSError):
        pass
    try:
        # Plain files first; variants only where there is nothing else.
        for ignored in (_VARIANTS, []):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=ignored))
            missing = _lacking(folder, wanted)
            if not missing:
                return folder
    except RepositoryNotFoundError as error:
        raise MissingModelError(f"the hub knows no model {name!r}; check the name, or pass a folder.") from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:  # HTTPError: refused, no such host, proxy, time-out
        raise MissingModelError(
            f"{name!r} is neither in the local cache nor can the hub be reached; needed are {', '.join(wanted)}. "
            "Pass a folder that holds them."
        ) from error
    raise MissingModelError(f"{name!r} lacks {', '.join(missing)}; is it a Stable Diffusion 1 model in diffusers form?")


def _lacking(folder: Path, wanted: Sequence[str]) -> list[str]:
    """What a snapshot lacks, in words; parts that the pipeline was saved without are not missed."""
    missing = [pattern for pattern in wanted if not any(folder.glob(pattern))]
    if "model_index.json" in missing:
        return missing
    checkpoint = Checkpoint(folder)
    optional = ("feature_extractor", "safety_checker")
    left_out = tuple(f"{part}/" for part in optional if checkpoint.component_class(part) is None)
    missing = [pattern for pattern in missing if not pattern.startswith(left_out)]
    for component in {p.partition("/")[0] for p in wanted if p.endswith(".safetensors")} if not missing else ():
        try:
            if f"{component}/" not in left_out:
                checkpoint.weights(component)
        except MissingModelError as error:
            missing.append(str(error).partition(";")[0])
    return missing


def load_text_encoder(checkpoint: Checkpoint) -> Any:
    """The text encoder in float32, frozen; every weight of it comes from the files.

    Raises:
        InputError: its files do not hold what they must.
    """
    with unswept():
        from transformers import CLIPTextModel

    if not (checkpoint.part("text_encoder") / "config.json").is_file():
        raise MissingModelError(f"the text_encoder of {checkpoint.name} has no config.json; fetch it again.")
    return _loaded(checkpoint, "text_encoder", CLIPTextModel, dtype=torch.float32).eval().requires_grad_(False)


def load_pipeline(checkpoint: Checkpoint) -> DiffusionPipeline:
    """A full pipeline in float32, quietly; only safetensors are read and no remote code is run.

    Each component is loaded in the variant that is there, and compared with its files. What no family lists (ControlNet
    and its kin, classes of one's own) becomes the plain pipeline of the same parts, and what it has beside them is not
    read.
    """
    import diffusers
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    checkpoint.part("scheduler")
    listed = any(checkpoint.pipeline_class in family.pipelines for family in FAMILIES.values())
    kind: Any = DiffusionPipeline if listed else StableDiffusionPipeline
    parts: dict[str, Any] = {"text_encoder": load_text_encoder(checkpoint).requires_grad_(True)}
    for component in ("unet", "vae"):
        checkpoint.part(component)
        module = getattr(diffusers, checkpoint.component_class(component) or "", None)
        if module is None:
            raise InputError(
                f"the {component} of {checkpoint.name} is a {checkpoint.component_class(component)}, which diffusers "
                f"{diffusers.__version__} does not know; pass a pipeline with a UNet2DConditionModel and a VAE."
            )
        parts[component] = _loaded(checkpoint, component, module, torch_dtype=torch.float32)
    variant = None
    if checkpoint.component_class("safety_checker"):
        variant = checkpoint.weights("safety_checker").variant
    try:
        with quiet():
            pipe = kind.from_pretrained(checkpoint.folder, use_safetensors=True, variant=variant, **parts).to(
                torch.float32
            )
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{checkpoint.folder} cannot be opened as a pipeline ({reason}); fetch or save it again."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if torch.get_default_device().type == "cpu":
        pipe.unet.to(memory_format=torch.channels_last)  # 0.31 to 0.23 s a picture at batch 32 on 4 cores
    return pipe


def _loaded(checkpoint: Checkpoint, component: str, kind: Any, **options: Any) -> Any:
    place = checkpoint.part(component)
    weights = checkpoint.weights(component)
    weights.check()
    try:
        with quiet():
            module, info = kind.from_pretrained(
                place, use_safetensors=True, variant=weights.variant, output_loading_info=True, **options
            )
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the {component} in {place} cannot be read as a {kind.__name__} ({reason}); its weights and its "
            "config.json do not fit each other: fetch or save it again."
        ) from error
    complete(component, info, place)
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and remarks of transformers and diffusers, as far as imported, while a model loads."""
    names = (name for name in ("diffusers", "transformers") if name in sys.modules)  # the import of one takes long
    libraries: list[Any] = [import_module(f"{name}.utils.logging") for name in names]
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
