"""The generator's CLIP: its text tower becomes the frozen text encoder, as in Stable Diffusion 1."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from . import art, loop, text, vae

WIDTH = 192
BATCH = 192


class Pairs:
    """Batches of pictures with captions, and which caption fits which picture.

    A caption may name the style, the object or both; a left-out one fits any (index -1).
    """

    def __init__(self, work: Path, tokens: dict[str, Tensor]) -> None:
        self.pictures = np.ascontiguousarray(art.load(work)[0])
        self.styles, self.objects, self.variants = self.pictures.shape[:3]
        self.tokens = {
            "pair": tokens["pair"].view(self.styles, self.objects, len(art.PAIR_CAPTIONS), -1),
            "object": tokens["object"].view(self.objects, len(art.OBJECT_CAPTIONS), -1),
            "style": tokens["style"].view(self.styles, len(art.STYLE_CAPTIONS), -1),
        }

    def draw(self, n: int, generator: torch.Generator) -> tuple[np.ndarray, Tensor, Tensor, Tensor, Tensor]:
        """Pictures (n, 64, 64, 3), tokens (n, length), style and object of each, and a uniform draw per caption."""

        def below(high: int) -> Tensor:
            return torch.randint(high, (n,), generator=generator)

        s, o, v = below(self.styles), below(self.objects), below(self.variants)
        u = torch.rand(n, generator=generator)
        template = below(10_000)
        rows = [
            self.tokens["pair"][s[i], o[i], template[i] % len(art.PAIR_CAPTIONS)]
            if u[i] < 0.72
            else self.tokens["object"][o[i], template[i] % len(art.OBJECT_CAPTIONS)]
            if u[i] < 0.88
            else self.tokens["style"][s[i], template[i] % len(art.STYLE_CAPTIONS)]
            for i in range(n)
        ]
        return self.pictures[s.numpy(), o.numpy(), v.numpy()], torch.stack(rows), s, o, u

    @staticmethod
    def matches(s: Tensor, o: Tensor, u: Tensor) -> Tensor:
        """(n, n) bool: picture i is one of those that caption j describes."""
        same_style, same_object = s[:, None] == s[None], o[:, None] == o[None]
        any_style, any_object = ((u >= 0.72) & (u < 0.88))[None], (u >= 0.88)[None]
        return (same_style | any_style) & (same_object | any_object)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, matches: Tensor) -> Tensor:
    """InfoNCE with several positives a row: the target is uniform over all that fit."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = matches.float()
    rows = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (rows + columns) / 2


class Clip(nn.Module):
    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=text.LENGTH, projection_dim=WIDTH, hidden_act="quick_gelu",
            bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        self.text = CLIPTextModelWithProjection(config)
        self.image = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=WIDTH, channels=(32, 64, 128, 256), stem_width=32)
        self.image.maxpool = nn.Identity()
        self.scale = nn.Parameter(torch.tensor(2.66))  # log(1 / 0.07)

    def forward(self, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.image(pictures), self.text(tokens).text_embeds, self.scale.exp().clamp(max=100)


def train(work: Path, steps: int) -> None:
    device = loop.default_device()
    torch.manual_seed(2)
    tokenizer = text.build_tokenizer(work)
    pairs = Pairs(work, {k: text.tokenize(tokenizer, v) for k, v in text.captions().items()})
    model = Clip(len(tokenizer), tokenizer.eos_token_id).to(device, memory_format=torch.channels_last)

    def loss(generator: torch.Generator, share: float) -> Tensor:
        pictures, tokens, s, o, u = pairs.draw(BATCH, generator)
        with loop.autocast(device):
            images, texts, scale = model(vae.to_tensor(pictures, device), tokens.to(device))
        return contrastive_loss(images.float(), texts.float(), scale, pairs.matches(s, o, u).to(device))

    loop.train("clip", model, loss, work=work, steps=steps, lr=8e-3, ema=0.99)
    # Through a file: the key names of the two classes differ between transformers 4 and 5, from_pretrained maps them.
    model.text.save_pretrained(work / "clip_text")
    encoder = CLIPTextModel.from_pretrained(work / "clip_text", dtype=torch.float32)
    encoder.save_pretrained(work / "base" / "text_encoder")
    ids = text.tokenize(tokenizer, ["a cat in noto style"])
    with torch.no_grad():
        same = torch.equal(encoder(ids).last_hidden_state, model.text.cpu()(ids).last_hidden_state)
    if not same:
        raise RuntimeError("the saved text encoder differs from the trained one")
    model.text.to(device)
    print("zero-shot on held-out art:", zero_shot(work, model.image, lambda t: model.text(t).text_embeds, tokenizer))


@torch.no_grad()
def zero_shot(work: Path, image, encode, tokenizer, to_input=vae.to_tensor) -> dict[str, float]:  # noqa: ANN001
    """Top-1 among the styles and among the objects, one held-out rendering of each pair."""
    device = loop.default_device()
    held_out = np.ascontiguousarray(art.load(work)[1][:, :, 0])
    pictures = held_out.reshape(-1, art.SIZE, art.SIZE, 3)
    x = torch.cat([image(to_input(pictures[i : i + 64], device)) for i in range(0, len(pictures), 64)])

    def accuracy(lines: list[str], truth: Tensor) -> float:
        y = encode(text.tokenize(tokenizer, lines).to(device))
        guess = (F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T).argmax(1).cpu()
        return round(100 * (guess == truth).float().mean().item(), 2)

    styles, objects = art.style_names(), art.object_names()
    grid = torch.cartesian_prod(torch.arange(len(styles)), torch.arange(len(objects)))
    return {
        "style": accuracy([f"an icon in {s} style" for s in styles], grid[:, 0]),
        "object": accuracy([f"an icon of a {o}" for o in objects], grid[:, 1]),
    }
