"""A user's own network: `python:package.module:factory`, or a `torch.nn.Module` object that was registered.

Code runs because a user names it on the command line or has made the object; it never runs because a store names it.

A network is told from others by its weights, its qualified name, its structure as PyTorch prints it, and the source
file of its factory or class (in a notebook, the source of its class). Code that this file imports is not looked at.
What pictures it takes stands in attributes of it, or of its `pretrained_cfg`: mean, std, input_size, interpolation,
crop_pct and crop_mode, as timm calls them.
"""

import copy
import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.backbones.card import AVG, IMAGENET_MEAN, IMAGENET_STD, Card
from featstore.backbones.sources.common import HookedTrunk
from featstore.backbones.sources.ours import load_exactly
from featstore.backbones.trunk import Map, to_map
from featstore.backbones.weights import WeightsPolicy
from featstore.errors import BackboneError, ConfigError
from featstore.photos.views import Crop, View

PREFIX = "python:"
STATED = ("mean", "std", "input_size", "interpolation", "crop_pct", "crop_mode")
USUAL: dict[str, Any] = {
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "input_size": 224,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
"""What is taken of pictures where the network does not say."""
SEED = 0
"""Of a factory that makes random weights, so that it makes the same ones each time."""


@dataclass(frozen=True)
class _Code:
    """A network by its name."""

    network: nn.Module
    source: bytes
    """Of the file that makes it."""


_KNOWN: dict[str, _Code] = {}


def register(module: nn.Module) -> str:
    """Make a network of this session known; returns the name that it has as a backbone, `python:QUALNAME`.

    A network of the same class with other weights gets a number behind its name. The network itself is left as it is:
    what runs is a copy.
    """
    if not isinstance(module, nn.Module):
        raise BackboneError(f"a backbone is a name or a torch.nn.Module, not {type(module).__name__}")
    kind = type(module)
    code = _Code(copy.deepcopy(module), _source_of(kind))
    first = name = re.sub(r"[^\w.]+", "_", f"{kind.__module__}.{kind.__qualname__}")
    number = 1
    while name in _KNOWN and _fingerprint(_KNOWN[name]) != _fingerprint(code):
        number += 1
        name = f"{first}-{number}"
    _KNOWN[name] = code
    return PREFIX + name


def find(name: str, policy: WeightsPolicy | None = None) -> Card:
    """The card of `package.module:factory`, whose code is run, or of a network that was registered.

    Raises:
        BackboneError: there is no such code, it fails, or it returns no network.
    """
    if name not in _KNOWN:
        _KNOWN[name] = _run(name)
    return _card(name)


def find_known(name: str, policy: WeightsPolicy | None = None) -> Card:
    """The same for a name that a store says, and not a user: its code has to be known, or named by the user as well.

    Raises:
        BackboneError: it is not.
    """
    if name in _KNOWN or (policy is not None and PREFIX + name in policy.named):
        return find(name, policy)
    way = (
        f"if you trust that code, name it: --weights {PREFIX}{name}=own"
        if ":" in name
        else "it was made in a session of Python, and is recomputed there, once the same network is registered"
    )
    raise BackboneError(f"backbone {PREFIX + name!r} is code that a store names and that is not run for that; {way}")


def view(card: Card) -> View:
    """The picture as the network states it.

    Raises:
        BackboneError: what it states makes no sense.
    """
    facts = {**USUAL, **_stated(_network(card))}
    try:
        size = facts["input_size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))
        crop = Crop(facts["crop_mode"], float(facts["crop_pct"]))
        return View((width, height), interpolation=str(facts["interpolation"]), crop=crop)
    except (ConfigError, TypeError, ValueError, IndexError) as error:
        told = ", ".join(f"{key}={facts[key]!r}" for key in STATED[2:])
        raise BackboneError(f"backbone {card.name!r} states pictures that cannot be made ({told}): {error}") from error


def with_any_size(card: Card) -> Card | None:
    """Nothing is known of a way to tell it."""
    return None


def build(card: Card) -> "PythonTrunk":
    """A copy of the network, with the weights that its code gives it."""
    with torch.device("cpu"):  # also where others are built without data: one's own code need not be ready for that
        return PythonTrunk(copy.deepcopy(_network(card)))


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> "PythonTrunk":
    """A copy of the network with the weights of a state dict.

    Raises:
        WeightsError: they do not fit.
    """
    trunk = build(card)
    load_exactly(trunk.net, state, card, file)
    return trunk


class PythonTrunk(HookedTrunk):
    """Layers are the network's children; those of a list are named one by one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, tuple(_layers(net)))

    def own(self, last: Any) -> Tensor:
        """What it returns; the mean of a map."""
        return super().own(last) if isinstance(last[0], Tensor) and last[0].ndim == 2 else self.last_map(last).pool(AVG)

    def last_map(self, last: Any) -> Map:
        return to_map(last[0])


def _layers(net: nn.Module) -> Iterator[str]:
    for name, child in net.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from (f"{name}.{inner}" for inner, _ in child.named_children())
        else:
            yield name


def _card(name: str) -> Card:
    code = _KNOWN[name]
    stated = _stated(code.network)
    facts = {**USUAL, **stated}
    lacking = [each for each in STATED if each not in stated]
    return Card(
        name=PREFIX + name,
        network=f"{name}-{hashlib.sha256(_text(code)).hexdigest()[:12]}",
        source="python",
        mean=_three(facts["mean"], name),
        std=_three(facts["std"], name),
        note="your own code",
        caution=f"{PREFIX}{name} does not state {', '.join(lacking)}: "
        + ", ".join(f"{each} {_say(USUAL[each])}" for each in lacking)
        if lacking
        else "",
    )


def _network(card: Card) -> nn.Module:
    return _KNOWN[card.name.removeprefix(PREFIX)].network


def _stated(network: nn.Module) -> dict[str, Any]:
    config = getattr(network, "pretrained_cfg", None)
    facts = {key: config[key] for key in STATED if key in config} if isinstance(config, Mapping) else {}
    own = {key: getattr(network, key) for key in STATED if getattr(network, key, None) is not None}
    return {**facts, **own}


def _run(name: str) -> _Code:
    """The network that a factory makes."""
    module_name, colon, factory_name = name.partition(":")
    full = PREFIX + name
    if not colon or not factory_name:
        raise BackboneError(
            f"backbone {full!r} is no network that was registered in this session; code on disk is named "
            "python:package.module:factory"
        )
    here = str(Path.cwd())
    sys.path.append(here)  # behind all others: a file of the folder takes the place of no package
    try:
        invalidate_caches()
        module = import_module(module_name)
    except BaseException as error:
        raise _failed(full, f"module {module_name!r} cannot be imported", error) from error
    finally:
        sys.path.remove(here)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise BackboneError(f"backbone {full!r}: {module.__file__} has no function {factory_name!r}")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(SEED)
            network = factory()
    except BaseException as error:
        raise _failed(full, f"{factory_name}() fails", error) from error
    if not isinstance(network, nn.Module):
        raise BackboneError(f"backbone {full!r}: {factory_name}() returns {type(network).__name__}, no torch.nn.Module")
    return _Code(network, _source_of(module))


def _failed(full: str, what: str, error: BaseException) -> BackboneError:
    if not isinstance(error, Exception | SystemExit):
        raise error
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != __file__]
    frames = [each for each in frames if "importlib" not in each.filename]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
    return BackboneError(f"backbone {full!r}: {what}: {where}{said}")


def _source_of(made_by: Any) -> bytes:
    """The source file that something is defined in; in a notebook, its own source; nothing where there is none."""
    try:
        file = inspect.getsourcefile(made_by)
        if file is not None and Path(file).is_file() and getattr(made_by, "__module__", "") != "__main__":
            return Path(file).read_bytes()
        return inspect.getsource(made_by).encode()
    except (OSError, TypeError):
        return b""


def _text(code: _Code) -> bytes:
    """What tells networks apart whose weights are the same."""
    return code.source + repr(code.network).encode()


def _bytes_of(value: Tensor) -> bytes:
    """Of any type: numpy does not have all of PyTorch's."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _fingerprint(code: _Code) -> str:
    digest = hashlib.sha256(_text(code) + repr(sorted(_stated(code.network).items())).encode())
    for name, value in sorted(code.network.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode() + _bytes_of(value))
    return digest.hexdigest()


def _three(values: Any, name: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(each) for each in values)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"backbone {PREFIX + name!r}: its mean and std should be three numbers: {error}") from error
    return red, green, blue


def _say(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
