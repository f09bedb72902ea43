"""Sharing with a team: `push`, `pull`, `log`, `tag`, `ls`, `merge`, `diff`."""

from typing import Annotated

import typer

from featstore.cli.options import (
    Device,
    Engine,
    Hub,
    Json,
    PhotosOption,
    Quiet,
    WeightsFolder,
    WeightsOption,
    app,
    override,
)
from featstore.errors import ConfigError, FeatstoreError
from featstore.terminal import Terminal

REMOTE_HELP = "A shared repository: a folder, s3://, gs:// or az://; REMOTE@VERSION is one version of it."
Remote = Annotated[str, typer.Argument(help=REMOTE_HELP)]
Tensors = Annotated[str | None, typer.Option(help="NAME,NAME [all].")]
Rows = Annotated[
    str | None, typer.Option(help="Images by path: PATTERN,PATTERN as 'beach/*', or @FILE, one a line [all].")
]
LeaveDifferent = Annotated[
    bool,
    typer.Option(
        "--leave-different", help="Where both have different values, as of two machines: each keeps its own, no error."
    ),
]
Version = Annotated[str | None, typer.Option("--version", "--tag", help="A tag or a snapshot [the newest version].")]
KEPT = "what was committed is kept, and the same command goes on from there"


@app.command()
def push(
    store: Annotated[str, typer.Argument(help="The store: a folder, a zip file or a URL.")],
    remote: Annotated[str, typer.Argument(help="A shared repository, made if nothing is there: folder, s3://, ...")],
    message: Annotated[str, typer.Option("--message", "-m", help="What this is, for those who read the log.")],
    tensors: Tensors = None,
    rows: Rows = None,
    leave_different: LeaveDifferent = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add what a store has and a shared repository lacks; nothing there is ever overwritten."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError, stopped=KEPT):
        from featstore.cli.show_sharing import show_moved
        from featstore.sharing.push_pull import push as run
        from featstore.sharing.selection import Selection
        from featstore.support import parse_store

        with terminal.progress() as progress:
            moved = run(
                parse_store(store),
                remote,
                message=message,
                selection=Selection.parse(tensors, rows),
                leave_different=leave_different,
                on_progress=progress,
            )
        show_moved(moved, "pushed", terminal)


@app.command()
def pull(
    remote: Remote,
    store: Annotated[str, typer.Argument(help="The store, made if nothing is there.")],
    version: Version = None,
    tensors: Tensors = None,
    rows: Rows = None,
    leave_different: LeaveDifferent = False,
    verify: Annotated[int, typer.Option(help="Also compute this many rows again from their photos.", min=0)] = 0,
    photos: PhotosOption = None,
    weights: WeightsOption = None,
    weights_folder: WeightsFolder = None,
    hub: Hub = None,
    device: Device = "auto",
    engine: Engine = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add what a shared repository has and a store lacks; every row is checked before it is recorded."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError, stopped=KEPT):
        from featstore.cli.show_sharing import show_moved
        from featstore.sharing.push_pull import pull as run
        from featstore.sharing.selection import Selection
        from featstore.toml import find_config

        config = override(find_config(), None, store, weights, weights_folder, hub, None, None, engine=engine)
        if verify and not photos:  # said before anything travels: what is pulled does not say where photos are
            from featstore.store import existing_store

            known = existing_store(config.store)
            if config.photos is None and (known is None or not known.tensors):
                raise ConfigError("--verify computes from the photos; name their folder with --photos")
        again = None
        with terminal.progress() as progress:
            moved = run(
                remote,
                config.store,
                version=version,
                selection=Selection.parse(tensors, rows),
                leave_different=leave_different,
                on_progress=progress,
            )
            if verify:
                from featstore.engines import Runtime
                from featstore.extraction.recompute import recompute

                again = recompute(
                    config.store,
                    verify,
                    photos=photos,
                    default_photos=config.photos,
                    weights=config.weights,
                    runtime=Runtime(device, config.engine),
                    on_progress=progress,
                )
        show_moved(moved, "pulled", terminal, again)
        if again is not None and not again.within:
            raise SystemExit(1)


@app.command()
def merge(
    sources: Annotated[list[str], typer.Argument(help="Stores, or versions of shared repositories.")],
    into: Annotated[str, typer.Option("--into", help="The store that gets the union, made if nothing is there.")],
    tensors: Tensors = None,
    rows: Rows = None,
    leave_different: LeaveDifferent = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The union of stores, by image and identity; where they disagree, nothing is changed."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError, stopped=KEPT):
        from featstore.cli.show_sharing import show_moved
        from featstore.sharing.push_pull import merge as run
        from featstore.sharing.selection import Selection
        from featstore.support import parse_store

        with terminal.progress() as progress:
            moved = run(
                list(map(parse_store, sources)),
                parse_store(into),
                selection=Selection.parse(tensors, rows),
                leave_different=leave_different,
                on_progress=progress,
            )
        show_moved(moved, "merged", terminal)


@app.command()
def log(
    remote: Remote,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="How many at most [all].")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The history of a shared repository, the newest first: who pushed what and when, and its tags."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.cli.show_sharing import show_log
        from featstore.sharing.remote import find_remote

        repository, version = find_remote(remote)
        show_log(list(repository.history(version, limit=limit)), terminal)


@app.command()
def tag(
    remote: Remote,
    name: Annotated[str, typer.Argument(help="The name that the version gets, for ever.")],
    version: Version = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Give a version of a shared repository a name that never moves, as paper-v1."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.sharing.remote import find_remote

        repository, at = find_remote(remote, version)
        snapshot = repository.tag(name, at)
        terminal.result({"tag": name, "snapshot": snapshot})
        terminal.say(f"{repository.name}@{name} is {snapshot}")


@app.command()
def ls(remote: Remote, version: Version = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """What a shared repository holds, without fetching features."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.cli.show_sharing import show_remote
        from featstore.sharing.remote import list_remote

        show_remote(list_remote(remote, version), terminal)


@app.command("diff")
def compare(
    here: Annotated[str, typer.Argument(help="A store, or a version of a shared repository.")],
    there: Annotated[str, typer.Argument(help="Another one.")],
    tensors: Tensors = None,
    rows: Rows = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How far two stores are apart: images, tensors, and the features of the images that both have."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.cli.show_sharing import show_diff
        from featstore.sharing.diff import diff as run
        from featstore.sharing.selection import Selection
        from featstore.support import parse_store

        with terminal.progress() as progress:
            found = run(
                parse_store(here),
                parse_store(there),
                selection=Selection.parse(tensors, rows),
                on_progress=progress,
            )
        show_diff(found, terminal)
