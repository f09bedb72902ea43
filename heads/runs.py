"""What a run leaves on disk, and reading it back.

```
RUN/
  config.json        everything needed to repeat it: head, options, seed, labels, tensor identity, versions
  folds.csv          path, group, fold, digest: the same for every head with the same labels and seed
  history.csv        one row per repeat, fold and epoch: training and validation loss
  predictions.csv    one row per repeat and image: out-of-fold predictions beside the labels, in label units
  metrics.json       per task: pearson, pearson2, r2, rmse, each with mean and spread over the repeats
  weights/           repeat0-fold0.safetensors, ...
  attention.zarr     path (N,), blocks (N,B,T), backbones (N,K,B): out of fold, averaged over the repeats
  report.html        `heads report RUN`
```

A run appears under its name only when it is complete; until then its folder is called NAME.PID.part.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heads.errors import RunError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunConfig:
    """Everything that says what a run was."""

    system: str
    options: Mapping[str, Any]
    tasks: tuple[str, ...]
    scale: tuple[float, float]
    """The ends of the labels' scale, which training maps to -0.5 .. +0.5."""
    n_images: int
    n_folds: int
    n_repeats: int
    seed: int
    group: str | None
    labels: Mapping[str, Any]
    """`file` and `sha256` of the label table."""
    store: str
    tensor: str
    layout: str
    shape: tuple[int, ...]
    """Of one row: (B, T, F) or (F,)."""
    segments: tuple[Mapping[str, Any], ...]
    """`name`, `hash`, `width` and `identity` of each segment of the tensor."""
    photos: str | None
    """The photo folder, for drawing; None if it is not known."""
    versions: Mapping[str, str]
    command: str
    started: str
    elapsed_s: float
    device: str


@dataclass(frozen=True)
class Attention:
    """What an attentive head looked at, out of fold, averaged over the repeats; sums to 1 over T and over B."""

    paths: list[str]
    blocks: NDArray[np.float32]
    """(N, B, T) weights of the blocks, by backbone."""
    backbones: NDArray[np.float32]
    """(N, K, B) weights of the backbones, by task."""


class Run:
    """A finished run, read from its folder.

    Args:
        photos: where the photos are now, if not where they were.

    Raises:
        RunError: the folder is not there, not a run, or incomplete.
    """

    def __init__(self, folder: Path | str, *, photos: Path | None = None) -> None:
        folder = Path(folder)
        self.folder = folder
        if not (folder / "config.json").is_file():
            what = "is not a run folder (it has no config.json)" if folder.exists() else "does not exist"
            raise RunError(f"{folder} {what}; `heads train` prints where a run is")
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            for name in ("tasks", "scale", "shape", "segments"):
                raw[name] = tuple(raw[name])
            if photos is not None:
                raw["photos"] = str(photos.absolute())
            self.config = RunConfig(**raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / 'config.json'} cannot be read: {error}") from error

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """By task and metric, `mean` and `spread` (None with a single repeat)."""
        try:
            metrics: dict[str, dict[str, dict[str, float | None]]]
            metrics = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / 'metrics.json'} cannot be read: {error}") from error
        return metrics

    @cached_property
    def folds(self) -> "pd.DataFrame":
        """path, group, fold, digest (SHA-256 of the photo whose features were used)"""
        return self._table("folds.csv")

    @cached_property
    def history(self) -> "pd.DataFrame":
        """repeat, fold, epoch, train_loss, val_loss, best (1 for the epoch whose weights were kept)"""
        return self._table("history.csv")

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """repeat, fold, path, and for each task its label `TASK` and its prediction `TASK_predicted`"""
        return self._table("predictions.csv")

    @cached_property
    def attention(self) -> Attention | None:
        """None for heads without attention."""
        import zarr

        if not (self.folder / "attention.zarr").is_dir():
            return None
        group: Any = zarr.open_group(str(self.folder / "attention.zarr"), mode="r")
        paths = [str(path) for path in group["path"][:]]
        return Attention(paths, np.asarray(group["blocks"][:]), np.asarray(group["backbones"][:]))

    def weights_files(self) -> list[Path]:
        return sorted((self.folder / "weights").glob("*.safetensors"))

    def _table(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        try:
            table = pd.read_csv(self.folder / name, dtype=str, keep_default_na=False)
            # Only numbers can be missing: a group may well be called NA.
            numbers = [column for column in table if column not in ("path", "group", "digest")]
            return table.assign(**{str(column): pd.to_numeric(table[column]) for column in numbers})
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / name} cannot be read: {error}") from error


class RunWriter:
    """Writes a run folder; it takes its final name when everything is in it.

    Raises:
        RunError: the folder exists already, or the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            raise RunError(f"{folder} exists already; choose another --out, or remove it")
        self.folder = folder
        self._part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            shutil.rmtree(self._part, ignore_errors=True)
            (self._part / "weights").mkdir(parents=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {self._part}: {error.strerror}") from error

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A run that did not finish leaves nothing."""
        shutil.rmtree(self._part, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write the run {self.folder}: {error.strerror or error}") from error

    def table(self, name: str, frame: "pd.DataFrame") -> None:
        frame.to_csv(self._part / name, index=False, float_format="%.6g")

    def metrics(self, metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
        self._json("metrics.json", metrics)

    def weights(self, repeat: int, fold: int, state: Mapping[str, NDArray[Any]]) -> None:
        from safetensors.numpy import save_file

        tensors = {name: np.ascontiguousarray(value) for name, value in state.items()}
        save_file(tensors, self._part / "weights" / f"repeat{repeat}-fold{fold}.safetensors")

    def attention(self, attention: Attention) -> None:
        import zarr

        group = zarr.create_group(str(self._part / "attention.zarr"), zarr_format=3)
        paths = group.create_array("path", shape=(len(attention.paths),), dtype="string", dimension_names=("image",))
        paths[:] = np.array(attention.paths, dtype=object)
        for name, values, axes in (
            ("blocks", attention.blocks, ("image", "backbone", "block")),
            ("backbones", attention.backbones, ("image", "task", "backbone")),
        ):
            group.create_array(name, data=values, dimension_names=axes)

    def finish(self, config: RunConfig) -> Run:
        """Write the configuration last and give the folder its name."""
        self._json("config.json", asdict(config))
        self._part.replace(self.folder)
        return Run(self.folder)

    def _json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (self._part / name).write_text(text, encoding="utf-8")


def new_run_folder(runs: Path, system: str) -> Path:
    """A folder name that is not taken: SYSTEM-DATE-TIME."""
    stem = f"{system}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
    return next(runs / name for name in names if not (runs / name).exists())
