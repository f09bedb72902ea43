"""What a store holds, as plain facts for `featstore info`."""

from typing import Any

import numpy as np

from featstore.identity import is_imported
from featstore.store.format.images import ImageState, RowState
from featstore.store.format.integrity import FORMAT
from featstore.store.places.place import Place
from featstore.store.store import Store, open_store
from featstore.store.tensor import StoredTensor


def describe(place: Place) -> dict[str, Any]:
    """Counts of images and rows by state, and every segment with its identity.

    Raises:
        FormatError: it is not a store of this format.
    """
    return describe_store(open_store(place))


def describe_store(store: Store) -> dict[str, Any]:
    """The same of a store that is open."""
    images = store.images
    unreadable = np.flatnonzero(images.states == ImageState.UNREADABLE)
    return {
        "store": store.path,
        "format": FORMAT,
        "bytes": store.n_bytes,
        "images": {state.name.lower(): int((images.states == state).sum()) for state in ImageState},
        "unreadable": {images.paths[row]: images.errors[row] for row in unreadable},
        "tensors": {name: _describe_tensor(tensor) for name, tensor in store.tensors.items()},
    }


def _describe_tensor(tensor: StoredTensor) -> dict[str, Any]:
    return {
        "layout": tensor.layout.kind,
        "axes": list(tensor.layout.axes),
        "missing": list(tensor.layout.missing),
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "compress": tensor.compression,
        "rows": {state.name.lower(): int((tensor.states == state).sum()) for state in RowState},
        "segments": [
            {
                "name": segment.name,
                "hash": segment.hash,
                "blocks": segment.n_blocks,
                "width": segment.width,
                "weights": _weights(segment.identity),
                "identity": dict(segment.identity),
            }
            for segment in tensor.layout.segments
        ],
        "provenance": tensor.provenance,
    }


def _weights(identity: Any) -> str:
    facts = identity.get("weights")
    if facts is None:
        return "imported" if is_imported(identity) else "-"
    return f"random:{facts['random_seed']}" if "random_seed" in facts else str(facts["sha256"])[:12]
