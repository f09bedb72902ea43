"""The command `python -m pipelines`: parses, calls, prints; no logic of its own."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import typer

PHOTOS = "cache/demo/photos"
LABELS = "cache/demo/labels.csv"
CONFIG = Path("featstore.toml")
STORE = Path("cache/features.zarr")
RUNS = Path("cache/runs")

INIT = f"featstore init {PHOTOS} --labels {LABELS} --scale 1:7 --group source"
EXTRACT = "featstore extract --backbones all"
TRAIN = "heads train amtl --folds 5"

INTERRUPTED = 130
GRACE_S = 30.0

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def pipelines() -> None:
    """Recipes that run the whole road, from photographs to a report."""


@app.command()
def demo() -> None:
    """Extract features of 120 small photographs and train heads on them, with nothing to download."""
    started = time.monotonic()
    try:
        _refuse_other_config()
        _prepare()
        if not CONFIG.exists():
            _run(INIT)
        _run(EXTRACT)
        _run(TRAIN)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; run the same command again to go on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show_results(elapsed_s=time.monotonic() - started)


def _refuse_other_config() -> None:
    if CONFIG.exists() and PHOTOS not in CONFIG.read_text("utf-8"):
        _stop(f"{CONFIG} in this folder is about other photos than {PHOTOS}; run the demo in another folder")


def _prepare() -> None:
    from pipelines.demo import DemoError, prepare

    try:
        prepared = prepare(Path(LABELS).parent, on_progress=_show_progress)
    except DemoError as error:
        _stop(str(error))
    typer.echo(f"demo set: {prepared.n_photos} crops of {prepared.n_sources} photographs in {PHOTOS}")


def _show_progress(n_done: int, n_all: int) -> None:
    if sys.stdout.isatty():
        typer.echo(f"\rcutting and measuring {n_done}/{n_all}" + "\n" * (n_done == n_all), nl=False)


def _run(line: str) -> None:
    """Show a command line and run it; where it fails the demo ends with its exit code."""
    typer.echo(f"\n$ {line}")
    command, *arguments = shlex.split(line)
    # Beside this Python and not beside the one that a virtual environment links to.
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    if program is None:
        _stop(f"there is no command {command} beside {sys.executable}; run: pip install featstore[demo]")
    with subprocess.Popen([program, *arguments]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _let_finish(process)
            raise
    if code != 0:
        raise typer.Exit(code if code > 0 else 128 - code)


def _let_finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command that Ctrl-C has reached as well, so that it can put its work away."""
    try:
        process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.terminate()


def _show_results(*, elapsed_s: float) -> None:
    typer.echo(f"\nstore   {STORE}")
    runs = [folder for folder in RUNS.glob("*") if folder.is_dir() and folder.suffix != ".part"]
    if runs:
        newest = max(runs, key=lambda folder: folder.stat().st_mtime)
        typer.echo(f"run     {newest}\nreport  {newest / 'report.html'}")
    minutes, seconds = divmod(round(elapsed_s), 60)
    typer.echo(f"took    {minutes} min {seconds} s")


def _stop(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m pipelines")
