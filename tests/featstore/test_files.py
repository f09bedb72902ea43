"""Files from strangers: pipes, devices and giants are refused, links are not written through, JSON has a depth."""

import os
import socket
from pathlib import Path

import pytest

from featstore.files import DEEPEST, fresh_path, open_file, parse_json, read_file, replacing


def test_a_file_is_read_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"text"


def test_a_pipe_a_device_and_a_socket_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, what in (("pipe", "a named pipe"), ("zero", "a device"), ("socket", "a socket")):
            with pytest.raises(OSError, match=f"it is {what}, not a file"):
                open_file(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)


def test_a_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50_000_000_000)
    with pytest.raises(OSError, match=r"it has 50\.0 GB, and at most 1\.0 kB are read"):
        read_file(tmp_path / "sparse", 1000)
    (tmp_path / "exact").write_bytes(b"x" * 1000)
    assert len(read_file(tmp_path / "exact", 1000)) == 1000


def test_a_file_that_says_it_is_empty_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """Files of /proc have a size of 0."""
    with pytest.raises(OSError, match="at most 10 B are read"):
        read_file("/proc/self/status", 10)


@pytest.mark.parametrize("depth", [DEEPEST + 2, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_json_is_an_error_and_not_a_traceback(depth: int, opening: str, closing: str) -> None:
    with pytest.raises(ValueError, match="nested more than 64 levels deep"):
        parse_json(opening * depth + "1" + closing * depth)
    assert parse_json(opening * DEEPEST + "1" + closing * DEEPEST)


def test_json_is_utf8() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b'{"a": "\xff"}')


def test_a_file_is_replaced_in_one_step_and_stays_if_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"first")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("no bytes")  # type: ignore[call-overload]
    assert path.read_bytes() == b"first"
    with fresh_path(path) as part:
        part.write_bytes(b"third")
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"third"
    with pytest.raises(TypeError), fresh_path(path) as part:
        part.write_bytes("no bytes")  # type: ignore[arg-type]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"], "nothing is left behind"


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "file").symlink_to("theirs")
    with replacing(tmp_path / "file") as file:
        file.write(b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert not (tmp_path / "file").is_symlink()
