"""The baseline that knows nothing of a photo: the mean rating, or how often each class occurs, of the training rows."""

import numpy as np
from numpy.typing import NDArray

from heads.inference.folds import NOT_TESTED
from heads.labels.target import Target


def predict_baseline(target: Target, labels: NDArray[np.floating], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, N, n_outputs) what it predicts of the tested images of each repeat; NaN of the others.

    Args:
        labels: (N, K), as `Target` says.
        folds: (R, N) the number of the fold that tests an image, NOT_TESTED if none does.
    """
    given = one_hot(target, labels)
    predicted = np.full((*folds.shape, given.shape[1]), np.nan)
    for repeat, partition in enumerate(folds):
        for fold in np.unique(partition[partition != NOT_TESTED]):
            test = partition == fold
            predicted[repeat, test] = mean_of_labels(given[~test])
    return predicted


def mean_of_labels(given: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n_outputs,) the mean of what is known of each output (n, n_outputs); NaN if nothing is."""
    known = np.isfinite(given)
    total, nothing = np.where(known, given, 0).sum(0), np.full(given.shape[1], np.nan)
    return np.asarray(np.divide(total, known.sum(0), out=nothing, where=known.any(0)))


def one_hot(target: Target, labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, n_outputs) labels (N, K) as a perfect prediction would say them."""
    if target.kind != "multiclass":
        return labels.astype(np.float64)
    classes = np.arange(target.n_outputs)
    return np.where(np.isfinite(labels[:, :1]), (labels[:, :1] == classes).astype(float), np.nan)
