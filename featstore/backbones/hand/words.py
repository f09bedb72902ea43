"""Words: descriptors as sums of a few words of a codebook, of which the largest in each cell of a pyramid counts.

Coding is that of Wang et al., Locality-constrained Linear Coding for Image Classification, 2010.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.hand.descriptors import Describe
from featstore.backbones.hand.group import Group, Picture, Vector
from featstore.backbones.hand.pyramid import cells_of, parse_levels

Matrix = NDArray[np.float64]


class Words(Group):
    """The words of a picture, each by how much of it there is in a cell of a pyramid, (cells x W,) of length 1."""

    words: Tensor
    """The codebook, (W, D)."""

    def __init__(self, look: Describe, width: int, *, words: int, nearest: int, beta: float, levels: str) -> None:
        super().__init__(self.words_of)
        self.look = look
        self._nearest, self._beta, self._levels = nearest, beta, parse_levels(levels)
        self.register_buffer("words", torch.rand(words, width))

    def words_of(self, picture: Picture) -> Vector:
        found = self.look(picture)
        words = self.words.numpy(force=True).astype(np.float64)
        chosen, weights = encode(found.values, words, nearest=self._nearest, beta=self._beta)
        levels = []
        for n in self._levels:
            largest = np.zeros((n * n, len(words)))
            np.maximum.at(largest, (cells_of(found.places, n)[:, None], chosen), weights)
            levels.append(largest.ravel())
        vector = np.concatenate(levels)
        return vector / max(float(np.linalg.norm(vector)), np.finfo(float).tiny)


def encode(values: Matrix, words: Matrix, *, nearest: int, beta: float) -> tuple[NDArray[np.int64], Matrix]:
    """Which words (P, nearest) each of descriptors (P, D) is a sum of, and with what weights, of sum 1.

    Args:
        beta: how much is added to the diagonal of a covariance, as a part of its trace.
    """
    apart = np.square(words).sum(1) - 2 * values @ words.T
    chosen = np.argsort(apart, 1, kind="stable")[:, :nearest]
    away = words[chosen] - values[:, None]
    products = away @ away.transpose(0, 2, 1)
    trace = np.trace(products, axis1=1, axis2=2)
    products += np.maximum(beta * trace, 1e-12)[:, None, None] * np.eye(nearest)
    weights = np.linalg.solve(products, np.ones((len(values), nearest, 1)))[..., 0]
    return chosen, weights / weights.sum(1, keepdims=True)


def learn_words(values: NDArray[np.float32], n_words: int, *, seed: int) -> NDArray[np.float32]:
    """A codebook (W, D) of descriptors (N, D), by k-means in minibatches.

    Raises:
        ValueError: there are fewer different descriptors than words.
    """
    from sklearn.cluster import MiniBatchKMeans

    found: NDArray[np.float32] = values[:0]
    if len(values) >= n_words:
        # A word that few descriptors are near to stays: put elsewhere at random, it may fall on one that is there.
        how: dict[str, Any] = {"batch_size": 4096, "n_init": 1, "reassignment_ratio": 0}
        solution = MiniBatchKMeans(n_words, random_state=seed, **how).fit(values)
        found = solution.cluster_centers_.astype(np.float32)
    if len(np.unique(found, axis=0)) < n_words:
        raise ValueError(f"{len(values)} descriptors do not make {n_words} words; name more photos, or other ones")
    return found
