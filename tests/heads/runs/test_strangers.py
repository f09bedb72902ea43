"""Runs that a stranger may have forged: the real commands end with one message, and do no harm."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from heads.runs.run import Run

from ..conftest import heads, refused

HEADS = Path(sys.executable).with_name("heads")
FAST = ["--set", "epochs=2", "--set", "attention=4", "--set", "hidden=4", "--folds", "3", "--repeats", "2"]


@pytest.fixture(scope="module")
def honest(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it was sent."""
    folder = tmp_path_factory.mktemp("honest") / "run"
    result = heads("train", "amtl", world.store, "--labels", world.labels, "--scale", "1:7", *FAST, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def forged(honest: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def commands(world, tmp_path: Path) -> Callable[[Path], dict[str, list[object]]]:
    """Everything that is done with a run."""

    def of(run: Path) -> dict[str, list[object]]:
        photo = world.table["path"][0]
        return {
            "report": ["report", run],
            "predict": ["predict", run, world.store, "--out", tmp_path / "out.csv"],
            "evaluate": ["evaluate", run, world.store, "--labels", world.labels, "--scale", "1:7", "--seen"],
            "compare": ["compare", run, run],
            "attention": ["attention", run, photo, "--out", tmp_path / "drawn"],
            "log": ["log", run, "tensorboard"],
        }

    return of


def edit(file: Path, place: str, value: object) -> None:
    """Set what is at a place, as `target.kind` or `scales.0`, of a JSON file."""
    whole = json.loads(file.read_text("utf-8"))
    *way, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    inner: Any = whole
    for part in way:
        inner = inner[part]
    inner[last] = value
    file.write_text(json.dumps(whole), "utf-8")


def test_a_run_of_other_images_than_its_folds(forged: Path, commands) -> None:
    edit(forged / "config.json", "n_images", 10**9)
    assert "folds.csv is not what this version of heads writes: it has 60 rows, and the run" in refused(
        "report", forged
    )


def test_an_honest_run_passes_all_doors(honest: Path, commands) -> None:
    for arguments in commands(honest).values():
        result = heads(*arguments)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("target.kind", "zzz", "target.kind: input should be 'regression', 'binary', 'multiclass' or 'multilabel'"),
        ("target.tasks", ["appeal", "appeal"], "target.tasks: 'appeal' stands twice"),
        ("target.tasks", [], "target.tasks is empty"),
        ("target.classes", ["a", "b"], "target.classes is 'a', 'b', and regression labels have none"),
        ("target", 7, "target: "),
        ("scales.0", [7, 1], "the scale of 'appeal' is 7 to 1"),
        ("scales.0", [float("nan"), 7], "it has the number nan"),
        ("scales", [[1, 7]], "scales: 1 of 2 tasks"),
        ("n_images", -1, "n_images is -1"),
        ("n_images", 10**12, "n_images is 1e+12"),
        ("n_repeats", 10**9, "n_repeats is 1e+09"),
        ("elapsed_s", 1e308, "it has the number 1e+308"),
        ("tensors.0.shape", [3, 16, 10**12], "the shape of tensor 'grid' is"),
        ("tensors.0.shape", "big", "tensors.0.shape: input should be a valid list, found 'big'"),
        ("tensors.0.segments", None, "tensors.0.segments: "),
        ("labels.sha256", [], "labels: 1 files and 0 sha256"),
        ("options.epochs", {"a": 1}, "options.epochs"),
        ("plugin", {"name": "x.py"}, "plugin has name, not name and sha256"),
        ("models", ["../../etc/passwd"], "models: '../../etc/passwd' is no name of a weights file"),
        ("colour", "red", "colour is unknown"),
    ],
)
def test_a_configuration_that_cannot_be(forged: Path, commands, place: str, value: object, said: str) -> None:
    edit(forged / "config.json", place, value)
    for arguments in commands(forged).values():
        assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("table", "row", "column", "cell", "said"),
    [
        (
            "predictions.csv",
            4,
            "appeal_predicted",
            "1e999",
            "row 5, column 'appeal_predicted', is '1e999', not a number",
        ),
        ("predictions.csv", 4, "appeal", "zzz", "row 5, column 'appeal', is 'zzz', not a number, or nothing"),
        ("predictions.csv", 4, "repeat", "-1", "row 5, column 'repeat', is '-1', not 0, 1, 2, ..."),
        ("predictions.csv", 4, "repeat", str(10**9), "it has the repeat 1000000000, and the run 2"),
        ("predictions.csv", 4, "fold", "9", "in fold '9' of repeat 0, and folds.csv has not"),
        ("predictions.csv", 4, "path", "other.jpg", "it has photo 'other.jpg' in fold"),
        ("folds.csv", 4, "path", "Été", "and folds.csv has not"),
        ("history.csv", 2, "epoch", "1.5", "row 3, column 'epoch', is '1.5', not 0, 1, 2, ..."),
    ],
)
def test_a_table_that_cannot_be(
    forged: Path, commands, table: str, row: int, column: str, cell: str, said: str
) -> None:
    cells = pd.read_csv(forged / table, dtype=str, keep_default_na=False)
    cells.loc[row, column] = cell
    cells.to_csv(forged / table, index=False)
    assert said in refused(*commands(forged)["report"])


@pytest.mark.parametrize("file", ["config.json", "metrics.json", "predictions.csv", "folds.csv", "history.csv"])
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"a,a\n1,2\n", b"path\n\0\n", b'"'])
def test_a_file_that_is_something_else(forged: Path, commands, file: str, content: bytes) -> None:
    if file == "history.csv" and len(content) < 3:
        pytest.skip("as heads without epochs leave it")
    (forged / file).write_bytes(content)
    said = refused(*commands(forged)["report"])
    assert file in said
    assert len(said) < 1500


@pytest.mark.parametrize("file", ["config.json", "metrics.json", "predictions.csv", "folds.csv"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(forged: Path, commands, file: str) -> None:
    (forged / file).unlink()
    os.mkfifo(forged / file)
    assert f"{file} cannot be read: it is a named pipe, not a file" in refused(*commands(forged)["report"])


def test_a_device_in_place_of_a_file_does_not_fill_the_memory(forged: Path, commands) -> None:
    (forged / "predictions.csv").unlink()
    (forged / "predictions.csv").symlink_to("/dev/zero")
    assert "predictions.csv cannot be read: it is a device" in refused(*commands(forged)["report"])


def test_metrics_that_lack_a_figure(forged: Path, commands) -> None:
    edit(forged / "metrics.json", "appeal.pearson", {"mean": 0.9})
    assert "it has no high, low, spread of 'appeal', pearson" in refused(*commands(forged)["report"])
    edit(forged / "metrics.json", "appeal", "excellent")
    assert "metrics.json is not what this version of heads writes: appeal: " in refused(*commands(forged)["report"])


def test_raters_that_cannot_be(forged: Path, commands) -> None:
    (forged / "raters.json").write_text('{"appeal": {"n_photos": "many"}}')
    assert "raters.json is not what this version" in refused(*commands(forged)["report"])
    (forged / "raters.json").write_text('{"colour": ' + json.dumps(raters()) + "}")
    assert "it is about 'colour', which the run has not learnt" in refused(*commands(forged)["report"])
    (forged / "raters.json").write_text('{"appeal": ' + json.dumps(raters()) + "}")
    assert heads(*commands(forged)["report"]).exit_code == 0


def raters() -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("n_raters", "basis", "reliability", "ceiling", "one_rater", "icc1", "icc2k", "split_half", "alpha", "noise")
    )
    return {**nothing, "n_photos": 60, "n_ratings": 120, "raters_per_photo": [1, 2.0, 3], "n_single": 0, "notes": []}


# ------------------------------------------------------------------------------------------ weights


def limited(*arguments: object, gigabytes: float = 4) -> subprocess.CompletedProcess[str]:
    """A command in a process that may take so much memory."""
    room = int(gigabytes * 2**30)
    return subprocess.run(
        [HEADS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)),
    )


def test_options_of_a_huge_model_take_no_memory(forged: Path, commands) -> None:
    """The weights of 10^9 hidden units would have 400 GB."""
    edit(forged / "config.json", "options.hidden", 10**9)
    result = limited(*commands(forged)["predict"])
    assert result.returncode == 1
    assert "repeat0-fold0.safetensors are not of 'amtl' as this version has it" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("hidden", "many", "option 'hidden' is an int (default 256); found 'many'"),
        ("hidden", -4, "option 'hidden' is 1 or more; found '-4'"),
        ("dropout", 7, "option 'dropout' is from 0 to 0.99; found '7'"),
    ],
)
def test_options_that_the_head_does_not_take(forged: Path, commands, option: str, value: object, said: str) -> None:
    edit(forged / "config.json", f"options.{option}", value)
    assert said in refused(*commands(forged)["predict"])


def test_weights_that_are_none(forged: Path, commands) -> None:
    file = forged / "weights" / "repeat0-fold0.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    for changed, said in (
        ({**weights, "more": weights[name] + 1}, "it has 'more', which the head has not"),
        ({key: value for key, value in weights.items() if key != name}, f"it lacks '{name}'"),
        ({**weights, name: weights[name].double()}, f"'{name}' is F64"),
        ({**weights, name: weights[name] * float("nan")}, f"'{name}' has values that are no numbers"),
    ):
        save_file(changed, file)
        assert said in refused(*commands(forged)["predict"])
    for content in (b"", b"\0" * 8, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]", b"\xff" * 100):
        file.write_bytes(content)
        assert "repeat0-fold0.safetensors cannot be read: " in refused(*commands(forged)["predict"])
    file.unlink()
    os.mkfifo(file)
    assert "it is a named pipe, not a file" in refused(*commands(forged)["predict"])


def test_weights_of_a_task_that_the_run_has_not(forged: Path, commands) -> None:
    (forged / "weights" / "repeat0-fold0.safetensors").rename(forged / "weights" / "repeat0-fold0-task9.safetensors")
    names = sorted(file.stem for file in (forged / "weights").iterdir())
    edit(forged / "config.json", "models", names)
    assert "are named after a task that the run has not" in refused(*commands(forged)["predict"])


# ------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            "shape",
            [10**9, 3, 16],
            "its shape is (1000000000, 3, 16), and the run has 60 images, 3 backbones, 16 blocks",
        ),
        ("shape", [60, 3, 10**6], "and the run has 60 images, 3 backbones, 16 blocks"),
        ("shape", "large", "shape is 'large'"),
        ("data_type", "float64", "data_type is 'float64', not float32"),
        ("fill_value", "NaN", "fill_value is 'NaN', not 0.0"),
        ("codecs.1", {"name": "gzip", "configuration": {}}, "not bytes (little) and zstd"),
        ("codecs.0.name", "sharding_indexed", "not bytes (little) and zstd"),
        ("chunk_grid.configuration.chunk_shape", [1, 10**12, 1], "the shape of its chunks is [1, 1000000000000, 1]"),
        ("chunk_grid.configuration.chunk_shape", [0, 1, 1], "the shape of its chunks is [0, 1, 1]"),
        ("chunk_grid", 7, "missing or of another type"),
    ],
)
def test_attention_of_any_other_form(forged: Path, commands, place: str, value: object, said: str) -> None:
    edit(forged / "attention.zarr" / "blocks" / "zarr.json", place, value)
    for name in ("report", "attention"):
        assert said in refused(*commands(forged)[name])


def test_a_chunk_that_unpacks_to_gigabytes(forged: Path, commands) -> None:
    from numcodecs import Zstd

    chunk = next(file for file in (forged / "attention.zarr" / "blocks" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(Zstd().encode(np.zeros(2**28, np.uint8)) * 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"{chunk} cannot be read: " in refused(*commands(forged)["report"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    chunk.write_bytes(b"\xff" * 100)
    assert f"{chunk} cannot be read: " in refused(*commands(forged)["report"])
    chunk.unlink()
    os.mkfifo(chunk)
    assert "it is a named pipe" in refused(*commands(forged)["report"])


def test_attention_is_read_as_zarr_reads_it(honest: Path) -> None:
    import zarr

    found = Run(honest).attention
    group: Any = zarr.open_group(str(honest / "attention.zarr"), mode="r")
    assert found is not None
    assert found.paths == [str(path) for path in group["path"][:]]
    assert set(found.arrays) == {"blocks", "backbones"}
    for name, values in found.arrays.items():
        np.testing.assert_array_equal(values, group[name][:])


# ------------------------------------------------------------------------------------------ what is shown and written


def test_what_steers_a_terminal_or_turns_text_is_not_shown(forged: Path, commands) -> None:
    edit(forged / "config.json", "group", "\x1b[2Jgroup\u202e")
    edit(forged / "config.json", "command", "heads \x07train\x1b]0;owned\x07")
    edit(forged / "config.json", "device", "<img src=http://example.org/x.png>\u2066")
    assert heads(*commands(forged)["report"]).exit_code == 0
    page = (forged / "report.html").read_text("utf-8")
    assert not {*"\x1b\x07\u202e\u2066"} & {*page}
    assert "<img src=http" not in page
    assert page.count("default-src 'none'; img-src data:") == 1


def test_links_in_a_run_are_not_written_through(forged: Path, commands, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (forged / "report.html").unlink()
    (forged / "report.html").symlink_to(precious / "file")
    (forged / "report.html.part").symlink_to(precious / "file")
    shutil.rmtree(forged / "tensorboard", ignore_errors=True)
    (forged / "tensorboard").symlink_to(precious)
    assert heads(*commands(forged)["report"]).exit_code == 0
    assert not (forged / "report.html").is_symlink()
    assert "tensorboard is a link" in refused(*commands(forged)["log"])
    (tmp_path / "out.csv").symlink_to(precious / "file")
    assert heads(*commands(forged)["predict"]).exit_code == 0
    assert [(each.name, each.read_text()) for each in precious.iterdir()] == [("file", "kept")]


def test_a_pipe_that_the_user_names_is_written_to(honest: Path, world) -> None:
    result = limited("predict", honest, world.store, "--out", "/dev/stdout", "--quiet", gigabytes=8)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("path,appeal_predicted,calm_predicted,trained\n")
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.parametrize("content", [b"", b"path\n", b"path,fold\n\0,1\n", b'path,fold\n"', b"\xff\xfe\0"])
def test_a_split_that_cannot_be(world, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.csv").write_bytes(content)
    asked = ["train", "ridge", world.store, "--tensor", "whole", "--labels", world.labels]
    refused(*asked, "--split", tmp_path / "split.csv", "--out", tmp_path / "run")


def test_folds_of_thousands_of_digits_are_names(world, tmp_path: Path) -> None:
    folds = ["9" * 5000 if i % 2 else "0" for i in range(60)]
    world.table[["path"]].assign(fold=folds).to_csv(tmp_path / "split.csv", index=False)
    asked = ["train", "ridge", world.store, "--tensor", "whole", "--labels", world.labels]
    assert heads(*asked, "--split", tmp_path / "split.csv", "--out", tmp_path / "run").exit_code == 0
