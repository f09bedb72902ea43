"""Metrics per task, by scikit-learn and scipy, on labels scaled to -0.5 .. +0.5.

`pearson2` is the squared correlation, which Ghosal and Kolekar report as r-squared; `r2` is the coefficient of
determination, which also counts errors of level and spread.
"""

import numpy as np
from numpy.typing import NDArray

METRICS = ("pearson", "pearson2", "r2", "rmse")


def evaluate(labels: NDArray[np.float32], predicted: NDArray[np.float32]) -> dict[str, float | None]:
    """The metrics of one task over its known labels, (N,) both; None where one is not defined."""
    from scipy.stats import pearsonr
    from sklearn.metrics import r2_score, root_mean_squared_error

    known = np.isfinite(labels)
    truth, guess = labels[known].astype(np.float64), predicted[known].astype(np.float64)
    if len(truth) < 2:
        return dict.fromkeys(METRICS)
    varies = np.ptp(truth) > 0 and np.ptp(guess) > 1e-9
    pearson = float(pearsonr(truth, guess).statistic) if varies else None
    return {
        "pearson": pearson,
        "pearson2": None if pearson is None else pearson**2,
        "r2": float(r2_score(truth, guess)) if np.ptp(truth) > 0 else None,
        "rmse": float(root_mean_squared_error(truth, guess)),
    }


def summarise(repeats: list[dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """By metric, the mean over repeats and their spread (standard deviation; None with a single repeat)."""
    summary = {}
    for name in METRICS:
        values = [each[name] for each in repeats]
        known = [value for value in values if value is not None]
        complete = len(known) == len(values) and known
        summary[name] = {
            "mean": float(np.mean(known)) if complete else None,
            "spread": float(np.std(known, ddof=1)) if complete and len(known) > 1 else None,
        }
    return summary
