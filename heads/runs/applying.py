"""Applying a finished run to a store: predict every image, or evaluate the run on labelled ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

import featstore
from featstore.support import LISTED, NAMED, Progress, counted, few, html_table, no_progress, size
from heads.errors import FeaturesError, LabelsError, RunError, UnknownSystemError
from heads.inference.baseline import mean_of_labels, one_hot
from heads.inference.intervals import summarise
from heads.inference.showing import Figures, figures_of
from heads.labels.joining import Join, join
from heads.labels.labels import Labels, groups_by_path
from heads.labels.scales import from_unit, to_unit
from heads.labels.target import Target
from heads.plan import DEFAULT_MEMORY_BYTES
from heads.planning import Place, place_of
from heads.raters.ceilings import Reliability
from heads.runs.predictions import from_table, to_table
from heads.runs.run import Run
from heads.runs.weights import Header, bytes_of, difference, kinds_of, load, read_header, without_memory
from heads.systems.registry import find_system
from heads.systems.system import Options, System
from heads.training.failing import failures_in_words
from heads.training.features import Features
from heads.training.learner import assemble
from heads.training.matmul import whole_width
from heads.training.prediction import collect
from heads.training.prediction import run as look

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """How right a run is about images that it may never have seen."""

    metrics: dict[str, dict[str, dict[str, float | None]]]
    """By task and metric: mean, low and high of the 95 % bootstrap interval (spread is None: one prediction each)."""
    table: "pd.DataFrame"
    """A row for each image: its path, its labels, what the run predicts."""
    n_images: int
    """Images that count: labelled, in the store, and not seen in training."""
    n_seen: int
    """Images that the run was trained on, by their bytes; left out unless asked for."""
    n_akin: int
    """Others of a group that the run was trained on; left out as well."""
    n_outside: int
    """Ratings that lie outside the run's scale, and no other scale was given: they may be on another one."""
    joined: Join
    """Which images of the store have labels, and which have none."""
    target: Target
    """What was measured."""
    head: str
    """The head of the run."""
    raters: dict[str, Reliability] = field(default_factory=dict)
    """By task, how far the labels can be trusted, and the ceiling; empty if nothing is known of their raters."""

    def __repr__(self) -> str:
        figures = self._figures
        return "\n".join([self._title, figures.text(), *figures.notes])

    def _repr_html_(self) -> str:
        figures = self._figures
        return html_table(figures.header, figures.rows, above=self._title, below="\n".join(figures.notes))

    @property
    def _figures(self) -> Figures:
        return figures_of(self.target, self.metrics, head=self.head, of="models", raters=self.raters)

    @property
    def _title(self) -> str:
        seen = f", {self.n_seen} left out that the run was trained on" if self.n_seen else ""
        seen += f", {self.n_akin} left out of groups that it was trained on" if self.n_akin else ""
        outside = f", {self.n_outside} ratings outside its scale" if self.n_outside else ""
        return f"{self.n_images} images{seen}{outside}"


def predict(
    run: Run,
    store: Place,
    *,
    device: str = "auto",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    on_progress: Progress | None = None,
) -> "pd.DataFrame":
    """Predictions for every image of a store, in label units: the mean over all models of a run.

    The column `trained` says of which images the run has learnt; its honest predictions of those are its own.

    Raises:
        FeaturesError: the store has no tensor of the same segments, by identity, as the run was trained on.
        RunError: the run's weights are missing or damaged.
    """
    opened, tensors, rows = _same_features(run, store)
    said = _mean_prediction(run, tensors, rows, device, memory_bytes, on_progress)
    paths = [opened.images.paths[row] for row in rows]
    nothing = np.full((len(paths), len(run.config.target.tasks)), np.nan)
    table = to_table(run.config.target, nothing, said[None], folds=[""] * len(paths), paths=paths)
    table = table.drop(columns=["repeat", "fold", *run.config.target.tasks])
    learnt = set(_digests(_trained_on(run), run))
    of_path = dict(zip(paths, (opened.images.digests[row].tobytes().hex() for row in rows), strict=True))
    return table.assign(trained=[of_path[path] in learnt for path in table["path"]])


def evaluate(
    run: Run,
    store: Place,
    labels: Labels,
    *,
    seen_too: bool = False,
    device: str = "auto",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    strict: bool = False,
    on_progress: Progress | None = None,
) -> Evaluation:
    """The metrics of a run on labelled images of a store, by the mean over all its models.

    Args:
        seen_too: also count images that the run was trained on, and others of their groups. A group is what the labels
            say; where they say nothing, it is by name or folder, if the run's groups were.

    Raises:
        FeaturesError, RunError: as `predict`.
        LabelsError: the labels are not of any of the run's tasks, or of another kind, or no image is left.
    """
    target, predicted = labels.target, run.config.target
    known_tasks = set(target.tasks) <= set(predicted.tasks)
    if target.kind != predicted.kind or target.classes != predicted.classes or not known_tasks:
        raise LabelsError(
            f"{labels.named} has {target.kind} labels {few(target.outputs, LISTED)}; {run.folder} predicts "
            f"{predicted.kind} labels {few(predicted.outputs, LISTED)}: name some of them with --tasks (and --kind)"
        )
    opened, tensors, rows = _same_features(run, store)
    digests = [opened.images.digests[row].tobytes().hex() for row in rows]
    joined = join(labels, [opened.images.paths[row] for row in rows], rows, digests=digests, strict=strict)
    learnt = _trained_on(run)
    known, known_groups = set(_digests(learnt, run)), set(learnt["group"])
    of_row = dict(zip(rows.tolist(), digests, strict=True))
    seen = np.array([of_row[row] in known for row in joined.store_rows.tolist()], bool)
    groups = _groups_of(run, labels, joined, [opened.images.paths[row] for row in joined.store_rows])
    akin = ~seen & np.array([group in known_groups for group in groups] if groups else seen, bool)
    fresh = ~(seen | akin) | seen_too
    if not fresh.any():
        what = "" if seen.all() else ", or on others of their groups"
        raise LabelsError(
            f"{run.folder} was trained on all {len(fresh)} labelled images of {opened.path}{what}; its honest figures "
            "are those of `heads report`, or say --seen to count them all the same"
        )
    rows, chosen = joined.store_rows[fresh], joined.label_rows[fresh]
    said = _mean_prediction(run, tensors, rows, device, memory_bytes, on_progress)
    of_run = run.config.scales
    if target.kind != "multiclass":
        wanted = [predicted.tasks.index(task) for task in target.tasks]
        said, of_run = said[:, wanted], tuple(of_run[task] for task in wanted)
    scaled, truth, n_outside = said, labels.values[chosen], 0
    if target.kind == "regression":
        # Another study may have asked on another scale; one that nobody named is the run's.
        scales = labels.scales if labels.scale_given else of_run
        low, high = np.array(of_run).T
        n_outside = 0 if labels.scale_given else int(((truth < low) | (truth > high)).sum())
        scaled, truth = to_unit(said, of_run), to_unit(truth, scales)
        said = from_unit(scaled, scales)
    groups = None if groups is None else [group for group, kept in zip(groups, fresh, strict=True) if kept]
    paths = [opened.images.paths[row] for row in rows]
    baseline = np.broadcast_to(_baseline_of(run, target), scaled.shape)[None]
    return Evaluation(
        metrics=summarise(
            target, truth.astype(np.float32), scaled[None].astype(np.float32), groups=groups, baseline=baseline
        ),
        table=to_table(target, labels.values[chosen], said[None], folds=[""] * len(paths), paths=paths),
        n_images=len(paths),
        n_seen=int((seen & ~fresh).sum()),
        n_akin=int((akin & ~fresh).sum()),
        n_outside=n_outside,
        joined=joined,
        target=target,
        head=run.config.system,
        raters=labels.reliability(chosen),
    )


def _groups_of(run: Run, labels: Labels, joined: Join, paths: Sequence[str]) -> list[str] | None:
    """(n,) the groups of the images that have labels; None if there are none."""
    if labels.groups is not None:
        return [labels.groups[i] for i in joined.label_rows]
    return groups_by_path(run.config.group, paths)


def _baseline_of(run: Run, target: Target) -> NDArray[np.float64]:
    """(n_outputs,) what knowing nothing but the labels of the run would say, scaled."""
    outcomes = from_table(run.predictions, run.config.target)
    if target.kind == "multiclass":
        return mean_of_labels(one_hot(target, outcomes.labels))
    columns = [run.config.target.tasks.index(task) for task in target.tasks]
    learnt = outcomes.labels[:, columns]
    if target.kind == "regression":
        learnt = to_unit(learnt, tuple(run.config.scales[column] for column in columns))
    return mean_of_labels(learnt)


def _digests(folds: "pd.DataFrame", run: Run) -> "pd.Series[str]":
    """
    Raises:
        RunError: the run does not say of which photos it has learnt.
    """
    if "digest" not in folds:
        raise RunError(f"{run.folder / 'folds.csv'} lacks the column digest; copy the whole run again, or train again")
    return folds["digest"]


def _trained_on(run: Run) -> "pd.DataFrame":
    """The rows of a run's folds that any of its models learnt from."""
    only_tested = run.config.parts == ("test",) and not any("-all" in file.stem for file in run.weights_files())
    return run.folds[run.folds["fold"] != "test"] if only_tested else run.folds


@whole_width()
def _mean_prediction(
    run: Run,
    tensors: Sequence[featstore.StoredTensor],
    rows: NDArray[np.int64],
    device: str,
    memory_bytes: int,
    on_progress: Progress | None,
) -> NDArray[np.float64]:
    """(n, n_outputs) label units or probabilities: the mean over all models."""
    report = on_progress or no_progress
    where = featstore.choose_device(device)
    features = Features(tensors, rows, memory_bytes=memory_bytes)
    every = np.arange(len(features))
    models = _models(run, memory_bytes)
    said: list[list[object]] = [[] for _ in models]
    done = 0
    with failures_in_words(where):
        for group in features.groups():
            for (_, module), so_far in zip(models, said, strict=True):
                so_far += look(module.to(where), group, every, device=where, precision=run.config.precision)  # type: ignore[arg-type]
            done += len(group.rows)
            report("predict", done, len(features))
    target, learnt = run.config.target, run.config.learnt
    total, count = np.zeros((len(rows), target.n_outputs)), np.zeros(target.n_outputs)
    for (task, _), so_far in zip(models, said, strict=True):
        one = learnt if task is None else target.only(task)
        column = slice(None) if task is None else slice(task, task + 1)
        total[:, column] += collect(so_far, every, one)[0][:, run.config.said]  # type: ignore[arg-type]
        count[column] += 1
    if not count.all():
        raise RunError(f"the models of {run.folder} say nothing of some of its tasks; copy the whole run again")
    mean = total / count
    if (lost := ~np.isfinite(mean).all(1)).any():
        raise FeaturesError(
            f"the models of {run.folder} say no number of {int(lost.sum())} of {counted(len(rows), 'image')}, as of "
            f"row {rows[lost][0]} of the store; `featstore verify` finds rows that are damaged"
        )
    return from_unit(mean, run.config.scales) if target.kind == "regression" else mean


def _models(run: Run, memory_bytes: int) -> list[tuple[int | None, nn.Module]]:
    """The models that predict new images, each with the only task that it knows, if so.

    Raises:
        RunError: there are none; a file is not of the model that the run's options call for; or they need more memory
            than is allowed.
    """
    files = run.weights_files()
    if not files:
        raise RunError(f"{run.folder} has no weights")
    system, n_bytes = _system_of(run), 0
    options = _options_of(run, system)
    found = []
    for file in files:
        task = _task_of(file, run)
        build = partial(_build, run, system, options, task)
        header = _header(file)
        # Before any of it takes memory: options of a run may ask for a model of any size.
        if wrong := _unlike(system, build, header):
            raise RunError(
                f"weights {file} are not of {system.name!r} as this version has it; train it again ({wrong})"
            )
        n_bytes += bytes_of(header.kinds)
        allowed = max(memory_bytes, DEFAULT_MEMORY_BYTES)
        if n_bytes > allowed:
            raise RunError(f"the models of {run.folder} need more than {size(allowed)}; allow more with --memory")
        module = build()
        try:
            module.load_state_dict(load(file))
        except RuntimeError as error:  # of a plugin
            raise RunError(f"weights {file} do not fit: {' '.join(str(error).split())}") from error
        found.append((task, module))
    return found


def _build(run: Run, system: System, options: Options, task: int | None) -> nn.Module:
    """
    Raises:
        RunError: the head cannot be built for such features or labels.
    """
    config = run.config
    target = config.learnt if task is None else config.target.only(task)
    try:
        return assemble(system, config.shapes, config.layouts, target, options)
    except (ValueError, TypeError, IndexError, RuntimeError, OverflowError, MemoryError) as error:
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in config.shapes)
        raise RunError(
            f"head {system.name!r} cannot be built for the features ({shapes}) and {config.target.kind} labels of "
            f"{run.folder}: {error}"
        ) from error


def _unlike(system: System, build: Callable[[], nn.Module], header: Header) -> str | None:
    try:
        return difference(kinds_of(without_memory(build).state_dict()), header.kinds)
    except RunError:
        if system.plugin is None:
            raise
        return None  # its code may need the values of what it builds, and is the user's own


def _header(file: Path) -> Header:
    try:
        return read_header(file)
    except FileNotFoundError:
        raise RunError(f"weights {file} are not there any more") from None


def _task_of(file: Path, run: Run) -> int | None:
    """
    Raises:
        RunError: a file is named after a task that the run has not.
    """
    _, alone, number = file.stem.rpartition("-task")
    if not alone:
        return None
    if not (number.isascii() and number.isdecimal() and len(number) < 9 and int(number) < len(run.config.target.tasks)):
        raise RunError(f"weights {file} are named after a task that the run has not; copy the whole run again")
    return int(number)


def _system_of(run: Run) -> System:
    config = run.config
    system = find_system(config.system, plugin=config.plugin["name"] if config.plugin else None)
    if config.plugin and not _is_the_plugin_of(config.plugin, system):
        raise RunError(
            f"head {config.system!r} is not what {run.folder} was trained with: {config.plugin['name']} has changed "
            "since, or another plugin has a head of this name; load the one of then, or train again"
        )
    if config.target.kind not in system.kinds:
        raise RunError(f"head {config.system!r} learns no {config.target.kind} labels, and {run.folder} says it did")
    return system


def _options_of(run: Run, system: System) -> Options:
    """The options of a run, each as the head takes it; what the head has learnt to be asked since is as usual."""
    said = [f"{name}={value}" for name, value in run.config.options.items() if name in system.options]
    try:
        return system.settle(said)
    except UnknownSystemError as error:
        raise RunError(f"{run.folder / 'config.json'}: {error}; copy the whole run again, or train again") from error


def _is_the_plugin_of(recorded: Mapping[str, str], system: System) -> bool:
    """Whether a head is that of the run's plugin, as it was; a script or notebook of one's own may change."""
    plugin = system.plugin
    return plugin is not None and (plugin.module == "__main__" or plugin.sha256 == recorded["sha256"])


def _same_features(run: Run, place: Place) -> tuple[featstore.Store, list[featstore.StoredTensor], NDArray[np.int64]]:
    """The tensors of a store that hold what the run was trained on, and the rows that have all of them."""
    store = featstore.open(place_of(place), keep_mapped=False)
    tensors = [_same_tensor(store, run, wanted) for wanted in run.config.tensors]
    rows = tensors[0].rows
    for tensor in tensors[1:]:
        rows = np.intersect1d(rows, tensor.rows)
    if not len(rows):
        raise FeaturesError(
            f"tensor {tensors[0].name!r} in {store.path} has no rows; `featstore extract` computes them"
        )
    return store, tensors, rows


def _same_tensor(store: featstore.Store, run: Run, about: object) -> featstore.StoredTensor:
    assert isinstance(about, dict)
    wanted = [segment["hash"] for segment in about["segments"]]
    candidates = sorted(store.tensors.values(), key=lambda tensor: tensor.name != about["name"])
    for tensor in candidates:
        layout = tensor.layout
        if [segment.hash for segment in layout.segments] == wanted and layout.row_shape == tuple(about["shape"]):
            return tensor
    held = "; ".join(
        f"{tensor.name}: " + few(f"{segment.name} {segment.hash}" for segment in tensor.layout.segments)
        for tensor in candidates[:NAMED]
    )
    if len(candidates) > NAMED:
        held += f"; and {len(candidates) - NAMED} more"
    named = few(f"{segment['name']} {segment['hash']}" for segment in about["segments"])
    raise FeaturesError(
        f"{store.path} holds no tensor of the features that {run.folder} was trained on ({named}); "
        f"it holds {held or 'none'}"
    )
