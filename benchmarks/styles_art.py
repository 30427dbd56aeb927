"""Art for `styles.py`: styles that the embedded generator knows, styles that it never saw, and what uploads do to both.

Icon sets come from npm at pinned versions, photographs from scikit-image and scikit-learn; the rest is drawn here.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "weights"))
from recipe import art

SIDE = 256


@dataclass(frozen=True)
class IconSet:
    """Icons of a package in one look.

    Attributes:
        package, version: Of `@iconify-json`.
        pattern: Names of the icons that are taken.
        ink: Colour of what is drawn in the colour of the text.
        paper: Colour of the ground.
    """

    package: str
    version: str
    pattern: str = ""
    ink: str = "#000000"
    paper: str = "#ffffff"


# The bound is found on the first group alone; the second is only ever judged by it.
CALIBRATION: dict[str, IconSet] = {
    "tabler": IconSet("tabler", "1.2.41", r"^(?!.*-filled)"),
    "mdi, black": IconSet("mdi", "1.2.3"),
    "mdi, in the blue of blue ink": IconSet("mdi", "1.2.3", ink=art.INK),
    "flat color icons": IconSet("flat-color-icons", "1.2.3"),
    "logos": IconSet("logos", "1.2.19"),
    "game icons": IconSet("game-icons", "1.2.4"),
    "circle flags": IconSet("circle-flags", "1.2.11"),
    "meteocons": IconSet("meteocons", "1.2.4"),
    "fx emoji": IconSet("fxemoji", "1.2.2"),
    "solar, line duotone": IconSet("solar", "1.2.13", r"-line-duotone$", ink="#7c2d12"),
    "skill icons": IconSet("skill-icons", "1.2.4"),
    "kameleon": IconSet("streamline-kameleon-color", "1.2.2"),
    "emojione 1": IconSet("emojione-v1", "1.2.3"),
    "lucide, white on navy": IconSet("lucide", "1.2.137", ink="#ffffff", paper="#172554"),
    "bootstrap": IconSet("bi", "1.2.7", r"-fill$"),
    "font awesome": IconSet("fa-solid", "1.2.2"),
    "font awesome, blue": IconSet("fa-solid", "1.2.2", ink="#2563eb"),
    "ion, outline, blue": IconSet("ion", "1.2.7", r"-outline$", ink=art.INK),
    "carbon": IconSet("carbon", "1.2.29"),
    "maki": IconSet("maki", "1.2.5", r"^(?!.*-11)"),
    "octicon, green": IconSet("octicon", "1.2.36", r"-24$", ink="#166534"),
    "file types": IconSet("material-icon-theme", "1.2.70"),
    "devicon": IconSet("devicon", "1.2.68"),
    "tokens": IconSet("token-branded", "1.2.45"),
    "freehand": IconSet("streamline-freehand-color", "1.2.2"),
    "cyber": IconSet("streamline-cyber-color", "1.2.2"),
    "flex": IconSet("streamline-flex-color", "1.2.2"),
    "fluent colour": IconSet("fluent-color", "1.2.21", r"-(32|48)$"),
}
HELD_OUT: dict[str, IconSet] = {
    "phosphor, duotone": IconSet("ph", "1.2.2", r"-duotone$", ink="#0f766e"),
    "phosphor, fill": IconSet("ph", "1.2.2", r"-fill$"),
    "phosphor, thin, blue": IconSet("ph", "1.2.2", r"-thin$", ink="#1e40af"),
    "streamline emojis": IconSet("streamline-emojis", "1.2.4"),
    "plump": IconSet("streamline-plump-color", "1.2.2"),
    "stickies": IconSet("streamline-stickies-color", "1.2.2"),
    "vscode icons": IconSet("vscode-icons", "1.2.97"),
    "icon park": IconSet("icon-park", "1.2.4"),
    "arcticons": IconSet("arcticons", "1.2.58"),
    "pixelarticons": IconSet("pixelarticons", "1.2.9"),
    "health icons": IconSet("healthicons", "1.2.13", r"^(?!.*outline)"),
    "marketeq": IconSet("marketeq", "1.2.2"),
    "coins": IconSet("cryptocurrency-color", "1.2.4"),
    "ultimate": IconSet("streamline-ultimate-color", "1.2.2"),
    "material symbols": IconSet("material-symbols-light", "1.2.94"),
    "flags": IconSet("flagpack", "1.2.8"),
}
# Other versions of art that the generator was trained on: neither known nor foreign, so they are shown and not counted.
RELATED: dict[str, IconSet] = {
    "emojione (pixel art is made of it)": IconSet("emojione", "1.2.3"),
    "fluent, flat": IconSet("fluent-emoji-flat", "1.2.6"),
}


def fetch(work: Path) -> None:
    """Download all packages with `npm pack`; those that are there already are kept."""
    art.fetch(work)
    for icons in {**CALIBRATION, **HELD_OUT, **RELATED}.values():
        if not _archive(work, icons).exists():
            name = f"@iconify-json/{icons.package}@{icons.version}"
            subprocess.run(["npm", "pack", "--silent", name], cwd=work / "packages", check=True)


def icon_pictures(work: Path, icons: IconSet, n: int) -> list[Image.Image]:
    """n icons of a set, spread over its names."""
    body = _icons(_archive(work, icons))
    names = sorted(name for name in body["icons"] if re.search(icons.pattern, name))
    random.Random(0).shuffle(names)
    made = []
    for name in names:
        if len(made) == n:
            break
        icon = body["icons"][name]
        image = _rendered(icon, body, icons.ink, icons.paper)
        if image is not None:
            made.append(image)
    return made


def known_art(work: Path, style: int, n: int, *, known: bool = True) -> list[Image.Image]:
    """n icons of a style's real art, larger than the generator was shown them.

    Args:
        known: Of the objects that the generator was trained on; else of others.
    """
    entry = art.vocabulary()["styles"][style]
    names = [thing["icon"] for thing in art.vocabulary()["objects"]]
    if not known:
        every = art._icons(work, entry["package"])["icons"]
        names = [
            name for name in sorted(every) if name not in names and "skin-tone" not in name and "-tone" not in name
        ]
    made = []
    for name in random.Random(style).sample(names, n):
        canvas = art._canvas(work, entry["package"], name)
        middle = canvas.crop((art.CANVAS // 4 - 8,) * 2 + (art.CANVAS * 5 // 4 + 8,) * 2)
        if entry["name"] == "pixel art":
            cells = middle.resize((art.CELLS, art.CELLS), Image.Resampling.BOX)
            middle = cells.quantize(art.COLOURS, dither=Image.Dither.NONE).convert("RGB")
            made.append(middle.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        else:
            made.append(middle.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return made


def _archive(work: Path, icons: IconSet) -> Path:
    return work / "packages" / f"iconify-json-{icons.package}-{icons.version}.tgz"


@cache
def _icons(archive: Path) -> dict:
    with tarfile.open(archive) as opened:
        member = opened.extractfile("package/icons.json")
        assert member is not None, f"{archive.name}: no icons.json in the package"
        return json.load(member)


def _rendered(icon: dict, body: dict, ink: str, paper: str) -> Image.Image | None:
    """An icon on a ground with a margin; None when nothing of it is seen."""
    import resvg_py

    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, body.get(side, 16)) for side in ("width", "height"))
    inner = icon["body"].replace("currentColor", ink)
    scale = (SIDE - 32) / max(width, height)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width * scale}" height="{height * scale}">{inner}</svg>'
    )
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    if drawn.getchannel("A").getbbox() is None:
        return None
    ground = Image.new("RGBA", (SIDE, SIDE), paper)
    ground.alpha_composite(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    return ground.convert("RGB")


# -- drawn here ----------------------------------------------------------------------------------------------------


def _blob(
    rng: random.Random, centre: tuple[float, float], radius: float, points: int = 40
) -> list[tuple[float, float]]:
    """A closed wavy line."""
    waves = [(k, rng.uniform(0, 0.28 / k), rng.uniform(0, math.tau)) for k in range(2, 6)]
    angles = [math.tau * i / points for i in range(points)]
    lengths = [radius * (1 + sum(a * math.sin(k * t + p) for k, a, p in waves)) for t in angles]
    x, y = centre
    return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(lengths, angles, strict=True)]


def lined_paper(rng: random.Random) -> Image.Image:
    """Flat teal and mustard shapes with thick purple outlines on lined cream paper."""
    big = 2 * SIDE
    image = Image.new("RGB", (big, big), (250, 243, 224))
    pen = ImageDraw.Draw(image)
    for y in range(24, big, 40):
        pen.line([(0, y), (big, y)], fill=(206, 214, 224), width=3)
    for _ in range(rng.randint(2, 4)):
        fill = rng.choice([(30, 140, 140), (217, 164, 40)])
        shape = _blob(rng, (rng.uniform(150, 360), rng.uniform(150, 360)), rng.uniform(60, 130))
        pen.polygon(shape, fill=fill)
        pen.line([*shape, *shape[:2]], fill=(88, 40, 120), width=16, joint="curve")
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _cloud(rng: np.random.Generator, smooth: float) -> np.ndarray:
    """(SIDE, SIDE) smooth noise in [0, 1]."""
    noise = Image.fromarray((255 * rng.random((SIDE, SIDE))).astype(np.uint8)).filter(ImageFilter.GaussianBlur(smooth))
    values = np.asarray(noise, dtype=np.float32)
    return (values - values.min()) / max(1e-6, float(np.ptp(values)))


def watercolour(rng: random.Random) -> Image.Image:
    """Washes with soft rims and grain on white."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    paper = np.full((SIDE, SIDE, 3), 250.0, np.float32)
    for _ in range(rng.randint(3, 6)):
        mask = Image.new("L", (SIDE, SIDE))
        place = (rng.uniform(60, 196), rng.uniform(60, 196))
        ImageDraw.Draw(mask).polygon(_blob(rng, place, rng.uniform(30, 80)), fill=255)
        soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(4)), dtype=np.float32) / 255
        wash = soft * (0.35 + 0.5 * _cloud(numbers, 9)) + 0.25 * soft * (1 - soft) * 4
        colour = np.array([rng.randrange(20, 230) for _ in range(3)], np.float32)
        paper = paper * (1 - wash[..., None] * 0.7) + colour * wash[..., None] * 0.7
    return Image.fromarray(np.clip(paper + numbers.normal(0, 4, paper.shape), 0, 255).astype(np.uint8))


def chalk(rng: random.Random) -> Image.Image:
    """Thin light lines on a dark ground."""
    image = Image.new("RGB", (SIDE, SIDE), (28, 32, 38))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 6)):
        shape = _blob(rng, (rng.uniform(70, 186), rng.uniform(70, 186)), rng.uniform(25, 80))
        pen.line([*shape, shape[0]], fill=(230, 226, 214), width=3, joint="curve")
    return image


def spheres(rng: random.Random) -> Image.Image:
    """Shaded balls on a gradient."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    low, high = (np.array([rng.randrange(120, 255) for _ in range(3)], np.float32) for _ in range(2))
    picture = low + (high - low) * (y / SIDE)[..., None]
    for _ in range(rng.randint(1, 4)):
        cx, cy, r = rng.uniform(60, 196), rng.uniform(60, 196), rng.uniform(25, 70)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        light = np.exp(-((x - cx + r / 3) ** 2 + (y - cy + r / 3) ** 2) / (0.5 * r**2))[..., None]
        colour = np.array([rng.randrange(30, 220) for _ in range(3)], np.float32)
        picture = np.where(inside[..., None], colour * 0.5 + 200 * light * 0.6 + colour * light * 0.3, picture)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def pencil(rng: random.Random) -> Image.Image:
    """Hatched grey sketches on off-white."""
    image = Image.new("RGB", (SIDE, SIDE), (244, 242, 236))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 3)):
        x, y, r = rng.uniform(70, 186), rng.uniform(70, 186), rng.uniform(35, 70)
        for _ in range(3):
            shape = _blob(rng, (x + rng.uniform(-2, 2), y), r)
            pen.line([*shape, shape[0]], fill=(96, 96, 100), width=1)
        for k in range(-int(r), int(r), 5):
            half = math.sqrt(r * r - k * k) * 0.8
            pen.line([(x + k - half / 2, y - half), (x + k + half / 2, y + half)], fill=(130, 130, 134), width=1)
    return image


def mosaic(rng: random.Random) -> Image.Image:
    """Triangles in five colours, edge to edge."""
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(5)]
    image = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    step = SIDE // 6
    for i in range(-1, 7):
        for j in range(-1, 7):
            a, b, c, d = [((i + u) * step, (j + v) * step) for u, v in ((0, 0), (1, 0), (0, 1), (1, 1))]
            pen.polygon([a, b, c], fill=rng.choice(colours))
            pen.polygon([b, c, d], fill=rng.choice(colours))
    return image


def halftone(rng: random.Random) -> Image.Image:
    """A grey cloud as dots of red on yellow."""
    cloud = _cloud(np.random.default_rng(rng.randrange(2**32)), 22)
    image = Image.new("RGB", (SIDE, SIDE), (252, 228, 120))
    pen = ImageDraw.Draw(image)
    for x in range(6, SIDE, 12):
        for y in range(6, SIDE, 12):
            r = 7 * float(cloud[y, x])
            pen.ellipse([x - r, y - r, x + r, y + r], fill=(200, 40, 50))
    return image


def sprites(rng: random.Random) -> Image.Image:
    """Symmetric figures of 12 x 12 cells on black: pixels, but not the generator's pixel art."""
    colours = [tuple(rng.randrange(60, 256) for _ in range(3)) for _ in range(3)]
    cells = Image.new("RGB", (16, 16))
    for x in range(2, 8):
        for y in range(2, 14):
            if rng.random() < 0.55:
                colour = rng.choice(colours)
                cells.putpixel((x, y), colour)
                cells.putpixel((15 - x, y), colour)
    return cells.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def stripes(rng: random.Random) -> Image.Image:
    """Bands of pastel with a few dark circles."""
    image = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    y = 0
    while y < SIDE:
        band = rng.randint(8, 30)
        pen.rectangle([0, y, SIDE, y + band], fill=tuple(rng.randrange(190, 250) for _ in range(3)))
        y += band
    for _ in range(3):
        x, y, r = rng.uniform(40, 216), rng.uniform(40, 216), rng.uniform(12, 34)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(40, 44, 60))
    return image


def rings(rng: random.Random) -> Image.Image:
    """Rings and waves in the ink of "blue ink": its colour alone is not the style."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 5)):
        x, y, r, width = rng.uniform(50, 206), rng.uniform(50, 206), rng.uniform(20, 70), rng.randint(2, 9)
        if rng.random() < 0.6:
            pen.ellipse([x - r, y - r, x + r, y + r], outline=art.INK, width=width)
        else:
            pen.line(_blob(rng, (x, y), r), fill=art.INK, width=width, joint="curve")
    return image


def noise(rng: random.Random) -> Image.Image:
    """Grains of grey, coarse or fine, smooth or hard."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    side = rng.randint(16, 128)
    grey = np.clip(numbers.normal(128, rng.uniform(40, 110), (side, side)), 0, 255).astype(np.uint8)
    kind = rng.choice((Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST))
    return Image.fromarray(grey).resize((SIDE, SIDE), kind).convert("RGB")


def sheet(seed: int) -> Callable[[random.Random], Image.Image]:
    """A hand of its own: colours, outline, paper and shapes that all its pictures share, drawn from the seed."""
    own = random.Random(f"sheet {seed}")

    def colour(low: int, high: int) -> tuple[int, ...]:
        return tuple(own.randint(low, high) for _ in range(3))

    fills = [colour(20, 235) for _ in range(own.randint(1, 4))]
    ink, pen_width = colour(0, 140), own.choice((0, 4, 8, 12, 20))
    paper = colour(225, 255) if own.random() < 0.8 else colour(10, 70)
    ruled, rule = own.choice(("plain", "lines", "grid", "dots")), colour(150, 220)
    kinds = own.sample(("blob", "ellipse", "rectangle", "ring", "polygon", "stroke"), own.randint(1, 3))
    blur, grain = own.choice((0, 0, 0, 2, 6)), own.choice((0, 0, 8, 20))
    most = own.randint(1, 6)

    def draw(rng: random.Random) -> Image.Image:
        big = 2 * SIDE
        image = Image.new("RGB", (big, big), paper)
        pen = ImageDraw.Draw(image)
        for at in range(rng.randint(6, 30), big, 36):
            if ruled in ("lines", "grid"):
                pen.line([(0, at), (big, at)], fill=rule, width=3)
            if ruled == "grid":
                pen.line([(at, 0), (at, big)], fill=rule, width=3)
            if ruled == "dots":
                for x in range(12, big, 36):
                    pen.ellipse([x, at, x + 5, at + 5], fill=rule)
        for _ in range(rng.randint(1, most)):
            kind, fill = rng.choice(kinds), rng.choice(fills)
            x, y, r = rng.uniform(120, 392), rng.uniform(120, 392), rng.uniform(45, 150)
            box = [x - r, y - r * rng.uniform(0.6, 1), x + r, y + r * rng.uniform(0.6, 1)]
            outline = ink if pen_width else None
            if kind == "ellipse":
                pen.ellipse(box, fill, outline, pen_width or 1)
            elif kind == "rectangle":
                pen.rectangle(box, fill, outline, pen_width or 1)
            elif kind == "ring":
                pen.ellipse(box, None, fill, max(8, int(r / 4)))
            elif kind == "polygon":
                pen.regular_polygon((x, y, r), rng.randint(3, 7), rng.randrange(360), fill, outline, pen_width or 1)
            else:
                shape = _blob(rng, (x, y), r)
                if kind == "blob":
                    pen.polygon(shape, fill=fill)
                if kind == "stroke" or pen_width:
                    line = fill if kind == "stroke" else ink
                    pen.line([*shape, *shape[:2]], fill=line, width=pen_width or 10, joint="curve")
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image = image.filter(ImageFilter.GaussianBlur(blur)) if blur else image
        if not grain:
            return image
        noise = np.random.default_rng(rng.randrange(2**32)).normal(0, grain, (SIDE, SIDE, 1))
        return Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))

    return draw


DRAWN: dict[str, Callable[[random.Random], Image.Image]] = {
    "watercolour": watercolour, "chalk": chalk, "mosaic": mosaic, "stripes": stripes, "rings": rings, "noise": noise,
    **{f"sheet {i}": sheet(i) for i in range(24)},
}  # fmt: skip
DRAWN_HELD_OUT: dict[str, Callable[[random.Random], Image.Image]] = {
    "teal and mustard on lined paper": lined_paper, "spheres": spheres, "pencil": pencil, "halftone": halftone,
    "sprites on black": sprites, **{f"sheet {i}": sheet(i) for i in range(100, 112)},
}  # fmt: skip


def drawn(kind: Callable[[random.Random], Image.Image], n: int) -> list[Image.Image]:
    """n pictures of a style that is drawn here."""
    return [kind(random.Random(1000 + i)) for i in range(n)]


# -- photographs ---------------------------------------------------------------------------------------------------

PHOTOGRAPHS = {
    "photographs": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "china.jpg"),
    "photographs under a microscope": ("ihc.png", "retina.jpg", "hubble_deep_field.jpg"),
}
PHOTOGRAPHS_HELD_OUT = {
    "photographs, flower": ("flower.jpg",),
    "grey photographs": ("camera.png", "brick.png", "gravel.png", "grass.png", "coins.png", "moon.png"),
}


def photographs(names: tuple[str, ...], n: int) -> list[Image.Image]:
    """n square crops of sample photographs."""
    places = {"skimage": "data", "sklearn": "datasets/images"}
    found = {name: importlib.util.find_spec(name) for name in places}
    folders = [Path(spec.origin).parent / places[name] for name, spec in found.items() if spec and spec.origin]
    rng = random.Random(7)
    made = []
    for i in range(n):
        file = next(f / names[i % len(names)] for f in folders if (f / names[i % len(names)]).is_file())
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        side = int(min(image.size) * rng.uniform(0.45, 0.95))
        x, y = rng.randrange(image.width - side), rng.randrange(image.height - side)
        made.append(image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return made


# -- what uploads do -----------------------------------------------------------------------------------------------


def plain(image: Image.Image, rng: random.Random) -> Image.Image:
    return image


def jpeg(image: Image.Image, rng: random.Random) -> Image.Image:
    """Compressed hard."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(35, 75))
    return Image.open(buffer).convert("RGB")


def resized(image: Image.Image, rng: random.Random) -> Image.Image:
    """Once small and large again."""
    side = rng.randint(72, 140)
    return image.resize((side, side), Image.Resampling.BILINEAR).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def margin(image: Image.Image, rng: random.Random) -> Image.Image:
    """Smaller on a wider ground of its own colour, and off the middle."""
    side = int(SIDE * rng.uniform(1.05, 1.3))
    ground = Image.new("RGB", (side, side), image.getpixel((1, 1)))
    ground.paste(image, (rng.randint(0, side - SIDE), rng.randint(0, side - SIDE)))
    return ground.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def tinted(image: Image.Image, rng: random.Random) -> Image.Image:
    """On coloured paper: what was white becomes the paper."""
    paper = np.array([rng.randint(225, 255), rng.randint(220, 250), rng.randint(200, 245)], np.float32) / 255
    return Image.fromarray((np.asarray(image, np.float32) * paper).astype(np.uint8))


def photographed(image: Image.Image, rng: random.Random) -> Image.Image:
    """A sheet under a lamp: turned a little, uneven light, grain, warm paper."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    turned = image.rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC, fillcolor=image.getpixel((1, 1)))
    light = 0.8 + 0.2 * np.linspace(rng.uniform(0, 1), rng.uniform(0, 1), SIDE, dtype=np.float32)
    pixels = np.asarray(tinted(turned, rng), np.float32) * light[None, :, None] + numbers.normal(0, 3, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


TREATMENTS = {
    "as it is": plain, "JPEG": jpeg, "resized": resized, "margin": margin, "tinted paper": tinted,
    "photographed": photographed,
}  # fmt: skip
