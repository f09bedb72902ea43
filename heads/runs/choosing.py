"""Choosing among the runs of a sweep: by the loss on inner rows, and what that choice is worth on photos it never saw.

The test figure of the run that looks best is too good, because its luck was chosen with it. So the choice is repeated
within every fold, by that fold's inner rows alone, and the fold's test photos are predicted by what was chosen there
(nested cross-validation). The figures of these predictions are those of training *and* choosing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heads.inference.baseline import predict_baseline
from heads.inference.intervals import MetricSummary, summarise
from heads.labels.scales import to_unit
from heads.runs.predictions import from_table
from heads.runs.run import Run


@dataclass(frozen=True)
class Choice:
    """What the inner rows choose among runs, and how good choosing so is."""

    inner_loss: list[float | None]
    """Of each run, the mean over its models; None without inner rows."""
    best: int
    """The run with the least."""
    times: dict[str, int]
    """By the name of a run, in how many folds of all repeats it was chosen."""
    metrics: MetricSummary
    """Of the predictions of what was chosen in each fold."""


def choose(runs: Sequence[Run]) -> Choice | None:
    """None if no inner loss tells the runs apart.

    Args:
        runs: of the same split, labels and seed.
    """
    losses = [_inner_losses(run) for run in runs]
    means = [float(np.mean(list(each.values()))) if each else None for each in losses]
    known = {mean: number for number, mean in reversed(list(enumerate(means))) if mean is not None}
    if not known:
        return None
    outcomes = [from_table(run.predictions, run.config.target) for run in runs]
    predicted = np.full_like(outcomes[0].predicted, np.nan)
    first, target, times = outcomes[0], runs[0].config.target, Counter[str]()
    for repeat, folds in enumerate(first.folds):
        for fold in np.unique(folds[folds != ""]):
            of_fold = {
                each.get((repeat, str(fold)), np.inf): number for number, each in reversed(list(enumerate(losses)))
            }
            chosen = of_fold[min(of_fold)]
            here = folds == fold
            predicted[repeat, here] = outcomes[chosen].predicted[repeat, here]
            times[runs[chosen].folder.name] += 1
    labels = first.labels
    if target.kind == "regression":
        labels, predicted = to_unit(labels, runs[0].config.scales), to_unit(predicted, runs[0].config.scales)
    groups = dict(zip(runs[0].folds["path"], runs[0].folds["group"], strict=True))
    partitions = first.partitions()
    metrics = summarise(
        target,
        labels,
        predicted,
        groups=[groups[path] for path in first.paths],
        folds=partitions,
        baseline=predict_baseline(target, labels, partitions),
    )
    return Choice(means, known[min(known)], dict(times), metrics)


def _inner_losses(run: Run) -> dict[tuple[int, str], float]:
    """By repeat and fold, the loss on the inner rows of the weights that were kept, the mean over models of a task."""
    if not run.has_history:
        return {}
    history = run.history[run.history["fold"] != "all"]  # whose inner rows may be those that others are tested on
    kept = history[(history["best"] == 1) & (history["stage"] == history["stage"].max())].dropna(subset=["val_loss"])
    means = kept.groupby(["repeat", "fold"])["val_loss"].mean()
    return {(int(repeat), str(fold)): float(loss) for (repeat, fold), loss in means.items()}
