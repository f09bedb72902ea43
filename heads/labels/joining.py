"""The join of labels and a store: photos matched by path, or by their SHA-256."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.support import LISTED, but_for_case, counted, few
from heads.errors import LabelsError
from heads.labels.table import composed
from heads.labels.target import Target, parts_of

if TYPE_CHECKING:
    from heads.labels.labels import Labels


MOST_SCALES = 6
"""Tasks whose scales have room in a line."""
_RULE = "paths are relative to the photo folder"
UNKNOWN = "0" * 64
"""The digest of a photo whose bytes nobody has seen, as of features that were imported."""


def keep_copies_together(
    groups: Sequence[str] | None, digests: Sequence[str], paths: Sequence[str]
) -> tuple[list[str] | None, int]:
    """Groups in which photos of the same bytes are together, and how many photos have a copy.

    Copies in different groups could be one in a training part and one in a test part. The groups are None where none
    are given and no photo has a copy.

    Args:
        groups: (N,) of the photos, or None.
        digests, paths: (N,)
    """
    root = list(paths if groups is None else groups)
    by_digest: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest != UNKNOWN:
            by_digest.setdefault(digest, []).append(i)
    copies = [same for same in by_digest.values() if len(same) > 1]
    if not copies:
        return (None if groups is None else list(groups)), 0
    leader: dict[str, str] = {}

    def of(group: str) -> str:
        while group in leader:
            group = leader[group]
        return group

    for same in copies:
        first = of(root[same[0]])
        for other in {of(root[i]) for i in same[1:]} - {first}:
            leader[other] = first
    return [of(group) for group in root], sum(map(len, copies))


@dataclass(frozen=True)
class Join:
    """Which rows of the store belong to which rows of the labels, in ascending order of store row."""

    store_rows: NDArray[np.int64]
    """(N,) of the photos matched, in the store."""
    label_rows: NDArray[np.int64]
    """(N,) of the same photos, in the labels."""
    paths: list[str]
    """Of the photos matched, as the store writes them."""
    only_labels: list[str]
    """Photos, or their digests, that have a label and are not in the store."""
    only_store: list[str]
    """Photos of the store without a label."""
    n_copies: int = 0
    """Photos of which there is another with the same bytes."""


def join(
    labels: "Labels",
    store_paths: Sequence[str],
    store_rows: NDArray[np.int64],
    *,
    digests: Sequence[str] | None = None,
    strict: bool = False,
) -> Join:
    """Match labels to rows of a store.

    Of several photos with the same bytes, labels that name photos by digest belong to the first alone, so that
    no copy is in a training part while another is in a test part. Paths match in whatever Unicode form.

    Args:
        store_paths: of each photo of the store that is to be matched, as `StoredTensor.paths`.
        store_rows: where each of these stands in the store, as `StoredTensor.rows`.
        digests: the SHA-256 of each photo of the store in hexadecimal digits; needed if `labels.by_digest`.
        strict: whether every label and every photo of the store has to have its counterpart.

    Raises:
        LabelsError: nothing matches, or `strict` and something does not.
    """
    if labels.by_digest and digests is None:
        raise LabelsError(f"{labels.named} names photos by digest; the digests of the store's photos are needed")
    stored = list(digests or []) if labels.by_digest else composed(store_paths)
    labelled = labels.paths if labels.by_digest else composed(labels.paths)
    place: dict[str, int] = {}
    for i, key in enumerate(stored):
        place.setdefault(key, i)
    matched = sorted((int(store_rows[place[key]]), i, place[key]) for i, key in enumerate(labelled) if key in place)
    taken = {i for _, _, i in matched}
    only_labels = [path for path, key in zip(labels.paths, labelled, strict=True) if key not in place]
    only_store = [path for i, path in enumerate(store_paths) if i not in taken]
    if not matched:
        what = "digest" if labels.by_digest else "path"
        hint = "were the photos changed?" if labels.by_digest else _RULE
        if not labels.by_digest and (missed := _near_miss(labelled, stored)):
            hint += f": {missed}"
        raise LabelsError(
            f"no {what} in {labels.named} is in the store: the table says {few(labels.paths, quoted=True)}, "
            f"the store has {few(stored if labels.by_digest else store_paths, quoted=True)}; {hint}"
        )
    if strict and (only_labels or only_store):
        missed = None if labels.by_digest else _near_miss(only_labels, only_store)
        raise LabelsError(
            f"--strict: {len(only_labels)} labels without features ({few(only_labels, quoted=True)}), "
            f"{len(only_store)} images without labels ({few(only_store, quoted=True)}){f'; {missed}' if missed else ''}"
        )
    pairs = np.array(matched, dtype=np.int64)
    return Join(pairs[:, 0], pairs[:, 1], [store_paths[i] for i in pairs[:, 2]], only_labels, only_store)


def describe(labels: "Labels", group: str | None, joined: Join) -> list[str]:
    """What the photos that are trained on are labelled with, and which photos and labels have no counterpart; lines."""
    lines = []
    what = f"{counted(len(joined.paths), 'photo')}, " + " and ".join(map(_said, parts_of(labels.target)))
    kept = ""
    if labels.groups:
        n_groups = len({labels.groups[row] for row in joined.label_rows})
        kept = f"; {counted(n_groups, 'group')} by {group!r} kept together"
    missing = said_missing(labels)
    lines.append(f"labels: {what}{_scale(labels)}{kept}{missing and f'; missing: {missing}'}")
    if labels.ratings is not None:
        lines.append(f"  {labels.ratings}")
    lines += [f"  {remark}" for remark in said_of_columns(labels)]
    if labels.n_unlabelled:
        lines.append(f"  {counted(labels.n_unlabelled, 'row')} without any label left out")
    for paths, one, without in ((joined.only_labels, "label", "features"), (joined.only_store, "image", "labels")):
        if paths:
            lines.append(f"  {counted(len(paths), one)} without {without}, left out: {few(paths)}")
    if not labels.by_digest and (missed := _near_miss(joined.only_labels, joined.only_store)):
        lines.append(f"  {missed}")
    if joined.n_copies:
        lines.append(f"  {joined.n_copies} photos have the same bytes as others: copies are kept together")
    if not labels.groups:
        lines.append("  no groups: if some photos are nearly alike, --group keeps them on one side of a split")
    return lines


def _said(target: Target) -> str:
    """What is learned, in words."""
    if target.kind == "multiclass":
        return f"{target.tasks[0]}: {len(target.classes)} classes ({few(target.classes, LISTED)})"
    kind = "" if target.kind == "regression" else f"{target.kind} "
    return f"{counted(len(target.tasks), f'{kind}task')} ({few(target.tasks, LISTED)})"


def said_missing(labels: "Labels") -> str:
    """What was taken for missing, and how often; empty if nothing was."""
    return ", ".join(f"{n} {repr(text) if text else 'empty'}" for text, n in labels.missing.items())


def said_of_columns(labels: "Labels") -> list[str]:
    """Which columns are not learned, and what readers may not expect of the others; a line for each."""
    said = few((f"{name!r} ({why})" for name, why in labels.left_out.items()), LISTED)
    return [*([f"not learned: {said}; --tasks names what to learn"] if labels.left_out else []), *labels.remarks]


def _scale(labels: "Labels") -> str:
    if labels.target.kind != "regression":
        return ""
    said = "" if labels.scale_given else " (the range of the labels; --scale gives another)"
    scales = [f"{low:g}:{high:g}" for low, high in labels.scales]
    if len(set(scales)) == 1:
        return f", scale {scales[0]}{said}"
    if len(scales) > MOST_SCALES:
        return f", {len(set(scales))} scales{said}"
    return f", scales {', '.join(map(' '.join, zip(labels.target.tasks, scales, strict=True)))}{said}"


def _near_miss(labelled: Sequence[str], stored: Sequence[str]) -> str | None:
    """How many paths would match if they were written otherwise, and how, if one and the same mends them all."""
    if not labelled or not stored:
        return None
    if said := but_for_case(labelled, stored):
        return said
    for fold, also in ((str, ""), (str.casefold, ", but for upper and lower case")):
        here, there = list(map(fold, labelled)), list(map(fold, stored))
        for mended, words in _mended(here, there):
            n_matched = len(set(mended) & set(there))
            if n_matched and n_matched >= min(len(here), len(there)):
                return f"{n_matched} of {len(here)} would match {words}{also}"
    return None


def _mended(labelled: Sequence[str], stored: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Other ways to write the paths, and how: something before or behind all of them, or another suffix."""
    by_name = {PurePosixPath(path).name: path for path in labelled}
    named_alike = (
        (by_name[name], there)
        for there in stored
        for name in (PurePosixPath(there).name, PurePosixPath(there).stem)
        if name in by_name
    )
    here, there = next(named_alike, ("", ""))
    if here and here in there:
        before, _, after = there.rpartition(here)
        said = " and ".join(f"{part!r} {where} them" for part, where in ((before, "before"), (after, "behind")) if part)
        yield [f"{before}{path}{after}" for path in labelled], f"with {said}"
    elif there and here.endswith(f"/{there}"):
        before = here.removesuffix(there)
        yield [path.removeprefix(before) for path in labelled], f"without {before!r} before them"
    of_stem = {_without_suffix(path): path for path in stored}
    if named := [path for path in labelled if _without_suffix(path) in of_stem]:
        other = [of_stem[_without_suffix(path)] for path in named]
        ours, theirs = (few(sorted({PurePosixPath(path).suffix for path in paths})) for paths in (named, other))
        yield other, f"with {theirs} in place of {ours}"


def _without_suffix(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)
