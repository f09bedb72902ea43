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

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.support import as_path, few, html_table
from heads.errors import RunError
from heads.inference.folds import FEW_IMAGES, LEAST_FOLD, ROUGH_FOLD
from heads.inference.showing import Figures, Question, figures_of
from heads.labels.target import Target
from heads.raters.ceilings import Reliability, from_json
from heads.runs.doubts import doubt
from heads.splits.given import further_folds

if TYPE_CHECKING:
    import pandas as pd

ATTENTION_AXES: Mapping[str, tuple[str, ...]] = {
    "blocks": ("image", "backbone", "block"),
    "blocks_by_task": ("image", "task", "backbone", "block"),
    "backbones": ("image", "task", "backbone"),
    "backbones_of_blocks": ("image", "block", "backbone"),
    "blocks_of_tasks": ("image", "task", "block"),
}
"""What a head may have looked at; the weights sum to 1 over the last axis."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that says what a run was."""

    system: str
    options: Mapping[str, Any]
    target: Target
    scales: tuple[tuple[float, float], ...]
    """The ends of each task's scale, which training maps to -0.5 .. +0.5."""
    n_images: int
    split: str
    """In words."""
    parts: tuple[str, ...]
    """The names of the folds, or `test`."""
    n_repeats: int
    seed: int
    group: str | None
    labels: Mapping[str, Any]
    """`files` and `sha256` of the label tables, the `columns` that were read, and the words that were `missing`."""
    store: str
    tensors: tuple[Mapping[str, Any], ...]
    """`name`, `layout`, `shape` of a row, and `segments`: `name`, `hash`, `width` and `identity` of each."""
    augmented: tuple[Mapping[str, Any], ...]
    """The same of the augmented copies that it learnt from, for each tensor; none if empty."""
    photos: str | None
    """The photo folder, for drawing; None if it is not known."""
    versions: Mapping[str, str]
    command: str
    """That began it; empty if none did."""
    started: str
    elapsed_s: float
    """Of all sessions, each up to its last checkpoint; a run that is killed may have worked longer."""
    device: str
    precision: str
    models: tuple[str, ...] = ()
    """The names of their weights files; empty in a run of before they were listed."""
    directory: str = ""
    """Where the command was called, for relative paths."""
    redrawn: bool = False
    """Whether each repeat has folds of its own."""
    plugin: Mapping[str, str] | None = None
    """The `name` (a .py file or a module) and `sha256` of the plugin that the head is from; None of heads' own."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(tensor["shape"]) for tensor in self.tensors)

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(tensor["layout"] for tensor in self.tensors)


@dataclass(frozen=True)
class Attention:
    """What an attentive head looked at, out of fold, averaged over the repeats; NaN for images never tested."""

    paths: list[str]
    arrays: Mapping[str, NDArray[np.float32]]
    """Names and axes are those of `ATTENTION_AXES`."""


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
        raw = read_json(self.folder / "config.json", missing=_what_is(self.folder))
        try:
            self.config = _config(raw, as_path(photos))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.folder / 'config.json'} is not what this version of heads writes ({error!r}); train again"
            ) from error

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
        file = self.folder / "history.csv"  # of a head without epochs there is none, or an empty one
        history = self.history if file.is_file() and file.read_bytes().strip() else None
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
        metrics: dict[str, dict[str, dict[str, float | None]]] = read_json(self.folder / "metrics.json")
        return metrics

    @cached_property
    def raters(self) -> dict[str, Reliability]:
        """By task, how far its labels can be trusted, and the ceiling; empty if nothing is known of their raters."""
        file = self.folder / "raters.json"
        try:
            return from_json(read_json(file)) if file.is_file() else {}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{file} is not what this version of heads writes ({error!r}); train again") from error

    @cached_property
    def folds(self) -> "pd.DataFrame":
        """path, group, fold, digest (SHA-256 of the photo whose features were used), fold_1, ... of redrawn folds"""
        further = further_folds(self.config.n_repeats)
        return self._table("folds.csv", text=("path", "group", "fold", "digest", *further))

    @cached_property
    def history(self) -> "pd.DataFrame":
        """repeat, fold, task (empty: all), stage, epoch, train_loss, val_loss, best (1: its weights were kept) and
        baseline_loss.

        The last is what saying the mean of the training rows would lose on the inner rows, or on the training rows if
        there are none.
        """
        return self._table("history.csv", text=("fold", "task"))

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """repeat, fold, path, and for each task its label `TASK` and its prediction `TASK_predicted`"""
        named = self.config.target.tasks if self.config.target.kind == "multiclass" else ()
        return self._table("predictions.csv", text=("path", "fold", *named, *(f"{task}_predicted" for task in named)))

    @cached_property
    def learned(self) -> "pd.DataFrame | None":
        """repeat, fold, name, index, value; None for heads whose parameters say nothing by themselves."""
        return self._table("learned.csv", text=("fold", "name")) if (self.folder / "learned.csv").is_file() else None

    @cached_property
    def attention(self) -> Attention | None:
        """None for heads without attention."""
        import zarr

        if not (self.folder / "attention.zarr").is_dir():
            return None
        try:
            group: Any = zarr.open_group(str(self.folder / "attention.zarr"), mode="r")
            paths = [str(path) for path in group["path"][:]]
            return Attention(paths, {name: np.asarray(group[name][:]) for name in ATTENTION_AXES if name in group})
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self.folder / 'attention.zarr'} cannot be read: {error}") from error

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

    def _table(self, name: str, *, text: Sequence[str]) -> "pd.DataFrame":
        import pandas as pd

        try:
            table = pd.read_csv(self.folder / name, dtype=str, keep_default_na=False)
            # Only numbers can be missing: a group may well be called NA.
            numbers = [str(column) for column in table if column not in text]
            table[numbers] = table[numbers].apply(pd.to_numeric)
            return table
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / name} cannot be read: {error}") from error


def read_json(file: Path, *, missing: str | None = None) -> Any:
    """
    Raises:
        RunError: the file is not there (`missing` says what that means) or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(missing or f"{file} is missing") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error


def part_folder(folder: Path) -> Path:
    """Where a run is while it is not complete."""
    return folder.with_name(f"{folder.name}.part")


def new_run_folder(runs: Path, system: str) -> Path:
    """A folder name that is not taken: SYSTEM-DATE-TIME."""
    stem = f"{system}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
    return next(runs / name for name in names if not ((runs / name).exists() or part_folder(runs / name).exists()))


def _config(raw: dict[str, Any], photos: Path | None) -> RunConfig:
    target = raw["target"]
    raw["target"] = Target(target["kind"], tuple(target["tasks"]), tuple(target["classes"]))
    raw["scales"] = tuple((float(low), float(high)) for low, high in raw["scales"])
    raw["parts"], raw["models"] = tuple(raw["parts"]), tuple(raw.get("models", ()))
    raw["tensors"], raw["augmented"] = tuple(raw["tensors"]), tuple(raw["augmented"])
    if (plugin := raw.get("plugin")) is not None:
        raw["plugin"] = {"name": str(plugin["name"]), "sha256": str(plugin["sha256"])}
    if photos is not None:
        raw["photos"] = str(photos.absolute())
    return RunConfig(**raw)


def _what_is(folder: Path) -> str:
    if part_folder(folder).is_dir():
        return f"{folder} is not finished; `heads resume {folder}` goes on with it"
    if (folder / "plan.json").is_file():
        return f"{folder} is a run that is not finished; `heads resume {folder}` goes on with it"
    what = "is not a run folder (it has no config.json)" if folder.exists() else "does not exist"
    return f"{folder} {what}; `heads train` prints where a run is"
