"""Sharing with a team: `push`, `pull`, `merge`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import Device, Engine, Output, Photos, SelectionOptions, WeightsOptions, configure
from featstore.cli.recomputing import recomputation_facts, recompute_rows, show_recomputation
from featstore.cli.remote import Remote, Version
from featstore.errors import ConfigError
from featstore.support import LISTED, few
from featstore.terminal import Terminal, counted, duration, size

if TYPE_CHECKING:
    from featstore import Config
    from featstore.extraction.recompute import Recomputation
    from featstore.sharing.push_pull import Moved

LeaveDifferent = Annotated[
    bool,
    typer.Option("--leave-different", help="Where both sides hold different values, each keeps its own; no error."),
]
KEPT = "what was committed is kept, and the same command goes on from there"


def push(
    store: Annotated[str, typer.Argument(help="The store: a folder, a zip file or a URL.")],
    remote: Annotated[str, typer.Argument(help="A shared repository, made if nothing is there: folder, s3://, ...")],
    message: Annotated[str, typer.Option("--message", "-m", help="What this version brings, for the log.")],
    *,
    selection: SelectionOptions,
    leave_different: LeaveDifferent = False,
    output: Output,
) -> None:
    """Copy new rows of a store into a shared repository.

    Nothing there is ever overwritten.
    """
    with output.terminal(stopped=KEPT) as terminal:
        from featstore import push as run
        from featstore.support import parse_store

        with terminal.progress() as progress:
            moved = run(
                parse_store(store),
                remote,
                message=message,
                selection=selection.parse(),
                leave_different=leave_different,
                on_progress=progress,
            )
        _show_moved(moved, "pushed", terminal)


def pull(
    remote: Remote,
    store: Annotated[str, typer.Argument(help="The store, made if nothing is there.")],
    version: Version = None,
    *,
    selection: SelectionOptions,
    leave_different: LeaveDifferent = False,
    verify: Annotated[int, typer.Option(help="Also compute this many rows again from their photos.", min=0)] = 0,
    photos: Photos = None,
    weights: WeightsOptions,
    device: Device = "auto",
    engine: Engine = None,
    output: Output,
) -> None:
    """Copy new rows of a shared repository into a store.

    Every row is checked before it is recorded.
    """
    with output.terminal(stopped=KEPT) as terminal:
        from featstore import pull as run

        config = configure(store=store, weights=weights, engine=engine)
        if verify and not photos:
            _check_photos_known(config)
        again = None
        with terminal.progress() as progress:
            moved = run(
                remote,
                config.store,
                version=version,
                selection=selection.parse(),
                leave_different=leave_different,
                on_progress=progress,
            )
            if verify:
                again = recompute_rows(config, verify, photos=photos, device=device, progress=progress)
        _show_moved(moved, "pulled", terminal, again)
        if again is not None and not again.within:
            raise SystemExit(1)


def merge(
    sources: Annotated[list[str], typer.Argument(help="Stores, or versions of shared repositories.")],
    into: Annotated[str, typer.Option("--into", help="The store that gets the union, made if nothing is there.")],
    *,
    selection: SelectionOptions,
    leave_different: LeaveDifferent = False,
    output: Output,
) -> None:
    """Copy the rows of several stores into one.

    Images are matched by their bytes, features by their identity. Where the stores disagree, nothing is changed.
    """
    with output.terminal(stopped=KEPT) as terminal:
        from featstore import merge as run
        from featstore.support import parse_store

        with terminal.progress() as progress:
            moved = run(
                list(map(parse_store, sources)),
                parse_store(into),
                selection=selection.parse(),
                leave_different=leave_different,
                on_progress=progress,
            )
        _show_moved(moved, "merged", terminal)


def _check_photos_known(config: "Config") -> None:
    """Before anything travels: what is pulled does not say where photos are."""
    from featstore.store import existing_store

    known = existing_store(config.store)
    if config.photos is None and (known is None or not known.tensors):
        raise ConfigError("--verify computes from the photos; name their folder with --photos")


def _show_moved(moved: "Moved", done: str, terminal: Terminal, again: "Recomputation | None" = None) -> None:
    """What travelled, and how fast."""
    result: dict[str, Any] = {
        "source": moved.source,
        "target": moved.target,
        "new_images": moved.n_images,
        "rows": moved.n_rows,
        "bytes_written": moved.n_bytes,
        "tensors": moved.tensors,
        "snapshots": moved.snapshots,
        "overtaken": moved.n_overtaken,
        "outdated": moved.n_outdated,
        "gone": moved.n_gone,
        "different": moved.n_different,
        "elapsed_s": round(moved.elapsed_s, 3),
    }
    if again is not None:
        result["recomputed"] = recomputation_facts(again)
    terminal.result(result)
    if moved.n_overtaken:
        terminal.say(f"note: {counted(moved.n_overtaken, 'time')} somebody else's push came first")
    if moved.n_outdated:
        terminal.say(
            f"note: {counted(moved.n_outdated, 'image')} left out: {moved.target} has newer photos under their paths"
        )
    if moved.n_gone:
        terminal.say(f"note: {counted(moved.n_gone, 'image')} of {moved.target} gone: their paths mean newer photos")
    if moved.n_different:
        terminal.say(
            f"note: {counted(moved.n_different, 'image')} left as they are: each side has other values of them"
        )
    if moved.n_rows or moved.n_images:
        rate = f", {size(moved.n_bytes / moved.elapsed_s)}/s" if moved.elapsed_s else ""
        terminal.say(
            f"{done} {counted(moved.n_rows, 'row')} of {few(moved.tensors, LISTED) if moved.tensors else 'no tensor'} "
            f"({counted(moved.n_images, 'new image')}), "
            f"{size(moved.n_bytes)} in {duration(moved.elapsed_s)}{rate}"
        )
    else:
        terminal.say(f"nothing to be {done}: {moved.target} has {'the rest' if moved.n_different else 'all of it'}")
    for snapshot in moved.snapshots[-1:]:
        terminal.say(f"{moved.target}@{snapshot}")
    if again is not None:
        show_recomputation(again, terminal)
