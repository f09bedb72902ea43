"""Tables that several commands print."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featstore.terminal import Terminal

if TYPE_CHECKING:
    from heads.labels.target import Target


def metrics_table(target: "Target", metrics: Mapping[str, Any], terminal: Terminal, *, title: str) -> None:
    """A row per task: each metric, its spread over the repeats, and the interval of the first."""
    from heads.inference.metrics import BY_KIND, SHOWN, tasks_of

    shown = SHOWN[target.kind]
    rows = []
    for task in tasks_of(target):
        first, *others = (metrics[task][name] for name in shown)
        rows.append((task, _cell(first), _interval(first), *map(_cell, others)))
    terminal.say(title)  # a table would break it at its own width
    terminal.table(("task", shown[0], "95 %", *shown[1:]), rows)
    notes = [f"{name}: {note}" for name in shown if (note := BY_KIND[target.kind][name].note)]
    if notes:
        terminal.say("; ".join(notes))
    repeated = any(by_metric[shown[0]]["spread"] is not None for by_metric in metrics.values())
    terminal.say(
        "95 %: bootstrap interval over images, or over whole groups" + ("; ±: spread over repeats" if repeated else "")
    )


def _cell(value: Mapping[str, float | None]) -> str:
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:.3f}" + (f" ± {value['spread']:.3f}" if value["spread"] is not None else "")


def _interval(value: Mapping[str, float | None]) -> str:
    return "–" if value["low"] is None else f"{value['low']:.3f} to {value['high']:.3f}"
