"""What `extract` and `retry` print: the plan, the dry run, the summary."""

from typing import TYPE_CHECKING, Any

from featstore.extraction.summary import FAILURES_SHOWN
from featstore.support import few
from featstore.terminal import Terminal, clock, counted, duration, one_line, size

if TYPE_CHECKING:
    from featstore import Summary
    from featstore.extraction.estimate import Estimate
    from featstore.extraction.plan import ExtractionPlan


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
    for note in listing.notes:
        terminal.say(one_line(f"  {note}"))
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
            "estimate": None if estimate is None else _estimate_facts(estimate),
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
    """The plan of an extraction, for scripts."""
    listing = plan.listing
    return {
        "photos": len(listing.photos),
        "new": len(listing.new) - len(listing.changed),
        "changed": sorted(listing.changed),
        "missing": len(listing.missing),
        "not_photos": listing.others,
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


def _estimate_facts(estimate: "Estimate") -> dict[str, Any]:
    return {
        "photo": estimate.photo,
        "device": estimate.device,
        "seconds_per_photo": estimate.seconds_per_photo,
        "total_s": estimate.total_s,
    }


def show_summary(summary: "Summary", terminal: Terminal) -> None:
    """What was done, how fast, and which photos could not be read."""
    terminal.result(
        {
            "store": str(summary.store),
            "images": summary.n_images,
            "computed": summary.n_computed,
            "reused": summary.n_reused,
            "waiting": summary.n_waiting,
            "failed": [{"path": path, "reason": reason} for path, reason in summary.failed],
            "not_photos": summary.not_photos,
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
        terminal.say(one_line(f"note: {notice}"))
    for path, reason in summary.failed[:FAILURES_SHOWN]:
        terminal.say(one_line(f"failed: {path}: {reason}"))
    if len(summary.failed) > FAILURES_SHOWN:
        n_more = len(summary.failed) - FAILURES_SHOWN
        terminal.say(f"failed: {n_more} more (`featstore info {summary.store}` lists them)")
    line = summary.counts
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
    terminal.say(f"{line}; {duration(summary.elapsed_s)}")
    if summary.new_tensors:
        terminal.say(f"new tensors: {', '.join(summary.new_tensors)}")
    terminal.say(f"store: {summary.store}")
