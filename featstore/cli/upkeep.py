"""Keeping a store whole: `verify`, `repair`, `rm`."""

from typing import Annotated

import typer

from featstore.cli.options import (
    Device,
    Engine,
    Hub,
    Json,
    PhotosOption,
    Quiet,
    StoreArgument,
    StoreOption,
    WeightsFolder,
    WeightsOption,
    app,
    override,
    place_of,
)
from featstore.errors import FeatstoreError
from featstore.terminal import Terminal, size


@app.command()
def verify(
    store: StoreArgument = None,
    recompute: Annotated[int, typer.Option(help="Also compute this many rows again from their photos.", min=0)] = 0,
    photos: PhotosOption = None,
    weights: WeightsOption = None,
    weights_folder: WeightsFolder = None,
    hub: Hub = None,
    device: Device = "auto",
    engine: Engine = None,
    seed: Annotated[int | None, typer.Option(help="Of the rows drawn [another one each time].")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check every file, every checksum and every record of a store; exits with 1 if anything is damaged."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.cli.show import show_verification
        from featstore.store import verify as check
        from featstore.toml import find_config

        config = override(find_config(), None, store, weights, weights_folder, hub, engine=engine)
        again = None
        with terminal.progress() as progress:
            found = check(config.store, on_progress=progress)
            if recompute and found.sound:
                from featstore.engines import Runtime
                from featstore.extraction.recompute import recompute as compute_again

                again = compute_again(
                    config.store,
                    recompute,
                    photos=photos,
                    default_photos=config.photos,
                    weights=config.weights,
                    runtime=Runtime(device, config.engine),
                    seed=seed,
                    on_progress=progress,
                )
        show_verification(found, again, terminal)
        if not found.sound or (again is not None and not again.within):
            raise SystemExit(1)


@app.command()
def repair(store: StoreArgument = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Mark what is damaged as absent, so that `extract` computes just that again; what is whole is kept.

    A shared repository gets a new version without the damage; whoever has the rows pushes them again.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.cli.show import show_repair
        from featstore.store import repair as mend

        with terminal.progress() as progress:
            done = mend(place_of(store), on_progress=progress)
        show_repair(done, terminal)
        if done.remaining:
            raise SystemExit(1)


@app.command("rm")
def remove(
    tensors: Annotated[list[str], typer.Argument(help="Names of tensors.")],
    store: StoreOption = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take tensors out of a store, and say how many bytes are free again."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.store.replacing import remove_tensors

        freed = remove_tensors(place_of(store), tensors)
        terminal.result({"removed": freed})
        for name, n_bytes in freed.items():
            terminal.say(f"removed tensor {name}: {size(n_bytes)} freed")
