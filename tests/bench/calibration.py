"""Whether intervals and p-values keep what they promise: simulated worlds in which the truth is known.

    python tests/bench/calibration.py                          # the table of docs/heads.md; minutes
    python tests/bench/calibration.py --worlds 4000 --jobs 16  # the same, surer
    python tests/bench/calibration.py --features 1000 --decay 1  # more features than photos, most of which vary little

In each world, two heads see different features of the same photos, equally telling ones, and learn the same ratings
by ridge regression. Neither is better, so that each difference that is found is a false one. What is printed, by size,
grouping and metric:

- *false*: in how many worlds p is below .05, of the test of `heads compare` (ten repeats of five redrawn folds), and of
  the bootstrap over photos of one cross-validation, which it replaces
- *power*: how often a difference is found that a test which knew the true spread would find in half, and in 80 %, of
  the worlds; as a share of that
- *covered*: how often the 95 % interval of a head holds its mean over all worlds, by folds and by the bootstrap
- *page*: how often at least one difference is found among nine equal heads and three tasks, adjusted as a page is
- *noise*: the mean figure where features know nothing, which should be 0, by penalty

Worlds are seeded by their number. The standard error of a share of .05 of 400 worlds is .011.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from heads.inference.folds import Interval, by_fold
from heads.inference.intervals import bootstrap, holm
from heads.labels.target import Target
from heads.splits.folds import k_fold

Floats = NDArray[np.float64]
RATINGS, CLASSES = Target("regression", ("x",)), Target("binary", ("x",))
METRICS = {"pearson": RATINGS, "rmse": RATINGS, "r2": RATINGS, "accuracy": CLASSES, "f1": CLASSES}
PENALTIES = np.logspace(-1, 5, 13)
NOISE_PENALTIES = (*PENALTIES[::4], None)
N_FOLDS, N_REPEATS = 5, 10


@dataclass(frozen=True)
class World:
    """The heads' features of the same photos (N, F), their ratings (N, K), and groups of photos that are alike."""

    features: tuple[Floats, ...]
    ratings: Floats
    groups: list[str] | None


@dataclass(frozen=True)
class Kind:
    """What the worlds of a row of the table have in common."""

    n: int
    group_size: int
    n_features: int
    signal: float
    """The share of the ratings' variance that all feature sets explain together."""
    decay: float
    """Feature number j has the variance j ** -decay."""
    n_heads: int = 2
    n_tasks: int = 1


def make_world(seed: int, kind: Kind) -> World:
    """All feature sets have the same distribution, and the ratings depend on all alike: none is better."""
    rng = np.random.default_rng(seed)
    n, group_size = kind.n, kind.group_size
    number = np.arange(n) // group_size
    scale = np.arange(1, kind.n_features + 1) ** (-kind.decay / 2)
    fixed = np.random.default_rng(7).standard_normal((kind.n_features, kind.n_tasks))
    slopes = fixed if kind.decay or kind.n_tasks > 1 else np.eye(kind.n_features, 1)
    slopes = slopes / np.linalg.norm(slopes * scale[:, None], axis=0)

    def draw(width: int) -> Floats:
        alone = rng.standard_normal((n, width))
        return alone if group_size == 1 else (alone + rng.standard_normal((number[-1] + 1, width))[number]) / 2**0.5

    features = tuple(draw(kind.n_features) * scale for _ in range(kind.n_heads))
    known = (kind.signal / kind.n_heads) ** 0.5 * sum(features) @ slopes
    ratings = known + (1 - kind.signal) ** 0.5 * draw(kind.n_tasks)
    return World(features, ratings / 6, None if group_size == 1 else [str(each) for each in number])


def out_of_fold(features: Floats, ratings: Floats, partition: NDArray[np.int64], penalty: float | None) -> Floats:
    """(N,) predictions by ridge regression, whose penalty is chosen by leaving out one training photo at a time."""
    predicted = np.empty(len(ratings))
    for fold in range(N_FOLDS):
        test = partition == fold
        x, y = features[~test], ratings[~test]
        centre, level = x.mean(0), y.mean()
        left, values, right = np.linalg.svd(x - centre, full_matrices=False)
        along = left.T @ (y - level)

        def error(
            each: float, left: Floats = left, values: Floats = values, along: Floats = along, y: Floats = y
        ) -> float:
            kept = values**2 / (values**2 + each)
            rest = y - y.mean() - left @ (kept * along)
            return float(((rest / (1 - 1 / len(y) - (left * left) @ kept)) ** 2).mean())

        chosen = min(PENALTIES, key=error) if penalty is None else penalty
        weights = right.T @ (values / (values**2 + chosen) * along)
        predicted[test] = (features[test] - centre) @ weights + level
    return predicted


class Seen(NamedTuple):
    """What is said of one world, by folds of all repeats and by the bootstrap of one: intervals of both heads (2,)."""

    folds: list[Interval]
    difference: Interval
    photos: list[Interval]
    difference_by_photos: Interval


def look(seed: int, kind: Kind) -> dict[str, Seen]:
    """By metric."""
    world, n = make_world(seed, kind), kind.n
    splits = [
        k_fold(n, n_folds=N_FOLDS, groups=world.groups, strata=None, seed=1000 * seed + repeat)
        for repeat in range(N_REPEATS)
    ]
    partitions = np.stack([split.partition for split in splits])
    n_units = n if world.groups is None else len(set(world.groups))
    said = [
        np.stack([out_of_fold(features, world.ratings[:, 0], each, None) for each in partitions])[..., None]
        for features in world.features
    ]
    seen = {}
    for metric, target in METRICS.items():
        labels, predicted = world.ratings, said
        if target is CLASSES:
            labels, predicted = (labels > 0).astype(float), [np.clip(each + 0.5, 0, 1) for each in said]
        first, second = (
            by_fold(target, labels, each, partitions, n_units=n_units, names=[metric])["x"][metric]
            for each in predicted
        )
        one, other = (
            bootstrap(target, labels, each[:1], metric, world.groups, n_resamples=400, n_alone=400, seed=seed)["x"]
            for each in predicted
        )
        seen[metric] = Seen(
            [first.interval(), second.interval()],
            first.difference(second),
            [one.interval(), other.interval()],
            one.difference(other),
        )
    return seen


def rows(seen: list[dict[str, Seen]]) -> Iterator[tuple[str, ...]]:
    """For each metric, the figures of the module's docstring."""
    for metric in METRICS:
        found = [each[metric] for each in seen]
        apart = np.array([each.difference.value for each in found])
        reach = np.array([each.difference.high - each.difference.value for each in found])
        power = []
        for share in (0.5, 0.8):
            shift = (norm.isf(0.025) - norm.isf(share)) * apart.std()
            power.append(np.mean([(np.abs(apart + sign * shift) > reach).mean() for sign in (-1, 1)]) / share)
        yield (
            metric,
            f"{np.mean([figure.value for each in found for figure in each.folds]):.3f}",
            f"{np.mean([each.difference_by_photos.p < 0.05 for each in found]):.3f}",
            f"{np.mean([each.difference.p < 0.05 for each in found]):.3f}",
            " ".join(f"{each:.2f}" for each in power),
            f"{_covered([figure for each in found for figure in each.photos]):.3f}",
            f"{_covered([figure for each in found for figure in each.folds]):.3f}",
        )


def _covered(figures: list[Interval]) -> float:
    """How many of the intervals hold the mean of all figures. (The bootstrap's are of the pooled figure.)"""
    truth = np.mean([each.value for each in figures])
    return float(np.mean([each.low < truth < each.high for each in figures]))


def noise(seed: int, kind: Kind) -> list[list[float]]:
    """By penalty, Pearson averaged over folds and pooled over them."""
    world = make_world(seed, kind)
    partitions = k_fold(kind.n, n_folds=N_FOLDS, groups=None, strata=None, seed=seed).partition[None]
    found = []
    for penalty in NOISE_PENALTIES:
        said = out_of_fold(world.features[0], world.ratings[:, 0], partitions[0], penalty)[None, :, None]
        names = ["pearson", "pearson_pooled"]
        figures = by_fold(RATINGS, world.ratings, said, partitions, n_units=kind.n, names=names)["x"]
        found.append([each.value for each in figures.values() if each is not None])
    return found


def table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def page(seed: int, kind: Kind) -> float:
    """The smallest p-value of a table of heads by tasks, each beside the first, as `heads compare` adjusts them."""
    world = make_world(seed, kind)
    target = Target("regression", tuple(f"x{k}" for k in range(kind.n_tasks)))
    partitions = np.stack(
        [
            k_fold(kind.n, n_folds=N_FOLDS, groups=None, strata=None, seed=1000 * seed + repeat).partition
            for repeat in range(N_REPEATS)
        ]
    )
    found = []
    for features in world.features:
        said = np.stack(
            [
                np.stack([out_of_fold(features, ratings, each, None) for ratings in world.ratings.T], axis=-1)
                for each in partitions
            ]
        )
        found.append(by_fold(target, world.ratings, said, partitions, n_units=kind.n, names=["pearson"]))
    p_values = [
        each[task]["pearson"].difference(found[0][task]["pearson"]).p for each in found[1:] for task in target.tasks
    ]
    return min(holm(p_values))


def in_worlds(
    work: Callable[[int, Kind], Any], kind: Kind, n_worlds: int, pool: ProcessPoolExecutor | None
) -> list[Any]:
    if pool is None:
        return [work(seed, kind) for seed in range(n_worlds)]
    return list(pool.map(partial(work, kind=kind), range(n_worlds), chunksize=5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400, help="of 120 photos; half as many of 600")
    parser.add_argument("--signal", type=float, default=0.8, help="share of the ratings' variance in the features")
    parser.add_argument("--features", type=int, default=30)
    parser.add_argument("--decay", type=float, default=0.0, help="feature j varies as j to the power of minus this")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    asked = parser.parse_args()
    begun = time.perf_counter()
    header = ("photos", "in groups of", "metric", "figure")
    header += ("false, bootstrap", "false", "power .5 .8", "covered, bootstrap", "covered")
    lines: list[tuple[str, ...]] = []
    with ProcessPoolExecutor(asked.jobs) if asked.jobs > 1 else nullcontext() as pool:
        for n, group_size, share in ((120, 1, 1), (120, 6, 1), (600, 1, 2), (600, 4, 2)):
            kind = Kind(n, group_size, asked.features, asked.signal, asked.decay)
            seen = in_worlds(look, kind, asked.worlds // share, pool)
            lines += [(str(n), str(group_size), *row) for row in rows(seen)]
        table(header, lines)
        false = [float(line[5]) for line in lines if line[2] in ("pearson", "r2", "accuracy")]
        print(f"\nfalse of pearson, r2 and accuracy: mean {np.mean(false):.3f}, largest {max(false):.3f}\n")
        lines = []
        for n in (120, 600):
            found = np.mean(in_worlds(noise, Kind(n, 1, 30, 0.0, 0.0), 4 * asked.worlds, pool), axis=0)
            lines += [
                (str(n), "chosen" if penalty is None else f"{penalty:g}", f"{within:+.3f}", f"{pooled:+.3f}")
                for penalty, (within, pooled) in zip(NOISE_PENALTIES, found, strict=True)
            ]
        heads, tasks, n_pages = 9, 3, max(asked.worlds // 4, 2)
        least = in_worlds(page, Kind(600, 1, 30, 0.8, 0.0, heads, tasks), n_pages, pool)
    table(("photos", "penalty", "noise", "noise, pooled"), lines)
    any_found = f"{np.mean(np.array(least) < 0.05):.3f} of {n_pages}"
    print(f"\na page of {heads} equal heads and {tasks} tasks, 600 photos: a difference is found in {any_found}")
    print(f"\nworlds 0 to {asked.worlds - 1} (half as many of 600 photos), {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
