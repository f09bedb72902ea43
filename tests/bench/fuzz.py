"""Fuzzing: mutates what strangers may send, and sees to it that all of it is refused in words or does no harm.

python tests/bench/fuzz.py --mutations 2000 --seed 0 [--only store,zip] [--keep FOLDER]
python tests/bench/fuzz.py --one store:17 --keep FOLDER

A finding is a traceback, a hang, too much memory, a value that differs without a word, text that steers a terminal, or
anything written, run or reached outside of the working folder. `--keep` keeps the honest material and the desk of each
finding; the same folder again makes the same mutations of the same bytes.
"""

import argparse
import gc
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TERM="dumb", MPLBACKEND="agg", CUDA_VISIBLE_DEVICES="")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from fuzzing.doors import DOORS, Door
from fuzzing.material import make_material
from fuzzing.trial import HANG_S, MEMORY_BYTES, SHOW_PLACE, Outcome, carry_out

SEEDS = 1_000_000
"""How many seeds of a door belong to one seed of the command."""
PATIENCE_S = 3 * HANG_S
"""For a process that does not even end itself after `HANG_S`."""
POLL_S = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")
WARM = (
    "featstore.cli", "featstore.store", "featstore.extraction.extract", "featstore.exchange.importing",
    "featstore.exchange.exporting", "featstore.sharing.push_pull", "featstore.sharing.diff", "heads.cli",
    "heads.experiment", "heads.runs.applying", "heads.runs.writing", "heads.report", "heads.report.overlay",
    "heads.inference.comparing", "typer._adapters", "zarr", "pandas", "torch", "timm", "safetensors.torch", "h5py",
    "pyarrow.parquet", "icechunk", "tensorstore", "scipy.stats", "sklearn.metrics", "dask.threaded", "PIL.Image",
    "numcodecs.blosc", "numcodecs.zstd", "matplotlib.pyplot", "rich.table",
)  # fmt: skip
"""What is imported once, before all others are forked."""


@dataclass
class Trial:
    """A mutation that is being tried in another process."""

    door: Door
    seed: int
    folder: Path
    pid: int
    began: float
    peak_bytes: int = 0
    killed: str = ""


def try_all(doors: list[tuple[Door, int]], material: Path, work: Path, jobs: int) -> Iterator[tuple[Outcome, Path]]:
    """Try mutations in so many processes at once; yields what came of each, and its folder."""
    waiting, running = list(reversed(doors)), list[Trial]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_begin(*waiting.pop(), material, work))
            for trial in list(running):
                _limit(trial)
                pid, status, usage = os.wait4(trial.pid, os.WNOHANG)
                if pid:
                    running.remove(trial)
                    yield _judge(trial, status, usage.ru_maxrss * 1024), trial.folder
            time.sleep(POLL_S)
    finally:
        for trial in running:
            os.kill(trial.pid, signal.SIGKILL)
            os.waitpid(trial.pid, 0)


def _begin(door: Door, seed: int, material: Path, work: Path) -> Trial:
    folder = work / f"{door.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        carry_out(door, seed, material, folder)
    return Trial(door, seed, folder, pid, time.monotonic())


def _limit(trial: Trial) -> None:
    """End a process that takes too much memory or time."""
    try:
        resident = int(Path(f"/proc/{trial.pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return
    trial.peak_bytes = max(trial.peak_bytes, resident)
    if resident > MEMORY_BYTES:
        trial.killed = "memory"
        os.kill(trial.pid, SHOW_PLACE)
        time.sleep(0.1)
    elif trial.seed and time.monotonic() - trial.began > PATIENCE_S:
        trial.killed = "hang"
    if trial.killed:
        os.kill(trial.pid, signal.SIGKILL)


def _judge(trial: Trial, status: int, peak_bytes: int) -> Outcome:
    try:
        outcome = Outcome(**json.loads((trial.folder / "outcome.json").read_text()))
    except (OSError, ValueError):
        outcome = Outcome(trial.door.name, trial.seed)
    outcome.peak_bytes = max(peak_bytes, trial.peak_bytes)
    tried, place, timed_out = _read_log(trial.folder)
    if trial.killed == "memory" or outcome.peak_bytes > MEMORY_BYTES:
        outcome.find(f"memory{place}", f"{tried}: {outcome.peak_bytes / 2**30:.1f} GiB")
    elif trial.killed or timed_out:
        outcome.find(f"hang{place}", f"{tried}: did not end within {HANG_S:.0f} s")
    elif status != 0:
        outcome.find(f"died with {os.waitstatus_to_exitcode(status)}{place}", tried)
    return outcome


def _read_log(folder: Path) -> tuple[str, str, bool]:
    """What was tried last, where of our code it was when it had to say so, and whether that was for its time."""
    log = folder / "log.txt"
    text = log.read_text(errors="replace") if log.exists() else ""
    tried, _, rest = text.rpartition("\n--- ")[2].partition("\n")
    frames = re.findall(r'File ".*/(?:featstore|heads)/(\S+)", line \d+ in (\S+)', rest)
    return tried, f" in {frames[0][0]}:{frames[0][1]}" if frames else "", "\nTimeout (" in f"\n{rest}"


# ------------------------------------------------------------------------------------------ what is printed


def print_table(outcomes: list[Outcome]) -> None:
    """A line for each door: what became of its mutations, and the most time and memory that one took."""
    print(f"{'door':16}{'mutations':>10}{'refused':>10}{'harmless':>10}{'findings':>10}{'memory':>10}{'time':>8}")
    for name in [*dict.fromkeys(outcome.door for outcome in outcomes), "all"]:
        of_door = [outcome for outcome in outcomes if name in (outcome.door, "all")]
        found = sum(bool(outcome.findings) for outcome in of_door)
        refused = sum(bool(outcome.refused) and not outcome.findings for outcome in of_door)
        peak, longest = max(o.peak_bytes for o in of_door), max(o.seconds for o in of_door)
        harmless = len(of_door) - found - refused
        print(
            f"{name:16}{len(of_door):>10}{refused:>10}{harmless:>10}{found:>10}{peak / 2**30:>8.1f} G{longest:>6.1f} s"
        )


def print_findings(outcomes: list[Outcome], material: Path) -> None:
    """Findings by kind, each kind with how to see a few of them alone."""
    found = [outcome for outcome in outcomes if outcome.findings]
    kinds = Counter(outcome.groups[0] for outcome in found)
    for kind, number in kinds.most_common():
        print(f"\n{number} x {kind}")
        for outcome in [outcome for outcome in found if outcome.groups[0] == kind][:4]:
            print(f"  --one {outcome.door}:{outcome.seed}   {outcome.mutation}"[:230])
            print(f"      {outcome.findings[0].splitlines()[0]}"[:230])
    if found:
        print(f"\nalone: python tests/bench/fuzz.py --keep {material.parent} --one DOOR:SEED")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=2000, help="how many, over all doors [2000]")
    parser.add_argument("--seed", type=int, default=0, help="decides all mutations [0]")
    parser.add_argument("--only", default="", help=f"doors: {','.join(door.name for door in DOORS)} [all]")
    parser.add_argument("--one", metavar="DOOR:SEED", help="one mutation alone; seed 0 mutates nothing")
    parser.add_argument("--keep", type=Path, help="where material and findings stay [nowhere]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once [one a core]")
    given = parser.parse_args(arguments)
    doors = {door.name: door for door in DOORS}
    only = [given.one.partition(":")[0]] if given.one else given.only.split(",") if given.only else list(doors)
    if unknown := set(only) - set(doors):
        parser.error(f"no door {', '.join(sorted(unknown))}; there are: {', '.join(doors)}")
    folder = (given.keep or Path(tempfile.mkdtemp(prefix="featstore-fuzz-"))).absolute()
    try:
        return _fuzz(given, [doors[name] for name in only], folder)
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _fuzz(given: argparse.Namespace, doors: list[Door], folder: Path) -> int:
    import torch

    torch.set_num_threads(1)
    for name in WARM:
        import_module(name)
    material = folder / "material"
    if not (material / "honest.json").exists():
        shutil.rmtree(material, ignore_errors=True)
        make_material(material)
    first = given.seed * SEEDS + 1
    todo = [(door, 0) for door in doors]  # nothing mutated: everything has to work
    turns = [door for turn in range(max(door.weight for door in doors)) for door in doors if turn < door.weight]
    todo += [(turns[i % len(turns)], first + i) for i in range(given.mutations)]
    if given.one:
        todo = [(doors[0], int(given.one.partition(":")[2]))]
    gc.freeze()  # or each process would copy what it only looks at
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outcomes: list[Outcome] = []
    try:
        for outcome, place in try_all(todo, material, folder / "trials", 1 if given.one else given.jobs):
            outcomes.append(outcome)
            (place / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))
            if outcome.seed == 0 and outcome.refused and not outcome.findings:
                outcome.find("honest material is refused", "\n".join(outcome.refused))
            if given.one:
                print((place / "log.txt").read_text(errors="replace"))
                print(f"{outcome.mutation}\n", *(f"refused: {each}" for each in outcome.refused), sep="\n")
                print(*outcome.findings, sep="\n")
            if not outcome.findings or given.keep is None:
                shutil.rmtree(place, ignore_errors=True)
    except KeyboardInterrupt:
        print(f"stopped after {len(outcomes)} of {len(todo)}")
        if not outcomes:
            return 130
    print_table(outcomes)
    print_findings(outcomes, material)
    return int(any(outcome.findings for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
