"""Reliability: intraclass correlations, split halves, Krippendorff's alpha, each with its 95 % interval.

Closed forms, so that they cost nothing and need no library. tests/heads/raters checks them against pingouin and
krippendorff.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
How = Literal["mean", "median"]
TAIL = 0.025
N_RESAMPLES = 1000
N_SPLITS = 100
"""Random halves of the raters at most; fewer of very many ratings, where each says more."""
_RATINGS_SPLIT = 2_000_000
"""Ratings that are split in all."""
_CHUNK = 2_000_000
"""Weights of photos that are drawn at once."""


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Photos:
    """What the raters of each photo said of one task, in three numbers."""

    means: Floats
    """(N,)"""
    variances: Floats
    """(N,) of the ratings of a photo, with n - 1 below; NaN where unknown, as of one rating."""
    counts: Floats
    """(N,) raters."""

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the spread within photos."""
        return float((self.counts - 1)[self._known].sum())

    @property
    def within(self) -> float:
        """The variance of ratings of the same photo, over all photos; NaN if no photo has two raters."""
        degrees = (self.counts - 1)[self._known]
        return float(degrees @ self.variances[self._known] / degrees.sum()) if degrees.sum() else np.nan

    @property
    def noise(self) -> float:
        """How far means are from those of very many raters: the mean over the photos of their error variance."""
        return float(np.mean(np.where(self._known, self.variances, self.within) / self.counts))

    @property
    def _known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.variances)


def photos_of(photos: Indices, values: Floats) -> Photos:
    """Rows of raters as three numbers for each photo.

    Args:
        photos: (M,) 0 .. N - 1, each of them at least once.
        values: (M,) their ratings.
    """
    counts = np.bincount(photos).astype(np.float64)
    means = np.bincount(photos, values) / counts
    squares = np.bincount(photos, (values - means[photos]) ** 2)
    return Photos(means, np.where(counts > 1, squares / np.maximum(counts - 1, 1), np.nan), counts)


def icc1(photos: Photos) -> Estimate:
    """ICC(1): the reliability of one rating, if every photo has raters of its own."""
    n, total = len(photos.means), photos.counts.sum()
    grand = photos.counts @ photos.means / total
    between = float(photos.counts @ (photos.means - grand) ** 2 / (n - 1))
    raters = float((total - (photos.counts**2).sum() / total) / (n - 1))
    return _of_one(between, photos.within, raters, n - 1, photos.freedom)


def icc1k(photos: Photos) -> Estimate:
    """ICC(1,k): the reliability of the means, if every photo has raters of its own, and not all equally many."""
    return _of_mean(float(photos.means.var(ddof=1)), photos.noise, len(photos.means) - 1, photos.freedom)


@dataclass(frozen=True)
class Crossed:
    """The mean squares of a table (N photos, K raters) in which every rater rated every photo."""

    n: int
    k: int
    photos: float
    raters: float
    rest: float

    @property
    def noise(self) -> float:
        """The error variance of the means; what raters add to all photos alike is none."""
        return self.rest / self.k


def crossed_of(table: Floats) -> Crossed:
    """Two-way analysis of variance of (N, K) ratings, none missing."""
    n, k = table.shape
    by_photo, by_rater = table.mean(1), table.mean(0)
    rest = table - by_photo[:, None] - by_rater + table.mean()
    return Crossed(
        n,
        k,
        k * float(by_photo.var(ddof=1)),
        n * float(by_rater.var(ddof=1)),
        float((rest**2).sum() / ((n - 1) * (k - 1))),
    )


def icc_c1(found: Crossed) -> Estimate:
    """ICC(C,1): the reliability of one rating, where raters may differ by a constant."""
    return _of_one(found.photos, found.rest, found.k, found.n - 1, (found.n - 1) * (found.k - 1))


def icc_ck(found: Crossed) -> Estimate:
    """ICC(C,k): the reliability of the means over the same raters."""
    return _of_mean(found.photos, found.rest, found.n - 1, (found.n - 1) * (found.k - 1))


def icc2k(found: Crossed) -> Estimate:
    """ICC(2,k): the same for raters drawn anew, whose constants would differ (Shrout and Fleiss 1979)."""
    n, k, photos, raters, rest = found.n, found.k, found.photos, found.raters, found.rest
    value = (photos - rest) / (photos + (raters - rest) / n)
    if not rest:
        return Estimate(value, value, value)
    one = (photos - rest) / (photos + (k - 1) * rest + k * (raters - rest) / n)
    ratio = raters / rest
    a, b = k * one * ratio, n * (1 + (k - 1) * one) - k * one
    freedom = (n - 1) * (k - 1) * (a + b) ** 2 / ((n - 1) * a**2 + b**2)
    above, below = _quantile_of_f(n - 1, freedom), _quantile_of_f(freedom, n - 1)
    scatter = k * raters + (k * n - k - n) * rest
    low = n * (photos - above * rest) / (above * scatter + n * photos)
    high = n * (below * photos - rest) / (scatter + n * below * photos)
    return Estimate(value, *(k * each / (1 + (k - 1) * each) for each in (low, high)))


def split_half(
    photos: Indices,
    values: Floats,
    table: Floats | None,
    how: How,
    rng: np.random.Generator,
) -> Estimate | None:
    """Two random halves of the raters against each other, made longer by Spearman and Brown to all of them.

    The mean over many splits, with a bootstrap over photos. Photos with one rater do not count.

    Args:
        photos, values: (M,) rows of raters, as of `photos_of`.
        table: (N, K) the same if every rater rated every photo; then halves are of raters, the same for all photos.
        how: of the ratings that make a label.

    Returns:
        None if fewer than three photos have two raters, or halves do not vary.
    """
    counts = np.bincount(photos) if table is None else np.full(*table.shape)
    sizes = counts // 2
    some = sizes > 0
    if some.sum() < 3:
        return None
    n_splits = int(np.clip(_RATINGS_SPLIT // counts.sum(), 10, N_SPLITS))
    halves = np.stack(
        [
            _split_table(table, how, rng) if table is not None else _split_rows(photos, values, sizes, how, rng)
            for _ in range(n_splits)
        ]
    )[:, :, some]
    longer = float((1 / sizes[some]).mean() / (1 / counts).mean())
    known = halves.std(axis=2).all(axis=1)
    if not known.any():
        return None
    first, second = halves[known, 0], halves[known, 1]
    value = float(_spearman_brown(_correlations(first, second, np.ones((1, first.shape[1]))), longer).mean())
    drawn = [
        _spearman_brown(_correlations(first, second, weights), longer).mean(1)
        for weights in _resamples(first.shape[1], rng)
    ]
    return _with_percentiles(value, np.concatenate(drawn))


def alpha_of_ratings(photos: Photos, rng: np.random.Generator) -> Estimate | None:
    """Krippendorff's alpha of numbers (interval level), with a bootstrap over photos; None if nothing varies."""
    some = (photos.counts > 1) & np.isfinite(photos.variances)
    counts, means, variances = photos.counts[some], photos.means[some], photos.variances[some]
    within, sums, squares = counts * variances, counts * means, (counts - 1) * variances + counts * means**2

    def alphas(weights: Floats) -> Floats:
        n = weights @ counts
        total = (weights @ squares - (weights @ sums) ** 2 / n) / (n - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - (weights @ within / n) / total)

    return _bootstrapped(alphas, int(some.sum()), rng)


def alpha_of_classes(votes: Floats, rng: np.random.Generator) -> Estimate | None:
    """Krippendorff's alpha of names (nominal level), with a bootstrap over photos; None if nothing varies.

    Args:
        votes: (N, C) how many raters of a photo chose each class.
    """
    votes = votes[votes.sum(1) > 1]
    counts = votes.sum(1)
    apart = (counts**2 - (votes**2).sum(1)) / (counts - 1)

    def alphas(weights: Floats) -> Floats:
        of_class = weights @ votes
        n = of_class.sum(1)
        expected = (n**2 - (of_class**2).sum(1)) / (n - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - weights @ apart / expected)

    return _bootstrapped(alphas, len(votes), rng)


def one_against_others(votes: Floats) -> float | None:
    """How often one rater chooses what the other raters of a photo choose most; ties count for their share.

    Args:
        votes: (N, C) as of `alpha_of_classes`.

    Returns:
        None if no photo has two raters.
    """
    votes = votes[votes.sum(1) > 1]
    if not len(votes):
        return None
    agreed = np.zeros(len(votes))
    for chosen in range(votes.shape[1]):
        others = votes.copy()
        others[:, chosen] -= 1  # negative where nobody chose it: such a photo counts nothing
        most = others == others.max(1, keepdims=True)
        agreed += votes[:, chosen] * most[:, chosen] / most.sum(1)
    return float(agreed.sum() / votes.sum())


def _of_one(between: float, within: float, raters: float, df1: float, df2: float) -> Estimate:
    def reliability(ratio: float) -> float:
        return (ratio - 1) / (ratio + raters - 1) if np.isfinite(ratio) else 1.0

    return Estimate(*map(reliability, _ratio(between, within, df1, df2)))


def _of_mean(total: float, noise: float, df1: float, df2: float) -> Estimate:
    def reliability(ratio: float) -> float:
        return 1 - 1 / ratio if ratio else -np.inf

    return Estimate(*map(reliability, _ratio(total, noise, df1, df2)))


def _ratio(above: float, below: float, df1: float, df2: float) -> Estimate:
    """The ratio of two mean squares, and the ends of the 95 % interval of what they estimate."""
    ratio = above / below if below else np.inf
    return Estimate(ratio, ratio / _quantile_of_f(df1, df2), ratio * _quantile_of_f(df2, df1))


def _quantile_of_f(df1: float, df2: float) -> float:
    from scipy.special import fdtri  # scipy.stats takes half a second to be imported

    return float(fdtri(df1, df2, 1 - TAIL))


def _split_table(table: Floats, how: How, rng: np.random.Generator) -> Floats:
    middle = np.mean if how == "mean" else np.median
    size = table.shape[1] // 2
    order = rng.permutation(table.shape[1])
    return np.stack([middle(table[:, part], axis=1) for part in (order[:size], order[size : 2 * size])])


def _split_rows(photos: Indices, values: Floats, sizes: Indices, how: How, rng: np.random.Generator) -> Floats:
    """(2, N) the labels of two halves of each photo's raters; 0 where there is one rater."""
    order = np.argsort(photos + rng.random(len(photos)))
    sorted_photos, sorted_values = photos[order], values[order]
    starts = np.searchsorted(sorted_photos, np.arange(len(sizes)))
    place = np.arange(len(photos)) - starts[sorted_photos]
    half = place // np.maximum(sizes, 1)[sorted_photos]
    made = []
    for number in (0, 1):
        here = (half == number) & (sizes > 0)[sorted_photos]
        part, rated = sorted_photos[here], sorted_values[here]
        if how == "mean":
            made.append(np.bincount(part, rated, minlength=len(sizes)) / np.maximum(sizes, 1))
        else:
            import pandas as pd

            medians = pd.Series(rated).groupby(part).median()
            made.append(medians.reindex(range(len(sizes)), fill_value=0.0).to_numpy(np.float64))
    return np.stack(made)


def _correlations(first: Floats, second: Floats, weights: Floats) -> Floats:
    """(B, S) Pearson of S pairs (S, N) under B weights (B, N) of the photos; NaN where nothing varies."""
    n = weights.sum(1, keepdims=True)
    a, b = (each - each.mean(1, keepdims=True) for each in (first, second))
    sum_a, sum_b = weights @ a.T, weights @ b.T
    across = weights @ (a * b).T - sum_a * sum_b / n
    spread_a, spread_b = weights @ (a * a).T - sum_a**2 / n, weights @ (b * b).T - sum_b**2 / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(across / np.sqrt(spread_a * spread_b))


def _spearman_brown(half: Floats, longer: float) -> Floats:
    """The reliability of a test so many times as long."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(longer * half / (1 + (longer - 1) * half))


def _resamples(n: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of n photos is drawn, `N_RESAMPLES` times (in several parts)."""
    rows = max(1, _CHUNK // n)
    for start in range(0, N_RESAMPLES, rows):
        size = min(rows, N_RESAMPLES - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]  # a multinomial takes five times as long
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _bootstrapped(statistic: Callable[[Floats], Floats], n: int, rng: np.random.Generator) -> Estimate | None:
    if n < 2:
        return None
    value = float(statistic(np.ones((1, n)))[0])
    return _with_percentiles(value, np.concatenate([statistic(weights) for weights in _resamples(n, rng)]))


def _with_percentiles(value: float, drawn: Floats) -> Estimate | None:
    """None if it is not defined, or not of most of the resamples."""
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or 2 * len(known) < len(drawn):
        return None
    return Estimate(value, *map(float, np.quantile(known, [TAIL, 1 - TAIL])))
