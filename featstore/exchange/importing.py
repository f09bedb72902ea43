"""Importing: features made elsewhere become a tensor of one segment, under an identity of their own.

The table is read twice: first every value is checked and nothing is written into the store, then row blocks are filled
one by one. So a refusal changes nothing, and an import that was stopped goes on where it was.
"""

import hashlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ConfigError, ExchangeError, LayoutError, LockedError, PhotosError
from featstore.exchange.formats.registry import read_table
from featstore.exchange.formats.table import FeatureFile, FeatureTable
from featstore.exchange.matching import Images, Match, match
from featstore.exchange.values import Screening
from featstore.extraction.changes import Listing, last_photos, list_photos
from featstore.extraction.rows import ShardBuffer
from featstore.store import ImageState, RowState, Store, StoredSegment, TensorLayout, Writer, existing_store
from featstore.store.format.limits import check_space
from featstore.store.format.metadata import BLOCK_ROWS, Compression
from featstore.store.places.locate import locate
from featstore.store.places.place import Location, Place, plain
from featstore.store.replacing import remove_replaced, set_aside
from featstore.support import Progress, as_path, few, no_progress, versions

_KEPT = "{name} is kept: it alone has features of photos that this file has none of; `featstore rm {name}` takes it out"


@dataclass
class ImportSummary:
    """What an import did; counts are of images."""

    store: str
    tensor: str
    n_rows: int
    """Of the file."""
    row_shape: tuple[int, ...]
    dtype: str
    matched_by: str
    """path, file name or digest."""
    n_imported: int = 0
    n_kept: int = 0
    """Images whose features the store had already under the same identity."""
    n_listed: int = 0
    """Photos that the store did not list before."""
    unmatched: list[str] = field(default_factory=list)
    """Keys of rows that are of no image of the store."""
    without: list[str] = field(default_factory=list)
    """Images of the store that have no features in this tensor."""
    zeros: list[str] = field(default_factory=list)
    """Keys of rows that are all zeros, as rows are that were never written."""
    columns: list[str] = field(default_factory=list)
    """Of a table, those that are the features."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why its other columns are none."""
    notices: list[str] = field(default_factory=list)
    """Notes for the user, such as what was done about an earlier run that was killed."""
    n_bytes: int = 0
    n_reclaimed: int = 0
    """Bytes of a tensor that was replaced."""
    elapsed_s: float = 0.0


def import_features(
    name: str,
    source: FeatureFile | str | Path,
    *,
    store: Place,
    photos: Path | str | None = None,
    declared: str | None = None,
    facts: Mapping[str, Any] | None = None,
    backbone: int | None = None,
    dtype: str = "float16",
    compress: Compression | None = None,
    strict: bool = False,
    replace: bool = False,
    on_progress: Progress | None = None,
) -> ImportSummary:
    """Take features (N, F), or (N, T, F) of T blocks, from a file into a store as the tensor `name`.

    Args:
        photos: a folder whose photos are listed first; if None, the images are those that the store lists.
        declared: what the features are, in words. Equal words mean the same kind of features, so rows of other files
            may join them; if None, only the very same table has the same identity.
        facts: what the features are, as facts of their identity, where `featstore` made them of others.
        backbone: which one to take of (N, B, T, F).
        dtype: of the stored features, float16 or float32.
        strict: whether to refuse if a row has no image, an image no row, or a row is all zeros.
        replace: whether a tensor of this name that holds other features is replaced.

    Raises:
        ExchangeError: the file cannot be read, or does not fit the images.
        FeatureRangeError: a value is not finite, or the dtype cannot hold it.
        LayoutError: the store holds other features under this name, and may not replace them.
        PhotosError: there is no store yet and no folder of photos is named, or it holds none.
        StoreError: the store is locked, damaged, of another format, or the disk refuses.
    """
    started, report = time.perf_counter(), on_progress or no_progress
    photos, store = as_path(photos), plain(store)
    _check_words(name, dtype, declared)
    table = read_table(source if isinstance(source, FeatureFile) else FeatureFile(source))
    stored = existing_store(store)
    if stored is None and photos is None:
        raise PhotosError(f"there is no store {store} yet; name the folder of the photos with --photos to make one")
    listing = None if photos is None else list_photos(photos, stored, report)
    images = _images(stored, listing)
    found = match(table.keys, images, table.name)
    present = _present_rows(stored, name)
    wanted = np.full(len(found.rows), True) if replace else ~np.isin(found.rows, present)
    summary = ImportSummary(str(store), name, len(table), (), dtype, found.by, unmatched=found.unmatched)
    summary.columns, summary.left_out = list(table.columns), dict(table.left_out)
    summary.without = _without(images, found, present)
    _refuse_if(strict, summary, table)
    location = locate(store, writable=True)
    folder = _nearest(location)
    with Screening(table, found.table_rows[wanted], dtype=dtype, backbone=backbone, folder=folder) as screening:
        screening.check(report)
        layout = _layout(name, dtype, screening, declared, facts)
        summary.row_shape, summary.zeros = layout.row_shape, screening.zeros
        differing = _differences(layout, stored, replace=replace)
        summary.without = _without(images, found, () if differing else present)
        _refuse_if(strict, summary, table)
        work = _Work(layout, dtype, compress, found.rows[wanted], screening, bool(differing))
        if work.needed(stored, listing):
            check_space(folder, work.n_bytes(stored))
            provenance = _provenance(table, listing)
            with Writer(store) as writer:
                summary.notices += [writer.notice] if writer.notice else []
                summary.n_listed = _bring_up_to_date(writer, stored, listing)
                work.carry_out(writer, provenance, summary, report)
    summary.n_kept = len(found.rows) - summary.n_imported
    summary.elapsed_s = time.perf_counter() - started
    return summary


@dataclass(frozen=True)
class _Work:
    """Rows of the store to fill, and what with."""

    layout: TensorLayout
    dtype: str
    compress: Compression | None
    rows: NDArray[np.int64]
    """In ascending order."""
    values: Screening
    replaces: bool
    """Whether the store holds other features under this name."""

    def needed(self, store: Store | None, listing: Listing | None) -> bool:
        if store is None or self.replaces or (listing is not None and listing.changes):
            return True
        name = self.layout.name
        replaced = any(tensor.replaced_by == name for tensor in store.tensors.values())
        return bool(set(self.rows.tolist()) - set(_present_rows(store, name).tolist())) or replaced or store.unfinished

    def n_bytes(self, store: Store | None) -> int:
        """What the disk needs for it: a shard has its full size from the beginning."""
        block_rows = BLOCK_ROWS if store is None else store.block_rows
        row_bytes = self.layout.row_bytes(self.dtype)
        there = np.empty(0, np.int64) if self.replaces else _present_rows(store, self.layout.name)
        blocks = set((self.rows // block_rows).tolist()) - set((there // block_rows).tolist())
        return len(blocks) * (block_rows * (row_bytes + 20) + 4)

    def carry_out(self, writer: Writer, provenance: dict[str, Any], summary: ImportSummary, report: Progress) -> None:
        name = self.layout.name
        if self.replaces:
            set_aside(writer, name)
        writer.ensure_tensor(self.layout, self.dtype, compress=self.compress)
        states = writer.store[name].states
        if failed := self.rows[states[self.rows] == RowState.FAILED].tolist():
            writer.set_row_states(name, failed, RowState.ABSENT)
        if (writer.store[name].states[self.rows] == RowState.ABSENT).any():
            writer.record_run([name], provenance)
            self._fill(writer, summary, report)
        writer.reopen()
        freed, kept = remove_replaced(writer, name)
        summary.n_reclaimed += freed
        summary.notices += [_KEPT.format(name=each) for each in kept]

    def _fill(self, writer: Writer, summary: ImportSummary, report: Progress) -> None:
        """Commit the shards, one after the other."""
        name, store = self.layout.name, writer.store
        cuts = np.flatnonzero(np.diff(self.rows // store.block_rows)) + 1
        edges = [0, *cuts.tolist(), len(self.rows)]
        report("import", 0, len(self.rows))
        for first, last in itertools.pairwise(edges):
            shard = ShardBuffer(int(self.rows[first]) // store.block_rows, store, [self.layout])
            if shard.layouts and (n_filled := self._put(shard, first, last)):
                summary.n_imported += n_filled
                rows = {name: (shard.features[name], shard.states[name])}
                summary.n_bytes += writer.commit(shard.number, rows, shard.seen)
            report("import", last, len(self.rows))

    def _put(self, shard: ShardBuffer, first: int, last: int) -> int:
        """Fill the rows of a shard that are absent; returns how many."""
        features, states = shard.features[self.layout.name], shard.states[self.layout.name]
        places = self.rows[first:last] - shard.start
        absent = states[places] == RowState.ABSENT
        features[places[absent]] = self.values.read(first, last)[absent].reshape(-1, *self.layout.row_shape)
        states[places[absent]] = RowState.PRESENT
        return int(absent.sum())


def _check_words(name: str, dtype: str, declared: str | None) -> None:
    if not name.isidentifier():
        raise ConfigError(f"tensor name {name!r} should be letters, digits and underscores")
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"unknown --dtype {dtype!r}; say float16 or float32")
    if declared is not None and not declared.strip():
        raise ConfigError("--identity is empty; say what the features are, or leave it out")


def _images(store: Store | None, listing: Listing | None) -> Images:
    """The images that the store lists, or will once the photos of the folder are listed."""
    rows: dict[str, int] = {}
    digests: dict[str, bytes] = {}
    if store is not None:
        rows = dict(store.images.rows_by_path)
        digests = {path: store.images.digests[row].tobytes() for path, row in rows.items()}
    if listing is not None:
        return Images({**rows, **listing.rows()}, {**digests, **listing.digests()}, listing.root)
    try:
        root = None if store is None else last_photos(store)
    except PhotosError:
        root = None
    return Images(rows, digests, root)


def _present_rows(store: Store | None, name: str) -> NDArray[np.int64]:
    if store is None or name not in store.tensors:
        return np.empty(0, np.int64)
    return np.flatnonzero(store[name].states == RowState.PRESENT)


def _without(images: Images, found: Match, present: Iterable[int]) -> list[str]:
    """Paths of the images that will have no features."""
    filled = {*found.rows.tolist(), *map(int, present)}
    return [path for path, row in images.rows.items() if row not in filled]


def _refuse_if(strict: bool, summary: ImportSummary, table: FeatureTable) -> None:
    if not strict:
        return
    found = [
        f"{len(keys)} {what}: {few(keys)}"
        for keys, what in (
            (summary.unmatched, f"rows of {table.name} are of no image of the store"),
            (summary.without, f"images have no row in {table.name}"),
            (summary.zeros, f"rows of {table.name} are all zeros"),
        )
        if keys
    ]
    if found:
        raise ExchangeError("\n".join([*found, "refused by --strict; nothing was changed"]))


def _layout(
    name: str, dtype: str, values: Screening, declared: str | None, facts: Mapping[str, Any] | None
) -> TensorLayout:
    """One segment: a stack if it has several blocks, otherwise a concatenation."""
    known: Mapping[str, Any] = {"declared": declared} if declared is not None else facts or {"sha256": values.sha256}
    n_blocks, width = values.shape
    segment = StoredSegment(f"imported/{name}", {"imported": name, "dtype": dtype, **known}, n_blocks, width)
    return TensorLayout(name, "stack" if n_blocks > 1 else "concat", (segment,))


def _differences(layout: TensorLayout, store: Store | None, *, replace: bool) -> list[str]:
    """How what the store holds under this name differs, if it holds anything."""
    if store is None or not len(_present_rows(store, layout.name)):
        return []
    differing = layout.differences(store[layout.name].layout)
    if differing and not replace:
        raise LayoutError(
            f"tensor {layout.name!r} in {store.path} holds other features:\n"
            + "\n".join(f"  - {text}" for text in differing)
            + "\nimport them under another name, or --replace the tensor; to add rows to it from several files, say "
            "what the features are with --identity TEXT, in the same words each time; nothing was changed"
        )
    return differing


def _bring_up_to_date(writer: Writer, store: Store | None, listing: Listing | None) -> int:
    """List the photos; returns how many are new to the store.

    Raises:
        LockedError: another process has changed the images since they were matched.
    """
    if listing is not None:
        listing.apply(writer)
        return len(listing.new)
    before = np.empty(0, np.uint8) if store is None else store.images.states
    now = writer.store.images.states[: len(before)]
    if not np.array_equal(before == ImageState.GONE, now == ImageState.GONE):
        raise LockedError(f"another process has just changed {writer.path}; run the command again")
    return 0


def _nearest(location: Location) -> Path:
    """The folder on whose disk the store is or will be, or that of temporary files for a store far away."""
    if location.folder is None:
        return Path(tempfile.gettempdir())
    return next(each for each in location.folder.absolute().parents if each.exists())


def _provenance(table: FeatureTable, listing: Listing | None) -> dict[str, Any]:
    """Where the features came from."""
    file = Path(table.name)
    facts: dict[str, Any] = {"file": table.name if "://" in table.name else file.name, "format": table.format}
    if file.is_file():
        with file.open("rb") as data:
            facts["sha256"] = hashlib.file_digest(data, "sha256").hexdigest()
    facts |= {"rows": len(table), "keys": table.keys.kind, "dtype": str(table.dtype)}
    photos = {} if listing is None else {"photos": str(listing.root.absolute())}
    return {"versions": versions("featstore", "numpy", "zarr"), "imported": facts, **photos}
