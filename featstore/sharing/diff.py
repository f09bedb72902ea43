"""How far two stores are apart: which images and tensors each has, and what their shared features differ by."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from featstore.identity import TOLERANCE, differences, tolerance
from featstore.photos.files import NO_DIGEST
from featstore.sharing.selection import Selection
from featstore.store import RowState, Store, StoredTensor, open_store
from featstore.store.places.place import Place
from featstore.support import Progress, no_progress

AT_ONCE = 16  # rows


@dataclass
class SegmentDiff:
    """One segment that both sides have under the same name, over the images for which both have it."""

    tensor: str
    segment: str
    differences: list[str]
    """How their identities differ, in words; none: they are said to be the same features."""
    n_rows: int = 0
    only_here: int = 0
    """Images for which one side alone has it."""
    only_there: int = 0
    largest_error: float = 0.0
    """The largest difference of a value."""
    relative_error: float = 0.0
    """The same as a part of the largest value of its row."""
    worst: str = ""
    """The image with the largest relative error."""
    lowest_cosine: float = 1.0
    mean_cosine: float = 1.0
    equal_share: float = 1.0
    """Of the values, those that are equal to the last bit."""
    tolerance: float | None = None
    """What the relative error of the same features may be; None where nothing is promised."""

    @property
    def within(self) -> bool | None:
        """Whether the features may be mixed; None if they cannot be compared, or are not said to be the same."""
        if self.differences or not self.n_rows or self.tolerance is None:
            return None
        return self.relative_error <= self.tolerance


@dataclass
class Diff:
    """Two stores, side by side: here and there."""

    here: str
    there: str
    n_shared: int
    """Images that both list, told by their bytes."""
    only_here: list[str]
    only_there: list[str]
    tensors_here: list[str] = field(default_factory=list)
    """Tensors that one side alone has."""
    tensors_there: list[str] = field(default_factory=list)
    layouts: dict[str, list[str]] = field(default_factory=dict)
    """By tensor that both have, how its layout differs."""
    segments: list[SegmentDiff] = field(default_factory=list)

    @property
    def same(self) -> bool:
        apart = any(s.differences or s.only_here or s.only_there or s.equal_share < 1 for s in self.segments)
        lists = (self.only_here, self.only_there, self.tensors_here, self.tensors_there, self.layouts)
        return not apart and not any(lists)


def diff(here: Place, there: Place, *, selection: Selection | None = None, on_progress: Progress | None = None) -> Diff:
    """Compare two stores, or versions of shared repositories; nothing is written.

    Raises:
        FormatError: one of them is no store.
        DamagedError: a row is not what was computed for it.
    """
    one, other, wanted = open_store(here), open_store(there), selection or Selection()
    rows, rows_there = _by_digest(one, wanted), _by_digest(other, Selection())
    shared = {digest: (row, rows_there[digest]) for digest, row in rows.items() if digest in rows_there}
    names = wanted.tensors_of(one)
    found = Diff(
        one.path,
        other.path,
        len(shared),
        [one.images.paths[row] for digest, row in rows.items() if digest not in rows_there],
        [other.images.paths[row] for digest, row in rows_there.items() if digest not in rows],
        [name for name in names if name not in other.tensors],
        [name for name in other.tensors if name not in one.tensors and wanted.tensors is None],
    )
    if wanted.rows is not None:
        found.only_there = []  # those that were not asked for
    pairs = np.array(sorted(shared.values()), np.int64).reshape(-1, 2)
    report = on_progress or no_progress
    for name in names:
        if name in other.tensors:
            _compare(one[name], other[name], pairs, found, report)
    return found


def _compare(here: StoredTensor, there: StoredTensor, pairs: NDArray[np.int64], found: Diff, report: Progress) -> None:
    identities = (
        [(s.name, s.identity) for s in here.layout.segments],
        [(s.name, s.identity) for s in there.layout.segments],
    )
    if identities[0] == identities[1] and (layout := here.layout.differences(there.layout)):
        found.layouts[here.name] = layout
    elif [name for name, _ in identities[0]] != [name for name, _ in identities[1]]:
        found.layouts[here.name] = here.layout.differences(there.layout)
    mine, yours = (t.states[pairs[:, i]] == RowState.PRESENT for i, t in enumerate((here, there)))
    places = {segment.name: index for index, segment in enumerate(there.layout.segments)}
    both = pairs[mine & yours]
    segments = []
    for index, segment in enumerate(here.layout.segments):
        if segment.name not in places:
            continue
        other = there.layout.segments[places[segment.name]]
        comparison = SegmentDiff(here.name, segment.name, differences(segment.identity, other.identity))
        comparison.only_here, comparison.only_there = int((mine & ~yours).sum()), int((yours & ~mine).sum())
        if segment.identity.get("dtype") == "uint8" or str(segment.identity.get("arithmetic")) in TOLERANCE:
            comparison.tolerance = tolerance(segment.identity)
        shapes = [(s.n_copies, s.n_blocks, s.width) for s in (segment, other)]
        if shapes[0] == shapes[1]:
            comparison.n_rows = len(both)
            segments.append((comparison, index, places[segment.name]))
        found.segments.append(comparison)
    if not here.layout.differences(there.layout):  # the checksums say which rows are the same to the last bit
        both = both[here.checksums[both[:, 0]] != there.checksums[both[:, 1]]]
    sums = {id(comparison): [0.0, 0, 0] for comparison, _, _ in segments}
    for done, some, a, b in _read(here, there, both):
        for comparison, index, place in segments:
            for row, one, other_row in zip(some[:, 0].tolist(), a, b, strict=True):
                x = here.layout.part(one, index).astype(np.float64).reshape(-1)
                y = there.layout.part(other_row, place).astype(np.float64).reshape(-1)
                _add(comparison, x, y, here.store.images.paths[row], sums[id(comparison)])
        report(f"diff {here.name}", done, len(both))
    for comparison, index, _ in segments:
        cosine, n_equal, n_read = sums[id(comparison)]
        if n_rows := comparison.n_rows:
            segment = here.layout.segments[index]
            n_values = n_rows * segment.n_blocks * segment.width * (segment.n_copies or 1)
            comparison.mean_cosine = (cosine + n_rows - n_read) / n_rows
            comparison.equal_share = 1 - (n_read * (n_values // n_rows) - n_equal) / n_values


def _add(comparison: SegmentDiff, x: NDArray[np.float64], y: NDArray[np.float64], path: str, sums: list[float]) -> None:
    if np.isfinite(x).all() and np.isfinite(y).all():
        error = float(np.abs(x - y).max())
        relative = error / max(float(np.abs(x).max()), float(np.abs(y).max()), 1e-12)
        lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
        cosine = float(x @ y) / lengths if lengths else float(not (x.any() or y.any()))
    else:  # a comparison with what is no number is False whatever it asks: it would pass for no difference
        error, relative, cosine = (0.0, 0.0, 1.0) if np.array_equal(x, y, equal_nan=True) else (inf, inf, 0.0)
    comparison.largest_error = max(comparison.largest_error, error)
    if relative > comparison.relative_error:
        comparison.relative_error, comparison.worst = relative, path
    comparison.lowest_cosine = min(comparison.lowest_cosine, cosine)
    sums[0] += cosine
    sums[1] += int(((x == y) | (np.isnan(x) & np.isnan(y))).sum())
    sums[2] += 1


def _read(
    here: StoredTensor, there: StoredTensor, pairs: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.generic], NDArray[np.generic]]]:
    for first in range(0, len(pairs), AT_ONCE):
        some = pairs[first : first + AT_ONCE]
        yield first + len(some), some, here.read(some[:, 0]), there.read(some[:, 1])


def _by_digest(store: Store, selection: Selection) -> dict[bytes, int]:
    """The first current row of each photo."""
    rows: dict[bytes, int] = {}
    for row in np.flatnonzero(selection.rows_of(store)).tolist():
        rows.setdefault(store.images.digests[row].tobytes(), row)
    rows.pop(NO_DIGEST, None)
    return rows
