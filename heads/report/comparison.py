"""The page about several runs (`heads compare --out`): where they differ, task by task and photo by photo."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heads.inference.comparing import Comparison, Row, SideBySide, side_by_side
from heads.inference.metrics import BY_KIND
from heads.inference.showing import BASELINE, BASELINE_WORDS
from heads.report.figures import Chart, photos_to_draw
from heads.report.headline import comparison_headline
from heads.report.photos import photo_of, thumbnail
from heads.report.rendering import render, write
from heads.report.tables import Axis, axis_of
from heads.report.worst import Errors, Shown, errors_of, furthest_apart
from heads.runs.run import Run

N_PICTURES = 48
"""Of all tasks and pairs of runs together."""
MOST, LEAST = 6, 2
"""Photos that one run is nearer to, of a task."""


def write_comparison(found: Comparison, runs: Sequence[Run], file: Path) -> Path:
    """Write one page that needs no other file about a comparison, and return where it is.

    Args:
        found: what `compare` says of the same runs in the same order.

    Raises:
        RunError: the runs cannot be compared, or the page cannot be written.
    """
    each = side_by_side(runs)
    metric = BY_KIND[each.target.kind][found.metric]
    figures = found.figures()
    axis = axis_of(
        value for row in found.rows for value in (row.difference_low, row.difference_high) if value is not None
    )
    errors = [errors_of(each.target, each.labels, predicted) for predicted in each.predicted]
    pairs = [(number, k) for number in range(1, len(runs)) for k in range(len(errors[0]))]  # with the first, by task
    drawn = photos_to_draw(len(each.paths), len(pairs))
    page = render(
        "compare.jinja",
        {"paths": [each.paths[i] for i in drawn]},
        n_drawn=len(drawn),
        found=found,
        metric=metric,
        headline=comparison_headline(found, higher=metric.better == "higher"),
        names=each.names,
        systems=[run.config.system for run in runs],
        baseline={"name": BASELINE[each.target.kind], "words": BASELINE_WORDS[each.target.kind]},
        header=figures.header,
        rows=[(cells, _track(row, axis)) for cells, row in zip(figures.rows, found.rows, strict=True)],
        axis=axis,
        n_runs=len(runs),
        notes=figures.notes,
        differences=_differences(found),
        errors=[_errors(each, errors, number, k, drawn) for number, k in pairs],
        apart=_apart(runs, each, errors, pairs),
        n_pairs=len(pairs),
        kind=each.target.kind,
    )
    write(page, file)
    return file


def _track(row: Row, axis: Axis) -> dict[str, str] | None:
    """Where a difference lies, in percent from the left."""
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return None
    places = {"start": row.difference_low, "end": row.difference_high, "dot": row.difference, "zero": 0.0}
    return {name: axis.at(value) for name, value in places.items()}


def _differences(found: Comparison) -> Chart | None:
    rows = [
        {
            "task": row.task,
            "run": row.run,
            "difference": row.difference,
            "low": row.difference_low,
            "high": row.difference_high,
            "p": row.p_adjusted,
            "real": bool(row.real),
        }
        for row in found.rows
        if row.difference is not None and row.difference_low is not None and row.p_adjusted is not None
    ]
    if not rows:
        return None
    label = f"differences of {found.metric} to {found.rows[1].run} with their 95 % intervals, by task"
    return Chart(
        "differences", f"{found.metric}: difference to {found.rows[1].run}", "", {"rows": rows, "label": label}
    )


def _errors(each: SideBySide, errors: list[list[Errors]], number: int, k: int, drawn: NDArray[np.int64]) -> Chart:
    first, other = errors[0][k], errors[number][k]
    names = [each.names[0], each.names[number]]
    n = int((np.isfinite(first.errors) & np.isfinite(other.errors)).sum())
    said = f"{names[1]} is nearer on {int((other.errors < first.errors).sum()):,} of {n:,}"
    data = {
        "given": [first.given[i] for i in drawn],
        "said": [[run.said[i] for i in drawn] for run in (first, other)],
        "first": first.errors[drawn],
        "second": other.errors[drawn],
        "runs": names,
        "label": f"{first.task}: error of {names[1]} by error of {names[0]}; {said} photos",
    }
    title = first.task if len(each.names) == 2 else f"{first.task}, {names[1]}"
    return Chart("errors", title, said, data if n else None)


def _apart(
    runs: Sequence[Run], each: SideBySide, errors: list[list[Errors]], pairs: list[tuple[int, int]]
) -> list[tuple[str, dict[str, list[Shown]]]]:
    """By task and pair of runs, the photos that each run is nearer to; of as many pairs as there is room for."""

    def picture(path: str) -> str | None:
        return next((shown for run in runs if (shown := thumbnail(photo_of(run, path)))), None)

    n = max(LEAST, min(MOST, N_PICTURES // (2 * len(pairs))))
    return [
        (
            errors[0][k].task if len(runs) == 2 else f"{errors[0][k].task}, {each.names[number]}",
            furthest_apart(
                errors[0][k], errors[number][k], (each.names[0], each.names[number]), each.paths, picture, n
            ),
        )
        for number, k in pairs[: N_PICTURES // (2 * n)]
    ]
