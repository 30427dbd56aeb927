"""Lists of concepts, from a file to checked entries; every problem of every row is found and shown together."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from concept_erase.concepts import same
from concept_erase.errors import InputError
from concept_erase.files import atomic_write
from concept_erase.lists.cells import escaped as escaped
from concept_erase.lists.cells import is_formula
from concept_erase.lists.documents import read_yaml
from concept_erase.lists.intake import decode, read_bytes, refuse_suffix
from concept_erase.lists.rows import COUNTERS, NAMES, Problem, Rows, column, read_json, read_jsonl, read_text
from concept_erase.lists.tables import is_table, read_csv
from concept_erase.schema import Entry, build, explain

SHOWN = 20  # problems or names in one message
MOST_COMPARISONS = 20_000_000

READERS: dict[str, Callable[[str], Rows]] = {
    ".csv": read_csv, ".tsv": read_csv, ".tab": read_csv, ".yaml": read_yaml, ".yml": read_yaml, ".json": read_json,
    ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".txt": read_text, ".text": read_text,
}  # fmt: skip

Numbered = list[tuple[int, Entry]]


@dataclass(frozen=True)
class Listing:
    """What a list holds.

    Attributes:
        entries: What can be erased, duplicates merged, in the order of the list.
        rows: The row of each entry: the number that a spreadsheet or editor shows.
        problems: What is wrong with which row, by row; such rows are not among the entries.
        notices: What was decided on the way; those that begin with "warning:" are errors to a strict job.
    """

    entries: tuple[Entry, ...]
    rows: tuple[int, ...]
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]


def read_list(path: Path | str, *, defaults: Mapping[str, Any] | None = None) -> Listing:
    """A list from a CSV, YAML, JSON, JSON lines or text file (by suffix, else by content).

    Args:
        defaults: Fields for rows that lack them; the file's own defaults go before them.
    Raises:
        InputError: the file as a whole cannot be read, or no row of it can be used.
    """
    return parse_list(read_bytes(path), str(path), defaults=defaults)


def parse_list(data: bytes, name: str, *, defaults: Mapping[str, Any] | None = None) -> Listing:
    """A list from the bytes of a file called `name`, or from a text that was typed in; see `read_list`."""
    refuse_suffix(name)
    text, guessed = decode(data, name, windows=reader_for(name, data.decode("latin-1")) in (read_csv, read_text))
    found = reader_for(name, text)(text)
    common = {**_fields(defaults or {}), **_fields(found.defaults)}
    _check_defaults(common)
    problems = list(found.problems)
    entries = _entries(found, common, problems)
    entries, notices = check_list(entries, problems)
    problems.sort(key=lambda problem: problem.row)
    if not entries:
        reasons = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        held = f"holds no row that can be used:\n{reasons}{more}" if problems else "holds no row; name a concept"
        raise InputError(f"{name} {held}" if problems else f"{name} {held}.")
    heard = (*([guessed] if guessed else []), *found.notices, *notices)
    return Listing(tuple(e for _, e in entries), tuple(row for row, _ in entries), tuple(problems), heard)


def reader_for(name: str, text: str) -> Callable[[str], Rows]:
    """The reader of a file, by its suffix, else by how it begins."""
    if known := READERS.get(Path(name).suffix.lower()):
        return known
    lines = (line.strip() for line in text.split("\n"))
    first = next((line for line in lines if line and not line.startswith("#")), "")
    if first.startswith(("{", "[")):
        return read_json
    if re.match(r"- |---$|%YAML|(concepts|defaults)\s*:", first):
        return read_yaml
    return read_csv if is_table(text) else read_text


# -- rows ----------------------------------------------------------------------------------------------------------


def _entries(found: Rows, common: Mapping[str, Any], problems: list[Problem]) -> Numbered:
    """The rows that hold together by themselves."""
    entries = []
    for row, values in found.rows:
        try:
            given = _fields(values if isinstance(values, Mapping) else {"target": values})
            entry = Entry.model_validate({**common, **given})
        except ValidationError as error:
            problems += [Problem(row, field, message) for field, message in explain(Entry, error)]
            continue
        except InputError as error:
            problems.append(Problem(row, "row", str(error)))
            continue
        wrong = _formulas(row, entry) + _broken_lines(row, given)
        problems += wrong
        if not wrong:
            entries.append((row, entry))
    return entries


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field: other names of a field understood, empty ones left out so that defaults can fill them."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        field = NAMES.get(column(str(key)), str(key))
        if column(str(key)) in COUNTERS:
            continue
        if field in fields:
            raise InputError(f"{field} is given twice, by two of its names; keep one.")
        if field == "target" or not (value is None or (isinstance(value, str) and not value.strip())):
            fields[field] = value
    return fields


def _check_defaults(common: Mapping[str, Any]) -> None:
    if "target" in common:
        raise InputError("defaults name a target; a target belongs to one row.")
    try:
        build(Entry, {**common, "target": "whatever a row names"})
    except InputError as error:
        raise InputError(f"defaults do not fit: {error}") from error


def _formulas(row: int, entry: Entry) -> list[Problem]:
    names = [("target", entry.target), ("anchor", entry.anchor or "")]
    names += [("preserve", name) for name in entry.preserve] + [("tags", tag) for tag in entry.tags]
    told = "reads like a spreadsheet formula; write the name without the sign in front"
    return [Problem(row, field, f"{field} {name!r} {told}.") for field, name in names if is_formula(name)]


def _broken_lines(row: int, given: Mapping[str, Any]) -> list[Problem]:
    """A line break inside a name is what two rows look like that a stray quote has joined."""
    return [
        Problem(row, field, f"{field} holds a line break: {given[field].strip()[:80]!r}; write one name a row.")
        for field in ("target", "anchor")
        if isinstance(given.get(field), str) and "\n" in given[field].strip()
    ]


# -- the list as a whole -------------------------------------------------------------------------------------------


def check_list(entries: Numbered, problems: list[Problem]) -> tuple[Numbered, list[str]]:
    """Duplicates merged, contradictions between rows found.

    Args:
        entries: Row number and entry.
        problems: Is added to.
    Returns:
        The entries that can be erased, and notices.
    """
    entries, notices = _merged(entries, problems)
    erased = {entry.target.casefold(): row for row, entry in reversed(entries)}
    usable = []
    for row, entry in entries:
        pairs = [f"{p!r} is preserved here and erased in row {erased[p.casefold()]}" for p in entry.preserve
                 if p.casefold() in erased]  # fmt: skip
        if pairs:
            told = f"{_listed(pairs, '; ')}; take each out of one of the two."
            problems.append(Problem(row, "preserve", told))
        chained = erased.get(entry.anchor.casefold()) if entry.anchor else None
        if chained:
            told = f"the anchor {entry.anchor!r} is itself erased in row {chained}; name another anchor."
            problems.append(Problem(row, "anchor", told))
        if not pairs and not chained:
            usable.append((row, entry))
    return usable, notices + _anchors_that_contain(usable)


def _merged(entries: Numbered, problems: list[Problem]) -> tuple[Numbered, list[str]]:
    """One entry for each kind and name; rows that contradict an earlier one become problems."""
    merged: dict[tuple[str, str], tuple[int, Entry]] = {}
    repeats: dict[tuple[str, str], list[int]] = {}
    for row, entry in entries:
        key = (entry.kind.value, entry.target.casefold())
        if key not in merged:
            merged[key] = (row, entry)
            continue
        first_row, first = merged[key]
        clashes = [
            Problem(row, field, f"{entry.target!r} has the {field} {mine!r} here and {theirs!r} in row {first_row}; "
                    "keep one.")
            for field, mine, theirs in (
                ("anchor", entry.anchor, first.anchor), ("method", entry.method, first.method))
            if mine and theirs and not same(mine, theirs)
        ]  # fmt: skip
        problems += clashes
        if clashes:
            continue
        both = {"preserve": first.preserve + entry.preserve, "tags": first.tags + entry.tags}
        either = {"anchor": first.anchor or entry.anchor, "method": first.method or entry.method}
        try:
            merged[key] = (first_row, build(Entry, {**first.model_dump(), **both, **either}))
        except InputError as error:
            problems.append(Problem(row, "row", f"{entry.target!r} cannot be merged with row {first_row}: {error}"))
            continue
        repeats.setdefault(key, [first_row]).append(row)
    told = [
        f"{merged[key][1].target!r} is listed {len(rows):,} times (rows {_listed(rows)}); merged."
        for key, rows in repeats.items()
    ]
    if len(told) > 5 * SHOWN:
        told = [*told[: 5 * SHOWN], f"{len(told) - 5 * SHOWN:,} more concepts are listed more than once; merged."]
    return list(merged.values()), told


def _anchors_that_contain(entries: Numbered) -> list[str]:
    """A warning for each anchor that contains another erased concept: it might bring back what it should replace."""
    erased = {entry.target.casefold(): (row, entry.target) for row, entry in reversed(entries)}
    users: dict[str, list[tuple[int, Entry]]] = {}
    for row, entry in entries:
        if entry.anchor:
            users.setdefault(entry.anchor.casefold(), []).append((row, entry))
    lengths = {len(target) for target in erased}
    if sum(len(anchor) for anchor in users) * len(lengths) > MOST_COMPARISONS:
        return ["the list has too many anchors to check whether one of them contains an erased concept."]
    notices = []
    for anchor, rows in users.items():
        # Parts of each length that a target has, looked up: as exact as comparing all pairs, and quick for thousands.
        parts = {anchor[i : i + n] for n in lengths for i in range(len(anchor) - n + 1)}
        for part in sorted(parts & erased.keys()):
            erased_row, target = erased[part]
            others = [f"{entry.target!r} (row {row})" for row, entry in rows if entry.target.casefold() != part]
            if others:
                told = f"the anchor {rows[0][1].anchor!r} of {_listed(others)} contains {target!r}"
                notices.append(f"warning: {told}, erased in row {erased_row}.")
    return notices


def _listed(items: Sequence[object], between: str = ", ") -> str:
    shown = between.join(str(item) for item in items[:SHOWN])
    return shown + (f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else "")


# -- problems, to be downloaded ------------------------------------------------------------------------------------


def problems_csv(problems: Sequence[Problem]) -> str:
    """A table of the problems that a spreadsheet can open: nothing in it is computed."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["row", "field", "problem"])
    writer.writerows([problem.row, escaped(problem.field), escaped(problem.message)] for problem in problems)
    return table.getvalue()


def write_problems(path: Path | str, problems: Sequence[Problem]) -> None:
    """`problems_csv` as a file, with the byte order mark that spreadsheets know UTF-8 by.

    Raises:
        OutputError: the file could not be written.
    """
    atomic_write(Path(path), problems_csv(problems).encode("utf-8-sig"))
