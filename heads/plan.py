"""What to train, on what, and labels and features brought together for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import featstore
from heads.errors import LabelsError
from heads.labels.joining import Join, join, keep_copies_together
from heads.labels.labels import Labels
from heads.splits.validation import Validation, check_labelled, pick
from heads.systems.system import System
from heads.training.prediction import Precision
from heads.training.tensors import choose_copies, choose_tensors

DEFAULT_MEMORY_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Plan:
    """What to train, on what, and how to validate it."""

    system: str
    """The name of the head."""
    store: Path | str
    """A folder, a zip file, a URL, or a version of a shared repository."""
    labels: Labels
    """What to learn."""
    out: Path
    """The run folder to write."""
    tensors: Sequence[str] = ()
    """Those to read; if none is named, one of the head's own name, or the only one of its layout."""
    augmented: Sequence[str] = ()
    """Tensors of augmented copies, one for each that is read: training sees a photo or any of its copies."""
    changes: Sequence[str] = ()
    """Changed options, written `name=value`."""
    sweep: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Options and the values of each that are tried, all of them together in one pass over the features."""
    validation: Validation = field(default_factory=Validation)
    """How the photos are split."""
    n_repeats: int | None = None
    """Trainings of each model; as many as the system's paper if None."""
    seed: int = 0
    """Decides folds, initial weights and shuffling."""
    group: str | None = None
    """What the groups of `labels` are, for the record."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """For features and models at most; what does not fit is streamed."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Precision = "fp32"
    """Of the arithmetic in training."""
    scheduler: str | None = None
    """The address of a Dask scheduler whose workers train the models; this process if None."""
    strict: bool = False
    """Whether photos without labels, and labels without photos, are refused."""
    keep: bool = False
    """A complete run of the same plan that is at `out` already is taken as it is; a sweep always does so."""
    photos: Path | None = None
    """For the report's pictures."""
    command: str = ""
    """The command that asks for it, for the record."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those of the command, for `heads resume`."""


@dataclass(frozen=True)
class Prepared:
    """Labels and features brought together: N images that have both."""

    system: System
    store: featstore.Store
    tensors: list[featstore.StoredTensor]
    copies: list[featstore.StoredTensor]
    """Of augmented copies, for each tensor; empty if none are learnt from."""
    rows: NDArray[np.int64]
    """(N,) in the store, ascending."""
    chosen: NDArray[np.int64]
    """(N,) in the label table."""
    paths: list[str]
    groups: list[str] | None
    digests: list[str]
    labels: NDArray[np.float32]
    """(N, K), as `Target` says."""


def prepare(plan: Plan, system: System, on_join: Callable[[Join], None] | None = None) -> Prepared:
    """Find the tensors and bring labels and features together.

    Raises:
        FeaturesError, LabelsError: as `train`.
    """
    target = plan.labels.target
    if target.kind not in system.kinds:
        raise LabelsError(
            f"head {system.name!r} learns {' or '.join(system.kinds)} labels; these are {target.kind} "
            f"({', '.join(target.tasks[:5])}); choose another head (`heads list`) or say what they are with --kind"
        )
    store = featstore.open(plan.store, keep_mapped=False)
    tensors = choose_tensors(store, system, plan.tensors)
    copies = choose_copies(store, tensors, plan.augmented)
    rows = tensors[0].rows
    for tensor in (*tensors[1:], *copies):
        rows = np.intersect1d(rows, tensor.rows)
    digests = [store.images.digests[row].tobytes().hex() for row in rows]
    matched = join(plan.labels, [store.images.paths[row] for row in rows], rows, digests=digests, strict=plan.strict)
    digests = [store.images.digests[row].tobytes().hex() for row in matched.store_rows]
    groups, n_copies = keep_copies_together(pick(plan.labels.groups, matched.label_rows), digests, matched.paths)
    if on_join:
        on_join(replace(matched, n_copies=n_copies))
    chosen = matched.label_rows
    labels = plan.labels.scaled()[chosen]
    check_labelled(labels, target.tasks)
    return Prepared(
        system,
        store,
        tensors,
        copies,
        matched.store_rows,
        chosen,
        [store.images.paths[row] for row in matched.store_rows],
        groups,
        digests,
        labels,
    )
