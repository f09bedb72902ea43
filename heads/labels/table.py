"""Label tables: the cells of a file as text under column names, and the photo of each row."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.files import open_file
from featstore.support import few, is_number, suggest
from heads.errors import LabelsError
from heads.labels.cells import is_no_number, why_no_number, with_points
from heads.labels.formats import IN_MEMORY, Unit, cells_of, format_of
from heads.labels.limits import LARGEST, check_bytes, check_names

if TYPE_CHECKING:
    import pandas as pd

DIGEST_COLUMNS = ("digest", "sha256")
"""A path column of such a name holds the SHA-256 of photos instead of their paths."""


@dataclass(frozen=True)
class LabelTable:
    """One file of labels, or a table in memory; a photo may have several rows, one for each rater."""

    file: Path
    sha256: str
    cells: "pd.DataFrame"
    """Text without spaces around it; the index is the line of a CSV or the row of a Parquet file."""
    keys: list[str]
    """The path or the digest of the photo of each row."""
    unit: Unit
    missing: frozenset[str] = frozenset()
    """What the user says to mean that there is nothing."""

    def column(self, name: str) -> list[str]:
        """The cells of a column, empty where they are missing; of a column that is not there, all are."""
        if name not in self.cells:
            return [""] * len(self.cells)
        return ["" if text in self.missing else text for text in self.cells[name]]

    def where(self, i: int, column: str | None = None) -> str:
        """How a message names row `i`."""
        place = f"{self.file}, {self.unit} {self.cells.index[i]}"
        return place if column is None else f"{place}, column {column!r}"


def read_label_table(
    source: "Path | pd.DataFrame", path_column: str | Sequence[str], missing: Collection[str] = ()
) -> LabelTable:
    """Read a file in the format that its suffix names (see `heads.labels.formats`), or take a table in memory.

    Args:
        path_column: what the column of the paths or digests is called; of several names, the first that is there.
        missing: words that mean, in whatever column but that of the paths, that there is nothing.

    Raises:
        LabelsError: the file cannot be read, has no rows or no such column, or a path is empty or no digest;
            names the file and the line.
    """
    names = [path_column] if isinstance(path_column, str) else path_column
    if isinstance(source, Path):
        file, (cells, unit, sha256) = source, _read(source)
    elif not hasattr(source, "index") or not hasattr(source, "dtypes"):
        raise LabelsError(f"labels are a {type(source).__name__}; give a file, a pandas DataFrame, or several of them")
    else:
        file, cells, unit = IN_MEMORY, cells_of(source, names[0]), "row"
        sha256 = hashlib.sha256(cells.to_csv(index=False).encode()).hexdigest()
    if not len(cells):
        raise LabelsError(f"label table {file} has no rows; a line of column names and a line per photo are expected")
    named = next((name for name in names if name in cells), None)
    if named is None:
        raise LabelsError(
            f"{file} has no column {names[0]!r}; {suggest(names[0], map(str, cells.columns))} (the columns are "
            f"{few(map(str, cells.columns), 12)}; --path-column says which one names the photos, or rename it)"
        )
    table = LabelTable(file, sha256, cells, [], unit, frozenset(missing))
    keys = _digests(table, named) if named in DIGEST_COLUMNS else _paths(table, named)
    return replace(table, keys=keys)


def _read(file: Path) -> "tuple[pd.DataFrame, Unit, str]":
    """The cells of a file, what their index counts, and the SHA-256 of its bytes."""
    found = format_of(file)
    try:
        with open_file(file) as stream:
            check_bytes(file, os.fstat(stream.fileno()).st_size)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise LabelsError(f"label table {file} does not exist") from None
    except OSError as error:
        raise LabelsError(f"label table {file} cannot be read: {error.strerror}") from error
    return found.read(file), found.unit, sha256


def composed(paths: Sequence[str]) -> list[str]:
    """Paths with every letter and its accent as one character (Unicode NFC), unless that makes two paths equal.

    macOS takes accents apart (NFD), and most other systems and spreadsheets do not.
    """
    together = [unicodedata.normalize("NFC", path) for path in paths]
    return together if len(set(together)) == len(set(paths)) else list(paths)


def numbers(table: LabelTable, name: str) -> NDArray[np.float64]:
    """A column of numbers, NaN where one is missing.

    Raises:
        LabelsError: a cell is neither a finite number nor missing.
    """
    cells = table.column(name)
    absent = {float(text) for text in table.missing if is_number(text)}
    values = np.full(len(cells), np.nan)
    for i, text in enumerate(with_points(cells)):
        if is_no_number(text):
            continue
        if not is_number(text):
            raise LabelsError(f"{table.where(i, name)}: {cells[i]!r} is not a number; {why_no_number(cells[i])}")
        values[i] = np.nan if float(text) in absent else float(text)
        if abs(values[i]) > LARGEST:
            raise LabelsError(
                f"{table.where(i, name)}: {cells[i]} is too large; numbers up to {LARGEST:g} are taken: correct it, or "
                "write the labels in another unit"
            )
    return values


def natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """A key that sorts numbers within names by value: 2 before 10, class 2 before class 10."""
    if is_number(text):
        return ((0, float(text), ""),)
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((1, float(part), "") if i % 2 else (2, 0.0, part) for i, part in enumerate(parts) if part)


def _paths(table: LabelTable, column: str) -> list[str]:
    paths = [str(PurePosixPath(path.replace("\\", "/"))) for path in table.cells[column]]
    for i, path in enumerate(paths):
        if path == ".":
            raise LabelsError(f"{table.where(i)}: the path is empty")
    check_names(table.file, "the path", paths)
    return composed(paths)


def _digests(table: LabelTable, column: str) -> list[str]:
    digests = [text.lower() for text in table.cells[column]]
    for i, digest in enumerate(digests):
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise LabelsError(
                f"{table.where(i, column)}: {digest!r} is not a SHA-256, which has 64 hexadecimal digits; "
                "if the column holds paths, rename it"
            )
    return digests
