"""The command that shows how adapters move each other's targets and what must stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from concept_erase.cli.common import ModelOption, ProgressMode, ProgressOption, console, event, say
from concept_erase.cli.common import progress as telling
from concept_erase.errors import InputError
from concept_erase.names import normalise

if TYPE_CHECKING:
    from concept_erase.interference import Interference

LISTED = 30  # adapters that a terminal shows; the summary holds more


def interference(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Adapter files, or folders of erasures.")],
    preserve: Annotated[
        list[str] | None,
        typer.Option(
            help="A concept that must stay; may be repeated. The adapters' own ones and neighbours if not given."
        ),
    ] = None,
    model: ModelOption = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Prompts per concept; 6, or 1 for more than 64 adapters, if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG file for the heat map.")] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the summary to this file as well; - prints it alone.")
    ] = None,
    bar: ProgressOption = ProgressMode.AUTO,
) -> None:
    """Show how far adapters move each other's targets and what must stay, without drawing a picture.

    1 is as far as the way from a target to its own anchor.
    """
    from concept_erase import typed

    kept, _ = typed.names(preserve or (), "--preserve", shell=True)
    names = [normalise(name, "preserve") for name in kept]
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(f"--out got {str(out)!r}; the heat map is a .png file.")
    to_stdout = report is not None and str(report) == "-"
    with telling(quiet=to_stdout) as progress:
        from concept_erase import picture
        from concept_erase.adapter import Adapter
        from concept_erase.files import atomic_write
        from concept_erase.interference import draw
        from concept_erase.interference import interference as run
        from concept_erase.model import source_of

        base = model or source_of(Adapter.load(files[0]).base)
        found = run(base, files, names or None, prompts=prompts, progress=progress)
        if out:
            picture.save(draw(found), out)
    text = json.dumps(found.summary(), indent=2, ensure_ascii=False)
    if report and not to_stdout:
        atomic_write(report, text + "\n")
    event(event="done", file=str(out) if out else None)
    if to_stdout:
        print(text)
        return
    for notice in found.notices:
        say(notice)
    _print(found)
    if out:
        say(f"heat map: {out}")
    if report:
        say(f"summary: {report}")


def _print(found: Interference) -> None:
    table = _matrix(found)
    wide = console.options.update(max_width=10_000)  # what it takes where there is room enough
    if table is None or console.measure(table, options=wide).maximum > console.width:
        table = _overview(found)
    console.print()
    console.print(table)
    console.print(
        "  1 is as far as the way from a target to its own anchor; own targets in brackets.",
        style="dim",
        highlight=False,
    )
    worst = found.worst(5)
    if worst:
        console.print()
        for pair in worst:
            line = f"  {pair['adapter']!r} moves {pair['concept']!r} by {pair['moved']:.2f}"
            console.print(escape(line), style=_style(pair["moved"]), highlight=False)
    kept = [(v, name) for v, name, e in zip(found.together, found.concepts, found.erased, strict=True) if not e]
    if kept and len(found.adapters) > 1:
        value, name = max(kept)
        line = f"  all together move {name!r} by {value:.2f}, the most of what stays"
        console.print(escape(line), style=_style(value), highlight=False)


def _matrix(found: Interference) -> Table | None:
    """Adapters down, concepts across; None where there are too many adapters to read."""
    if len(found.adapters) > LISTED:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="How far each adapter moves each concept")
    table.title_justify = "left"
    table.add_column("", no_wrap=True, min_width=max(cell_len(_row(n)) for n in (*found.adapters, "all together")))
    for name, erased in zip(found.concepts, found.erased, strict=True):
        width = max(6, cell_len(name))
        table.add_column(Text(name, style="red" if erased else "green"), justify="right", no_wrap=True, min_width=width)
    for k, name in enumerate(found.adapters):
        cells = [_cell(v, own) for v, own in zip(found.moved[k], found.own[k], strict=True)]
        table.add_row(Text(_row(name)), *cells)
    if len(found.adapters) > 1:
        table.add_section()
        table.add_row("all together", *(_cell(v, False) for v in found.together))
    return table


def _overview(found: Interference) -> Table:
    """Each adapter with its own targets and what else it moves most: the adapters that do most harm first."""
    rows = sorted(found.per_adapter(), key=lambda row: -(row["moved"] or 0.0))
    title = "What each adapter moves most, besides its own targets"
    if len(rows) > LISTED:
        title += f" (the worst {LISTED} of {len(rows)})"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("adapter")
    table.add_column("own", justify="right", no_wrap=True)
    table.add_column("moves most besides")
    table.add_column("by", justify="right", no_wrap=True)
    for row in rows[:LISTED]:
        other = ("", "") if row["concept"] is None else (Text(row["concept"]), _cell(row["moved"], False))
        table.add_row(Text(_row(row["adapter"])), _cell(row["own"], True), *other)
    return table


def _row(title: str) -> str:
    return title.removeprefix("Erases ")


def _cell(value: float, own: bool) -> Text:
    """A number on the colour it has in the heat map."""
    from concept_erase.interference.heatmap import shade

    red, green, blue = shade(value)
    number = f"[{value:.2f}]" if own else f" {value:.2f} "
    ink = "white" if value > 0.6 else "black"
    return Text(number, style=f"{'bold ' if own else ''}{ink} on rgb({red},{green},{blue})")


def _style(value: float) -> str | None:
    """A move of a quarter of the way is worth a look, one of half is damage."""
    return "red" if value >= 0.5 else "yellow" if value >= 0.25 else None
