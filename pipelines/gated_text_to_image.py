"""Stable Diffusion 1.x that forgets concepts only where a prompt speaks of them: all other prompts stay bit for bit.

    pipe = DiffusionPipeline.from_pretrained(
        base, custom_pipeline="pipelines/gated_text_to_image.py", trust_remote_code=True,
        operators=["erased/van-gogh", ("erased/bomb/erase-bomb-uce.operator", 0.8)],
    )

Needs torch, diffusers and transformers; nothing else of the project this file comes from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

LEGACY = "operator.safetensors"  # what operator files were called once
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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

    A concept is found by its token ids, and, where the file has one, by a probe on the hidden states, which also sees a
    concept that comes under another name with the same embedding (a textual inversion), or as `prompt_embeds` without
    text. `concept-erase gates FILE` fits the probes of a file.
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
            operators: Files, or folders with one `*.operator`, each alone or as (path, strength).
            sha256: The hash that each file must have, in the same order; None, also for single files, asks for none.
        Returns:
            All operators in use.
        Raises:
            ValueError: a file is damaged, unsafe, no operator, for another base or text encoder, loaded already, or
                not the one whose hash was given; a strength is not positive. Nothing was changed.
        """
        listed = [_operator_file(e) for e in ([operators] if isinstance(operators, (str, Path)) else operators)]
        hashes = [sha256] if isinstance(sha256, str) else list(sha256 or [None] * len(listed))
        if not listed:
            raise ValueError("the list of operators is empty; name at least one file.")
        if len(hashes) != len(listed):
            raise ValueError(f"{len(hashes)} SHA-256 were given for {len(listed)} operators; give one each, or None.")
        base, loaded = base_of(self.unet), list(self._operators)
        for (path, strength), expected in zip(listed, hashes, strict=True):
            tensors, record, digest = read_file(path, expected)
            concepts, made_for = check_record(path, record, form="operator")
            base.check(path, made_for)
            twin = next((o for o in loaded if o.sha256 == digest), None)
            if twin:
                raise ValueError(f"{path} is the same operator as {twin.name!r}, which is in use; list it once.")
            name = path.parent.name if path.name == LEGACY else path.stem
            operator = _operator(path, name, tensors, record, concepts, strength, digest)
            self._check_encoder(path, operator)
            loaded.append(operator)
        self._operators = tuple(loaded)
        return self._operators

    def fingerprint(self) -> str:
        """SHA-256 over the keys and values of the cross-attention in half precision, as files record it."""
        return base_of(self.unet).hash

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
                    f"only text tells whether {blind[0]!r} is meant; pass prompt instead of prompt_embeds, or fit its "
                    "probe once with `concept-erase gates FILE`."
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


def _operator_file(entry: Any) -> tuple[Path, float]:
    path, strength = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (entry, 1.0)
    if not isinstance(path, (str, Path)):
        raise ValueError(f"an operator is a path or (path, strength), got {entry!r}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < math.inf:
        raise ValueError(f"the strength of {path} is {strength!r}; it must be a positive number.")
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.operator")) or sorted(path.glob(LEGACY))
        if len(found) != 1:
            listed = ", ".join(p.name for p in found) or "none"
            raise ValueError(f"one operator file is wanted, {path} holds {listed}; name a file that exists.")
        path = found[0]
    return path, float(strength)


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
    if path.suffix.lower() not in (".safetensors", ".operator") or not path.is_file():
        raise ValueError(f"{path} is no .safetensors or .operator file that exists; pickled weights are never read.")
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


def check_record(path: Path, record: str, *, form: str | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What a file erases, and what it says of the base it was made for.

    Args:
        form: "operator" for operator files, None for adapters.
    Raises:
        ValueError: it is of the other form, or does not say what it erases or which base it is for.
    """
    try:
        said = json.loads(record)
        concepts, base = tuple(str(c["target"]) for c in said["concepts"]), dict(said["base"])
        if not (base["name"] and base["hash"]):
            raise KeyError("hash")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not record its concepts and base, so it cannot be verified.") from error
    if said.get("form") != form:
        raise ValueError(f"{path} is {said.get('form') or 'an adapter'}, for the other pipeline of this project.")
    return concepts, base


NUMBERS = 4  # of a sketch, for each layer
SCALED = "scaled "  # but for a factor of each row
FLOATS = (  # from coarse to fine
    "float8_e5m2", f"{SCALED}float8_e5m2", "float8_e4m3fn", f"{SCALED}float8_e4m3fn", "bfloat16", "float16", "float32",
)  # fmt: skip
FINEST = 2e-4  # of the weights, about the rounding of float16: nothing closer is told apart
SCALE_ERROR = 2.0**-7  # of a value: bfloat16 rounds the value and its row's factor by half of that in all


@dataclass(frozen=True, eq=False)
class Base:
    """What the weights of the cross-attention's keys and values are known by.

    Attributes:
        hash: SHA-256 of them in half precision.
        dtype: The type of `FLOATS` that holds them all as they are, and of several the one that rounds them most.
        rounding: Root mean square error of rounding weights like these to that type, relative to them.
        sketch: Products u^T W v with fixed vectors of +1 and -1, which survive rounding: where the hash differs, the
            distance of two sketches estimates that of the weights.
        size: What a sketch of these weights is long on average.
        shapes: Path -> (d_out, d_in) of each layer, in order.
    """

    hash: str
    dtype: str
    rounding: float
    sketch: Tensor
    size: float
    shapes: dict[str, tuple[int, int]]

    def check(self, path: Path, recorded: dict[str, Any], change: Tensor | None = None) -> None:
        """Compare with the base that a file was made for.

        Args:
            recorded: What the file says of its base.
            change: What the file's edit adds to a sketch, to find it in the weights.
        Raises:
            ValueError: it is another one, with the reason.
        """
        if recorded["hash"] == self.hash:
            return
        listed = recorded.get("sketch")
        if not isinstance(listed, list) or len(listed) != len(self.sketch):
            reason = (
                f"the weights have the hash {self.hash[:12]} where {str(recorded['hash'])[:12]} is recorded: another "
                "base, or one that was edited, fused with a LoRA or rounded to bfloat16 before"
            )
        else:
            try:
                there = torch.tensor(listed, dtype=torch.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} has a sketch of its base that is no list of numbers; fetch it again."
                ) from error
            gap = (self.sketch - there) / self.size
            noise = math.hypot(self.rounding, rounding_in(recorded), FINEST)
            share = 0.0
            if change is not None and change.any():
                edit = change / self.size
                share = float(gap @ edit / (edit @ edit))
                error_of_share = noise / math.sqrt(len(gap)) / float(edit.norm())
                if share <= max(0.2, 4 * error_of_share) or float((gap - share * edit).norm()) > 2 * noise:
                    share = 0.0
            if share:
                reason = f"this erasure is in these weights already, at strength {share:.2g}"
            elif float(gap.norm()) <= 2 * noise:
                return
            else:
                reason = (
                    f"the weights differ by about {float(gap.norm()):.2%} of their size, of which rounding explains "
                    f"{2 * noise:.2%}: another base, a fine-tune, or one that was edited or fused with a LoRA before"
                )
        raise ValueError(
            f"{path} was made for {recorded['name']!r}, and here {reason}. Open that base, or erase the concept from "
            "this one."
        )


def base_of(unet: nn.Module) -> Base:
    """What identifies a base, from its cross-attention; the same numbers as in the files' records.

    Raises:
        RuntimeError: the weights are not in memory, or quantised.
    """
    layers = {}
    for name, layer in unwrapped(unet).named_modules():
        name = name.removesuffix(".base_layer")  # underneath LoRA wrappers
        if isinstance(layer, nn.Linear) and re.search(r"attn2\.to_[kv]$", name):
            layers[f"unet.{name}"] = layer
    digest, numbers, square, part = hashlib.sha256(), [], 0.0, 0.0
    holding, errors, shapes = list(FLOATS), dict.fromkeys(FLOATS, 0.0), {}
    for path, layer in sorted(layers.items()):
        weight = weight_of(path, layer).to("cpu", torch.float32)
        digest.update(path.encode())
        digest.update(weight.half().contiguous().numpy().tobytes())
        double, shapes[path] = weight.double(), (weight.shape[0], weight.shape[1])
        square += float(double.square().sum())
        numbers += [float(left @ (double @ right)) for left, right in probes(path, *shapes[path])]
        holding = [name for name in holding if holds(name, weight)]
        rows = double[:: max(1, len(double) // 16)]  # rounding is much the same in all rows
        part += float(rows.square().sum())
        for name in holding:
            errors[name] += float(spacing(rows, name).square().sum()) / 12
    dtype = max(holding or ["float32"], key=errors.__getitem__)
    rounding = math.sqrt(errors[dtype] / part) if part else 0.0
    sketch = torch.tensor(numbers, dtype=torch.float64)
    return Base(digest.hexdigest(), dtype, rounding, sketch, math.sqrt(NUMBERS * square) or 1.0, shapes)


def holds(name: str, weight: Tensor) -> bool:
    """Whether a float type holds all weights as they are; scaled, but for a factor of each row."""
    kind = getattr(torch, name.removeprefix(SCALED))
    if not name.startswith(SCALED):
        return torch.equal(weight.to(kind).to(torch.float32), weight)
    rows = weight[:: max(1, len(weight) // 16)]  # of other weights not even one row fits by chance
    largest = rows.abs().amax(1, keepdim=True)
    fits = largest[:, 0] == 0
    for step in range(4, 8) if "e5m2" in name else range(8, 16):  # what the row's largest value may be in the type
        top = step * 2.0 ** math.floor(math.log2(torch.finfo(kind).max / step))
        values = rows / largest.clamp_min(torch.finfo(torch.float32).tiny) * top
        apart = (values.to(kind).to(torch.float32) - values).abs()
        fits |= (apart <= SCALE_ERROR * values.abs()).all(1)
    return bool(fits.all())


def rounding_in(recorded: Mapping[str, Any]) -> float:
    """The rounding of a recorded base; of a record that does not say, that of its float type for usual weights."""
    told, kind = recorded.get("rounding"), recorded.get("dtype")
    if isinstance(told, (int, float)) and 0 <= told < 1:
        return float(told)
    if kind not in FLOATS or str(kind).startswith(SCALED):
        return 0.0
    # Mantissas are about even between 1 and 2, so numbers are about sqrt(7/3) times the power of two beneath them.
    return torch.finfo(getattr(torch, str(kind))).eps / math.sqrt(12 * 7 / 3)


def spacing(values: Tensor, name: str) -> Tensor:
    """The distance of neighbouring numbers of a float type around each value: the step of a rounding."""
    limits = torch.finfo(getattr(torch, name.removeprefix(SCALED)))
    power = torch.where(values == 0, 0.0, torch.exp2(torch.frexp(values).exponent.double() - 1))
    # What is scaled fills the type's range, so hardly a value is below its normal numbers.
    return limits.eps * (power if name.startswith(SCALED) else power.clamp_min(limits.smallest_normal))


def probes(path: str, d_out: int, d_in: int) -> list[tuple[Tensor, Tensor]]:
    """The vectors u (d_out) and v (d_in) of a layer: the bits of a hash of its path."""

    def signs(seed: str, length: int) -> Tensor:
        raw = hashlib.shake_128(seed.encode()).digest(length)
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).remainder(2).double() * 2 - 1

    return [(signs(f"{path} {i} left", d_out), signs(f"{path} {i} right", d_in)) for i in range(NUMBERS)]


def unwrapped(module: Any) -> Any:
    """A component beneath torch.compile, DataParallel and their kin."""
    while True:
        inner = [getattr(module, "_modules", {}).get(n) for n in ("_orig_mod", "module", "_fsdp_wrapped_module")]
        if len(getattr(module, "_modules", {})) != 1 or not any(inner):
            return module
        module = next(filter(None, inner))


def weight_of(path: str, layer: nn.Linear) -> Tensor:
    """The weight of a layer, also where accelerate keeps it elsewhere.

    Raises:
        RuntimeError: it is not in memory, computed at every call, quantised, or spread over devices.
    """
    parameter = layer._parameters.get("weight")
    if parameter is None:
        raise RuntimeError(f"{path} computes its weight at every call (pruned or parametrized); make that permanent.")
    weight: Tensor | None = parameter.data
    if parameter.is_meta:
        weight = (getattr(getattr(layer, "_hf_hook", None), "weights_map", None) or {}).get("weight")
    if weight is None:
        raise RuntimeError(f"{path} is not in memory; load the erasures before offloading the pipeline.")
    weight = weight.data
    if type(weight) is not Tensor or str(weight.dtype).removeprefix("torch.") not in FLOATS:
        kind = weight.dtype if type(weight) is Tensor else type(weight).__name__
        raise RuntimeError(f"{path} is stored as {kind}; erase before quantising, from float weights.")
    return weight
