"""`import` and `export`: what others made is what the store holds, what the store holds is what others read."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

import featstore
from featstore import FeatureFile, export, import_features
from featstore.cli import app
from featstore.config import Config
from featstore.errors import (
    ConfigError,
    ExchangeError,
    FeatstoreError,
    FeatureRangeError,
    LayoutError,
    PhotosError,
    StoreWriteError,
)
from featstore.exchange.formats.registry import read_table
from featstore.extraction.extract import extract
from featstore.identity import is_imported
from featstore.store import ImageState, NewImages, RowState, Writer, verify

Values = NDArray[Any]
FORMATS = ["npy", "npz", "h5", "parquet", "csv", "tsv", "zarr"]
EXPORTS = ["npz", "h5", "parquet", "zarr"]
PATHS = [f"sub {i % 3}/Bild {i} ü.jpg" for i in range(10)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that lists ten images and has no features of them; four rows a block."""
    return list_images(tmp_path / "features.zarr", PATHS)


@pytest.fixture
def values() -> Values:
    return np.random.default_rng(0).standard_normal((len(PATHS), 6)).astype(np.float16)


@pytest.fixture
def extracted(tiny_config: Config, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """`grid`, a stack of two, and `whole`, a concatenation, of ten photos; extracted once for all tests."""
    made = tmp_path_factory.getbasetemp() / "exchange.zarr"
    if not made.exists():
        extract(replace(tiny_config, store=made))
    shutil.copytree(made, tiny_config.store)
    return tiny_config


def list_images(place: Path, paths: list[str], *, block_rows: int = 4) -> Path:
    with Writer(place, block_rows=block_rows) as writer:
        digests = np.frombuffer(b"".join(map(digest_of, paths)), np.uint8).reshape(-1, 32)
        writer.add_images(NewImages(paths, digests, [1] * len(paths), [1] * len(paths)))
    return place


def digest_of(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()


def write_elsewhere(file: Path, values: Values, paths: list[str]) -> FeatureFile:
    """What somebody who has never heard of featstore would write."""
    flat = values.reshape(len(values), -1)
    match file.suffix:
        case ".npy":
            np.save(file, values)
            keys = file.with_suffix(".txt")
            keys.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
            return FeatureFile(file, paths=keys)
        case ".npz":
            np.savez_compressed(file, features=values, paths=np.array(paths))
        case ".h5":
            with h5py.File(file, "w") as opened:
                opened.create_dataset("some/where", data=values, chunks=True, compression="gzip")
                opened["some/path"] = paths if len(paths) % 2 else [path.encode() for path in paths]
        case ".parquet":
            pd.DataFrame({"path": paths, "vector": list(flat)}).to_parquet(file)
        case ".csv" | ".tsv":
            with file.open("w", newline="", encoding="utf-8") as text:
                writer = csv.writer(text, delimiter="\t" if file.suffix == ".tsv" else ",")
                writer.writerow(["path", *(f"f{i}" for i in range(flat.shape[1]))])
                writer.writerows([path, *map(repr, map(float, row))] for path, row in zip(paths, flat, strict=True))
        case ".zarr":
            group = zarr.create_group(file)
            group.create_array("vectors", data=values)
            array = group.create_array("path", shape=(len(paths),), dtype="string")
            array[:] = np.array(paths, object)
    return FeatureFile(file)


def stored(place: Path, name: str) -> dict[str, Values]:
    """By path, the features that a store holds."""
    tensor = featstore.open(place)[name]
    return dict(zip(tensor.paths, tensor.read(tensor.rows), strict=True))


def expected(paths: list[str], values: Values, dtype: str = "float16") -> dict[str, Values]:
    narrow = values.astype(np.float32).astype(dtype)
    return dict(zip(paths, narrow, strict=True))


def same(found: dict[str, Values], wanted: dict[str, Values]) -> None:
    """The same paths, and the same bits."""
    assert sorted(found) == sorted(wanted)
    for path, row in wanted.items():
        assert found[path].dtype == row.dtype
        np.testing.assert_array_equal(found[path].reshape(-1).view(np.uint8), row.reshape(-1).view(np.uint8), path)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f): (s.st_size, s.st_mtime_ns) for f in sorted(folder.rglob("*")) for s in [f.lstat()]}


def run(*words: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    return result


def refused(*words: str | Path) -> str:
    """The one message of a command that failed."""
    result = run(*words)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ")


# ---- round trips


@st.composite
def tables(draw: st.DrawFn, *, blocks: bool) -> tuple[list[str], list[str], Values]:
    """Paths of a store, those that features are of in any order, and the features."""
    letters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\")
    names = draw(st.lists(st.text(letters, min_size=1, max_size=8), min_size=1, max_size=11, unique=True))
    paths = [f"{i % 2}/{name} {i}.jpg" for i, name in enumerate(names)]
    some = draw(st.lists(st.sampled_from(paths), min_size=1, unique=True))
    shape = draw(st.sampled_from([(1,), (5,), (7, 3), (1, 4), (1, 2, 3)] if blocks else [(1,), (5,)]))
    dtype = draw(st.sampled_from(["float16", "float32", "float64", ">f4", "int16"]))
    numbers = st.integers(-999, 999) if dtype == "int16" else st.floats(-60000, 60000, width=16)
    return paths, some, draw(hnp.arrays(dtype, (len(some), *shape), elements=numbers))


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_imported_is_what_the_file_holds_and_comes_back(suffix: str, tmp_path: Path) -> None:
    @settings(max_examples=int(os.environ.get("FEATSTORE_EXAMPLES", "25")) // 4)
    @given(
        tables(blocks=suffix not in ("parquet", "csv", "tsv")),
        st.sampled_from(["float16", "float32"]),
        st.sampled_from(EXPORTS),
    )
    def check(table: tuple[list[str], list[str], Values], dtype: str, kind: str) -> None:
        paths, some, values = table
        folder = tmp_path / "now"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        place = list_images(folder / "s.zarr", paths)
        if suffix == "parquet" and values.dtype.byteorder == ">":
            values = values.astype("f4")
        summary = import_features(
            "made", write_elsewhere(folder / f"elsewhere.{suffix}", values, some), store=place, dtype=dtype
        )
        assert (summary.n_imported, summary.n_kept, summary.matched_by) == (len(some), 0, "path")
        wanted = expected(some, values, dtype)
        same(stored(place, "made"), wanted)
        assert sorted(summary.without) == sorted(set(paths) - set(some))
        assert verify(place).findings == []
        file = folder / f"out.{kind}"
        assert export(place, file).n_images == len(some)
        other = list_images(folder / "other.zarr", paths[::-1])
        back = import_features("made", FeatureFile(file, by="digest"), store=other, dtype=dtype)
        assert (back.n_imported, back.matched_by) == (len(some), "digest")
        same(stored(other, "made"), wanted)

    check()


@pytest.mark.parametrize("suffix", EXPORTS)
def test_what_extract_made_comes_back_bit_by_bit(extracted: Config, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out.{suffix}"
    summary = export(extracted.store, file)
    assert (summary.n_images, summary.left_out) == (10, {})
    assert summary.tensors == {"grid": (10, 2, 4, 256), "whole": (10, 608)}
    grid, whole = (
        FeatureFile(file, columns=name) if suffix == "parquet" else FeatureFile(file, dataset=name)
        for name in ("grid", "whole")
    )
    import_features("back", whole, store=extracted.store, strict=True)
    assert extracted.photos is not None
    fresh = tmp_path / "fresh.zarr"
    for i in range(2):
        photos = extracted.photos if i == 0 else None
        import_features(f"one{i}", grid, store=fresh, photos=photos, backbone=i, strict=True)
    both = stored(Path(extracted.store), "grid")
    for i in range(2):
        same(stored(fresh, f"one{i}"), {path: row[i] for path, row in both.items()})
    same(stored(Path(extracted.store), "back"), stored(Path(extracted.store), "whole"))
    assert featstore.open(fresh)["one0"].shape == (10, 1, 4, 256)
    with pytest.raises(ExchangeError, match=r"of 2 backbones stand side by side.*--backbone 0 to 1"):
        import_features("both", grid, store=fresh)
    with pytest.raises(ExchangeError, match="has backbones 0 to 1; found --backbone 2"):
        import_features("both", grid, store=fresh, backbone=2)


def test_a_featstore_store_is_a_source_too_and_only_its_present_rows_count(extracted: Config, tmp_path: Path) -> None:
    place = Path(extracted.store)
    with Writer(place) as writer:
        writer.set_row_states("whole", [3], RowState.ABSENT)
    fresh = tmp_path / "fresh.zarr"
    summary = import_features("w", FeatureFile(place, dataset="tensors/whole"), store=fresh, photos=extracted.photos)
    assert (summary.n_imported, len(summary.without)) == (9, 1)
    same(stored(fresh, "w"), stored(place, "whole"))
    summary = import_features(
        "w", FeatureFile(place, dataset="whole", by="digest"), store=fresh, declared="w", replace=True
    )
    assert (summary.n_imported, summary.matched_by, list(featstore.open(fresh))) == (9, "digest", ["w"])
    with pytest.raises(ExchangeError, match="with the tensors grid, whole; name one with --dataset"):
        import_features("x", place, store=fresh)


def test_readers_agree_on_lists_and_columns(tmp_path: Path, values: Values) -> None:
    table = pd.DataFrame(values.astype(np.float32), columns=[f"f{i}" for i in range(6)])
    table.insert(0, "score", 7.0)
    table.insert(0, "path", PATHS)
    table.insert(3, "comment", 'ä, "b"\nc')
    table.to_csv(tmp_path / "a.csv")  # with the row numbers of pandas
    table.to_parquet(tmp_path / "a.parquet")
    lists = pd.DataFrame({"name": PATHS, "v": [json.dumps(row.tolist()) for row in values], "n": 1})
    lists.to_csv(tmp_path / "b.tsv", sep="\t", index=False, encoding="utf-8-sig")
    for source, wanted in [
        (FeatureFile(tmp_path / "a.csv", columns="f"), values),
        (FeatureFile(tmp_path / "a.parquet", columns="f"), values),
        (FeatureFile(tmp_path / "a.csv", columns="f3, f1"), values[:, [3, 1]]),
        (FeatureFile(tmp_path / "a.parquet", columns="f3, f1"), values[:, [3, 1]]),
        (FeatureFile(tmp_path / "a.csv"), np.column_stack([np.full(10, 7), values])),
        (FeatureFile(tmp_path / "a.parquet"), np.column_stack([np.full(10, 7), values])),
        (FeatureFile(tmp_path / "b.tsv", path_column="name"), values),
    ]:
        found = read_table(source)
        assert found.keys.values == PATHS
        np.testing.assert_array_equal(np.concatenate(list(found.blocks(3))).astype(np.float32), wanted)


def write_table(file: Path, table: pd.DataFrame) -> Path:
    """A table in the format that the suffix means; `.csv` as a spreadsheet of another language writes it."""
    if file.suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ";", encoding="utf-8-sig")
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("other", ["Unnamed: 0", "index", "id", "photo_id", "imageId", "label", "fold"])
def test_ids_and_labels_are_no_features_and_columns_are_told(
    store: Path, tmp_path: Path, values: Values, suffix: str, other: str
) -> None:
    table = pd.DataFrame(values.astype(np.float32), columns=[f"f{i}" for i in range(6)])
    table.insert(0, other, range(10))
    table.insert(3, "comment", "blurred")
    table.insert(0, "path", PATHS)
    file = write_table(tmp_path / f"v{suffix}", table)
    summary = import_features("v", file, store=store)
    assert summary.columns == ["f0", "f1", "f2", "f3", "f4", "f5"]
    assert list(summary.left_out) == [other, "comment"]
    same(stored(store, "v"), expected(PATHS, values))
    named = import_features("all", FeatureFile(file, columns=f"{other},f0"), store=store)
    assert named.row_shape == (2,)
    assert named.left_out == dict.fromkeys(["f1", "comment", "f2", "f3", "f4", "f5"], "not named by --columns")
    said = run("import", "again", "--from", file, "--store", store)
    assert "features: 6 columns, f0 to f5; left out: " + other + " (" in said.output


def test_numbers_beside_a_column_of_lists_are_left_out_with_a_word(store: Path, tmp_path: Path, values: Values) -> None:
    table = pd.DataFrame({"path": PATHS, "v": list(values), "beauty": 4.5})
    summary = import_features("v", write_table(tmp_path / "v.parquet", table), store=store)
    assert (summary.columns, summary.left_out) == (["v"], {"beauty": "a number beside lists"})


# ---- what others see


def test_an_export_is_read_with_numpy_h5py_pandas_and_xarray_alone(extracted: Config, tmp_path: Path) -> None:
    for suffix in EXPORTS:
        export(extracted.store, tmp_path / f"out.{suffix}")
    opened = featstore.open(extracted.store)
    paths = opened.images.paths
    identities = [dict(segment.identity) for segment in opened["grid"].layout.segments]
    shutil.rmtree(extracted.store)
    digests = [opened.images.digests[row].tobytes().hex() for row in range(10)]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["about", "digest", "grid", "path", "whole"]
        assert (arrays["path"].tolist(), arrays["digest"].tolist()) == (paths, digests)
        grid, whole = arrays["grid"], arrays["whole"]
        about = json.loads(str(arrays["about"]))
    assert (grid.shape, grid.dtype, whole.shape) == ((10, 2, 4, 256), np.float16, (10, 608))
    assert np.isfinite(grid).all()
    segments = about["tensors"]["grid"]["segments"]
    assert [each["identity"] for each in segments] == identities
    assert "photos" not in json.dumps(about), "where somebody's photos are is nobody else's business"
    with h5py.File(tmp_path / "out.h5") as h5:
        np.testing.assert_array_equal(h5["grid"][...], grid)
        assert [dimension.label for dimension in h5["grid"].dims] == ["image", "backbone", "block", "feature"]
        assert h5["grid"].chunks[1:] == grid.shape[1:]
        assert h5["path"].asstr()[...].tolist() == paths
        assert h5["digest"].asstr()[...].tolist() == digests
        assert json.loads(h5["grid"].attrs["about"]) == about["tensors"]["grid"]
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == ["path", "digest", "grid", "whole"]
    assert (frame.path.tolist(), frame.digest.tolist()) == (paths, digests)
    assert frame.whole[0].dtype == np.float16
    np.testing.assert_array_equal(np.stack(list(frame.grid)).reshape(grid.shape), grid)
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.field("whole").type == pa.list_(pa.float16(), 608)
    assert json.loads(schema.metadata[b"featstore"]) == about
    array = zarr.open_group(tmp_path / "out.zarr", mode="r")["grid"]
    assert isinstance(array, zarr.Array)
    assert array.attrs["segments"] == segments
    for consolidated in (None, False):
        data = xarray.open_zarr(tmp_path / "out.zarr", consolidated=consolidated)
        np.testing.assert_array_equal(data.grid.values, grid)
        assert data.grid.dims == ("image", "grid_backbone", "grid_block", "grid_feature")
        assert data.whole.path.values.tolist() == paths


def test_only_images_present_in_all_tensors_are_exported(extracted: Config, photos: Path, tmp_path: Path) -> None:
    (photos / "empty.jpg").touch()
    (photos / "photo 0.jpg").unlink()
    (photos / "photo 1.jpg").write_bytes((photos / "photo 2.jpg").read_bytes())
    extract(extracted, prune=True)
    rows = featstore.open(extracted.store).images.rows_by_path
    with Writer(extracted.store) as writer:
        writer.set_row_states("grid", [rows["photo 3.jpg"]], RowState.ABSENT)
    file = tmp_path / "out.npz"
    summary = export(extracted.store, file)
    assert summary.n_images == 8
    assert summary.left_out == {
        "gone: the photo was changed or removed": ["photo 0.jpg"],
        "absent: no features yet in grid": ["photo 3.jpg"],
        "failed: the photo cannot be read": ["empty.jpg"],
    }
    with np.load(file) as arrays:
        assert np.isfinite(arrays["grid"]).all()
        whole = stored(Path(extracted.store), "whole")
        same(dict(zip(arrays["path"].tolist(), arrays["whole"], strict=True)), {
            path: row for path, row in whole.items() if path != "photo 3.jpg"
        })  # fmt: skip
    assert export(extracted.store, tmp_path / "whole.npz", tensors=["whole"]).n_images == 9
    text = refused("export", extracted.store, "--to", tmp_path / "strict.npz", "--strict")
    assert "1 images would be left out, absent: no features yet in grid: photo 3.jpg" in text
    assert "failed: the photo cannot be read: empty.jpg" in text
    assert not (tmp_path / "strict.npz").exists()
    shown = run("export", extracted.store, "--to", tmp_path / "shown.h5").stdout
    assert "1 images left out, failed: the photo cannot be read: empty.jpg" in shown
    assert "8 images exported, 3 left out" in shown


# ---- the commands


def test_import_and_export_at_a_terminal(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [f"photo {i}.jpg" for i in range(9)] + ["nowhere.jpg"]
    np.save("vectors.npy", np.arange(1, 81, dtype=np.float32).reshape(10, 8))
    Path("paths.txt").write_text("\r\n".join(paths))
    words = ["import", "youtube8m", "--from", "vectors.npy", "--paths", "paths.txt", "--store", "features.zarr"]
    assert "there is no store features.zarr yet" in refused(*words)
    result = run(*words, "--photos", "photos")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "1 rows of the file are of no image of the store: nowhere.jpg"
    assert lines[1] == "1 images of the store have no features in it: sub/photo 9.jpg"
    assert lines[2].startswith(
        "tensor youtube8m (8, float16): 9 images imported by path, 0 kept, 1 of 10 rows unmatched; 10 photos listed; "
    )
    opened = featstore.open("features.zarr")
    assert set(opened.images.states.tolist()) == {ImageState.UNREAD}
    assert len(opened["youtube8m"].rows) == 9
    identity = opened["youtube8m"].layout.segments[0].identity
    assert is_imported(identity)
    assert (identity["imported"], identity["dtype"], len(identity["sha256"])) == ("youtube8m", "float16", 64)
    (provenance,) = opened["youtube8m"].provenance
    about = provenance["imported"]
    assert about["sha256"] == hashlib.sha256(Path("vectors.npy").read_bytes()).hexdigest()
    assert (about["file"], about["format"], about["rows"]) == ("vectors.npy", "npy", 10)
    before = files_of(Path("features.zarr"))
    again = json.loads(run(*words, "--json").stdout)
    assert (again["imported"], again["kept"], again["unmatched"]) == (0, 9, ["nowhere.jpg"])
    assert files_of(Path("features.zarr")) == before, "nothing to do"
    assert run(*words, "--quiet").output == ""
    text = refused(*words, "--strict")
    assert "1 rows of vectors.npy are of no image of the store: nowhere.jpg\n1 images have no row in vectors" in text
    assert run("info", "features.zarr").exit_code == run("verify", "features.zarr").exit_code == 0
    shown = run("export", "features.zarr", "--to", "out.parquet")
    assert "9 images exported, 1 left out" in shown.stdout
    assert "absent: no features yet in youtube8m: sub/photo 9.jpg" in shown.stdout
    done = json.loads(run("export", "features.zarr", "--to", "out.npz", "--tensors", "youtube8m", "--json").stdout)
    assert (done["images"], done["tensors"], done["format"]) == (9, {"youtube8m": [9, 8]}, "npz")
    assert run("export", "features.zarr", "--to", "more", "--format", "hdf5", "--quiet").output == ""
    assert h5py.is_hdf5("more")


def test_without_a_store_the_photos_are_those_of_the_configuration(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("featstore.toml").write_text('photos = "photos"\nstore = "s.zarr"\ndtype = "float32"\n')
    np.savez("v.npz", features=np.ones((1, 3)), paths=np.array(["photo 1.jpg"]))
    assert run("import", "v", "--from", "v.npz").exit_code == 0
    assert featstore.open("s.zarr")["v"].dtype == np.float32
    assert "say path or digest" in refused("import", "v", "--from", "v.npz", "--by", "name")


def test_rows_are_joined_to_photos_that_appear_or_change(
    photos: Path, tmp_path: Path, draw: Callable[..., None]
) -> None:
    place = tmp_path / "s.zarr"
    old = write_elsewhere(
        tmp_path / "old.npz", np.ones((10, 2)), [*(f"photo {i}.jpg" for i in range(9)), "sub/photo 9.jpg"]
    )
    import_features("v", old, store=place, photos=photos, declared="ones")
    draw(photos / "added.jpg", seed=50)
    draw(photos / "photo 3.jpg", seed=51)
    new = write_elsewhere(tmp_path / "new.npz", np.full((2, 2), 2.0), ["added.jpg", "photo 3.jpg"])
    summary = import_features("v", new, store=place, photos=photos, declared="ones", strict=True)
    assert (summary.n_imported, summary.n_listed, summary.without) == (2, 2, [])
    found = stored(place, "v")
    assert len(found) == 11
    assert (found["photo 3.jpg"][0], found["added.jpg"][0], found["photo 4.jpg"][0]) == (2, 2, 1)
    assert verify(place).sound


def test_a_tensor_of_its_own_beside_those_that_are_extracted(extracted: Config, tmp_path: Path) -> None:
    before = stored(Path(extracted.store), "whole")
    paths = list(before)
    states = featstore.open(extracted.store).images.states.copy()
    source = write_elsewhere(tmp_path / "v.npz", np.random.default_rng(0).random((10, 5, 3)), paths)
    summary = import_features("five", source, store=extracted.store)
    assert (summary.row_shape, featstore.open(extracted.store)["five"].layout.kind) == ((1, 5, 3), "stack")
    np.testing.assert_array_equal(featstore.open(extracted.store).images.states, states)
    same(stored(Path(extracted.store), "whole"), before)
    assert verify(extracted.store).findings == []


# ---- joining


def test_paths_may_be_absolute_or_from_here_or_bare_names(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["photo 3.jpg", "sub/photo 9.jpg", "photo 0.jpg"]
    wanted = expected(names, np.eye(3))
    (tmp_path / "linked").symlink_to(photos)
    for i, (paths, by) in enumerate(
        [
            ([str(photos / name) for name in names], "path"),
            ([str(tmp_path / "linked" / name) for name in names], "path"),
            ([f"photos/{name}" for name in names], "path"),
            ([f"./{name}" for name in names], "path"),
            ([f"/elsewhere/{Path(name).name}" for name in names], "file name"),
            ([f"C:\\photos\\{Path(name).name}" for name in names], "file name"),
        ]
    ):
        place = tmp_path / f"{i}.zarr"
        source = write_elsewhere(tmp_path / f"{i}.npz", np.eye(3), paths)
        root = tmp_path / "linked" if "linked" in paths[0] else photos
        assert import_features("v", source, store=place, photos=root).matched_by == by
        same(stored(place, "v"), wanted)
        assert import_features("v", source, store=place).n_kept == 3, "the store knows where the photos are"
    assert "told by their file names" in run("import", "w", "--from", "4.npz", "--store", "4.zarr").stdout


def test_bare_names_that_are_not_the_only_ones_match_nothing(tmp_path: Path) -> None:
    place = list_images(tmp_path / "s.zarr", ["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    source = write_elsewhere(tmp_path / "v.npz", np.eye(2), ["1.jpg", "2.jpg"])
    with pytest.raises(ExchangeError, match=r"none of its 2 paths is an image.*some of them occur more than once"):
        import_features("v", source, store=place)
    twice = write_elsewhere(tmp_path / "w.npz", np.eye(2), ["x/2.jpg", "y/2.jpg"])
    with pytest.raises(ExchangeError, match="none of its 2 paths"):
        import_features("v", twice, store=place)
    mixed = write_elsewhere(tmp_path / "m.npz", np.eye(2), ["b/1.jpg", "2.jpg"])
    assert import_features("v", mixed, store=place).unmatched == ["2.jpg"], "some paths match, so names do not"


@pytest.mark.parametrize("as_bytes", [False, True])
def test_digests_join_photos_of_equal_bytes(tmp_path: Path, as_bytes: bool) -> None:
    place = tmp_path / "s.zarr"
    with Writer(place, block_rows=4) as writer:
        digests = np.frombuffer(digest_of("same") * 2 + digest_of("other") + bytes(32), np.uint8).reshape(4, 32)
        writer.add_images(NewImages(["a", "b", "c", "unopened"], digests, [1] * 4, [1] * 4))
    keys = [digest_of("other"), digest_of("same"), bytes(32)]
    array = (
        np.frombuffer(b"".join(keys), np.uint8).reshape(3, 32)
        if as_bytes
        else np.array([k.hex().upper() for k in keys])
    )
    np.savez(tmp_path / "v.npz", features=np.eye(3), digest=array)
    summary = import_features("v", tmp_path / "v.npz", store=place)
    same(stored(place, "v"), expected(["c", "a", "b"], np.eye(3)[[0, 1, 1]]))
    assert (summary.n_imported, summary.unmatched, summary.without) == (3, ["0" * 64], ["unopened"])
    (tmp_path / "d.txt").write_text("\n".join(key.hex() for key in keys))
    np.save(tmp_path / "v.npy", np.eye(3))
    again = import_features("v", FeatureFile(tmp_path / "v.npy", digests=tmp_path / "d.txt"), store=place)
    assert again.n_kept == 3, "another format of the same table has the same identity"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([*PATHS[:3], PATHS[1]], r"1 paths stand more than once: sub 1/Bild 1 ü.jpg; expected one row for each photo"),
        ([PATHS[0], "./" + PATHS[0]], r"all mean the photo sub 0/Bild 0 ü.jpg"),
        (
            ["x.jpg", "y.jpg"],
            r"none of its 2 paths is an image of the store.*the first one is 'x.jpg', the store has 'sub",
        ),
    ],
)
def test_keys_that_make_no_sense_are_refused(store: Path, tmp_path: Path, paths: list[str], message: str) -> None:
    before = files_of(store)
    with pytest.raises(ExchangeError, match=message):
        import_features("v", write_elsewhere(tmp_path / "v.npz", np.ones((len(paths), 2)), paths), store=store)
    assert files_of(store) == before


# ---- identity


def test_other_values_are_refused_unless_they_are_declared_alike(store: Path, tmp_path: Path, values: Values) -> None:
    first = write_elsewhere(tmp_path / "a.npz", values[:5], PATHS[:5])
    more = write_elsewhere(tmp_path / "b.npz", values[3:] + 1, PATHS[3:])
    import_features("v", first, store=store)
    before = files_of(store)
    text = refused("import", "v", "--from", more.place, "--store", store)
    assert "tensor 'v' in " in text
    assert "imported/v: sha256: " in text
    assert "--identity TEXT" in text
    with pytest.raises(LayoutError, match="stored as float32 here, float16 there"):
        import_features("v", first, store=store, dtype="float32")
    wide = write_elsewhere(tmp_path / "c.npz", np.ones((5, 9)), PATHS[:5])
    with pytest.raises(LayoutError, match="sha256"):
        import_features("v", wide, store=store)
    assert files_of(store) == before
    import_features("d", first, store=store, declared="YouTube-8M, Inception v3, PCA")
    summary = import_features("d", more, store=store, declared="YouTube-8M, Inception v3, PCA", strict=True)
    assert (summary.n_imported, summary.n_kept) == (5, 2)
    same(stored(store, "d"), expected(PATHS, np.concatenate([values[:5], values[5:] + 1])))
    with Writer(store) as writer:
        writer.set_row_states("d", [2, 8], RowState.FAILED)
        writer.set_row_states("d", [9], RowState.ABSENT)
    assert import_features("d", more, store=store, declared="YouTube-8M, Inception v3, PCA").n_imported == 2
    assert len(featstore.open(store)["d"].rows) == 9, "the third row is not in this file"
    with pytest.raises(LayoutError, match="declared: other here, YouTube-8M, Inception v3, PCA there"):
        import_features("d", more, store=store, declared="other")
    with pytest.raises(LayoutError, match=r"row shape: \(9,\) here, \(6,\) there"):
        import_features("d", wide, store=store, declared="YouTube-8M, Inception v3, PCA")
    assert len(featstore.open(store)["d"].provenance) == 3
    assert verify(store).sound


def test_replace_replaces_and_keeps_what_the_new_file_lacks(store: Path, tmp_path: Path, values: Values) -> None:
    import_features("v", write_elsewhere(tmp_path / "a.npz", values, PATHS), store=store)
    part = write_elsewhere(tmp_path / "b.npz", values[:5] + 1, PATHS[:5])
    shown = run("import", "v", "--from", part.place, "--store", store, "--replace")
    assert "note: v_replaced is kept: it alone has features of photos that this file has none of" in shown.stdout
    same(stored(store, "v"), expected(PATHS[:5], values[:5] + 1))
    same(stored(store, "v_replaced"), expected(PATHS, values))
    whole = write_elsewhere(tmp_path / "c.npz", values + 2, PATHS)
    summary = import_features("v", whole, store=store, replace=True)
    assert (summary.n_imported, list(featstore.open(store))) == (10, ["v"])
    assert summary.n_reclaimed > 0
    same(stored(store, "v"), expected(PATHS, values + 2))
    assert import_features("v", whole, store=store, replace=True).n_kept == 10
    assert verify(store).findings == []


# ---- refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, 7e4, -7e4])
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_values_that_the_dtype_cannot_hold_are_refused(store: Path, tmp_path: Path, suffix: str, bad: float) -> None:
    values = np.ones((10, 6), np.float32)
    values[7, 2] = bad
    source = write_elsewhere(tmp_path / f"v.{suffix}", values, PATHS)
    before = files_of(store)
    for _ in range(2):
        if suffix == "parquet" and np.isnan(bad):  # pandas writes it as a gap
            with pytest.raises(ExchangeError, match=r"holds a list with a gap for sub 1/Bild 7 ü.jpg"):
                import_features("v", source, store=store)
            continue
        with pytest.raises(FeatureRangeError, match=r"feature 2 of sub 1/Bild 7 ü.jpg is ") as error:
            import_features("v", source, store=store)
        assert ("--dtype float32" in str(error.value)) == np.isfinite(bad)
    assert files_of(store) == before
    if np.isfinite(bad):
        import_features("v", source, store=store, dtype="float32")
        assert stored(store, "v")[PATHS[7]][2] == np.float32(bad)


def test_what_float32_cannot_hold_either_is_refused(store: Path, tmp_path: Path) -> None:
    source = write_elsewhere(tmp_path / "v.npz", np.full((10, 2), 1e300), PATHS)
    with pytest.raises(FeatureRangeError, match=r"feature 0 of .* is inf, more than float32 holds; nothing"):
        import_features("v", source, store=store, dtype="float32")


def test_rows_of_zeros_are_named(store: Path, tmp_path: Path, values: Values) -> None:
    values[[2, 5]] = 0
    source = write_elsewhere(tmp_path / "v.npz", values, PATHS)
    with pytest.raises(ExchangeError, match=r"2 rows of .* are all zeros: sub 2/Bild 2 ü.jpg, sub 2/Bild 5 ü.jpg"):
        import_features("v", source, store=store, strict=True)
    assert (
        "2 rows are all zeros; were they ever computed?"
        in run("import", "v", "--from", source.place, "--store", store).stdout
    )


def test_pickle_is_never_loaded(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    trap = np.array([Trap()] * 10, dtype=object)
    np.savez(tmp_path / "a.npz", features=np.ones((10, 2)), paths=trap)
    np.savez(tmp_path / "b.npz", features=trap, paths=np.array(PATHS))
    np.save(tmp_path / "c.npy", trap)
    (tmp_path / "p.txt").write_text("\n".join(PATHS))
    with pytest.raises(ExchangeError, match=r"the array 'paths' holds Python objects .pickle., which are never loaded"):
        import_features("v", tmp_path / "a.npz", store=store)
    with pytest.raises(ExchangeError, match="no array of numbers"):
        import_features("v", tmp_path / "b.npz", store=store)
    with pytest.raises(ExchangeError, match=r"holds Python objects .pickle."):
        import_features("v", FeatureFile(tmp_path / "c.npy", paths=tmp_path / "p.txt"), store=store)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_files_are_refused(store: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    values = np.random.default_rng(0).random((10, 500))
    source = write_elsewhere(tmp_path / f"v.{suffix}", values, PATHS)
    file = Path(source.place)
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) * 2 // 3], "noise": b"not what it seems " * 99, "empty": b""}[damage])
    before = files_of(store)
    with pytest.raises(ExchangeError, match=r"v\.\w+ cannot be read, it may be damaged or cut short: ."):
        import_features("v", source, store=store)
    assert files_of(store) == before


def test_a_flipped_bit_is_noticed_where_the_format_can(store: Path, tmp_path: Path, values: Values) -> None:
    import_features("v", write_elsewhere(tmp_path / "v.npy", values, PATHS), store=store)
    for suffix in EXPORTS:
        file = tmp_path / f"out.{suffix}"
        export(store, file)
        chunk = file / "v" / "c" / "0" / "0" if file.is_dir() else file
        data = bytearray(chunk.read_bytes())
        place = data.find(values[3].tobytes())
        assert place > 0
        data[place] ^= 4
        chunk.write_bytes(data)
        with pytest.raises(ExchangeError, match="damaged"):
            import_features("w", file, store=store)


_CSV = "path,f0,f1\n" + "".join(f"{path},{i},{i}.5\n" for i, path in enumerate(PATHS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_CSV.replace("4,4.5", "4,four"), r"line 6, column 'f1': 'four' is not a number"),
        (_CSV.replace("4,4.5", "4,"), r"line 6, column 'f1': '' is not a number"),
        (_CSV.replace("0,0.5", "0,"), r"line 2, column 'f1': '' is not a number"),
        (_CSV.replace("4,4.5", "4,4_5"), r"line 6, column 'f1': '4_5' is not a number"),
        (_CSV.replace("4,4.5", "4,４.5"), r"line 6, column 'f1': '４.5' is not a number"),
        (_CSV.replace("0,0.5", '0,"0,5"'), r"first row, column 'f1': '0,5' is not a number; mend it"),
        (_CSV.replace("0,0.5", "0,0_5"), r"first row, column 'f1': '0_5' is not a number; mend it"),
        (_CSV.replace(".jpg", ".JPG"), r"10 of 10 would match but for the case of \.JPG; write \.jpg"),
        ("path,id\na,1\n", r"its columns are 'path', 'id'; --columns takes 'id' for features all the same"),
        (_CSV.replace("4,4.5", "4"), r"line 6 has 2 cells; the first has 3"),
        (_CSV.replace("path", "file"), r"no 'path' or 'digest' among 'file', 'f0', 'f1'.*--path-column"),
        (_CSV.replace(PATHS[4], ""), r"path, row 4: expected a path in UTF-8, found ''"),
        (_CSV.replace("f0", "f1"), r"more than one column 'f1'"),
        ("path,name\na,b\n", r"no column of numbers or lists of them; its columns are 'path', 'name'"),
        ("path,f0\n", r"holds no rows"),
        ("", r"holds no rows|is empty"),
        (
            'path,v\nsub 0/Bild 0 ü.jpg,"[1, 2]"\nb,"[1]"\n',
            r"line 3, column 'v': \(1,\) features; the first row has \(2,\)",
        ),
        (
            'path,v\nsub 0/Bild 0 ü.jpg,"[1, 2]"\nb,"[1 2]"\n',
            r"line 3, column 'v': '\[1 2\]' is not a list of numbers in JSON",
        ),
        ("path,f0\n\xff,1\n", r"cannot be read.*utf-8"),
    ],
)
def test_mistakes_in_a_csv_are_named_by_line_and_column(store: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "v.csv"
    file.write_bytes(text.encode("latin-1" if "\xff" in text else "utf-8"))
    before = files_of(store)
    with pytest.raises(ExchangeError, match=message):
        import_features("v", file, store=store)
    assert files_of(store) == before


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"file": PATHS, "f": 1.0}, {}, r"no 'path' or 'digest' among 'file', 'f'"),
        ({"path": PATHS, "name": PATHS}, {}, r"no column of numbers or lists of them"),
        ({"path": PATHS, "a": [[1.0]] * 10, "b": [[1.0]] * 10}, {}, r"columns of lists a, b; name one with --columns"),
        ({"path": PATHS, "a": 1.0}, {"columns": "b"}, r"no column 'b' and none that begins so; known: a, path"),
        ({"path": PATHS, "a": 1.0}, {"columns": "a,bb"}, r"no column 'bb'"),
        ({"path": PATHS, "a": "x"}, {"columns": "a"}, r"the column 'a' does not hold numbers"),
        (
            {"path": PATHS, "a": [[1.0]] * 10, "b": 1.0},
            {"columns": "a,b"},
            r"'a' holds lists; it has to be the only one",
        ),
        ({"path": PATHS, "a": [[1.0, 2.0]] * 9 + [[1.0]]}, {}, r"column 'a' holds 1 features for sub 0/Bild 9"),
        (
            {"path": PATHS, "a": [[1.0, 2.0]] * 9 + [[1.0, None]]},
            {},
            r"column 'a' holds a list with a gap for sub 0/Bild 9",
        ),
        ({"path": PATHS, "a": [[1.0, 2.0]] * 9 + [None]}, {}, r"column 'a' holds nothing for sub 0/Bild 9"),
        ({"path": PATHS, "a": [1.0] * 9 + [None]}, {}, r"column 'a' holds nothing for sub 0/Bild 9"),
        ({"path": [*PATHS[:9], None], "a": 1.0}, {}, r"path, row 9: expected a path in UTF-8, found None"),
        ({"path": PATHS, "a": 1.0}, {"by": "digest"}, r"there is no 'digest' among"),
        ({"path": PATHS, "a": 1.0}, {"path_column": "b"}, r"there is no 'b' among"),
        ({"path": PATHS, "a": 1.0}, {"dataset": "a"}, r"--dataset says nothing about a .parquet file"),
    ],
)
def test_tables_of_another_kind_are_refused(
    store: Path, tmp_path: Path, table: dict[str, Any], options: dict[str, str], message: str
) -> None:
    columns = {name: values if isinstance(values, list) else [values] * 10 for name, values in table.items()}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(ExchangeError, match=message):
        import_features("v", FeatureFile(tmp_path / "v.parquet", **options), store=store)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((10, 2, 3, 4)), {}, r"of 2 backbones stand side by side, \(10, 2, 3, 4\).*--backbone 0 to 1"),
        (np.ones((10, 1, 2, 3, 4)), {}, r"shape \(10, 1, 2, 3, 4\); expected \(rows, features\)"),
        (np.ones(10), {}, r"of shape \(10,\); expected \(rows, features\)"),
        (np.ones((10, 0)), {}, r"of shape \(10, 0\)"),
        (np.ones((9, 2)), {}, r"9 rows of features and 10 paths"),
        (np.ones((10, 2), complex), {}, r"of dtype complex128; expected real numbers"),
        (np.ones((10, 2), bool), {}, r"of dtype bool"),
        (np.ones((10, 2)), {"backbone": 0}, r"--backbone chooses of \(rows, backbones, blocks, features\)"),
    ],
)
def test_shapes_that_are_no_segment_are_refused(
    store: Path, tmp_path: Path, values: Values, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExchangeError, match=message):
        import_features("v", write_elsewhere(tmp_path / "v.npy", values, PATHS), store=store, **options)


def test_what_is_asked_for_has_to_make_sense(store: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((10, 2)))
    np.savez(tmp_path / "v.npz", a=np.ones((10, 2)), b=np.ones((10, 2)), path=np.array(PATHS))
    keys = tmp_path / "p.txt"
    keys.write_text("a\n\nb\n")
    words = tmp_path / "w.txt"
    words.write_text("".join(f"a{i}\n" for i in range(10)))
    npy = tmp_path / "v.npy"
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (ConfigError, "should be letters", npy, {"name": "a b"}),
        (ConfigError, "unknown --dtype 'int8'", npy, {"dtype": "int8"}),
        (ConfigError, "--identity is empty", npy, {"declared": " "}),
        (ExchangeError, "does not say which photo a row is of", npy, {}),
        (ExchangeError, "p.txt, line 2 is empty", FeatureFile(npy, paths=keys), {}),
        (ExchangeError, "w.txt, line 1: 'a0' is not a SHA-256", FeatureFile(npy, digests=words), {}),
        (ExchangeError, "no.txt cannot be read: No such file", FeatureFile(npy, paths=tmp_path / "no.txt"), {}),
        (ExchangeError, "name one of them", FeatureFile(npy, paths=keys, digests=keys), {}),
        (ExchangeError, "--columns says nothing", FeatureFile(npy, columns="f"), {}),
        (ExchangeError, "may be the features: a .10, 2., b .10, 2.; name one", tmp_path / "v.npz", {}),
        (ExchangeError, "no array of numbers 'c'", FeatureFile(tmp_path / "v.npz", dataset="c"), {}),
        (ExchangeError, "does not exist; did you mean 'v.np", tmp_path / "vv.npy", {}),
        (ExchangeError, "'.mat' is not .npy, .npz", tmp_path / "v.mat", {}),
        (PhotosError, "there is no store", npy, {"store": tmp_path / "no.zarr"}),
        (ExchangeError, "is neither a group nor an array of Zarr", tmp_path, {}),
        (ExchangeError, "is neither a group nor an array of Zarr", tmp_path / "no.zarr", {}),
        (FeatstoreError, "is a file, not a feature store", FeatureFile(npy, paths=words), {"store": keys}),
    ]
    for error, message, source, options in cases:
        given: dict[str, Any] = {"name": "v", "store": store, **options}
        if "there is no store" in message:
            source = write_elsewhere(tmp_path / "w.npz", np.ones((10, 2)), PATHS)
        with pytest.raises(error, match=message):
            import_features(given.pop("name"), source, **given)


def test_exports_that_make_no_sense_are_refused(store: Path, tmp_path: Path, values: Values) -> None:
    import_features("v", write_elsewhere(tmp_path / "v.npz", values, PATHS), store=store)
    import_features("path", FeatureFile(tmp_path / "v.npz"), store=store)
    empty = list_images(tmp_path / "empty.zarr", PATHS)
    (tmp_path / "there.npz").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    shutil.copytree(store, tmp_path / "other.zarr")
    before = files_of(tmp_path)
    cases: list[tuple[str, list[str | Path]]] = [
        ("exists already; name another file", ["--to", tmp_path / "there.npz"]),
        ("folder is a folder, and an export as npz", ["--to", tmp_path / "folder", "--format", "npz", "--overwrite"]),
        ("was not made by an export", ["--to", tmp_path / "folder", "--format", "zarr", "--overwrite"]),
        ("was not made by an export", ["--to", tmp_path / "other.zarr", "--overwrite"]),
        ("is a file, and an export as zarr", ["--to", tmp_path / "there.npz", "--format", "zarr", "--overwrite"]),
        ("lie in each other", ["--to", store, "--overwrite"]),
        ("lie in each other", ["--to", store / "images" / "x.npz"]),
        ("does not exist; make it", ["--to", tmp_path / "no" / "x.npz"]),
        ("is not one of .npz, .h5", ["--to", tmp_path / "x.mat"]),
        ("unknown --format 'mat'", ["--to", tmp_path / "x.npz", "--format", "mat"]),
        ("is a URL", ["--to", "s3://bucket/x.npz"]),
        ("--tensors names none", ["--to", tmp_path / "x.npz", "--tensors", ","]),
        ("has no tensor 'w'", ["--to", tmp_path / "x.npz", "--tensors", "w"]),
        ("'path' cannot be exported", ["--to", tmp_path / "x.npz"]),
    ]
    for message, words in cases:
        chosen = [] if "path" in message else ["--tensors", "v"]
        assert message in refused("export", store, *chosen, *words)
    assert "has no tensors to export" in refused("export", empty, "--to", tmp_path / "x.npz")
    assert "is not a feature store" in refused("export", tmp_path / "no.zarr", "--to", tmp_path / "x.npz")
    with Writer(store) as writer:
        writer.set_row_states("v", list(range(10)), RowState.ABSENT)
    assert "no image of" in refused("export", store, "--to", tmp_path / "x.npz", "--tensors", "v")
    after = files_of(tmp_path)
    assert {
        name for name in {*before, *after} if before.get(name) != after.get(name) and "features.zarr" not in name
    } <= {str(tmp_path)}


@pytest.mark.parametrize("suffix", EXPORTS)
def test_overwrite_replaces_an_export(store: Path, tmp_path: Path, values: Values, suffix: str) -> None:
    file = tmp_path / f"out.{suffix}"
    import_features("v", write_elsewhere(tmp_path / "v.npz", values, PATHS), store=store)
    export(store, file)
    import_features("v", write_elsewhere(tmp_path / "w.npz", values + 1, PATHS), store=store, replace=True)
    with pytest.raises(ExchangeError, match="exists already"):
        export(store, file)
    export(store, file, overwrite=True)
    np.testing.assert_array_equal(np.concatenate(list(read_table(FeatureFile(file)).blocks(4))), values + 1)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".out")] == []


@pytest.mark.parametrize("module", ["h5py", "pyarrow"])
def test_a_missing_package_is_named(store: Path, tmp_path: Path, values: Values, module: str, monkeypatch: Any) -> None:
    suffix = {"h5py": "h5", "pyarrow": "parquet"}[module]
    source = write_elsewhere(tmp_path / f"v.{suffix}", values, PATHS)
    import_features("v", source, store=store)
    for name in [module, "pyarrow.parquet"]:
        monkeypatch.setitem(sys.modules, name, None)
    wanted = rf"{suffix}: this format needs one more package, {module}: pip install 'featstore\[exchange\]'"
    with pytest.raises(ExchangeError, match=rf"v\.{wanted}"):
        import_features("w", source, store=store)
    with pytest.raises(ExchangeError, match=module):
        export(store, tmp_path / f"out.{suffix}")
    assert not list(tmp_path.glob(".out*"))


# ---- killed, full disks, memory


_IMPORT = """
import os, signal
from featstore import import_features

def report(stage, done, total):
    if (stage, done) == ({stage!r}, {done}):
        os.kill(os.getpid(), signal.SIGKILL)

import_features("v", {source!r}, store={store!r}, on_progress=report)
"""
_EXPORT = """
import os, signal
from featstore import export
from featstore.exchange.formats import writers
writers.SLAB_BYTES = 100

def report(stage, done, total):
    if done >= {done}:
        os.kill(os.getpid(), signal.SIGKILL)

export({store!r}, {file!r}, on_progress=report)
"""


def _run_killed(script: str) -> None:
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize(("stage", "done", "kept"), [("check", 10, 0), ("import", 8, 8)])
def test_an_import_killed_on_the_way_goes_on(
    store: Path, tmp_path: Path, values: Values, stage: str, done: int, kept: int
) -> None:
    source = write_elsewhere(tmp_path / "v.h5", values[::-1], PATHS[::-1])
    _run_killed(_IMPORT.format(source=str(source.place), store=str(store), stage=stage, done=done))
    assert verify(store).sound
    opened = featstore.open(store)
    if "v" in opened:
        same(
            stored(store, "v"),
            {path: row for path, row in expected(PATHS, values).items() if path in opened["v"].paths},
        )
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".featstore")]
    summary = import_features("v", source, store=store)
    assert (summary.n_imported, summary.n_kept) == (10 - kept, kept)
    same(stored(store, "v"), expected(PATHS, values))
    assert verify(store).findings == []


@pytest.mark.parametrize("suffix", EXPORTS)
def test_an_export_killed_on_the_way_leaves_nothing_that_looks_like_one(
    store: Path, tmp_path: Path, values: Values, suffix: str
) -> None:
    import_features("v", write_elsewhere(tmp_path / "v.npz", values, PATHS), store=store)
    file = tmp_path / f"out.{suffix}"
    _run_killed(_EXPORT.format(store=str(store), file=str(file), done=7))
    assert not file.exists()
    assert len(left := [each for each in tmp_path.iterdir() if each.name.startswith(".out")]) == 1
    assert export(store, file).n_images == 10
    assert not left[0].exists()
    np.testing.assert_array_equal(np.concatenate(list(read_table(FeatureFile(file)).blocks(4))), values)


def test_two_exports_to_one_place_do_not_mix(store: Path, tmp_path: Path, values: Values) -> None:
    import_features("v", write_elsewhere(tmp_path / "v.npz", values, PATHS), store=store)
    file = tmp_path / "out.npz"

    def meanwhile(stage: str, done: int, total: int) -> None:
        if not file.exists():
            export(store, file)

    with pytest.raises(ExchangeError, match="has appeared meanwhile"):
        export(store, file, on_progress=meanwhile)
    np.testing.assert_array_equal(next(read_table(FeatureFile(file)).blocks(10)), values)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".out")] == []


_FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from featstore.cli import main
sys.argv = ["featstore", *{words!r}]
main()
"""


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path, suffix: str) -> None:
    place = list_images(tmp_path / "s.zarr", PATHS)
    values = np.random.default_rng(0).random((10, 20000)).astype(np.float16)
    import_features("v", write_elsewhere(tmp_path / "v.npz", values, PATHS), store=place)
    before = sorted(tmp_path.iterdir())
    words = ["export", str(place), "--to", str(tmp_path / f"out.{suffix}")]
    script = _FULL.format(limit=200_000, words=words)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: cannot write {tmp_path / 'out'}.{suffix}: ")
    assert "nothing of the export is left behind" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_an_import_on_a_disk_that_refuses_keeps_what_is_stored(tmp_path: Path, suffix: str) -> None:
    place = list_images(tmp_path / "s.zarr", PATHS)
    values = np.random.default_rng(0).random((10, 20000))
    source = write_elsewhere(tmp_path / f"v.{suffix}", values[::-1], PATHS[::-1])
    words = ["import", "v", "--from", str(source.place), "--store", str(place)]
    done = subprocess.run(
        [sys.executable, "-c", _FULL.format(limit=100_000, words=words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write ")
    assert ("a temporary file in" in done.stderr) == (suffix == "h5")
    assert import_features("v", source, store=place).n_imported == 10
    assert verify(place).findings == []


def test_no_space_is_said_before_anything_is_written(
    store: Path, tmp_path: Path, values: Values, monkeypatch: Any
) -> None:
    source = write_elsewhere(tmp_path / "v.npz", values, PATHS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=100))
    before = files_of(store)
    with pytest.raises(StoreWriteError, match="nothing was written"):
        import_features("v", source, store=store)
    assert files_of(store) == before
    monkeypatch.undo()
    import_features("v", source, store=store)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=100))
    with pytest.raises(StoreWriteError, match="nothing was written"):
        export(store, tmp_path / "out.npz")


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


N_ROWS, WIDTH, LIMIT = 400, 1 << 17, 48 << 20  # 200 MB in the file, 100 MB in the store


def test_memory_is_bounded_by_a_block_and_not_by_the_file(tmp_path: Path, traced: None) -> None:
    paths = [f"{i}.jpg" for i in range(N_ROWS)]
    place = list_images(tmp_path / "s.zarr", paths, block_rows=16)
    big = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, (N_ROWS, WIDTH))
    big[...] = np.arange(1, N_ROWS + 1, dtype=np.float32)[::-1, None]
    del big
    (tmp_path / "p.txt").write_text("\n".join(paths[::-1]))
    source = FeatureFile(tmp_path / "v.npy", paths=tmp_path / "p.txt")

    def peak(work: Callable[[], object]) -> int:
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1]

    assert peak(lambda: import_features("v", source, store=place)) < LIMIT
    file = tmp_path / "out.h5"
    assert peak(lambda: export(place, file)) < LIMIT
    assert file.stat().st_size > N_ROWS * WIDTH * 2
    with h5py.File(file) as opened:
        assert opened["v"][:, 0].tolist() == list(range(1, N_ROWS + 1))
    other = list_images(tmp_path / "t.zarr", paths[::-1], block_rows=16)
    assert peak(lambda: import_features("v", file, store=other)) < LIMIT
    assert featstore.open(other)["v"].read([0, 399])[:, -1].tolist() == [400, 1]
