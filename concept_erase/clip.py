"""The CLIP scorer: any open_clip model by name or checkpoint; the one in `weights/` by default on the embedded base."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from concept_erase.errors import MissingModelError
from concept_erase.names import distinct


class Scorer:
    """Cosines between pictures and texts by an open_clip model."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: "NAME" or "NAME:TAG" of open_clip ("ViT-B-32:laion2b_s34b_b79k"), "NAME:FILE" for a checkpoint, or a
                folder with `open_clip_config.json` and the weights.
        Raises:
            MissingModelError: it is not there and cannot be fetched.
        """
        import open_clip

        self.name = name
        model, _, tag = name.partition(":")
        local = Path(name).is_dir()
        try:
            with _quiet():
                if local:
                    made = open_clip.create_model_and_transforms(f"local-dir:{name}")
                else:
                    made = open_clip.create_model_and_transforms(model, pretrained=tag or None, require_pretrained=True)
                self._tokenize = open_clip.get_tokenizer(f"local-dir:{name}" if local else model)
        except Exception as error:  # open_clip and the hub raise many kinds; each means that there is no scorer
            reason = " ".join(str(error).split())[:300]
            raise MissingModelError(
                f"the scorer {name!r} cannot be had ({reason}); pass --scorer with a local open_clip folder."
            ) from error
        self._model = made[0].eval().requires_grad_(False)
        self._prepare = made[2]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image], batch: int = 128) -> Tensor:
        """Unit vectors (n, d)."""
        chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
        pixels = (torch.stack([self._prepare(im) for im in chunk]) for chunk in chunks)
        return torch.cat([self._model.encode_image(x, normalize=True) for x in pixels])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, d)."""
        return self._model.encode_text(self._tokenize(list(texts)), normalize=True)

    def similarity(self, images: Tensor, texts: Sequence[str]) -> list[float]:
        """CLIP score, `100 cos`, of each image vector with its own text."""
        distinct = list(dict.fromkeys(texts))
        vectors = self.embed_texts(distinct)[[distinct.index(t) for t in texts]]
        return (100 * (images * vectors).sum(1)).tolist()

    def classify(self, images: Tensor, names: Sequence[str], templates: Sequence[str]) -> list[str]:
        """Zero-shot: the name whose prompts, averaged over templates, are nearest to each image vector."""
        names = distinct(names)  # two labels of one name would share its pictures
        vectors = [self.embed_texts([t.format(name) for t in templates]).mean(0) for name in names]
        best = (images @ torch.nn.functional.normalize(torch.stack(vectors), dim=-1).T).argmax(1)
        return [names[i] for i in best.tolist()]


@cache
def load_scorer(name: str) -> Scorer:
    """A scorer, loaded once per process."""
    return Scorer(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's chatter on the way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
