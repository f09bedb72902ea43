"""`heads labels`: a look at a label table before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from featstore import FeatstoreError
from featstore.terminal import Terminal
from heads.cli.options import Aggregate, Json, KindOfLabels, Missing, NRaters, PathColumn, Quiet, Scale, Sd, Tasks
from heads.cli.request import LabelRequest
from heads.errors import HeadsError, RepeatsError


def labels(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Label tables, joined on the photo [that of featstore.toml].", metavar="FILE"),
    ] = None,
    path_column: PathColumn = None,
    tasks: Tasks = None,
    kind: KindOfLabels = None,
    scale: Scale = None,
    missing: Missing = None,
    aggregate: Aggregate = None,
    sd: Sd = None,
    n_raters: NRaters = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look at a label table before anything is trained.

    It shows tasks, scales, what is missing, how far raters agree, and the ceiling: the most that a model can reach.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(HeadsError, FeatstoreError):
        from heads.labels.look import look_at

        request = LabelRequest(
            labels=[str(file) for file in files] if files else None,
            path_column=path_column,
            tasks=tasks,
            kind=kind,
            scale=scale,
            missing=missing,
            aggregate=aggregate,
            sd=sd,
            n_raters=n_raters,
        )
        assumed = []
        try:
            table, _ = request.read()
        except RepeatsError:
            if sd or n_raters:
                raise
            table, _ = replace(request, aggregate="mean").read()
            assumed = ["photos have several rows; shown is --aggregate mean, which `heads train` has to be told"]
        found = look_at(table)
        found = replace(found, notes=[*assumed, *found.notes])
        terminal.result(found.plain())
        terminal.say(found.title)
        terminal.table(*found.of_tasks())
        if raters := found.of_raters():
            terminal.table(*raters, title="raters, with 95 % intervals")
        for note in found.notes:
            terminal.say(note)
