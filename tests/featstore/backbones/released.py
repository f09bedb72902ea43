"""Networks as released: is what we load and compute what timm itself computes?

Released weights cannot be had here; the state dict of timm's own network, as it is released, stands for them.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from featstore.backbones import Output, Weights, find_card
from featstore.backbones.networks import build_network

CLOSE = 1e-4
"""As a part of the largest feature."""


@dataclass
class Finding:
    """What became of one pretrained tag."""

    tag: str
    outcome: str
    """equal, loads (it was not run), differs, or refused."""
    detail: str = ""


def released(tag: str, *, fast: bool = False) -> nn.Module:
    """timm's network of a tag with its classifier, as its weights are published; random, and with lively statistics."""
    with _no_init() if fast else contextlib.nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = timm.create_model(tag, pretrained=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1, generator=generator)
            elif fast and value.is_floating_point():
                size = value.shape[1:].numel() if value.ndim > 1 else 100
                value.uniform_(-(size**-0.5), size**-0.5, generator=generator)
    return net.eval()


def load_as_released(tag: str, state: dict[str, Any], file: Path, outputs: tuple[Output, ...] = ()) -> Any:
    """The network of ours, from a file of these weights."""
    save_file({name: value.contiguous().clone() for name, value in state.items()}, file)
    return build_network(find_card(tag), Weights("named file", file), outputs or None)


def noise(tag: str, n: int = 1) -> torch.Tensor:
    """(n, height, width, 3) uint8, of the size that a tag's pictures have."""
    view = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(tag).to_dict())  # type: ignore[union-attr]
    _, height, width = view["input_size"]
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def normalise(tag: str, blocks: torch.Tensor) -> torch.Tensor:
    """Pixels as timm's transform gives them to the network."""
    facts = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(tag).to_dict())  # type: ignore[union-attr]
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (blocks.permute(0, 3, 1, 2) / 255 - mean) / std


def own_feature(tag: str, state: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
    """The oracle: `create_model(num_classes=0)` with these weights, loaded by name and pooled by timm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = timm.create_model(tag, pretrained=False, num_classes=0).eval()
    missing, _ = net.load_state_dict(state, strict=False)
    assert not missing, missing
    with torch.inference_mode():
        return net(pixels)  # type: ignore[no-any-return]


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a part of the largest feature."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@contextlib.contextmanager
def _no_init() -> Iterator[None]:
    """Networks of hundreds of millions of parameters are filled once, by the caller."""

    class NoInit(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "erfinv_"):
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with NoInit():
        yield


no_init = _no_init
