"""The first sentences of a page: what was found, against what baseline and below what ceiling."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from heads.inference.metrics import BY_KIND, SHOWN, tasks_of
from heads.inference.showing import BASELINE_SAID, beats_nothing, number
from heads.labels.target import ALL, Kind
from heads.runs.run import Run

if TYPE_CHECKING:
    from heads.inference.comparing import Comparison, Row

LISTED, NAMED = 3, 2
"""So many tasks are all named; of more, the first ones."""
LONGEST = 40
"""Letters of a name in a headline."""
NOUNS: dict[Kind, str] = {
    "regression": "labels",
    "binary": "labels",
    "multilabel": "labels",
    "multiclass": "labels",
}
ABOUT = {
    "method": "of the method, on another sample of photos",
    "models": "of these models, on other photos",
}
"""What an interval is about, in few words."""


class Headline(NamedTuple):
    """Two sentences."""

    finding: str
    figures: str


def headline(run: Run) -> Headline:
    """What a run has found. *Better* means what the table means by it: p < .05, adjusted over the table."""
    target = run.config.target
    metric, tasks = SHOWN[target.kind][0], tasks_of(target)
    says = dict(zip(tasks, beats_nothing([run.metrics[task][metric] for task in tasks]), strict=True))
    means = {task: value for task in target.tasks if (value := run.metrics[task][metric]["mean"]) is not None}
    ranked = sorted(means, key=lambda task: -means[task] if math.isfinite(means[task]) else math.inf)
    better = [task for task in ranked if says[task] == "yes"]
    return Headline(_finding(run, says, better), _figures(run, metric, ranked))


def _finding(run: Run, says: dict[str, str], better: list[str]) -> str:
    target, head = run.config.target, _short(run.config.system)
    than, noun, n = f"better than {BASELINE_SAID[target.kind]}", NOUNS[target.kind], len(target.tasks)
    name = _short(target.tasks[0])
    if target.kind == "multiclass":
        name += f" ({len(target.classes)} classes)"
    elif target.kind == "binary":
        name += " (yes or no)"
    known = [task for task in target.tasks if says[task]]
    if not known:
        return f"Whether {head} predicts {name if n == 1 else f'any of {n} {noun}'} {than} is not known"
    if not better:
        return f"{head} is not found to predict {name if n == 1 else f'any of {n} {noun}'} {than}"
    if n == 1:
        return f"{head} predicts {name} {than}"
    if len(better) < n:
        return f"{head} predicts {_listed(better)} {than}: {len(better)} of {n} {noun}"
    return f"{head} predicts {_listed(target.tasks) if n <= LISTED else f'all {n} {noun}'} {than}"


def _figures(run: Run, metric: str, ranked: list[str]) -> str:
    target = run.config.target
    if not ranked:
        return ""
    said = []
    if target.kind == "multilabel":
        said.append(f"All labels together: {_figure(run, ALL, metric)}.")
    best = ranked[0]
    figure = _figure(run, best, metric)
    opening = f"Best is {_short(best)}: " if len(target.tasks) > 1 else ""
    said.append(f"{opening}{figure}.")
    said.append(f"In brackets, the 95 % interval {ABOUT[run.question]}.")
    text = " ".join(said)
    return text[:1].upper() + text[1:]


def _figure(run: Run, task: str, metric: str) -> str:
    """A figure with its interval, what knowing nothing would get, and the ceiling where one is known."""
    kind, found = run.config.target.kind, run.metrics[task][metric]
    mean, low, high, nothing = (found.get(part) for part in ("mean", "low", "high", "baseline"))
    if mean is None:
        return f"{metric} is not defined"
    text = f"{metric} {number(mean)}" + ("" if low is None or high is None else f" [{number(low)}, {number(high)}]")
    against = []
    if nothing is not None or BY_KIND[kind][metric].zero:
        against.append(f"{number(nothing) if nothing is not None else 0} for {BASELINE_SAID[kind]}")
    raters = run.raters.get(task)
    ceiling = None if raters is None else raters.ceiling_of(metric)
    share = None if raters is None else raters.share_of(metric, mean)
    if ceiling is not None:
        reached = "" if share is None else f" ({share:.0%} reached)".replace("%", " %")
        against.append(f"a ceiling of {number(ceiling.value)} that its raters leave{reached}")
    return text + (f", against {' and '.join(against)}" if against else "")


def comparison_headline(found: "Comparison", *, higher: bool) -> Headline:
    """What a comparison has found, run by run; *better* and *worse* are what its table calls real.

    Args:
        higher: whether the metric is better if it is higher.
    """
    first = found.rows[1].run  # after the baseline
    rows = [row for row in found.rows if row.difference is not None]
    others = list(dict.fromkeys(row.run for row in rows))
    sentences = []
    for run in others:
        real = {row.task: ((row.difference or 0) > 0) == higher for row in rows if row.run == run and row.real}
        parts = [
            f"{word} than {_short(first)} in {_listed(tasks)}"
            for word, tasks in (
                ("better", [task for task, better in real.items() if better]),
                ("worse", [task for task, better in real.items() if not better]),
            )
            if tasks
        ]
        sentences += [f"{_short(run)} is {' and '.join(parts)}"] if parts else []
    n_alike, tasks = len(others) - len(sentences), list(dict.fromkeys(row.task for row in rows))
    where = f"in {_short(tasks[0])}" if len(tasks) == 1 else f"in any of {len(tasks)} tasks"
    if not others:
        sentences = [f"No run can be compared with {_short(first)}"]
    elif sentences and n_alike:
        sentences.append(f"{_count(n_alike, 'other run')} not found to differ")
    elif n_alike:
        who = f"{_short(others[0])} is" if n_alike == 1 else f"none of {n_alike} runs is"
        sentences = [f"{who} {'not ' if n_alike == 1 else ''}found to differ from {_short(first)} {where}"]
    finding = "; ".join(sentences)
    return Headline(
        finding[:1].upper() + finding[1:] if finding.startswith("none of") else finding, _largest(found, rows)
    )


def _largest(found: "Comparison", rows: Sequence["Row"]) -> str:
    """The largest difference, and of how many photos."""
    over = f" in {found.n_groups:,} groups" if found.n_groups else ""
    of = f"On {found.n_images:,} images{over}, out of fold."
    if not rows:
        return of
    most = max(rows, key=lambda row: abs(row.difference or 0))
    run = f" of {_short(most.run)}" if len({row.run for row in rows}) > 1 else ""
    figure, *ends = (number(x, sign=True) for x in (most.difference, most.difference_low, most.difference_high))
    said = f"{found.metric} {figure} [{', '.join(ends)}], in brackets the 95 % interval"
    return f"The largest difference is in {_short(most.task)}{run}: {said}. {of}"


def _count(n: int, one: str) -> str:
    return f"1 {one} is" if n == 1 else f"{n} {one}s are"


def _listed(tasks: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`, `a, b and 2 more`."""
    names = [_short(task) for task in tasks]
    if len(names) > LISTED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
