"""Yu et al., AENet: whether a photo is good, and which emotion it brings, by networks that are trained from pixels.

    photos -> 256 x 256 pixels -> one network for each task; one for both; two or three that take of each other

Published: accuracy on the paper's own 22,086 photos (IAE), split 70/10/20.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featstore import TensorSpec
from heads import Labels, Run, Validation, find_system, join_parts, read_labels
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

SYSTEMS = ("resnet50-single", "share-split", "cross-stitch", "aenet-nofusion", "aenet")
TEST = 0.2
N_IMAGES = 22_086
METRIC = "accuracy"

# Published: aesthetics, emotion.
PUBLISHED = {
    "resnet50-single": (0.7485, 0.6109),
    "wide-resnet-single": (0.7516, 0.6265),
    "share-split": (0.7779, 0.6023),
    "cross-stitch": (0.7770, 0.6317),
    "aenet-nofusion": (0.7668, 0.6146),
    "aenet": (0.8105, 0.6623),
}


def aenet(
    bench: Bench,
    labels: Path,
    *,
    aesthetics: str,
    emotion: str,
    systems: Sequence[str] = SYSTEMS,
    group: str | None = None,
) -> Outcome:
    """From photos with two labels to the paper's table.

    Args:
        labels: the table with the column `aesthetics` (yes or no) and the column `emotion` (a class); a photo may have
            one of them only.
        systems: the rows of the table.

    Raises:
        featstore.FeatstoreError: the photos cannot be read.
        HeadsError: the labels do not make sense, or training fails.
    """
    # 1. The labels: each task alone, and both together.
    good = read_labels(labels, tasks=[aesthetics], kind="binary", group=group)
    felt = read_labels(labels, tasks=[emotion], kind="multiclass", group=group)
    both = join_parts([good, felt])
    check_networks(bench, systems)

    # 2. The pixels, of which the networks cut their crops.
    extract(bench, [TensorSpec("pixels", "pixels", ("pixels@square",))])

    # 3. The networks. Those of one task are trained for each; the others leave a run for each of the two.
    test = Validation(hold_out=TEST)
    runs: list[Run] = []
    for name in systems:
        alone = not find_system(name).parts
        asked: list[tuple[Labels, Path]] = [(both, bench.out / name)]
        if alone:
            asked = [(each, bench.out / f"{name}-{each.target.tasks[0]}") for each in (good, felt)]
        for wanted, out in asked:
            runs += train_network(bench, name, wanted, out, tensors=["pixels"], validation=test, group=group)

    # 4. The table: a row for each network, accuracy of both tasks beside the paper's.
    figures = [_figure(run, aesthetics) for run in runs]
    header = ("network", aesthetics, "paper", emotion, "paper")
    rows = []
    for name in systems:
        of_task = {figure.task: figure for figure in figures if figure.system == name}
        cells = [cell for task in (aesthetics, emotion) for cell in (of_task[task].ours, of_task[task].paper)]
        rows.append((name, *cells))
    different = differences(bench, runs, n_images=N_IMAGES)
    different.append("data: the paper's figures are on IAE; photos of another set are another task")
    return Outcome(
        tables=[Table(METRIC, header, rows)],
        figures=figures,
        differences=different,
        runs=[run.folder for run in runs],
    )


def _figure(run: Run, aesthetics: str) -> Figure:
    (task,) = run.config.target.tasks
    published = PUBLISHED.get(run.config.system, (None, None))[task != aesthetics]
    (figure,) = figures_of(run, task, task, (METRIC,), {METRIC: published})
    return figure
