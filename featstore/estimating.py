"""About how long an extraction will take, from one photo that is decoded and computed for trial."""

import time
from dataclasses import dataclass
from typing import Any

from featstore.errors import ImageError
from featstore.images import read_photo
from featstore.planning import Plan
from featstore.requests import Networks
from featstore.views import cut


@dataclass(frozen=True)
class Estimate:
    """What a trial photo took."""

    photo: str
    device: str
    seconds_per_photo: float
    """For a photo that needs every network of the plan."""
    total_s: float


def estimate(plan: Plan, networks: Networks, *, device: str = "auto") -> Estimate | None:
    """Time the networks that a plan needs on one of its photos; None if it computes nothing.

    Networks are run twice, and the second time counts.
    """
    if not plan.passes:
        return None
    from featstore.engines import choose_device, describe_device
    from featstore.forward import Backbones

    where = choose_device(device)
    backbones = Backbones(networks, where, lambda stage, done, total: None)
    # Segments that share a network and a view share its forward pass.
    shared: dict[Any, str] = {}
    for key in plan.passes:
        place = (backbones.segments[key].card.name, backbones.segments[key].view)
        if plan.passes[key] > plan.passes.get(shared.get(place, ""), 0):
            shared[place] = key
    for path in (path for tensor in plan.tensors for paths in tensor.reasons.values() for path in paths):
        try:
            started = time.perf_counter()
            image = read_photo(plan.listing.root / path)
        except ImageError:
            continue
        blocks = cut(image, backbones.views)
        decoding_s = time.perf_counter() - started
        seconds = {key: _time(backbones, blocks, key) for key in shared.values()}
        total = sum(seconds[key] * plan.passes[key] for key in seconds)
        # Photos are decoded beside the forward passes: the longer of the two is what one waits for.
        per_photo = max(sum(seconds.values()), decoding_s)
        return Estimate(path, describe_device(where), per_photo, max(total, decoding_s * plan.n_computed))
    return None


def _time(backbones: Any, blocks: Any, key: str) -> float:
    backbones.features(blocks, [key])
    started = time.perf_counter()
    backbones.features(blocks, [key])
    return time.perf_counter() - started
