"""CSV cells as pandas gives them back: stacks that read benchmarks with `pandas.read_csv` ask what it made of the text.

A cell that says none is `nan`; a column of numbers alone is written anew: whole ones without leading zeros, others as floats.
https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html (na_values, dtype), pandas 2 and later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
NAMES = "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null"
NONE = frozenset(["", "#N/A N/A", *NAMES.split()])
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity)", re.IGNORECASE)
WORDS = range(-(2**63), 2**64)
TRUTH = frozenset(["True", "TRUE", "true", "False", "FALSE", "false"])


def as_pandas(rows: Sequence[Row]) -> list[Row]:
    """Rows of one file whose cells are texts."""
    made = {name: _column([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    return [{name: made[name][i] for name in row} for i, row in enumerate(rows)]


def _column(cells: list[str]) -> list[str]:
    there = [cell.strip() for cell in cells if cell not in NONE]
    write = _writer(there, whole=len(there) == len(cells))
    return ["nan" if cell in NONE else write(cell) for cell in cells]


def _writer(cells: list[str], *, whole: bool) -> Callable[[str], str]:
    """whole: no cell says none; beside one that does, numbers are floats."""
    kept = any(WHOLE.fullmatch(cell) and int(cell) not in WORDS for cell in cells)  # too large for a machine's number
    if cells and all(map(WHOLE.fullmatch, cells)) and (whole or not kept):
        return lambda cell: str(int(cell) if whole else float(int(cell)))
    if cells and all(map(NUMBER.fullmatch, cells)) and not kept:
        return lambda cell: str(float(cell))
    if cells and all(cell in TRUTH for cell in cells):
        return lambda cell: cell.strip().capitalize()
    return lambda cell: cell
