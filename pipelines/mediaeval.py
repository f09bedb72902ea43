"""Pournaras et al., MediaEval 2021: the sentiment of a photo, in 3, 7 and 10 classes, from deep features side by side.

    photos -> five whole-image vectors, joined -> moe for one of 3 classes, mlp for any of 7 and of 10 -> weighted F1

The mlp learns from augmented copies of the photos as well, made before the networks see them; no figure is of a copy. A
fifth of the photos is held out to measure on; then the heads are trained once more on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featstore import PAPER_SETS, Augmentation, TensorSpec, View
from heads import HeadsError, Labels, Plan, Run, Validation, read_labels
from pipelines.bench import Bench, Outcome, Table, check_options, differences, extract, figures_of, train_once

METRIC = "f1"
HELD_OUT = 0.2
ALL_LABELS = "all"
"""The task of a run under which the metrics of several labels together stand."""
COPIES = "mediaeval_copies"


@dataclass(frozen=True)
class Subtask:
    """One of the three questions of the challenge, and what answered it."""

    n_classes: int
    system: str
    kind: Literal["multiclass", "multilabel"]
    changes: tuple[str, ...]
    """Of the head, whose own defaults are those of 3 and of 7 classes."""
    development: float
    test: float
    """Published, the latter as corrected."""


SUBTASKS = (
    Subtask(3, "moe", "multiclass", (), 0.757, 0.740),
    Subtask(7, "mlp", "multilabel", (), 0.612, 0.604),
    Subtask(10, "mlp", "multilabel", ("lr=5e-6", "epochs=200"), 0.510, 0.510),
)


def mediaeval(
    bench: Bench,
    labels: Path,
    *,
    three: str | None = None,
    seven: Sequence[str] = (),
    ten: Sequence[str] = (),
    group: str | None = None,
    n_copies: int = 4,
) -> Outcome:
    """From photos and their sentiments to the paper's table.

    Args:
        three: the column that says which class a photo is of; it stratifies the hold-out of all three.
        seven: the columns, 0 or 1, that say what else it is; or one column, as `joy|fear`.
        ten: likewise.
        n_copies: augmented copies of each photo that the mlp learns from; none if 0.

    Raises:
        featstore.FeatstoreError: features cannot be had.
        HeadsError: no labels are named, they do not make sense, or training fails.
    """
    # 1. The labels of each question that there are labels for.
    columns = {3: [three] if three else [], 7: list(seven), 10: list(ten)}
    asked = [subtask for subtask in SUBTASKS if columns[subtask.n_classes]]
    if not asked:
        raise HeadsError("no labels named; say --three COLUMN, --seven COLUMN,... or --ten COLUMN,...")
    check_options(bench, [subtask.system for subtask in asked])
    tables: dict[Subtask, Labels] = {
        subtask: read_labels(labels, tasks=columns[subtask.n_classes], kind=subtask.kind, group=group, stratify=three)
        for subtask in asked
    }

    # 2. The features: one vector of each network on the whole photo, joined; the same of each copy.
    backbones = bench.backbones or PAPER_SETS["mediaeval"]
    tensors = [TensorSpec("mediaeval", "concat", tuple(backbones))]
    copies = n_copies and any(subtask.system == "mlp" for subtask in asked)
    if copies:
        tensors.append(TensorSpec(COPIES, "concat", tuple(f"{name}@augmented" for name in backbones)))
    extract(bench, tensors, **({"augmented": View(augmentation=Augmentation(copies=n_copies))} if copies else {}))

    # 3. The heads: held out, then on all photos.
    runs: dict[Subtask, Run] = {}
    for subtask, table in tables.items():
        plan = Plan(
            system=subtask.system,
            store=bench.config.store,
            labels=table,
            out=bench.out / f"{subtask.system}-{subtask.n_classes}",
            tensors=["mediaeval"],
            augmented=[COPIES] if copies and subtask.system == "mlp" else [],
            changes=(*subtask.changes, *bench.changes),
            validation=Validation(hold_out=HELD_OUT, stratify=three),
            n_repeats=bench.n_repeats,
            seed=bench.seed,
            group=group,
            device=bench.device,
            photos=bench.config.photos,
        )
        runs[subtask] = train_once(bench, plan)

    # 4. The table: a row for each question, weighted F1 beside the published one.
    rows, figures = [], []
    different = differences(bench, list(runs.values()), backbones=PAPER_SETS["mediaeval"])
    for subtask, run in runs.items():
        target = run.config.target
        n_classes = len(target.classes or target.tasks)
        same = n_classes == subtask.n_classes
        if not same:
            different.append(f"{subtask.system}: {n_classes} classes; the paper has {subtask.n_classes}")
        task = target.tasks[0] if target.kind == "multiclass" else ALL_LABELS
        (figure,) = figures_of(
            run, f"{n_classes} classes", task, [METRIC], {METRIC: subtask.development} if same else {}
        )
        figures.append(figure)
        rows.append((figure.labels, figure.system, figure.ours, figure.paper, f"{subtask.test:.3f}" if same else "–"))
    if any(subtask.system == "mlp" for subtask in runs):
        different.append(
            f"mlp: in each epoch a photo or one of its {n_copies} copies; how many the paper made, and how far from "
            "the photos, it does not say"
            if copies
            else "mlp: learns from the photos as they are; the paper also from cropped, blurred and turned ones"
        )
    header = ("labels", "head", "weighted F1", "paper, development", "paper, test")
    return Outcome([Table("mediaeval", header, rows)], figures, different, [run.folder for run in runs.values()])
