"""The dataset of an experiment: labels and features brought together."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import featstore
from heads.errors import LabelsError
from heads.labels.joining import Join, join, keep_copies_together
from heads.labels.target import JointTarget, Target
from heads.plan import Plan
from heads.splits.validation import check_labelled, pick
from heads.systems.system import System
from heads.training.tensors import choose_copies, choose_tensors


@dataclass(frozen=True)
class Dataset:
    """N images that have labels and features."""

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


def make_dataset(plan: Plan, system: System, on_join: Callable[[Join], None] | None = None) -> Dataset:
    """Find the tensors that the head reads, and the images that have features and labels.

    Raises:
        FeaturesError, LabelsError: as `train`.
    """
    target = plan.labels.target
    _check_kind(system, target)
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
    return Dataset(
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


def _check_kind(system: System, target: Target) -> None:
    """
    Raises:
        LabelsError: the labels are not of a kind that the head learns, or not of as many parts.
    """
    parts = target.parts if isinstance(target, JointTarget) else ()
    if system.parts and not (
        len(parts) == len(system.parts)
        and all(part.kind in kinds for part, kinds in zip(parts, system.parts, strict=True))
    ):
        wanted = " ".join(f"--part TASK:{kinds[0]}" for kinds in system.parts)
        found = (
            f"{len(parts)} parts ({', '.join(part.kind for part in parts)})" if parts else f"{target.kind} labels alone"
        )
        raise LabelsError(f"head {system.name!r} learns several labels in one model: say {wanted}; found {found}")
    if parts and not system.parts:
        raise LabelsError(
            f"head {system.name!r} learns labels of one kind; name them with --tasks and --kind, in place of --part"
        )
    if not parts and target.kind not in system.kinds:
        raise LabelsError(
            f"head {system.name!r} learns {' or '.join(system.kinds)} labels; these are {target.kind} "
            f"({', '.join(target.tasks[:5])}); choose another head (`heads list`) or say what they are with --kind"
        )
