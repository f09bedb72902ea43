"""The doors through which a stranger's files come in: what is mutated, what is then tried, and what must not follow."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

import featstore
import heads

from .commands import FoundError, check_text, command
from .files import BOMB_BYTES, Mutation
from .material import LARGE, N_PHOTOS, STORE, read_images, read_rows
from .values import zip_bomb

NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
RESEMBLES = ("/moved", "link")


@dataclass(frozen=True)
class Case:
    """A mutated desk, which is the working folder, and what it held before."""

    honest: Mapping[str, Any]
    mutation: Mutation


Attempt = Callable[[Case], object]
"""Raises an error of featstore or heads, or `RefusedError`, if refused in words; `FoundError` for what must not be."""


@dataclass(frozen=True)
class Door:
    """What is mutated: files by patterns from the desk; and what is tried: `always`, and one of `others`."""

    name: str
    files: tuple[str, ...]
    always: tuple[Attempt, ...]
    others: tuple[Attempt, ...]
    own: Callable[[Random, Path], Mutation] | None = None
    """A mutation of its own, beside those that any file may have."""
    weight: int = 1
    """How many mutations it gets where others get one."""

    def attempts(self, rng: Random) -> list[Attempt]:
        return [*self.always, *([rng.choice(self.others)] if self.others else [])]


def run(program: str, *arguments: object) -> Attempt:
    """A command that is tried for its messages only."""

    def attempt(case: Case) -> None:
        command(program, *arguments)

    attempt.__name__ = " ".join(map(str, (program, *arguments)))
    return attempt


# ------------------------------------------------------------------------------------------ stores


def values_of(place: str, honest: str = STORE, *, before: tuple[Any, ...] = ()) -> Attempt:
    """Read every row of a store; each is as it was, or refused.

    Args:
        before: a command that makes the store, or mends it; then rows may be absent.
    """

    def attempt(case: Case) -> None:
        if before:
            command(*before)
        known = case.honest[honest]
        images, rows = read_images(place), read_rows(place)
        if case.mutation.forged:
            return
        if not before and (strange := set(images) - set(known["images"])):
            raise FoundError("differs", f"image {min(strange)!r}")
        if images == known["images"]:
            for row, digest in rows.items():
                if not digest.startswith("refused") and known["rows"].get(row) != digest:
                    raise FoundError("differs", f"row {row!r} has other values, or is new")
        if not before:
            if len(images) != len(known["images"]):
                raise FoundError("differs", f"{len(images)} images of {len(known['images'])}")
            refused = {name for name, digest in rows.items() if digest.startswith("refused")}
            if lost := {row for row in known["rows"] if row not in rows and row.split()[0] not in refused}:
                raise FoundError("differs", f"rows {sorted(lost)[:3]} are missing without a word")

    attempt.__name__ = f"{' '.join(map(str, before))} and values of {place}".removeprefix(" and ")
    return attempt


def verify(case: Case) -> None:
    """What was changed and is not forged is found."""
    command("featstore", "verify", STORE)
    mutation = case.mutation
    if mutation.changed and not mutation.forged and not any(word in mutation.said for word in RESEMBLES):
        raise FoundError("differs", "`verify` finds a damaged store sound")


def train_on(place: str, *more: object) -> Attempt:
    how = more if "--split" in more else ("--folds", 2, "--repeats", 1, *more)
    return run("heads", "train", "ridge", place, "--tensor", "whole", "--out", f"r{len(more)}", *how)


_READERS = (
    run("featstore", "info", STORE),
    run("featstore", "info", STORE, "--json"),
    run("featstore", "export", STORE, "--to", "out.npz", "--tensors", "whole", "--overwrite"),
    run("featstore", "export", STORE, "--to", "out.parquet", "--tensors", "zstd"),
    run("featstore", "export", STORE, "--to", "out.zarr", "--tensors", "blosc,grid"),
    run("featstore", "diff", STORE, "features.zip"),
    run("featstore", "extract", "--dry-run", "--explain"),
    run("featstore", "push", STORE, "team", "-m", "again"),
    run("featstore", "push", STORE, "new-team", "-m", "first"),
    values_of("m.zarr", before=("featstore", "merge", STORE, "--into", "m.zarr")),
    values_of("p.zarr", before=("featstore", "extract", "--store", "p.zarr", "--reuse", STORE, "--quiet")),
    run("heads", "predict", "runs/ridge", STORE, "--out", "p.csv"),
    run("heads", "evaluate", "runs/amtl", STORE, "--labels", "labels.csv", "--seen"),
    train_on(STORE),
)
_WRITERS = (
    values_of(STORE, before=("featstore", "repair", STORE)),
    run("featstore", "rm", "blosc", "--store", STORE),
    run("featstore", "extract", "--quiet"),
    run("featstore", "retry"),
    run("featstore", "import", "f", "--from", "elsewhere.npy", "--paths", "paths.txt"),
    run("featstore", "merge", "features.zip", "--into", STORE),
    run("featstore", "pull", "team", STORE),
)


def of_zip(name: str) -> tuple[Attempt, ...]:
    return (
        run("featstore", "info", name),
        run("featstore", "verify", name),
        run("featstore", "export", name, "--to", "out.npz", "--tensors", "whole", "--overwrite"),
        run("featstore", "merge", name, "--into", "m.zarr"),
        run("heads", "predict", "runs/ridge", name, "--out", "p.csv"),
    )


# ------------------------------------------------------------------------------------------ runs


def predict(name: str) -> Attempt:
    """Whoever predicts, predicts each image, in numbers."""

    def attempt(case: Case) -> None:
        command("heads", "predict", f"runs/{name}", STORE, "--out", "p.csv")
        table = pd.read_csv("p.csv")
        if len(table) != N_PHOTOS or table.isna().any(axis=None):
            raise FoundError("misleads", f"predicts {len(table)} of {N_PHOTOS} images, {table.isna().sum().sum()} NaN")

    attempt.__name__ = f"heads predict runs/{name}"
    return attempt


def look_at_run(name: str) -> Attempt:
    """All that Python offers of a run."""

    def attempt(case: Case) -> None:
        found = heads.Run(f"runs/{name}")
        check_text(repr(found))
        found._repr_html_()
        for part in ("figures", "folds", "predictions", "learned", "attention", "raters", "doubt", "caveats"):
            getattr(found, part)

    attempt.__name__ = f"heads.Run(runs/{name})"
    return attempt


def report(name: str) -> Attempt:
    def attempt(case: Case) -> None:
        command("heads", "report", f"runs/{name}")
        page = Path(f"runs/{name}/report.html").read_text(encoding="utf-8")
        if "\x1b" in page or "<script>alert(1)" in page:
            raise FoundError("steers", "report.html has a raw ESC, or markup of a stranger")

    attempt.__name__ = f"heads report runs/{name}"
    return attempt


def of_run(name: str, other: str) -> tuple[Attempt, ...]:
    return (
        predict(name),
        report(name),
        look_at_run(name),
        run("heads", "evaluate", f"runs/{name}", STORE, "--labels", "labels.csv", "--seen"),
        run("heads", "compare", f"runs/{name}", f"runs/{other}"),
        run("heads", "compare", f"runs/{other}", f"runs/{name}", "--json"),
        *([] if name == "ridge" else [run("heads", "attention", f"runs/{name}", "photo 0.png", "--out", "drawn")]),
        run("heads", "log", f"runs/{name}", "--to", "tensorboard"),
        train_on(STORE, "--split", f"runs/{name}"),
    )


# ------------------------------------------------------------------------------------------ labels


def read_cells(file: str) -> Attempt:
    """A number that is read is one that is written there."""

    def attempt(case: Case) -> None:
        labels = heads.read_labels(file, tasks=["appeal", "calm"], kind="regression")
        if file.endswith(".parquet") or "column" in case.mutation.said:
            return
        with Path(file).open(newline="", encoding="utf-8-sig", errors="replace") as opened:
            cells = [
                cell for row in csv.reader(opened, "excel-tab" if file.endswith("tsv") else "excel") for cell in row
            ]
        written = {float(cell) for cell in cells if NUMBER.fullmatch(cell)}
        for number in labels.values[~np.isnan(labels.values)]:
            if not any(abs(number - each) <= 1e-5 * max(abs(each), 1) for each in written):
                raise FoundError("differs", f"a label is {number}, which no cell says")

    attempt.__name__ = f"heads.read_labels({file})"
    return attempt


def of_labels(file: str) -> tuple[Attempt, ...]:
    return (
        run("heads", "labels", file),
        run("heads", "labels", file, "--tasks", "appeal,calm", "--json"),
        run("heads", "evaluate", "runs/ridge", STORE, "--labels", file, "--seen"),
        train_on(STORE, "--labels", file, "--group", "source"),
    )


# ------------------------------------------------------------------------------------------ weights


def extract_with(suffix: str) -> Attempt:
    """Features under the identity of honest weights are those of honest weights."""

    def attempt(case: Case) -> None:
        weights = f"test_resnet=weights/test_resnet.{suffix}"
        tensor = ("--tensor", "whole=concat:test_resnet@small")
        command("featstore", "extract", *tensor, "--weights", weights, "--store", "w.zarr", "--quiet")
        known = case.honest["pth.zarr"]["rows"]
        ours = featstore.open("w.zarr")["whole"].layout.segments[0].hash
        if ours == featstore.open("pth.zarr")["whole"].layout.segments[0].hash and read_rows("w.zarr") != known:
            raise FoundError("differs", "other weights pass under the identity of the honest ones")

    attempt.__name__ = f"featstore extract with weights/test_resnet.{suffix}"
    return attempt


def exchange_weights(rng: Random, desk: Path) -> Mutation:
    """Other weights in the place of the honest ones, and a cache of digests that says they are the same."""
    import hashlib

    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(rng.randrange(10**6))
    state = timm.create_model("test_resnet").state_dict()
    cache = desk / "cache/weights/digests.json"
    known = json.loads(cache.read_text())
    honest = known[rng.choice(sorted(known))]
    for suffix in ("pth", "safetensors"):
        file = desk / f"weights/test_resnet.{suffix}"
        torch.save(state, file) if suffix == "pth" else save_file(state, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        known |= {f"{key.rpartition(':')[0]}:{digest}": honest for key in list(known)}
    cache.write_text(json.dumps(known))
    return Mutation("random weights, and digests.json says that they are the honest ones")


def plant_pickle(rng: Random, desk: Path) -> Mutation:
    """A pickle that runs code when it is read, as weights or as features."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (_RUNS,)

    if rng.random() < 0.3:
        return bomb("weights/test_resnet.pth")(rng, desk)
    file = rng.choice(("weights/test_resnet.pth", "weights/test_resnet.safetensors"))
    (desk / file).write_bytes(pickle.dumps({"conv1.weight": Evil()}, protocol=rng.choice((0, 2, 4))))
    return Mutation(f"{file} is a pickle that runs code")


_RUNS = "from pathlib import Path\nPath('../outside/evil').write_text('unpickled')"


# ------------------------------------------------------------------------------------------ bombs


def bomb(*files: str) -> Callable[[Random, Path], Mutation]:
    """A small file that is large when it is unpacked."""

    def mutate(rng: Random, desk: Path) -> Mutation:
        file = desk / rng.choice(files)
        if file.suffix in (".zip", ".npz", ".pth"):
            after, said = zip_bomb(rng, file.read_bytes(), BOMB_BYTES)
            file.write_bytes(after)
            return Mutation(f"{file.name}: {said}")
        return Mutation(f"{file.name}: {_BOMBS[file.suffix](rng, file)}")

    return mutate


def _bomb_parquet(rng: Random, file: Path) -> str:
    """One long text, said ten thousand times; or as many rows as nobody has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pq.read_table(file).column_names
    n_rows, text, said = rng.choice(
        ((10_000, "x" * 10**6, "a text of 1 MB in 10,000 rows"), (20_000_000, "4", "20,000,000 rows"))
    )
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_rows, np.int32)), pa.array([text]))
    column = rng.choice(names)
    columns = {name: same if name == column else pa.nulls(n_rows, pa.null()) for name in names}
    pq.write_table(pa.table(columns), file, compression="zstd", store_schema=False)
    return f"{column} has {said}"


def _bomb_hdf5(rng: Random, file: Path) -> str:
    """A shape without data: what is not there is zero."""
    import h5py

    shape = rng.choice(((N_PHOTOS, 2**31), (2**40, 4), (N_PHOTOS, 2**16, 2**16), (N_PHOTOS, *(1,) * 30)))
    with h5py.File(file, "a") as opened:
        del opened["features"]
        opened.create_dataset("features", shape, np.float32, chunks=tuple(min(each, 256) for each in shape))
    return f"features has shape {shape}"


_BOMBS: Mapping[str, Callable[[Random, Path], str]] = {".parquet": _bomb_parquet, ".h5": _bomb_hdf5}


# ------------------------------------------------------------------------------------------ features


def import_from(file: str, *more: object, store: str = "i.zarr") -> Attempt:
    keys = () if file.endswith((".csv", ".tsv", ".parquet")) else ("--paths", "paths.txt")
    return run("featstore", "import", "f", "--from", file, *keys, "--store", store, "--photos", "photos", *more)


def _door_of_features(suffix: str) -> Door:
    name = f"elsewhere.{suffix}"
    files = (name,) if suffix != "zarr" else (f"{name}/**/*",)
    more = ("--dataset", "features") if suffix in ("npz", "h5") else ()
    others = (import_from(name, *more), import_from(name, *more, "--dtype", "float32", "--strict", store="j.zarr"))
    keys = ("paths.txt",) if suffix == "npy" else ()
    return Door(suffix, (*files, *keys), (), others, bomb(name) if suffix in ("npz", "h5") else None)


def _door_of_tables(suffix: str) -> Door:
    name = f"elsewhere.{suffix}"
    return Door(f"import-{suffix}", (name,), (), (import_from(name),), bomb(name) if suffix == "parquet" else None)


def _door_of_labels(suffix: str) -> Door:
    name = f"labels.{suffix}"
    return Door(suffix, (name,), (read_cells(name),), of_labels(name), bomb(name) if suffix == "parquet" else None)


DOORS = (
    Door("store", (f"{STORE}/**/*",), (values_of(STORE),), (verify, *_READERS, *_WRITERS), weight=6),
    Door("lock", (f"{STORE}.lock.json",), (), (run("featstore", "info"), run("featstore", "verify"), *_WRITERS)),
    Door(
        "zip",
        ("features.zip", "stored.zip", LARGE),
        (values_of("features.zip"), values_of("stored.zip"), values_of(LARGE, LARGE)),
        (
            *(each for name in ("features.zip", "stored.zip") for each in of_zip(name)),
            run("featstore", "verify", LARGE),
            run("featstore", "merge", LARGE, "--into", "m.zarr"),
        ),
        own=bomb("features.zip", "stored.zip"),
        weight=3,
    ),
    Door(
        "repository",
        ("team/**/*",),
        (values_of("team"),),
        (
            run("featstore", "log", "team"),
            run("featstore", "ls", "team"),
            run("featstore", "verify", "team"),
            run("featstore", "diff", STORE, "team"),
            run("featstore", "push", "features.zip", "team", "-m", "again"),
            run("featstore", "tag", "team", "v1"),
            run("featstore", "repair", "team"),
            values_of("l.zarr", before=("featstore", "pull", "team", "l.zarr")),
            run("heads", "predict", "runs/ridge", "team", "--out", "p.csv"),
        ),
        weight=2,
    ),
    Door("blocks", ("cache/blocks/*",), (values_of("team"),), (run("heads", "predict", "runs/ridge", "team"),)),
    Door("run", ("runs/amtl/**/*",), (), of_run("amtl", "ridge"), weight=4),
    Door("solved", ("runs/ridge/**/*",), (), of_run("ridge", "amtl"), weight=3),
    Door(
        "draft",
        ("runs/draft.part/**/*",),
        (),
        (run("heads", "resume", "runs/draft"),),
        weight=4,
    ),
    Door(
        "config",
        ("featstore.toml",),
        (),
        (
            run("featstore", "extract", "--dry-run"),
            run("featstore", "extract", "--quiet"),
            run("featstore", "info"),
            run("featstore", "verify"),
            run("featstore", "backbones"),
            run("featstore", "doctor"),
            run("heads", "labels"),
            run("heads", "train", "ridge", "--tensor", "whole", "--folds", 2, "--repeats", 1),
            run("featstore", "import", "f", "--from", "elsewhere.npy", "--paths", "paths.txt"),
        ),
        weight=3,
    ),
    *map(_door_of_labels, ("csv", "tsv", "parquet")),
    Door("pth", ("weights/test_resnet.pth",), (), (extract_with("pth"),), plant_pickle),
    Door("safetensors", ("weights/test_resnet.safetensors",), (), (extract_with("safetensors"),), plant_pickle),
    Door(
        "digests",
        ("cache/weights/digests.json",),
        (),
        (extract_with("pth"), extract_with("safetensors")),
        exchange_weights,
    ),
    Door(
        "photos",
        ("photos/*",),
        (),
        (
            run("featstore", "extract", "--store", "n.zarr", "--tensor", "t=concat:test_resnet@small", "--quiet"),
            run("featstore", "extract", "--quiet"),
            run("featstore", "extract", "--strict", "--store", "n.zarr", "--tensor", "t=concat:test_resnet@small"),
            run("featstore", "verify", "--recompute", 3),
            run("heads", "report", "runs/amtl", "--photos", "photos"),
            run("heads", "attention", "runs/amtl", "photo 0.png", "--photos", "photos", "--out", "drawn"),
        ),
    ),
    *map(_door_of_features, ("npy", "npz", "h5", "zarr")),
    *map(_door_of_tables, ("csv", "tsv", "parquet")),
)
