"""The `heads` command: parses, calls, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore import FeatstoreError, wait_briefly
from featstore.console import Terminal, clock
from heads.errors import HeadsError, LabelsError

if TYPE_CHECKING:
    from heads.labels import Join, Labels
    from heads.runs import Run

app = typer.Typer(
    help="Train light heads on frozen features from a store, with honest cross-validation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Photos = Annotated[Path | None, typer.Option(help="The photo folder, for the report's pictures.")]


def main() -> None:
    wait_briefly()
    app()


@app.command()
def train(
    system: Annotated[str, typer.Argument(help="The head; `heads list` shows them.")],
    store: Annotated[
        str | None, typer.Argument(help="The store: a folder, zip file or URL [that of featstore.toml].")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Label table, CSV [that of featstore.toml].")] = None,
    path_column: Annotated[str | None, typer.Option(help="Column with the photo's path. [path]")] = None,
    tasks: Annotated[str | None, typer.Option(help="Columns to learn, comma-separated [all numeric].")] = None,
    scale: Annotated[str | None, typer.Option(help="Ends of the rating scale, as 1:7 [range of the labels].")] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Keep rows together: a column, or name (file name without its number), or folder."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Train every model so many times [as the head's paper: amtl 5].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides folds, initial weights and shuffling.")] = 0,
    tensor: Annotated[
        str | None, typer.Option(help="Tensor to read [of the head's own name, or the only one of its layout].")
    ] = None,
    memory: Annotated[str, typer.Option(help="Features held in memory at most; others stream.")] = "4GB",
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a default, as --set lr=3e-4.")] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(
            "--standardise/--no-standardise",
            help="Features to zero mean, unit variance on the training rows (on); off to match the paper.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder [cache/runs/HEAD-DATE-TIME].")] = None,
    device: Device = "auto",
    strict: Annotated[bool, typer.Option(help="Refuse photos without labels and labels without photos.")] = False,
    photos: Photos = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate a head on labelled photos and leave a run folder with a report."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError, stopped="this run is not kept; the store is as it was"):
        from featstore import find_config, parse_store
        from heads.experiment import Plan
        from heads.experiment import train as run_plan
        from heads.report import write_report
        from heads.runs import new_run_folder
        from heads.systems.system import find_system

        config = find_config()
        find_system(system)
        table, grouping = _read_labels(labels, path_column, tasks, scale, group)
        changes = list(change or [])
        if standardise is not None:
            changes.append(f"standardise={str(standardise).lower()}")
        plan = Plan(
            system=system,
            store=parse_store(store) if store else config.store,
            labels=table,
            out=out or new_run_folder(config.runs, system),
            tensor=tensor,
            changes=changes,
            n_folds=folds,
            n_repeats=repeats,
            seed=seed,
            group=grouping,
            memory_bytes=_bytes(memory),
            device=device,
            strict=strict,
            photos=photos or (config.photos if store is None else None),
        )
        _say_labels(table, grouping, terminal)
        with terminal.progress() as progress:
            run = run_plan(plan, on_progress=progress, on_join=lambda joined: _say_join(joined, terminal))
        report = write_report(run)
        _print_run(run, report, terminal)


@app.command("list")
def list_systems(as_json: Json = False) -> None:
    """The heads that can be trained."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(HeadsError):
        from heads.systems import load_systems

        systems = load_systems()
        terminal.result(
            [
                {
                    "name": system.name,
                    "title": system.title,
                    "layout": system.layout,
                    "source": system.source,
                    "options": {name: option.value for name, option in system.options.items()},
                }
                for system in systems.values()
            ]
        )
        terminal.table(
            ("head", "what it is", "reads", "source"),
            [(system.name, system.title, system.layout, system.source) for system in systems.values()],
        )


@app.command()
def show(system: Annotated[str, typer.Argument(help="The head.")], as_json: Json = False) -> None:
    """The options of a head: defaults, and where each comes from."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(HeadsError):
        from heads.systems.system import find_system

        found = find_system(system)
        terminal.result({name: {"default": o.value, "source": o.source} for name, o in found.options.items()})
        terminal.say(f"{found.name}: {found.title} ({found.source}); reads a {found.layout}, repeats {found.repeats}")
        terminal.table(
            ("option", "default", "source"),
            [(name, str(option.value), option.source) for name, option in found.options.items()],
        )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    store: Annotated[
        str | None, typer.Argument(help="The store: a folder, zip file or URL [that of featstore.toml].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a CSV here [standard output].")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Predict every image of a store: the mean over all models of a run, in label units.

    Images that the run was trained on are predicted by models that saw them; their honest predictions are in
    the run's predictions.csv.
    """
    terminal = Terminal(quiet=quiet)
    with terminal.errors(HeadsError, FeatstoreError):
        from featstore import find_config, parse_store
        from heads.experiment import predict as predict_store
        from heads.runs import Run

        with terminal.progress() as progress:
            table = predict_store(
                Run(run),
                parse_store(store) if store else find_config().store,
                device=device,
                on_progress=progress,
            )
        text = table.to_csv(index=False, float_format="%.6g")
        if out is None:
            typer.echo(text, nl=False)
        else:
            try:
                out.write_text(text, encoding="utf-8")
            except OSError as error:
                raise HeadsError(f"cannot write {out}: {error.strerror}") from error
            terminal.say(f"{len(table)} predictions: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    photos: Photos = None,
    quiet: Quiet = False,
) -> None:
    """Write RUN/report.html: the table, learning curves, predictions and attention maps in one page."""
    terminal = Terminal(quiet=quiet)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.report import write_report
        from heads.runs import Run

        terminal.say(f"report: {write_report(Run(run, photos=photos))}")


def _read_labels(
    file: Path | None, path_column: str | None, tasks: str | None, scale: str | None, group: str | None
) -> "tuple[Labels, str | None]":
    """The label table that the options name; what they leave out comes from featstore.toml, if it is of that table."""
    from featstore import find_config, parse_scale
    from heads.labels import read_labels

    section = find_config().labels
    if file is not None and (section is None or file.resolve() != section.file.resolve()):
        section = None
    if file is None and section is None:
        raise LabelsError("no label table named; say --labels FILE.csv, or name it in featstore.toml under [labels]")
    grouping = group or (section.group if section else None)
    table = read_labels(
        file or section.file,  # type: ignore[union-attr]
        path_column=path_column or (section.path_column if section else "path"),
        tasks=[name.strip() for name in tasks.split(",") if name.strip()]
        if tasks
        else section.tasks
        if section
        else (),
        scale=parse_scale(scale) if scale else section.scale if section else None,
        group=grouping,
    )
    return table, grouping


def _bytes(text: str) -> int:
    units = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1, "": 1}
    number = text.strip().lower().rstrip("bikmgt")
    try:
        n_bytes = int(float(number) * units[text.strip().lower()[len(number) :].strip()])
        if n_bytes < 0:
            raise ValueError(n_bytes)
        return n_bytes
    except (ValueError, KeyError, OverflowError):
        raise HeadsError(f"--memory {text!r} is not a size; write 4GB or 500MB") from None


def _say_labels(labels: "Labels", group: str | None, terminal: Terminal) -> None:
    low, high = labels.scale
    said = "" if labels.scale_given else " (the range of the labels; --scale gives another)"
    kept = f"; {len(set(labels.groups))} groups by {group!r} kept together" if labels.groups else ""
    terminal.say(f"labels: {len(labels.paths)} photos, {len(labels.tasks)} tasks, scale {low:g}:{high:g}{said}{kept}")
    if labels.n_unlabelled:
        terminal.say(f"  {labels.n_unlabelled} rows without any label left out")
    if not labels.groups:
        terminal.say("  no groups: if some photos are nearly alike, --group keeps them on one side of a split")


def _say_join(joined: "Join", terminal: Terminal) -> None:
    for paths, what in ((joined.only_labels, "labels without features"), (joined.only_store, "images without labels")):
        if paths:
            named = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
            terminal.say(f"  {len(paths)} {what}, left out: {named}")


def _print_run(run: "Run", report: Path, terminal: Terminal) -> None:
    from heads.metrics import METRICS

    config = run.config
    terminal.result(
        {"run": str(run.folder), "report": str(report), "metrics": run.metrics, "elapsed_s": config.elapsed_s}
    )
    many = f", {config.n_repeats} repeats" if config.n_repeats > 1 else ""
    terminal.table(
        ("task", *METRICS),
        [(task, *(_cell(by_metric[name]) for name in METRICS)) for task, by_metric in run.metrics.items()],
        title=f"{config.system}: {config.n_folds} folds{many}, {config.n_images} images, out of fold",
    )
    terminal.say(
        "pearson2: squared correlation; r2: coefficient of determination; rmse: on labels scaled to -0.5..+0.5"
    )
    if config.options.get("standardise"):
        terminal.say("features standardised on the training rows (--no-standardise to match the paper)")
    terminal.say(f"trained in {clock(config.elapsed_s)}\nrun: {run.folder}\nreport: {report}")


def _cell(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:.3f}" + (f" ± {value['spread']:.3f}" if value["spread"] is not None else "")
