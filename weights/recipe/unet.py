"""The denoiser: v-prediction on 8 x 8 x 16 latents, conditioned on the frozen text encoder."""

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from . import art, loop, text, vae

BATCH = 96
STEPS = 25
GUIDANCE = 4.0


def build(width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=vae.CHANNELS,
        out_channels=vae.CHANNELS,
        block_out_channels=(128, 256),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,  # diffusers reads it as the number of heads, as in SD 1
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


@torch.no_grad()
def cache_latents(work: Path, autoencoder: torch.nn.Module) -> Tensor:
    """(styles, objects, variants, 16, 8, 8), scaled to unit variance."""
    path = work / "latents.pt"
    if not path.exists():
        pictures = art.load(work)[0]
        flat = pictures.reshape(-1, art.SIZE, art.SIZE, 3)
        device = loop.default_device()
        z = [
            autoencoder.encode(vae.to_tensor(flat[i : i + 64], device)).latent_dist.mean.half().cpu()
            for i in range(0, len(flat), 64)
        ]
        torch.save(torch.cat(z).view(*pictures.shape[:3], vae.CHANNELS, 8, 8).contiguous(), path)
    return torch.load(path).float() * autoencoder.config.scaling_factor


@torch.no_grad()
def embed_captions(work: Path) -> dict[str, Tensor]:
    """Last hidden states by kind, (..., length, width)."""
    device = loop.default_device()
    tokenizer = text.build_tokenizer(work)
    encoder = CLIPTextModel.from_pretrained(work / "base" / "text_encoder", dtype=torch.float32).to(device).eval()

    def encode(lines: list[str]) -> Tensor:
        ids = text.tokenize(tokenizer, lines).to(device)
        return torch.cat([encoder(chunk).last_hidden_state.half().cpu() for chunk in ids.split(256)])

    lines = text.captions()
    shape = {
        "pair": (len(art.style_names()), len(art.object_names()), len(art.PAIR_CAPTIONS)),
        "object": (len(art.object_names()), len(art.OBJECT_CAPTIONS)),
        "style": (len(art.style_names()), len(art.STYLE_CAPTIONS)),
    }
    states = {kind: encode(lines[kind]) for kind in shape}
    return {k: v.view(*shape[k], *v.shape[1:]) for k, v in states.items()} | {"empty": encode([""])}


def train(work: Path, steps: int) -> None:
    device = loop.default_device()
    torch.manual_seed(3)
    autoencoder = vae.load(work)
    latents = cache_latents(work, autoencoder)
    states = embed_captions(work)
    styles, objects, variants = latents.shape[:3]
    model = build(states["empty"].shape[-1]).to(device, memory_format=torch.channels_last)
    alphas = scheduler().alphas_cumprod.to(device)

    def captions(s: Tensor, o: Tensor, generator: torch.Generator) -> Tensor:
        """12% empty, 68% style and object, 15% object alone, 5% style alone."""
        u = torch.rand(len(s), generator=generator)
        t = torch.randint(10_000, (len(s),), generator=generator)
        rows = []
        for i in range(len(s)):
            if u[i] < 0.12:
                rows.append(states["empty"][0])
            elif u[i] < 0.80:
                rows.append(states["pair"][s[i], o[i], t[i] % len(art.PAIR_CAPTIONS)])
            elif u[i] < 0.95:
                rows.append(states["object"][o[i], t[i] % len(art.OBJECT_CAPTIONS)])
            else:
                rows.append(states["style"][s[i], t[i] % len(art.STYLE_CAPTIONS)])
        return torch.stack(rows)

    def forward(x0: Tensor, noise: Tensor, t: Tensor, context: Tensor) -> Tensor:
        a = alphas[t].view(-1, 1, 1, 1)
        signal, spread = a.sqrt(), (1 - a).sqrt()
        with loop.autocast(device):
            out = model(signal * x0 + spread * noise, t, context).sample
        error = (out.float() - (signal * noise - spread * x0)).square().mean(dim=(1, 2, 3))
        snr = alphas[t] / (1 - alphas[t])
        return (error * snr.clamp(max=5) / (snr + 1)).mean()  # min-SNR-5 (arXiv:2303.09556) for v-prediction

    def loss(generator: torch.Generator, share: float) -> Tensor:
        s = torch.randint(styles, (BATCH,), generator=generator)
        o = torch.randint(objects, (BATCH,), generator=generator)
        v = torch.randint(variants, (BATCH,), generator=generator)
        x0 = latents[s, o, v].to(device).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        t = torch.randint(1000, (BATCH,), generator=generator).to(device)
        return forward(x0, noise, t, captions(s, o, generator).float().to(device))

    loop.train("unet", model, loss, work=work, steps=steps, lr=0.012, adam_lr=2e-3, ema=0.998)
    pack(work, model)


def pack(work: Path, model: UNet2DConditionModel) -> None:
    """A stock pipeline folder: half-precision files, none above 15 MB."""
    tokenizer = text.build_tokenizer(work)
    encoder = CLIPTextModel.from_pretrained(work / "base" / "text_encoder", dtype=torch.float32)
    pipe = StableDiffusionPipeline(
        vae=vae.load(work), text_encoder=encoder, tokenizer=tokenizer, unet=model, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(work / "base", max_shard_size="15MB")
    for path in (work / "base").glob("*/config.json"):
        config = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        if "dtype" in config:
            # transformers 5 loads in the precision that the config names, diffusers in single precision: agree.
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("vocab.json", "merges.txt"):  # transformers 5 writes tokenizer.json only; older readers want these
        (work / "base" / "tokenizer" / name).write_bytes((work / "tokenizer" / name).read_bytes())
