"""The HTML report of a run: its words, numbers and pictures, put into page.jinja."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from featstore.files import replacing
from featstore.support import clock, harmless
from heads.errors import RunError
from heads.inference.intervals import SURE
from heads.inference.metrics import BY_KIND, SHOWN
from heads.inference.showing import BASELINE, BASELINE_WORDS, QUESTIONS, beats_nothing
from heads.raters.ceilings import HEADER, note_of, table_of, without_empty
from heads.report.attention import attention_maps, gallery
from heads.report.figures import curves, precision_recall, scatter
from heads.report.tables import averages, confusion, figure_of, learned_bars, metric_rows, number
from heads.runs.config import RunConfig
from heads.runs.predictions import Outcomes, from_table
from heads.runs.run import Run


def write_report(run: Run) -> Path:
    """Write RUN/report.html, one page that needs no other file, and return where it is.

    Raises:
        RunError: a file of the run cannot be read or does not fit the others, or the page cannot be written.
    """
    file = run.folder / "report.html"
    page = _render(run).encode("utf-8", errors="replace")
    try:
        with replacing(file) as out:
            out.write(page)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}") from error
    return file


@dataclass(frozen=True)
class Chart:
    """The chart of one task; no picture if no image has both a label and a prediction."""

    task: str
    words: str
    picture: str | None


def _render(run: Run) -> str:
    environment = Environment(
        loader=PackageLoader("heads", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    config, target = run.config, run.config.target
    outcomes = from_table(run.predictions, target)
    rows = metric_rows(run)
    found = None if run.attention is None else attention_maps(run.attention)
    return environment.get_template("page.jinja").render(
        config=config,
        target=target,
        run_name=run.name,
        labels_files=[
            {"name": PurePath(str(file)).name, "sha256": str(digest)[:16]}
            for file, digest in zip(config.labels["files"], config.labels["sha256"], strict=True)
        ],
        scales=_scales(config),
        tensors=[_tensor(tensor) for tensor in config.tensors],
        n_groups=run.folds["group"].nunique(),
        grouped=config.group is not None or run.folds["group"].nunique() < len(run.folds),
        n_tested=len(outcomes.paths),
        elapsed=clock(config.elapsed_s),
        metrics=[(name, BY_KIND[target.kind][name].words) for name in SHOWN[target.kind]],
        rows=rows,
        better=beats_nothing([run.metrics[task][SHOWN[target.kind][0]] for task in rows]),
        question=QUESTIONS[run.question],
        caveats=run.caveats,
        doubt=run.doubt,
        baseline={"name": BASELINE[target.kind], "words": BASELINE_WORDS[target.kind]},
        sure=SURE,
        averages=averages(run) if len(target.tasks) > 1 else [],
        raters=without_empty(HEADER, table_of(run.raters)) if run.raters else None,
        raters_notes=note_of(run.raters, ""),
        curves=_curves(run),
        scatters=_scatters(run, outcomes) if target.kind == "regression" else [],
        precision=_precision(run, outcomes) if target.kind in ("binary", "multilabel") else [],
        confusion=confusion(outcomes, len(target.classes)) if target.kind == "multiclass" else None,
        learned={} if run.learned is None else learned_bars(run.learned, target),
        gallery=None if found is None else gallery(run, found),
        backbones=None if found is None or found.backbones is None else found.backbones.mean(axis=0),
    )


def _printable(value: Any) -> Any:
    """Text of a run, whoever wrote it, without what steers a terminal or turns the direction of what is read."""
    return harmless(value) if isinstance(value, str) and not hasattr(value, "__html__") else value  # of macros: done


def _scales(config: RunConfig) -> dict[str, str]:
    """The ends of the tasks' scales in words; one for all if they are the same."""
    if config.target.kind != "regression":
        return {}
    by_task = {
        task: f"{low:g} to {high:g}" for task, (low, high) in zip(config.target.tasks, config.scales, strict=True)
    }
    return {"": next(iter(by_task.values()))} if len(set(by_task.values())) == 1 else by_task


def _tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": tensor["name"],
        "layout": tensor["layout"],
        "shape": _shape(tensor["shape"]),
        "segments": [_segment(segment) for segment in tensor["segments"]],
    }


def _shape(shape: tuple[int, ...]) -> str:
    names = {1: ("features",), 3: ("backbones", "blocks", "features")}.get(len(shape), ())
    sizes = [f"{size:,}" for size in shape]
    return " × ".join(f"{size} {name}" for size, name in zip(sizes, names, strict=True)) if names else " × ".join(sizes)


def _segment(segment: Mapping[str, Any]) -> dict[str, Any]:
    weights = segment.get("identity", {}).get("weights", {})
    return {
        "name": segment["name"],
        "hash": segment["hash"],
        "random": isinstance(weights, dict) and "random_seed" in weights,
    }


def _curves(run: Run) -> dict[str, str]:
    """No charts for heads that are not trained by epochs: they leave no history, or an empty one."""
    return curves(run.history) if run.has_history else {}


def _scatters(run: Run, outcomes: Outcomes) -> list[Chart]:
    charts = []
    for task, given, predicted in _by_task(run, outcomes):
        said = f"pearson {number(figure_of(run, task, 'pearson', 'mean'))}, {_images(len(given))}"
        charts.append(Chart(task, said, scatter(given, predicted) if len(given) else None))
    return charts


def _precision(run: Run, outcomes: Outcomes) -> list[Chart]:
    charts = []
    for task, given, predicted in _by_task(run, outcomes):
        said = f"map {number(figure_of(run, task, 'map', 'mean'))}, {given.sum():.0f} of {_images(len(given))}"
        charts.append(Chart(task, said, precision_recall(given, predicted) if given.any() else None))
    return charts


def _by_task(run: Run, outcomes: Outcomes) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """For each task, what is given and what is predicted, the mean over the repeats, where both are known."""
    means = outcomes.predicted.mean(axis=0)
    both = np.isfinite(outcomes.labels) & np.isfinite(means)
    return [
        (task, outcomes.labels[both[:, k], k], means[both[:, k], k]) for k, task in enumerate(run.config.target.tasks)
    ]


def _images(n: int) -> str:
    return f"{n:,} image" + ("" if n == 1 else "s")
