"""What a GPU does for features and heads: facts, speeds, tests and prototypes, one line of JSON for each step.

    python tests/bench/gpu.py --out OUT                      # a GPU: OUT/gpu.jsonl, the most valuable steps first
    python tests/bench/gpu.py --out OUT --only load,forward  # some steps, with what they need before
    python tests/bench/gpu.py --out OUT --rehearse           # every step on the CPU, with miniatures

A step that fails says so in its line, and the next one begins; one that would not end in time is left out.
"""

import argparse
import faulthandler
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu.bench import Bench, Figures, run_command
from gpu.choices import batches, engines, formats
from gpu.extraction import again, baseline, end_to_end, forward, load
from gpu.machine import facts, gpu_tests, inputs, peaks
from gpu.prototypes import compiled, folded
from gpu.training import heads_as_they_are, stack

HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Step:
    name: str
    budget_s: float
    run: Callable[[Bench], Figures]
    needs: tuple[str, ...] = ()
    apart: bool = False
    """In a process of its own: it may leave the device unusable, or never end."""


STEPS = (
    Step("facts", 5, facts),
    Step("inputs", 25, inputs),
    Step("peaks", 8, peaks),
    Step("load", 90, load, ("inputs",)),
    Step("end to end", 25, end_to_end, ("load",)),
    Step("forward", 12, forward, ("load",)),
    Step("heads", 30, heads_as_they_are),
    Step("gpu tests", 90, gpu_tests),
    Step("stack", 25, stack),
    Step("baseline", 25, baseline, ("inputs",)),
    Step("engines", 60, engines, ("inputs",)),
    Step("batches", 40, batches, ("inputs",)),
    Step("formats", 40, formats, ("inputs",)),
    Step("again", 40, again, ("load",)),
    Step("folded", 25, folded, ("inputs",), apart=True),
    Step("compiled", 60, compiled, ("inputs",), apart=True),
    Step("load bf16", 60, lambda bench: load(bench, "bf16"), ("inputs",)),
    Step("end to end bf16", 20, lambda bench: end_to_end(bench, "bf16"), ("load bf16",)),
    Step("load tf32", 60, lambda bench: load(bench, "tf32"), ("inputs",)),
    Step("end to end tf32", 25, lambda bench: end_to_end(bench, "tf32"), ("load tf32",)),
)
"""The most valuable ones first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; gpu.jsonl is written there")
    parser.add_argument("--seconds", type=float, default=340, help="what all steps may take together [340]")
    parser.add_argument("--only", default="", help="steps, with commas between; what they need comes before them")
    parser.add_argument("--without", default="", help="steps to leave out, with commas between")
    parser.add_argument("--rehearse", action="store_true", help="every step on the CPU, with miniatures")
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    began = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA GPU here; --rehearse runs every step on the CPU")
    wanted = _wanted(args.only, args.without)
    device = torch.device("cpu" if args.rehearse else "cuda:0")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(args.inputs or Path(name), args.out, device, args.rehearse, began + args.seconds)
        done: set[str] = {"inputs"} if args.inputs else set()
        for step in wanted:
            if step.name not in done and _do(step, bench, done):
                done.add(step.name)


def _wanted(only: str, without: str) -> list[Step]:
    """The steps to run, in order."""
    known = {step.name: step for step in STEPS}
    asked = [name.strip() for name in f"{only},{without}".split(",") if name.strip()]
    if unknown := [name for name in asked if name not in known]:
        sys.exit(f"no step {', '.join(unknown)}; there are: {', '.join(known)}")
    left_out = {name.strip() for name in without.split(",")}
    chosen = {name.strip() for name in only.split(",") if name.strip()} or set(known) - left_out
    for step in reversed(STEPS):  # what is needed stands before
        if step.name in chosen:
            chosen |= set(step.needs)
    return [step for step in STEPS if step.name in chosen]


def _do(step: Step, bench: Bench, done: set[str]) -> bool:
    left = bench.ends - time.perf_counter()
    if lacking := [name for name in step.needs if name not in done]:
        _say(bench, {"step": step.name, "skipped": f"it needs {', '.join(lacking)}"})
        return False
    if left < step.budget_s * 0.6:
        _say(bench, {"step": step.name, "skipped": f"{left:.0f} s are left, it may take {step.budget_s:.0f}"})
        return False
    _say(bench, {"step": step.name, "begin": round(time.time(), 1), "left_s": round(left, 1)})
    began = time.perf_counter()
    faulthandler.dump_traceback_later(2 * step.budget_s + 30)
    said: Figures = {"step": step.name}
    try:
        said["figures"] = _elsewhere(step, bench) if step.apart else step.run(bench)
    except Exception:
        said["error"] = traceback.format_exc()[-3000:]
    finally:
        faulthandler.cancel_dump_traceback_later()
    _say(bench, {**said, "seconds": round(time.perf_counter() - began, 2)})
    return "error" not in said


def _elsewhere(step: Step, bench: Bench) -> Figures:
    """In a process of its own, which writes its lines there too."""
    if os.environ.get("GPU_BENCH_INSIDE"):
        return step.run(bench)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    limit_s = min(1.5 * step.budget_s, bench.ends - time.perf_counter()) if not bench.small else 120
    command = [sys.executable, str(HERE), "--out", str(bench.out), "--only", step.name, "--inputs", str(bench.folder)]
    command += ["--seconds", "1000", *(["--rehearse"] if bench.small else [])]
    return run_command(bench, command, limit_s=limit_s, inside=True)


def _say(bench: Bench, line: Figures) -> None:
    """To the file and, shortened, to whoever looks on."""
    text = json.dumps(line, default=str)
    with (bench.out / "gpu.jsonl").open("a") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(text if len(text) < 1500 else text[:1500] + " ...", flush=True)


if __name__ == "__main__":
    main()
