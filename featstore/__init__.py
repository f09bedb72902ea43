"""Extract frozen image features once, keep them safe, share them.

import featstore

store = featstore.open("cache/features.zarr")
amtl = store["amtl"]              # (N, B, T, F): image, backbone, block, feature
amtl.xarray()                     # labelled, lazy
amtl.dask(), amtl.torch()         # the same rows for Dask and for torch's DataLoader
amtl.read([0, 5])                 # rows in memory; raises if any is not present, or not what was computed
featstore.verify("cache/features.zarr").sound       # every byte of it is what was written
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.config import Config
    from featstore.engines import choose_device
    from featstore.errors import FeatstoreError
    from featstore.exchange.exporting import export
    from featstore.exchange.formats import FeatureFile
    from featstore.exchange.importing import import_features
    from featstore.extraction.extract import extract, retry
    from featstore.extraction.recompute import recompute
    from featstore.extraction.summary import Summary
    from featstore.photos.decoding import read_photo
    from featstore.store import ImageState, RowState, Store, StoredTensor, repair, verify
    from featstore.store import open_store as open
    from featstore.toml import find_config, read_config

# Imported at first use, so that `featstore --help` need not wait for zarr and numpy.
_PUBLIC = {
    "Config": "config",
    "FeatstoreError": "errors",
    "FeatureFile": "exchange.formats",
    "ImageState": "store",
    "RowState": "store",
    "Store": "store",
    "StoredTensor": "store",
    "Summary": "extraction.summary",
    "choose_device": "engines",
    "export": "exchange.exporting",
    "extract": "extraction.extract",
    "find_config": "toml",
    "import_features": "exchange.importing",
    "open": "store",
    "read_config": "toml",
    "read_photo": "photos.decoding",
    "recompute": "extraction.recompute",
    "repair": "store",
    "retry": "extraction.extract",
    "verify": "store",
}

__all__ = [
    "Config",
    "FeatstoreError",
    "FeatureFile",
    "ImageState",
    "RowState",
    "Store",
    "StoredTensor",
    "Summary",
    "choose_device",
    "export",
    "extract",
    "find_config",
    "import_features",
    "open",
    "read_config",
    "read_photo",
    "recompute",
    "repair",
    "retry",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'featstore' has no attribute {name!r}")
    module = import_module(f"featstore.{_PUBLIC[name]}")
    return getattr(module, "open_store" if name == "open" else name)


def __dir__() -> list[str]:
    return __all__
