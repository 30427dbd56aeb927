"""The two judges of erasure: the scorer (a CLIP in open_clip's form) and the classifier. Neither sees the generator."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from concept_erase.judge import Judge

from . import art, clip, loop, text, vae

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SCORER = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": art.SIZE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64},
    "text_cfg": {
        "context_length": text.LENGTH, "vocab_size": text.VOCABULARY, "width": 128, "heads": 4, "layers": 3,
        "hf_tokenizer_name": "scorer",  # any name: with "local-dir:" open_clip reads the tokenizer beside the config
    },
}  # fmt: skip


def wear(x: Tensor, generator: torch.Generator) -> Tensor:
    """What generated pictures suffer from: blur, noise, a change of brightness and contrast, a shift."""
    n = len(x)
    size = x.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=generator)).view(n, 1, 1, 1).to(x.device)

    scale = uniform(0.9, 1.1).flatten()
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = (torch.rand(n, 2, generator=generator).to(x.device) - 0.5) * (8 / size)
    x = 1 + F.grid_sample(x - 1, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    small = F.interpolate(x, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, size=size, mode="bilinear")
    x = torch.lerp(x, blurred, uniform(-0.3, 0.9).clamp_min(0))
    x = x * uniform(0.9, 1.05) + uniform(-0.08, 0.08)
    return (x + uniform(0, 0.12) * torch.randn(x.shape, generator=generator).to(x.device)).clamp(-1, 1)


def train_judge(work: Path, steps: int) -> None:
    device = loop.default_device()
    torch.manual_seed(11)
    judge = Judge(art.style_names(), art.object_names()).to(device, memory_format=torch.channels_last)
    pictures = np.ascontiguousarray(art.load(work)[0])
    styles, objects, variants = pictures.shape[:3]

    def loss(generator: torch.Generator, share: float) -> Tensor:
        s = torch.randint(styles, (128,), generator=generator)
        o = torch.randint(objects, (128,), generator=generator)
        v = torch.randint(variants, (128,), generator=generator)
        x = wear(vae.to_tensor(pictures[s.numpy(), o.numpy(), v.numpy()], device), generator)
        with loop.autocast(device):
            style, thing = judge(x)
        smooth = 0.05
        return F.cross_entropy(style.float(), s.to(device), label_smoothing=smooth) + F.cross_entropy(
            thing.float(), o.to(device), label_smoothing=smooth
        )

    loop.train("judge", judge, loss, work=work, steps=steps, lr=0.012, adam_lr=3e-3, ema=0.99)
    folder = work / "judge"
    folder.mkdir(exist_ok=True)
    save_file(_half(judge), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(judge.config()) + "\n")
    print("judge on held-out art:", judge_accuracy(work))


def _half(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict().items()
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state}


@torch.no_grad()
def judge_accuracy(work: Path) -> dict[str, float]:
    """Per cent right on all held-out renderings of the real art."""
    judge = Judge.load(work / "judge")
    held_out = np.ascontiguousarray(art.load(work)[1])
    styles, objects, n = held_out.shape[:3]
    flat = held_out.reshape(-1, art.SIZE, art.SIZE, 3)
    guesses = [judge(vae.to_tensor(flat[i : i + 128], torch.device("cpu"))) for i in range(0, len(flat), 128)]
    s = torch.cat([g[0] for g in guesses]).argmax(1).view(styles, objects, n)
    o = torch.cat([g[1] for g in guesses]).argmax(1).view(styles, objects, n)
    return {
        "n": len(flat),
        "style": 100 * (s == torch.arange(styles)[:, None, None]).float().mean().item(),
        "object": 100 * (o == torch.arange(objects)[None, :, None]).float().mean().item(),
    }


def train_scorer(work: Path, steps: int) -> None:
    """Another seed, another image tower (modified ResNet with attention pooling), another text tower."""
    from open_clip.model import CLIP

    device = loop.default_device()
    torch.manual_seed(12)
    tokenizer = text.build_tokenizer(work)
    pairs = clip.Pairs(work, {k: text.tokenize(tokenizer, v) for k, v in text.captions().items()})
    model: nn.Module = CLIP(**SCORER).to(device, memory_format=torch.channels_last)

    def loss(generator: torch.Generator, share: float) -> Tensor:
        pictures, tokens, s, o, u = pairs.draw(clip.BATCH, generator)
        x = wear(vae.to_tensor(pictures, device), generator)
        with loop.autocast(device):
            images, texts, scale = model(x, tokens.to(device))
        return clip.contrastive_loss(
            images.float(), texts.float(), scale.clamp(max=100), pairs.matches(s, o, u).to(device)
        )

    loop.train("scorer", model, loss, work=work, steps=steps, lr=8e-3, ema=0.99)
    folder = work / "scorer"
    folder.mkdir(exist_ok=True)
    save_file(_half(model), folder / "open_clip_model.safetensors")
    config = {"model_cfg": SCORER, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    print("zero-shot on held-out art:", clip.zero_shot(work, model.encode_image, model.encode_text, tokenizer))
