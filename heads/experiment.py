"""One experiment from labels and a store to a run folder; and predictions from a finished run."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

import featstore
from heads.batches import Features
from heads.errors import FeaturesError, RunError, TrainingError
from heads.labels import Join, Labels, join
from heads.metrics import evaluate, summarise
from heads.prediction import predict_rows
from heads.runs import Run, RunConfig, RunWriter
from heads.systems.system import System, find_system
from heads.training import Epoch
from heads.validation import Outcome, assign_folds, cross_validate

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, int, int], None]
DEFAULT_MEMORY_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Plan:
    """What to train, on what, and how to validate it."""

    system: str
    store: Path | str
    labels: Labels
    out: Path
    tensor: str | None = None
    changes: Sequence[str] = ()
    """Changed options, written `name=value`."""
    n_folds: int = 5
    n_repeats: int | None = None
    """Trainings of each model; as many as the system's paper if None."""
    seed: int = 0
    group: str | None = None
    """What the groups of `labels` are, for the record."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    device: str = "auto"
    strict: bool = False
    photos: Path | None = None
    """For the report's pictures."""


def train(plan: Plan, *, on_progress: Progress | None = None, on_join: Callable[[Join], None] | None = None) -> Run:
    """Cross-validate a head and leave a run folder at `plan.out`.

    Raises:
        UnknownSystemError: no such head or option.
        FeaturesError: the store has no tensor for it.
        LabelsError: labels and store do not match, or cannot be split into folds.
        TrainingError: training diverged, or needs more memory than allowed.
        RunError: `plan.out` is taken, or the disk refuses.
        featstore.FeatstoreError: the store cannot be read.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    report = on_progress or (lambda stage, done, total: None)
    system = find_system(plan.system)
    options = system.settle(plan.changes)
    store = featstore.open(plan.store)
    tensor = choose_tensor(store, system, plan.tensor)
    matched = join(plan.labels, tensor.paths, tensor.rows, strict=plan.strict)
    if on_join:
        on_join(matched)
    paths = [plan.labels.paths[i] for i in matched.label_rows]
    groups = [plan.labels.groups[i] for i in matched.label_rows] if plan.labels.groups else None
    digests = [store.images.digests[row].tobytes().hex() for row in matched.store_rows]
    labels = plan.labels.scaled()[matched.label_rows]
    folds = assign_folds(len(paths), groups, plan.n_folds, plan.seed)
    device = featstore.choose_device(plan.device)
    n_repeats = plan.n_repeats or system.repeats
    with RunWriter(plan.out) as writer:
        features = Features(tensor, matched.store_rows, memory_bytes=plan.memory_bytes)
        features.load(lambda done, total: report("read", done, total))
        history: list[dict[str, Any]] = []

        def keep(repeat: int, fold: int, model: nn.Module, epochs: list[Epoch]) -> None:
            writer.weights(repeat, fold, {name: value.cpu().numpy() for name, value in model.state_dict().items()})
            history.extend(
                {
                    "repeat": repeat,
                    "fold": fold,
                    "epoch": epoch.epoch,
                    "train_loss": epoch.train_loss,
                    "val_loss": epoch.val_loss,
                    "best": int(epoch.best),
                }
                for epoch in epochs
            )

        try:
            outcome = cross_validate(
                system,
                options,
                features,
                labels,
                folds,
                groups=groups,
                paths=paths,
                n_repeats=n_repeats,
                seed=plan.seed,
                device=device,
                on_model=keep,
                on_progress=report,
            )
        except MemoryError as error:
            raise TrainingError(f"out of memory: {error}; allow less with --memory") from error
        _write_tables(writer, plan, matched, outcome, paths, groups, folds, history, labels, digests)
        return writer.finish(
            RunConfig(
                system=system.name,
                options=options,
                tasks=plan.labels.tasks,
                scale=plan.labels.scale,
                n_images=len(paths),
                n_folds=plan.n_folds,
                n_repeats=n_repeats,
                seed=plan.seed,
                group=plan.group,
                labels={"file": str(plan.labels.file), "sha256": plan.labels.sha256},
                store=str(plan.store),
                tensor=tensor.name,
                layout=tensor.layout.kind,
                shape=tensor.layout.row_shape,
                segments=tuple(
                    {"name": s.name, "hash": s.hash, "width": s.width, "identity": dict(s.identity)}
                    for s in tensor.layout.segments
                ),
                photos=_photos_folder(plan, tensor),
                versions={
                    name: version(name) for name in ("featstore", "torch", "numpy", "scikit-learn", "zarr", "dask")
                },
                command=shlex.join(["heads", *sys.argv[1:]]),
                started=started.isoformat(timespec="seconds"),
                elapsed_s=round(time.perf_counter() - clock, 3),
                device=str(device),
            )
        )


def predict(
    run: Run, store_path: Path | str, *, device: str = "auto", on_progress: Progress | None = None
) -> "pd.DataFrame":
    """Predictions for every image of a store, in label units: the mean over all models of a run.

    Raises:
        FeaturesError: the store has no tensor of the same segments, by identity, as the run was trained on.
        RunError: the run's weights are missing or damaged.
    """
    import pandas as pd
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, where = run.config, featstore.choose_device(device)
    tensor = _same_tensor(featstore.open(store_path), run)
    features = Features(tensor, tensor.rows, memory_bytes=DEFAULT_MEMORY_BYTES)
    if not len(features):
        raise FeaturesError(f"tensor {tensor.name!r} in {store_path} has no rows; `featstore extract` computes them")
    features.load(lambda done, total: None)
    model = find_system(config.system).build(config.shape, len(config.tasks), config.options)
    files = run.weights_files()
    if not files:
        raise RunError(f"{run.folder} has no weights")
    total = np.zeros((len(features), len(config.tasks)))
    for number, file in enumerate(files):
        try:
            model.load_state_dict(load_file(file))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise RunError(f"weights {file} cannot be read: {error}") from error
        total += predict_rows(model, features, np.arange(len(features)), where)
        if on_progress:
            on_progress("predict", number + 1, len(files))
    low, high = config.scale
    values = (total / len(files) + 0.5) * (high - low) + low
    return pd.DataFrame({"path": tensor.paths} | {task: values[:, k] for k, task in enumerate(config.tasks)})


def choose_tensor(store: featstore.Store, system: System, name: str | None) -> featstore.StoredTensor:
    """The tensor of the given name, or of the head's own name, or the only one of its layout.

    Raises:
        FeaturesError: there is none, or several; or it has another layout.
    """
    fitting = [each for each in store.tensors.values() if _kind(each) == system.layout]
    held = ", ".join(f"{each.name} ({_kind(each)})" for each in store.tensors.values()) or "none"
    if name is None and system.name in {each.name for each in fitting}:
        name = system.name
    if name is None:
        if len(fitting) != 1:
            why = "has no" if not fitting else "has several"
            raise FeaturesError(
                f"head {system.name!r} reads a {system.layout}, and {store.path} {why} such tensor (it has: {held}); "
                + ("say which with --tensor" if fitting else "extract one with --tensor NAME=" + system.layout + ":...")
            )
        return fitting[0]
    if name not in store.tensors:
        raise FeaturesError(f"{store.path} has no tensor {name!r}; {featstore.suggest(name, store.tensors)}")
    if (kind := _kind(store[name])) != system.layout:
        raise FeaturesError(
            f"head {system.name!r} reads a {system.layout}, tensor {name!r} is a {kind}; there are: {held}"
        )
    return store[name]


def _kind(tensor: featstore.StoredTensor) -> str:
    """The layout of a tensor; augmented copies have an axis that no head here knows what to do with."""
    return f"{tensor.layout.kind} of augmented copies" if "copy" in tensor.layout.axes else tensor.layout.kind


def _same_tensor(store: featstore.Store, run: Run) -> featstore.StoredTensor:
    wanted = [segment["hash"] for segment in run.config.segments]
    candidates = sorted(store.tensors.values(), key=lambda tensor: tensor.name != run.config.tensor)
    for tensor in candidates:
        layout = tensor.layout
        if [segment.hash for segment in layout.segments] == wanted and layout.row_shape == tuple(run.config.shape):
            return tensor
    held = "; ".join(
        f"{tensor.name}: " + ", ".join(f"{segment.name} {segment.hash}" for segment in tensor.layout.segments)
        for tensor in candidates
    )
    named = ", ".join(f"{segment['name']} {segment['hash']}" for segment in run.config.segments)
    raise FeaturesError(
        f"{store.path} holds no tensor of the features that {run.folder} was trained on ({named}); "
        f"it holds {held or 'none'}"
    )


def _write_tables(
    writer: RunWriter,
    plan: Plan,
    matched: Join,
    outcome: Outcome,
    paths: list[str],
    groups: list[str] | None,
    folds: np.ndarray[Any, np.dtype[np.int64]],
    history: list[dict[str, Any]],
    labels: np.ndarray[Any, np.dtype[np.float32]],
    digests: list[str],
) -> None:
    import pandas as pd

    writer.table("folds.csv", pd.DataFrame({"path": paths, "group": groups or paths, "fold": folds, "digest": digests}))
    if history:
        writer.table("history.csv", pd.DataFrame(history))
    given = plan.labels.values[matched.label_rows]
    frames = []
    for repeat, scaled in enumerate(outcome.predicted):
        predicted = plan.labels.unscaled(scaled)
        columns: dict[str, Any] = {"repeat": repeat, "fold": folds, "path": paths}
        for k, task in enumerate(plan.labels.tasks):
            columns |= {task: given[:, k], f"{task}_predicted": predicted[:, k]}
        frames.append(pd.DataFrame(columns))
    writer.table("predictions.csv", pd.concat(frames))
    writer.metrics(
        {
            task: summarise([evaluate(labels[:, k], predicted[:, k]) for predicted in outcome.predicted])
            for k, task in enumerate(plan.labels.tasks)
        }
    )
    if outcome.attention is not None:
        writer.attention(outcome.attention)


def _photos_folder(plan: Plan, tensor: featstore.StoredTensor) -> str | None:
    if plan.photos is not None:
        return str(plan.photos.absolute())
    recorded = [each.get("photos") for each in tensor.provenance]
    return next((str(each) for each in reversed(recorded) if each), None)
