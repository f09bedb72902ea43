"""Experiment trackers: a finished run copied to TensorBoard or MLflow."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from heads.errors import RunError
from heads.runs.reading import refuse_links
from heads.runs.run import Run

MOST_METRICS = 1000
"""That MLflow takes at a time."""


def to_tensorboard(run: Run) -> Path:
    """Write RUN/tensorboard: a curve per model and loss, and the options beside the metrics.

    Raises:
        RunError: the disk refuses.
    """
    from torch.utils.tensorboard import SummaryWriter

    place = run.folder / "tensorboard"
    refuse_links(place, ())
    metrics = {f"metric/{name}": value for name, value in _metrics(run).items()}
    try:
        with SummaryWriter(str(place)) as writer:
            for name, step, value in _curves(run):
                writer.add_scalar(name, value, step)
            writer.add_hparams(_parameters(run), metrics, run_name=".")
    except OSError as error:
        raise RunError(f"cannot write {place}: {error.strerror}") from error
    return place


def to_mlflow(run: Run) -> str:
    """Log a run to where MLFLOW_TRACKING_URI says, or else MLflow's default, and return where it is there.

    The default is a database in the working folder, mlflow.db, or the folder mlruns if it has runs already.

    Raises:
        RunError: MLflow refuses it, or lacks what it needs for such an address.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report its use to its makers
    os.environ.setdefault(
        "MLFLOW_ALLOW_FILE_STORE", "true"
    )  # a folder is refused by MLflow 3.7 and later, unless asked
    try:
        import mlflow
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        client, now = mlflow.MlflowClient(), int(time.time() * 1000)
        known = client.get_experiment_by_name(run.config.system)
        experiment = known.experiment_id if known else client.create_experiment(run.config.system)
        logged = client.create_run(experiment, run_name=run.folder.name).info.run_id
        params = [Param(name, str(value)) for name, value in _parameters(run).items()]
        figures = [*_curves(run), *((name, 0, value) for name, value in _metrics(run).items())]
        metrics = [Metric(_named(name), value, now, step) for name, step, value in figures]
        try:
            client.log_batch(logged, params=params)
            for start in range(0, len(metrics), MOST_METRICS):
                client.log_batch(logged, metrics[start : start + MOST_METRICS])
        except BaseException:
            client.set_terminated(logged, "FAILED")
            raise
        client.set_terminated(logged)
        place = mlflow.get_tracking_uri()
    except ImportError as error:
        raise RunError(f"MLflow lacks a package ({error}): pip install 'featstore[mlflow]'") from error
    except (mlflow.MlflowException, OSError) as error:
        lacks = "" if find_spec("sqlalchemy") else "; for a database it needs more: pip install 'featstore[mlflow]'"
        raise RunError(f"MLflow refuses the run: {error}{lacks}") from error
    return f"{place} experiment {run.config.system}, run {logged}"


Tracker = Callable[[Run], Path | str]
"""Copies a run, and returns where it is there."""
TRACKERS: Mapping[str, tuple[str, Tracker]] = {
    "tensorboard": ("tensorboard", to_tensorboard),
    "mlflow": ("mlflow", to_mlflow),
}
"""By name, the module that has to be there and what it does."""


def find_tracker(name: str) -> Tracker:
    """
    Raises:
        RunError: it is unknown, or not installed.
    """
    if name not in TRACKERS:
        raise RunError(f"unknown tracker {name!r}; expected {' or '.join(TRACKERS)}")
    module, tracker = TRACKERS[name]
    if find_spec(module) is None:
        raise RunError(f"{name} is not installed: pip install 'featstore[{name}]'")
    return tracker


def _named(name: str) -> str:
    """A name with those characters only that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _parameters(run: Run) -> dict[str, Any]:
    config = run.config
    about = {"split": config.split, "repeats": config.n_repeats, "seed": config.seed, "images": config.n_images}
    return {"head": config.system, "run": str(run.folder), **about, **config.options}


def _metrics(run: Run) -> dict[str, float]:
    return {
        f"{task}/{metric}": value["mean"]
        for task, by_metric in run.metrics.items()
        for metric, value in by_metric.items()
        if value["mean"] is not None
    }


def _curves(run: Run) -> Iterator[tuple[str, int, float]]:
    """(name, epoch, loss) of every model; epochs of later stages follow those of the first."""
    if not run.has_history:
        return
    for (repeat, fold, task), epochs in run.history.groupby(["repeat", "fold", "task"]):
        model = f"repeat{repeat}-fold{fold}" + (f"-{task}" if task else "")
        for step, (_, epoch) in enumerate(epochs.iterrows()):
            for loss in ("train_loss", "val_loss"):
                if epoch[loss] == epoch[loss]:
                    yield f"{loss}/{model}", step, float(epoch[loss])
