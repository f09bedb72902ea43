"""Extract frozen image features once, keep them safe, share them.

import featstore

featstore.list_backbones("clip*")                                     # names, widths, licences, where weights are
stack = "amtl=stack/2048:lite0,lite1,lite2"                           # or backbones=["lite0", "lite1"]; or a Config
featstore.extract("photos", store="features.zarr", tensors=stack)     # computes what the store lacks, nothing else
store = featstore.open("features.zarr")
amtl = store["amtl"]                                                  # (N, B, T, F): image, backbone, block, feature
amtl[:5]                                                              # rows; .pandas(), .xarray(), .dask(), .torch()
assert featstore.verify("features.zarr").sound                        # every byte is what was written
featstore.push("features.zarr", "s3://bucket/features", message="three backbones")    # share; featstore.pull fetches
heads.train("amtl", store, labels="ratings.csv", scale=(1, 7))        # a cross-validated head
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.backbones.describe import list_backbones
    from featstore.backbones.registry import PAPER_SETS
    from featstore.backbones.trainable import Trainable, open_trainable, released_weights
    from featstore.backbones.weights import WeightsPolicy
    from featstore.config import Config, TensorSpec
    from featstore.engines import Runtime, choose_device
    from featstore.errors import FeatstoreError
    from featstore.exchange.concepts import concepts
    from featstore.exchange.exporting import export
    from featstore.exchange.formats import FeatureFile
    from featstore.exchange.importing import import_features
    from featstore.extraction.extract import extract, retry
    from featstore.extraction.recompute import recompute
    from featstore.extraction.summary import Summary
    from featstore.photos.augmentation import Augmentation
    from featstore.photos.decoding import read_photo
    from featstore.photos.views import View
    from featstore.sharing.diff import diff
    from featstore.sharing.push_pull import merge, pull, push
    from featstore.sharing.selection import Selection
    from featstore.store import ImageState, RowState, Store, StoredTensor, repair, verify
    from featstore.store import open_store as open
    from featstore.terminal.showing import show_progress
    from featstore.toml import find_config, read_config, write_config

# Imported at first use, so that `featstore --help` need not wait for zarr and numpy.
_PUBLIC = {
    "Augmentation": "photos.augmentation",
    "Config": "config",
    "FeatstoreError": "errors",
    "FeatureFile": "exchange.formats",
    "ImageState": "store",
    "PAPER_SETS": "backbones.registry",
    "RowState": "store",
    "Runtime": "engines.hardware",
    "Selection": "sharing.selection",
    "Store": "store",
    "StoredTensor": "store",
    "Summary": "extraction.summary",
    "TensorSpec": "config",
    "Trainable": "backbones.trainable",
    "View": "photos.views",
    "WeightsPolicy": "backbones.weights",
    "choose_device": "engines",
    "concepts": "exchange.concepts",
    "diff": "sharing.diff",
    "export": "exchange.exporting",
    "extract": "extraction.extract",
    "find_config": "toml",
    "import_features": "exchange.importing",
    "list_backbones": "backbones.describe",
    "merge": "sharing.push_pull",
    "open": "store",
    "open_trainable": "backbones.trainable",
    "pull": "sharing.push_pull",
    "push": "sharing.push_pull",
    "read_config": "toml",
    "read_photo": "photos.decoding",
    "recompute": "extraction.recompute",
    "released_weights": "backbones.trainable",
    "repair": "store",
    "retry": "extraction.extract",
    "show_progress": "terminal.showing",
    "verify": "store",
    "write_config": "toml",
}

__all__ = [
    "PAPER_SETS",
    "Augmentation",
    "Config",
    "FeatstoreError",
    "FeatureFile",
    "ImageState",
    "RowState",
    "Runtime",
    "Selection",
    "Store",
    "StoredTensor",
    "Summary",
    "TensorSpec",
    "Trainable",
    "View",
    "WeightsPolicy",
    "choose_device",
    "concepts",
    "diff",
    "export",
    "extract",
    "find_config",
    "import_features",
    "list_backbones",
    "merge",
    "open",
    "open_trainable",
    "pull",
    "push",
    "read_config",
    "read_photo",
    "recompute",
    "released_weights",
    "repair",
    "retry",
    "show_progress",
    "verify",
    "write_config",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'featstore' has no attribute {name!r}")
    module = import_module(f"featstore.{_PUBLIC[name]}")
    return getattr(module, "open_store" if name == "open" else name)


def __dir__() -> list[str]:
    return __all__
