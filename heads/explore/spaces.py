"""Spaces: features in which photos are near or far; neighbours, principal components, and the map of all photos."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

import featstore
from featstore.support import Progress, no_progress, suggest
from heads.errors import FeaturesError

Projection = Literal["pca", "tsne", "umap"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
N_COMPONENTS = 128
"""Those that the personal head of the page learns from. On OASIS and `para_emotion`, ridge from 20 to 300 ratings is as
good on them as on all 3840 or 5888 features, within .01 of Pearson; on 64 of them it loses up to .05."""
FEW = 8
"""Photos below which a map is of two components, however it was asked for."""
LEAST = 1e-6
HALF_MAX = float(np.finfo(np.float16).max)
N_SAMPLE = 4096
"""Photos that standardising and components are learned from; all others are projected."""
MOST_TSNE = 20_000
ALIKE = 0.9
"""Cosine of standardised features from which on two photos are said to be near-duplicates. In OASIS three or four pairs
have it, by any backbone, and each is one photo cut twice; in sets of unrelated photos none has more than .75."""


@dataclass(frozen=True)
class Neighbour:
    """A photo that is near another one, and how near: the cosine of their standardised features."""

    photo: int
    likeness: float


class Space:
    """Standardised features of N photos by one backbone, at unit length and in half precision.

    Args:
        photos: (N,) their numbers in the study.
        features: (N, F) float16, as they lie in the store, but for means over blocks; overwritten.
    """

    def __init__(self, name: str, photos: NDArray[np.int64], features: NDArray[np.float16]) -> None:
        self.name, self.photos = name, photos
        self._place = {photo: i for i, photo in enumerate(photos.tolist())}
        sample = features[sample_of(len(photos))].astype(np.float32)
        mean, spread = sample.mean(axis=0), sample.std(axis=0)
        scale = np.where(spread > LEAST, 1 / np.maximum(spread, LEAST), 0).astype(np.float32)
        for some in _chunks(len(photos)):
            rows = (features[some].astype(np.float32) - mean) * scale
            features[some] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), LEAST)
        self.units = torch.from_numpy(features)
        """(N, F)"""

    def __contains__(self, photo: int) -> bool:
        return photo in self._place

    def neighbours(self, photo: int, most: int) -> list[Neighbour]:
        """The photos nearest to one, the nearest first, itself left out."""
        place = self._place[photo]
        wanted = self.units[place].float()
        likeness = torch.empty(len(self.photos))
        for some in _chunks(len(self.photos)):  # a chunk stays in the cache while it becomes float32
            torch.mv(self.units[some].float(), wanted, out=likeness[some])
        likeness[place] = -torch.inf
        best = torch.topk(likeness, min(most, len(self.photos) - 1))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Neighbour(int(self.photos[i]), round(value, 4)) for i, value in pairs]


class Spaces:
    """The spaces of one tensor: each backbone's, and what can be said of all of them together.

    Args:
        rows: (N,) the store's rows of the study's photos.
    """

    def __init__(self, tensor: featstore.StoredTensor, rows: NDArray[np.int64]) -> None:
        self.tensor = tensor
        photo_of = {row: photo for photo, row in enumerate(rows.tolist())}
        self._rows = np.array([row for row in tensor.rows.tolist() if row in photo_of], np.int64)
        self.photos = np.array([photo_of[row] for row in self._rows.tolist()], np.int64)
        self.names = [name for name, _, _ in _parts(tensor)]
        self._made: dict[str, Space] = {}

    @property
    def document(self) -> dict[str, Any]:
        """What the page has to know of it."""
        return {"tensor": self.tensor.name, "backbones": self.names, "n": len(self.photos)}

    def read(self, on_progress: Progress = no_progress) -> list[Space]:
        """The space of each backbone; read once.

        Raises:
            StoreError: a row cannot be read.
        """
        if not self._made:
            found = _read(self.tensor, self._rows, on_progress)
            self._made = {name: Space(name, self.photos, found.pop(name)) for name in self.names}
        return list(self._made.values())

    @cached_property
    def components(self) -> NDArray[np.float32]:
        """(N, D) principal components of the features of all backbones, the largest first, D at most `N_COMPONENTS`."""
        spaces = self.read()

        def rows(some: Any) -> torch.Tensor:
            return torch.hstack([space.units[some].float() for space in spaces])

        if not len(self.photos):
            return np.empty((0, 0), np.float32)
        sample = rows(torch.from_numpy(sample_of(len(self.photos))))
        centre = sample.mean(dim=0)
        d = min(N_COMPONENTS, *sample.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the random directions that the decomposition begins with
            _, _, axes = torch.svd_lowrank(sample - centre, q=min(d + 8, *sample.shape), niter=4)
        axes = axes[:, :d] * torch.where(axes[:, :d].sum(dim=0) < 0, -1.0, 1.0)  # the same signs every time
        return np.concatenate([((rows(some) - centre) @ axes).numpy() for some in _chunks(len(self.photos))])

    def map(self, how: Projection) -> NDArray[np.float32]:
        """(N, 2) a place for each photo, so that photos alike are near each other.

        Raises:
            FeaturesError: t-SNE of very many photos, or UMAP is not installed.
        """
        components, n = self.components, len(self.photos)
        if how == "pca" or n < FEW:
            return np.pad(components[:, :2], ((0, 0), (0, 2 - min(2, components.shape[1]))))
        if how == "tsne":
            if n > MOST_TSNE:
                raise FeaturesError(f"t-SNE of {n:,} photos takes hours; say --map pca or --map umap")
            from sklearn.manifold import TSNE

            found = TSNE(perplexity=min(30.0, (n - 1) / 3), random_state=0).fit_transform(components)
            return np.asarray(found, np.float32)
        try:
            from umap import UMAP
        except ImportError as error:
            raise FeaturesError("--map umap needs umap-learn: pip install 'featstore[umap]'") from error
        return np.asarray(UMAP(n_neighbors=min(15, n - 1), random_state=0, n_jobs=1).fit_transform(components))


def choose_tensor(store: featstore.Store, name: str | None) -> featstore.StoredTensor | None:
    """The tensor whose features are looked at: the one that is named, or else a concatenation, or else a stack.

    Raises:
        FeaturesError: there is no such tensor, or it holds pixels.
    """
    usable = {key: tensor for key, tensor in store.tensors.items() if tensor.layout.kind in ("concat", "stack")}
    if name is not None:
        if name not in usable:
            what = "holds pixels" if name in store.tensors else "is not a tensor"
            raise FeaturesError(f"--tensor: {name!r} {what} of {store.path}; of features, {suggest(name, usable)}")
        return usable[name]
    order = sorted(usable.values(), key=lambda tensor: (tensor.layout.kind != "concat", -len(tensor.rows)))
    return next((tensor for tensor in order if len(tensor.rows)), None)


def _read(
    tensor: featstore.StoredTensor, wanted: NDArray[np.int64], on_progress: Progress
) -> dict[str, NDArray[np.float16]]:
    """By backbone, (N, F): the mean over the blocks, of augmented copies the first.

    Raises:
        FeaturesError: a feature is not finite.
    """
    parts = _parts(tensor)
    out = {name: np.empty((len(wanted), width), np.float16) for name, width, _ in parts}
    done = 0
    for rows, values in tensor.iter_blocks(wanted):
        for name, _, cut in parts:
            part = cut(values)
            if part.dtype != np.float16:  # of float32 some may be too large for half precision
                part = np.clip(part, -HALF_MAX, HALF_MAX)
            if not np.isfinite(part).all():  # `featstore` writes none, but a store may come from a stranger
                row = rows[~np.isfinite(part).all(axis=1)][0]
                raise FeaturesError(f"{tensor} has a feature of {tensor.images.paths[row]} that is no number")
            out[name][np.searchsorted(wanted, rows)] = part
        done += len(rows)
        on_progress("features", done, len(wanted))
    return out


def _parts(tensor: featstore.StoredTensor) -> list[tuple[str, int, Callable[[NDArray[Any]], NDArray[Any]]]]:
    """The name and width of each backbone, and how its features are cut out of rows of the tensor."""
    axes = tensor.layout.axes
    has_copies = "copy" in axes
    parts: list[tuple[str, int, Callable[[NDArray[Any]], NDArray[Any]]]] = []
    start = 0
    names = [segment.name for segment in tensor.layout.segments]
    for b, segment in enumerate(tensor.layout.segments):
        name = segment.name if names.count(segment.name) == 1 else f"{segment.name} ({b + 1})"
        if tensor.layout.kind == "stack":

            def cut(rows: NDArray[Any], b: int = b, width: int = segment.width) -> NDArray[Any]:
                blocks = rows[:, b, 0] if has_copies else rows[:, b]
                return np.asarray(blocks[..., :width].astype(np.float32).mean(axis=1))

            parts.append((name, segment.width, cut))
        else:
            total = segment.n_blocks * segment.width

            def cut_flat(rows: NDArray[Any], start: int = start, total: int = total) -> NDArray[Any]:
                flat = rows[:, 0] if has_copies else rows
                return np.asarray(flat[:, start : start + total])

            parts.append((name, total, cut_flat))
            start += total
    return parts


def packed(values: NDArray[np.float32]) -> dict[str, Any]:
    """(N, D) numbers as bytes for the page: each column in 255 steps, by row, base64."""
    scale = np.maximum(np.abs(values).max(axis=0, initial=0), 1e-12) / 127
    data = np.round(values / scale).astype(np.int8)
    return {
        "n": len(values),
        "d": values.shape[1],
        "scale": [float(f"{each:.6g}") for each in scale],
        "data": base64.b64encode(data.tobytes()).decode("ascii"),
    }


def sample_of(n: int) -> NDArray[np.int64]:
    """Some of N photos, the same every time, in ascending order."""
    return np.sort(np.random.default_rng(0).permutation(n)[:N_SAMPLE])


def _chunks(n: int, size: int = 2048) -> Sequence[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
