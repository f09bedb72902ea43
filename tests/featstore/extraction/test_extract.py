"""Extraction end to end: what is computed, what is reused, and what a broken run leaves behind."""

import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image

import featstore
from featstore import files
from featstore.backbones import WeightsPolicy, resolve_weights
from featstore.backbones.networks import build_network
from featstore.config import Config, TensorSpec, choose_tensors
from featstore.engines import Hardware, Runtime
from featstore.engines.eager import EagerEngine
from featstore.errors import (
    BackboneError,
    ConfigError,
    FeatureRangeError,
    FormatError,
    LayoutError,
    PhotosError,
    WeightsError,
)
from featstore.extraction.extract import extract
from featstore.extraction.forward import Backbones
from featstore.extraction.networks import Networks, TensorRequest, from_config
from featstore.extraction.recompute import recompute
from featstore.identity import Segment
from featstore.photos.decoding import read_photo
from featstore.photos.views import View, cut, resize
from featstore.store import ImageState


def test_every_photo_becomes_a_row_that_equals_its_backbones_own_output(tiny_config: Config) -> None:
    summary = extract(tiny_config)
    assert (summary.n_images, summary.n_computed, summary.n_reused, summary.failed) == (10, 10, 0, [])
    store = featstore.open(tiny_config.store)
    assert store["grid"].shape == (10, 2, 4, 256)
    assert store["whole"].shape == (10, 256 + 96 + 256)

    networks = Networks(from_config(tiny_config, None, precision="fp32"), tiny_config.weights)
    for row, path in enumerate(store.images.paths):
        image = featstore.read_photo(tiny_config.photos / path)  # type: ignore[operator]
        blocks = {
            view: cut(torch.from_numpy(resize(image, view.frame, b"")), view) for view in tiny_config.views.values()
        }
        with torch.inference_mode():
            for b, segment in enumerate(networks.requests[0].segments):
                (features,) = networks.load(segment.card, (segment.output,))(blocks[segment.view])
                np.testing.assert_allclose(
                    store["grid"].read([row])[0, b, :, : segment.width], features, rtol=2e-3, atol=1e-4
                )
            whole = [networks.load(s.card, (s.output,))(blocks[s.view])[0] for s in networks.requests[1].segments]
        np.testing.assert_allclose(store["whole"].read([row])[0], torch.cat(whole, 1)[0], rtol=2e-3, atol=1e-4)
    assert not store["grid"].read([0])[0, 1, :, 96:].any(), "the narrower backbone is padded with zeros at its end"


def test_images_table_says_what_was_read(tiny_config: Config, photos: Path) -> None:
    extract(tiny_config)
    images = featstore.open(tiny_config.store).images
    assert images.paths == sorted(images.paths)
    assert "sub/photo 9.jpg" in images.paths
    for row, path in enumerate(images.paths):
        with Image.open(photos / path) as image:
            assert tuple(images.sizes[row]) == (image.height, image.width)
    assert (images.states == ImageState.READABLE).all()


def test_second_run_computes_nothing_and_writes_nothing(tiny_config: Config) -> None:
    extract(tiny_config)
    before = _contents(tiny_config.store)
    summary = extract(tiny_config)
    assert (summary.n_computed, summary.n_reused, summary.n_bytes) == (0, 10, 0)
    assert _contents(tiny_config.store) == before


def test_added_photos_are_the_only_ones_computed(tiny_config: Config, photos: Path, draw: Callable[..., None]) -> None:
    extract(tiny_config)
    before = featstore.open(tiny_config.store)["grid"].read(np.arange(10))
    draw(photos / "another.jpg", seed=99)
    summary = extract(tiny_config)
    assert (summary.n_computed, summary.n_reused) == (1, 10)
    store = featstore.open(tiny_config.store)
    np.testing.assert_array_equal(store["grid"].read(np.arange(10)), before)
    assert store.images.paths[10] == "another.jpg"


def test_changed_photo_gets_a_new_row_and_the_old_one_is_gone(
    tiny_config: Config, photos: Path, draw: Callable[..., None]
) -> None:
    extract(tiny_config)
    draw(photos / "photo 3.jpg", seed=333)
    summary = extract(tiny_config)
    assert summary.n_computed == 1
    store = featstore.open(tiny_config.store)
    assert store.images.states[3] == ImageState.GONE
    assert store.images.rows_by_path["photo 3.jpg"] == 10
    assert 3 not in store["grid"].rows


def test_touched_or_renamed_photos_are_not_computed_again(tiny_config: Config, photos: Path) -> None:
    extract(tiny_config)
    os.utime(photos / "photo 1.jpg")
    (photos / "photo 2.jpg").rename(photos / "renamed.jpg")
    networks_run = extract(tiny_config)
    assert networks_run.n_computed == 0
    assert networks_run.n_reused == 10
    store = featstore.open(tiny_config.store)
    np.testing.assert_array_equal(store["grid"].read([10]), store["grid"].read([2]))


def test_moved_folder_reuses_everything(tiny_config: Config, photos: Path) -> None:
    extract(tiny_config)
    moved = photos.rename(photos.parent / "elsewhere")
    assert extract(replace(tiny_config, photos=moved)).n_computed == 0


def test_new_tensor_copies_the_segments_that_are_there(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(tiny_config)
    ran: list[str] = []
    from featstore.engines.eager import EagerEngine

    real = EagerEngine.run
    monkeypatch.setattr(EagerEngine, "run", lambda self, *args: (ran.append(self.card.name), real(self, *args))[1])
    more = TensorSpec("three", "stack", ("test_resnet", "test_efficientnet", "test_efficientnet_gn"))
    summary = extract(replace(tiny_config, tensors=(more,)))
    assert set(ran) == {"test_efficientnet_gn"}
    assert summary.n_computed == 10
    store = featstore.open(tiny_config.store)
    np.testing.assert_array_equal(store["three"].read([4])[:, :2, :, :96], store["grid"].read([4])[:, ::-1, :, :96])


def test_features_of_another_store_are_copied_by_digest_and_identity(tiny_config: Config, photos: Path) -> None:
    extract(tiny_config)
    for i, file in enumerate(sorted(photos.glob("*.jpg"))):
        file.rename(photos / f"other name {i}.jpg")
    mine = replace(tiny_config, store=tiny_config.store.with_name("mine.zarr"))
    assert extract(mine, reuse=[tiny_config.store]).n_computed == 0
    theirs, ours = featstore.open(tiny_config.store), featstore.open(mine.store)
    rows = {digest.tobytes(): row for row, digest in enumerate(theirs.images.digests)}
    for row, digest in enumerate(ours.images.digests):
        np.testing.assert_array_equal(ours["whole"].read([row]), theirs["whole"].read([rows[digest.tobytes()]]))


def test_other_weights_never_mix_silently(tiny_config: Config) -> None:
    extract(tiny_config)
    other = replace(tiny_config, weights=replace(tiny_config.weights, named={"*": "random:1"}))
    before = _contents(tiny_config.store)
    with pytest.raises(LayoutError, match=r"random:1 .* here, random:0 .* there"):
        extract(other)
    assert _contents(tiny_config.store) == before


def test_unreadable_photos_are_rows_with_a_reason(tiny_config: Config, photos: Path) -> None:
    (photos / "empty.jpg").touch()
    (photos / "half.jpg").write_bytes((photos / "photo 0.jpg").read_bytes()[:900])
    (photos / "text.png").write_text("not an image")
    summary = extract(tiny_config)
    assert summary.n_computed == 10
    reasons = dict(summary.failed)
    assert "zero bytes" in reasons["empty.jpg"]
    assert "truncated" in reasons["half.jpg"]
    assert "not an image" in reasons["text.png"]
    store = featstore.open(tiny_config.store)
    row = store.images.rows_by_path["empty.jpg"]
    assert store.images.states[row] == ImageState.UNREADABLE
    elsewhere = zarr.open(tiny_config.store, mode="r")["tensors/grid"]
    assert np.isnan(elsewhere[row]).all(), "for a reader that knows no states it never looks like a feature"
    assert len(store["grid"].rows) == 10
    again = extract(tiny_config)
    assert (again.n_computed, again.n_reused, dict(again.failed)) == (0, 10, reasons)


@pytest.mark.parametrize("more", [(), ("test_resnet:max",)])
def test_unreadable_photos_are_tried_again_for_a_new_tensor_of_features_that_are_there(
    tiny_config: Config, photos: Path, more: tuple[str, ...]
) -> None:
    (photos / "half.jpg").write_bytes((photos / "photo 0.jpg").read_bytes()[:900])
    extract(tiny_config)
    another = TensorSpec("another", "concat", ("test_efficientnet", *more), view="whole")
    summary = extract(replace(tiny_config, tensors=(another,)))
    assert (summary.n_computed, list(dict(summary.failed))) == (10 * len(more), ["half.jpg"])
    assert len(featstore.open(tiny_config.store)["another"].rows) == 10


def test_file_that_cannot_be_opened_is_a_row_and_is_looked_at_again(tiny_config: Config, photos: Path) -> None:
    link = photos / "link.jpg"
    link.symlink_to(photos.parent / "later.jpg")
    assert "No such file" in dict(extract(tiny_config).failed)["link.jpg"]
    (photos.parent / "later.jpg").write_bytes((photos / "photo 0.jpg").read_bytes()[:-2] + b"\xff\xd9\x00")
    summary = extract(tiny_config)
    assert (summary.n_computed, summary.failed) == (1, [])


def test_features_do_not_depend_on_which_photos_are_beside(tiny_config: Config, photos: Path) -> None:
    extract(tiny_config)
    alone = photos.parent / "alone"
    alone.mkdir()
    (alone / "one.jpg").write_bytes((photos / "photo 5.jpg").read_bytes())
    extract(replace(tiny_config, photos=alone, store=tiny_config.store.with_name("alone.zarr")))
    one = featstore.open(tiny_config.store.with_name("alone.zarr"))["grid"].read([0])
    all_ten = featstore.open(tiny_config.store)
    np.testing.assert_array_equal(one[0], all_ten["grid"].read([all_ten.images.paths.index("photo 5.jpg")])[0])


def test_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    tiny_config: Config, photos: Path, draw: Callable[..., None]
) -> None:
    for i in range(60):
        draw(photos / f"more {i:02}.jpg", seed=100 + i)
    reference = replace(tiny_config, store=tiny_config.store.with_name("reference.zarr"))
    extract(reference)

    def stop_at(count: int) -> Callable[[str, int, int], None]:
        def report(stage: str, done: int, total: int) -> None:
            if stage == "extract" and done == count:
                raise KeyboardInterrupt

        return report

    with pytest.raises(KeyboardInterrupt):
        extract(tiny_config, on_progress=stop_at(20))
    kept = featstore.open(tiny_config.store)
    assert len(kept["grid"].rows) == 20, "what was computed before Ctrl-C is kept"
    summary = extract(tiny_config)
    assert (summary.n_computed, summary.n_reused) == (50, 20)
    assert _contents(tiny_config.store) == _contents(reference.store)


def test_float16_overflow_names_the_photo_and_the_way_out(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = EagerEngine.run
    monkeypatch.setattr(EagerEngine, "run", lambda engine, blocks: [each + 1e5 for each in real(engine, blocks)])
    with pytest.raises(FeatureRangeError, match=r"photo 0\.jpg.*--dtype float32"):
        extract(tiny_config)
    assert not len(featstore.open(tiny_config.store)["grid"].rows)
    wide = replace(tiny_config, dtype="float32", store=tiny_config.store.with_name("wide.zarr"))
    extract(wide)
    assert featstore.open(wide.store)["grid"].read([0]).max() > 9e4


def test_what_cannot_work_is_refused_before_anything_is_written(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not touch")
    for change, error, told in [
        ({"photos": tmp_path / "nothing"}, PhotosError, "holds no photos"),
        ({"photos": tmp_path / "nowhere"}, PhotosError, "does not exist"),
        ({"photos": None}, PhotosError, "no photo folder named"),
        ({"tensors": (TensorSpec("t", "stack", ("lite9",)),)}, BackboneError, "did you mean 'lite"),
        ({"tensors": (TensorSpec("t", "stack", ("lite0:mean",)),)}, ConfigError, "unknown pooling"),
        ({"tensors": (TensorSpec("t", "stack", ("lite0@gird",)),)}, ConfigError, "did you mean 'grid'"),
        (
            {"tensors": (TensorSpec("t", "concat", ("youtube8m",)),), "weights": WeightsPolicy(tmp_path)},
            WeightsError,
            "no public weights",
        ),
        ({"tensors": (TensorSpec("t", "stack", ("test_resnet",), width=64),)}, ConfigError, "96 wide"),
        ({"tensors": (TensorSpec("t", "stack", ("test_resnet", "test_resnet@whole")),)}, ConfigError, "unequal"),
        ({"store": tmp_path / "mine"}, FormatError, "not a feature store"),
    ]:  # fmt: skip
        with pytest.raises(error, match=told):
            extract(replace(tiny_config, **change))  # type: ignore[arg-type]
    assert not tiny_config.store.exists()
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_backbone_that_refuses_the_view_does_not_block_the_tensors_name(tiny_config: Config) -> None:
    odd = {"grid": View((8, 8), rows=2, columns=2)}
    plan = TensorSpec("grid", "stack", ("inception_v3",))
    with pytest.raises(BackboneError, match="'inception_v3' cannot run on blocks of 4x4"):
        extract(replace(tiny_config, views=odd, tensors=(plan,)))
    assert extract(tiny_config).n_computed == 10


def test_a_network_of_one_size_gets_blocks_of_it_and_a_line_says_so(tiny_config: Config) -> None:
    """test_vit takes multiples of 16 pixels."""
    views = {"grid": View((300, 300), rows=3, columns=3), "large": View((320, 192)), "odd": View((300, 200))}
    plans = (
        TensorSpec("grid", "stack", ("test_vit", "test_resnet")),
        TensorSpec("whole", "concat", ("test_vit@large", "test_vit@odd")),
    )
    summary = extract(replace(tiny_config, views=views, tensors=plans))
    assert summary.notices == [
        "test_vit takes pictures of 160x160 only: blocks of 100x100 are resized to that",
        "test_vit takes pictures of 160x160 only: photos are resized to that, not to 300x200",
    ]
    stored = featstore.open(tiny_config.store)
    first, second = stored["grid"].layout.segments
    assert first.identity["view"]["block"] == [160, 160]
    assert "block" not in second.identity["view"]
    large, odd = stored["whole"].layout.segments
    assert (large.identity["view"]["size"], odd.identity["view"]["size"]) == ([320, 192], [160, 160])
    assert extract(replace(tiny_config, views=views, tensors=plans)).n_computed == 0


def test_tokens_are_blocks_and_layers_columns(tiny_config: Config) -> None:
    config = choose_tensors(
        tiny_config, "test_vit:tokens,test_vit/blocks.1:tokens,test_resnet/*,test_vit/blocks.1:cls", {}
    )
    extract(config)
    store = featstore.open(config.store)
    assert store["tokens_100"].shape == (10, 2, 100, 64)
    assert store["tokens_100"].layout.axes == ("image", "backbone", "block", "feature")
    assert [segment.name for segment in store["model"].layout.segments] == [
        *(f"test_resnet/{layer}" for layer in ("act1", "layer1", "layer2", "layer3", "layer4")),
        "test_vit/blocks.1:cls",
    ]
    image = featstore.read_photo(config.photos / store.images.paths[0])  # type: ignore[operator]
    (segment,) = config.segments("test_vit/blocks.1:tokens", default_view="model")
    assert isinstance(segment, Segment)
    pixels = torch.from_numpy(resize(image, segment.view, b""))
    network = build_network(segment.card, resolve_weights(segment.card, config.weights), [segment.output])
    (expected,) = network(pixels)
    np.testing.assert_allclose(store["tokens_100"].read([0])[0, 1], expected[0], rtol=2e-3, atol=2e-3)
    again = recompute(config.store, 3, weights=config.weights)
    assert again.within
    assert len(again.comparisons) == 8


def test_a_network_that_cannot_be_built_is_left_out_and_the_others_run(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = timm.create_model

    def create(name: str, **options: Any) -> Any:
        if name == "test_vit3":
            raise AssertionError("stages")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    config = replace(tiny_config, tensors=(TensorSpec("t", "concat", ("test_resnet", "test_vit3@model")),))
    summary = extract(config)
    assert summary.notices == ["left out: backbone 'test_vit3': timm cannot build it: stages"]
    assert featstore.open(config.store)["t"].layout.missing == ("test_vit3",)
    with pytest.raises(BackboneError, match="'test_vit3': timm cannot build it: stages"):
        extract(replace(config, store=config.store.with_name("other.zarr")), strict=True)
    with pytest.raises(BackboneError, match="'test_vit3': timm cannot build it: stages"):
        extract(replace(config, tensors=(TensorSpec("t", "concat", ("test_vit3@model",)),)))


def test_photo_on_a_disk_that_went_away_is_tried_again(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        readinto = read  # type: ignore[assignment]

    real = files.open_file
    with monkeypatch.context() as patch:
        patch.setattr(
            "featstore.files.open_file", lambda file: Gone(file) if Path(file).suffix == ".jpg" else real(file)
        )
        summary = extract(tiny_config)
    assert summary.n_computed == 0
    assert {reason for _, reason in summary.failed} == {"cannot be read: Input/output error"}
    again = extract(tiny_config)
    assert (again.n_computed, again.failed) == (10, [])


def test_disk_without_room_is_refused_before_it_starts(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from featstore.errors import StoreWriteError

    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreWriteError, match="nothing was written"):
        extract(tiny_config)
    assert not tiny_config.store.exists()


def _contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, but for the recorded times in the provenance."""
    import json

    found = {}
    for file in sorted(store.rglob("*")):
        if not file.is_file():
            continue
        data = file.read_bytes()
        if file.name == "zarr.json":
            document = json.loads(data)
            if document["attributes"].pop("provenance", None) or "sums" in document["attributes"]:
                del document["attributes"]["seal"]  # it is over the provenance too, and so are the digests
            for key in [key for key in document["attributes"].get("sums", {}) if key.startswith("tensors/")]:
                del document["attributes"]["sums"][key]
            data = json.dumps(document).encode()
        found[file.relative_to(store).as_posix()] = data
    return found


def test_two_epsilons_of_one_backbone_are_two_networks(tiny_config: Config) -> None:
    """As `retry` meets them, in a store whose featstore.toml has changed between two tensors."""
    plan = (TensorSpec("t", "concat", ("test_resnet",)),)
    odd = replace(tiny_config, batch_norm_eps={"test_resnet": 0.5}, tensors=plan)
    one, other = (from_config(each, None, precision="fp32")[0] for each in (replace(tiny_config, tensors=plan), odd))
    frames = {other.segments[0].view: np.full((1, 96, 128, 3), 100, np.uint8)}  # type: ignore[union-attr]

    def features(*requests: TensorRequest) -> dict[str, NDArray[np.float32]]:
        networks = Networks(requests, tiny_config.weights)
        hardware = Hardware.choose(Runtime("cpu", "eager"))
        backbones = Backbones(networks, hardware, lambda stage, done, total: None)
        return backbones.start([frames], backbones.segments).result()[0]

    together, alone = features(one, replace(other, name="u")), {**features(one), **features(other)}
    assert len(together) == 2
    for key, values in together.items():
        np.testing.assert_array_equal(values, alone[key])


def test_a_photo_is_not_blamed_for_a_lack_of_memory(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", no_memory)
    with pytest.raises(MemoryError):
        read_photo(tiny_config.photos / "photo 0.jpg")  # type: ignore[operator]


def test_photos_that_want_different_things_still_go_through_in_full_batches(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other photo has one of the two features already, in another store."""
    both = replace(tiny_config, tensors=(TensorSpec("t", "concat", ("test_resnet", "test_efficientnet")),))
    half = replace(tiny_config, tensors=(TensorSpec("t", "concat", ("test_resnet",)),))
    files = sorted(tiny_config.photos.glob("*.jpg"))  # type: ignore[union-attr]
    some = tiny_config.store.with_name("some")  # type: ignore[union-attr]
    some.mkdir()
    for file in files[::2]:
        (some / file.name).write_bytes(file.read_bytes())
    half = replace(half, photos=some, store=tiny_config.store.with_name("half.zarr"))  # type: ignore[union-attr]
    extract(half)
    sizes = []
    real = Backbones.start

    def counted(self: Backbones, photos: Any, wanted: Any, dtypes: Any = None) -> Any:
        sizes.append(len(photos))
        return real(self, photos, wanted, dtypes)

    monkeypatch.setattr(Backbones, "start", counted)
    summary = extract(both, reuse=[half.store], runtime=Runtime("cpu", "eager", batch=4))
    assert summary.n_computed == 10
    assert sorted(sizes) == [1, 1, 4, 4], "five of each kind"
