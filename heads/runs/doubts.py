"""Whether a run learnt anything at all: losses held against saying the mean, and predictions that hardly vary."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, counted, few
from heads.inference.baseline import one_hot
from heads.labels.target import Target
from heads.runs.predictions import Outcomes, from_table

if TYPE_CHECKING:
    import pandas as pd

    from heads.runs.config import RunConfig

HARDLY = 0.05
"""Of the standard deviation of the labels: predictions that vary less say nearly the same of every photo."""


def doubt(config: "RunConfig", predictions: "pd.DataFrame", history: "pd.DataFrame | None") -> str:
    """What speaks against it, and what to try, in a line; empty of a run that learnt.

    Args:
        predictions, history: the tables of the run; None of a head that is solved.
    """
    said = []
    if history is not None and (failed := _never_below_the_baseline(history)):
        said.append(
            f"{failed.n} of {counted(failed.n_models, 'model')} learnt little or nothing: the loss on {failed.rows} "
            f"never fell below that of saying the mean of every photo ({failed.least:.3g}, and {failed.baseline:.3g})"
        )
    if tasks := _hardly_varied(config.target, from_table(predictions, config.target)):
        said.append(
            f"predictions of {few(tasks, LISTED)} hardly vary (standard deviation below {HARDLY:.0%} of that of the "
            "labels)"
        )
    if not said:
        return ""
    reasons = "; ".join(said)
    return f"{reasons[0].upper()}{reasons[1:]}. {_what_to_try(config)}."


class _Failed(NamedTuple):
    """Models whose loss never fell below that of saying the mean."""

    n: int
    n_models: int
    rows: str
    least: float
    """The least loss of each, their mean."""
    baseline: float


def _never_below_the_baseline(history: "pd.DataFrame") -> _Failed | None:
    """None if it is so of less than half of the models."""
    if "baseline_loss" not in history:  # of a run of before it was noted
        return None
    last = history[history["stage"] == history["stage"].max()].dropna(subset=["baseline_loss"])
    if last.empty:
        return None
    rows = "the training photos" if last["val_loss"].isna().all() else "the inner photos"
    losses = last.assign(loss=last["val_loss"].fillna(last["train_loss"]))
    by_model = losses.groupby(["repeat", "fold", "task"])
    least, baseline = by_model["loss"].min(), by_model["baseline_loss"].min()
    failed = least >= baseline
    if 2 * failed.sum() < len(failed):
        return None
    return _Failed(int(failed.sum()), len(failed), rows, float(least[failed].mean()), float(baseline[failed].mean()))


def _hardly_varied(target: Target, outcomes: Outcomes) -> list[str]:
    """The tasks of which nearly the same is said of all photos of a fold; that of classes if it is so of each."""
    labels, parts = one_hot(target, outcomes.labels), outcomes.partitions()
    spreads = [
        (_spread(said[parts[repeat] == fold]), _spread(labels[parts[repeat] == fold]))
        for repeat, said in enumerate(outcomes.predicted)
        for fold in np.unique(parts[repeat][parts[repeat] >= 0])
    ]
    predicted, given = np.array(spreads).mean(0)  # (n_outputs,) each
    hardly = predicted < HARDLY * given
    if target.kind == "multiclass":
        return list(target.tasks) if hardly.all() else []
    return [task for task, is_so in zip(target.tasks, hardly, strict=True) if is_so]


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_outputs,) standard deviations of what is known of (n, n_outputs); 0 of nothing."""
    known = np.isfinite(values)
    n = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0).sum(0) / n
    return np.asarray(np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0) / n))


def _what_to_try(config: "RunConfig") -> str:
    lr = config.options.get("lr")
    if not lr or not isinstance(lr, int | float):
        return "Try other features (--tensor)"
    inner = "" if config.options.get("inner") else " --set inner=0.15"
    rates = ",".join(f"{each * lr:g}" for each in (0.01, 0.1, 10, 100))
    return f"Let the inner photos choose another rate: --sweep lr={rates}{inner}"
