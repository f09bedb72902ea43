"""The doors of a run folder: its JSON and its tables are read here, once, checked, and become typed values.

A run may come from a stranger. What is not as `heads train` writes it is a `RunError`, which names the file, the place
in it, what was found and what was expected.
"""

import csv
import io
import stat
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from featstore.files import parse_json, read_file
from featstore.support import LISTED, few
from heads.errors import RunError

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Cells = Literal["text", "number", "count"]
"""What a column holds: any text; finite numbers, some of which may be missing; or 0, 1, 2, ..."""

TABLE_BYTES = 1 << 30
"""The most that is read of a table, 1 GiB: twenty million predictions have as much."""
MOST_CELLS = 100_000_000
"""Of a table: the text of one takes 60 bytes while it is read."""
LARGEST = 2**31
"""No count in a run is as large."""
LARGEST_NUMBER = 1e300
"""Nor is any other number: one that is would overflow what is made of it."""
SAYABLE = 60
"""Letters of what was found that a message has room for."""


def read_json(file: Path, *, missing: str | None = None) -> Any:
    """The value of a JSON file, all of whose numbers are finite and can be counted with.

    Raises:
        RunError: the file is not there (`missing` says what that means), is not one, or is not JSON.
    """
    return _parsed(_read(file, missing=missing), file)


def read_as(adapter: "TypeAdapter[T]", file: Path, *, missing: str | None = None) -> T:
    """The value of a JSON file as a type.

    Raises:
        RunError: as `read_json`; or a part of it is missing, unknown or of another type.
    """
    from pydantic import ValidationError

    data = _read(file, missing=missing)
    _parsed(data, file)
    try:
        return adapter.validate_json(data, strict=True)
    except ValidationError as error:
        raise RunError(not_ours(file, explain(error))) from error


def read_table(
    file: Path, columns: Mapping[str, Cells], *, optional: Mapping[str, Cells] | None = None
) -> "pd.DataFrame":
    """The named columns of a table, in the order of the file; others are left out.

    Raises:
        RunError: the file is not there, is not one, or is too large; a column is missing or stands twice; or a cell
            is not what its column holds.
    """
    data = _read(file, limit=TABLE_BYTES)
    header = _header(data, file)
    if lacking := [name for name in columns if name not in header]:
        raise RunError(
            f"{file} lacks the columns {few(lacking, LISTED, quoted=True)}; a run is read as `heads train` wrote it; "
            "copy the whole run again, or train again"
        )
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise RunError(not_ours(file, f"it has two columns {twice!r}"))
    wanted = {name: kind for name, kind in {**(optional or {}), **columns}.items() if name in header}
    n_cells = (data.count(b"\n") + 1) * len(wanted)
    if n_cells > MOST_CELLS:
        raise RunError(f"{file} has about {n_cells:,} cells, and at most {MOST_CELLS:,} are read of a run")
    table = _cells(data, file, wanted)
    for name, kind in wanted.items():
        if kind != "text":
            table[name] = _numbers(table[name], kind, file)
    return table


def not_ours(file: Path, found: str) -> str:
    """The message of a file that no `heads train` wrote."""
    return f"{file} is not what this version of heads writes: {found}; copy the whole run again, or train again"


def explain(error: "ValidationError") -> str:
    """What a model has to say of the first thing that it does not take."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is unknown"
    if first["type"] == "json_invalid":
        return first["msg"].lower()
    return f"{where + ': ' if where else ''}{first['msg'].lower()}, found {shortened(first.get('input'))}"


def shortened(value: object) -> str:
    """A value as a message has room for it."""
    said = repr(value)
    return said if len(said) <= SAYABLE else f"{said[:SAYABLE]}..."


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Before anything is written into a folder or deleted from it: what is there is what it says, and lies there.

    Args:
        names: of the folders in it that are written to; they may be missing.

    Raises:
        RunError: one of them is a link, or no folder.
    """
    for each in (folder, *(folder / name for name in names)):
        try:
            mode = each.lstat().st_mode
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise RunError(f"{each} cannot be looked at: {error}") from error
        if not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "not a folder"
            raise RunError(f"{each} is {what}, and heads writes and deletes in folders of its own only; remove it")


def _read(file: Path, *, limit: int | None = None, missing: str | None = None) -> bytes:
    try:
        return read_file(file) if limit is None else read_file(file, limit)
    except FileNotFoundError as error:
        raise RunError(missing or f"{file} is missing; copy the whole run again, or train again") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(data: bytes, file: Path) -> Any:
    try:
        value = parse_json(data)
    except ValueError as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, int | float) and not abs(each) < LARGEST_NUMBER:  # nor is NaN
            raise RunError(not_ours(file, f"it has the number {shortened(each)}"))
    return value


def _header(data: bytes, file: Path) -> list[str]:
    try:
        lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
        header = next(csv.reader(lines), None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    if header is None:
        raise RunError(not_ours(file, "it is empty"))
    return header


def _cells(data: bytes, file: Path, wanted: Mapping[str, Cells]) -> "pd.DataFrame":
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows that are longer than the header
            table = pd.read_csv(
                io.BytesIO(data),
                dtype=str,
                keep_default_na=False,
                usecols=list(wanted),
                index_col=False,
                encoding="utf-8-sig",
            )
    except (ValueError, OverflowError, pd.errors.ParserWarning) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    if (short := table.isna().any(axis=1)).any():
        raise RunError(not_ours(file, f"its row {int(short.to_numpy().argmax()) + 1} has too few cells"))
    return table


def _numbers(cells: "pd.Series[Any]", kind: Cells, file: Path) -> "pd.Series[Any]":
    import numpy as np
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce")
    values = numbers.to_numpy(np.float64)
    known = np.isfinite(values)
    good = known | (cells == "").to_numpy()
    if kind == "count":
        whole = np.where(known, values, -1)
        good = (whole >= 0) & (whole < LARGEST) & (whole == np.floor(whole))
    if not good.all():
        row = int((~good).argmax())
        expected = "0, 1, 2, ..." if kind == "count" else "a number, or nothing"
        raise RunError(
            not_ours(file, f"row {row + 1}, column {cells.name!r}, is {shortened(cells.iloc[row])}, not {expected}")
        )
    return numbers.astype(np.int64) if kind == "count" else numbers
