"""How two stores differ: which images and tensors each has, and how far apart the features are that both have."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, prod

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
    """How their identities differ, in words; empty if the identities are equal."""
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
    """The largest relative error that features of one identity may have; None where nothing is promised."""

    @property
    def within(self) -> bool | None:
        """Whether the features are as near as equal identities promise; None if nothing is promised or compared."""
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


@dataclass
class _Comparison:
    """A segment that two tensors share, and what is added up of its rows one by one."""

    found: SegmentDiff
    here: int = 0
    """Its place among the segments of the tensor here."""
    there: int = 0
    cosines: float = 0.0
    n_equal: int = 0
    n_read: int = 0

    def add(self, x: NDArray[np.float64], y: NDArray[np.float64], path: str) -> None:
        """Compare the values (V,) of one image."""
        if np.isfinite(x).all() and np.isfinite(y).all():
            error = float(np.abs(x - y).max())
            relative = error / max(float(np.abs(x).max()), float(np.abs(y).max()), 1e-12)
            lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
            cosine = float(x @ y) / lengths if lengths else float(not (x.any() or y.any()))
        else:  # any comparison with NaN is False: it would pass for no difference
            error, relative, cosine = (0.0, 0.0, 1.0) if np.array_equal(x, y, equal_nan=True) else (inf, inf, 0.0)
        found = self.found
        found.largest_error = max(found.largest_error, error)
        if relative > found.relative_error:
            found.relative_error, found.worst = relative, path
        found.lowest_cosine = min(found.lowest_cosine, cosine)
        self.cosines += cosine
        self.n_equal += int(((x == y) | (np.isnan(x) & np.isnan(y))).sum())
        self.n_read += 1

    def finish(self, n_values: int) -> None:
        """The means, over rows of `n_values` each; rows that were not read are equal to the last bit."""
        if n_rows := self.found.n_rows:
            self.found.mean_cosine = (self.cosines + n_rows - self.n_read) / n_rows
            self.found.equal_share = 1 - (self.n_read * n_values - self.n_equal) / (n_rows * n_values)


def _compare(here: StoredTensor, there: StoredTensor, pairs: NDArray[np.int64], found: Diff, report: Progress) -> None:
    """Compare two tensors of one name on (K, 2) pairs of rows of the same photo."""
    differing = here.layout.differences(there.layout)
    names, identities = (
        [[getattr(segment, fact) for segment in tensor.layout.segments] for tensor in (here, there)]
        for fact in ("name", "identity")
    )
    if differing and (names[0] != names[1] or identities[0] == identities[1]):
        found.layouts[here.name] = differing  # otherwise it is the segments that differ, and each says how
    mine, yours = (tensor.states[pairs[:, i]] == RowState.PRESENT for i, tensor in enumerate((here, there)))
    comparisons = _pair_segments(here, there)
    for each in comparisons:
        each.found.only_here, each.found.only_there = int((mine & ~yours).sum()), int((yours & ~mine).sum())
    found.segments += [each.found for each in comparisons]
    both = pairs[mine & yours]
    alike = [each for each in comparisons if _shape(here, each.here) == _shape(there, each.there)]
    for each in alike:
        each.found.n_rows = len(both)
    if not differing:  # the checksums say which rows are the same to the last bit
        both = both[here.checksums[both[:, 0]] != there.checksums[both[:, 1]]]
    for done, some, a, b in _read(here, there, both):
        for each in alike:
            for row, one, other in zip(some[:, 0].tolist(), a, b, strict=True):
                x = here.layout.part(one, each.here).astype(np.float64).reshape(-1)
                y = there.layout.part(other, each.there).astype(np.float64).reshape(-1)
                each.add(x, y, here.images.paths[row])
        report(f"diff {here.name}", done, len(both))
    for each in alike:
        each.finish(prod(n or 1 for n in _shape(here, each.here)))


def _pair_segments(here: StoredTensor, there: StoredTensor) -> list[_Comparison]:
    """The segments that have the same name in both tensors."""
    places = {segment.name: place for place, segment in enumerate(there.layout.segments)}
    comparisons = []
    for place, segment in enumerate(here.layout.segments):
        if segment.name not in places:
            continue
        other = there.layout.segments[places[segment.name]]
        found = SegmentDiff(here.name, segment.name, differences(segment.identity, other.identity))
        if segment.identity.get("dtype") == "uint8" or str(segment.identity.get("arithmetic")) in TOLERANCE:
            found.tolerance = tolerance(segment.identity)
        comparisons.append(_Comparison(found, place, places[segment.name]))
    return comparisons


def _shape(tensor: StoredTensor, place: int) -> tuple[int | None, int, int]:
    """(copies, T, F) of a segment; no copies if it is not of an augmented view."""
    segment = tensor.layout.segments[place]
    return segment.n_copies, segment.n_blocks, segment.width


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
