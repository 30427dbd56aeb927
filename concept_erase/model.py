"""A pipeline, live or on disk, seen as named linear layers and streams of text embeddings."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from concept_erase import causal, embedded, memory
from concept_erase.checkpoint import FILES, Checkpoint, base_name, what_it_is
from concept_erase.errors import InputError, MissingModelError, NumericalError
from concept_erase.families import FAMILIES, Family, Site, beside_text, check_layout, family_of
from concept_erase.hub import fetch, load_pipeline, load_text_encoder
from concept_erase.identity import Identity, identity
from concept_erase.layers import (
    OFFLOADED,
    Kept,
    canonical_to_live,
    linear,
    matching,
    on_disk,
    refuse_loras,
    tensor,
    too_coarse,
    unwrapped,
    walk,
)
from concept_erase.text import check_tokenizer, open_tokenizer, plain_copy

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

Source = Any  # str | Path | DiffusionPipeline | Model | None: the last two would have to be imported


T = TypeVar("T")
_STATES = 256 * 2**20  # bytes of remembered calls of the text encoder; on SD 1 one with 40 prompts takes 2 MB
_MADE = 256 * 2**20  # bytes of what else is remembered; second moments on SD 1 take 5 MB, and 5 more once factored
_PROMPTS = 32 * 2**20  # bytes of remembered tokenizations; a list of concepts asks for the same ones again and again
_UNLIMITED = 1_000_000  # a tokenizer without a limit says 10^30


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
        self,
        family: Family,
        name: str,
        *,
        folder: Path | None,
        pipe: Any,
        revision: str | None = None,
        fetched: bool = False,
    ) -> None:
        """
        Args:
            fetched: The folder is a snapshot of the hub that may lack what only drawing takes.
        """
        self.family = family
        self.name = name
        self.revision = revision
        self.folder = folder
        self._pipe = pipe
        self._fetched = fetched
        self._weights: dict[str, Tensor] = {}
        self._paths: dict[Site, list[str]] = {}
        self._memory, self._states = Memory(_MADE), Memory(_STATES)
        self._ids = Memory(_PROMPTS)
        self._stored_states: Mapping[tuple[int, ...], Tensor] = {}

    # -- layers ------------------------------------------------------------------------------------------------

    def layers(self, site: Site) -> list[str]:
        """Paths such as "unet.down_blocks.0...attn2.to_k" of every layer of a site, sorted.

        Raises:
            InputError: the model has none.
        """
        if site not in self._paths:
            if self._stored(site.component):
                names = self._disk.unet_streams()
                found = sorted({f"{site.component}.{name}" for name in names if re.search(site.pattern, name)})
            else:
                found = matching(site.component, self.component(site.component), site.pattern)
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
        names = [path.partition(".")[2] for path in paths]
        if self._stored(component):
            raw = self._disk.weights(component).read([f"{name}.weight" for name in names])
        else:
            module = self.component(component)
            live = [linear(module, canonical_to_live(module, name)) for name in names]
            raw = (Kept(path, layer).read() for path, layer in zip(paths, live, strict=True))
        streams = {path for site in self.family.streams for path in self._paths.get(site, ())}
        for path, weight in zip(paths, raw, strict=True):
            if not weight.is_floating_point():
                raise InputError(
                    f"{path} in {self.name} is stored as {weight.dtype}; do this with float weights, before quantising."
                )
            if path in streams:
                check_layout(self.name, {"cross_attention_dim": weight.shape[1]}, self._text_config)
            weight = weight.to("cpu", torch.float32)
            if not weight.isfinite().all():
                raise NumericalError(f"the weights of {path} in {self.name} hold NaN or Inf; use an intact checkpoint.")
            self._weights[path] = weight

    def _stored(self, component: str) -> bool:
        """Whether a component is read from its files, without building it."""
        return self._pipe is None and component == "unet"

    @cached_property
    def _disk(self) -> Checkpoint:
        assert self.folder is not None, "a live pipeline has no files"
        return Checkpoint(self.folder)

    def component(self, name: str) -> Any:
        """A part of a live pipeline beneath whatever wraps it; of a folder the text encoder alone.

        Raises:
            InputError: the pipeline has none, or its weights are offloaded to disk.
        """
        if self._pipe is None:
            assert name == "text_encoder", "nothing else of a folder is built"
            return self.text_encoder
        part = getattr(self._pipe, name, None)
        if part is None:
            raise InputError(f"{self.name} has no {name} (None); pass a pipeline that has all its parts.")
        if isinstance(part, torch.nn.Module) and on_disk(part):
            raise InputError(f"{OFFLOADED}; erase before offloading.")
        return unwrapped(part)

    def require_plain(self) -> None:
        """Refuse a live pipeline that does not compute what its own weights say.

        Raises:
            InputError: a LoRA is switched on or was fused into the weights, or an erasure is loaded.
        """
        if self._pipe is None:
            return
        from concept_erase.attach import erasures

        refuse_loras(self.name, self._pipe)
        loaded = ", ".join(map(repr, erasures(self._pipe)))
        if loaded:
            raise InputError(
                f"erasures are loaded into {self.name} ({loaded}): a further one would be made for what they left. "
                "Call unload_erasure(pipe) first; erasures add up when all are loaded afterwards."
            )

    # -- text --------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """
        Raises:
            InputError: it is of another kind than the text encoder's.
        """
        tokenizer = self.component("tokenizer") if self._pipe is not None else open_tokenizer(self._disk)
        check_tokenizer(self.name, tokenizer)
        return tokenizer

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text encoder itself, beneath whatever wraps it in a live pipeline."""
        return self.component("text_encoder") if self._pipe is not None else load_text_encoder(self._disk)

    @cached_property
    def _encoder(self) -> CLIPTextModel:
        """The text encoder as it can compute: a copy in float32 where it is kept in float8."""
        return plain_copy(self.text_encoder) if too_coarse(self.text_encoder) else self.text_encoder

    @cached_property
    def text_hash(self) -> str:
        """SHA-256 over tokenizer and text encoder, in half precision: what embeddings depend on."""
        digest = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        for path, module in walk(self.text_encoder):
            for name, _ in module.named_parameters(recurse=False):
                digest.update(f"{path}.{name}".encode())
                digest.update(tensor(module, name).to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encoder_copy(self) -> CLIPTextModel:
        """A text encoder of one's own, on the CPU in float32: without the LoRAs, hooks and wrappers of the pipeline."""
        return copy.deepcopy(self.text_encoder) if self._pipe is None else plain_copy(self.text_encoder)

    def changeable(self) -> Model:
        """The model with an encoder copy in the place of its own, for `encode` alone: what was remembered of the
        embeddings is not that of a changed one."""
        twin = copy.copy(self)
        twin.__dict__.pop("_encoder", None)
        twin.__dict__["text_encoder"] = self.encoder_copy()  # fills the cached property
        return twin

    @cached_property
    def _text_config(self) -> Mapping[str, Any]:
        """Configuration of the text encoder; empty where a pipeline has none."""
        if self._pipe is None:
            return self._disk.text_config
        module = unwrapped(getattr(self._pipe, "text_encoder", None))
        return module.config.to_dict() if hasattr(module, "config") else {}

    @cached_property
    def length(self) -> int:
        """Positions of a prompt, padding included.

        Raises:
            InputError: the tokenizer allows more than the text encoder has.
        """
        allowed, held = self.tokenizer.model_max_length, int(self._text_config.get("max_position_embeddings", 77))
        if held < allowed < _UNLIMITED:
            raise InputError(
                f"the tokenizer of {self.name} allows {allowed} tokens, its text encoder holds {held}: they do not "
                f"belong together. Set the tokenizer's model_max_length to {held}, or fetch the right one."
            )
        return int(min(allowed, held))

    @property
    def vocabulary(self) -> int:
        """How many tokens the text encoder knows."""
        if self._pipe is not None:
            return len(cast("Any", self.text_encoder.get_input_embeddings()).weight)
        return int(self._text_config.get("vocab_size", 49408))

    def token_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt from BOS to EOS, as the pipeline makes them, without padding.

        Raises:
            InputError: it is longer than the text encoder's limit, or holds a token that it does not know; nothing is
                ever cut in silence.
        """
        ids = self.tokenize(prompt)
        if len(ids) > self.length:
            raise InputError(
                f"{prompt!r} takes {len(ids)} tokens, the text encoder of {self.name} holds {self.length}; shorten it."
            )
        if max(ids) >= self.vocabulary:
            unknown = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"the tokenizer of {self.name} makes token {max(ids)} ({unknown!r}) of {prompt!r}, its text encoder "
                f"knows {self.vocabulary}: add the token's embedding to it, or fetch the right tokenizer."
            )
        return list(ids)

    def tokenize(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt, however long."""
        # A textual inversion that is loaded meanwhile makes the tokenizer longer.
        key = (prompt, len(self.tokenizer))
        return self._ids.recall(key, lambda: tuple(self.tokenizer(self._converted(prompt)).input_ids))

    def _converted(self, prompt: str) -> str:
        """The prompt with all tokens of a textual inversion of several vectors, as pipelines write it."""
        added = self.tokenizer.added_tokens_encoder
        if not any(f"{token}_1" in added for token in added):
            return prompt
        from diffusers.loaders import TextualInversionLoaderMixin

        pipe: Any = self._pipe if hasattr(self._pipe, "maybe_convert_prompt") else TextualInversionLoaderMixin()
        return pipe.maybe_convert_prompt(prompt, self.tokenizer)

    @torch.no_grad()
    def encode(
        self,
        rows: Sequence[Sequence[int]],
        upto: Sequence[int],
        fronts: Sequence[tuple[int, ...]] = (),
        batch: int = 32,
    ) -> list[Tensor]:
        """Last hidden states of token rows, each up to the last position that is needed.

        The encoder is causal, so nothing behind that position is computed, and what rows have in common at their front
        is computed once. An encoder that was changed (hooks, other types, another device) is called as it is, with
        rows batched by length.

        Args:
            rows: Token ids, unpadded.
            upto: For each row, how many positions are wanted; those behind its end are padding.
            fronts: Beginnings of the rows that later calls share with this one; they are computed once for all.
        Returns:
            For each row a float32 (upto, d) tensor on the CPU.
        """
        self.require_plain()
        pad = self.tokenizer.pad_token_id
        padded = [[*row[:n], *[pad] * (n - len(row))] for row, n in zip(rows, upto, strict=True)]
        if causal.plain(self._encoder):
            known = None
            if fronts:
                key = causal.Fronts, tuple(dict.fromkeys(fronts))
                known = self.remembered(key, lambda: causal.fronts(self._encoder, key[1]))
            return causal.states(self._encoder, padded, known)
        states: list[Tensor] = [torch.empty(0)] * len(padded)
        order = sorted(range(len(padded)), key=lambda i: len(padded[i]))
        device = next(self._encoder.parameters()).device
        if device.type == "meta":
            device = torch.device("cpu")  # offloaded: accelerate moves the input to where it computes
        start = 0
        while start < len(order):
            size = len(padded[order[start]])
            same = [i for i in order[start : start + batch] if len(padded[i]) == size]
            hidden = self._encoder(torch.tensor([padded[i] for i in same], device=device)).last_hidden_state
            for i, h in zip(same, hidden.to("cpu", torch.float32), strict=True):
                states[i] = h
            start += len(same)
        return states

    def states(
        self, rows: tuple[tuple[int, ...], ...], upto: tuple[int, ...], fronts: tuple[tuple[int, ...], ...] = ()
    ) -> list[Tensor]:
        """`encode`, with the last calls remembered: in a list of concepts the same anchors return.

        Whole calls are remembered, never single rows: what a row is batched with may change its last bits.
        """
        stored = [self._stored_states.get(row, ()) for row in rows]
        if all(len(states) >= n for states, n in zip(stored, upto, strict=True)):
            return [cast("Tensor", states)[:n] for states, n in zip(stored, upto, strict=True)]
        return self._states.recall((rows, upto, fronts), lambda: self.encode(rows, upto, fronts))

    @contextmanager
    def serving(self, states: Mapping[tuple[int, ...], Tensor]) -> Iterator[None]:
        """Meanwhile calls of `states` whose rows are all among these are answered from here."""
        before, self._stored_states = self._stored_states, states
        try:
            yield
        finally:
            self._stored_states = before

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key; what was not asked for longest is forgotten when it grows too large."""
        return self._memory.recall(key, make)

    @cached_property
    def gram(self) -> Tensor:
        """`sum W^T W` over all layers that read the text stream: (d, d) float64.

        `x^T gram x` is the squared size of a change x of an embedding, as the denoiser sees it.
        """
        self.require_plain()
        weights = [self.weight(path) for path in self.stream_layers()]
        digest = hashlib.sha256()
        for weight in weights:
            digest.update(repr(tuple(weight.shape)).encode())
            digest.update(weight.contiguous().numpy().tobytes())

        def summed() -> dict[str, Tensor]:
            # A metric needs no more than single precision per layer; in double this product would outlast the solve.
            with one_thread():  # whoever computes it gets the same bits
                return {"gram": torch.stack([w.T @ w for w in weights]).double().sum(0)}

        return memory.kept({"what": "gram", "weights": digest.hexdigest()}, summed)["gram"]

    # -- the whole ---------------------------------------------------------------------------------------------

    @cached_property
    def pipe(self) -> DiffusionPipeline:
        """The live pipeline; built from the folder on first use."""
        if self._pipe is not None:
            return self._pipe
        if self._fetched:  # what the edit did not need is fetched now, of the same commit
            return load_pipeline(Checkpoint(fetch(self.name, self.revision, drawing=True)))
        return load_pipeline(self._disk)

    @property
    def undrawable(self) -> str | None:
        """Why no picture can be drawn from a text alone, with the remedy; None where nothing speaks against it."""
        if self._pipe is not None:
            for name in ("tokenizer", "text_encoder", "unet", "vae", "scheduler"):
                if getattr(self._pipe, name, None) is None:
                    return f"{self.name} has no {name}; pass a whole pipeline to draw."
            for name in ("text_encoder", "unet", "vae"):
                if coarse := too_coarse(getattr(self._pipe, name)):
                    kept = str(coarse).removeprefix("torch.")
                    return (
                        f"the {name} of {self.name} is kept in {kept}, in which nothing is computed. Concepts can be "
                        "erased from it; to draw, call .to(torch.bfloat16), or enable_layerwise_casting() of diffusers."
                    )
            unet, vae = (unwrapped(getattr(self._pipe, name)).config for name in ("unet", "vae"))
            kind: str | None = type(unwrapped(self._pipe.unet)).__name__
        else:
            unet, vae = self._disk.config("unet"), self._disk.config("vae")
            kind = self._disk.component_class("unet")
        return beside_text(self.name, unet, vae, kind)

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
        """What an adapter records of its base: "name", "revision", "hash", "dtype", "rounding" and "sketch"."""
        return {"name": self.name, "revision": self.revision, **self.identity.record}


def files_digest(folder: Path, components: Sequence[str]) -> str:
    """SHA-256 over the names and bytes of all files of some components, in a folder of a pipeline."""
    digest = hashlib.sha256()
    for file in sorted(file for part in components for file in (folder / part).rglob("*") if file.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(embedded.sha256(file).encode())
    return digest.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whoever computes them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Memory:
    """What was made for the last keys, within a size."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: In bytes.
        """
        self._limit, self._size = limit, 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key; it is called where that was forgotten."""
        if key not in self._held:
            value = make()
            self._held[key] = value, _bytes_of(value)
            self._size += self._held[key][1]
            while self._size > self._limit and len(self._held) > 1:
                self._size -= self._held.popitem(last=False)[1][1]
        self._held.move_to_end(key)
        return self._held[key][0]


def _bytes_of(value: Any) -> int:
    if isinstance(size := getattr(value, "nbytes", None), int):  # a tensor, or what grows when it is used
        return size
    parts = value if isinstance(value, (list, tuple)) else getattr(value, "__dict__", {}).values()
    return sys.getsizeof(value) + sum(map(_bytes_of, parts))


def open_model(source: Source = None) -> Model:
    """See a generator as layers and text streams.

    Args:
        source: None for the embedded generator, a live diffusers pipeline, a folder of one (both of any class whose
            parts have the layers of a family), or a hub name. A hub name is looked up in the local cache first; only
            the files a closed-form edit needs are fetched.
    Raises:
        InputError: the family is not supported, or the source is a file.
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
        return _from_folder(Checkpoint(folder))
    if folder.exists():
        raise InputError(f"{what_it_is(folder)}.")
    no_hub_name = folder.is_absolute() or str(source).count("/") != 1 or str(source).startswith(".")
    if no_hub_name or "\\" in str(source) or folder.suffix.lower() in FILES:
        raise MissingModelError(
            f"{source} is no folder; pass a folder of a diffusers pipeline, or a hub name like a/b."
        )
    found = Checkpoint(fetch(str(source)))
    return _from_folder(found, str(source))


def source_of(base: Mapping[str, str | None]) -> str | None:
    """Where to open the base that an adapter records; None for the embedded one.

    Raises:
        MissingModelError: it was a folder or a live pipeline, of which an adapter keeps the name alone.
    """
    name = base.get("name")
    if name in (None, embedded.NAME):
        return None
    if "/" not in str(name):
        raise MissingModelError(
            f"the adapter was made from a folder or pipeline called {name!r}; pass it as the model (--model)."
        )
    return name


def _from_folder(checkpoint: Checkpoint, hub_name: str | None = None) -> Model:
    family = family_of(checkpoint.pipeline_class, checkpoint.parts)
    check_layout(hub_name or checkpoint.name, checkpoint.config("unet"), checkpoint.text_config)
    revision = checkpoint.folder.name if hub_name else checkpoint.revision
    return Model(
        family,
        hub_name or checkpoint.name,
        folder=checkpoint.folder,
        pipe=None,
        revision=revision,
        fetched=hub_name is not None,
    )


def _family_of(pipe: Any) -> Family:
    """Of a live pipeline: by the name of its class, or of any other by the layers that its parts have.

    Raises:
        InputError: it is of no family.
    """
    names = [c.__name__ for c in type(pipe).__mro__]
    for family in FAMILIES.values():
        if set(names) & set(family.pipelines):
            return family
    for family in FAMILIES.values():
        parts = {name: unwrapped(getattr(pipe, name, None)) for name in {site.component for site in family.sites}}
        if all(
            isinstance(parts[site.component], torch.nn.Module)
            and matching(site.component, parts[site.component], site.pattern)
            for site in family.sites
        ):
            return family
    return family_of(type(pipe).__name__)


def _from_live(pipe: Any) -> Model:
    family = _family_of(pipe)
    origin = str(getattr(pipe, "name_or_path", "") or "pipeline")
    name, revision = base_name(origin)
    folder = Path(origin)
    if folder.is_dir() and folder.resolve() == (embedded.folder() / "base").resolve():
        name = embedded.NAME
    model = Model(family, name, folder=None, pipe=pipe, revision=revision)
    unet = getattr(unwrapped(getattr(pipe, "unet", None)), "config", {})
    check_layout(name, dict(unet), model._text_config)
    return model
