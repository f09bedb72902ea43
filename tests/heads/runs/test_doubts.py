"""Whether a run learnt anything: what is said of real runs, those that did and those that did not."""

from dataclasses import replace
from pathlib import Path

import pytest

from heads import Plan, Run, read_labels, train
from heads.runs.doubts import doubt


@pytest.fixture(scope="module")
def plan(world, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(
        system="linear",
        store=world.store,
        labels=read_labels(world.labels, scales="1:7"),
        out=tmp_path_factory.mktemp("runs") / "linear",
        tensors=["whole"],
        changes=("lr=1e-3", "epochs=20"),
        n_repeats=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def good(plan: Plan) -> Run:
    return train(plan)


def test_nothing_is_said_of_a_run_that_learnt(good: Run, plan: Plan) -> None:
    assert good.doubt == ""
    assert train(replace(plan, system="ridge", changes=(), out=plan.out.with_name("ridge"))).doubt == ""


def test_a_rate_that_is_too_high_to_learn_by_is_told_from_the_losses(plan: Plan) -> None:
    changes = ("lr=0.05", "epochs=9", "patience=9")
    run = train(replace(plan, changes=changes, out=plan.out.with_name("high")))
    assert run.doubt.startswith("5 of 5 models learnt little or nothing: the loss on the inner photos never fell below")
    assert run.doubt.endswith(". Let the inner photos choose another rate: --sweep lr=0.0005,0.005,0.5,5.")
    assert run.doubt in repr(run)


def test_without_inner_photos_the_training_photos_tell_and_the_sweep_is_given_some(plan: Plan) -> None:
    changes = ("lr=0.05", "epochs=1", "inner=0", "patience=0")
    run = train(replace(plan, changes=changes, out=plan.out.with_name("without")))
    assert "the loss on the training photos never fell below" in run.doubt
    assert run.doubt.endswith("--set inner=0.15.")


def test_a_solved_head_that_says_the_same_of_every_photo_is_told_to_try_other_features(plan: Plan) -> None:
    run = train(replace(plan, system="ridge", changes=("alpha=1e7",), out=plan.out.with_name("flat")))
    assert run.doubt == (
        "Predictions of appeal, calm hardly vary (standard deviation below 5% of that of the labels). "
        "Try other features (--tensor)."
    )


def test_a_few_models_that_failed_are_passed_over_and_so_is_a_history_of_before_it_was_noted(good: Run) -> None:
    history = good.history.assign(baseline_loss=10.0)
    history.loc[history["fold"].isin(["0", "1"]), "baseline_loss"] = 0.0
    assert doubt(good.config, good.predictions, history) == ""
    history.loc[history["fold"] == "2", "baseline_loss"] = 0.0
    assert "3 of 5 models" in doubt(good.config, good.predictions, history)
    assert doubt(good.config, good.predictions, history.drop(columns="baseline_loss")) == ""


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_classes_whose_probabilities_hardly_vary_are_told(world, plan: Plan, tmp_path: Path, kind: str) -> None:
    table = world.table[["path"]].assign(mood=(world.table["appeal"] > 4).map({True: "yes", False: "no"}))
    if kind == "multiclass":
        table["mood"] = table["mood"].map({"yes": "A", "no": "B"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", tasks=["mood"], kind=kind)
    asked = replace(plan, labels=labels)
    assert train(replace(asked, out=tmp_path / "good", changes=("lr=0.01", "epochs=20"))).doubt == ""
    still = train(replace(asked, out=tmp_path / "still", changes=("lr=1e-7", "epochs=1")))
    assert "redictions of mood hardly vary" in still.doubt
