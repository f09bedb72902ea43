"""Tensors some of whose members cannot be computed here: their weights are missing, or they come from elsewhere."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import featstore
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.engines.eager import EagerEngine
from featstore.errors import ConfigError, LayoutError, WeightsError
from featstore.extraction import pipeline
from featstore.extraction.extract import extract, plan_extraction, retry
from featstore.extraction.recompute import recompute
from featstore.store import RowState, SeenImages, StoredSegment, TensorLayout, Writer, verify

RESNET, EFFICIENT = "test_resnet", "test_efficientnet"
N = 10
EAGER = Runtime(engine="eager")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By backbone, the forward passes so far; and of `decoded`, the photos that were opened."""
    passes: Counter[str] = Counter()
    run, open_photo = EagerEngine.run, pipeline.open_photo

    def counted(engine: EagerEngine, *args: Any) -> Any:
        passes[engine.card.name] += 1
        return run(engine, *args)

    def opened(*args: Any, **options: Any) -> Any:
        passes["decoded"] += 1
        return open_photo(*args, **options)

    monkeypatch.setattr(EagerEngine, "run", counted)
    monkeypatch.setattr(pipeline, "open_photo", opened)
    return passes


def files(place: Any) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(Path(place).rglob("*")) if file.is_file()}


def rows_of(place: Any, name: str) -> dict[str, NDArray[Any]]:
    """By path, what a tensor holds."""
    tensor = featstore.open(place)[name]
    return dict(zip(tensor.paths, tensor.read(tensor.rows), strict=True))


def assert_same(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> None:
    assert ours.keys() == theirs.keys()
    for path, row in theirs.items():
        np.testing.assert_array_equal(ours[path], row, err_msg=path)


def command(*words: Any) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


# ---- weights that are missing


@pytest.fixture
def partly(tiny_config: Config) -> Config:
    """Of three segments of two backbones, one backbone has weights."""
    plan = TensorSpec("t", "concat", (EFFICIENT, RESNET, f"{EFFICIENT}:max"))
    weights = replace(tiny_config.weights, named={RESNET: "random:0"})
    return replace(tiny_config, weights=weights, tensors=(plan,))


def with_weights(config: Config) -> Config:
    return replace(config, weights=replace(config.weights, named={"*": "random:0"}))


@pytest.mark.parametrize("missing", [EFFICIENT, "youtube8m"])
def test_without_weights_a_run_is_refused_and_the_ways_on_are_listed(partly: Config, missing: str) -> None:
    config = replace(partly, tensors=(TensorSpec("t", "concat", (RESNET, missing)),))
    with pytest.raises(WeightsError, match=rf"backbone '{missing}'") as refused:
        extract(config)
    assert "--allow-missing" in str(refused.value)
    assert not Path(config.store).exists()


def test_what_has_no_weights_is_left_out_and_the_tensor_says_so(partly: Config, ran: Counter[str]) -> None:
    summary = extract(partly, allow_missing=True)
    assert summary.n_computed == N
    assert ran == {RESNET: N, "decoded": N}
    (notice,) = summary.notices
    assert EFFICIENT in notice
    assert "left out" in notice
    tensor = featstore.open(partly.store)["t"]
    assert tensor.shape == (N, 96), "no room is kept for what is missing"
    assert tensor.layout.missing == (EFFICIENT, f"{EFFICIENT}:max")
    assert [segment.name for segment in tensor.layout.segments] == [RESNET]
    plain = zarr.open(partly.store, mode="r")["tensors/t"]
    assert plain.attrs["missing"] == [EFFICIENT, f"{EFFICIENT}:max"], "any reader can see it"
    alone = replace(
        partly, store=Path(partly.store).with_name("alone.zarr"), tensors=(TensorSpec("t", "concat", (RESNET,)),)
    )
    extract(alone)
    assert_same(rows_of(partly.store, "t"), rows_of(alone.store, "t"))
    assert "missing" not in zarr.open(alone.store, mode="r")["tensors/t"].attrs


def test_a_second_run_has_nothing_to_do_and_says_again_what_is_missing(partly: Config, ran: Counter[str]) -> None:
    extract(partly, allow_missing=True)
    before = files(partly.store)
    ran.clear()
    summary = extract(partly, allow_missing=True)
    assert (summary.n_computed, ran, len(summary.notices)) == (0, {}, 1)
    assert files(partly.store) == before
    with pytest.raises(WeightsError, match=EFFICIENT):
        extract(partly)


def test_weights_that_come_later_are_not_mixed_in_and_replace_computes_just_them(
    partly: Config, ran: Counter[str]
) -> None:
    extract(partly, allow_missing=True)
    before = files(partly.store)
    later = with_weights(partly)
    with pytest.raises(LayoutError, match=rf"segments: {EFFICIENT}, {RESNET}, {EFFICIENT}:max here, {RESNET} there"):
        extract(later)
    assert files(partly.store) == before
    ran.clear()
    summary = extract(later, replace=True)
    assert summary.notices == []
    assert ran == {EFFICIENT: N, "decoded": N}, "what was there is copied"
    tensor = featstore.open(partly.store)["t"]
    assert (tensor.shape, tensor.layout.missing) == ((N, 256 + 96 + 256), ())
    assert list(featstore.open(partly.store)) == ["t"]
    fresh = replace(later, store=Path(partly.store).with_name("fresh.zarr"))
    extract(fresh)
    assert_same(rows_of(partly.store, "t"), rows_of(fresh.store, "t"))


def test_a_tensor_that_is_whole_is_not_cut_down(partly: Config) -> None:
    """Where the weights are not, what others have computed with them stays."""
    extract(with_weights(partly))
    before = files(partly.store)
    with pytest.raises(LayoutError, match="segments: "):
        extract(partly, allow_missing=True)
    assert files(partly.store) == before


def test_replace_does_not_lose_what_cannot_be_made_again(partly: Config) -> None:
    extract(with_weights(partly))
    before = files(partly.store)
    with pytest.raises(LayoutError, match=f"holds {EFFICIENT}.*whose weights are not here"):
        extract(partly, allow_missing=True, replace=True)
    assert files(partly.store) == before


def test_nothing_but_missing_members_is_an_error(partly: Config) -> None:
    nothing = replace(partly, tensors=(TensorSpec("t", "concat", (EFFICIENT, "youtube8m")),))
    with pytest.raises(WeightsError, match=r"(?s)'test_efficientnet'.*'youtube8m'"):
        extract(nothing, allow_missing=True)
    assert not Path(partly.store).exists()


def test_a_tensor_of_nothing_but_missing_members_is_not_made_and_is_named(partly: Config) -> None:
    other = TensorSpec("other_tensor", "concat", (EFFICIENT,))
    summary = extract(replace(partly, tensors=(*partly.tensors, other)), allow_missing=True)
    assert list(featstore.open(partly.store)) == ["t"]
    assert any("other_tensor" in notice for notice in summary.notices)


def test_retry_and_verify_need_no_weights_that_are_missing(partly: Config, photos: Path) -> None:
    (photos / "bad.jpg").write_text("not yet a photo")
    extract(partly, allow_missing=True)
    again = recompute(partly.store, N, weights=partly.weights, runtime=EAGER)
    assert (again.within, [each.segment for each in again.comparisons]) == (True, [RESNET])
    (photos / "bad.jpg").write_bytes((photos / "photo 1.jpg").read_bytes() + b"x")
    summary = retry(partly.store, weights=partly.weights, runtime=EAGER)
    assert (summary.n_computed, summary.failed) == (1, [])
    assert verify(partly.store).sound
    assert featstore.open(partly.store)["t"].layout.missing == (EFFICIENT, f"{EFFICIENT}:max")


@pytest.fixture
def words(photos: Path, tmp_path: Path) -> list[str]:
    words = ["extract", photos, "--store", tmp_path / "a.zarr", "--engine", "eager", "--weights", f"{RESNET}=random:0"]
    words += ["--weights-folder", tmp_path / "weights", "--tensor", f"t=concat:{RESNET},{EFFICIENT}"]
    return [str(word) for word in words]


def test_the_commands_say_what_is_missing(words: list[str], tmp_path: Path) -> None:
    refused = command(*words)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: no weights for backbone {EFFICIENT!r}")
    assert not (tmp_path / "a.zarr").exists()
    done = command(*words, "--allow-missing")
    assert done.exit_code == 0
    assert f"note: left out, as their weights are not here: {EFFICIENT}" in done.stdout
    facts = json.loads(command("info", tmp_path / "a.zarr", "--json").stdout)
    assert facts["tensors"]["t"]["missing"] == [EFFICIENT]
    assert EFFICIENT in command("info", tmp_path / "a.zarr").stdout
    later = command(*words, "--weights", f"{EFFICIENT}=random:0")
    assert later.exit_code == 1
    assert f"segments: {RESNET}, {EFFICIENT} here, {RESNET} there" in later.stderr
    assert "--replace" in later.stderr


@pytest.mark.parametrize("option", ["--dry-run", "--explain"])
def test_a_plan_says_what_would_be_left_out(words: list[str], option: str) -> None:
    planned = command(*words, "--allow-missing", option)
    assert planned.exit_code == 0
    assert EFFICIENT in planned.stdout


# ---- features that come from elsewhere


@pytest.fixture
def base(tiny_config: Config) -> Config:
    """A store that has the photos, and another tensor of the same backbone."""
    config = replace(tiny_config, tensors=(TensorSpec("grid", "stack", (RESNET,)),))
    extract(config)
    return config


def bring_in(
    place: Any, rows: list[int], *, name: str = "mine", sha256: str = "ab", dtype: str = "float16", n_blocks: int = 1
) -> NDArray[Any]:
    """Write features (N, T, 5) of some rows as `featstore import` would; returns those of all rows."""
    facts = {"imported": name, "sha256": sha256, "dtype": dtype}
    segment = StoredSegment(f"imported/{name}", facts, n_blocks, 5)
    layout = TensorLayout(name, "concat" if n_blocks == 1 else "stack", (segment,))
    with Writer(place) as writer:
        writer.ensure_tensor(layout, dtype)
        n_rows = len(writer.store.images)
        values = np.random.default_rng(len(sha256)).random((n_rows, n_blocks, 5)).astype(dtype)
        states = writer.store[name].states.copy()
        states[rows] = RowState.PRESENT
        features = np.full((n_rows, *layout.row_shape), np.nan, dtype)
        there = np.flatnonzero(states == RowState.PRESENT)
        features[there] = values[there].reshape(len(there), *layout.row_shape)
        writer.commit(0, {name: (features, states)}, SeenImages([], [], [], []))
    return values


JOINED = TensorSpec("both", "concat", (RESNET, "imported/mine"))


def test_imported_and_computed_features_are_joined(base: Config, ran: Counter[str]) -> None:
    values = bring_in(base.store, list(range(N)))
    ran.clear()
    summary = extract(replace(base, tensors=(JOINED, TensorSpec("alone", "concat", (RESNET,)))))
    assert (summary.n_computed, summary.notices) == (N, [])
    assert ran == {RESNET: N, "decoded": N}
    store = featstore.open(base.store)
    assert store["both"].shape == (N, 96 + 5)
    rows = store["both"].read(range(N))
    np.testing.assert_array_equal(rows[:, :96], store["alone"].read(range(N)))
    np.testing.assert_array_equal(rows[:, 96:], values[:, 0])
    assert [s.name for s in store["both"].layout.segments] == [RESNET, "imported/mine"]
    assert store["both"].layout.segments[1].hash == store["mine"].layout.segments[0].hash
    assert extract(replace(base, tensors=(JOINED,))).n_computed == 0
    assert verify(base.store).sound
    again = recompute(base.store, N, weights=base.weights, runtime=EAGER)
    assert again.within
    assert {(c.tensor, c.segment) for c in again.comparisons} == {
        ("grid", RESNET), ("both", RESNET), ("alone", RESNET)
    }  # fmt: skip


def test_blocks_that_were_imported_are_stacked_with_computed_ones(base: Config, ran: Counter[str]) -> None:
    values = bring_in(base.store, list(range(N)), n_blocks=4)
    plan = TensorSpec("both", "stack", ("imported/mine", RESNET))
    ran.clear()
    assert extract(replace(base, tensors=(plan,))).n_computed == 0
    assert ran == {}, "all of it is in the store already"
    store = featstore.open(base.store)
    rows = store["both"].read(range(N))
    assert rows.shape == (N, 2, 4, 96)
    np.testing.assert_array_equal(rows[:, 0, :, :5], values)
    assert not rows[:, 0, :, 5:].any()
    np.testing.assert_array_equal(rows[:, 1], store["grid"].read(range(N))[:, 0])


def test_rows_without_imported_features_wait_for_them(base: Config, ran: Counter[str]) -> None:
    bring_in(base.store, list(range(6)))
    config = replace(base, tensors=(JOINED,))
    ran.clear()
    summary = extract(config)
    assert summary.n_computed == 6
    assert ran == {RESNET: 6, "decoded": 6}
    store = featstore.open(base.store)
    (notice,) = summary.notices
    assert "tensor both: 4 rows wait for features that have to be imported" in notice
    assert store.images.paths[6] in notice
    assert store["both"].rows.tolist() == list(range(6))
    assert set(store["both"].states[6:].tolist()) == {RowState.ABSENT}

    ran.clear()
    before = files(base.store)
    idle = extract(config)
    assert (idle.n_computed, ran, idle.notices) == (0, {}, summary.notices)
    assert files(base.store) == before

    values = bring_in(base.store, list(range(N)))
    filled = extract(config)
    assert (filled.n_computed, filled.notices) == (4, [])
    assert ran == {RESNET: 4, "decoded": 4}
    np.testing.assert_array_equal(featstore.open(base.store)["both"].read(range(N))[:, 96:], values[:, 0])
    assert verify(base.store).sound


def test_rows_that_wait_are_not_computed_for_another_tensors_sake(base: Config, ran: Counter[str]) -> None:
    """Every photo is opened for `other`; the members of `both` would be thrown away where it waits."""
    bring_in(base.store, list(range(6)))
    config = replace(base, tensors=(JOINED, TensorSpec("other", "concat", (EFFICIENT,))))
    plan, networks = plan_extraction(config)
    told = {networks.stored()[key].name: n_photos for key, n_photos in plan.passes.items()}
    assert told == {RESNET: 6, EFFICIENT: N}
    ran.clear()
    extract(config)
    assert ran == {RESNET: 6, EFFICIENT: N, "decoded": N}


def test_a_new_photo_waits_too_and_is_listed(base: Config, draw: Callable[..., None], ran: Counter[str]) -> None:
    bring_in(base.store, list(range(N)))
    config = replace(base, tensors=(JOINED,))
    extract(config)
    assert base.photos is not None
    draw(base.photos / "another.jpg", seed=99)
    ran.clear()
    summary = extract(config)
    assert (summary.n_computed, ran) == (0, {})
    assert "another.jpg" in summary.notices[0]
    assert summary.n_reused == N, "a row that waits is not one that was there"
    store = featstore.open(base.store)
    assert store.images.paths[N] == "another.jpg"
    assert store["both"].rows.tolist() == list(range(N))
    bring_in(base.store, [N])
    assert extract(config).n_computed == 1


def test_a_new_photo_waits_in_one_tensor_and_is_computed_for_another(
    base: Config, draw: Callable[..., None], ran: Counter[str]
) -> None:
    bring_in(base.store, list(range(N)))
    config = replace(base, tensors=(JOINED, TensorSpec("other", "concat", (EFFICIENT,))))
    extract(config)
    assert base.photos is not None
    draw(base.photos / "another.jpg", seed=99)
    ran.clear()
    assert extract(config).n_computed == 1
    assert ran == {EFFICIENT: 1, "decoded": 1}
    store = featstore.open(base.store)
    assert (N in store["other"].rows, N in store["both"].rows) == (True, False)


def test_explain_says_what_waits(base: Config) -> None:
    bring_in(base.store, list(range(6)))
    options = ["--store", base.store, "--weights", "random:0", "--engine", "eager", "--dry-run"]
    planned = command("extract", base.photos, *options, "--tensor", f"both=concat:{RESNET},imported/mine")
    assert planned.exit_code == 0
    assert "tensor both: 6 rows to fill" in planned.stdout
    assert "4 rows wait" in planned.stdout


@pytest.mark.parametrize(
    ("segment", "told"),
    [
        ("imported/mien", "names imported/mien, which .* does not have; did you mean 'mine'?"),
        ("imported/", "names imported/, which .* does not have"),
        ("imported/grid", r"names imported/grid, which .* does not have"),  # it was computed here
        ("imported/both", r"names imported/both, which .* does not have"),  # it begins with imported features
    ],
)
def test_imported_features_that_there_are_not(base: Config, segment: str, told: str) -> None:
    bring_in(base.store, list(range(N)))
    extract(replace(base, tensors=(TensorSpec("both", "concat", ("imported/mine", RESNET)),)))
    before = files(base.store)
    with pytest.raises(ConfigError, match=told):
        extract(replace(base, tensors=(TensorSpec("new", "concat", (segment, RESNET)),)))
    assert files(base.store) == before


def test_imported_features_before_there_is_a_store(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"does not have; there are none \(`featstore import mine --from FILE`"):
        extract(replace(tiny_config, tensors=(JOINED,)))
    assert not Path(tiny_config.store).exists()


def test_imported_features_of_another_dtype_are_refused(base: Config) -> None:
    bring_in(base.store, list(range(N)))
    with pytest.raises(ConfigError, match="imported/mine is float16, tensor 'both' float32; import it again with"):
        extract(replace(base, tensors=(JOINED,), dtype="float32"))
    bring_in(base.store, list(range(N)), name="wide", dtype="float32")
    wide = TensorSpec("both", "concat", (RESNET, "imported/wide"))
    with pytest.raises(ConfigError, match="imported/wide is float32, tensor 'both' float16"):
        extract(replace(base, tensors=(wide,)))
    assert extract(replace(base, tensors=(wide,), dtype="float32")).n_computed == N


def test_other_features_under_the_imported_name_are_other_features(base: Config) -> None:
    bring_in(base.store, list(range(N)))
    config = replace(base, tensors=(JOINED,))
    extract(config)
    with Writer(base.store) as writer:
        writer.remove("mine")
    values = bring_in(base.store, list(range(N)), sha256="cde")
    with pytest.raises(LayoutError, match="imported/mine: sha256: cde here, ab there"):
        extract(config)
    extract(config, replace=True)
    np.testing.assert_array_equal(featstore.open(base.store)["both"].read(range(N))[:, 96:], values[:, 0])


def test_imported_copies_and_missing_members_in_one_tensor(base: Config) -> None:
    values = bring_in(base.store, list(range(N)))
    plan = TensorSpec("both", "concat", ("youtube8m", "imported/mine", RESNET))
    config = replace(base, tensors=(plan,), weights=replace(base.weights, named={RESNET: "random:0"}))
    extract(config, allow_missing=True)
    tensor = featstore.open(base.store)["both"]
    assert (tensor.shape, tensor.layout.missing) == ((N, 5 + 96), ("youtube8m",))
    np.testing.assert_array_equal(tensor.read(range(N))[:, :5], values[:, 0])


def test_what_import_brings_in_is_joined_by_the_commands(base: Config, tmp_path: Path) -> None:
    paths = featstore.open(base.store).images.paths
    values = np.random.default_rng(0).random((N - 1, 5)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", paths=np.array(paths[1:]), features=values)
    imported = command("import", "mine", "--from", tmp_path / "mine.npz", "--store", base.store)
    assert imported.exit_code == 0, imported.output
    options = ["--store", base.store, "--weights", "random:0", "--engine", "eager"]
    joined = command("extract", base.photos, *options, "--tensor", f"both=concat:imported/mine,{RESNET}")
    assert joined.exit_code == 0, joined.output
    assert f"note: tensor both: 1 rows wait for features that have to be imported, as of {paths[0]}" in joined.stdout
    rows = featstore.open(base.store)["both"].read(range(1, N))
    np.testing.assert_array_equal(rows[:, :5], values.astype(np.float16))
