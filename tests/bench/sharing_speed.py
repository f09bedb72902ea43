"""How much a pull moves, and how fast it is beside plain S3 clients.

    python tests/bench/sharing_speed.py [ROWS] [--client 'aws s3 cp --recursive --quiet']

The server is moto on loopback; bytes are what the loopback interface carried meanwhile, both ways together. A pull is
held against threads that copy the same objects into files, in this process, and, as a command, against the command of
a client, to which source and target are added.
"""

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

BLOCK = 64
WIDTHS = (4, 16, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=900)
    parser.add_argument("--client", help="a command that copies a prefix of a bucket into a folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sharing-"))
    server, port = start_server()
    try:
        measure(folder, options.rows, f"http://127.0.0.1:{port}")
        if options.client:
            compare_commands(folder, shlex.split(options.client))
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def measure(folder: Path, n_rows: int, endpoint: str) -> None:
    os.environ.update(
        AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=endpoint, AWS_ALLOW_HTTP="true",
    )  # fmt: skip
    import boto3

    from featstore.sharing.push_pull import pull, push
    from featstore.sharing.selection import Selection
    from featstore.store import verify

    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="team")
    make_store(folder / "anna.zarr", n_rows)
    remote = "s3://team/oasis"
    say("push", lambda: push(folder / "anna.zarr", remote, message="all").n_bytes)
    say("push, nothing new", lambda: push(folder / "anna.zarr", remote, message="all").n_bytes)
    for turn in range(3):
        say(f"plain copy {turn}", partial(copy_plainly, "team", endpoint, folder / f"copy{turn}"))
        say(f"plain copy, synced {turn}", partial(copy_plainly, "team", endpoint, folder / f"synced{turn}", sync=True))
        say(f"pull {turn}", partial(pull_into, remote, folder / f"ben{turn}.zarr"))
    say("pull, nothing new", lambda: pull(remote, folder / "ben0.zarr").n_bytes)
    part = Selection(rows=["00*"])
    say("pull of a part", lambda: pull(remote, folder / "part.zarr", selection=part).n_bytes)
    print("sound:", all(verify(folder / name).sound for name in ("ben0.zarr", "part.zarr")))


def compare_commands(folder: Path, client: list[str], rounds: int = 5) -> None:
    """A pull as a user types it beside a client as a user types it, in turn."""
    featstore, remote, place = str(Path(sys.executable).with_name("featstore")), "s3://team/oasis", folder / "typed"
    for turn in range(rounds):
        for command in ([*client, remote, str(place)], [featstore, "pull", "--quiet", remote, str(place)]):
            say(f"{Path(command[0]).name} {command[1]} {turn}", partial(run_command, command, place))
            shutil.rmtree(place)


def run_command(command: list[str], place: Path) -> int:
    subprocess.run(command, check=True)
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def say(what: str, run: Callable[[], int]) -> None:
    before, started = carried(), time.perf_counter()
    n_bytes = run()
    took = time.perf_counter() - started
    moved = carried() - before
    print(f"{what:22} {n_bytes / 1e6:8.1f} MB of features, {moved / 1e6:8.1f} MB moved, {took:6.2f} s, "
          f"{n_bytes / took / 1e6:7.1f} MB/s", flush=True)  # fmt: skip


def pull_into(remote: str, place: Path) -> int:
    from featstore.sharing.push_pull import pull

    return pull(remote, place).n_bytes


def carried() -> int:
    return int(Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


def copy_plainly(bucket: str, endpoint: str, folder: Path, *, sync: bool = False) -> int:
    """All big objects of a bucket with obstore, several at a time, into files."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(bucket, endpoint=endpoint, region="us-east-1", client_options={"allow_http": True})
    folder.mkdir()
    keys = [each["path"] for page in obstore.list(store) for each in page if each["size"] > 1_000_000]

    def copy(key: str) -> int:
        data = obstore.get(store, key).bytes()
        with (folder / key.replace("/", "-")).open("wb") as file:
            n_bytes = file.write(data)
            if sync:
                os.fsync(file.fileno())
        return n_bytes

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(copy, keys))


def make_store(place: Path, n_rows: int) -> None:
    from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer

    names = ("a", "b", "c", "d")
    segments = tuple(StoredSegment(n, {"architecture": n, "dtype": "float16"}, WIDTHS[1], WIDTHS[2]) for n in names)
    layout = TensorLayout("amtl", "stack", segments, width=WIDTHS[2])
    rng = np.random.default_rng(0)
    with Writer(place, block_rows=BLOCK) as writer:
        digests = rng.integers(1, 255, (n_rows, 32)).astype(np.uint8)
        paths = [f"{row:04d}.jpg" for row in range(n_rows)]
        writer.add_images(NewImages(paths, digests, [1] * n_rows, [1] * n_rows))
        writer.ensure_tensor(layout, "float16")
        for block in range(-(-n_rows // BLOCK)):
            rows = list(range(block * BLOCK, min((block + 1) * BLOCK, n_rows)))
            values = rng.standard_normal((len(rows), *WIDTHS), np.float32).astype(np.float16)
            states = np.full(len(rows), RowState.PRESENT, np.uint8)
            n = len(rows)
            seen = SeenImages(rows, [(400, 600)] * n, [ImageState.READABLE] * n, [""] * n)
            writer.commit(block, {"amtl": (values, states)}, seen)


def start_server() -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server, port
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("no server came up")


if __name__ == "__main__":
    main()
