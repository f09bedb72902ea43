"""decode -> cut -> forward, overlapped: photos in, features out, in one process.

Threads read, decode and resize photos a little ahead; the device works on one batch while the next is gathered. How
many photos are in memory depends on the threads and the batch, never on how many there are.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.engines import describe_device
from featstore.errors import FeatureRangeError, ImageError, UnavailableError
from featstore.extraction.forward import Backbones, Batch, Frames
from featstore.extraction.room import Room
from featstore.extraction.timing import DECODE, FORWARD, Stages
from featstore.identity import Segment
from featstore.photos.decoding import MAX_MEGAPIXELS, EncodedPhoto, open_photo
from featstore.photos.pillow_limit import no_pillow_limit
from featstore.photos.threads import Threads
from featstore.photos.views import View, resize
from featstore.support import n_cores

MOST_THREADS = 32
AHEAD = 4  # photos decoded ahead of the device, per decoding thread
LATE = 4  # batches of other photos that have gone by, at most, before one is sent that is not full
AT_ONCE = 256.0  # megapixels that are decoded at a time; large JPEGs count as what they are scaled to
FLYING = 1  # batches that the device has while the next is gathered: more would only wait for it


@dataclass(frozen=True)
class PhotoJob:
    """A photo whose features are wanted."""

    row: int
    path: str
    digest: bytes
    wanted: frozenset[str]
    """Hashes of the segments to compute; none if the photo has only to be looked at."""
    size: tuple[int, int] | None = None
    """Height and width, if nothing is wanted and they are known: the photo is not opened."""


@dataclass(frozen=True)
class PhotoResult:
    """What became of a job."""

    row: int
    size: tuple[int, int] = (0, 0)
    """Height and width."""
    features: dict[str, NDArray[Any]] = field(default_factory=dict)
    """By segment hash, (C x T, F) in the stored dtype."""
    error: str = ""
    """Why the photo could not be read."""
    unavailable: bool = False
    """It could not be opened: a matter of the disk, of this machine or of its settings, not of the photo."""
    note: str = ""
    """Why its colour profile was not applied, if it was not."""


class Pipeline:
    """The stages of one process, from a folder of photos to features.

    Args:
        dtypes: by segment hash, the stored dtype; without them features stay as computed, in float32 and unchecked.
        stages: the clocks of the stages.
        n_threads: that decode; one for each core if not said.
        max_megapixels: how large a photo may be.
        on_last: is called once the device has been given its last batch, before the results of that are waited for.
    """

    def __init__(
        self,
        root: Path,
        backbones: Backbones,
        dtypes: dict[str, str] | None,
        stages: Stages,
        *,
        n_threads: int | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
        on_last: Callable[[], object] = lambda: None,
    ) -> None:
        self._root, self._backbones, self._dtypes, self._stages = root, backbones, dtypes, stages
        self._on_last = on_last
        self._threads = n_threads or most_decoders()
        self._max_megapixels, self._room = max_megapixels, Room(AT_ONCE)
        stages.workers[DECODE] = self._threads

    def run(self, jobs: Iterable[PhotoJob]) -> Iterator[PhotoResult]:
        """Do the jobs, a few at a time; results come as they are ready.

        Raises:
            FeatureRangeError: a feature is not finite, or the stored dtype cannot hold it.
            BackboneError: a network cannot run.
        """
        gathered: dict[frozenset[str], _Gathered] = {}
        flying: deque[tuple[_Gathered, Batch]] = deque()
        # A device that is done when the call returns is not kept waiting by results that are not fetched.
        depth = FLYING if self._backbones.asynchronous else 0
        with Threads(self._threads, "decode") as threads:
            for job, photo, more in self._decode_ahead(jobs, threads):
                if photo.error or not job.wanted:
                    yield PhotoResult(job.row, photo.size, {}, photo.error, photo.unavailable, photo.note)
                else:
                    batch = gathered.setdefault(job.wanted, _Gathered())
                    batch.jobs.append(job)
                    batch.photos.append(photo)
                for batch in self._due(gathered, job.row) if more else [*gathered.values()]:
                    flying.append(self._start(gathered.pop(batch.jobs[0].wanted)))
                if not more:
                    self._on_last()
                while len(flying) > (depth if more else 0):
                    yield from self._finish(*flying.popleft())

    def facts(self) -> dict[str, Any]:
        """What the computing is done on, for the provenance."""
        return {
            "device": describe_device(self._backbones.device),
            "threads": torch.get_num_threads(),
            "batch": self._backbones.batch,
        }

    def engines(self) -> dict[str, str]:
        """By backbone, what runs it."""
        return self._backbones.engines

    def _due(self, gathered: "Mapping[frozenset[str], _Gathered]", row: int) -> "list[_Gathered]":
        """The batches that are full, and those that hold up a shard far behind."""
        full, late = self._backbones.batch, row - LATE * self._backbones.batch
        return [each for each in gathered.values() if len(each.jobs) >= full or each.jobs[0].row < late]

    def _decode_ahead(self, jobs: Iterable[PhotoJob], threads: Threads) -> "Iterator[tuple[PhotoJob, _Decoded, bool]]":
        """Photos in the order of the jobs, and whether there are more after each."""
        ahead: deque[tuple[PhotoJob, Future[_Decoded] | None]] = deque()
        waiting = iter(jobs)
        limit = max(AHEAD * self._threads, 2 * self._backbones.batch)
        while True:
            while len(ahead) < limit and (job := next(waiting, None)) is not None:
                ahead.append((job, None if job.size else threads.submit(self._decode, job)))
            if not ahead:
                return
            job, future = ahead.popleft()
            yield job, future.result() if future else _Decoded(job.size or (0, 0)), bool(ahead)

    def _decode(self, job: PhotoJob) -> "_Decoded":
        with self._stages.busy(DECODE, job.path):
            try:
                photo = open_photo(self._root / job.path, digest=job.digest, max_megapixels=self._max_megapixels)
                views = self._backbones.frames(job.wanted)
                with self._room.of(sum({photo.megapixels(view.source_size) for view in views}) or photo.megapixels()):
                    if not job.wanted:
                        photo.decode()  # a header may be whole where the rest is not
                    frames = make_frames(photo, views, job.digest)
            except ImageError as error:
                return _Decoded(error=str(error), unavailable=isinstance(error, UnavailableError))
            except MemoryError:
                return _Decoded(error="it does not fit into the memory that is free", unavailable=True)
            return _Decoded((photo.height, photo.width), frames, note=photo.note)

    def _start(self, batch: "_Gathered") -> "tuple[_Gathered, Batch]":
        return batch, self._backbones.start(
            [photo.frames for photo in batch.photos], batch.jobs[0].wanted, self._dtypes
        )

    def _finish(self, gathered: "_Gathered", batch: Batch) -> Iterator[PhotoResult]:
        found = batch.result()
        paths = gathered.jobs[0].path if len(gathered.jobs) == 1 else f"{len(gathered.jobs)} photos"
        self._stages.add(FORWARD, batch.started, batch.busy_s, paths)
        for job, photo, features, largest in zip(gathered.jobs, gathered.photos, found, batch.largest(), strict=True):
            if self._dtypes is not None:
                for key, value in largest.items():
                    self._check(value, key, self._dtypes[key], job.path)
            yield PhotoResult(job.row, photo.size, features, note=photo.note)

    def _check(self, largest: float, key: str, dtype: str, path: str) -> None:
        segment = self._backbones.segments[key]
        assert isinstance(segment, Segment)  # pixels are no features, and always fit
        if not math.isfinite(largest):
            hint = "; run again with --precision bf16 or fp32" if segment.precision == "fp16" else ""
            raise FeatureRangeError(
                f"backbone {segment.card.name!r} gave a feature that is not a number for {path}{hint}"
            )
        if largest > float(np.finfo(dtype).max):
            raise FeatureRangeError(
                f"backbone {segment.card.name!r} gave a feature of {largest:.4g} for {path}, more than {dtype} holds; "
                "run again with --dtype float32 (and another --store or tensor name)"
            )


def make_frames(photo: EncodedPhoto, frames: Iterable[View], digest: bytes) -> Frames:
    """Decode a photo, and resize it to each frame.

    Args:
        digest: of the photo's file; the augmented copies are drawn from it.

    Raises:
        ImageError: truncated or damaged, or pixels without an agreed range.
    """
    with no_pillow_limit():  # augmented copies are cropped, which Pillow limits too
        full = photo.width, photo.height
        return {frame: resize(photo.decode(frame.source_size), frame, digest, full) for frame in frames}


def most_decoders() -> int:
    """Threads that decode in one process: one for each core, up to 32."""
    return min(MOST_THREADS, n_cores())


@dataclass(frozen=True)
class _Decoded:
    """A photo as each frame wants it, or the reason why not."""

    size: tuple[int, int] = (0, 0)
    frames: Frames = field(default_factory=dict)
    error: str = ""
    unavailable: bool = False
    note: str = ""


@dataclass
class _Gathered:
    """Photos that go to the device together."""

    jobs: list[PhotoJob] = field(default_factory=list)
    photos: list[_Decoded] = field(default_factory=list)
