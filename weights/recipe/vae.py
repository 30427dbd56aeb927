"""The autoencoder: 64 x 64 x 3 pictures to 8 x 8 x 16 latents and back."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from . import art, loop

CHANNELS = 16
BATCH = 16


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=art.SIZE,
        force_upcast=False,
    )


def to_tensor(pictures: np.ndarray, device: torch.device) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return (x.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(out: Tensor, x: Tensor, sharp: Tensor) -> Tensor:
    """L1, L2, edges, and pooled colour; `sharp` in [0, 1] moves the weight from L1 to L2, which is what dB measure."""
    edge = sum((a - b).abs().mean() for a, b in zip(_edges(out), _edges(x), strict=True))
    pooled = F.l1_loss(F.avg_pool2d(out, 8), F.avg_pool2d(x, 8))
    return (1 - sharp) * F.l1_loss(out, x) + (2 + 8 * sharp) * F.mse_loss(out, x) + 0.5 * edge + 2 * pooled


def train(work: Path, steps: int) -> None:
    """Encoder and decoder together. Writes `base/vae`, with the scaling factor of the latents."""
    device = loop.default_device()
    torch.manual_seed(1)
    vae = build().to(device, memory_format=torch.channels_last)
    pictures = _pictures(work)

    @loop.compiled
    def forward(x: Tensor, noise: Tensor, sharp: Tensor) -> Tensor:
        with loop.autocast(device):
            posterior = vae.encode(x).latent_dist
            out = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(out.float(), x, sharp) + 1e-6 * posterior.kl().mean()

    def loss(generator: torch.Generator, share: float) -> Tensor:
        noise = torch.randn((BATCH, CHANNELS, 8, 8), generator=generator).to(device)
        return forward(_batch(pictures, generator, device), noise, torch.tensor(share, device=device))

    loop.train("vae", vae, loss, work=work, steps=steps, lr=3e-3, ema=0.995)
    mean, std = latent_statistics(vae, pictures)
    print(f"latents: mean {mean:.3f}, std {std:.3f}")
    vae.register_to_config(scaling_factor=round(1 / std, 4))
    vae.half().save_pretrained(work / "base" / "vae")


def _pictures(work: Path) -> np.ndarray:
    return np.ascontiguousarray(art.load(work)[0]).reshape(-1, art.SIZE, art.SIZE, 3)


def _batch(pictures: np.ndarray, generator: torch.Generator, device: torch.device) -> Tensor:
    pick = torch.randint(len(pictures), (BATCH,), generator=generator)
    return to_tensor(pictures[pick.numpy()], device)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: np.ndarray) -> tuple[float, float]:
    device = next(vae.parameters()).device
    sample = to_tensor(pictures[:: len(pictures) // 1000], device)
    z = vae.encode(sample).latent_dist.mean.float()
    return z.mean().item(), z.std().item()


def load(work: Path) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(work / "base" / "vae").float()
    return vae.to(loop.default_device(), memory_format=torch.channels_last).eval().requires_grad_(False)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture's reconstruction, (n,)."""
    device = next(vae.parameters()).device
    values = []
    for start in range(0, len(pictures), batch):
        x = to_tensor(pictures[start : start + batch], device)
        out = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error = ((out - x) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.clamp_min(1e-10).log10())
    return torch.cat(values).cpu()
