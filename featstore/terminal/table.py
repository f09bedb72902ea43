"""Cells of text as the lines of a table.

Nothing is ever left out or cut short: Rich, which draws our bars, drops columns and breaks names where a terminal is
too narrow. Here wide cells fold between words, if the table fits then; otherwise the lines are as long as they are, and
the terminal breaks them.
"""

import re
import textwrap
from bisect import bisect
from collections.abc import Sequence

from rich.cells import cell_len

GAP = "  "
LEAST_WIDTH = 12
"""Words in a narrower column are not read at a glance."""

_FIGURES = re.compile(r"(?:[-+]?\d[\d.]*(?:e[-+]?\d+)?|nan|inf|to|[-–±x%:]|\s)*")

Column = Sequence[list[str]]
"""The lines of each of its cells; the first is the header's."""


def lay_out(cells: Sequence[Sequence[str]], room: int | None = None) -> list[str]:
    """Aligned lines, without spaces at their ends: figures stand to the right, words to the left.

    Args:
        cells: the header, and the rows.
        room: how wide a line may be; None if no line is too wide.
    """
    columns: list[Column] = [[[cell] for cell in column] for column in zip(*cells, strict=True)]
    if room is not None and _total(columns) > room:
        # The most that a column may take for all to fit, for which nothing has to be known of the others.
        n_fitting = bisect(range(LEAST_WIDTH, room), False, key=lambda width: _total(_fold(columns, width)) > room)
        columns = _fold(columns, LEAST_WIDTH + n_fitting - 1) if n_fitting else columns
    header, *rows = zip(*map(_align, columns), strict=True)
    rule = [["-" * _width(column)] for column in columns]
    return [line for row in (header, rule, *rows) for line in _join(row)]


def _fold(columns: Sequence[Column], width: int) -> list[Column]:
    """Cells of one line each in lines of this width, where words and figures allow it."""
    fold = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).wrap
    return [
        [[text] if _FIGURES.fullmatch(text) or len(text) <= width else fold(text) for (text,) in column]
        for column in columns
    ]


def _align(column: Column) -> list[list[str]]:
    """Every line as wide as the column."""
    width, to_the_right = _width(column), _is_figures(column)
    aligned = []
    for cell in column:
        padding = [" " * (width - cell_len(line)) for line in cell]
        aligned.append([pad + line if to_the_right else line + pad for pad, line in zip(padding, cell, strict=True)])
    return aligned


def _join(row: Sequence[list[str]]) -> list[str]:
    """The lines of cells that stand side by side."""
    n_lines = max(map(len, row))
    filled = [cell + [" " * cell_len(cell[0])] * (n_lines - len(cell)) for cell in row]
    return [GAP.join(parts).rstrip() for parts in zip(*filled, strict=True)]


def _total(columns: Sequence[Column]) -> int:
    return sum(map(_width, columns)) + len(GAP) * (len(columns) - 1)


def _width(column: Column) -> int:
    return max(cell_len(line) for cell in column for line in cell)


def _is_figures(column: Column) -> bool:
    return all(_FIGURES.fullmatch(line) for cell in column[1:] for line in cell)
