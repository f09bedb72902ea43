"""Suhail et al., the audit of a set: what frozen classifiers of objects and scenes see in the photos of each emotion.

    photos -> the class that a network says first -> how many classes an emotion has, and which

A set in which an emotion is one kind of object teaches that object. Entropy, half, rarefied counts and the test are
ours.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import featstore
from featstore import Store, StoredTensor, TensorSpec, WeightsPolicy
from featstore.support import counted, few
from heads import HeadsError, Labels, join, read_labels
from pipelines.bench import Bench, Table, extract
from pipelines.class_names import known_names, read_names
from pipelines.diversity import count, entropy, most_frequent, n_for_half, over_frequent, rarefied

OBJECTS = ("resnet34.tv_in1k", "lite0")
"""The paper's network, and one whose weights install with featstore."""
SCENES = ("resnet50_places365", "resnet18_places365")
"""Of the paper's network of scenes no more is known than what it was trained on."""
LOGITS = "logits"
MOST = 5
LEVEL = 0.05
WORDS = (
    "classes: distinct ones; in N: to expect in N photos, those of the smallest emotion; entropy: in bits;",
    "half: classes that have half of the photos; p: Fisher's exact test, corrected for all classes (Holm)",
)
"""What the columns are."""
PUBLISHED = ((968, 47_000), (991, 42_980), (993, 72_250), (951, 32_100), (884, 35_350), (989, 73_100))
"""Of six emotions, the distinct ImageNet classes among so many photos."""


@dataclass(frozen=True)
class Over:
    """A class that is more frequent in one emotion than in all photos."""

    name: str
    n_photos: int
    expected: float
    """Photos, if the emotion were drawn from all."""
    p: float
    """Corrected."""


@dataclass(frozen=True)
class Emotion:
    """What a network sees in the photos of one emotion."""

    name: str
    n_photos: int
    n_distinct: int
    rarefied: float
    """Distinct classes to expect among as many photos as the smallest emotion has."""
    entropy: float
    """In bits."""
    n_for_half: int
    """The classes that make half of the photos."""
    most_frequent: dict[str, int]
    over_frequent: list[Over]


@dataclass(frozen=True)
class Classifier:
    """What one network sees."""

    backbone: str
    tensor: str
    n_classes: int
    n_smallest: int
    """Photos that counts are rarefied to."""
    n_tied: int
    """Photos with two classes at the top, of which the lower number was taken."""
    emotions: list[Emotion]


@dataclass(frozen=True)
class Audit:
    """What the recipe leaves."""

    classifiers: list[Classifier]
    differences: list[str]
    """What is not as in the paper, and what was left out, in words."""

    def as_json(self) -> dict[str, Any]:
        published = [{"n_distinct": distinct, "n_photos": photos} for distinct, photos in PUBLISHED]
        return {**asdict(self), "published": published}

    @property
    def tables(self) -> Iterator[Table]:
        for each in self.classifiers:
            header = ("emotion", "photos", "classes", f"in {each.n_smallest}", "entropy", "half", "most frequent")
            rows = [
                (
                    emotion.name,
                    f"{emotion.n_photos:,}",
                    str(emotion.n_distinct),
                    f"{emotion.rarefied:.1f}",
                    f"{emotion.entropy:.2f}",
                    str(emotion.n_for_half),
                    ", ".join(f"{name} {n}" for name, n in emotion.most_frequent.items()),
                )
                for emotion in each.emotions
            ]
            said = f"{each.backbone} (tensor {each.tensor})"
            yield Table(f"{said}: the class said first, of {each.n_classes:,}", header, rows)
            over_frequent = [
                (emotion.name, over.name, str(over.n_photos), f"{over.expected:.1f}", f"{over.p:.1g}")
                for emotion in each.emotions
                for over in emotion.over_frequent[:MOST]
            ]
            if over_frequent:
                title = f"{said}: more frequent than in all photos (at most {MOST} of an emotion)"
                yield Table(title, ("emotion", "class", "photos", "expected", "p"), over_frequent)
        published = [(f"{photos:,}", str(distinct)) for distinct, photos in PUBLISHED]
        yield Table("published, six emotions (ResNet-34, ImageNet)", ("photos", "classes"), published)


def audit(bench: Bench, source: Path | str, labels: Path, *, column: str, names: Sequence[Path] = ()) -> Audit:
    """From photos and an emotion of each to what classifiers see in them.

    Args:
        source: a folder of photos, whose logits are extracted, or a store that has some.
        column: of `labels`: the emotion, a class.
        names: files with a name of a class in a line; which network's they are says their number.

    Raises:
        featstore.FeatstoreError: the photos or the store cannot be read, or weights are not to be had.
        HeadsError: the labels do not make sense, or the store has no logits.
    """
    # 1. The labels, and the names of classes.
    read = read_labels(labels, tasks=[column], kind="multiclass")
    named = [(file, read_names(file)) for file in names]

    # 2. The logits.
    store, wanted, different = _logits(bench, source)
    found = [each for each in _stored_logits(store) if not wanted or each[1] in wanted]
    found.sort(key=lambda each: wanted.index(each[1]) if wanted else 0)
    segments = [segment for _, segment, _ in found]
    lacking = [name for name in wanted if name not in segments]
    if lacking and found and bench.allow_missing:
        different.append(f"left out, as there are no weights: {few(lacking)}")
    elif lacking or not found:
        raise HeadsError(_say_lacking(store, lacking or [_segment_of(bench, OBJECTS[-1])]))
    if not any(each.startswith(OBJECTS[0]) for each in segments):
        different.append(f"networks: {few(segments)}; the paper's network of objects is ResNet-34 ({OBJECTS[0]})")
    widths = sorted({columns.stop - columns.start for _, _, columns in found})
    for file, lines in named:
        if len(lines) not in widths:
            raise HeadsError(f"{file} has {len(lines)} names; the networks have {few(map(str, widths))} classes")

    # 3. The classes of each network, counted by emotion.
    classifiers = []
    for tensor, segment, columns in found:
        rows, groups, told = _joined(store, tensor, read)
        classes, n_tied = _top(tensor, rows, columns)
        width = columns.stop - columns.start
        called = next((lines for _, lines in named if len(lines) == width), None) or known_names(width)
        n_smallest, emotions = _count(groups, classes, read.target.classes, called)
        classifiers.append(Classifier(segment, tensor.name, width, n_smallest, n_tied, emotions))
        different += [each for each in told if each not in different]
        if n_tied:
            different.append(f"{segment}: {counted(n_tied, 'photo')} with two classes at the top; the first was taken")
    different.append("data: the published figures are of other photos, other counts and another network")
    return Audit(classifiers, different)


def _logits(bench: Bench, source: Path | str) -> tuple[Store, list[str], list[str]]:
    """The store with the logits, the segments that are meant (none: all), and what is not as in the paper."""
    folder, networks, different = Path(source), list(bench.backbones), []
    if not folder.exists() and not re.search("://|@", str(source)):
        raise HeadsError(f"{source} does not exist; name a folder of photos, or a store")
    if not folder.is_dir() or (folder / "zarr.json").exists():
        return featstore.open(source), [_segment_of(bench, name) for name in networks], []
    if not networks:
        weights = bench.config.weights
        objects = OBJECTS[0] if weights.hub else _first_here(OBJECTS, weights)
        scenes = _first_here(SCENES, weights)
        networks = [objects or OBJECTS[-1], *([scenes] if scenes else [])]
        if not scenes:
            different.append(f"scenes: none; no weights of {' or '.join(SCENES)} here (docs/backbones.md says how)")
    segments = [_segment_of(bench, name) for name in networks]
    # In float16 classes would be alike that are not.
    exact = replace(bench.config, photos=folder, dtype="float32")
    summary = extract(replace(bench, config=exact), [_tensor_of(segment) for segment in segments])
    if summary.failed:
        different.append(f"{counted(len(summary.failed), 'photo')} could not be read, and are left out")
    return featstore.open(exact.store), segments, different


def _first_here(names: Sequence[str], weights: WeightsPolicy) -> str | None:
    """The first of some backbones whose weights are on this machine."""
    for name in names:
        table = featstore.list_backbones(name, weights=weights)
        row = table[(table["backbone"] == name) | (table["alias"] == name)]
        if (row["weights"] != "not here").any():
            return name
    return None


def _segment_of(bench: Bench, name: str) -> str:
    """What a store calls the logits of a backbone."""
    said = f"{name.removesuffix(f':{LOGITS}')}:{LOGITS}"
    (segment,) = bench.config.segments(said, default_view="model")
    return segment.name


def _tensor_of(segment: str) -> TensorSpec:
    """The tensor that the recipe makes for a network: one for each, so that others can be added later."""
    return TensorSpec(re.sub(r"\W+", "_", segment), "concat", (f"{segment}@model",))


def _stored_logits(store: Store) -> list[tuple[StoredTensor, str, slice]]:
    """Of all logits of whole photos: their tensor, segment and columns."""
    found, seen = [], set()
    for tensor in store.tensors.values():
        if tensor.layout.kind != "concat" or tensor.replaced_by:
            continue
        begin = 0
        for segment in tensor.layout.segments:
            columns = slice(begin, begin + segment.n_blocks * segment.width)
            begin = columns.stop
            of_photos = segment.n_blocks == 1 and segment.n_copies is None
            if segment.identity.get("pooling") == LOGITS and of_photos and segment.hash not in seen:
                seen.add(segment.hash)
                found.append((tensor, segment.name, columns))
    return found


def _say_lacking(store: Store, lacking: Sequence[str]) -> str:
    made = (_tensor_of(segment) for segment in lacking)
    tensors = " ".join(f"--tensor {each.name}={each.kind}:{','.join(each.segments)}" for each in made)
    return (
        f"{store.path} has no logits of whole photos by {few(name.rpartition(':')[0] for name in lacking)}; make them: "
        f"featstore extract PHOTOS {tensors} --dtype float32 --store {shlex.quote(store.path)}"
    )


def _joined(
    store: Store, tensor: StoredTensor, labels: Labels
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """The rows that have a label, the emotion of each, and what has no counterpart."""
    digests = [store.images.digests[row].tobytes().hex() for row in tensor.rows]
    matched = join(labels, tensor.paths, tensor.rows, digests=digests)
    told = [
        f"{counted(len(paths), one)} without {without}, left out: {few(paths)}"
        for paths, one, without in (
            (matched.only_labels, "label", "a photo"),
            (matched.only_store, "photo", "a label"),
        )
        if paths
    ]
    return matched.store_rows, labels.values[matched.label_rows, 0].astype(np.int64), told


def _top(tensor: StoredTensor, rows: NDArray[np.int64], columns: slice) -> tuple[NDArray[np.int64], int]:
    """The class that each row says first, of equal ones the lowest number; and how many rows have equal ones."""
    classes, n_tied = [], 0
    for _, values in tensor.iter_blocks(rows):
        logits = values[:, columns]
        classes.append(logits.argmax(1))
        n_tied += int(((logits == logits.max(1, keepdims=True)).sum(1) > 1).sum())
    return np.concatenate(classes), n_tied


def _count(
    groups: NDArray[np.int64], classes: NDArray[np.int64], emotions: Sequence[str], names: Sequence[str]
) -> tuple[int, list[Emotion]]:
    """The photos of the smallest emotion, and what is seen in each that has photos."""
    present = np.unique(groups)
    counts = count(np.searchsorted(present, groups), classes, len(present), len(names))
    n_smallest = int(counts.sum(1).min())
    p = over_frequent(counts)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    return n_smallest, [
        Emotion(
            name=emotions[group],
            n_photos=int(own.sum()),
            n_distinct=int((own > 0).sum()),
            rarefied=rarefied(own, n_smallest),
            entropy=entropy(own),
            n_for_half=n_for_half(own),
            most_frequent={names[each]: int(own[each]) for each in most_frequent(own, MOST)},
            over_frequent=[
                Over(names[each], int(own[each]), float(expected[at, each]), float(p[at, each]))
                for each in np.argsort(p[at], kind="stable")
                if p[at, each] < LEVEL
            ],
        )
        for at, (group, own) in enumerate(zip(present, counts, strict=True))
    ]
