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

from concept_erase.concepts import containing
from concept_erase.errors import InputError
from concept_erase.files import atomic_write
from concept_erase.lists.cells import escaped as escaped
from concept_erase.lists.cells import is_formula
from concept_erase.lists.documents import read_yaml
from concept_erase.lists.headings import COUNTERS, KINDS, NAMES, column
from concept_erase.lists.intake import decode, read_bytes, refuse_suffix
from concept_erase.lists.rows import Problem, Rows, read_json, read_jsonl, read_text
from concept_erase.lists.sheets import read_xlsx
from concept_erase.lists.tables import is_table, read_csv
from concept_erase.names import Lookup, folded, same_name, several
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
        merged: Rows that repeat an entry and were merged into it. Each row of the file is in `rows`, here, or among the
            problems.
        notices: What was decided on the way; those that begin with "warning:" are errors to a strict job.
    """

    entries: tuple[Entry, ...]
    rows: tuple[int, ...]
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]
    merged: tuple[int, ...] = ()


def read_list(path: Path | str, *, defaults: Mapping[str, Any] | None = None) -> Listing:
    """A list from a CSV, Excel (.xlsx), YAML, JSON, JSON lines or text file (by suffix, else by content).

    Args:
        defaults: Fields for rows that lack them; the file's own defaults go before them.
    Raises:
        InputError: the file as a whole cannot be read, or no row of it can be used.
    """
    return parse_list(read_bytes(path), str(path), defaults=defaults)


def parse_list(data: bytes, name: str, *, defaults: Mapping[str, Any] | None = None) -> Listing:
    """A list from the bytes of a file called `name`, or from a text that was typed in; see `read_list`."""
    refuse_suffix(name)
    found, guessed = _read(data, name)
    common = {**_fields(defaults or {}), **_fields(found.defaults)}
    _check_defaults(common)
    problems = list(found.problems)
    entries = _entries(found, common, problems)
    entries, merged, notices = check_list(entries, problems)
    problems.sort(key=lambda problem: problem.row)
    if not entries:
        reasons = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        held = f"holds no row that can be used:\n{reasons}{more}" if problems else "holds no row; name a concept"
        raise InputError(f"{name} {held}" if problems else f"{name} {held}.")
    heard = (*([guessed] if guessed else []), *found.notices, *_commas(entries), *notices)
    return Listing(tuple(e for _, e in entries), tuple(r for r, _ in entries), tuple(problems), heard, merged)


def _read(data: bytes, name: str) -> tuple[Rows, str | None]:
    """Rows of a file, and a notice where its encoding had to be guessed."""
    if Path(name).suffix.lower() == ".xlsx":
        return read_xlsx(data, name), None
    text, guessed = decode(data, name, windows=reader_for(name, data.decode("latin-1")) in (read_csv, read_text))
    return reader_for(name, text)(text), guessed


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
            spoken = found.kind or _kind_of(values)
            entry = Entry.model_validate({**({"kind": spoken} if spoken else {}), **common, **given})
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


def _kind_of(values: Any) -> str | None:
    """The kind that the key of the target speaks of: {"artist": "Monet"}."""
    keys = [column(str(key)) for key in values] if isinstance(values, Mapping) else []
    return next((KINDS[key].value for key in keys if key in KINDS), None)


def _commas(entries: Numbered) -> list[str]:
    """A notice of names that might be several; in a text list they are problems already."""
    targets = [f"{e.target!r} (row {row})" for row, e in entries if len(several(e.target)) > 1]
    anchors = [f"{e.anchor!r} (row {row})" for row, e in entries if e.anchor and len(several(e.anchor)) > 1]
    kept = [
        f"{e.preserve[0]!r} (row {row})" for row, e in entries if len(e.preserve) == 1 < len(several(e.preserve[0]))
    ]
    notices = []
    if targets:
        notices.append(f"taken as one name each: {_listed(targets)}; write one name a row if they are several.")
    if anchors:
        notices.append(f"anchors taken as one name each: {_listed(anchors)}; a concept becomes one other.")
    if kept:
        notices.append(f"preserved as one name each: {_listed(kept)}; put ';' between names if they are several.")
    return notices


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


@dataclass
class _Group:
    """An entry with all rows that were merged into it; the first is its own."""

    entry: Entry
    rows: list[int]

    def problems(self, field: str, told: str) -> list[Problem]:
        """The same for each row, so that none falls away unnamed."""
        together = f" Rows {_listed(self.rows)} are one entry; none of them is used." if self.rows[1:] else ""
        return [Problem(row, field, told + together) for row in self.rows]


def check_list(entries: Numbered, problems: list[Problem]) -> tuple[Numbered, tuple[int, ...], list[str]]:
    """Duplicates merged, contradictions between rows found.

    Args:
        entries: Row number and entry.
        problems: Is added to.
    Returns:
        The entries that can be erased, the rows that were merged into them, and notices.
    """
    groups = _merged(entries, problems)
    erased = Lookup(group.entry.target for group in groups)
    at = {folded(group.entry.target): group.rows[0] for group in reversed(groups)}
    usable = []
    for group in groups:
        entry = group.entry
        pairs = [f"{p!r} is preserved here and erased in row {at[folded(p)]}" for p in entry.preserve if p in erased]
        if pairs:
            problems += group.problems("preserve", f"{_listed(pairs, '; ')}; take each out of one of the two.")
        chained = entry.anchor is not None and entry.anchor in erased
        if entry.anchor and chained:
            told = f"the anchor {entry.anchor!r} is itself erased in row {at[folded(entry.anchor)]}"
            problems += group.problems("anchor", f"{told}; name another anchor.")
        if not pairs and not chained:
            usable.append(group)
    found = [(group.rows[0], group.entry) for group in usable]
    merged = tuple(sorted(row for group in usable for row in group.rows[1:]))
    return found, merged, _told_of_merged(usable, dict(entries)) + _contained(found)


def _merged(entries: Numbered, problems: list[Problem]) -> list[_Group]:
    """One entry for each kind and name; rows that contradict an earlier one become problems."""
    groups: dict[tuple[str, str], _Group] = {}
    for row, entry in entries:
        key = (entry.kind.value, folded(entry.target))
        if key not in groups:
            groups[key] = _Group(entry, [row])
            continue
        group, first = groups[key], groups[key].entry
        clashes = [
            Problem(row, field, f"{entry.target!r} has the {field} {mine!r} here and {theirs!r} in row "
                    f"{group.rows[0]}; keep one.")
            for field, mine, theirs in (
                ("anchor", entry.anchor, first.anchor), ("method", entry.method, first.method))
            if mine and theirs and not same_name(mine, theirs)
        ]  # fmt: skip
        problems += clashes
        if clashes:
            continue
        both = {"preserve": first.preserve + entry.preserve, "tags": first.tags + entry.tags}
        either = {"anchor": first.anchor or entry.anchor, "method": first.method or entry.method}
        try:
            group.entry = build(Entry, {**first.model_dump(), **both, **either})
        except InputError as error:
            problems.append(Problem(row, "row", f"{entry.target!r} cannot be merged with row {group.rows[0]}: {error}"))
            continue
        group.rows.append(row)
    return list(groups.values())


def _told_of_merged(groups: Sequence[_Group], written: Mapping[int, Entry]) -> list[str]:
    """A notice for each entry that several rows name."""
    told = []
    for group in groups:
        if not group.rows[1:]:
            continue
        name = group.entry.target
        other = dict.fromkeys(w for row in group.rows if (w := written[row].target).casefold() != name.casefold())
        ways = f", also as {_listed([repr(w) for w in other])}: {name!r} is what is erased" if other else ""
        told.append(f"{name!r} is listed {len(group.rows):,} times (rows {_listed(group.rows)}){ways}; merged.")
    if len(told) > 5 * SHOWN:
        told = [*told[: 5 * SHOWN], f"{len(told) - 5 * SHOWN:,} more concepts are listed more than once; merged."]
    return told


def _contained(entries: Numbered) -> list[str]:
    """A warning for each anchor that contains another erased concept: it might bring back what it should replace.

    And a notice of what the user preserves although it contains an erased concept.
    """
    erased = Lookup(entry.target for _, entry in entries)
    at = {folded(entry.target): row for row, entry in reversed(entries)}
    users: dict[str, list[tuple[int, Entry]]] = {}
    for row, entry in entries:
        if entry.anchor:
            users.setdefault(folded(entry.anchor), []).append((row, entry))
    words = sum(1 + name.count(" ") for name in users) + sum(1 + p.count(" ") for _, e in entries for p in e.preserve)
    if words * len(erased.lengths) > MOST_COMPARISONS:
        return ["the list has too many anchors to check whether one of them contains an erased concept."]
    notices = []
    for anchor, rows in users.items():
        for target in sorted(erased.within(anchor)):
            others = [f"{e.target!r} (row {row})" for row, e in rows if not same_name(e.target, target)]
            if others:
                told = f"the anchor {rows[0][1].anchor!r} of {_listed(others)} contains {target!r}"
                notices.append(f"warning: {told}, erased in row {at[folded(target)]}.")
    for row, entry in entries:
        notices += [f"row {row}: {told}" for told in containing(entry.concept, erased)]
    if len(notices) > 5 * SHOWN:
        notices = [*notices[: 5 * SHOWN], f"and {len(notices) - 5 * SHOWN:,} more names that contain an erased one."]
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
