"""Comparing runs: the difference of a metric on the same images, its interval and its p-value."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, few, html_table, suggest
from heads.errors import RunError
from heads.inference.baseline import predict_baseline
from heads.inference.folds import FEW_IMAGES, NOT_TESTED, FoldFigures, by_fold, distinct, folds_tell
from heads.inference.intervals import SURE, Resampled, bootstrap, enough_resamples, holm
from heads.inference.metrics import BY_KIND, METRICS, SHOWN, evaluate, tasks_of
from heads.inference.showing import BASELINE, NONE, QUESTIONS, Figures, Question, number, span
from heads.labels.scales import Scale, to_unit
from heads.labels.target import Target
from heads.runs.predictions import Outcomes, from_table

if TYPE_CHECKING:
    import pandas as pd

    from heads.runs.run import Run

_RESAMPLES_PER_TEST = 100
"""Fewer could not tell a p-value small enough to be below `SURE` after it is adjusted over the tests."""
_ALIKE = 1e-3
"""Labels that differ by less, relative to their scale, differ by how a table writes numbers."""


@dataclass(frozen=True)
class Row:
    """One task of one run, beside the same task of the first run; None where it is not defined."""

    task: str
    run: str
    """Its folder; of the first row of a task, the name of the baseline that knows nothing."""
    value: float | None
    """The metric, over all folds and repeats that are compared."""
    low: float | None = None
    high: float | None = None
    """Its 95 % interval."""
    better: bool | None = None
    """Whether it is better than the baseline."""
    difference: float | None = None
    """To the first run; None of the first run itself."""
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    """Two-sided, of the difference."""
    p_adjusted: float | None = None
    """Over all tests of the table: of every difference, and of every run with the baseline (Holm)."""
    real: bool | None = None
    """Whether the difference is more than chance gives: the adjusted p-value is below .05."""


@dataclass(frozen=True)
class Comparison:
    """What a table on a terminal, or `--json`, shows."""

    metric: str
    n_images: int
    n_groups: int | None
    """What was kept together in folds, or resampled; None if single images were."""
    of: Question
    """What intervals and p-values are about: the method on another sample, or these models on other photos."""
    paired: bool
    """Whether the runs were compared in the same folds."""
    n_folds: int
    """Folds of all repeats that the runs have in common; of all of the first run if they are not paired."""
    n_tests: int
    """That p-values are adjusted over."""
    rows: tuple[Row, ...]
    """By task, and within it the baseline and then the runs."""
    notes: tuple[str, ...]
    """In words, what differs between the runs besides the head, and what to know of the figures."""

    def __repr__(self) -> str:
        figures = self.figures()
        return "\n".join([self.title, figures.text(), *figures.notes])

    def _repr_html_(self) -> str:
        figures = self.figures()
        return html_table(figures.header, figures.rows, above=self.title, below="\n".join(figures.notes))

    @property
    def title(self) -> str:
        """What was compared, in words."""
        n_runs = sum(row.task == self.rows[0].task for row in self.rows) - 1  # the first row is the baseline
        over = f", {self.n_groups} groups" if self.n_groups else ""
        return f"{self.metric} of {n_runs} runs on {self.n_images} images{over}"

    def pandas(self) -> "pd.DataFrame":
        """A row for each of `rows`, a column for each of its fields."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def figures(self) -> Figures:
        """The table as a command shows it."""
        rows = [
            (
                row.task,
                row.run,
                number(row.value) or NONE,
                span(row.low, row.high),
                _yes_or_no(row.better),
                number(row.difference, sign=True),
                span(row.difference_low, row.difference_high),
                "" if row.p_adjusted is None else f"{row.p_adjusted:.4f}",
                _yes_or_no(row.real),
            )
            for row in self.rows
        ]
        how = {
            ("method", True): f"in {self.n_folds} folds that all were tested in (corrected resampled t-test)",
            ("method", False): "each in folds of its own, as of two samples (unpaired)",
            ("models", True): "by a paired bootstrap over images or whole groups",
            ("models", False): "as of two samples (unpaired bootstrap)",
        }
        words = (
            f"p: of the difference to the first run, {how[self.of, self.paired]}, adjusted over the {self.n_tests} "
            f"tests of this table (Holm); real: p < {SURE}; better: than the baseline, likewise"
        )
        header = ("task", "run", self.metric, "95 %", "better", "difference", "95 % of it", "p", "real")
        return Figures(header, rows, [f"95 %: {QUESTIONS[self.of]}", words, *self.notes])


def compare(
    runs: Sequence["Run"],
    *,
    metric: str | None = None,
    unpaired: bool = False,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare runs with the first of them, task by task, on the images that all have tested.

    Cross-validated runs are compared in the folds that they share: what makes a fold hard for all does not blur the
    difference. The test is the corrected resampled t-test (Nadeau and Bengio 2003; Bouckaert and Frank 2004), with a
    larger correction than theirs (`heads.inference.folds`), and is about the methods: whether they would differ on
    another sample of photos. Runs of a single split are compared by a bootstrap over images, and that is about their
    models. p-values are adjusted over all tests of the table (Holm 1979).

    Args:
        metric: a name in `METRICS`; the first of `SHOWN` if not given.
        unpaired: compare runs whose folds differ, as if they were of different samples.

    Raises:
        RunError: fewer than two runs; kinds, classes, folds or the labels of an image differ; no task or image is
            common; or there is no such metric.
    """
    if len(runs) < 2:
        raise RunError(f"{len(runs)} runs: at least two are needed to compare")
    target = _common_target(runs)
    known = METRICS[target.kind]
    if metric is not None and metric not in known:
        raise RunError(f"{target.kind} has no metric {metric!r}; {suggest(metric, known)}")
    metric = metric or SHOWN[target.kind][0]
    names = _names(runs)
    outcomes = [from_table(run.predictions, run.config.target) for run in runs]
    paths = _common_paths(outcomes, names)
    scales = _scales_of(runs[0], target)
    taken = [_take(run, each, target, paths, scales) for run, each in zip(runs, outcomes, strict=True)]
    _refuse_other_labels(taken, names, target, paths)
    groups = _groups(runs, paths)
    notes = [*_notes(runs, names, outcomes, target, paths)]
    if not unpaired:
        taken, shared = _in_common_folds(taken, names)
        notes += shared
    found = _evidence(target, metric, taken, groups, n_resamples, seed)
    rows, n_tests = _rows(target, metric, names, found, paired=not unpaired)
    partitions = distinct(taken[0].folds)
    if found.of == "method" and len(partitions) == 1:
        notes.append(
            "one cross-validation says little of another sample; ten with redrawn folds say more (--repeats 10)"
        )
    if found.of == "method" and target.kind != "regression":
        notes.append("p-values of classes are known to be large: differences are found less often than they could be")
    elif found.of == "method" and len(paths) < FEW_IMAGES:
        notes.append(f"p-values of this comparison are known to be a little small below {FEW_IMAGES} photos")
    if any(row.value is None for row in rows[:: len(names) + 1]) and not BY_KIND[target.kind][metric].zero:
        notes.append(
            "no baseline: the runs keep only the labels of what they tested, and not those that they learnt from"
        )
    return Comparison(
        metric=metric,
        n_images=len(paths),
        n_groups=len(set(groups)) if groups else None,
        of=found.of,
        paired=not unpaired,
        n_folds=sum(len(set(partition.tolist()) - {NOT_TESTED}) for partition, _ in partitions),
        n_tests=n_tests,
        rows=rows,
        notes=tuple(notes),
    )


class SideBySide(NamedTuple):
    """What several runs say of the same images."""

    target: Target
    """The tasks that all have."""
    names: list[str]
    """Of the runs, as `compare` calls them."""
    paths: list[str]
    labels: NDArray[np.float64]
    """(N, K) as `Outcomes` has them."""
    predicted: list[NDArray[np.float64]]
    """Of each run (N, n_outputs), the mean over its repeats, in label units or as a probability."""


def side_by_side(runs: Sequence["Run"]) -> SideBySide:
    """The predictions of runs that can be compared (`compare` refuses others), photo by photo."""
    target, names = _common_target(runs), _names(runs)
    outcomes = [from_table(run.predictions, run.config.target) for run in runs]
    paths = _common_paths(outcomes, names)
    labels, predicted = [], []
    for run, each in zip(runs, outcomes, strict=True):
        place = {path: i for i, path in enumerate(each.paths)}
        rows = [place[path] for path in paths]
        tasks = run.config.target.tasks
        columns = [tasks.index(task) for task in target.tasks]
        labels.append(each.labels[rows][:, columns])
        means = each.predicted.mean(axis=0)[rows]
        predicted.append(means if target.kind == "multiclass" else means[:, columns])
    return SideBySide(target, names, paths, labels[0], predicted)


class _Taken(NamedTuple):
    """What a run says of the common images and tasks."""

    labels: NDArray[np.float64]
    """(N, K), scaled"""
    predicted: NDArray[np.float64]
    """(R, N, n_outputs), scaled"""
    folds: NDArray[np.int64]
    """(R, N) the number of the fold that tests an image, -1 if none does"""


_OfTasks = dict[str, FoldFigures | Resampled | None]
"""A metric by task; None where it is not defined."""


class _Evidence(NamedTuple):
    """A metric of the runs, and for each of them that of the baseline in the same folds."""

    of: Question
    by_run: list[_OfTasks]
    nothing: list[_OfTasks]


def _evidence(
    target: Target, metric: str, runs: Sequence[_Taken], groups: list[str] | None, n_resamples: int, seed: int
) -> _Evidence:
    """From the folds, where all runs have several and they are large enough; or else from resamples of the images."""
    labels, tasks = runs[0].labels, tasks_of(target)
    nothing = [run._replace(predicted=predict_baseline(target, labels, run.folds)) for run in runs]
    n_units = len(set(groups)) if groups else len(labels)

    def of_folds(run: _Taken) -> _OfTasks:
        figures = by_fold(target, labels, run.predicted, run.folds, n_units=n_units, names=[metric])
        return {task: figures[task][metric] for task in tasks}

    by_run = [of_folds(run) for run in runs]
    defined = [
        [evaluate(target, labels, each)[task][metric] for each in run.predicted] for run in runs for task in tasks
    ]
    tell = [folds_tell(target, labels, run.predicted, run.folds)[task] for run in runs for task in tasks]
    found = [each[task] for each in by_run for task in tasks]
    within = BY_KIND[target.kind][metric].averaging is not None
    if any(found) and all(
        one is not None or None in values or (within and large)
        for one, values, large in zip(found, defined, tell, strict=True)
    ):
        return _Evidence("method", by_run, [of_folds(each) for each in nothing])
    n_tests = len(tasks) * 2 * len(runs)
    n_resamples, n_alone = max(n_resamples, _RESAMPLES_PER_TEST * n_tests), enough_resamples(len(labels))

    def of_resamples(run: _Taken) -> _OfTasks:
        """The same seed draws the same resamples for every run."""
        return dict(
            bootstrap(
                target, labels, run.predicted, metric, groups, n_resamples=n_resamples, n_alone=n_alone, seed=seed
            )
        )

    return _Evidence("models", [of_resamples(run) for run in runs], [of_resamples(each) for each in nothing])


def _rows(
    target: Target, metric: str, names: Sequence[str], found: _Evidence, *, paired: bool
) -> tuple[tuple[Row, ...], int]:
    """The rows of the table, and how many tests there are in it."""
    sign = 1 if BY_KIND[target.kind][metric].better == "higher" else -1
    rows: list[Row] = []
    p_of_baseline: list[float | None] = []
    for task in tasks_of(target):
        evidence, of_nothing = ([each[task] for each in side] for side in (found.by_run, found.nothing))
        rows.append(Row(task, BASELINE[target.kind], None if of_nothing[0] is None else of_nothing[0].value))
        p_of_baseline.append(None)
        for name, one, nothing in zip(names, evidence, of_nothing, strict=True):
            if one is None:
                rows.append(Row(task, name, None))
                p_of_baseline.append(None)
                continue
            value, low, high, p = one.interval()
            row = Row(task, name, value, low, high)
            if nothing is not None or BY_KIND[target.kind][metric].zero:
                # What is the same for every photo correlates with nothing, so that 0 is to be beaten.
                above = one.interval() if nothing is None else one.difference(nothing)  # type: ignore[arg-type]
                row = replace(row, better=sign * above.value > 0)
                p_of_baseline.append(above.p)
            else:
                p_of_baseline.append(None)
            first = evidence[0]
            if one is not first and first is not None:
                apart = one.difference(first) if paired else one.unpaired_difference(first)  # type: ignore[arg-type]
                difference, low, high, p = apart
                row = replace(row, difference=difference, difference_low=low, difference_high=high, p=p)
            rows.append(row)
    adjusted = holm([*(row.p for row in rows), *p_of_baseline])
    n_tests = sum(p is not None for p in adjusted)
    return tuple(
        replace(
            row,
            better=None if above is None else above < SURE and bool(row.better),
            p_adjusted=p,
            real=None if p is None else p < SURE,
        )
        for row, p, above in zip(rows, adjusted[: len(rows)], adjusted[len(rows) :], strict=True)
    ), n_tests


def _in_common_folds(taken: Sequence[_Taken], names: Sequence[str]) -> tuple[list[_Taken], list[str]]:
    """The repeats of each run whose folds every run has, in the same order; and what to say of those left out.

    Raises:
        RunError: there are none.
    """
    by_run = [{partition.tobytes(): repeats for partition, repeats in distinct(run.folds)} for run in taken]
    common = [key for key in by_run[0] if all(key in each for each in by_run)]
    if not common:
        apart = (name for name, each in zip(names, by_run, strict=True) if not set(each) & set(by_run[0]))
        other = next(apart, "one of the others")
        raise RunError(
            f"{other} was tested in other folds than {names[0]}, which would be part of the difference; train it with "
            f"--split {names[0]} (or the same --seed, --folds, --group and --stratify), or compare them with --unpaired"
        )
    said = []
    if any(len(each) > len(common) for each in by_run):
        counts = ", ".join(f"{name} {len(each)}" for name, each in zip(names, by_run, strict=True))
        said.append(f"cross-validations: {counts}; compared on the {len(common)} that all have")
    kept = [[repeat for key in common for repeat in each[key]] for each in by_run]
    return [
        run._replace(predicted=run.predicted[repeats], folds=run.folds[repeats])
        for run, repeats in zip(taken, kept, strict=True)
    ], said


def _yes_or_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _common_target(runs: Sequence["Run"]) -> Target:
    """The tasks that all runs have, in the order of the first."""
    first = runs[0]
    target = first.config.target
    for run in runs[1:]:
        other = run.config.target
        if other.kind != target.kind:
            raise RunError(f"{first.folder} learned {target.kind} labels and {run.folder} {other.kind}")
        if other.classes != target.classes:
            raise RunError(
                f"{first.folder} and {run.folder} have other classes: {few(target.classes, LISTED)}; "
                f"{few(other.classes, LISTED)}"
            )
    common = tuple(task for task in target.tasks if all(task in run.config.target.tasks for run in runs))
    if not common:
        listed = "; ".join(f"{run.folder}: {few(run.config.target.tasks)}" for run in runs)
        raise RunError(f"the runs have no task in common: {listed}")
    return Target(target.kind, common, target.classes)


def _common_paths(outcomes: Sequence[Outcomes], names: Sequence[str]) -> list[str]:
    tested = [set(each.paths) for each in outcomes]
    common = [path for path in outcomes[0].paths if all(path in each for each in tested)]
    if not common:
        counts = ", ".join(f"{name} {len(each)}" for name, each in zip(names, tested, strict=True))
        raise RunError(f"no image was tested by every run ({counts}); train them with the same split")
    return common


def _take(run: "Run", outcomes: Outcomes, target: Target, paths: Sequence[str], scales: Sequence[Scale]) -> _Taken:
    place = {path: i for i, path in enumerate(outcomes.paths)}
    rows = [place[path] for path in paths]
    labels, predicted, folds = outcomes.labels[rows], outcomes.predicted[:, rows], outcomes.partitions()[:, rows]
    if target.kind == "multiclass":
        return _Taken(labels, predicted, folds)
    columns = [run.config.target.tasks.index(task) for task in target.tasks]
    labels, predicted = labels[:, columns], predicted[:, :, columns]
    if target.kind == "regression":
        labels, predicted = to_unit(labels, scales), to_unit(predicted, scales)
    return _Taken(labels, predicted, folds)


def _refuse_other_labels(
    taken: Sequence[_Taken],
    names: Sequence[str],
    target: Target,
    paths: Sequence[str],
) -> None:
    first = taken[0].labels
    for name, labels in zip(names[1:], (each.labels for each in taken[1:]), strict=True):
        alike = np.isclose(first, labels, rtol=0, atol=_ALIKE, equal_nan=True)
        if not alike.all():
            i, k = np.argwhere(~alike)[0]
            raise RunError(
                f"{names[0]} and {name} have other labels of {target.tasks[k]!r} for {paths[i]!r}, and of "
                f"{int((~alike).sum()) - 1} more; train both with the same --labels, --aggregate and --kind"
            )


def _scales_of(run: "Run", target: Target) -> list[Scale]:
    by_task = dict(zip(run.config.target.tasks, run.config.scales, strict=True))
    return [by_task[task] for task in target.tasks]


def _of_paths(run: "Run", column: str, paths: Sequence[str]) -> list[str]:
    by_path = dict(zip(run.folds["path"], run.folds[column].astype(str), strict=True))
    return [by_path[path] for path in paths]


def _groups(runs: Sequence["Run"], paths: Sequence[str]) -> list[str] | None:
    """The largest groups that a run has kept together; None if no run has groups of several images."""
    by_run = [[g or p for g, p in zip(_of_paths(run, "group", paths), paths, strict=True)] for run in runs]
    groups = min(by_run, key=lambda each: len(set(each)))
    return groups if len(set(groups)) < len(paths) else None


def _notes(
    runs: Sequence["Run"], names: Sequence[str], outcomes: Sequence[Outcomes], target: Target, paths: Sequence[str]
) -> Iterator[str]:
    if any(len(each.paths) != len(paths) for each in outcomes):
        counts = ", ".join(f"{name} {len(each.paths)}" for name, each in zip(names, outcomes, strict=True))
        yield f"images tested: {counts}; compared on the {len(paths)} that all have tested"
    for name, run in zip(names, runs, strict=True):
        others = [task for task in run.config.target.tasks if task not in target.tasks]
        if others:
            yield f"not in every run, left out: {', '.join(others)} of {name}"
    for name, run in zip(names[1:], runs[1:], strict=True):
        for column, words in _DIFFERENCES.items():
            differ = sum(
                a != b for a, b in zip(_of_paths(run, column, paths), _of_paths(runs[0], column, paths), strict=True)
            )
            if differ:
                yield f"{words.format(run=name, first=names[0])} ({differ} of {len(paths)} images)"
        if sorted(run.config.labels["sha256"]) != sorted(runs[0].config.labels["sha256"]):
            yield f"{name} was trained with another label table than {names[0]}; the labels compared are the same"
        if _scales_of(run, target) != _scales_of(runs[0], target):
            yield f"{name} has other scales than {names[0]}; the scales of {names[0]} are used"


_DIFFERENCES = {
    "group": "{run} has other groups than {first}; the larger groups count",
    "digest": "{run} saw other photos under the same paths than {first}",
}


def _names(runs: Sequence["Run"]) -> list[str]:
    """What the runs are called, or their whole paths if two have the same name."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]
