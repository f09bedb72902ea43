"""What a command or a call from Python asks for, as a `Config`; what is not said is as featstore.toml says it."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union, cast

from featstore.backbones import WeightsPolicy
from featstore.config import Config, TensorSpec, choose_tensors, parse_tensor
from featstore.errors import ConfigError, PhotosError
from featstore.identity import PRECISIONS
from featstore.support import as_path, parse_names, parse_store
from featstore.toml import find_config

if TYPE_CHECKING:
    from torch import nn

Names = str | Iterable[str]
"""Names with commas between, or a list of them."""
Backbones: TypeAlias = Union[str, "nn.Module", Iterable[Union[str, "nn.Module"]]]
"""The same of backbones, each of which may be a network itself."""
SaidWeights = str | Sequence[str] | Mapping[str, str] | WeightsPolicy
"""random:SEED, NAME=FILE or NAME=random:SEED, or several; the same by name; or a whole policy."""


def configure(
    base: Config | None = None,
    *,
    photos: Path | str | None = None,
    store: PathLike[str] | str | None = None,
    weights: SaidWeights | None = None,
    weights_folder: Path | str | None = None,
    hub: bool | None = None,
    dtype: str | None = None,
    compress: str | None = None,
    precision: str | None = None,
    engine: str | None = None,
    max_megapixels: float | None = None,
) -> Config:
    """A configuration with what is said in place of what it says.

    Args:
        base: that of this folder if None: its featstore.toml, or the defaults.

    Raises:
        ConfigError: featstore.toml or what is said does not make sense.
        BackboneError: weights are named of a backbone that does not exist.
        PhotosError: the photos are no folder's name.
    """
    if not isinstance(photos, str | PathLike | None):
        raise PhotosError(f"photos are a {type(photos).__name__}; name the folder that holds them, or give a Config")
    config, photos = find_config() if base is None else base, as_path(photos)
    if photos and config.photos and store is None and photos.resolve() != config.photos.resolve():
        raise ConfigError(
            f"{config.file} keeps the features of {config.photos} in {config.store}; "
            f"name another --store for those of {photos}"
        )
    _check_choice("--dtype", dtype, "float16", "float32")
    _check_choice("--compress", compress, "zstd", "blosc")
    _check_choice("--precision", precision, "auto", *PRECISIONS)
    return replace(
        config,
        photos=photos or config.photos,
        store=parse_store(fspath(store)) if store is not None else config.store,
        weights=_policy(config.weights, weights, as_path(weights_folder), hub),
        dtype=dtype or config.dtype,
        compress=cast(Any, compress) or config.compress,
        precision=precision or config.precision,
        engine=engine or config.engine,
        max_megapixels=max_megapixels or config.max_megapixels,
    )


def choose(
    config: Config,
    backbones: Backbones | None,
    views: Names | None = None,
    tensors: str | TensorSpec | Iterable[str | TensorSpec] | None = None,
) -> Config:
    """The configuration with the tensors that are asked for: `all` if nothing is.

    Raises:
        ConfigError: they do not make sense.
    """
    listed = [tensors] if isinstance(tensors, str | TensorSpec) else tensors or []
    extra = [each if isinstance(each, TensorSpec) else parse_tensor(each) for each in listed]
    named = "all" if backbones is None and not extra else ",".join(_backbones(backbones))
    return choose_tensors(config, named, {spec.name: spec for spec in extra}, views=_names(views))


def _backbones(said: Backbones | None) -> tuple[str, ...]:
    """The one place where what is said of backbones becomes names; a network gets one."""
    if said is None or isinstance(said, str):
        return parse_names(said)
    if "torch" not in sys.modules:  # so there is no network either, and half a second is saved
        return _names(cast(Names, said))
    from torch import nn

    from featstore.backbones.sources.python import register

    each = [said] if isinstance(said, nn.Module) else said
    return _names([register(one) if isinstance(one, nn.Module) else one for one in each])


def _names(said: Names | None) -> tuple[str, ...]:
    if said is None or isinstance(said, str):
        return parse_names(said)
    names = tuple(said)
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f'{name!r} is no name; say names as "lite0,lite1" or ["lite0", "lite1"]')
    return names


def _policy(policy: WeightsPolicy, said: SaidWeights | None, folder: Path | None, hub: bool | None) -> WeightsPolicy:
    if isinstance(said, WeightsPolicy):
        policy, said = said, None
    if isinstance(said, Mapping):
        said = [f"{name}={value}" for name, value in said.items()]
    named = WeightsPolicy.parse([said] if isinstance(said, str) else said or ())
    return replace(
        policy,
        folder=folder or policy.folder,
        # What is said of all backbones goes before what the configuration says of one.
        named=named if "*" in named else {**policy.named, **named},
        hub=policy.hub if hub is None else hub,
    )


def _check_choice(option: str, said: str | None, *choices: str) -> None:
    if said is not None and said not in choices:
        listed = " or ".join(choices) if len(choices) == 2 else ", ".join(choices)
        raise ConfigError(f"unknown {option} {said!r}; say {listed}")
