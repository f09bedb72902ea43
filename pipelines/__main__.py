"""The command `python -m pipelines`: parses, calls, prints; no logic of its own."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from featstore.terminal import Terminal
    from pipelines.bench import Bench, Outcome

PHOTOS = "cache/demo/photos"
LABELS = "cache/demo/labels.csv"
CONFIG = Path("featstore.toml")
STORE = Path("cache/features.zarr")
RUNS = Path("cache/runs")

INIT = f"featstore init {PHOTOS} --labels {LABELS} --scale 1:7 --group source"
EXTRACT = "featstore extract --backbones all"
TRAIN = "heads train amtl --folds 5"

INTERRUPTED = 130
GRACE_S = 30.0

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Photos = Annotated[Path, typer.Option(help="The folder of photos.")]
Out = Annotated[Path | None, typer.Option(help="A folder for the runs [cache/RECIPE].")]
Store = Annotated[Path | None, typer.Option(help="The store of features [features.zarr in the --out folder].")]
Backbones = Annotated[str | None, typer.Option(help="NAME,NAME in place of the paper's, as lite0,lite1.")]
Weights = Annotated[list[str] | None, typer.Option(help="NAME=FILE, NAME=random:SEED, or random:SEED for all.")]
Hub = Annotated[bool, typer.Option("--hub", help="Allow downloads of weights from the hub.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Leave out backbones without weights.")]
Group = Annotated[str | None, typer.Option(help="Keep rows together: a column, or name, or folder.")]
Folds = Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Train every model so many times [as the paper].")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides folds, initial weights and shuffling.")]
Change = Annotated[list[str] | None, typer.Option("--set", help="Change an option of the heads, as --set epochs=10.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")]


@app.callback()
def pipelines() -> None:
    """Recipes that run the whole road, from photographs to a report."""


@app.command()
def demo() -> None:
    """Extract features of 120 small photographs and train heads on them, with nothing to download."""
    started = time.monotonic()
    try:
        _refuse_other_config()
        _prepare()
        if not CONFIG.exists():
            _run(INIT)
        _run(EXTRACT)
        _run(TRAIN)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; run the same command again to go on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show_results(elapsed_s=time.monotonic() - started)


@app.command("visual-interest")
def visual_interest(
    ctx: typer.Context,
    photos: Photos,
    labels: Annotated[Path, typer.Option(help="The ratings, CSV.")],
    scale: Annotated[str, typer.Option(help="The ends of the rating scale.")] = "1:7",
    tasks: Annotated[str | None, typer.Option(help="Columns to learn, comma-separated [all numeric].")] = None,
    systems: Annotated[
        str, typer.Option(help="The heads, comma-separated.")
    ] = "amtl,amtl-single,mtl,amtl-separate,amtl-swapped",
    aggregate: Annotated[
        bool,
        typer.Option("--aggregate", help="The table has a row per rater: learn their mean, amtl their median too."),
    ] = False,
    folds: Folds = 5,
    group: Group = None,
    out: Out = None,
    store: Store = None,
    backbones: Backbones = None,
    weights: Weights = None,
    hub: Hub = False,
    allow_missing: AllowMissing = False,
    repeats: Repeats = None,
    seed: Seed = 0,
    change: Change = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Ghosal and Kolekar: twelve ratings by attention over blocks and backbones (amtl and its variants)."""
    from pipelines.visual_interest import visual_interest as recipe

    with _bench(ctx, Path("cache/visual-interest")) as (bench, terminal):
        found = recipe(
            bench,
            labels,
            systems=_names(systems),
            tasks=_names(tasks),
            scale=scale,
            group=group,
            aggregate=aggregate,
            n_folds=folds,
        )
    _show(found, terminal)


@app.command()
def mediaeval(
    ctx: typer.Context,
    photos: Photos,
    labels: Annotated[Path, typer.Option(help="The sentiments, CSV.")],
    three: Annotated[str | None, typer.Option(help="Column with one of 3 classes, for moe.")] = None,
    seven: Annotated[str | None, typer.Option(help="Columns of 7 labels, comma-separated, or one as joy|fear.")] = None,
    ten: Annotated[str | None, typer.Option(help="Columns of 10 labels, likewise.")] = None,
    copies: Annotated[
        int, typer.Option(min=0, max=255, help="Augmented copies of each photo that the mlp learns from; 0: none.")
    ] = 4,
    group: Group = None,
    out: Out = None,
    store: Store = None,
    backbones: Backbones = None,
    weights: Weights = None,
    hub: Hub = False,
    allow_missing: AllowMissing = False,
    repeats: Repeats = None,
    seed: Seed = 0,
    change: Change = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pournaras et al., MediaEval 2021: sentiment from deep features side by side (moe and mlp)."""
    from pipelines.mediaeval import mediaeval as recipe

    if not (three or seven or ten):
        _stop("no labels named; say --three COLUMN, --seven COLUMN,... or --ten COLUMN,...")
    with _bench(ctx, Path("cache/mediaeval")) as (bench, terminal):
        found = recipe(bench, labels, three=three, seven=_names(seven), ten=_names(ten), group=group, n_copies=copies)
    _show(found, terminal)


@app.command()
def personality(
    ctx: typer.Context,
    photos: Photos,
    aesthetics: Annotated[Path, typer.Option(help="The aesthetic scores, CSV.")],
    traits: Annotated[Path, typer.Option(help="The personality traits, CSV.")],
    score: Annotated[str, typer.Option(help="Column of the aesthetic score.")] = "score",
    names: Annotated[str, typer.Option(help="Columns of the traits, comma-separated.")] = "O,C,E,A,N",
    score_scale: Annotated[str, typer.Option(help="The ends of the score's scale.")] = "0:1",
    trait_scale: Annotated[str, typer.Option(help="The ends of the traits' scale.")] = "-1:1",
    folds: Folds = 5,
    group: Group = None,
    out: Out = None,
    store: Store = None,
    backbones: Backbones = None,
    weights: Weights = None,
    hub: Hub = False,
    allow_missing: AllowMissing = False,
    repeats: Repeats = None,
    seed: Seed = 0,
    change: Change = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Li et al.: an aesthetic score that personality traits correct, beside the score alone."""
    from pipelines.personality import personality as recipe

    with _bench(ctx, Path("cache/personality")) as (bench, terminal):
        found = recipe(
            bench,
            aesthetics,
            traits,
            score=score,
            names=_names(names),
            score_scale=score_scale,
            trait_scale=trait_scale,
            group=group,
            n_folds=folds,
        )
    _show(found, terminal)


@contextmanager
def _bench(ctx: typer.Context, out: Path) -> Iterator[tuple[Bench, Terminal]]:
    """What the options that every recipe has mean; expected errors become one message and exit code 1."""
    from featstore import Config, FeatstoreError
    from featstore.cli.options import override
    from featstore.terminal import Terminal
    from heads import HeadsError
    from pipelines.bench import Bench

    said = ctx.params  # read here, so that each recipe need not hand on a dozen of them
    terminal = Terminal(quiet=said["quiet"], as_json=said["as_json"])
    kept = "what is finished is kept, and the same command goes on from there"
    with terminal.errors(HeadsError, FeatstoreError, stopped=kept), terminal.progress() as progress:
        out = Path(said["out"] or out)
        store = str(said["store"] or out / "features.zarr")
        bench = Bench(
            config=override(Config(), Path(said["photos"]), store, said["weights"], None, said["hub"], None, None),
            out=out,
            backbones=tuple(_names(said["backbones"])),
            allow_missing=said["allow_missing"],
            device=said["device"],
            n_repeats=said["repeats"],
            seed=said["seed"],
            changes=tuple(said["change"] or ()),
            on_progress=progress,
        )
        yield bench, terminal


def _show(found: Outcome, terminal: Terminal) -> None:
    terminal.result(
        {
            "figures": [asdict(figure) for figure in found.figures],
            "learned": found.learned,
            "differences": found.differences,
            "runs": [str(run) for run in found.runs],
        }
    )
    for table in found.tables:
        terminal.table(table.header, table.rows, title=table.title)
    for name, weight in found.learned.items():
        terminal.say(f"weight of {name}: {weight}")
    terminal.say("ours: mean ± spread over the repeats [95 % bootstrap interval], on photos that no model saw")
    terminal.say("not as in the paper:")
    for difference in found.differences:
        terminal.say(f"  {difference}")
    for run in found.runs:
        terminal.say(f"report: {run / 'report.html'}")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _refuse_other_config() -> None:
    if CONFIG.exists() and PHOTOS not in CONFIG.read_text("utf-8"):
        _stop(f"{CONFIG} in this folder is about other photos than {PHOTOS}; run the demo in another folder")


def _prepare() -> None:
    from pipelines.demo import DemoError, prepare

    try:
        prepared = prepare(Path(LABELS).parent, on_progress=_show_progress)
    except DemoError as error:
        _stop(str(error))
    typer.echo(f"demo set: {prepared.n_photos} crops of {prepared.n_sources} photographs in {PHOTOS}")


def _show_progress(n_done: int, n_all: int) -> None:
    if sys.stdout.isatty():
        typer.echo(f"\rcutting and measuring {n_done}/{n_all}" + "\n" * (n_done == n_all), nl=False)


def _run(line: str) -> None:
    """Show a command line and run it; where it fails the demo ends with its exit code."""
    typer.echo(f"\n$ {line}")
    command, *arguments = shlex.split(line)
    # Beside this Python and not beside the one that a virtual environment links to.
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    if program is None:
        _stop(f"there is no command {command} beside {sys.executable}; run: pip install featstore[demo]")
    with subprocess.Popen([program, *arguments]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _let_finish(process)
            raise
    if code != 0:
        raise typer.Exit(code if code > 0 else 128 - code)


def _let_finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command that Ctrl-C has reached as well, so that it can put its work away."""
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.terminate()


def _show_results(*, elapsed_s: float) -> None:
    typer.echo(f"\nstore   {STORE}")
    runs = [folder for folder in RUNS.glob("*") if folder.is_dir() and folder.suffix != ".part"]
    if runs:
        newest = max(runs, key=lambda folder: folder.stat().st_mtime)
        typer.echo(f"run     {newest}\nreport  {newest / 'report.html'}")
    minutes, seconds = divmod(round(elapsed_s), 60)
    typer.echo(f"took    {minutes} min {seconds} s")


def _stop(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m pipelines")
