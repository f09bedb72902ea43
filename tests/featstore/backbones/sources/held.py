"""What the tests of all sources do: a network through our path, held against its own library."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featstore.backbones import Card, Output, WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import Network, build_network
from featstore.backbones.sources import find_source
from featstore.photos.views import resize


def photo(width: int = 287, height: int = 401) -> Image.Image:
    """Noise over a gradient, of odd sides, so that the middle falls between two pixels."""
    pixels = np.random.default_rng(0).integers(0, 200, (height, width, 3)).astype(np.uint8)
    pixels[:, :, 0] //= 3
    pixels[:, :, 1] = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(pixels)


def network(name: str, folder: Path, **named: str) -> Network:
    """The network of a name with the weights in a folder."""
    policy = WeightsPolicy(folder, named)
    card = find_card(name, policy)
    return build_network(card, resolve_weights(card, policy))


def picture(card: Card, image: Image.Image) -> Tensor:
    """A photo as the view `model` makes it: (1, height, width, 3) uint8."""
    return torch.from_numpy(resize(image, find_source(card.source).view(card), b"\0" * 32))


def normalised(network: Network, blocks: Tensor) -> Tensor:
    """Blocks as the library's own preprocessing would give them."""
    return (blocks.permute(0, 3, 1, 2).float() - network.mean) / network.std


def run(network: Network, blocks: Tensor, outputs: Sequence[Output] = ()) -> tuple[Tensor, ...]:
    network.outputs = tuple(outputs) or network.outputs
    with torch.inference_mode():
        return network(blocks)
