"""The command for lists: batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from concept_erase.cli.common import (
    GuidanceOption,
    ModelOption,
    ProgressMode,
    ProgressOption,
    ScorerOption,
    SettingOption,
    StepsOption,
    console,
    errors,
    event,
    for_programs,
    say,
    settings_from,
)
from concept_erase.cli.common import progress as telling
from concept_erase.concepts import Kind
from concept_erase.errors import InputError

if TYPE_CHECKING:
    from concept_erase.batch.engines import Engine
    from concept_erase.batch.estimate import Estimate
    from concept_erase.lists import Listing
    from concept_erase.schema import Job

SHOWN = 12  # rows of a list or its problems on the terminal


class EngineName(StrEnum):
    """Who does the work."""

    LOCAL = "local"
    RAY = "ray"


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="LIST",
            help="CSV, Excel (.xlsx), YAML, JSON lines or text; columns target, kind, anchor, preserve, method, tags.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all results; an earlier run is gone on with.")],
    kind: Annotated[
        Kind | None,
        typer.Option(help="Kind of the rows that name none; as the heading says, else style, if not given."),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="What rows that name no anchor become; chosen for each if not given.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method of the rows that name none.")] = "uce",
    setting: SettingOption = None,
    model: ModelOption = None,
    n: Annotated[
        int, typer.Option("--pictures", "-n", min=0, help="Pictures to score on, of each concept and group; 0: none.")
    ] = 24,
    scorer: ScorerOption = None,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    half: Annotated[bool, typer.Option("--half", help="Store the adapters in float16.")] = False,
    joint: Annotated[bool, typer.Option(help="Make one adapter per tag and one for the whole list as well.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Stop when any row has a problem or a warning.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Erase also what the base does not seem to know.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show rows, plan, time and disk; erase nothing.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Worker processes, one core each; one per core and 2 GiB of free memory if not given."
        ),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="This machine, or a Ray cluster.")] = EngineName.LOCAL,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; 'auto' finds the one this machine is in.")
    ] = None,
    bar: ProgressOption = ProgressMode.AUTO,
) -> None:
    """Erase every concept of LIST: one adapter each, joint ones, and an index with pictures and scores.

    Run the same command again to go on where it was interrupted. Exit code 1 means that some rows failed.
    """
    from concept_erase import typed
    from concept_erase.lists import read_list
    from concept_erase.schema import Job, build

    becomes = typed.single(anchor, "--anchor", shell=True)
    listing = read_list(file, defaults={"kind": kind, "anchor": becomes})
    values = {
        "model": model, "method": method, "settings": settings_from(setting), "pictures": n, "scorer": scorer,
        "steps": steps, "guidance": guidance, "half": half, "joint": joint, "strict": strict, "force": force,
    }  # fmt: skip
    job = build(Job, values)
    count = workers or _workers()
    if strict and listing.problems:
        told = "; ".join(f"row {p.row}: {p.message}" for p in listing.problems[:SHOWN])
        raise InputError(f"{file} has {len(listing.problems)} problems, and --strict was given. {told}")
    _show_list(file, listing, rows=dry_run)
    if dry_run:
        from concept_erase.batch.estimate import estimate

        plan = estimate(listing, job, out, count)
        _show_plan(plan, job, count)
        event(
            event="plan", concepts=plan.concepts, joint=plan.joints, pictures=plan.pictures, seconds=plan.seconds,
            bytes=plan.disk,
        )  # fmt: skip
        event(event="done", folder=str(out))
        return
    with _logged(out), telling() as progress:
        chosen = _engine(engine, address, workers, count, len(listing.entries))
        from concept_erase.batch.runner import erase_list

        index = erase_list(listing, job, out, engine=chosen, progress=progress)
    _show_index(index, out)
    event(event="done", folder=str(out))
    if listing.problems or any(e["state"] == "failed" for e in index["entries"] + index["joint"]):
        raise typer.Exit(1)


def _workers() -> int:
    """A worker per core, as long as each has 2 GiB of memory."""
    import psutil

    return max(1, min(os.cpu_count() or 1, psutil.virtual_memory().available // 2**31))


def _engine(name: EngineName, address: str | None, asked: int | None, workers: int, entries: int) -> Engine:
    from concept_erase.batch import engines

    if name is EngineName.RAY:
        return engines.ray_cluster(address, asked)
    if address:
        raise InputError(f"--address {address} is of a Ray cluster; add --engine ray.")
    return engines.Here() if min(workers, entries) == 1 else engines.Processes(min(workers, entries))


@contextmanager
def _logged(out: Path) -> Iterator[None]:
    """`log.txt` in the folder: when what was done; runs follow one another."""
    from concept_erase.errors import OutputError

    logger = logging.getLogger("concept_erase")
    try:
        out.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(out / "log.txt", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}); choose another --out.") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt:
        logger.info("interrupted")
        raise
    except Exception as error:
        logger.error("ended: %s", error)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def _show_list(file: Path, listing: Listing, rows: bool) -> None:
    if rows:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("row", "target", "kind", "becomes", "method", "tags"):
            table.add_column(heading)
        for row, entry in list(zip(listing.rows, listing.entries, strict=True))[:SHOWN]:
            cells = (entry.target, entry.kind, entry.anchor or "chosen", entry.method or "", ", ".join(entry.tags))
            table.add_row(str(row), *(escape(str(cell)) for cell in cells))
        console.print(table)
        if len(listing.entries) > SHOWN:
            say(f"and {len(listing.entries) - SHOWN:,} more")
    for problem in listing.problems:
        event(event="problem", row=problem.row, field=problem.field, message=problem.message)
    for problem in () if for_programs() else listing.problems[:SHOWN]:
        errors.print(f"  [red]row {problem.row}, {problem.field}:[/] {escape(problem.message)}", highlight=False)
    if len(listing.problems) > SHOWN and not for_programs():
        errors.print(f"  and {len(listing.problems) - SHOWN:,} more problems", highlight=False)
    for notice in listing.notices[:SHOWN]:
        say(notice)
    if len(listing.notices) > SHOWN:
        say(f"and {len(listing.notices) - SHOWN:,} more notices")
    merged = f", {len(listing.merged):,} rows merged" if listing.merged else ""
    failed = len({problem.row for problem in listing.problems})
    rows_of = f" in {failed:,} rows" if failed else ""
    say(f"{file}: {len(listing.entries):,} concepts, {len(listing.problems):,} problems{rows_of}{merged}")


def _show_plan(plan: Estimate, job: Job, workers: int) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_row("base", escape(job.model or "the embedded generator"))
    settings = ", ".join(f"{k}={v}" for k, v in job.settings.items())
    table.add_row("method", escape(job.method + (f" ({settings})" if settings else "")))
    groups = f"{job.pictures} pictures of each group before and after"
    scored = f"{groups}, at most {plan.pictures:,} in all" if job.pictures else "not scored"
    table.add_row("adapters", f"{plan.concepts:,} and {plan.joints} joint; {scored}")
    disk = f"about {_size(plan.disk)} ({_size(plan.adapter)} an adapter), {_size(plan.free)} free"
    table.add_row("disk", disk if plan.adapter else "not known")
    if plan.seconds is None:
        table.add_row("time", f"not known: {escape(plan.basis)}")
    else:
        table.add_row("time", f"about {_span(plan.seconds)} with {workers} workers (from {plan.basis})")
    console.print(table)
    if plan.disk > plan.free:
        say("warning: the disk will not do; use --half, fewer concepts, or another --out.")


def _show_index(index: dict[str, Any], out: Path) -> None:
    from concept_erase import words

    failed = [entry for entry in index["entries"] if entry["state"] == "failed"]
    for entry in failed:
        event(event="failed", row=entry["row"], target=entry["target"], message=entry["error"])
    for joint in index["joint"]:
        if joint["state"] == "failed":
            event(event="failed", row=None, target=joint["tag"], message=joint["error"])
    for entry in () if for_programs() else failed[:SHOWN]:
        errors.print(
            f"  [red]row {entry['row']}, {escape(entry['target'])}:[/] {escape(entry['error'])}", highlight=False
        )
    if len(failed) > SHOWN and not for_programs():
        errors.print(f"  and {len(failed) - SHOWN:,} more that failed; see index.html", highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    headings = ("joint adapter", "concepts", "rank", "KiB", "UA", "IRA", "CRA")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for joint in index["joint"]:
        if joint["state"] == "failed":
            table.add_row(escape(joint["tag"]), f"{len(joint['members']):,}", "failed", "", "", "", "")
            continue
        found = joint["scores"] or {}
        hollow = bool(found) and not words.knew(found["UA"]["before"], found["nonsense"])
        scores = [
            "not known"
            if hollow and name == "UA"
            else f"{s['after']['value']:.1f} [{s['after']['low']:.1f}, {s['after']['high']:.1f}]"
            if (s := of)
            else ""
            for name in headings[4:]
            for of in (found.get(name),)
        ]
        numbers = (f"{len(joint['members']):,}", str(joint["rank"]), f"{joint['bytes'] / 1024:,.0f}")
        table.add_row(escape(joint["tag"]), *numbers, *scores)
    if index["joint"]:
        console.print(table)
    done = len(index["entries"]) - len(failed)
    say(f"{done:,} adapters, {len(failed):,} failed, {len(index['problems']):,} rows with problems")
    say(f"look at {out / 'index.html'}")


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:,.0f} {unit}"
        n /= 1024
    return f"{n:,.1f} GiB"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
