"""What the golden tests share: calling commands by their entry points, and saying in plain values what they leave."""

import hashlib
import json
import os
import runpy
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import featstore
import heads

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only cost on networks this small, and change last digits

HERE = Path(__file__).parent
STORE = HERE / "store"
"""Photos, labels, a feature store and two runs that an older version made."""
PROGRAMS = ("featstore", "heads", "pipelines")
TOUCHED_S = 1_700_000_000
"""When the photos were last modified, as every copy of them says."""


@cache
def app_of(program: str) -> typer.Typer:
    """The typer app that a console script, or `python -m pipelines`, runs."""
    found: list[typer.Typer] = []
    with patch.object(typer.Typer, "__call__", lambda self, *_, **__: found.append(self)), patch.dict(os.environ):
        if program == "pipelines":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that another test has imported it already
                runpy.run_module("pipelines", run_name="__main__")
        else:
            (script,) = entry_points(group="console_scripts", name=program)
            script.load()()
    return found[0]


def call(program: str, *arguments: object) -> Result:
    """A command as a user types it."""
    return CliRunner().invoke(app_of(program), [str(each) for each in arguments])


def run(program: str, *arguments: object, code: int = 0) -> str:
    """What a command prints on standard output; it has to end with this exit code."""
    result = call(program, *arguments)
    assert result.exit_code == code, f"{program} {' '.join(map(str, arguments))}: {result.output} {result.exception!r}"
    return result.stdout


def facts(program: str, *arguments: object, code: int = 0) -> Any:
    """What a command prints with --json."""
    return json.loads(run(program, *arguments, "--json", code=code))


def recorded(name: str) -> Any:
    """What was recorded in a JSON file beside this one."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files_of(folder: Path) -> list[str]:
    """The paths of all files below a folder, sorted."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def types_of(value: Any, at: str = "") -> dict[str, set[str]]:
    """By the place in a JSON document, which types of values stand there."""
    found = {at or ".": {type(value).__name__}}
    within = list(value.items()) if isinstance(value, dict) else []
    within += [("[]", each) for each in value] if isinstance(value, list) else []
    for key, each in within:
        for place, types in types_of(each, f"{at}{key}" if key == "[]" else f"{at}.{key}").items():
            found.setdefault(place, set()).update(types)
    return found


def schema(value: Any) -> dict[str, str]:
    """The same in plain text."""
    return {place: "|".join(sorted(types)) for place, types in sorted(types_of(value).items())}


# ------------------------------------------------------------------------------------------ the golden store


@contextmanager
def desk(folder: Path) -> Iterator[Path]:
    """A copy of the golden store in a folder, which is where commands run meanwhile."""
    copy = folder / "golden"
    shutil.copytree(STORE, copy)
    with ZipFile(copy / "features.zip") as packed:
        packed.extractall(copy / "features.zarr")
    touch(copy / "photos")
    with chdir(copy):
        yield copy


def touch(photos: Path) -> None:
    """Give every photo the same time of its last change."""
    for name in files_of(photos):
        os.utime(photos / name, (TOUCHED_S, TOUCHED_S))


def draw_photos(folder: Path, n: int = 12) -> None:
    """Small photos of a gradient, a bright spot and little noise, as PNG; one in a folder of its own."""
    (folder / "sub").mkdir(parents=True)
    y, x = np.mgrid[:48, :64]
    for i in range(n):
        rng = np.random.default_rng(i)
        spot = np.exp(-((x - rng.integers(64)) ** 2 + (y - rng.integers(48)) ** 2) / 200)
        shade = np.stack([rng.integers(60, 160) * spot + a * x + b * y for a, b in rng.uniform(0, 1.2, (3, 2))], axis=2)
        pixels = (shade + rng.integers(0, 2, shade.shape)).clip(0, 255).astype(np.uint8) // 8 * 8
        Image.fromarray(pixels).save(folder / ("sub" if i == n - 1 else "") / f"photo {i}.png", optimize=True)


def make_golden_store() -> None:
    """Make the golden store anew, in place of the one that is there; its photos are kept."""
    if not (STORE / "photos").exists():
        draw_photos(STORE / "photos")
    work = Path(tempfile.gettempdir()) / "featstore-golden"  # runs and stores say where they were made
    for folder in (work, STORE / "runs"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(STORE, work)
    with chdir(work):
        _fill_golden_store()
        for name in ("elsewhere.npy", "paths.txt", "labels.csv", "rows.npz"):
            shutil.copy(name, STORE / name)
        shutil.copytree("runs", STORE / "runs", ignore=shutil.ignore_patterns("report.html"))  # large, can be made anew
        pack(Path("features.zarr"), STORE / "features.zip")
    shutil.rmtree(work)


def _fill_golden_store() -> None:
    touch(Path("photos"))
    names = files_of(Path("photos"))
    rng = np.random.default_rng(0)
    np.save("elsewhere.npy", rng.normal(size=(len(names), 8)).astype(np.float32))
    Path("paths.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    rows = [f"{name},{rng.uniform(1, 7):.2f},{rng.uniform(1, 7):.2f},{i // 3}" for i, name in enumerate(names)]
    Path("labels.csv").write_text("\n".join(["path,appeal,calm,source", *rows, ""]), encoding="utf-8")
    given = ["--from", "elsewhere.npy", "--paths", "paths.txt"]
    run("featstore", "import", "elsewhere", *given)
    run("featstore", "import", "declared", *given, "--identity", "eight numbers", "--dtype", "float32")
    run("featstore", "extract", "--backbones", "all", "--quiet")
    run("featstore", "extract", "--tensor", "zipped=concat:test_resnet:max@small", "--compress", "zstd")
    run("heads", "train", "ridge", "--tensor", "whole", "--folds", 2, "--out", "runs/ridge")
    few = ["--repeats", 1, "--set", "epochs=3", "--set", "attention=2", "--set", "hidden=2", "--device", "cpu"]
    run("heads", "train", "amtl", "--tensor", "grid", "--folds", 2, *few, "--out", "runs/amtl")
    store = featstore.open("features.zarr")
    np.savez_compressed("rows.npz", **{name: store[name].read([0, 7, 11]) for name in sorted(store.tensors)})


def pack(folder: Path, file: Path) -> None:
    """A folder as a zip file: the small arrays of a store are mostly zeros."""
    with ZipFile(file, "w", ZIP_DEFLATED) as packed:
        for name in files_of(folder):
            packed.writestr(ZipInfo(name), (folder / name).read_bytes(), ZIP_DEFLATED, 9)


def look_at_copy(folder: Path) -> dict[str, Any]:
    """What is said of a copy of the golden store in a folder."""
    with desk(folder) as copy:
        return look_at_golden_store(copy)


def look_at_golden_store(folder: Path) -> dict[str, Any]:
    """What the commands say of the golden store and its runs, without what depends on the time."""
    info = facts("featstore", "info", "features.zarr")
    for tensor in info["tensors"].values():
        del tensor["provenance"]
    store = featstore.open("features.zarr")
    everything = range(len(store.images.paths))
    return plain(
        {
            "info": info,
            "images": {
                "path": list(store.images.paths),
                "state": [int(state) for state in store.images.states],
                "digest": [bytes(digest).hex() for digest in store.images.digests],
            },
            "values": {
                name: sha256(np.ascontiguousarray(store[name].read(list(everything))).tobytes())
                for name in sorted(store.tensors)
            },
            "files": files_of(folder / "features.zarr"),
            "runs": {name: look_at_run(name) for name in ("ridge", "amtl")},
            "compare": facts("heads", "compare", "runs/ridge", "runs/amtl"),
        }
    )


def look_at_run(name: str) -> dict[str, Any]:
    """What a run of the golden store predicts of it, and how far off it is."""
    folder = Path("runs") / name
    labels = ["features.zarr", "--labels", "labels.csv", "--scale", "1:7", "--seen"]
    run("heads", "predict", folder, "features.zarr", "--out", "predicted.csv", "--device", "cpu")
    header, *lines = Path("predicted.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.rsplit(",", 3) for line in lines]
    return {
        "header": header,
        "predicted": {path: [float(value) for value in values] for path, *values, _ in rows},
        "trained": {trained for *_, trained in rows} == {"True"},
        "metrics": heads.Run(folder).metrics,
        "evaluated": facts("heads", "evaluate", folder, *labels, "--device", "cpu"),
    }


# ------------------------------------------------------------------------------------------ the bytes of a store


def make_small_store(folder: Path) -> None:
    """A store of pixels and imported features in a folder that has the golden photos; the same on every machine."""
    shutil.copytree(STORE / "photos", folder / "photos")
    touch(folder / "photos")
    names = files_of(folder / "photos")
    (folder / "featstore.toml").write_text('photos = "photos"\n[views.tiny]\nsize = [64, 48]\n', encoding="utf-8")
    (folder / "paths.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for i, name in enumerate("ab"):
        values = np.arange(len(names) * 4 * (6 - i), dtype=np.float32).reshape(len(names), 4, 6 - i)
        np.save(folder / f"{name}.npy", values / 8)
    with chdir(folder):
        store = ["--store", "small.zarr"]
        for name in "ab":
            run("featstore", "import", name, "--from", f"{name}.npy", "--paths", "paths.txt", *store)
        for tensor in ("pixels=pixels:pixels@tiny", "both=stack/8:imported/a,imported/b", "row=concat:imported/b"):
            run("featstore", "extract", "--tensor", tensor, *store)


def look_at_small_store(folder: Path) -> dict[str, Any]:
    """The bytes of the small store as it is made, and after a change."""
    make_small_store(folder)
    made = look_at_bytes(folder / "small.zarr")
    change_small_store(folder)
    return plain({"made": made, "changed": look_at_bytes(folder / "small.zarr")})


def change_small_store(folder: Path) -> None:
    """Take one photo away, change another, take a tensor out, and bring the store up to date."""
    with chdir(folder):
        Path("photos/photo 1.png").unlink()
        shutil.copy("photos/photo 3.png", "photos/photo 2.png")
        touch(Path("photos"))
        run("featstore", "rm", "row", "--store", "small.zarr")
        run("featstore", "extract", "--tensor", "pixels=pixels:pixels@tiny", "--prune", "--store", "small.zarr")


def look_at_bytes(store: Path) -> dict[str, Any]:
    """By file of a store, the SHA-256 of its bytes; what is in the documents that depend on the time."""
    files = {name: (store / name).read_bytes() for name in files_of(store)}
    documents = {name: json.loads(content) for name, content in files.items() if name.endswith(".json")}
    dated = {name: each for name, each in documents.items() if "provenance" in each["attributes"]}
    for each in dated.values():
        each["attributes"].update(provenance=schema(each["attributes"]["provenance"]), seal="...")
    root = documents["zarr.json"]["attributes"]
    root.update(seal="...", sums={name: "..." if name in dated else sums for name, sums in root["sums"].items()})
    return {**{name: sha256(content) for name, content in files.items()}, **dated, "zarr.json": documents["zarr.json"]}


# ------------------------------------------------------------------------------------------ identities


SMALL_VIEWS = "[views.whole]\nsize = [160, 160]\n[views.grid]\nsize = [160, 160]\ngrid = [2, 2]\n"


def look_at_identities(folder: Path) -> dict[str, Any]:
    """Every backbone, and the identities of the tensors that are built in."""
    backbones = [{name: card[name] for name in card if name != "weights"} for card in facts("featstore", "backbones")]
    return plain(
        {"backbones": backbones, **{name: look_at_set(name, folder / name) for name in ("packaged", "papers")}}
    )


def look_at_set(name: str, folder: Path) -> dict[str, Any]:
    """The identities of the papers' sets with random weights, or of what the packaged weights are for.

    The one photo cannot be decoded, so that nothing is computed but what an engine is tried on: noise as large as a
    view, which is why the papers' are small here.
    """
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    said = ["--weights", "random:0"]
    if name == "packaged":
        said = ["--backbones", "packaged"]
        for tensor in ("copies=concat:lite0:max@augmented", "pixels=pixels:pixels@whole", "tiles=pixels:pixels@grid"):
            said += ["--tensor", tensor]
    else:
        (folder / "featstore.toml").write_text(SMALL_VIEWS, encoding="utf-8")
    with chdir(folder):
        common = ["--store", "s.zarr", "--engine", "eager", "--precision", "fp32", "--device", "cpu", "--quiet"]
        run("featstore", "extract", "photos", *said, *common)
        tensors = facts("featstore", "info", "s.zarr")["tensors"]
    return plain({tensor: look_at_tensor(each) for tensor, each in tensors.items()})


def look_at_tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    """What `featstore info` says of a tensor before any row of it is there."""
    facts = {name: tensor[name] for name in ("layout", "axes", "shape", "dtype", "compress", "missing")}
    return {**facts, "segments": [look_at_segment(segment) for segment in tensor["segments"]]}


def look_at_segment(segment: dict[str, Any]) -> dict[str, Any]:
    """Its identity as the text that is hashed; random weights are others with another torch, so no digest of them."""
    identity = segment["identity"]
    assert segment["hash"] == short_hash(identity)
    if "random_seed" in identity.get("weights", ()):
        identity = {**identity, "weights": {**identity["weights"], "sha256": "..."}}
    names = ("name", "blocks", "width")
    return {**{name: segment[name] for name in names}, "identity": canonical(identity), "hash": short_hash(identity)}


def canonical(identity: dict[str, Any]) -> str:
    """As docs/store-format.md says."""
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(identity: dict[str, Any]) -> str:
    return sha256(canonical(identity).encode())[:16]


# ------------------------------------------------------------------------------------------ heads

N_IMAGES = 32
FEW = {
    "epochs": 3, "attention": 3, "hidden": 4, "width": 16, "hidden1": 4, "hidden2": 3, "score_epochs": 2,
    "trait_epochs": 2, "fusion_epochs": 2, "batch": 8,
}  # fmt: skip
"""Values of options, for the heads that have them."""


def make_world(folder: Path) -> None:
    """A store of a stack (2, 4, 6) and a concatenation (10), and labels of two kinds that depend on them."""
    (folder / "photos").mkdir()
    names = [f"trip {i // 4} {i}.bmp" for i in range(N_IMAGES)]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (i, 255 - i, 100)).save(folder / "photos" / name)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(N_IMAGES, 4, width)).astype(np.float32) for name, width in (("a", 6), ("b", 5))}
    values["c"] = np.concatenate([values["a"].mean(1), values["b"].mean(1)[:, :4]], axis=1)
    signal = np.stack([values["a"][:, :, 0].mean(1), values["b"][:, :, 2].mean(1), values["a"][:, 1, 1]], axis=1)
    ratings = (4 + 2 * np.tanh(signal)).round(2)
    rows = [
        f"{name},{i // 4},{','.join(map(str, rating))},{'ABC'[(rating[0] > 3.6) + int(rating[0] > 4.4)]}"
        for i, (name, rating) in enumerate(zip(names, ratings, strict=True))
    ]
    (folder / "labels.csv").write_text("\n".join(["path,trip,beauty,calm,joy,mood", *rows, ""]), encoding="utf-8")
    (folder / "paths.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    with chdir(folder):
        store = ["--store", "world.zarr"]
        for name, array in values.items():
            np.save(f"{name}.npy", array)
            given = ["--from", f"{name}.npy", "--paths", "paths.txt", "--photos", "photos", "--dtype", "float32"]
            run("featstore", "import", name, *given, *store)
        for tensor in ("grid=stack:imported/a,imported/b", "whole=concat:imported/c"):
            run("featstore", "extract", "photos", "--tensor", tensor, "--dtype", "float32", *store)


def train_all(folder: Path) -> dict[str, Path]:
    """The runs of every head in a world in this folder: on ratings, on classes, and some of other options.

    But for networks that train from pixels or from maps, whose last digits differ with the processor; their own tests
    hold them.
    """
    make_world(folder)
    runs = {}
    with chdir(folder):
        for system in (each for each in facts("heads", "list") if not is_network(each)):
            for kind in sorted({"regression", "multiclass"} & set(system["kinds"])):
                runs[f"{system['name']}-{kind}"] = train(system, kind)
        systems = {system["name"]: system for system in facts("heads", "list")}
        runs["mtl-hold-out"] = train(systems["mtl"], "regression", "--hold-out", 0.25, out="mtl-hold-out")
        runs["mlp-raw"] = train(systems["mlp"], "regression", "--no-standardise", "--repeats", 2, out="mlp-raw")
        runs["linear-sgd"] = train(systems["linear"], "regression", "--set", "optimiser=sgd", out="linear-sgd")
    return {name: folder / run for name, run in runs.items()}


def is_network(system: dict[str, Any]) -> bool:
    """Whether it convolves: it reads pixels, or begins with weights of a network."""
    return any("pixel" in read for read in system["reads"]) or "init_trunk" in system["options"]


def train(system: dict[str, Any], kind: str, *more: object, out: str | None = None) -> Path:
    """A run of a head in the world: two folds, one repeat, few epochs, narrow layers."""
    name = system["name"]
    tensors = {"stack": ["grid"], "concat": ["whole"], "any": ["whole"], "stack concat": ["grid", "whole"]}
    said = [part for tensor in tensors[" ".join(system["reads"])] for part in ("--tensor", tensor)]
    said += [part for option in FEW if option in system["options"] for part in ("--set", f"{option}={FEW[option]}")]
    said += ["--tasks", "mood"] if kind == "multiclass" else ["--tasks", "beauty,calm,joy", "--scale", "1:7"]
    said += [] if "--hold-out" in more else ["--folds", 2]
    said += [] if "--repeats" in more else ["--repeats", 1]
    run_folder = Path("runs") / (out or f"{name}-{kind}")
    labels = ["--labels", "labels.csv", "--group", "trip", "--seed", 3]
    run("heads", "train", name, "world.zarr", *labels, *said, *more, "--out", run_folder, "--device", "cpu", "--quiet")
    return run_folder


def predictions_of(run_folder: Path) -> dict[str, Any]:
    """Out of fold: by path, repeat and fold, what a run says; numbers as an array, classes as text."""
    table = heads.Run(run_folder).predictions
    said = [name for name in table.columns if name not in ("path", "repeat", "fold")]
    numbers = [name for name in said if table[name].dtype.kind == "f"]
    keys = [" | ".join(map(str, row)) for row in table[["path", "repeat", "fold"]].itertuples(index=False)]
    texts = {name: list(map(str, table[name])) for name in said if name not in numbers}
    return {"columns": numbers, "rows": keys, "texts": texts, "numbers": table[numbers].to_numpy(np.float64)}


def look_at_heads(runs: dict[str, Path]) -> dict[str, Any]:
    """Of each run: files, options and predictions; of all together, the keys of their documents."""
    read = {name: json.loads((folder / "config.json").read_text(encoding="utf-8")) for name, folder in runs.items()}
    metrics: dict[str, list[Any]] = {}
    for name, folder in runs.items():
        metrics.setdefault(read[name]["target"]["kind"], []).append(heads.Run(folder).metrics)
    found = {}
    for name, folder in runs.items():
        said = predictions_of(folder)
        numbers = said["numbers"].round(7).tolist()
        found[name] = {"files": files_of(folder), "options": read[name].pop("options"), **said, "numbers": numbers}
    return plain(
        {
            "config": schema(list(read.values())),
            "metrics": {kind: schema(every) for kind, every in metrics.items()},
            "runs": found,
        }
    )
