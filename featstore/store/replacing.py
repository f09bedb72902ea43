"""Removing and replacing tensors: the old one is set aside until the new one is complete.

What is set aside can still be read: the new tensor copies from it what is the same, and a run that is killed half-way
has lost nothing.
"""

import itertools
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from featstore.errors import StoreError, suggest
from featstore.store.format.images import ImageState, RowState
from featstore.store.format.integrity import DOCUMENT
from featstore.store.format.metadata import TensorFacts
from featstore.store.places.local import inside, sync_folder
from featstore.store.places.place import Location, Place
from featstore.store.store import open_store
from featstore.store.writer import Writer


def remove_tensors(place: Place, names: Sequence[str]) -> dict[str, int]:
    """Take tensors out of a store; by name, the bytes that are free again.

    Raises:
        FormatError: there is no store.
        StoreError: it has no such tensor; nothing is removed.
        LockedError: a process is writing to it.
    """
    open_store(place)  # a writer would make a new one
    with Writer(place) as writer:
        for name in names:
            if not name.isidentifier() or not writer.has_parts_of(name):
                raise StoreError(f"store {writer.path} has no tensor {name!r}; {suggest(name, writer.store)}")
        return {name: writer.remove(name) for name in dict.fromkeys(names)}


def set_aside(writer: Writer, name: str) -> None:
    """Give a tensor another name, to be copied from until what replaces it is complete.

    Its shards are linked or copied and its rows recorded under the new name before the old name is free: a
    process killed in between leaves the tensor under one of them, or under both.
    """
    tensor, store = writer.store[name], writer.store
    taken = [other for other in store if (store[other].states == RowState.PRESENT).any()]
    aside = next(n for n in (f"{name}_replaced{i or ''}" for i in itertools.count()) if n not in taken)
    writer.remove(aside)
    writer.create(TensorFacts(replace(tensor.layout, name=aside), str(tensor.dtype), tensor.compression))
    writer.array(f"tensors/{aside}").update_attributes({"replaced_by": name, "provenance": tensor.provenance})
    _copy_shards(writer.location, name, aside)
    rows = np.arange(len(tensor.states))
    writer.amend({f"checksums/{aside}": (rows, tensor.checksums), f"rows/{aside}": (rows, tensor.states)})
    writer.remove(name)


def remove_replaced(writer: Writer, name: str) -> tuple[int, list[str]]:
    """Take out what was set aside for a tensor that is complete now.

    Returns:
        The bytes that are free again, and the tensors that are kept because they alone have rows of some photos.
    """
    store = writer.store
    old = [tensor for tensor in store.tensors.values() if tensor.replaced_by == name]
    if name not in store.tensors:  # a run was killed before it made the new one
        return 0, [tensor.name for tensor in old]
    filled = store[name].states != RowState.ABSENT
    current = store.images.states != ImageState.GONE
    kept = [each.name for each in old if ((each.states == RowState.PRESENT) & current & ~filled).any()]
    return sum(writer.remove(each.name) for each in old if each.name not in kept), kept


def _copy_shards(location: Location, name: str, other: str) -> None:
    for key in location.keys(f"tensors/{name}/"):
        if not key.endswith(DOCUMENT):
            _link(location, key, key.replace(f"tensors/{name}/", f"tensors/{other}/", 1))
    if location.folder is not None:
        sync_folder(location.folder / "tensors" / other)


def _link(location: Location, key: str, other: str) -> None:
    """The same bytes under another key; a link where the disk has them, which takes no room."""
    if location.folder is not None:
        with suppress(OSError), inside(location.folder, key) as here, inside(location.folder, other) as there:
            if stat.S_ISREG(os.lstat(here[1], dir_fd=here[0]).st_mode):  # of a link the bytes are copied
                os.link(here[1], there[1], src_dir_fd=here[0], dst_dir_fd=there[0], follow_symlinks=False)
                return
    data = location.read(key)
    if data is not None:
        location.write(other, data)
