"""Prototypes: what may become an engine, timed before it is one."""

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from featstore.backbones import find_card
from featstore.engines import Hardware
from featstore.engines.engine import arithmetic
from featstore.photos.views import GRID
from gpu.bench import Bench, Figures


def compiled(bench: Bench) -> Figures:
    """The `compile` engine: seconds until it is ready, and milliseconds of a pass."""
    name = bench.convolutions[0]
    blocks = bench.blocks(GRID, bench.batch)
    notes: list[str] = []
    began = time.perf_counter()
    engine = Hardware(bench.device, "compile", bench.batch).load(
        bench.network(name),
        find_card(name),
        precision=bench.precision,
        shapes=[tuple(blocks.shape)],
        note=notes.append,
    )
    ready = time.perf_counter() - began
    took = bench.seconds(lambda: engine.run(blocks))
    return {"network": name, "ready s": ready, "ms": 1000 * took, "grid photos/s": bench.batch / took, "notes": notes}


def folded(bench: Bench) -> Figures:
    """A ResNet whose batch normalisation is in its convolutions, which add and cut off as well."""
    name = bench.convolutions[0]
    blocks = bench.blocks(GRID, bench.batch)
    network = bench.network(name).to(device=bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with arithmetic("fp32", bench.device):
        exact = network(blocks)[0]
    found: Figures = {}
    half = bench.device.type == "cuda"
    for words in ("as it is", "folded", "fused"):
        if words == "folded":
            _fold(network.net)
            if half:
                network.net.half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if words == "fused" and half:
            _fuse(network.net)
        with arithmetic("fp32" if words != "as it is" else bench.precision, bench.device):
            pixels = blocks.permute(0, 3, 1, 2).float().sub(network.mean).div(network.std)
            pixels = pixels.half() if half and words != "as it is" else pixels
            net: Any = network.net
            took = bench.seconds(lambda: net.forward_head(net.forward_features(pixels)))  # noqa: B023
            features = net.forward_head(net.forward_features(pixels)).float()
        found[f"ms, {words}"] = 1000 * took
        found[f"apart, {words}"] = float((features - exact).abs().max() / exact.abs().max())
    return {"network": name, **found}


def _fold(net: nn.Module) -> None:
    """Put each `bnN` into the `convN` beside it, and what follows a convolution in a `Sequential`."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in net.modules():
        names = dict(module.named_children())
        pairs = [(key, f"bn{key[4:]}") for key in names if key.startswith("conv")]
        if isinstance(module, nn.Sequential):
            pairs = list(zip(names, list(names)[1:], strict=False))
        for conv, norm in pairs:
            if type(names.get(conv)) is nn.Conv2d and type(names.get(norm)) is nn.BatchNorm2d:
                setattr(
                    module, conv, fuse_conv_bn_eval(cast(nn.Conv2d, names[conv]), cast(nn.BatchNorm2d, names[norm]))
                )
                setattr(module, norm, nn.Identity())


def _fuse(net: nn.Module) -> None:
    """Convolution and ReLU, and convolution, sum and ReLU, as one kernel each in the bottlenecks of timm's ResNet."""

    def made(block: Any) -> Callable[[Tensor], Tensor]:
        def run(values: Tensor) -> Tensor:
            shortcut = values if block.downsample is None else block.downsample(values)
            for conv in (block.conv1, block.conv2):
                values = torch.cudnn_convolution_relu(
                    values, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
                )
            last = block.conv3
            return torch.cudnn_convolution_add_relu(
                values, last.weight, shortcut, 1.0, last.bias, last.stride, last.padding, last.dilation, last.groups
            )

        return run

    for module in net.modules():
        if type(module).__name__ == "Bottleneck":
            module.forward = made(module)  # type: ignore[method-assign]
