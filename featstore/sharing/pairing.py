"""Which rows of two stores are of the same photo.

Rows are paired by the digest of the photo's bytes; a path is only a name. Where two stores have different photos under
one path, the store that lists the other's photo as gone is the newer one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DamagedError, StoreError
from featstore.photos.files import NO_DIGEST
from featstore.store import ImageState, ImageTable, Store
from featstore.store.format.limits import check_path
from featstore.support import few

ALIKE = 64
"""How many copies of a photo in a store are looked at for its features: a forged one may list a million."""


@dataclass(frozen=True)
class Pairs:
    """Rows of a target that are, or will be, of the same photo as rows of a source."""

    sources: dict[int, list[int]]
    """By row of the target, the rows of the source; the one with the same path comes first."""
    new: list[int]
    """Rows of the source whose photo the target does not list, in the order in which it will list them."""
    gone: list[int]
    """Rows of the target whose path has a newer photo in the source."""
    outdated: list[int]
    """Rows of the source whose path has a newer photo in the target."""


def pair(source: Store, target: Store | None, wanted: NDArray[np.bool_]) -> Pairs:
    """Find the rows of the target for the wanted rows of the source.

    Raises:
        DamagedError: the source lists a path twice.
        StoreError: a path has different photos here and there, and neither store knows which is newer; or no photo can
            have such a path.
    """
    theirs = _Known(target.images if target is not None else None)
    mine = _Known(source.images)
    pairs = Pairs({}, [], [], [])
    by_digest: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(wanted).tolist():
        digest = source.images.digests[row].tobytes()
        if digest != NO_DIGEST:
            by_digest.setdefault(digest, []).append(row)
    _retire(source, by_digest, mine, theirs)
    strange: list[str] = []
    named = set[str]()
    n_target = 0 if target is None else len(target.images)
    for digest, rows in sorted(by_digest.items(), key=lambda each: each[1]):
        there = theirs.rows.get(digest, [])
        by_path = {source.images.paths[row]: row for row in reversed(rows)}
        for row in there:
            same = by_path.get(theirs.paths[row])
            first = [] if same is None else [same]
            pairs.sources[row] = first + [each for each in rows[:ALIKE] if each != same]
        called = {theirs.paths[row] for row in there}
        lacking = [row for row in rows if source.images.paths[row] not in called]
        spare = len(there) - (len(rows) - len(lacking))
        for row in lacking[max(spare, 0) :]:
            path = source.images.paths[row]
            check_path(path, source.path)
            other = theirs.current.get(path)
            if other is not None and (path, digest) in theirs.earlier:
                pairs.outdated.append(row)
                continue
            if other is not None and (path, theirs.digests[other]) not in mine.earlier:
                strange.append(path)
                continue
            if path in named:
                raise DamagedError(f"{source.path} lists {path!r} twice, in row {row} too; nothing was taken from it")
            named.add(path)
            if other is not None:
                pairs.gone.append(other)
            pairs.new.append(row)
    if strange and target is not None:
        raise StoreError(
            f"{len(strange)} paths mean one photo in {source.path} and another in {target.path}: "
            f"{few(strange, quoted=True)}; give the photos other paths and extract again "
            "(features of the same photos are copied), or leave them "
            "out with --rows; nothing was changed"
        )
    pairs.new.sort()
    pairs.sources.update({n_target + place: [row] for place, row in enumerate(pairs.new)})
    return pairs


def _retire(source: Store, by_digest: dict[bytes, list[int]], mine: "_Known", theirs: "_Known") -> None:
    """Take out rows of the target whose path has a newer photo in the source: nothing is paired with them."""
    for digest, rows in by_digest.items():
        for row in rows:
            path = source.images.paths[row]
            other = theirs.current.get(path)
            if other is None or theirs.digests[other] == digest or (path, digest) in theirs.earlier:
                continue
            if (path, theirs.digests[other]) in mine.earlier:
                known = theirs.rows.get(theirs.digests[other], [])
                theirs.rows[theirs.digests[other]] = [each for each in known if each != other]


class _Known:
    """The photos of a store by digest and by path, and those that are gone."""

    def __init__(self, images: ImageTable | None) -> None:
        self.paths: list[str] = [] if images is None else images.paths
        self.digests: list[bytes] = [] if images is None else [digest.tobytes() for digest in images.digests]
        self.current = {} if images is None else images.rows_by_path
        self.rows: dict[bytes, list[int]] = {}
        self.earlier: set[tuple[str, bytes]] = set()
        for row, state in enumerate([] if images is None else images.states.tolist()):
            if state == ImageState.GONE:
                self.earlier.add((self.paths[row], self.digests[row]))
            else:
                self.rows.setdefault(self.digests[row], []).append(row)
