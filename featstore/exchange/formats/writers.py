"""Writers, one for each format that features are exported to; a slab of rows is in memory at a time.

Beside the tensors there are `path` and `digest` of each row, and how the tensors came to be, as JSON.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from featstore.exchange.formats.csv_parquet import ABOUT
from featstore.exchange.formats.table import DIGEST_DIGITS, needed
from featstore.support import version

if TYPE_CHECKING:
    from featstore.store import StoredTensor

SLAB_BYTES = 4 << 20
"""About how many bytes of rows are read, and written, at a time."""
_CHUNK_BYTES = 64 << 10
_TEXTS = 16384  # how many paths are written at a time


@dataclass(frozen=True)
class Contents:
    """N images and the tensors that have features of each of them."""

    paths: Sequence[str]
    digests: Sequence[str]
    """In hexadecimal digits."""
    tensors: "Sequence[StoredTensor]"
    rows: NDArray[np.int64]
    """Of the store."""
    report: Callable[[int], None]
    """Told how many rows of a tensor have been written since it was last told."""

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> dict[str, Sequence[str]]:
        return {"path": self.paths, "digest": self.digests}

    def slabs(self, tensor: "StoredTensor", n_rows: int) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The rows of a tensor, `n_rows` at a time, and where they belong."""
        for first in range(0, len(self.rows), n_rows):
            values = tensor.read(self.rows[first : first + n_rows])
            yield slice(first, first + len(values)), values
            self.report(len(values))

    def about(self) -> dict[str, Any]:
        """How the tensors came to be."""
        tensors = {
            tensor.name: {
                **tensor.layout.to_attributes(),
                "row_shape": list(tensor.layout.row_shape),
                "dtype": str(tensor.dtype),
            }
            for tensor in self.tensors
        }
        return {"made_by": f"featstore {version()}", "tensors": tensors}


def write_npz(file: Path, contents: Contents) -> None:
    """One array a tensor, `path`, `digest`, and `about`, a JSON text; `np.load` reads it without pickle."""
    with ZipFile(file, "x", ZIP_STORED) as members:
        for tensor in contents.tensors:
            shape = (len(contents), *tensor.layout.row_shape)
            slabs = contents.slabs(tensor, _slab_rows(tensor))
            _write_member(members, tensor.name, shape, tensor.dtype, (values for _, values in slabs))
        for name, texts in contents.keys().items():
            dtype = np.dtype(f"<U{max(map(len, texts))}")
            parts = (np.array(texts[i : i + _TEXTS], dtype) for i in range(0, len(texts), _TEXTS))
            _write_member(members, name, (len(texts),), dtype, parts)
        about = np.array(json.dumps(contents.about(), ensure_ascii=False))
        _write_member(members, "about", (), about.dtype, [about])


def write_hdf5(file: Path, contents: Contents) -> None:
    """One dataset a tensor with labelled dimensions; its attribute `about` is a JSON text."""
    h5py = needed("h5py", file)
    about = contents.about()
    # Formats of HDF5 1.8 and later: before, an attribute could not be longer than 64 kB.
    with _PatientFile(file) as stream, h5py.File(stream, "w", libver=("v108", "v110")) as opened:
        opened.attrs["made_by"] = about["made_by"]
        for name, texts in contents.keys().items():
            kind = f"S{DIGEST_DIGITS}" if name == "digest" else h5py.string_dtype()
            dataset = opened.create_dataset(name, (len(texts),), kind)
            dataset.dims[0].label = "image"
            for i in range(0, len(texts), _TEXTS):
                dataset[i : i + _TEXTS] = np.array(texts[i : i + _TEXTS], "S" if name == "digest" else object)
        for tensor in contents.tensors:
            chunk_rows = min(len(contents), max(1, _CHUNK_BYTES // tensor.row_bytes))
            shape = tensor.layout.row_shape
            dataset = opened.create_dataset(
                tensor.name, (len(contents), *shape), tensor.dtype, chunks=(chunk_rows, *shape), fletcher32=True
            )
            for dimension, axis in zip(dataset.dims, tensor.layout.axes, strict=True):
                dimension.label = axis
            dataset.attrs["about"] = json.dumps(about["tensors"][tensor.name], ensure_ascii=False)
            for where, values in contents.slabs(tensor, _whole_chunks(_slab_rows(tensor), chunk_rows)):
                dataset[where] = values
                stream.check()
    stream.check()


def write_parquet(file: Path, contents: Contents) -> None:
    """A row for each image: `path`, `digest`, and a list of fixed size a tensor; the rest is in the schema's metadata.

    float16 stays float16: pyarrow from 15 on, pandas through it, and current DuckDB and polars read it.
    """
    arrow, parquet = needed("pyarrow", file), needed("pyarrow.parquet", file)
    kinds = {
        tensor.name: arrow.list_(arrow.from_numpy_dtype(tensor.dtype), int(np.prod(tensor.layout.row_shape)))
        for tensor in contents.tensors
    }
    fields = [("path", arrow.string()), ("digest", arrow.string()), *kinds.items()]
    about = json.dumps(contents.about(), ensure_ascii=False).encode()
    schema = arrow.schema(fields, metadata={ABOUT: about})
    group_rows = max(1, SLAB_BYTES // sum(tensor.row_bytes for tensor in contents.tensors))
    # Features hardly repeat: a dictionary of them, or compression, takes time and saves little.
    options = {
        "compression": "none",
        "use_dictionary": False,
        "write_statistics": ["path"],
        "write_page_checksum": True,
    }
    with parquet.ParquetWriter(file, schema, **options) as writer:
        slabs = [contents.slabs(tensor, group_rows) for tensor in contents.tensors]
        for first, parts in zip(range(0, len(contents), group_rows), zip(*slabs, strict=True), strict=True):
            here = slice(first, first + group_rows)
            columns = [arrow.array(contents.paths[here]), arrow.array(contents.digests[here])]
            for (_, values), kind in zip(parts, kinds.values(), strict=True):
                columns.append(arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), kind.list_size))
            writer.write_table(arrow.table(columns, schema=schema))


def write_zarr(folder: Path, contents: Contents) -> None:
    """One array a tensor in a Zarr v3 group, its attributes as in a store; for xarray the keys are coordinates."""
    import zarr
    from zarr.codecs import Crc32cCodec

    from featstore.store.places.local import DurableStore

    store, about = DurableStore(folder), contents.about()
    attributes = {"made_by": about["made_by"], "coordinates": "path digest"}
    group = zarr.create_group(store, zarr_format=3, attributes=attributes)
    for name, texts in contents.keys().items():
        array = group.create_array(
            name, shape=(len(texts),), chunks=(_TEXTS,), dtype="string", dimension_names=("image",)
        )
        for i in range(0, len(texts), _TEXTS):
            array[i : i + _TEXTS] = np.array(texts[i : i + _TEXTS], object)
    for tensor in contents.tensors:
        chunk_rows = min(len(contents), _slab_rows(tensor))
        array = group.create_array(
            tensor.name,
            shape=(len(contents), *tensor.layout.row_shape),
            chunks=(chunk_rows, *tensor.layout.row_shape),
            dtype=tensor.dtype,
            fill_value=float("nan") if tensor.dtype.kind == "f" else 0,  # a lost chunk must not look like features
            compressors=[Crc32cCodec()],
            dimension_names=("image", *(f"{tensor.name}_{axis}" for axis in tensor.layout.axes[1:])),
            attributes=about["tensors"][tensor.name],
            config={"write_empty_chunks": True},
        )
        for where, values in contents.slabs(tensor, chunk_rows):
            array[where] = values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the specification lacks it; without it xarray is slow and warns
        zarr.consolidate_metadata(store)


class _PatientFile:
    """A file for HDF5, which crashes the process when a write fails: no write fails, and `check` raises the error."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("xb+", buffering=0)
        self._error: OSError | None = None

    def __enter__(self) -> "_PatientFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check(self) -> None:
        """Raise the first error that there was; nothing has been written since."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        with self._patience():
            while rest and self._error is None:
                rest = rest[self._file.write(rest) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._patience():
            self._file.truncate(size)
        return self._file.tell() if size is None else size

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def flush(self) -> None:
        return

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


def _write_member(members: ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Any) -> None:
    """An array of a zip file, part by part."""
    with members.open(f"{name}.npy", "w", force_zip64=True) as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part).tobytes())


def _slab_rows(tensor: "StoredTensor") -> int:
    return max(1, SLAB_BYTES // tensor.row_bytes)


def _whole_chunks(n_rows: int, chunk_rows: int) -> int:
    return -(-n_rows // chunk_rows) * chunk_rows
