"""Concepts: how near each photo is to prompts in words, from features that the store has; no photo is read again.

A network that was trained on pictures and text together places both in one space. The concept of a prompt is the cosine
between a photo's own feature and that of the prompt, so the tensor has one column for each prompt.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.backbones import BackboneName, WeightsPolicy, find_card, resolve_weights, segment_name
from featstore.backbones.card import Card, Output
from featstore.errors import BackboneError, ConfigError, ExchangeError, LayoutError
from featstore.exchange.formats.table import FeatureFile
from featstore.exchange.importing import ImportSummary, import_features
from featstore.files import read_file
from featstore.store import Store, StoredSegment, StoredTensor, open_store
from featstore.store.places.place import Place
from featstore.support import Progress, few, no_progress

CHUNK = 4096
"""Rows that are read at a time."""
RULE = "cosine of the own feature and the prompt's"


def concepts(
    store: Place,
    backbone: str,
    prompts: Sequence[str],
    *,
    name: str = "concepts",
    tensor: str | None = None,
    weights: WeightsPolicy | None = None,
    replace: bool = False,
    on_progress: Progress | None = None,
) -> ImportSummary:
    """Store how near each photo is to each prompt, (N, prompts) float32 between -1 and 1, as the tensor `name`.

    The columns are named: `store[name].layout.segments[0].identity["columns"]` are the prompts. Photos that are
    extracted later are added by the same call.

    Args:
        backbone: a network with text beside it, `open_clip:...` or `hf:...`, whose own features the store has.
        tensor: which tensor to take these from, where several have them.
        weights: where the weights of the network are; they have to be those of the stored features.
        replace: whether a tensor of this name that holds other features is replaced.

    Raises:
        ConfigError: no prompts, or one is empty or named twice.
        BackboneError: the network has no text, or its weights are others than those of the stored features.
        ExchangeError: the store has no own features of it.
        LayoutError: the store holds other features under this name, and may not replace them.
        StoreError: the store is not there, locked or damaged.
    """
    report, policy = on_progress or no_progress, weights or WeightsPolicy()
    _check(prompts)
    opened = open_store(store)
    parsed = BackboneName.parse(backbone)
    if parsed.layer or parsed.pooling:
        raise ConfigError(f"{backbone!r}: concepts are of a network's own features; leave layer and pooling out")
    card = find_card(parsed.backbone, policy)
    held, index = _find(opened, card, tensor)
    segment = held.layout.segments[index]
    if not replace:
        _check_same_prompts(opened, name, prompts)
    text, facts = _encode(card, segment, policy, prompts)
    rows = held.rows  # not those of photos that are gone
    values = np.empty((len(rows), len(prompts)), np.float32)
    report("concepts", 0, len(rows))
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK].tolist()
        features = held.read(some).astype(np.float32)
        own = np.stack([held.layout.part(row, index).reshape(-1) for row in features])
        values[first : first + len(some)] = _unit(own) @ text.T
        report("concepts", first + len(some), len(rows))
    with tempfile.TemporaryDirectory() as folder:
        table, paths = Path(folder, "concepts.npy"), Path(folder, "paths.txt")
        np.save(table, values)
        paths.write_text("".join(f"{opened.images.paths[row]}\n" for row in rows), encoding="utf-8")
        return import_features(
            name,
            FeatureFile(table, paths=paths),
            store=store,
            facts={"concepts": facts, "columns": list(prompts)},
            dtype="float32",
            replace=replace,
            on_progress=on_progress,
        )


def read_prompts(prompts: Iterable[str], file: Path | None) -> list[str]:
    """Those that are named, and then those of a text file, one a line; empty lines of it are passed over.

    Raises:
        ConfigError: the file cannot be read.
    """
    named = list(prompts)
    if file is None:
        return named
    try:
        return [*named, *filter(None, map(str.strip, read_file(file).decode("utf-8").splitlines()))]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt-file {file} cannot be read: {error}") from error


def _check(prompts: Sequence[str]) -> None:
    if not prompts:
        raise ConfigError("no prompts; say --prompt TEXT or --prompt-file FILE")
    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is empty")
    twice = sorted({prompt for prompt in prompts if prompts.count(prompt) > 1})
    if twice:
        raise ConfigError(f"prompts are named twice: {few(twice, quoted=True)}")


def _check_same_prompts(store: Store, name: str, prompts: Sequence[str]) -> None:
    if name not in store.tensors:
        return
    columns = store[name].layout.segments[0].columns
    if list(columns) != list(prompts):
        what = f"the prompts {few(columns, quoted=True)}" if columns else "other features"
        raise LayoutError(
            f"tensor {name!r} in {store.path} holds {what}; give these another --name, or --replace the tensor; "
            "nothing was changed"
        )


def _find(store: Store, card: Card, tensor: str | None) -> tuple[StoredTensor, int]:
    """The tensor that has the own features, one vector for each photo, and their place in it."""
    wanted = segment_name(card, Output())
    found = [
        (held, index)
        for held in store.tensors.values()
        for index, segment in enumerate(held.layout.segments)
        if segment.name == wanted and segment.n_blocks == 1 and segment.n_copies is None
        if tensor in (None, held.name) and held.replaced_by is None
    ]
    names = [held.name for held, _ in found]
    if not found:
        raise ExchangeError(
            f"{store.path} has no own features of {wanted!r} with one vector for each photo"
            + (f" in {tensor}" if tensor else "")
            + f"; `featstore extract --backbones {card.name}` makes them"
        )
    if len(found) > 1:
        raise ExchangeError(f"own features of {wanted!r} are in {few(names)}; say which with --tensor NAME")
    return found[0]


def _encode(
    card: Card, segment: StoredSegment, policy: WeightsPolicy, prompts: Sequence[str]
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The prompts' places, (prompts, F) of length one, and what they were made with."""
    from featstore.backbones.networks import build_network, read_state, state_digest, weights_digest
    from featstore.backbones.sources import find_source

    encode = getattr(find_source(card.source), "encode_text", None)
    if encode is None:
        raise BackboneError(f"backbone {card.name!r} has no text beside it; open_clip: and hf: have networks that do")
    found = resolve_weights(card, policy)
    if found.file is None:
        raise BackboneError(f"backbone {card.name!r}: random weights know no words; concepts need trained ones")
    state = read_state(found.file, card)
    stored: Mapping[str, Any] = segment.identity["weights"]
    if weights_digest(build_network(card, found)) != stored["sha256"]:
        raise BackboneError(
            f"weights file {found.file} for {card.name!r} is not that of the stored features; text and pictures have "
            "to be of one network"
        )
    text = _unit(np.asarray(encode(card, state, found.file, list(prompts), hub=policy.hub), np.float32))
    if text.shape[1] != segment.width:
        raise BackboneError(
            f"backbone {card.name!r} gives {text.shape[1]} features of text, {segment.width} of pictures"
        )
    facts = {"rule": RULE, "pictures": dict(segment.identity), "text": {"sha256": state_digest(state)}}
    return text, facts


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = values / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
