"""The papers' recipes: from small photos and tables to the paper's table, with tiny untrained networks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from heads import Run
from heads.systems.aenet import STREAMS
from pipelines import mediaeval, visual_interest
from pipelines.__main__ import app

N_PHOTOS = 20
NAMES = [f"{i:02}.jpg" for i in range(N_PHOTOS)]
NETWORKS = ["--backbones", "test_resnet,test_efficientnet", "--weights", "random:0"]
BRIEF = ["--device", "cpu", "--set", "epochs=1", "--repeats", "2"]
EMOTIONS = [f"e{i}" for i in range(7)]

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, the tables of the three papers, and a store that fills as the recipes ask."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for name in NAMES:
        pixels = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((120, 80)).save(folder / "photos" / name)
    ratings = rng.integers(2, 7, (N_PHOTOS, 2))
    rows = [
        {
            "path": name,
            "rater": rater,
            "complexity": ratings[i, 0] + rater % 2,
            "General_Interest": ratings[i, 1],
            "calm": 4,
        }
        for i, name in enumerate(NAMES)
        for rater in range(3)
    ]
    raters = pd.DataFrame(rows)
    raters["calm"] = 3 + np.arange(len(raters)) % 4
    raters.to_csv(folder / "raters.csv", index=False)
    raters.drop(columns="rater").groupby("path").mean().to_csv(folder / "ratings.csv")
    moods = {"mood": ["bad", "fair", "good", "good"] * 5, **{e: rng.permutation([0, 1] * 10) for e in EMOTIONS}}
    pd.DataFrame({"path": NAMES, **moods}).to_csv(folder / "moods.csv", index=False)
    pd.DataFrame({"path": NAMES[:12], "score": rng.random(12)}).to_csv(folder / "scores.csv", index=False)
    traits = {trait: rng.uniform(-1, 1, 10) for trait in "OCEAN"}
    pd.DataFrame({"path": NAMES[10:], **traits}).to_csv(folder / "traits.csv", index=False)
    return folder


@pytest.fixture
def call(desk: Path, tmp_path: Path) -> Call:
    """A recipe as a user types it, and what it prints as JSON."""

    def run(recipe: str, *arguments: object, networks: list[str] = NETWORKS, out: Path = tmp_path / "out") -> Any:
        result = invoke(desk, recipe, *arguments, "--json", networks=networks, out=out)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def invoke(desk: Path, recipe: str, *arguments: object, networks: list[str], out: Path) -> Any:
    store = ["--photos", desk / "photos", "--store", desk / f"{recipe}.zarr", "--out", out]
    return CliRunner().invoke(app, [str(each) for each in (recipe, *store, *networks, *BRIEF, *arguments)])


def within_folds(table: pd.DataFrame, task: str, correlation: Callable[..., Any]) -> float:
    """A correlation within each fold, averaged over the folds by Fisher's z."""
    folds = [fold for _, fold in table.groupby("fold")]
    z = [np.arctanh(correlation(fold[task], fold[f"{task}_predicted"]).statistic) for fold in folds]
    return float(np.tanh(np.average(z, weights=[len(fold) - 3 for fold in folds])))


def figure(found: dict[str, Any], **of: str) -> dict[str, Any]:
    (one,) = [each for each in found["figures"] if all(each[name] == value for name, value in of.items())]
    return one


# ------------------------------------------------------------------------------------------ visual interest


@pytest.mark.slow
def test_visual_interest_has_our_figures_beside_the_published(desk: Path, call: Call, tmp_path: Path) -> None:
    systems = "amtl,amtl-single,mtl,amtl-swapped"
    found = call("visual-interest", "--labels", desk / "ratings.csv", "--folds", 2, "--systems", systems)
    assert len(found["figures"]) == 4 * 3 * 3
    for system, published in (("amtl", 0.63), ("amtl-single", 0.60), ("mtl", 0.50), ("amtl-swapped", None)):
        run = Run(tmp_path / "out" / f"{system}-mean")
        assert (run.folder / "report.html").is_file()
        by_repeat = [
            within_folds(table, "General_Interest", pearsonr) for _, table in run.predictions.groupby("repeat")
        ]
        ours = figure(found, system=system, task="General_Interest", metric="pearson")
        assert ours["mean"] == pytest.approx(np.tanh(np.mean(np.arctanh(by_repeat))), abs=1e-4)
        assert ours["spread"] == pytest.approx(np.std(by_repeat, ddof=1), abs=1e-4)
        assert ours["low"] <= ours["high"]
        assert ours["published"] == published
    assert figure(found, system="amtl", task="complexity", metric="rmse")["published"] == 0.09
    assert figure(found, system="amtl", task="calm", metric="rmse")["published"] is None
    assert Run(tmp_path / "out" / "mtl-mean").config.tensors[0]["segments"][0]["name"] == "test_resnet:max"
    said = "\n".join(found["differences"])
    for told in (
        "backbones: test_resnet, test_efficientnet; the paper has inception_v3, legacy_xception, resnet50, densenet201",
        "weights: random, untrained, of test_resnet",
        "photos: 20; the paper has 1,005",
        "options changed: epochs=1",
        "trained 2 times, not 5",
        "ours, not the paper's: attention=128",
        "folds: 2; the paper has 5",
    ):
        assert told in said, told


def test_amtl_learns_the_mean_and_the_median_of_the_raters(desk: Path, call: Call, tmp_path: Path) -> None:
    labels = ["--labels", desk / "raters.csv", "--aggregate", "--folds", 2]
    found = call("visual-interest", *labels, "--systems", "amtl")
    raters = pd.read_csv(desk / "raters.csv").groupby("path")["complexity"]
    for way, published in (("mean", 0.56), ("median", 0.44)):
        table = Run(tmp_path / "out" / f"amtl-{way}").predictions.query("repeat == 0").set_index("path")
        pd.testing.assert_series_equal(table["complexity"].sort_index(), raters.agg(way), atol=1e-4, check_dtype=False)
        assert figure(found, labels=way, task="complexity", metric="pearson")["published"] == published


def test_a_table_as_the_papers(desk: Path, tmp_path: Path) -> None:
    arguments = ["--labels", desk / "ratings.csv", "--folds", 2, "--systems", "amtl"]
    shown = invoke(desk, "visual-interest", *arguments, networks=NETWORKS, out=tmp_path / "out").stdout
    assert re.search(r"rating +pearson2 +paper +pearson +paper +rmse +paper", shown)
    assert re.search(r"complexity .* \[.*\] +0\.310 .* 0\.560 .* 0\.090", shown)
    assert re.search(r"calm .* – .* – .* –", shown)
    assert "not as in the paper:" in shown
    assert str(tmp_path / "out" / "amtl-mean" / "report.html") in shown


def test_what_is_finished_is_not_trained_again(desk: Path, call: Call, tmp_path: Path) -> None:
    arguments = ["--labels", desk / "ratings.csv", "--folds", 2, "--systems"]
    first = call("visual-interest", *arguments, "amtl")
    config = tmp_path / "out" / "amtl-mean" / "config.json"
    trained = config.stat().st_mtime_ns
    again = call("visual-interest", *arguments, "amtl,mtl")
    assert again["figures"][: len(first["figures"])] == first["figures"]
    assert config.stat().st_mtime_ns == trained
    for change, what in (
        (["--seed", 3], "seed, folds"),
        (["--folds", 3], "split, folds"),
        (["--set", "lr=0.1"], "options"),
        (["--scale", "0:9"], "values of the labels, scales"),
    ):
        result = invoke(desk, "visual-interest", *arguments, "amtl", *change, networks=NETWORKS, out=tmp_path / "out")
        assert result.exit_code == 1
        assert f"amtl-mean is a run with other {what}; choose another --out" in result.stderr


def test_weights_that_cannot_be_had_are_named_or_left_out(desk: Path, call: Call, tmp_path: Path) -> None:
    networks = ["--backbones", "test_resnet,resnet50", "--weights", "test_resnet=random:0"]
    labels = ["--labels", desk / "ratings.csv", "--systems", "amtl", "--folds", 2, "--store", tmp_path / "own.zarr"]
    refused = invoke(desk, "visual-interest", *labels, networks=networks, out=tmp_path / "out")
    assert refused.exit_code == 1
    assert "resnet50" in refused.stderr
    assert "--allow-missing" in refused.stderr
    found = call("visual-interest", *labels, "--allow-missing", networks=networks)
    assert "backbones: test_resnet; the paper has inception_v3" in found["differences"][0]


def test_published_figures_are_as_the_paper_has_them() -> None:
    for published in (visual_interest.MEAN, visual_interest.MEDIAN):
        # The paper's r-squared is its Pearson squared, so that a slip of one shows in the other.
        squares = np.square(published["pearson"])
        np.testing.assert_allclose(published["pearson2"], squares, atol=0.02)
    for columns in visual_interest.PUBLISHED.values():
        assert {len(column) for column in columns.values()} == {len(visual_interest.NAMES)}


# ------------------------------------------------------------------------------------------ mediaeval


def test_mediaeval_holds_out_a_fifth_and_then_learns_from_all(desk: Path, call: Call, tmp_path: Path) -> None:
    seven = ",".join(EMOTIONS)
    found = call("mediaeval", "--labels", desk / "moods.csv", "--three", "mood", "--seven", seven, "--ten", seven)
    moe, mlp = (Run(tmp_path / "out" / name) for name in ("moe-3", "mlp-7"))
    table = moe.predictions.query("repeat == 0")
    assert len(table) == N_PHOTOS / 5
    assert sorted(table["mood"]) == ["bad", "fair", "good", "good"]  # stratified
    assert table["path"].tolist() == mlp.predictions.query("repeat == 0")["path"].tolist()
    by_repeat = [
        f1_score(part["mood"], part["mood_predicted"], average="weighted", zero_division=0)
        for _, part in moe.predictions.groupby("repeat")
    ]
    assert figure(found, system="moe")["mean"] == pytest.approx(np.mean(by_repeat))
    assert [each["published"] for each in found["figures"]] == [0.757, 0.612, None]
    assert all("-all" in file.stem for file in mlp.weights_files())
    assert Run(tmp_path / "out" / "mlp-10").config.options["lr"] == 5e-6
    assert "mlp: 7 classes; the paper has 10" in found["differences"]
    assert any("a photo or one of its 4 copies" in each for each in found["differences"])
    assert moe.config.augmented == ()
    (copies,) = mlp.config.augmented
    assert copies["segments"][0]["identity"]["view"]["augmentation"]["copies"] == 4
    assert copies["segments"][0]["name"] == "test_resnet"


def test_mediaeval_without_copies_says_so(desk: Path, call: Call, tmp_path: Path) -> None:
    seven = ",".join(EMOTIONS)
    found = call("mediaeval", "--labels", desk / "moods.csv", "--seven", seven, "--copies", 0)
    assert any("cropped, blurred" in each for each in found["differences"])
    assert Run(tmp_path / "out" / "mlp-7").config.augmented == ()


@pytest.mark.parametrize(("change", "message"), [("leraning=1", "has no option 'leraning'"), ("lr=fast", "is a float")])
def test_a_wrong_option_is_refused_before_anything_is_computed(
    desk: Path, tmp_path: Path, change: str, message: str
) -> None:
    for recipe, labels in (("visual-interest", "ratings.csv"), ("mediaeval", "moods.csv")):
        arguments = ["--labels", desk / labels, *(["--three", "mood"] if recipe == "mediaeval" else [])]
        store = tmp_path / f"{recipe}.zarr"
        result = invoke(
            desk, recipe, *arguments, "--set", change, "--store", store, networks=NETWORKS, out=tmp_path / "out"
        )
        assert result.exit_code == 1
        assert message in result.stderr
        assert not store.exists()


def test_mediaeval_needs_labels(desk: Path, tmp_path: Path) -> None:
    result = invoke(desk, "mediaeval", "--labels", desk / "moods.csv", networks=NETWORKS, out=tmp_path / "out")
    assert result.exit_code == 1
    assert "say --three COLUMN" in result.stderr
    assert [subtask.n_classes for subtask in mediaeval.SUBTASKS] == [3, 7, 10]


# ------------------------------------------------------------------------------------------ personality


def test_personality_is_compared_with_the_score_alone_on_the_same_photos(
    desk: Path, call: Call, tmp_path: Path
) -> None:
    found = call(
        "personality", "--aesthetics", desk / "scores.csv", "--traits", desk / "traits.csv", "--folds", 2,
        "--set", "last_epochs=1",
    )  # fmt: skip
    both, alone = (Run(tmp_path / "out" / name) for name in ("personality-frozen", "aesthetics-only"))
    folds = both.folds.set_index("path")["fold"]
    assert (len(both.folds), len(alone.folds)) == (20, 12)
    assert alone.folds.set_index("path")["fold"].to_dict() == folds[NAMES[:12]].to_dict()
    assert set(found["learned"]) == set("OCEAN")
    assert both.learned is not None
    mean = both.learned.query("index == 0")["value"].mean()
    assert found["learned"]["O"].startswith(f"{mean:+.4f} ± ")
    for run, published in ((both, 0.680), (alone, 0.637)):
        by_repeat = [
            within_folds(table, "score", spearmanr)
            for _, table in run.predictions.dropna(subset=["score"]).groupby("repeat")
        ]
        ours = figure(found, system=run.config.system, metric="srocc")
        assert ours["mean"] == pytest.approx(np.tanh(np.mean(np.arctanh(by_repeat))), abs=1e-3)
        assert ours["published"] == published
        squares = [
            float(((table["score_predicted"] - table["score"]) ** 2).mean())
            for _, table in run.predictions.dropna(subset=["score"]).groupby("repeat")
        ]
        assert figure(found, system=run.config.system, metric="mse")["mean"] == pytest.approx(np.mean(squares))
    assert figure(found, system="personality-frozen", metric="mse")["published"] == 0.016
    assert figure(found, system="personality-frozen", metric="rmse")["published"] is None
    assert figure(found, system="aesthetics-only", metric="accuracy")["published"] == 0.761
    assert both.config.tensors[0]["segments"][0]["identity"]["view"]["size"] == [256, 256]


def test_personality_from_pixels_stands_beside_the_frozen_one_on_the_same_folds(
    desk: Path, call: Call, tmp_path: Path
) -> None:
    small = ["trunk=test_resnet", "init_trunk=random", "crop=32", "hidden1=8", "hidden2=4", "last_epochs=1", "batch=8"]
    found = call(
        "personality", "--aesthetics", desk / "scores.csv", "--traits", desk / "traits.csv", "--folds", 2,
        "--systems", "aesthetics-only,personality", *(word for each in small for word in ("--set", each)),
    )  # fmt: skip
    assert [Path(run).name for run in found["runs"]] == ["personality", "aesthetics-only"]
    pixels, alone = (Run(Path(run)) for run in found["runs"])
    assert pixels.config.tensors[0]["segments"][0]["name"] == "pixels"
    folds = pixels.folds.set_index("path")["fold"]
    assert alone.folds.set_index("path")["fold"].to_dict() == folds[NAMES[:12]].to_dict()
    ours = figure(found, system="personality", metric="mse")
    table = pixels.predictions.dropna(subset=["score"])
    errors = (table["score_predicted"] - table["score"]) ** 2
    assert ours["mean"] == pytest.approx(errors.groupby(table["repeat"]).mean().mean())
    assert ours["published"] == 0.016
    assert pixels.learned is not None
    of_trait = pixels.learned.query("index == 4").groupby("name")["value"].mean()
    assert found["learned"]["N"].startswith(f"{of_trait['trait_weights']:+.4f} ± ")
    assert found["learned"]["N"].endswith(f"(by least squares {of_trait['least_squares']:+.4f})")
    assert any(each.startswith("aesthetics-only: frozen") for each in found["differences"])
    assert "backbones: test_resnet, test_efficientnet; the paper has densenet121" in found["differences"]


@pytest.mark.parametrize("system", ["amtl", "aenet", "logistic"])
def test_personality_refuses_heads_of_something_else_before_anything_is_computed(
    desk: Path, tmp_path: Path, system: str
) -> None:
    words = ["--aesthetics", desk / "scores.csv", "--traits", desk / "traits.csv", "--systems", f"personality,{system}"]
    result = invoke(desk, "personality", *words, "--store", tmp_path / "own.zarr", networks=[], out=tmp_path / "out")
    assert result.exit_code == 1
    assert f"--systems {system}: it is no head that learns scores" in result.stderr
    assert not (tmp_path / "own.zarr").exists()


# ------------------------------------------------------------------------------------------ aenet


def test_aenet_and_its_relatives_stand_in_one_table_beside_the_paper_s(desk: Path, call: Call, tmp_path: Path) -> None:
    table = pd.read_csv(desk / "moods.csv")
    pd.DataFrame({"path": NAMES, "good": ["yes", "no"] * 10, "mood": table["mood"]}).to_csv(
        desk / "both.csv", index=False
    )
    small = ["trunk=test_resnet", "crop=32", "batch=8", *(f"init_{name}=random" for name in ("trunk", *STREAMS))]
    found = call(
        "aenet", "--labels", desk / "both.csv", "--aesthetics", "good", "--emotion", "mood",
        "--systems", "resnet50-single,share-split,aenet", *(word for each in small for word in ("--set", each)),
        networks=[],
    )  # fmt: skip
    names = ("resnet50-single-good", "resnet50-single-mood", "share-split/good", "share-split/mood")
    assert [Path(run) for run in found["runs"][:4]] == [tmp_path / "out" / name for name in names]
    for system, task, published in (
        ("resnet50-single", "good", 0.7485),
        ("share-split", "mood", 0.6023),
        ("aenet", "good", 0.8105),
        ("aenet", "mood", 0.6623),
    ):
        ours = figure(found, system=system, task=task)
        assert (ours["metric"], ours["published"]) == ("accuracy", published)
        assert 0 <= ours["mean"] <= 1
    assert any("22,086" in each for each in found["differences"])
    assert not any("backbones" in each for each in found["differences"])


def test_aenet_refuses_an_option_that_no_network_has(desk: Path, tmp_path: Path) -> None:
    words = ["--labels", desk / "moods.csv", "--aesthetics", "e0", "--emotion", "mood", "--set", "attention=3"]
    result = invoke(desk, "aenet", *words, networks=[], out=tmp_path / "out")
    assert result.exit_code == 1
    assert "has such an option" in result.stderr
    result = invoke(desk, "aenet", *words, "--systems", "", networks=[], out=tmp_path / "out")
    assert result.exit_code == 1
    assert "--systems names no head" in result.stderr


# ------------------------------------------------------------------------------------------ suhail


def test_suhail_s_networks_stand_beside_their_published_figures(desk: Path, call: Call, tmp_path: Path) -> None:
    small = ["trunk=test_resnet", "crop=32", "batch=8", "init_trunk=random", "size=32", "glimpse=8", "patches=1"]
    found = call(
        "suhail", "--labels", desk / "moods.csv", "--column", "mood", "--systems", "ram,resnet50-finetune",
        *(word for each in small for word in ("--set", each)), networks=[],
    )  # fmt: skip
    assert [Path(run) for run in found["runs"]] == [tmp_path / "out" / name for name in ("ram", "resnet50-finetune")]
    for system, published in (("ram", 0.652), ("resnet50-finetune", 0.543)):
        ours = figure(found, system=system)
        assert (ours["task"], ours["metric"], ours["published"]) == ("mood", "accuracy", published)
        assert ours["mean"] == Run(tmp_path / "out" / system).metrics["mood"]["accuracy"]["mean"]
    assert any("most frequent class" in each for each in found["differences"])
