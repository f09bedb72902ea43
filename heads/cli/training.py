"""`heads train` and `heads resume`."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore import FeatstoreError
from featstore.support import few
from featstore.terminal import Terminal, clock, counted, one_line
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
    Scale,
    Sd,
    StorePlace,
    Strict,
    Tasks,
)
from heads.cli.request import LabelRequest, TrainRequest, read_arguments
from heads.cli.tables import learned_tables, metrics_table
from heads.errors import HeadsError, RunError

if TYPE_CHECKING:
    from heads.inference.intervals import MetricSummary
    from heads.labels.joining import Join
    from heads.plan import Plan
    from heads.runs.run import Run


Scheduler = Annotated[
    str | None, typer.Option(help="Let the workers of this Dask scheduler train the models, as tcp://HOST:8786.")
]
Log = Annotated[list[str] | None, typer.Option(help="Also log the finished run to tensorboard or mlflow.")]
NO_INNER = "no inner rows (--set inner=0.15 sets some aside)"


def train(
    system: Annotated[str, typer.Argument(help="The head; `heads list` shows them.")],
    store: StorePlace = None,
    labels: LabelFiles = None,
    path_column: PathColumn = None,
    tasks: Tasks = None,
    kind: KindOfLabels = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Of a head that learns two kinds at once: TASKS:KIND of each, as b:binary.")
    ] = None,
    scale: Scale = None,
    missing: Missing = None,
    aggregate: Aggregate = None,
    sd: Sd = None,
    n_raters: NRaters = None,
    group: Group = None,
    stratify: Annotated[
        str | None, typer.Option(help="Spread a column or task evenly over the folds (numbers: five quantiles).")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Folds of the cross-validation [5].")] = None,
    hold_out: Annotated[
        float | None, typer.Option(help="Instead of folds: test on this share, then train on all for `predict`.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Instead of folds: a column of the labels, a CSV with path and fold, or an earlier run."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Whole cross-validations, each with new folds [5; solved 10; pixels 1].")
    ] = None,
    same_folds: Annotated[
        bool, typer.Option("--same-folds", help="Repeat in the same folds, as most papers do.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides folds, initial weights and shuffling.")] = 0,
    tensor: Annotated[
        list[str] | None, typer.Option(help="Tensor to read [of the head's own name, or the only one of its layout].")
    ] = None,
    augmented: Annotated[
        list[str] | None,
        typer.Option(help="Tensor of augmented copies, for training and never for tests."),
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
            help="Standardise features by the training rows [on]; off to match the paper.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder [cache/runs/HEAD-DATE-TIME].")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Arithmetic of the products: fp32 or bf16.")] = "fp32",
    scheduler: Scheduler = None,
    strict: Strict = False,
    photos: Photos = None,
    plugin: Plugins = None,
    log: Log = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, in arithmetic, memory and time; train nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Begin although it would take more than a day.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate a head and leave a run folder with a report.

    A run that is interrupted, at whatever moment, goes on with `heads resume RUN` or the same command with its --out.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError, stopped="nothing had begun"):
        from featstore import find_config
        from heads.planning import is_split_column
        from heads.runs.run import new_run_folder
        from heads.systems.registry import find_system, load_plugins

        load_plugins(plugin)
        find_system(system)
        if precision not in ("fp32", "bf16"):
            raise HeadsError(f"--precision {precision!r}: expected fp32 or bf16")
        for name, given in (("--hold-out", hold_out), ("--split", split)):
            if folds is not None and given is not None:
                raise HeadsError(f"--folds {folds} and {name} {given} contradict each other; name one")
        as_column = split is not None and is_split_column(split)
        changes = list(change or [])
        if standardise is not None:
            changes.append(f"standardise={str(standardise).lower()}")
        request = TrainRequest(
            LabelRequest(
                labels=[str(file) for file in labels] if labels else None,
                path_column=path_column,
                tasks=tasks,
                kind=kind,
                parts=part,
                scale=scale,
                missing=missing,
                aggregate=aggregate,
                sd=sd,
                n_raters=n_raters,
                group=group,
                stratify=stratify,
                split_column=split if as_column else None,
            ),
            system=system,
            out=str(out or new_run_folder(find_config().runs, system)),
            store=store,
            tensors=tensor,
            augmented=augmented,
            changes=changes,
            sweep=sweep,
            folds=folds or TrainRequest.folds,
            hold_out=hold_out,
            split=None if as_column else split,
            repeats=repeats,
            same_folds=same_folds,
            seed=seed,
            memory=memory,
            device=device,
            precision=precision,
            scheduler=scheduler,
            strict=strict,
            photos=str(photos) if photos else None,
            log=log,
        )
        _carry_out(request, terminal, dry_run=dry_run, yes=yes)


def resume(
    run: Annotated[Path, typer.Argument(help="The run that was interrupted, as `heads train` named it.")],
    store: Annotated[
        str | None, typer.Option(help="The store, if it is a URL, or is not where it was.", metavar="STORE")
    ] = None,
    scheduler: Scheduler = None,
    plugin: Plugins = None,
    log: Log = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted.

    Each model goes on from the last epoch that was noted. What reaches beyond this machine is asked
    again, as a draft may come from somebody else: a scheduler, a store that is a URL, a tracker.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.systems.registry import find_system, load_plugins
        from heads.training.checkpoints import begun_with, draft_of

        load_plugins(plugin)
        saved, part = read_arguments(begun_with(run), run), draft_of(run)
        part = part.parent.resolve() / part.name
        asked, here = saved.request, Path.cwd()
        _go_where_it_was_begun(saved.folder, part, run)
        request = replace(
            asked,
            out=os.path.relpath(_out_of(part, asked)),
            store=_confirmed_store(store, asked, run, moved=Path.cwd() != here),
            scheduler=scheduler,
            log=log,
        )
        find_system(request.system, plugin=saved.plugin)
        if asked.scheduler and not scheduler:
            terminal.say(
                f"begun with --scheduler {one_line(asked.scheduler)}, which is not asked unless you say so; "
                "this process trains"
            )
        for name in asked.log or ():
            if name not in (log or ()):
                terminal.say(f"begun with --log {one_line(name)}: say it again, or `heads log` the run afterwards")
        _carry_out(request, terminal)


def _go_where_it_was_begun(folder: str, part: Path, run: Path) -> None:
    """Relative names are from the folder that a draft was begun in, if the draft lies there, or we are there.

    Raises:
        RunError: it is another one, which is for the user to choose and not for a file.
    """
    try:
        there = Path(folder).resolve()
        if not there.is_dir():
            raise RunError(f"{run} was begun in {folder}, which is no more")
        if there != Path.cwd() and not part.is_relative_to(there):
            again = shlex.join(["heads", "resume", os.path.relpath(part.with_suffix(""), there)])
            raise RunError(f"{run} was begun in {folder}: go there, and say `{again}`")
        os.chdir(there)
    except (OSError, ValueError) as error:
        raise RunError(f"{run} was begun in {folder!r}, which cannot be entered: {error}") from error


def _out_of(part: Path, asked: TrainRequest) -> Path:
    """The run folder: that of the draft that was named, wherever it is now; of a sweep, the one around it.

    Raises:
        RunError: the draft is not one of the sweep that it says.
    """
    name = part.name.removesuffix(".part")
    if not asked.sweep:
        return part.with_name(name)
    options = [each.partition("=")[0] for each in name.split(",")]
    if options != [each.partition("=")[0] for each in asked.sweep]:
        raise RunError(f"{part} is not a run of its sweep {few(asked.sweep, quoted=True)}; begin it again")
    return part.parent


def _confirmed_store(store: str | None, asked: TrainRequest, run: Path, *, moved: bool) -> str | None:
    """The store to read: the one that is said, or else that of the draft if it is on this machine.

    Args:
        moved: whether the configuration of this folder is that of the draft's, and not of the user's.

    Raises:
        RunError: it is a URL, which is for the user to say.
    """
    from featstore import find_config

    if store is not None:
        return store if "://" in store else str(Path(store))
    place = asked.store or (str(find_config().store) if moved else "")
    if "://" in place:
        raise RunError(
            f"{run} reads the store {place}, which is not asked unless you say so: add --store {shlex.quote(place)}"
        )
    return asked.store


def _carry_out(request: TrainRequest, terminal: Terminal, *, dry_run: bool = False, yes: bool = True) -> None:
    from heads.experiment import sweep as run_sweep
    from heads.experiment import train as run_plan
    from heads.systems.registry import find_system

    with terminal.errors(HeadsError, FeatstoreError):
        from heads.labels.joining import describe
        from heads.report import write_report
        from heads.runs.tracking import find_tracker

        trackers = {name: find_tracker(name) for name in request.log or ()}
        table, grouping = request.labels.read()
        arguments: dict[str, Any] = {"folder": str(Path.cwd()), "request": asdict(request)}
        if plugin := find_system(request.system).plugin:
            arguments["plugin"] = plugin.plugin
        command = shlex.join(["heads", *sys.argv[1:]])
        plan = replace(request.plan(table, grouping), command=command, arguments=arguments)
        if dry_run or (not yes and find_system(plan.system).from_pixels):
            from heads.forecast import forecast, lines, refuse_what_takes_days

            told = forecast(plan, only_if_long=not dry_run)
            if dry_run:
                terminal.result(told.to_dict())
                for line in lines(told, clock):
                    terminal.say(line)
                return
            refuse_what_takes_days(told, clock)
        nothing_to_choose_by = _nothing_to_choose_by(plan)
        if plan.sweep and nothing_to_choose_by:
            terminal.say(f"{nothing_to_choose_by}; the runs can still be compared")

        def say_labels(joined: "Join") -> None:
            for line in describe(table, grouping, joined):
                terminal.say(line)

        def say_resumed(n_finished: int, n_models: int) -> None:
            terminal.say(f"going on: {n_finished} of {counted(n_models, 'model')} finished")

        with _resumable(plan.out, request, terminal), terminal.progress() as progress:
            diverged: dict[Path, str] = {}
            whom: dict[str, Any] = {
                "on_progress": progress,
                "on_join": say_labels,
                "on_resume": say_resumed,
                "on_note": terminal.say,
            }
            if plan.sweep:
                swept = run_sweep(plan, **whom)
                runs, diverged = swept.runs, swept.diverged
            else:
                runs = run_plan(plan, **whom).parts
        reports = [write_report(run) for run in runs]
        if plan.sweep:
            _print_sweep(runs, diverged, nothing_to_choose_by, terminal)
        else:
            facts = [_facts(run, report) for run, report in zip(runs, reports, strict=True)]
            terminal.result(facts[0] if len(facts) == 1 else {"parts": facts})
            for run, report in zip(runs, reports, strict=True):
                _print_run(run, report, terminal)
        for name, tracker in trackers.items():
            for run in runs:
                try:
                    terminal.say(f"{name}: {tracker(run)}")
                except RunError as error:
                    raise RunError(
                        f"{error}; the run is complete: `heads log {run.folder} --to {name}` tries again"
                    ) from error


@contextmanager
def _resumable(out: Path, request: TrainRequest, terminal: Terminal) -> Iterator[None]:
    """Say how to go on if Ctrl-C ends a run that has begun."""
    from heads.training.checkpoints import begun_with

    try:
        yield
    except KeyboardInterrupt:
        try:
            plugin = begun_with(out).get("plugin")
        except RunError:
            raise KeyboardInterrupt from None
        again = ["heads", "resume", str(out), *(["--plugin", str(plugin)] if plugin else [])]
        if request.store and "://" in request.store:
            again += ["--store", request.store]
        if request.scheduler:
            again += ["--scheduler", request.scheduler]
        again += [word for name in request.log or () for word in ("--log", name)]
        with terminal.errors(stopped=f"`{shlex.join(again)}` goes on with it"):
            raise


def _nothing_to_choose_by(plan: "Plan") -> str | None:
    """Why no inner loss will tell the runs of a sweep apart; None if one will, or if a split may name inner rows."""
    from heads.systems.registry import find_system

    system = find_system(plan.system)
    if system.fit is not None:
        why = f"head {system.name!r} is solved, without an inner loss"
    elif plan.labels.split or plan.validation.split:
        return None
    else:
        inner = [[f"inner={value}"] for value in plan.sweep.get("inner", ())] or [[]]
        if any(system.settle([*plan.changes, *each])["inner"] for each in inner):
            return None
        why = NO_INNER
    return f"{why}: nothing says which run to choose, and test folds are not for choosing"


def _facts(run: "Run", report: Path) -> dict[str, Any]:
    from heads.raters.ceilings import to_json

    return {
        "run": str(run.folder),
        "report": str(report),
        "metrics": run.metrics,
        "raters": to_json(run.raters),
        "doubt": run.doubt,
        "elapsed_s": run.config.elapsed_s,
    }


def _print_run(run: "Run", report: Path, terminal: Terminal) -> None:
    config = run.config
    metrics_table(
        config.target,
        run.metrics,
        terminal,
        title=run.title,
        head=config.system,
        of=run.question,
        raters=run.raters,
    )
    for caveat in run.caveats:
        terminal.say(caveat)
    learned_tables(run, terminal)
    read = (f"{each['name']} ({each['layout']}, {' x '.join(map(str, each['shape']))})" for each in config.tensors)
    copies = f"; in training also augmented copies ({', '.join(each['name'] for each in config.augmented)})"
    terminal.say(f"features: {', '.join(read)}{copies if config.augmented else ''}")
    if config.options.get("standardise"):
        terminal.say("features standardised on the training rows (--no-standardise to match the paper)")
    terminal.say(f"trained in {clock(config.elapsed_s)}\nrun: {run.folder}\nreport: {report}")
    if run.doubt:
        terminal.say(run.doubt)


def _print_sweep(
    runs: "list[Run]", diverged: dict[Path, str], nothing_to_choose_by: str | None, terminal: Terminal
) -> None:
    from heads.inference.metrics import SHOWN, tasks_of
    from heads.inference.showing import BASELINE, span
    from heads.runs.choosing import choose

    target = runs[0].config.target
    metric = SHOWN[target.kind][0]
    choice = choose(runs)
    inner = choice.inner_loss if choice else [None] * len(runs)
    rows: list[dict[str, Any]] = [
        {
            "run": str(run.folder),
            "inner_loss": loss,
            "chosen": choice is not None and number == choice.best,
            "doubt": run.doubt,
            "metrics": run.metrics,
        }
        for number, (run, loss) in enumerate(zip(runs, inner, strict=True))
    ]
    nested = {"metrics": choice.metrics, "times": choice.times} if choice else None
    terminal.result({"runs": rows, "diverged": {str(out): why for out, why in diverged.items()}, "nested": nested})

    def row(name: str, loss: float | None, metrics: "MetricSummary", part: str = "mean") -> tuple[str, ...]:
        shown = [_figure(metrics[task][metric].get(part)) for task in tasks_of(target)]
        return (name, "–" if loss is None else f"{loss:.4f}", *shown)

    table = [row(BASELINE[target.kind], None, runs[0].metrics, "baseline")]
    table += [row(each["run"] + (" *" if each["chosen"] else ""), each["inner_loss"], each["metrics"]) for each in rows]
    if choice:
        table.append(row("chosen within each fold", None, choice.metrics))
    terminal.table(
        ("run", "inner loss", *tasks_of(target)),
        table,
        title=f"{metric} of {len(runs)} of {len(runs) + len(diverged)} combinations",
    )
    for out, why in diverged.items():
        terminal.say(f"{out}: no run, {why}")
    for run in runs:
        if run.doubt:
            terminal.say(f"{run.folder}: {run.doubt}")
    if choice is None:
        terminal.say(nothing_to_choose_by or f"{NO_INNER}: test folds are not for choosing")
        return
    often = ", ".join(
        f"{name} {counted(n, 'time')}" for name, n in sorted(choice.times.items(), key=lambda each: -each[1])
    )
    intervals = "; ".join(
        f"{task} {span(choice.metrics[task][metric]['low'], choice.metrics[task][metric]['high'])}"
        for task in tasks_of(target)
    )
    terminal.say(
        "* least loss on the inner rows: the one to use. What to report of it is the last row, where every fold chose "
        f"by its own inner rows ({often}): 95 % {intervals}"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
