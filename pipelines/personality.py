"""Li et al., "Personality-driven multi-task aesthetics": a score, corrected by the personality of who likes the photo.

    photos -> DenseNet-121, frozen -> a score and five traits, learnt in turn from two tables -> the traits' weights

The photos of both tables lie in one folder; no photo needs both kinds of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featstore import TensorSpec, View
from heads import Plan, Run, Validation, read_labels
from pipelines.bench import Bench, Figure, Outcome, Table, check_options, differences, extract, figures_of, train_once

BACKBONES = ("densenet121",)
WHOLE = View((256, 256))
METRICS = ("srocc", "plcc", "rmse", "accuracy")
MSE = "mse"
SCORE_SCALE, TRAIT_SCALE = "0:1", "-1:1"
SYSTEMS = ("personality-frozen", "aesthetics-only")

# Published: the first three on AADB, accuracy on AVA.
DATA = {"srocc": "AADB", "plcc": "AADB", MSE: "AADB", "accuracy": "AVA"}
PUBLISHED = {
    "personality-frozen": {"srocc": 0.680, "plcc": 0.702, MSE: 0.016, "accuracy": 0.815},
    "aesthetics-only": {"srocc": 0.637, "plcc": 0.668, MSE: 0.022, "accuracy": 0.761},
}
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
    score_scale: str = SCORE_SCALE,
    trait_scale: str = TRAIT_SCALE,
    group: str | None = None,
    n_folds: int = 5,
) -> Outcome:
    """From photos, scores and traits to the paper's table, and the weights of the traits.

    Args:
        aesthetics: the table with the column `score`.
        traits: the table with the columns `names`, in the paper five: O, C, E, A, N.

    Raises:
        featstore.FeatstoreError: features cannot be had.
        HeadsError: the labels do not make sense, or training fails.
    """
    # 1. The labels: both tables together, and the scores alone.
    scales = [f"{score}={score_scale}", *(f"{name}={trait_scale}" for name in names)]
    both = read_labels([aesthetics, traits], tasks=[score, *names], scales=scales, group=group, kind="regression")
    alone = read_labels(aesthetics, tasks=[score], scales=score_scale, group=group, kind="regression")

    check_options(bench, SYSTEMS[:1])

    # 2. The features of the whole photo, resized to 256 x 256.
    backbones = bench.backbones or BACKBONES
    extract(bench, [TensorSpec("personality", "concat", tuple(backbones))], whole=WHOLE)

    # 3. Both heads; the second is tested on the folds of the first, so that they can be compared photo by photo.
    runs: list[Run] = []
    for system, labels in zip(SYSTEMS, (both, alone), strict=True):
        folds = Validation(split=runs[0].folder) if runs else Validation(n_folds=n_folds, same_folds=True)
        plan = Plan(
            system=system,
            store=bench.config.store,
            labels=labels,
            out=bench.out / system,
            tensors=["personality"],
            changes=tuple(c for c in bench.changes if system == SYSTEMS[0] or not c.startswith("last_")),
            validation=folds,
            n_repeats=bench.n_repeats,
            seed=bench.seed,
            group=group,
            device=bench.device,
            photos=bench.config.photos,
        )
        runs.append(train_once(bench, plan))

    # 4. The table: a row for each metric of the score, with the traits' help and without.
    by_head = [
        [*figures_of(run, score, score, METRICS, PUBLISHED[run.config.system]), _mean_squared(run, score)]
        for run in runs
    ]
    different = differences(bench, runs, backbones=BACKBONES)
    different.append("networks: frozen here; the paper trains DenseNet-121 with the branches, on random crops")
    different.append(CALLED_RMSE)
    different.append(f"published figures: {', '.join(f'{metric} on {data}' for metric, data in DATA.items())}")
    header = ("metric", *(name for system in SYSTEMS for name in (system, "paper")))
    return Outcome(
        tables=[Table(score, header, [_row(of_metric) for of_metric in zip(*by_head, strict=True)])],
        figures=[figure for figures in by_head for figure in figures],
        differences=different,
        runs=[run.folder for run in runs],
        learned=_weights(runs[0], names),
    )


def _mean_squared(run: Run, score: str) -> Figure:
    """The mean squared error of the score in 0 .. 1, of each repeat: their mean and standard deviation."""
    low, high = run.config.scales[run.config.target.tasks.index(score)]
    table = run.predictions.dropna(subset=[score])
    errors = ((table[f"{score}_predicted"] - table[score]) / (high - low)) ** 2
    by_repeat = errors.groupby(table["repeat"]).mean()
    spread = float(by_repeat.std(ddof=1)) if len(by_repeat) > 1 else None
    published = PUBLISHED[run.config.system][MSE]
    return Figure(run.config.system, score, score, MSE, float(by_repeat.mean()), spread, None, None, published)


def _row(figures: Sequence[Figure]) -> tuple[str, ...]:
    return (figures[0].metric, *(cell for figure in figures for cell in (figure.ours, figure.paper)))


def _weights(run: Run, names: Sequence[str]) -> dict[str, str]:
    """What each trait adds to the score: the mean over the models and their standard deviation."""
    table = run.learned
    if table is None:
        return {}
    by_trait = table[table["name"] == "trait_weights"].groupby("index")["value"]
    both = zip(names, by_trait.mean(), by_trait.std(ddof=1), strict=True)
    return {name: f"{mean:+.4f} ± {spread:.4f}" for name, mean, spread in both}
