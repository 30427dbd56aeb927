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

import torch
from PIL import Image
from torch import Tensor

from concept_erase import embedded

if TYPE_CHECKING:
    from concept_erase.judge import Judge

FILE = Path(__file__).with_name("known_styles.json")
NARROW = 1e-3  # of a feature's spread


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
    """(n, d): the scorer's vector, and mean and spread of the channels of each of the judge's stages.

    Means and spreads over the whole picture tell how it is drawn; what is drawn moves them less.
    """
    from concept_erase.clip import load_scorer
    from concept_erase.judge import to_tensor

    scorer, judge = load_scorer(str(embedded.scorer())), _judge()
    parts = []
    for start in range(0, len(images), batch):
        chunk = list(images[start : start + batch])
        x = judge.body.act1(judge.body.bn1(judge.body.conv1(to_tensor(chunk))))
        found = [scorer.embed_images(chunk)]
        for stage in (judge.body.layer1, judge.body.layer2, judge.body.layer3, judge.body.layer4):
            x = stage(x)
            found += [x.mean((2, 3)), x.std((2, 3))]
        parts.append(torch.cat(found, 1))
    return torch.cat(parts)


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
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=150, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="none")
        loss = (counts * losses).sum() + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    raw = weight.detach() / spread
    return raw, bias.detach() - raw @ middle
