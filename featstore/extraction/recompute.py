"""Proving features: some rows drawn at random are computed again from their photos and held against the store."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.backbones import WeightsPolicy
from featstore.engines import Hardware, Runtime
from featstore.extraction.changes import last_photos
from featstore.extraction.networks import Networks, from_stored, named_seeds
from featstore.extraction.timing import Stages
from featstore.identity import is_imported, tolerance
from featstore.store import ImageState, RowState, StoredTensor, open_store
from featstore.store.places.place import Place
from featstore.support import Progress, as_path, no_progress


@dataclass
class SegmentCheck:
    """How far the stored features of one segment are from those computed again."""

    tensor: str
    segment: str
    tolerance: float
    n_asked: int
    """Rows that were to be checked: fewer than were asked for where the tensor has no more."""
    n_rows: int = 0
    """Rows that were."""
    largest_error: float = 0.0
    """The largest difference, as a part of the largest feature of its row."""
    worst_row: int | None = None

    @property
    def within(self) -> bool:
        """Whether all that was to be checked was, and is right."""
        return self.n_rows >= self.n_asked and self.largest_error <= self.tolerance

    def compare(self, row: int, stored: NDArray[Any], computed: NDArray[Any]) -> None:
        """Hold the features of a row, (T, F), against those computed again."""
        theirs, ours = stored.astype(np.float32), computed.reshape(stored.shape).astype(np.float32)
        apart = float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), 1e-12))
        apart = np.inf if np.isnan(apart) else apart  # what is not a number is further off than any
        self.n_rows += 1
        if self.worst_row is None or (apart, -row) > (self.largest_error, -self.worst_row):
            self.largest_error, self.worst_row = apart, row


@dataclass
class Recomputation:
    """What computing rows again found out."""

    comparisons: list[SegmentCheck]
    photos: str
    """The folder that they were read from."""
    rows: list[int]
    skipped: dict[str, str]
    """By path, why a photo could not be computed again."""

    @property
    def n_checked(self) -> int:
        return len(self.rows) - len(self.skipped)

    @property
    def within(self) -> bool:
        """Whether something was checked, as much as was asked for, and is right."""
        return bool(self.n_checked) and all(comparison.within for comparison in self.comparisons)


def recompute(
    place: Place,
    n_rows: int,
    *,
    photos: Path | str | None = None,
    default_photos: Path | str | None = None,
    weights: WeightsPolicy | None = None,
    runtime: Runtime | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
) -> Recomputation:
    """Draw rows of every tensor, run their backbones again from the photos, and compare every segment.

    Tensors that hold the same images are checked by the same ones; what was imported cannot be computed again.

    Args:
        n_rows: of each tensor, or all that it has.
        photos: their folder; that of the last extraction if not said.
        default_photos: their folder where the store does not say, as one that was pulled, or says one that is gone.
        weights: where to look for weights; they have to be those that the features are of.
        seed: of the drawing; another one each time if not said.

    Raises:
        PhotosError: the folder of the photos is not known.
        LayoutError: the weights that are here are not those of the store; says in words what differs.
        WeightsError: there are none.
    """
    from featstore.extraction.forward import Backbones
    from featstore.extraction.pipeline import PhotoJob, Pipeline

    report = on_progress or no_progress
    store = open_store(place)
    tensors = [tensor for tensor in store.tensors.values() if len(tensor.rows) and not _only_imported(tensor)]
    root = as_path(photos) or last_photos(store, as_path(default_photos))
    policy = weights or WeightsPolicy()
    policy = replace(policy, named={**named_seeds(tensors), **policy.named})
    networks = Networks([from_stored(tensor, policy) for tensor in tensors], policy)
    for layout in networks.layouts():
        store[layout.name].check_same_layout(layout)
    backbones = Backbones(networks, Hardware.choose(runtime or Runtime()), report)

    images = store.images
    order = np.random.default_rng(seed).permutation(np.flatnonzero(images.states != ImageState.GONE))
    drawn = {tensor.name: order[tensor.states[order] == RowState.PRESENT][:n_rows].tolist() for tensor in tensors}
    rows = sorted({row for each in drawn.values() for row in each})
    comparisons = {
        (tensor.name, index): SegmentCheck(
            tensor.name, segment.name, tolerance(segment.identity), len(drawn[tensor.name])
        )
        for tensor in tensors
        for index, segment in enumerate(tensor.layout.segments)
        if not is_imported(segment.identity)
    }

    def job(number: int) -> PhotoJob:
        row = rows[number]
        hashes = {s.hash for t in tensors if t.states[row] == RowState.PRESENT for s in t.layout.segments}
        wanted = frozenset(hashes & set(backbones.segments))
        # By its number among the rows drawn: the pipeline waits for a full batch from rows that are close together.
        return PhotoJob(number, images.paths[row], images.digests[row].tobytes(), wanted)

    skipped = {}
    # However large: the store has its features.
    pipeline = Pipeline(root, backbones, None, Stages(), max_megapixels=math.inf)
    for done, result in enumerate(pipeline.run(map(job, range(len(rows))))):
        row = rows[result.row]
        if result.error:
            skipped[images.paths[row]] = result.error
        for tensor in tensors if result.features else ():
            if tensor.states[row] == RowState.PRESENT:
                stored = tensor.read([row])[0]
                for index, segment in enumerate(tensor.layout.segments):
                    if segment.hash in result.features:
                        part = tensor.layout.part(stored, index)
                        comparisons[tensor.name, index].compare(row, part, result.features[segment.hash])
        report("recompute", done + 1, len(rows))
    return Recomputation(list(comparisons.values()), str(root), rows, skipped)


def _only_imported(tensor: StoredTensor) -> bool:
    return all(is_imported(segment.identity) for segment in tensor.layout.segments)
