"""Exporting: the features of the images that every chosen tensor has, in a file of another format.

The file is written under a temporary name beside its place and renamed when all of it is on the disk, so that a file
of that name is always complete.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError, StoreWriteError
from featstore.exchange.formats.registry import BY_SUFFIX, FORMATS
from featstore.exchange.formats.writers import Contents
from featstore.store import ImageState, RowState, Store, StoredTensor, open_store
from featstore.store.places.local import cannot_write, sync_folder
from featstore.store.places.place import Place
from featstore.support import Progress, as_path, few

_PART = ".part"
_TAKEN = ("path", "digest", "about")
"""Names that an exported file has beside the tensors."""


@dataclass
class ExportSummary:
    """What an export did; counts are of images."""

    store: str
    file: str
    format: str
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By name, the shape that was written."""
    dtypes: dict[str, str] = field(default_factory=dict)
    n_images: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """By reason, the paths of the images that were not exported."""
    n_bytes: int = 0
    elapsed_s: float = 0.0


def export(
    store: Place,
    to: str | Path,
    *,
    tensors: Sequence[str] | None = None,
    format: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> ExportSummary:
    """Write the images that are present in all of some tensors into a file of another format.

    Args:
        tensors: their names; all if None.
        format: npz, hdf5, parquet or zarr; if None, the suffix of `to` says which.
        strict: whether to refuse if any image has to be left out.
        overwrite: whether an existing file, or folder of a Zarr group, is replaced.

    Raises:
        ExchangeError: an unknown format, something is there already, or there is nothing to export.
        StoreError: there is no such tensor; the store is damaged, or not there.
        StoreWriteError: the disk refuses; nothing is left behind.
    """
    started = time.perf_counter()
    target, (kind, write) = as_path(to), _format(to, format)
    opened = open_store(store)
    _check_target(target, kind, opened, overwrite=overwrite)
    chosen = _choose(opened, tensors)
    rows, left_out = _select(opened, chosen)
    _refuse_if(strict, left_out)
    if not len(rows):
        raise ExchangeError(
            f"no image of {opened.path} has features in all of {', '.join(each.name for each in chosen)}; "
            "choose fewer with --tensors, or `featstore extract` first"
        )
    n_bytes = sum(each.row_bytes for each in chosen) * len(rows)
    _check_space(target, n_bytes)
    images = opened.images
    contents = Contents(
        [images.paths[row] for row in rows],
        [images.digests[row].tobytes().hex() for row in rows],
        chosen,
        rows,
        _counted(on_progress, len(rows) * len(chosen)),
    )
    with _appearing(target, overwrite=overwrite) as part:
        write(part, contents)
        n_bytes = sum(each.stat().st_size for each in [part, *part.rglob("*")] if each.is_file())
    return ExportSummary(
        opened.path,
        str(target),
        kind,
        tensors={each.name: (len(rows), *each.layout.row_shape) for each in chosen},
        dtypes={each.name: str(each.dtype) for each in chosen},
        n_images=len(rows),
        left_out=left_out,
        n_bytes=n_bytes,
        elapsed_s=time.perf_counter() - started,
    )


def _format(to: str | Path, named: str | None) -> tuple[str, Callable[[Path, Contents], None]]:
    """The name of the format to write, and its writer."""
    if "://" in str(to):
        raise ExchangeError(f"{to} is a URL; export into a local file and copy it there")
    writers = {each.name: each.write for each in FORMATS if each.write is not None}
    known = ", ".join(sorted(writers))
    if named is not None:
        if named not in writers:
            raise ExchangeError(f"unknown --format {named!r}; say {known}")
        return named, writers[named]
    suffix = Path(to).suffix.lower()
    if suffix not in BY_SUFFIX or BY_SUFFIX[suffix].name not in writers:
        suffixes = ", ".join(suffix for suffix, each in BY_SUFFIX.items() if each.name in writers)
        raise ExchangeError(
            f"{to}: the suffix {suffix or 'none'!r} is not one of {suffixes}; name a --format of {known}"
        )
    name = BY_SUFFIX[suffix].name
    return name, writers[name]


def _choose(store: Store, names: Sequence[str] | None) -> list[StoredTensor]:
    if names is None:
        names = [name for name, tensor in store.tensors.items() if tensor.replaced_by is None]
    elif not names:
        raise ExchangeError(f"--tensors names none; store {store.path} has {', '.join(store) or 'none either'}")
    chosen = [store[name] for name in dict.fromkeys(names)]
    if not chosen:
        raise ExchangeError(f"store {store.path} has no tensors to export; `featstore extract` makes some")
    for tensor in chosen:
        if tensor.name in _TAKEN:
            raise ExchangeError(
                f"the tensor {tensor.name!r} cannot be exported: {', '.join(_TAKEN)} are names of the keys beside it"
            )
    return chosen


def _select(store: Store, tensors: Sequence[StoredTensor]) -> tuple[NDArray[np.int64], dict[str, list[str]]]:
    """The rows that are present in all tensors, and by reason the paths of the images that are left out."""
    images = store.images
    present = np.stack([tensor.states == RowState.PRESENT for tensor in tensors])
    whole, gone = present.all(axis=0), images.states == ImageState.GONE
    unreadable = images.states == ImageState.UNREADABLE
    left_out: dict[str, list[str]] = {}
    for row in np.flatnonzero(gone & present.any(axis=0)):
        if images.paths[row] not in images.rows_by_path:
            left_out.setdefault("gone: the photo was changed or removed", []).append(images.paths[row])
    for row in np.flatnonzero(~gone & ~whole):
        lacking = [tensor.name for tensor, there in zip(tensors, present[:, row], strict=True) if not there]
        reason = f"absent: no features yet in {', '.join(lacking)}"
        if unreadable[row]:
            reason = "failed: the photo cannot be read"
        left_out.setdefault(reason, []).append(images.paths[row])
    return np.flatnonzero(~gone & whole), left_out


def _refuse_if(strict: bool, left_out: dict[str, list[str]]) -> None:
    current = {reason: paths for reason, paths in left_out.items() if not reason.startswith("gone")}
    if strict and current:
        found = [f"{len(paths)} images would be left out, {reason}: {few(paths)}" for reason, paths in current.items()]
        raise ExchangeError("\n".join([*found, "refused by --strict; nothing was written"]))


def _check_target(target: Path, kind: str, store: Store, *, overwrite: bool) -> None:
    """Refuse to write over what is there, or into a store.

    Raises:
        ExchangeError: names what is in the way.
    """
    place = Path(os.path.realpath(target))
    source = Path(os.path.realpath(store.path))  # of a URL it is nothing that could be here
    if place == source or source in place.parents or place in source.parents:
        raise ExchangeError(f"{target} and the store {store.path} lie in each other; export to another place")
    if not target.parent.is_dir():
        raise ExchangeError(f"the folder {target.parent} does not exist; make it, or export to another one")
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise ExchangeError(f"{target} exists already; name another file, or replace it with --overwrite")
    if target.is_dir() != (kind == "zarr") or target.is_symlink():
        what = "a link" if target.is_symlink() else "a folder" if target.is_dir() else "a file"
        raise ExchangeError(f"{target} is {what}, and an export as {kind} does not replace that; name another place")
    if target.is_dir():
        _check_replaceable(target)


def _check_replaceable(folder: Path) -> None:
    """Refuse to delete a folder that no export has made."""
    import zarr

    try:
        made_by = str(zarr.open_group(folder, mode="r").attrs.get("made_by", ""))
    except (OSError, ValueError, KeyError, TypeError):
        made_by = ""
    if not made_by.startswith("featstore"):
        raise ExchangeError(f"the folder {folder} was not made by an export, so it is not replaced; name another place")


def _check_space(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise StoreWriteError(
            f"the export will take {n_bytes / 1e9:.2f} GB and {target.parent} has {free / 1e9:.2f} GB free; "
            "free some space or export elsewhere; nothing was written"
        )


@contextmanager
def _appearing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path in a hidden folder beside the target; the file written there becomes the target when all went well.

    Raises:
        StoreWriteError: the disk refuses.
    """
    folder, lock = None, None
    try:
        _remove_leftovers(target)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PART, dir=target.parent))
        lock = _lock(folder)
        part = folder / "new"
        yield part
        _sync(part)
        if overwrite and target.is_dir():
            target.rename(folder / "old")
        elif not overwrite and target.exists():
            raise ExchangeError(f"{target} has appeared meanwhile; name another file, or replace it with --overwrite")
        part.replace(target)
        sync_folder(target.parent)
    except (OSError, StoreWriteError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        reason, _, _ = str(cannot_write(target, cause)).partition(";")
        raise StoreWriteError(f"{reason}; nothing of the export is left behind") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(target: Path) -> None:
    """Delete what a killed export to this place has left; one that is still running holds the lock of its folder."""
    for folder in target.parent.iterdir():
        if folder.name.startswith(f".{target.name}.") and folder.name.endswith(_PART) and folder.is_dir():
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder as long as this process lives; None if another process has, or the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync(part: Path) -> None:
    """Flush a file to the disk; those of a Zarr group have been."""
    if part.is_file():
        with part.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(part.parent)


def _counted(report: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(n_rows: int) -> None:
        nonlocal done
        done += n_rows
        if report is not None:
            report("export", done, total)

    return count
