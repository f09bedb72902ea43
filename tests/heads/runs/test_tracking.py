"""Finished runs in TensorBoard and MLflow, as those read them."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heads import Plan, Run, read_labels, train
from heads.cli import app
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
@pytest.mark.parametrize("address", [None, "file:{}/elsewhere", "{}/a folder", "sqlite:///{}/own.db"])
def test_mlflow_has_options_losses_and_metrics(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """At its default address, and where the user says."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if address is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(tmp_path))
    done = CliRunner().invoke(app, ["log", str(run.folder), "--to", "mlflow"])
    assert done.exit_code == 0, done.output
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    if address is None:
        assert (tmp_path / "mlflow.db").is_file()
        assert done.stdout.startswith(f"mlflow: sqlite:///{tmp_path}/mlflow.db experiment amtl, run ")
    client = mlflow.MlflowClient()
    (logged,) = client.search_runs([client.get_experiment_by_name("amtl").experiment_id])
    assert logged.info.run_id in done.stdout
    assert logged.info.run_name == "amtl"
    assert logged.info.status == "FINISHED"
    assert logged.data.params["attention"] == "4"
    assert logged.data.metrics["calm/rmse"] == pytest.approx(run.metrics["calm"]["rmse"]["mean"])
    losses = client.get_metric_history(logged.info.run_id, "val_loss/repeat0-fold2")
    assert [each.value for each in losses] == pytest.approx(
        run.history[run.history["fold"] == "2"]["val_loss"].tolist()
    )


@pytest.mark.filterwarnings("ignore")
def test_mlflow_is_given_names_that_it_takes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/own.db")
    named = Run(run.folder)
    named.metrics = {"joy (1-7), é": run.metrics["calm"]}
    said = to_mlflow(named)
    assert "joy _1-7__ é/rmse" in mlflow.MlflowClient().get_run(said.split()[-1]).data.metrics


@pytest.mark.filterwarnings("ignore")
def test_what_mlflow_refuses_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "taken").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/taken")
    done = CliRunner().invoke(app, ["log", str(run.folder), "mlflow"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: MLflow refuses the run")


def test_where_to_has_to_be_said(run: Run) -> None:
    done = CliRunner().invoke(app, ["log", str(run.folder)])
    assert (done.exit_code, done.stderr) == (1, "error: say where to, once: --to tensorboard, or --to mlflow\n")


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(RunError, match="unknown tracker 'wandb'; expected tensorboard or mlflow"):
        find_tracker("wandb")
