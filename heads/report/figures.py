"""The charts of the report (scatter, precision and recall, learning curves), as data URIs.

No chart has a name in it: the page has the words, so no font has to know the letters of a task's name.
"""

import base64
import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

DPI = 160
LINE, QUIET, FRAME, MARK = "#2f6690", "#64707d", "#c9d0d8", "#d1495b"
STEEP = 20.0
"""Losses whose largest is this many times the smallest are drawn on a logarithmic axis."""


def data_uri(data: bytes, *, kind: str) -> str:
    """The bytes of an image of `kind` (png, jpeg), as a page can hold them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def scatter(given: NDArray[np.float64], predicted: NDArray[np.float64]) -> str:
    """Predicted against given (N,), in label units, with the line of identity."""
    ends = _padded(float(min(given.min(), predicted.min())), float(max(given.max(), predicted.max())))
    figure, axes = _chart(2.5, 2.5)
    axes.plot(ends, ends, color=FRAME, linewidth=1)
    fade = min(0.6, 30 / math.sqrt(len(given)))
    axes.scatter(given, predicted, s=11, color=LINE, alpha=fade, linewidths=0)
    axes.set(xlim=ends, ylim=ends, xlabel="given", ylabel="predicted")
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return _png(figure)


def precision_recall(given: NDArray[np.float64], predicted: NDArray[np.float64]) -> str:
    """Precision by recall of the yes among given (N,), 0 or 1, as the threshold falls; a line where guessing is."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(given, predicted)
    figure, axes = _chart(2.5, 2.5)
    axes.axhline(float(given.mean()), color=FRAME, linewidth=1)
    axes.step(recall, precision, where="post", color=LINE, linewidth=1.2)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_box_aspect(1)
    return _png(figure)


def curves(history: "pd.DataFrame") -> dict[str, str]:
    """Training and validation loss by epoch, on the same axes: a line per model, its kept epoch marked.

    Stages of a training have charts of their own, as they lessen different losses.
    """
    stages = dict(tuple(history.groupby("stage")))
    return {
        title if len(stages) == 1 else f"stage {number}: {title}": chart
        for number, stage in enumerate(stages.values(), start=1)
        for title, chart in _stage_curves(stage).items()
    }


def _stage_curves(history: "pd.DataFrame") -> dict[str, str]:
    losses = {"training": "train_loss", "validation": "val_loss"}
    values = history[list(losses.values())].to_numpy(np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    steep = finite.min() > 0 and finite.max() / finite.min() > STEEP
    ends = (finite.min() / 1.1, finite.max() * 1.1) if steep else _padded(0.0, float(finite.max()))
    drawn = {}
    for title, column in losses.items():
        if not np.isfinite(history[column]).any():
            continue
        figure, axes = _chart(4.6, 2.8)
        for epochs, loss, kept in _models(history, column):
            axes.plot(epochs, loss, color=LINE, linewidth=0.9, alpha=0.45)
            axes.plot(epochs[kept], loss[kept], ".", color=MARK, markersize=5, zorder=3)
        axes.set(xlabel="epoch", ylabel="loss", yscale="log" if steep else "linear", ylim=ends)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if steep:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        drawn[title] = _png(figure)
    return drawn


def _models(
    history: "pd.DataFrame", column: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]]:
    for _, model in history.sort_values("epoch").groupby(["repeat", "fold", "task"]):
        yield model["epoch"].to_numpy(), model[column].to_numpy(np.float64), model["best"].to_numpy() == 1


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty quiet chart, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(which="both", colors=QUIET, labelsize=7.5, color=FRAME, length=3)
    axes.xaxis.label.set(color=QUIET, fontsize=8)
    axes.yaxis.label.set(color=QUIET, fontsize=8)
    return figure, axes


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return data_uri(stream.getvalue(), kind="png")
