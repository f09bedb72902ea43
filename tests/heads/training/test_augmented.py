"""Augmented copies of photos: training sees them, and nothing else does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featstore
from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer
from heads import Plan, Validation, predict, read_labels, train
from heads.errors import FeaturesError, UnknownSystemError
from heads.systems.registry import find_system
from heads.training.features import Features
from heads.training.tensors import choose_copies, choose_tensors

N, BACKBONES, COPIES, BLOCKS, WIDTH = 40, 2, 3, 4, 6
PLENTY = 10**9


def identity(backbone: int, copies: int | None, weights: str = "w") -> dict[str, Any]:
    view = {"size": [60, 40], "grid": [2, 2], **({"augmentation": {"copies": copies}} if copies else {})}
    return {"architecture": f"net{backbone}", "weights": {"sha256": weights}, "view": view, "dtype": "float32"}


def segments(copies: int | None = None, *, n_blocks: int, weights: str = "w") -> tuple[StoredSegment, ...]:
    return tuple(
        StoredSegment(f"net{i}", identity(i, copies, weights), n_blocks, WIDTH, copies) for i in range(BACKBONES)
    )


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """A value says where it comes from: photo, copy (0: the photo itself) and backbone."""
    rng = np.random.default_rng(0)
    photo = np.arange(N, dtype=np.float32)
    whole = np.broadcast_to(photo[:, None] * 10, (N, BACKBONES * WIDTH)).copy()
    tags = np.arange(1, COPIES + 1, dtype=np.float32)
    return {
        "whole": whole,
        "whole_copies": np.stack([whole + tag for tag in tags], 1),
        "grid": np.broadcast_to(photo[:, None, None, None] * 10, (N, BACKBONES, BLOCKS, WIDTH)).copy(),
        "grid_copies": np.broadcast_to(
            photo[:, None, None, None, None] * 10 + tags[:, None, None], (N, BACKBONES, COPIES, BLOCKS, WIDTH)
        ).copy(),
        "grid_two_copies": np.zeros((N, BACKBONES, 2, BLOCKS, WIDTH), np.float32),
        "fewer_segments": np.zeros((N, COPIES, BACKBONES * WIDTH), np.float32),
        "other_copies": rng.normal(size=(N, COPIES, BACKBONES * WIDTH)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def store(values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copies") / "features.zarr"
    layouts = [
        TensorLayout("whole", "concat", segments(n_blocks=1)),
        TensorLayout("whole_copies", "concat", segments(COPIES, n_blocks=1)),
        TensorLayout("other_copies", "concat", segments(COPIES, n_blocks=1, weights="others")),
        TensorLayout(
            "fewer_segments", "concat", (StoredSegment("net0", identity(0, COPIES), 1, BACKBONES * WIDTH, COPIES),)
        ),
        TensorLayout("grid_two_copies", "stack", segments(2, n_blocks=BLOCKS), width=WIDTH),
        TensorLayout("grid", "stack", segments(n_blocks=BLOCKS), width=WIDTH),
        TensorLayout("grid_copies", "stack", segments(COPIES, n_blocks=BLOCKS), width=WIDTH),
    ]
    with Writer(path, block_rows=8) as writer:
        digests = np.arange(N * 32, dtype=np.uint16).astype(np.uint8).reshape(N, 32)
        digests[:, 0] = np.arange(N)
        writer.add_images(NewImages([f"{i}.jpg" for i in range(N)], digests, [1] * N, [1] * N))
        for layout in layouts:
            writer.ensure_tensor(layout, "float32")
        for block in range(N // 8):
            here = list(range(8 * block, 8 * block + 8))
            present = np.full(8, RowState.PRESENT, np.uint8)
            rows = {layout.name: (values[layout.name][here], present) for layout in layouts}
            writer.commit(block, rows, SeenImages(here, [(4, 6)] * 8, [ImageState.READABLE] * 8, [""] * 8))
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labels") / "labels.csv"
    rng = np.random.default_rng(1)
    lines = [f"{i}.jpg,{rng.uniform(1, 7):.3f}" for i in range(N)]
    file.write_text("\n".join(["path,appeal", *lines]) + "\n")
    return file


def features(store: Path, *names: str, copies: tuple[str, ...], memory_bytes: int) -> Features:
    opened = featstore.open(store)
    found = Features(
        [opened[name] for name in names],
        opened[names[0]].rows,
        memory_bytes=memory_bytes,
        copies=[opened[name] for name in copies],
    )
    found.load()
    return found


@given(
    views=st.lists(st.integers(0, COPIES), min_size=N, max_size=N),
    memory_bytes=st.sampled_from([PLENTY, 1, 40_000]),
    seed=st.none() | st.integers(0, 3),
)
def test_every_view_of_every_photo_can_be_asked_for(store, values, views, memory_bytes, seed) -> None:
    both = features(store, "grid", "whole", copies=("grid_copies", "whole_copies"), memory_bytes=memory_bytes)
    rng = None if seed is None else np.random.default_rng(seed)
    n_seen = 0
    for group in both.groups(rng=rng, copies=True):
        assert group.n_views == 1 + COPIES
        of_row = np.array(views)[group.rows]
        found, (grid, whole) = group.batch(group.rows, views=of_row)
        expected = 10 * found + np.array(views)[found]
        assert (grid.numpy() == expected[:, None, None, None]).all()
        assert (whole.numpy() == expected[:, None]).all()
        n_seen += len(found)
    assert n_seen == N


def test_copies_count_as_memory(store) -> None:
    alone = features(store, "whole", copies=(), memory_bytes=PLENTY)
    both = features(store, "whole", copies=("whole_copies",), memory_bytes=PLENTY)
    assert both.row_bytes == (1 + COPIES) * alone.row_bytes


@pytest.fixture
def plan(store, labels, tmp_path: Path) -> Plan:
    return Plan(
        system="mlp",
        store=store,
        labels=read_labels(labels, scales=["1:7"]),
        out=tmp_path / "run",
        tensors=["whole"],
        augmented=["whole_copies"],
        changes=["epochs=6", "hidden1=4", "hidden2=4", "lr=0.01", "batch=4", "dropout=0"],
        validation=Validation(n_folds=4),
        n_repeats=1,
        device="cpu",
    )


@pytest.mark.parametrize("memory_bytes", [PLENTY, 10_000], ids=["in memory", "streamed"])
def test_training_sees_photos_and_copies_alike_and_tests_see_photos(
    plan, monkeypatch: pytest.MonkeyPatch, memory_bytes
) -> None:
    from heads.training import learner

    trained, looked = [], []
    forward, run = learner.Learner.learn, learner.run

    def learn(self: Any, group: Any) -> None:
        batch = group.batch
        group.batch = lambda rows, *args, views, **kept: (
            trained.extend(views),
            batch(rows, *args, views=views, **kept),
        )[1]
        try:
            forward(self, group)
        finally:
            del group.batch

    def look(module: Any, group: Any, rows: Any, **others: Any) -> Any:
        batch = group.batch
        group.batch = lambda rows, *args, **kept: (looked.append(kept), batch(rows, *args, **kept))[1]
        try:
            yield from run(module, group, rows, **others)
        finally:
            del group.batch

    monkeypatch.setattr(learner.Learner, "learn", learn)
    monkeypatch.setattr(learner, "run", look)
    monkeypatch.setattr("heads.training.joint.n_threads", lambda: 1)
    monkeypatch.setattr("heads.experiment.n_threads", lambda: 1)
    found = train(replace(plan, memory_bytes=memory_bytes))
    shares = np.bincount(trained, minlength=1 + COPIES) / len(trained)
    assert len(trained) == 4 * 6 * 30
    assert shares == pytest.approx(np.full(1 + COPIES, 1 / (1 + COPIES)), abs=0.07)
    assert looked
    assert not any(looked)
    (copies,) = found.config.augmented
    assert copies["name"] == "whole_copies"
    assert len(found.predictions) == N
    assert len(predict(found, plan.store, device="cpu")) == N


def test_the_same_seed_draws_the_same_copies_and_no_copies_are_something_else(plan, tmp_path: Path) -> None:
    one, two = train(plan), train(replace(plan, out=tmp_path / "again"))
    assert (one.folder / "predictions.csv").read_bytes() == (two.folder / "predictions.csv").read_bytes()
    without = train(replace(plan, augmented=(), out=tmp_path / "without"))
    assert (one.folder / "predictions.csv").read_bytes() != (without.folder / "predictions.csv").read_bytes()
    assert without.config.augmented == ()


def test_copies_are_found_for_each_tensor_in_whatever_order(store) -> None:
    opened = featstore.open(store)
    tensors = choose_tensors(opened, find_system("amtl-plus"), ["grid", "whole"])
    found = choose_copies(opened, tensors, ["whole_copies", "grid_copies"])
    assert [each.name for each in found] == ["grid_copies", "whole_copies"]
    assert choose_copies(opened, tensors, []) == []
    with pytest.raises(FeaturesError, match="their copies are not of the same crops"):
        choose_copies(opened, tensors, ["whole_copies", "grid_two_copies"])


def test_copies_are_read_only_to_be_learnt_from(store) -> None:
    streaming = features(store, "whole", copies=("whole_copies",), memory_bytes=1)
    assert {group.n_views for group in streaming.groups()} == {1}
    assert {group.n_views for group in streaming.groups(copies=True)} == {1 + COPIES}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], "has no tensor 'nothing'"),
        (["grid"], "--augmented grid: it is a stack, not one of augmented copies"),
        (["grid_copies"], r"--augmented grid_copies: it has other features than whole \(concat of \(12,\), stack of"),
        (["other_copies"], r"other features than whole \(net0 and net0 differ in weights\); extract copies"),
        (["fewer_segments"], r"other features than whole \(2 segments, 1 in the copies\)"),
        (["whole_copies", "whole_copies"], "--augmented names 2 tensors of copies for 'whole'"),
    ],
)
def test_copies_that_do_not_fit_are_refused(plan, names, message) -> None:
    with pytest.raises(FeaturesError, match=message):
        train(replace(plan, augmented=names))


def test_solvers_do_not_learn_from_copies(plan) -> None:
    with pytest.raises(UnknownSystemError, match="head 'ridge' is solved, and augmented copies are for heads trained"):
        train(replace(plan, system="ridge", changes=()))
