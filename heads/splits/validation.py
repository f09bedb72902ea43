"""Validation: makes the split that is asked for and lists the models to train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, MaybePath, few, repr_of_said
from heads.errors import LabelsError
from heads.labels.labels import Labels
from heads.labels.target import Target
from heads.splits.folds import Part, Split, fold_inner, hold_out, k_fold, split_inner
from heads.splits.given import fixed, read_splits
from heads.systems.system import System
from heads.training.learner import Job

ALL = -1
"""In seeds, the part of a model that learns from all rows."""


@dataclass(frozen=True)
class Validation:
    """Which split is asked for: one of a file, a hold-out, or else folds.

    A split column of the labels takes the place of folds, and excludes a file and a hold-out.
    """

    n_folds: int = 5
    """Of the cross-validation."""
    hold_out: float | None = None
    """Test on this share, then train on all rows once more for those who predict."""
    split: MaybePath = MaybePath()
    """A table with `path` and `fold` or `split` columns, or a run whose folds are to be used again."""
    stratify: str | None = None
    """What the strata of the labels are, for the words."""
    same_folds: bool = False
    """Whether every repeat of the cross-validation uses the same folds, as most papers do, instead of new ones."""

    def __repr__(self) -> str:
        return repr_of_said(self)


REPEATS = 5
"""Of a cross-validation whose folds are redrawn, unless the user says otherwise."""
REPEATS_OF_SOLVED = 10
"""The same of heads that are solved at once, which takes them little time."""
REPEATS_OF_NETWORKS = 1
"""The same of networks that train from pixels: each model takes minutes or days."""


def default_repeats(system: System) -> int:
    """How many whole cross-validations, unless the user says otherwise."""
    if system.from_pixels:
        return REPEATS_OF_NETWORKS
    return REPEATS if system.fit is None else REPEATS_OF_SOLVED


def arrange(
    validation: Validation,
    labels: Labels,
    chosen: NDArray[np.int64],
    paths: Sequence[str],
    groups: list[str] | None,
    seed: int,
    *,
    system: System,
    n_repeats: int | None = None,
) -> tuple[Split, ...]:
    """The splits of the chosen rows of a label table, one for each repeat; the paths of the photos are the store's.

    Folds are redrawn for each repeat, unless `validation` says otherwise; what is given, or held out, stays.

    Args:
        n_repeats: as many as make sense for the system if None.

    Raises:
        LabelsError: they cannot be split so.
    """
    strata = pick(labels.strata, chosen)
    given = [labels.split is not None, validation.split is not None, validation.hold_out is not None]
    if sum(given) > 1:
        raise LabelsError("a split that is given and a hold-out contradict each other; name one")
    if validation.split is not None:
        same = validation.same_folds
        return _given(validation.split, paths, labels.path_column, groups, n_repeats, system, same_folds=same)
    if labels.split is not None:
        split = fixed([labels.split[i] for i in chosen], "the split column of the labels", groups=groups)
        return (split,) * (n_repeats or system.repeats)
    by = validation.stratify or ""
    if validation.hold_out is not None:
        split = hold_out(len(chosen), share=validation.hold_out, groups=groups, strata=strata, seed=seed, by=by)
        if len(split.parts[0].test) < 2:
            raise LabelsError(
                f"a hold-out of {validation.hold_out:g} tests on 1 of {len(chosen)} images, and no metric is defined "
                "of less than 2; hold out more"
            )
        return (split,) * (n_repeats or system.repeats)
    if validation.same_folds:
        n_repeats, seeds = n_repeats or system.repeats, [seed]
    else:
        n_repeats = n_repeats or default_repeats(system)
        seeds = [seed, *(_draw([seed, repeat]) for repeat in range(1, n_repeats))]
    drawn = [
        k_fold(len(chosen), n_folds=validation.n_folds, groups=groups, strata=strata, seed=each, by=by)
        for each in seeds
    ]
    return tuple(drawn) if len(drawn) == n_repeats else tuple(drawn * n_repeats)


def _given(
    place: Path,
    paths: Sequence[str],
    path_column: str,
    groups: list[str] | None,
    n_repeats: int | None,
    system: System,
    *,
    same_folds: bool,
) -> tuple[Split, ...]:
    """The split of a file, for every repeat; or of a run, each repeat of which has its own."""
    splits = [fixed(values, str(place), groups=groups) for values in read_splits(place, paths, path_column)]
    names = [tuple(part.name for part in split.parts) for split in splits]
    if other := next((repeat for repeat, each in enumerate(names) if each != names[0]), None):
        raise LabelsError(
            f"{place}: column fold_{other} names {few(names[other], LISTED)}, and the first {few(names[0], LISTED)}; "
            "give the folds of all repeats the same names"
        )
    if len(splits) > 1 and same_folds and n_repeats != 1:
        raise LabelsError(f"{place} has folds of its own for each repeat; leave out --same-folds, or say --repeats 1")
    if len(splits) == 1:
        return tuple(splits) * (n_repeats or system.repeats)
    if n_repeats is not None and n_repeats > len(splits):
        raise LabelsError(
            f"{place} has the folds of {len(splits)} repeats, and --repeats {n_repeats} needs as many; ask for fewer"
        )
    return tuple(splits[:n_repeats])


def jobs(
    splits: Sequence[Split],
    *,
    groups: list[str] | None,
    strata: list[str] | None,
    n_tasks: int | None,
    inner: float,
    inner_folds: int,
    on_all: bool,
    seed: int,
) -> list[Job]:
    """Every model of a run: one per repeat and part, and per task if `n_tasks` says how many.

    Args:
        splits: one for each repeat.
        inner: share of the training rows that early stopping looks at, where the split does not name them.
        inner_folds: parts of the training rows by which an estimator chooses, where the split does not name them.
        on_all: also models that learn from all rows and are not tested.

    Raises:
        LabelsError: too few rows or groups to part.
    """
    found = []
    for repeat, split in enumerate(splits):
        parts: list[tuple[int, Part]] = list(enumerate(split.parts))
        if on_all:
            parts.append((ALL, Part("all", np.arange(len(split.folds)), np.empty(0, np.int64))))
        for number, part in parts:
            about = [seed, repeat, number] if number != ALL else [seed, repeat, 2**32 - 1]
            part_seed = _draw(about)
            fit, held = part.train, part.inner
            parted: tuple[NDArray[np.int64], ...] = ()
            if held is None:
                fit, held = split_inner(part.train, groups=groups, strata=strata, share=inner, seed=part_seed)
                parted = fold_inner(part.train, groups=groups, strata=strata, n_folds=inner_folds, seed=part_seed)
            tasks: Sequence[int | None] = [None] if n_tasks is None else range(n_tasks)
            for task in tasks:
                model_seed = part_seed if task is None else _draw([*about, task])
                found.append(
                    Job(repeat, None if number == ALL else number, task, fit, held, part.test, model_seed, parted)
                )
    return found


def pick(values: list[str] | None, chosen: NDArray[np.int64]) -> list[str] | None:
    return None if values is None else [values[i] for i in chosen]


def check_labelled(labels: NDArray[np.float32], names: Sequence[str]) -> None:
    """
    Raises:
        LabelsError: a task has no label at all among the rows that have features, or several that are the same.
    """
    for k, name in enumerate(names[: labels.shape[1]]):
        known = labels[np.isfinite(labels[:, k]), k]
        if not len(known):
            raise LabelsError(f"task {name!r} has no label among the {len(labels)} images that have features")
        if len(known) > 1 and (known == known[0]).all():
            raise LabelsError(
                f"all {len(known)} labels of {name!r} among the {len(labels)} images that have features are the same; "
                "there is nothing to learn: leave it out with --tasks"
            )


def check_learnable(system: System, target: Target, labels: NDArray[np.float32], found: Sequence[Job]) -> None:
    """
    Args:
        labels: (N, K), as `Target` says.

    Raises:
        LabelsError: a model would have too few labels of a task to learn from, or too few different ones.
    """
    for job in found:
        rows = job.fit if system.fit is None else np.concatenate([job.fit, job.inner])
        for task in range(labels.shape[1]) if job.task is None else (job.task,):
            name, known = target.tasks[task], labels[rows, task]
            known = known[np.isfinite(known)]
            if len(known) < system.least_labels:
                raise LabelsError(
                    f"{system.name!r} needs {system.least_labels} or more labels of {name!r}; there are {len(known)} "
                    f"on the {len(rows)} images that {job.name} would learn from; label more, use fewer folds, or "
                    "leave it out with --tasks"
                )
            if len(np.unique(known)) < system.least_distinct:
                what = target.classes[int(known[0])] if target.kind == "multiclass" else f"{known[0]:g}"
                raise LabelsError(
                    f"{system.name!r} cannot learn {name!r}: all {len(known)} labels that {job.name} would learn from "
                    f"are {what}; stratify by it (--stratify {name}), use fewer folds, or leave it out with --tasks"
                )


def _draw(about: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(about)).generate_state(1)[0])
