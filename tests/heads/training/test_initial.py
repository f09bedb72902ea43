"""What parts of a model begin with: as released, a file, another run, or random weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import featstore
from heads import experiment
from heads.errors import RunError, TrainingError
from heads.labels.target import Target
from heads.systems.trunks import Trunk
from heads.training import cluster
from heads.training.features import Features
from heads.training.initial import find_initial
from heads.training.learner import blank_model

from ..conftest import Setting, heads, refused

SMALL = ("layers=1,1,1,1", "width=0.05", "crop=32", "batch=8", "epochs=1", "lr=0")


@pytest.fixture
def store(tmp_path: Path, write_store: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty photos of noise, and a label of each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(30)]
    write_store(tmp_path / "px.zarr", names, {"px": rng.integers(256, size=(30, 40, 40, 3), dtype=np.uint8)})
    (tmp_path / "labels.csv").write_text("path,liked\n" + "\n".join(f"{n},{rng.integers(1, 8)}" for n in names))
    return tmp_path / "px.zarr"


def words(store: Path, out: str, *options: str) -> list[object]:
    changed = [word for option in (*SMALL, *options) for word in ("--set", option)]
    return [
        "train", "resnet50-single", store, "--labels", "labels.csv", "--scale", "1:7", "--hold-out", 0.3,
        "--out", out, *changed,
    ]  # fmt: skip


def trunk_of(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "weights").glob("*-all.safetensors")
    return {name.removeprefix("trunk."): value for name, value in load_file(file).items() if name.startswith("trunk.")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """In all that is a parameter: with a rate of 0 nothing moves but the statistics of batch norms."""
    return all(
        torch.equal(value, other[name]) for name, value in one.items() if "running" not in name and "num_" not in name
    )


def test_a_run_begins_with_the_trunk_of_another(store: Path) -> None:
    assert heads(*words(store, "first", "init_trunk=random")).exit_code == 0
    assert heads(*words(store, "random", "init_trunk=random"), "--seed", 5).exit_code == 0
    done = heads(*words(store, "second", "init_trunk=first"), "--seed", 5)
    assert done.exit_code == 0, done.output
    assert same(trunk_of(Path("second")), trunk_of(Path("first")))
    assert not same(trunk_of(Path("random")), trunk_of(Path("first")))
    config = json.loads(Path("second/config.json").read_text())
    assert len(config["initial"]["trunk"]) == 64
    assert json.loads(Path("first/config.json").read_text()).get("initial") is None
    assert heads("predict", "second", store, "--out", "said.csv").exit_code == 0, "the first is not asked again"


def test_a_file_of_the_parts_own_names_will_do(store: Path) -> None:
    torch.manual_seed(3)
    trunk = Trunk("resnet50", layers="1,1,1,1", width=0.05)
    save_file(trunk.state_dict(), "trunk.safetensors")
    save_file({f"trunk.{name}": value for name, value in trunk.state_dict().items()}, "model.safetensors")
    for file in ("trunk.safetensors", "model.safetensors"):
        done = heads(*words(store, f"by-{file}", f"init_trunk={file}"))
        assert done.exit_code == 0, done.output
        assert same(trunk_of(Path(f"by-{file}")), trunk.state_dict())


def test_released_weights_are_those_that_features_are_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """lite0, whose weights are in an installed package: pooled by the trunk as featstore pools it."""
    from featstore.backbones.networks import build_network
    from featstore.backbones.registry import find_card
    from featstore.backbones.weights import WeightsPolicy, resolve_weights

    card = find_card("lite0")
    network = build_network(card, resolve_weights(card, WeightsPolicy()))
    trunk = Trunk("lite0").eval()
    trunk.load_state_dict(trunk.released(featstore.WeightsPolicy()))
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    pictures = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(trunk.mean).view(3, 1, 1)) / torch.tensor(
        trunk.std
    ).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(trunk.pooled(pictures), network(pixels)[0], atol=1e-4)
        assert trunk(pictures).shape[1] == trunk.n_features == 1280
    assert all(value.requires_grad for value in trunk.parameters())


def test_another_file_under_the_same_name_is_another_run(store: Path) -> None:
    def train() -> None:
        experiment.train(
            "resnet50-single", store, "labels.csv", scale=(1, 7), hold_out=0.3, out="run", progress=False,
            options=[*SMALL, "init_trunk=trunk.safetensors"],
        )  # fmt: skip

    for seed in (3, 4):
        torch.manual_seed(seed)
        save_file(Trunk("resnet50", layers="1,1,1,1", width=0.05).state_dict(), "trunk.safetensors")
        if seed == 3:
            train()
            train()  # the run that is there
    with pytest.raises(RunError, match="run with other initial weights"):
        train()


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("imagenet", "was never released; say --set init_trunk=random"),
        ("nowhere", "it is no weights file and no run; expected imagenet, random, FILE or RUN"),
        ("folder", "folder is not a run folder"),
        ("labels.csv", "labels.csv"),
        ("empty.safetensors", "empty.safetensors cannot be read"),
        ("other.safetensors", "the weights are not of this part of the model"),
        ("nan.safetensors", "has values that are no numbers"),
    ],
)
def test_what_is_no_such_weights_is_refused_in_words(store: Path, origin: str, told: str) -> None:
    Path("folder").mkdir()
    Path("empty.safetensors").touch()
    save_file({"conv.weight": torch.zeros(3)}, "other.safetensors")
    save_file({"trunk.net.conv1.weight": torch.full((3,), torch.nan)}, "nan.safetensors")
    said = refused(*words(store, "run", f"init_trunk={origin}"))
    assert told in said
    assert not Path("run").exists()


def test_released_weights_that_are_not_here_are_refused_with_where_they_belong(store: Path) -> None:
    said = refused("train", "resnet50-single", store, "--labels", "labels.csv", "--set", "crop=32", "--scale", "1:7")
    assert "put the file at cache/weights/resnet50.safetensors" in said
    assert "--set init_trunk=FILE, RUN or random" in said
    assert "--allow-missing" not in said


def test_a_run_of_several_models_has_to_be_told_which(store: Path) -> None:
    folds = [word if word != "--hold-out" else "--folds" for word in words(store, "folds", "init_trunk=random")]
    folds[folds.index(0.3)] = 2
    assert heads(*folds, "--repeats", 1).exit_code == 0
    assert "the run has 2 models" in refused(*words(store, "run", "init_trunk=folds"))
    assert heads(*words(store, "run", "init_trunk=folds/weights/repeat0-fold0.safetensors")).exit_code == 0


@pytest.mark.parametrize(
    ("trunk", "told"),
    [
        ("vit_tiny_patch16_224", "cannot take 2 pictures of 32 x 32: Input height"),
        ("inception_v3", "cannot take 2 pictures of 32 x 32: "),
        ("resnet5", "did you mean 'resnet50'"),
    ],
)
def test_a_network_that_takes_no_such_pictures_says_so(store: Path, trunk: str, told: str) -> None:
    asked = words(store, "run", "init_trunk=random", f"trunk={trunk}", "layers=", "width=1")
    said = refused(*asked)
    assert told in said


def test_a_worker_with_another_file_under_the_same_name_refuses(
    as_features: Callable[..., Features], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = Target("regression", ("liked",))
    pixels = np.zeros((4, 40, 40, 3), np.uint8)
    setting = Setting(as_features(pixels), np.zeros((4, 1), np.float32), target, np.zeros(4, np.int64))
    problem = setting.problem("resnet50-single", *SMALL, "init_trunk=trunk.safetensors")
    model = blank_model(problem.system, problem.shapes, problem.layouts, target, problem.options)
    torch.manual_seed(3)
    save_file(Trunk("resnet50", layers="1,1,1,1", width=0.05).state_dict(), "trunk.safetensors")
    planned = replace(problem, initial=find_initial(problem.system, problem.options, model))
    setup = cluster._setup(planned, "s.zarr", (), (), np.arange(4), 10**9, "cpu")
    assert {*cluster._initial(setup, problem.system, model)} == {"trunk"}
    save_file(Trunk("resnet50", layers="1,1,1,1", width=0.05).state_dict(), "trunk.safetensors")
    with pytest.raises(TrainingError, match="other initial weights of trunk"):
        cluster._initial(setup, problem.system, model)
