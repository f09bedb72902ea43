"""The demo: the whole road on photographs that lie in installed packages, by the commands that a user would type.

featstore init -> featstore extract -> heads train -> a report
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from featstore.terminal import Terminal
from pipelines.demo_set import DemoError, prepare

PHOTOS = "cache/demo/photos"
LABELS = "cache/demo/labels.csv"
CONFIG = Path("featstore.toml")
STORE = Path("cache/features.zarr")
RUNS = Path("cache/runs")

INIT = f"featstore init {PHOTOS} --labels {LABELS} --scale 1:7 --group source"
EXTRACT = "featstore extract --backbones all"
TRAIN = "heads train amtl --folds 5"

GRACE_S = 30.0
"""How long a command that Ctrl-C has reached may take to put its work away."""


def run_demo(terminal: Terminal) -> None:
    """Make the demo set, extract its features, train heads on them, and say where everything is.

    Raises:
        DemoError: the set cannot be made here, or the folder has a featstore.toml of other photos.
        SystemExit: a command failed; with its exit code.
    """
    started = time.monotonic()
    if CONFIG.exists() and PHOTOS not in CONFIG.read_text("utf-8"):
        raise DemoError(f"{CONFIG} in this folder is about other photos than {PHOTOS}; run the demo in another folder")
    with terminal.progress() as progress:
        prepared = prepare(Path(LABELS).parent, on_progress=progress)
    terminal.say(f"demo set: {prepared.n_photos} crops of {prepared.n_sources} photographs in {PHOTOS}")
    for line in (EXTRACT, TRAIN) if CONFIG.exists() else (INIT, EXTRACT, TRAIN):
        _run(line, terminal)
    _say_results(terminal)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    terminal.say(f"took    {minutes} min {seconds} s")


def _run(line: str, terminal: Terminal) -> None:
    """Show a command line and run it."""
    terminal.say(f"\n$ {line}")
    command, *arguments = shlex.split(line)
    # Beside this Python and not beside the one that a virtual environment links to.
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    if program is None:
        raise DemoError(f"there is no command {command} beside {sys.executable}; run: pip install featstore[demo]")
    with subprocess.Popen([program, *arguments]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _let_finish(process)
            raise
    if code != 0:
        raise SystemExit(code if code > 0 else 128 - code)


def _let_finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.terminate()


def _say_results(terminal: Terminal) -> None:
    terminal.say(f"\nstore   {STORE}")
    runs = [folder for folder in RUNS.glob("*") if folder.is_dir() and folder.suffix != ".part"]
    if runs:
        newest = max(runs, key=lambda folder: folder.stat().st_mtime)
        terminal.say(f"run     {newest}\nreport  {newest / 'report.html'}")
        heads = Path(sys.executable).with_name("heads")
        here = heads.relative_to(Path.cwd()) if heads.is_relative_to(Path.cwd()) else "heads"
        terminal.say(f"\nsee it  {here} explore --run {newest}")
