"""The Zarr documents that a store consists of: written when it is made, the only ones allowed when it is read.

Each group and array has one document, up to its numbers: the rows of the store, those of a block, the shape and dtype
of a row, the codec. A store from a stranger cannot ask for other codecs, chunks or types. What reading takes is bounded
by these numbers, which are checked here, before Zarr makes an array of them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.files import DOCUMENT_BYTES
from featstore.store.format.attributes import Compression, TensorAttributes, checked
from featstore.store.format.images import COLUMNS, ImageState, RowState
from featstore.store.format.layout import TensorLayout, blank
from featstore.store.format.limits import MAX_BLOCK_ROWS, MAX_ROWS, TABLE_CHUNK, check_block

__all__ = [
    "BLOCK_ROWS",
    "GROUPS",
    "PARTS",
    "TABLE_CHUNK",
    "Compression",
    "TensorFacts",
    "check_chunk",
    "check_document",
    "check_strings",
    "column_document",
    "group_document",
    "limit_of",
    "tensor_documents",
]

BLOCK_ROWS = 64
PARTS = ("tensors", "rows", "checksums")
"""What a tensor consists of: its array, its commit record, and the checksum of each row."""
GROUPS = ("images", *PARTS)
RECORDS = {"rows": "uint8", "checksums": "uint32"}
RANGES: dict[str, tuple[int | None, int | None]] = {
    "images/state": (0, max(ImageState)),
    "images/size": (0, None),
    "images/bytes": (0, None),
    "rows": (0, max(RowState)),
}
"""What the values of a small array can be, where that is not anything."""
CRC_BYTES = 4
STRING_HEAD = 4  # of a chunk of strings: how many there are
SHOWN = 100
"""Characters of a wrong document that a message has."""


@dataclass(frozen=True)
class TensorFacts:
    """All that decides the documents of a tensor."""

    layout: TensorLayout
    dtype: str
    compress: Compression | None = None

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any]) -> "TensorFacts":
        """Those that the attributes of a tensor's array, or of its record, describe.

        Raises:
            FormatError: they describe none.
        """
        facts = checked(TensorAttributes, attributes, f"tensor {name!r} is not described as one of this store")
        layout = TensorLayout.from_attributes(name, attributes, tuple(facts.row_shape))
        return cls(layout, facts.dtype, facts.compress)


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """That of a group."""
    return {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}


def column_document(
    key: str, dtype: str, row_shape: Sequence[int], *, n_rows: int, attributes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """That of one of the small arrays: a value of each row.

    Args:
        key: of the array, as images/path.
    """
    codec = {"name": "vlen-utf8", "configuration": {}} if dtype == "string" else _bytes(dtype)
    return _array_document(
        (n_rows, *row_shape),
        dtype,
        chunks=(TABLE_CHUNK, *row_shape),
        fill="" if dtype == "string" else 0,
        codecs=[codec, {"name": "crc32c"}],
        axes=("image", *(f"{key.partition('/')[2]}_{i}" for i in range(len(row_shape)))),
        attributes=attributes or {},
    )


def tensor_documents(facts: TensorFacts, *, n_rows: int, block_rows: int) -> dict[str, dict[str, Any]]:
    """By key of the array, those of a tensor: a shard is a row block, an inner chunk is a row."""
    layout, dtype = facts.layout, facts.dtype
    # The record repeats what describes the array, so that either can be written anew from the other.
    described = {
        **layout.to_attributes(),
        "row_shape": list(layout.row_shape),
        "dtype": dtype,
        "compress": facts.compress,
    }
    return {
        **{
            f"{part}/{layout.name}": column_document(
                f"{part}/{layout.name}", kind, (), n_rows=n_rows, attributes=described if part == "rows" else {}
            )
            for part, kind in RECORDS.items()
        },
        f"tensors/{layout.name}": _tensor_document(facts, n_rows=n_rows, block_rows=block_rows, attributes=described),
    }


def check_document(key: str, document: Mapping[str, Any], block_rows: int | None = None) -> None:
    """Refuse a `zarr.json` that is not the one which a store has in this place; the root is a group like the others.

    Args:
        block_rows: of the store; if it is not known, what the document says of it is believed, within its limits.

    Raises:
        ValueError: it is another one; says what of it.
        FormatError: the attributes of a tensor describe none, or its blocks are larger than any that is read.
    """
    place = key.rpartition("/")[0]
    kind, _, name = place.partition("/")
    if not name:
        if kind and kind not in GROUPS:
            raise ValueError(f"a feature store has no group {kind!r}")
        _compare(document, group_document({}))
        return
    if kind not in GROUPS or "/" in name or (kind == "images" and name not in COLUMNS):
        raise ValueError(f"a feature store has no array {place!r}")
    shape = document.get("shape")
    n_rows = shape[0] if isinstance(shape, list) and shape else None
    if type(n_rows) is not int or not 0 <= n_rows <= MAX_ROWS:
        raise ValueError(f"its shape is {_shown(shape)}, which does not begin with a number of rows")
    if kind == "tensors":
        facts = TensorFacts.of(name, document["attributes"])
        block_rows = block_rows or _block_rows(document)
        check_block(block_rows, facts.layout.row_bytes(facts.dtype), place)
        expected = _tensor_document(facts, n_rows=n_rows, block_rows=block_rows, attributes={})
    else:
        dtype, row_shape = COLUMNS[name] if kind == "images" else (RECORDS[kind], ())
        expected = column_document(place, dtype, row_shape, n_rows=n_rows)
    _compare(document, expected)


def limit_of(key: str) -> int:
    """The bytes that a document, or a chunk of a small array, can have."""
    column = _column_of(key)
    if column is None or column[0] == "string":
        return DOCUMENT_BYTES
    dtype, row_shape = column
    return TABLE_CHUNK * math.prod(row_shape) * np.dtype(dtype).itemsize + CRC_BYTES


def check_chunk(key: str, data: bytes) -> None:
    """Refuse a chunk of a small array that would be decoded to something else than its rows.

    Raises:
        ValueError: says what of it cannot be.
    """
    column = _column_of(key)
    if column is None:
        raise ValueError("no array of a store has such a chunk")
    if column[0] != "string":
        if len(data) != limit_of(key):
            raise ValueError(f"it has {len(data)} bytes, and {limit_of(key)} are expected")
        least, most = RANGES.get("/".join(key.split("/")[:2]), RANGES.get(key.partition("/")[0], (None, None)))
        values = np.frombuffer(data[:-CRC_BYTES], column[0])
        if (least is not None and values.min() < least) or (most is not None and values.max() > most):
            known = f"{least} to {most} are known" if most is not None else f"{least} is the least"
            raise ValueError(f"it has values from {values.min()} to {values.max()}, and {known}")
        return
    if len(data) < STRING_HEAD + CRC_BYTES or int.from_bytes(data[:STRING_HEAD], "little") != TABLE_CHUNK:
        raise ValueError(f"it does not begin with the number of its rows, {TABLE_CHUNK}")


def check_strings(key: str, data: bytes) -> None:
    """Refuse a chunk of strings whose lengths or characters cannot be; others are let through.

    Raises:
        ValueError: says what of it cannot be.
    """
    column, end, start = _column_of(key), len(data) - CRC_BYTES, STRING_HEAD
    if column is None or column[0] != "string":
        return
    for place in range(TABLE_CHUNK):
        first = start + STRING_HEAD
        start = first + int.from_bytes(data[start:first], "little")
        if not first <= start <= end:
            raise ValueError(f"text {place} is longer than the file")
        data[first:start].decode()
    if start != end:
        raise ValueError(f"{end - start} bytes belong to no text")


def _column_of(key: str) -> tuple[str, tuple[int, ...]] | None:
    """The dtype and row shape of the small array that a chunk belongs to."""
    kind, _, rest = key.partition("/")
    if key.endswith("zarr.json"):
        return None
    return (RECORDS[kind], ()) if kind in RECORDS else COLUMNS.get(rest.partition("/")[0])


def _tensor_document(
    facts: TensorFacts, *, n_rows: int, block_rows: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    layout, dtype = facts.layout, np.dtype(facts.dtype)
    shuffle = "shuffle" if dtype.itemsize > 1 else "bitshuffle"
    squeeze: dict[str | None, list[dict[str, Any]]] = {
        None: [],
        "zstd": [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
        "blosc": [
            {
                "name": "blosc",
                "configuration": {
                    "typesize": dtype.itemsize,
                    "cname": "zstd",
                    "clevel": 1,
                    "shuffle": shuffle,
                    "blocksize": 0,
                },
            }
        ],
    }
    sharding = {
        "chunk_shape": [1, *layout.row_shape],
        "codecs": [_bytes(facts.dtype), *squeeze[facts.compress], {"name": "crc32c"}],
        "index_codecs": [_bytes("uint64"), {"name": "crc32c"}],
        "index_location": "end",
    }
    return _array_document(
        (n_rows, *layout.row_shape),
        facts.dtype,
        chunks=(block_rows, *layout.row_shape),
        fill="NaN" if np.isnan(blank(dtype)) else 0,
        codecs=[{"name": "sharding_indexed", "configuration": sharding}],
        axes=("image", *(f"{layout.name}_{axis}" for axis in layout.axes[1:])),
        attributes=attributes,
    )


def _array_document(
    shape: Sequence[int],
    dtype: str,
    *,
    chunks: Sequence[int],
    fill: str | int,
    codecs: list[dict[str, Any]],
    axes: Sequence[str],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """As zarr writes it, field by field in its order."""
    return {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": dict(attributes),
        "dimension_names": list(axes),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _bytes(dtype: str) -> dict[str, Any]:
    return {"name": "bytes"} if dtype == "uint8" else {"name": "bytes", "configuration": {"endian": "little"}}


def _block_rows(document: Mapping[str, Any]) -> int:
    """The first number of the chunk shape."""
    try:
        n_rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    except (KeyError, TypeError, IndexError):
        n_rows = None
    if type(n_rows) is not int or not 1 <= n_rows <= MAX_BLOCK_ROWS:
        raise ValueError(f"its chunk grid is {_shown(document.get('chunk_grid'))}")
    return n_rows


def _compare(document: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a document that differs from the expected one, attributes left out.

    Versions of Zarr write what is empty or left out; both are the same here.
    """
    for field in sorted({*document, *expected} - {"attributes"}):
        found, wanted = (_canonical(each.get(field)) for each in (document, expected))
        if found != wanted:
            raise ValueError(f"its {field} is {_shown(document.get(field))}, and ours is {_shown(expected.get(field))}")


def _canonical(value: Any) -> str:
    """A text that is the same for values that mean the same, and for no others: true is not 1, and neither is 1.0."""
    return json.dumps(_without_empty(value), sort_keys=True)


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        known = {name: _without_empty(each) for name, each in value.items()}
        kept = {name: each for name, each in known.items() if each not in (None, {}, [])}
        return kept["name"] if kept.keys() == {"name"} else kept
    if isinstance(value, list):
        return [_without_empty(each) for each in value] or None
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
