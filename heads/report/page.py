"""From a run to the words, numbers and pictures of its page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from featstore.console import clock
from heads.errors import RunError
from heads.metrics import METRICS
from heads.report.attention import backbone_weights, gallery
from heads.report.figures import curves, scatter
from heads.runs import Run, RunConfig

if TYPE_CHECKING:
    import pandas as pd

NONE = "–"


def write_report(run: Run) -> Path:
    """Write RUN/report.html, one page that needs no other file, and return where it is.

    Raises:
        RunError: a file of the run cannot be read or does not fit the others, or the page cannot be written.
    """
    file = run.folder / "report.html"
    part = file.with_name("report.html.part")
    page = _render(run).encode("utf-8", errors="replace")
    try:
        part.write_bytes(page)
        part.replace(file)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}") from error
    return file


@dataclass(frozen=True)
class Cell:
    """A number and its spread, ready to print."""

    mean: str
    spread: str


@dataclass(frozen=True)
class Scatter:
    """The chart of one task; no chart if no image has both a label and a prediction."""

    task: str
    pearson: str
    n_images: int
    chart: str | None


def _render(run: Run) -> str:
    environment = Environment(
        loader=PackageLoader("heads", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.jinja").render(
        config=run.config,
        run_name=run.folder.absolute().name,
        labels_file=PurePath(str(run.config.labels["file"])).name,
        shape=_shape(run.config),
        segments=[_segment(segment) for segment in run.config.segments],
        n_groups=run.folds["group"].nunique(),
        elapsed=clock(run.config.elapsed_s),
        metrics=METRICS,
        rows={task: [_cell(run, task, metric) for metric in METRICS] for task in run.config.tasks},
        all_defined=all(
            _value(run, task, metric, "mean") is not None for task in run.config.tasks for metric in METRICS
        ),
        averages=[_average(run, metric) for metric in METRICS],
        curves=_curves(run),
        scatters=_scatters(run),
        gallery=gallery(run),
        backbones=None if run.attention is None else backbone_weights(run.attention),
    )


def _shape(config: RunConfig) -> str:
    names = {1: ("features",), 3: ("backbones", "blocks", "features")}.get(len(config.shape), ())
    sizes = [f"{size:,}" for size in config.shape]
    return " × ".join(f"{size} {name}" for size, name in zip(sizes, names, strict=True)) if names else " × ".join(sizes)


def _segment(segment: Any) -> dict[str, Any]:
    weights = segment.get("identity", {}).get("weights", {})
    return {"name": segment["name"], "hash": segment["hash"], "random": "random_seed" in weights}


def _value(run: Run, task: str, metric: str, part: str) -> float | None:
    value = run.metrics.get(task, {}).get(metric, {}).get(part)
    return value if value is not None and math.isfinite(value) else None


def _cell(run: Run, task: str, metric: str) -> Cell:
    mean, spread = (_value(run, task, metric, part) for part in ("mean", "spread"))
    return Cell(_number(mean), _number(spread))


def _average(run: Run, metric: str) -> str:
    means = (_value(run, task, metric, "mean") for task in run.config.tasks)
    known = [mean for mean in means if mean is not None]
    return _number(fmean(known) if known else None)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _curves(run: Run) -> dict[str, str]:
    """No charts for heads that are not trained by epochs: they leave no history, or an empty one."""
    file = run.folder / "history.csv"
    if not file.is_file() or not file.read_bytes().strip():
        return {}
    _require(run.history, ("repeat", "fold", "epoch", "train_loss", "val_loss", "best"), file)
    return curves(run.history)


def _scatters(run: Run) -> list[Scatter]:
    table, tasks = run.predictions, run.config.tasks
    columns = [*tasks, *(f"{task}_predicted" for task in tasks)]
    _require(table, ("path", *columns), run.folder / "predictions.csv")
    means: pd.DataFrame = table.groupby("path")[columns].mean()
    return [_scatter(run, means, task) for task in tasks]


def _scatter(run: Run, means: "pd.DataFrame", task: str) -> Scatter:
    given, predicted = (means[name].to_numpy(np.float64) for name in (task, f"{task}_predicted"))
    return Scatter(
        task=task,
        pearson=_number(_value(run, task, "pearson", "mean")),
        n_images=int((np.isfinite(given) & np.isfinite(predicted)).sum()),
        chart=scatter(given, predicted),
    )


def _require(table: "pd.DataFrame", columns: Sequence[str], file: Path) -> None:
    if missing := [column for column in columns if column not in table.columns]:
        raise RunError(f"{file} lacks the columns {', '.join(missing)}; a run is read as `heads train` wrote it")
