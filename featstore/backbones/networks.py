"""Frozen networks: built from a card and its weights, with the digest of the weights that were loaded."""

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.backbones.card import Card, Output
from featstore.backbones.sources import find_source
from featstore.backbones.trunk import Trunk
from featstore.backbones.weights import Weights, shards_of
from featstore.errors import WeightsError
from featstore.support import size


class Network(nn.Module):
    """A frozen network: 8-bit RGB blocks in, features out.

    Normalisation happens inside, so that 8-bit pixels are all that has to reach the device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: Card, trunk: Trunk, outputs: Sequence[Output] | None = None) -> None:
        super().__init__()
        self.net = trunk.net
        self.trunk = trunk
        self.outputs = tuple(outputs or (Output(pooling=card.own),))
        """The features that a pass gives."""
        self.register_buffer("mean", 255 * torch.tensor(card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(card.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, blocks: Tensor) -> tuple[Tensor, ...]:
        """(T, height, width, 3) uint8 -> each of the outputs, (T, F) float32; of P tokens (T, P, F)."""
        pixels = blocks.permute(0, 3, 1, 2).float()
        return self.trunk.features((pixels - self.mean) / self.std, self.outputs)


def build_network(card: Card, weights: Weights, outputs: Sequence[Output] | None = None) -> Network:
    """The network of a card with its weights loaded, in evaluation mode, without gradients.

    Args:
        outputs: what a pass is to give; the network's own feature if not said.

    Raises:
        WeightsError: the file is damaged, would have to be unpickled, or does not fit the architecture.
        UnfitBackboneError: its source cannot build the network.
    """
    source = find_source(card.source)
    with torch.random.fork_rng(devices=[]):  # networks draw their first weights, also where others replace them
        if weights.seed is not None:
            torch.default_generator.manual_seed(weights.seed)  # not CUDA's, which nobody would put back
        if weights.file is None:
            trunk = source.build(card)
        else:
            state = read_state(weights.file, card)
            if weights.by_position:
                state = _by_position(state, card, weights.file)
            trunk = source.load(card, state, weights.file)
    if card.batch_norm_eps is not None:
        for module in trunk.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = card.batch_norm_eps
    return Network(card, trunk, outputs).eval().requires_grad_(False)


def weights_digest(network: Network) -> str:
    """SHA-256 over the loaded parameters: names, shapes and float32 values, in order of name.

    It says which weights a feature was made with, whatever file format they travelled in.
    """
    return state_digest(network.net.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """The same over a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if value.is_floating_point():
            array = value.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(f"{name}{list(array.shape)}".encode())
            digest.update(array.astype("<f4", copy=False).data)
    return digest.hexdigest()


MOST_PICKLE = 1 << 26
"""The most bytes, 64 MiB, of the part of a .pth that names the tensors."""
VIEWS = 4
"""How many times the tensors of a file may share its bytes, as tied weights do."""


def read_state(file: Path, card: Card) -> dict[str, Tensor]:
    """The tensors in a weights file; nothing is unpickled, and they take no more memory than the file has bytes.

    Raises:
        WeightsError: it is damaged or compressed, would have to be unpickled, or holds no tensors.
    """
    if shards := shards_of(file):
        return {name: value for shard in shards for name, value in read_state(shard, card).items()}
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        _check_unpacked(file)
        state = _unpickle_tensors(file)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL \S+|operand \d+", str(error))  # the rest is advice to run what the file names
        reason = f" ({found.group()})" if found else ""
        raise WeightsError(
            f"weights file {file} for {card.name!r} cannot be read without running what it names{reason}; "
            "if it is not damaged, save its tensors alone: safetensors.torch.save_file"
        ) from error
    except Exception as error:  # the loaders raise a dozen kinds on damaged files
        raise WeightsError(f"weights file {file} for {card.name!r} cannot be read: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights file {file} for {card.name!r} holds no dictionary of tensors")
    if not all(value.layout is torch.strided and value.device.type == "cpu" for value in state.values()):
        raise WeightsError(f"weights file {file} for {card.name!r} holds tensors that are sparse or have no values")
    n_bytes, most = sum(value.numel() * value.element_size() for value in state.values()), VIEWS * file.stat().st_size
    if n_bytes > most:
        raise WeightsError(
            f"weights file {file} for {card.name!r} says that its tensors have {size(n_bytes)}; of a file of "
            f"{size(file.stat().st_size)} at most {size(most)} are taken"
        )
    return dict(state)


def _unpickle_tensors(file: Path) -> Any:
    """What PyTorch reads without calling anything that the file names but what makes tensors."""
    if zipfile.is_zipfile(file):
        return torch.load(file, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        # Files of Python 2 may hold strings that are no UTF-8. PyTorch does take the argument, and says it does not.
        warnings.filterwarnings("ignore", "pickle_load_args", UserWarning)
        return torch.load(file, map_location="cpu", weights_only=True, encoding="latin1")


def _check_unpacked(file: Path) -> None:
    """Refuse a zip whose members unpack to more than the zip: PyTorch compresses none."""
    if not zipfile.is_zipfile(file):
        return
    reader = torch._C.PyTorchFileReader(str(file))  # the one that torch.load reads with
    sizes = {name: int(reader.get_record_size(name)) for name in reader.get_all_records()}
    if sum(sizes.values()) > file.stat().st_size:
        raise WeightsError(
            f"weights file {file} has {size(file.stat().st_size)} and unpacks to {size(sum(sizes.values()))}; "
            "torch.save compresses nothing: save it again with that"
        )
    if sizes.get("data.pkl", 0) > MOST_PICKLE:
        raise WeightsError(
            f"weights file {file} names its tensors in {size(sizes['data.pkl'])}; at most {size(MOST_PICKLE)} are read"
        )


def _by_position(state: Mapping[str, Tensor], card: Card, file: Path) -> dict[str, Tensor]:
    """Tensors that stand in timm's order, under timm's names."""
    import timm

    with torch.device("meta"):
        names = list(timm.create_model(card.network, pretrained=False).state_dict())
    if len(names) != len(state):
        raise WeightsError(f"{file}: {len(state)} tensors, {card.name!r} has {len(names)}")
    return dict(zip(names, state.values(), strict=True))
