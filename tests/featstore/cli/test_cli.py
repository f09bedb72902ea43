"""The `featstore` command as a person at a terminal meets it: what it prints, and how it fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner, Result

import featstore
from featstore.cli import app, doctor

FEATSTORE = Path(sys.executable).with_name("featstore")
TINY = ["--backbones", "test_resnet", "--view", "grid,whole", "--weights", "random:0"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run_command


def test_first_session(run: Callable[..., Result], photos: Path) -> None:
    assert "wrote featstore.toml for 10 photos" in run("init", photos).stdout
    assert "exists already" in run("init", photos).stderr
    first = run("extract", *TINY)
    assert first.exit_code == 0, first.stderr
    assert re.search(r"10 images: 10 done, 0 reused, 0 failed; [\d.]+ images/s, .* written, limited by", first.stdout)
    assert "store: cache/features.zarr" in first.stdout
    assert "10 reused, 0 failed; nothing to compute" in run("extract", *TINY).stdout
    info = run("info")
    assert re.search(r"grid\s+stack\s+10 x 1 x 16 x 96\s+float16\s+-\s+10\s+0\s+0", info.stdout)
    assert "random:0" in info.stdout


def test_json_is_the_only_thing_printed(run: Callable[..., Result], photos: Path) -> None:
    result = run("extract", photos, *TINY, "--json")
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert (facts["images"], facts["computed"], facts["reused"], facts["failed"]) == (10, 10, 0, [])
    described = json.loads(run("info", "--json").stdout)
    assert described["tensors"]["whole"]["segments"][0]["identity"]["pooling"] == "own"
    assert {card["backbone"] for card in json.loads(run("backbones", "--json").stdout)} >= {"resnet50", "inception_v3"}
    assert run("extract", photos, *TINY, "--quiet").stdout == ""


def test_backbones_are_found_by_part_of_a_name(run: Callable[..., Result]) -> None:
    shown = run("backbones", "DinoV2").stdout
    assert "vit_small_patch14_dinov2.lvd142m" in shown
    assert "518 x 518" in shown
    assert "resnet50" not in shown
    facts = json.loads(run("backbones", "lite0", "--json").stdout)
    assert {"tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"} <= {each["backbone"] for each in facts}
    nothing = run("backbones", "nonet")
    assert nothing.exit_code == 1
    assert "no backbone is called like 'nonet'; say part of a name" in nothing.stderr


def test_tensor_option_names_tensors_of_its_own(run: Callable[..., Result], photos: Path) -> None:
    spec = "both=stack/128:test_resnet,test_resnet:max"
    assert run("extract", photos, "--tensor", spec, "--weights", "random:0").exit_code == 0
    assert featstore.open("cache/features.zarr")["both"].shape == (10, 2, 16, 128)


def test_a_folder_of_every_bad_file_ends_well(run: Callable[..., Result], photos: Path) -> None:
    Image.new("L", (300, 200), 99).save(photos / "grey.png")
    Image.new("P", (300, 200)).save(photos / "palette.png")
    Image.new("RGBA", (300, 200), (9, 9, 9, 0)).save(photos / "alpha.png")
    Image.new("CMYK", (300, 200)).save(photos / "cmyk.jpg")
    Image.new("I;16", (300, 200), 65535).save(photos / "sixteen.png")
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    Image.new("RGB", (300, 200)).save(photos / "ünï cødé 图.jpg")
    (photos / "png.jpg").write_bytes((photos / "grey.png").read_bytes())
    (photos / "zero.jpg").touch()
    (photos / "words.jpg").write_text("hello")
    (photos / "cut.jpg").write_bytes((photos / "photo 1.jpg").read_bytes()[:700])
    (photos / "notes.txt").write_text("not a photo, not looked at")
    (photos / "control\x1b[31m.jpg").write_text("a name that would colour the terminal")
    result = run("extract", photos, *TINY)
    assert result.exit_code == 0
    assert "22 images: 17 done, 0 reused, 5 failed" in result.stdout
    for name in ("dot.png", "zero.jpg", "words.jpg", "cut.jpg"):
        assert f"failed: {name}: " in result.stdout
    assert "\x1b" not in result.stdout
    assert "unreadable: zero.jpg: the file is empty" in run("info").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("extract", "nowhere"), "photo folder nowhere does not exist"),
        (("extract", "empty"), "holds no photos"),
        (("extract",), "no photo folder named"),
        (("extract", "PHOTOS", "-b", "lite7", "--weights", "random:0"), "did you mean 'lite"),
        (("extract", "PHOTOS", "-b", "resnet50"), "put the file at cache/weights/resnet50.safetensors"),
        (("extract", "PHOTOS", "-b", "all"), "no weights for 9 backbones on this machine"),
        (("extract", "PHOTOS", "-b", ","), "no backbones named"),
        (("extract", "PHOTOS", *TINY, "--tensor", "x=stak:lite0"), "is not of the form NAME=LAYOUT"),
        (("extract", "PHOTOS", "-b", "lite0", "--weights", "lite0"), "is not of the form NAME=FILE"),
        (("extract", "PHOTOS", "-b", "lite0", "--weights", "litte0=x.pth"), "did you mean"),
        (("extract", "PHOTOS", *TINY, "--dtype", "int8"), "say float16 or float32"),
        (("extract", "PHOTOS", *TINY, "--device", "tpu9"), "unknown device"),
        (("extract", "PHOTOS", *TINY, "--device", "cuda"), "no CUDA GPU"),
        (("extract", "PHOTOS", *TINY, "--store", "occupied"), "not a feature store"),
        (("extract", "PHOTOS", *TINY, "--store", "occupied/file"), "not a feature store"),
        (("info",), "not a feature store"),
        (("info", "occupied"), "not a feature store"),
        (("init", "PHOTOS", "--labels", "nope.csv"), "does not exist"),
        (("init", "PHOTOS", "--scale", "7"), "LOW:HIGH"),
        (("init", "PHOTOS", "--labels", "l.csv", "--tasks", "valnce"), "no column 'valnce'; did you mean 'valence'?"),
        (("init", "PHOTOS", "--labels", "l.csv", "--group", "sorce"), "no column 'sorce'; did you mean 'source'?"),
    ],
)
def test_bad_input_gets_one_clear_message(
    run: Callable[..., Result], photos: Path, words: tuple[str, ...], told: str
) -> None:
    import torch

    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    Path("empty").mkdir()
    Path("l.csv").write_text("path,valence,source\na.jpg,1,s\n")
    Path("occupied").mkdir()
    Path("occupied/file").write_text("mine")
    result = run(*(photos if word == "PHOTOS" else word for word in words))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert "Traceback" not in result.output
    assert Path("occupied/file").read_text() == "mine"
    assert not Path("cache/features.zarr").exists()
    assert not Path("featstore.toml").exists()


def test_init_takes_columns_that_the_label_table_has(run: Callable[..., Result], photos: Path) -> None:
    pd.DataFrame({"path": ["a.jpg"], "valence": [1], "source": ["s"]}).to_parquet("labels.parquet")
    for group in ("source", "name", "folder"):
        done = run("init", photos, "--labels", "labels.parquet", "--tasks", "valence", "--group", group)
        assert done.exit_code == 0, done.stderr
        Path("featstore.toml").unlink()
    assert run("init", photos, "--labels", "labels.parquet", "--tasks", "arousal").exit_code == 1


def test_store_of_another_format_version_is_left_alone(run: Callable[..., Result], photos: Path) -> None:
    run("extract", photos, *TINY)
    group = zarr.open_group("cache/features.zarr", mode="r+")
    group.update_attributes({"featstore": {"format": 3, "block_rows": 64}})
    for words in (("info",), ("extract", photos, *TINY)):
        result = run(*words)
        assert result.exit_code == 1
        assert "has format version 3; this featstore reads version 2" in result.stderr


def test_other_photos_do_not_slip_into_a_configured_store(run: Callable[..., Result], photos: Path) -> None:
    run("init", photos)
    other = photos.parent / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes((photos / "photo 1.jpg").read_bytes())
    result = run("extract", other, *TINY)
    assert result.exit_code == 1
    assert "name another --store" in result.stderr
    assert run("extract", other, *TINY, "--store", "cache/other.zarr").exit_code == 0


def test_typo_in_the_configuration_is_named(run: Callable[..., Result], photos: Path) -> None:
    Path("featstore.toml").write_text('photos = "photos"\n[tensors.amtl]\nlayot = "stack"\nsegments = ["lite0"]\n')
    result = run("extract")
    assert result.exit_code == 1
    assert "tensors.amtl.layot: unknown key; did you mean 'layout'?" in result.stderr


def test_doctor_says_how_to_mend_what_fails(run: Callable[..., Result], photos: Path) -> None:
    healthy = run("doctor")
    assert healthy.exit_code == 0, healthy.output
    assert "all is well" in healthy.stdout
    for package in ("numcodecs", "icechunk", "tensorboard", "mlflow-skinny"):
        assert f" {package} " in healthy.stdout
    assert "not here; put them at cache/weights/resnet50.safetensors, or featstore extract --hub" in healthy.stdout
    assert "no featstore.toml here; featstore init PHOTOS" in healthy.stdout
    Path("featstore.toml").write_text(
        'photos = "gone"\n[tensors.amtl]\nlayout = "stack"\nsegments = ["resnet50"]\n', encoding="utf-8"
    )
    ill = run("doctor")
    assert ill.exit_code == 1
    assert "FAIL weights resnet50" in ill.stdout
    assert "cache/weights/resnet50.safetensors" in ill.stdout
    assert "FAIL photos" in ill.stdout
    checks = json.loads(run("doctor", "--json").stdout)
    assert {check["name"] for check in checks if check["ok"] is False} == {"weights resnet50", "photos"}


def test_doctor_says_what_an_optional_package_is_for(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(doctor.OPTIONAL, "no-such-package", "nothing")
    assert "not installed; pip install no-such-package for nothing" in run("doctor").stdout


def test_the_version_is_said(run: Callable[..., Result]) -> None:
    said = run("--version")
    assert (said.exit_code, said.stdout) == (0, f"featstore {version('featstore')}\n")
    assert "--version" in run("--help").stdout
    assert "keep them safe" in run("--help").stdout


def test_ctrl_c_keeps_what_was_computed(photos: Path, tmp_path: Path, draw: Callable[..., None]) -> None:
    for i in range(140):
        draw(photos / f"more {i:03}.jpg", seed=100 + i)
    main = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a run in the background ignores it
        "from featstore.cli import main; main()"
    )
    command = [sys.executable, "-c", main, "extract", photos, *TINY]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cache/features.zarr/tensors/whole/c.0.0").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in errors
    assert "Traceback" not in output + errors
    assert "\x1b" not in output + errors
    n_kept = len(featstore.open(tmp_path / "cache/features.zarr")["whole"].rows)
    assert 64 <= n_kept < 150
    again = CliRunner().invoke(app, ["extract", str(photos), *TINY, "--store", str(tmp_path / "cache/features.zarr")])
    assert f"{150 - n_kept} done, {n_kept} reused" in again.stdout


def test_full_disk_ends_with_a_message_and_the_same_command_goes_on(photos: Path, tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write of a shard is refused halfway."""
    limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({20_000}, {20_000})); "
    code = limited + "from featstore.cli import main; main()"
    words = ["extract", str(photos), *TINY]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "what was stored before is untouched" in done.stderr
    assert "Traceback" not in done.stderr
    again = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "cache/features.zarr")])
    assert "10 done, 0 reused, 0 failed" in again.stdout


def test_help_is_quick_and_piped_output_is_plain(tmp_path: Path) -> None:
    done = subprocess.run([FEATSTORE, "backbones"], cwd=tmp_path, capture_output=True, text=True)
    assert "tf_efficientnet_lite0" in done.stdout
    assert "\x1b" not in done.stdout
