"""Finished runs in TensorBoard and MLflow, as those read them."""

import os
from pathlib import Path

import pytest

from heads import Plan, Run, read_labels, train
from heads.errors import RunError
from heads.runs.tracking import find_tracker, to_mlflow, to_tensorboard


@pytest.fixture(scope="module")
def run(world, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        Plan(
            system="amtl",
            store=world.store,
            labels=read_labels(world.labels, scales="1:7", group="source"),
            out=tmp_path_factory.mktemp("runs") / "amtl",
            changes=("attention=4", "hidden=4", "epochs=3"),
            n_repeats=1,
            device="cpu",
        )
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_a_curve_for_every_model_and_loss(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(to_tensorboard(run)))
    events.Reload()
    assert {f"{loss}/repeat0-fold{fold}" for loss in ("train_loss", "val_loss") for fold in range(5)} <= set(
        events.Tags()["scalars"]
    )
    of_first = run.history[run.history["fold"] == "0"]["train_loss"]
    assert [event.value for event in events.Scalars("train_loss/repeat0-fold0")] == pytest.approx(of_first.tolist())
    (event,) = events.Scalars("metric/appeal/pearson")
    assert event.value == pytest.approx(run.metrics["appeal"]["pearson"]["mean"])


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_options_losses_and_metrics(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    said = to_mlflow(run)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    client = mlflow.MlflowClient()
    (logged,) = client.search_runs([client.get_experiment_by_name("amtl").experiment_id])
    assert logged.info.run_id in said
    assert logged.info.status == "FINISHED"
    assert logged.data.params["attention"] == "4"
    assert logged.data.metrics["calm/rmse"] == pytest.approx(run.metrics["calm"]["rmse"]["mean"])
    losses = client.get_metric_history(logged.info.run_id, "val_loss/repeat0-fold2")
    assert [each.value for each in losses] == pytest.approx(
        run.history[run.history["fold"] == "2"]["val_loss"].tolist()
    )


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(RunError, match="unknown tracker 'wandb'; expected tensorboard or mlflow"):
        find_tracker("wandb")
