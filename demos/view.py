"""Pieces of the page as HTML. Whatever comes from outside goes through `esc`; pictures are put in as data."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from .jobs import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Job, Progress
from .pace import stage
from .places import unplaced

LARGE, MEDIUM, SMALL = 448, 256, 112  # pixels of shown pictures

_TEMPLATE_MARKS = {ord(c): f"&#{ord(c)};" for c in "{}$`"}  # the page's template languages must not see these


def esc(text: object) -> str:
    """Plain text as HTML, also within attributes."""
    return html.escape(str(text), quote=True).translate(_TEMPLATE_MARKS)


def picture_data(image: Image.Image, side: int = MEDIUM) -> str:
    """A picture as a data address, enlarged or reduced smoothly to `side` pixels."""
    image = image.convert("RGB")
    scale = side / max(image.size)
    if scale != 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=86, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@lru_cache(maxsize=512)
def _file_data(path: str, modified: int, side: int) -> str:
    with Image.open(path) as image:
        return picture_data(image, side)


def file_data(path: Path, side: int = MEDIUM) -> str:
    """A picture file of the demo's own as a data address; kept in memory."""
    return _file_data(str(path), path.stat().st_mtime_ns, side)


def figure(source: str, alt: str, caption: str = "", *, sensitive: bool = False, kind: str = "") -> str:
    """A picture with its caption, blurred behind a button when sensitive."""
    veil = veil_button(alt) if sensitive else ""
    told = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="ce-figure {kind}{" ce-sensitive" if sensitive else ""}"><div class="ce-frame">'
        f'<img src="{source}" alt="{esc(alt)}" decoding="async">{veil}</div>{told}</figure>'
    )


def veil_button(what: str) -> str:
    """The button over a sensitive picture."""
    return (
        f'<button type="button" class="ce-veil" aria-pressed="false" aria-label="Sensitive picture, show: {esc(what)}">'
        '<span class="ce-veil-word">Show</span></button>'
    )


def slide(pair: Pair, n: int) -> str:
    """One before/after pair under a cut that a range input moves."""
    sensitive = " ce-sensitive" if pair.sensitive else ""
    return (
        f'<div class="ce-slide{sensitive}" data-n="{n}" style="--cut:50%"{" hidden" if n else ""}>'
        f'<div class="ce-frame"><img src="{pair.before}" alt="{esc(f"before: {pair.prompt}")}">'
        f'<img class="ce-over" src="{pair.after}" alt="{esc(f"after: {pair.prompt}")}"><span class="ce-line"></span>'
        '<span class="ce-tag ce-tag-left">before</span><span class="ce-tag ce-tag-right">after</span>'
        f'<input class="ce-cut" type="range" min="0" max="100" value="50" '
        f'aria-label="{esc(f"Compare before and after: {pair.prompt}")}">'
        f"{veil_button(pair.prompt) if pair.sensitive else ''}</div>"
        f'<p class="ce-prompt">{esc(pair.prompt)} <span>seed {pair.seed}</span></p></div>'
    )


class Pair:
    """The same prompt and seed before and after, as data addresses of pictures."""

    def __init__(self, row: dict[str, Any], before: str, after: str, small: str, sensitive: bool) -> None:
        self.prompt, self.seed = str(row.get("prompt", "")), int(row.get("seed", 0))
        self.concept, self.context = str(row.get("concept", "")), str(row.get("context", ""))
        self.erased = bool(row.get("erased"))
        self.before, self.after, self.small, self.sensitive = before, after, small, sensitive


def viewer(pairs: Sequence[Pair], element: str) -> str:
    """The slider with a picker: what was erased first, then what was to stay."""
    if not pairs:
        return ""
    picks = []
    for erased, heading in ((True, "Erased"), (False, "Kept")):
        buttons = "".join(
            f'<button type="button" class="ce-pick{" ce-blurred" if p.sensitive else ""}" data-n="{n}" '
            f'aria-pressed="{"true" if n == 0 else "false"}" aria-label="{esc(f"Compare {p.prompt}")}">'
            f'<img src="{p.small}" alt=""></button>'
            for n, p in enumerate(pairs)
            if p.erased is erased
        )
        if buttons:
            picks.append(f'<h3 class="ce-h4">{heading}</h3><div class="ce-picks">{buttons}</div>')
    slides = "".join(slide(pair, n) for n, pair in enumerate(pairs))
    return (
        f'<div class="ce-viewer" id="{element}"><div class="ce-stage">{slides}</div>'
        f'<div class="ce-side">{"".join(picks)}'
        '<p class="ce-quiet">Drag the line, or use the arrow keys. Both sides were drawn from the same words and the '
        "same seed.</p></div></div>"
    )


def grid(pairs: Sequence[Pair], element: str) -> str:
    """All pairs, before above after: a block for each erased concept, and one for all that was to stay."""
    groups = [(name, [p for p in pairs if p.erased and p.concept == name]) for name in _names(pairs, erased=True)]
    blocks = [
        f'<section class="ce-row"><h4>{esc(name)} <span class="ce-badge ce-gone">erased</span></h4>'
        f"{_cells(members, False)}</section>"
        for name, members in groups
    ]
    kept = [p for p in pairs if not p.erased]
    if kept:
        blocks.append(
            '<section class="ce-row"><h4>Its neighbours <span class="ce-badge">kept</span></h4>'
            f"{_cells(kept, True)}</section>"
        )
    return f'<div class="ce-grid" id="{element}">{"".join(blocks)}</div>' if blocks else ""


def _names(pairs: Sequence[Pair], *, erased: bool) -> list[str]:
    return list(dict.fromkeys(p.concept for p in pairs if p.erased is erased))


def _cells(pairs: Sequence[Pair], named: bool) -> str:
    cells = []
    for p in pairs:
        told = ", ".join(filter(None, [p.concept if named else "", p.context])) or p.prompt
        cells.append(
            f'<div class="ce-pair">{figure(p.before, f"before: {p.prompt}", "before", sensitive=p.sensitive)}'
            f"{figure(p.after, f'after: {p.prompt}', 'after', sensitive=p.sensitive)}"
            f'<p class="ce-quiet">{esc(told)}</p></div>'
        )
    return f'<div class="ce-cells">{"".join(cells)}</div>'


def state(element: str, value: str, inner: str = "") -> str:
    """The one element that says where a tab stands, for people who listen and for tests."""
    return (
        f'<div id="{element}" class="ce-state" data-state="{esc(value)}" role="status" aria-live="polite">{inner}</div>'
    )


def message(text: str, *, bad: bool = False) -> str:
    """A sentence beside what it is about; it names no place of this computer."""
    if not text:
        return ""
    told = esc(unplaced(text))
    return f'<p class="ce-message{" ce-bad" if bad else ""}"{" role=alert" if bad else ""}>{told}</p>'


def progress_bar(job: Job, progress: Progress) -> str:
    """How far a job is, in words and as a bar."""
    words, share, left = journey(job, progress)
    shown = f"{words}. {left}" if left else words
    width = f"{100 * share:.1f}" if share is not None else "4"
    kind = "" if share is not None else " ce-unknown"
    return (
        f'<div class="ce-progress"><p>{esc(shown)}</p><div class="ce-track{kind}" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{width}" aria-label="{esc(job.title)}">'
        f'<span style="width:{width}%"></span></div></div>'
    )


NAMES = {
    "pictures before": "Drawing before",
    "pictures after": "Drawing after",
    "pictures of nonsense words": "Checking what it knows",
    "pictures of a candidate": "Looking for what it becomes",
}
NEXT = {"pictures after": "Judging the pictures, writing the files"}  # what no count tells, when a stage is over
FIRST = "The first time on this computer: a few minutes; this gets exact as it goes."


def journey(job: Job, progress: Progress) -> tuple[str, float | None, str]:
    """The stage in words, the share of the whole way (None: unknown), the time left of the whole in words."""
    if job.state == QUEUED:
        return "Waiting for its turn", None, ""
    left = time_left(progress.whole) or FIRST
    share = progress.share if progress.whole is not None else None
    done, total, name = progress.done, progress.total, stage(progress.what)
    if not total:
        return ("Waking the generator" if job.what == "erase" else "Getting ready"), share, left
    if done < total:
        return f"{NAMES.get(name, capital(name))}: {done:,} of {total:,}", share, left
    return NEXT.get(name, "Working it out" if job.what == "erase" else "Going on"), share, left


def time_left(seconds: float | None) -> str:
    """Seconds of the whole work in words a person would use."""
    if seconds is None:
        return ""
    return "A few seconds left." if seconds < 8 else f"{duration(seconds)} left."


def duration(seconds: float) -> str:
    """About so long: no more exact than it is known."""
    if seconds < 8:
        return "A few seconds"
    if seconds < 90:
        return f"About {max(10, 5 * round(seconds / 5))} seconds"
    if seconds < 5400:
        return f"About {round(seconds / 60)} minutes"
    return f"About {seconds / 3600:.1f} hours"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


STATE_WORDS = {QUEUED: "waiting", RUNNING: "running", DONE: "done", FAILED: "failed", CANCELLED: "cancelled"}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], element: str, caption: str) -> str:
    """A plain table; cells are HTML already."""
    head = "".join(f'<th scope="col">{esc(h)}</th>' for h in headings)
    marks = [f'<td data-head="{esc(h)}">' for h in headings]  # on a phone each row is a list, headings beside the cells
    body = "".join(
        f"<tr>{''.join(f'{mark}{cell}</td>' for mark, cell in zip(marks, row, strict=True))}</tr>" for row in rows
    )
    return (
        f'<div class="ce-scroll" tabindex="0" role="region" aria-label="{esc(caption)}">'
        f'<table class="ce-table ce-rows" id="{element}"><caption class="ce-hidden">{esc(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
