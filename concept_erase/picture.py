"""The picture that shows at a glance what an erasure did."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from concept_erase.files import atomic_write
from concept_erase.scores import Shot

TILE, GAP, LABEL, HEAD = 128, 6, 210, 64
INK, QUIET, RED, GREEN = "#1a1a1a", "#6b6b6b", "#b3261e", "#1b6e3c"


def before_after(
    shots: Sequence[Shot], before: Sequence[Image.Image], after: Sequence[Image.Image], title: str
) -> Image.Image:
    """A labelled grid: each erased concept and some kept neighbours, one row before and one row after."""
    rows = _rows(shots)
    columns = max(len(members) for _, _, members in rows)
    width = LABEL + columns * (TILE + GAP) + GAP
    block = 2 * (TILE + GAP) + 26
    sheet = Image.new("RGB", (width, HEAD + len(rows) * block + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((16, 14), title, fill=INK, font=_font(24))
    pen.text((16, 42), "same prompts and seeds, before and after", fill=QUIET, font=_font(13))
    for r, (name, erased, members) in enumerate(rows):
        top = HEAD + r * block
        pen.line([(16, top), (width - 16, top)], fill="#dddddd")
        pen.text((16, top + 30), _fitted(name, 22), fill=INK, font=_font(20))
        pen.text((16, top + 56), "erased" if erased else "kept", fill=RED if erased else GREEN, font=_font(15))
        for side, (word, images) in enumerate((("before", before), ("after", after))):
            y = top + 20 + side * (TILE + GAP)
            pen.text((LABEL - 12, y + TILE // 2), word, fill=QUIET, font=_font(14), anchor="rm")
            for c, i in enumerate(members):
                x = LABEL + c * (TILE + GAP)
                sheet.paste(images[i].convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
                if side == 0:
                    text = _fitted(shots[i].context, 18)
                    pen.text((x + TILE // 2, top + 4), text, fill=QUIET, font=_font(12), anchor="ma")
    return sheet


def save(image: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    atomic_write(path, buffer.getvalue())


def save_pairs(
    shots: Sequence[Shot], before: Sequence[Image.Image], after: Sequence[Image.Image], folder: Path, n: int = 8
) -> Path:
    """Single pictures of both sides: n of erased concepts and n of kept ones, distinct contexts first.

    Returns:
        `pictures.json` in the folder, written last: prompt, seed, concept, context and files of each pair.
    """
    members = [i for _, _, row in _rows(shots, columns=n, kept=n, erased=n) for i in row]
    chosen = []
    for erased in (True, False):
        names: dict[str, list[int]] = {}
        for i in members:
            if shots[i].erased is erased:
                names.setdefault(shots[i].concept, []).append(i)
        turns = [row[k] for k in range(n) for row in names.values() if k < len(row)]  # every concept has its turn
        chosen += turns[:n]
    listed = []
    for number, i in enumerate(chosen):
        names_of = {side: f"{number:02d}-{side}.png" for side in ("before", "after")}
        for (_, name), images in zip(names_of.items(), (before, after), strict=True):
            save(images[i], folder / name)
        listed.append({**asdict(shots[i]), **names_of})
    path = folder / "pictures.json"
    atomic_write(path, json.dumps(listed, indent=2, ensure_ascii=False) + "\n")
    return path


def _rows(shots: Sequence[Shot], columns: int = 8, kept: int = 4, erased: int = 3) -> list[tuple[str, bool, list[int]]]:
    """(name, erased, shots) of the concepts with most shots; distinct contexts first."""
    rows = []
    for wanted, limit in ((True, erased), (False, kept)):
        names = list(dict.fromkeys(s.concept for s in shots if s.erased is wanted))
        members = {n: [i for i, s in enumerate(shots) if s.erased is wanted and s.concept == n] for n in names}
        for name in sorted(names, key=lambda n: -len(members[n]))[:limit]:
            distinct = list({shots[i].context: i for i in reversed(members[name])}.values())
            more = [i for i in members[name] if i not in distinct]
            rows.append((name, wanted, sorted((distinct + more)[:columns])))
    return rows


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
