"""The options that several commands of `featstore` share, and what they make of featstore.toml."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.engines import ENGINES
from featstore.errors import FeatstoreError
from featstore.terminal import Terminal

if TYPE_CHECKING:
    from featstore import Config, Selection
    from featstore.store.places.place import Place

STORE_HELP = "The store: a folder, a zip file or a URL [cache/features.zarr]."
StoreOption = Annotated[str | None, typer.Option("--store", help=STORE_HELP)]
StoreArgument = Annotated[str | None, typer.Argument(help=STORE_HELP)]
Photos = Annotated[
    Path | None, typer.Option(help="The folder of photos [as the last extraction, else as featstore.toml].")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_ENGINES = [name + (f" ({card.device.upper()})" if card.device else "") for name, card in ENGINES.items()]
Engine = Annotated[str | None, typer.Option(help=f"auto, {', '.join(_ENGINES)} [auto].")]
Dtype = Annotated[str | None, typer.Option(help="Type of the stored features: float16 or float32.")]
Compress = Annotated[str | None, typer.Option(help="Compress new tensors with zstd or blosc [none].")]
MaxBad = Annotated[str | None, typer.Option(help="Fail if more photos than this cannot be read: 10 or 1%.")]
MaxMegapixels = Annotated[
    float | None, typer.Option(help="Do not read photos that have more; 4 MB for each [500].", min=0.0)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


@dataclass(frozen=True)
class Output:
    """How a command prints."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False
    as_json: Json = False

    @contextmanager
    def terminal(self, *, stopped: str = "nothing was changed") -> Iterator[Terminal]:
        """The terminal of a command: an error of featstore is one message there, and exit code 1.

        Args:
            stopped: what to say of the work that Ctrl-C cut short.
        """
        terminal = Terminal(quiet=self.quiet, as_json=self.as_json)
        with terminal.errors(FeatstoreError, stopped=stopped):
            yield terminal


@dataclass(frozen=True)
class WeightsOptions:
    """Where the weights of backbones come from."""

    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE or NAME=random:SEED; random:SEED for all; hf:ORG/NAME=FOLDER.")
    ] = None
    weights_folder: Annotated[Path | None, typer.Option(help="The folder of weights files [cache/weights].")] = None
    hub: Annotated[bool | None, typer.Option("--hub/--no-hub", help="Allow downloads from the Hugging Face hub.")] = (
        None
    )


@dataclass(frozen=True)
class SelectionOptions:
    """Which part of a store is meant."""

    tensors: Annotated[str | None, typer.Option(help="Tensors by name: NAME,NAME [all].")] = None
    rows: Annotated[
        str | None, typer.Option(help="Images by path: PATTERN,PATTERN as 'beach/*', or @FILE, one a line [all].")
    ] = None

    def parse(self) -> "Selection":
        """
        Raises:
            ConfigError: an option names nothing, or its file cannot be read.
        """
        from featstore import Selection

        return Selection.parse(self.tensors, self.rows)


def place_of(store: str | None) -> "Place":
    """The store that is named, or else that of featstore.toml."""
    from featstore import find_config
    from featstore.support import parse_store

    return parse_store(store) if store else find_config().store


def configure(
    *,
    photos: Path | None = None,
    store: str | None = None,
    weights: WeightsOptions | None = None,
    dtype: str | None = None,
    compress: str | None = None,
    precision: str | None = None,
    engine: str | None = None,
    max_megapixels: float | None = None,
) -> "Config":
    """The configuration of this folder, with what the command line says in place of what featstore.toml says.

    Raises:
        ConfigError: featstore.toml or an option does not make sense.
        BackboneError: weights are named of a backbone that does not exist.
    """
    from featstore.extraction.request import configure as make

    said = weights or WeightsOptions()
    return make(
        photos=photos,
        store=store,
        weights=said.weights,
        weights_folder=said.weights_folder,
        hub=said.hub,
        dtype=dtype,
        compress=compress,
        precision=precision,
        engine=engine,
        max_megapixels=max_megapixels,
    )
