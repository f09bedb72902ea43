"""The command itself, and the options that several of its commands share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from featstore.engines import ENGINES
from featstore.errors import ConfigError
from featstore.support import version as version_of

if TYPE_CHECKING:
    from featstore.config import Config
    from featstore.store.places.place import Place

app = typer.Typer(
    help="Extract frozen image features once, keep them safe, share them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"featstore {version_of()}")
        raise typer.Exit


@app.callback()
def _take_version(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that go before the name of a command."""


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
STORE_HELP = "The store: a folder, a zip file or a URL [cache/features.zarr]."
StoreOption = Annotated[str | None, typer.Option("--store", help=STORE_HELP)]
StoreArgument = Annotated[str | None, typer.Argument(help=STORE_HELP)]
PhotosOption = Annotated[
    Path | None, typer.Option(help="The folder of photos [that of the last extraction, else of featstore.toml].")
]
WeightsOption = Annotated[list[str] | None, typer.Option(help="NAME=FILE, NAME=random:SEED, or random:SEED for all.")]
WeightsFolder = Annotated[Path | None, typer.Option(help="Where weights files are [cache/weights].")]
Hub = Annotated[bool | None, typer.Option("--hub/--no-hub", help="Allow downloads from the hub.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_ENGINES = [name + (f" ({card.device.upper()})" if card.device else "") for name, card in ENGINES.items()]
Engine = Annotated[str | None, typer.Option(help=f"auto, {', '.join(_ENGINES)} [auto].")]
Dtype = Annotated[str | None, typer.Option(help="float16 or float32, of the stored features.")]
Compress = Annotated[str | None, typer.Option(help="zstd or blosc, for new tensors [none].")]
MaxBad = Annotated[str | None, typer.Option(help="Fail if more photos than this cannot be read: 10 or 1%.")]


def place_of(store: str | None) -> "Place":
    """The store that is named, or else that of featstore.toml."""
    from featstore.support import parse_store
    from featstore.toml import find_config

    return parse_store(store) if store else find_config().store


def override(
    config: "Config",
    photos: Path | None = None,
    store: str | None = None,
    weights: list[str] | None = None,
    weights_folder: Path | None = None,
    hub: bool | None = None,
    dtype: str | None = None,
    compress: str | None = None,
    *,
    precision: str | None = None,
    engine: str | None = None,
) -> "Config":
    """A configuration with what the command line says in place of what it says itself.

    Raises:
        ConfigError: an option does not make sense.
    """
    from dataclasses import replace

    from featstore.identity import PRECISIONS
    from featstore.support import parse_store

    if photos and config.photos and not store and photos.resolve() != config.photos.resolve():
        raise ConfigError(
            f"{config.file} keeps the features of {config.photos} in {config.store}; "
            f"name another --store for those of {photos}"
        )
    if dtype not in (None, "float16", "float32"):
        raise ConfigError(f"unknown --dtype {dtype!r}; say float16 or float32")
    if compress not in (None, "zstd", "blosc"):
        raise ConfigError(f"unknown --compress {compress!r}; say zstd or blosc")
    if precision not in (None, "auto", *PRECISIONS):
        raise ConfigError(f"unknown --precision {precision!r}; say auto, {', '.join(PRECISIONS)}")
    policy = replace(
        config.weights,
        folder=weights_folder or config.weights.folder,
        named=_merge(config.weights.named, dict(map(_named_weights, weights or []))),
        hub=config.weights.hub if hub is None else hub,
    )
    return replace(
        config,
        photos=photos or config.photos,
        store=parse_store(store) if store else config.store,
        weights=policy,
        dtype=dtype or config.dtype,
        compress=cast(Any, compress) or config.compress,
        precision=precision or config.precision,
        engine=engine or config.engine,
    )


def _merge(here: Mapping[str, str], said: dict[str, str]) -> dict[str, str]:
    """What the command line says of all backbones goes before what featstore.toml says of one."""
    return said if "*" in said else {**here, **said}


def _named_weights(text: str) -> tuple[str, str]:
    from featstore.backbones import find_card

    if text.startswith("random:"):
        return "*", text
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise ConfigError(f"--weights {text!r} is not of the form NAME=FILE, NAME=random:SEED or random:SEED")
    return find_card(name).name, value
