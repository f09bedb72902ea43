"""`heads train` and `heads resume`."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore import FeatstoreError
from featstore.console import Terminal, clock
from heads.cli.options import (
    Aggregate,
    Device,
    Group,
    Json,
    KindOfLabels,
    LabelFiles,
    Memory,
    PathColumn,
    Photos,
    Quiet,
    Scale,
    StorePlace,
    Strict,
    Tasks,
)
from heads.cli.request import LabelRequest, TrainRequest
from heads.cli.tables import metrics_table
from heads.errors import HeadsError, RunError

if TYPE_CHECKING:
    from heads.joining import Join
    from heads.labels import Labels
    from heads.runs import Run


def train(
    system: Annotated[str, typer.Argument(help="The head; `heads list` shows them.")],
    store: StorePlace = None,
    labels: LabelFiles = None,
    path_column: PathColumn = None,
    tasks: Tasks = None,
    kind: KindOfLabels = None,
    scale: Scale = None,
    aggregate: Aggregate = None,
    group: Group = None,
    stratify: Annotated[
        str | None, typer.Option(help="Spread a column or task evenly over the folds (numbers: five quantiles).")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    hold_out: Annotated[
        float | None, typer.Option(help="Instead of folds: test on this share, then train on all for `predict`.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Instead of folds: a column of the labels, a CSV with path and fold, or an earlier run."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Train every model so many times [as the head's paper: amtl 5].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides folds, initial weights and shuffling.")] = 0,
    tensor: Annotated[
        list[str] | None, typer.Option(help="Tensor to read [of the head's own name, or the only one of its layout].")
    ] = None,
    memory: Memory = "4GB",
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a default, as --set lr=3e-4.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Try values, as --sweep lr=1e-3,3e-4: a run for each, trained together in one pass."),
    ] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(
            "--standardise/--no-standardise",
            help="Features to zero mean, unit variance on the training rows (on); off to match the paper.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder [cache/runs/HEAD-DATE-TIME].")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Arithmetic of the products: fp32 or bf16.")] = "fp32",
    scheduler: Annotated[
        str | None, typer.Option(help="Let the workers of this Dask scheduler train the models, as tcp://HOST:8786.")
    ] = None,
    strict: Strict = False,
    photos: Photos = None,
    log: Annotated[list[str] | None, typer.Option(help="Also log the finished run to tensorboard or mlflow.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate a head on labelled photos and leave a run folder with a report.

    A run that is interrupted, at whatever moment, goes on with `heads resume RUN` or the same command with its --out.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError, stopped="nothing had begun"):
        from featstore import find_config
        from heads.runs import new_run_folder
        from heads.systems.system import find_system

        find_system(system)
        if precision not in ("fp32", "bf16"):
            raise HeadsError(f"--precision {precision!r}: expected fp32 or bf16")
        as_column = split is not None and not (Path(split).exists() or "/" in split or split.endswith(".csv"))
        changes = list(change or [])
        if standardise is not None:
            changes.append(f"standardise={str(standardise).lower()}")
        request = TrainRequest(
            LabelRequest(
                labels=[str(file) for file in labels] if labels else None,
                path_column=path_column,
                tasks=tasks,
                kind=kind,
                scale=scale,
                aggregate=aggregate,
                group=group,
                stratify=stratify,
                split_column=split if as_column else None,
            ),
            system=system,
            out=str(out or new_run_folder(find_config().runs, system)),
            store=store,
            tensors=tensor,
            changes=changes,
            sweep=sweep,
            folds=folds,
            hold_out=hold_out,
            split=None if as_column else split,
            repeats=repeats,
            seed=seed,
            memory=memory,
            device=device,
            precision=precision,
            scheduler=scheduler,
            strict=strict,
            photos=str(photos) if photos else None,
            log=log,
        )
        _carry_out(request, terminal)


def resume(
    run: Annotated[Path, typer.Argument(help="The run that was interrupted, as `heads train` named it.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted, from the last epoch of each model that was noted."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.drafts import begun_with

        arguments = dict(begun_with(run))
        here = run.resolve().with_name(run.name.removesuffix(".part"))
        try:
            os.chdir(arguments["folder"])
            asked = TrainRequest(**{**arguments["request"], "labels": LabelRequest(**arguments["request"]["labels"])})
            # A copy of a draft goes on where it is now.
            request = asked if asked.sweep else replace(asked, out=os.path.relpath(here))
        except OSError as error:
            raise RunError(f"{run} was begun in {arguments['folder']}, which is no more: {error.strerror}") from error
        except (KeyError, TypeError) as error:
            raise RunError(f"the plan of {run} was not written by this version of heads ({error!r})") from error
        _carry_out(request, terminal)


def _carry_out(request: TrainRequest, terminal: Terminal) -> None:
    from heads.experiment import sweep as run_sweep
    from heads.experiment import train as run_plan

    with terminal.errors(HeadsError, FeatstoreError):
        from heads.report import write_report
        from heads.tracking import find_tracker

        trackers = {name: find_tracker(name) for name in request.log or ()}
        table, grouping = request.labels.read()
        plan = request.plan(table, grouping, {"folder": str(Path.cwd()), "request": asdict(request)})
        _say_labels(table, grouping, terminal)
        with _resumable(plan.out, terminal), terminal.progress() as progress:
            joined = _Joined(terminal)
            if plan.sweep:
                runs = run_sweep(plan, on_progress=progress, on_join=joined)
            else:
                runs = [run_plan(plan, on_progress=progress, on_join=joined)]
        reports = [write_report(run) for run in runs]
        if plan.sweep:
            _print_sweep(runs, terminal)
        else:
            _print_run(runs[0], reports[0], terminal)
        for name, tracker in trackers.items():
            for run in runs:
                try:
                    terminal.say(f"{name}: {tracker(run)}")
                except RunError as error:
                    raise RunError(
                        f"{error}; the run is complete: `heads log {run.folder} {name}` tries again"
                    ) from error


@contextmanager
def _resumable(out: Path, terminal: Terminal) -> Iterator[None]:
    """Say how to go on if Ctrl-C ends a run that has begun."""
    from heads.drafts import begun_with

    try:
        yield
    except KeyboardInterrupt:
        try:
            begun_with(out)
        except RunError:
            raise KeyboardInterrupt from None
        with terminal.errors(stopped=f"`heads resume {shlex.quote(str(out))}` goes on with it"):
            raise


class _Joined:
    """Says which photos and labels have no counterpart."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def __call__(self, joined: "Join") -> None:
        for paths, what in (
            (joined.only_labels, "labels without features"),
            (joined.only_store, "images without labels"),
        ):
            if paths:
                named = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
                self._terminal.say(f"  {len(paths)} {what}, left out: {named}")
        if joined.n_copies:
            self._terminal.say(f"  {joined.n_copies} photos have the same bytes as others: copies are kept together")


def _say_labels(labels: "Labels", group: str | None, terminal: Terminal) -> None:
    target = labels.target
    if labels.ratings is not None:
        terminal.say(f"labels: {labels.ratings}")
    what = f"{len(labels.paths)} photos, "
    if target.kind == "multiclass":
        what += f"{target.tasks[0]}: {len(target.classes)} classes ({', '.join(target.classes[:8])})"
    else:
        kind = "" if target.kind == "regression" else f"{target.kind} "
        what += f"{len(target.tasks)} {kind}task{'s' if len(target.tasks) > 1 else ''}"
    kept = f"; {len(set(labels.groups))} groups by {group!r} kept together" if labels.groups else ""
    terminal.say(f"labels: {what}{_scale(labels)}{kept}")
    if labels.n_unlabelled:
        terminal.say(f"  {labels.n_unlabelled} rows without any label left out")
    if not labels.groups:
        terminal.say("  no groups: if some photos are nearly alike, --group keeps them on one side of a split")


def _scale(labels: "Labels") -> str:
    if labels.target.kind != "regression":
        return ""
    said = "" if labels.scale_given else " (the range of the labels; --scale gives another)"
    scales = dict.fromkeys(f"{low:g}:{high:g}" for low, high in labels.scales)
    return f", scale {', '.join(scales)}{said}" if len(scales) <= 3 else f", {len(scales)} scales{said}"


def _print_run(run: "Run", report: Path, terminal: Terminal) -> None:
    config = run.config
    terminal.result(
        {"run": str(run.folder), "report": str(report), "metrics": run.metrics, "elapsed_s": config.elapsed_s}
    )
    many = f", {config.n_repeats} repeats" if config.n_repeats > 1 else ""
    n_tested = run.predictions["path"].nunique()
    of_all = f"tested on {n_tested} of {config.n_images} images"
    tested = f"{config.n_images} images, out of fold" if n_tested == config.n_images else of_all
    title = f"{config.system}: {config.split}{many}, {tested}"
    metrics_table(config.target, run.metrics, terminal, title=title)
    read = (f"{each['name']} ({each['layout']}, {' x '.join(map(str, each['shape']))})" for each in config.tensors)
    terminal.say(f"features: {', '.join(read)}")
    if config.options.get("standardise"):
        terminal.say("features standardised on the training rows (--no-standardise to match the paper)")
    terminal.say(f"trained in {clock(config.elapsed_s)}\nrun: {run.folder}\nreport: {report}")


def _print_sweep(runs: "list[Run]", terminal: Terminal) -> None:
    from heads.metrics import SHOWN, tasks_of

    target = runs[0].config.target
    metric = SHOWN[target.kind][0]
    inner = [_inner_loss(run) for run in runs]
    known = [loss for loss in inner if loss is not None]
    best = inner.index(min(known)) if known else None
    rows: list[dict[str, Any]] = [
        {"run": str(run.folder), "inner_loss": loss, "chosen": number == best, "metrics": run.metrics}
        for number, (run, loss) in enumerate(zip(runs, inner, strict=True))
    ]
    terminal.result({"runs": rows})
    terminal.table(
        ("run", "inner loss", *tasks_of(target)),
        [
            (
                row["run"] + (" *" if row["chosen"] else ""),
                "–" if row["inner_loss"] is None else f"{row['inner_loss']:.4f}",
                *(_figure(row["metrics"][task][metric]["mean"]) for task in tasks_of(target)),
            )
            for row in rows
        ],
        title=f"{metric} of {len(runs)} combinations",
    )
    terminal.say("* least loss on the inner validation rows: choose by that, not by what the test folds say")


def _inner_loss(run: "Run") -> float | None:
    """The mean over all models of the loss on the inner rows, of the weights that were kept."""
    if not (run.folder / "history.csv").is_file():
        return None
    history = run.history[run.history["fold"] != "all"]  # whose inner rows may be those that others are tested on
    kept = history[(history["best"] == 1) & (history["stage"] == history["stage"].max())]["val_loss"].dropna()
    return float(kept.mean()) if len(kept) else None


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
