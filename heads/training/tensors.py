"""The tensors of a store that a head reads: those of the photos, and of their augmented copies to learn from."""

from collections.abc import Mapping, Sequence
from typing import Any

import featstore
from featstore.support import LISTED, few, suggest
from heads.errors import FeaturesError
from heads.systems.system import System


def choose_tensors(store: featstore.Store, system: System, names: Sequence[str]) -> list[featstore.StoredTensor]:
    """The named tensors, or for each that the head reads one of the head's own name, or the only one of its layout.

    Raises:
        FeaturesError: there is none, or several; or it has another layout.
    """
    many = system.reads == ("any",)
    if names and not (many or len(names) == len(system.reads)):
        raise FeaturesError(
            f"head {system.name!r} reads {len(system.reads)} tensors ({', '.join(system.reads)}); "
            f"{len(names)} are named: {few(names, LISTED)}"
        )
    if not names:
        return [_only(store, system, layout) for layout in system.reads]
    found = []
    for name, layout in zip(names, system.reads * len(names) if many else system.reads, strict=False):
        tensor = _named(store, name)
        if _kind(tensor) not in _fitting(layout):
            raise FeaturesError(
                f"head {system.name!r} reads {_a(layout)}, tensor {name!r} is {_a(_kind(tensor))}; "
                f"there are: {_held(store)}{_how_to_make(store, layout)}"
            )
        found.append(tensor)
    return found


def choose_copies(
    store: featstore.Store, tensors: Sequence[featstore.StoredTensor], names: Sequence[str]
) -> list[featstore.StoredTensor]:
    """For each tensor the one of its augmented copies, in whatever order they are named; none if none is named.

    Raises:
        FeaturesError: a tensor is named that is not of augmented copies, or has other features than those of the
            photos, or there is not one for each.
    """
    if not names:
        return []
    named = [_named(store, name) for name in names]
    for copies in named:
        if "copy" not in copies.layout.axes:
            raise FeaturesError(
                f"--augmented {copies.name}: it is a {_kind(copies)}, not one of augmented copies; "
                f"there are: {_held(store)}"
            )
        if all(_unlike(tensor, copies) for tensor in tensors):
            raise FeaturesError(
                f"--augmented {copies.name}: it has other features than "
                f"{' and '.join(tensor.name for tensor in tensors)} ({_unlike(tensors[0], copies)}); "
                "extract copies with the same backbones, as --tensor NAME=concat:BACKBONE@augmented"
            )
    found = []
    for tensor in tensors:
        fitting = [copies for copies in named if not _unlike(tensor, copies)]
        if len(fitting) != 1:
            raise FeaturesError(
                f"--augmented names {len(fitting)} tensors of copies for {tensor.name!r} "
                f"({few(names, LISTED)}); name one for each tensor that the head reads"
            )
        found += fitting
    drawn = {str([segment.identity["view"]["augmentation"] for segment in each.layout.segments[:1]]) for each in found}
    if len(drawn) > 1:
        raise FeaturesError(
            f"--augmented {few(names, LISTED)}: their copies are not of the same crops (another number, seed or "
            "amount); extract both from one augmented view"
        )
    return found


def describe(tensor: featstore.StoredTensor) -> dict[str, Any]:
    """What a run records of a tensor that it read."""
    return {
        "name": tensor.name,
        "layout": tensor.layout.kind,
        "shape": tensor.layout.row_shape,
        "segments": [
            {"name": each.name, "hash": each.hash, "width": each.width, "identity": dict(each.identity)}
            for each in tensor.layout.segments
        ],
    }


def _named(store: featstore.Store, name: str) -> featstore.StoredTensor:
    if name not in store.tensors:
        raise FeaturesError(f"{store.path} has no tensor {name!r}; {suggest(name, store.tensors)}")
    return store[name]


def _only(store: featstore.Store, system: System, layout: str) -> featstore.StoredTensor:
    for wanted in _fitting(layout):
        fitting = [each for each in store.tensors.values() if _kind(each) == wanted]
        own = [each for each in fitting if each.name == system.name.partition("-")[0]]
        if len(fitting) == 1 or own:
            return (own or fitting)[0]
        if fitting:
            raise FeaturesError(
                f"head {system.name!r} reads {_a(wanted)}, and {store.path} has several (it has: {_held(store)}); "
                "say which with --tensor"
            )
    wanted = _fitting(layout)[0]
    how = _how_to_make(store, layout) or f"; extract one with --tensor NAME={wanted}:..."
    raise FeaturesError(
        f"head {system.name!r} reads {_a(wanted)}, and {store.path} has no such tensor (it has: {_held(store)}){how}"
    )


_VIEWS = {"pixels": "square", "pixel-grid": "grid"}
"""Of which views the pixels are that heads read as they are."""


def _how_to_make(store: featstore.Store, layout: str) -> str:
    """The command that makes a tensor of pixels; empty of another layout."""
    if layout not in _VIEWS:
        return ""
    photos = next(
        (str(said) for each in store.tensors.values() for p in each.provenance if (said := p.get("photos"))), "PHOTOS"
    )
    view = _VIEWS[layout]
    name = "pixels" if layout == "pixels" else "tiles"
    return f"; `featstore extract {photos} --store {store.path} --tensor {name}=pixels:pixels@{view}` makes one"


def _a(layout: str) -> str:
    """A layout with its article, as a sentence has it."""
    return layout if layout.startswith("pixels") else f"a {_WORDS.get(layout, layout)}"


_WORDS = {"pixel-grid": "grid of pixels"}


def _fitting(layout: str) -> tuple[str, ...]:
    return ("concat", "stack") if layout == "any" else (layout,)


def _kind(tensor: featstore.StoredTensor) -> str:
    """The layout of a tensor; augmented copies have an axis of their own, and are for --augmented alone."""
    kind = "pixel-grid" if tensor.layout.kind == "pixels" and "block" in tensor.layout.axes else tensor.layout.kind
    return f"{kind} of augmented copies" if "copy" in tensor.layout.axes else kind


def _held(store: featstore.Store) -> str:
    return few((f"{each.name} ({_kind(each)})" for each in store.tensors.values()), LISTED)


def _unlike(tensor: featstore.StoredTensor, copies: featstore.StoredTensor) -> str:
    """In which way copies are not of the same features, in words; empty if they are."""
    shape = [n for n, axis in zip(copies.layout.row_shape, copies.layout.axes[1:], strict=True) if axis != "copy"]
    if tensor.layout.kind != copies.layout.kind or list(tensor.layout.row_shape) != shape:
        return f"{tensor.layout.kind} of {tensor.layout.row_shape}, {copies.layout.kind} of {tuple(shape)} a copy"
    if len(tensor.layout.segments) != len(copies.layout.segments):
        return f"{len(tensor.layout.segments)} segments, {len(copies.layout.segments)} in the copies"
    for ours, theirs in zip(tensor.layout.segments, copies.layout.segments, strict=True):
        one, other = _without_augmentation(ours.identity), _without_augmentation(theirs.identity)
        if one != other:
            fields = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
            return f"{ours.name} and {theirs.name} differ in {', '.join(fields)}"
    return ""


def _without_augmentation(identity: Mapping[str, Any]) -> dict[str, Any]:
    view = {name: value for name, value in identity.get("view", {}).items() if name != "augmentation"}
    return {**identity, "view": view}
