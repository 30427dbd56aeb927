"""Whether pictures are in a style of the embedded generator, or in none: a fitted classifier with a class for "none".

`benchmarks/styles.py` fits it, on art of the styles against art of many others, finds its bound and writes
`known_styles.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from concept_erase import embedded

if TYPE_CHECKING:
    from concept_erase.judge import Judge

FILE = Path(__file__).with_name("known_styles.json")
NARROW = 1e-3  # of a feature's spread
DARKEST, UNEVEN = 140, 24  # of 255: paper is lighter, and this even along the rim
INK = 200  # darker than this is drawn, once the paper is 255
MARGIN = 0.07  # around what is drawn, of its longer side: the middle of what the generator was shown


@dataclass(frozen=True, eq=False)
class KnownStyles:
    """The classifier and what was measured of it.

    Attributes:
        styles: The known ones; the class after the last is "none of them".
        weight, bias: (styles + 1, features) and (styles + 1,).
        knows_from: The mean share of a style, over the pictures of a set, from which it counts as known.
        own: 5% and 95% quantiles of that share, of sets in a known style.
        foreign: The same, of the nearest style's share, of sets in styles that the generator never saw.
    """

    styles: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    knows_from: float
    own: tuple[float, float]
    foreign: tuple[float, float]

    def shares(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, styles) how much of each picture each style is given; what lacks to 1 is "none of them"."""
        return self.of(features(images))

    def of(self, found: Tensor) -> Tensor:
        """(n, styles) from (n, features)."""
        return torch.softmax(found @ self.weight.T + self.bias, dim=1)[:, : len(self.styles)]

    def save(self, path: Path, measured: dict[str, Any]) -> None:
        """As JSON, five digits each, with what else was measured."""
        weight = [[float(f"{x:.5g}") for x in row] for row in self.weight.tolist()]
        bias = [float(f"{x:.5g}") for x in self.bias.tolist()]
        bounds = {"knows_from": self.knows_from, "own": list(self.own), "foreign": list(self.foreign)}
        content = {"styles": list(self.styles), "eyes": eyes(), **bounds, "measured": measured}
        content |= {"bias": bias, "weight": weight}
        path.write_text(json.dumps(content) + "\n")


@cache
def load() -> KnownStyles:
    """The one that ships."""
    read = json.loads(FILE.read_text())
    own, foreign = (tuple(read[name]) for name in ("own", "foreign"))
    weight, bias = torch.tensor(read["weight"]), torch.tensor(read["bias"])
    return KnownStyles(tuple(read["styles"]), weight, bias, read["knows_from"], own, foreign)


def eyes() -> dict[str, str]:
    """SHA-256 of the weights that the features come from: with others, all must be fitted anew."""
    listed = json.loads((embedded.folder() / "manifest.json").read_text())["files"]
    return {name: listed[name] for name in listed if name.startswith(("judge/", "scorer/")) and "safetensors" in name}


@torch.no_grad()
def features(images: Sequence[Image.Image], batch: int = 64) -> Tensor:
    """(n, d): the scorer's vector, mean and spread of the channels of each of the judge's stages, and how sure it is.

    Means and spreads over the whole picture tell how it is drawn. The judge saw only the generator's styles, so it
    recognises things in these far more surely than the same things drawn otherwise.
    """
    from concept_erase.clip import load_scorer
    from concept_erase.judge import to_tensor

    scorer, judge = load_scorer(str(embedded.scorer())), _judge()
    parts = []
    for start in range(0, len(images), batch):
        chunk = [sheet(image) for image in images[start : start + batch]]
        x = judge.body.act1(judge.body.bn1(judge.body.conv1(to_tensor(chunk))))
        found = [scorer.embed_images(chunk)]
        for stage in (judge.body.layer1, judge.body.layer2, judge.body.layer3, judge.body.layer4):
            x = stage(x)
            found += [x.mean((2, 3)), x.std((2, 3))]
        logits = judge.body.forward_head(x)
        for heads in (logits[:, : len(judge.styles)], logits[:, len(judge.styles) :]):
            most = heads.softmax(1).amax(1)
            found += [torch.stack([heads.logsumexp(1), most, torch.logit(most, 1e-4)], 1)]
        parts.append(torch.cat(found, 1))
    return torch.cat(parts)


def sheet(image: Image.Image) -> Image.Image:
    """A square of what is on the paper, with a narrow margin, its paper made white; others as they are, squared.

    A scan shows more paper than the generator's pictures do, and paper is seldom white.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    rim = max(1, min(pixels.shape[:2]) // 32)
    sides = (pixels[:rim], pixels[-rim:], pixels[:, :rim].swapaxes(0, 1), pixels[:, -rim:].swapaxes(0, 1))
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    paper = np.median(border, axis=0)
    if paper.min() < DARKEST or np.abs(border - paper).mean() > UNEVEN:
        return _squared(image.convert("RGB"))
    pixels = np.minimum(255, pixels * (255 / paper))
    white = Image.fromarray(pixels.astype(np.uint8))
    ink = Image.fromarray(((pixels.min(2) < INK) * 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(3))
    box = ink.getbbox()
    return _squared(white.crop(box) if box else white, MARGIN)


def _squared(image: Image.Image, margin: float = 0.0) -> Image.Image:
    side = max(image.size)
    whole = round(side * (1 + 2 * margin))
    if image.size == (whole, whole):
        return image
    square = Image.new("RGB", (whole, whole), "white")
    square.paste(image, ((whole - image.width) // 2, (whole - image.height) // 2))
    return square


@cache
def _judge() -> Judge:
    from concept_erase.judge import Judge

    return Judge.load(embedded.judge())


def fit(found: Tensor, labels: Tensor, weights: Tensor, classes: int, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS, on standardised features.

    Args:
        found: (n, d).
        labels: (n,) classes.
        weights: (n,) how much each picture counts.
        decay: Of the squared weights.
    Returns:
        (classes, d) and (classes,), for features as they come.
    """
    middle, spread = found.mean(0), found.std(0) + NARROW
    x, counts = (found - middle) / spread, weights / weights.sum()
    weight = torch.zeros(classes, found.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="none")
        loss = (counts * losses).sum() + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    raw = weight.detach() / spread
    return raw, bias.detach() - raw @ middle
