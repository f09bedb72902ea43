"""Label tables: one row per photo, joined to the store on the photo's path."""

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore import suggest
from heads.errors import LabelsError

if TYPE_CHECKING:
    import pandas as pd

GROUPS_BY_PATH = ("name", "folder")


@dataclass(frozen=True)
class Labels:
    """N labelled photos; values in label units, NaN where a label is missing."""

    file: Path
    sha256: str
    paths: list[str]
    tasks: tuple[str, ...]
    values: NDArray[np.float64]
    """(N, K)"""
    scale: tuple[float, float]
    scale_given: bool
    groups: list[str] | None
    n_unlabelled: int
    """Rows of the table without any label, left out."""

    def scaled(self) -> NDArray[np.float32]:
        """The scale mapped linearly to -0.5 .. +0.5 (Ghosal and Kolekar)."""
        low, high = self.scale
        return ((self.values - low) / (high - low) - 0.5).astype(np.float32)

    def unscaled(self, scaled: NDArray[np.float32]) -> NDArray[np.float64]:
        """Back to label units."""
        low, high = self.scale
        return (scaled.astype(np.float64) + 0.5) * (high - low) + low


@dataclass(frozen=True)
class Join:
    """Which rows of the store belong to which rows of the table, in ascending order of store row."""

    store_rows: NDArray[np.int64]
    label_rows: NDArray[np.int64]
    only_labels: list[str]
    only_store: list[str]


def read_labels(
    file: Path,
    *,
    path_column: str = "path",
    tasks: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
    group: str | None = None,
) -> Labels:
    """Read a CSV with a row per photo.

    Args:
        tasks: the columns to learn; every numeric column if none is named.
        scale: the ends of the rating scale; the range of the labels if not given.
        group: a column, or `name` (the file name without its trailing number), or `folder`.

    Raises:
        LabelsError: the file cannot be read, a column is unknown, a path stands twice, or a label is not a
            number or outside the scale; names the column and the line.
    """
    table = _read_table(file)
    _check_column(path_column, table, file)
    paths = _paths(table, path_column, file)
    names = _choose_tasks(table, tasks, {path_column, group}, file)
    values = np.column_stack([_numbers(table, name, file) for name in names])
    _check_scale(values, names, list(table.index), scale, file)
    known = np.isfinite(values).any(1)
    if not known.any():
        raise LabelsError(f"{file} has no labels in {', '.join(names)}")
    groups = _groups(table, paths, group, file)
    keep = np.flatnonzero(known)
    return Labels(
        file=file,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        paths=[paths[i] for i in keep],
        tasks=tuple(names),
        values=values[keep],
        scale=scale or _range(values, file),
        scale_given=scale is not None,
        groups=[groups[i] for i in keep] if groups else None,
        n_unlabelled=int((~known).sum()),
    )


def join(labels: Labels, store_paths: Sequence[str], store_rows: NDArray[np.int64], *, strict: bool = False) -> Join:
    """Match labels to rows of a store by path.

    Raises:
        LabelsError: nothing matches, or `strict` and something does not.
    """
    rows = dict(zip(store_paths, store_rows.tolist(), strict=True))
    matched = sorted((rows[path], i) for i, path in enumerate(labels.paths) if path in rows)
    labelled = set(labels.paths)
    only_labels = [path for path in labels.paths if path not in rows]
    only_store = [path for path in store_paths if path not in labelled]
    if not matched:
        raise LabelsError(
            f"no path in {labels.file} is in the store: the table says {_some(labels.paths)}, "
            f"the store has {_some(list(store_paths))}; paths are relative to the photo folder"
        )
    if strict and (only_labels or only_store):
        raise LabelsError(
            f"--strict: {len(only_labels)} labels without features ({_some(only_labels)}), "
            f"{len(only_store)} images without labels ({_some(only_store)})"
        )
    pairs = np.array(matched, dtype=np.int64)
    return Join(pairs[:, 0], pairs[:, 1], only_labels, only_store)


def _read_table(file: Path) -> "pd.DataFrame":
    """The cells as text, indexed by line number; blank lines and columns without a name are left out."""
    import pandas as pd

    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError:
        raise LabelsError(f"label table {file} does not exist") from None
    except (OSError, ValueError, csv.Error) as error:
        raise LabelsError(f"label table {file} cannot be read as CSV: {error}") from error
    if len(rows) < 2:
        raise LabelsError(f"label table {file} has no rows; a line of column names and a line per photo are expected")
    header = [name.strip() for name in rows[0][1]]
    for name in header:
        if name and header.count(name) > 1:
            raise LabelsError(f"label table {file} has two columns {name!r}")
    for line, cells in rows[1:]:
        if any(cell.strip() for cell in cells[len(header) :]):
            raise LabelsError(f"{file}, line {line}: {len(cells)} cells under {len(header)} column names")
    filled = [[*cells, *[""] * len(header)][: len(header)] for _, cells in rows[1:]]
    table = pd.DataFrame(filled, index=[line for line, _ in rows[1:]], columns=header, dtype=str)
    return table[[name for name in header if name]]


def _check_column(name: str, table: "pd.DataFrame", file: Path) -> None:
    if name not in table:
        raise LabelsError(f"{file} has no column {name!r}; {suggest(name, map(str, table.columns))}")


def _paths(table: "pd.DataFrame", column: str, file: Path) -> list[str]:
    paths = [str(PurePosixPath(path.strip().replace("\\", "/"))) for path in table[column]]
    first: dict[str, int] = {}
    for line, path in zip(table.index, paths, strict=True):
        if path == ".":
            raise LabelsError(f"{file}, line {line}: the path is empty")
        if path in first:
            raise LabelsError(
                f"{file}: {path!r} stands on lines {first[path]} and {line}; one row per photo is expected"
            )
        first[path] = line
    return paths


def _choose_tasks(table: "pd.DataFrame", tasks: Sequence[str], others: set[str | None], file: Path) -> list[str]:
    for name in tasks:
        _check_column(name, table, file)
    if len(set(tasks)) < len(tasks):
        raise LabelsError(f"a task is named twice in {', '.join(tasks)}")
    numeric = [str(name) for name in table if name not in others and _mostly_numbers(table[name])]
    if not (tasks or numeric):
        raise LabelsError(f"{file} has no numeric column to learn; it has {', '.join(map(str, table.columns))}")
    chosen = list(tasks) or numeric
    for name in chosen:
        stem = name.removesuffix("_predicted")
        if name in ("repeat", "fold", "path") or (stem != name and stem in chosen):
            raise LabelsError(f"{file}: column {name!r} has the name of a column of a run's predictions.csv; rename it")
    return chosen


def _mostly_numbers(column: "pd.Series[str]") -> bool:
    known = [text for text in column if not _is_missing(text)]
    return sum(_is_number(text) for text in known) * 2 > len(known)


def _numbers(table: "pd.DataFrame", name: str, file: Path) -> NDArray[np.float64]:
    values = np.full(len(table), np.nan)
    for i, (line, text) in enumerate(table[name].items()):
        if _is_missing(text):
            continue
        if not _is_number(text):
            raise LabelsError(f"{file}, line {line}, column {name!r}: {text!r} is not a number")
        values[i] = float(text)
    return values


def _is_missing(text: str) -> bool:
    return text.strip().lower() in ("", "na", "nan", "n/a", "null", "none")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _check_scale(
    values: NDArray[np.float64], tasks: list[str], lines: list[int], scale: tuple[float, float] | None, file: Path
) -> None:
    if scale is None:
        return
    low, high = scale
    if not low < high:
        raise LabelsError(f"scale {low:g}:{high:g}: the first end has to be below the second")
    outside = np.argwhere((values < low) | (values > high))
    if len(outside):
        i, k = outside[0]
        raise LabelsError(
            f"{file}, line {lines[i]}, column {tasks[k]!r}: {values[i, k]:g} is outside the scale {low:g}:{high:g} "
            f"({len(outside)} such labels); correct them, the --scale, or the --tasks"
        )


def _range(values: NDArray[np.float64], file: Path) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high:
        raise LabelsError(f"every label in {file} is {low:g}; there is nothing to learn")
    return low, high


def _groups(table: "pd.DataFrame", paths: list[str], group: str | None, file: Path) -> list[str] | None:
    if group is None:
        return None
    if group in table:
        return [str(value).strip() for value in table[group]]
    if group == "name":
        return [re.sub(r"[\s_\-]*\d+$", "", PurePosixPath(path).stem) for path in paths]
    if group == "folder":
        return [str(PurePosixPath(path).parent) for path in paths]
    raise LabelsError(
        f"{file} has no column {group!r} to group by; {suggest(group, [*map(str, table.columns), *GROUPS_BY_PATH])}"
    )


def _some(paths: Sequence[str]) -> str:
    return ", ".join(repr(path) for path in paths[:5]) + (", ..." if len(paths) > 5 else "") if paths else "none"
