"""The picture of an interference: adapters down, concepts across, darker where they move further."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from concept_erase.picture import GREEN, INK, QUIET, RED, _fitted, _font

if TYPE_CHECKING:
    from concept_erase.interference import Interference

ROWS, COLUMNS = 40, 64  # more are not readable; those of the worst pairs are drawn then
LINE, STRONG = "#dddddd", ImageColor.getrgb(RED)
GAP = 14  # between what is erased and what stays, and above "all together"
EDGE = 24
SLANT = math.sin(math.radians(50)), math.cos(math.radians(50))


def shade(value: float) -> tuple[int, int, int]:
    """White at 0, strong at 1 and above, evenly between."""
    part = min(max(float(value), 0.0), 1.0)
    red, green, blue = (round(255 + part * (c - 255)) for c in STRONG)
    return red, green, blue


def draw(found: Interference) -> Image.Image:
    """A labelled heat map: a row for each adapter and one for all together, a column for each concept.

    What an adapter erases itself is outlined. Above 40 adapters or 64 concepts only those of the worst pairs are
    drawn, and the picture says so.
    """
    rows, columns = _chosen(found)
    partial = len(rows) < len(found.adapters) or len(columns) < len(found.concepts)
    together = len(found.adapters) > 1
    side = 52 if len(columns) <= 14 else 40 if len(columns) <= 32 else 26
    numbers = _font(15 if side > 45 else 13) if side > 30 else None  # there is no room for them in small cells
    heading = _font(15 if side > 30 else 13)

    names = [_fitted(found.adapters[k].removeprefix("Erases "), 34) for k in rows]
    tops = [_fitted(found.concepts[j], 24) for j in columns]
    label = EDGE + 14 + max(heading.getlength(text) for text in (*names, "all together"))
    longest = max(heading.getlength(text) for text in tops)
    split = sum(bool(found.erased[j]) for j in columns)
    xs = [round(label) + i * side + (GAP if 0 < split <= i else 0) for i in range(len(columns))]
    top = round((88 if partial else 70) + longest * SLANT[0] + 22)
    ys = [top + i * side for i in range(len(rows) + together)]
    if together:
        ys[-1] += GAP

    lines = ["1: as far as the way from a concept to its own anchor. Outlined: what the adapter erases itself."]
    if partial:
        lines.append(
            f"The worst pairs only: {len(rows)} of {len(found.adapters)} adapters, "
            f"{len(columns)} of {len(found.concepts)} concepts."
        )
    title = "How far each adapter moves each concept"
    words = max(_font(24).getlength(title), *(_font(13).getlength(line) for line in lines))
    slanted = max(x + side / 2 + heading.getlength(text) * SLANT[1] + 12 for x, text in zip(xs, tops, strict=True))
    width = round(max(xs[-1] + side + EDGE, slanted + EDGE / 2, words + 2 * EDGE, label + 300))
    sheet = Image.new("RGB", (width, ys[-1] + side + 76), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((EDGE, 18), title, fill=INK, font=_font(24))
    for i, line in enumerate(lines):
        pen.text((EDGE, 52 + 18 * i), line, fill=RED if i else QUIET, font=_font(13))

    for x, text, j in zip(xs, tops, columns, strict=True):
        _slanted(sheet, (x + side // 2, top - 10), text, heading, RED if found.erased[j] else GREEN)
    for y, text in zip(ys, [*names, *(["all together"] if together else [])], strict=True):
        pen.text((label - 14, y + side // 2), text, fill=INK, font=heading, anchor="rm")

    matrix = np.vstack([found.moved[np.ix_(rows, columns)], *([found.together[columns]] if together else [])])
    own = np.vstack([found.own[np.ix_(rows, columns)], *([np.zeros(len(columns), bool)] if together else [])])
    for y, values in zip(ys, matrix, strict=True):
        for x, value in zip(xs, values, strict=True):
            box = (x, y, x + side - 2, y + side - 2)
            pen.rectangle(box, fill=shade(value), outline=LINE)
            if numbers:
                ink = "white" if value > 0.6 else INK if value >= 0.1 else QUIET
                pen.text((x + side // 2 - 1, y + side // 2 - 1), _short(value), fill=ink, font=numbers, anchor="mm")
    for y, mine in zip(ys, own, strict=True):  # on top of all cells, so that no neighbour covers an outline
        for x, outlined in zip(xs, mine, strict=True):
            if outlined:
                pen.rectangle((x - 2, y - 2, x + side, y + side), outline=INK, width=3)
    _legend(pen, round(label), ys[-1] + side + 22, split < len(columns))
    return sheet


def _chosen(found: Interference) -> tuple[list[int], list[int]]:
    """Rows and columns in their order: all, or as many as fit of those in the worst pairs."""
    rows, columns = list(range(len(found.adapters))), list(range(len(found.concepts)))
    if len(rows) <= ROWS and len(columns) <= COLUMNS:
        return rows, columns
    some_rows = dict.fromkeys(rows if len(rows) <= ROWS else ())
    some_columns = dict.fromkeys(columns if len(columns) <= COLUMNS else ())
    order = np.argsort(-np.where(found.own, -1.0, found.moved), axis=None, kind="stable")
    for k, j in (divmod(int(i), len(columns)) for i in order):
        if k not in some_rows and len(some_rows) < ROWS:
            some_rows[k] = None
        if k in some_rows and len(some_columns) < COLUMNS:
            some_columns[j] = None
        if len(some_rows) >= min(ROWS, len(rows)) and len(some_columns) >= min(COLUMNS, len(columns)):
            break
    return sorted(some_rows), sorted(some_columns)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 1000 else "999+"


def _slanted(sheet: Image.Image, foot: tuple[int, int], text: str, font: object, colour: str) -> None:
    """Text that rises to the right from its foot; drawn large and made small, so that its edges are smooth."""
    scale = 4
    large = _font(round(font.size * scale))  # type: ignore[attr-defined]
    length, height = math.ceil(large.getlength(text)) + 2 * scale, round(font.size * scale * 1.5)  # type: ignore[attr-defined]
    strip = Image.new("L", (length, height), 0)
    ImageDraw.Draw(strip).text((scale, height // 2), text, fill=255, font=large, anchor="lm")
    turned = strip.rotate(50, expand=True, resample=Image.Resampling.BICUBIC)
    small = turned.resize((round(turned.width / scale), round(turned.height / scale)), Image.Resampling.LANCZOS)
    # After turning, the middle of the strip's left edge is half a line's slant from the lower left corner.
    half = height / scale / 2
    x = round(foot[0] - half * SLANT[0])
    y = round(foot[1] - small.height + half * SLANT[1])
    sheet.paste(colour, (x, y), small)


def _legend(pen: ImageDraw.ImageDraw, x: int, y: int, kept: bool) -> None:
    """The scale with 0, 0.5 and 1, and what the colours of the headings mean."""
    length = 160
    for i in range(length):
        pen.line([(x + i, y), (x + i, y + 12)], fill=shade(i / (length - 1)))
    pen.rectangle((x, y, x + length, y + 12), outline=LINE)
    for part, text in ((0.0, "0"), (0.5, "0.5"), (1.0, "1 and more")):
        place = x + round(part * length)
        pen.line([(place, y + 12), (place, y + 16)], fill=QUIET)
        pen.text((place, y + 19), text, fill=QUIET, font=_font(13), anchor="ma")
    pen.text((x + length + 56, y - 2), "erased", fill=RED, font=_font(15))
    if kept:
        pen.text((x + length + 120, y - 2), "kept", fill=GREEN, font=_font(15))
