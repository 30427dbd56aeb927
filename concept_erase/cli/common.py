"""What all commands share: consoles, options, and how progress is told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from concept_erase.errors import InputError

console = Console()
errors = Console(stderr=True)


class ProgressMode(StrEnum):
    """How progress is told."""

    AUTO = "auto"  # a bar where somebody watches
    JSON = "json"  # one JSON object a line, for programs
    NONE = "none"


_mode = ProgressMode.AUTO


def _set_mode(mode: ProgressMode) -> ProgressMode:
    global _mode
    _mode = mode
    return mode


ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder or hub name of a base; the embedded generator if not given.")
]
ScorerOption = Annotated[
    str | None,
    typer.Option(
        help="Who looks at the pictures: 'base', the base itself, which needs nothing else; an open_clip model, as "
        "NAME:TAG, NAME:FILE or a local folder; or both, as base+NAME:TAG."
    ),
]
StepsOption = Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps of every picture.")]
GuidanceOption = Annotated[
    float | None, typer.Option(help="Classifier-free guidance; the base's usual one if not given.")
]
SettingOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; may be repeated.")
]
ProgressOption = Annotated[
    ProgressMode,
    typer.Option(
        "--progress",
        is_eager=True,
        callback=_set_mode,
        help="A bar, or one JSON object a line on standard error for programs, or none.",
    ),
]


def settings_from(pairs: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE texts as a dictionary; "none" means None.

    Raises:
        InputError: a pair has no "=" or no name.
    """
    values = {}
    for pair in pairs or ():
        key, found, value = pair.partition("=")
        if not found or not key:
            raise InputError(f"--set got {pair!r}; write NAME=VALUE.")
        values[key.strip()] = None if value.strip().lower() == "none" else value.strip()
    return values


def say(text: str) -> None:
    """One indented line; warnings stand out."""
    style = "yellow" if "warning" in text else None
    console.print(f"  {escape(text)}", style=style, highlight=False)


def for_programs() -> bool:
    """Whether progress is told as JSON lines, so that nothing else may come on standard error."""
    return _mode is ProgressMode.JSON


def event(**what: Any) -> None:
    """For `--progress json`: one object a line on standard error."""
    if _mode is ProgressMode.JSON:
        print(json.dumps(what, ensure_ascii=False), file=sys.stderr, flush=True)


def fail(message: str, exit_code: int) -> int:
    """Tell what went wrong in the way that was asked for; returns the exit code."""
    if _mode is ProgressMode.JSON:
        event(event="error", message=message, exit_code=exit_code)
    else:
        errors.print(f"[red]error:[/] {escape(message)}" if exit_code != 130 else escape(message), highlight=False)
    return exit_code


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, what): a bar with the time left on a terminal, JSON lines, or nothing."""
    if _mode is ProgressMode.JSON:
        yield _json_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or _mode is ProgressMode.NONE
    with Progress(*columns, console=errors, transient=True, disable=hidden) as bar:
        tasks: dict[str, Any] = {}

        def update(done: int, total: int, what: str) -> None:
            label = what.partition(",")[0]
            if label not in tasks:
                tasks[label] = bar.add_task(escape(what), total=total)
            bar.update(tasks[label], completed=done, total=total, description=escape(what))

        yield update


def _json_lines() -> Callable[[int, int, str], None]:
    started: dict[str, tuple[float, int]] = {}
    last = 0.0

    def update(done: int, total: int, what: str) -> None:
        nonlocal last
        now, label = time.monotonic(), what.partition(",")[0]
        since, first = started.setdefault(label, (now, done))
        if 0 < done < total and now - last < 0.2:  # a program needs no more than five lines a second
            return
        last = now
        left = (now - since) / (done - first) * (total - done) if done > first else None
        event(event="progress", what=what, done=done, total=total, left_s=None if left is None else round(left, 1))

    return update
