"""Cells of tables that a spreadsheet may run as formulas."""

import re

_RISKY = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")
_FORMULA = re.compile(
    r"""\s*[=+\-@＝＋－＠]+\s*(?:
        \(                                                       # =(1+2)
        | [\w.]+\s*\(                                            # =HYPERLINK(...), @SUM(...)
        | '?[\w .\[\]]+'?[!|]                                    # =Sheet1!A1, =cmd|'/c calc'!A1
        | \$?[A-Za-z]{1,3}\$?[0-9]{1,7}(?=$|[\s:+\-*/^&,;)=<>%]) # =A1, +B2*3
        | ["'{]                                                  # ="a", ={1,2}
        | [0-9.]+\s*[+\-*/^&%]                                   # =1+2
    )""",
    re.VERBOSE,
)


def escaped(cell: str) -> str:
    """The cell as it is written to a CSV file: with an apostrophe in front where a spreadsheet would compute it.

    `unescaped` gives back exactly what was put in.
    """
    return f"'{cell}" if _RISKY.match(cell) else cell


def unescaped(cell: str) -> str:
    """A cell as it was before `escaped`."""
    return cell[1:] if cell.startswith("'") and _RISKY.match(cell) else cell


def is_formula(cell: str) -> bool:
    """Whether a cell reads like a formula; a name that just begins with a sign (`-M-`, `@artist`) does not."""
    return bool(_FORMULA.match(cell))
