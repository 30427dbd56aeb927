import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.lists.cells import escaped, is_formula, unescaped


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t=", " =", "\t", "\r", "\n", "＝", "＠"])
def test_what_a_spreadsheet_might_compute_gets_an_apostrophe(sign):
    assert escaped(f"{sign}1+2") == f"'{sign}1+2"


@pytest.mark.parametrize("cell", ["", "Van Gogh", "O'Keeffe", "'t Hooft", "a=b", "x@y.org", "3-1", " cat"])
def test_other_cells_stay_as_they_are(cell):
    assert escaped(cell) == cell == unescaped(cell)


@given(st.text(alphabet=st.one_of(st.sampled_from("'=+-@\t\r\n 1A("), st.characters()), max_size=12))
def test_escaping_is_undone_exactly_and_leaves_nothing_to_compute(cell):
    assert unescaped(escaped(cell)) == cell
    assert escaped(cell).lstrip(" ")[:1] not in tuple("=+-@\t\r\n＝＋－＠")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=12), min_size=1, max_size=4))
def test_escaped_cells_survive_a_csv_file(cells):
    table = io.StringIO(newline="")
    csv.writer(table).writerow([escaped(cell) for cell in cells])
    assert [unescaped(cell) for cell in next(csv.reader(io.StringIO(table.getvalue(), newline="")))] == cells


@pytest.mark.parametrize(
    "cell",
    [
        '=HYPERLINK("http://x","y")', "=1+2", "=A1", "+A1", "-A1*2", "@SUM(A1:A9)", "=cmd|' /C calc'!A0", "=(1)",
        "+1-2", "=$B$2", "==A1", " =A1", "=Sheet1!A1", "='my sheet'!B2", '="a"', "＝A1", "@A1", "=IF (A1,2)", "=AB12,3",
    ],
)  # fmt: skip
def test_formulas_are_seen(cell):
    assert is_formula(cell)


@pytest.mark.parametrize(
    "cell",
    ["-M-", "@artist", "=^..^=", "+44", "-", "@", "+", "= love =", "A1", "SUM(A1)", "x=A1", "@someone99", "-273 C",
     "+++", "@Beeple crap", "Mike (Beeple)"],
)  # fmt: skip
def test_names_that_only_begin_with_a_sign_are_not(cell):
    assert not is_formula(cell)
