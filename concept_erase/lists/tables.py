"""The rows of a table: its header, and CSV as spreadsheets of all countries write it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping

from concept_erase.errors import InputError
from concept_erase.lists.cells import unescaped
from concept_erase.lists.headings import COUNTERS, DOUBTFUL, FIELDS, KINDS, NAMES, PLAIN, column
from concept_erase.lists.rows import Rows, bare, quoted


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
    return table(_records(text, delimiter, found), found, delimiter)


class Unread(str):
    """What is shown in a cell that holds no text; `why` says what it holds."""

    why: str


def table(records: Iterable[tuple[int, list[str]]], found: Rows, delimiter: str = "") -> Rows:
    """Rows from records of cells, the first of which may be a header; see `read_csv`.

    Args:
        found: Is added to.
        delimiter: For a message.
    """
    places: dict[int, str] | None = None
    width = 1
    names: list[tuple[int, str]] = []
    for row, cells in records:
        if not any(cell.strip() for cell in cells):
            continue
        if places is None:
            places, width = _header(cells, found), len(cells)
            if places:
                continue
        if any(cell.strip() for cell in cells[width:]):
            told = f"the row has {len(cells)} cells, the header {width}"
            found.fail(row, f"{told}; put names that hold {delimiter!r} in quotes." if delimiter else f"{told}.")
        elif wrong := _unread(cells, places or {0: "target"}):
            found.fail(row, wrong)
        elif places:
            found.add(row, {name: unescaped(cells[i]) for i, name in places.items() if i < len(cells)})
        else:
            names.append((row, cells[0]))
    for row, name, _ in bare(names, found.notices):
        found.add(row, {"target": unescaped(name)})
    return found


def _unread(cells: list[str], places: Mapping[int, str]) -> str:
    """What is wrong with a row of which a used cell holds no text; "" if nothing."""
    odd = ((name, cells[i]) for i, name in places.items() if i < len(cells))
    return next((f"{name} {cell.why}; write it as text." for name, cell in odd if isinstance(cell, Unread)), "")


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


def _header(cells: list[str], found: Rows) -> dict[int, str]:
    """Position -> field; empty if the row is no header but the first name of a single column."""
    names = [column(cell) for cell in cells]
    if "target" not in {NAMES.get(name) for name in names}:
        if sum(bool(name) for name in names) == 1 and names[0]:
            first = cells[0].strip()
            found.notices.append(f"the list has no header: every row is taken as a name, {first!r} as the first.")
            return {}
        raise InputError(
            f"no column is called 'target', 'concept' or 'name'; the first row has {quoted(cells)}. Name the columns "
            "in it, or write one name a row."
        )
    chosen: dict[str, str] = {}  # field -> the best of its names that is there
    for name, meant in NAMES.items():
        if name in names:
            chosen.setdefault(meant, name)
    places: dict[int, str] = {}
    for place, name in enumerate(names):
        meant = NAMES.get(name, "")
        if meant and name != chosen[meant]:
            whose = "targets are" if meant == "target" else f"{meant} is" if meant in _SINGLE else f"{meant} are"
            found.notices.append(f"column {name!r} is not used; the {whose} taken from {chosen[meant]!r}.")
        elif meant in places.values():
            raise InputError(f"two columns hold {meant!r}; keep one.")
        elif meant:
            places[place] = meant
        elif name and name not in COUNTERS:
            found.notices.append(f"column {cells[place].strip()!r} is not used; the columns are {', '.join(FIELDS)}.")
    _tell(cells, places, found)
    return places


_SINGLE = ("kind", "anchor", "method")


def _tell(cells: list[str], places: dict[int, str], found: Rows) -> None:
    """What columns with names of their own were taken as, and the kind that the heading of the targets speaks of."""
    taken = []
    for place, field in places.items():
        shown, name = cells[place].strip(), column(cells[place])
        if field == "target":
            if "kind" not in places.values() and name in KINDS:
                found.kind = KINDS[name].value
            if name not in PLAIN:
                kind = f" of kind {found.kind}, where nothing else says the kind" if found.kind else ""
                taken.append(f"{shown!r} as the targets{kind}")
        elif name not in (field, "tag"):
            taken.append(f"{shown!r} as {field}")
    doubt = ""
    if len(cells) == 1 and column(cells[0]) in DOUBTFUL:
        doubt = f" If {cells[0].strip()!r} is a name itself, put a row 'target' above it."
    if taken:
        found.notices.append(f"the first row is read as headings: {'; '.join(taken)}.{doubt}")


def is_table(text: str) -> bool:
    """Whether a text of unknown format begins with a header that names a column of targets."""
    known = [name for cell in _first(text, _delimiter(text)) if NAMES.get(name := column(cell))]
    sure = len(known) > 1 or not DOUBTFUL.issuperset(known)
    return bool(re.match(r'"?sep=', text)) or (sure and "target" in {NAMES[name] for name in known})
