"""A pipeline on disk: what its index says, which files hold a component's weights, and what a path is that is none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from concept_erase.errors import InputError, MissingModelError
from concept_erase.families import unet_streams

_WEIGHTS = re.compile(r"(?P<stem>model|diffusion_pytorch_model)(\.(?P<variant>[^.]+))?\.safetensors")
_INDEX = re.compile(r"(?P<stem>model|diffusion_pytorch_model)\.safetensors\.index(\.(?P<variant>[^.]+))?\.json")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # endings of weights
_STREAM = re.compile(r"(down_blocks|mid_block|up_blocks)\..*\.attn2\.to_[kv]")
_VARIANTS = (None, "fp16", "bf16", "ema")  # in this order, then any other
_SNAPSHOT = re.compile(r"(?:^|[/\\])models--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<revision>[0-9a-f]{40})[/\\]?$")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_CONVERT = (
    "convert it with diffusers: StableDiffusionPipeline.from_single_file('{name}').save_pretrained('{stem}'), "
    "and pass that folder"
)


@dataclass(frozen=True)
class Weights:
    """The safetensors files of one component.

    Attributes:
        files: Name of a tensor -> the file that holds it.
        variant: "fp16" and the like, as `from_pretrained` wants it; None for the plain files.
    """

    files: dict[str, Path]
    variant: str | None

    def shape(self, name: str) -> tuple[int, ...]:
        with _opened(self.files[name]) as file:
            return tuple(_held(file, self.files[name], name, lambda: file.get_slice(name).get_shape()))

    def read(self, names: Sequence[str]) -> Iterator[Tensor]:
        """Tensors by name, each file opened once.

        Raises:
            InputError: a file is damaged, or lacks what the index promises.
        """
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name in names:
                path = self.files[name]
                if path not in opened:
                    opened[path] = stack.enter_context(_opened(path))
                yield _held(opened[path], path, name, lambda p=path, n=name: opened[p].get_tensor(n))

    def check(self) -> None:
        """Every file is whole and holds what it should.

        Raises:
            InputError: one is damaged, or lacks what the index promises.
        """
        for path in sorted(set(self.files.values())):
            with _opened(path) as file:
                held = set(file.keys())
            for name in (n for n, p in self.files.items() if p == path and n not in held):
                raise _lacking(path, name)


class Checkpoint:
    """A folder in diffusers form.

    Attributes:
        name: What the base is called: the last part of the folder's path, or the hub's name of a cached model.
        revision: Commit of a cached hub model, else None.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            MissingModelError: it has no `model_index.json`.
            InputError: that is no JSON of a pipeline.
        """
        self.folder = folder
        # The name that the user knows, which resolve() would take for that behind a link.
        self.name, self.revision = base_name(os.path.abspath(folder))  # noqa: PTH100
        path = folder / "model_index.json"
        if not path.is_file():
            raise MissingModelError(f"{folder} has no model_index.json: {_folder_without_index(folder)}.")
        self.index = _json(path)
        self._weights: dict[str, Weights] = {}

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline's class; of a custom one the index names its file as well."""
        named = self.index.get("_class_name")
        return str(named[-1] if isinstance(named, list) and named else named)

    def component_class(self, component: str) -> str | None:
        """Name of a component's class, None where the index does not say."""
        entry = self.index.get(component)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    @property
    def parts(self) -> set[str]:
        """Names of the components that a pipeline like this one has, also of those that were not copied."""
        return {name for name in self.index if self.component_class(name) is not None}

    def part(self, component: str) -> Path:
        """The folder of a component.

        Raises:
            MissingModelError: the pipeline was saved without it, or it was not copied.
        """
        if component in self.index and self.component_class(component) is None:
            raise MissingModelError(
                f"{self.name} was saved without a {component} (null in model_index.json); pass a whole pipeline."
            )
        if not (self.folder / component).is_dir():
            raise MissingModelError(f"{self.folder} has no {component}; pass the whole folder of a diffusers pipeline.")
        return self.folder / component

    def config(self, component: str) -> dict[str, Any]:
        """A component's `config.json`; empty where it has none."""
        path = self.folder / component / "config.json"
        return _json(path) if path.is_file() else {}

    @property
    def text_config(self) -> dict[str, Any]:
        """The text encoder's configuration, also where it is a part of that of a whole CLIP."""
        config = self.config("text_encoder")
        return config.get("text_config") or config

    @property
    def tokenizer_class(self) -> str | None:
        """Name of the tokenizer's class, None where nothing says."""
        path = self.folder / "tokenizer" / "tokenizer_config.json"
        named = _json(path).get("tokenizer_class") if path.is_file() else None
        return named or self.component_class("tokenizer")

    def weights(self, component: str) -> Weights:
        """The weights of a component as `from_pretrained` would choose them: plain files before variants.

        Raises:
            MissingModelError: there are none, or a file that the index names is not there.
            InputError: a file is damaged.
        """
        if component not in self._weights:
            self._weights[component] = self._found(self.part(component))
        return self._weights[component]

    def unet_streams(self) -> list[str]:
        """Paths of the cross-attention keys and values in the denoiser's files, sorted.

        Raises:
            InputError: one that the configuration asks for is not there, or is under another name.
        """
        held = {key.removesuffix(".weight") for key in self.weights("unet").files if key.endswith(".weight")}
        expected = set(unet_streams(self.config("unet")))
        if not expected:  # without a configuration: keys and values come in pairs
            expected = {f"{name[:-1]}{kind}" for name in held if _STREAM.fullmatch(name) for kind in "kv"}
        for name in sorted(expected - held):
            alike = sorted(other for other in held if name in other)
            raise InputError(
                f"the unet in {self.folder} lacks '{name}.weight'"
                + (f" and holds '{alike[0]}.weight' instead" if alike else "")
                + "; it is incomplete, or was saved under other names or with a LoRA on it: fetch or save it again."
            )
        return sorted(expected)

    def _found(self, place: Path) -> Weights:
        names = sorted(path.name for path in place.iterdir())
        whole = {m["variant"]: m for name in names if (m := _WEIGHTS.fullmatch(name)) and not _SHARD.search(name)}
        split = {m["variant"]: m for name in names if (m := _INDEX.fullmatch(name))}
        variants = sorted(whole | split, key=lambda v: (_VARIANTS.index(v) if v in _VARIANTS else 9, str(v)))
        if not variants:
            others = [name for name in names if name.endswith(".safetensors")]
            if others:
                raise MissingModelError(
                    f"{place} holds {others[0]}, which is not how diffusers names its weights; save the pipeline again "
                    "with save_pretrained."
                )
            raise MissingModelError(f"{place} holds no safetensors file; pickled weights are not read, convert them.")
        variant = variants[0]
        # Where both are there, transformers takes the whole file and diffusers the shards.
        if variant in whole and (variant not in split or whole[variant]["stem"] == "model"):
            path = place / whole[variant].string
            with _opened(path) as file:
                return Weights(dict.fromkeys(file.keys(), path), variant)
        index = place / split[variant].string
        try:
            promised = {str(tensor): str(name) for tensor, name in _json(index)["weight_map"].items()}
        except (KeyError, AttributeError) as error:
            raise InputError(f"{index} names no weights ({error!r}); fetch it again.") from error
        for name in sorted(set(promised.values())):
            if name not in names:
                raise MissingModelError(f"{index} names {name!r}, which is not beside it; fetch that file again.")
        return Weights({tensor: place / name for tensor, name in promised.items()}, variant)


def complete(component: str, info: dict[str, Any], folder: Path) -> None:
    """Compare what a model was to be given with what its files held.

    Args:
        info: What `from_pretrained(..., output_loading_info=True)` tells.
    Raises:
        InputError: a weight was not in the files and would be random, or the files hold one that is not read.
    """
    missing = sorted(map(str, info.get("missing_keys", ())))
    extra = sorted(str(key) for key in info.get("unexpected_keys", ()) if not _HARMLESS.search(str(key)))
    lacks = f"lacks {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "") if missing else ""
    holds = f"holds {extra[0]!r}" + (f" and {len(extra) - 1} more" if len(extra) > 1 else "") if extra else ""
    if lacks or holds:
        raise InputError(
            f"the {component} in {folder} {' and '.join(filter(None, (lacks, holds)))}, which is not how diffusers "
            "names its weights: part of the model would be random or unread. Save the pipeline again with "
            "save_pretrained, without a LoRA on it."
        )


# What older transformers saved beside the weights, and the parts of CLIP that stand beside its text encoder.
_HARMLESS = re.compile(r"(^|\.)position_ids$|^(text_projection|visual_projection|vision_model)\.|^logit_scale$")


def base_name(origin: str) -> tuple[str, str | None]:
    """What a base is called, and its commit, from wherever it came; never a path of this machine.

    >>> base_name("C:\\\\models\\\\dreamy"), base_name("/home/me/dreamy/"), base_name("me/dreamy")
    (('dreamy', None), ('dreamy', None), ('me/dreamy', None))
    """
    if cached := _SNAPSHOT.search(origin):
        return cached["name"].replace("--", "/", 1), cached["revision"]
    if _HUB.fullmatch(origin) and not origin.startswith(".") and not Path(origin).exists():
        return origin, None
    parts = [part for part in re.split(r"[/\\]+", origin) if part not in ("", ".", "..")]
    return (parts[-1].rstrip(":") or "base") if parts else "base", None


# -- what is no pipeline ---------------------------------------------------------------------------------------------


def what_it_is(path: Path) -> str:
    """A sentence on a file that was named in the place of a pipeline's folder, with the remedy."""
    ending = path.suffix.lower()
    convert = _CONVERT.format(name=path.name, stem=path.stem)
    if ending == ".safetensors":
        try:
            with _opened(path) as file:
                keys = list(file.keys())
        except InputError as error:
            return str(error).removesuffix(".")
        if _lora(keys):
            return f"{path} is a LoRA file, not a base; pass the base that it was made for"
        if any(key.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")) for key in keys):
            return f"{path} is a single-file checkpoint, which is not read yet; {convert}"
        return f"{path} is a file of weights, not a pipeline; pass the folder with model_index.json"
    if ending in FILES:
        return f"{path} is a pickled checkpoint, which is not read (it can run code); {convert}"
    if path.name == "model_index.json":
        return f"{path} is the index of a pipeline; pass its folder, {path.parent}"
    return f"{path} is a file ({ending or 'without ending'}), not a pipeline; pass a folder with model_index.json"


def _folder_without_index(folder: Path) -> str:
    """What a folder is instead, with the remedy."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        return f"it cannot be read ({error.strerror}); pass the folder of a diffusers pipeline"
    names = {path.name for path in inside}
    snapshots = sorted((folder / "snapshots").glob("*/model_index.json"))
    if snapshots:
        return f"it is a hub model in the cache; pass {base_name(str(snapshots[0].parent))[0]} or {snapshots[0].parent}"
    if (folder.parent / "model_index.json").is_file():
        return f"it is one part of a pipeline; pass {folder.parent}"
    deeper = [path for path in inside if (path / "model_index.json").is_file()]
    if deeper:
        return f"it holds pipelines; pass one of them, such as {deeper[0]}"
    if "adapter_config.json" in names or "pytorch_lora_weights.safetensors" in names:
        return "it holds a LoRA, not a base; pass the folder of the base that it was made for"
    if {"checkpoints", "loras"} & names:
        return "it holds the models of an interface; for one of them, " + _CONVERT.format(name="FILE", stem="FOLDER")
    files = [path for path in inside if path.suffix.lower() in (".safetensors", ".ckpt")]
    if files:
        return what_it_is(files[0])
    return "pass the folder of a diffusers pipeline"


def _lora(keys: Sequence[str]) -> bool:
    return any(re.search(r"(^|[._])lora([._]|$)|\.alpha$", key, re.IGNORECASE) for key in keys)


# -- files -----------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file ({error}); fetch it again.") from error
    except OSError as error:
        raise MissingModelError(f"{path} cannot be read ({error.strerror or error}); fetch it again.") from error


def _held(file: Any, path: Path, name: str, get: Any) -> Any:
    try:
        return get()
    except SafetensorError as error:
        raise _lacking(path, name) from error


def _lacking(path: Path, name: str) -> InputError:
    return InputError(f"{path} lacks {name!r}, which the index promises; fetch it again.")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is no JSON of a pipeline ({error}); fetch it again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no JSON of a pipeline (it holds a {type(found).__name__}); fetch it again.")
    return found
