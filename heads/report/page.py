"""The HTML report of a run: its words, numbers and pictures, put into page.jinja."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.support import clock
from heads.inference.intervals import SURE
from heads.inference.metrics import BY_KIND, SHOWN
from heads.inference.showing import BASELINE, BASELINE_WORDS, QUESTIONS, beats_nothing
from heads.raters.ceilings import note_of
from heads.report.attention import attention_maps, gallery
from heads.report.figures import Chart, curves, photos_to_draw, precision_recall, scatter
from heads.report.headline import headline
from heads.report.photos import photo_of, thumbnail
from heads.report.rendering import render, write
from heads.report.tables import (
    averages,
    backbone_cells,
    confusion,
    figure_of,
    learned_bars,
    metric_rows,
    number,
    rater_rows,
)
from heads.report.worst import worst
from heads.runs.config import RunConfig
from heads.runs.predictions import Outcomes, from_table
from heads.runs.run import Run


def write_report(run: Run) -> Path:
    """Write RUN/report.html, one page that needs no other file, and return where it is.

    Raises:
        RunError: a file of the run cannot be read or does not fit the others, or the page cannot be written.
    """
    file = run.folder / "report.html"
    write(_render(run), file)
    return file


def _render(run: Run) -> str:
    config, target = run.config, run.config.target
    outcomes = from_table(run.predictions, target)
    rows = metric_rows(run)
    drawn = photos_to_draw(len(outcomes.paths), len(target.tasks))
    found = None if run.attention is None else attention_maps(run.attention)
    return render(
        "page.jinja",
        {"paths": [outcomes.paths[i] for i in drawn]},
        headline=headline(run),
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
        n_drawn=len(drawn),
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
        raters=rater_rows(run.raters) if run.raters else None,
        raters_notes=note_of(run.raters, ""),
        curves=curves(run.history) if run.has_history else [],
        scatters=_scatters(run, outcomes, drawn) if target.kind == "regression" else [],
        precision=_precision(run, outcomes) if target.kind in ("binary", "multilabel") else [],
        confusion=confusion(outcomes, len(target.classes)) if target.kind == "multiclass" else None,
        learned={} if run.learned is None else learned_bars(run.learned, target),
        worst=worst(target, outcomes, lambda path: thumbnail(photo_of(run, path))),
        gallery=None if found is None else gallery(run, found),
        backbones=None if found is None or found.backbones is None else backbone_cells(found.backbones.mean(axis=0)),
    )


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
        "shape": _shape(tensor["layout"], tensor["shape"]),
        "segments": [_segment(segment) for segment in tensor["segments"]],
    }


def _shape(layout: str, shape: tuple[int, ...]) -> str:
    sizes = [f"{size:,}" for size in shape]
    if layout == "pixels":
        return " × ".join(sizes)
    names = {1: ("features",), 3: ("backbones", "blocks", "features")}.get(len(shape), ())
    return " × ".join(f"{size} {name}" for size, name in zip(sizes, names, strict=True)) if names else " × ".join(sizes)


def _segment(segment: Mapping[str, Any]) -> dict[str, Any]:
    weights = segment.get("identity", {}).get("weights", {})
    return {
        "name": segment["name"],
        "hash": segment["hash"],
        "random": isinstance(weights, dict) and "random_seed" in weights,
    }


def _scatters(run: Run, outcomes: Outcomes, drawn: NDArray[np.int64]) -> list[Chart]:
    charts, means = [], outcomes.predicted.mean(axis=0)
    for k, task in enumerate(run.config.target.tasks):
        given, predicted = outcomes.labels[:, k], means[:, k]
        n = int((np.isfinite(given) & np.isfinite(predicted)).sum())
        said = f"pearson {number(figure_of(run, task, 'pearson', 'mean'))}, {_images(n)}"
        data = scatter(given[drawn], predicted[drawn], label=f"{task}: predicted against given, {said}")
        charts.append(Chart("scatter", task, said, data))
    return charts


def _precision(run: Run, outcomes: Outcomes) -> list[Chart]:
    charts, means = [], outcomes.predicted.mean(axis=0)
    for k, task in enumerate(run.config.target.tasks):
        both = np.isfinite(outcomes.labels[:, k]) & np.isfinite(means[:, k])
        given, predicted = outcomes.labels[both, k], means[both, k]
        said = f"map {number(figure_of(run, task, 'map', 'mean'))}, {given.sum():.0f} of {_images(len(given))}"
        data = precision_recall(given, predicted, label=f"{task}: precision by recall, {said}")
        charts.append(Chart("precision", task, said, data))
    return charts


def _images(n: int) -> str:
    return f"{n:,} image" + ("" if n == 1 else "s")
