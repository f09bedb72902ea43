"""Predictions of a run as a table (predictions.csv), one row per repeat and tested image, and as arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, few
from heads.errors import RunError
from heads.labels.target import Target

if TYPE_CHECKING:
    import pandas as pd


class Outcomes(NamedTuple):
    """Predictions of N images by R repeats, as they are in memory."""

    paths: list[str]
    labels: NDArray[np.float64]
    """(N, K) label units, 0 or 1, or the index of a class; NaN where one is missing."""
    predicted: NDArray[np.float64]
    """(R, N, n_outputs) label units or probabilities; NaN where an image was not tested."""
    folds: NDArray[np.object_]
    """(R, N) the name of the fold that tested an image in each repeat; empty if none did."""

    def partitions(self) -> NDArray[np.int64]:
        """(R, N) the folds as numbers, -1 where an image was not tested."""
        names, numbers = np.unique(self.folds.astype(str), return_inverse=True)
        return np.asarray(numbers.reshape(self.folds.shape) - int("" in names), np.int64)


def to_table(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    *,
    folds: Sequence[str] | Sequence[Sequence[str]],
    paths: Sequence[str],
) -> "pd.DataFrame":
    """The table of (N, K) labels and (R, N, n_outputs) predictions, in label units, names of classes and probabilities.

    Rows of which nothing is predicted are left out: those images were not tested.

    Args:
        folds: (N,) the name of the fold that tests an image, or (R, N) where it differs between the repeats.
    """
    import pandas as pd

    n_repeats, n_images, _ = predicted.shape
    index = np.tile(np.arange(n_images), n_repeats)
    columns: dict[str, object] = {
        "repeat": np.repeat(np.arange(n_repeats), n_images),
        "fold": np.broadcast_to(np.array(folds, object), (n_repeats, n_images)).ravel(),
        "path": np.array(paths, object)[index],
    }
    flat, truth = predicted.reshape(n_repeats * n_images, -1), labels[index]
    if target.kind == "multiclass":
        task = target.tasks[0]
        columns |= {
            task: _as_classes(truth[:, 0], target),
            f"{task}_predicted": _as_classes(_most_likely(flat), target),
        }
    else:
        for k, task in enumerate(target.tasks):
            columns |= {task: truth[:, k], f"{task}_predicted": flat[:, k]}
    columns |= {name: flat[:, c] for c, name in enumerate(target.class_columns)}
    tested = ~np.isnan(flat).all(1)
    table = pd.DataFrame(columns, columns=target.columns)
    return table.iloc[np.flatnonzero(tested)].reset_index(drop=True)


def from_table(table: "pd.DataFrame", target: Target) -> Outcomes:
    """The inverse of `to_table`; images come in the order in which they first stand in the table.

    Raises:
        RunError: a column is missing, a class is unknown, or an image stands twice in a repeat.
    """
    import pandas as pd

    absent = [name for name in target.columns if name not in table]
    if absent:
        raise RunError(f"the predictions have no column {few(absent, LISTED, quoted=True)}; train again")
    rows, paths = pd.factorize(table["path"])
    repeats = table["repeat"].to_numpy(np.int64)
    twice = np.flatnonzero(table.duplicated(["repeat", "path"]))
    if len(twice):
        i = int(twice[0])
        raise RunError(f"the predictions have {paths[rows[i]]!r} twice in repeat {repeats[i]}; train again")
    outputs = target.class_columns or [f"{task}_predicted" for task in target.tasks]
    predicted = np.full((int(repeats.max(initial=-1)) + 1, len(paths), len(outputs)), np.nan)
    predicted[repeats, rows] = table[outputs].to_numpy(np.float64)
    labels = np.full((len(paths), len(target.tasks)), np.nan)
    labels[rows] = _labels(table, target)
    folds = np.full(predicted.shape[:2], "", object)
    folds[repeats, rows] = table["fold"].astype(str)
    return Outcomes([str(path) for path in paths], labels, predicted, folds)


def _labels(table: "pd.DataFrame", target: Target) -> NDArray[np.float64]:
    if target.kind != "multiclass":
        return table[list(target.tasks)].to_numpy(np.float64)
    names = table[target.tasks[0]].astype(str)
    index = {"": np.nan, **{name: float(c) for c, name in enumerate(target.classes)}}
    unknown = sorted(set(names) - set(index))
    if unknown:
        raise RunError(
            f"the predictions have the class {unknown[0]!r} in column {target.tasks[0]!r}; the run's classes are "
            f"{few(target.classes, LISTED)}"
        )
    return np.array([[index[name]] for name in names], np.float64).reshape(-1, 1)


def _most_likely(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    tested = ~np.isnan(probabilities).any(1)
    return np.where(tested, np.where(tested[:, None], probabilities, 0).argmax(1), np.nan)


def _as_classes(indices: NDArray[np.floating], target: Target) -> list[str]:
    return ["" if np.isnan(index) else target.classes[int(index)] for index in indices]
