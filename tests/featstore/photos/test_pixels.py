"""Tensors of pixels: 8-bit RGB as a view sees it, stored, read, verified and repaired like features."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from typer.testing import CliRunner, Result

import featstore
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.errors import BackboneError, ConfigError, FormatError, LayoutError, StoreError
from featstore.extraction import pipeline
from featstore.extraction.extract import extract, retry
from featstore.extraction.recompute import recompute
from featstore.identity import PIXEL_TOLERANCE
from featstore.photos import decoding
from featstore.photos.views import View
from featstore.store import ImageState, RowState, Writer, repair, verify

Pixels = NDArray[np.uint8]
N = 10
EAGER = Runtime(engine="eager")
VIEWS = {
    "grid": View((64, 48), rows=2, columns=2),
    "whole": View((64, 48)),
    "sharp": View((64, 40), interpolation="lanczos"),
}
PX, PG = TensorSpec("px", "pixels", ("pixels@whole",)), TensorSpec("pg", "pixels", ("pixels@grid",))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """Whole photos and their blocks, of 64 x 48 pixels, in row blocks of four."""
    with Writer(tiny_config.store, block_rows=4):
        pass
    return replace(tiny_config, views=VIEWS, tensors=(PX, PG))


def resized(file: Path, size: tuple[int, int] = (64, 48), filter: int = Image.Resampling.BILINEAR) -> Pixels:
    """What Pillow alone makes of a file."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize(size, filter))


def blocks_of(whole: Pixels) -> Pixels:
    return np.stack([whole[y : y + 24, x : x + 32] for y in (0, 24) for x in (0, 32)])


def expected(config: Config, name: str = "px") -> dict[str, Pixels]:
    """By path, what a tensor of `config` should hold."""
    assert config.photos is not None
    paths = [path.relative_to(config.photos).as_posix() for path in sorted(config.photos.rglob("*.*"))]
    whole = {path: resized(config.photos / path) for path in paths}
    return whole if name == "px" else {path: blocks_of(pixels) for path, pixels in whole.items()}


def assert_holds(place: Any, name: str, pixels: dict[str, Pixels]) -> None:
    tensor = featstore.open(place)[name]
    assert sorted(tensor.paths) == sorted(pixels)
    for path, row in zip(tensor.paths, tensor.read(tensor.rows), strict=True):
        np.testing.assert_array_equal(row, pixels[path], err_msg=path)


def command(*words: Any) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


# ---- what is stored


def test_pixels_are_what_pillow_makes_of_the_photos(config: Config) -> None:
    summary = extract(config)
    assert (summary.n_computed, summary.failed, summary.notices, summary.engines) == (N, [], [], {})
    store = featstore.open(config.store)
    assert (store["px"].shape, store["pg"].shape) == ((N, 48, 64, 3), (N, 4, 24, 32, 3))
    assert store["px"].layout.axes == ("image", "y", "x", "channel")
    assert store["pg"].layout.axes == ("image", "block", "y", "x", "channel")
    assert store["px"].dtype == store["pg"].dtype == np.uint8
    for name in ("px", "pg"):
        assert_holds(config.store, name, expected(config, name))
    (segment,) = store["px"].layout.segments
    assert segment.identity == {"view": VIEWS["whole"].facts(), "decoding": decoding.DECODE_RULES, "dtype": "uint8"}
    assert extract(config).n_computed == 0


def test_every_way_of_reading_gives_the_same_pixels(config: Config) -> None:
    extract(config)
    for name in ("px", "pg"):
        tensor = featstore.open(config.store)[name]
        rows = np.stack([expected(config, name)[path] for path in tensor.paths])
        blocks = list(tensor.iter_blocks())
        assert [numbers.tolist() for numbers, _ in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]), rows)
        lazy = tensor.dask()
        assert (lazy.dtype, lazy.shape) == (np.uint8, rows.shape)
        np.testing.assert_array_equal(lazy.compute(), rows)
        labelled = tensor.xarray()
        assert labelled.dims == tensor.layout.axes
        np.testing.assert_array_equal(labelled.sel(image="photo 3.jpg").values, expected(config, name)["photo 3.jpg"])
        dataset = tensor.torch()
        assert (len(dataset), dataset[3][1].dtype) == (N, torch.uint8)  # type: ignore[arg-type]
        batches = list(DataLoader(dataset, batch_size=4))
        np.testing.assert_array_equal(torch.cat([values for _, values in batches]).numpy(), rows)
        plain = zarr.open(config.store, mode="r")[f"tensors/{name}"]
        assert plain.dtype == np.uint8
        names = plain.metadata.dimension_names  # those of one store are shared, so that they have to be its own
        assert (names[0], names[1:]) == ("image", tuple(f"{name}_{axis}" for axis in tensor.layout.axes[1:]))
        np.testing.assert_array_equal(plain[:], rows)
        np.testing.assert_array_equal(tensor.read([7, 2]), rows[[7, 2]])


def test_the_commands_make_pixels_of_the_built_in_views(photos: Path, tmp_path: Path) -> None:
    for file in sorted(photos.rglob("*.jpg"))[2:]:
        file.unlink()
    with Writer(tmp_path / "a.zarr", block_rows=2):
        pass
    words = ["--tensor", "px=pixels:pixels", "--tensor", "pg=pixels:pixels@grid", "--json"]
    done = command("extract", photos, "--store", tmp_path / "a.zarr", *words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["computed"] == 2
    store = featstore.open(tmp_path / "a.zarr")
    assert (store["px"].shape, store["pg"].shape) == ((2, 400, 600, 3), (2, 16, 100, 150, 3))
    whole = resized(photos / store.images.paths[1], (600, 400))
    np.testing.assert_array_equal(store["px"].read([1])[0], whole)
    np.testing.assert_array_equal(store["pg"].read([1])[0, 5], whole[100:200, 150:300])
    told = command("info", tmp_path / "a.zarr")
    assert "2 x 400 x 600 x 3" in told.stdout
    assert "uint8" in told.stdout


def test_featstore_toml_makes_pixels(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("featstore.toml").write_text(
        'photos = "photos"\ndtype = "float32"\ncompress = "blosc"\n'
        '[views.sharp]\nsize = [32, 40]\ngrid = [1, 2]\ninterpolation = "lanczos"\n'
        '[tensors.px]\nlayout = "pixels"\nview = "sharp"\nsegments = ["pixels"]\n'
    )
    assert command("extract").exit_code == 0
    tensor = featstore.open("cache/features.zarr")["px"]
    assert (tensor.shape, tensor.dtype, tensor.compression) == ((N, 2, 40, 16, 3), np.uint8, "blosc")
    whole = resized(photos / "photo 3.jpg", (32, 40), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(tensor.read([3])[0], np.stack([whole[:, :16], whole[:, 16:]]))


@pytest.mark.parametrize("options", [{"batch": 3}, {"engine": "auto"}])
def test_nothing_that_runs_networks_matters(config: Config, options: dict[str, Any]) -> None:
    extract(replace(config, precision="bf16"), runtime=Runtime(**options))
    assert_holds(config.store, "pg", expected(config, "pg"))
    assert extract(replace(config, precision="fp32")).n_computed == 0


def test_an_idle_run_does_not_wait_for_torch(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(config)

    def import_torch(*args: Any) -> Any:
        raise AssertionError("nothing has to be computed")

    monkeypatch.setattr("featstore.extraction.extract.choose_device", import_torch)
    assert extract(config).n_computed == 0


# ---- beside features


def test_pixels_beside_features_share_the_decode(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **options: (done.update([name]), real(*args, **options))[1])

    count(pipeline, "open_photo")
    count(pipeline, "resize")
    count(decoding, "_to_rgb")
    features = TensorSpec("t", "concat", ("test_resnet@whole", "test_resnet:max@grid"))
    sharp = TensorSpec("sharp", "pixels", ("pixels@sharp",))
    summary = extract(replace(config, tensors=(features, PX, PG, sharp)))
    assert summary.engines == {"test_resnet": "eager"}
    assert done == {"open_photo": N, "_to_rgb": N, "resize": 2 * N}, "two sizes; blocks are cut from the whole"
    assert_holds(config.store, "px", expected(config))
    other = Path(config.store).with_name("other.zarr")
    extract(replace(config, tensors=(features,), store=other))
    np.testing.assert_array_equal(
        featstore.open(other)["t"].read(range(N)), featstore.open(config.store)["t"].read(range(N))
    )


def test_pixels_added_later_run_no_network(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    features = TensorSpec("t", "concat", ("test_resnet@whole",))
    extract(replace(config, tensors=(features,)))
    monkeypatch.setattr("featstore.engines.eager.EagerEngine.run", lambda *args: pytest.fail("a network ran"))
    assert extract(replace(config, tensors=(features, PX))).n_computed == N
    assert_holds(config.store, "px", expected(config))


# ---- what changes, what is copied


def test_only_photos_that_changed_are_done_again(config: Config, draw: Callable[..., None]) -> None:
    extract(config)
    assert config.photos is not None
    draw(config.photos / "photo 3.jpg", seed=333)
    draw(config.photos / "another.jpg", seed=99)
    assert extract(config).n_computed == 2
    for name in ("px", "pg"):
        assert_holds(config.store, name, expected(config, name))


def test_pixels_are_copied_from_another_store_and_another_tensor(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(config)
    monkeypatch.setattr(pipeline, "open_photo", lambda *args, **options: pytest.fail("a photo was opened"))
    mine = replace(config, store=Path(config.store).with_name("mine.zarr"))
    assert extract(mine, reuse=[config.store]).n_computed == 0
    assert_holds(mine.store, "pg", expected(config, "pg"))
    again = replace(config, tensors=(replace(PX, name="again"),))
    assert extract(again).n_computed == 0
    assert_holds(config.store, "again", expected(config))


def test_another_view_under_the_same_name_is_refused_and_replaced_on_demand(config: Config) -> None:
    extract(config)
    other = replace(config, tensors=(TensorSpec("px", "pixels", ("pixels@sharp",)),))
    with pytest.raises(LayoutError, match="pixels: photos resized to "):
        extract(other)
    assert extract(other, replace=True).n_computed == N
    assert featstore.open(config.store)["px"].shape == (N, 40, 64, 3)
    assert verify(config.store).sound


def test_unreadable_photos_are_rows_with_a_reason_and_are_tried_again(config: Config, photos: Path) -> None:
    (photos / "empty.jpg").touch()
    assert [path for path, _ in extract(config).failed] == ["empty.jpg"]
    store = featstore.open(config.store)
    row = store.images.rows_by_path["empty.jpg"]
    assert (store["px"].states[row], store.images.states[row]) == (RowState.FAILED, ImageState.UNREADABLE)
    assert_holds(config.store, "px", {p: e for p, e in expected_readable(config).items() if p != "empty.jpg"})
    shutil.copy(photos / "photo 0.jpg", photos / "empty.jpg")
    summary = retry(config.store, runtime=EAGER)
    assert (summary.failed, summary.n_computed) == ([], 0), "the same bytes are copied"
    assert_holds(config.store, "px", expected(config))


def expected_readable(config: Config) -> dict[str, Pixels]:
    assert config.photos is not None
    (config.photos / "empty.jpg").unlink()
    found = expected(config)
    (config.photos / "empty.jpg").touch()
    return found


# ---- proof and damage


@pytest.mark.parametrize("compress", [None, "zstd", "blosc"])
def test_one_byte_that_changed_is_found_and_mended(config: Config, compress: Any) -> None:
    config = replace(config, compress=compress)
    extract(config)
    assert featstore.open(config.store)["px"].compression == compress
    assert verify(config.store).sound
    (shard,) = Path(config.store).glob("tensors/px/c.1*")
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    found = verify(config.store)
    assert not found.sound
    assert {finding.tensor for finding in found.damage} == {"px"}
    with pytest.raises(StoreError):
        featstore.open(config.store)["px"].read(range(N))
    done = repair(config.store)
    assert done.remaining == []
    assert done.absent == {"px": [4]}
    assert extract(config).n_computed == 1
    assert_holds(config.store, "px", expected(config))
    assert (verify(config.store).sound, verify(config.store).findings) == (True, [])


def test_recompute_proves_pixels(config: Config) -> None:
    extract(config)
    again = recompute(config.store, N, runtime=EAGER)
    assert again.within
    assert [(c.tensor, c.segment, c.n_rows, c.largest_error) for c in again.comparisons] == [
        ("pg", "pixels", N, 0), ("px", "pixels", N, 0)
    ]  # fmt: skip
    done = command("verify", config.store, "--recompute", "3", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["recomputed"]["within"] is True


def test_recompute_finds_pixels_that_are_wrong(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(config)
    real = pipeline.resize
    monkeypatch.setattr(pipeline, "resize", lambda *args: np.roll(real(*args), 1, axis=2))
    again = recompute(config.store, N, runtime=EAGER)
    assert not again.within
    assert all(c.largest_error > PIXEL_TOLERANCE for c in again.comparisons)


def test_a_black_photo_is_a_row_like_any_other(config: Config, photos: Path) -> None:
    """Its pixels are those of a row that was never written, and it is not one."""
    Image.new("RGB", (100, 80)).save(photos / "black.png")
    Image.new("RGB", (100, 80), "white").save(photos / "white.png")
    extract(config)
    store = featstore.open(config.store)
    row = store.images.rows_by_path["black.png"]
    assert store["px"].states[row] == RowState.PRESENT
    assert not store["px"].read([row]).any()
    assert_holds(config.store, "px", expected(config))
    assert verify(config.store).sound
    assert recompute(config.store, N + 2, runtime=EAGER).within
    assert extract(config).n_computed == 0
    (shard,) = [file for file in Path(config.store).glob("tensors/px/c.*") if f"c.{row // 4}." in file.name]
    data = bytearray(shard.read_bytes())
    data[(row % 4) * (48 * 64 * 3 + 4) + 100] ^= 1  # now its own bytes are damaged
    shard.write_bytes(data)
    assert repair(config.store).absent == {"px": [row]}
    assert extract(config).n_computed == 1
    assert_holds(config.store, "px", expected(config))


@pytest.mark.parametrize("part", ["rows", "checksums"])
@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_black_photo_survives_a_lost_record(config: Config, photos: Path, part: str, compress: Any) -> None:
    Image.new("RGB", (100, 80)).save(photos / "black.png")
    config = replace(config, compress=compress)
    extract(config)
    for file in Path(config.store).glob(f"{part}/px/c*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert not verify(config.store).sound
    assert repair(config.store).absent == {}, "the shards and the other record say enough"
    assert extract(config).n_computed == 0
    assert_holds(config.store, "px", expected(config))
    assert verify(config.store).sound


def test_compressed_pixels_are_the_same_and_smaller(config: Config, photos: Path) -> None:
    for file in photos.rglob("*.jpg"):
        Image.linear_gradient("L").resize((100, 80)).save(file)
    extract(config)
    small = replace(config, store=Path(config.store).with_name("small.zarr"), compress="zstd")
    extract(small)
    assert_holds(small.store, "px", expected(config))
    n_bytes = [sum(f.stat().st_size for f in Path(s).glob("tensors/*/c*")) for s in (config.store, small.store)]
    assert n_bytes[1] < n_bytes[0] / 4
    assert verify(small.store).sound


# ---- what is refused


@pytest.mark.parametrize(
    ("plan", "error", "told"),
    [
        (TensorSpec("new", "pixels", ("pixels", "pixels@grid")), ConfigError, "a tensor of pixels has one segment"),
        (TensorSpec("new", "pixels", ("test_resnet@whole",)), ConfigError, "tensor of pixels has one segment, pixels@"),
        (TensorSpec("new", "pixels", ("pixels", "test_resnet")), ConfigError, "a tensor of pixels has one segment"),
        (TensorSpec("new", "concat", ("pixels@whole",)), ConfigError, "pixels"),
        (TensorSpec("new", "concat", ("test_resnet", "pixels@whole")), ConfigError, "pixels"),
        (TensorSpec("new", "stack", ("pixels@grid",)), ConfigError, "pixels"),
        (TensorSpec("new", "pixels", ("pixels:max",)), BackboneError, "unknown backbone 'pixels'"),
        (TensorSpec("new", "pixels", ("pixels@hole",)), ConfigError, "did you mean 'whole'"),
    ],
)  # fmt: skip
def test_what_is_no_tensor_of_pixels_is_refused_and_spoils_nothing(
    config: Config, plan: TensorSpec, error: type[Exception], told: str
) -> None:
    extract(config)
    try:
        with pytest.raises(error, match=told):
            extract(replace(config, tensors=(plan,)))
    finally:
        assert list(featstore.open(config.store)) == ["pg", "px"], "the store opens as before"


def test_a_refused_tensor_leaves_no_store_that_cannot_be_opened(config: Config) -> None:
    place = Path(config.store).with_name("new.zarr")
    with pytest.raises(ConfigError):
        extract(replace(config, store=place, tensors=(TensorSpec("t", "concat", ("pixels@whole",)),)))
    if place.exists():
        try:
            featstore.open(place).tensors  # noqa: B018
        except FormatError as refused:
            pytest.fail(str(refused))


@pytest.mark.parametrize("system", ["amtl", "ridge"])
def test_heads_say_that_they_do_not_read_pixels(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    from heads.cli import app as heads

    monkeypatch.chdir(tmp_path)
    extract(config)
    paths = featstore.open(config.store).images.paths
    (tmp_path / "labels.csv").write_text("\n".join(["path,liked", *(f"{path},{i}" for i, path in enumerate(paths))]))
    for words in ([], ["--tensor", "px"]):
        done = CliRunner().invoke(heads, ["train", system, str(config.store), "--labels", "labels.csv", *words])
        assert isinstance(done.exception, SystemExit), repr(done.exception)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert "px (pixels)" in done.stderr
