"""Photos and requests that change, photos that cannot be read: what is computed is what the plan said and no more, and
the store ends as one made anew from the final state.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import featstore
from featstore.cli.summary import plan_facts
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.engines.eager import EagerEngine
from featstore.errors import ImageError, LayoutError, LockedError, PhotosError, StoreError, WeightsError
from featstore.extraction import run
from featstore.extraction.estimate import estimate
from featstore.extraction.extract import extract, plan_extraction
from featstore.extraction.extract import retry as retry_with
from featstore.extraction.networks import Networks
from featstore.extraction.plan import ABSENT, CHANGED, NEW, NEW_TENSOR, REPLACED, ExtractionPlan
from featstore.extraction.rows import ShardBuffer
from featstore.extraction.summary import Summary
from featstore.photos import decoding
from featstore.photos import files as images
from featstore.photos.views import View
from featstore.store import ImageState, RowState, Writer, verify
from featstore.store.replacing import remove_tensors

EFFICIENT, RESNET, THIRD = "test_efficientnet", "test_resnet", "test_efficientnet_gn"
N = 6
OTHER_RESNET = {RESNET: "random:1", "*": "random:0"}
EAGER = Runtime(engine="eager")
retry = partial(retry_with, runtime=EAGER)


@dataclass
class Bench:
    """Photos and a store that holds all of them, and the networks that ran since it was last asked."""

    config: Config
    photos: Path
    ran: Counter[str] = field(default_factory=Counter)

    @property
    def store(self) -> Path:
        return Path(self.config.store)

    def update(self, config: Config | None = None, **options: Any) -> tuple[ExtractionPlan, Summary]:
        """Extract, and hold what happens against what the plan had said; a second run has to find nothing to do."""
        config = config or self.config
        before, shards = _files(self.store.parent), _shards(config.store)
        plan, networks = plan_extraction(config, **options)
        assert _files(self.store.parent) == before, "planning writes nothing"
        self.ran.clear()
        told: list[ExtractionPlan] = []
        summary = extract(config, on_plan=told.append, **options)
        assert list(map(plan_facts, told)) == [plan_facts(plan)]
        assert self.ran == _forward_passes(plan, networks)
        assert summary.n_computed == plan.n_computed
        assert summary.n_reused == summary.n_images - summary.n_computed
        made = {name: sizes for name, sizes in _shards(config.store).items() if name in _names(config)}
        replaced = {tensor.layout.name for tensor in plan.tensors if tensor.differences}
        old = {name: {} if name in replaced else shards.get(name, {}) for name in made}
        new = {name: [size for file, size in sizes.items() if file not in old[name]] for name, sizes in made.items()}
        assert new == {t.layout.name: [t.shard_bytes] * t.n_shards for t in plan.tensors}
        after = _files(self.store)
        idle = extract(config)
        assert (idle.n_computed, self.ran) == (0, _forward_passes(plan, networks))
        assert _files(self.store) == after, "nothing is left to do"
        return plan, summary

    def equals_a_fresh_store(self, config: Config | None = None, *, kept: Iterable[str] = ()) -> None:
        """Every feature, by path, is that of a store made now; beyond it there are just the rows of `kept`."""
        config = config or self.config
        fresh = self.store.with_name("fresh.zarr")
        extract(replace(config, store=fresh))
        ours, anew = _features(config.store), _features(fresh)
        for name in anew:
            assert set(ours[name]) == set(anew[name]) | set(kept)
            for path, values in anew[name].items():
                np.testing.assert_array_equal(ours[name][path], values, err_msg=f"{name}: {path}")
        found = verify(config.store)
        assert (found.findings, found.sound) == ([], True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def photos(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., None]) -> Path:
    """Six small photos, drawn once for all tests."""
    drawn = tmp_path_factory.getbasetemp() / "changes"
    if not drawn.exists():
        (drawn / "photos" / "sub").mkdir(parents=True)
        for i in range(N):
            draw(drawn / "photos" / ("sub" if i == N - 1 else "") / f"photo {i}.jpg", seed=i)
    return Path(shutil.copytree(drawn / "photos", tmp_path / "photos"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By backbone, the forward passes so far."""
    passes: Counter[str] = Counter()
    real = EagerEngine.run

    def counted(engine: EagerEngine, blocks: Any) -> Any:
        passes[engine.card.name] += 1
        return real(engine, blocks)

    monkeypatch.setattr(EagerEngine, "run", counted)
    return passes


@pytest.fixture
def bench(tiny_config: Config, photos: Path, ran: Counter[str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """`grid` (a stack) and `whole` (a concatenation) of all six photos; extracted once for all tests."""
    made = tmp_path_factory.getbasetemp() / "changes" / "features.zarr"
    if not made.exists():
        extract(replace(tiny_config, store=made))
    shutil.copytree(made, tiny_config.store)
    ran.clear()
    return Bench(tiny_config, photos, ran)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder."""
    return {str(f): (s.st_size, s.st_mtime_ns) for f in sorted(folder.rglob("*")) for s in [f.lstat()]}


def _shards(store: Any) -> dict[str, dict[str, int]]:
    """By tensor, the sizes of its shards."""
    found: dict[str, dict[str, int]] = {}
    for file in sorted(Path(store).glob("tensors/*/c.*")):
        found.setdefault(file.parent.name, {})[file.name] = file.stat().st_size
    return found


def _features(store: Any) -> dict[str, dict[str, NDArray[Any]]]:
    """By tensor and path, what the store holds."""
    return {
        name: dict(zip(tensor.paths, tensor.read(tensor.rows), strict=True))
        for name, tensor in featstore.open(store).tensors.items()
    }


def _states(store: Any, name: str = "grid") -> dict[str, int]:
    """By path, the state of a tensor's current row."""
    opened = featstore.open(store)
    return {path: int(opened[name].states[row]) for path, row in opened.images.rows_by_path.items()}


def _forward_passes(plan: ExtractionPlan, networks: Networks) -> Counter[str]:
    """By backbone, what the plan comes to: segments of one backbone and view share a pass."""
    shared: dict[tuple[str, View], int] = {}
    for key, n_photos in plan.passes.items():
        segment = networks.by_hash()[key]
        place = (segment.card.name, segment.view)
        shared[place] = max(n_photos, shared.get(place, 0))
    passes: Counter[str] = Counter()
    for (backbone, _), n_photos in shared.items():
        passes[backbone] += n_photos
    return passes


def _names(config: Config) -> list[str]:
    return [tensor.name for tensor in config.tensors]


def _stop_at(count: int) -> Callable[[str, int, int], None]:
    def report(stage: str, done: int, total: int) -> None:
        if stage == "extract" and done == count:
            raise KeyboardInterrupt

    return report


# ---- photos change


def _swap(photos: Path, draw: Callable[..., None]) -> None:
    (photos / "photo 0.jpg").rename(photos / "hand")
    (photos / "photo 1.jpg").rename(photos / "photo 0.jpg")
    (photos / "hand").rename(photos / "photo 1.jpg")


def _everything(photos: Path, draw: Callable[..., None]) -> None:
    draw(photos / "added.jpg", seed=99)
    draw(photos / "photo 3.jpg", seed=333)
    (photos / "photo 2.jpg").rename(photos / "sub" / "moved.jpg")
    (photos / "photo 4.jpg").unlink()
    os.utime(photos / "photo 1.jpg")


def _twice(photos: Path, draw: Callable[..., None]) -> None:
    draw(photos / "added.jpg", seed=99)
    shutil.copy(photos / "added.jpg", photos / "again.jpg")


P = "photo {}.jpg".format
SCENES: dict[str, tuple[Callable[[Path, Callable[..., None]], Any], dict[str, list[str]], int, list[str]]] = {
    # by name: what happens to the folder, the reasons, how many photos are computed, whose photos are missing after
    "nothing": (lambda photos, draw: None, {}, 0, []),
    "added": (lambda photos, draw: draw(photos / "added.jpg", seed=99), {NEW: ["added.jpg"]}, 1, []),
    "renamed": (lambda photos, draw: (photos / P(2)).rename(photos / "x.jpg"), {NEW: ["x.jpg"]}, 0, [P(2)]),
    "moved": (lambda photos, draw: (photos / P(2)).rename(photos / "sub/x.jpg"), {NEW: ["sub/x.jpg"]}, 0, [P(2)]),
    "copied": (lambda photos, draw: shutil.copy(photos / P(2), photos / "x.jpg"), {NEW: ["x.jpg"]}, 0, []),
    "changed": (lambda photos, draw: draw(photos / P(3), seed=333), {CHANGED: [P(3)]}, 1, []),
    "swapped": (_swap, {CHANGED: [P(0), P(1)]}, 0, []),
    "removed": (lambda photos, draw: (photos / P(4)).unlink(), {}, 0, [P(4)]),
    "touched": (lambda photos, draw: os.utime(photos / P(1)), {}, 0, []),
    "added twice": (_twice, {NEW: ["added.jpg", "again.jpg"]}, 2, []),  # nothing holds either when the run begins
    "all at once": (_everything, {CHANGED: [P(3)], NEW: ["added.jpg", "sub/moved.jpg"]}, 2, [P(2), P(4)]),
}


@pytest.mark.parametrize(
    ("scene", "prune"),
    [(name, prune) for name, scene in SCENES.items() for prune in ([False, True] if scene[3] else [False])],
)
def test_a_folder_that_changed_costs_just_the_photos_that_are_new(
    bench: Bench, draw: Callable[..., None], scene: str, prune: bool
) -> None:
    change, reasons, n_computed, missing = SCENES[scene]
    change(bench.photos, draw)
    before = _files(bench.store)
    plan, summary = bench.update(prune=prune)
    assert bench.ran == +Counter({EFFICIENT: 2 * n_computed, RESNET: 2 * n_computed})  # on two views
    assert summary.n_computed == n_computed
    n_copied = sum(map(len, reasons.values())) - n_computed
    for tensor in plan.tensors:
        names = [segment.name for segment in tensor.layout.segments]
        assert {reason: sorted(paths) for reason, paths in tensor.reasons.items()} == reasons
        assert tensor.computed == +Counter(dict.fromkeys(names, n_computed))
        assert tensor.copied == +Counter(dict.fromkeys(names, n_copied))
    current = featstore.open(bench.store).images.rows_by_path
    assert set(missing) & set(current) == (set() if prune else set(missing))
    if scene in ("nothing", "removed") and not prune:
        assert not plan.work
        assert _files(bench.store) == before
    bench.equals_a_fresh_store(kept=() if prune else missing)


def test_bytes_that_come_back_are_copied_from_the_row_that_is_gone(bench: Bench, draw: Callable[..., None]) -> None:
    file = bench.photos / P(3)
    earlier = file.read_bytes()
    draw(file, seed=333)
    bench.update()
    file.write_bytes(earlier)
    plan, summary = bench.update()
    assert (summary.n_computed, plan.tensors[0].reasons) == (0, {CHANGED: [P(3)]})
    assert plan.tensors[0].copied == {EFFICIENT: 1, RESNET: 1}
    images = featstore.open(bench.store).images
    assert [row for row, path in enumerate(images.paths) if path == P(3)] == [3, N, N + 1]
    assert [images.states[row] for row in (3, N, N + 1)] == [ImageState.GONE, ImageState.GONE, ImageState.READABLE]
    bench.equals_a_fresh_store()


@pytest.mark.parametrize("prune", [False, True])
def test_a_photo_that_comes_back_is_not_computed_again(bench: Bench, prune: bool) -> None:
    file = bench.photos / P(4)
    away = file.rename(bench.photos.parent / "away.jpg")
    bench.update(prune=prune)
    assert (4 in featstore.open(bench.store)["grid"].rows) is not prune
    away.rename(file)
    plan, summary = bench.update(prune=prune)
    assert plan.tensors[0].reasons == ({NEW: [P(4)]} if prune else {})
    assert (summary.n_computed, len(bench.ran)) == (0, 0)
    bench.equals_a_fresh_store()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The photos that are read for their digests from now on."""
    paths_read: list[str] = []
    real = images.digest_photos

    def digest(root: Path, paths: list[str], **options: Any) -> list[bytes]:
        paths_read.extend(paths)
        return real(root, paths, **options)

    monkeypatch.setattr("featstore.extraction.changes.digest_photos", digest)
    return paths_read


def test_a_touched_photo_is_hashed_once_and_then_known_again(bench: Bench, hashed: list[str]) -> None:
    os.utime(bench.photos / P(1))
    bench.update()
    assert hashed == [P(1)] * 2, "by the plan and by the run, and not by the run after it"


# ---- requests change

ADDED: dict[str, tuple[TensorSpec, dict[str, int], dict[str, int], dict[str, int]]] = {
    # by name: the tensor, the segments copied, those computed, the forward passes
    "a new backbone": (TensorSpec("new", "stack", (THIRD,)), {}, {THIRD: N}, {THIRD: N}),
    "some segments the same": (
        TensorSpec("new", "stack", (RESNET, THIRD, EFFICIENT)), {RESNET: N, EFFICIENT: N}, {THIRD: N}, {THIRD: N}
    ),
    "another order": (TensorSpec("new", "stack", (RESNET, EFFICIENT)), {RESNET: N, EFFICIENT: N}, {}, {}),
    "a wider stack": (TensorSpec("new", "stack", (RESNET,), width=128), {RESNET: N}, {}, {}),
    "joined instead of stacked": (
        TensorSpec("new", "concat", (EFFICIENT, RESNET), view="grid"), {RESNET: N, EFFICIENT: N}, {}, {}
    ),
    "from two tensors": (
        TensorSpec("new", "concat", (f"{RESNET}@grid", f"{EFFICIENT}:max@whole")),
        {RESNET: N, f"{EFFICIENT}:max": N}, {}, {},
    ),
    "another pooling": (
        TensorSpec("new", "stack", (RESNET, f"{RESNET}:max")), {RESNET: N}, {f"{RESNET}:max": N}, {RESNET: N}
    ),
    "another view": (TensorSpec("new", "stack", (RESNET,), view="small"), {}, {RESNET: N}, {RESNET: N}),
    "one segment twice": (TensorSpec("new", "stack", (THIRD, THIRD)), {}, {THIRD: 2 * N}, {THIRD: N}),
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_a_new_tensor_copies_the_segments_that_are_there(bench: Bench, name: str) -> None:
    tensor, copied, computed, passes = ADDED[name]
    views = {**bench.config.views, "small": View((64, 64))}
    config = replace(bench.config, views=views, tensors=(*bench.config.tensors, tensor))
    plan, _ = bench.update(config)
    assert [t.n_rows for t in plan.tensors] == [0, 0, N]
    assert {reason: len(paths) for reason, paths in plan.tensors[2].reasons.items()} == {NEW_TENSOR: N}
    assert (plan.tensors[2].copied, plan.tensors[2].computed, bench.ran) == (copied, computed, passes)
    bench.equals_a_fresh_store(config)


def test_segments_of_one_backbone_and_view_share_its_forward_pass(bench: Bench) -> None:
    poolings = (RESNET, f"{RESNET}:max")
    tensors = (
        TensorSpec("stacked", "stack", poolings),
        TensorSpec("joined", "concat", (*poolings, EFFICIENT), view="grid"),
        TensorSpec("widened", "stack", poolings, width=200),
    )
    config = replace(bench.config, store=bench.store.with_name("shared.zarr"), tensors=tensors)
    plan, summary = bench.update(config)
    assert bench.ran == {RESNET: N, EFFICIENT: N}
    assert (plan.n_computed, summary.n_computed) == (N, N)
    features = _features(config.store)
    for path, row in features["stacked"].items():
        np.testing.assert_array_equal(features["widened"][path][:, :, :96], row)
        np.testing.assert_array_equal(features["joined"][path][: 2 * 4 * 96], row.reshape(-1))


def test_photos_and_tensors_may_change_at_once(bench: Bench, draw: Callable[..., None]) -> None:
    _everything(bench.photos, draw)
    config = replace(bench.config, tensors=(*bench.config.tensors, TensorSpec("new", "stack", (RESNET, THIRD))))
    plan, summary = bench.update(config)
    assert bench.ran == {EFFICIENT: 2 * 2, RESNET: 2 * 2, THIRD: N}  # N: one photo was added and one is missing
    new = plan.tensors[2]
    assert {reason: len(paths) for reason, paths in new.reasons.items()} == {NEW: 2, CHANGED: 1, NEW_TENSOR: N - 3}
    assert (new.copied, new.computed) == ({RESNET: N - 2}, {RESNET: 2, THIRD: N})
    assert summary.n_computed == N
    assert set(_features(config.store)["grid"]) - set(_features(config.store)["new"]) == {P(2), P(4)}


# ---- tensors go


def _du(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_removing_a_tensor_frees_what_it_says(bench: Bench) -> None:
    whole = _features(bench.store)["whole"]
    before = _du(bench.store)
    freed = remove_tensors(bench.store, ["grid"])
    assert list(freed) == ["grid"]
    assert before - _du(bench.store) == pytest.approx(freed["grid"], abs=500)  # the list of checksums is shorter too
    assert freed["grid"] > 64 * 2 * 4 * 256 * 2
    assert list(featstore.open(bench.store)) == ["whole"]
    for path, values in _features(bench.store)["whole"].items():
        np.testing.assert_array_equal(values, whole[path])
    assert verify(bench.store).findings == []


@pytest.mark.parametrize("names", [["gird"], ["grid", "gird"]])
def test_removing_an_unknown_tensor_removes_nothing(bench: Bench, names: list[str]) -> None:
    before = _files(bench.store)
    with pytest.raises(StoreError, match=r"no tensor 'gird'; did you mean 'grid'"):
        remove_tensors(bench.store, names)
    assert _files(bench.store) == before
    with pytest.raises(StoreError, match="not a feature store"):
        remove_tensors(bench.store.with_name("nothing.zarr"), ["grid"])
    assert not bench.store.with_name("nothing.zarr").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../images", "grid/", "./grid", "grid/../whole"])
def test_what_is_no_name_of_a_tensor_removes_nothing(bench: Bench, name: str) -> None:
    before = {path: size for path, (size, _) in _files(bench.store).items()}
    with pytest.raises(StoreError, match="no tensor"):
        remove_tensors(bench.store, [name])
    assert {path: size for path, (size, _) in _files(bench.store).items()} == before


def test_a_tensor_named_twice_is_removed_once(bench: Bench) -> None:
    before = _du(bench.store)
    freed = remove_tensors(bench.store, ["grid", "grid"])
    assert before - _du(bench.store) == pytest.approx(freed["grid"], abs=500)


def test_the_last_tensor_may_go_and_come_back(bench: Bench) -> None:
    assert set(remove_tensors(bench.store, ["grid", "whole"])) == {"grid", "whole"}
    emptied = featstore.open(bench.store)
    assert (len(emptied), len(emptied.images)) == (0, N)
    assert not _shards(bench.store)
    plan, summary = bench.update()
    assert {reason for tensor in plan.tensors for reason in tensor.reasons} == {NEW_TENSOR}
    assert (summary.n_computed, bench.ran) == (N, {EFFICIENT: 2 * N, RESNET: 2 * N})
    bench.equals_a_fresh_store()


def test_a_removed_tensor_is_copied_back_where_another_has_its_segments(bench: Bench) -> None:
    config = replace(bench.config, tensors=(*bench.config.tensors, TensorSpec("spare", "stack", (RESNET,))))
    extract(config)
    remove_tensors(bench.store, ["grid"])
    bench.update(config)
    assert bench.ran == {EFFICIENT: N}
    bench.equals_a_fresh_store(config)


# ---- tensors are replaced


def _with_other_resnet(config: Config) -> Config:
    return replace(config, weights=replace(config.weights, named=OTHER_RESNET))


def test_other_weights_are_refused_in_words_and_replaced_when_told_to(bench: Bench) -> None:
    other = _with_other_resnet(bench.config)
    before = _files(bench.store)
    with pytest.raises(LayoutError) as refused:
        plan_extraction(other)
    assert "'grid'" in str(refused.value)
    assert f"{RESNET}: weights: random:1 " in str(refused.value)
    assert EFFICIENT not in str(refused.value)
    assert "--replace" in str(refused.value)
    assert _files(bench.store) == before
    n_old = sum(file.stat().st_size for name in ("grid", "whole") for file in bench.store.glob(f"*/{name}/*"))
    plan, summary = bench.update(other, replace=True)
    assert bench.ran == {RESNET: 2 * N}
    for tensor, n_same in zip(plan.tensors, ({EFFICIENT: N}, {EFFICIENT: N, f"{EFFICIENT}:max": N}), strict=True):
        assert (list(tensor.reasons), tensor.copied, tensor.computed) == ([REPLACED], n_same, {RESNET: N})
        (difference,) = tensor.differences
        assert difference.startswith(f"{RESNET}: weights: random:1 ")
    assert summary.n_reclaimed == pytest.approx(n_old, abs=500)
    assert list(featstore.open(bench.store)) == ["grid", "whole"]
    bench.equals_a_fresh_store(other)


REPLACED_BY: dict[str, tuple[TensorSpec, str, dict[str, int], str]] = {
    # by name: the tensor, its dtype, the forward passes, what differs
    "layout": (TensorSpec("grid", "concat", (EFFICIENT, RESNET), view="grid"), "float16", {}, "layout: concat here"),
    "width": (TensorSpec("grid", "stack", (EFFICIENT, RESNET), width=300), "float16", {}, r"row shape: \(2, 4, 300\)"),
    "order": (TensorSpec("grid", "stack", (RESNET, EFFICIENT)), "float16", {}, f"segments: {RESNET}, {EFFICIENT} here"),
    "one more": (TensorSpec("grid", "stack", (EFFICIENT, RESNET, THIRD)), "float16", {THIRD: N}, THIRD),
    "one less": (TensorSpec("grid", "stack", (RESNET,)), "float16", {}, f"segments: {RESNET} here"),
    "dtype": (
        TensorSpec("grid", "stack", (EFFICIENT, RESNET)), "float32", {EFFICIENT: N, RESNET: N}, "stored as float32 here"
    ),
    "view": (
        TensorSpec("grid", "stack", (EFFICIENT, RESNET), view="small"), "float16",
        {EFFICIENT: N, RESNET: N}, "photos resized to 64x64 here, 128x96 there",
    ),
    "view of another tensor": (
        TensorSpec("grid", "stack", (EFFICIENT, RESNET), view="whole"), "float16", {}, "cut into .* here"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLACED_BY)
def test_a_replaced_tensor_copies_what_is_the_same(bench: Bench, name: str) -> None:
    tensor, dtype, passes, differs = REPLACED_BY[name]
    whole = _features(bench.store)["whole"]
    views = {**bench.config.views, "small": View((64, 64))}
    config = replace(bench.config, tensors=(tensor,), dtype=dtype, views=views)
    with pytest.raises(LayoutError, match=differs):
        extract(config)
    bench.update(config, replace=True)
    assert bench.ran == passes
    bench.equals_a_fresh_store(config)
    assert list(featstore.open(bench.store)) == ["grid", "whole"]
    for path, values in _features(bench.store)["whole"].items():
        np.testing.assert_array_equal(values, whole[path])


def test_replace_leaves_alone_what_does_not_differ(bench: Bench) -> None:
    before = _files(bench.store)
    assert extract(bench.config, replace=True).n_computed == 0
    assert _files(bench.store) == before


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("n_done", [0, 3, N])
def test_what_is_replaced_stays_until_all_of_the_new_one_is_there(bench: Bench, n_done: int, again: bool) -> None:
    old = _features(bench.store)
    other = _with_other_resnet(bench.config)
    with pytest.raises(KeyboardInterrupt):
        extract(other, replace=True, on_progress=_stop_at(n_done))
    halfway = featstore.open(bench.store)
    assert {name: tensor.replaced_by for name, tensor in halfway.tensors.items()} == {
        "grid": None, "whole": None, "grid_replaced": "grid", "whole_replaced": "whole"
    }  # fmt: skip
    assert len(halfway["grid"].rows) == n_done
    assert verify(bench.store).sound
    for name in ("grid", "whole"):
        kept = _features(bench.store)[f"{name}_replaced"]
        assert set(kept) == set(old[name])
        for path, values in kept.items():
            np.testing.assert_array_equal(values, old[name][path])
    plan, summary = bench.update(other, replace=again)
    assert bench.ran == +Counter({RESNET: 2 * (N - n_done)})
    assert {reason for tensor in plan.tensors for reason in tensor.reasons} == ({ABSENT} if n_done < N else set())
    assert list(featstore.open(bench.store)) == ["grid", "whole"], "nothing called _replaced is left"
    assert summary.n_reclaimed > 0
    bench.equals_a_fresh_store(other)


def test_a_replacement_that_is_called_off_costs_nothing(bench: Bench) -> None:
    other = _with_other_resnet(bench.config)
    with pytest.raises(KeyboardInterrupt):
        extract(other, replace=True, on_progress=_stop_at(3))
    with pytest.raises(LayoutError, match=r"random:0 .* here, random:1 "):
        extract(bench.config)
    bench.update(replace=True)
    assert not bench.ran
    assert list(featstore.open(bench.store)) == ["grid", "whole"]
    bench.equals_a_fresh_store()


def test_a_tensor_that_happens_to_be_called_replaced_is_left_alone(bench: Bench) -> None:
    mine = TensorSpec("grid_replaced", "stack", (THIRD,))
    extract(replace(bench.config, tensors=(mine,)))
    values = _features(bench.store)["grid_replaced"]
    bench.update(_with_other_resnet(bench.config), replace=True)
    assert list(featstore.open(bench.store)) == ["grid", "grid_replaced", "whole"]
    for path, kept in _features(bench.store)["grid_replaced"].items():
        np.testing.assert_array_equal(kept, values[path])


@pytest.mark.parametrize("missing", [P(4), f"sub/{P(N - 1)}"])
def test_a_replacement_does_not_lose_the_rows_of_photos_that_are_away(bench: Bench, missing: str) -> None:
    """Rows of missing photos are kept unless they are pruned; another order of segments needs no photo."""
    (bench.photos / missing).unlink()
    order = TensorSpec("grid", "stack", (RESNET, EFFICIENT))
    extract(replace(bench.config, tensors=(order,)), replace=True)
    kept = [features[missing] for features in _features(bench.store).values() if missing in features]
    assert len(kept) == 2, "in `whole`, and in `grid` or what was set aside for it"


_KILLED = """
import os, signal
from pathlib import PosixPath
from featstore.backbones import WeightsPolicy
from featstore.config import Config, LabelsConfig, TensorSpec
from featstore.extraction.extract import extract
from featstore.photos.views import View

def report(stage, done, total):
    if stage == "extract" and done == 70:
        os.kill(os.getpid(), signal.SIGKILL)

extract({config!r}, replace=True, on_progress=report)
"""


def test_a_replacement_killed_on_the_way_goes_on(bench: Bench, draw: Callable[..., None]) -> None:
    for i in range(72 - N):
        draw(bench.photos / f"more {i:02}.jpg", seed=100 + i)
    config = replace(bench.config, tensors=bench.config.tensors[1:])
    extract(config)
    old = _features(bench.store)["whole"]
    other = _with_other_resnet(config)
    script = bench.photos.with_name("killed.py")
    script.write_text(_KILLED.format(config=other))
    assert subprocess.run([sys.executable, script], check=False).returncode == -signal.SIGKILL
    killed = featstore.open(bench.store)
    assert killed["whole_replaced"].replaced_by == "whole"
    assert verify(bench.store).sound
    for path, values in _features(bench.store)["whole_replaced"].items():
        np.testing.assert_array_equal(values, old[path])
    n_kept = len(killed["whole"].rows)
    assert n_kept in (0, 64)
    plan, networks = plan_extraction(other)
    bench.ran.clear()
    summary = extract(other)
    assert bench.ran == _forward_passes(plan, networks) == {RESNET: 72 - n_kept}
    assert "died" in summary.notices[0]
    assert list(featstore.open(bench.store)) == ["grid", "whole"]
    bench.equals_a_fresh_store(other)


# ---- photos that cannot be read


@dataclass
class Trouble:
    """Photos whose bytes Pillow cannot decode, until it can."""

    paths: set[str] = field(default_factory=set)


@pytest.fixture
def trouble(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    trouble, real = Trouble(), decoding.EncodedPhoto

    def opened(data: bytes, **options: float) -> Any:
        if any((photos / path).read_bytes() == data for path in trouble.paths):
            raise ImageError("a codec is missing")
        return real(data, **options)

    monkeypatch.setattr(decoding, "EncodedPhoto", opened)
    return trouble


@pytest.fixture
def failing(bench: Bench, trouble: Trouble, draw: Callable[..., None]) -> Bench:
    """Beside the six: an empty file, one that is no image, and one that cannot be decoded for now."""
    (bench.photos / "empty.jpg").touch()
    (bench.photos / "words.png").write_text("not an image")
    draw(bench.photos / "codec.jpg", seed=77)
    trouble.paths.add("codec.jpg")
    summary = extract(bench.config)
    assert {path: reason.partition(";")[0] for path, reason in summary.failed} == {
        "codec.jpg": "a codec is missing", "empty.jpg": "the file is empty (zero bytes)", "words.png": "not an image"
    }  # fmt: skip
    bench.ran.clear()
    return bench


def test_photos_that_failed_are_not_looked_at_again_unless_told(failing: Bench, trouble: Trouble) -> None:
    trouble.paths.clear()
    before = _files(failing.store)
    plan, _ = plan_extraction(failing.config)
    assert ([tensor.reasons for tensor in plan.tensors], plan.work) == ([{}, {}], False)
    summary = extract(failing.config)
    assert [path for path, _ in summary.failed] == ["codec.jpg", "empty.jpg", "words.png"]
    assert _files(failing.store) == before
    images = featstore.open(failing.store).images
    for path in ("codec.jpg", "empty.jpg", "words.png"):
        row = images.rows_by_path[path]
        assert (images.states[row], bool(images.errors[row])) == (ImageState.UNREADABLE, True)
        assert _states(failing.store)[path] == _states(failing.store, "whole")[path] == RowState.FAILED


def test_retry_computes_what_can_be_decoded_now_in_the_same_row(failing: Bench, trouble: Trouble) -> None:
    row = featstore.open(failing.store).images.rows_by_path["codec.jpg"]
    trouble.paths.clear()
    summary = retry(failing.store)
    assert (summary.n_images, summary.n_computed, summary.n_reused) == (3, 1, 0)
    assert [path for path, _ in summary.failed] == ["empty.jpg", "words.png"]
    assert failing.ran == {EFFICIENT: 2, RESNET: 2}
    store = featstore.open(failing.store)
    assert store.images.rows_by_path["codec.jpg"] == row
    assert (store.images.states[row], store.images.errors[row]) == (ImageState.READABLE, "")
    assert tuple(store.images.sizes[row]) > (0, 0)
    failing.equals_a_fresh_store()


def test_retry_lists_the_photos_once(
    failing: Bench, trouble: Trouble, draw: Callable[..., None], hashed: list[str]
) -> None:
    trouble.paths.clear()
    draw(failing.photos / "new.jpg", seed=77)
    assert retry(failing.store).n_computed == 1
    assert hashed == ["new.jpg"]


def test_retry_refuses_a_store_that_another_process_changes_meanwhile(failing: Bench, trouble: Trouble) -> None:
    trouble.paths.clear()

    def change(stage: str, done: int, total: int) -> None:
        if stage == "list":
            with Writer(failing.store) as writer:
                writer.set_image_states([0], ImageState.GONE)

    os.utime(failing.photos / P(1))
    with pytest.raises(LockedError, match="another process has just changed"):
        retry(failing.store, on_progress=change)


def test_retry_gives_a_mended_file_a_new_row(failing: Bench, draw: Callable[..., None]) -> None:
    row = featstore.open(failing.store).images.rows_by_path["empty.jpg"]
    draw(failing.photos / "empty.jpg", seed=55)
    summary = retry(failing.store)
    assert (summary.n_images, summary.n_computed, [path for path, _ in summary.failed]) == (
        3, 1, ["codec.jpg", "words.png"]
    )  # fmt: skip
    images = featstore.open(failing.store).images
    assert images.states[row] == ImageState.GONE
    assert images.rows_by_path["empty.jpg"] == N + 3
    failing.equals_a_fresh_store()


def test_retry_copies_what_is_mended_into_bytes_that_are_there(failing: Bench) -> None:
    shutil.copy(failing.photos / P(0), failing.photos / "words.png")
    summary = retry(failing.store)
    assert (summary.n_computed, failing.ran) == (0, {})
    failing.equals_a_fresh_store()


def test_retry_leaves_everything_else_alone(failing: Bench, trouble: Trouble, draw: Callable[..., None]) -> None:
    """A photo that is new, one that changed, one that is missing, and a tensor with absent rows."""
    more = TensorSpec("more", "stack", (THIRD,))
    with pytest.raises(KeyboardInterrupt):
        extract(replace(failing.config, tensors=(more,)), on_progress=_stop_at(2))
    before = _states(failing.store, "more")
    draw(failing.photos / "added.jpg", seed=99)
    draw(failing.photos / P(3), seed=333)
    (failing.photos / P(4)).unlink()
    os.utime(failing.photos / P(1))
    trouble.paths.clear()
    images = featstore.open(failing.store).images
    failing.ran.clear()
    retry(failing.store)
    assert failing.ran == {EFFICIENT: 2, RESNET: 2, THIRD: 1}, "every tensor that the store has"
    after = featstore.open(failing.store).images
    assert after.paths == images.paths
    np.testing.assert_array_equal(after.modified_ns, images.modified_ns)
    differing = {path for path, state in _states(failing.store, "more").items() if state != before[path]}
    assert {"codec.jpg"} <= differing <= {"codec.jpg", "empty.jpg", "words.png"}
    assert Counter(before.values())[RowState.ABSENT] > 3


@pytest.mark.parametrize("failed", [False, True])
def test_retry_with_nothing_to_do_writes_nothing(bench: Bench, failed: bool) -> None:
    if failed:  # and gone from the folder since
        (bench.photos / "empty.jpg").touch()
        extract(bench.config)
        (bench.photos / "empty.jpg").unlink()
    before = _files(bench.store)
    summary = retry(bench.store)
    assert (summary.n_images, summary.n_computed, summary.failed) == (0, 0, [])
    assert _files(bench.store) == before


def test_retry_has_to_know_where_the_photos_are(failing: Bench, trouble: Trouble) -> None:
    moved = failing.photos.rename(failing.photos.with_name("moved"))
    trouble.paths.clear()
    with pytest.raises(PhotosError, match="photos does not exist"):
        retry(failing.store)
    assert retry(failing.store, photos=moved).n_computed == 1
    remove_tensors(failing.store, ["grid", "whole"])
    with pytest.raises(PhotosError, match=r"does not say where its photos are; .* --photos"):
        retry(failing.store)


@pytest.mark.parametrize(
    ("named", "error"),
    [({RESNET: "random:1"}, LayoutError), ({RESNET: "nowhere.safetensors"}, WeightsError)],
)
def test_retry_that_is_refused_changes_nothing(
    failing: Bench, trouble: Trouble, named: dict[str, str], error: type[Exception]
) -> None:
    trouble.paths.clear()
    before = _features(failing.store), featstore.open(failing.store).images.errors, _states(failing.store)
    with pytest.raises(error):
        retry(failing.store, weights=replace(failing.config.weights, named=named))
    images = featstore.open(failing.store).images
    assert (images.errors, _states(failing.store)) == before[1:]
    assert Counter(images.states)[ImageState.UNREADABLE] == 3, "they are still to be tried again"
    assert retry(failing.store).n_computed == 1


def test_retry_that_is_stopped_is_taken_up_by_the_next_one(failing: Bench, trouble: Trouble) -> None:
    trouble.paths.clear()
    with pytest.raises(KeyboardInterrupt):
        retry(failing.store, on_progress=_stop_at(0))
    assert retry(failing.store).n_computed == 1
    failing.equals_a_fresh_store()


def test_retry_in_the_middle_of_a_replacement(failing: Bench, trouble: Trouble) -> None:
    other = _with_other_resnet(failing.config)
    with pytest.raises(KeyboardInterrupt):
        extract(other, replace=True, on_progress=_stop_at(3))
    trouble.paths.clear()
    retry(failing.store)
    extract(other)
    failing.equals_a_fresh_store(other)


def test_a_file_that_could_not_be_opened_is_taken_up_by_retry(bench: Bench, draw: Callable[..., None]) -> None:
    """The message of `--max-bad` says that it is."""
    later = bench.photos.with_name("later.jpg")
    (bench.photos / "link.jpg").symlink_to(later)
    assert dict(extract(bench.config).failed).keys() == {"link.jpg"}
    draw(later, seed=4711)
    assert retry(bench.store).n_computed == 1
    bench.equals_a_fresh_store()


def test_new_tensors_note_photos_that_failed_before(failing: Bench) -> None:
    config = replace(failing.config, tensors=(*failing.config.tensors, TensorSpec("new", "stack", (THIRD,))))
    plan, _ = plan_extraction(config)
    assert plan.tensors[2].n_rows == N
    failing.ran.clear()
    extract(config)
    assert failing.ran == {THIRD: N}
    assert Counter(_states(failing.store, "new").values()) == {RowState.PRESENT: N, RowState.FAILED: 3}
    after = _files(failing.store)
    extract(config)
    assert _files(failing.store) == after


# ---- compression, estimates, places


@pytest.mark.parametrize("compress", ["zstd", "blosc"])
def test_compressed_values_are_the_same_values(bench: Bench, compress: Any) -> None:
    config = replace(bench.config, store=bench.store.with_name("small.zarr"), compress=compress)
    extract(config)
    plain, small = _features(bench.store), _features(config.store)
    for name in plain:
        assert featstore.open(config.store)[name].compression == compress
        for path, values in plain[name].items():
            np.testing.assert_array_equal(small[name][path], values)
    assert sum(_shards(config.store)["grid"].values()) < sum(_shards(bench.store)["grid"].values())


@pytest.mark.parametrize(("before", "after"), [(None, "zstd"), ("zstd", None), ("zstd", "blosc")])
def test_a_tensor_keeps_the_compression_it_was_made_with(
    bench: Bench, draw: Callable[..., None], before: Any, after: Any
) -> None:
    config = replace(bench.config, store=bench.store.with_name("first.zarr"), compress=before)
    extract(config)
    files = _files(config.store)  # type: ignore[arg-type]
    later = replace(config, compress=after)
    bench.ran.clear()
    for told_to_replace in (False, True):
        assert extract(later, replace=told_to_replace).n_computed == 0
    assert (_files(config.store), bench.ran) == (files, {})  # type: ignore[arg-type]
    draw(bench.photos / "added.jpg", seed=99)
    assert extract(later).n_computed == 1
    assert featstore.open(config.store)["grid"].compression == before
    bench.equals_a_fresh_store(later)


def test_a_dry_run_says_what_then_appears_on_the_disk(bench: Bench, draw: Callable[..., None]) -> None:
    for i in range(60):
        draw(bench.photos / f"more {i:02}.jpg", seed=100 + i)
    for config in (
        bench.config,
        replace(bench.config, tensors=(TensorSpec("new", "stack", (RESNET, THIRD)),)),
        replace(bench.config, store=bench.store.with_name("fresh two.zarr")),
    ):
        shards = _shards(config.store)
        plan, networks = plan_extraction(config)
        before = _files(bench.store.parent)
        assert estimate(plan, networks, EAGER) is not None
        assert _files(bench.store.parent) == before
        extract(config)
        made = {
            name: [size for file, size in sizes.items() if file not in shards.get(name, {})]
            for name, sizes in _shards(config.store).items()
        }
        assert {t.layout.name: (t.n_shards, t.n_bytes) for t in plan.tensors} == {
            name: (len(sizes), sum(sizes)) for name, sizes in made.items() if name in _names(config)
        }
        assert plan.n_bytes == sum(map(sum, made.values()))
    assert plan.tensors[0].n_shards == 2
    done = plan_extraction(bench.config)
    assert estimate(*done, EAGER) is None


@pytest.mark.slow
def test_the_estimate_is_about_right(bench: Bench, draw: Callable[..., None]) -> None:
    for i in range(60):
        draw(bench.photos / f"more {i:02}.jpg", seed=100 + i)
    # Views so large that networks take most of the time: loading them and the disk are no part of the estimate.
    views = {"grid": View((384, 288), rows=2, columns=2), "whole": View((384, 288))}
    config = replace(bench.config, views=views, store=bench.store.with_name("timed.zarr"))
    guess = estimate(*plan_extraction(config), EAGER)
    assert guess is not None
    started = time.perf_counter()
    extract(config)
    elapsed_s = time.perf_counter() - started
    assert guess.total_s == pytest.approx((N + 60) * guess.seconds_per_photo)
    assert elapsed_s / 3 < guess.total_s < elapsed_s * 3


def test_photos_that_need_different_networks_all_count(bench: Bench) -> None:
    """One row is absent in `grid`, another in `whole`: two photos are computed."""
    with Writer(bench.store) as writer:
        writer.set_row_states("grid", [1], RowState.ABSENT)
        writer.set_row_states("whole", [2], RowState.ABSENT)
    plan, _ = plan_extraction(bench.config)
    assert [tensor.reasons for tensor in plan.tensors] == [{ABSENT: [P(1)]}, {ABSENT: [P(2)]}]
    assert plan.n_computed == extract(bench.config).n_computed == 2
    bench.equals_a_fresh_store()


def test_a_zip_cannot_be_extended(bench: Bench, draw: Callable[..., None]) -> None:
    zipped = Path(shutil.make_archive(str(bench.store), "zip", bench.store))
    config = replace(bench.config, store=zipped)
    assert extract(config).n_reused == N, "there is nothing to write"
    draw(bench.photos / "added.jpg", seed=99)
    before = zipped.read_bytes()
    for act in (lambda: extract(config), lambda: remove_tensors(zipped, ["grid"])):
        with pytest.raises(StoreError, match="can only be read; unpack it"):
            act()
    assert zipped.read_bytes() == before
    plan, _ = plan_extraction(config)
    assert plan.tensors[0].reasons == {NEW: ["added.jpg"]}


# ---- memory

WIDE = 21_000
BLOCK_BYTES = 64 * 4 * WIDE * 4
N_BLOCKS = 5


def test_at_most_two_blocks_are_in_memory(
    tiny_config: Config, photos: Path, draw: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks made and not committed, whenever one more is made; and the peak of all that numpy and Python take."""
    assert BLOCK_BYTES > 20e6
    draw(photos / "tile.jpg", seed=1)
    for i in range(64 * N_BLOCKS - N - 1):
        os.link(photos / "tile.jpg", photos / f"more {i:03}.jpg")
    monkeypatch.setattr(EagerEngine, "run", lambda self, blocks: [torch.ones(len(blocks), 96)])
    counts: list[int] = []
    committed: list[int] = []
    real = Writer.commit

    def commit(writer: Writer, number: int, *rest: Any) -> int:
        time.sleep(0.5)  # a slow disk: the next block is full long before
        n_bytes = real(writer, number, *rest)
        committed.append(number)
        return n_bytes

    class Watched(ShardBuffer):
        def __init__(self, *args: Any) -> None:
            counts.append(len(counts) + 1 - len(committed))
            time.sleep(0.05)  # a thread lets go of its block a moment after it says that it is done
            super().__init__(*args)

    monkeypatch.setattr(Writer, "commit", commit)
    monkeypatch.setattr(run, "ShardBuffer", Watched)
    wide = replace(tiny_config, dtype="float32", tensors=(TensorSpec("wide", "stack", (RESNET,), width=WIDE),))
    peaks = []

    def measure(stage: str, done: int, total: int) -> None:
        if stage != "extract":
            return
        if done == 0:  # with the networks loaded
            tracemalloc.start(1)
        elif done == total:
            peaks.append(tracemalloc.get_traced_memory()[1])

    try:
        extract(wide, on_progress=measure)
    finally:
        tracemalloc.stop()
    assert counts == [1, *[2] * (N_BLOCKS - 1)]
    assert 1.5 * BLOCK_BYTES < peaks[0] < 2.5 * BLOCK_BYTES
    assert len(featstore.open(wide.store)["wide"].rows) == 64 * N_BLOCKS
