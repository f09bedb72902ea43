"""The photos whose predictions are furthest off, and those on which two runs are furthest apart."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.inference.samples import THRESHOLD
from heads.labels.target import Target
from heads.runs.predictions import Outcomes

N_PICTURES = 36
"""Of all tasks together."""
MOST, LEAST = 6, 3
"""Photos of a task: fewer of each where there are many tasks."""


@dataclass(frozen=True)
class Shown:
    """A photo and what is said of it."""

    path: str
    words: tuple[str, ...]
    photo: str | None
    """A data URI; None where the photo is not there."""


@dataclass(frozen=True)
class Errors:
    """How far predictions of a task are from what is given, photo by photo."""

    task: str
    errors: NDArray[np.float64]
    """(N,) in label units, or the probability that the given class, yes or no has not got; NaN if unknown."""
    given: list[str]
    said: list[str]
    wrong: NDArray[np.bool_]
    """(N,) whether a class, or yes or no, is not the given one; every rating is more or less wrong."""


def errors_of(target: Target, labels: NDArray[np.float64], predicted: NDArray[np.float64]) -> list[Errors]:
    """By task, of labels (N, K) as `Target` says and predictions (N, n_outputs): label units or probabilities."""
    if target.kind == "multiclass":
        return [_of_classes(target, labels[:, 0], predicted)]
    of_one = _of_ratings if target.kind == "regression" else _of_yes
    return [of_one(task, labels[:, k], predicted[:, k]) for k, task in enumerate(target.tasks)]


def worst(target: Target, outcomes: Outcomes, picture: Callable[[str], str | None]) -> dict[str, list[Shown]]:
    """By task, the photos that the mean of the repeats is furthest off: none of a class that is right.

    Args:
        picture: the data URI of a photo by its path, or None; each photo is asked for once.
    """
    found = errors_of(target, outcomes.labels, outcomes.predicted.mean(axis=0))
    n = max(LEAST, min(MOST, N_PICTURES // len(found)))
    shown = found[: N_PICTURES // n]
    chosen = {each.task: _largest(np.where(each.wrong, each.errors, np.nan), n) for each in shown}
    pictures = _pictures((outcomes.paths[i] for rows in chosen.values() for i in rows), picture)
    return {
        each.task: [
            Shown(
                outcomes.paths[i],
                (f"given {each.given[i]}", f"predicted {each.said[i]}"),
                pictures[outcomes.paths[i]],
            )
            for i in chosen[each.task]
        ]
        for each in shown
    }


def furthest_apart(
    first: Errors,
    second: Errors,
    names: tuple[str, str],
    paths: list[str],
    picture: Callable[[str], str | None],
    n: int,
) -> dict[str, list[Shown]]:
    """For each of two runs, the photos on which its error is smaller than the other's by most."""
    found = {}
    for name, gap in zip(names, (second.errors - first.errors, first.errors - second.errors), strict=True):
        rows = _largest(np.where(gap > 0, gap, np.nan), n)
        pictures = _pictures((paths[i] for i in rows), picture)
        found[name] = [
            Shown(
                paths[i],
                (f"given {first.given[i]}", f"{names[0]}: {first.said[i]}", f"{names[1]}: {second.said[i]}"),
                pictures[paths[i]],
            )
            for i in rows
        ]
    return found


def _pictures(paths: Iterable[str], picture: Callable[[str], str | None]) -> dict[str, str | None]:
    return {path: picture(path) for path in dict.fromkeys(paths)}


def _largest(values: NDArray[np.float64], n: int) -> list[int]:
    known = np.flatnonzero(np.isfinite(values))
    return [int(i) for i in known[np.argsort(-values[known], kind="stable")[:n]]]


def _of_ratings(task: str, given: NDArray[np.float64], predicted: NDArray[np.float64]) -> Errors:
    return Errors(
        task,
        np.abs(predicted - given),
        [f"{value:.3g}" for value in given],
        [f"{value:.3g}" for value in predicted],
        np.ones(len(given), np.bool_),
    )


def _of_yes(task: str, given: NDArray[np.float64], predicted: NDArray[np.float64]) -> Errors:
    return Errors(
        task,
        np.abs(predicted - given),
        ["yes" if value == 1 else "no" for value in given],
        [f"{'yes' if value >= THRESHOLD else 'no'} ({value:.2f})" for value in predicted],
        (predicted >= THRESHOLD) != (given == 1),
    )


def _of_classes(target: Target, given: NDArray[np.float64], predicted: NDArray[np.float64]) -> Errors:
    known = np.isfinite(given) & np.isfinite(predicted).all(1)
    place = np.where(known, given, 0).astype(int)
    filled = np.where(known[:, None], predicted, 0)
    said, rows = filled.argmax(1), np.arange(len(given))
    return Errors(
        target.tasks[0],
        np.where(known, 1 - filled[rows, place], np.nan),
        [target.classes[i] if known[row] else "" for row, i in enumerate(place)],
        [f"{target.classes[i]} ({filled[row, i]:.2f})" for row, i in enumerate(said)],
        known & (said != place),
    )
