"""What tabs share: their surroundings, the panel that watches a job, and how errors are shown."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from concept_erase.errors import ConceptEraseError

from .. import view
from ..jobs import CANCELLED, DONE, ENDED, FAILED, Job, unknown
from ..library import Item, zipped
from ..studio import Studio

LIGHT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
DRAWING: dict[str, Any] = {
    "api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 1, "concurrency_id": "draw",
}  # fmt: skip
# What is picked and still there. Pickers are cleared of what was deleted in the page, from what is picked by then: a
# list that the server sent along with its answer would undo what was picked in the meantime.
PRUNE = "(ids, known) => window.cePrune(ids, known)"
FILES = (
    ("kohya", "For ComfyUI, A1111, Forge, InvokeAI"),
    ("peft", "For diffusers"),
    ("report", "Report"),
    ("zip", "Everything as zip"),
)


@dataclass(frozen=True)
class Place:
    """Where a tab is built.

    Attributes:
        page: The whole page.
        model: State with the chosen generator, "" being the embedded one.
        scorer: State with the chosen scorer, "" being the generator's own.
        looked: State with the id of the erasure that was looked at last, "" if none was.
    """

    studio: Studio
    page: gr.Blocks
    model: gr.State
    scorer: gr.State
    looked: gr.State


def sentence(error: BaseException) -> str:
    """An error for the page: ours in full, anything else without its insides, which go to the terminal."""
    if isinstance(error, ConceptEraseError):
        text = str(error)
        return view.capital(text) + ("" if text.endswith((".", "?")) else ".")
    traceback.print_exception(error)
    return "Something went wrong on our side; the terminal that runs the demo says what. Try again."


@contextmanager
def fold(title: str, name: str, classes: str = "ce-advanced") -> Iterator[None]:
    """A part of the form that opens and closes in the browser, everything in it being there from the start.

    Gradio builds what lies in a closed accordion (or an unselected tab) only when it is opened, and a frame later sends
    each field the value that it began with: what was typed in between is lost.
    """
    with gr.Column(elem_id=name, elem_classes=f"ce-fold {classes}"):
        gr.HTML(
            f'<button type="button" class="ce-unfold" aria-expanded="false" aria-controls="{name}-inside">'
            f"<span>{view.esc(title)}</span></button>"
        )
        with gr.Column(elem_id=f"{name}-inside", elem_classes="ce-inside"):
            yield


def downloads(studio: Studio, item: Item) -> list[Path | None]:
    """Copies for download, in the order of `FILES`: the originals lie where nothing is handed out."""
    place = studio.uploads / "downloads" / item.id
    place.mkdir(parents=True, exist_ok=True)
    copies: list[Path | None] = []
    for source in (item.kohya, item.peft, item.folder / "report.json"):
        copies.append(Path(shutil.copyfile(source, place / source.name)) if source and source.is_file() else None)
    return [*copies, zipped([item.folder], place / f"{item.folder.name}.zip")]


class Result:
    """A finished erasure: what came of it, its files, and the rest; elements are named after `prefix`.

    Args:
        files: Whether there are files to take home.
    """

    def __init__(self, place: Place, prefix: str, *, files: bool = True) -> None:
        self.studio, self.looked = place.studio, place.looked
        self.top = gr.HTML("", elem_id=f"{prefix}-result")
        self.files: list[gr.DownloadButton] = []
        with gr.Column(visible=False, elem_id=f"{prefix}-files", elem_classes="ce-files") as self.row:
            if files:
                gr.HTML("<h3>Take it home</h3>")
                with gr.Row():
                    for name, label in FILES:
                        button = gr.DownloadButton(label, size="md", elem_id=f"{prefix}-file-{name}", min_width=150)
                        self.files.append(button)
        self.rest = gr.HTML("", elem_id=f"{prefix}-more")
        self.outputs: list[Any] = [self.top, self.rest, self.row, self.looked, *self.files]

    def nothing(self) -> list[Any]:
        """Updates that empty it."""
        return ["", "", gr.update(visible=False), gr.skip(), *[gr.skip()] * len(self.files)]

    def unchanged(self) -> list[Any]:
        """Updates that leave it as it is."""
        return [gr.skip()] * len(self.outputs)

    def show(self, top: str, rest: str, item: Item | None) -> list[Any]:
        """Updates that show it; from then on it is what was looked at last."""
        paths = downloads(self.studio, item) if item and self.files else [None] * len(self.files)
        buttons = [gr.update(value=str(path) if path else None, visible=path is not None) for path in paths]
        return [top, rest, gr.update(visible=bool(item)), item.id if item else gr.skip(), *buttons]


class Panel:
    """Progress, cancel button, result and downloads of one job; its elements are named after the tab.

    Args:
        place: Where it is built.
        prefix: Start of the elements' names.
        result: The result of a finished job as HTML, above and below the downloads, and its adapter.
    """

    def __init__(
        self, place: Place, prefix: str, result: Callable[[Job], tuple[str, str, Item | None]], *, files: bool = True
    ) -> None:
        self.studio, self.prefix, self._result = place.studio, prefix, result
        self.job = gr.State("")
        self.status = gr.HTML(self._state("idle"), elem_id=f"{prefix}-status", elem_classes="ce-status")
        self.cancel = gr.Button(
            "Cancel", variant="stop", size="md", visible=False, elem_id=f"{prefix}-cancel", elem_classes="ce-small"
        )
        self.shown = Result(place, prefix, files=files)
        self.result = self.shown.top
        self.anyway = gr.Button(
            "Erase it all the same", visible=False, elem_id=f"{prefix}-anyway", elem_classes="ce-small"
        )
        self.timer = gr.Timer(0.5, active=False)
        self.outputs = [self.job, self.status, self.cancel, self.timer, *self.shown.outputs, self.anyway]
        # Whatever changes the panel is answered one after the other: a look at the job before, still under way when
        # another is begun, would show the old one's result over it.
        self.in_turn = LIGHT | {"concurrency_limit": 1, "concurrency_id": f"panel-{prefix}"}
        self.timer.tick(self._tick, self.job, self.outputs, **self.in_turn)
        self.cancel.click(self._cancel, self.job, self.outputs, **self.in_turn)
        self.anyway.click(self._force, self.job, self.outputs, **self.in_turn)

    def _state(self, value: str, inner: str = "") -> str:
        return view.state(f"{self.prefix}-state", value, inner)

    def failed(self, error: BaseException) -> list[Any]:
        """Updates that say why nothing runs; an earlier result stays."""
        inner = view.message(sentence(error), bad=True)
        ending = [gr.update(visible=False), gr.Timer(active=False)]
        return ["", self._state("failed", inner), *ending, *self.shown.unchanged(), gr.update(visible=False)]

    def show(self, job: Job) -> list[Any]:
        """Updates for a job as it stands; what was refused as unknown can be erased all the same."""
        why = unknown(job) if job.what == "erase" else None
        return [*self._shown(job, why), gr.update(visible=why is not None)]

    def _shown(self, job: Job, why: str | None) -> list[Any]:
        if job.state not in ENDED:
            return [
                job.id, self._running(job), gr.update(visible=True, interactive=True), gr.Timer(active=True),
                *self.shown.nothing(),
            ]  # fmt: skip
        ending: list[Any] = [gr.update(visible=False), gr.Timer(active=False)]
        if job.state == CANCELLED:
            told = view.message("Cancelled. Nothing was changed; pictures that were drawn are kept for the next time.")
            return [job.id, self._state(CANCELLED, told), *ending, *self.shown.nothing()]
        if job.state == FAILED:
            told = view.message(view.capital(why or job.message or "it failed without a reason."), bad=True)
            state = FAILED if why is None else "unknown"
            return [job.id, self._state(state, told), *ending, *self.shown.nothing()]
        top, rest, item = self._result(job)
        told = view.message(view.capital(job.message)) if job.message else ""
        return [job.id, self._state(DONE, told), *ending, *self.shown.show(top, rest, item)]

    def _running(self, job: Job) -> str:
        """What is worked on and how far it is."""
        bar = view.progress_bar(job, self.studio.queue.progress(job.id))
        return self._state("running", f'<p class="ce-doing">{view.esc(job.title)}</p>{bar}')

    def _tick(self, key: str) -> list[Any]:
        try:
            job = self.studio.queue.get(key)
            if job.state not in ENDED:  # what has not changed is not sent
                return [gr.skip(), self._running(job), *[gr.skip()] * (len(self.outputs) - 2)]
            return self.show(job)
        except Exception as error:
            return self.failed(error)

    def _cancel(self, key: str) -> list[Any]:
        try:
            return self.show(self.studio.queue.cancel(key))
        except Exception as error:
            return self.failed(error)

    def _force(self, key: str) -> list[Any]:
        """What was refused, once more, as it was asked for then."""
        try:
            return self.show(self.studio.forced(key))
        except Exception as error:
            return self.failed(error)

    def running(self, what: str) -> list[Any]:
        """For a page that is opened while a job of this tab runs: watch it; else nothing."""
        waiting = [job for job in self.studio.queue.jobs() if job.what == what and job.state not in ENDED]
        return self.show(waiting[-1]) if waiting else [gr.skip()] * len(self.outputs)
