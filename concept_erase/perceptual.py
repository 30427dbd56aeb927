"""How different two pictures look: LPIPS, or its formula on the judge's features where AlexNet cannot be fetched."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from concept_erase.judge import Judge, to_tensor

Measure = Callable[[Sequence[Image.Image], Sequence[Image.Image]], list[float]]


def distances(judge: Judge | None, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float] | None:
    """LPIPS of each pair; None when no backbone is at hand.

    With a judge (the embedded base): unit-normalised features of its four stages, squared differences averaged over
    positions and summed over stages, eq. 1 of arXiv:1801.03924 with all channel weights 1. Otherwise torchmetrics'
    calibrated AlexNet, whose weights torchvision fetches once.
    """
    values: list[float] = []
    measure = _judge_distance(judge) if judge is not None else _alexnet_distance()
    if measure is None:
        return None
    for start in range(0, len(before), 64):
        pair = before[start : start + 64], after[start : start + 64]
        values += measure(*pair)
    return values


def _judge_distance(judge: Judge) -> Measure:
    @torch.inference_mode()
    def features(images: Sequence[Image.Image]) -> list[Tensor]:
        body, x, stages = judge.body, to_tensor(list(images)), []
        x = body.maxpool(body.act1(body.bn1(body.conv1(x))))
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = layer(x)
            stages.append(torch.nn.functional.normalize(x, dim=1))
        return stages

    def measure(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> list[float]:
        pairs = zip(features(a), features(b), strict=True)
        return sum((x - y).square().sum(1).mean(dim=(1, 2)) for x, y in pairs).tolist()  # type: ignore[union-attr]

    return measure


@cache
def _alexnet_distance() -> Measure | None:
    try:
        from torchmetrics.functional.image.lpips import _LPIPS

        with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints what it downloads
            net = _LPIPS(pretrained=True, net="alex", use_dropout=True).eval()
    except Exception:  # no network, no cached weights, no torchvision: the score is left out and the report says so
        return None

    def pixels(images: Sequence[Image.Image]) -> Tensor:
        arrays = [torch.from_numpy(np.asarray(im.convert("RGB")).copy()) for im in images]
        return torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1

    @torch.inference_mode()
    def measure(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> list[float]:
        return net(pixels(a), pixels(b)).flatten().tolist()

    return measure
