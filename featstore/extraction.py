"""plan -> row blocks -> run -> commit.

Photos are decoded a little ahead on threads, every backbone runs over them, and whole row blocks are committed
by a thread of their own, so that neither decoding nor the disk holds up the device.
"""

import os
import platform
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.config import Config
from featstore.errors import FeatureRangeError, ImageError, PhotosError, UnavailableError
from featstore.images import read_photo
from featstore.planning import Listing, Networks, Progress, existing_store, list_photos
from featstore.rowblocks import Block, Copies
from featstore.store import ImageState, Store, TensorLayout, Writer, open_store
from featstore.store.writing import check_same_layout, check_space
from featstore.views import View, cut

if TYPE_CHECKING:
    import torch

    from featstore.engines import Engine

AHEAD = 4  # photos decoded ahead of the device, per decoding thread


@dataclass
class Summary:
    """What an extraction did; counts are of images, times in seconds."""

    store: Path
    n_images: int = 0
    n_computed: int = 0
    n_reused: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of every image that could not be read, of this run or an earlier one."""
    n_bytes: int = 0
    elapsed_s: float = 0.0
    extracting_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_s(self) -> float:
        return self.n_computed / self.extracting_s if self.extracting_s else 0.0

    @property
    def slowest_stage(self) -> str | None:
        return max(self.stages_s, key=lambda stage: self.stages_s[stage]) if any(self.stages_s.values()) else None


def extract(config: Config, *, device: str = "auto", on_progress: Progress | None = None) -> Summary:
    """Bring a store up to date with a folder of photos: compute what is absent, and nothing else.

    Args:
        config: `photos`, `store` and `tensors` say what; see `featstore.config`.

    Raises:
        PhotosError: the folder holds no photos.
        BackboneError: a backbone is unknown, or its weights cannot be had.
        LayoutError: the store holds other features under a tensor's name.
        FeatureRangeError: a feature is not finite, or float16 cannot hold it.
        StoreError: the store is locked, of another format, or the disk refuses.
        KeyboardInterrupt: as it came, after the photos done so far have been committed.
    """
    started = time.perf_counter()
    report = on_progress or (lambda stage, done, total: None)
    if config.photos is None:
        raise PhotosError("no photo folder named; give it as the first argument, or `featstore init PHOTOS`")
    listing = list_photos(config.photos, existing_store(config.store), report)
    networks = Networks(config)
    layouts = networks.layouts()
    summary = Summary(config.store, n_images=len(listing.photos))

    n_bytes = 0
    for layout in layouts:
        n_rows = len(listing.new)
        if listing.store is not None:
            if layout.name in listing.store.tensors:
                check_same_layout(layout, listing.store)
            n_rows += len(listing.absent(listing.store, [layout]))
        n_bytes += n_rows * int(np.prod(layout.row_shape)) * np.dtype(config.dtype).itemsize
    if n_bytes or listing.changes:
        from featstore.engines import choose_device  # torch: seconds that a run with nothing to do does not spend

        check_space(config.store, n_bytes)
        where = choose_device(device)
        with Writer(config.store) as writer:
            listing.apply(writer)
            for layout in layouts:
                writer.ensure_tensor(layout, config.dtype)
            rows = listing.absent(writer.store, layouts)
            if len(rows):
                _Run(writer, layouts, networks, config, report, summary).go(rows, where)
    _finish(summary, open_store(config.store), listing, time.perf_counter() - started)
    return summary


def _finish(summary: Summary, store: Store, listing: Listing, elapsed_s: float) -> None:
    images = store.images
    rows = [images.rows_by_path[photo.path] for photo in listing.photos]
    summary.failed += [
        (images.paths[row], images.errors[row]) for row in rows if images.states[row] == ImageState.UNREADABLE
    ]
    summary.n_reused = summary.n_images - summary.n_computed - len(summary.failed)
    summary.elapsed_s = elapsed_s


@dataclass(frozen=True)
class _Decoded:
    """A photo cut into its views, or the reason why not."""

    blocks: dict[View, NDArray[np.uint8]] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    error: str = ""
    unavailable: bool = False
    """The file could not be opened: a matter of the disk or the network, not of the photo."""
    elapsed_s: float = 0.0


class _Run:
    """The loop itself: decode a little ahead, forward, hand whole blocks to the committing thread."""

    def __init__(
        self,
        writer: Writer,
        layouts: list[TensorLayout],
        networks: Networks,
        config: Config,
        report: Progress,
        summary: Summary,
    ) -> None:
        assert config.photos is not None
        self._writer, self._store, self._layouts = writer, writer.store, layouts
        self._networks, self._root, self._dtype = networks, config.photos, config.dtype
        self._report, self._summary = report, summary
        self._copies = Copies(writer.store, {s.hash for layout in layouts for s in layout.segments})
        self._stages = {"decode": 0.0, "forward": 0.0, "write": 0.0}

    def go(self, rows: NDArray[np.int64], device: "torch.device") -> None:
        """Compute the named rows, in ascending order."""
        todo = [int(row) for row in rows]
        threads = min(4, os.cpu_count() or 1)
        begun = time.perf_counter()
        with ThreadPoolExecutor(threads) as decoding, ThreadPoolExecutor(1) as committing:
            commits: deque[Future[None]] = deque()
            block: Block | None = None
            try:
                self._start(device)
                self._report("extract", 0, len(todo))
                for done, (row, photo) in enumerate(self._decode_ahead(todo, decoding, threads)):
                    if block is None or row // self._store.block_rows != block.number:
                        self._hand_over(block, committing, commits)
                        block = Block(row // self._store.block_rows, self._store, self._layouts, self._dtype)
                    self._do(row, photo, block)
                    self._report("extract", done + 1, len(todo))
            finally:
                # Also after Ctrl-C or an error: what has been computed is worth keeping.
                decoding.shutdown(wait=False, cancel_futures=True)
                self._hand_over(block, committing, commits)
                while commits:
                    commits.popleft().result()
                self._stages["decode"] /= threads
                self._summary.stages_s = self._stages
                self._summary.extracting_s = time.perf_counter() - begun

    def _start(self, device: "torch.device") -> None:
        """Load the engines and note what this run runs on."""
        import torch

        from featstore.engines import EagerEngine, describe_device

        self._segments = self._networks.by_hash()
        cards = {segment.card.name: segment.card for segment in self._segments.values()}
        self._report("load", 0, len(cards))
        self._engines: dict[str, Engine] = {}
        for card in cards.values():
            self._engines[card.name] = EagerEngine(self._networks.load(card), card, device=device)
            self._report("load", len(self._engines), len(cards))
        self._writer.record_run(
            [layout.name for layout in self._layouts],
            {
                "versions": {name: version(name) for name in ("featstore", "torch", "timm", "pillow", "zarr")}
                | {"python": platform.python_version()},
                "engine": EagerEngine.name,
                "device": describe_device(device),
                "threads": torch.get_num_threads(),
                "weights": self._networks.origins(),
                "photos": str(self._root.absolute()),
            },
        )

    def _decode_ahead(self, rows: list[int], pool: ThreadPoolExecutor, threads: int) -> Iterator[tuple[int, _Decoded]]:
        """Decoded photos in order; memory is bounded by how many are decoded ahead."""
        views = sorted({segment.view for segment in self._segments.values()}, key=repr)
        ahead: deque[tuple[int, Future[_Decoded]]] = deque()
        waiting = iter(rows)
        while True:
            while len(ahead) < AHEAD * threads and (row := next(waiting, None)) is not None:
                ahead.append((row, pool.submit(self._decode, row, views)))
            if not ahead:
                return
            row, future = ahead.popleft()
            yield row, future.result()

    def _decode(self, row: int, views: list[View]) -> _Decoded:
        started = time.perf_counter()
        images = self._store.images
        try:
            image = read_photo(self._root / images.paths[row], digest=images.digests[row].tobytes())
        except ImageError as error:
            unavailable = isinstance(error, UnavailableError)
            return _Decoded(error=str(error), unavailable=unavailable, elapsed_s=time.perf_counter() - started)
        blocks = cut(image, views)
        return _Decoded(blocks, (image.height, image.width), elapsed_s=time.perf_counter() - started)

    def _do(self, row: int, photo: _Decoded, block: Block) -> None:
        self._stages["decode"] += photo.elapsed_s
        if photo.unavailable:
            self._summary.failed.append((self._store.images.paths[row], photo.error))
            return
        if photo.error:
            block.fail(row, photo.error)
            return
        started = time.perf_counter()
        wanted = {segment.hash for layout in block.lacking(row) for segment in layout.segments}
        features = self._copies.find(row, wanted)
        if lacking := wanted - set(features):
            features |= self._forward(row, photo, lacking)
            self._summary.n_computed += 1
        block.fill(row, features, photo.size)
        self._stages["forward"] += time.perf_counter() - started

    def _forward(self, row: int, photo: _Decoded, wanted: set[str]) -> dict[str, NDArray[Any]]:
        """Segments that share a network and a view share one forward pass."""
        passes: dict[tuple[str, View], dict[str, str]] = {}
        for key in wanted:
            segment = self._segments[key]
            passes.setdefault((segment.card.name, segment.view), {})[segment.pooling] = key
        features = {}
        for (name, view), poolings in passes.items():
            pooled = self._engines[name].run(photo.blocks[view], poolings)
            for pooling, key in poolings.items():
                features[key] = self._checked(pooled[pooling], row, name)
        return features

    def _checked(self, values: NDArray[np.float32], row: int, backbone: str) -> NDArray[Any]:
        path = self._store.images.paths[row]
        largest = float(np.abs(values).max())
        if not np.isfinite(largest):
            raise FeatureRangeError(f"backbone {backbone!r} gave a feature that is not a number for {path}")
        if largest > float(np.finfo(self._dtype).max):
            raise FeatureRangeError(
                f"backbone {backbone!r} gave a feature of {largest:.4g} for {path}, more than {self._dtype} holds; "
                "run again with --dtype float32 (and another --store or tensor name)"
            )
        return values.astype(self._dtype)

    def _hand_over(self, block: Block | None, pool: ThreadPoolExecutor, commits: "deque[Future[None]]") -> None:
        if block is None or not block.seen.rows:
            return
        while commits:  # at most one block is being written while the next one fills
            commits.popleft().result()
        commits.append(pool.submit(self._commit, block))

    def _commit(self, block: Block) -> None:
        started = time.perf_counter()
        rows = {name: (block.features[name], block.states[name]) for name in block.features}
        self._summary.n_bytes += self._writer.commit(block.number, rows, block.seen)
        self._stages["write"] += time.perf_counter() - started
