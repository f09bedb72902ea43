"""Keeping a store whole: `verify`, `repair`, `rm`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import (
    Device,
    Engine,
    Output,
    Photos,
    StoreArgument,
    StoreOption,
    WeightsOptions,
    configure,
    place_of,
)
from featstore.cli.recomputing import recomputation_facts, recompute_rows, show_recomputation
from featstore.terminal import Terminal, counted, size

if TYPE_CHECKING:
    from featstore.extraction.recompute import Recomputation
    from featstore.store.care.repair import Repair
    from featstore.store.care.verify import Finding, Verification

LEFTOVERS_SHOWN = 5


def verify(
    store: StoreArgument = None,
    recompute: Annotated[int, typer.Option(help="Also compute this many rows again from their photos.", min=0)] = 0,
    photos: Photos = None,
    *,
    weights: WeightsOptions,
    device: Device = "auto",
    engine: Engine = None,
    seed: Annotated[int | None, typer.Option(help="Seed for choosing the rows of --recompute [random].")] = None,
    output: Output,
) -> None:
    """Check every file, checksum and record of a store.

    Exits with 1 if anything is damaged.
    """
    with output.terminal() as terminal:
        from featstore import verify as check

        config = configure(store=store, weights=weights, engine=engine)
        again = None
        with terminal.progress() as progress:
            found = check(config.store, on_progress=progress)
            if recompute and found.sound:
                again = recompute_rows(config, recompute, photos=photos, device=device, seed=seed, progress=progress)
        _show_verification(found, again, terminal)
        if not found.sound or (again is not None and not again.within):
            raise SystemExit(1)


def repair(store: StoreArgument = None, *, output: Output) -> None:
    """Mark damaged rows as absent, and keep all others.

    `featstore extract` then computes just these again. A shared repository gets a new version without the damage;
    whoever has the rows pushes them again.
    """
    with output.terminal() as terminal:
        from featstore import repair as mend

        with terminal.progress() as progress:
            done = mend(place_of(store), on_progress=progress)
        _show_repair(done, terminal)
        if done.remaining:
            raise SystemExit(1)


def remove(
    tensors: Annotated[list[str], typer.Argument(help="Names of tensors.")],
    store: StoreOption = None,
    *,
    output: Output,
) -> None:
    """Remove tensors from a store, and say how much is free again."""
    with output.terminal() as terminal:
        from featstore.store.replacing import remove_tensors

        freed = remove_tensors(place_of(store), tensors)
        terminal.result({"removed": freed, "bytes_reclaimed": sum(freed.values())})
        for name, n_bytes in freed.items():
            terminal.say(f"removed tensor {name}: {size(n_bytes)} freed")


def _show_verification(found: "Verification", again: "Recomputation | None", terminal: Terminal) -> None:
    """Every finding, and how far recomputed rows are off."""
    leftovers = [finding for finding in found.findings if not finding.damage]
    result: dict[str, Any] = {
        "store": found.store,
        "sound": found.sound,
        "files": found.n_files,
        "rows": found.n_rows,
        "bytes_checked": found.n_bytes,
        "damage": list(map(_finding_facts, found.damage)),
        "leftovers": [finding.file for finding in leftovers],
        "writer": found.writer,
        "elapsed_s": round(found.elapsed_s, 3),
    }
    if again is not None:
        result["recomputed"] = recomputation_facts(again)
    terminal.result(result)
    for finding in found.damage:
        terminal.say(f"DAMAGED {finding}")
    for finding in leftovers[:LEFTOVERS_SHOWN]:
        terminal.say(f"leftover {finding.file}: {finding.what}")
    if len(leftovers) > LEFTOVERS_SHOWN:
        terminal.say(f"leftover: {len(leftovers) - LEFTOVERS_SHOWN} files more")
    rate = f", {size(found.n_bytes / found.elapsed_s)}/s" if found.elapsed_s else ""
    terminal.say(
        f"{found.store}: {counted(found.n_files, 'file')}, {counted(found.n_rows, 'row')}, {size(found.n_bytes)} of "
        f"features checked in {found.elapsed_s:.1f} s{rate}: "
        + ("sound" if found.sound else counted(len(found.damage), "damaged place"))
    )
    if found.writer:
        terminal.say(f"{found.writer} is writing to it: what it is just changing may look damaged; verify again after")
    elif not found.sound:
        terminal.say(f"to mend it: featstore repair {found.store}")
    if again is not None:
        show_recomputation(again, terminal)


def _show_repair(done: "Repair", terminal: Terminal) -> None:
    """What was mended, and what it costs."""
    terminal.result(
        {
            "store": done.store,
            "documents": done.documents,
            "records": done.records,
            "absent": done.absent,
            "gone": done.gone,
            "removed": done.removed,
            "remaining": list(map(_finding_facts, done.remaining)),
            "snapshot": done.snapshot,
        }
    )
    for key in done.documents:
        terminal.say(f"written anew: {key}")
    for key in done.records:
        terminal.say(f"worked out again: {key}")
    for name, rows in done.absent.items():
        again = "whoever has them pushes them again" if done.snapshot else "`featstore extract` computes them again"
        terminal.say(f"tensor {name}: {counted(len(rows), 'row')} absent now; {again}")
    if done.gone:
        terminal.say(f"{counted(len(done.gone), 'image')} without a path; `featstore extract` lists the photos anew")
    if done.removed:
        terminal.say(f"removed {counted(len(done.removed), 'file')} that belonged to nothing")
    for finding in done.remaining:
        terminal.say(f"NOT mended: {finding}")
    if not done.changed and not done.remaining:
        terminal.say("nothing to mend")
    if done.snapshot:
        terminal.say(f"{done.store}@{done.snapshot}")


def _finding_facts(finding: "Finding") -> dict[str, Any]:
    """A damaged place, for scripts."""
    return {"file": finding.file, "what": finding.what, "tensor": finding.tensor, "row_numbers": finding.rows}
