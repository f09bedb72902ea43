"""What a system is, and the register of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from featstore import suggest
from heads.errors import UnknownSystemError

if TYPE_CHECKING:
    from torch import nn

    from heads.training import Epoch, Task

Build = Callable[[tuple[int, ...], int, Mapping[str, Any]], "nn.Module"]
"""(shape of a row, number of tasks K, options) -> the model: (N, *shape) features in, (N, K) scaled labels out."""
Fit = Callable[["nn.Module", "Task", Mapping[str, Any]], "list[Epoch]"]
"""(model, what to learn from, options) -> history; the model is changed in place."""


@dataclass(frozen=True)
class Option:
    """A default that can be changed, where it comes from, and the lowest and highest value that makes sense."""

    value: Any
    source: str
    low: float = -inf
    high: float = inf


@dataclass(frozen=True)
class System:
    """A head by name: what it is, what it reads, how it is built and fitted."""

    name: str
    title: str
    source: str
    layout: Literal["stack", "concat"]
    repeats: int
    """How often each model is trained unless the user says otherwise."""
    options: Mapping[str, Option]
    build: Build
    fit: Fit

    def settle(self, changes: Sequence[str]) -> dict[str, Any]:
        """The options, with changes written `name=value`.

        Raises:
            UnknownSystemError: no such option (with a suggestion), or a value of another type or out of bounds.
        """
        options = {name: option.value for name, option in self.options.items()}
        for change in changes:
            name, equals, text = change.partition("=")
            if not equals:
                raise UnknownSystemError(f"--set {change!r} is not of the form NAME=VALUE")
            if name not in options:
                raise UnknownSystemError(f"{self.name!r} has no option {name!r}; {suggest(name, options)}")
            options[name] = _convert(name, text, self.options[name])
        return options


_SYSTEMS: dict[str, System] = {}


def register(system: System) -> System:
    _SYSTEMS[system.name] = system
    return system


def systems() -> dict[str, System]:
    return dict(_SYSTEMS)


def find_system(name: str) -> System:
    """
    Raises:
        UnknownSystemError: no such system; suggests the nearest.
    """
    from heads.systems import load_systems

    known = load_systems()
    if name not in known:
        raise UnknownSystemError(f"unknown head {name!r}; {suggest(name, known)} (`heads list` shows them)")
    return known[name]


def _convert(name: str, text: str, option: Option) -> Any:
    kind = type(option.value)
    try:
        value = {"true": True, "false": False, "1": True, "0": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UnknownSystemError(
            f"option {name!r} is a {kind.__name__} (default {option.value!r}); found {text!r}"
        ) from None
    if kind in (int, float) and not option.low <= value <= option.high:
        raise UnknownSystemError(f"option {name!r} goes from {option.low:g} to {option.high:g}; found {text!r}")
    return value
