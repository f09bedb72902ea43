"""The run folder: its files, and reading them back.

```
RUN/
  config.json        everything needed to repeat it: head, options, seed, split, labels, tensor identities, versions
  folds.csv          path, group, fold, digest, and fold_1, ... of repeats with redrawn folds: the same for every head
                     with the same labels, split and seed
  history.csv        one row per model and epoch: training and validation loss
  predictions.csv    one row per repeat and tested image: predictions by models that never saw it, beside the labels
  metrics.json       per task and metric: mean, spread over the repeats, 95 % intervals (of the method: low, high; of
                      its models: models_low, models_high), the baseline's figure
  raters.json        per task: how far its labels can be trusted, and the ceiling; where anything is known of raters
  weights/           repeat0-fold0.safetensors, ...; each has a card in its header that says what it is
  attention.zarr     path (N,) and what an attentive head looked at: out of fold, averaged over the repeats
  learned.csv        parameters that say something by themselves, one row per model and value
  report.html        `heads report RUN`
```

A run appears under its name only when it is complete; until then its folder is called RUN.part (see
`heads.training.checkpoints`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.support import as_path, few, html_table
from heads.errors import RunError
from heads.inference.folds import FEW_IMAGES, LEAST_FOLD, ROUGH_FOLD
from heads.inference.metrics import SHOWN, tasks_of
from heads.inference.showing import Figures, Question, figures_of
from heads.labels.target import JointTarget
from heads.raters.ceilings import Reliability
from heads.runs.attention import Attention, read_attention
from heads.runs.config import read_config
from heads.runs.doubts import doubt
from heads.runs.reading import Cells, not_ours, read_as, read_table, shortened
from heads.splits.given import further_folds

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import TypeAdapter

HISTORY: Mapping[str, Cells] = {
    "repeat": "count",
    "fold": "text",
    "task": "text",
    "stage": "count",
    "epoch": "count",
    "train_loss": "number",
    "val_loss": "number",
    "best": "count",
}
"""The columns of history.csv, but for `baseline_loss`, which runs of before it was noted have not."""
LEARNED: Mapping[str, Cells] = {
    "repeat": "count",
    "fold": "text",
    "name": "text",
    "index": "count",
    "value": "number",
}
"""Those of learned.csv."""
MOST_OUTCOMES, FEW_CELLS = 50, 10_000_000
"""Every repeat tests one of so many photos at least, in runs that are not small: in memory all of them have a place."""


class Run:
    """A finished run, read from its folder.

    Args:
        photos: where the photos are now, if not where they were.

    Raises:
        RunError: the folder is not there, not a run, or incomplete.
    """

    notes: Sequence[str] = ()
    """What training had to say of its photos and labels; empty of a run that is read from its folder."""

    def __init__(self, folder: Path | str, *, photos: Path | str | None = None) -> None:
        self.folder = as_path(folder)
        """Where it is."""
        file = self.folder / "config.json"
        self.config = read_config(file, photos=as_path(photos), missing=_what_is(self.folder))
        """What was trained, on what, and how."""

    def __repr__(self) -> str:
        try:
            figures = self._shown
            below = [*figures.notes, *self._warnings, f"run: {self.folder}"]
            return "\n".join([*self.notes, self.title, figures.text(), *below])
        except RunError as error:
            return f"<Run {self.folder}: {error}>"

    def _repr_html_(self) -> str:
        figures = self._shown
        above = "\n".join([*self.notes, self.title])
        below = "\n".join([*figures.notes, *self._warnings, f"run: {self.folder}"])
        return html_table(figures.header, figures.rows, above=above, below=below)

    @property
    def _shown(self) -> Figures:
        config = self.config
        return figures_of(config.target, self.metrics, head=config.system, of=self.question, raters=self.raters)

    @property
    def title(self) -> str:
        """The head, the split and how many images were tested, in words."""
        config, n_tested = self.config, self.predictions["path"].nunique()
        how = " with redrawn folds" if config.redrawn else " in the same folds" if len(config.parts) > 1 else ""
        many = f", {config.n_repeats} repeats{how}" if config.n_repeats > 1 else ""
        of_all = f"tested on {n_tested} of {config.n_images} images"
        tested = f"{config.n_images} images, out of fold" if n_tested == config.n_images else of_all
        return f"{config.system}: {config.split}{many}, {tested}"

    @property
    def name(self) -> str:
        """What tables call it: its folder, and the one around it where that holds a run for each part of a target."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}" if self.config.joint else folder.name

    @property
    def parts(self) -> "list[Run]":
        """The runs of all parts of the target that its models learn, itself among them."""
        if not self.config.joint:
            return [self]
        target = JointTarget.of(self.config.joint)
        return [Run(self.folder.parent / name) for name in target.names()]

    @property
    def question(self) -> Question:
        """What the intervals of its metrics are about: the method, if several folds were tested, or else its models."""
        return "method" if len(self.config.parts) > 1 and not self._is_old else "models"

    @property
    def _is_old(self) -> bool:
        """Whether its metrics were written before intervals of the method were known, and pooled over the folds."""
        return not any("models_low" in value for by_metric in self.metrics.values() for value in by_metric.values())

    @property
    def caveats(self) -> list[str]:
        """What is known to be wrong with its intervals and p-values, in words."""
        config, sizes = self.config, self._fold_sizes
        if len(config.parts) < 2:
            return []
        if self._is_old:
            return ["An earlier version measured this run: correlations are pooled over the folds. Train it again."]
        said = []
        if not config.redrawn:
            how = "All repeats are in the same folds" if config.n_repeats > 1 else "There is one cross-validation"
            said.append(f"{how}, which says little of what others would say; redrawn folds (the default) say more.")
        if config.target.kind != "regression":
            said.append(
                "p-values of classes are known to be large: differences are found less often than they could be."
            )
        elif len(self.folds) < FEW_IMAGES:
            said.append(f"p-values are known to be a little small below {FEW_IMAGES} photos.")
        if config.target.kind == "regression" and (smallest := int(sizes.min())) < ROUGH_FOLD:
            so = ""
            if (sizes >= LEAST_FOLD).groupby("task").sum().min() < 2:
                so = ", so that pearson is pooled over all folds, which reads too low"
            elif smallest < LEAST_FOLD:
                so = f", and those of folds of less than {LEAST_FOLD} are left out"
            said.append(f"Folds have as few as {smallest} photos: correlations within them are rough{so}.")
        return said

    @property
    def _fold_sizes(self) -> "pd.Series[int]":
        """By task and fold of the first repeat, how many images are labelled."""
        import pandas as pd

        first = self.predictions[self.predictions["repeat"] == 0]
        tasks = list(self.config.target.tasks)
        given = first[tasks].notna() & (first[tasks] != "")
        counts = given.groupby(first["fold"]).sum().stack()
        counts.index.names = ["fold", "task"]
        return pd.Series(counts)

    @cached_property
    def doubt(self) -> str:
        """That it learnt nothing, what shows it, and what to try; empty of a run that learnt."""
        history = self.history if self.has_history else None
        return doubt(self.config, self.predictions, history)

    @property
    def _warnings(self) -> list[str]:
        return [*self.caveats, *([self.doubt] if self.doubt else [])]

    @cached_property
    def figures(self) -> "pd.DataFrame":
        """The metrics as a table of numbers: a row for each task and metric, a column for what `metrics` has of it."""
        import pandas as pd

        rows = {(task, name): value for task, by_name in self.metrics.items() for name, value in by_name.items()}
        columns = ["mean", "spread", "low", "high", "models_low", "models_high", "baseline", "p"]
        table = pd.DataFrame(list(rows.values()), columns=columns, dtype=float)
        table.index = pd.MultiIndex.from_tuples(list(rows), names=["task", "metric"])
        return table

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """By task and metric, numbers: see `heads.inference.intervals.summarise`."""
        file = self.folder / "metrics.json"
        metrics = read_as(_metrics_adapter(), file)
        target = self.config.target
        for task in tasks_of(target):
            for name in SHOWN[target.kind]:
                wanted = {"mean", "spread", "low", "high"}
                if "baseline" in metrics.get(task, {}).get(SHOWN[target.kind][0], {}):
                    wanted.add("baseline")
                if lacking := wanted - {*metrics.get(task, {}).get(name, {})}:
                    where = f"{shortened(task)}, {name}"
                    raise RunError(not_ours(file, f"it has no {few(sorted(lacking))} of {where}"))
        return metrics

    @cached_property
    def raters(self) -> dict[str, Reliability]:
        """By task, how far its labels can be trusted, and the ceiling; empty if nothing is known of their raters."""
        file = self.folder / "raters.json"
        if not file.exists():
            return {}
        raters = read_as(_raters_adapter(), file)
        if unknown := [task for task in raters if task not in self.config.target.tasks]:
            raise RunError(not_ours(file, f"it is about {shortened(unknown[0])}, which the run has not learnt"))
        return raters

    @cached_property
    def folds(self) -> "pd.DataFrame":
        """path, group, fold, digest (SHA-256 of the photo whose features were used), fold_1, ... of redrawn folds"""
        file = self.folder / "folds.csv"
        further: Mapping[str, Cells] = dict.fromkeys(further_folds(self.config.n_repeats), "text")
        table = read_table(
            file, {"path": "text", "group": "text", "fold": "text"}, optional={"digest": "text", **further}
        )
        if len(table) != self.config.n_images:
            raise RunError(not_ours(file, f"it has {len(table)} rows, and the run {self.config.n_images} images"))
        if (twice := table["path"].duplicated()).any():
            raise RunError(not_ours(file, f"photo {shortened(table['path'][twice].iloc[0])} stands twice"))
        return table

    @property
    def has_history(self) -> bool:
        """Not of a head without epochs, which leaves no history, or an empty one."""
        try:
            return (self.folder / "history.csv").stat().st_size > len("\r\n")
        except OSError:
            return False

    @cached_property
    def history(self) -> "pd.DataFrame":
        """repeat, fold, task (empty: all), stage, epoch, train_loss, val_loss, best (1: its weights were kept) and
        baseline_loss.

        The last is what saying the mean of the training rows would lose on the inner rows, or on the training rows if
        there are none.
        """
        return read_table(self.folder / "history.csv", HISTORY, optional={"baseline_loss": "number"})

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """repeat, fold, path, and for each task its label `TASK` and its prediction `TASK_predicted`"""
        file, target = self.folder / "predictions.csv", self.config.target
        of_labels: Cells = "text" if target.kind == "multiclass" else "number"
        columns: dict[str, Cells] = {"repeat": "count", "fold": "text", "path": "text"}
        for task in target.tasks:
            columns |= {task: of_labels, f"{task}_predicted": of_labels}
        columns |= dict.fromkeys(target.class_columns, "number")
        table = read_table(file, columns)
        self._check_folds(table, file)
        return table

    def _check_folds(self, table: "pd.DataFrame", file: Path) -> None:
        """
        Raises:
            RunError: a prediction is of a repeat that the run has not, or of a photo that is in another fold, or none.
        """
        n_cells = self.config.n_repeats * table["path"].nunique()
        if not len(table) or n_cells > max(FEW_CELLS, MOST_OUTCOMES * len(table)):
            raise RunError(not_ours(file, f"it has {len(table)} rows of {self.config.n_repeats} repeats"))
        folds, further = self.folds.set_index("path"), further_folds(self.config.n_repeats)
        for repeat in table["repeat"].unique().tolist():
            part = table.loc[table["repeat"] == repeat, ["path", "fold"]]
            if repeat >= self.config.n_repeats:
                raise RunError(not_ours(file, f"it has the repeat {repeat}, and the run {self.config.n_repeats}"))
            column = further[repeat - 1] if repeat and further[0] in folds else "fold"
            if column not in folds:
                raise RunError(not_ours(self.folder / "folds.csv", f"it has no column {column!r}"))
            expected = folds[column].reindex(part["path"])
            if (other := expected.to_numpy() != part["fold"].to_numpy()).any():
                row = int(other.argmax())
                said = f"it has photo {shortened(part['path'].iloc[row])} in fold {shortened(part['fold'].iloc[row])}"
                raise RunError(not_ours(file, f"{said} of repeat {repeat}, and folds.csv has not"))

    @cached_property
    def learned(self) -> "pd.DataFrame | None":
        """repeat, fold, name, index, value; None for heads whose parameters say nothing by themselves."""
        file = self.folder / "learned.csv"
        return read_table(file, LEARNED) if file.exists() else None

    @cached_property
    def attention(self) -> Attention | None:
        """None for heads without attention."""
        place = self.folder / "attention.zarr"
        return read_attention(place, self.config, self.folds["path"].tolist()) if place.is_dir() else None

    def weights_files(self) -> list[Path]:
        """The models that predict new images: those trained on all rows, if there are such, or else every one.

        Raises:
            RunError: some of the run's models are not there.
        """
        files = sorted((self.folder / "weights").glob("*.safetensors"))
        names = self.config.models or [file.stem for file in files]
        wanted = [name for name in names if "-all" in name] or names
        found = [file for file in files if file.stem in wanted]
        if lacking := sorted(set(wanted) - {file.stem for file in found}):
            named = few(lacking, 3)
            raise RunError(
                f"{self.folder / 'weights'} lacks {len(lacking)} of {len(wanted)} models: {named}; copy the whole run "
                "again, or train again"
            )
        return found


def part_folder(folder: Path) -> Path:
    """Where a run is while it is not complete."""
    return folder.with_name(f"{folder.name}.part")


def new_run_folder(runs: Path, system: str) -> Path:
    """A folder name that is not taken: SYSTEM-DATE-TIME."""
    stem = f"{system}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
    return next(runs / name for name in names if not ((runs / name).exists() or part_folder(runs / name).exists()))


@cache
def _metrics_adapter() -> "TypeAdapter[dict[str, dict[str, dict[str, float | None]]]]":
    from pydantic import TypeAdapter

    return TypeAdapter(dict[str, dict[str, dict[str, float | None]]])


@cache
def _raters_adapter() -> "TypeAdapter[dict[str, Reliability]]":
    from pydantic import TypeAdapter

    return TypeAdapter(dict[str, Reliability])


def _what_is(folder: Path) -> str:
    try:
        if part_folder(folder).is_dir():
            return f"{folder} is not finished; `heads resume {folder}` goes on with it"
        if (folder / "plan.json").is_file():
            return f"{folder} is a run that is not finished; `heads resume {folder}` goes on with it"
        there = folder.exists()
    except (OSError, ValueError):  # a name that no folder can have
        there = False
    what = "is not a run folder (it has no config.json)" if there else "does not exist"
    return f"{folder} {what}; `heads train` prints where a run is"
