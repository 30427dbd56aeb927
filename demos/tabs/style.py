"""My style: own pictures; does the generator know this style, what does it draw for it, erase it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from concept_erase.errors import InputError

from .. import results, view
from ..jobs import Job
from ..library import Item
from ..models import StoppedError
from ..studio import Found
from ..uploads import MOST_PICTURES
from .common import LIGHT, Panel, Place, sentence

HEADLINES = {
    "knows": "It knows this style. To it, this is {0}.",
    "unknown": "It does not seem to know this style.",
}
MEANINGS = {
    "knows": "What you can erase is {0}: the style that it calls yours, as it draws it.",
    "unknown": "The nearest it has is {0}, too far away to be yours. So there is nothing of yours to erase.",
}
SHOWN = 8
MOST_REASONS = 10
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def found_page(found: Found) -> str:
    """The verdict, own pictures above what the generator draws, and how near each style is."""
    r = found.recognition
    own = _cells([(view.file_data(path), f"own picture {i + 1}") for i, path in enumerate(found.pictures[:SHOWN])])
    drawn = [(view.picture_data(im), f"{r.nearest}, drawn by the generator") for im in found.drawn[:SHOWN]]
    text = f"From words alone the scorer calls {r.named} of your {r.pictures} pictures {r.nearest}."
    drawn_title = "What it draws as {}" if r.verdict.value == "knows" else "Not yours: what it draws as {}"
    return (
        f'<div class="ce-result"><div class="ce-words" id="style-words" data-verdict="{r.verdict.value}" '
        f'data-nearest="{view.esc(r.nearest)}"><h2>{view.esc(HEADLINES[r.verdict].format(r.nearest))}</h2>'
        f"<p>{view.esc(MEANINGS[r.verdict].format(r.nearest))} {view.esc(_numbers(found))}</p></div>"
        '<section class="ce-row"><h3 class="ce-h4">Yours</h3>'
        f'<div class="ce-cells" id="style-own">{own}</div></section>'
        f'<section class="ce-row"><h3 class="ce-h4">{view.esc(drawn_title.format(r.nearest))}</h3>'
        f'<div class="ce-cells" id="style-drawn">{_cells(drawn)}</div></section>'
        f'<details class="ce-notes"><summary>How near each style is</summary>{_ranking(found)}'
        f"<p>The line, {r.knows_from:.2f}, is where “it knows this style” begins. The two bands below are measured: "
        "where nine of ten sets of pictures lie, in its own styles and in styles that it never saw. "
        f"{view.esc(text)} Pictures of things that it never learnt to draw are often not known to it, in any style.</p>"
        "</details></div>"
    )


def _numbers(found: Found) -> str:
    """How near, beside what is usual."""
    r = found.recognition
    return (
        f"Your pictures: {r.closeness:.2f}; its own styles: {r.own[0]:.2f} to {r.own[1]:.2f}; "
        f"styles it never saw: {r.foreign[0]:.2f} to {r.foreign[1]:.2f}."
    )


def _ranking(found: Found) -> str:
    """A bar for each style with the bound marked, and a band for each of what is usual."""
    r = found.recognition
    low = min(0.0, r.ranking[-1][1], r.foreign[0])
    high = max(r.own[1], r.knows_from, r.closeness, r.foreign[1])

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    mark = f'<i style="left:{at(r.knows_from):.1f}%"></i>'
    bars = [(name, f'<b style="width:{at(value):.1f}%"></b>', f"{value:.2f}") for name, value in r.ranking]
    for name, (start, end) in (("its own styles", r.own), ("never seen", r.foreign)):
        band = f'<b class="ce-band" style="left:{at(start):.1f}%;width:{at(end) - at(start):.1f}%"></b>'
        bars.append((name, band, f"{start:.2f} to {end:.2f}"))
    rows = "".join(
        f'<li><span>{view.esc(name)}</span><div class="ce-bar">{bar}{mark}</div><small>{told}</small></li>'
        for name, bar, told in bars
    )
    return f'<ol class="ce-ranking">{rows}</ol>'


def _cells(pictures: list[tuple[str, str]]) -> str:
    return "".join(f'<div class="ce-pair">{view.figure(source, alt)}</div>' for source, alt in pictures)


def thumbnails(chosen: list[tuple[str, Path | None]], refused: list[str]) -> str:
    """The chosen pictures, small, and why others are not among them.

    Args:
        chosen: Names of files with their kept pictures; None while a picture is still being read.
    """
    cells = "".join(
        f'<figure title="{view.esc(name)}">'
        + (f'<img src="{view.file_data(path, view.SMALL)}" alt="{view.esc(name)}">' if path else "<i></i>")
        + "</figure>"
        for name, path in chosen
    )
    reasons = "".join(view.message(view.capital(text), bad=True) for text in refused[:MOST_REASONS])
    if len(refused) > MOST_REASONS:
        reasons += view.message(f"{len(refused) - MOST_REASONS} more files were left out.", bad=True)
    strip = f'<div class="ce-thumbs" id="style-thumbs">{cells}</div>' if cells else ""
    return f'<div id="style-chosen-list">{strip}{reasons}</div>' if cells or reasons else ""


class Check:
    """A running look at pictures, and why it is to end: "cancelled", "changed" (other pictures) or not at all."""

    def __init__(self) -> None:
        self.ended = ""

    def stopped(self) -> bool:
        return bool(self.ended)


def build(place: Place) -> None:
    """The tab."""
    studio = place.studio
    gr.HTML(
        '<div class="ce-lead"><h2>Does it know your style?</h2><p>Upload a handful of your own pictures. They stay on '
        "this computer.</p></div>"
    )
    upload = gr.File(
        label=f"Your pictures: PNG, JPEG or WebP, at most {MOST_PICTURES}, scans too",
        file_count="multiple", elem_id="style-upload", height=170,
    )  # fmt: skip
    chosen_html = gr.HTML("", elem_id="style-chosen")
    folder = gr.UploadButton(
        "Choose a whole folder", file_count="directory", size="md", elem_id="style-folder", elem_classes="ce-small"
    )
    go = gr.Button("Does it know my style?", variant="primary", elem_id="style-go", elem_classes="ce-go")
    status = gr.HTML(view.state("style-state", "idle"), elem_id="style-status")
    cancel = gr.Button(
        "Cancel", variant="stop", size="md", visible=False, elem_id="style-cancel", elem_classes="ce-small"
    )
    found_html = gr.HTML("", elem_id="style-result")
    nearest = gr.State("")
    left_out = gr.State(([], []))
    erase = gr.Button("Erase it", variant="primary", visible=False, elem_id="style-erase", elem_classes="ce-go")
    shown = [status, found_html, nearest, erase, cancel]
    checks: dict[str, Check] = {}  # the last of each open page
    readings: dict[str, object] = {}

    def result(job: Job) -> tuple[str, str, Item | None]:
        item = studio.item_of(job)
        if item is None:
            return results.failure("The result is gone; erase it again."), "", None
        return (*results.page(item, "style-erase"), item)

    panel = Panel(place, "style-erase", result)

    def clean(state: str = "idle", inner: str = "", *, running: bool = False) -> list[Any]:
        told = view.state("style-state", state, inner)
        return [told, "", "", gr.update(visible=False), gr.update(visible=running)]

    def look(files: Any, model: str, scorer: str, request: gr.Request) -> Iterator[list[Any]]:
        page = str(request.session_hash)
        stop(page, "changed")
        check = checks[page] = Check()
        steps: queue.Queue[tuple[int, int, str]] = queue.Queue()
        outcome: list[Found | Exception] = []

        def work() -> None:
            try:
                outcome.append(studio.recognise(files, model, scorer, lambda *step: steps.put(step), check.stopped))
            except Exception as error:
                outcome.append(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        yield clean("running", _bar("Looking at your pictures", None), running=True)
        pace = Pace()
        while worker.is_alive() and not check.ended:
            step = _last(steps)
            if step is not None:
                told = view.state("style-state", "running", pace.bar(*step))
                yield [told, *[gr.skip()] * 3, gr.update(visible=True)]
        if checks.get(page) is not check:
            return  # another look has begun, and tells its own story
        checks.pop(page, None)
        if check.ended == "cancelled":
            yield clean("cancelled", view.message("Cancelled."))
        elif check.ended:
            yield clean()
        else:
            yield answer(outcome[0])

    def answer(found: Found | Exception) -> list[Any]:
        if isinstance(found, StoppedError):
            return clean("cancelled", view.message("Cancelled."))
        if isinstance(found, Exception):
            return clean("failed", view.message(sentence(found), bad=True))
        refused = "".join(view.message(text, bad=True) for text in found.refused[:MOST_REASONS])
        r = found.recognition
        known = r.verdict.value == "knows"
        label = f"Erase {r.nearest}, the style it calls yours"
        return [
            view.state("style-state", "done", refused), found_page(found), r.nearest if known else "",
            gr.update(visible=known, value=label), gr.update(visible=False),
        ]  # fmt: skip

    def stop(page: str, why: str) -> None:
        if (check := checks.get(page)) is not None and not check.ended:
            check.ended = why

    def cancelled(request: gr.Request) -> list[Any]:
        page = str(request.session_hash)
        if page not in checks:
            return [gr.skip()] * len(shown)  # it has just ended, and says how
        stop(page, "cancelled")
        return clean("cancelled", view.message("Cancelled."))

    def changed(files: Any, left: tuple[list[str], list[str]], request: gr.Request) -> Iterator[list[Any]]:
        """Other pictures: what was said of the last ones goes at once, then they are shown one after the other."""
        page = str(request.session_hash)
        stop(page, "changed")
        reading = readings[page] = object()
        paths = list(files or ())
        chosen: list[tuple[str, Path | None]] = [(Path(str(path)).name, None) for path in paths[:MOST_PICTURES]]
        refused = list(left[1]) if left[0] == [str(path) for path in paths] else []
        if len(paths) > MOST_PICTURES:
            refused.append(f"{len(paths)} pictures are too many; upload at most {MOST_PICTURES}.")
        yield [*clean(), thumbnails(chosen, refused)]
        good: list[tuple[str, Path | None]] = []
        for number, path in enumerate(paths[:MOST_PICTURES]):
            if readings.get(page) is not reading:
                return
            try:
                good.append((chosen[number][0], studio.look(path)))
            except InputError as error:
                refused.append(str(error))
            except Exception as error:
                refused.append(f"{chosen[number][0]!r}: {sentence(error)}")
            if readings.get(page) is reading:
                yield [*[gr.skip()] * len(shown), thumbnails([*good, *chosen[number + 1 :]], refused)]
        if readings.get(page) is reading:
            del readings[page]

    def start(name: str, model: str, scorer: str) -> list[Any]:
        try:
            return panel.show(studio.erase([name], "style", model=model, scorer=scorer))
        except Exception as error:
            return panel.failed(error)

    def take(files: Any) -> tuple[Any, tuple[list[str], list[str]]]:
        """The pictures of a folder, and in words which of its files are not among them."""
        paths = [str(path) for path in files or ()]
        pictures = [path for path in paths if path.lower().endswith(ENDINGS)]
        others = [path for path in paths if path not in set(pictures)]
        reasons = [f"{Path(p).name[:80]!r} is left out: it is not a PNG, JPEG or WebP picture." for p in others]
        if len(pictures) > MOST_PICTURES:
            reasons.insert(0, f"The folder has {len(pictures)} pictures; the first {MOST_PICTURES} are taken.")
        taken = pictures[:MOST_PICTURES]
        return taken, (taken, reasons if taken else reasons[:MOST_REASONS])

    looking = {**LIGHT, "trigger_mode": "multiple"}
    folder.upload(take, folder, [upload, left_out], **LIGHT)
    upload.change(changed, [upload, left_out], [*shown, chosen_html], **looking)
    go.click(look, [upload, place.model, place.scorer], shown, **looking)
    cancel.click(cancelled, None, shown, **LIGHT)
    erase.click(start, [nearest, place.model, place.scorer], panel.outputs, **panel.in_turn)


def _last(steps: queue.Queue[tuple[int, int, str]]) -> tuple[int, int, str] | None:
    """The newest step, waited for a quarter of a second."""
    try:
        step = steps.get(timeout=0.25)
    except queue.Empty:
        return None
    while not steps.empty():
        step = steps.get()
    return step


class Pace:
    """Counts of a stage in words, with the time left by what was measured since it began."""

    def __init__(self) -> None:
        self._what, self._from, self._since = "", 0, 0.0

    def bar(self, done: int, total: int, what: str) -> str:
        if what != self._what:
            self._what, self._from, self._since = what, done, time.monotonic()
        if not total:
            return _bar(what, None)
        words = f"{_drawing(what)}: {done} of {total}."
        if done > self._from:
            left = (time.monotonic() - self._since) / (done - self._from) * (total - done)
            words += f" {view.time_left(left)}"
        return _bar(words, done / total)


def _drawing(what: str) -> str:
    return f"Drawing {what}" if what.startswith("pictures") else what


def _bar(words: str, share: float | None) -> str:
    kind, width = (" ce-unknown", 4.0) if share is None else ("", 100 * share)
    return (
        f'<div class="ce-progress"><p>{view.esc(words)}</p><div class="ce-track{kind}" role="progressbar" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{width:.0f}" aria-label="{view.esc(words)}">'
        f'<span style="width:{width:.1f}%"></span></div></div>'
    )
