"""From a call in Python to a `Plan`: a head, a store and labels as people have them; what is not said is as usual."""

import os
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import featstore
from featstore.support import as_path
from heads.errors import HeadsError, LabelsError
from heads.labels.labels import Labels, read_labels
from heads.labels.merging import Aggregate
from heads.labels.raters import Columns
from heads.labels.scales import Scales
from heads.labels.target import Kind, Target
from heads.plan import DEFAULT_MEMORY_BYTES, Plan
from heads.runs.run import new_run_folder
from heads.splits.validation import Validation
from heads.training.prediction import Precision

if TYPE_CHECKING:
    from heads.labels.labels import LabelSource

Place = PathLike[str] | str
"""Where a store is, or the store itself if it is open."""


def make_plan(
    system: str,
    store: Place | None = None,
    labels: "Labels | LabelSource | Sequence[LabelSource] | None" = None,
    *,
    out: Path | str | None = None,
    path_column: str | None = None,
    tasks: Sequence[str] = (),
    kind: Kind | None = None,
    scale: Scales | None = None,
    missing: str | Sequence[str] = (),
    aggregate: Aggregate | None = None,
    sd: Columns | None = None,
    n_raters: Columns | None = None,
    group: str | None = None,
    stratify: str | None = None,
    folds: int | None = None,
    hold_out: float | None = None,
    split: Path | str | None = None,
    tensors: str | Sequence[str] = (),
    augmented: str | Sequence[str] = (),
    options: Mapping[str, Any] | Sequence[str] = (),
    repeats: int | None = None,
    same_folds: bool = False,
    seed: int = 0,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    device: str = "auto",
    precision: Precision = "fp32",
    scheduler: str | None = None,
    strict: bool = False,
    photos: Path | str | None = None,
    exist_ok: bool = True,
) -> Plan:
    """What `heads.train` is asked for in one line; its arguments are described there.

    Raises:
        LabelsError: the labels cannot be read as asked.
        HeadsError: what is asked contradicts itself.
    """
    for name, given in (("hold_out", hold_out), ("split", split)):
        if folds is not None and given is not None:
            raise HeadsError(f"folds {folds} and {name} {given} contradict each other; name one")
    if precision not in get_args(Precision):
        raise HeadsError(f"precision {precision!r}: expected {' or '.join(get_args(Precision))}")
    config = featstore.find_config()
    by_column = split is not None and is_split_column(split)
    if isinstance(labels, Labels):
        said = [
            path_column,
            *tasks,
            kind,
            scale,
            *missing,
            aggregate,
            sd,
            n_raters,
            group,
            stratify,
            split if by_column else None,
        ]
        if any(each is not None for each in said):
            raise LabelsError(
                "labels that are read already have their tasks, scale and groups; say them to read_labels"
            )
        table, grouping = labels, None
    else:
        table, grouping = read_configured(
            labels,
            path_column=path_column,
            tasks=[tasks] if isinstance(tasks, str) else tasks,
            kind=kind,
            scales=scale,
            missing=[missing] if isinstance(missing, str) else missing,
            aggregate=aggregate,
            sd=sd,
            n_raters=n_raters,
            group=group,
            stratify=stratify,
            split=str(split) if by_column else None,
        )
    return Plan(
        system=system,
        store=config.store if store is None else place_of(store),
        labels=table,
        out=new_run_folder(config.runs, system) if out is None else out,
        tensors=[tensors] if isinstance(tensors, str) else tensors,
        augmented=[augmented] if isinstance(augmented, str) else augmented,
        changes=[f"{name}={_written(value)}" for name, value in options.items()]
        if isinstance(options, Mapping)
        else options,
        validation=Validation(
            folds or Validation.n_folds, hold_out, None if by_column else split, stratify, same_folds
        ),
        n_repeats=repeats,
        seed=seed,
        group=grouping,
        memory_bytes=memory_bytes,
        device=device,
        precision=precision,
        scheduler=scheduler,
        strict=strict,
        photos=photos if photos is not None or store is not None else config.photos,
        keep=exist_ok,
    )


def read_configured(
    labels: "LabelSource | Sequence[LabelSource] | None",
    *,
    path_column: str | None = None,
    tasks: Sequence[str] = (),
    kind: Kind | None = None,
    scales: Scales | None = None,
    aggregate: Aggregate | None = None,
    sd: Columns | None = None,
    n_raters: Columns | None = None,
    group: str | None = None,
    stratify: str | None = None,
    split: str | None = None,
    missing: Sequence[str] = (),
    like: Target | None = None,
) -> tuple[Labels, str | None]:
    """The labels, and what their groups are; what is left out comes from featstore.toml, if it is about the same table.

    Raises:
        LabelsError: no table is named, or it cannot be read as asked.
    """
    section = featstore.find_config().labels
    sources: list[LabelSource] = []
    if labels is not None:
        sources = list(labels) if isinstance(labels, list | tuple) else [cast("LabelSource", labels)]
    if sources and (section is None or [_file(each) for each in sources] != [section.file.resolve()]):
        section = None
    if not sources and section is None:
        raise LabelsError("no label table named; say --labels FILE.csv, or name it in featstore.toml under [labels]")
    grouping = group or (section.group if section else None)
    table = read_labels(
        sources or section.file,  # type: ignore[union-attr]
        path_column=path_column or (section.path_column if section else "path"),
        tasks=tasks or (section.tasks if section else ()),
        kind=kind,
        scales=scales or (section.scale if section else None),
        aggregate=aggregate,
        sd=sd,
        n_raters=n_raters,
        group=grouping,
        stratify=stratify,
        split=split,
        missing=missing,
        like=like,
    )
    return table, grouping


def place_of(store: Place) -> Path | str:
    """Where a store is."""
    place = fspath(store)
    return place if "://" in place else as_path(place)


def is_split_column(split: Path | str) -> bool:
    """Whether a split is a column of the labels, and not a file or a run."""
    there = os.path.exists(split)  # noqa: PTH110 (a column may have a name that no file can have)
    return not (there or "/" in str(split) or str(split).endswith(".csv"))


def _file(source: "LabelSource") -> Path | None:
    if not isinstance(source, str | Path):
        return None
    try:
        return as_path(source).resolve()
    except (OSError, RuntimeError):  # a link that leads to itself; whoever reads it says so
        return as_path(source).absolute()


def _written(value: object) -> str:
    """A value as --set takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
