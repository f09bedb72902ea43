"""Forward passes on batches of photos: segments that share a network and a view share one pass.

Pixels reach the device once for all networks, as 8-bit frames that are cut into blocks there. A batch always has the
same number of photos, the last one being filled up, so that no feature depends on which photos were beside it.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.backbones import Card, Output
from featstore.engines import Hardware
from featstore.engines.engine import Engine, until_lost
from featstore.errors import BackboneError
from featstore.extraction.networks import Networks
from featstore.identity import PixelSegment, Segment
from featstore.photos.views import View, cut, frames_of
from featstore.support import Progress, size

Frames = Mapping[View, NDArray[np.uint8]]
"""A photo as each frame wants it, (copies, height, width, 3)."""


@dataclass(frozen=True)
class _Pass:
    """One network over the blocks of one view."""

    card: Card
    precision: str
    view: View


class Backbones:
    """The loaded networks that some segments need, ready to run on a device.

    Args:
        needed: hashes of the segments to be computed; all of the requests if not said.
        note: is told what is good to know, such as why an engine was not taken.
    """

    def __init__(
        self,
        networks: Networks,
        hardware: Hardware,
        report: Progress,
        *,
        needed: Collection[str] | None = None,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        segments = networks.by_hash()
        self.segments = {key: segments[key] for key in segments if needed is None or key in needed}
        """The segments by the hash of their identity."""
        self.batch = hardware.batch
        """Photos in one pass; halved when they do not fit into the device's memory."""
        self.device = hardware.device
        self._hardware, self._note = hardware, note
        self._engines: dict[tuple[Card, str], Engine] = {}
        self._outputs: dict[tuple[Card, str], tuple[Output, ...]] = {}
        places: dict[tuple[Card, str], list[_Pass]] = {}
        for segment in self.segments.values():
            each = _pass(segment)
            if each is None or not isinstance(segment, Segment):
                continue
            key = each.card, each.precision
            if each not in places.setdefault(key, []):
                places[key].append(each)
            if segment.output not in self._outputs.setdefault(key, ()):
                self._outputs[key] += (segment.output,)
        self._copying = None
        if self.asynchronous:
            self._copying = torch.cuda.Stream(hardware.device)  # type: ignore[no-untyped-call]
        report("load", 0, len(places))
        for key, passes in places.items():
            card, _ = key
            with until_lost(hardware.device), hardware.current():
                self._engines[key] = self._load(networks, card, passes)
            networks.forget(card)
            report("load", len(self._engines), len(places))

    @property
    def engines(self) -> dict[str, str]:
        """By backbone, the engine that runs it."""
        return {card.name: engine.name for (card, _), engine in self._engines.items()}

    def engine(self, segment: Segment) -> Engine:
        """What runs the network of a segment."""
        return self._engines[segment.card, segment.precision]

    @property
    def asynchronous(self) -> bool:
        """Whether the device works on after `start` has returned."""
        return self.device.type == "cuda"

    def frames(self, wanted: Iterable[str] | None = None) -> list[View]:
        """The frames that a photo has to be resized to, for the segments of some hashes or for all."""
        keys = self.segments if wanted is None else wanted
        return frames_of(self.segments[key].view for key in keys)

    def start(
        self, photos: Sequence[Frames], wanted: Collection[str], dtypes: Mapping[str, str] | None = None
    ) -> "Batch":
        """Set the device to work on up to `batch` photos, for the segments of some hashes.

        Args:
            dtypes: by segment hash, what the features are rounded to; float32, as they are computed, if not said.

        Raises:
            BackboneError: not even one photo fits into the device's memory.
            DeviceLostError: the device computes no more.
        """
        started, parts, rest = time.perf_counter(), [], list(photos)
        while rest:
            now = rest[: self.batch]
            try:
                with until_lost(self.device), self._hardware.current():
                    parts.append(self._start(now, wanted, dtypes))
            except torch.OutOfMemoryError as error:
                if self.batch == 1:
                    raise BackboneError(
                        f"the memory of {self.device} does not hold one photo's blocks and the networks"
                        f"{_what_it_takes(self.device, error)}; "
                        "say --device cpu, or extract fewer backbones at a time"
                    ) from error
            else:
                rest = rest[len(now) :]
                continue
            self._shrink()  # not above: the exception holds on to what did not fit
        return Batch(parts, len(photos), started, self.device)

    def _load(self, networks: Networks, card: Card, passes: list[_Pass]) -> Engine:
        while True:
            shapes = [self._shape(each.view) for each in passes]
            try:
                outputs = self._outputs[card, passes[0].precision]
                return self._hardware.load(
                    networks.load(card, outputs), card, precision=passes[0].precision, shapes=shapes, note=self._note
                )
            except torch.OutOfMemoryError as error:
                if self.batch == 1:
                    raise BackboneError(
                        f"the memory of {self.device} does not hold {card.name!r} and one photo's blocks"
                        f"{_what_it_takes(self.device, error)}; "
                        "say --device cpu, or extract fewer backbones at a time"
                    ) from error
            self._shrink()

    def _shape(self, view: View) -> tuple[int, ...]:
        width, height = view.block_size
        return self.batch * (view.n_copies or 1) * view.n_blocks, height, width, 3

    def _shrink(self) -> None:
        self.batch //= 2
        self._note(f"the memory of {self.device} was too small: {self.batch} photos in a pass from here on")
        for engine in self._engines.values():
            engine.release()
        if self.asynchronous:
            with self._hardware.current():
                torch.cuda.empty_cache()

    def _start(self, photos: Sequence[Frames], wanted: Collection[str], dtypes: Mapping[str, str] | None) -> "_Part":
        passes: dict[_Pass, dict[Output, str]] = {}
        pixels: dict[str, View] = {}
        for key in wanted:
            segment = self.segments[key]
            each = _pass(segment)
            if isinstance(segment, Segment) and each is not None:
                passes.setdefault(each, {})[segment.output] = key
            else:
                pixels[key] = segment.view
        filled = [*photos, *[photos[-1]] * (self.batch - len(photos))]
        device = self.device
        gathered = {
            frame: self._gather([photo[frame] for photo in filled]) for frame in frames_of(p.view for p in passes)
        }
        clock = _clock(device)
        sent = {frame: self._send(pixels) for frame, pixels in gathered.items()}
        features: dict[str, torch.Tensor] = {}
        for each, keys in passes.items():
            place = each.card, each.precision
            found = self._engines[place].run(cut(sent[each.view.frame], each.view))
            for output, values in zip(self._outputs[place], found, strict=True):
                if output in keys:
                    features[keys[output]] = _of_width(values, self.segments[keys[output]])
        # Rounded here: half the bytes to send, and nothing for the host to compute.
        largest = {key: values.reshape(self.batch, -1).abs().amax(1) for key, values in features.items()}
        if dtypes is not None:
            features = {key: values.to(getattr(torch, dtypes[key])) for key, values in features.items()}
        fetched, most = ({key: _fetch(each, device) for key, each in some.items()} for some in (features, largest))
        for key, view in pixels.items():
            frames = torch.from_numpy(np.concatenate([photo[view.frame] for photo in filled]))
            blocks = cut(frames, view)
            fetched[key] = blocks.reshape(len(blocks), -1)
        return _Part(fetched, most, self.batch, len(photos), clock.stop())

    def _gather(self, frames: list[NDArray[np.uint8]]) -> torch.Tensor:
        """All in one piece, where the device can fetch it by itself."""
        shape = (sum(map(len, frames)), *frames[0].shape[1:])
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.asynchronous)
        np.concatenate(frames, out=pixels.numpy())
        return pixels

    def _send(self, pixels: torch.Tensor) -> torch.Tensor:
        """To the device, beside what it computes for the batch before."""
        device = self.device
        if self._copying is None:
            return pixels.to(device)
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._copying):
            sent = pixels.to(device, non_blocking=True)
        computing.wait_stream(self._copying)
        sent.record_stream(computing)
        return sent


class Batch:
    """Photos that the device is at work on."""

    def __init__(self, parts: "list[_Part]", n_photos: int, started: float, device: torch.device) -> None:
        self.parts, self.n_photos, self.started, self._device = parts, n_photos, started, device
        self.busy_s = 0.0
        """How long the device worked; known with the result."""

    def result(self) -> list[dict[str, NDArray[Any]]]:
        """By photo and by segment hash, the (C x T, F) features, once they are there.

        Raises:
            DeviceLostError: the device computes no more.
        """
        with until_lost(self._device):
            found = [photo for part in self.parts for photo in part.result()]
            self.busy_s = sum(part.clock.elapsed_s for part in self.parts)
        return found

    def largest(self) -> list[dict[str, float]]:
        """By photo and by segment hash, how large a feature was before it was rounded; of pixels nothing."""
        return [photo for part in self.parts for photo in part.largest_of_photos()]


@dataclass
class _Part:
    """What is in one pass: by segment hash, (photos x C x T, F) in the host's memory, maybe still arriving."""

    features: dict[str, torch.Tensor]
    largest: dict[str, torch.Tensor]
    """By segment hash, (photos,): the largest size of a feature, not a number if one is none."""
    batch: int
    n_photos: int
    clock: "_HostClock | _CudaClock"

    def largest_of_photos(self) -> list[dict[str, float]]:
        self.clock.wait()
        return [{key: float(values[i]) for key, values in self.largest.items()} for i in range(self.n_photos)]

    def result(self) -> list[dict[str, NDArray[Any]]]:
        self.clock.wait()
        by_photo = {key: values.reshape(self.batch, -1, values.shape[-1]) for key, values in self.features.items()}
        return [{key: values[i].numpy() for key, values in by_photo.items()} for i in range(self.n_photos)]


class _HostClock:
    """A device that is done when the call returns."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.elapsed_s = 0.0

    def stop(self) -> "_HostClock":
        self.elapsed_s = time.perf_counter() - self._started
        return self

    def wait(self) -> None:
        return


class _CudaClock:
    """A device that works on after the call; it has to be the current one."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._start.record()

    def stop(self) -> "_CudaClock":
        self._end.record()
        return self

    def wait(self) -> None:
        self._end.synchronize()

    @property
    def elapsed_s(self) -> float:
        return float(self._start.elapsed_time(self._end)) / 1000


def _clock(device: torch.device) -> _HostClock | _CudaClock:
    return _CudaClock() if device.type == "cuda" else _HostClock()


def _what_it_takes(device: torch.device, error: torch.OutOfMemoryError) -> str:
    """How much at least: what was taken, and what was asked for when there was no more."""
    if device.type != "cuda":
        return ""
    asked = re.search(r"allocate ([\d.]+) ([KMG]?)i?B", str(error))
    n_bytes = float(asked[1]) * 1024 ** " KMG".index(asked[2] or " ") if asked else 0.0
    free, total = torch.cuda.mem_get_info(device)
    needed = size(torch.cuda.memory_reserved(device) + n_bytes)
    return f", which take at least {needed} (it has {size(total)}, {size(free)} of them free)"


def _of_width(features: torch.Tensor, segment: Segment | PixelSegment) -> torch.Tensor:
    if features.shape[-1] != segment.width:
        raise BackboneError(f"backbone {segment.name!r} gave {features.shape[-1]} features, not {segment.width}")
    return features


def _fetch(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _pass(segment: Segment | PixelSegment) -> _Pass | None:
    return _Pass(segment.card, segment.precision, segment.view) if isinstance(segment, Segment) else None
