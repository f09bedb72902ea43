"""About how long an extraction will take, from one photo that is decoded and computed for trial."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.engines import Hardware, Runtime, describe_device
from featstore.errors import ImageError
from featstore.extraction.networks import Networks
from featstore.extraction.plan import ExtractionPlan
from featstore.photos.decoding import MAX_MEGAPIXELS, open_photo
from featstore.support import no_progress

if TYPE_CHECKING:
    from featstore.extraction.forward import Backbones, Frames


@dataclass(frozen=True)
class Estimate:
    """What a trial photo took."""

    photo: str
    device: str
    seconds_per_photo: float
    """For a photo that needs every network of the plan."""
    total_s: float
    """Without loading the networks."""


def estimate(
    plan: ExtractionPlan, networks: Networks, runtime: Runtime, *, max_megapixels: float = MAX_MEGAPIXELS
) -> Estimate | None:
    """Time the networks that a plan needs on photos of it; None if it computes nothing.

    Networks are run twice, and the second time counts.
    """
    if not plan.passes:
        return None
    from featstore.extraction.forward import Backbones
    from featstore.extraction.pipeline import make_frames

    hardware = Hardware.choose(runtime)
    backbones = Backbones(networks, hardware, no_progress, needed=plan.passes)
    for path in (path for tensor in plan.tensors for paths in tensor.reasons.values() for path in paths):
        started = time.perf_counter()
        try:
            frames = make_frames(
                open_photo(plan.listing.root / path, max_megapixels=max_megapixels), backbones.frames(), b""
            )
        except ImageError:
            continue
        decoding_s = time.perf_counter() - started
        # Segments that are wanted for the same photos are computed together, and share forward passes.
        groups: dict[int, list[str]] = {}
        for key, n_photos in plan.passes.items():
            groups.setdefault(n_photos, []).append(key)
        seconds = {n_photos: _time(backbones, frames, keys) for n_photos, keys in groups.items()}
        total = sum(n_photos * each for n_photos, each in seconds.items())
        # Photos are decoded beside the forward passes: the longer of the two is what one waits for.
        per_photo = max(sum(seconds.values()), decoding_s)
        where = describe_device(hardware.device)
        return Estimate(path, where, per_photo, max(total, decoding_s * plan.n_computed))
    return None


def _time(backbones: "Backbones", frames: "Frames", keys: list[str]) -> float:
    """Seconds for one photo of a full batch."""
    batch = [frames] * backbones.batch
    backbones.start(batch, keys).result()
    started = time.perf_counter()
    backbones.start(batch, keys).result()
    return (time.perf_counter() - started) / backbones.batch
