"""From labels and a store to a run folder: what it promises, for every kind of labels and way of validation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import featstore
from heads import Plan, Run, Validation, experiment, read_labels, sweep, train
from heads.errors import DivergedError, FeaturesError, LabelsError, RunError, TrainingError, UnknownSystemError
from heads.inference.baseline import predict_baseline
from heads.inference.comparing import compare
from heads.inference.intervals import summarise
from heads.inference.metrics import METRICS, evaluate, tasks_of
from heads.runs.attention import ATTENTION_AXES
from heads.runs.predictions import from_table
from heads.systems import find_system
from heads.training.learner import Learner
from heads.training.tensors import choose_tensors

SMALL = ("attention=4", "hidden=4", "epochs=2")
BRIEF = ("epochs=3",)


@pytest.fixture(scope="module")
def plan(world, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two cross-validations of a small AMTL, each in three folds of its own that keep trips together."""
    return Plan(
        system="amtl",
        store=world.store,
        labels=read_labels(world.labels, scales=["1:7"], group="source"),
        out=tmp_path_factory.mktemp("runs") / "amtl",
        changes=SMALL,
        validation=Validation(n_folds=3),
        n_repeats=2,
        group="source",
        device="cpu",
    )


@pytest.fixture(scope="module")
def run(plan: Plan) -> Run:
    return train(plan)


@pytest.fixture(scope="module")
def ridge_run(plan: Plan) -> Run:
    others = {"tensors": ["whole"], "changes": (), "n_repeats": 1}
    return train(replace(plan, system="ridge", out=plan.out.with_name("ridge"), **others))


# ------------------------------------------------------------------------------------------ the run folder


def test_a_run_folder_holds_what_is_documented(run: Run, ridge_run: Run) -> None:
    common = {"config.json", "folds.csv", "predictions.csv", "metrics.json", "weights"}
    assert {each.name for each in run.folder.iterdir()} == common | {"history.csv", "attention.zarr"}
    assert {each.name for each in ridge_run.folder.iterdir()} == common
    assert [file.name for file in run.weights_files()] == [
        f"repeat{r}-fold{f}.safetensors" for r in (0, 1) for f in range(3)
    ]
    assert sorted(each.name for each in run.folder.parent.iterdir()) == ["amtl", "ridge"]  # no .part, no .lock


def test_the_configuration_says_how_to_repeat_it(run: Run, plan: Plan) -> None:
    config = run.config
    assert (config.system, config.target.tasks, config.scales) == ("amtl", ("appeal", "calm"), ((1, 7), (1, 7)))
    assert (config.n_images, config.parts, config.n_repeats, config.seed) == (60, ("0", "1", "2"), 2, 0)
    assert (config.split, config.group) == ("3 folds, groups kept together", "source")
    assert config.options == find_system("amtl").settle(SMALL)
    assert config.labels == {
        "files": [str(plan.labels.files[0])],
        "sha256": list(plan.labels.sha256),
        "columns": ["appeal", "calm"],
    }
    (tensor,) = config.tensors
    assert (tensor["name"], tensor["layout"], config.shapes) == ("grid", "stack", ((3, 16, 24),))
    stored = featstore.open(plan.store)["grid"].layout.segments
    assert [segment["hash"] for segment in tensor["segments"]] == [segment.hash for segment in stored]
    assert (config.device, config.precision) == ("cpu", "fp32")
    assert config.elapsed_s > 0


def test_weights_say_what_they_are(run: Run) -> None:
    with safe_open(run.weights_files()[3], framework="pt") as stored:
        card = json.loads(stored.metadata()["card"])
    assert (card["name"], card["head"], card["tasks"]) == ("repeat1-fold0", "amtl", ["appeal", "calm"])
    assert card["options"] == run.config.options
    assert card["features"] == [["stack", *(segment["hash"] for segment in run.config.tensors[0]["segments"])]]


def test_folds_keep_trips_together_and_name_the_bytes_of_photos(run: Run, world) -> None:
    folds = run.folds
    assert folds["path"].tolist() == world.table["path"].tolist()
    assert folds["group"].tolist() == world.table["source"].tolist()
    assert (folds.groupby("group")["fold"].nunique() == 1).all()
    assert set(folds["fold"]) == {"0", "1", "2"}
    assert folds["digest"].tolist() == [each.tobytes().hex() for each in featstore.open(world.store).images.digests]


def test_every_head_has_the_same_folds(plan: Plan, run: Run, ridge_run: Run, tmp_path: Path) -> None:
    """Also those of further repeats: more of them leave the folds of the first as they are."""
    pd.testing.assert_frame_equal(run.folds.drop(columns="fold_1"), ridge_run.folds)
    others = {"tensors": ["whole"], "changes": (), "n_repeats": 3, "out": tmp_path / "run"}
    thrice = train(replace(plan, system="ridge", **others)).folds
    pd.testing.assert_frame_equal(thrice.drop(columns="fold_2"), run.folds)
    assert len({tuple(thrice[name]) for name in ("fold", "fold_1", "fold_2")}) == 3


def test_repeats_have_folds_of_their_own_unless_they_are_to_have_the_same(plan: Plan, tmp_path: Path) -> None:
    brief = replace(plan, system="ridge", tensors=["whole"], changes=(), n_repeats=3)
    for name, same in (("redrawn", False), ("same", True)):
        validation = Validation(n_folds=3, same_folds=same)
        run = train(replace(brief, validation=validation, out=tmp_path / name))
        further = [] if same else ["fold_1", "fold_2"]
        assert list(run.folds.columns) == ["path", "group", "fold", "digest", *further]
        assert run.config.redrawn is not same
        of_repeat = {repeat: once.set_index("path")["fold"] for repeat, once in run.predictions.groupby("repeat")}
        for repeat, column in enumerate(["fold", "fold", "fold"] if same else ["fold", *further]):
            assert of_repeat[repeat][run.folds["path"]].tolist() == run.folds[column].tolist()
            assert (run.folds.groupby("group")[column].nunique() == 1).all()
    assert "3 repeats in the same folds" in run.title


def test_all_folds_of_a_run_are_used_again(plan: Plan, run: Run, tmp_path: Path) -> None:
    brief = replace(plan, system="ridge", tensors=["whole"], changes=(), seed=9, n_repeats=None)
    again = replace(brief, validation=Validation(split=run.folder))
    pd.testing.assert_frame_equal(train(replace(again, out=tmp_path / "both")).folds, run.folds)
    first = train(replace(again, n_repeats=1, out=tmp_path / "one"))
    pd.testing.assert_frame_equal(first.folds, run.folds.drop(columns="fold_1"))
    with pytest.raises(LabelsError, match=r"has the folds of 2 repeats, and --repeats 3 needs as many; ask for fewer"):
        train(replace(again, n_repeats=3, out=tmp_path / "three"))
    assert not (tmp_path / "three").exists()


def test_predictions_cover_every_image_once_per_repeat_beside_its_labels(run: Run, world) -> None:
    table = run.predictions
    assert list(table.columns) == ["repeat", "fold", "path", "appeal", "appeal_predicted", "calm", "calm_predicted"]
    for repeat, once in table.groupby("repeat"):
        assert once["path"].tolist() == world.table["path"].tolist()
        assert once["fold"].tolist() == run.folds["fold_1" if repeat else "fold"].tolist()
        assert once[["appeal", "calm"]].to_numpy() == pytest.approx(world.table[["appeal", "calm"]].to_numpy())
    assert table["repeat"].value_counts().to_dict() == {0: 60, 1: 60}


def test_metrics_are_those_of_the_predictions(run: Run, ridge_run: Run) -> None:
    for each in (run, ridge_run):
        outcomes = from_table(each.predictions, each.config.target)
        labels, predicted = ((values - 1) / 6 - 0.5 for values in (outcomes.labels, outcomes.predicted))
        target, partitions = each.config.target, outcomes.partitions()
        expected = summarise(
            target,
            labels,
            predicted,
            groups=each.folds["group"].tolist(),
            folds=partitions,
            baseline=predict_baseline(target, labels, partitions),
            seed=each.config.seed,
        )
        for task, metrics in expected.items():
            for metric, values in metrics.items():
                assert each.metrics[task][metric] == {
                    name: value if value is None else pytest.approx(value, abs=1e-4) for name, value in values.items()
                }


def test_a_single_repeat_has_no_spread(ridge_run: Run) -> None:
    assert ridge_run.config.n_repeats == 1
    assert {ridge_run.metrics["calm"][metric]["spread"] for metric in METRICS["regression"]} == {None}
    assert ridge_run.metrics["calm"]["pearson"]["mean"] > 0.3  # and the planted signal is found


def test_history_marks_the_epoch_that_was_kept(run: Run) -> None:
    columns = ["repeat", "fold", "task", "stage", "epoch", "train_loss", "val_loss", "best", "baseline_loss"]
    assert list(run.history.columns) == columns
    assert (run.history.groupby(["repeat", "fold"])["best"].sum() == 1).all()
    assert run.history.groupby(["repeat", "fold"]).ngroups == 6
    assert set(run.history["task"]) == {""}


def test_attention_is_the_mean_over_repeats_of_out_of_fold_models(run: Run, ridge_run: Run, world) -> None:
    attention = run.attention
    assert attention is not None
    assert attention.paths == world.table["path"].tolist()
    assert {name: values.shape for name, values in attention.arrays.items()} == {
        "blocks": (60, 3, 16),
        "backbones": (60, 2, 3),
    }
    for values in attention.arrays.values():
        assert values.sum(-1) == pytest.approx(1, abs=1e-5)
    assert ridge_run.attention is None
    system, image = find_system("amtl"), 17
    fold = run.folds["fold"][image]
    seen = []
    for repeat in (0, 1):
        weights = load_file(run.folder / "weights" / f"repeat{repeat}-fold{fold}.safetensors")
        model = system.build(run.config.shapes, run.config.target, run.config.options).eval()
        model.load_state_dict({n.removeprefix("model."): v for n, v in weights.items() if n.startswith("model.")})
        features = world.grid[image : image + 1].astype(np.float32)
        ready = features * weights["scale0"].numpy() + weights["offset0"].numpy()
        seen.append(model.attention(model.primary.weight.new_tensor(ready))["backbones"][0].detach().numpy())
    assert attention.arrays["backbones"][image] == pytest.approx(np.mean(seen, 0), abs=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_does_not(run: Run, plan: Plan, tmp_path: Path) -> None:
    again = train(replace(plan, out=tmp_path / "again"))
    other = train(replace(plan, out=tmp_path / "other", seed=1))
    for name in ("folds.csv", "history.csv", "predictions.csv", "metrics.json"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
    assert other.folds["fold"].tolist() != run.folds["fold"].tolist()


def test_models_of_one_task_each_show_what_each_looked_at(plan: Plan, tmp_path: Path) -> None:
    run = train(replace(plan, system="amtl-single", n_repeats=1, out=tmp_path / "run"))
    assert len(run.weights_files()) == 6
    assert {file.stem for file in run.weights_files()} == {f"repeat0-fold{f}-task{k}" for f in range(3) for k in (0, 1)}
    assert set(run.history["task"]) == {"appeal", "calm"}
    assert run.attention is not None
    assert {name: values.shape for name, values in run.attention.arrays.items()} == {
        "blocks_by_task": (60, 2, 3, 16),
        "backbones": (60, 2, 3),
    }
    for name, values in run.attention.arrays.items():
        assert values.ndim == len(ATTENTION_AXES[name])
        assert values.sum(-1) == pytest.approx(1, abs=1e-5)
        assert not np.allclose(values[:, 0], values[:, 1])
    assert run.predictions[["appeal_predicted", "calm_predicted"]].notna().all(axis=None)


def test_parameters_that_say_something_are_kept(plan: Plan, tmp_path: Path) -> None:
    changes = ("hidden1=4", "hidden2=4", "epochs=1", "last_epochs=1")
    run = train(replace(plan, system="personality-frozen", changes=changes, n_repeats=1, out=tmp_path / "run"))
    assert run.learned is not None
    assert list(run.learned.columns) == ["repeat", "fold", "name", "index", "value"]
    assert run.learned.groupby("fold").ngroups == 3
    assert set(run.history["stage"]) == {0, 1}


# ------------------------------------------------------------------------------------------ kinds of labels


@pytest.fixture(scope="module")
def kinds(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yes or no, one of three moods, and two tags, which follow from the ratings; some are missing."""
    appeal, calm = world.table["appeal"], world.table["calm"]
    liked = (appeal > 4).astype(float)
    liked[::9] = np.nan
    mood = np.where(calm < 3.5, "bad", np.where(calm < 4.5, "fair", "good")).astype(object)
    mood[::7] = ""
    table = pd.DataFrame({"path": world.table["path"], "liked": liked, "mood": mood})
    table["sunny"], table["loud"] = (appeal > 4.5).astype(int), (calm < 4).astype(int)
    file = tmp_path_factory.mktemp("kinds") / "kinds.csv"
    table.to_csv(file, index=False)
    return file


@pytest.mark.parametrize(
    ("kind", "tasks"), [("binary", ["liked"]), ("multiclass", ["mood"]), ("multilabel", ["sunny", "loud"])]
)
@pytest.mark.parametrize(("system", "tensor", "changes"), [
    ("logistic", "whole", ()),
    ("amtl", "grid", SMALL),
    ("amtl-single", "grid", SMALL),
])  # fmt: skip
def test_labels_of_every_kind(plan: Plan, kinds: Path, tmp_path: Path, system, tensor, changes, kind, tasks) -> None:
    labels = read_labels(kinds, tasks=tasks, kind=kind)
    run = train(replace(plan, system=system, tensors=[tensor], changes=changes, labels=labels, group=None,
                        n_repeats=1, out=tmp_path / "run"))  # fmt: skip
    target = run.config.target
    assert (target.kind, target.tasks) == (kind, tuple(tasks))
    assert target.classes == (("bad", "fair", "good") if kind == "multiclass" else ())
    assert set(run.metrics) == set(tasks_of(target))
    outcomes = from_table(run.predictions, target)
    assert outcomes.paths == labels.paths
    assert outcomes.predicted.shape == (1, len(labels.paths), target.n_outputs)
    assert ((outcomes.predicted >= 0) & (outcomes.predicted <= 1)).all()
    if kind == "multiclass":
        assert outcomes.predicted.sum(-1) == pytest.approx(1, abs=1e-4)
        assert set(run.predictions["mood"]) == {"bad", "fair", "good"}
    np.testing.assert_array_equal(outcomes.labels, labels.values)
    figures = evaluate(target, labels.values, outcomes.predicted[0])
    for task in tasks_of(target):
        assert run.metrics[task]["f1"]["mean"] == pytest.approx(figures[task]["f1"], abs=1e-3)
    if system == "logistic":
        assert kind == "multiclass" or run.metrics[tasks[0]]["accuracy"]["mean"] > 0.5
    else:
        assert run.attention is not None
        n_tasks = len(tasks)
        assert run.attention.arrays["backbones"].shape == (len(labels.paths), n_tasks, 3)


def test_a_head_that_does_not_learn_this_kind_says_which_it_does(plan: Plan, kinds: Path, tmp_path: Path) -> None:
    labels = read_labels(kinds, tasks=["mood"])
    with pytest.raises(LabelsError, match=r"'ridge' learns regression labels; these are multiclass \(mood\)"):
        train(replace(plan, system="ridge", changes=(), labels=labels, out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_missing_labels_and_photos_on_one_side_only(world, plan: Plan, tmp_path: Path) -> None:
    table = world.table.copy()
    table.loc[:9, "calm"] = np.nan
    table.loc[10, ["appeal", "calm"]] = np.nan
    table.loc[60] = ["elsewhere.jpg", "trip 0", 3.0, 4.0, "seen"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    joined = []
    labels = read_labels(tmp_path / "labels.csv", scales=["1:7"])
    partial = replace(plan, labels=labels, group=None, out=tmp_path / "run", n_repeats=1)
    run = train(partial, on_join=joined.append)
    assert (joined[0].only_labels, joined[0].only_store) == (["elsewhere.jpg"], [world.table["path"][10]])
    assert run.config.n_images == 59
    assert run.predictions["calm"].isna().sum() == 10
    assert run.predictions["calm_predicted"].notna().all()
    with pytest.raises(LabelsError, match="1 labels without features"):
        train(replace(partial, strict=True, out=tmp_path / "strict"))


def test_labels_of_two_files_that_know_different_photos(world, plan: Plan, tmp_path: Path) -> None:
    world.table[["path", "appeal"]][:40].to_csv(tmp_path / "a.csv", index=False)
    world.table[["path", "calm"]][30:].to_csv(tmp_path / "b.csv", index=False)
    labels = read_labels([tmp_path / "a.csv", tmp_path / "b.csv"], tasks=["appeal", "calm"])
    assert labels.sets.tolist() == [0] * 40 + [1] * 20
    for system, changes in (("linear", BRIEF), ("amtl-single", SMALL)):
        tensor = "grid" if system == "amtl-single" else "whole"
        run = train(replace(plan, system=system, tensors=[tensor], changes=changes, labels=labels, group=None,
                            n_repeats=1, out=tmp_path / system))  # fmt: skip
        assert run.config.labels["files"] == [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
        assert run.predictions[["appeal", "calm"]].notna().sum().tolist() == [40, 30]
        assert run.predictions[["appeal_predicted", "calm_predicted"]].notna().all(axis=None)


def test_metrics_that_are_not_defined_are_null(world, plan: Plan, tmp_path: Path) -> None:
    """Labels that are all equal in the test rows have no correlation with anything, but an error."""
    table = world.table.assign(part=["test"] * 12 + ["train"] * 48)
    table.loc[:11, "calm"] = 3
    table.to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", scales=["1:7"], split="part")
    run = train(replace(plan, labels=labels, out=tmp_path / "run"))
    named = ("mean", "spread", "low", "high", "models_low", "models_high", "baseline")
    assert json.loads((run.folder / "metrics.json").read_text("utf-8")) == run.metrics
    for name in ("pearson", "pearson2", "r2"):
        assert run.metrics["calm"][name] == dict.fromkeys([*named, *(["p"] if name == "pearson" else [])])
    assert run.metrics["calm"]["rmse"]["mean"] > 0


def test_the_interval_of_a_run_is_that_of_a_comparison(plan: Plan, tmp_path: Path) -> None:
    others = {"tensors": ["whole"], "changes": (), "n_repeats": 3, "out": tmp_path / "run"}
    run = train(replace(plan, system="ridge", seed=3, **others))
    for metric in ("pearson", "rmse"):
        for row in compare([run, run], metric=metric).rows:
            if row.run == "mean":
                assert row.value == pytest.approx(run.metrics[row.task][metric]["baseline"])
                continue
            said = run.metrics[row.task][metric]
            assert (row.value, row.low, row.high) == pytest.approx((said["mean"], said["low"], said["high"]), abs=1e-5)


# ------------------------------------------------------------------------------------------ ways of validation


@pytest.mark.parametrize(("system", "tensor", "changes"), [("linear", "whole", BRIEF), ("amtl-single", "grid", SMALL)])
def test_a_hold_out_is_tested_and_then_all_are_learnt(plan: Plan, tmp_path: Path, system, tensor, changes) -> None:
    run = train(replace(plan, system=system, tensors=[tensor], changes=changes,
                        validation=Validation(hold_out=0.25), out=tmp_path / "run"))  # fmt: skip
    assert (run.config.parts, run.config.split) == (("test",), "hold-out of 25%, groups kept together")
    assert run.folds["fold"].value_counts().to_dict() == {"train": 45, "test": 15}
    assert len(run.predictions) == 2 * 15
    assert set(run.predictions["path"]) == set(run.folds["path"][run.folds["fold"] == "test"])
    names = {file.stem for file in (run.folder / "weights").iterdir()}
    tasks = ["-task0", "-task1"] if system == "amtl-single" else [""]
    assert names == {f"repeat{r}-{part}{task}" for r in (0, 1) for part in ("fold0", "all") for task in tasks}
    assert {file.stem for file in run.weights_files()} == {name for name in names if "-all" in name}
    assert set(run.history["fold"]) == {"test", "all"}
    if run.attention is not None:
        tested = (run.folds["fold"] == "test").to_numpy()
        for values in run.attention.arrays.values():
            assert np.isnan(values[~tested]).all()
            assert values[tested].sum(-1) == pytest.approx(1, abs=1e-5)


def test_a_split_that_is_given(world, plan: Plan, run: Run, tmp_path: Path) -> None:
    sides = ["test" if i >= 50 else "val" if i >= 40 else "train" for i in range(60)]
    world.table.assign(side=sides).to_csv(tmp_path / "labels.csv", index=False)
    brief = replace(plan, system="linear", tensors=["whole"], changes=BRIEF, n_repeats=1)
    labels = read_labels(tmp_path / "labels.csv", tasks=["appeal", "calm"], scales=["1:7"], split="side")
    by_column = train(replace(brief, labels=labels, out=tmp_path / "column"))
    assert by_column.config.split == "40 train, 10 val, 10 test of the split column of the labels"
    assert by_column.predictions["path"].tolist() == world.table["path"][50:].tolist()
    assert (by_column.folder / "weights" / "repeat0-fold0.safetensors").is_file()

    world.table[["path"]].assign(fold=[f"part {i % 2}" for i in range(60)]).to_csv(tmp_path / "split.csv", index=False)
    plain = read_labels(world.labels, scales=["1:7"])
    by_file = replace(brief, labels=plain, validation=Validation(split=tmp_path / "split.csv"), out=tmp_path / "file")
    assert train(by_file).config.parts == ("part 0", "part 1")
    by_run = train(replace(brief, validation=Validation(split=run.folder), out=tmp_path / "run"))
    assert by_run.folds["fold"].tolist() == run.folds["fold"].tolist()


# ------------------------------------------------------------------------------------------ sweeps


def test_a_sweep_leaves_a_run_for_every_combination(plan: Plan, tmp_path: Path) -> None:
    brief = replace(plan, system="linear", tensors=["whole"], changes=BRIEF, n_repeats=1)
    asked = replace(brief, sweep={"lr": ["0.01", "1e-3"], "gain": ["1", "0.5"]}, out=tmp_path / "all")
    runs = sweep(asked).runs
    names = ["lr=0.01,gain=1", "lr=0.01,gain=0.5", "lr=1e-3,gain=1", "lr=1e-3,gain=0.5"]
    assert [run.folder.name for run in runs] == names
    assert sorted(each.name for each in (tmp_path / "all").iterdir()) == sorted(names)
    assert [(run.config.options["lr"], run.config.options["gain"]) for run in runs] == [
        (0.01, 1), (0.01, 0.5), (0.001, 1), (0.001, 0.5)
    ]  # fmt: skip
    alone = train(replace(brief, changes=(*BRIEF, "lr=1e-3", "gain=0.5"), out=tmp_path / "alone"))
    for name in ("history.csv", "predictions.csv", "metrics.json"):
        assert (alone.folder / name).read_bytes() == (runs[3].folder / name).read_bytes()
    with pytest.raises(UnknownSystemError, match=r"is for heads\.sweep"):
        train(replace(asked, out=tmp_path / "one"))


def test_a_sweep_of_which_some_runs_are_complete_trains_the_others(plan: Plan, tmp_path: Path) -> None:
    asked = replace(plan, system="linear", tensors=["whole"], changes=BRIEF, n_repeats=1, out=tmp_path / "all")
    sweep(replace(asked, sweep={"lr": ["0.001"]}))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "all" / "lr=0.001").iterdir()}
    runs = sweep(replace(asked, sweep={"lr": ["0.001", "0.01"]})).runs
    assert [run.config.options["lr"] for run in runs] == [0.001, 0.01]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "all" / "lr=0.001").iterdir()} == before
    with pytest.raises(RunError, match=r"lr=0\.001 is a run with other seed, folds; choose another --out"):
        sweep(replace(asked, sweep={"lr": ["0.001", "0.01"]}, seed=1))


def test_a_combination_that_diverges_leaves_no_run_and_ends_no_other(plan: Plan, tmp_path: Path) -> None:
    asked = replace(plan, system="linear", tensors=["whole"], changes=BRIEF, n_repeats=1, out=tmp_path / "all")
    swept = sweep(replace(asked, sweep={"lr": ["1e30", "0.01"]}))
    assert [run.folder.name for run in swept.runs] == ["lr=0.01"]
    assert list(swept.diverged) == [tmp_path / "all" / "lr=1e30"]
    assert "is not a number" in swept.diverged[tmp_path / "all" / "lr=1e30"]
    assert [each.name for each in (tmp_path / "all").iterdir()] == ["lr=0.01"]
    again = sweep(replace(asked, sweep={"lr": ["1e30", "0.01"]}))  # the one that is complete is kept, and counts
    assert ([run.folder.name for run in again.runs], list(again.diverged)) == (["lr=0.01"], list(swept.diverged))
    with pytest.raises(DivergedError, match="is not a number"):
        sweep(replace(asked, sweep={"lr": ["1e30", "1e29"]}, out=tmp_path / "none"))


def test_a_combination_that_explodes_has_diverged_too(plan: Plan, tmp_path: Path) -> None:
    """Its loss is a number still, but no choice."""
    asked = replace(plan, system="linear", tensors=["whole"], changes=BRIEF, n_repeats=1, out=tmp_path / "all")
    swept = sweep(replace(asked, sweep={"lr": ["10", "0.01"]}))
    assert [run.folder.name for run in swept.runs] == ["lr=0.01"]
    assert [each.name for each in (tmp_path / "all").iterdir()] == ["lr=0.01"]
    assert "times what saying the mean of every photo loses" in swept.diverged[tmp_path / "all" / "lr=10"]


def test_a_complete_run_of_the_same_plan_is_kept_if_asked(plan: Plan, run: Run) -> None:
    before = (run.folder / "config.json").stat().st_mtime_ns
    again = train(replace(plan, keep=True))
    assert (again.folder / "config.json").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="is a run with other options; choose another --out, or remove it"):
        train(replace(plan, keep=True, changes=(*SMALL, "lr=0.5")))


# ------------------------------------------------------------------------------------------ refusals


def test_a_folder_that_exists_is_refused_and_left_alone(run: Run, plan: Plan) -> None:
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(RunError, match="exists already"):
        train(plan)
    assert (run.folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epoch=3", "no option 'epoch'; did you mean 'epochs'"),
        ("epochs", "not of the form NAME=VALUE"),
        ("epochs=3.5", r"'epochs' is an int \(default 60\); found '3\.5'"),
        ("standardise=maybe", "found 'maybe'"),
        ("epochs=0", "'epochs' is 1 or more; found '0'"),
        ("batch=0", "'batch' is 1 or more"),
        ("dropout=1.5", "'dropout' is from 0 to 0.99"),
        ("lr=-1", "'lr' is 0 or more"),
        ("lr=nan", "'lr' is 0 or more"),
        ("optimiser=adagrad", "'optimiser' is one of adam, adamw, sgd; found 'adagrad'"),
    ],
)
def test_options_that_make_no_sense(plan: Plan, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UnknownSystemError, match=message):
        train(replace(plan, changes=[change], out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), TrainingError, "--device cpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), TrainingError, "less with --memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), TrainingError, "or a smaller --set batch="),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            TrainingError,
            "^cpu computes no more: ",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError, "^mat1"),
    ],
)
def test_memory_that_is_full_is_told_from_other_errors(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(experiment, "_train_models", fail)
    with pytest.raises(kind, match=said):
        train(replace(plan, out=tmp_path / "run"))


def test_a_device_that_is_lost_keeps_what_was_trained_and_the_same_plan_goes_on(
    plan: Plan, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "n_threads", lambda: 1)
    predict, models = Learner.predict, iter(range(9))

    def lose(learner: Learner, group: Any) -> Any:
        if next(models) == 1:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be ...")
        return predict(learner, group)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "predict", lose)
        with pytest.raises(
            TrainingError, match=r"^cpu computes no more: .* failure; what was trained is kept"
        ) as error:
            train(replace(plan, out=tmp_path / "run"))
    assert "\n" not in str(error.value)
    told: list[int] = []
    again = train(replace(plan, out=tmp_path / "run"), on_resume=lambda done, total: told.append(done))
    assert told == [1]
    pd.testing.assert_frame_equal(again.predictions, run.predictions)


def test_what_is_noted_of_the_training_is_told_and_kept(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_models, said = experiment._train_models, "the memory of cuda:0 was too small for 6 models at a time"

    def noting(*args: Any) -> Any:
        args[-1](said)
        return train_models(*args)

    monkeypatch.setattr(experiment, "_train_models", noting)
    told: list[str] = []
    assert train(replace(plan, out=tmp_path / "run", n_repeats=1), on_note=told.append).notes[-1] == said
    assert told == [said]


def test_an_unknown_head_is_answered_with_a_suggestion(plan: Plan) -> None:
    with pytest.raises(UnknownSystemError, match="unknown head 'amlt'; did you mean 'amtl'"):
        train(replace(plan, system="amlt"))


def test_more_folds_than_groups(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="13 folds need at least as many groups; there are 12"):
        train(replace(plan, validation=Validation(n_folds=13), out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ which tensors


@pytest.fixture
def several(tmp_path: Path, write_store) -> Callable[..., featstore.Store]:
    def make(**shapes: tuple[int, ...]) -> featstore.Store:
        values: dict[str, Any] = {name: np.ones(shape, np.float16) for name, shape in shapes.items()}
        write_store(tmp_path / "s.zarr", ["a.jpg"], values)
        return featstore.open(tmp_path / "s.zarr")

    return make


STACK, CONCAT = (1, 2, 4, 8), (1, 8)


def chosen(store: featstore.Store, system: str, *names: str) -> list[str]:
    return [tensor.name for tensor in choose_tensors(store, find_system(system), names)]


def test_the_tensor_of_the_heads_own_name_comes_first(several) -> None:
    store = several(amtl=STACK, fine=STACK, whole=CONCAT)
    assert chosen(store, "amtl") == chosen(store, "amtl-swapped") == ["amtl"]
    assert chosen(store, "amtl", "fine") == ["fine"]
    assert chosen(store, "mtl") == ["whole"]
    assert chosen(store, "linear") == ["whole"]
    assert chosen(store, "linear", "fine", "whole") == ["fine", "whole"]


@pytest.mark.parametrize(
    ("shapes", "head", "names", "message"),
    [
        ({"a": STACK, "b": STACK}, "amtl", [], r"has several \(it has: a \(stack\), b \(stack\)\); .*--tensor"),
        ({"a": CONCAT}, "amtl", [], r"has no such tensor \(it has: a \(concat\)\); extract one"),
        ({"amtl": CONCAT}, "amtl", [], "has no such tensor"),
        ({"a": STACK, "b": CONCAT}, "amtl", ["b"], "tensor 'b' is a concat"),
        ({"a": STACK, "b": STACK}, "amtl", ["a", "b"], r"reads 1 tensors \(stack\); 2 are named: a, b"),
        ({"grid": STACK}, "amtl", ["gird"], "no tensor 'gird'; did you mean 'grid'"),
    ],
)
def test_tensors_that_cannot_be_chosen(several, shapes, head: str, names: list[str], message: str) -> None:
    with pytest.raises(FeaturesError, match=message):
        chosen(several(**shapes), head, *names)


def test_several_tensors_are_read_side_by_side(plan: Plan, tmp_path: Path) -> None:
    both = train(replace(plan, system="linear", tensors=["grid", "whole"], changes=BRIEF, out=tmp_path / "run"))
    assert both.config.shapes == ((3, 16, 24), (60,))
    assert [tensor["name"] for tensor in both.config.tensors] == ["grid", "whole"]
    weights = load_file(both.weights_files()[0])
    assert weights["model.linear.weight"].shape == (2, 3 * 16 * 24 + 60)
