"""The store: one Zarr v3 group that any Zarr reader opens. See docs/store-format.md for the contract."""

from featstore.store.care.repair import Repair, repair
from featstore.store.care.verify import Finding, Verification, verify
from featstore.store.format.images import ImageState, ImageTable, NewImages, RowState, SeenImages
from featstore.store.format.layout import StoredSegment, TensorLayout
from featstore.store.store import Store, existing_store, open_store
from featstore.store.tensor import StoredTensor
from featstore.store.writer import Writer

__all__ = [
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
    "existing_store",
    "open_store",
    "repair",
    "verify",
]
