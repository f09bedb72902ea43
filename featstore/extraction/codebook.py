"""Learning a codebook: photos in, the words of a group of hand-made features out, as a safetensors file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.backbones import Card, find_card
from featstore.backbones.registry import CARDS
from featstore.backbones.sources import find_source
from featstore.config import Config
from featstore.errors import ConfigError, ImageError, PhotosError, WeightsError, suggest
from featstore.extraction.pipeline import make_frames
from featstore.files import fresh_path
from featstore.photos.decoding import open_photo
from featstore.photos.files import NO_DIGEST, find_photos
from featstore.photos.views import View
from featstore.support import Progress, few, no_progress, reason_of

PHOTOS, A_PHOTO = 500, 2000
"""How many photos a codebook is learnt from at most, and how many descriptors of each (Khosla et al., 2012)."""


@dataclass(frozen=True)
class Codebook:
    """A codebook that was learnt."""

    file: Path
    backbone: str
    sha256: str
    """Of its words, as the identity of features has it."""
    n_words: int
    n_photos: int
    n_descriptors: int
    failed: dict[str, str] = field(default_factory=dict)
    """By path, why a photo could not be read."""


def learn_codebook(
    config: Config,
    group: str,
    *,
    out: Path | None = None,
    view: str = "square",
    most: int = PHOTOS,
    seed: int = 0,
    replace: bool = False,
    on_progress: Progress = no_progress,
) -> Codebook:
    """Learn the words of a group from some of the photos of a folder, drawn by a seed, and write them.

    Args:
        group: as `hog` or `hand/hog-1`.
        out: the file; in the weights folder, where `extract` looks, if not said.
        view: of the photos; that of the features.
        replace: whether a file that is there is replaced.

    Raises:
        BackboneError: no such group, or it has no words; or a library is missing.
        ConfigError: no such view, one that is too small for the group, or no photos are named.
        PhotosError: no photo can be read, or they show too little.
        WeightsError: the file is there, or cannot be written.
    """
    card, frame = _card(group), _frame(config, view)
    if config.photos is None:
        raise ConfigError(f"no photos to learn from; say featstore codebook {group} PHOTOS")
    file = out or config.weights.folder / f"{card.file_stem}.safetensors"
    if file.suffix != ".safetensors":
        raise WeightsError(f"--out {file}: a codebook is a file that ends in .safetensors")
    if file.exists() and not replace:
        raise WeightsError(
            f"{file} exists: features that were made with it could not be made again; name another --out, or say "
            "--replace"
        )
    if min(frame.size) < card.least:
        raise ConfigError(f"--view {view}: {card.name} needs pictures of {card.least}x{card.least} pixels or more")
    paths = [each.path for each in find_photos(config.photos)]
    draw = np.random.default_rng(seed)
    chosen = sorted(draw.permutation(len(paths))[:most].tolist())
    failed: dict[str, str] = {}
    found = list(
        _descriptors(config, config.photos, card, frame, [paths[i] for i in chosen], seed, failed, on_progress)
    )
    if not found:
        reasons = few(f"{path}: {reason}" for path, reason in failed.items())
        raise PhotosError(f"none of {len(chosen)} photos in {config.photos} can be read: {reasons}")
    values = np.concatenate(found)
    words = _learn(card, values, seed, config.photos)
    sha256 = _write(file, card, words, {"photos": len(found), "descriptors": len(values), "seed": seed})
    return Codebook(file, card.name, sha256, len(words), len(found), len(values), failed)


def _card(group: str) -> Card:
    card = find_card(group if group.startswith("hand/") else f"hand/{group}")
    if not card.made_by:
        with_words = [name.removeprefix("hand/") for name, each in CARDS.items() if each.made_by]
        raise ConfigError(f"{card.name} needs no codebook; groups that are told in words are {', '.join(with_words)}")
    find_source(card.source)  # its library is here, or this says what to install
    return card


def _frame(config: Config, view: str) -> View:
    if view not in config.views:
        raise ConfigError(f"unknown --view {view!r}; {suggest(view, config.views)}")
    return config.views[view].frame


def _descriptors(
    config: Config,
    root: Path,
    card: Card,
    frame: View,
    paths: list[str],
    seed: int,
    failed: dict[str, str],
    on_progress: Progress,
) -> Iterator[NDArray[np.float32]]:
    """Some of the descriptors of each photo that can be read, (P, D)."""
    from featstore.backbones.sources import hand

    look = hand.look(card)
    for number, path in enumerate(paths):
        try:
            photo = open_photo(root / path, max_megapixels=config.max_megapixels)
            pictures = make_frames(photo, [frame], NO_DIGEST)[frame]
        except ImageError as error:
            failed[path] = str(error)
            continue
        finally:
            on_progress("describe", number + 1, len(paths))
        values = np.concatenate([look(np.ascontiguousarray(each)).values for each in pictures])
        some = np.random.default_rng([seed, number]).permutation(len(values))[:A_PHOTO]
        yield values[some].astype(np.float32)


def _learn(card: Card, values: NDArray[np.float32], seed: int, photos: Path) -> NDArray[np.float32]:
    from featstore.backbones.hand.words import learn_words

    try:
        return learn_words(values, dict(card.options)["words"], seed=seed)
    except ValueError as error:
        raise PhotosError(f"photos in {photos}: {error}") from error


def _write(file: Path, card: Card, words: NDArray[np.float32], made_of: Mapping[str, int]) -> str:
    """Write a codebook; returns the digest of its words."""
    import torch
    from safetensors.torch import save_file

    from featstore.backbones.networks import state_digest

    state = {"words": torch.from_numpy(words)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with fresh_path(file) as part:
            save_file(state, part, metadata={"codebook": json.dumps({"backbone": card.name, **made_of})})
    except OSError as error:
        raise WeightsError(f"codebook {file} cannot be written: {reason_of(error)}") from error
    return state_digest(state)
