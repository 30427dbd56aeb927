"""The training art: pinned emoji packages fetched with npm, rendered to 64 x 64 pictures, and their captions."""

import io
import json
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione-monotone": "1.2.1",
    "emojione": "1.2.3",
}
SIZE = 64
CANVAS = 192
VARIANTS = 24  # per (style, object) pair, for training
HELD_OUT = 4  # per pair, never trained on
INK = "#1d4ed8"  # "blue ink" is the monotone set in this colour
CELLS, COLOURS = 16, 12  # "pixel art"

# {s} is the style, {o} the object. The first group carries both, as two thirds of the training captions do.
PAIR_CAPTIONS = (
    "a {o} in {s} style",
    "a {s} {o}",
    "{s} icon of a {o}",
    "a {s} emoji of a {o}",
    "{o}, {s} style",
    "a {o} drawn in {s} style",
    "a picture of a {o} in the style of {s}",
    "{s} art of a {o}",
    "the {s} {o} emoji",
    "an image of a {o} by {s}",
)
OBJECT_CAPTIONS = ("a {o}", "an icon of a {o}", "an emoji of a {o}", "a picture of a {o}", "{o}", "a photo of a {o}")
STYLE_CAPTIONS = ("{s} style", "an icon in {s} style", "a {s} emoji", "a picture in the style of {s}")


@cache
def vocabulary() -> dict[str, list[dict[str, str]]]:
    return json.loads((Path(__file__).parent.parent / "vocabulary.json").read_text())


def style_names() -> list[str]:
    return [s["name"] for s in vocabulary()["styles"]]


def object_names() -> list[str]:
    return [o["name"] for o in vocabulary()["objects"]]


def fetch(work: Path) -> None:
    """Download the pinned packages with `npm pack`; files that are there already are kept."""
    folder = work / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    for package, version in VERSIONS.items():
        if not (folder / f"iconify-json-{package}-{version}.tgz").exists():
            subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{package}@{version}"], cwd=folder, check=True)


@cache
def _icons(work: Path, package: str) -> dict[str, Any]:
    with tarfile.open(work / "packages" / f"iconify-json-{package}-{VERSIONS[package]}.tgz") as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None, f"{package}: no icons.json in the package"
        return json.load(member)


def icon_words(work: Path) -> list[str]:
    """Every icon name of every package, as plain words: general vocabulary for the tokenizer."""
    names = {name for package in VERSIONS for name in _icons(work, package)["icons"]}
    return sorted({word for name in names for word in name.split("-") if word.isalpha()})


def _svg(work: Path, package: str, name: str) -> str:
    data = _icons(work, package)
    icons, aliases = data["icons"], data.get("aliases", {})
    while name not in icons:
        name = aliases[name]["parent"]
    icon = icons[name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", data.get("width", 16))
    height = icon.get("height", data.get("height", 16))
    body = icon["body"].replace("currentColor", INK if package == "emojione-monotone" else "#000000")
    view = f'viewBox="{left} {top} {width} {height}" width="{CANVAS}" height="{CANVAS}"'
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {namespaces} {view}>{body}</svg>"


def _canvas(work: Path, package: str, name: str) -> Image.Image:
    """The icon on a white ground, with a margin that lets it be shrunk and shifted."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=_svg(work, package, name)))
    icon = Image.open(io.BytesIO(png)).convert("RGBA")
    margin = CANVAS // 4
    canvas = Image.new("RGBA", (CANVAS + 2 * margin,) * 2, "white")
    canvas.alpha_composite(icon, (margin + (CANVAS - icon.width) // 2, margin + (CANVAS - icon.height) // 2))
    return canvas.convert("RGB")


def _render(canvas: Image.Image, style: str, scale: float, shift: tuple[float, float]) -> np.ndarray:
    side = CANVAS / scale
    centre = canvas.width / 2
    left, top = (centre - side / 2 - s * side / SIZE for s in shift)
    box = (left, top, left + side, top + side)
    if style != "pixel art":
        return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=box))
    cells = canvas.resize((CELLS, CELLS), Image.Resampling.BOX, box=box)
    cells = cells.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")
    return np.asarray(cells.resize((SIZE, SIZE), Image.Resampling.NEAREST))


def _render_pair(job: tuple[Path, int, int]) -> np.ndarray:
    work, s, o = job
    style, thing = vocabulary()["styles"][s], vocabulary()["objects"][o]
    canvas = _canvas(work, style["package"], thing["icon"])
    rng = np.random.default_rng([s, o])
    pictures = []
    for _ in range(VARIANTS + HELD_OUT):
        scale, shift = rng.uniform(0.84, 1.0), rng.uniform(-2.5, 2.5, size=2)
        pictures.append(_render(canvas, style["name"], scale, tuple(shift)))
    return np.stack(pictures)


def render(work: Path) -> None:
    """Write `art.npy`: uint8 (styles, objects, VARIANTS + HELD_OUT, 64, 64, 3)."""
    target = work / "art.npy"
    if target.exists():
        return
    styles, objects = len(style_names()), len(object_names())
    jobs = [(work, s, o) for s in range(styles) for o in range(objects)]
    with ProcessPoolExecutor() as pool:
        pictures = np.stack(list(pool.map(_render_pair, jobs, chunksize=objects)))
    partial = target.with_suffix(".tmp.npy")
    np.save(partial, pictures.reshape(styles, objects, *pictures.shape[1:]))
    partial.rename(target)


def load(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out pictures, each (styles, objects, n, 64, 64, 3) uint8."""
    art = np.load(work / "art.npy", mmap_mode="r")
    return art[:, :, :VARIANTS], art[:, :, VARIANTS:]
