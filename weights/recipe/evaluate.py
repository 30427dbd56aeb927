"""Measure the trained parts and draw the grid picture; pack everything with its manifest."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from concept_erase.judge import Judge

from . import art, judges, unet, vae


def sample_grid(
    work: Path, *, steps: int = unet.STEPS, guidance: float = unet.GUIDANCE, batch: int = 32
) -> list[Image.Image]:
    """One image of every (style, object) pair, in that order."""
    pipe = StableDiffusionPipeline.from_pretrained(work / "base")
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    prompts = [art.PAIR_CAPTIONS[0].format(s=s, o=o) for s in art.style_names() for o in art.object_names()]
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
        images += pipe(
            chunk, generator=seeds, num_inference_steps=steps, guidance_scale=guidance, height=art.SIZE, width=art.SIZE
        ).images
        print(f"grid {len(images)}/{len(prompts)}", flush=True)
    return images


def evaluate(work: Path) -> dict[str, object]:
    """All figures of `weights/README.md`, and the grid picture."""
    styles, objects = art.style_names(), art.object_names()
    images = sample_grid(work)
    judge = Judge.load(work / "judge")
    named_styles, named_objects = judge.name(images)
    truth = [(s, o) for s in styles for o in objects]
    right_style = np.array([a == s for a, (s, _) in zip(named_styles, truth, strict=True)])
    right_object = np.array([a == o for a, (_, o) in zip(named_objects, truth, strict=True)])
    held_out = np.ascontiguousarray(art.load(work)[1]).reshape(-1, art.SIZE, art.SIZE, 3)
    ratios = vae.psnr(vae.load(work), held_out)
    figures: dict[str, object] = {
        "grid": {
            "n": len(truth),
            "steps": unet.STEPS,
            "guidance": unet.GUIDANCE,
            "style": round(100 * right_style.mean(), 2),
            "object": round(100 * right_object.mean(), 2),
            "style_by_style": {
                s: round(100 * right_style.reshape(len(styles), -1)[i].mean(), 2) for i, s in enumerate(styles)
            },
            "object_by_style": {
                s: round(100 * right_object.reshape(len(styles), -1)[i].mean(), 2) for i, s in enumerate(styles)
            },
        },
        "judge": judges.judge_accuracy(work),
        "vae_psnr": {
            "n": len(ratios),
            "mean_of_pictures_dB": round(ratios.mean().item(), 2),
            "of_mean_error_dB": round(-10 * torch.log10((10 ** (-ratios / 10)).mean()).item(), 2),
        },
    }
    draw_grid(work, images)
    (work / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def draw_grid(work: Path, images: list[Image.Image], columns: int = 24) -> None:
    """Some objects in every style, with labels: `grid.png`."""
    styles, objects = art.style_names(), art.object_names()
    shown = [i * len(objects) // columns for i in range(columns)]
    side, label = art.SIZE, 84
    sheet = Image.new("RGB", (label + columns * side, 16 + len(styles) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for c, o in enumerate(shown):
        pen.text((label + c * side + side // 2, 3), objects[o], fill="#333", anchor="ma")
    for r, style in enumerate(styles):
        pen.text((4, 16 + r * side + side // 2), style, fill="#333", anchor="lm")
        for c, o in enumerate(shown):
            sheet.paste(images[r * len(objects) + o], (label + c * side, 16 + r * side))
    sheet.save(work / "grid.png", optimize=True)


def pack(work: Path, target: Path) -> None:
    """Copy what ships into `target` and write `manifest.json` with the SHA-256 of every file."""
    for part in ("base", "scorer", "judge"):
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(work / part, target / part)
    for name in ("grid.png", "evaluation.json"):
        shutil.copy(work / name, target / name)
    shipped = [p for part in ("base", "scorer", "judge") for p in sorted((target / part).rglob("*")) if p.is_file()]
    shipped.append(target / "vocabulary.json")
    for path in shipped:
        path.chmod(0o644)
    files = {p.relative_to(target).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in shipped}
    (target / "manifest.json").write_text(json.dumps({"files": files}, indent=1) + "\n")
    size = sum(p.stat().st_size for p in shipped)
    print(
        f"{len(files)} files, {size / 2**20:.1f} MiB, largest {max(p.stat().st_size for p in shipped) / 2**20:.1f} MiB"
    )
