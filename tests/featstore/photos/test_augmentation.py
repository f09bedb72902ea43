"""Augmented copies of photos: that each is what its amounts say, the same everywhere, and stays with its photo."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from typer.testing import CliRunner, Result

import featstore
from featstore.backbones import Output, find_card, resolve_weights
from featstore.backbones.networks import build_network
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.errors import ConfigError, LayoutError
from featstore.extraction import pipeline
from featstore.extraction.extract import extract, retry
from featstore.extraction.recompute import recompute
from featstore.identity import canonical
from featstore.photos.augmentation import RULES, Augmentation
from featstore.photos.views import AUGMENTED, INTERPOLATIONS, View, cut, resize
from featstore.store import ImageState, Writer, verify
from featstore.toml import read_config

RESNET, EFFICIENT = "test_resnet", "test_efficientnet"
N, C = 10, 3
SIZE = (64, 48)  # more than half of any photo here: none is decoded at a half of its size
OFF = Augmentation(copies=C, crop=0.0, blur=0.0, brightness=0.0, rotation=0.0)
SOME = Augmentation(copies=C)
DIGEST = hashlib.sha256(b"a photo").digest()
EAGER = Runtime(engine="eager")
VIEWS = {
    "plain": View(SIZE),
    "copies": View(SIZE, augmentation=SOME),
    "blocks": View(SIZE, rows=2, columns=2, augmentation=SOME),
    "seeded": View(SIZE, augmentation=replace(SOME, seed=1)),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """Three copies of each photo through two miniatures, joined and stacked, and as pixels; in row blocks of four."""
    with Writer(tiny_config.store, block_rows=4):
        pass
    joined = TensorSpec("joined", "concat", (RESNET, f"{EFFICIENT}:max"), view="copies")
    stacked = TensorSpec("stacked", "stack", (RESNET, EFFICIENT), view="blocks")
    return replace(tiny_config, views=VIEWS, tensors=(joined, stacked, TensorSpec("px", "pixels", ("pixels@copies",))))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def copies_of(
    photo: Image.Image,
    augmentation: Augmentation,
    *,
    digest: bytes = DIGEST,
    size: tuple[int, int] = SIZE,
    **facts: Any,
) -> NDArray[np.uint8]:
    return resize(photo, View(size, augmentation=augmentation, **facts), digest)


def by_digest(place: Any, name: str) -> dict[bytes, NDArray[Any]]:
    store = featstore.open(place)
    return {store.images.digests[row].tobytes(): store[name].read([row])[0] for row in store[name].rows}


def assert_same(ours: dict[bytes, NDArray[Any]], theirs: dict[bytes, NDArray[Any]]) -> None:
    assert ours.keys() == theirs.keys()
    for key, row in theirs.items():
        np.testing.assert_array_equal(ours[key], row)


def command(*words: Any) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


# ---- what a copy is


def draw_amount(what: str, copy: int, *, seed: int = 0, digest: bytes = DIGEST) -> float:
    told = hashlib.sha256(digest + f"/{seed}/{copy}/{what}".encode()).digest()
    return int.from_bytes(told[:7], "big") / 2**56


def by_hand(photo: Image.Image, amounts: Augmentation, copy: int, *, digest: bytes = DIGEST) -> NDArray[np.uint8]:
    """A copy that is not turned, step by step."""

    def draw(what: str) -> float:
        return draw_amount(what, copy, seed=amounts.seed, digest=digest)

    kept = 1 - amounts.crop * draw("crop")
    width, height = kept * photo.width, kept * photo.height
    left, top = (photo.width - width) * draw("x"), (photo.height - height) * draw("y")
    small = photo.resize(SIZE, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    small = small.filter(ImageFilter.GaussianBlur(amounts.blur * draw("blur")))
    return np.asarray(ImageEnhance.Brightness(small).enhance(1 + amounts.brightness * (2 * draw("brightness") - 1)))


def test_a_copy_is_what_its_amounts_say() -> None:
    photo, amounts = noise(90, 70), Augmentation(copies=8, seed=7, rotation=0.0)
    found = copies_of(photo, amounts)
    assert found.shape == (8, 48, 64, 3)
    for copy in range(8):
        np.testing.assert_array_equal(found[copy], by_hand(photo, amounts, copy))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_with_everything_off_a_copy_is_the_plain_resize(interpolation: str) -> None:
    photo = noise(91, 67)
    plain = resize(photo, View(SIZE, interpolation=interpolation), b"")
    assert plain.shape == (1, 48, 64, 3)
    np.testing.assert_array_equal(copies_of(photo, OFF, interpolation=interpolation), np.repeat(plain, C, axis=0))


def test_the_same_photo_gives_the_same_copies_and_any_other_fact_others() -> None:
    photo = noise(90, 70)
    first = copies_of(photo, SOME)
    np.testing.assert_array_equal(copies_of(photo, SOME), first)
    assert len({copy.tobytes() for copy in first}) == C
    others = [copies_of(photo, replace(SOME, seed=1)), copies_of(photo, SOME, digest=hashlib.sha256(b"b").digest())]
    assert not any(np.array_equal(a, b) for other in others for a in other for b in first)


def test_more_copies_begin_with_those_of_fewer() -> None:
    photo = noise(90, 70)
    np.testing.assert_array_equal(
        copies_of(photo, replace(SOME, copies=8))[:4], copies_of(photo, replace(SOME, copies=4))
    )


def plane(width: int, height: int) -> Image.Image:
    """Red says how far right a pixel is, green how far down."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.dstack([x, y, np.zeros_like(x)]).astype(np.uint8))


def test_crop_cuts_at_most_its_share_and_keeps_the_shape() -> None:
    found = copies_of(plane(240, 160), replace(OFF, crop=0.5, copies=30)).astype(float)
    left, right = found[:, :, 0, 0].mean(1), found[:, :, -1, 0].mean(1)
    top, bottom = found[:, 0, :, 1].mean(1), found[:, -1, :, 1].mean(1)
    kept_x, kept_y = (right - left) / (240 * 63 / 64), (bottom - top) / (160 * 47 / 48)
    assert 0.48 < kept_x.min() < 0.6
    assert 0.9 < kept_x.max() <= 1.01
    np.testing.assert_allclose(kept_x, kept_y, atol=0.02)
    assert left.std() > 5, "the place is drawn too"
    assert top.std() > 5


def test_rotation_turns_at_most_its_degrees_either_way() -> None:
    found = copies_of(plane(240, 240), replace(OFF, rotation=20.0, copies=30), size=(64, 64)).astype(float)
    inside = found[:, 8:-8, 8:-8, 0]
    slope_x, slope_y = np.gradient(inside, axis=2).mean((1, 2)), np.gradient(inside, axis=1).mean((1, 2))
    degrees = np.degrees(np.arctan2(slope_y, slope_x))
    assert degrees.min() < -10
    assert degrees.max() > 10
    assert np.abs(degrees).max() < 20.5
    expected = [20 * (2 * draw_amount("rotation", copy) - 1) for copy in range(30)]
    assert np.abs(np.abs(degrees) - np.abs(expected)).max() < 0.5


def test_blur_is_at_most_its_own() -> None:
    photo = noise(*SIZE)
    found = copies_of(photo, replace(OFF, blur=2.0, copies=20)).astype(float).std((1, 2, 3))
    most = np.asarray(photo.filter(ImageFilter.GaussianBlur(2.0))).astype(float).std()
    assert most * 0.999 <= found.min() < most * 1.5
    assert np.asarray(photo).astype(float).std() >= found.max() > 2 * most


def test_brightness_stays_in_its_bounds() -> None:
    found = copies_of(Image.new("RGB", (90, 70), (100, 100, 100)), replace(OFF, brightness=0.25, copies=50))
    assert (found == found[:, :1, :1]).all()
    values = found[:, 0, 0, 0]
    assert 75 <= values.min() < 80
    assert 120 < values.max() <= 125
    bright = copies_of(Image.new("RGB", (90, 70), "white"), replace(OFF, brightness=1.0, copies=50))[:, 0, 0, 0]
    assert bright.max() == 255, "and does not run over"


@given(
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    out=st.sampled_from([(48, 32), (33, 57), (150, 100)]),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    rotation=st.sampled_from([1.0, 10.0, 45.0]),
    crop=st.sampled_from([0.0, 0.2]),
    number=st.integers(0, 99),
)
@example((101, 77), (48, 32), "bilinear", 10.0, 0.0, 0)
@example((600, 400), (600, 400), "bilinear", 10.0, 0.0, 0)
@example((2401, 1601), (600, 400), "bilinear", 10.0, 0.0, 0)
@example((8, 8), (48, 32), "lanczos", 45.0, 0.0, 0)
@example((33, 250), (48, 32), "lanczos", 10.0, 0.2, 0)
def test_no_corner_of_a_turned_photo_is_black(
    size: tuple[int, int], out: tuple[int, int], interpolation: str, rotation: float, crop: float, number: int
) -> None:
    """A photo of one colour stays one."""
    colour = (255, 200, 100)
    amounts = replace(OFF, rotation=rotation, crop=crop, blur=1.5, copies=4)
    digest = hashlib.sha256(bytes([number])).digest()
    found = copies_of(Image.new("RGB", size, colour), amounts, digest=digest, size=out, interpolation=interpolation)
    assert (found == np.array(colour, np.uint8)).all(), found.reshape(-1, 3).min(0)


# ---- where it is stated


def test_the_identity_states_every_amount(config: Config) -> None:
    extract(config)
    for tensor in featstore.open(config.store).tensors.values():
        for segment in tensor.layout.segments:
            assert segment.n_copies == C
            assert segment.identity["view"]["augmentation"] == {
                "rules": RULES, "copies": C, "seed": 0, "crop": 0.2, "blur": 1.5, "brightness": 0.25, "rotation": 10.0
            }  # fmt: skip
            view = VIEWS["blocks" if tensor.name == "stacked" else "copies"]
            assert View.from_facts(json.loads(json.dumps(segment.identity["view"]))) == view
    assert "augmentation" not in View().facts()
    with pytest.raises(LayoutError, match=r"augmentation: .*\"seed\":1.* here, .*\"seed\":0.* there"):
        extract(replace(config, views={**VIEWS, "copies": VIEWS["seeded"]}))


def test_amounts_that_are_equal_are_the_same_feature() -> None:
    whole = Augmentation(crop=0, blur=2, brightness=1, rotation=10)
    broken = Augmentation(crop=0.0, blur=2.0, brightness=1.0, rotation=10.0)
    assert whole == broken
    assert canonical(View(augmentation=whole).facts()) == canonical(View(augmentation=broken).facts())


@pytest.mark.parametrize(
    ("amounts", "told"),
    [
        ({"copies": 0}, "copies is 0, expected 1 to 255"),
        ({"copies": 256}, "copies is 256, expected 1 to 255"),
        ({"crop": -0.1}, "crop is -0.1, expected 0 to 0.9"),
        ({"crop": 0.95}, "crop is 0.95, expected 0 to 0.9"),
        ({"blur": -1}, "blur is -1.0, expected 0 to 50"),
        ({"brightness": 1.5}, "brightness is 1.5, expected 0 to 1"),
        ({"rotation": 46}, "rotation is 46.0, expected 0 to 45"),
        ({"rotation": float("nan")}, "rotation is nan, expected 0 to 45"),
    ],
)
def test_amounts_out_of_bounds_are_refused_in_words(amounts: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Augmentation(**amounts)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("augment = { copies = 0 }", r"views\.x: augmentation: copies is 0, expected 1 to 255"),
        ("augment = { rotation = 90 }", r"views\.x: augmentation: rotation is 90.0, expected 0 to 45"),
        ("augment = { copys = 3 }", r"views\.x\.augment\.copys: unknown key; did you mean 'copies'"),
        ('augment = { seed = "a" }', r"views\.x\.augment\.seed: "),
        ("augment = { copies = 2.5 }", r"views\.x\.augment\.copies: "),
        ("augment = 4", r"views\.x\.augment: "),
    ],
)
def test_featstore_toml_is_checked(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "featstore.toml").write_text(f"[views.x]\n{line}\n")
    with pytest.raises(ConfigError, match=told):
        read_config(tmp_path / "featstore.toml")


def test_featstore_toml_makes_augmented_views(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("featstore.toml").write_text(
        'photos = "photos"\nengine = "eager"\n'
        "[views.x]\nsize = [64, 48]\naugment = { copies = 2, seed = 3, crop = 0, rotation = 5 }\n"
        "[views.y]\nsize = [64, 48]\naugment = {}\n"
        f'[tensors.t]\nlayout = "concat"\nview = "x"\nsegments = ["{RESNET}"]\n'
        f'[tensors.u]\nlayout = "pixels"\nsegments = ["pixels@y"]\n[backbones.{RESNET}]\nweights = "random:0"\n'
    )
    assert command("extract").exit_code == 0
    store = featstore.open("cache/features.zarr")
    assert (store["t"].shape, store["u"].shape) == ((N, 2, 96), (N, 4, 48, 64, 3))
    expected = Augmentation(copies=2, seed=3, crop=0.0, rotation=5.0)
    assert View.from_facts(store["t"].layout.segments[0].identity["view"]) == View(SIZE, augmentation=expected)


def test_the_command_knows_the_built_in_augmented_view(photos: Path, tmp_path: Path) -> None:
    for file in sorted(photos.rglob("*.jpg"))[2:]:
        file.unlink()
    words = ["extract", photos, "--store", tmp_path / "a.zarr", "--engine", "eager"]
    done = command(*words, "--tensor", "t=concat:lite0@augmented,lite0:max@augmented", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    tensor = featstore.open(tmp_path / "a.zarr")["t"]
    assert (tensor.shape, tensor.layout.axes) == ((2, 4, 2560), ("image", "copy", "feature"))
    assert View.from_facts(tensor.layout.segments[0].identity["view"]) == AUGMENTED
    assert "2 x 4 x 2560" in command("info", tmp_path / "a.zarr").stdout
    mixed = command(*words, "--tensor", "u=concat:lite0@augmented,lite0@whole")
    assert mixed.exit_code == 1
    assert "tensor 'u' joins segments with unequal numbers of augmented copies" in mixed.stderr


# ---- copies in a store


def test_copies_share_the_row_of_their_photo(config: Config) -> None:
    summary = extract(config)
    assert (summary.n_computed, summary.failed) == (N, [])
    store = featstore.open(config.store)
    assert {name: (store[name].shape, store[name].layout.axes) for name in store} == {
        "joined": ((N, C, 96 + 256), ("image", "copy", "feature")),
        "stacked": ((N, 2, C, 4, 256), ("image", "backbone", "copy", "block", "feature")),
        "px": ((N, C, 48, 64, 3), ("image", "copy", "y", "x", "channel")),
    }
    for name in store:
        labelled = store[name].xarray()
        assert labelled.dims == store[name].layout.axes
        assert labelled.sel(image="photo 3.jpg").isel(copy=1).shape == labelled.shape[1:2] * (name == "stacked") + (
            labelled.shape[3:] if name == "stacked" else labelled.shape[2:]
        )
    assert extract(config).n_computed == 0


POOLED = (Output(pooling="avg"), Output(pooling="max"))


def test_features_are_the_backbones_own_of_each_copy(config: Config) -> None:
    """Copies made here, with PIL alone; a copy that is turned is taken as the tensor of pixels has it."""
    flat = replace(SOME, rotation=0.0)
    views = {name: replace(view, augmentation=flat) for name, view in VIEWS.items() if view.augmentation}
    config = replace(config, views=views)
    extract(config)
    store = featstore.open(config.store)
    assert config.photos is not None
    networks = {
        name: build_network(find_card(name), resolve_weights(find_card(name), config.weights), POOLED)
        for name in (RESNET, EFFICIENT)
    }
    for row, path in enumerate(store.images.paths):
        photo, digest = featstore.read_photo(config.photos / path), store.images.digests[row].tobytes()
        assert digest == hashlib.sha256((config.photos / path).read_bytes()).digest()
        copies = np.stack([by_hand(photo, flat, copy, digest=digest) for copy in range(C)])
        np.testing.assert_array_equal(store["px"].read([row])[0], copies)
        pixels = torch.from_numpy(copies)
        with torch.inference_mode():
            resnet, efficient = networks[RESNET](pixels), networks[EFFICIENT](pixels)
            joined = torch.cat([resnet[0], efficient[1]], 1)
            blocks = cut(pixels, View(SIZE, rows=2, columns=2))
            stacked = [networks[name](blocks)[0].reshape(C, 4, -1) for name in (RESNET, EFFICIENT)]
        np.testing.assert_allclose(store["joined"].read([row])[0], joined, rtol=2e-3, atol=1e-4)
        found = store["stacked"].read([row])[0]
        for b, features in enumerate(stacked):
            np.testing.assert_allclose(found[b, ..., : features.shape[-1]], features, rtol=2e-3, atol=1e-4)
        assert not found[0, ..., 96:].any()


def test_copies_do_not_depend_on_names_order_or_neighbours(config: Config, photos: Path) -> None:
    extract(config)
    elsewhere = photos.parent / "elsewhere"
    elsewhere.mkdir()
    for i, name in enumerate(("photo 7.jpg", "photo 2.jpg", "sub/photo 9.jpg")):
        shutil.copy(photos / name, elsewhere / f"{i}.jpg")
    other = replace(config, photos=elsewhere, store=Path(config.store).with_name("other.zarr"))
    extract(other, runtime=Runtime(engine="eager", batch=1))
    for name in ("joined", "stacked", "px"):
        ours, theirs = by_digest(other.store, name), by_digest(config.store, name)
        assert_same(ours, {digest: theirs[digest] for digest in ours})


def test_a_photo_that_changed_has_other_copies(config: Config, photos: Path) -> None:
    """Even where only a byte behind its pixels did."""
    extract(config)
    before = featstore.open(config.store)["px"].read([3])[0]
    with (photos / "photo 3.jpg").open("ab") as file:
        file.write(b"!")
    assert extract(config).n_computed == 1
    store = featstore.open(config.store)
    assert store.images.states[3] == ImageState.GONE
    after = store["px"].read([store.images.rows_by_path["photo 3.jpg"]])[0]
    assert not any(np.array_equal(a, b) for a in before for b in after)


def test_a_run_that_was_stopped_ends_with_the_same_copies(config: Config) -> None:
    whole = replace(config, store=Path(config.store).with_name("whole.zarr"))
    extract(whole)

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("extract", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(config, on_progress=stop)
    assert extract(config).n_computed == 5
    for name in ("joined", "stacked", "px"):
        assert_same(by_digest(config.store, name), by_digest(whole.store, name))


def test_retry_verify_and_recompute_know_copies(config: Config, photos: Path) -> None:
    data = (photos / "photo 5.jpg").read_bytes()
    (photos / "photo 5.jpg").write_bytes(data[:600])
    assert [path for path, _ in extract(config).failed] == ["photo 5.jpg"]
    (photos / "photo 5.jpg").write_bytes(data)
    summary = retry(config.store, weights=config.weights, runtime=EAGER)
    assert (summary.n_computed, summary.failed) == (1, [])
    again = recompute(config.store, N, weights=config.weights, runtime=EAGER)
    assert again.within
    assert len(again.comparisons) == 5
    assert all(c.n_rows == N and c.largest_error < 1e-3 for c in again.comparisons)
    assert verify(config.store).sound
    done = command("verify", config.store, "--recompute", "2", "--weights", "random:0", "--engine", "eager")
    assert done.exit_code == 0


def test_copies_are_reused_from_other_tensors_and_stores(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(config)
    monkeypatch.setattr(pipeline, "open_photo", lambda *args, **options: pytest.fail("a photo was opened"))
    mine = replace(config, store=Path(config.store).with_name("mine.zarr"))
    assert extract(mine, reuse=[config.store]).n_computed == 0
    for name in ("joined", "stacked", "px"):
        assert_same(by_digest(mine.store, name), by_digest(config.store, name))
    flat = TensorSpec("flat", "concat", (f"{RESNET}@blocks",))
    assert extract(replace(config, tensors=(flat,))).n_computed == 0
    store = featstore.open(config.store)
    assert store["flat"].shape == (N, C, 4 * 96)
    np.testing.assert_array_equal(
        store["flat"].read(range(N)).reshape(N, C, 4, 96), store["stacked"].read(range(N))[:, 0, ..., :96]
    )


def test_copies_beside_the_photo_itself_are_tensors_of_their_own(config: Config, draw: Callable[..., None]) -> None:
    plain = TensorSpec("plain", "concat", (RESNET, f"{EFFICIENT}:max"), view="plain")
    extract(replace(config, tensors=(config.tensors[0], plain)))
    store = featstore.open(config.store)
    assert (store["plain"].shape, store["joined"].shape) == ((N, 352), (N, C, 352))
    assert not np.array_equal(store["plain"].read([0])[0], store["joined"].read([0])[0, 0])


@pytest.mark.parametrize(
    "plan",
    [
        TensorSpec("t", "concat", (f"{RESNET}@copies", f"{RESNET}@plain")),
        TensorSpec("t", "stack", (f"{RESNET}@plain", f"{RESNET}@copies")),
        TensorSpec("t", "pixels", ("pixels@copies", "pixels@plain")),
    ],
    ids=lambda plan: plan.kind,
)
def test_copies_and_the_photo_itself_are_not_joined(config: Config, plan: TensorSpec) -> None:
    with pytest.raises(ConfigError, match="tensor 't' joins segments with unequal numbers of augmented copies"):
        extract(replace(config, tensors=(plan,)))
