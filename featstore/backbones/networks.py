"""Frozen networks: built from a card and its weights, with the digest of the weights that were loaded."""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.weights import Weights
from featstore.errors import BackboneError, WeightsError
from featstore.support import few


class Network(nn.Module):
    """A frozen network: 8-bit RGB blocks in, the last feature map out.

    Normalisation happens inside, so that 8-bit pixels are all that has to reach the device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: Card, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.n_prefix_tokens = int(getattr(net, "num_prefix_tokens", 0))
        self.channels_last_map = getattr(net, "output_fmt", "NCHW") == "NHWC"
        self.register_buffer("mean", 255 * torch.tensor(card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(card.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """(T, H, W, 3) uint8 -> (T, F, positions) float32."""
        pixels = blocks.permute(0, 3, 1, 2).float()
        features: Tensor = self.net((pixels - self.mean) / self.std)
        if features.ndim == 2:
            return features.unsqueeze(2)  # already one vector per block
        if features.ndim == 4:
            if self.channels_last_map:
                features = features.permute(0, 3, 1, 2)
            return features.flatten(2)
        return features[:, self.n_prefix_tokens :].transpose(1, 2)  # tokens: (T, positions, F)


def build_network(card: Card, weights: Weights) -> Network:
    """The network of a card with its weights loaded, in evaluation mode, without gradients.

    Raises:
        WeightsError: the file is damaged, would have to be unpickled, or does not fit the architecture.
        BackboneError: timm cannot build the architecture.
    """
    if weights.seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights.seed)
            net = _create(card)
    else:
        net = _create(card)
        assert weights.file is not None
        state = _read(weights.file, card)
        if weights.by_position:
            import timm

            names = list(timm.create_model(card.network, pretrained=False).state_dict())
            if len(names) != len(state):
                raise WeightsError(f"{weights.file}: {len(state)} tensors, {card.name!r} has {len(names)}")
            state = dict(zip(names, state.values(), strict=True))
        _load(net, state, card, weights.file)
    if card.batch_norm_eps is not None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = card.batch_norm_eps
    return Network(card, net).eval().requires_grad_(False)


def weights_digest(network: Network) -> str:
    """SHA-256 over the loaded parameters: names, shapes and float32 values, in order of name.

    It says which weights a feature was made with, whatever file format they travelled in.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.net.state_dict().items()):
        if value.is_floating_point():
            array = value.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(f"{name}{list(array.shape)}".encode())
            digest.update(array.astype("<f4", copy=False).data)
    return digest.hexdigest()


def _create(card: Card) -> nn.Module:
    if card.builder is not None:
        net: nn.Module = importlib.import_module(card.builder).build()
        return net
    import timm

    try:
        return timm.create_model(card.network, pretrained=False, num_classes=0, global_pool="")  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(f"timm cannot build {card.network!r} without its classifier: {error}") from error


def _read(file: Path, card: Card) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the loaders raise a dozen kinds on damaged files
        raise WeightsError(f"weights file {file} for {card.name!r} cannot be read: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights file {file} for {card.name!r} holds no dictionary of tensors")
    return dict(state)


def _load(net: nn.Module, state: dict[str, Tensor], card: Card, file: Path) -> None:
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    misfit = [name for name, value in wanted.items() if name in state and state[name].shape != value.shape]
    surplus = [name for name in state if name not in wanted and (card.builder or not _is_classifier(name, net))]
    problems = {"missing": missing, "of another shape": misfit, "not of this network": surplus}
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what} ({few(names, 3)})" for what, names in problems.items() if names)
        raise WeightsError(f"weights file {file} does not fit {card.name!r} ({card.network}): {told}")
    net.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)


def _is_classifier(name: str, net: nn.Module) -> bool:
    heads: Any = getattr(net, "pretrained_cfg", {}).get("classifier", ())
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    return name.startswith(tuple(f"{head}." for head in (*heads, "fc", "classifier", "head", "AuxLogits")))
