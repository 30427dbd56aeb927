"""The rows of a table: CSV as spreadsheets of all countries write it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from concept_erase.errors import InputError
from concept_erase.lists.cells import unescaped
from concept_erase.lists.rows import COUNTERS, NAMES, Rows, column, quoted


def read_csv(text: str) -> Rows:
    """A table with a header in any order, or a single column of names without one.

    The delimiter (comma, semicolon or tab) is the one that makes sense of the header.

    Raises:
        InputError: there is no column of targets, a column is there twice, or too many rows.
    """
    found = Rows()
    named = re.match(r'"?sep=([,;\t|])"?\n', text)  # Excel's own first line, which it does not show
    text = text[named.end() :] if named else text
    delimiter = named[1] if named else _delimiter(text)
    places: dict[int, str] | None = None
    width = 1
    for row, cells in _records(text, delimiter, found):
        if not any(cell.strip() for cell in cells):
            continue
        if places is None:
            places, width = _header(cells, found.notices), len(cells)
            if places:
                continue
            places = {0: "target"}
        if any(cell.strip() for cell in cells[width:]):
            told = f"the row has {len(cells)} cells, the header {width}; put names that hold {delimiter!r} in quotes."
            found.fail(row, told)
            continue
        found.add(row, {name: unescaped(cells[i]) for i, name in places.items() if i < len(cells)})
    return found


def _delimiter(text: str) -> str:
    def sense(delimiter: str) -> tuple[int, int]:
        first = _first(text, delimiter)
        known = [NAMES[column(cell)] for cell in first if column(cell) in NAMES]
        return (len(known) if "target" in known else 0, len(first))

    return max((",", ";", "\t"), key=sense)


def _first(text: str, delimiter: str) -> list[str]:
    return next((cells for _, cells in _records(text, delimiter, Rows()) if any(cell.strip() for cell in cells)), [])


def _records(text: str, delimiter: str, found: Rows) -> Iterator[tuple[int, list[str]]]:
    """Row number and cells; a row that cannot be read becomes a problem, and the next one is tried."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    row = 0
    while True:
        row, first = row + 1, reader.line_num + 1
        try:
            yield row, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            told = f"the row cannot be read ({error}); write quotes inside a name twice and close every quote"
            if "unexpected end" in str(error):
                told = "a quote opens in this row and never closes; close it"
            lost = f"; lines {first} to {reader.line_num} were not read" if reader.line_num > first else ""
            found.fail(row, f"{told}{lost}.")


def _header(cells: list[str], notices: list[str]) -> dict[int, str]:
    """Position -> field; empty if the row is no header but the first name of a single column."""
    names = [column(cell) for cell in cells]
    targets = [name for name, meant in NAMES.items() if meant == "target" and name in names]
    if not targets:
        if sum(bool(name) for name in names) == 1 and names[0]:
            notices.append(f"the list has no header: every row is taken as a name, {cells[0].strip()!r} as the first.")
            return {}
        raise InputError(
            f"no column is called 'target', 'concept' or 'name'; the first row has {quoted(cells)}. Name the columns "
            "in it."
        )
    places: dict[int, str] = {}
    for place, name in enumerate(names):
        meant = NAMES.get(name)
        if meant == "target" and name != targets[0]:
            notices.append(f"column {name!r} is not used; the targets are taken from {targets[0]!r}.")
        elif meant in places.values():
            raise InputError(f"two columns hold {meant!r}; keep one.")
        elif meant:
            places[place] = meant
        elif name and name not in COUNTERS:
            known = ", ".join(dict.fromkeys(NAMES.values()))
            notices.append(f"column {cells[place].strip()!r} is not used; the columns are {known}.")
    return places


def is_table(text: str) -> bool:
    """Whether a text of unknown format begins with a header that names a column of targets."""
    cells = _first(text, _delimiter(text))
    return bool(re.match(r'"?sep=', text)) or any(NAMES.get(column(cell)) == "target" for cell in cells)
