"""Making a store: the sealed documents of a new one, and those of a tensor that joins it."""

from collections.abc import Sequence
from typing import Any

import zarr
from zarr.core.sync import sync

from featstore.store.format.images import COLUMNS
from featstore.store.format.integrity import DOCUMENT, FORMAT, digest_of, prototype_buffer, write_document
from featstore.store.format.metadata import GROUPS, TensorFacts, column_document, group_document, tensor_documents


def skeleton(*, block_rows: int, n_rows: int, tensors: Sequence[TensorFacts] = ()) -> dict[str, bytes]:
    """By key, the `zarr.json` of every group and array of a store; the root comes last."""
    documents: dict[str, dict[str, Any]] = {name: group_document({}) for name in GROUPS}
    for name, (dtype, row_shape) in COLUMNS.items():
        documents[f"images/{name}"] = column_document(f"images/{name}", dtype, row_shape, n_rows=n_rows)
    for facts in tensors:
        documents |= tensor_documents(facts, n_rows=n_rows, block_rows=block_rows)
    files = {key: write_document(key, document) for key, document in _by_file(documents).items()}
    sums = {key: [digest_of(data)] for key, data in sorted(files.items())}
    root = group_document({"featstore": {"format": FORMAT, "block_rows": block_rows}, "sums": sums})
    return {**files, DOCUMENT: write_document(DOCUMENT, root)}


def create_tensor(group: zarr.Group, facts: TensorFacts, *, n_rows: int, block_rows: int) -> None:
    """The arrays of a tensor, in a store that is sealed."""
    for key, document in _by_file(tensor_documents(facts, n_rows=n_rows, block_rows=block_rows)).items():
        sync(group.store.set(key, prototype_buffer(write_document(key, document))))


def _by_file(documents: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{key}/{DOCUMENT}": document for key, document in documents.items()}
