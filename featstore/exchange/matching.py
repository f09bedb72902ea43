"""Matching the rows of a feature file to the images of a store."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.errors import ExchangeError
from featstore.exchange.formats.table import Keys
from featstore.support import but_for_case, few


@dataclass(frozen=True)
class Match:
    """Rows of the table with the rows of the store that they are for, and the keys that are left over."""

    by: str
    """What joined them: "path", "file name" or "digest"."""
    table_rows: NDArray[np.int64]
    rows: NDArray[np.int64]
    """Of the store, in ascending order, each once."""
    unmatched: list[str]
    """Keys that no image has."""


@dataclass(frozen=True)
class Images:
    """The images that features may be for: their rows and digests by path, and the folder that the paths are below."""

    rows: Mapping[str, int]
    digests: Mapping[str, bytes]
    root: Path | None = None


def match(keys: Keys, images: Images, where: str) -> Match:
    """Find the image, or by digest the images, of each key.

    Args:
        where: what messages call the table.

    Raises:
        ExchangeError: a key occurs twice, two keys are of one image, or no key is of any image.
    """
    if twice := [key for key, count in Counter(keys.values).items() if count > 1]:
        raise ExchangeError(
            f"{where}: {len(twice)} {keys.kind}s stand more than once: {few(twice)}; expected one row for each photo"
        )
    by, found = _find(keys, images)
    keys_of: dict[int, list[str]] = {}
    for key, rows in found.items():
        for row in rows:
            keys_of.setdefault(row, []).append(key)
    for row, several in keys_of.items():
        if len(several) > 1:
            path = next(path for path, other in images.rows.items() if other == row)
            raise ExchangeError(f"{where}: {few(several)} all mean the photo {path}; expected one row for each photo")
    if not found:
        raise _nothing_matches(keys, images, where)
    numbers = {key: number for number, key in enumerate(keys.values)}
    pairs = sorted((row, numbers[several[0]]) for row, several in keys_of.items())
    return Match(
        by,
        np.array([number for _, number in pairs], np.int64),
        np.array([row for row, _ in pairs], np.int64),
        [key for key in keys.values if key not in found],
    )


def _find(keys: Keys, images: Images) -> tuple[str, dict[str, list[int]]]:
    if keys.kind == "digest":
        rows: dict[str, list[int]] = {}
        for path, digest in images.digests.items():
            if any(digest):  # all zeros: the file could not be opened
                rows.setdefault(digest.hex(), []).append(images.rows[path])
        return "digest", {key: rows[key] for key in keys.values if key in rows}
    root = images.root
    roots = [] if root is None else [os.path.abspath(root), os.path.realpath(root)]  # noqa: PTH100
    by_path = {key: [row] for key in keys.values if (row := _find_path(key, images.rows, roots)) is not None}
    if by_path:
        return "path", by_path
    return "file name", _find_names(keys, images)


def _find_path(key: str, rows: Mapping[str, int], roots: Iterable[str]) -> int | None:
    """The image of a path: as the store writes it, or a path below the photo folder, absolute or from here."""
    candidates = [key, posixpath.normpath(key)]
    if "\0" not in key:
        candidates += [os.path.relpath(os.path.abspath(key), root) for root in roots]  # noqa: PTH100
    return next((rows[path] for path in candidates if path in rows), None)


def _find_names(keys: Keys, images: Images) -> dict[str, list[int]]:
    """Images by the last part of their path, or none if that is not the only one of its name on either side."""
    here, there = Counter(map(_name, images.rows)), Counter(map(_name, keys.values))
    if any(here[name] > 1 or (here[name] and count > 1) for name, count in there.items()):
        return {}
    rows = {_name(path): row for path, row in images.rows.items()}
    return {key: [rows[_name(key)]] for key in keys.values if _name(key) in rows}


def _name(path: str) -> str:
    return re.split(r"[\\/]", path)[-1]


def _nothing_matches(keys: Keys, images: Images, where: str) -> ExchangeError:
    if not images.rows:
        return ExchangeError(f"{where}: the store lists no images to give features to; list a folder with --photos")
    one = next(iter(images.digests.values())).hex() if keys.kind == "digest" else next(iter(images.rows))
    hint = "; its photos may have other bytes" if keys.kind == "digest" else ""
    if keys.kind == "path" and {_name(key) for key in keys.values} & {_name(path) for path in images.rows}:
        hint = "; file names alone are not enough, for some of them occur more than once"
    if keys.kind == "path" and (case := but_for_case(keys.values, images.rows)):
        hint = f"; {case}"
    return ExchangeError(
        f"{where}: none of its {len(keys.values)} {keys.kind}s is an image of the store, nothing was changed; "
        f"the first one is {keys.values[0]!r}, the store has {one!r}{hint}"
    )
