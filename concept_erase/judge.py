"""A classifier with a style head and an object head: the judge of UA, IRA and CRA on the embedded generator.

It is a judge of another kind than the CLIP scorer: a supervised residual network that never reads text.
"""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn


class Judge(nn.Module):
    """Style and object of a 64 x 64 picture.

    Attributes:
        styles: Names of the style head's classes, in order.
        objects: Names of the object head's classes, in order.
    """

    def __init__(self, styles: list[str], objects: list[str], channels: tuple[int, ...] = (32, 64, 96, 192)) -> None:
        from timm.models.resnet import BasicBlock, ResNet  # takes longer to import than an edit to make

        super().__init__()
        self.styles, self.objects, self.channels = list(styles), list(objects), tuple(channels)
        body: Any = ResNet(
            BasicBlock,  # type: ignore[arg-type]
            (1, 1, 1, 1), num_classes=len(styles) + len(objects), channels=channels,
            stem_type="deep", stem_width=16, avg_down=True,
        )  # fmt: skip
        body.maxpool = nn.Identity()  # 64 pixels are few: keep the resolution
        self.body = body

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, styles) and (n, objects) of pictures (n, 3, 64, 64) in [-1, 1]."""
        out = self.body(pictures)
        return out[:, : len(self.styles)], out[:, len(self.styles) :]

    @torch.no_grad()
    def name(self, images: list[Image.Image], batch: int = 128) -> tuple[list[str], list[str]]:
        """The style and the object that each image is taken for."""
        styles: list[str] = []
        objects: list[str] = []
        for start in range(0, len(images), batch):
            s, o = self(to_tensor(images[start : start + batch]))
            styles += [self.styles[i] for i in s.argmax(1).tolist()]
            objects += [self.objects[i] for i in o.argmax(1).tolist()]
        return styles, objects

    def config(self) -> dict[str, Any]:
        return {"styles": self.styles, "objects": self.objects, "channels": list(self.channels)}

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        judge = cls(**json.loads((folder / "config.json").read_text()))
        judge.load_state_dict(load_file(folder / "model.safetensors"))
        return judge.float().eval().requires_grad_(False)


def to_tensor(images: list[Image.Image], size: int = 64) -> Tensor:
    """(n, 3, size, size) in [-1, 1]."""
    arrays = []
    for image in images:
        image = image.convert("RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        arrays.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3))
    return torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
