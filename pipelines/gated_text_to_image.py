"""Stable Diffusion 1.x that forgets concepts only where a prompt speaks of them: all other prompts stay bit for bit.

    pipe = DiffusionPipeline.from_pretrained(
        base, custom_pipeline="pipelines/gated_text_to_image.py", trust_remote_code=True,
        operators=["erased/van-gogh/operator.safetensors", ("erased/bomb", 0.8)],
    )

Needs torch, diffusers and transformers; nothing else of the project this file comes from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

NAME = "operator.safetensors"  # what a folder is taken to mean
_TYPES = {"F32": torch.float32, "F16": torch.float16}


@dataclass(frozen=True, eq=False)
class Operator:
    """A closed-form erasure on the text stream: an embedding x becomes x + strength * up (down x).

    Attributes:
        name: Of the file, or of its folder.
        concepts: What it erases; it acts where one of them is present.
        up, down: (d, r) and (r, d) float32.
        words: Token ids, in one piece, that mean one of the concepts; the tokenizer has taken case and spacing away.
        directions, thresholds: The probes, (p, d) and (p,): where a hidden state x has `x @ direction > threshold`, the
            concept is there.
        lengths: (p,) how many tokens the longest name of each probe's concept has.
        blind: Concepts without a probe, known by their words alone.
        sha256: Of the file's bytes.
    """

    name: str
    concepts: tuple[str, ...]
    up: Tensor
    down: Tensor
    strength: float
    words: frozenset[tuple[int, ...]]
    directions: Tensor
    thresholds: Tensor
    lengths: Tensor
    blind: tuple[str, ...]
    sha256: str

    def in_ids(self, ids: Sequence[int]) -> int | None:
        """Position of the first token of the first name among token ids, None if there is none."""
        sizes = {len(w) for w in self.words}
        return next((i for i in range(len(ids)) if any(tuple(ids[i : i + n]) in self.words for n in sizes)), None)

    def in_states(self, states: Tensor) -> int | None:
        """Position where hidden states (n, d) begin to carry a concept, None if they do not.

        A probe answers at the last word of a name, so the words before it are counted in. Never the first position: BOS
        knows nothing of the prompt.
        """
        scores = states[1:].to(torch.float32) @ self.directions.to(states.device).T  # (n - 1, p)
        where, which = (scores > self.thresholds.to(states.device)).cpu().nonzero(as_tuple=True)
        return max(1, int((where + 2 - self.lengths[which]).min())) if len(where) else None

    def start(self, ids: Sequence[int] | None, states: Tensor) -> int | None:
        """First position of a prompt that it acts on, None if the prompt holds none of its concepts."""
        places = (self.in_ids(ids or ()), self.in_states(states))
        return min((place for place in places if place is not None), default=None)

    def move(self, states: Tensor) -> Tensor:
        """`strength * up (down x)` for hidden states (n, d), float32."""
        states = states.to(torch.float32)
        return self.strength * (states @ self.down.to(states.device).T) @ self.up.to(states.device).T


class GatedStableDiffusionPipeline(StableDiffusionPipeline):
    """Text to image that erases concepts from the prompts that name them, and leaves all others alone.

    A closed form edits `W' = W (I + D)` with one operator D for all layers that read the text, so D on the prompt
    embeddings does the same as the edited weights. Here D acts only on prompts that hold a concept, from its first
    token to the end. The weights, negative prompts, and prompts without a concept stay as they are, bit for bit.

    A concept is found by its token ids, and by a probe on the hidden states, which also sees a concept that comes under
    another name with the same embedding (a textual inversion), or as `prompt_embeds` without text.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        operators: Sequence | str | Path | None = None,
        sha256: Sequence | str | None = None,
    ) -> None:
        """
        Args:
            operators, sha256: As for `load_operators`, which can be called later instead.
        """
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self._operators: tuple[Operator, ...] = ()
        if operators is not None:
            self.load_operators(operators, sha256=sha256)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """What is erased where a prompt speaks of it."""
        return self._operators

    def load_operators(
        self, operators: Sequence | str | Path, *, sha256: Sequence | str | None = None
    ) -> tuple[Operator, ...]:
        """Verify operator files and use them from now on, with those loaded before: all of them, or none.

        Load them before other LoRAs are fused or put on the text encoder.

        Args:
            operators: Files, or folders with `operator.safetensors`, each alone or as (path, strength).
            sha256: The hash that each file must have, in the same order; None, also for single files, asks for none.
        Returns:
            All operators in use.
        Raises:
            ValueError: a file is damaged, unsafe, no operator, for another base or text encoder, loaded already, or
                not the one whose hash was given; a strength is not positive. Nothing was changed.
        """
        listed = [_entry(e) for e in ([operators] if isinstance(operators, (str, Path)) else operators)]
        hashes = [sha256] if isinstance(sha256, str) else list(sha256 or [None] * len(listed))
        if not listed:
            raise ValueError("the list of operators is empty; name at least one file.")
        if len(hashes) != len(listed):
            raise ValueError(f"{len(hashes)} SHA-256 were given for {len(listed)} operators; give one each, or None.")
        base, loaded = self.fingerprint(), list(self._operators)
        for (path, strength), expected in zip(listed, hashes, strict=True):
            tensors, record, digest = read_file(path, expected)
            concepts = check_record(path, record, base, form="operator")
            twin = next((o for o in loaded if o.sha256 == digest), None)
            if twin:
                raise ValueError(f"{path} is the same operator as {twin.name!r}, which is in use; list it once.")
            name = path.parent.name if path.name == NAME else path.stem
            operator = _operator(path, name, tensors, record, concepts, strength, digest)
            self._check_encoder(path, operator)
            loaded.append(operator)
        self._operators = tuple(loaded)
        return self._operators

    def fingerprint(self) -> str:
        """SHA-256 over the keys and values of the cross-attention in half precision: it identifies a base."""
        return fingerprint(self.unet)

    @torch.no_grad()
    def starts(
        self, prompt: str | list[str] | None = None, prompt_embeds: Tensor | None = None
    ) -> list[list[int | None]]:
        """For each prompt and each operator the first position it acts on, None where it does not act.

        Args:
            prompt: Texts; None if there are only embeddings: then the probes alone decide.
            prompt_embeds: (prompts, positions, d) before any operator; encoded from the texts when None.
        """
        if prompt_embeds is None:
            prompt_embeds, _ = super().encode_prompt(prompt, self._execution_device, 1, False)
        rows: list[Sequence[int] | None] = [None] * len(prompt_embeds)
        if prompt is not None:
            texts = self.maybe_convert_prompt([prompt] if isinstance(prompt, str) else list(prompt), self.tokenizer)
            rows = list(self._ids(texts))
        return [
            [o.start(ids, states) for o in self._operators] for ids, states in zip(rows, prompt_embeds, strict=True)
        ]

    @functools.wraps(StableDiffusionPipeline.encode_prompt)
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        self._require_operators()
        if prompt_embeds is not None:
            blind = [concept for operator in self._operators for concept in operator.blind]
            if blind:
                raise ValueError(
                    f"only text tells whether {blind[0]!r} is meant; pass prompt instead of prompt_embeds."
                )
        embeds, negative = super().encode_prompt(
            prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, lora_scale, clip_skip,
        )  # fmt: skip
        text = prompt if prompt_embeds is None else None
        seen = embeds[::num_images_per_prompt]
        if clip_skip is not None and text is not None:
            seen = seen[:, :1]  # of another layer than the probes were fitted on: they see BOS only, words decide
        found = self.starts(text, seen)
        embeds = embeds.clone()  # what the caller passed is never written to
        for row, places in enumerate(found):
            if all(start is None for start in places):
                continue
            mine = slice(row * num_images_per_prompt, (row + 1) * num_images_per_prompt)
            states = embeds[mine].to(torch.float32)
            moved = states.clone()
            for operator, start in zip(self._operators, places, strict=True):
                if start is not None:
                    moved[:, start:] += operator.move(states[:, start:])
            embeds[mine] = moved.to(embeds.dtype)
        return embeds, negative

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._require_operators()
        return super().__call__(*args, **kwargs)

    def _require_operators(self) -> None:
        if not self._operators:
            raise RuntimeError("this pipeline has no operators and will not draw without; call load_operators([...]).")

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids as the text encoder sees them, cut at its limit."""
        return self.tokenizer(texts, truncation=True, max_length=self.tokenizer.model_max_length).input_ids

    @torch.no_grad()
    def _check_encoder(self, path: Path, operator: Operator) -> None:
        """Raises ValueError: tokenizer or text encoder are not those that the gates were made for."""
        length = self.tokenizer.model_max_length
        if operator.up.shape[0] != self.text_encoder.config.hidden_size:
            raise ValueError(
                f"{path} is for embeddings of {operator.up.shape[0]}, these have another size: another base."
            )
        names = list(operator.concepts)
        known = [operator.in_ids(ids) == 1 for ids in self._ids(names)] + [operator.in_ids(self._ids([""])[0]) is None]
        seeing = [n for n in names if n not in operator.blind][:8]  # encoding is dear, and one would do
        texts = [*seeing, ""]
        padded = self.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids
        found = [operator.in_states(s) is not None for s in self.text_encoder(padded.to(self._execution_device))[0]]
        if not all(known) or found != [True] * len(seeing) + [False]:
            raise ValueError(
                f"{path} does not recognise its own concepts here: tokenizer or text encoder are not those it was made "
                "for, or carry a LoRA. Open the base as it was, and load operators first."
            )


def _entry(entry: Any) -> tuple[Path, float]:
    path, strength = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1.0)
    if not isinstance(path, (str, Path)):
        raise ValueError(f"an operator is a path or (path, strength), got {entry!r}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < math.inf:
        raise ValueError(f"the strength of {path} is {strength!r}; it must be a positive number.")
    path = Path(path)
    return path / NAME if path.is_dir() else path, float(strength)


def _operator(
    path: Path,
    name: str,
    tensors: dict[str, Tensor],
    record: str,
    concepts: tuple[str, ...],
    strength: float,
    digest: str,
) -> Operator:
    """Raises ValueError: parts are missing, or do not fit each other."""
    try:
        up, down, directions, thresholds = (
            tensors[key].to(torch.float32) for key in ("up", "down", "directions", "thresholds")
        )
        listed = json.loads(record)["concepts"]
        shapes = ((down.shape[-1], len(down)), (len(listed), len(up)), (len(listed),))
        if shapes != (up.shape, directions.shape, thresholds.shape):
            raise ValueError("shapes do not fit")
        words = [[tuple(int(i) for i in ids) for ids in said["words"]] for said in listed]
        probes = [i for i, said in enumerate(listed) if said["probe"]]
        if not all(w and all(w) for w in words) or not (up.any() and down.any()):
            raise ValueError("it changes nothing")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is an incomplete operator file ({error}); fetch it again.") from error
    return Operator(
        name, concepts, up, down, strength,
        words=frozenset(ids for ours in words for ids in ours),
        directions=directions[probes],
        thresholds=thresholds[probes],
        lengths=torch.tensor([max(map(len, words[i])) for i in probes], dtype=torch.long),
        blind=tuple(c for i, c in enumerate(concepts) if i not in set(probes)),
        sha256=digest,
    )  # fmt: skip


# -- the same in both pipelines of this folder -----------------------------------------------------------------------


def read_file(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str, str]:
    """Tensors, record and SHA-256 of a file that nobody vouches for; stricter than the safetensors library.

    Args:
        sha256: The hash it must have.
    Raises:
        ValueError: another hash, truncated, overlapping or duplicate entries, unsafe names, NaN or Inf, or not
            written by concept_erase.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"{path} is no .safetensors file that exists; pickled weights are never read.")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{path} has the SHA-256 {digest}, {sha256} was asked for; fetch it again.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice in its header")
        return dict(pairs)

    tensors: dict[str, Tensor] = {}
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size], object_pairs_hook=unique)
        record = header.pop("__metadata__", {}).get("concept_erase")
        body, end = data[8 + size :], 0
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            if not re.fullmatch(r"[A-Za-z0-9_.]{1,300}", key) or ".." in key:
                raise ValueError(f"unsafe name {key[:80]!r}")
            if start != end or stop < start or min(entry["shape"], default=0) < 0:
                raise ValueError(f"{key} overlaps, leaves a gap, or has an impossible shape")
            raw = torch.frombuffer(bytearray(body[start:stop] or b"\0\0\0\0"), dtype=_TYPES[entry["dtype"]])
            tensors[key], end = raw.reshape(entry["shape"]), stop
        if end != len(body):
            raise ValueError("bytes are missing, or left over at its end")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or malformed ({error}); do not use it, fetch it again.") from error
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path} holds NaN or Inf in {key}; it would break the model, do not use it.")
    try:
        if not isinstance(json.loads(record)["concepts"], list):
            raise TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} carries no concept_erase header; load it with load_lora_weights.") from error
    return tensors, record, digest


def check_record(path: Path, record: str, base: str, *, form: str | None) -> tuple[str, ...]:
    """What a file erases, after its record was compared with the pipeline.

    Args:
        base: Fingerprint of the pipeline's weights.
        form: "operator" for `operator.safetensors`, None for adapters.
    Raises:
        ValueError: it is of the other form, does not say which base it is for, or it is another one.
    """
    try:
        said = json.loads(record)
        concepts = tuple(str(c["target"]) for c in said["concepts"])
        name, recorded = said["base"]["name"], said["base"]["hash"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not record its concepts and base, so it cannot be verified.") from error
    if said.get("form") != form:
        raise ValueError(f"{path} is {said.get('form') or 'an adapter'}, for the other pipeline of this project.")
    if recorded != base:
        raise ValueError(
            f"{path} was made for {name!r} (hash {str(recorded)[:12]}), the weights of this pipeline have {base[:12]}: "
            "another base, or one that was edited, fused with a LoRA or rounded to bfloat16 before. Open that base, "
            "or erase the concept from this one."
        )
    return concepts


def fingerprint(unet: nn.Module) -> str:
    """SHA-256 over the keys and values of the cross-attention in half precision: it identifies a base.

    Raises:
        RuntimeError: they are not in memory, or quantised.
    """
    digest, layers = hashlib.sha256(), {}
    for name, layer in getattr(unet, "_orig_mod", unet).named_modules():
        name = name.removesuffix(".base_layer")  # underneath LoRA wrappers
        if isinstance(layer, nn.Linear) and re.search(r"attn2\.to_[kv]$", name):
            layers[f"unet.{name}"] = layer
    for path, layer in sorted(layers.items()):
        digest.update(path.encode())
        digest.update(weight_of(path, layer).to("cpu", torch.float32).half().numpy().tobytes())
    return digest.hexdigest()


def weight_of(path: str, layer: nn.Linear) -> Tensor:
    """The weight of a layer, also where accelerate keeps it elsewhere.

    Raises:
        RuntimeError: it is not in memory, or quantised.
    """
    weight: Tensor | None = layer.weight.data
    if layer.weight.is_meta:
        weight = (getattr(getattr(layer, "_hf_hook", None), "weights_map", None) or {}).get("weight")
    if weight is None:
        raise RuntimeError(f"{path} is not in memory; load the erasures before offloading the pipeline.")
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise RuntimeError(f"{path} is stored as {weight.dtype}; erase before quantising, from float weights.")
    return weight
