"""The threat model of docs/security.md: a test for each line of its table, which the table names."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from zarr.storage import MemoryStore

from featstore.cli import app
from featstore.errors import FormatError, StoreError
from featstore.exchange.exporting import export
from featstore.sharing.diff import diff
from featstore.sharing.push_pull import merge, pull, push
from featstore.store import TensorLayout, open_store, verify
from featstore.store import store as opening
from featstore.store.format.integrity import digest_of, write_document
from featstore.store.places.repository import Repository

from .sharing_stores import GRID, expected, folder_bytes, held, make_store, photos, segment

ROOT = Path(__file__).parents[3]
BAD_PATHS = (
    "/etc/passwd",
    "../x.jpg",
    "a/../../x.jpg",
    "..\\x.jpg",
    "C:\\x.jpg",
    "a\x1b[31m.jpg",
    "a\nb.jpg",
    "a\u202egpj.b",
)
HTML = "<script>alert(1)</script>.jpg"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATSTORE_BLOCKS", str(tmp_path / "blocks"))


@pytest.fixture
def forged(tmp_path: Path) -> Callable[[str, Callable[[dict[str, Any]], object]], Path]:
    """A store in which one document says something else, under seals that are right: its maker can make those."""

    def forge(key: str, change: Callable[[dict[str, Any]], object]) -> Path:
        place = tmp_path / "forged.zarr"
        make_store(place, photos(0, 5), layouts=(GRID,))
        document = json.loads((place / key).read_text())
        change(document)
        (place / key).write_bytes(data := write_document(key, document))
        root = json.loads((place / "zarr.json").read_text())
        root["attributes"]["sums"][key] = [digest_of(data)]
        if key != "zarr.json":
            (place / "zarr.json").write_bytes(write_document("zarr.json", root))
        return place

    return forge


def set_shape(n_rows: int, *row_shape: int) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(shape=[n_rows, *(row_shape or document["shape"][1:])])


def set_chunks(document: dict[str, Any]) -> None:
    document["shape"] = [10**12]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [10**12]


def set_width(document: dict[str, Any]) -> None:
    width = 10**11
    document["shape"][-1] = document["attributes"]["row_shape"][-1] = width
    document["chunk_grid"]["configuration"]["chunk_shape"][-1] = width
    document["codecs"][0]["configuration"]["chunk_shape"][-1] = width


FORGERIES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "rows": ("images/state/zarr.json", set_shape(10**12)),
    "rows of a column": ("images/path/zarr.json", set_shape(10**12)),
    "rows of a record": ("rows/grid/zarr.json", set_shape(10**12)),
    "rows of a tensor": ("tensors/grid/zarr.json", set_shape(10**12)),
    "chunks": ("images/state/zarr.json", set_chunks),
    "width of a digest": ("images/digest/zarr.json", set_shape(5, 10**12)),
    "width of a feature": ("tensors/grid/zarr.json", set_width),
    "rows of a block": ("zarr.json", lambda root: root["attributes"]["featstore"].update(block_rows=10**12)),
}

LIMITED = """
import resource, sys
from featstore.errors import FeatstoreError
from featstore.sharing.push_pull import merge
from featstore.store import TensorLayout, open_store, verify
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for attempt in (lambda: verify(sys.argv[1]), lambda: merge([sys.argv[1]], sys.argv[2])):
    try:
        attempt()
    except FeatstoreError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("key", "change"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_size_allocates_nothing(
    forged: Callable[..., Path], tmp_path: Path, key: str, change: Callable[[dict[str, Any]], object]
) -> None:
    place = forged(key, change)
    command = [sys.executable, "-c", LIMITED, str(place), str(tmp_path / "mine.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    if (tmp_path / "mine.zarr").exists():  # a tensor longer than the table is only that
        assert sorted(held(tmp_path / "mine.zarr")) == photos(0, 5)
    else:
        assert "Error" in done.stdout


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forged: Callable[..., Path]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    make_store(tmp_path / "a.zarr", photos(0, 5))
    push(tmp_path / "a.zarr", str(tmp_path / "team"), message="five")
    codec = {"name": "numcodecs.pickle", "configuration": {}}
    bad = forged("images/path/zarr.json", lambda document: document.update(codecs=[codec]))
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    pull(str(tmp_path / "team"), tmp_path / "b.zarr")
    assert verify(tmp_path / "b.zarr").sound
    diff(tmp_path / "a.zarr", str(tmp_path / "team"))
    with pytest.raises(StoreError):
        open_store(bad).images  # noqa: B018


def test_the_sources_of_sharing_never_mention_pickle() -> None:
    for file in [*(ROOT / "featstore" / "sharing").glob("*.py"), *(ROOT / "featstore" / "store").glob("*.py")]:
        assert not re.search(r"import pickle|pickle\.|marshal|eval\(|exec\(", file.read_text()), file


@pytest.fixture
def bad_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def make(path: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(opening, "goes_out", lambda path, **_: False)
            make_store(tmp_path / "bad.zarr", ["fine.jpg", path])
        return tmp_path / "bad.zarr"

    return make


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_forged_path_is_not_taken(
    bad_store: Callable[[str], Path], tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = bad_store(path)
    with pytest.raises(FormatError, match="names an image") as caught:
        push(bad, str(tmp_path / "team"), message="bad")
    assert str(caught.value).isprintable()
    with monkeypatch.context() as patch:  # a stranger's own featstore lets it through
        patch.setattr(opening, "goes_out", lambda path, **_: False)
        patch.setattr(opening, "check_path", lambda *_: None)
        patch.setattr("featstore.sharing.pairing.check_path", lambda *_: None)
        push(bad, str(tmp_path / "strange"), message="bad")
    before = folder_bytes(tmp_path / "strange")
    for attempt in (
        lambda: pull(str(tmp_path / "strange"), tmp_path / "mine.zarr"),
        lambda: open_store(str(tmp_path / "strange")).images,
    ):
        with pytest.raises(FormatError, match="names an image"):
            attempt()
    assert not (tmp_path / "mine.zarr").exists()
    assert folder_bytes(tmp_path / "strange") == before


@pytest.mark.parametrize("path", ["a\x1b[31m.jpg", "a\nerror: all is lost.jpg", HTML])
def test_a_forged_path_steers_no_terminal(bad_store: Callable[[str], Path], path: str) -> None:
    from featstore.store import ImageState, Writer

    place = bad_store(path)
    with Writer(place) as writer:
        row = writer.store.images.rows_by_path[path]
        writer.amend({"images/state": ([row], [ImageState.UNREADABLE])})
    output = CliRunner().invoke(app, ["info", str(place)]).output
    assert "\x1b" not in output
    assert not any(line.startswith("error: all") for line in output.splitlines())
    assert "unreadable: " in output


def test_a_forged_message_steers_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATSTORE_WHO", "eve\x1b[2J\nroot")
    push(
        make_store(tmp_path / "a.zarr", photos(0, 1)),
        team := str(tmp_path / "team"),
        message="hello\x1b[2J\nfake: line",
    )
    for command in (["log", team], ["ls", team]):
        output = CliRunner().invoke(app, command).output
        assert "\x1b" not in output
        assert not any(line.strip().startswith(("fake:", "root")) for line in output.splitlines())


def test_html_in_a_path_is_text_in_an_export(tmp_path: Path) -> None:
    make_store(tmp_path / "a.zarr", [HTML, '=cmd|"/c calc"!A1.jpg'])
    export(tmp_path / "a.zarr", str(tmp_path / "out.npz"))
    export(tmp_path / "a.zarr", str(tmp_path / "out.zarr"))
    assert not [file for file in tmp_path.rglob("*") if "script" in file.name]  # a path is never a file name


def test_html_in_a_path_is_text_in_a_report_of_heads(tmp_path: Path) -> None:
    bad = "<script>alert(1)<"
    images = [f"{bad}/{i}<img src=x onerror=alert(2)>.jpg" for i in range(12)]
    push(make_store(tmp_path / "a.zarr", images), str(tmp_path / "team"), message=f"{bad}/script>")
    lines = ["path,<b>beauty</b>", *(f"{image},{i % 6 + 1}" for i, image in enumerate(images))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    command = [str(Path(sys.executable).with_name("heads")), "train", "ridge", str(tmp_path / "team")]
    command += ["--tensor", "whole", "--labels", str(tmp_path / "labels.csv"), "--folds", "2", "--scale", "1:6"]
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, capture_output=True)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;b&gt;beauty" in report
    for markup in ("<script>alert", "<img src=x", "<b>beauty"):
        assert markup not in report


def test_nothing_is_written_outside_the_store(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    push(make_store(tmp_path / "a.zarr", photos(0, 5)), str(tmp_path / "team"), message="five")
    before = sorted(tmp_path.iterdir())
    pull(str(tmp_path / "team"), tmp_path / "there" / "b.zarr")
    assert sorted(file.name for file in (tmp_path / "there").iterdir()) in (["b.zarr"], ["b.zarr", "b.zarr.lock"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a.b", "con:", "a b"])
def test_a_tensor_whose_name_may_be_a_path_is_not_taken(tmp_path: Path, name: str) -> None:
    strange = MemoryStore()
    make_store(strange, photos(0, 4), layouts=(replace(GRID, name=name),))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError):
        merge([strange], tmp_path / "mine.zarr")
    assert sorted(tmp_path.iterdir()) == before


def test_a_block_that_is_not_what_the_records_say_is_not_recorded(tmp_path: Path) -> None:
    team = tmp_path / "team"
    big = TensorLayout("big", "concat", (segment("a", width=300),))  # Icechunk keeps small chunks elsewhere
    push(make_store(tmp_path / "a.zarr", photos(0, 8), layouts=(big,)), str(team), message="eight")
    first = expected(["photo 0.jpg"], big)["photo 0.jpg"]
    shards = [file for file in (team / "chunks").iterdir() if first in file.read_bytes()]
    assert len(shards) == 1
    for file in shards:
        data = bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(bytes(data))
    with pytest.raises(StoreError):
        pull(str(team), tmp_path / "b.zarr")
    store = open_store(tmp_path / "b.zarr")
    assert verify(tmp_path / "b.zarr").sound
    assert 0 not in store["big"].rows


def test_virtual_chunks_of_a_repository_are_not_followed(tmp_path: Path) -> None:
    """A repository may say that a chunk is some file of the reader's disk; Icechunk follows none unasked."""
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"x" * 4096)
    team = str(tmp_path / "team")
    push(make_store(tmp_path / "a.zarr", photos(0, 4), layouts=(GRID,)), team, message="four")
    transaction = Repository(team).begin()
    store = transaction._session.store
    store.set_virtual_ref("tensors/grid/c/0/0/0/0", f"file://{secret}", offset=0, length=4096, validate_container=False)
    transaction.commit("evil", {})
    with pytest.raises(StoreError) as caught:
        pull(team, tmp_path / "b.zarr")
    assert "xxxx" not in str(caught.value)


@pytest.mark.parametrize("what", ["a pipe in place of a chunk", "a loop in place of a chunk", "a giant"])
def test_a_repository_in_a_folder_has_files_only_and_no_giants(tmp_path: Path, what: str) -> None:
    """Icechunk would wait for the one without end, and end the process by the other."""
    team = tmp_path / "team"
    push(make_store(tmp_path / "a.zarr", photos(0, 4), layouts=(GRID,)), str(team), message="four")
    assert len(open_store(str(team))["grid"].rows) == 4
    file = next((team / "chunks").iterdir()) if "chunk" in what else team / "refs" / "branch.main" / "ref.json"
    file.unlink()
    if "pipe" in what:
        os.mkfifo(file)
    elif "loop" in what:
        file.symlink_to(file.name)
    else:
        with file.open("wb") as holes:
            holes.truncate(50 << 30)
    code = "import sys; from featstore.sharing.push_pull import pull; pull(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(team), str(tmp_path / "b.zarr")]  # it may hang, or end the process
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("featstore.errors.FormatError: "), done.stderr
    assert re.search("is a named pipe|cannot be read: Too many|no reference to a version has more", said)
