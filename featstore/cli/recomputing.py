"""Proving features by computing rows again: what `verify --recompute` and `pull --verify` do and print."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.support import Progress
from featstore.terminal import Terminal, counted, one_line

if TYPE_CHECKING:
    from featstore.config import Config
    from featstore.extraction.recompute import Recomputation, SegmentCheck


def recompute_rows(
    config: "Config", n_rows: int, *, photos: Path | None, device: str, seed: int | None = None, progress: Progress
) -> "Recomputation":
    """Compute rows of the configured store again; see `featstore.recompute`."""
    from featstore import Runtime, recompute

    return recompute(
        config.store,
        n_rows,
        photos=photos,
        default_photos=config.photos,
        weights=config.weights,
        runtime=Runtime(device, config.engine),
        seed=seed,
        on_progress=progress,
    )


def recomputation_facts(again: "Recomputation") -> dict[str, Any]:
    """The same for scripts."""
    return {
        "photos": again.photos,
        "row_numbers": again.rows,
        "skipped": again.skipped,
        "within": again.within,
        "comparisons": [
            {
                "tensor": each.tensor,
                "segment": each.segment,
                "rows": each.n_rows,
                "rows_asked": each.n_asked,
                "largest_error": each.largest_error,
                "tolerance": each.tolerance,
                "worst_row": each.worst_row,
            }
            for each in again.comparisons
        ],
    }


def show_recomputation(again: "Recomputation", terminal: Terminal) -> None:
    """How far the rows are off, which could not be computed, and what follows if they are too many."""
    terminal.table(
        ("tensor", "segment", "rows", "largest error", "tolerance", "verdict"),
        [
            (
                c.tensor,
                c.segment,
                str(c.n_rows),
                f"{c.largest_error:.1e}" if c.n_rows else "-",
                f"{c.tolerance:.1e}",
                _verdict(c),
            )
            for c in again.comparisons
        ],
        title=f"{counted(again.n_checked, 'row')} computed again; errors as parts of their largest feature",
    )
    for path, reason in again.skipped.items():
        terminal.say(one_line(f"not computed again: {path}: {reason}"))
    if not again.rows:
        terminal.say("nothing was verified: the store has no features that can be computed from photos")
    elif not again.n_checked:
        terminal.say(
            f"nothing was verified: none of {counted(len(again.rows), 'photo')} drawn is in {again.photos} as it was; "
            "name their folder with --photos"
        )
    elif any(c.n_rows < c.n_asked for c in again.comparisons):
        terminal.say(
            f"fewer rows were verified than asked for: {len(again.skipped)} of {len(again.rows)} photos drawn are not "
            f"in {again.photos} as they were"
        )


def _verdict(found: "SegmentCheck") -> str:
    if not found.largest_error <= found.tolerance:
        return f"FAIL, row {found.worst_row}"
    if found.n_rows < found.n_asked:
        return f"only {found.n_rows} of {found.n_asked} checked" if found.n_rows else "not checked"
    return "ok" if found.n_rows else "has no rows"
