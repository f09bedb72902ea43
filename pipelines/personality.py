"""Li et al., "Personality-driven multi-task aesthetics": a score, corrected by the personality of who likes the photo.

    photos -> DenseNet-121, frozen or trained -> a score and five traits, learned in turn -> the traits' weights

Scores and traits stand in two tables. The photos of both lie in one folder; no photo needs both kinds of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featstore import TensorSpec, View
from heads import HeadsError, Run, Validation, find_system, read_labels
from pipelines.bench import (
    Bench,
    Figure,
    Outcome,
    Table,
    check_networks,
    differences,
    extract,
    figures_of,
    train_network,
)

BACKBONES = ("densenet121",)
PIXELS = ("pixels@square",)
WHOLE = View((256, 256))
METRICS = ("srocc", "plcc", "rmse", "accuracy")
MSE = "mse"
SCORE_SCALE, TRAIT_SCALE = "0:1", "-1:1"
SYSTEMS = ("personality-frozen", "aesthetics-only")

# Published: the first three on AADB, accuracy on AVA; of networks that are trained with their branches.
DATA = {"srocc": "AADB", "plcc": "AADB", MSE: "AADB", "accuracy": "AVA"}
WITH_TRAITS = {"srocc": 0.680, "plcc": 0.702, MSE: 0.016, "accuracy": 0.815}
WITHOUT = {"srocc": 0.637, "plcc": 0.668, MSE: 0.022, "accuracy": 0.761}
PUBLISHED = {"personality": WITH_TRAITS, "personality-frozen": WITH_TRAITS, "aesthetics-only": WITHOUT}
CALLED_RMSE = (
    "mse: the paper prints it as RMSE; with scores in 0 .. 1 and its SROCC a root of the mean square would be near .14"
)


def personality(
    bench: Bench,
    aesthetics: Path,
    traits: Path,
    *,
    score: str,
    names: Sequence[str],
    systems: Sequence[str] = SYSTEMS,
    score_scale: str = SCORE_SCALE,
    trait_scale: str = TRAIT_SCALE,
    group: str | None = None,
    n_folds: int = 5,
) -> Outcome:
    """From photos, scores and traits to the paper's table, and the weights of the traits.

    Args:
        aesthetics: the table with the column `score`.
        traits: the table with the columns `names`, in the paper five: O, C, E, A, N.
        systems: the columns of the table. `personality` trains its network from pixels; what takes both tables in turn
            learns the traits, and comes first; all others learn the score alone.

    Raises:
        featstore.FeatstoreError: features cannot be had.
        HeadsError: the labels do not make sense, or training fails.
    """
    # 1. The labels: both tables together, and the scores alone.
    scales = [f"{score}={score_scale}", *(f"{name}={trait_scale}" for name in names)]
    both = read_labels([aesthetics, traits], tasks=[score, *names], scales=scales, group=group, kind="regression")
    alone = read_labels(aesthetics, tasks=[score], scales=score_scale, group=group, kind="regression")

    check_networks(bench, systems)
    found = {name: find_system(name) for name in sorted(systems, key=lambda name: not find_system(name).alternate)}
    for name, system in found.items():
        if system.parts or "regression" not in system.kinds or system.reads not in (("concat",), ("any",), ("pixels",)):
            raise HeadsError(
                f"--systems {name}: it is no head that learns scores from one feature of a photo, or from its pixels; "
                f"name others, as {', '.join(PUBLISHED)}"
            )
    frozen = [name for name, system in found.items() if not system.from_pixels]

    # 2. The features of the whole photo, resized to 256 x 256; or its pixels.
    tensors = [TensorSpec("personality", "concat", bench.backbones or BACKBONES)] if frozen else []
    if len(frozen) < len(found):
        tensors.append(TensorSpec("pixels", "pixels", PIXELS))
    extract(bench, tensors, whole=WHOLE)

    # 3. The heads; all are tested on the folds of the first, so that they can be compared photo by photo.
    runs: list[Run] = []
    for name, system in found.items():
        folds = Validation(split=runs[0].folder) if runs else Validation(n_folds=n_folds, same_folds=True)
        runs += train_network(
            bench,
            name,
            both if system.alternate else alone,
            bench.out / name,
            tensors=["pixels" if system.from_pixels else "personality"],
            validation=folds,
            group=group,
        )

    # 4. The table: a row for each metric of the score.
    by_head = [
        [*figures_of(run, score, score, METRICS, PUBLISHED.get(run.config.system, {})), _mean_squared(run, score)]
        for run in runs
    ]
    different = differences(bench, runs, backbones=BACKBONES if frozen else ())
    if frozen:
        different.append(
            f"{', '.join(frozen)}: frozen; the paper trains DenseNet-121 with the branches, on random crops"
        )
    different.append(CALLED_RMSE)
    different.append(f"published figures: {', '.join(f'{metric} on {data}' for metric, data in DATA.items())}")
    header = ("metric", *(name for system in found for name in (system, "paper")))
    return Outcome(
        tables=[Table(score, header, [_row(of_metric) for of_metric in zip(*by_head, strict=True)])],
        figures=[figure for figures in by_head for figure in figures],
        differences=different,
        runs=[run.folder for run in runs],
        learned=_weights([run for run in runs if found[run.config.system].alternate], names),
    )


def _mean_squared(run: Run, score: str) -> Figure:
    """The mean squared error of the score in 0 .. 1, of each repeat: their mean and standard deviation."""
    low, high = run.config.scales[run.config.target.tasks.index(score)]
    table = run.predictions.dropna(subset=[score])
    errors = ((table[f"{score}_predicted"] - table[score]) / (high - low)) ** 2
    by_repeat = errors.groupby(table["repeat"]).mean()
    spread = float(by_repeat.std(ddof=1)) if len(by_repeat) > 1 else None
    published = PUBLISHED.get(run.config.system, {}).get(MSE)
    return Figure(run.config.system, score, score, MSE, float(by_repeat.mean()), spread, None, None, published)


def _row(figures: Sequence[Figure]) -> tuple[str, ...]:
    return (figures[0].metric, *(cell for figure in figures for cell in (figure.ours, figure.paper)))


def _weights(runs: Sequence[Run], names: Sequence[str]) -> dict[str, str]:
    """What each trait adds to the score: the mean over the models and their standard deviation, of each run.

    From pixels the weights may have hardly moved: those of least squared error stand beside them.
    """
    said: dict[str, list[str]] = {name: [] for name in names}
    for run in runs:
        table = run.learned
        assert table is not None  # heads that learn traits have weights of them
        by_value = table.groupby(["index", "name"])["value"]
        mean, spread = by_value.mean().unstack(), by_value.std(ddof=1).unstack()
        of = f"{run.config.system} " if len(runs) > 1 else ""
        for number, name in enumerate(names):
            weight = f"{of}{mean['trait_weights'].iloc[number]:+.4f} ± {spread['trait_weights'].iloc[number]:.4f}"
            if "least_squares" in mean:
                weight += f" (by least squares {mean['least_squares'].iloc[number]:+.4f})"
            said[name].append(weight)
    return {name: ", ".join(each) for name, each in said.items() if each}
