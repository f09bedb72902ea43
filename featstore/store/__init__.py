"""The store: one Zarr v3 group that any Zarr reader opens. See docs/store-format.md for the contract."""

from featstore.store.checking import Finding, Verification, verify
from featstore.store.layout import StoredSegment, TensorLayout
from featstore.store.reading import Store, StoredTensor, open_store
from featstore.store.repairing import Repair, repair
from featstore.store.seals import FORMAT
from featstore.store.table import ImageState, ImageTable, RowState
from featstore.store.writing import NewImages, SeenImages, Writer

__all__ = [
    "FORMAT",
    "Finding",
    "ImageState",
    "ImageTable",
    "NewImages",
    "Repair",
    "RowState",
    "SeenImages",
    "Store",
    "StoredSegment",
    "StoredTensor",
    "TensorLayout",
    "Verification",
    "Writer",
    "open_store",
    "repair",
    "verify",
]
