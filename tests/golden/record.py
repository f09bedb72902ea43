"""Record the golden files: `python tests/golden/record.py` in the root of the repository.

Golden files are recorded anew ONLY when a change of what users see is meant, and CHANGELOG.md announces it. What is
added (a backbone, a head, an option, a key) changes nothing of what was there, and needs no new recording.

`--only json` records one of them (store, bytes, identities, heads, commands, json). On one machine the predictions of
all heads can be held to the last bit: `--exact FILE.npz` records them, `--check-exact` compares.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
EXACT = Path("/tmp/golden_exact.npz")


def main() -> None:
    """Record, or compare to the last bit."""
    from tests.golden import making, tree

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one of the golden files")
    parser.add_argument(
        "--keep-store", action="store_true", help="look at the golden store that is there, made long ago"
    )
    parser.add_argument("--exact", type=Path, help="record the predictions to the last bit in this file, nothing else")
    parser.add_argument("--check-exact", nargs="?", const=EXACT, type=Path, help=f"compare with that file [{EXACT}]")
    said = parser.parse_args()
    if said.exact:
        np.savez(said.exact, **exact())
    elif said.check_exact:
        sys.exit(check(said.check_exact))
    else:
        if said.only in (None, "store") and not said.keep_store:
            making.make_golden_store()
        looks: dict[str, Callable[[Path], Any]] = {
            "store": making.look_at_copy,
            "bytes": making.look_at_small_store,
            "identities": making.look_at_identities,
            "heads": lambda folder: making.look_at_heads(making.train_all(folder)),
            "commands": lambda folder: {program: tree.look_at(program) for program in making.PROGRAMS},
            "json": tree.look_at_json,
        }
        for name in [said.only] if said.only else looks:
            with tempfile.TemporaryDirectory() as folder:
                write(HERE / f"{name}.json", looks[name](Path(folder)))


def write(file: Path, value: Any) -> None:
    """One line for each entry of the second level, so that a change can be read."""
    entries = {
        f"{json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}" if not isinstance(each, dict) else
        json.dumps(key) + ": {\n" + ",\n".join(
            f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in each.items()
        ) + "}": None
        for key, each in value.items()
    }  # fmt: skip
    file.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
    print(f"recorded {file}")  # noqa: T201


def exact() -> dict[str, np.ndarray]:
    """The predictions of all runs."""
    from tests.golden import making

    with tempfile.TemporaryDirectory() as folder:
        return {name: making.predictions_of(run)["numbers"] for name, run in making.train_all(Path(folder)).items()}


def check(file: Path) -> int:
    """Say which runs differ from those in a file, in any bit."""
    then, now = np.load(file), exact()
    differing = sorted(
        name for name in {*then.files, *now}
        if name not in now or name not in then.files or then[name].tobytes() != now[name].tobytes()
    )  # fmt: skip
    print(f"{len(then.files)} runs, differing: {', '.join(differing) or 'none'}")  # noqa: T201
    return 1 if differing else 0


if __name__ == "__main__":
    main()
