"""Writing a run folder from trained models: folds, history, predictions, metrics, attention, configuration."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featstore.files import replacing
from heads.errors import RunError
from heads.inference.baseline import predict_baseline
from heads.inference.intervals import summarise
from heads.labels.labels import Labels
from heads.labels.target import JointTarget
from heads.raters.ceilings import to_json
from heads.runs.attention import ATTENTION_AXES, GLIMPSES, write_attention
from heads.runs.config import RunConfig
from heads.runs.predictions import to_table
from heads.splits.folds import Split
from heads.splits.given import further_folds
from heads.training.checkpoints import Draft
from heads.training.learner import Job, Trained

if TYPE_CHECKING:
    from heads.dataset import Dataset


RARE = ("plugin", "initial", "joint")
"""What config.json says only of runs that have it."""


def write_results(
    draft: Draft, jobs: Sequence[Job], config: RunConfig, splits: Sequence[Split], labels: Labels, ready: "Dataset"
) -> None:
    """Put a run together from the finished models in its draft, and give it its name.

    Args:
        splits: one for each repeat.
    """
    trained = [each for job in jobs if (each := draft.finished(job)) is not None]
    assert len(trained) == len(jobs)
    predicted = _predictions(trained, config)
    if not isinstance(config.target, JointTarget):
        _write_run(draft.part, trained, predicted, config, splits, labels, ready.labels, ready)
        draft.complete()
        return
    weights = draft.part / "weights"
    for name, part, (target, tasks, outputs) in zip(
        config.target.names(), labels.parts, config.target.slices(), strict=True
    ):
        folder = draft.part / name
        shutil.rmtree(folder, ignore_errors=True)  # by a process that was killed here
        table = {**config.labels, "columns": list(part.columns)}  # so that another table need not have the others
        own = replace(config, target=target, scales=part.scales, joint=config.target.parts, labels=table)
        folder.mkdir()
        _write_run(folder, trained, predicted[..., outputs], own, splits, part, ready.labels[:, tasks], ready)
        _give(weights, folder / "weights")
    shutil.rmtree(weights)
    draft.complete()


def _give(weights: Path, folder: Path) -> None:
    """The same weights in another folder: the same files, where the disk can have a file under two names."""
    folder.mkdir()
    for file in weights.iterdir():
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _write_run(
    folder: Path,
    trained: Sequence[Trained],
    predicted: NDArray[np.float32],
    config: RunConfig,
    splits: Sequence[Split],
    labels: Labels,
    scaled: NDArray[np.float32],
    ready: "Dataset",
) -> None:
    """All files of a run but its weights.

    Args:
        predicted: (R, N, n_outputs) of the target of the run.
        scaled: (N, K) its labels.
    """
    names = [*config.parts]
    folds: dict[str, Sequence[str]] = {
        "path": ready.paths,
        "group": ready.groups or ready.paths,
        "fold": splits[0].folds,
        "digest": ready.digests,
    }
    if any(split.folds != splits[0].folds for split in splits):
        folds |= {name: split.folds for name, split in zip(further_folds(len(splits)), splits[1:], strict=True)}
    _table(pd.DataFrame(folds), folder / "folds.csv")
    if history := _history(trained, config, names):
        _table(pd.DataFrame(history), folder / "history.csv")
    if learned := _learned(trained, names):
        _table(pd.DataFrame(learned), folder / "learned.csv")
    units = np.stack([labels.unscaled(each) for each in predicted])
    given = labels.values[ready.chosen]
    named = [split.folds for split in splits]
    _table(to_table(config.target, given, units, folds=named, paths=ready.paths), folder / "predictions.csv")
    partitions = np.stack([split.partition for split in splits])
    metrics = summarise(
        config.target,
        scaled,
        predicted,
        groups=ready.groups,
        folds=partitions,
        baseline=predict_baseline(config.target, scaled, partitions),
    )
    _json(metrics, folder / "metrics.json")
    if raters := labels.reliability(ready.chosen):
        _json(to_json(raters), folder / "raters.json")
    if arrays := _attention(trained, config):
        write_attention(arrays, ready.paths, folder / "attention.zarr")
    facts = {
        name: value for name, value in asdict(config).items() if name not in ("plugin", "initial", "joint") or value
    }
    _json(facts, folder / "config.json")


def _predictions(trained: Sequence[Trained], config: RunConfig) -> NDArray[np.float32]:
    """(R, N, n_outputs) out of fold; NaN where no model was tested on an image."""
    predicted = np.full((config.n_repeats, config.n_images, config.target.n_outputs), np.nan, np.float32)
    for each in trained:
        column = slice(None) if each.job.task is None else slice(each.job.task, each.job.task + 1)
        place = predicted[each.job.repeat, each.job.test, column]
        _check(each.predicted, place.shape, each)
        predicted[each.job.repeat, each.job.test, column] = each.predicted
    return predicted


def _attention(trained: Sequence[Trained], config: RunConfig) -> dict[str, NDArray[np.float32]]:
    """By name, the mean over repeats of what each image's own out-of-fold model looked at; glimpses of the first."""
    n_tasks = len(config.target.tasks)
    sums: dict[str, NDArray[np.float32]] = {}
    for each in trained:
        for name, values in each.attention.items():
            n_repeats = 1 if name == GLIMPSES else config.n_repeats
            if each.job.repeat >= n_repeats:
                continue
            alone = each.job.task is not None
            by_task = "task" in ATTENTION_AXES[name]
            kept = "blocks_by_task" if alone and name == "blocks" else name
            shape = values.shape[1:] if not alone else (n_tasks, *(values.shape[2:] if by_task else values.shape[1:]))
            if kept not in sums:
                sums[kept] = np.full((config.n_images, *shape), np.nan, np.float32)
            place = sums[kept] if not alone else sums[kept][:, each.job.task]
            here = values[:, 0] if alone and by_task else values
            _check(here, (len(each.job.test), *place.shape[1:]), each)
            before = np.nan_to_num(place[each.job.test])
            place[each.job.test] = before + here / n_repeats
    return sums


def _check(found: NDArray[np.float32], expected: tuple[int, ...], trained: Trained) -> None:
    """
    Raises:
        RunError: what a model is kept to have said is not about this run.
    """
    if found.shape != expected:
        raise RunError(
            f"finished/{trained.job.name}.safetensors of the draft has values of shape {found.shape}, not {expected}; "
            "remove that file, and its model is trained again"
        )


def _history(trained: Sequence[Trained], config: RunConfig, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "repeat": each.job.repeat,
            "fold": _fold(each, names),
            "task": "" if each.job.task is None else config.target.tasks[each.job.task],
            "stage": epoch.stage,
            "epoch": epoch.epoch,
            "train_loss": epoch.train_loss,
            "val_loss": epoch.val_loss,
            "best": int(epoch.best),
            "baseline_loss": epoch.baseline_loss,
        }
        for each in trained
        for epoch in each.history
    ]


def _learned(trained: Sequence[Trained], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"repeat": each.job.repeat, "fold": _fold(each, names), "name": name, "index": index, "value": float(value)}
        for each in trained
        for name, values in each.learned.items()
        for index, value in enumerate(values.ravel())
    ]


def _fold(trained: Trained, names: Sequence[str]) -> str:
    return "all" if trained.job.part is None else names[trained.job.part]


def _table(frame: pd.DataFrame, file: Path) -> None:
    with replacing(file) as out:
        frame.to_csv(out, index=False, float_format="%.9g")  # what it takes to tell two float32 apart


def _json(value: Any, file: Path) -> None:
    with replacing(file) as out:
        out.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
