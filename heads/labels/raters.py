"""Raters in label tables: a row each, or a column of their standard deviations and one of their counts."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featstore.support import few, suggest
from heads.errors import LabelsError
from heads.labels.kinds import Values
from heads.labels.limits import MOST_RATERS
from heads.labels.merging import Aggregate, rater_columns
from heads.labels.scales import Scale
from heads.labels.table import LabelTable, numbers
from heads.raters.ceilings import Spreads, Votes

Columns = str | int | Sequence[str] | Mapping[str, str | int]
"""A column for every task, `{task}_sd`, a number; or by task, {"beauty": "Beauty_SD"} or ["beauty=Beauty_SD"]."""
TASK = "{task}"
MEANS = ("_mean", " mean", ".mean", "_Mean", " Mean", ".Mean", "_avg", "_M")
"""What `{task}` leaves off at the end of a name: of Valence_mean, `{task}_SD` is Valence_SD."""


@dataclass(frozen=True)
class Named:
    """What the user said of one option: a word for all tasks, or words by task."""

    option: str
    every: str | None
    by_task: Mapping[str, str]

    def columns(self, names: Collection[str]) -> set[str]:
        """The columns of a table that may be meant, whatever the tasks are; they are not learned."""
        meant = {word for task in names if self.every for word in _fill(self.every, task)}
        return (meant | set(self.by_task.values())) & set(names)

    def of(self, task: str, names: Collection[str]) -> str | None:
        """The column, or the number, that is meant of a task; None if a pattern finds none.

        Raises:
            LabelsError: there is no such column.
        """
        said = self.by_task.get(task, self.every)
        if said is None:
            return None
        found = next((word for word in _fill(said, task) if word in names), None)
        if found is None and _is_count(said):
            return said
        if found is None and TASK not in said:
            raise LabelsError(f"{self.option} {said!r}: there is no such column; {suggest(said, names)}")
        return found


def parse(option: str, said: Columns | None, names: Collection[str]) -> Named | None:
    """What an option names; None if nothing.

    Raises:
        LabelsError: a task, or every task, is named twice.
    """
    if said is None or said == []:
        return None
    pairs: Iterable[tuple[str | None, str]]
    if isinstance(said, Mapping):
        pairs = [(task, str(word)) for task, word in said.items()]
    else:
        pairs = [_pair(str(text), names) for text in ([said] if isinstance(said, str | int) else said)]
    every: str | None = None
    by_task: dict[str, str] = {}
    for task, word in pairs:
        if task in by_task or (task is None and every is not None):
            raise LabelsError(f"{option}: two columns of {'every task' if task is None else repr(task)}; name one")
        if task is None:
            every = word
        else:
            by_task[task] = word
    return Named(option, every, by_task)


def read_spreads(
    tables: Sequence[LabelTable],
    paths: Sequence[str],
    tasks: Sequence[str],
    labels: Values,
    scales: Sequence[Scale | None],
    sd: Named | None,
    n_raters: Named | None,
) -> Spreads | None:
    """Standard deviations and counts of the photos; None if the options name none.

    Args:
        labels: (N, K) of the photos.
        scales: those that the user gave.

    Raises:
        LabelsError: one option without the other, an unknown task or column, or a cell that cannot be; names the
            file, the line and the column.
    """
    if sd is None and n_raters is None:
        return None
    if sd is None or n_raters is None:
        one, other = ("--n-raters", "--sd") if sd is None else ("--sd", "--n-raters")
        need = (
            "the column of standard deviations between raters, as beauty_sd or {task}_sd"
            if sd is None
            else "how many raters a photo had, a number as 102 or a column"
        )
        raise LabelsError(f"{one} needs {other}: {need}; reliability follows from both together")
    every = list(dict.fromkeys(str(name) for table in tables for name in table.cells))
    for named in (sd, n_raters):
        for task in named.by_task:
            if task not in tasks:
                raise LabelsError(f"{named.option} of {task!r}: there is no such task; {suggest(task, tasks)}")
    if sd.every is not None and TASK not in sd.every and len(tasks) > 1:
        raise LabelsError(
            f"--sd {sd.every} names one column for {len(tasks)} tasks ({few(tasks)}); write TASK=COLUMN for each, "
            f"or a pattern as {TASK}_sd"
        )
    place = {path: i for i, path in enumerate(paths)}
    deviations, counts = (np.full((len(paths), len(tasks)), np.nan) for _ in range(2))
    found = []
    for k, task in enumerate(tasks):
        columns = sd.of(task, every), n_raters.of(task, every)
        if columns[0] is None:
            continue
        if columns[1] is None:
            raise LabelsError(
                f"--sd has {columns[0]!r} for {task!r}, and --n-raters nothing; name its column or number"
            )
        found.append(task)
        for table in tables:
            _fill_in(
                table, task, columns[0], columns[1], place, labels[:, k], scales[k], deviations[:, k], counts[:, k]
            )
    if not found:
        raise LabelsError(f"--sd {sd.every} fits no column of {few(tasks)}; the columns are {few(every, 12)}")
    return Spreads(deviations, counts)


def read_votes(
    tables: Sequence[LabelTable], values: Sequence[Values], paths: Sequence[str], tasks: Sequence[str], how: Aggregate
) -> Votes:
    """The rows of raters of the photos.

    Args:
        values: (M, K) of the rows of each table.

    Raises:
        LabelsError: a rater rated a photo twice; names the file and the lines.
    """
    place = {path: i for i, path in enumerate(paths)}
    names: dict[tuple[str, ...], int] = {}
    photos, raters, rows = [], [], []
    for table, part in zip(tables, values, strict=True):
        columns = [list(table.cells[name]) for name in rater_columns(table)]
        rated = np.asarray(np.isfinite(part).any(axis=1))
        for i, key in enumerate(table.keys):
            if rated[i] and key in place:
                who = tuple(column[i] for column in columns)
                photos.append(place[key])
                raters.append(names.setdefault(who, len(names)) if any(who) else -1)
                rows.append((table, i, part[i]))
    votes = Votes(
        np.array(photos, np.int64),
        np.array(raters, np.int64),
        np.array([row for _, _, row in rows]).reshape(-1, len(tasks)),
        how,
    )
    _refuse_twice(votes, [(table, i) for table, i, _ in rows], list(names), tasks)
    return votes


def stray_spreads(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Tasks whose names say that they are the standard deviations of others, and which."""
    ends = ("_sd", "_SD", "_std", " SD", ".SD")
    return [(word, task) for task in tasks for end in ends for word in _fill(TASK + end, task) if word in tasks]


def _refuse_twice(
    votes: Votes, rows: Sequence[tuple[LabelTable, int]], names: Sequence[tuple[str, ...]], tasks: Sequence[str]
) -> None:
    import pandas as pd

    who = pd.DataFrame({"photo": votes.photos, "rater": votes.raters})
    for k, task in enumerate(tasks):
        rated = who[(votes.raters >= 0) & np.isfinite(votes.values[:, k])]
        again = rated.duplicated()
        if again.any():
            second = int(rated.index[again][0])
            first = int(rated.index[(rated == rated.loc[second]).all(axis=1)][0])
            (table, i), (before, j) = rows[second], rows[first]
            raise LabelsError(
                f"{table.where(i)}: rater {' '.join(names[votes.raters[second]])!r} rates {task!r} of "
                f"{table.keys[i]!r} a second time, after {before.where(j)} ({int(again.sum())} such ratings); one row "
                "for a photo and rater is expected: take one out, or put both together"
            )


def _fill_in(
    table: LabelTable,
    task: str,
    sd: str,
    n_raters: str,
    place: Mapping[str, int],
    labels: Values,
    scale: Scale | None,
    deviations: Values,
    counts: Values,
) -> None:
    """What one table says of one task, put to the photos."""
    if task not in table.cells or not {sd, n_raters} & set(table.cells):
        return
    own, nothing = numbers(table, task), np.full(len(table.keys), np.nan)
    spread = numbers(table, sd) if sd in table.cells else nothing
    raters = numbers(table, n_raters) if n_raters in table.cells else np.full(len(own), float(n_raters))
    for i, (key, label, s, n) in enumerate(zip(table.keys, own, spread, raters, strict=True)):
        if np.isnan(label) or key not in place or np.isnan(labels[place[key]]):
            continue
        at = table.where(i, sd)
        if s < 0:
            raise LabelsError(f"{at}: the standard deviation {s:g} is negative; correct it, or leave the cell empty")
        if np.isnan(n) and not np.isnan(s):
            raise LabelsError(f"{table.where(i, n_raters)}: no count of raters beside the {s:g} of {sd!r}; fill it in")
        if not np.isnan(n) and (n < 1 or n != int(n) or n > MOST_RATERS):
            raise LabelsError(
                f"{table.where(i, n_raters)}: {n:g} is no count of raters; 1, 2, 3, ... "
                f"up to {MOST_RATERS:,} is expected"
            )
        if n == 1 and s > 0:
            raise LabelsError(
                f"{at}: a standard deviation of {s:g}, and {n_raters!r} has one rater; one of them is wrong"
            )
        if scale is not None and n > 1 and s > (scale[1] - scale[0]) / 2 * np.sqrt(n / (n - 1)) + 1e-6:
            raise LabelsError(
                f"{at}: {n:g} ratings on {scale[0]:g}:{scale[1]:g} cannot have a standard deviation of {s:g}; is it a "
                "variance, or of another scale?"
            )
        deviations[place[key]], counts[place[key]] = s, n


def _fill(said: str, task: str) -> list[str]:
    """The words that may be meant of a task."""
    stems = [task, *(task.removesuffix(end) for end in MEANS if task.endswith(end) and task != end)]
    return [said.replace(TASK, stem) for stem in stems] if TASK in said else [said]


def _pair(text: str, names: Collection[str]) -> tuple[str | None, str]:
    """TASK=COLUMN, or a word that is for all tasks."""
    task, equals, word = text.partition("=")
    return (None, text.strip()) if not equals or text in names else (task.strip(), word.strip())


def _is_count(said: str) -> bool:
    return bool(re.fullmatch(r"0*[1-9][0-9]{0,9}", said)) and int(said) <= MOST_RATERS
