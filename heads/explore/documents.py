"""The documents that the page is made of: what it asks for by name, of a server or of files that were written."""

import threading
from typing import Any

import numpy as np

from featstore.support import harmless
from heads.explore.spaces import ALIKE, Neighbour, Projection, Spaces, packed
from heads.explore.study import Study

N_NEIGHBOURS = 12


class Documents:
    """Plain values that JSON can hold, by name. All but the first are made when they are asked for, and kept.

    Args:
        spaces: None of a store without features.
        how: the map is made.
        scale: the lowest and the highest rating that can be given on the page.
        question: what raters are asked; empty if nothing is said.
    """

    def __init__(
        self,
        study: Study,
        spaces: Spaces | None,
        *,
        how: Projection = "pca",
        scale: tuple[float, float] = (1, 7),
        question: str = "",
    ) -> None:
        self.study, self.spaces = study, spaces
        self._how, self._scale = how, scale
        self._question = harmless(question)
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()  # what one request computes, others wait for

    @property
    def names(self) -> list[str]:
        """Those that `get` knows."""
        features = ["map", "components"] if self.spaces is not None else []
        attentive = [f"attention-{i}" for i, shown in enumerate(self.study.runs) if shown.run.attention is not None]
        return ["study", *features, *attentive]

    def get(self, name: str) -> Any:
        """The document of a name.

        Raises:
            KeyError: there is none.
            StoreError, RunError: what it is made from cannot be read.
            FeaturesError: a feature is no number, or the map cannot be made in the way that was asked for.
        """
        if name not in self.names:
            raise KeyError(name)
        with self._lock:
            if name not in self._kept:
                self._kept[name] = self._make(name)
            return self._kept[name]

    def photo(self, photo: int) -> dict[str, Any]:
        """By each backbone, the photos nearest to one, how alike they are, and which runs had near-duplicates apart."""
        if self.spaces is None:
            return {"neighbours": []}
        with self._lock:
            spaces = self.spaces.read()
        found = [
            {
                "backbone": space.name,
                "photos": [near.photo for near in nearest],
                "likeness": [near.likeness for near in nearest],
                "apart": [self._apart(photo, near) for near in nearest],
            }
            for space in spaces
            if photo in space
            for nearest in [space.neighbours(photo, N_NEIGHBOURS)]
        ]
        return {"neighbours": found}

    def _apart(self, photo: int, near: Neighbour) -> list[str]:
        """The runs that had a near-duplicate in another fold, in any repeat."""
        if near.likeness < ALIKE:
            return []
        return [harmless(shown.name) for shown in self.study.runs if shown.apart(photo, near.photo)]

    def _make(self, name: str) -> Any:
        if name == "study":
            return {
                **self.study.document(),
                "features": None if self.spaces is None else self.spaces.document,
                "pictures": True,
                "largest": "large",
                "absent": [],
                "scale": list(self._scale),
                "question": self._question,
                "alike": ALIKE,
            }
        if name.startswith("attention-"):
            return self._attention(int(name.removeprefix("attention-")))
        assert self.spaces is not None
        self.spaces.read()
        photos = self.spaces.photos.tolist()
        if name == "components":
            return {"photos": photos, **packed(self.spaces.components)}
        places = self.spaces.map(self._how)
        return {"how": self._how, "photos": photos, "places": np.round(places.astype(float), 3).tolist()}

    def _attention(self, number: int) -> dict[str, Any]:
        """Weights of blocks, the mean over the tasks, in thousandths; glimpses where a head looks about."""
        from heads.report.attention import attention_maps, block_grid

        shown = self.study.runs[number]
        assert shown.run.attention is not None
        maps = attention_maps(shown.run.attention)
        place = {path: int(row) for path, row in zip(shown.outcomes.paths, shown.rows, strict=True) if row >= 0}
        document: dict[str, Any] = {"grid": None, "weights": {}, "glimpses": {}}
        if maps.blocks is not None:
            document["grid"] = list(block_grid(shown.run, maps.blocks.shape[-1]))
            weights = np.round(1000 * maps.blocks.mean(axis=1)).astype(int)
            document["weights"] = {
                str(place[path]): row.tolist() for path, row in zip(maps.paths, weights, strict=True) if path in place
            }
        if maps.glimpses is not None:
            glimpses = np.round(maps.glimpses, 3)
            document["glimpses"] = {
                str(place[path]): row.tolist() for path, row in zip(maps.paths, glimpses, strict=True) if path in place
            }
        return document
