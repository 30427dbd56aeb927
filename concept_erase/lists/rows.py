"""The rows of a list, before any is checked; from plain text, JSON and JSON lines. No torch here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from concept_erase.errors import InputError
from concept_erase.lists.cells import unescaped
from concept_erase.names import several

MOST_ROWS = 100_000

_BULLET = re.compile(r"^[-*+•·‣▪◦●–—]\s+(?=\S)")
_NUMBER = re.compile(r"^\(?(\d{1,6})(?:[.):]\)?\s+|\)|\t)\s*(?=\S)")
_END = re.compile(r"(?<=[^\s,;])[\s,;]*[,;]$")
_QUOTES = ('""', "''", "“”", "‘’", "„“", "„”", "«»", "‹›", "「」", "『』", "``")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row; `row` is the number that a spreadsheet or editor shows."""

    row: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.message}"


@dataclass
class Rows:
    """What a file holds, before any of it is checked.

    Attributes:
        rows: Row number and what stands there: a name, or fields by name.
        problems: Rows that could not be read.
        notices: For the user.
        defaults: Fields for every row that lacks them.
        kind: What the heading of the targets speaks of; for rows of which nothing else says the kind.
    """

    rows: list[tuple[int, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None

    def add(self, row: int, values: Any) -> None:
        """A row more.

        Raises:
            InputError: that makes too many.
        """
        self.rows.append((row, values))
        self._count()

    def fail(self, row: int, message: str) -> None:
        """A row more that could not be read."""
        self.problems.append(Problem(row, "row", message))
        self._count()

    def _count(self) -> None:
        if len(self.rows) + len(self.problems) > MOST_ROWS:
            raise InputError(f"the list has more than {MOST_ROWS:,} rows; split it.")


def read_text(text: str) -> Rows:
    """One name a line; lines that begin with # are comments.

    Bullets, numbers and quotes are taken off where the list as a whole has them. A line of several names is a problem.
    """
    found = Rows()
    lines = ((row, line.strip(" ")) for row, line in enumerate(text.split("\n"), 1))
    written = [(row, line) for row, line in lines if line.strip() and not line.strip().startswith("#")]
    for row, line, quoted_name in bare(written, found.notices):
        names = [line] if quoted_name else several(line)
        if len(names) > 1:
            told = f"the line {line[:80]!r} holds {len(names):,} names ({quoted(names)}); write one name a line"
            found.fail(row, f'{told}, or a name that holds such a mark in double quotes: "{line[:80]}".')
        else:
            found.add(row, unescaped(line))
    return found


def bare(lines: list[tuple[int, str]], notices: list[str]) -> list[tuple[int, str, bool]]:
    """Names without what a list has around them: bullets, numbers, quotes, a comma at the end.

    A name may begin with a number or a dash ("3 Doors Down", "-M-", "1. FC Köln"), so these go only where most lines
    have them, and numbers only where they count up. Quotes also go from a line that holds a comma: that is how a name
    with a comma is written.

    Args:
        notices: Is added to.
    Returns:
        Row, name, and whether it was in quotes.
    """
    most = max(2, len(lines) // 2 + 1)
    taken: dict[str, int] = {}

    def off(what: str, before: str, after: str) -> str:
        taken[what] = taken.get(what, 0) + (before != after)
        return after

    def rid(what: str, sign: re.Pattern[str], rest: list[tuple[int, str]]) -> list[tuple[int, str]]:
        return [(row, off(what, line, sign.sub("", line, count=1))) for row, line in rest]

    rest = lines
    if sum(bool(_BULLET.match(line)) for _, line in rest) >= most:
        rest = rid("bullets", _BULLET, rest)
    numbers = [int(match[1]) for _, line in rest if (match := _NUMBER.match(line))]
    if len(numbers) >= most and all(a < b for a, b in pairwise(numbers)):
        rest = rid("numbers", _NUMBER, rest)
    rest = rid("commas at the end", _END, [(row, line.strip()) for row, line in rest])
    found = []
    quotes = sum(_unquoted(line) != line for _, line in rest) >= most
    for row, line in rest:
        inner = _unquoted(line)
        if inner != line and (quotes or len(several(line)) > 1):
            found.append((row, off("quotes", line, inner), True))
        else:
            found.append((row, line, False))
    if gone := [f"{what} ({n:,} lines)" if n > 1 else f"{what} (1 line)" for what, n in taken.items() if n]:
        notices.append(f"taken off around the names: {', '.join(gone)}.")
    return found


def _unquoted(line: str) -> str:
    """What stands between the quotes around a whole line, or the line."""
    if len(line) > 2 and line[0] + line[-1] in _QUOTES and line[1:-1].strip() and line[0] not in line[1:-1]:
        return line[1:-1].strip()
    return line


def read_jsonl(text: str) -> Rows:
    """One object or text a line."""
    found = Rows()
    for row, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=pairs)
        except InputError as error:
            found.fail(row, str(error))
        except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, or nested too deeply
            found.fail(row, f"the line is no JSON ({error}); write one object or one text in double quotes a line.")
        else:
            found.add(row, values)
    return found


def read_json(text: str) -> Rows:
    """A list of names or objects, one object, or one with `concepts` and `defaults`; rows are counted from 1.

    Raises:
        InputError: it is none of these, and no JSON lines.
    """
    try:
        data = json.loads(text, object_pairs_hook=pairs)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):
            return read_jsonl(text)
        raise InputError(f"the list is no JSON ({error}); write a list of names or objects.") from error
    found = Rows()
    if isinstance(data, dict) and "concepts" in data:
        found.defaults = defaults_of(data)
        data = data["concepts"]
    elif isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        return no_list("concepts", type(data).__name__)
    for row, item in enumerate(data, 1):
        found.add(row, item)
    return found


def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys are all different; else an InputError that names one."""
    values: dict[str, Any] = {}
    for name, value in items:
        if name in values:
            raise InputError(f"{name!r} is given twice; keep one.")
        values[name] = value
    return values


def defaults_of(data: dict[str, Any]) -> dict[str, Any]:
    """The defaults in a mapping that has `concepts` beside them; an InputError if it has anything else."""
    if unknown := [str(key) for key in data if key not in ("concepts", "defaults")]:
        raise InputError(f"the list has {quoted(unknown)} beside 'concepts' and 'defaults'; move it into one of them.")
    defaults = data.get("defaults") or {}
    return defaults if isinstance(defaults, dict) else no_list("defaults", type(defaults).__name__)


def no_list(field: str, got: str) -> Any:
    """Raises InputError: `field` is of a type that it cannot be."""
    wanted = "fields with values" if field == "defaults" else "a list of names, or of fields with values"
    raise InputError(f"{field} must be {wanted}, got {got}.")


def quoted(names: list[str]) -> str:
    """Names for a message, ten at most."""
    shown = ", ".join(repr(name.strip()[:40]) for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
