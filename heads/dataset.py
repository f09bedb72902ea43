"""The dataset of an experiment: labels and features brought together."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import featstore
from heads.errors import LabelsError
from heads.labels.joining import Join, join, keep_copies_together
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
