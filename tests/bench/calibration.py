"""Whether intervals and p-values keep what they promise: simulated worlds in which the truth is known.

    python tests/bench/calibration.py                  # the table of docs/heads.md; minutes
    python tests/bench/calibration.py --worlds 2000    # the same, surer

In each world, two heads see different features of the same photos, equally telling ones, and learn the same ratings
by ridge regression. Neither is better, so that each difference that is found is a false one. What is printed, by size,
grouping and metric:

- *false*: in how many worlds p is below .05, of the test of `heads compare` (ten repeats of five redrawn folds), and of
  the bootstrap over photos of one cross-validation, which it replaces
- *power*: how often a difference is found that a test which knew the true spread would find in half, and in 80 %, of
  the worlds; as a share of that
- *covered*: how often the 95 % interval of a head holds its mean over all worlds, by folds and by the bootstrap
- *noise*: the mean figure where features know nothing, which should be 0, by penalty

Worlds are seeded by their number. The standard error of a share of .05 of 400 worlds is .011.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from heads.inference.folds import FoldFigures, by_fold
from heads.inference.intervals import Resampled, bootstrap
from heads.labels.target import Target
from heads.splits.folds import k_fold

Floats = NDArray[np.float64]
RATINGS, CLASSES = Target("regression", ("x",)), Target("binary", ("x",))
METRICS = {"pearson": RATINGS, "rmse": RATINGS, "r2": RATINGS, "accuracy": CLASSES, "f1": CLASSES}
PENALTIES = np.logspace(-1, 5, 13)
N_FOLDS, N_REPEATS = 5, 10


@dataclass(frozen=True)
class World:
    """Two heads' features of the same photos (N, F), their ratings (N,), and groups of photos that are alike."""

    features: tuple[Floats, Floats]
    ratings: Floats
    groups: list[str] | None


def make_world(seed: int, n: int, group_size: int, *, n_features: int, signal: float) -> World:
    """Both feature sets are isotropic, so that ridge does equally well on either, whatever the ratings depend on."""
    rng = np.random.default_rng(seed)
    number = np.arange(n) // group_size

    def draw(width: int) -> Floats:
        alone = rng.standard_normal((n, width))
        return alone if group_size == 1 else (alone + rng.standard_normal((number[-1] + 1, width))[number]) / 2**0.5

    first, second, rest = draw(n_features), draw(n_features), draw(1)[:, 0]
    ratings = (signal / 2) ** 0.5 * (first[:, 0] + second[:, 0]) + (1 - signal) ** 0.5 * rest
    return World((first, second), ratings / 6, None if group_size == 1 else [str(each) for each in number])


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


@dataclass(frozen=True)
class Seen:
    """What is known of one world: for each metric, both heads by folds of all repeats, and by the bootstrap of one."""

    folds: dict[str, tuple[FoldFigures, FoldFigures]]
    photos: dict[str, tuple[Resampled, Resampled]]


def look(world: World, seed: int) -> Seen:
    n = len(world.ratings)
    splits = [
        k_fold(n, n_folds=N_FOLDS, groups=world.groups, strata=None, seed=1000 * seed + repeat)
        for repeat in range(N_REPEATS)
    ]
    partitions = np.stack([split.partition for split in splits])
    n_units = n if world.groups is None else len(set(world.groups))
    said = [
        np.stack([out_of_fold(features, world.ratings, each, None) for each in partitions])[..., None]
        for features in world.features
    ]
    folds, photos = {}, {}
    for metric, target in METRICS.items():
        labels, predicted = world.ratings[:, None], said
        if target is CLASSES:
            labels, predicted = (labels > 0).astype(float), [np.clip(each + 0.5, 0, 1) for each in said]
        found = [
            by_fold(target, labels, each, partitions, n_units=n_units, names=[metric])["x"][metric]
            for each in predicted
        ]
        drawn = [
            bootstrap(target, labels, each[:1], metric, world.groups, n_resamples=400, n_alone=400, seed=seed)["x"]
            for each in predicted
        ]
        folds[metric], photos[metric] = (found[0], found[1]), (drawn[0], drawn[1])
    return Seen(folds, photos)


def rows(seen: list[Seen]) -> Iterator[tuple[str, ...]]:
    """For each metric, the figures of the module's docstring."""
    for metric in METRICS:
        by_folds = [each.folds[metric] for each in seen]
        differences = [first.difference(second) for first, second in by_folds]
        apart = np.array([each.value for each in differences])
        false = np.mean([each.p < 0.05 for each in differences if each.p is not None])
        reach = np.array([(each.high or 0) - each.value for each in differences])
        power = []
        for share in (0.5, 0.8):
            shift = (norm.isf(0.025) - norm.isf(share)) * apart.std()
            power.append(np.mean([(np.abs(apart + sign * shift) > reach).mean() for sign in (-1, 1)]) / share)
        old = [first.difference(second) for first, second in (each.photos[metric] for each in seen)]
        old_false = np.mean([each.p < 0.05 for each in old if each.p is not None])
        figures = [each.interval() for pair in by_folds for each in pair]
        truth = np.mean([each.value for each in figures])
        old_figures = [each.interval() for pair in (one.photos[metric] for one in seen) for each in pair]
        # The bootstrap of one cross-validation was shown of the figure pooled over its folds.
        old_truth = np.mean([each.value for each in old_figures])
        yield (
            metric,
            f"{truth:.3f}",
            f"{old_false:.3f}",
            f"{false:.3f}",
            " ".join(f"{each:.2f}" for each in power),
            f"{np.mean([each.low < old_truth < each.high for each in old_figures]):.3f}",
            f"{np.mean([each.low < truth < each.high for each in figures]):.3f}",
        )


def noise(n: int, n_worlds: int) -> Iterator[tuple[str, ...]]:
    """By penalty, the mean Pearson of features that know nothing: averaged over folds, and pooled over them."""
    for penalty in (*PENALTIES[::4], None):
        found = []
        for seed in range(n_worlds):
            world = make_world(seed, n, 1, n_features=30, signal=0.0)
            partitions = k_fold(n, n_folds=N_FOLDS, groups=None, strata=None, seed=seed).partition[None]
            said = out_of_fold(world.features[0], world.ratings, partitions[0], penalty)[None, :, None]
            names = ["pearson", "pearson_pooled"]
            figures = by_fold(RATINGS, world.ratings[:, None], said, partitions, n_units=n, names=names)["x"]
            found.append([each.value for each in figures.values() if each is not None])
        mean = np.mean(found, axis=0)
        yield str(n), "chosen" if penalty is None else f"{penalty:g}", f"{mean[0]:+.3f}", f"{mean[1]:+.3f}"


def table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400, help="of 120 photos; half as many of 600")
    parser.add_argument("--signal", type=float, default=0.8, help="share of the ratings' variance in the features")
    parser.add_argument("--features", type=int, default=30)
    asked = parser.parse_args()
    begun = time.perf_counter()
    header = ("photos", "in groups of", "metric", "figure")
    header += ("false, bootstrap", "false", "power .5 .8", "covered, bootstrap", "covered")
    lines = []
    for n, group_size, n_worlds in (
        (120, 1, asked.worlds),
        (120, 6, asked.worlds),
        (600, 1, asked.worlds // 2),
        (600, 4, asked.worlds // 2),
    ):
        seen = [
            look(make_world(seed, n, group_size, n_features=asked.features, signal=asked.signal), seed)
            for seed in range(n_worlds)
        ]
        lines += [(str(n), str(group_size), *row) for row in rows(seen)]
    table(header, lines)
    false = [float(line[5]) for line in lines if line[2] in ("pearson", "r2", "accuracy")]
    print(f"\nfalse of pearson, r2 and accuracy: mean {np.mean(false):.3f}, largest {max(false):.3f}\n")
    table(
        ("photos", "penalty", "noise", "noise, pooled"),
        [row for n in (120, 600) for row in noise(n, 4 * asked.worlds)],
    )
    print(f"\nworlds 0 to {asked.worlds - 1} (half as many of 600 photos), {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
