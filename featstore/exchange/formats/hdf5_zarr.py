"""Files of many arrays: HDF5, and Zarr in a folder, a zip file or a bucket; a featstore store is a Zarr too."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError
from featstore.exchange.formats.table import (
    FeatureFile,
    FeatureTable,
    Keys,
    choose_dataset,
    find_keys,
    make_table,
    needed,
    reading,
)
from featstore.support import LISTED, few


def read_hdf5(file: FeatureFile) -> FeatureTable:
    """A dataset, and datasets of keys in the same group."""
    h5py = needed("h5py", file.place)
    with reading(file.place, RuntimeError), h5py.File(file.place, "r") as opened:
        found: dict[str, Any] = {}

        def collect(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and node.shape is not None:
                found[name] = node

        opened.visititems(collect)
        name = choose_dataset(file, _numeric(found))
        dataset = found[name]
        keys = find_keys(file, _beside(name, found), lambda key: found[_join(name, key)][...])
        chunk_rows = dataset.chunks[0] if dataset.chunks else 1
        shape, dtype = dataset.shape, dataset.dtype

    def blocks(n_rows: int) -> Iterator[NDArray[Any]]:
        step = _whole_chunks(n_rows, chunk_rows)
        with reading(f"{file.place}: {name}", RuntimeError), h5py.File(file.place, "r") as again:
            for first in range(0, shape[0], step):
                yield again[name][first : first + step]

    return make_table(file, "hdf5", keys, shape, dtype, blocks)


def read_zarr(file: FeatureFile) -> FeatureTable:
    """An array, and arrays of keys in the same group; of a featstore store the rows that are present."""
    import zarr

    from featstore.store.places.locate import locate
    from featstore.store.places.network import reaching

    location = locate(file.place)
    with reaching(location.name), reading(location.name, zarr.errors.BaseZarrError):
        try:
            node = zarr.open(location.zarr_store, mode="r")
        except FileNotFoundError as error:
            raise ExchangeError(
                f"{location.name} is neither a group nor an array of Zarr; name a file with the suffix of its format, "
                "or the folder that has a zarr.json in it"
            ) from error
    if isinstance(node, zarr.Group) and "featstore" in node.attrs:
        return _read_store(file)
    with reaching(location.name), reading(location.name, zarr.errors.BaseZarrError):
        if isinstance(node, zarr.Array):
            found, name = {"": node}, ""
        else:
            found = {name: array for name, array in node.members(max_depth=None) if isinstance(array, zarr.Array)}
            name = choose_dataset(file, _numeric(found))
        array = found[name]
        keys = find_keys(file, _beside(name, found), lambda key: found[_join(name, key)][...])

    def blocks(n_rows: int) -> Iterator[NDArray[Any]]:
        step = _whole_chunks(n_rows, (array.shards or array.chunks)[0])
        with reaching(location.name), reading(f"{location.name}: {name}", zarr.errors.BaseZarrError):
            for first in range(0, array.shape[0], step):
                yield np.asarray(array[first : first + step])

    return make_table(file, "zarr", keys, array.shape, np.dtype(array.dtype), blocks)


def _read_store(file: FeatureFile) -> FeatureTable:
    """The present rows of a tensor, each of them checked; its images are the keys."""
    from featstore.store import open_store

    store = open_store(file.place)
    wanted = (file.dataset or "").strip("/").removeprefix("tensors/")
    if not wanted and len(store) != 1:
        raise ExchangeError(
            f"{store.path} is a feature store with the tensors {few(store, LISTED)}; name one with --dataset"
        )
    tensor = store[wanted or next(iter(store))]
    rows = tensor.rows
    if file.by == "digest":
        keys = Keys("digest", [store.images.digests[row].tobytes().hex() for row in rows])
    else:
        keys = find_keys(file, ["path"], lambda name: tensor.paths)

    def blocks(n_rows: int) -> Iterator[NDArray[Any]]:
        for first in range(0, len(rows), n_rows):
            yield tensor.read(rows[first : first + n_rows])

    return make_table(file, "featstore", keys, (len(rows), *tensor.layout.row_shape), tensor.dtype, blocks)


def _numeric(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items() if np.dtype(array.dtype).kind in "fiu"}


def _beside(name: str, arrays: Mapping[str, Any]) -> list[str]:
    """The names of the other arrays of a group."""
    group = _join(name, "")
    return [each.removeprefix(group) for each in arrays if each.startswith(group) and each != name]


def _join(name: str, other: str) -> str:
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{other}"


def _whole_chunks(n_rows: int, chunk_rows: int) -> int:
    """How many rows to read at a time, so that no chunk is decoded twice."""
    return -(-n_rows // chunk_rows) * chunk_rows
