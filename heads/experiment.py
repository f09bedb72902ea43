"""Running an experiment: from a plan to a run folder."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import featstore
from featstore.support import Progress, no_progress, version
from heads.dataset import Dataset, make_dataset
from heads.errors import DivergedError, HeadsError, RunError, UnknownSystemError
from heads.labels.joining import Join
from heads.labels.joining import describe as describe_join
from heads.labels.labels import Labels
from heads.labels.merging import Aggregate
from heads.labels.raters import Columns
from heads.labels.scales import Scales
from heads.labels.target import JointTarget, Kind
from heads.plan import Plan
from heads.planning import Place, make_plan
from heads.raters.ceilings import Spreads
from heads.runs.config import RunConfig
from heads.runs.run import Run
from heads.runs.writing import write_results
from heads.splits.folds import Split
from heads.splits.validation import arrange, check_learnable, jobs, pick
from heads.systems.registry import find_system
from heads.training.checkpoints import Draft, differs
from heads.training.cost import Cost, cost_of, photos_at_a_time
from heads.training.failing import failures_in_words
from heads.training.features import Features
from heads.training.initial import find_initial
from heads.training.joint import COPIES, Work, n_threads, train_together
from heads.training.learner import Job, Problem, blank_model
from heads.training.prediction import Precision
from heads.training.tensors import describe

if TYPE_CHECKING:
    from heads.labels.labels import LabelSource
    from heads.runs.choosing import Choice

Resumed = Callable[[int, int], None]
"""Is told, of what is gone on with, how many models are finished, and of how many."""


def train(
    plan: Plan | str,
    store: Place | None = None,
    labels: "Labels | LabelSource | Sequence[LabelSource] | None" = None,
    *,
    out: Path | str | None = None,
    scale: Scales | None = None,
    missing: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] | None = None,
    kind: Kind | None = None,
    path_column: str | None = None,
    aggregate: Aggregate | None = None,
    sd: Columns | None = None,
    n_raters: Columns | None = None,
    group: str | None = None,
    stratify: str | None = None,
    folds: int | None = None,
    hold_out: float | None = None,
    split: Path | str | None = None,
    tensors: str | Sequence[str] | None = None,
    augmented: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | Sequence[str] | None = None,
    repeats: int | None = None,
    same_folds: bool | None = None,
    seed: int | None = None,
    memory_bytes: int | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    scheduler: str | None = None,
    strict: bool | None = None,
    photos: Path | str | None = None,
    exist_ok: bool | None = None,
    progress: bool | Progress = True,
    on_progress: Progress | None = None,
    on_join: Callable[[Join], None] | None = None,
    on_resume: Resumed | None = None,
    on_note: Callable[[str], object] | None = None,
) -> Run:
    """Cross-validate a head and leave a run folder; go on with it if it was interrupted.

    `train("ridge", "features.zarr", ratings, scale=(1, 7))` does what the command does; a plan says everything itself.
    What is returned shows the figures of every task with their intervals. Of labels of several kinds that one model
    learns it is the run of the first part; `run.parts` has those of all.

    Args:
        plan: a plan, or the name of a head.
        store: open, or where it is; that of featstore.toml if not said.
        labels: a pandas table, a file, several of these, or what `read_labels` made of them; a row is a photo, which
            the column `path` (or an index of words) names. Those of featstore.toml if not said.
        out: the run folder; a new one below `runs` of featstore.toml, named after the head and the time, if not said.
        scale, missing, tasks, kind, path_column, aggregate, sd, n_raters, group, stratify: of the labels; see
            `read_labels`.
        folds, hold_out: of the validation; see `Validation`.
        split: a column of the labels, a file, or a run, as `--split` takes it.
        tensors, augmented, memory_bytes, device, precision, scheduler, strict, photos: see `Plan`.
        options: changed options of the head, as {"lr": 3e-4}.
        repeats: whole cross-validations, each with new folds; or, with `same_folds`, trainings in the same ones.
        seed: decides folds, initial weights and shuffling.
        exist_ok: whether a complete run of the same plan that is at `out` already is returned as it is; it is, if not
            said, so that a cell can run again.
        progress: a bar in a notebook and on a terminal; False for none; or whom to tell.
        on_progress: whom to tell, by the name that other functions have for it.
        on_join: is told which photos have labels.
        on_resume: is told of what is gone on with, how many models are finished.
        on_note: is told what is good to know of the training, as that a GPU has memory for fewer models than were meant
            to learn at a time.

    Raises:
        UnknownSystemError: no such head or option.
        FeaturesError: the store has no tensor for it.
        LabelsError: labels and store do not match, cannot be split, or are not of a kind that the head learns.
        TrainingError: training diverged, or needs more memory than allowed.
        RunError: `plan.out` is taken, or was begun with another plan, or the disk refuses.
        featstore.FeatstoreError: the store cannot be read.
    """
    asked: dict[str, Any] = {
        "store": store,
        "labels": labels,
        "out": out,
        "scale": scale,
        "missing": missing,
        "tasks": tasks,
        "kind": kind,
        "path_column": path_column,
        "aggregate": aggregate,
        "sd": sd,
        "n_raters": n_raters,
        "group": group,
        "stratify": stratify,
        "folds": folds,
        "hold_out": hold_out,
        "split": split,
        "tensors": tensors,
        "augmented": augmented,
        "options": options,
        "repeats": repeats,
        "same_folds": same_folds,
        "seed": seed,
        "memory_bytes": memory_bytes,
        "device": device,
        "precision": precision,
        "scheduler": scheduler,
        "strict": strict,
        "photos": photos,
        "exist_ok": exist_ok,
    }
    said = {name: value for name, value in asked.items() if value is not None}
    if isinstance(plan, str):
        plan = make_plan(plan, **said)
    elif said:
        raise HeadsError(f"a plan says everything itself; leave out {', '.join(said)}, or change the plan")
    if plan.sweep:
        raise UnknownSystemError("a plan with a sweep is for heads.sweep, which leaves a run for every combination")
    notes: list[str] = []

    def join(joined: Join) -> None:
        notes.extend(describe_join(plan.labels, plan.group, joined))
        if on_join:
            on_join(joined)

    def note(text: str) -> None:
        notes.append(text)
        if on_note:
            on_note(text)

    with featstore.show_progress(on_progress or progress) as report:
        runs = _train(plan, {plan.out: list(plan.changes)}, report, join, on_resume, note).runs
    for run in runs:
        run.notes = tuple(notes)
    return runs[0]


@dataclass(frozen=True)
class Swept:
    """What a sweep leaves."""

    runs: list[Run]
    """One for each combination of values that was trained, in the order of the values."""
    diverged: dict[Path, str]
    """Combinations, by the folders their runs would have had, that came to nothing, and why."""

    @cached_property
    def choice(self) -> "Choice | None":
        """What the inner rows choose among the runs, and how good choosing so is; None if they cannot tell."""
        from heads.runs.choosing import choose

        return choose(self.runs)

    def __repr__(self) -> str:
        return "\n\n".join([*map(repr, self.runs), *(f"{out}: no run, {why}" for out, why in self.diverged.items())])


def sweep(
    plan: Plan,
    *,
    on_progress: Progress | None = None,
    on_join: Callable[[Join], None] | None = None,
    on_resume: Resumed | None = None,
    on_note: Callable[[str], object] | None = None,
) -> Swept:
    """As `train`, for every combination of the values of `plan.sweep`, in one pass: a run below `plan.out` for each.

    Runs of the same plan that are complete there already are left as they are. A combination that diverges leaves no
    run and does not end the others.

    Raises:
        DivergedError: every combination diverged.
        HeadsError: as `train`.
    """
    if (plan.out / "config.json").is_file():
        raise RunError(f"{plan.out} is a run, and a sweep leaves runs below its folder; choose another --out")
    combinations = [
        [f"{name}={value}" for name, value in zip(plan.sweep, values, strict=True)]
        for values in product(*plan.sweep.values())
    ]
    variants = {plan.out / _folder_name(each): [*plan.changes, *each] for each in combinations}
    return _train(plan, variants, on_progress, on_join, on_resume, on_note)


def _folder_name(changes: Sequence[str]) -> str:
    """
    Raises:
        UnknownSystemError: a value cannot be in the name of a folder.
    """
    name = ",".join(changes)
    if "/" in name or "\0" in name:
        raise UnknownSystemError(f"a sweep names its runs after the values, and {name!r} is no name of a folder")
    return name


def _train(
    plan: Plan,
    variants: Mapping[Path, Sequence[str]],
    on_progress: Progress | None,
    on_join: Callable[[Join], None] | None,
    on_resume: Resumed | None,
    on_note: Callable[[str], object] | None,
) -> Swept:
    """Train what is not complete of the runs that `variants` names, each by its changed options."""
    clock = time.perf_counter()
    started = {
        "command": plan.command,
        "directory": str(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    system = find_system(plan.system)
    settled = {out: system.settle(changes) for out, changes in variants.items()}
    if system.fit is not None:
        _refuse_what_is_by_gradient(plan)
    data = make_dataset(plan, system, on_join)
    splits = _splits(plan, data)
    device = _device(plan)
    problems = {out: _problem(plan, data, options, device) for out, options in settled.items()}
    with ExitStack() as stack:
        begun = [
            one
            for out, problem in problems.items()
            if (one := _begin(plan, out, problem, data, splits, started, stack)) is not None
        ]
        works = [work for one in begun for work in one.works]
        if on_resume and any(one.draft.resumed for one in begun):
            on_resume(sum(work.draft.finished(work.job) is not None for work in works), len(works))
        lost = _carry_out(plan, data, works, on_progress or no_progress, on_note) if works else {}
        diverged = {out: str(lost[problem]) for out, problem in problems.items() if problem in lost}
        if len(diverged) == len(problems):
            raise next(iter(lost.values()))
        for one in begun:
            if one.problem in lost:
                one.draft.discard()
            else:
                _finish(plan, one, data, splits, clock)
        places = [place for out in problems if out not in diverged for place in _places(plan, out)]
        return Swept([Run(place) for place in places], diverged)


def prepare(plan: Plan) -> tuple[Dataset, list[tuple[Problem, list[Job]]]]:
    """What would be trained, and on what: nothing is begun.

    Raises:
        HeadsError: as `train`.
    """
    system = find_system(plan.system)
    combinations = product(*plan.sweep.values())
    changes = [[f"{n}={value}" for n, value in zip(plan.sweep, values, strict=True)] for values in combinations]
    settled = [system.settle([*plan.changes, *each]) for each in changes]
    data = make_dataset(plan, system)
    splits = _splits(plan, data)
    device = _device(plan)
    problems = [_problem(plan, data, options, device) for options in settled]
    return data, [(problem, _models(plan, problem, data, splits)) for problem in problems]


def _splits(plan: Plan, data: Dataset) -> tuple[Split, ...]:
    return arrange(
        plan.validation,
        plan.labels,
        data.chosen,
        data.paths,
        data.groups,
        plan.seed,
        system=data.system,
        n_repeats=plan.n_repeats,
    )


def _places(plan: Plan, out: Path) -> list[Path]:
    """The folders of the runs that a training leaves: one for each part of the target, or `out` itself."""
    target = plan.labels.target
    return [out / name for name in target.names()] if isinstance(target, JointTarget) else [out]


@dataclass(frozen=True)
class _Begun:
    """A run that is not complete, and every model of it."""

    problem: Problem
    config: RunConfig
    draft: Draft
    works: list[Work]


def _begin(
    plan: Plan,
    out: Path,
    problem: Problem,
    data: Dataset,
    splits: tuple[Split, ...],
    started: Mapping[str, str],
    stack: ExitStack,
) -> _Begun | None:
    """Open the draft of a run on the stack; None if the plan takes a complete run as it is, and there is one.

    Raises:
        RunError: there is a complete run of another plan.
    """
    config = _config(plan, problem, data, splits, started)
    facts = _facts(plan, problem, config, splits, data)
    if (plan.keep or plan.sweep) and (other := differs(_places(plan, out)[0], facts)) is not None:
        if other:
            raise RunError(f"{out} is a run with other {', '.join(other)}; choose another --out, or remove it")
        return None
    models = _models(plan, problem, data, splits)
    draft = stack.enter_context(Draft(out, facts, arguments=plan.arguments, begun=started))
    return _Begun(problem, config, draft, [Work(problem, job, draft) for job in models])


def _finish(plan: Plan, run: _Begun, data: Dataset, splits: tuple[Split, ...], clock: float) -> None:
    jobs = [work.job for work in run.works]
    config = replace(
        run.config,
        models=tuple(job.name for job in jobs),
        elapsed_s=round(run.draft.before_s + time.perf_counter() - clock, 3),
        **run.draft.begun,
    )
    write_results(run.draft, jobs, config, splits, plan.labels, data)


def _refuse_what_is_by_gradient(plan: Plan) -> None:
    if plan.precision != "fp32":
        raise UnknownSystemError(f"head {plan.system!r} is solved, not trained by gradient; leave out --precision")
    if plan.augmented:
        raise UnknownSystemError(
            f"head {plan.system!r} is solved, and augmented copies are for heads trained by gradient; "
            "leave out --augmented, or train `linear`"
        )


def _device(plan: Plan) -> torch.device:
    """Where this process trains; where workers train, it need not have what is asked of them."""
    if plan.scheduler is None or plan.device == "auto":
        return featstore.choose_device(plan.device)
    return torch.device("cuda" if plan.device.startswith("cuda") else "cpu")


def _problem(plan: Plan, data: Dataset, options: Mapping[str, Any], device: torch.device) -> Problem:
    target = plan.labels.target
    shapes = tuple(tensor.layout.row_shape for tensor in data.tensors)
    layouts = tuple(tensor.layout.kind for tensor in data.tensors)
    initial, cost = {}, None
    if data.system.init or data.system.from_pixels:
        model = blank_model(data.system, shapes, layouts, target, options)
        initial = find_initial(data.system, options, model)
    if data.system.from_pixels:
        cost = cost_of(model, shapes)
        options = _within_memory(plan, data, options, cost, device)
    return Problem(
        system=data.system,
        options=options,
        target=target,
        shapes=shapes,
        layouts=layouts,
        initial=initial,
        cost=cost,
        labels=data.labels,
        sets=plan.labels.sets[data.chosen],
        seed=plan.seed,
        device=device,
        precision=plan.precision,
        swept=bool(plan.sweep),
    )


def _within_memory(
    plan: Plan, data: Dataset, options: Mapping[str, Any], cost: Cost | None, device: torch.device
) -> Mapping[str, Any]:
    """The options, with as many photos at a time as the memory of this machine holds; a GPU finds out by itself.

    Raises:
        TrainingError: it does not hold one.
    """
    if cost is None or options["micro"] or device.type != "cpu":
        return options
    features = Features(data.tensors, data.rows, memory_bytes=plan.memory_bytes, copies=data.copies)
    held = features.n_bytes if features.fits else plan.memory_bytes - features.stream_bytes
    left = plan.memory_bytes - held - COPIES * 4 * cost.n_parameters
    return {**options, "micro": photos_at_a_time(cost, options["batch"], left, data.system.name)}


def _models(plan: Plan, problem: Problem, data: Dataset, splits: tuple[Split, ...]) -> list[Job]:
    """Every model of a run, each with enough labels to learn from."""
    tasks = plan.labels.target.tasks
    models = jobs(
        splits,
        groups=data.groups,
        strata=pick(plan.labels.strata, data.chosen),
        n_tasks=len(tasks) if data.system.per_task and len(tasks) > 1 else None,
        inner=float(problem.options.get("inner", 0)),
        inner_folds=int(problem.options.get("inner_folds", 0)),
        on_all=plan.validation.hold_out is not None,
        seed=plan.seed,
    )
    check_learnable(data.system, plan.labels.target, data.labels, models)
    return models


def _carry_out(
    plan: Plan, data: Dataset, works: list[Work], report: Progress, note: Callable[[str], object] | None
) -> dict[Problem, DivergedError]:
    with failures_in_words(
        works[0].problem.device,
        smaller=", or a smaller --set batch=",
        kept="what was trained is kept, and the same command goes on from there; ",
    ):
        return _train_models(plan, data, works, report, note or (lambda text: None))


def _train_models(
    plan: Plan, data: Dataset, works: list[Work], report: Progress, note: Callable[[str], object]
) -> dict[Problem, DivergedError]:
    if plan.scheduler is not None:
        from heads.training.cluster import train_on

        return train_on(
            plan.scheduler,
            works,
            plan.store,
            data.tensors,
            data.copies,
            data.rows,
            plan.memory_bytes,
            plan.device,
            report,
        )
    on_cpu = works[0].problem.device.type == "cpu"
    features = Features(data.tensors, data.rows, memory_bytes=plan.memory_bytes, copies=data.copies)
    features.load(report)
    threads = n_threads() if on_cpu else 1
    return train_together(works, features, on_progress=report, threads=threads, stacked=not on_cpu, note=note)


def _facts(plan: Plan, problem: Problem, config: RunConfig, splits: tuple[Split, ...], data: Dataset) -> dict[str, Any]:
    """What a run that is gone on with has to agree on."""
    kind = problem.device.type
    streams = not Features(data.tensors, data.rows, memory_bytes=plan.memory_bytes, copies=data.copies).fits
    return {
        "kind": config.target.kind,
        "values of the labels": sha256(data.labels.tobytes()).hexdigest(),
        "groups": sha256("\n".join(data.groups or ()).encode()).hexdigest(),
        "strata": sha256("\n".join(pick(plan.labels.strata, data.chosen) or ()).encode()).hexdigest(),
        "memory": plan.memory_bytes if streams else "enough",  # it decides which rows are shuffled together
        "head": config.system,
        "options": config.options,
        "tasks": config.target.tasks,
        "classes": config.target.classes,
        "scales": config.scales,
        "seed": config.seed,
        "repeats": config.n_repeats,
        "split": config.split,
        "folds": sha256("\n".join(dict.fromkeys("\n".join(split.folds) for split in splits)).encode()).hexdigest(),
        "labels": config.labels["sha256"],
        **({"missing": config.labels["missing"]} if "missing" in config.labels else {}),
        "images": sha256("\n".join(data.digests).encode()).hexdigest(),
        "features": [
            [t["layout"], *(segment["hash"] for segment in t["segments"])] for t in (*config.tensors, *config.augmented)
        ],
        "precision": config.precision,
        **({"device": kind} if kind != "cpu" and data.system.fit is None else {}),  # it draws other numbers
        **({"initial weights": dict(config.initial)} if config.initial else {}),
        **({"plugin": config.plugin["sha256"]} if config.plugin else {}),
        **({"raters": plan.labels.raters.digest} if isinstance(plan.labels.raters, Spreads) else {}),
    }


def _config(
    plan: Plan,
    problem: Problem,
    data: Dataset,
    splits: tuple[Split, ...],
    begun: Mapping[str, Any],
) -> RunConfig:
    return RunConfig(
        system=problem.system.name,
        options=problem.options,
        target=plan.labels.target,
        scales=plan.labels.scales,
        n_images=len(data.paths),
        split=splits[0].words,
        parts=tuple(part.name for part in splits[0].parts),
        n_repeats=len(splits),
        redrawn=any(split.folds != splits[0].folds for split in splits),
        seed=plan.seed,
        group=plan.group,
        labels={
            "files": [os.fspath(file) for file in plan.labels.files],
            "sha256": list(plan.labels.sha256),
            "columns": list(plan.labels.columns),
            **({"missing": missing} if (missing := sorted(filter(None, plan.labels.missing))) else {}),
        },
        store=str(plan.store),
        tensors=tuple(describe(tensor) for tensor in data.tensors),
        augmented=tuple(describe(tensor) for tensor in data.copies),
        photos=_photos_folder(plan, data.tensors[0]),
        versions={name: version(name) for name in ("featstore", "torch", "numpy", "scikit-learn", "zarr", "dask")},
        elapsed_s=0.0,
        device=str(problem.device) if plan.scheduler is None else f"workers ({plan.device})",
        precision=problem.precision,
        initial={part: begun.sha256 for part, begun in problem.initial.items()},
        plugin={"name": plugin.plugin, "sha256": plugin.sha256} if (plugin := problem.system.plugin) else None,
        **begun,
    )


def _photos_folder(plan: Plan, tensor: featstore.StoredTensor) -> str | None:
    if plan.photos is not None:
        return str(plan.photos.absolute())
    recorded = [each.get("photos") for each in tensor.provenance]
    return next((str(each) for each in reversed(recorded) if each), None)
