"""Every command with its parameters, and what it prints with --json."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import typer

from . import making
from .making import app_of, facts, run, schema

TYPES = {"str": "text", "int": "integer", "bool": "boolean", "float": "float", "Path": "path"}


def look_at(program: str) -> dict[str, Any]:
    """By the name of each command, its parameters; those of the program itself are under its name alone."""
    root = typer.main.get_command(app_of(program))
    return making.plain(
        {" ".join((program, *path)): look_at_parameters(command) for path, command in commands_of(root)}
    )


def commands_of(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """A command and all that are below it."""
    below = getattr(command, "commands", {})
    return [(path, command), *(each for name in sorted(below) for each in commands_of(below[name], (*path, name)))]


def look_at_parameters(command: Any) -> dict[str, Any]:
    """What a user can say to a command; of what is as in most of them, nothing is noted."""
    found = {}
    for each in command.params:
        default = each.default
        noted = {
            "kind": each.param_type_name,
            "type": type_of(each),
            "opts": sorted(each.opts),
            "secondary_opts": sorted(each.secondary_opts),
            "metavar": each.metavar,
            "required": each.required,
            "default": default if isinstance(default, bool | int | float | None) else str(default),
            "nargs": each.nargs if each.nargs != 1 else None,
            "multiple": getattr(each, "multiple", False),
            "is_flag": getattr(each, "is_flag", False),
            "hidden": getattr(each, "hidden", False),
            "min": bound_of(each, "min"),
            "max": bound_of(each, "max"),
        }
        found[each.name] = {name: value for name, value in noted.items() if value not in (None, [], False)}
    return found


def type_of(parameter: Any) -> str:
    """The type of a value by click's name, which typer has hidden since it brings a click of its own."""
    if hasattr(parameter, "type_descriptor"):
        annotation = parameter.type_descriptor.annotation
        return TYPES[next(iter(get_args(annotation)), annotation).__name__]
    return str(parameter.type.name).removesuffix(" range")


def bound_of(parameter: Any, end: str) -> float | None:
    """The least or the largest value that is taken."""
    return getattr(parameter, end, None) if hasattr(parameter, end) else getattr(parameter.type, end, None)


# ------------------------------------------------------------------------------------------ what is printed as JSON


def look_at_json(folder: Path) -> dict[str, Any]:
    """By command, the places and types of what it prints with --json, in a folder that fills meanwhile."""
    with making.desk(folder) as golden:
        found = {
            **look_at_store_json(golden),
            **look_at_sharing_json(),
            **look_at_heads_json(),
            **look_at_pipelines_json(golden),
        }
    return making.plain({name: schema(printed) for name, printed in found.items()})


def look_at_store_json(golden: Path) -> dict[str, Any]:
    """The commands that make one store, look at it and keep it whole."""
    found: dict[str, Any] = {}
    shutil.copy("photos/photo 0.png", "photos/photo 00.png")
    Path("photos/broken.png").write_bytes(b"no photo")
    given = ["--from", "elsewhere.npy", "--paths", "paths.txt"]
    found["featstore extract --dry-run"] = facts("featstore", "extract", "--dry-run")
    found["featstore extract"] = facts("featstore", "extract")
    found["featstore info"] = facts("featstore", "info")
    found["featstore retry"] = facts("featstore", "retry")
    found["featstore import"] = facts("featstore", "import", "again", *given)
    found["featstore export"] = facts("featstore", "export", "--to", "features.npz", "--tensors", "grid")
    found["featstore verify --recompute"] = facts("featstore", "verify", "--recompute", 2)
    found["featstore rm"] = facts("featstore", "rm", "zipped")
    shard = next(golden.glob("features.zarr/tensors/whole/c*"))
    shard.write_bytes(shard.read_bytes()[:500] + b"damage" + shard.read_bytes()[506:])
    found["featstore verify"] = facts("featstore", "verify", code=1)
    found["featstore repair"] = facts("featstore", "repair")
    found["featstore backbones"] = facts("featstore", "backbones")
    doctor = making.call("featstore", "doctor", "--json")  # its exit code depends on the machine
    found["featstore doctor"] = json.loads(doctor.stdout)
    for check in found["featstore doctor"]:
        check["ok"] = True  # None on some machines
    run("featstore", "extract", "--quiet")
    return found


def look_at_sharing_json() -> dict[str, Any]:
    """The commands that share the store."""
    found = {"featstore push": facts("featstore", "push", "features.zarr", "team", "-m", "all of it")}
    found["featstore tag"] = facts("featstore", "tag", "team", "v1")
    found["featstore log"] = facts("featstore", "log", "team")
    found["featstore ls"] = facts("featstore", "ls", "team")
    some = ["--tensors", "whole,pixels", "--rows", "photo 1*"]
    found["featstore pull"] = facts("featstore", "pull", "team@v1", "some.zarr", *some)
    recompute = ["--verify", 1, "--photos", "photos", "--tensors", "pixels"]
    found["featstore pull --verify"] = facts("featstore", "pull", "team", "other.zarr", *recompute)
    found["featstore merge"] = facts("featstore", "merge", "some.zarr", "other.zarr", "--into", "both.zarr")
    found["featstore diff"] = facts("featstore", "diff", "both.zarr", "team")
    return found


def look_at_heads_json() -> dict[str, Any]:
    """The commands about heads; `heads list` by itself, for its options differ from head to head."""
    few = ["--repeats", 1, "--set", "epochs=2", "--set", "inner=0.3", "--device", "cpu"]
    trained = ["--tensor", "whole", "--folds", 2]
    labels = ["--labels", "labels.csv"]
    found = {"heads list": facts("heads", "list"), "heads show": facts("heads", "show", "ridge")}
    rated = [f"{i}.png,{name},{(3 * i + j * j) % 5}" for i in range(8) for j, name in enumerate(("Ann", "Bob", "Cid"))]
    Path("raters.csv").write_text("\n".join(["path,rater,calm", *rated, ""]), encoding="utf-8")
    found["heads labels"] = facts("heads", "labels", "raters.csv", "--aggregate", "mean", "--scale", "0:4")
    found["heads train"] = facts("heads", "train", "ridge", *trained, "--out", "runs/more")
    sweep = ["--sweep", "lr=0.1,0.001", "--out", "runs/sweep"]
    found["heads train --sweep"] = facts("heads", "train", "linear", *trained, *few, *sweep)
    found["heads compare"] = facts("heads", "compare", "runs/ridge", "runs/amtl")
    found["heads evaluate"] = facts("heads", "evaluate", "runs/ridge", "features.zarr", *labels, "--seen")
    stopped = [*trained, *few, "--out", "runs/stopped"]
    with patch("torch.Tensor.backward", side_effect=KeyboardInterrupt):
        assert making.call("heads", "train", "linear", *stopped).exit_code == 130
    found["heads resume"] = facts("heads", "resume", "runs/stopped")
    return found


def look_at_pipelines_json(golden: Path) -> dict[str, Any]:
    """The papers' recipes, with miniatures in place of their networks."""
    photos, names = golden / "photos", making.recorded("store.json")["images"]["path"]
    rng = np.random.default_rng(0)
    ratings = {name: rng.integers(2, 7, len(names)) for name in ("General_Interest", "calm")}
    others = {"score": rng.random(len(names)).round(3), "mood": ["bad", "good", "fair", "good"] * 3}
    others |= {trait: rng.uniform(-1, 1, len(names)).round(3) for trait in "OCEAN"}
    for file, columns in (("ratings.csv", ratings), ("others.csv", others)):
        rows = [",".join(map(str, row)) for row in zip(names, *columns.values(), strict=True)]
        (golden / file).write_text("\n".join([",".join(["path", *columns]), *rows, ""]), encoding="utf-8")
    common = ["--photos", photos, "--backbones", "test_resnet", "--weights", "random:0", "--repeats", 2]
    common += ["--device", "cpu", "--set", "epochs=1", "--store", "recipes.zarr"]
    recipes = {
        "visual-interest": ["--labels", "ratings.csv", "--systems", "amtl", "--folds", 2],
        "mediaeval": ["--labels", "others.csv", "--three", "mood"],
        "personality": ["--aesthetics", "others.csv", "--traits", "others.csv", "--folds", 2],
    }
    with chdir(golden):
        Path("featstore.toml").unlink()  # which is about another store
        return {
            f"pipelines {name}": facts("pipelines", name, *common, *more, "--out", f"out/{name}")
            for name, more in recipes.items()
        }
