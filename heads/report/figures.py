"""The charts of a page: which function of heads/web/charts.js draws them, from which data, and their words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from featstore.support import harmless

if TYPE_CHECKING:
    import pandas as pd

STEEP = 20.0
"""Losses whose largest is this many times the smallest are drawn on a logarithmic axis."""
MOST_POINTS = 20_000
"""Of the learning curves of a chart; of more, every second (third, ...) model is drawn."""
MOST_THRESHOLDS = 200
"""Points of a curve of precision by recall: as many as can be told apart."""
MOST_DOTS, MOST_PHOTOS, LEAST_PHOTOS = 40_000, 2000, 200
"""Of all charts of a page together, and of each: more would be dots over dots, megabytes, and seconds in a browser."""
DIGITS = 4


@dataclass(frozen=True)
class Chart:
    """A chart of one task or one loss; no data if there is nothing to draw."""

    kind: str
    """The function of heads/web/charts.js."""
    title: str
    words: str
    data: Mapping[str, Any] | None
    """`label` in it says what is drawn, for whoever cannot see it."""


def embedded(data: object) -> Markup:
    """Data as JSON that a page can hold in an element `script`: no text in it can end that element."""
    import json

    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # as JSON itself may


def _plain(data: object) -> object:
    """Without NaN, without what steers a terminal or turns the direction of text, and with few digits."""
    if isinstance(data, str):
        return harmless(data)
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, np.ndarray):
        return _plain(data.tolist())
    if isinstance(data, Sequence):
        return [_plain(each) for each in data]
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}") if math.isfinite(data) else None
    return data


def photos_to_draw(n_photos: int, n_charts: int) -> NDArray[np.int64]:
    """The photos that stand as dots in each of some charts: all, or of very many a sample."""
    n = min(n_photos, max(LEAST_PHOTOS, min(MOST_PHOTOS, MOST_DOTS // max(n_charts, 1))))
    return np.sort(np.random.default_rng(0).choice(n_photos, n, replace=False))


def scatter(given: NDArray[np.float64], predicted: NDArray[np.float64], *, label: str) -> dict[str, Any] | None:
    """Predicted by given (N,), in label units, NaN where one is unknown; None if nothing is known of any photo."""
    if not (np.isfinite(given) & np.isfinite(predicted)).any():
        return None
    return {"given": given, "predicted": predicted, "label": label}


def precision_recall(
    given: NDArray[np.float64], predicted: NDArray[np.float64], *, label: str
) -> dict[str, Any] | None:
    """Precision by recall of the yes among given (n,), 0 or 1, as the threshold falls; None if there is no yes."""
    from sklearn.metrics import precision_recall_curve

    if not given.any():
        return None
    precision, recall, threshold = precision_recall_curve(given, predicted)
    threshold = np.append(threshold, np.nan)  # of a recall of 0 there is none
    some = np.unique(np.linspace(0, len(recall) - 1, MOST_THRESHOLDS).round().astype(int))
    return {
        "recall": recall[some],
        "precision": precision[some],
        "threshold": threshold[some],
        "base": float(given.mean()),
        "label": label,
    }


def curves(history: "pd.DataFrame") -> list[Chart]:
    """Training and validation loss by epoch, each on axes of its own: a line per model, its kept epochs marked.

    Stages of a training have charts of their own, as they lessen different losses.
    """
    stages = dict(tuple(history.groupby("stage")))
    several = len(stages) > 1
    return [
        chart
        for number, stage in enumerate(stages.values(), start=1)
        for chart in _stage_curves(stage, f"stage {number}: " if several else "")
    ]


def _stage_curves(history: "pd.DataFrame", stage: str) -> Iterable[Chart]:
    stopped = bool(np.isfinite(history["val_loss"]).any())
    for title, column in {"training": "train_loss", "validation": "val_loss"}.items():
        values = history[column].to_numpy(np.float64)
        if not len(finite := values[np.isfinite(values)]):
            continue
        models = list(history.sort_values("epoch").groupby(["repeat", "fold", "task"], sort=True))
        step = math.ceil(len(history) / MOST_POINTS)
        drawn = [_model(tuple(map(str, key)), rows, column) for key, rows in models[::step]]
        baseline = math.nan  # that of the validation photos, or of the training photos where there are none
        if "baseline_loss" in history and (column == "val_loss") == stopped:
            baseline = float(history["baseline_loss"].median())
        said = f"{stage}{title} loss"
        yield Chart(
            "curves",
            said,
            f"{len(drawn)} of {len(models)} models" if step > 1 else "",
            {
                "models": drawn,
                "steep": bool(finite.min() > 0 and finite.max() / finite.min() > STEEP),
                "baseline": baseline,
                "label": f"{said} by epoch, one line for each of {len(drawn)} models",
            },
        )


def _model(key: tuple[str, ...], rows: "pd.DataFrame", column: str) -> dict[str, Any]:
    """The loss of one model, from its first epoch on."""
    repeat, fold, task = key
    losses = rows.drop_duplicates("epoch").set_index("epoch")[column]
    first, last = int(losses.index.min()), int(losses.index.max())
    if last - first < MOST_POINTS:  # of a history that nobody has forged
        losses = losses.reindex(range(first, last + 1))
    return {
        "name": f"repeat {int(repeat) + 1}, fold {fold}" + (f", {task}" if task else ""),
        "from": first,
        "loss": losses.to_numpy(np.float64),
        "kept": rows.loc[rows["best"] == 1, "epoch"].tolist(),
    }
