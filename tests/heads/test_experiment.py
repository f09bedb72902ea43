"""From labels and a store to a run folder, and from a run to predictions."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import featstore
from heads import Plan, Run, predict, train
from heads.errors import FeaturesError, LabelsError, RunError, UnknownSystemError
from heads.experiment import choose_tensor
from heads.labels import read_labels
from heads.metrics import METRICS, evaluate, summarise
from heads.systems import find_system

SMALL = ("attention=4", "hidden=4", "epochs=2")


@pytest.fixture(scope="module")
def plan(world, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two trainings of a small AMTL in each of three folds that keep trips together."""
    return Plan(
        system="amtl",
        store=world.store,
        labels=read_labels(world.labels, scale=(1, 7), group="source"),
        out=tmp_path_factory.mktemp("runs") / "amtl",
        changes=SMALL,
        n_folds=3,
        n_repeats=2,
        group="source",
        device="cpu",
    )


@pytest.fixture(scope="module")
def run(plan: Plan) -> Run:
    return train(plan)


@pytest.fixture(scope="module")
def ridge_run(plan: Plan) -> Run:
    return train(replace(plan, system="ridge", out=plan.out.with_name("ridge"), changes=(), n_repeats=None))


# ------------------------------------------------------------------------------------------ the run folder


def test_a_run_folder_holds_what_is_documented(run: Run, ridge_run: Run) -> None:
    common = {"config.json", "folds.csv", "predictions.csv", "metrics.json", "weights"}
    assert {each.name for each in run.folder.iterdir()} == common | {"history.csv", "attention.zarr"}
    assert {each.name for each in ridge_run.folder.iterdir()} == common
    assert [file.name for file in run.weights_files()] == [
        f"repeat{r}-fold{f}.safetensors" for r in (0, 1) for f in range(3)
    ]
    assert not run.folder.with_name("amtl.part").exists()


def test_the_configuration_says_how_to_repeat_it(run: Run, plan: Plan) -> None:
    config = run.config
    assert (config.system, config.tasks, config.scale) == ("amtl", ("appeal", "calm"), (1, 7))
    assert (config.n_images, config.n_folds, config.n_repeats, config.seed, config.group) == (60, 3, 2, 0, "source")
    assert config.options == find_system("amtl").settle(SMALL)
    assert config.labels == {"file": str(plan.labels.file), "sha256": plan.labels.sha256}
    assert (config.tensor, config.layout, config.shape) == ("grid", "stack", (3, 16, 24))
    stored = featstore.open(plan.store)["grid"].layout.segments
    assert [segment["hash"] for segment in config.segments] == [segment.hash for segment in stored]


def test_folds_keep_trips_together(run: Run, world) -> None:
    folds = run.folds
    assert folds["path"].tolist() == world.table["path"].tolist()
    assert folds["group"].tolist() == world.table["source"].tolist()
    assert (folds.groupby("group")["fold"].nunique() == 1).all()
    assert set(folds["fold"]) == {0, 1, 2}


def test_every_head_has_the_same_folds(run: Run, ridge_run: Run) -> None:
    pd.testing.assert_frame_equal(run.folds, ridge_run.folds)


def test_predictions_cover_every_image_once_per_repeat_beside_its_labels(run: Run, world) -> None:
    table = run.predictions
    assert list(table.columns) == ["repeat", "fold", "path", "appeal", "appeal_predicted", "calm", "calm_predicted"]
    for _, once in table.groupby("repeat"):
        assert once["path"].tolist() == world.table["path"].tolist()
        assert once["fold"].tolist() == run.folds["fold"].tolist()
        assert once[["appeal", "calm"]].to_numpy() == pytest.approx(world.table[["appeal", "calm"]].to_numpy())
    assert table["repeat"].value_counts().to_dict() == {0: 60, 1: 60}


def test_metrics_are_those_of_the_predictions(run: Run, ridge_run: Run) -> None:
    for each in (run, ridge_run):
        for task in ("appeal", "calm"):
            repeats = [
                evaluate(
                    ((once[task] - 1) / 6 - 0.5).to_numpy(np.float32),
                    ((once[f"{task}_predicted"] - 1) / 6 - 0.5).to_numpy(np.float32),
                )
                for _, once in each.predictions.groupby("repeat")
            ]
            expected = summarise(repeats)
            for metric in METRICS:
                assert each.metrics[task][metric] == {
                    name: value if value is None else pytest.approx(value, abs=1e-4)
                    for name, value in expected[metric].items()
                }


def test_a_single_repeat_has_no_spread(ridge_run: Run) -> None:
    assert ridge_run.config.n_repeats == 1
    assert {ridge_run.metrics["calm"][metric]["spread"] for metric in METRICS} == {None}
    assert ridge_run.metrics["calm"]["pearson"]["mean"] > 0.3  # and the planted signal is found


def test_history_marks_the_epoch_that_was_kept(run: Run) -> None:
    assert list(run.history.columns) == ["repeat", "fold", "epoch", "train_loss", "val_loss", "best"]
    assert (run.history.groupby(["repeat", "fold"])["best"].sum() == 1).all()
    assert run.history.groupby(["repeat", "fold"]).ngroups == 6


def test_attention_is_kept_for_every_image(run: Run, ridge_run: Run, world) -> None:
    assert run.attention is not None
    assert run.attention.paths == world.table["path"].tolist()
    assert run.attention.blocks.shape == (60, 3, 16)
    assert run.attention.backbones.sum(-1) == pytest.approx(1, abs=1e-5)
    assert ridge_run.attention is None


def test_the_same_seed_gives_the_same_run_and_another_does_not(run: Run, plan: Plan, tmp_path: Path) -> None:
    again = train(replace(plan, out=tmp_path / "again"))
    other = train(replace(plan, out=tmp_path / "other", seed=1))
    pd.testing.assert_frame_equal(again.predictions, run.predictions)
    assert again.metrics == run.metrics
    assert other.folds["fold"].tolist() != run.folds["fold"].tolist()


def test_missing_labels_and_photos_on_one_side_only(world, plan: Plan, tmp_path: Path) -> None:
    table = world.table.copy()
    table.loc[:9, "calm"] = np.nan
    table.loc[10, ["appeal", "calm"]] = np.nan
    table.loc[60] = ["elsewhere.jpg", "trip 0", 3.0, 4.0, "seen"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    joined = []
    labels = read_labels(tmp_path / "labels.csv", scale=(1, 7))
    partial = replace(plan, labels=labels, group=None, out=tmp_path / "run", n_repeats=1)
    run = train(partial, on_join=joined.append)
    assert (joined[0].only_labels, joined[0].only_store) == (["elsewhere.jpg"], [world.table["path"][10]])
    assert run.config.n_images == 59
    assert run.predictions["calm"].isna().sum() == 10
    assert run.predictions["calm_predicted"].notna().all()
    with pytest.raises(LabelsError, match="1 labels without features"):
        train(replace(partial, strict=True, out=tmp_path / "strict"))


def test_metrics_that_are_not_defined_are_null(world, plan: Plan, tmp_path: Path) -> None:
    """Labels that are all equal have no correlation with anything, but an error."""
    world.table.assign(calm=3).to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", scale=(1, 7))
    run = train(replace(plan, labels=labels, out=tmp_path / "run"))
    nothing = {"mean": None, "spread": None}
    assert json.loads((run.folder / "metrics.json").read_text("utf-8")) == run.metrics
    assert [run.metrics["calm"][name] for name in ("pearson", "pearson2", "r2")] == [nothing] * 3
    assert run.metrics["calm"]["rmse"]["mean"] > 0


# ------------------------------------------------------------------------------------------ refusals


def test_a_folder_that_exists_is_refused_and_left_alone(run: Run, plan: Plan) -> None:
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(RunError, match="exists already"):
        train(plan)
    assert (run.folder / "config.json").read_bytes() == before


def test_a_run_that_is_stopped_has_no_folder_of_its_name(plan: Plan, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "train" and done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(plan, out=tmp_path / "run"), on_progress=stop)
    assert not (tmp_path / "run").exists()
    assert train(replace(plan, out=tmp_path / "run", n_repeats=1)).config.n_folds == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epoch=3", "no option 'epoch'; did you mean 'epochs'"),
        ("epochs", "not of the form NAME=VALUE"),
        ("epochs=3.5", r"'epochs' is a int \(default 60\); found '3\.5'"),
        ("standardise=maybe", "found 'maybe'"),
        ("epochs=0", "'epochs' goes from 1"),
        ("batch=0", "'batch' goes from 1"),
        ("dropout=1.5", "'dropout' goes from 0 to 1"),
        ("lr=-1", "'lr' goes from 0"),
        ("lr=nan", "'lr' goes from 0"),
    ],
)
def test_options_that_make_no_sense(plan: Plan, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UnknownSystemError, match=message):
        train(replace(plan, changes=[change], out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_head_is_answered_with_a_suggestion(plan: Plan) -> None:
    with pytest.raises(UnknownSystemError, match="unknown head 'amlt'; did you mean 'amtl'"):
        train(replace(plan, system="amlt"))


def test_more_folds_than_groups(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="13 folds need at least as many groups; there are 12"):
        train(replace(plan, n_folds=13, out=tmp_path / "run"))


# ------------------------------------------------------------------------------------------ which tensor


@pytest.fixture
def several(tmp_path: Path, write_store) -> Callable[..., featstore.Store]:
    def make(**shapes: tuple[int, ...]) -> featstore.Store:
        write_store(
            tmp_path / "s.zarr", ["a.jpg"], {name: np.ones(shape, np.float16) for name, shape in shapes.items()}
        )
        return featstore.open(tmp_path / "s.zarr")

    return make


STACK, CONCAT = (1, 2, 4, 8), (1, 8)


def test_the_tensor_of_the_heads_own_name_comes_first(several) -> None:
    store = several(amtl=STACK, fine=STACK, whole=CONCAT)
    assert choose_tensor(store, find_system("amtl"), None).name == "amtl"
    assert choose_tensor(store, find_system("amtl"), "fine").name == "fine"
    assert choose_tensor(store, find_system("ridge"), None).name == "whole"


@pytest.mark.parametrize(
    ("shapes", "head", "name", "message"),
    [
        ({"a": STACK, "b": STACK}, "amtl", None, r"has several such tensor.*a \(stack\), b \(stack\).*--tensor"),
        ({"a": CONCAT}, "amtl", None, r"has no such tensor \(it has: a \(concat\)\); extract one"),
        ({"amtl": CONCAT}, "amtl", None, "has no such tensor"),
        ({"a": STACK, "b": CONCAT}, "amtl", "b", "tensor 'b' is a concat"),
        ({"grid": STACK}, "amtl", "gird", "no tensor 'gird'; did you mean 'grid'"),
    ],
)
def test_a_tensor_that_cannot_be_chosen(several, shapes, head: str, name: str | None, message: str) -> None:
    with pytest.raises(FeaturesError, match=message):
        choose_tensor(several(**shapes), find_system(head), name)


# ------------------------------------------------------------------------------------------ predictions


@pytest.mark.parametrize("which", ["run", "ridge_run"])
def test_predictions_of_a_store_are_the_mean_over_all_models(which: str, world, request) -> None:
    run: Run = request.getfixturevalue(which)
    values = world.grid if run.config.layout == "stack" else world.whole
    means = []
    for file in run.weights_files():
        model = find_system(run.config.system).build(run.config.shape, 2, run.config.options).eval()
        model.load_state_dict(load_file(file))
        with torch.inference_mode():
            means.append(model(torch.from_numpy(values).float()).numpy())
    table = predict(run, world.store, device="cpu")
    assert list(table.columns) == ["path", "appeal", "calm"]
    assert table["path"].tolist() == world.table["path"].tolist()
    assert table[["appeal", "calm"]].to_numpy() == pytest.approx((np.mean(means, 0) + 0.5) * 6 + 1, abs=1e-3)


def test_the_same_features_under_another_name_will_do(ridge_run: Run, world, write_store, tmp_path: Path) -> None:
    names = [f"new {i}.jpg" for i in range(5)]
    write_store(tmp_path / "s.zarr", names, {"other": world.whole[:5]}, widths=[24, 16, 20])
    expected = predict(ridge_run, world.store, device="cpu")[:5]
    found = predict(ridge_run, tmp_path / "s.zarr", device="cpu")
    assert found["path"].tolist() == names
    assert found["appeal"].to_numpy() == pytest.approx(expected["appeal"].to_numpy(), abs=1e-4)


def test_features_of_other_weights_are_refused(run: Run, world, write_store, tmp_path: Path) -> None:
    tensors = {"grid": world.grid[:5]}
    write_store(tmp_path / "s.zarr", list("abcde"), tensors, widths=[24, 16, 20], weights="second")
    with pytest.raises(FeaturesError, match=r"holds no tensor of the features .*net0 \w{16}.*it holds grid: net0"):
        predict(run, tmp_path / "s.zarr")


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        Run(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        Run(tmp_path / "none")


def test_damaged_weights_are_named(ridge_run: Run, world, tmp_path: Path) -> None:
    shutil.copytree(ridge_run.folder, tmp_path / "run")
    (tmp_path / "run" / "weights" / "repeat0-fold1.safetensors").write_bytes(b"not weights")
    with pytest.raises(RunError, match=r"repeat0-fold1\.safetensors cannot be read"):
        predict(Run(tmp_path / "run"), world.store)
