"""Extract frozen image features once, keep them safe, share them.

import featstore
from featstore import Config, TensorSpec

featstore.list_backbones("*lite*")                                    # names, widths, licences, where weights are
stack = TensorSpec(name="amtl", kind="stack", segments=("lite0", "lite1", "lite2"), width=2048)
config = Config(photos="photos", store="cache/features.zarr", tensors=(stack,))    # or featstore.read_config(...)
featstore.extract(config)                                             # computes what the store lacks, nothing else
amtl = featstore.open(config.store)["amtl"]                           # (N, B, T, F): image, backbone, block, feature
amtl.read([0, 5])                                                     # rows in memory; amtl.xarray(), .dask(), .torch()
assert featstore.verify(config.store).sound                           # every byte is what was written
featstore.push(config.store, "s3://bucket/features", message="three backbones")    # share; featstore.pull fetches
heads.train(heads.Plan(system="amtl", store=config.store, labels=heads.read_labels("ratings.csv"), out="run"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.backbones.describe import list_backbones
    from featstore.backbones.registry import PAPER_SETS
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
    from featstore.toml import find_config, read_config

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
    "pull": "sharing.push_pull",
    "push": "sharing.push_pull",
    "read_config": "toml",
    "read_photo": "photos.decoding",
    "recompute": "extraction.recompute",
    "repair": "store",
    "retry": "extraction.extract",
    "verify": "store",
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
    "pull",
    "push",
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
