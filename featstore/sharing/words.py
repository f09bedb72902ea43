"""How two identities differ, in the words of people who compute features."""

from collections.abc import Callable, Mapping
from typing import Any

from featstore.identity import differences


def explain(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """One sentence for each fact in which two segments differ; none if they are the same features."""
    told = []
    for field in sorted({*here, *there}):
        mine, yours = here.get(field), there.get(field)
        if mine == yours:
            continue
        if field in ("view", "normalisation") and isinstance(mine, Mapping) and isinstance(yours, Mapping):
            told += [_say(part, mine.get(part), yours.get(part)) for part in _unequal(mine, yours)]
        elif field == "weights":
            told.append(f"weights differ ({differences({field: mine}, {field: yours})[0].removeprefix('weights: ')})")
        else:
            told.append(_say(field, mine, yours))
    return told


def _unequal(mine: Mapping[str, Any], yours: Mapping[str, Any]) -> list[str]:
    return [part for part in sorted({*mine, *yours}) if mine.get(part) != yours.get(part)]


def _say(field: str, mine: Any, yours: Any) -> str:
    if field in _WORDS:
        return _WORDS[field](mine, yours)
    return differences({field: mine}, {field: yours})[0]


def _antialias(mine: Any, yours: Any) -> str:
    if mine and not yours:
        return "resized with antialias here, without there"
    return "resized with antialias there, without here"


def _pair(words: str) -> Callable[[Any, Any], str]:
    return lambda mine, yours: f"{words} {_plain(mine)} here, {_plain(yours)} there"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return "nothing" if value is None else str(value)


_WORDS: dict[str, Callable[[Any, Any], str]] = {
    "antialias": _antialias,
    "size": _pair("photos resized to"),
    "grid": _pair("cut into (rows x columns)"),
    "block": _pair("blocks resized to"),
    "interpolation": _pair("interpolated as"),
    "pooling": _pair("pooled by"),
    "arithmetic": _pair("computed in"),
    "dtype": _pair("stored as"),
    "decoding": _pair("decoded by the rules"),
    "architecture": _pair("another network:"),
    "mean": _pair("normalised with the mean"),
    "std": _pair("normalised with the deviation"),
}
