"""The base as its own judge: which prompt explains a picture best? (diffusion classifier, arXiv:2303.16203)

Noise is added to a picture, and the base's denoiser is asked for it under the prompt of each name. The name under which
it errs least, over a few noise levels, is what the base takes the picture for. That needs no other model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from concept_erase.attach import detached
from concept_erase.concepts import fill
from concept_erase.errors import InputError, NumericalError, ResourceError
from concept_erase.generate import text_to_image
from concept_erase.hub import quiet
from concept_erase.layers import refuse_loras, unwrapped
from concept_erase.model import Memory, Model
from concept_erase.names import distinct

Progress = Callable[[int, int, str], None]

NAME = "the base itself (diffusion classifier)"
LEVELS = (0.7, 0.35, 0.9, 0.2)  # parts of the noise schedule
LEFT = (8, 4, 2)  # names that are still in question after each level
ROWS = 32  # prompts at a time; halved when memory runs out
_TEXTS = 128 * 2**20  # bytes of remembered text embeddings


class DiffusionClassifier:
    """Zero-shot names of pictures, by the denoiser of a base. It is always the unedited base that judges.

    The noise of a picture follows from its content and is the same for every name. So a verdict depends on the picture,
    the names and the base, and neither on the order of the names nor on what else is asked.
    """

    def __init__(self, model: Model, progress: Progress | None = None) -> None:
        """
        Raises:
            InputError: the base does not draw from a text alone, so it cannot be asked this way.
        """
        if model.undrawable:
            raise InputError(model.undrawable)
        self._model, self._progress = model, progress
        self._texts = Memory(_TEXTS)

    def classify(
        self,
        images: Sequence[Image.Image],
        names: Sequence[str],
        templates: Sequence[str],
        told: Sequence[str] | None = None,
    ) -> list[str]:
        """The name whose prompt explains each picture best.

        Args:
            names: Candidates; two writings of a name are one.
            templates: Prompts with `{target}` and perhaps `{context}`; the first one is used that suits a picture.
            told: For each picture what else its prompt names, "" for nothing: it fills `{context}`.
        Raises:
            InputError: no name, or a prompt that the text encoder does not hold.
        """
        names = sorted(distinct(names))
        if not names:
            raise InputError("there is no name to choose from; give at least one.")
        pipe: Any = self._model.pipe
        refuse_loras(self._model.name, pipe)
        found: list[str] = []
        with detached(pipe), torch.inference_mode():
            for i, image in enumerate(images):
                context = told[i] if told else ""
                template = self._template(templates, names, context)
                found.append(self._named(image, tuple(names), template, context))
                if self._progress:
                    self._progress(i + 1, len(images), "pictures judged by the base itself")
        return found

    def errors(self, image: Image.Image, prompts: Sequence[str], level: int = 0) -> list[float]:
        """How much the denoiser errs in the noise of a picture under each prompt: mean squares."""
        with detached(self._model.pipe), torch.inference_mode():
            return self._errors(self._latents(image), _seed(image), self._encoded(tuple(prompts)), level).tolist()

    def _template(self, templates: Sequence[str], names: Sequence[str], context: str) -> str:
        """The first template that names all that is told, if every name fits into it; else the first that can."""
        full = [t for t in templates if context and "{context}" in t]
        plain = [t for t in templates if "{context}" not in t]
        for template in (*full, *plain):
            if all(self._fits(fill(template, name, context)) for name in names):
                return template
        longest = max(names, key=lambda name: len(self._model.tokenize(name)))
        self._model.token_ids(fill(plain[-1], longest))
        raise AssertionError("the longest name fits, so do all others")

    def _fits(self, prompt: str) -> bool:
        try:
            return bool(self._model.token_ids(prompt))
        except InputError:
            return False

    def _named(self, image: Image.Image, names: tuple[str, ...], template: str, context: str) -> str:
        pixels = hashlib.sha256(image.convert("RGB").tobytes() + repr(image.size).encode()).hexdigest()
        key = (DiffusionClassifier, pixels, names, template, context)
        return self._model.remembered(key, lambda: self._best(image, names, template, context))

    def _best(self, image: Image.Image, names: tuple[str, ...], template: str, context: str) -> str:
        """All names at the first noise level; at each further one the best so far."""
        texts = self._encoded(tuple(fill(template, name, context) for name in names))
        latents, seed = self._latents(image), _seed(image)
        left, total = torch.arange(len(names)), torch.zeros(len(names))
        for level in range(len(LEVELS)):
            if level:
                best = total.argsort(stable=True)[: LEFT[level - 1]]
                left, total = left[best], total[best]
            errors = self._errors(latents, seed, texts[left], level)
            total = total + errors / errors.mean()
        return names[int(left[total.argmin()])]

    def _errors(self, latents: Tensor, seed: int, texts: Tensor, level: int) -> Tensor:
        """(n,) float32: `||eps - eps(x_t, t, c)||^2` for each text c, up to a factor that all of them share."""
        unet, schedule = self._pipe.unet, self._schedule
        at = round(LEVELS[level] * (schedule.config.num_train_timesteps - 1))
        times = torch.tensor([at])
        # On the CPU, so that every device gets the same.
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed + level))
        noisy = schedule.add_noise(latents, noise, times)
        kind = schedule.config.prediction_type
        wanted = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: schedule.get_velocity(latents, noise, times),
            "sample": lambda: latents,
        }[kind]()
        device, dtype = self._pipe._execution_device, unet.dtype

        def errors(some: Tensor) -> Tensor:
            try:
                rows = noisy.to(device, dtype).expand(len(some), -1, -1, -1)
                said = unet(rows, torch.tensor(at, device=device), encoder_hidden_states=some, return_dict=False)[0]
            except (torch.OutOfMemoryError, MemoryError) as error:
                if len(some) == 1:
                    raise ResourceError(
                        "memory does not suffice for the base to judge a picture; free some, or use a smaller base."
                    ) from error
                middle = len(some) // 2
                return torch.cat([errors(some[:middle]), errors(some[middle:])])
            return (said.to("cpu", torch.float32) - wanted).square().mean(dim=(1, 2, 3))

        found = torch.cat([errors(texts[i : i + ROWS]) for i in range(0, len(texts), ROWS)])
        if not found.isfinite().all():
            raise NumericalError(
                f"{self._model.name} answers with NaN or Inf in {unet.dtype}; load it in float32 to let it judge."
            )
        return found

    def _latents(self, image: Image.Image) -> Tensor:
        """(1, c, h, w) float32 on the CPU: the picture as the denoiser sees one without noise."""
        from diffusers.image_processor import VaeImageProcessor
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

        pipe = self._pipe
        vae, side = pipe.vae, unwrapped(pipe.unet).config.sample_size * pipe.vae_scale_factor
        pixels = VaeImageProcessor().preprocess(image.convert("RGB"), height=side, width=side)
        found = retrieve_latents(vae.encode(pixels.to(pipe._execution_device, vae.dtype)), sample_mode="argmax")
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (found.to("cpu", torch.float32) - shift) * vae.config.scaling_factor

    def _encoded(self, prompts: tuple[str, ...]) -> Tensor:
        """(n, length, d): the prompts as the pipeline itself encodes them.

        They are remembered all together: what a prompt is encoded beside may change its last bits.
        """

        def encode() -> Tensor:
            for prompt in prompts:
                self._model.token_ids(prompt)  # refuses what the pipeline would cut in silence
            with text_to_image(self._model) as pipe:
                some = (list(prompts[i : i + ROWS]) for i in range(0, len(prompts), ROWS))
                return torch.cat([pipe.encode_prompt(part, pipe._execution_device, 1, False)[0] for part in some])

        return self._texts.recall(prompts, encode)

    @property
    def _pipe(self) -> Any:
        return self._model.pipe

    @cached_property
    def _schedule(self) -> Any:
        """The noise that the base was trained with, whatever its sampler makes of it.

        Raises:
            InputError: its scheduler does not tell.
        """
        from diffusers import DDPMScheduler

        # Without what diffusers notes of its own: values that were default there would be replaced by those here.
        config = {k: v for k, v in self._pipe.scheduler.config.items() if not k.startswith("_")}
        kind = config.get("prediction_type", "epsilon")
        try:
            if not {"num_train_timesteps", "beta_schedule"} <= set(config):
                raise NotImplementedError("it has no betas")
            if kind not in ("epsilon", "v_prediction", "sample"):
                raise NotImplementedError(f"the denoiser predicts {kind!r}")
            with quiet():
                return DDPMScheduler.from_config(config)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise InputError(
                f"the {type(self._pipe.scheduler).__name__} of {self._model.name} does not say which noise the base "
                f"was trained with ({error}); set a DDIMScheduler, or name another scorer."
            ) from error


def _seed(image: Image.Image) -> int:
    pixels = image.convert("RGB").tobytes()
    return int.from_bytes(hashlib.sha256(pixels).digest()[:7], "big")
