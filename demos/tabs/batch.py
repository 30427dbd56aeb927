"""Batch: a list is uploaded, checked row by row, run, watched, taken home as a zip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from concept_erase import words as told
from concept_erase.names import Lookup

from .. import batches, view
from ..jobs import ENDED, Job
from ..library import Item, zipped
from ..models import is_sensitive
from ..results import strip
from ..studio import Studio
from .common import LIGHT, Panel, Place, sentence
from .settings import Advanced

SHOWN = 300  # rows in a table
PICTURES = 12  # before/after pictures of a summary


def rows_table(checked: batches.Checked) -> str:
    """What was read, problems first."""
    listing = checked.listing
    problems = [
        [f"{p.row}", view.esc(p.field), f'<span class="ce-problem">{view.esc(p.message)}</span>']
        for p in listing.problems[:SHOWN]
    ]
    rows = [
        [
            f"{row}", view.esc(e.target), view.esc(e.kind.value), view.esc(e.anchor or "chosen"),
            view.esc(", ".join(e.preserve[:4]) + (" and more" if len(e.preserve) > 4 else "")),
            view.esc(", ".join(e.tags)),
        ]
        for row, e in list(zip(listing.rows, listing.entries, strict=True))[:SHOWN]
    ]  # fmt: skip
    parts = [f"<h3>{_some(len(listing.entries), 'concept')}, {_some(len(listing.problems), 'problem')}</h3>"]
    if problems:
        parts.append(view.table(["Row", "Field", "Problem"], problems, "batch-problems", "Rows that cannot be used"))
    parts += [f'<p class="ce-quiet">{view.esc(notice)}</p>' for notice in listing.notices[:20]]
    headings = ["Row", "Forget", "Kind", "Becomes", "Must stay", "Tags"]
    parts.append(view.table(headings, rows, "batch-rows", "What will be erased"))
    if len(listing.entries) > SHOWN:
        parts.append(f'<p class="ce-quiet">and {len(listing.entries) - SHOWN:,} more rows.</p>')
    parts.append(plan_words(checked))
    return f'<div class="ce-result">{"".join(parts)}</div>'


def plan_words(checked: batches.Checked) -> str:
    """Adapters, time and disk in a sentence."""
    plan = checked.estimate
    if plan is None:
        return view.message(f"Time and disk are not known: {checked.unknown}")
    time = view.duration(plan.seconds).lower() if plan.seconds is not None else "a time not known"
    joint = f" and {plan.joints} joint" if plan.joints else ""
    space = f"{told.size(plan.disk)} of disk ({told.size(plan.free)} free)" if plan.adapter else "disk space not known"
    warning = view.message("The disk will not do; free some space first.", bad=True) if plan.disk > plan.free else ""
    what = f"{_some(plan.concepts, 'adapter')}{joint}: {time}, {space}."
    return f'<p class="ce-plan" id="batch-plan">{view.esc(what)}</p>{warning}'


def queue_table(studio: Studio, job: Job | None) -> str:
    """All that waits and runs, and the rows of the watched batch."""
    waiting = [j for j in reversed(studio.queue.jobs()) if j.state not in ENDED]
    parts = []
    if len(waiting) > 1:
        rows = [[view.esc(j.title), view.esc(view.STATE_WORDS[j.state])] for j in waiting]
        parts.append(f"<h3>Queue</h3>{view.table(['Job', 'State'], rows, 'batch-jobs', 'Jobs in the queue')}")
    if job is not None and job.state not in ENDED:
        parts.append(_rows_of(studio, job))
    return f'<div class="ce-result">{"".join(parts)}</div>' if parts else ""


def _rows_of(studio: Studio, job: Job) -> str:
    """Row by row, what is done already."""
    listing = batches.listing(studio, str(job.arguments["list"]))
    if listing is None:
        return ""
    done = Lookup(name for item in studio.library.within(studio.root / job.folder) for name in item.targets)
    states = [e.target in done for e in listing.entries]
    rows = [
        [f"{row}", view.esc(entry.target), '<span class="ce-done">done</span>' if ready else "waiting"]
        for row, entry, ready in list(zip(listing.rows, listing.entries, states, strict=True))[:SHOWN]
    ]
    heading = f"<h3>{sum(states):,} of {len(states):,} done</h3>"
    return heading + view.table(["Row", "Forget", "State"], rows, "batch-queue", "Rows of the running batch")


def summary(folder: Path, see: Callable[[list[Image.Image]], list[str]]) -> str:
    """A finished batch: how many, how well, the weakest first, and a look at some."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return view.message("The result of this batch is gone; run it again.", bad=True)
    entries = [e for e in index["entries"] if e["state"] == "done"]
    failed = [e for e in index["entries"] if e["state"] == "failed"]
    joint, problems = len(index["joint"]), len(index["problems"])
    counts = f"{_some(joint, 'joint adapter')}, {len(failed):,} failed, {_some(problems, 'row')} had problems."
    parts = [
        f'<div class="ce-words" id="batch-words"><h2>{_some(len(entries), "concept")} erased.</h2><p>{counts}</p></div>'
    ]
    places = [(e, (folder / str(e["folder"])).resolve()) for e in entries if e.get("picture")][:PICTURES]
    pictures = [(e, *strip(place, see)) for e, place in places if place.is_relative_to(folder)]
    if pictures:
        cells = "".join(
            view.figure(
                data, f"{e['target']}: before above after", str(e["target"]),
                sensitive=shown or e["kind"] == "violence" or is_sensitive(str(e["target"])), kind="ce-wide",
            )
            for e, data, shown in pictures
            if data
        )  # fmt: skip
        parts.append(f'<div class="ce-strip" id="batch-gallery">{cells}</div>')
    rows = [[view.esc(e["row"]), view.esc(e["target"]), *_scores(e)] for e in [*failed, *entries][:SHOWN]]
    rows += [["joint", view.esc(j["tag"]), *_scores(j)] for j in index["joint"][:50]]
    parts.append(view.table(["Row", "Concept", "Result", "Neighbours"], rows, "batch-results", "Results"))
    parts.append('<p class="ce-quiet">The zip holds all of it, with a page to look at: index.html.</p>')
    return f'<div class="ce-result">{"".join(parts)}</div>'


def _some(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _scores(entry: dict[str, Any]) -> list[str]:
    if entry["state"] == "failed":
        return [f'<span class="ce-problem">{view.esc(entry["error"])}</span>', ""]
    scores = entry.get("scores")
    if not scores:
        return [view.esc(entry.get("not_scored") or "not scored"), ""]
    name = str(entry.get("target") or "what was erased")
    return [
        view.esc(told.recognised(scores["UA"]["after"], name)),
        view.esc(told.kept(scores["IRA"]["after"], str(entry.get("kind", "")))),
    ]


def build(place: Place, tab: gr.Tab) -> None:
    """The tab."""
    studio = place.studio
    gr.HTML(
        '<div class="ce-lead"><h2>A whole list at once</h2><p>A table with a column named target is enough. Rows are '
        "checked before anything runs; work goes on after a restart and nothing is done twice.</p></div>"
    )
    upload = gr.File(
        label="A list: CSV, Excel, YAML, JSON lines or plain text", file_count="single", height=140,
        elem_id="batch-list", file_types=[".csv", ".xlsx", ".tsv", ".txt", ".yaml", ".yml", ".jsonl", ".ndjson"],
    )  # fmt: skip
    checked_html = gr.HTML("", elem_id="batch-checked")
    advanced = Advanced("batch", studio.defaults, anchor=False)
    force = gr.Checkbox(
        False, label="Erase also what the generator does not seem to know",
        info="Else such rows fail, and say so: there is nothing to erase.", elem_id="batch-force",
    )  # fmt: skip
    go = gr.Button("Erase the list", variant="primary", interactive=False, elem_id="batch-go", elem_classes="ce-go")
    kept, title = gr.State(""), gr.State("")

    def see(tiles: list[Image.Image]) -> list[str]:
        return studio.generators.seen("", tiles)

    def result(job: Job) -> tuple[str, str, Item | None]:
        return summary(studio.root / job.folder, see), "", None

    panel = Panel(place, "batch", result, files=False)
    queue = gr.HTML("", elem_id="batch-watch")
    with gr.Column(visible=False) as zip_row:
        pack = gr.Button("Pack everything as zip", size="md", elem_id="batch-pack", elem_classes="ce-small")
        zip_file = gr.DownloadButton(
            "Download the zip", size="md", visible=False, elem_id="batch-zip", elem_classes="ce-small"
        )
    watch = gr.Timer(1.5, active=False)

    def check(file: Any, model: str, scorer: str, *rest: Any) -> list[Any]:
        if not file:
            return ["", "", "", gr.update(interactive=False), view.state("batch-state", "idle")]
        try:
            checked = batches.check(studio, file, model=model, scorer=scorer, **advanced.read(*rest))
            name = Path(str(file)).name
            return [
                rows_table(checked),
                checked.name,
                name,
                gr.update(interactive=True),
                view.state("batch-state", "checked"),
            ]
        except Exception as error:
            inner = view.message(sentence(error), bad=True)
            return ["", "", "", gr.update(interactive=False), view.state("batch-state", "failed", inner)]

    def start(name: str, shown: str, anyway: bool, model: str, scorer: str, *rest: Any) -> list[Any]:
        try:
            how = advanced.read(*rest)
            job = batches.submit(studio, name, shown, force=anyway, model=model, scorer=scorer, **how)
            return panel.show(job)
        except Exception as error:
            return panel.failed(error)

    def look(key: str) -> list[Any]:
        job = next((j for j in studio.queue.jobs() if j.id == key), None)
        running = job is not None and job.state not in ENDED
        done = job is not None and job.state == "done"
        return [queue_table(studio, job), gr.Timer(active=running), gr.update(visible=done)]

    def make_zip(key: str) -> list[Any]:
        try:
            job = studio.queue.get(key)
            folder = studio.root / job.folder
            path = zipped([folder], studio.uploads / "downloads" / job.id / f"{folder.name}.zip")
            return [gr.update(value=str(path), visible=True), gr.skip()]
        except Exception as error:
            return [
                gr.update(visible=False),
                view.state("batch-state", "failed", view.message(sentence(error), bad=True)),
            ]

    def reopen(key: str) -> list[Any]:
        """For a fresh page: the newest batch, without its pictures, which may take a while."""
        past = [job for job in studio.queue.jobs() if job.what == "batch" and job.state != "cancelled"]
        if key or not past:
            return [gr.skip()] * 4
        return (
            panel.show(past[0])[:4]
            if past[0].state not in ENDED
            else [past[0].id, view.state("batch-state", past[0].state), gr.skip(), gr.skip()]
        )

    def fill(key: str, shown: str) -> Any:
        """The pictures and scores of a finished batch; nothing else, so that a new batch is never talked over."""
        job = next((job for job in studio.queue.jobs() if job.id == key), None)
        return summary(studio.root / job.folder, see) if job and job.state == "done" and not shown else gr.skip()

    settings = [place.model, place.scorer, *advanced.inputs]
    watched = [queue, watch, zip_row]
    upload.change(check, [upload, *settings], [checked_html, kept, title, go, panel.status], **panel.in_turn)
    go.click(start, [kept, title, force, *settings], panel.outputs, **panel.in_turn).then(
        look, panel.job, watched, **LIGHT
    )
    panel.job.change(look, panel.job, watched, **LIGHT)
    watch.tick(look, panel.job, watched, **LIGHT)
    pack.click(make_zip, panel.job, [zip_file, panel.status], **panel.in_turn)
    tab.select(reopen, panel.job, panel.outputs[:4], **panel.in_turn).then(
        fill, [panel.job, panel.result], panel.result, **panel.in_turn
    )
