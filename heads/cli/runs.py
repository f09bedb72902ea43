"""`heads report`, `compare`, `predict`, `evaluate`, `attention` and `log`: what is done with finished runs."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore import FeatstoreError
from featstore.files import replacing
from featstore.support import to_cell
from featstore.terminal import Terminal, counted
from heads.cli.options import (
    Aggregate,
    Device,
    Group,
    Json,
    KindOfLabels,
    LabelFiles,
    Memory,
    Missing,
    NRaters,
    PathColumn,
    Photos,
    Plugins,
    Quiet,
    RunFolder,
    Scale,
    Sd,
    StorePlace,
    Strict,
    Tasks,
)
from heads.cli.request import LabelRequest, parse_bytes
from heads.cli.tables import metrics_table
from heads.errors import HeadsError

if TYPE_CHECKING:
    import pandas as pd


def report(run: RunFolder, photos: Photos = None, quiet: Quiet = False) -> None:
    """Write RUN/report.html, one page that shows the whole run.

    It holds the table of metrics, learning curves, predictions and attention maps.
    """
    terminal = Terminal(quiet=quiet)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.report import write_report
        from heads.runs.run import Run

        terminal.say(f"report: {write_report(Run(run, photos=photos))}")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Two or more run folders; the others are compared with the first.")
    ],
    metric: Annotated[str | None, typer.Option(help="The metric to compare by [pearson, or f1 of classes].")] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Compare runs whose folds differ, as if of two samples.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write an HTML page here, with charts and photos.")] = None,
    photos: Photos = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare runs on the same labels with the first of them.

    Each task has a test in the folds that all runs share; p-values are adjusted over all tests of the table.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.inference.comparing import compare as compare_runs
        from heads.runs.run import Run

        finished = [Run(folder, photos=photos) for folder in runs]
        found = compare_runs(finished, metric=metric, unpaired=unpaired)
        terminal.result(asdict(found))
        figures = found.figures()
        terminal.table(figures.header, figures.rows, title=found.title)
        for note in figures.notes:
            terminal.say(note)
        if out is not None:
            from heads.report import write_comparison

            page = (
                out if out.suffix else out.with_name(f"{out.name}.html")
            )  # a browser shows other files as their source
            terminal.say(f"page: {write_comparison(found, finished, page)}")


def predict(
    run: RunFolder,
    store: StorePlace = None,
    out: Annotated[Path | None, typer.Option(help="Write a CSV here [standard output].")] = None,
    device: Device = "auto",
    memory: Memory = "4GB",
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Predict every image of a store by the models of a run.

    A prediction is the mean over all models, in label units or as a probability. Images that the run was trained on are
    marked in the column `trained`; their honest predictions are in the run's predictions.csv.
    """
    terminal = Terminal(quiet=quiet)
    with terminal.errors(HeadsError, FeatstoreError):
        from featstore import find_config
        from featstore.support import parse_store
        from heads.runs.applying import predict as predict_store
        from heads.runs.run import Run
        from heads.systems.registry import load_plugins

        load_plugins(plugin)
        with terminal.progress() as progress:
            table = predict_store(
                Run(run),
                parse_store(store) if store else find_config().store,
                device=device,
                memory_bytes=parse_bytes(memory),
                on_progress=progress,
            )
        text = _csv(table)
        if out is None:
            terminal.raw(text)
        else:
            _write(out, text)
            terminal.say(f"{counted(len(table), 'prediction')}: {out}")
        if (n_trained := int(table["trained"].sum())) and not quiet:
            say = terminal.say if out else partial(typer.echo, err=True)
            say(
                f"{n_trained} of {counted(len(table), 'image')} are photos that the run was trained on (column "
                f"`trained`): see {run / 'predictions.csv'} for what models said that had not seen them"
            )


def evaluate(
    run: RunFolder,
    store: StorePlace = None,
    labels: LabelFiles = None,
    path_column: PathColumn = None,
    tasks: Tasks = None,
    kind: KindOfLabels = None,
    scale: Scale = None,
    missing: Missing = None,
    aggregate: Aggregate = None,
    sd: Sd = None,
    n_raters: NRaters = None,
    group: Group = None,
    seen: Annotated[
        bool, typer.Option("--seen", help="Also count images, and groups, that the run was trained on.")
    ] = False,
    strict: Strict = False,
    out: Annotated[Path | None, typer.Option(help="Write the predictions here, as CSV.")] = None,
    device: Device = "auto",
    memory: Memory = "4GB",
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a run on the labelled images of another store.

    The features of the store have to be the same by identity. Images that the run was trained on are recognised by
    their bytes and left out, and with them the others of their groups.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError):
        from featstore import find_config
        from featstore.support import parse_store
        from heads.raters.ceilings import to_json
        from heads.runs.applying import evaluate as evaluate_run
        from heads.runs.run import Run
        from heads.systems.registry import load_plugins

        load_plugins(plugin)
        finished = Run(run)
        request = LabelRequest(
            labels=[str(file) for file in labels] if labels else None,
            path_column=path_column,
            tasks=tasks or list(finished.config.labels.get("columns") or finished.config.target.tasks),
            kind=kind or finished.config.target.kind,
            scale=scale,
            missing=missing,
            aggregate=aggregate,
            sd=sd,
            n_raters=n_raters,
            group=group,
        )
        table, _ = _as_grouped(request, finished.config.group).read(like=finished.config.target)
        with terminal.progress() as progress:
            found = evaluate_run(
                finished,
                parse_store(store) if store else find_config().store,
                table,
                seen_too=seen,
                device=device,
                memory_bytes=parse_bytes(memory),
                strict=strict,
                on_progress=progress,
            )
        if out is not None:
            _write(out, _csv(found.table))
        counts = {
            "n_images": found.n_images,
            "n_seen": found.n_seen,
            "n_akin": found.n_akin,
            "n_outside": found.n_outside,
        }
        terminal.result({"metrics": found.metrics, "raters": to_json(found.raters), **counts})
        title = f"{finished.config.system} on {counted(found.n_images, 'image')}"
        metrics_table(
            table.target, found.metrics, terminal, title=title, head=found.head, of="models", raters=found.raters
        )
        if found.n_seen:
            terminal.say(f"{counted(found.n_seen, 'image')} left out: the run was trained on them (--seen counts them)")
        if found.n_akin:
            terminal.say(
                f"{counted(found.n_akin, 'image')} left out: the run was trained on others of their groups "
                "(--seen counts them)"
            )
        if found.n_outside:
            terminal.say(
                f"{counted(found.n_outside, 'rating')} outside the scale that the run learnt; if these labels are on "
                "another one, rmse and accuracy mean little until it is named, as --scale 1:9"
            )


def attention(
    run: RunFolder,
    photos: Annotated[list[str], typer.Argument(help="Photos, as the run names them.", metavar="PHOTO...")],
    out: Annotated[Path, typer.Option(help="Folder for the drawings.")] = Path("attention"),
    task: Annotated[str | None, typer.Option(help="The task, of heads that weigh blocks for each task.")] = None,
    photos_folder: Annotated[
        Path | None, typer.Option("--photos", help="The photo folder, if it is not where it was.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Draw what an attentive head looked at in photos, out of fold."""
    terminal = Terminal(quiet=quiet)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.report.overlay import draw
        from heads.runs.run import Run

        for file in draw(Run(run, photos=photos_folder), photos, out, task=task):
            terminal.say(str(file))


def log(
    run: RunFolder,
    tracker: Annotated[str | None, typer.Argument(help="tensorboard or mlflow, as --to.")] = None,
    to: Annotated[str | None, typer.Option(help="tensorboard or mlflow.")] = None,
    quiet: Quiet = False,
) -> None:
    """Copy a finished run to TensorBoard or MLflow.

    TensorBoard reads RUN/tensorboard. MLflow is the server, database or folder
    that MLFLOW_TRACKING_URI names, or else mlflow.db in the working folder.
    """
    terminal = Terminal(quiet=quiet)
    with terminal.errors(HeadsError):
        name = to or tracker
        if name is None or (to and tracker and to != tracker):
            raise HeadsError("say where to, once: --to tensorboard, or --to mlflow")
        from heads.runs.run import Run
        from heads.runs.tracking import find_tracker

        terminal.say(f"{name}: {find_tracker(name)(Run(run))}")


def _as_grouped(request: LabelRequest, group: str | None) -> LabelRequest:
    """With the groups of the run, if the labels have them: what was learnt of a group helps with all of it."""
    if request.group is not None or group is None:
        return request
    as_run = replace(request, group=group)
    try:
        as_run.read()
    except HeadsError:
        return request
    return as_run


def _csv(table: "pd.DataFrame") -> str:
    """A table to be handed on, in which no path and no class is a formula to a spreadsheet."""
    texts = table.select_dtypes(exclude=["number", "bool"]).columns
    cells = table.assign(**{name: [to_cell(str(text)) for text in table[name]] for name in texts})
    return cells.rename(columns=to_cell).to_csv(index=False, float_format="%.9g")


def _write(file: Path, text: str) -> None:
    """A pipe or a device that is named, as /dev/stdout, is written to; a file is replaced, and so is a link to one."""
    try:
        if file.exists() and not file.is_file():
            file.write_text(text, encoding="utf-8")
            return
        with replacing(file) as out:
            out.write(text.encode())
    except OSError as error:
        raise HeadsError(f"cannot write {file}: {error.strerror}") from error
