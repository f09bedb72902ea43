"""The store: one Zarr v3 group that any Zarr reader opens. See docs/store-format.md for the contract."""

from featstore.store.checking import Finding, Verification, verify
from featstore.store.commits import NewImages, SeenImages
from featstore.store.layout import StoredSegment, TensorLayout
from featstore.store.opening import Store, open_store
from featstore.store.reading import StoredTensor
from featstore.store.repairing import Repair, repair
from featstore.store.seals import FORMAT
from featstore.store.table import ImageState, ImageTable, RowState
from featstore.store.writing import Writer

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
