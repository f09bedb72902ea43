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
    check_block,
    check_rows,
    choose_dataset,
    find_keys,
    make_table,
    needed,
    read_keys,
    reading,
)
from featstore.support import LISTED, few


def read_hdf5(file: FeatureFile) -> FeatureTable:
    """A dataset, and datasets of keys in the same group."""
    h5py = needed("h5py", file.place)
    with reading(file.place, RuntimeError), h5py.File(file.place, "r") as opened:
        found: dict[str, Any] = {}

        def collect(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and node.shape is not None and not _lies_elsewhere(node):
                found[name] = node

        opened.visititems(collect)
        name = choose_dataset(file, _numeric(found))
        dataset = found[name]
        chunk_rows = dataset.chunks[0] if dataset.chunks else 1
        shape, dtype = dataset.shape, dataset.dtype
        _check_shape(f"{file.place}: {name}", shape, dtype, chunk_rows)

        def keys_of(key: str) -> Any:
            beside = found[_join(name, key)]
            return read_keys(f"{file.place}: {key}", beside, beside.chunks[0] if beside.chunks else 1)

        keys = find_keys(file, _beside(name, found), keys_of)

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
        _check_codecs(f"{location.name}: {name}", array)
        _check_shape(f"{location.name}: {name}", array.shape, np.dtype(array.dtype), (array.shards or array.chunks)[0])

        def keys_of(key: str) -> Any:
            beside = found[_join(name, key)]
            _check_codecs(f"{location.name}: {key}", beside)
            return read_keys(f"{location.name}: {key}", beside, (beside.shards or beside.chunks or (1,))[0])

        keys = find_keys(file, _beside(name, found), keys_of)

    def blocks(n_rows: int) -> Iterator[NDArray[Any]]:
        step = _whole_chunks(n_rows, (array.shards or array.chunks)[0])
        # A codec that cannot unpack a chunk raises a RuntimeError.
        with reaching(location.name), reading(f"{location.name}: {name}", zarr.errors.BaseZarrError, RuntimeError):
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


CODECS = frozenset(
    (
        *("bytes", "transpose", "sharding_indexed", "crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3"),
        *("blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "pcodec", "zfpy", "vlen-utf8", "vlen-bytes"),
        *("shuffle", "bitround", "delta", "fixedscaleoffset", "quantize", "packbits", "astype"),
    )
)
"""What data of a Zarr may be written with. Others, as pickle, can run programs."""


def _check_codecs(name: str, array: Any) -> None:
    """
    Raises:
        ExchangeError: the array is written in a way that is not read.
    """
    told = array.metadata.to_dict()
    several = [*(told.get("codecs") or ()), *(told.get("filters") or ()), told.get("compressor")]
    codecs = [each for each in several if isinstance(each, Mapping)]
    codecs += [inner for each in codecs for inner in _inner(each)]
    for codec in codecs:
        said = str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")
        if said not in CODECS:
            raise ExchangeError(
                f"{name} is written with {said!r}, which is not read; write it with zstd, blosc or gzip"
            )


def _inner(codec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    facts = codec.get("configuration") or {}
    return [each for key in ("codecs", "index_codecs") for each in facts.get(key) or () if isinstance(each, Mapping)]


def _check_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
    check_rows(name, shape[0])
    check_block(name, min(chunk_rows, shape[0]), shape[1:], dtype.itemsize)


def _lies_elsewhere(dataset: Any) -> bool:
    """Whether HDF5 would read other files for it, whichever somebody has named."""
    return bool(dataset.external) or bool(dataset.is_virtual)


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
