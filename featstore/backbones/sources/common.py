"""What several sources share: a quiet library, weights that fit, layers by hooks, the fraction of a crop."""

import logging
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.trunk import Map, Trunk, to_map
from featstore.errors import UnfitBackboneError, WeightsError
from featstore.support import few, reason_of

N_NEAR = 5
WRAPPER = "module."
LOADING = threading.RLock()
"""Kept while a way of loading is put in place of PyTorch's: that is one for all threads."""


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that a library warns of or logs reaches the user, who did not call it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def offline(hub: bool) -> Iterator[None]:
    """Libraries that fetch from the hub by themselves may not, unless the user allows it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def near(name: str, known: Sequence[str]) -> str:
    """The sentence that follows "unknown NAME": a few known names that are like it."""
    import difflib

    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=N_NEAR, cutoff=0.5)
    return f"near ones are {', '.join(folded[each] for each in close)}" if close else "none is like it"


def fraction_of(cut: int, resized: int) -> float:
    """The fraction by which `Crop` resizes to exactly `resized` pixels for a cut of `cut` pixels."""
    fraction = cut / resized
    return fraction if math.floor(cut / fraction) == resized else math.nextafter(fraction, 0)


def unfit(card: Card, library: str, error: Exception) -> UnfitBackboneError:
    """The error of a network that its library cannot build."""
    return UnfitBackboneError(card.name, f"{library} cannot build it: {reason_of(error)}")


def check_keys(card: Card, file: Path, *, missing: Sequence[str], surplus: Sequence[str]) -> None:
    """Refuse weights of which some are missing or left over.

    Raises:
        WeightsError: some are; says which.
    """
    problems = {
        "missing": [name for name in missing if not name.endswith("num_batches_tracked")],
        "not of this network": list(surplus),
    }
    told = "; ".join(f"{len(names)} {what} ({few(names, 3)})" for what, names in problems.items() if names)
    if told:
        raise WeightsError(misfit(card, file, told))


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network that was saved inside of `torch.nn.DataParallel`, under the network's own names."""
    if all(name.startswith(WRAPPER) for name in state):
        return {name.removeprefix(WRAPPER): value for name, value in state.items()}
    return dict(state)


def misfit(card: Card, file: Path, reason: str) -> str:
    """The sentence on weights that do not fit."""
    return f"weights file {file} does not fit {card.name!r} ({card.network}): {reason}"


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names told apart by a number where one stands more than once, as of parallel branches, or is empty."""
    names = [name or f"{at}" for at, name in enumerate(names)]
    return tuple(
        name if names.count(name) == 1 else f"{name}-{names[: at + 1].count(name)}" for at, name in enumerate(names)
    )


class HookedTrunk(Trunk):
    """A network whose layers are modules of it: what a module returns is the layer, (T, F, h, w) or tokens."""

    def __init__(self, net: nn.Module, layers: Sequence[str] = (), *, final: str = "", n_prefix: int = 0) -> None:
        """
        Args:
            final: the module that returns the last map.
            n_prefix: how many tokens have no place, the class token first.
        """
        super().__init__(net)
        self.layers = tuple(layers)
        self._final, self._n_prefix = final, n_prefix
        for module in net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]  # it would change what the layer before it returned

    def run(self, pixels: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Map]]:
        found: dict[str, Any] = {}
        names = dict.fromkeys([*layers, *([self._final] if self._final else [])])
        handles = [self._watch(name, found) for name in names]
        try:
            own = self.net(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return (own, found.get(self._final)), {name: self.to_map(name, found[name]) for name in layers}

    def own(self, last: Any) -> Tensor:
        return super().own(last[0])

    def last_map(self, last: Any) -> Map:
        return self.to_map(self._final, last[1])

    def to_map(self, layer: str, found: Any) -> Map:
        """The map of what the module of a layer returned."""
        return to_map(found, n_prefix=self._n_prefix)

    def _watch(self, name: str, found: dict[str, Any]) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output

        return self.net.get_submodule(name).register_forward_hook(keep)


@contextmanager
def given_state(owner: type, method: str, state: Mapping[str, Tensor] | None) -> Iterator[dict[str, list[str]]]:
    """A library's own builder takes these weights in place of those that it would download; none: it keeps random ones.

    Args:
        owner: the class whose `method` gives the builder the state dict.

    Yields the names of tensors that were missing and left over, filled in by the loading.
    """
    told: dict[str, list[str]] = {"missing": [], "surplus": []}
    with LOADING:
        download, load_state_dict = getattr(owner, method), nn.Module.load_state_dict

        def loading(module: nn.Module, given: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            if state is None:
                return None
            result = load_state_dict(module, given, strict=False)
            told["missing"], told["surplus"] = list(result.missing_keys), list(result.unexpected_keys)
            return result

        setattr(owner, method, lambda *args, **kwargs: dict(state or {}))
        nn.Module.load_state_dict = loading  # type: ignore[method-assign, assignment]
        try:
            yield told
        finally:
            setattr(owner, method, download)
            nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
