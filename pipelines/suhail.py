"""Suhail et al., Aesthetic rating and emotion analysis: whether a photo is of high or low quality, or its emotion.

Published: accuracy of ram and vgg16-finetune on AADB, of resnet50-finetune on Photonet, of emotion-vgg on 6 emotions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featstore import TensorSpec
from heads import Validation, read_labels
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

SYSTEMS = ("ram", "vgg16-finetune", "resnet50-finetune", "emotion-vgg")
TEST = 0.2
METRIC = "accuracy"
PUBLISHED = {"ram": 0.652, "vgg16-finetune": 0.568, "resnet50-finetune": 0.543, "emotion-vgg": 0.55}
DATA = {"ram": "AADB", "vgg16-finetune": "AADB", "resnet50-finetune": "Photonet", "emotion-vgg": "photos of 6 emotions"}


def suhail(
    bench: Bench, labels: Path, *, column: str, systems: Sequence[str] = SYSTEMS, group: str | None = None
) -> Outcome:
    """From photos and one label to the paper's figures, beside what saying the most frequent class would have right.

    Args:
        column: of `labels`: yes or no, as high or low, or a class.
        systems: the rows of the table.

    Raises:
        featstore.FeatstoreError: the photos cannot be read.
        HeadsError: the labels do not make sense, or training fails.
    """
    # 1. The labels, and whether the networks are there.
    read = read_labels(labels, tasks=[column], kind="multiclass", group=group)
    check_networks(bench, systems)

    # 2. The pixels.
    extract(bench, [TensorSpec("pixels", "pixels", ("pixels@square",))])

    # 3. The networks, all on the same photos.
    test = Validation(hold_out=TEST)
    runs = [
        run
        for name in systems
        for run in train_network(bench, name, read, bench.out / name, tensors=["pixels"], validation=test, group=group)
    ]

    # 4. The table: a row for each network.
    figures: list[Figure] = []
    rows = []
    for run in runs:
        name = run.config.system
        (figure,) = figures_of(run, column, column, (METRIC,), {METRIC: PUBLISHED.get(name)})
        figures.append(figure)
        rows.append((name, figure.ours, figure.paper, DATA.get(name, "")))
    nothing = runs[0].metrics[column][METRIC].get("baseline")
    different = differences(bench, runs)
    different.append(
        "data: the paper's figures are on the sets named beside them; photos of another set are another task"
    )
    if nothing is not None:
        different.append(f"saying the most frequent class of every photo has {nothing:.3f} right here")
    return Outcome(
        tables=[Table(METRIC, ("network", column, "paper", "on"), rows)],
        figures=figures,
        differences=different,
        runs=[run.folder for run in runs],
    )
