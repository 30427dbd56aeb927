"""What runs and waits, under the header of every tab; it belongs to the demo and not to the page that asked for it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .. import view
from ..jobs import ENDED, RUNNING, Job
from ..studio import Studio
from .common import LIGHT, Place

EVERY = 2.0  # seconds between two looks
SHOWN = 8  # waiting jobs that are listed
CANCEL = (
    "element.addEventListener('click', (e) => { const t = e.target.closest('[data-cancel]'); if (!t) return; "
    "t.disabled = true; window.ceCancel = t.dataset.cancel; trigger('click'); })"
)


def listed(studio: Studio) -> str:
    """Jobs that have not ended, in the order they will be worked on; "" if there is none."""
    jobs = [job for job in reversed(studio.queue.jobs()) if job.state not in ENDED]
    jobs.sort(key=lambda job: job.state != RUNNING)
    if not jobs:
        return ""
    rows, place = [], 0
    for job in jobs:
        place += job.state != RUNNING
        rows.append(_row(studio, job, place))
    most = SHOWN + 1
    more = f'<li class="ce-quiet">and {len(rows) - most:,} more wait.</li>' if len(rows) > most else ""
    return (
        '<section class="ce-work" aria-label="Jobs"><h2>At work</h2>'
        f'<ul id="jobs-list">{"".join(rows[:most])}{more}</ul></section>'
    )


def _row(studio: Studio, job: Job, place: int) -> str:
    """One job: its place in the queue, what it is, how far it is, a button to cancel it."""
    if job.state == RUNNING:
        words, _, left = view.journey(job, studio.queue.progress(job.id))
        told = f"{words}. {left}".strip() if left else words
    else:
        told = f"waiting, number {place}"
    return (
        f'<li data-job="{job.id}" data-state="{job.state}"><b>{view.esc(job.title)}</b> <span>{view.esc(told)}</span>'
        f'<button type="button" data-cancel="{job.id}" aria-label="{view.esc(f"Cancel: {job.title}")}">Cancel</button>'
        "</li>"
    )


def build(place: Place) -> None:
    """The list, looked at again and again while the page is open."""
    studio = place.studio
    bar = gr.HTML(listed(studio), elem_id="jobs", js_on_load=CANCEL)
    which, last = gr.Textbox(visible=False), gr.State(None)
    timer = gr.Timer(EVERY)

    def look(before: str | None) -> list[Any]:
        now = listed(studio)
        return [gr.skip(), gr.skip()] if now == before else [now, now]

    def end(key: str) -> list[Any]:
        try:
            studio.queue.cancel(key)
        except Exception as error:  # it is not there any more, and the list says so
            print(f"a job could not be cancelled: {error}")
        now = listed(studio)
        return [now, now]

    timer.tick(look, last, [bar, last], **LIGHT)
    place.page.load(look, last, [bar, last], **LIGHT)
    bar.click(end, which, [bar, last], js="() => window.ceCancel", **LIGHT)
