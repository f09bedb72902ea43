"""How fast a store is read and written, beside what else one might do with the same rows.

    python tests/bench/store_speed.py [--rows 1024] [--rounds 7] [--folder /tmp]

Every line is a ratio to a baseline that is run beside it, round by round, in this process; figures are of the
medians. Rows are float16, 4 x 16 x 2048. The page cache is warm: what is measured is the software.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from featstore.store import (
    ImageState,
    NewImages,
    SeenImages,
    StoredSegment,
    StoredTensor,
    TensorLayout,
    Writer,
    open_store,
    verify,
)

ROW = (4, 16, 2048)
BLOCK = 64
RANDOM_ROWS = 128
LAYOUT = TensorLayout(
    "amtl",
    "stack",
    tuple(
        StoredSegment(f"s{i}", {"weights": {"sha256": str(i)}, "dtype": "float16"}, ROW[1], ROW[2]) for i in range(4)
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="images, 262 kB each [1024]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="where to make the files [a temporary folder]")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="featstore-bench-", dir=options.folder))
    try:
        rows = np.random.default_rng(0).normal(size=(options.rows, *ROW)).astype(np.float16)
        print(f"{options.rows} rows of {rows[0].nbytes} bytes, {rows.nbytes / 1e6:.0f} MB, {os.cpu_count()} cores")
        Writing(folder, rows).run(options.rounds)
        Reading(folder, rows).run(options.rounds)
    finally:
        shutil.rmtree(folder)


class Timings:
    """Seconds of several things that are timed in turns, round by round."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[..., Any], *arguments: Any) -> None:
        started = time.perf_counter()
        work(*arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def show(self, title: str, baseline: str) -> None:
        print(f"\n{title}")
        base = self.seconds[baseline]
        for name, seconds in self.seconds.items():
            ratio = float(np.median(base) / np.median(seconds))
            rate = self.n_bytes / 1e6 / float(np.median(seconds))
            print(f"  {name:52} {rate:8.0f} MB/s   {ratio:6.2f} x")


class Writing:
    """The writer, commits and checksums included, against the same bytes in a plain file."""

    def __init__(self, folder: Path, rows: NDArray[Any]) -> None:
        self.folder, self.rows = folder, rows

    def run(self, rounds: int) -> None:
        timings = Timings(self.rows.nbytes)
        for _ in range(rounds):
            os.sync()
            timings.time("plain file, one fsync at the end", self.plain)
            os.sync()
            timings.time("plain file, fsync after each block", self.plain, True)
            os.sync()
            timings.time("featstore, committed block by block", self.featstore)
            os.sync()
            timings.time("zarr-python, same shards, no fsync, no commit", self.zarr)
        timings.show("writing (ratio to the plain file with one fsync)", "plain file, one fsync at the end")

    def plain(self, each: bool = False) -> None:
        with fresh(self.folder / "plain.bin").open("wb") as file:
            for start in range(0, len(self.rows), BLOCK):
                file.write(self.rows[start : start + BLOCK].data)
                if each:
                    file.flush()
                    os.fsync(file.fileno())
            file.flush()
            os.fsync(file.fileno())

    def featstore(self) -> None:
        write_store(fresh(self.folder / "written.zarr"), self.rows)

    def zarr(self) -> None:
        array = zarr.create_array(
            fresh(self.folder / "zarr.zarr"),
            shape=self.rows.shape,
            chunks=(1, *ROW),
            shards=(BLOCK, *ROW),
            dtype=self.rows.dtype,
            compressors=[zarr.codecs.Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        for start in range(0, len(self.rows), BLOCK):
            array[start : start + BLOCK] = self.rows[start : start + BLOCK]


class Reading:
    """The block iterator and random rows, against np.memmap, HDF5, one file per image, and zarr-python."""

    def __init__(self, folder: Path, rows: NDArray[Any]) -> None:
        self.folder, self.rows = folder, rows
        self.rng = np.random.default_rng(1)
        self.store = folder / "read.zarr"
        write_store(self.store, rows)
        self.squeezed = {codec: folder / f"{codec}.zarr" for codec in ("zstd", "blosc")}
        for codec, path in self.squeezed.items():
            write_store(path, rows, compress=codec)
        rows.tofile(folder / "plain.bin")
        self.memmap = np.memmap(folder / "plain.bin", np.float16, "r", shape=rows.shape)
        with h5py.File(folder / "rows.h5", "w") as file:
            file.create_dataset("rows", data=rows, chunks=(1, *ROW))
        self.h5 = h5py.File(folder / "rows.h5", "r")["rows"]
        (folder / "pt").mkdir()
        for i, row in enumerate(rows):
            torch.save(torch.from_numpy(row), folder / "pt" / f"{i}.pt")
        self.zarr = {codec: zarr.open(path, mode="r")["tensors/amtl"] for codec, path in self.stores.items()}

    @property
    def stores(self) -> dict[str, Path]:
        return {"": self.store, **self.squeezed}

    def run(self, rounds: int) -> None:
        self.epochs(rounds)
        self.random_rows(rounds)
        self.libraries(rounds)
        found = verify(self.store)
        print(f"\nfeatstore verify: {found.n_bytes / 1e6 / found.elapsed_s:.0f} MB/s")

    def epochs(self, rounds: int) -> None:
        timings = Timings(self.rows.nbytes)
        for _ in range(rounds):
            order = self.rng.permutation(len(self.rows) // BLOCK)
            timings.time("np.memmap, block by block", self.by_block, lambda rows: np.array(self.memmap[rows]), order)
            opened = self.open()
            timings.time("featstore, first epoch (checks every CRC)", self.epoch, opened)
            timings.time("featstore, later epochs", self.epoch, opened)
            timings.time("HDF5, one-row chunks, block by block", self.by_block, self.h5.__getitem__, order)
            timings.time("zarr-python, block by block", self.by_block, self.zarr[""].__getitem__, order)
            timings.time(
                "one .pt file per image", self.by_block, lambda rows: self.pt(range(rows.start, rows.stop)), order
            )
        timings.time("zarr-python, fancy indexing, 128 rows at a time", self.zarr_epoch)
        timings.show("a shuffled epoch (ratio to np.memmap in the same block order)", "np.memmap, block by block")
        speedup = timings.seconds["zarr-python, fancy indexing, 128 rows at a time"][0] / float(
            np.median(timings.seconds["featstore, later epochs"])
        )
        print(f"  featstore's later epochs are {speedup:.0f} x zarr-python's fancy indexing")

    def random_rows(self, rounds: int) -> None:
        timings = Timings(RANDOM_ROWS * self.rows[0].nbytes)
        warm = self.open()
        self.epoch(warm)
        for i in range(rounds * 3):
            rows = self.rng.choice(len(self.rows), RANDOM_ROWS, replace=False)
            timings.time("np.memmap, fancy indexing", self.memmap.__getitem__, rows)
            timings.time("np.memmap, fancy indexing into an ndarray", lambda rows: np.array(self.memmap[rows]), rows)
            timings.time("featstore", warm.read, rows)
            timings.time("featstore, rows read for the first time", self.open().read, rows)
            timings.time("HDF5, one-row chunks", self.h5.__getitem__, np.sort(rows))
            timings.time("one .pt file per image", self.pt, rows)
            if i % 3 == 0:
                timings.time("zarr-python, fancy indexing", self.zarr[""].oindex.__getitem__, rows)
        timings.show(f"{RANDOM_ROWS} random rows (ratio to np.memmap's fancy indexing)", "np.memmap, fancy indexing")

    def libraries(self, rounds: int) -> None:
        """Compressed rows by us and by libraries: epochs and random rows of the same stores."""
        for codec, path in self.squeezed.items():
            epochs, few = Timings(self.rows.nbytes), Timings(RANDOM_ROWS * self.rows[0].nbytes)
            for _ in range(max(2, rounds // 3)):
                order = self.rng.permutation(len(self.rows) // BLOCK)
                rows = self.rng.choice(len(self.rows), RANDOM_ROWS, replace=False)
                epochs.time("zarr-python", self.by_block, self.zarr[codec].__getitem__, order)
                few.time("zarr-python", self.zarr[codec].oindex.__getitem__, rows)
                opened = self.open(path)
                few.time("featstore", opened.read, rows)
                epochs.time("featstore", self.epoch, opened)
                if reader := tensorstore_reader(path):
                    epochs.time("TensorStore (no checks of rows)", self.by_block, reader.block, order)
                    few.time("TensorStore (no checks of rows)", reader.rows, rows)
                if zarrs := self.zarrs(codec):
                    epochs.time("zarrs", self.by_block, zarrs.__getitem__, order)
                    few.time("zarrs", zarrs.oindex.__getitem__, rows)
            epochs.show(f"{codec}: an epoch block by block (ratio to zarr-python)", "zarr-python")
            few.show(f"{codec}: {RANDOM_ROWS} random rows (ratio to zarr-python)", "zarr-python")

    def by_block(self, read: Callable[[slice], Any], order: NDArray[np.int64]) -> None:
        for block in order.tolist():
            read(slice(block * BLOCK, (block + 1) * BLOCK))

    def zarrs(self, codec: str) -> Any:
        """The same array through the `zarrs` codec pipeline, if it is installed."""
        try:
            import zarrs  # noqa: F401
        except ImportError:
            return None
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return zarr.open(self.squeezed[codec], mode="r")["tensors/amtl"]

    def open(self, path: Path | None = None) -> StoredTensor:
        tensor = open_store(path or self.store)["amtl"]
        assert len(tensor.rows) == len(self.rows)
        return tensor

    def epoch(self, tensor: StoredTensor) -> None:
        for _ in tensor.iter_blocks(shuffle=self.rng):
            pass

    def zarr_epoch(self) -> None:
        order = self.rng.permutation(len(self.rows))
        for start in range(0, len(order), RANDOM_ROWS):
            self.zarr[""].oindex[np.sort(order[start : start + RANDOM_ROWS])]

    def pt(self, rows: Iterable[int]) -> torch.Tensor:
        files = (self.folder / "pt" / f"{row}.pt" for row in rows)
        return torch.stack([torch.load(file, weights_only=True) for file in files])


class TensorStoreReader:
    """The same array through TensorStore, which reads many rows at a time."""

    def __init__(self, path: Path) -> None:
        import tensorstore

        kvstore = {"driver": "file", "path": f"{path}/tensors/amtl/"}
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 32_000_000}})  # of indices of shards
        spec = {"driver": "zarr3", "kvstore": kvstore}
        self.array = tensorstore.open(spec, context=context, read=True).result()

    def block(self, rows: slice) -> None:
        self.array[rows].read().result()

    def rows(self, rows: NDArray[np.int64]) -> None:
        out = np.empty((len(rows), *ROW), np.float16)
        for place, future in [(place, self.array[int(row)].read()) for place, row in enumerate(rows)]:
            out[place] = future.result()


def tensorstore_reader(path: Path) -> TensorStoreReader | None:
    try:
        return TensorStoreReader(path)
    except ImportError:
        return None


def write_store(path: Path, rows: NDArray[Any], *, compress: Any = None) -> None:
    n = len(rows)
    with Writer(path) as writer:
        writer.add_images(NewImages([f"{i}.jpg" for i in range(n)], np.zeros((n, 32), np.uint8), [1] * n, [1] * n))
        writer.ensure_tensor(LAYOUT, "float16", compress=compress)
        for block, start in enumerate(range(0, n, BLOCK)):
            part = rows[start : start + BLOCK]
            here = list(range(start, start + len(part)))
            seen = SeenImages(here, [(400, 600)] * len(here), [ImageState.READABLE] * len(here), [""] * len(here))
            writer.commit(block, {"amtl": (part, np.ones(len(part), np.uint8))}, seen)


def fresh(path: Path) -> Path:
    """The path, with nothing there: replacing what is there would be timed too."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    if "OMP_NUM_THREADS" not in os.environ:  # torch is here for one .pt file per image only
        os.environ["OMP_NUM_THREADS"] = "1"
        sys.exit(subprocess.run([sys.executable, *sys.argv], check=False).returncode)
    main()
