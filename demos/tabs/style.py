"""My style: own pictures; does the generator know this style, what does it draw for it, erase it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from .. import results, view
from ..jobs import Job
from ..library import Item
from ..studio import Found
from ..uploads import MOST_PICTURES
from .common import DRAWING, LIGHT, Panel, Place, sentence

HEADLINES = {
    "knows": "It knows this style. To it, this is {0}.",
    "similar": "It knows something similar: {0}.",
    "unknown": "It does not seem to know this style.",
}
MEANINGS = {
    "knows": "Your pictures are as close to its {0} pictures as those are to each other.",
    "similar": "Your pictures are about as close to {0} as a style that it never saw comes to its nearest.",
    "unknown": "The nearest it has is {0}, and that is further away than its own styles are from each other.",
}
SHOWN = 8


def found_page(found: Found) -> str:
    """The verdict, own pictures above what the generator draws, and how near each style is."""
    r = found.recognition
    own = _cells([(view.file_data(path), f"own picture {i + 1}") for i, path in enumerate(found.pictures[:SHOWN])])
    drawn = [(view.picture_data(im), f"{r.nearest}, drawn by the generator") for im in found.drawn[:SHOWN]]
    text = f"From words alone the scorer calls {r.named} of your {r.pictures} pictures {r.nearest}."
    low, high = min(0.0, r.ranking[-1][1]), max(r.knows_from, r.closeness) * 1.1
    mark = 100 * (r.knows_from - low) / (high - low)
    bars = "".join(
        f'<li><span>{view.esc(name)}</span><div class="ce-bar">'
        f'<b style="width:{100 * (value - low) / (high - low):.1f}%"></b><i style="left:{mark:.1f}%"></i></div>'
        f"<small>{value:.2f}</small></li>"
        for name, value in r.ranking
    )
    return (
        f'<div class="ce-result"><div class="ce-words" id="style-words" data-verdict="{r.verdict.value}" '
        f'data-nearest="{view.esc(r.nearest)}"><h2>{view.esc(HEADLINES[r.verdict].format(r.nearest))}</h2>'
        f"<p>{view.esc(MEANINGS[r.verdict].format(r.nearest))} {view.esc(text)}</p></div>"
        '<section class="ce-row"><h3 class="ce-h4">Yours</h3>'
        f'<div class="ce-cells" id="style-own">{own}</div></section>'
        f'<section class="ce-row"><h3 class="ce-h4">What it draws as {view.esc(r.nearest)}</h3>'
        f'<div class="ce-cells" id="style-drawn">{_cells(drawn)}</div></section>'
        f'<details class="ce-notes"><summary>How near each style is</summary><ol class="ce-ranking">{bars}</ol>'
        f"<p>At the mark, {r.knows_from:.2f}, “it knows this style” begins: measured on the generator's own pictures, "
        f"each left out in turn. “Similar” begins at {r.similar_from:.2f}.</p></details></div>"
    )


def _cells(pictures: list[tuple[str, str]]) -> str:
    return "".join(f'<div class="ce-pair">{view.figure(source, alt)}</div>' for source, alt in pictures)


def build(place: Place) -> None:
    """The tab."""
    studio = place.studio
    gr.HTML(
        '<div class="ce-lead"><h2>Does it know your style?</h2><p>Upload a handful of your own pictures. They stay on '
        "this computer.</p></div>"
    )
    upload = gr.File(
        label=f"Your pictures (PNG, JPEG or WebP, at most {MOST_PICTURES})", file_count="multiple",
        file_types=[".png", ".jpg", ".jpeg", ".webp"], elem_id="style-upload", height=170,
    )  # fmt: skip
    folder = gr.UploadButton(
        "Choose a whole folder", file_count="directory", size="md", elem_id="style-folder", elem_classes="ce-small"
    )
    go = gr.Button("Does it know my style?", variant="primary", elem_id="style-go", elem_classes="ce-go")
    status = gr.HTML(view.state("style-state", "idle"), elem_id="style-status")
    found_html = gr.HTML("", elem_id="style-result")
    nearest = gr.State("")
    erase = gr.Button("Erase it", variant="primary", visible=False, elem_id="style-erase", elem_classes="ce-go")

    def result(job: Job) -> tuple[str, str, Item | None]:
        item = studio.item_of(job)
        if item is None:
            return results.failure("The result is gone; erase it again."), "", None
        return (*results.page(item, "style-erase"), item)

    panel = Panel(place, "style-erase", result)

    def look(files: Any, model: str, scorer: str) -> Iterator[list[Any]]:
        steps: queue.Queue[tuple[int, int, str] | None] = queue.Queue()
        outcome: list[Found | Exception] = []

        def work() -> None:
            try:
                outcome.append(studio.recognise(files, model, scorer, progress=lambda *step: steps.put(step)))
            except Exception as error:
                outcome.append(error)
            steps.put(None)

        threading.Thread(target=work, daemon=True).start()
        hide = gr.update(visible=False)
        yield [view.state("style-state", "running", _bar("Looking at your pictures", None)), "", "", hide]
        while (step := steps.get()) is not None:
            done, total, _ = step
            words = f"Drawing what it knows: {done} of {total}"
            yield [
                view.state("style-state", "running", _bar(words, done / max(1, total))),
                gr.skip(),
                gr.skip(),
                gr.skip(),
            ]
        found = outcome[0]
        if isinstance(found, Exception):
            told = view.message(sentence(found), bad=True)
            yield [view.state("style-state", "failed", told), "", "", hide]
            return
        refused = "".join(view.message(text, bad=True) for text in found.refused[:10])
        label = f"Erase {found.recognition.nearest}"
        yield [
            view.state("style-state", "done", refused), found_page(found), found.recognition.nearest,
            gr.update(visible=True, value=label),
        ]  # fmt: skip

    def start(name: str, model: str, scorer: str) -> list[Any]:
        try:
            return panel.show(studio.erase([name], "style", model=model, scorer=scorer))
        except Exception as error:
            return panel.failed(error)

    def take(files: Any) -> Any:
        pictures = [f for f in files or () if str(f).lower().endswith((".png", ".jpg", ".jpeg", ".webp"))]
        return pictures[:MOST_PICTURES]

    folder.upload(take, folder, upload, **LIGHT)
    go.click(look, [upload, place.model, place.scorer], [status, found_html, nearest, erase], **DRAWING)
    erase.click(start, [nearest, place.model, place.scorer], panel.outputs, **LIGHT)


def _bar(words: str, share: float | None) -> str:
    kind, width = (" ce-unknown", 4.0) if share is None else ("", 100 * share)
    return (
        f'<div class="ce-progress"><p>{view.esc(words)}</p><div class="ce-track{kind}" role="progressbar" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{width:.0f}" aria-label="{view.esc(words)}">'
        f'<span style="width:{width:.1f}%"></span></div></div>'
    )
