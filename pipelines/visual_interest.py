"""Ghosal and Kolekar, "Visual Interest Prediction": twelve ratings of a photo by attention over blocks and networks.

    photos -> 4 x 4 blocks through four frozen networks -> amtl and its variants -> r-squared, Pearson, RMSE per rating

The labels are ratings from 1 to 7, one row per photo, or one per photo and rater (`aggregate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from featstore import PAPER_SETS, TensorSpec
from heads import Labels, Plan, Run, Validation, read_labels
from pipelines.bench import Bench, Figure, Outcome, Table, check_options, differences, extract, figures_of, train_once

SYSTEMS = ("amtl", "amtl-single", "mtl", "amtl-separate", "amtl-swapped")
METRICS = ("pearson2", "pearson", "rmse")
"""The first is what the paper calls r-squared."""
WIDTH = 2048
"""Of the stack: the widest of the paper's four networks; narrower ones are filled up with zeros."""
N_PHOTOS = 1005
SCALE = "1:7"
NAMES = (
    "complexity", "quality", "appeal", "naturalness", "pleasantness", "arousal", "familiarity", "coping potential",
    "comprehensibility", "coherence", "excitingness", "interest",
)  # fmt: skip
ALIASES = {"general interest": "interest"}

# Published, in the order of NAMES; Pearson alone of the variants.
MEAN = {
    "pearson2": (0.31, 0.51, 0.43, 0.52, 0.55, 0.40, 0.27, 0.31, 0.26, 0.26, 0.33, 0.41),
    "pearson": (0.56, 0.71, 0.67, 0.72, 0.74, 0.64, 0.52, 0.56, 0.50, 0.51, 0.57, 0.63),
    "rmse": (0.09, 0.08, 0.11, 0.12, 0.10, 0.08, 0.12, 0.10, 0.10, 0.09, 0.11, 0.11),
}
MEDIAN = {
    "pearson2": (0.19, 0.37, 0.44, 0.50, 0.37, 0.43, 0.19, 0.21, 0.23, 0.27, 0.37, 0.38),
    "pearson": (0.44, 0.60, 0.66, 0.70, 0.61, 0.65, 0.43, 0.45, 0.49, 0.53, 0.60, 0.61),
    "rmse": (0.10, 0.10, 0.12, 0.16, 0.12, 0.10, 0.16, 0.13, 0.12, 0.10, 0.10, 0.14),
}
SINGLE = {"pearson": (0.51, 0.68, 0.62, 0.69, 0.69, 0.57, 0.47, 0.50, 0.46, 0.47, 0.52, 0.60)}
NO_ATTENTION = {"pearson": (0.40, 0.56, 0.50, 0.59, 0.61, 0.52, 0.41, 0.42, 0.39, 0.32, 0.47, 0.50)}
PUBLISHED = {
    ("amtl", "mean"): MEAN,
    ("amtl", "median"): MEDIAN,
    ("amtl-single", "mean"): SINGLE,
    ("mtl", "mean"): NO_ATTENTION,
}


def visual_interest(
    bench: Bench,
    labels: Path,
    *,
    systems: Sequence[str] = SYSTEMS,
    tasks: Sequence[str] = (),
    scale: str = SCALE,
    group: str | None = None,
    aggregate: bool = False,
    n_folds: int = 5,
) -> Outcome:
    """From photos and ratings to the paper's table.

    Args:
        aggregate: the table has a row per photo and rater: every head learns their mean, `amtl` their median too.

    Raises:
        featstore.FeatstoreError: features cannot be had.
        HeadsError: the labels do not make sense, or training fails.
    """
    check_options(bench, systems)

    # 1. The labels: the mean over the raters, which may be what the table has already, and the median.
    ways: tuple[Literal["mean", "median"], ...] = ("mean", "median") if aggregate else ("mean",)
    tables: dict[str, Labels] = {
        way: read_labels(
            labels, tasks=tasks, scales=scale, group=group, aggregate=way if aggregate else None, kind="regression"
        )
        for way in ways
    }

    # 2. The features: a stack of the networks on 4 x 4 blocks, and whole photos, pooled by their maximum, for mtl.
    backbones = bench.backbones or PAPER_SETS["amtl"]
    grid = TensorSpec("amtl", "stack", tuple(backbones), WIDTH)
    whole = TensorSpec("mtl", "concat", tuple(f"{name.partition(':')[0]}:max" for name in backbones))
    extract(bench, [grid, whole] if "mtl" in systems else [grid])

    # 3. The heads, on the same folds; the paper's table with the median is of amtl alone.
    runs: dict[tuple[str, str], Run] = {}
    for system in systems:
        for way in tables if system == "amtl" else ("mean",):
            plan = Plan(
                system=system,
                store=bench.config.store,
                labels=tables[way],
                out=bench.out / f"{system}-{way}",
                tensors=["mtl" if system == "mtl" else "amtl"],
                changes=bench.changes,
                validation=Validation(n_folds=n_folds, same_folds=True),
                n_repeats=bench.n_repeats,
                seed=bench.seed,
                group=group,
                device=bench.device,
                photos=bench.config.photos,
            )
            runs[system, way] = train_once(bench, plan)

    # 4. The table: a row for each rating, our figures beside the published ones.
    figures = {of: _figures(run, *of) for of, run in runs.items()}
    different = differences(bench, list(runs.values()), backbones=PAPER_SETS["amtl"], n_images=N_PHOTOS)
    if n_folds != 5:
        different.append(f"folds: {n_folds}; the paper has 5")
    return Outcome(
        tables=[_table(some, f"{system} on {way} labels") for (system, way), some in figures.items()],
        figures=[figure for some in figures.values() for figure in some],
        differences=different,
        runs=[run.folder for run in runs.values()],
    )


def _figures(run: Run, system: str, way: str) -> list[Figure]:
    published = PUBLISHED.get((system, way), {})
    found = []
    for task in run.config.target.tasks:
        name = task.lower().replace("_", " ").replace("-", " ").strip()
        name = ALIASES.get(name, name)
        of_task = {metric: column[NAMES.index(name)] for metric, column in published.items()} if name in NAMES else {}
        found += figures_of(run, way, task, METRICS, of_task)
    return found


def _table(figures: Sequence[Figure], title: str) -> Table:
    """A row for each rating; a column for each metric, and one for the paper's where it has any."""
    published = {figure.metric for figure in figures if figure.published is not None}
    rows: dict[str, list[str]] = {}
    for figure in figures:
        rows.setdefault(figure.task, [figure.task]).extend(
            [figure.ours, figure.paper] if figure.metric in published else [figure.ours]
        )
    columns = [name for metric in METRICS for name in (metric, *(["paper"] if metric in published else []))]
    return Table(title, ("rating", *columns), [tuple(row) for row in rows.values()])
