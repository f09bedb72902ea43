"""`extract`, `retry` and `rm` from the command line: what they print for people and for scripts, and how they end."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import featstore
from featstore.cli import app
from featstore.store import StoredTensor

FEATSTORE = Path(sys.executable).with_name("featstore")
TINY = ["--backbones", "test_resnet", "--view", "grid,whole", "--weights", "random:0"]
OTHER = ["--backbones", "test_resnet", "--view", "grid,whole", "--weights", "random:1"]
STORE = Path("cache/features.zarr")
N = 6

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def photos(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., None]) -> Path:
    """Six small photos, drawn once for all tests."""
    drawn = tmp_path_factory.getbasetemp() / "commands"
    if not drawn.exists():
        drawn.mkdir()
        for i in range(N):
            draw(drawn / f"photo {i}.jpg", seed=i)
    return Path(shutil.copytree(drawn, tmp_path / "photos"))


@pytest.fixture
def run(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder that holds nothing but the photos."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert "\x1b" not in result.output, "piped output has no control codes"
        assert "Traceback" not in result.output
        return result

    return run_command


@pytest.fixture
def extracted(run: Run, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, with the photos extracted."""
    made = tmp_path_factory.getbasetemp() / "commands.zarr"
    if not made.exists():
        assert run("extract", photos, *TINY, "--store", made).exit_code == 0
    shutil.copytree(made, STORE)
    return run


@pytest.fixture
def failing(extracted: Run, photos: Path) -> Run:
    """The same, with two photos beside them that are none."""
    (photos / "empty.jpg").touch()
    (photos / "words.png").write_text("not an image")
    return extracted


def _files(folder: Path = Path()) -> dict[str, tuple[int, int]]:
    return {str(f): (s.st_size, s.st_mtime_ns) for f in sorted(folder.rglob("*")) for s in [f.lstat()]}


def _json(result: Result) -> Any:
    assert result.stderr == ""
    return json.loads(result.stdout)


def _without_progress(stderr: str) -> str:
    """On a busy machine loading takes more than a second, and a line says so."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("load: "))


def _error(result: Result) -> str:
    """The one message of a command that failed."""
    assert result.exit_code == 1
    assert _without_progress(result.stderr).startswith("error: ")
    return _without_progress(result.stderr).removeprefix("error: ")


# ---- what extract says it did


def test_tensors_that_a_run_made_are_named(run: Run, photos: Path) -> None:
    one = run("extract", photos, *TINY, "--tensor", "mine=concat:test_resnet", "--backbones", "test_resnet")
    assert "\nnew tensors: grid, whole, mine\n" in one.stdout
    again = run("extract", photos, *TINY)
    assert "new tensors" not in again.stdout
    other = ["--tensor", "other=concat:test_resnet:max", "--weights", "random:0"]
    assert "\nnew tensors: other\n" in run("extract", photos, *other).stdout
    more = ["--tensor", "more=concat:test_resnet:max", "--weights", "random:0"]
    assert _json(run("extract", photos, *more, "--json"))["new_tensors"] == ["more"]
    assert _json(run("extract", photos, *OTHER, "--replace", "--json"))["new_tensors"] == []


def test_codebook_makes_the_words_that_extract_asks_for(run: Run, photos: Path) -> None:
    words = ["extract", photos, "-b", "hand/hog", "--store", STORE]
    refused = run(*words)
    assert refused.exit_code == 1
    assert "featstore codebook hog PHOTOS --out cache/weights/hand--hog-1.safetensors" in refused.stderr
    (photos / "broken.jpg").write_bytes(b"no photo")
    made = run("codebook", "hog", photos)
    assert made.exit_code == 0, made.stderr
    assert "passed over: broken.jpg: " in made.stdout
    assert (
        f"256 words of hand/hog-1 from {N * 961} places of {N} photos: cache/weights/hand--hog-1.safeten" in made.stdout
    )
    assert "--replace" in run("codebook", "hog", photos).stderr
    again = json.loads(run("codebook", "hog", photos, "--replace", "--json").stdout)
    assert (again["words"], again["photos"], list(again["failed"])) == (256, N, ["broken.jpg"])
    assert run(*words).exit_code == 0
    (segment,) = json.loads(run("info", STORE, "--json").stdout)["tensors"]["model"]["segments"]
    assert segment["name"] == "hand/hog-1"
    assert again["sha256"].startswith(segment["weights"])


def test_one_photo_is_one_image(run: Run, photos: Path) -> None:
    for photo in sorted(photos.iterdir())[1:]:
        photo.unlink()
    assert "tensor grid: 1 row to fill\n" in run("extract", photos, *TINY, "--explain", "--dry-run").stdout
    assert "\n1 image: 1 done, " in f"\n{run('extract', photos, *TINY).stdout}"


# ---- extract --explain and --dry-run


def test_explain_says_why_and_then_does_it(extracted: Run, photos: Path, draw: Callable[..., None]) -> None:
    draw(photos / "added.jpg", seed=99)
    draw(photos / "photo 3.jpg", seed=333)
    (photos / "photo 2.jpg").rename(photos / "moved.jpg")
    (photos / "photo 4.jpg").unlink()
    os.utime(photos / "photo 1.jpg")
    result = extracted("extract", photos, *TINY, "--explain")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"photos: {N} in {photos}, 2 new, 1 changed, 1 touched but the same, "
        "2 of the store no longer there (kept; --prune marks them gone)"
    )
    for first, name in ((1, "grid"), (6, "whole")):
        assert lines[first] == f"tensor {name}: 3 rows to fill"
        assert set(lines[first + 1 : first + 5]) == {
            "  2 photos that the store does not know: added.jpg, moved.jpg",
            "  1 photos whose bytes have changed: photo 3.jpg",
            "  copied, being there under the same identity: test_resnet for 1",
            "  computed: test_resnet for 2",
        }
    assert lines[-2].startswith(f"{N} images: 2 done, {N - 2} reused, 0 failed; ")
    again = extracted("extract", photos, *TINY, "--explain").stdout.splitlines()
    assert again[1:3] == ["tensor grid: nothing to do", "tensor whole: nothing to do"]


def test_explain_names_a_few_of_many_photos(run: Run, photos: Path, draw: Callable[..., None]) -> None:
    draw(photos / "zz.jpg", seed=9)
    stdout = run("extract", photos, *TINY, "--explain").stdout
    assert f"  {N + 1} photos that the store does not know: photo 0.jpg, " in stdout
    assert "photo 4.jpg and 2 more\n" in stdout


def test_dry_run_says_how_much_and_writes_nothing(run: Run, photos: Path) -> None:
    before = _files()
    result = run("extract", photos, *TINY, "--dry-run")
    assert result.exit_code == 0
    assert f"tensor grid: {N} rows to fill\n" in result.stdout
    assert f"  computed: test_resnet for {N}\n" in result.stdout
    assert result.stdout.endswith("\ndry run: nothing was written\n")
    last = result.stdout.splitlines()[-2]
    assert last.startswith(f"{2 * N} rows, ")
    assert " 2 more files; about " in last
    assert last.endswith("photo 0.jpg, tried just now)")
    facts = _json(run("extract", photos, *TINY, "--dry-run", "--json"))
    assert (facts["photos"], facts["new"], facts["changed"], facts["missing"]) == (N, N, [], 0)
    assert facts["estimated_s"] >= 0
    assert facts["estimate"]["photo"] == "photo 0.jpg"
    assert run("extract", photos, *TINY, "--dry-run", "--quiet").output == ""
    assert _files() == before
    run("extract", photos, *TINY)
    for name in ("grid", "whole"):
        tensor = facts["tensors"][name]
        (shard,) = (STORE / "tensors" / name).glob("c.*")
        assert (tensor["rows"], tensor["files"], tensor["bytes"]) == (N, 1, shard.stat().st_size)
        assert (tensor["computed"], tensor["copied"]) == ({"test_resnet": N}, {})
        assert tensor["reasons"] == {"new photo": N}
    assert facts["bytes"] == sum(tensor["bytes"] for tensor in facts["tensors"].values())


def test_dry_run_of_nothing_to_do(extracted: Run, photos: Path) -> None:
    before = _files(STORE)
    facts = _json(extracted("extract", photos, *TINY, "--dry-run", "--json"))
    assert (facts["estimate"], facts["estimated_s"], facts["bytes"]) == (None, None, 0)
    assert {tensor["rows"] for tensor in facts["tensors"].values()} == {0}
    assert "0 rows, 0 B more on the disk, 0 more files\n" in extracted("extract", photos, *TINY, "--dry-run").stdout
    assert _files(STORE) == before


# ---- extract --replace and --prune


def test_replace_is_asked_for_and_then_told(extracted: Run, photos: Path) -> None:
    before = _files(STORE)
    for words in ([], ["--dry-run"], ["--json"], ["--quiet"]):
        refused = extracted("extract", photos, *OTHER, *words)
        message = _error(refused)
        assert refused.stdout == ""
        assert f"tensor 'grid' in {STORE} holds other features" in message
        assert "  - test_resnet: weights: random:1 " in message
        assert "--replace computes what differs and copies the rest" in message
        assert message.endswith("nothing was changed\n")
    dry = extracted("extract", photos, *OTHER, "--replace", "--dry-run")
    assert dry.exit_code == 0
    assert "  replaced: test_resnet: weights: random:1 " in dry.stdout
    assert f"  {N} photos, for the tensor is replaced: photo 0.jpg, " in dry.stdout
    facts = _json(extracted("extract", photos, *OTHER, "--replace", "--dry-run", "--json"))
    assert {name: len(tensor["differences"]) for name, tensor in facts["tensors"].items()} == {"grid": 1, "whole": 1}
    assert _files(STORE) == before
    done = _json(extracted("extract", photos, *OTHER, "--replace", "--json"))
    assert (done["computed"], done["reused"]) == (N, 0)
    assert done["bytes_reclaimed"] > facts["bytes"]
    assert list(featstore.open(STORE)) == ["grid", "whole"]
    back = extracted("extract", photos, *TINY, "--replace")
    assert "kB of replaced tensors freed; " in back.stdout
    assert extracted("extract", photos, *OTHER, "--replace", "--quiet").output == ""


def test_prune_marks_rows_of_missing_photos_gone(extracted: Run, photos: Path) -> None:
    (photos / "photo 4.jpg").unlink()
    assert "1 of the store no longer there (kept; " in extracted("extract", photos, *TINY, "--explain").stdout
    before = _files(STORE)
    dry = extracted("extract", photos, *TINY, "--prune", "--dry-run")
    assert "1 of the store no longer there (marked gone)" in dry.stdout
    assert _json(extracted("extract", photos, *TINY, "--prune", "--dry-run", "--json"))["missing"] == 1
    assert _files(STORE) == before
    assert len(featstore.open(STORE)["grid"].rows) == N
    done = _json(extracted("extract", photos, *TINY, "--prune", "--json"))
    assert (done["images"], done["computed"], done["reused"]) == (N - 1, 0, N - 1)
    assert featstore.open(STORE)["grid"].paths == [f"photo {i}.jpg" for i in range(N) if i != 4]
    assert extracted("extract", photos, *TINY, "--prune", "--quiet").output == ""


# ---- --max-bad, of extract and retry


@pytest.mark.parametrize(
    ("limit", "ends_well"),
    [("2", True), ("1", False), ("0", False), ("25%", True), ("24.9%", False), ("0%", False), ("100%", True)],
)
def test_max_bad_is_a_limit_on_photos_that_cannot_be_read(
    failing: Run, photos: Path, limit: str, ends_well: bool
) -> None:
    result = failing("extract", photos, *TINY, "--max-bad", limit)
    assert f"{N + 2} images: 0 done, {N} reused, 2 failed" in result.stdout
    assert "failed: empty.jpg: the file is empty (zero bytes)\n" in result.stdout
    if ends_well:
        assert (result.exit_code, _without_progress(result.stderr)) == (0, "")
        return
    message = _error(result)
    assert message.startswith(f"2 of {N + 2} photos could not be read, more than --max-bad {limit}; ")
    assert f"`featstore info {STORE}` lists these, `featstore retry {STORE}` tries them again" in message
    assert len(featstore.open(STORE)["grid"].rows) == N, "the others are kept"


def test_max_bad_leaves_the_json_whole(failing: Run, photos: Path) -> None:
    result = failing("extract", photos, *TINY, "--max-bad", "1", "--json")
    assert "more than --max-bad 1;" in _error(result)
    assert {each["path"] for each in json.loads(result.stdout)["failed"]} == {"empty.jpg", "words.png"}
    quiet = failing("extract", photos, *TINY, "--max-bad", "1", "--quiet")
    assert "more than --max-bad 1;" in _error(quiet)
    assert quiet.stdout == ""
    assert len(_json(failing("extract", photos, *TINY, "--max-bad", "2", "--json"))["failed"]) == 2


@pytest.mark.parametrize(
    "limit",
    [
        *("-1", "ten", "1.5", "101%", "-1%", "nan%", "%", "inf"),
        "",
    ],
)
@pytest.mark.parametrize("command", ["extract", "retry"])
def test_bad_limits_are_refused_before_anything_is_done(failing: Run, photos: Path, command: str, limit: str) -> None:
    before = _files(STORE)
    words = ["extract", photos, *TINY] if command == "extract" else ["retry"]
    assert f"--max-bad {limit!r}" in _error(failing(*words, f"--max-bad={limit}"))
    assert _files(STORE) == before


# ---- extract --compress and --store


@pytest.mark.parametrize("compress", ["zstd", "blosc"])
def test_compressed_features_are_the_same(extracted: Run, photos: Path, compress: str) -> None:
    done = _json(extracted("extract", photos, *TINY, "--compress", compress, "--store", "small.zarr", "--json"))
    assert done["computed"] == N
    small, plain = featstore.open("small.zarr"), featstore.open(STORE)
    assert _json(extracted("info", "small.zarr", "--json"))["tensors"]["grid"]["compress"] == compress
    for name in plain:
        assert (small[name].read(small[name].rows) == plain[name].read(plain[name].rows)).all()
    again = extracted("extract", photos, *TINY, "--compress", "zstd", "--store", "small.zarr")
    assert f"0 done, {N} reused, 0 failed; nothing to compute" in again.stdout
    assert featstore.open("small.zarr")["grid"].compression == compress
    quiet = extracted("extract", photos, *TINY, "--compress", compress, "--store", "quiet.zarr", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_compressed_store_may_be_named_from_a_subfolder(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    words = ["--compress", "zstd", "--store", "../small.zarr"]
    assert run("extract", photos, *TINY, *words).exit_code == 0
    store = featstore.open("../small.zarr")
    assert store["grid"].read(store["grid"].rows).shape[0] == N


def test_unknown_compression_is_refused(run: Run, photos: Path) -> None:
    assert "unknown --compress 'gzip'; say zstd or blosc" in _error(run("extract", photos, *TINY, "--compress", "gzip"))
    assert not STORE.exists()


def test_a_zip_or_a_second_store_is_refused_in_words(extracted: Run, photos: Path, draw: Callable[..., None]) -> None:
    zipped = shutil.make_archive("packed", "zip", STORE)
    data = Path(zipped).read_bytes()
    draw(photos / "added.jpg", seed=99)
    for words in (["extract", photos, *TINY, "--store", zipped], ["rm", "grid", "--store", zipped]):
        assert "is a zip file, which can only be read; unpack it to go on writing" in _error(extracted(*words))
    assert Path(zipped).read_bytes() == data
    # The last --store named counts, as for every option; the other is not touched.
    before = _files(STORE)
    both = extracted("extract", photos, *TINY, "--store", STORE, "--store", "second.zarr")
    assert both.exit_code == 0
    assert "store: second.zarr" in both.stdout
    assert _files(STORE) == before


# ---- retry


def test_retry_looks_at_just_the_photos_that_failed(failing: Run, photos: Path, draw: Callable[..., None]) -> None:
    failing("extract", photos, *TINY)
    draw(photos / "words.png", seed=7)
    draw(photos / "added.jpg", seed=8)
    result = failing("retry")
    assert result.exit_code == 0
    assert "failed: empty.jpg: the file is empty (zero bytes)\n" in result.stdout
    assert "2 images: 1 done, 0 reused, 1 failed; " in result.stdout
    assert "added.jpg" not in featstore.open(STORE).images.paths
    assert f"store: {STORE}" in result.stdout
    facts = _json(failing("retry", STORE, "--json"))
    assert (facts["images"], facts["computed"]) == (1, 0)
    assert facts["failed"] == [{"path": "empty.jpg", "reason": "the file is empty (zero bytes)"}]
    assert failing("retry", "--quiet").output == ""
    limited = failing("retry", "--max-bad", "0", "--json")
    assert f"1 of 1 photos could not be read, more than --max-bad 0; the others are kept, `featstore info {STORE}`" in (
        _error(limited)
    )
    assert json.loads(limited.stdout)["failed"] == facts["failed"]
    assert failing("retry", "--max-bad", "1").exit_code == 0


def test_retry_of_nothing_ends_well_and_of_no_store_does_not(extracted: Run) -> None:
    before = _files(STORE)
    result = extracted("retry")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "0 images: 0 done, 0 reused, 0 failed; nothing to compute" in result.stdout
    assert _json(extracted("retry", "--json"))["failed"] == []
    assert _files(STORE) == before
    assert "nowhere.zarr is not a feature store" in _error(extracted("retry", "nowhere.zarr"))
    assert not Path("nowhere.zarr").exists()


def test_retry_takes_the_folder_that_is_named(failing: Run, photos: Path, draw: Callable[..., None]) -> None:
    failing("extract", photos, *TINY)
    moved = photos.rename(photos.with_name("moved"))
    draw(moved / "empty.jpg", seed=7)
    assert "photos does not exist" in _error(failing("retry"))
    Path("featstore.toml").write_text('photos = "nowhere"\n')
    assert "photos does not exist" in _error(failing("retry"))
    Path("featstore.toml").unlink()
    assert "2 images: 1 done, 0 reused, 1 failed" in failing("retry", "--photos", moved).stdout
    Path("featstore.toml").write_text('photos = "moved"\n')
    assert failing("retry").exit_code == 0
    Path("featstore.toml").unlink()
    failing("rm", "grid", "whole")
    assert "does not say where its photos are; name their folder with --photos" in _error(failing("retry"))


def test_the_folder_of_the_last_extraction_goes_before_that_of_featstore_toml(failing: Run, photos: Path) -> None:
    failing("extract", photos, *TINY)
    Path("elsewhere").mkdir()
    Path("featstore.toml").write_text('photos = "elsewhere"\n')
    assert "2 images: 0 done, 0 reused, 2 failed" in failing("retry").stdout
    words = ("verify", "--recompute", "2", "--engine", "eager")
    assert _json(failing(*words, "--json"))["recomputed"]["photos"] == str(photos)
    asked = failing(*words, "--photos", "elsewhere")
    assert asked.exit_code == 1
    assert "nothing was verified: none of 2 photos drawn is in elsewhere as it was" in asked.stdout


def test_a_store_that_does_not_say_has_its_photos_in_featstore_toml(
    extracted: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredTensor, "provenance", [])
    words = ("verify", "--recompute", "2", "--engine", "eager")
    assert "does not say where its photos are" in _error(extracted(*words))
    Path("featstore.toml").write_text('photos = "photos"\n')
    assert extracted(*words).exit_code == 0
    assert extracted("retry").exit_code == 0


def test_retry_refuses_other_weights(failing: Run, photos: Path) -> None:
    failing("extract", photos, *TINY)
    assert "holds other features" in _error(failing("retry", "--weights", "test_resnet=random:1"))
    assert failing("retry", "--weights", "random:1").exit_code == 0, "for those that the store does not name"


# ---- rm


def test_rm_tells_what_is_free_again(extracted: Run) -> None:
    n_bytes = sum(file.stat().st_size for file in STORE.glob("*/grid/*"))
    result = extracted("rm", "grid")
    assert result.exit_code == 0
    assert result.stdout == f"removed tensor grid: {n_bytes / 1000:.1f} kB freed\n"
    assert list(featstore.open(STORE)) == ["whole"]
    assert not list(STORE.glob("*/grid"))
    n_bytes = sum(file.stat().st_size for file in STORE.glob("*/whole/*"))
    facts = _json(extracted("rm", "whole", "--store", STORE, "--json"))
    assert facts == {"removed": {"whole": n_bytes}, "bytes_reclaimed": n_bytes}
    assert list(featstore.open(STORE)) == []
    assert extracted("info").exit_code == 0


def test_rm_is_quiet_when_told(extracted: Run) -> None:
    assert extracted("rm", "grid", "whole", "-q").output == ""
    assert len(featstore.open(STORE)) == 0


@pytest.mark.parametrize("words", [["gird"], ["grid", "gird"], ["grid", "gird", "--json"], ["grid", "gird", "--quiet"]])
def test_rm_of_what_is_not_there_removes_nothing(extracted: Run, words: list[str]) -> None:
    before = _files(STORE)
    result = extracted("rm", *words)
    assert "has no tensor 'gird'; did you mean 'grid'?" in _error(result)
    assert result.stdout == ""
    assert _files(STORE) == before
    assert "not a feature store" in _error(extracted("rm", "grid", "--store", "nowhere.zarr"))
    assert extracted("rm").exit_code == 2, "no name at all"


# ---- in a pipe


def test_commands_in_a_pipe_are_plain_and_exit_as_they_say(failing: Run, photos: Path, tmp_path: Path) -> None:
    """As processes of their own, with the variables that make other programs colour their output."""
    env = {**os.environ, "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}
    for words, code in [(["extract", str(photos), *TINY, "--explain", "--max-bad", "1"], 1), (["rm", "grid"], 0)]:
        done = subprocess.run([FEATSTORE, *words], cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == code, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert (done.stderr == "") is (code == 0)
