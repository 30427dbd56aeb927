"""What runs and waits, under the header of every tab, and what ended while the page was closed.

Jobs belong to the demo and not to the page that asked for them.
"""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from .. import view
from ..jobs import DONE, ENDED, FAILED, RUNNING, Job, unknown
from ..places import unplaced
from ..studio import Studio
from .common import LIGHT, Place

EVERY = 2.0  # seconds between two looks
SHOWN = 8  # waiting jobs that are listed
MISSED = 4  # jobs that ended unseen, of which is told
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


def missed(studio: Studio, since: float, now: float) -> str:
    """What ended while nobody looked, with a button that opens its result; the page remembers `now` as it goes on.

    Args:
        since: When this browser's page was last open, in seconds since 1970; 0 if it never was.
    """
    ended = [
        job for job in studio.queue.jobs() if job.state in (DONE, FAILED) and since and (job.finished or 0) > since
    ]
    ended.sort(key=lambda job: -(job.finished or 0))
    rows = "".join(_missed(studio, job) for job in ended[:MISSED])
    more = f'<li class="ce-quiet">and {len(ended) - MISSED:,} more.</li>' if len(ended) > MISSED else ""
    told = f'<h2>Finished while you were away</h2><ul id="jobs-missed-list">{rows}{more}</ul>' if ended else ""
    kind = ' class="ce-work" aria-label="Finished while you were away"' if ended else ""
    return f'<section{kind} data-now="{now:.3f}">{told}</section>'


def _missed(studio: Studio, job: Job) -> str:
    item = studio.item_of(job) if job.state == DONE and job.what == "erase" else None
    if job.state == FAILED:
        told = view.capital(unplaced(unknown(job) or job.message or "it failed."))
    else:
        told = "" if item else "its result is gone." if job.what == "erase" else "It is in your library."
    button = (
        f'<button type="button" class="ce-missed" data-open="{item.id}" '
        f'aria-label="{view.esc(f"Open {item.title}")}">Open</button>'
        if item
        else ""
    )
    return f'<li data-job="{job.id}"><b>{view.esc(job.title)}</b> <span>{view.esc(told)}</span>{button}</li>'


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
    away, seen = gr.HTML("", elem_id="jobs-missed"), gr.Textbox(visible=False)
    timer = gr.Timer(EVERY)

    def told(since: Any) -> str:
        try:
            return missed(studio, float(since or 0), time.time())
        except ValueError:  # somebody else's note in the browser's memory
            return missed(studio, 0.0, time.time())

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
    place.page.load(told, seen, away, js="() => window.ceSeen()", **LIGHT)
    bar.click(end, which, [bar, last], js="() => window.ceCancel", **LIGHT)
