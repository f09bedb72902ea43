"""A finished run on images of another store: the same features by identity, honest about what it has seen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import featstore
from heads import Plan, Run, Validation, predict, read_labels, train
from heads.errors import FeaturesError, LabelsError, RunError, TrainingError
from heads.inference.metrics import evaluate as figures_of
from heads.labels.target import ALL
from heads.runs.applying import evaluate
from heads.systems import find_system
from heads.training.learner import assemble

SMALL = ("attention=4", "hidden=4", "epochs=2")
WIDTHS = [24, 16, 20]


def learn(world, out: Path, system: str, *changes: str, labels: Path | None = None, **others) -> Run:
    facts = {"validation": Validation(n_folds=3), "n_repeats": 1, "device": "cpu", **others}
    table = read_labels(labels, tasks=["mood"]) if labels else read_labels(world.labels, scales=["1:7"])
    return train(Plan(system=system, store=world.store, labels=table, out=out, changes=changes, **facts))


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    moods = world.table[["path"]].assign(mood=np.where(world.table["calm"] > 4, "good", "bad"))
    moods.iloc[::5, 1] = "fair"
    moods.to_csv(folder / "moods.csv", index=False)
    return {
        "amtl": learn(world, folder / "amtl", "amtl", *SMALL),
        "single": learn(world, folder / "single", "amtl-single", *SMALL),
        "ridge": learn(world, folder / "ridge", "ridge", tensors=["whole"]),
        "moods": learn(world, folder / "moods", "logistic", labels=folder / "moods.csv", tensors=["whole"]),
        "held": learn(
            world, folder / "held", "linear", "epochs=3", tensors=["whole"], validation=Validation(hold_out=0.25)
        ),
    }


def by_hand(run: Run, world) -> np.ndarray:
    """The mean over all models, each a model as its file says."""
    config = run.config
    features = {"grid": world.grid, "whole": world.whole}[str(config.tensors[0]["name"])]
    said: dict[int, list[np.ndarray]] = {}
    for file in run.weights_files():
        task = int(file.stem[-1]) if "task" in file.stem else None
        target = config.target if task is None else config.target.only(task)
        model = assemble(find_system(config.system), config.shapes, config.layouts, target, config.options).eval()
        model.load_state_dict(load_file(file))
        with torch.inference_mode():
            outputs = model(torch.from_numpy(features).float())
        outputs = outputs.softmax(1) if config.target.kind == "multiclass" else outputs
        for column, values in enumerate(outputs.numpy().T):
            said.setdefault(column if task is None else task, []).append(values)
    mean = np.stack([np.mean(said[column], 0) for column in sorted(said)], 1)
    return mean if config.target.kind == "multiclass" else (mean + 0.5) * 6 + 1


# ------------------------------------------------------------------------------------------ predictions


@pytest.mark.parametrize("memory_bytes", [10**9, 1], ids=["in memory", "streamed"])
@pytest.mark.parametrize("name", ["amtl", "single", "ridge", "moods", "held"])
def test_predictions_of_a_store_are_the_mean_over_all_models(runs, world, name: str, memory_bytes: int) -> None:
    run = runs[name]
    told: list[tuple[str, int, int]] = []
    table = predict(
        run, world.store, device="cpu", memory_bytes=memory_bytes, on_progress=lambda *one: told.append(one)
    )
    columns = ["mood_predicted", "mood_is_bad", "mood_is_fair", "mood_is_good"]
    columns = columns if name == "moods" else ["appeal_predicted", "calm_predicted"]
    assert list(table.columns) == ["path", *columns, "trained"]
    assert table["trained"].all()  # of the hold-out as well, whose models have learnt from all photos
    assert table["path"].tolist() == world.table["path"].tolist()
    numbers = table[columns[1:] if name == "moods" else columns]
    assert numbers.to_numpy() == pytest.approx(by_hand(run, world), abs=1e-4)
    if name == "moods":
        assert table["mood_predicted"].tolist() == [str(each).rpartition("_")[2] for each in numbers.idxmax(axis=1)]
    assert told[-1] == ("predict", 60, 60)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "out of memory on cpu: CUDA out of mem",
        ),
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel"),
            "cpu computes no more: CUDA error",
        ),
    ],
)
def test_a_device_that_fails_while_it_predicts_says_so_in_a_line(
    runs, world, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("heads.runs.applying.look", fail)
    with pytest.raises(TrainingError, match=f"^{said}.*say --device cpu$"):
        predict(runs["amtl"], world.store)


def test_the_models_of_all_rows_are_those_that_predict(runs, world, tmp_path: Path) -> None:
    shutil.copytree(runs["held"].folder, tmp_path / "run")
    expected = predict(runs["held"], world.store, device="cpu")
    weights = tmp_path / "run" / "weights"
    (weights / "repeat0-fold0.safetensors").unlink()
    pd.testing.assert_frame_equal(predict(Run(tmp_path / "run"), world.store, device="cpu"), expected)
    (weights / "repeat0-all.safetensors").unlink()
    with pytest.raises(RunError, match="weights lacks 1 of 1 models: repeat0-all; copy"):
        predict(Run(tmp_path / "run"), world.store)


@pytest.mark.parametrize("name", ["amtl", "single"])
def test_the_mean_of_the_models_that_are_left_is_not_taken_for_that_of_all(
    runs, world, tmp_path: Path, name: str
) -> None:
    shutil.copytree(runs[name].folder, tmp_path / "run")
    first, *others = runs[name].weights_files()
    (tmp_path / "run" / "weights" / first.name).unlink()
    with pytest.raises(RunError, match=f"weights lacks 1 of {len(others) + 1} models: {first.stem}; copy"):
        predict(Run(tmp_path / "run"), world.store, device="cpu")


def test_the_same_features_under_another_name_will_do(runs, world, write_store, tmp_path: Path) -> None:
    names = [f"new {i}.jpg" for i in range(5)]
    write_store(tmp_path / "s.zarr", names, {"other": world.whole[:5]}, widths=WIDTHS)
    expected = predict(runs["ridge"], world.store, device="cpu")[:5]
    found = predict(runs["ridge"], tmp_path / "s.zarr", device="cpu")
    assert found["path"].tolist() == names
    assert found["appeal_predicted"].to_numpy() == pytest.approx(expected["appeal_predicted"].to_numpy(), abs=1e-4)


def test_features_of_other_weights_are_refused_and_named(runs, world, write_store, tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", list("abcde"), {"grid": world.grid[:5]}, widths=WIDTHS, weights="second")
    wanted = [segment.hash for segment in featstore.open(world.store)["grid"].layout.segments]
    held = [segment.hash for segment in featstore.open(tmp_path / "s.zarr")["grid"].layout.segments]
    with pytest.raises(
        FeaturesError, match=rf"holds no tensor of the features .*net0 {wanted[0]}.*it holds grid: net0 {held[0]}"
    ):
        predict(runs["amtl"], tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("how", "said"), [("torn", "cannot be read"), ("of another head", "are not of 'ridge' as this")]
)
def test_damaged_weights_are_named(runs, world, tmp_path: Path, how: str, said: str) -> None:
    shutil.copytree(runs["ridge"].folder, tmp_path / "run")
    file = tmp_path / "run" / "weights" / "repeat0-fold1.safetensors"
    if how == "torn":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        save_file({"something": torch.zeros(3)}, file)
    with pytest.raises(RunError, match=rf"repeat0-fold1\.safetensors {said}"):
        predict(Run(tmp_path / "run"), world.store)


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        Run(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        Run(tmp_path / "none")
    (tmp_path / "run.part").mkdir()
    with pytest.raises(RunError, match=r"is not finished; `heads resume .*run` goes on with it"):
        Run(tmp_path / "run")


# ------------------------------------------------------------------------------------------ evaluation


@pytest.fixture
def elsewhere(world, write_store, tmp_path: Path) -> tuple[Path, Path]:
    """A store of eight photos that the runs have seen, under their names, and eight that they have not; labels."""
    old, new = world.table["path"][:8].tolist(), [f"new {i}.jpg" for i in range(8)]
    values = np.concatenate([world.whole[:8], world.whole[20:28] + np.float16(0.1)])
    write_store(tmp_path / "s.zarr", [*old, *new], {"whole": values}, widths=WIDTHS)
    table = pd.DataFrame({"path": [*old, *new], "appeal": np.linspace(1, 7, 16), "calm": np.linspace(6, 2, 16)})
    table.iloc[12, 2] = np.nan
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "s.zarr", tmp_path / "labels.csv"


def test_photos_that_the_run_has_seen_are_told_by_their_bytes_and_left_out(runs, elsewhere) -> None:
    store, file = elsewhere
    labels = read_labels(file, scales=["1:7"])
    fresh = evaluate(runs["ridge"], store, labels, device="cpu")
    every = evaluate(runs["ridge"], store, labels, device="cpu", seen_too=True)
    assert (fresh.n_images, fresh.n_seen) == (8, 8)
    assert (every.n_images, every.n_seen) == (16, 0)
    assert fresh.table["path"].tolist() == [f"new {i}.jpg" for i in range(8)]
    said = predict(runs["ridge"], store, device="cpu")
    for found, rows in ((fresh, slice(8, 16)), (every, slice(0, 16))):
        scaled = [
            (each - 1) / 6 - 0.5
            for each in (labels.values[rows], said.iloc[rows][["appeal_predicted", "calm_predicted"]].to_numpy(float))
        ]
        expected = figures_of(labels.target, *scaled)
        for task in ("appeal", "calm"):
            for metric in ("pearson", "rmse"):
                assert found.metrics[task][metric]["mean"] == pytest.approx(expected[task][metric], abs=1e-4)
            assert found.metrics[task]["pearson"]["spread"] is None
    assert fresh.table["calm"].isna().sum() == 1


@pytest.mark.parametrize("group", ["name", "folder", "source"])
def test_photos_of_a_group_that_the_run_has_learnt_from_are_left_out(
    world, write_store, tmp_path: Path, group: str
) -> None:
    """By name or folder without anybody saying so; by a column if the labels of the new photos name it, too."""
    table = world.table.assign(path=[f"trip {i // 5}/beach-{i // 5}-{i % 5}.jpg" for i in range(60)])
    table["path"] = [path.replace("-", " " if group == "folder" else "-") for path in table["path"]]
    table.to_csv(tmp_path / "old.csv", index=False)
    write_store(tmp_path / "old.zarr", table["path"].tolist(), {"whole": world.whole}, widths=WIDTHS)
    labels = read_labels(tmp_path / "old.csv", tasks=["appeal", "calm"], scales=["1:7"], group=group)
    run = train(
        Plan(
            system="ridge", store=tmp_path / "old.zarr", labels=labels, out=tmp_path / "run", tensors=["whole"],
            validation=Validation(n_folds=3), n_repeats=1, group=group, device="cpu",
        )
    )  # fmt: skip
    akin = [f"trip {i}/beach-{i}-9.jpg" for i in range(3)]
    new = [f"other {i}/lake-{i}-1.jpg" for i in range(6)]
    fresh = pd.DataFrame({"path": [*akin, *new], "appeal": np.linspace(1, 7, 9), "calm": np.linspace(6, 2, 9)})
    fresh["source"] = [*(f"trip {i}" for i in range(3)), *("elsewhere",) * 6]
    fresh.to_csv(tmp_path / "new.csv", index=False)
    write_store(tmp_path / "new.zarr", fresh["path"].tolist(), {"whole": world.whole[20:29]}, widths=WIDTHS)
    asked = {"tasks": ["appeal", "calm"], "scales": ["1:7"], "group": "source" if group == "source" else None}
    labels = read_labels(tmp_path / "new.csv", **asked)
    found = evaluate(run, tmp_path / "new.zarr", labels, device="cpu")
    assert (found.n_images, found.n_seen, found.n_akin) == (6, 0, 3)
    assert found.table["path"].tolist() == new
    assert "3 left out of groups that it was trained on" in repr(found)
    every = evaluate(run, tmp_path / "new.zarr", labels, device="cpu", seen_too=True)
    assert (every.n_images, every.n_akin) == (9, 0)
    assert not predict(run, tmp_path / "new.zarr", device="cpu")["trained"].any()  # their bytes are new
    only = read_labels(fresh.iloc[:3], **asked)
    with pytest.raises(LabelsError, match=r"trained on all 3 labelled images of .*, or on others of their groups"):
        evaluate(run, tmp_path / "new.zarr", only, device="cpu")


def test_photos_that_only_tested_a_run_have_not_been_learnt_from(runs, world, tmp_path: Path) -> None:
    """Of a split whose models learn from its training side alone, that is: after a hold-out, all is learnt."""
    sides = ["test" if i >= 50 else "train" for i in range(60)]
    world.table.assign(side=sides).to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", tasks=["appeal", "calm"], scales=["1:7"], split="side")
    run = train(
        Plan(
            system="ridge", store=world.store, labels=labels, out=tmp_path / "run", tensors=["whole"], n_repeats=1,
            device="cpu",
        )
    )  # fmt: skip
    assert predict(run, world.store, device="cpu")["trained"].tolist() == [side == "train" for side in sides]
    found = evaluate(run, world.store, read_labels(world.labels, scales=["1:7"]), device="cpu")
    assert (found.n_images, found.n_seen) == (10, 50)
    assert predict(runs["held"], world.store, device="cpu")["trained"].all()


def test_an_evaluation_has_the_baseline_of_what_the_run_has_learnt(runs, elsewhere) -> None:
    store, file = elsewhere
    run, labels = runs["ridge"], read_labels(file, scales=["1:7"])
    found = evaluate(run, store, labels, device="cpu")
    learnt = run.predictions.groupby("path").first()["appeal"].mean()
    truth = found.table["appeal"]
    error = np.sqrt((((truth - learnt) / 6) ** 2).mean())
    assert found.metrics["appeal"]["rmse"]["baseline"] == pytest.approx(error, abs=1e-6)
    assert "of these models, on other photos" in repr(found)


def test_nothing_but_what_was_seen_is_no_evaluation(runs, world) -> None:
    labels = read_labels(world.labels, scales=["1:7"])
    with pytest.raises(LabelsError, match=r"was trained on all 60 labelled images .*--seen"):
        evaluate(runs["ridge"], world.store, labels, device="cpu")
    assert evaluate(runs["ridge"], world.store, labels, device="cpu", seen_too=True).n_images == 60


def test_labels_of_other_tasks_are_refused(runs, elsewhere, tmp_path: Path) -> None:
    store, file = elsewhere
    pd.read_csv(file).rename(columns={"calm": "peace"}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(
        LabelsError, match=r"has regression labels peace; .*ridge predicts regression labels appeal, calm"
    ):
        evaluate(runs["ridge"], store, read_labels(tmp_path / "other.csv", tasks=["peace"]))


def test_some_of_the_tasks_can_be_evaluated(runs, elsewhere) -> None:
    store, file = elsewhere
    both = evaluate(runs["ridge"], store, read_labels(file, tasks=["appeal", "calm"], scales=["1:7"]), device="cpu")
    one = evaluate(runs["ridge"], store, read_labels(file, tasks=["calm"], scales=["1:7"]), device="cpu")
    assert list(one.metrics) == ["calm"]
    for metric, value in one.metrics["calm"].items():
        assert value["mean"] == pytest.approx(both.metrics["calm"][metric]["mean"])
    assert "appeal_predicted" not in one.table
    said = both.table.set_index("path")["calm_predicted"][one.table["path"]]
    # One column is multiplied in another order than two are, on some processors.
    np.testing.assert_allclose(one.table["calm_predicted"], said, rtol=1e-6)


def test_classes_that_do_not_occur_are_still_classes(runs, elsewhere, tmp_path: Path) -> None:
    store, file = elsewhere
    paths = pd.read_csv(file)[["path"]]
    paths.assign(mood=["bad", "good"] * 8).to_csv(tmp_path / "two.csv", index=False)
    target = runs["moods"].config.target
    labels = read_labels(tmp_path / "two.csv", tasks=["mood"], like=target)
    assert labels.target == target
    found = evaluate(runs["moods"], store, labels, device="cpu")
    assert set(found.table["mood"]) == {"bad", "good"}
    paths.assign(mood=["bad", "odd"] * 8).to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(LabelsError, match=r"'mood' of .*odd\.csv has 'odd', which the run does not know"):
        read_labels(tmp_path / "odd.csv", tasks=["mood"], like=target)


def test_labels_of_one_cell_are_evaluated_as_the_run_knows_them(elsewhere, world, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from heads.cli import app

    store, file = elsewhere
    world.table[["path"]].assign(mood=["joy|fear", "fear", "|", "joy"] * 15).to_csv(tmp_path / "a.csv", index=False)
    pd.read_csv(file)[["path"]].assign(mood=["joy", "|"] * 8).to_csv(tmp_path / "b.csv", index=False)
    learn(world, tmp_path / "run", "linear", "epochs=2", tensors=["whole"], labels=tmp_path / "a.csv")
    asked = ["evaluate", str(tmp_path / "run"), str(store), "--labels", str(tmp_path / "b.csv"), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.stderr
    assert set(json.loads(result.stdout)["metrics"]) == {"joy", "fear", ALL}


def test_classes_are_evaluated(runs, elsewhere, tmp_path: Path) -> None:
    store, file = elsewhere
    table = pd.read_csv(file)[["path"]].assign(mood=["bad", "fair", "good", "good"] * 4)
    table.to_csv(tmp_path / "moods.csv", index=False)
    found = evaluate(runs["moods"], store, read_labels(tmp_path / "moods.csv", tasks=["mood"]), device="cpu")
    right = found.table["mood"] == found.table["mood_predicted"]
    assert found.metrics["mood"]["accuracy"]["mean"] == pytest.approx(right.mean())
    assert found.n_images == 8
