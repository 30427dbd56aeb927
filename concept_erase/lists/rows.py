"""The rows of a list, before any is checked; from plain text, JSON and JSON lines. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from concept_erase.errors import InputError
from concept_erase.lists.cells import unescaped

MOST_ROWS = 100_000

# What a column or key may be called; of several names of the target the first one that is there counts.
NAMES = {
    "target": "target", "concept": "target", "name": "target", "kind": "kind", "anchor": "anchor",
    "preserve": "preserve", "method": "method", "tags": "tags", "tag": "tags",
}  # fmt: skip
COUNTERS = ("id", "#")  # ignored without a word


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
    """

    rows: list[tuple[int, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)

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


def column(name: str) -> str:
    """A column or key as it is compared: without case, spaces and marks around it."""
    return unescaped(name).strip(" \t\ufeff*:").casefold()


def read_text(text: str) -> Rows:
    """One name a line; lines that begin with # are comments."""
    found = Rows()
    for row, line in enumerate(text.split("\n"), 1):
        name = unescaped(line.strip(" \t"))
        if name and not name.startswith("#"):
            found.add(row, name)
    return found


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
