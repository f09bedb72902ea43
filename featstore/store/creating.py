"""Making a new store, and only where nothing else is.

It appears whole: a process killed at any moment leaves nothing that opens as a store, and nothing that stops the next.
"""

import shutil

from featstore.store.format.integrity import DOCUMENT
from featstore.store.format.metadata import skeleton
from featstore.store.places.local import cannot_write, sync_folder, write_durably
from featstore.store.places.place import Location


def is_empty(location: Location, *, block_rows: int) -> bool:
    """Whether there is nothing at a place, or at most what a writer killed while making such a store has left."""
    folder = location.folder
    if folder is not None:
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    begun = {"writer.json", *skeleton(block_rows=block_rows, n_rows=0)} - {DOCUMENT}  # the root is written last
    return set(location.keys()) <= begun


def create_store(location: Location, *, block_rows: int) -> None:
    """A new store without images: in a folder it is made beside its place and renamed into it.

    Raises:
        StoreWriteError: the disk refuses.
    """
    folder = location.folder
    documents = skeleton(block_rows=block_rows, n_rows=0)
    if folder is None:
        for key, data in documents.items():
            location.write(key, data)
        return
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for key, data in documents.items():
            write_durably(part / key, data)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(location.name, error) from error
