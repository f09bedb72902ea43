"""A store and runs that an older version left are read, trusted and gone on with as ever."""

import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

import featstore
import heads

from . import making
from .making import call, facts, files_of, recorded, run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return making.look_at_copy(tmp_path_factory.mktemp("copy"))


@pytest.mark.parametrize("what", ["info", "images", "values", "files"])
def test_the_store_says_what_it_said(found: dict[str, Any], what: str) -> None:
    assert found[what] == recorded("store.json")[what]


@pytest.mark.parametrize("name", ["amtl", "ridge"])
def test_a_run_predicts_and_is_judged_as_before(found: dict[str, Any], name: str) -> None:
    now, then = found["runs"][name], recorded("store.json")["runs"][name]
    assert (now["header"], list(now["predicted"])) == (then["header"], list(then["predicted"]))
    assert list(now["predicted"].values()) == pytest.approx(np.array(list(then["predicted"].values())), abs=1e-6)
    assert now["trained"]
    assert now["metrics"] == then["metrics"]
    assert now["evaluated"].keys() == then["evaluated"].keys()
    assert close(now["evaluated"], then["evaluated"])


def test_runs_are_compared_as_before(found: dict[str, Any]) -> None:
    assert close(found["compare"], recorded("store.json")["compare"])


def close(now: Any, then: Any) -> bool:
    """Whether two documents are the same, numbers to within rounding."""
    if isinstance(then, dict):
        return now.keys() == then.keys() and all(close(now[key], then[key]) for key in then)
    if isinstance(then, list):
        return len(now) == len(then) and all(map(close, now, then))
    return now == (pytest.approx(then, rel=1e-4, abs=1e-5) if isinstance(then, float) else then)


def test_rows_are_the_same_to_the_last_bit(golden: Path) -> None:
    with np.load(golden / "rows.npz") as then:
        store = featstore.open(golden / "features.zarr")
        assert sorted(store.tensors) == sorted(then.files)
        for name, rows in then.items():
            now = store[name].read([0, 7, 11])
            assert (now.dtype, now.shape) == (rows.dtype, rows.shape)
            assert now.tobytes() == rows.tobytes()


def test_the_store_is_sound_in_a_folder_and_in_a_zip_file(golden: Path) -> None:
    for place in (golden / "features.zarr", golden / "features.zip"):
        checked = featstore.verify(place)
        assert checked.sound
        assert not checked.findings


def test_rows_computed_again_are_those_of_the_store(desk: Path) -> None:
    verified = facts("featstore", "verify", "--recompute", 2, "--photos", "photos", "--seed", 0)
    assert verified["recomputed"]["within"] is True


def test_there_is_nothing_to_extract_or_import(desk: Path) -> None:
    before = features_in(desk / "features.zarr")
    planned = facts("featstore", "extract", "--dry-run")
    assert (planned["photos"], planned["new"], planned["changed"], planned["missing"]) == (12, 0, [], 0)
    assert {name: tensor["rows"] for name, tensor in planned["tensors"].items()} == dict.fromkeys(planned["tensors"], 0)
    run("featstore", "extract")
    run("featstore", "extract", "photos", "--store", "features.zarr")
    run("featstore", "import", "elsewhere", "--from", "elsewhere.npy", "--paths", "paths.txt")
    assert features_in(desk / "features.zarr") == before


def features_in(store: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes of all files of tensors, and when they were written."""
    files = [name for name in files_of(store) if not name.startswith("images/") and name != "zarr.json"]
    return {name: ((store / name).read_bytes(), (store / name).stat().st_mtime_ns) for name in files}


def test_a_damaged_row_is_found_mended_and_computed_again(desk: Path) -> None:
    (shard,) = desk.glob("features.zarr/tensors/whole/c*")
    content = shard.read_bytes()
    shard.write_bytes(content[:1000] + b"damage" + content[1006:])
    assert facts("featstore", "verify", code=1)["sound"] is False
    assert list(facts("featstore", "repair")["absent"]) == ["whole"]
    assert facts("featstore", "info")["tensors"]["whole"]["rows"]["absent"] == 1
    run("featstore", "extract")
    assert facts("featstore", "verify")["sound"] is True


def test_a_finished_run_is_not_trained_again(desk: Path) -> None:
    before = {name: (desk / "runs" / name).read_bytes() for name in files_of(desk / "runs")}
    assert call("heads", "resume", "runs/amtl").exit_code == 1
    assert call("heads", "train", "ridge", "--tensor", "whole", "--folds", 2, "--out", "runs/ridge").exit_code == 1
    assert {name: (desk / "runs" / name).read_bytes() for name in files_of(desk / "runs")} == before


def test_a_report_and_drawings_of_an_old_run(desk: Path) -> None:
    for name in ("ridge", "amtl"):
        run("heads", "report", f"runs/{name}", "--photos", "photos")
        assert "<html" in Path(f"runs/{name}/report.html").read_text(encoding="utf-8")
    run("heads", "attention", "runs/amtl", "photo 1.png", "--photos", "photos", "--out", "drawn")
    assert files_of(Path("drawn"))
    assert heads.Run("runs/amtl").attention is not None


def test_an_old_run_gives_its_folds_to_another(desk: Path) -> None:
    run("heads", "train", "svr", "--tensor", "whole", "--split", "runs/ridge", "--out", "runs/svr", "--quiet")
    assert heads.Run("runs/svr").folds["fold"].tolist() == heads.Run("runs/ridge").folds["fold"].tolist()


OLDER = Path(__file__).parent / "older" / "features.zip"
"""Of a version that applied no colour profiles."""


def test_features_by_older_rules_are_read_and_never_mixed_with_new_ones(desk: Path) -> None:
    shutil.rmtree("features.zarr")
    with ZipFile(OLDER) as packed:
        packed.extractall("features.zarr")
    assert facts("featstore", "verify")["sound"] is True
    before = featstore.open("features.zarr")["whole"].read(range(12))
    refused = call("featstore", "extract")
    assert refused.exit_code == 1
    assert "colour profiles applied here, not there" in refused.stderr
    assert call("featstore", "verify", "--recompute", 2).exit_code == 1
    run("featstore", "extract", "--replace")
    store = featstore.open("features.zarr")
    np.testing.assert_allclose(
        store["whole"].read(range(12)), before, rtol=2e-3, atol=1e-4
    )  # these photos have no profiles
    assert "icc" in store["whole"].layout.segments[0].identity["decoding"]
