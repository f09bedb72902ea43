"""`heads explore`: a study as a page, served on this machine or written to a folder."""

import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore import FeatstoreError
from featstore.support import size
from featstore.terminal import Terminal, counted
from heads.cli.options import (
    Aggregate,
    Group,
    Json,
    KindOfLabels,
    LabelFiles,
    Missing,
    PathColumn,
    Photos,
    Quiet,
    Scale,
    StorePlace,
    Tasks,
)
from heads.cli.request import LabelRequest
from heads.errors import HeadsError

if TYPE_CHECKING:
    from heads.explore.documents import Documents
    from heads.explore.thumbnails import Thumbnails

RATINGS = Path("explore-ratings.csv")
CACHE = Path("cache/explore")
USUAL, MOST_STEPS = (1, 7), 9


def explore(
    store: StorePlace = None,
    labels: LabelFiles = None,
    run: Annotated[
        list[Path] | None, typer.Option("--run", metavar="RUN", help="A run folder; again to compare runs.")
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(help="The features that are mapped and learned from [a concatenation].")
    ] = None,
    map_by: Annotated[str, typer.Option("--map", help="How the map is made: pca, tsne or umap.")] = "pca",
    path_column: PathColumn = None,
    tasks: Tasks = None,
    kind: KindOfLabels = None,
    scale: Scale = None,
    missing: Missing = None,
    aggregate: Aggregate = None,
    group: Group = None,
    photos: Photos = None,
    ratings: Annotated[Path, typer.Option(help="The table that ratings given on the page are kept in.")] = RATINGS,
    rate: Annotated[
        str | None,
        typer.Option(help="The scale of these ratings; 0:1 is dislike and like [that of featstore.toml, or 1:7]."),
    ] = None,
    question: Annotated[str, typer.Option(help="What raters are asked, as 'How beautiful?'.")] = "",
    to: Annotated[Path | None, typer.Option(help="Write the page to this new folder, and serve nothing.")] = None,
    without_photos: Annotated[
        bool, typer.Option("--without-photos", help="With --to: leave the photos away, as those that may not be shown.")
    ] = False,
    small_photos: Annotated[
        bool, typer.Option("--small-photos", help="With --to: thumbnails only, which take a quarter.")
    ] = False,
    cache: Annotated[Path, typer.Option(help="The folder that thumbnails are kept in.")] = CACHE,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines can ask only if you say so.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 0,
    token: Annotated[
        bool, typer.Option("--token/--no-token", help="Whether the address has a secret word that others cannot guess.")
    ] = True,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open the browser.")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """See photos, features and what runs make of them; rate photos.

    Serves a page on this machine until Ctrl+C, or writes it to a folder that opens without a server.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError):
        request = LabelRequest(
            labels=[str(file) for file in labels] if labels else None,
            path_column=path_column,
            tasks=tasks,
            kind=kind,
            scale=scale,
            missing=missing,
            aggregate=aggregate,
            group=group,
        )
        low, high = _steps(rate)
        with terminal.progress() as progress:
            documents = _documents(store, request, run or [], tensor, map_by, photos, (low, high), question)
            from heads.explore.thumbnails import Thumbnails

            thumbnails = Thumbnails(documents.study, cache / "small")
            for note in documents.study.notes:
                terminal.say(f"note: {note}")
            if to is not None:
                from heads.explore.static import write_static

                n_pictures, n_bytes = write_static(
                    documents,
                    to,
                    thumbnails=None if without_photos else thumbnails,
                    large=not small_photos,
                    on_progress=progress,
                )
                said = f"{counted(len(documents.study), 'photo')}, {counted(n_pictures, 'picture')}, {size(n_bytes)}"
                terminal.say(f"{said}: {to / 'index.html'}")
                terminal.result({"page": str(to / "index.html"), "pictures": n_pictures, "bytes": n_bytes})
                return
        _serve(terminal, documents, thumbnails, ratings, (low, high), host, port, token=token, browser=browser)


def _documents(
    place: str | None,
    request: LabelRequest,
    folders: list[Path],
    tensor: str | None,
    map_by: str,
    photos: Path | None,
    scale: tuple[float, float],
    question: str,
) -> "Documents":
    import featstore
    from featstore.support import parse_store
    from heads.explore.documents import Documents
    from heads.explore.spaces import PROJECTIONS, Spaces, choose_tensor
    from heads.explore.study import make_study
    from heads.runs.run import Run

    if map_by not in PROJECTIONS:
        raise HeadsError(f"--map is {', '.join(PROJECTIONS)}; found {map_by!r}")
    config = featstore.find_config()
    store = featstore.open(parse_store(place) if place else config.store)
    runs = [Run(folder, photos=photos) for folder in folders]
    usual = place is None and config.labels is not None
    table = request.read()[0] if request.labels or usual else None
    folder = photos or next((Path(run.config.photos) for run in runs if run.config.photos), None) or config.photos
    study = make_study(store, labels=table, runs=runs, photos=folder)
    chosen = choose_tensor(store, tensor)
    return Documents(
        study, None if chosen is None else Spaces(chosen, study.rows), how=map_by, scale=scale, question=question
    )


def _serve(
    terminal: Terminal,
    documents: "Documents",
    thumbnails: "Thumbnails",
    file: Path,
    scale: tuple[float, float],
    host: str,
    port: int,
    *,
    token: bool,
    browser: bool,
) -> None:
    try:
        from heads.explore import server
    except ImportError as error:
        raise HeadsError(
            f"the page needs {error.name}: pip install 'featstore[explore]', or write it with --to"
        ) from error
    from heads.explore.ratings import Ratings

    kept = Ratings(file, scale)
    word = server.new_token() if token else ""
    where = server.listen(host, port)
    hosts = server.hosts_of(host)
    app = server.make_app(documents, thumbnails, kept, token=word, hosts=hosts)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{where.getsockname()[1]}/{word + '/' if word else ''}"
    with suppress(KeyboardInterrupt):  # the way in which it is meant to end
        terminal.say(f"{counted(len(documents.study), 'photo')}: {address}")
        terminal.result({"address": address, "photos": len(documents.study), "ratings": str(file)})
        terminal.say(f"ratings are kept in {file}; Ctrl+C ends")
        with _opened(address) if browser else nullcontext():
            server.serve(app, where)


@contextmanager
def _opened(address: str) -> Iterator[None]:
    """The browser at an address, led there by a file that only this user can read.

    Other users of the machine can see the command lines of programs, and so an address that a browser was started with.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="explore-") as file:  # mode 0600
        file.write(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><a href="{address}">Explore</a>'
        )
        file.flush()
        webbrowser.open(Path(file.name).as_uri())
        yield


def _steps(text: str | None) -> tuple[int, int]:
    """
    Raises:
        HeadsError: it is no scale of whole numbers that keys can give.
    """
    if text is None:
        import featstore

        labels = featstore.find_config().labels
        scale = None if labels is None else labels.scale
        if scale is not None and all(end == int(end) and 0 <= end <= MOST_STEPS for end in scale):
            return int(scale[0]), int(scale[1])
        return USUAL
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and int(low) < int(high) <= MOST_STEPS):
        raise HeadsError(
            f"--rate {text!r} is not LOW:HIGH of whole numbers from 0 to {MOST_STEPS}, which keys can give: 1:7, or "
            "0:1 for dislike and like"
        )
    return int(low), int(high)
