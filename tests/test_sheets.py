"""Excel tables: read as they are shown, never computed, never larger than they say."""

import datetime
import io
import zipfile

import openpyxl
import pytest
from conftest import python

from concept_erase.errors import InputError
from concept_erase.lists import parse_list, read_list, sheets


def workbook(*tables, titles=("one", "two", "three")):
    """The bytes of a workbook; each table is a list of rows."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in zip(titles, tables, strict=False):
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    return saved(book)


def saved(book):
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


def targets(found):
    return dict(zip(found.rows, (entry.target for entry in found.entries), strict=True))


def test_a_table_is_read_with_the_rows_of_the_sheet(tmp_path):
    (tmp_path / "list.XLSX").write_bytes(
        workbook([["id", "Artist", "keep"], [1, "Paul Cézanne", "Monet;Klee"], [], [3, "-M-", None], [4, 1984.0, None]])
    )
    found = read_list(tmp_path / "list.XLSX")
    assert targets(found) == {2: "Paul Cézanne", 4: "-M-", 5: "1984"}
    assert found.entries[0].preserve == ("Monet", "Klee")
    assert found.problems == ()
    assert found.notices == (
        "the first row is read as headings: 'Artist' as the targets of kind style, where nothing else says the kind; "
        "'keep' as preserve.",
    )


def test_a_single_column_needs_no_header_and_loses_its_numbers():
    found = parse_list(workbook([["1. Van Gogh"], ["2. Monet"]]), "list.xlsx")
    assert targets(found) == {1: "Van Gogh", 2: "Monet"}


def test_the_sheet_with_a_column_of_targets_is_read():
    found = parse_list(workbook([["about"], ["me"]], [["target"], ["cat"]]), "list.xlsx")
    assert targets(found) == {2: "cat"}
    assert "of 2 sheets, 'two' is read." in found.notices


def test_what_is_no_text_costs_its_row_where_it_is_used():
    rows = [["target", "n"], ["cat", "=SUM(A1:A9)"], ["=A1", 1], [datetime.date(2026, 3, 7), 2], ["@SUM(A1)", 3]]
    found = parse_list(workbook(rows), "list.xlsx")
    assert targets(found) == {2: "cat"}
    assert [p.row for p in found.problems] == [3, 4, 5]
    assert found.problems[0].message == "target holds the formula '=A1'; write it as text."
    assert "date or time 2026-03-07" in found.problems[1].message
    assert "reads like a spreadsheet formula" in found.problems[2].message


def parts_of(data, extra):
    """The same workbook with other parts."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in extra:
                new.writestr(name, old.read(name))
        for name, content in extra.items():
            new.writestr(name, content)
    return made.getvalue()


DOCTYPE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'
GOOD = workbook([["target"], ["cat"]])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"target\ncat\n", "is no Excel table"),
        (GOOD[:-200], "is no Excel table"),
        (parts_of(GOOD, {"bomb.xml": b"0" * (129 * 2**20)}), "unpacks to 129 MiB"),
        (parts_of(GOOD, {f"{i}.bin": b"" for i in range(1001)}), "parts; at most"),
        (parts_of(GOOD, {"xl/workbook.xml": DOCTYPE}), "document type"),
        (parts_of(GOOD, {"xl/workbook.xml": DOCTYPE.encode("utf-16")}), "document type"),
        (parts_of(GOOD, {"xl/workbook.xml": "<x"}), "cannot be read as an Excel table"),
        (parts_of(GOOD, {"xl/worksheets/sheet1.xml": "<x"}), "cannot be read as an Excel table|no row"),
        (workbook([["target"]]), "holds no row; name a concept"),
        (workbook([["wer", "was"], ["a", "b"]]), "no column is called 'target'"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_dangerous_is_refused(data, told):
    with pytest.raises(InputError, match=told):
        parse_list(data, "list.xlsx")


def test_an_archive_that_is_no_workbook_is_refused():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("list.csv", "target\ncat\n")
    with pytest.raises(InputError, match="an archive, but no Excel table"):
        parse_list(made.getvalue(), "list.xlsx")
    with pytest.raises(InputError, match=r"an Excel table ends in \.xlsx"):
        parse_list(GOOD, "list.csv")


def test_too_many_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(sheets, "LARGEST", 100)
    with pytest.raises(InputError, match="is larger than"):
        parse_list(GOOD, "list.xlsx")


def test_without_openpyxl_the_file_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"list\.xlsx is an Excel table, and openpyxl is not installed"):
        parse_list(GOOD, "list.xlsx")


def test_openpyxl_is_imported_only_for_excel_tables():
    code = "import sys; from concept_erase.lists import parse_list; parse_list(b'target\\ncat', 'a.csv')"
    done = python("-c", f"{code}; print(*{{'torch', 'openpyxl'}} & set(sys.modules))")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
