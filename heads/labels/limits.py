"""Limits of label tables: how large they may be, how large a number, and what a name may not hold."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from featstore.support import size
from heads.errors import LabelsError

MOST_BYTES = 1 << 29
"""Of a file, and of the text that it unpacks to."""
MOST_COLUMNS = 10_000
MOST_CELLS = 50_000_000
"""Rows times columns; also photos times classes, or times labels."""
MOST_CHARACTERS = 1 << 24
"""Of a cell: a forgotten column of features has some ten thousand."""
MOST_CLASSES = 10_000
MOST_RATERS = 1_000_000_000
LARGEST = 1e30
"""Of a number: its square, and the sum of many, are numbers still."""
SMALLEST = 1e-30
"""Of the range of a task's labels."""
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def check_size(file: Path, n_rows: int, n_columns: int) -> None:
    """
    Raises:
        LabelsError: a table of this shape is not read.
    """
    if n_columns > MOST_COLUMNS or n_rows * n_columns > MOST_CELLS:
        raise LabelsError(
            f"label table {file} has {n_rows:,} rows and {n_columns:,} columns; at most {MOST_COLUMNS:,} columns and "
            f"{MOST_CELLS:,} cells are read: keep the columns of the paths and the labels"
        )


def check_bytes(file: Path, n_bytes: int) -> None:
    """
    Raises:
        LabelsError: so many bytes of text are not read.
    """
    if n_bytes > MOST_BYTES:
        raise LabelsError(
            f"label table {file} has {size(n_bytes)} of text or more; at most {size(MOST_BYTES)} are read: keep the "
            "columns of the paths and the labels"
        )


def check_names(file: Path, what: str, names: Iterable[str]) -> None:
    """
    Raises:
        LabelsError: a name holds what would steer a terminal or begin a new line of a message.
    """
    for name in names:
        if odd := next((char for char in name if _steers(char)), None):
            raise LabelsError(
                f"label table {file}: {what} {name!r} holds the control character {odd!r}; take it out (or, if a quote "
                "before it is not closed, close it)"
            )


def _steers(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(char) in _TURNING
