"""AENet and its relatives: fusion against numpy, what learns from what, and one training of two kinds of labels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

import featstore
from heads.labels.labels import join_parts, read_labels
from heads.labels.target import JointTarget, Target
from heads.runs.run import Run
from heads.systems.aenet import STREAMS, AENet, CrossStitch
from heads.systems.pixels import Photos
from heads.systems.registry import find_system
from heads.systems.trunks import OnTrunk, Trunk
from heads.training.checkpoints import Draft
from heads.training.features import Features
from heads.training.losses import knowing_nothing, predictions
from heads.training.optimiser import Optimiser

from ..conftest import Setting, heads, refused

BOTH = JointTarget.of([Target("binary", ("good",)), Target("multiclass", ("emotion",), tuple("abcdefgh"))])


def trunks(*names: str, seed: int = 0) -> dict[str, Trunk]:
    torch.manual_seed(seed)
    return {name: Trunk("resnet50", layers="1,1,1,1", width=0.1) for name in names}


def aenet(*, fused: bool = True) -> AENet:
    streams = trunks(*STREAMS)
    torch.manual_seed(1)
    return AENet(Photos((48, 48, 3), 48), streams, BOTH, fused=fused).eval()


PIXELS = torch.randint(256, (3, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def stage_by_stage(model: AENet, mix: Callable[[int, list[NDArray[np.float32]]], list[NDArray[np.float32]]]) -> NDArray:  # type: ignore[type-arg]
    """What a model says if numpy mixes its streams."""
    pictures = model.photos(PIXELS)
    streams = [model.get_submodule(name) for name in STREAMS]
    with torch.inference_mode():
        maps = [stream.stem(pictures) for stream in streams]  # type: ignore[operator]
        for number in range(4):
            after = [stream.stages[number](each).numpy() for stream, each in zip(streams, maps, strict=True)]  # type: ignore[index, union-attr]
            maps = [torch.from_numpy(each) for each in mix(number, after)]
        a, e, s = (each.numpy().mean((2, 3)) for each in maps)
        out = [
            np.hstack([s, a]) @ model.aesthetics_out.weight.numpy().T + model.aesthetics_out.bias.numpy(),
            np.hstack([s, e]) @ model.emotion_out.weight.numpy().T + model.emotion_out.bias.numpy(),
        ]
    return np.hstack(out)


def test_fusion_is_the_paper_s() -> None:
    model = aenet()
    with torch.no_grad():
        model.fusion.copy_(torch.rand(4, 4, generator=torch.Generator().manual_seed(2)))
    weights = model.fusion.detach().numpy()

    def mix(number: int, maps: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        matrix = np.zeros((3, 3), np.float32)
        matrix[0, 0], matrix[0, 2], matrix[1, 1], matrix[1, 2] = weights[number]
        matrix[2, 2] = 1
        return list(np.einsum("ij,j...->i...", matrix, np.stack(maps)))

    with torch.inference_mode():
        np.testing.assert_allclose(model(PIXELS), stage_by_stage(model, mix), atol=1e-4, rtol=1e-4)
    assert model.fusion.numel() == 16


def test_it_begins_at_nine_tenths_and_without_fusion_at_one() -> None:
    assert aenet().fusion.tolist() == [[pytest.approx(each) for each in (0.9, 0.1, 0.9, 0.1)]] * 4
    still = aenet(fused=False)
    assert still.fusion.tolist() == [[1, 0, 1, 0]] * 4
    assert "fusion" not in dict(still.named_parameters())


def test_scalars_of_one_and_zero_are_no_fusion_bit_for_bit() -> None:
    fused, still = aenet(), aenet(fused=False)
    with torch.no_grad():
        fused.fusion.copy_(still.fusion)
    fused.load_state_dict(still.state_dict())
    with torch.inference_mode():
        assert torch.equal(fused(PIXELS), still(PIXELS))


def test_the_gradient_of_a_scalar_is_the_sum_over_photos_channels_and_places() -> None:
    """Eq. 3 of the paper writes the derivative at one place."""
    model = aenet().double()
    kept: list[torch.Tensor] = []
    mix = model.mix

    def noted(stage: int, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        mixed = mix(stage, maps)
        if stage == 3:
            mixed[0].retain_grad()
            kept.extend([maps[0], mixed[0]])
        return mixed

    model.mix = noted  # type: ignore[method-assign, assignment]
    model(PIXELS)[:, 0].sum().backward()
    aesthetics, mixed = kept
    assert mixed.grad is not None
    assert model.fusion.grad is not None
    assert torch.allclose(model.fusion.grad[3, 0], (mixed.grad * aesthetics).sum(), rtol=1e-10)


def test_the_shared_stream_learns_from_both_and_the_streams_from_their_own() -> None:
    model = aenet().train()
    for column, own in ((0, "aesthetics"), (1, "emotion")):
        model.zero_grad()
        model(PIXELS)[:, column].sum().backward()
        gradients = {name: model.get_submodule(name).net.conv1.weight.grad for name in STREAMS}  # type: ignore[union-attr]
        assert {name for name, value in gradients.items() if value is not None and value.any()} == {own, "shared"}


def test_an_identity_stitches_nothing() -> None:
    streams = trunks("aesthetics", "emotion")
    model = CrossStitch(Photos((48, 48, 3), 48), streams, BOTH).eval()
    with torch.no_grad():
        model.stitch.copy_(torch.eye(2).expand(4, 2, 2))
    with torch.inference_mode():
        said = model(PIXELS)
        for name, part, out in (
            ("aesthetics", slice(0, 1), model.aesthetics_out),
            ("emotion", slice(1, 9), model.emotion_out),
        ):
            alone = OnTrunk(model.photos, BOTH, streams[name], out).eval()
            assert torch.allclose(alone(PIXELS), said[:, part], atol=1e-6)


def test_emotion_counts_a_quarter_and_missing_labels_count_nothing() -> None:
    loss = find_system("aenet").loss
    assert loss is not None
    outputs = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 3], [0, 0], [torch.nan, 7], [1, torch.nan], [torch.nan, torch.nan]])
    logits = outputs.double().numpy()
    aesthetics = np.mean(
        [np.log1p(np.exp(-logits[0, 0])), np.log1p(np.exp(logits[1, 0])), np.log1p(np.exp(-logits[3, 0]))]
    )
    surprise = [np.log(np.exp(logits[i, 1:]).sum()) - logits[i, 1 + c] for i, c in ((0, 3), (1, 0), (2, 7))]
    assert loss(BOTH)(outputs, labels).item() == pytest.approx(aesthetics + np.mean(surprise) / 4, rel=1e-5)


def test_predictions_of_both_parts_are_probabilities_of_their_kind() -> None:
    said = predictions(BOTH, torch.randn(4, 9))
    assert torch.allclose(said[:, 1:].sum(1), torch.ones(4))
    assert ((said[:, 0] > 0) & (said[:, 0] < 1)).all()
    labels = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, torch.nan]])
    nothing = predictions(BOTH, knowing_nothing(BOTH, labels))
    assert nothing[0, 0].item() == pytest.approx(0.25)
    assert nothing[0, 1].item() == pytest.approx(2 / (3 + 6 * 0.5), rel=1e-5)


def test_mixing_scalars_have_their_own_rate_and_no_decay() -> None:
    system = find_system("aenet")
    assert system.stages is not None
    (stage,) = system.stages(system.settle(["lr=1e-4", "mixing_lr=1e-2"]))
    assert stage.factor("fusion") == pytest.approx(100)
    assert stage.factor("aesthetics.net.conv1.weight") == 1
    assert stage.leaves("fusion")
    assert stage.leaves("emotion_out.bias")
    assert not stage.leaves("emotion_out.weight")
    both = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    options = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.5}
    optimiser = Optimiser(both, options, factors={1: 100.0}, undecayed=[1])
    for each in both:
        each.grad = torch.full((1,), 2.0)
    optimiser.step(0.001)
    assert both[0].item() == pytest.approx(1 - 0.001 * (2 + 0.5))
    assert both[1].item() == pytest.approx(1 - 0.1 * 2)


def test_it_learns_both_of_photos_that_have_one_label_each(
    tmp_path: Path, write_store: Callable[..., None], features_of: Callable[..., Features]
) -> None:
    """Good is red, and an emotion is a direction of stripes: what one part teaches does not undo the other."""
    rng = np.random.default_rng(0)
    n = 160
    red, kind = rng.integers(2, size=n), rng.integers(3, size=n)
    y, x = np.mgrid[:32, :32]
    stripes = np.stack([x % 4 < 2, y % 4 < 2, (x + y) % 4 < 2])
    pixels = rng.integers(60, size=(n, 32, 32, 3))
    pixels += 120 * stripes[kind][..., None]
    pixels[..., 0] += 70 * red[:, None, None]
    write_store(tmp_path / "px.zarr", [f"{i}.jpg" for i in range(n)], {"px": pixels.astype(np.uint8)}, block_rows=n)
    labels = np.stack([red, kind], 1).astype(np.float32)
    labels[np.arange(120), rng.integers(2, size=120)] = np.nan
    target = JointTarget.of([Target("binary", ("good",)), Target("multiclass", ("emotion",), tuple("abc"))])
    setting = Setting(features_of(tmp_path / "px.zarr", "px"), labels, target, np.zeros(n, np.int64))
    small = ["layers=1,1,1,1", "width=0.12", "crop=32", "flip=false", "batch=24", "epochs=12", "lr=0.05", "inner=0"]
    problem = setting.problem("aenet", *small, *(f"init_{name}=random" for name in STREAMS))
    rows = np.arange(n)
    (trained,) = setting.train(problem, setting.job(fit=rows[:120], inner=rows[:0], test=rows[120:]))
    good, emotion = trained.predicted[:, 0] > 0.5, trained.predicted[:, 1:].argmax(1)
    assert (good == red[120:]).mean() > 0.85
    assert (emotion == kind[120:]).mean() > 0.7
    assert not np.allclose(trained.learned["fusion"], [0.9, 0.1, 0.9, 0.1], atol=1e-4), "the scalars learn"


# ---- one training, two runs


@pytest.fixture
def photos(tmp_path: Path, write_store: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos that are good where they are red, and of an emotion by the direction of their stripes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    red, kind = rng.permutation(np.arange(60) % 2), rng.permutation(np.arange(60) % 3)
    pixels = rng.integers(60, size=(60, 40, 40, 3))
    pixels[..., 0] += 120 * red[:, None, None]
    y, x = np.mgrid[:40, :40]
    stripes = np.stack([x % 4 < 2, y % 4 < 2, (x + y) % 4 < 2])
    pixels[..., 1] += 150 * stripes[kind]
    names = [f"{i}.jpg" for i in range(60)]
    write_store(tmp_path / "px.zarr", names, {"px": pixels.astype(np.uint8)})
    lines = ["path,good,emotion"]
    for i, name in enumerate(names):
        # As in the data of the paper, most photos have one of the two labels only.
        good = "" if i % 3 == 0 else "yes" if red[i] else "no"
        lines.append(f"{name},{good},{'' if i % 3 == 1 else 'abc'[kind[i]]}")
    Path("labels.csv").write_text("\n".join(lines))
    return tmp_path / "px.zarr"


def words(store: Path, *more: object) -> list[object]:
    options = ["layers=1,1,1,1", "width=0.1", "crop=32", "batch=10", "epochs=2", "lr=0.05"]
    options += [f"init_{name}=random" for name in STREAMS]
    parts = ["--part", "good:binary", "--part", "emotion:multiclass"]
    changed = [word for option in options for word in ("--set", option)]
    return ["train", "aenet", store, "--labels", "labels.csv", *parts, "--hold-out", 0.25, *changed, *more]


def test_labels_of_both_parts_stand_beside_the_photos_that_have_them(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,good,emotion,trip\na,yes,x,1\nb,,y,1\nc,no,,2\nd,no,x,2\n")
    both = join_parts(
        [
            read_labels(tmp_path / "l.csv", tasks=["good"], kind="binary", group="trip"),
            read_labels(tmp_path / "l.csv", tasks=["emotion"], kind="multiclass", group="trip"),
        ]
    )
    nan = np.nan
    expected = {"a": (1, 0, "1"), "b": (nan, 1, "1"), "c": (0, nan, "2"), "d": (0, 0, "2")}
    assert both.groups is not None
    assert sorted(both.paths) == list("abcd")
    for path, values, scaled, group in zip(both.paths, both.values, both.scaled(), both.groups, strict=True):
        np.testing.assert_array_equal(values, expected[path][:2])
        np.testing.assert_array_equal(scaled, expected[path][:2])
        assert group == expected[path][2]
    assert both.target.tasks == ("good", "emotion")


def test_one_training_leaves_a_run_for_each_part(photos: Path) -> None:
    done = heads(*words(photos, "--out", "run", "--json"))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["parts"]
    assert [Path(part["run"]).name for part in told] == ["good", "emotion"]
    assert {*told[0]["metrics"]} == {"good"}
    assert {*told[1]["metrics"]} == {"emotion"}
    files = [next(Path("run", name, "weights").glob("*fold0*")) for name in ("good", "emotion")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "index" in Path("run/good/learned.csv").read_text()
    for name in ("good", "emotion"):
        predicted = heads("predict", f"run/{name}", photos, "--out", f"{name}.csv")
        assert predicted.exit_code == 0, predicted.output
    assert "emotion_is_c" in Path("emotion.csv").read_text().splitlines()[0]
    table = pd.read_csv("labels.csv")
    table[["path", "good"]].dropna().to_csv("good.csv", index=False)  # another set has labels of one part only
    other = heads("evaluate", "run/good", photos, "--labels", "good.csv", "--seen", "--json")
    assert other.exit_code == 0, other.output
    assert {*json.loads(other.stdout)["metrics"]} == {"good"}


def test_what_a_run_predicts_again_is_what_its_model_says(photos: Path) -> None:
    """The part of a model's outputs that a run takes is its own."""
    assert heads(*words(photos, "--out", "run")).exit_code == 0

    run = Run("run/emotion")
    assert [part.folder.name for part in run.parts] == ["good", "emotion"]
    assert [part.name for part in run.parts] == ["run/good", "run/emotion"]
    system = find_system("aenet")
    model = system.build(run.config.shapes, run.config.learnt, run.config.options).eval()
    model.load_state_dict(load_file(run.folder / "weights/repeat0-all.safetensors"))
    tensor = featstore.open(photos)["px"]
    with torch.inference_mode():
        said = predictions(run.config.learnt, model(torch.from_numpy(tensor.read(range(8)))))
    assert heads("predict", "run/emotion", photos, "--out", "said.csv").exit_code == 0
    table = pd.read_csv("said.csv").set_index("path").loc[list(tensor.paths[:8])]
    columns = [f"emotion_is_{name}" for name in "abc"]
    np.testing.assert_allclose(table[columns], said[:, 1:], atol=1e-5)


def test_parts_that_are_not_what_the_head_learns_are_refused_in_words(photos: Path) -> None:
    said = refused("train", "aenet", photos, "--labels", "labels.csv", "--tasks", "good")
    assert "say --part TASK:binary --part TASK:multiclass; found binary labels alone" in said
    both = ["--part", "good:binary", "--part", "emotion:multiclass"]
    said = refused("train", "resnet50-single", photos, "--labels", "labels.csv", *both)
    assert "learns labels of one kind" in said
    said = refused("train", "aenet", photos, "--labels", "labels.csv", "--part", "good:binary")
    assert "name two or more" in said
    said = refused("train", "aenet", photos, "--labels", "labels.csv", "--part", "good:binary", "--part", "emotion")
    assert "is not of the form TASKS:KIND" in said
    twice = ["--part", "good:binary", "--part", "good:binary"]
    assert "is in two parts" in refused("train", "aenet", photos, "--labels", "labels.csv", *twice)


def test_a_killed_training_goes_on_and_ends_as_one_that_was_not(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert heads(*words(photos, "--out", "whole")).exit_code == 0
    finish = Draft.finish

    def stop(self: Draft, trained: object) -> None:
        finish(self, trained)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "finish", stop)
        assert heads(*words(photos, "--out", "run")).exit_code != 0
    assert Path("run.part").is_dir()
    done = heads("resume", "run")
    assert done.exit_code == 0, done.output
    for name in ("good", "emotion"):
        for file in ("predictions.csv", "metrics.json", "weights/repeat0-all.safetensors"):
            ours, theirs = (Path(folder, name, file).read_bytes() for folder in ("run", "whole"))
            assert ours == theirs, f"{name}/{file}"
