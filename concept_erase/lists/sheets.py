"""The rows of an Excel table (.xlsx): the cells as they are shown, and nothing that is computed."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any

from concept_erase.errors import InputError
from concept_erase.lists.headings import NAMES, column
from concept_erase.lists.intake import LARGEST
from concept_erase.lists.rows import Rows
from concept_erase.lists.tables import Unread, table

MOST_UNPACKED = 128 * 2**20  # bytes; a list of 100,000 rows unpacks to some ten million
MOST_PARTS = 1000  # files inside
MOST_COLUMNS = 64


def read_xlsx(data: bytes, name: str) -> Rows:
    """The sheet whose first row names a column of targets, else the first one; rows are counted as the sheet does.

    Args:
        name: Of the file, for messages.
    Raises:
        InputError: no Excel table, damaged, too large when unpacked, openpyxl is not installed, or see `read_csv`.
    """
    _check_parts(data, name)
    try:
        import openpyxl
    except ImportError as error:
        raise InputError(
            f"{name} is an Excel table, and openpyxl is not installed; pip install openpyxl, or save it as CSV."
        ) from error
    found = Rows()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that are not read
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=False, keep_links=False)
            try:
                sheet = _chosen(book.worksheets, found)
                return table(_records(sheet), found)
            finally:
                book.close()
    except InputError:
        raise
    except Exception as error:  # openpyxl raises whatever a damaged part leads to
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name} cannot be read as an Excel table ({told}); save it again, or as CSV.") from error


def _check_parts(data: bytes, name: str) -> None:
    """What is inside, before any of it is opened: sizes, and no XML that defines entities."""
    if len(data) > LARGEST:
        raise InputError(f"{name} is larger than {LARGEST // 2**20} MiB; split the list.")
    if not data:
        raise InputError(f"{name} is empty; save the table again, or as CSV.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts)
            if size > MOST_UNPACKED or len(parts) > MOST_PARTS:
                raise InputError(
                    f"{name} unpacks to {size / 2**20:,.0f} MiB in {len(parts):,} parts; at most "
                    f"{MOST_UNPACKED // 2**20} MiB in {MOST_PARTS:,} are read. Save the names alone, or as CSV."
                )
            if "[Content_Types].xml" not in archive.namelist():
                raise InputError(f"{name} is an archive, but no Excel table; save it again, or as CSV.")
            for part in parts:
                if part.filename.endswith((".xml", ".rels")) and b"<!DOCTYPE" in archive.read(part).replace(b"\0", b""):
                    raise InputError(f"{name} holds XML with a document type, which is refused; save it as CSV.")
    except InputError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for what is damaged, encrypted or made by hand
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{name} is no Excel table ({told}); save it again as .xlsx, or as CSV.") from error


def _chosen(sheets: list[Any], found: Rows) -> Any:
    """The sheet to read."""
    if not sheets:
        raise InputError("the workbook has no sheet of cells; save the names in one.")
    chosen = sheets[0]
    if len(sheets) > 1:
        for sheet in sheets[:20]:
            first = next((cells for _, cells in _records(sheet) if any(cells)), [])
            if "target" in {NAMES.get(column(cell)) for cell in first}:
                chosen = sheet
                break
        found.notices.append(f"of {len(sheets):,} sheets, {chosen.title!r} is read.")
    return chosen


def _records(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """Row number and cells as text."""
    sheet.reset_dimensions()  # what the file says of its size can be wrong
    for row, cells in enumerate(sheet.iter_rows(max_col=MOST_COLUMNS), 1):
        texts = [_text(cell) for cell in cells]
        while texts and not texts[-1]:
            texts.pop()
        yield row, texts


def _text(cell: Any) -> str:
    """The text of a cell; what cannot be a name is told where it is used."""
    value = cell.value
    if value is None:
        return ""
    why = ""
    if cell.data_type == "f":
        why = f"holds the formula {str(value)[:60]!r}"
    elif cell.data_type == "e":
        why = f"holds the error {value}"
    elif isinstance(value, datetime | date | time | timedelta):
        why = f"holds the date or time {value}"
    if why:
        unread = Unread(value)
        unread.why = why
        return unread
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
