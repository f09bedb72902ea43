"""Names of the classes that a classifier tells apart: of ImageNet by timm, of others in a file of the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from featstore.files import read_file
from heads import HeadsError

MOST_NAMES = 1 << 20
"""Bytes of a file with the names of classes."""


def read_names(file: Path) -> list[str]:
    """Names of classes, one a line, in order; or with the number of the class behind, as categories_places365.txt.

    Raises:
        HeadsError: it cannot be read, or numbers are missing or stand twice.
    """
    try:
        lines = [line.strip() for line in read_file(file, MOST_NAMES).decode("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise HeadsError(f"names of classes {file} cannot be read: {error}") from error
    numbered = [re.fullmatch(r"(\S+)\s+(\d+)", line) for line in lines]
    if lines and all(numbered):
        by_number = {int(found[2]): found[1] for found in numbered if found}
        if sorted(by_number) != list(range(len(lines))):
            raise HeadsError(f"names of classes {file}: its {len(lines)} numbers are not 0 to {len(lines) - 1}")
        lines = [by_number[number] for number in range(len(lines))]
    return _unique([re.sub(r"^/\w/", "", line) for line in lines])


def known_names(n_classes: int) -> list[str]:
    """The names of ImageNet's classes, by their number; numbers where it has no such set."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": n_classes})
    if subset is None:
        return [str(number) for number in range(n_classes)]
    info = ImageNetInfo(subset)
    return _unique([info.index_to_description(number).partition(",")[0] for number in range(n_classes)])


def _unique(names: Sequence[str]) -> list[str]:
    """With the number of the class where a name stands twice, as the bird and the machine that are called crane."""
    seen = {name: names.count(name) for name in set(names)}
    return [name if seen[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
