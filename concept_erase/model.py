"""A pipeline, live or on disk, seen as named linear layers and streams of text embeddings."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from concept_erase import embedded
from concept_erase.errors import InputError, MissingModelError, NumericalError
from concept_erase.families import Family, Site, family_of
from concept_erase.hub import fetch, load_pipeline, quiet
from concept_erase.identity import Identity, identity
from concept_erase.layers import canonical_to_live, linear, live_to_canonical

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

Source = Any  # str | Path | DiffusionPipeline | Model | None: the last two would have to be imported


T = TypeVar("T")
_CALLS = 24  # remembered calls of the text encoder; on SD 1 with 50 prompts each takes 12 MB
_PROMPTS = 50_000  # remembered tokenizations; a list of concepts asks for the same neighbours and ends again and again
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)\b")


class Model:
    """What an erasure method sees of a generator.

    From a folder it reads the tokenizer, the text encoder and the edited projections, nothing else; the pipeline
    itself is built only when pictures are asked for.

    Attributes:
        family: Row of the families table.
        name: Hub name, folder name, or "embedded".
        revision: Commit of a hub model, else None.
    """

    def __init__(
        self, family: Family, name: str, *, folder: Path | None, pipe: Any, revision: str | None = None
    ) -> None:
        self.family = family
        self.name = name
        self.revision = revision
        self.folder = folder
        self._pipe = pipe
        self._weights: dict[str, Tensor] = {}
        self._paths: dict[Site, list[str]] = {}
        self._memory: OrderedDict[Hashable, Any] = OrderedDict()
        self._ids: OrderedDict[Hashable, Any] = OrderedDict()
        self._states: OrderedDict[Hashable, list[Tensor]] = OrderedDict()

    # -- layers ------------------------------------------------------------------------------------------------

    def layers(self, site: Site) -> list[str]:
        """Paths such as "unet.down_blocks.0...attn2.to_k" of every layer of a site, sorted.

        Raises:
            InputError: the model has none.
        """
        if site not in self._paths:
            pattern = re.compile(site.pattern)
            names = (
                self._live_linears(site.component) if self._pipe is not None else self._stored_linears(site.component)
            )
            found = sorted({f"{site.component}.{name}" for name in names if pattern.search(name)})
            if not found:
                raise InputError(
                    f"no editable layers match {site.pattern!r} in {site.component} of {self.name}; "
                    f"is it a {self.family.name} model?"
                )
            self._paths[site] = found
        return self._paths[site]

    def stream_layers(self) -> list[str]:
        """Paths of all layers that read the text stream."""
        return [path for site in self.family.streams for path in self.layers(site)]

    def weight(self, path: str) -> Tensor:
        """The (d_out, d_in) weight of a layer, float32 on the CPU.

        Raises:
            NumericalError: it holds NaN or Inf.
        """
        if path not in self._weights:
            component = path.partition(".")[0]
            wanted = [p for site in self.family.sites if site.component == component for p in self._paths.get(site, [])]
            self._load(component, wanted or [path])
        return self._weights[path]

    def _load(self, component: str, paths: Sequence[str]) -> None:
        if self._pipe is not None:
            module = getattr(self._pipe, component)
            raw = {p: linear(module, canonical_to_live(module, p.partition(".")[2])).weight.detach() for p in paths}
        else:
            raw = dict(self._stored_weights(component, paths))
        for path, tensor in raw.items():
            tensor = tensor.to("cpu", torch.float32)
            if not tensor.isfinite().all():
                raise NumericalError(f"the weights of {path} in {self.name} hold NaN or Inf; use an intact checkpoint.")
            self._weights[path] = tensor

    def _live_linears(self, component: str) -> Iterator[str]:
        for name, module in getattr(self._pipe, component).named_modules():
            if getattr(module, "weight", None) is not None and module.weight.ndim == 2:
                yield live_to_canonical(component, name.removesuffix(".base_layer"))

    def _part(self, component: str) -> Path:
        assert self.folder is not None, "a live pipeline has no folder"
        if not (self.folder / component).is_dir():
            raise MissingModelError(f"{self.folder} has no {component}; pass the whole folder of a diffusers pipeline.")
        return self.folder / component

    @cached_property
    def _unet_files(self) -> dict[str, Path]:
        return self._index("unet")

    def _index(self, component: str) -> dict[str, Path]:
        """Tensor name -> file, over one component's safetensors files; full precision before variants."""
        place = self._part(component)

        def plainest(pattern: str) -> list[Path]:
            return sorted(place.glob(pattern), key=lambda p: (_VARIANT.search(p.name) is not None, p.name))

        files = plainest("*.safetensors")
        indices = plainest("*.safetensors.index*.json")
        if indices and (not files or _VARIANT.search(indices[0].name) is None or _VARIANT.search(files[0].name)):
            weight_map = json.loads(indices[0].read_text())["weight_map"]
            return {key: place / name for key, name in weight_map.items()}
        if not files:
            raise MissingModelError(f"{place} holds no safetensors file; pickled weights are not read, convert them.")
        try:
            with safe_open(files[0], framework="pt") as file:
                return dict.fromkeys(file.keys(), files[0])
        except SafetensorError as error:
            raise InputError(f"{files[0]} is not a valid safetensors file ({error}); fetch it again.") from error

    def _stored_linears(self, component: str) -> Iterator[str]:
        files = self._unet_files if component == "unet" else self._index(component)
        for key in files:
            if key.endswith(".weight"):
                yield live_to_canonical(component, key.removesuffix(".weight"))

    def _stored_weights(self, component: str, paths: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        files = self._unet_files if component == "unet" else self._index(component)
        keys = {live_to_canonical(component, k.removesuffix(".weight")): k for k in files if k.endswith(".weight")}
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for path in paths:
                key = keys[path.partition(".")[2]]
                file = files[key]
                if file not in opened:
                    try:
                        opened[file] = stack.enter_context(safe_open(file, framework="pt"))
                    except SafetensorError as error:
                        raise InputError(
                            f"{file} is not a valid safetensors file ({error}); fetch it again."
                        ) from error
                yield path, opened[file].get_tensor(key)

    # -- text --------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        if self._pipe is not None:
            return self._pipe.tokenizer
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(self._part("tokenizer"))
        # What is too long is refused by `token_ids`, in a sentence of ours.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        return tokenizer

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        if self._pipe is not None:
            return self._pipe.text_encoder
        from transformers import CLIPTextModel

        part = self._part("text_encoder")
        variant = _VARIANT.search(next(iter(self._index("text_encoder").values())).name)
        with quiet():
            encoder = CLIPTextModel.from_pretrained(
                part, dtype=torch.float32, use_safetensors=True, variant=variant and variant[1]
            )
        return encoder.eval().requires_grad_(False)

    @property
    def length(self) -> int:
        """Positions of the text encoder, padding included."""
        return int(self.tokenizer.model_max_length)

    def token_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt from BOS to EOS, without padding.

        Raises:
            InputError: it is longer than the text encoder's limit; nothing is ever cut in silence.
        """
        ids = _recall(self._ids, prompt, lambda: tuple(self.tokenizer(prompt, truncation=False).input_ids), _PROMPTS)
        if len(ids) > self.length:
            raise InputError(
                f"{prompt!r} takes {len(ids)} tokens, the text encoder of {self.name} holds {self.length}; shorten it."
            )
        return list(ids)

    @torch.no_grad()
    def encode(self, rows: Sequence[Sequence[int]], upto: Sequence[int], batch: int = 32) -> list[Tensor]:
        """Last hidden states of token rows, each up to the last position that is needed.

        The encoder is causal, so nothing behind that position is computed; rows are batched by length.

        Args:
            rows: Token ids, unpadded.
            upto: For each row, how many positions are wanted; those behind its end are padding.
        Returns:
            For each row a float32 (upto, d) tensor on the CPU.
        """
        pad = self.tokenizer.pad_token_id
        padded = [[*row[:n], *[pad] * (n - len(row))] for row, n in zip(rows, upto, strict=True)]
        states: list[Tensor] = [torch.empty(0)] * len(padded)
        order = sorted(range(len(padded)), key=lambda i: len(padded[i]))
        device = next(self.text_encoder.parameters()).device
        start = 0
        while start < len(order):
            size = len(padded[order[start]])
            same = [i for i in order[start : start + batch] if len(padded[i]) == size]
            hidden = self.text_encoder(torch.tensor([padded[i] for i in same], device=device)).last_hidden_state
            for i, h in zip(same, hidden.to("cpu", torch.float32), strict=True):
                states[i] = h
            start += len(same)
        return states

    def states(self, rows: tuple[tuple[int, ...], ...], upto: tuple[int, ...]) -> list[Tensor]:
        """`encode`, with the last calls remembered: in a list of concepts the same anchors return.

        Whole calls are remembered, never single rows: what a row is batched with may change its last bits.
        """
        return _recall(self._states, (rows, upto), lambda: self.encode(rows, upto), _CALLS)

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key, for the last thousand keys."""
        return _recall(self._memory, key, make, 1000)

    @cached_property
    def gram(self) -> Tensor:
        """`sum W^T W` over all layers that read the text stream: (d, d) float64.

        `x^T gram x` is the squared size of a change x of an embedding, as the denoiser sees it.
        """
        weights = [self.weight(path) for path in self.stream_layers()]
        # A metric needs no more than single precision per layer; in double this product would outlast the solve.
        return torch.stack([w.T @ w for w in weights]).double().sum(0)

    # -- the whole ---------------------------------------------------------------------------------------------

    @cached_property
    def pipe(self) -> DiffusionPipeline:
        """The live pipeline; built from the folder on first use."""
        if self._pipe is not None:
            return self._pipe
        if self.revision:  # from the hub: what the edit did not need is fetched now, of the same commit
            return load_pipeline(self.name, self.revision)
        return load_pipeline(str(self.folder))

    @property
    def is_embedded(self) -> bool:
        """Whether this is the generator that ships with the project, whose vocabulary and judge are known."""
        return self.name == embedded.NAME

    @cached_property
    def identity(self) -> Identity:
        """What this base is known by: the layers that read the text stream, hashed and sketched."""
        return identity({path: self.weight(path) for path in self.stream_layers()})

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the layers that read the text stream, in half precision.

        Equal in float32 and float16 and for every layout of files. Rounding to bfloat16 or float8 changes it; the
        sketch in `base` does not mind.
        """
        return self.identity.hash

    @property
    def base(self) -> dict[str, Any]:
        """What an adapter records of its base: "name", "revision", "hash", "dtype" and "sketch"."""
        return {"name": self.name, "revision": self.revision, **self.identity.record}


def files_digest(folder: Path, components: Sequence[str]) -> str:
    """SHA-256 over the names and bytes of all files of some components, in a folder of a pipeline."""
    digest = hashlib.sha256()
    for file in sorted(file for part in components for file in (folder / part).rglob("*") if file.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(embedded.sha256(file).encode())
    return digest.hexdigest()


def _recall(memory: OrderedDict[Hashable, T], key: Hashable, make: Callable[[], T], limit: int) -> T:
    if key not in memory:
        memory[key] = make()
        if len(memory) > limit:
            memory.popitem(last=False)
    memory.move_to_end(key)
    return memory[key]


def open_model(source: Source = None) -> Model:
    """See a generator as layers and text streams.

    Args:
        source: None for the embedded generator, a live diffusers pipeline, a folder, or a hub name. A hub name is
            looked up in the local cache first; only the files a closed-form edit needs are fetched.
    Raises:
        InputError: the family is not supported.
        MissingModelError: the folder is incomplete, or the hub name is neither cached nor reachable.
    """
    if isinstance(source, Model):
        return source
    if source is None or source == embedded.NAME:
        return Model(family_of("StableDiffusionPipeline"), embedded.NAME, folder=embedded.base(), pipe=None)
    if hasattr(source, "components"):
        return _from_live(source)
    folder = Path(str(source)).expanduser()
    if folder.is_dir():
        return Model(family_of(_pipeline_class(folder)), folder.resolve().name, folder=folder, pipe=None)
    if folder.is_absolute() or str(source).count("/") != 1 or str(source).startswith("."):
        raise MissingModelError(
            f"{source} is no folder; pass a folder of a diffusers pipeline, or a hub name like a/b."
        )
    folder, revision = fetch(str(source))
    return Model(family_of(_pipeline_class(folder)), str(source), folder=folder, pipe=None, revision=revision)


def _from_live(pipe: Any) -> Model:
    for ancestor in type(pipe).__mro__:
        try:
            family = family_of(ancestor.__name__)
        except InputError:
            continue
        origin = str(getattr(pipe, "name_or_path", "") or getattr(pipe.config, "_name_or_path", "") or "pipeline")
        folder = Path(origin)
        if folder.is_dir() and folder.resolve() == (embedded.folder() / "base").resolve():
            origin = embedded.NAME
        return Model(family, Path(origin).name if folder.is_dir() else origin, folder=None, pipe=pipe)
    return Model(family_of(type(pipe).__name__), "pipeline", folder=None, pipe=pipe)  # raises with the known names


def _pipeline_class(folder: Path) -> str:
    index = folder / "model_index.json"
    if not index.is_file():
        raise MissingModelError(f"{folder} has no model_index.json; pass the folder of a diffusers pipeline.")
    try:
        return str(json.loads(index.read_text()).get("_class_name"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{index} is no JSON of a pipeline ({error}); fetch it again.") from error
