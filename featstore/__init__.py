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
    from featstore import console
    from featstore.cluster import check_scheduler
    from featstore.config import Config, parse_scale, parse_store
    from featstore.configfile import find_config, read_config
    from featstore.decoding import read_photo
    from featstore.engines import choose_device
    from featstore.errors import FeatstoreError, suggest
    from featstore.exporting import export
    from featstore.extraction import Summary, extract, retry
    from featstore.importing import import_features
    from featstore.recomputing import recompute
    from featstore.store import ImageState, RowState, Store, StoredTensor, repair, verify
    from featstore.store import open_store as open
    from featstore.tables import FeatureFile
    from featstore.threads import wait_briefly

# Imported at first use, so that `featstore --help` need not wait for zarr and numpy.
_PUBLIC = {
    "Config": "config",
    "FeatstoreError": "errors",
    "FeatureFile": "tables",
    "ImageState": "store",
    "RowState": "store",
    "Store": "store",
    "StoredTensor": "store",
    "Summary": "extraction",
    "check_scheduler": "cluster",
    "choose_device": "engines",
    "export": "exporting",
    "extract": "extraction",
    "find_config": "configfile",
    "import_features": "importing",
    "open": "store",
    "parse_scale": "config",
    "parse_store": "config",
    "read_config": "configfile",
    "read_photo": "decoding",
    "recompute": "recomputing",
    "repair": "store",
    "retry": "extraction",
    "suggest": "errors",
    "verify": "store",
    "wait_briefly": "threads",
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
    "check_scheduler",
    "choose_device",
    "console",
    "export",
    "extract",
    "find_config",
    "import_features",
    "open",
    "parse_scale",
    "parse_store",
    "read_config",
    "read_photo",
    "recompute",
    "repair",
    "retry",
    "suggest",
    "verify",
    "wait_briefly",
]


def __getattr__(name: str) -> Any:
    if name == "console":
        return import_module("featstore.console")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'featstore' has no attribute {name!r}")
    module = import_module(f"featstore.{_PUBLIC[name]}")
    return getattr(module, "open_store" if name == "open" else name)


def __dir__() -> list[str]:
    return __all__
