"""Folds, repeats and inner splits: which rows a model may see, and cross-validation over them.

Groups stay together everywhere: across folds, and between what is fitted and what early stopping looks at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heads.batches import Features
from heads.errors import LabelsError
from heads.prediction import attend_rows, predict_rows
from heads.runs import Attention
from heads.systems import System
from heads.training import Epoch, Task


@dataclass(frozen=True)
class Outcome:
    """What cross-validation gives; every prediction is by a model that never saw the image or its group."""

    predicted: NDArray[np.float32]
    """(repeats, N, K), scaled."""
    attention: Attention | None
    n_models: int


def assign_folds(n: int, groups: list[str] | None, n_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each of `n` rows, by scikit-learn's (Group)KFold; the same for every head.

    Raises:
        LabelsError: fewer rows or groups than folds, or fewer than two folds.
    """
    from sklearn.model_selection import GroupKFold, KFold

    if n_folds < 2:
        raise LabelsError(f"{n_folds} folds: at least 2 are needed")
    units, what = (len(set(groups)), "groups") if groups else (n, "labelled images")
    if units < n_folds:
        raise LabelsError(f"{n_folds} folds need at least as many {what}; there are {units}")
    splitter = (GroupKFold if groups else KFold)(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(n, np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.empty(n), groups=groups)):
        folds[test] = fold
    return folds


def split_inner(
    rows: NDArray[np.int64], groups: list[str] | None, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training rows parted into those that are fitted and those that early stopping looks at.

    Raises:
        LabelsError: too few rows or groups to part.
    """
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

    part = None if groups is None else [groups[row] for row in rows]
    units = len(rows) if part is None else len(set(part))
    if units < 2:
        raise LabelsError("a training part has a single image or group; early stopping needs two: use fewer folds")
    held = min(max(share, 1 / units), 1 - 1 / units)
    splitter = (ShuffleSplit if part is None else GroupShuffleSplit)(1, test_size=held, random_state=seed)
    fit, inner = next(splitter.split(rows, groups=part))
    return rows[fit], rows[inner]


def cross_validate(
    system: System,
    options: dict[str, object],
    features: Features,
    labels: NDArray[np.float32],
    folds: NDArray[np.int64],
    *,
    groups: list[str] | None,
    paths: list[str],
    n_repeats: int,
    seed: int,
    device: torch.device,
    on_model: Callable[[int, int, nn.Module, list[Epoch]], None],
    on_progress: Callable[[str, int, int], None],
) -> Outcome:
    """Train one model per repeat and fold and predict the rows that it did not see.

    Args:
        labels: (N, K), scaled, NaN where there is none.
        on_model: called with repeat, fold, the trained model and its history.
    """
    n_images, n_tasks = labels.shape
    predicted = np.zeros((n_repeats, n_images, n_tasks), np.float32)
    attended = _AttentionMean(n_images, n_repeats)
    max_epochs = int(str(options.get("epochs", 1)))
    parts = list(_parts(folds, n_repeats))
    for number, (repeat, fold, train, test) in enumerate(parts):
        model_seed = int(np.random.SeedSequence([seed, repeat, fold]).generate_state(1)[0])
        fit_rows, inner_rows = split_inner(train, groups, float(str(options["inner"])), model_seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(model_seed)
            model = system.build(features.shape, n_tasks, options)
            done = number * max_epochs
            task = Task(
                features,
                labels,
                fit_rows,
                inner_rows,
                seed=model_seed,
                device=device,
                on_epoch=lambda epoch, done=done: on_progress("train", done + epoch, len(parts) * max_epochs),  # type: ignore[misc]
            )
            history = system.fit(model, task, options)
        on_progress("train", (number + 1) * max_epochs, len(parts) * max_epochs)
        predicted[repeat, test] = predict_rows(model, features, test, device)
        attended.add(test, attend_rows(model, features, test, device))
        on_model(repeat, fold, model, history)
    return Outcome(predicted, attended.result(paths), len(parts))


def _parts(folds: NDArray[np.int64], n_repeats: int) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
    for repeat in range(n_repeats):
        for fold in range(int(folds.max()) + 1):
            yield repeat, fold, np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


class _AttentionMean:
    """The mean over repeats of what each image's own out-of-fold model looked at."""

    def __init__(self, n_images: int, n_repeats: int) -> None:
        self._n_images, self._n_repeats = n_images, n_repeats
        self._sums: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def add(self, rows: NDArray[np.int64], found: tuple[NDArray[np.float32], NDArray[np.float32]] | None) -> None:
        if found is None:
            return
        if self._sums is None:
            empty = [np.zeros((self._n_images, *each.shape[1:]), np.float32) for each in found]
            self._sums = (empty[0], empty[1])
        for total, each in zip(self._sums, found, strict=True):
            total[rows] += each / self._n_repeats

    def result(self, paths: list[str]) -> Attention | None:
        return None if self._sums is None else Attention(paths, *self._sums)
