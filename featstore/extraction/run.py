"""Carrying out a plan: jobs to whatever computes, its results into shards of rows, whole shards to the store.

A thread of its own commits the shards, so that neither decoding nor the disk holds up the device.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.engines import Hardware, Runtime
from featstore.extraction.forward import Backbones
from featstore.extraction.networks import Networks
from featstore.extraction.pipeline import PhotoJob, PhotoResult, Pipeline
from featstore.extraction.plan import ExtractionPlan
from featstore.extraction.rows import Copies, ShardBuffer
from featstore.extraction.timing import FORWARD, WRITE, Stages
from featstore.store import RowState, Store, Writer
from featstore.support import Progress, versions

VERSIONS = ("featstore", "torch", "timm", "pillow", "zarr")


class Computer(Protocol):
    """Whatever does jobs: the pipeline of this process, or a cluster."""

    def run(self, jobs: Iterable[PhotoJob]) -> Iterator[PhotoResult]:
        """Results come as they are ready, in any order."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the computing is done on, for the provenance."""
        ...

    def engines(self) -> dict[str, str]:
        """By backbone, what runs it."""
        ...


@dataclass
class Made:
    """What a run made; counts are of images, times in seconds."""

    n_computed: int = 0
    n_both: int = 0
    """Of these, those that wait in another tensor for features that have to be imported."""
    n_bytes: int = 0
    unavailable: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of every image whose file could not be opened."""
    profiles: dict[str, str] = field(default_factory=dict)
    """By path, why the colour profile of a photo was not applied."""
    elapsed_s: float = 0.0
    first_at: float = 0.0
    """When the first features were there, by `time.perf_counter`."""

    def notes(self) -> list[str]:
        """What is odd about the photos and did no harm, a sentence each."""
        if not self.profiles:
            return []
        path, reason = next(iter(self.profiles.items()))
        has = "photo has" if len(self.profiles) == 1 else "photos have"
        return [f"{len(self.profiles)} {has} a broken colour profile, which was ignored, as of {path} ({reason})"]


class Extraction:
    """One extraction at work."""

    def __init__(
        self,
        plan: ExtractionPlan,
        networks: Networks,
        runtime: Runtime,
        *,
        stages: Stages,
        report: Progress,
        max_megapixels: float,
    ) -> None:
        self._max_megapixels = max_megapixels
        self._plan, self._networks, self._runtime = plan, networks, runtime
        self._stages, self._report = stages, report
        self._waiting = {tensor.layout.name: set(tensor.waiting) for tensor in plan.tensors}
        if not runtime.distributed:
            Hardware.choose(runtime)  # a device that is not there is refused before a store is made
        self._made = Made()
        self._writer: Writer
        self._copies: Copies

    def computer(self, block_rows: int, note: Callable[[str], object]) -> AbstractContextManager[Computer]:
        """What will compute, with the networks that the plan needs; ready when it is entered.

        Args:
            note: is told what is good to know, such as why an engine was not taken.
        """
        root, needed = self._plan.listing.root, {*self._plan.passes, *self._plan.again}
        stages, report = self._stages, self._report
        if self._runtime.distributed and needed:
            from featstore.extraction.cluster import Cluster

            return Cluster(
                root,
                self._networks,
                self._runtime,
                needed,
                block_rows=block_rows,
                max_megapixels=self._max_megapixels,
                stages=stages,
                report=report,
                note=note,
            )
        backbones = Backbones(self._networks, Hardware.choose(self._runtime), report, needed=needed, note=note)
        stages.workers[FORWARD] = 1
        limit = self._max_megapixels
        return nullcontext(Pipeline(root, backbones, self._networks.dtypes(), stages, max_megapixels=limit))

    def rows_to_fill(self, store: Store, name: str | None = None) -> NDArray[np.int64]:
        """Rows of listed photos that some tensor lacks (or the one of a name), in ascending order.

        Rows that wait for imported features are left out.
        """
        known = store.images.rows_by_path
        lacking: set[int] = set()
        for layout in self._plan.layouts:
            if name in (None, layout.name):
                absent, waiting = store[layout.name].states == RowState.ABSENT, self._waiting[layout.name]
                rows = ((known[photo.path], photo.path) for photo in self._plan.listing.photos)
                lacking.update(row for row, path in rows if absent[row] and path not in waiting)
        return np.array(sorted(lacking), dtype=np.int64)

    def go(self, writer: Writer, computer: Computer, rows: NDArray[np.int64]) -> Made:
        """Fill rows, given in ascending order."""
        self._writer, store = writer, writer.store
        hashes = {segment.hash for layout in self._plan.layouts for segment in layout.segments}
        self._copies = Copies([store, *self._plan.reuse], hashes)
        todo = [int(row) for row in rows]
        left = Counter(row // store.block_rows for row in todo)
        shards: dict[int, ShardBuffer] = {}
        commits: deque[Future[None]] = deque()
        self._record(computer)
        self._report("extract", 0, len(todo))
        begun = time.perf_counter()
        with ThreadPoolExecutor(1, "commit") as committing:
            try:
                for done, result in enumerate(computer.run(self._job(row) for row in todo)):
                    number = result.row // store.block_rows
                    if number not in shards:
                        shards[number] = ShardBuffer(number, store, self._plan.layouts)
                    self._take(result, shards[number])
                    left[number] -= 1
                    if not left[number]:
                        self._hand_over(shards.pop(number), committing, commits)
                    self._report("extract", done + 1, len(todo))
            finally:
                # Also after Ctrl-C or an error: what has been computed is worth keeping.
                for shard in shards.values():
                    self._hand_over(shard, committing, commits)
                while commits:
                    commits.popleft().result()
        self._made.elapsed_s = time.perf_counter() - begun
        return self._made

    def _job(self, row: int) -> PhotoJob:
        store = self._writer.store
        images, digest = store.images, store.images.digests[row].tobytes()
        path = images.paths[row]
        lacking = {
            segment.hash
            for layout in self._plan.layouts
            if int(store[layout.name].states[row]) == RowState.ABSENT and path not in self._waiting[layout.name]
            for segment in layout.segments
        }
        wanted = frozenset(lacking - self._copies.available(digest))
        return PhotoJob(row, path, digest, wanted, None if wanted else self._copies.size(digest))

    def _record(self, computer: Computer) -> None:
        """Note what this run runs on."""
        self._writer.record_run(
            self._plan.names,
            {
                "versions": versions(*VERSIONS),
                "engines": computer.engines(),
                **computer.facts(),
                "weights": self._networks.origins(),
                "photos": str(self._plan.listing.root.absolute()),
            },
        )

    def _take(self, result: PhotoResult, shard: ShardBuffer) -> None:
        """Put what became of a photo into its shard."""
        images = self._writer.store.images
        if result.note:
            self._made.profiles[images.paths[result.row]] = result.note
        if result.unavailable:
            self._made.unavailable.append((images.paths[result.row], result.error))
            return
        if result.error:
            shard.fail(result.row, result.error)
            return
        lacking = {segment.hash for layout in shard.lacking(result.row) for segment in layout.segments}
        copied = self._copies.read(images.digests[result.row].tobytes(), lacking - set(result.features))
        shard.fill(result.row, {**copied, **result.features}, result.size)
        if result.features:
            self._made.n_computed += 1
            self._made.n_both += any(images.paths[result.row] in paths for paths in self._waiting.values())
            self._made.first_at = self._made.first_at or time.perf_counter()

    def _hand_over(self, shard: ShardBuffer, pool: ThreadPoolExecutor, commits: "deque[Future[None]]") -> None:
        if not shard.seen.rows:
            return
        while commits:  # at most one shard is being written while the next one fills
            commits.popleft().result()
        commits.append(pool.submit(self._commit, shard))

    def _commit(self, shard: ShardBuffer) -> None:
        with self._stages.busy(WRITE, f"row block {shard.number}"):
            rows = {name: (shard.features[name], shard.states[name]) for name in shard.features}
            self._made.n_bytes += self._writer.commit(shard.number, rows, shard.seen)
