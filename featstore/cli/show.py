"""What the commands print of their results: for people on a terminal, or as JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from featstore.support import few
from featstore.terminal import Terminal, clock, counted, one_line, size

if TYPE_CHECKING:
    from featstore.extraction.estimate import Estimate
    from featstore.extraction.plan import ExtractionPlan
    from featstore.extraction.recompute import Recomputation, SegmentCheck
    from featstore.extraction.summary import Summary
    from featstore.store import Repair, Verification

NAMED = 5
"""How many photos are named where there may be thousands."""


def show_plan(plan: "ExtractionPlan", terminal: Terminal) -> None:
    """Which rows are filled, and why."""
    from featstore.extraction.plan import REASONS

    listing = plan.listing
    facts = [f"{len(listing.photos)} in {listing.root}", f"{len(listing.new) - len(listing.changed)} new"]
    facts += [f"{len(listing.changed)} changed"] if listing.changed else []
    facts += [f"{len(listing.touched)} touched but the same"] if listing.touched else []
    if listing.missing:
        kept = "marked gone" if listing.prune else "kept; --prune marks them gone"
        facts.append(f"{len(listing.missing)} of the store no longer there ({kept})")
    terminal.say("photos: " + ", ".join(facts))
    for tensor in plan.tensors:
        terminal.say(
            f"tensor {tensor.layout.name}: "
            + (f"{counted(tensor.n_rows, 'row')} to fill" if tensor.n_rows else "nothing to do")
        )
        for text in tensor.differences:
            terminal.say(f"  replaced: {text}")
        for reason, paths in tensor.reasons.items():
            terminal.say(f"  {len(paths)} {REASONS[reason]}: {few(paths)}")
        if tensor.copied:
            names = ", ".join(f"{name} for {count}" for name, count in tensor.copied.items())
            terminal.say(f"  copied, being there under the same identity: {names}")
        if tensor.computed:
            names = ", ".join(f"{name} for {count}" for name, count in tensor.computed.items())
            terminal.say(f"  computed: {names}")


def show_dry_run(plan: "ExtractionPlan", estimate: "Estimate | None", terminal: Terminal) -> None:
    """How much an extraction would be."""
    terminal.result(
        {
            **plan_facts(plan),
            "estimated_s": None if estimate is None else round(estimate.total_s, 1),
            "estimate": None if estimate is None else asdict(estimate),
        }
    )
    n_rows, n_files = sum(t.n_rows for t in plan.tensors), sum(t.n_shards for t in plan.tensors)
    line = f"{counted(n_rows, 'row')}, {size(plan.n_bytes)} more on the disk, {counted(n_files, 'more file')}"
    if estimate is not None:
        line += (
            f"; about {clock(estimate.total_s)} on {estimate.device} "
            f"({estimate.seconds_per_photo:.2f} s for {estimate.photo}, tried just now)"
        )
    terminal.say(f"{line}\ndry run: nothing was written")


def plan_facts(plan: "ExtractionPlan") -> dict[str, Any]:
    """A plan for scripts."""
    listing = plan.listing
    return {
        "photos": len(listing.photos),
        "new": len(listing.new) - len(listing.changed),
        "changed": sorted(listing.changed),
        "missing": len(listing.missing),
        "tensors": {
            tensor.layout.name: {
                "rows": tensor.n_rows,
                "bytes": tensor.n_bytes,
                "files": tensor.n_shards,
                "differences": tensor.differences,
                "reasons": {reason: len(paths) for reason, paths in tensor.reasons.items()},
                "copied": dict(tensor.copied),
                "computed": dict(tensor.computed),
            }
            for tensor in plan.tensors
        },
        "bytes": plan.n_bytes,
    }


def show_verification(found: "Verification", again: "Recomputation | None", terminal: Terminal) -> None:
    """Every finding, and how far recomputed rows are off."""
    result: dict[str, Any] = {
        **{name: value for name, value in asdict(found).items() if name != "findings"},
        "sound": found.sound,
        "damage": [asdict(finding) for finding in found.damage],
        "leftovers": [finding.file for finding in found.findings if not finding.damage],
    }
    if again is not None:
        result["recomputed"] = {**asdict(again), "within": again.within}
    terminal.result(result)
    for finding in found.damage:
        terminal.say(f"DAMAGED {finding}")
    leftovers = [finding for finding in found.findings if not finding.damage]
    for finding in leftovers[:NAMED]:
        terminal.say(f"leftover {finding.file}: {finding.what}")
    if len(leftovers) > NAMED:
        terminal.say(f"leftover: {len(leftovers) - NAMED} files more")
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


def show_repair(done: "Repair", terminal: Terminal) -> None:
    """What was mended, and what it costs."""
    terminal.result(asdict(done))
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


def show_summary(summary: "Summary", terminal: Terminal) -> None:
    terminal.result(
        {
            "store": str(summary.store),
            "images": summary.n_images,
            "computed": summary.n_computed,
            "reused": summary.n_reused,
            "waiting": summary.n_waiting,
            "failed": [{"path": path, "reason": reason} for path, reason in summary.failed],
            "new_tensors": summary.new_tensors,
            "images_per_s": round(summary.images_per_s, 3),
            "bytes_written": summary.n_bytes,
            "bytes_reclaimed": summary.n_reclaimed,
            "notices": summary.notices,
            "stages_s": {name: round(seconds, 3) for name, seconds in summary.stages_s.items()},
            "busy": {name: round(share, 3) for name, share in summary.shares.items()},
            "limiting_stage": summary.limiting_stage,
            "engines": summary.engines,
            "first_s": round(summary.first_s, 3),
            "elapsed_s": round(summary.elapsed_s, 3),
        }
    )
    for notice in summary.notices:
        terminal.say(f"note: {notice}")
    for path, reason in summary.failed[:20]:
        terminal.say(one_line(f"failed: {path}: {reason}"))
    if len(summary.failed) > 20:
        terminal.say(f"failed: {len(summary.failed) - 20} more (`featstore info {summary.store}` lists them)")
    line = (
        f"{counted(summary.n_images, 'image')}: {summary.n_computed} done, {summary.n_reused} reused, "
        + (f"{summary.n_waiting} waiting, " if summary.n_waiting else "")
        + f"{len(summary.failed)} failed"
    )
    if summary.n_computed:
        line += (
            f"; {summary.images_per_s:.2f} images/s, {size(summary.n_bytes)} written, "
            f"limited by {summary.limiting_stage} (busy: "
            + ", ".join(f"{name} {share:.0%}" for name, share in summary.shares.items())
            + ")"
        )
    else:
        line += "; nothing to compute"
    if summary.n_reclaimed:
        line += f"; {size(summary.n_reclaimed)} of replaced tensors freed"
    terminal.say(f"{line}; {clock(summary.elapsed_s) if summary.elapsed_s >= 10 else f'{summary.elapsed_s:.1f} s'}")
    if summary.new_tensors:
        terminal.say(f"new tensors: {', '.join(summary.new_tensors)}")
    terminal.say(f"store: {summary.store}")


def show_info(facts: dict[str, Any], terminal: Terminal) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in facts["images"].items() if count)
    terminal.say(f"{facts['store']}: {size(facts['bytes'])} on disk, format {facts['format']}")
    terminal.say(f"images: {counts or 'none'}")
    terminal.table(
        ("tensor", "layout", "shape", "dtype", "compress", "present", "failed", "absent"),
        [
            (
                name,
                tensor["layout"] + (" of copies" if "copy" in tensor["axes"] else ""),
                " x ".join(map(str, tensor["shape"])),
                tensor["dtype"],
                tensor["compress"] or "-",
                *(str(tensor["rows"][state]) for state in ("present", "failed", "absent")),
            )
            for name, tensor in facts["tensors"].items()
        ],
    )
    terminal.table(
        ("tensor", "segment", "blocks", "width", "identity", "weights"),
        [
            (name, each["name"], str(each["blocks"]), str(each["width"]), each["hash"], each["weights"])
            for name, tensor in facts["tensors"].items()
            for each in tensor["segments"]
        ],
    )
    for name, tensor in facts["tensors"].items():
        if tensor["missing"]:
            terminal.say(f"tensor {name} was made without {', '.join(tensor['missing'])} (--allow-missing)")
    for path, reason in facts["unreadable"].items():
        terminal.say(one_line(f"unreadable: {path}: {reason}"))
