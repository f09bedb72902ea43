"""What `import` and `export` print of their results: for people on a terminal, or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from featstore.support import few
from featstore.terminal import Terminal, clock, counted, size

if TYPE_CHECKING:
    from featstore.exchange.exporting import ExportSummary
    from featstore.exchange.importing import ImportSummary

NAMED = 5
"""How many photos are named where there may be thousands."""


def show_import(summary: "ImportSummary", terminal: Terminal) -> None:
    """What was taken in, and what of file and store has no counterpart."""
    terminal.result({**asdict(summary), "elapsed_s": round(summary.elapsed_s, 3)})
    for notice in summary.notices:
        terminal.say(f"note: {notice}")
    if summary.matched_by == "file name":
        terminal.say("note: no path matched, so photos were told by their file names, which are all different")
    _say_some("rows of the file are of no image of the store", summary.unmatched, terminal)
    _say_some("images of the store have no features in it", summary.without, terminal)
    _say_some("rows are all zeros; were they ever computed?", summary.zeros, terminal)
    shape = " x ".join(map(str, summary.row_shape))
    line = f"tensor {summary.tensor} ({shape}, {summary.dtype}): {counted(summary.n_imported, 'image')} imported by "
    n_unmatched, of_rows = len(summary.unmatched), counted(summary.n_rows, "row")
    line += f"{summary.matched_by}, {summary.n_kept} kept, {n_unmatched} of {of_rows} unmatched"
    if summary.n_listed:
        line += f"; {counted(summary.n_listed, 'photo')} listed"
    if summary.n_bytes:
        line += f"; {size(summary.n_bytes)} written"
    if summary.n_reclaimed:
        line += f"; {size(summary.n_reclaimed)} of the replaced tensor freed"
    terminal.say(f"{line}; {_duration(summary.elapsed_s)}")
    terminal.say(f"store: {summary.store}")


def show_export(summary: "ExportSummary", terminal: Terminal) -> None:
    """What was written, and which images were left out."""
    terminal.result({**asdict(summary), "elapsed_s": round(summary.elapsed_s, 3)})
    for reason, paths in summary.left_out.items():
        _say_some(f"images left out, {reason}", paths, terminal)
    terminal.table(
        ("tensor", "shape", "dtype"),
        [(name, " x ".join(map(str, shape)), summary.dtypes[name]) for name, shape in summary.tensors.items()],
    )
    n_left_out = sum(map(len, summary.left_out.values()))
    terminal.say(
        f"{counted(summary.n_images, 'image')} exported, {n_left_out} left out; {size(summary.n_bytes)} in "
        f"{_duration(summary.elapsed_s)}"
    )
    terminal.say(f"{summary.format}: {summary.file}")


def _say_some(what: str, names: Sequence[str], terminal: Terminal) -> None:
    if names:
        terminal.say(f"{len(names)} {what}: {few(names)}")


def _duration(elapsed_s: float) -> str:
    return clock(elapsed_s) if elapsed_s >= 10 else f"{elapsed_s:.1f} s"
