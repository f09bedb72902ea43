"""What the commands of sharing print: for people on a terminal, or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from featstore.cli.show import show_info, show_recomputation
from featstore.support import few
from featstore.terminal import Terminal, clock, counted, one_line, size

if TYPE_CHECKING:
    from featstore.extraction.recompute import Recomputation
    from featstore.sharing.diff import Diff, SegmentDiff
    from featstore.sharing.push_pull import Moved
    from featstore.sharing.remote import Listed
    from featstore.store.places.repository import Version

NAMED = 3
"""How many photos are named where there may be thousands."""


def show_moved(moved: "Moved", done: str, terminal: Terminal, again: "Recomputation | None" = None) -> None:
    """What travelled, and how fast."""
    result: dict[str, Any] = {**asdict(moved), "elapsed_s": round(moved.elapsed_s, 3)}
    if again is not None:
        result["recomputed"] = {**asdict(again), "within": again.within}
    terminal.result(result)
    if moved.n_overtaken:
        terminal.say(f"note: {counted(moved.n_overtaken, 'time')} somebody else's push came first")
    if moved.n_outdated:
        terminal.say(
            f"note: {counted(moved.n_outdated, 'image')} left out: {moved.target} has newer photos under their paths"
        )
    if moved.n_gone:
        terminal.say(f"note: {counted(moved.n_gone, 'image')} of {moved.target} gone: their paths mean newer photos")
    if moved.n_different:
        terminal.say(
            f"note: {counted(moved.n_different, 'image')} left as they are: each side has other values of them"
        )
    if moved.n_rows or moved.n_images:
        rate = f", {size(moved.n_bytes / moved.elapsed_s)}/s" if moved.elapsed_s else ""
        took = clock(moved.elapsed_s) if moved.elapsed_s >= 10 else f"{moved.elapsed_s:.1f} s"
        terminal.say(
            f"{done} {counted(moved.n_rows, 'row')} of {', '.join(moved.tensors) or 'no tensor'} "
            f"({counted(moved.n_images, 'new image')}), "
            f"{size(moved.n_bytes)} in {took}{rate}"
        )
    else:
        terminal.say(f"nothing to be {done}: {moved.target} has {'the rest' if moved.n_different else 'all of it'}")
    for snapshot in moved.snapshots[-1:]:
        terminal.say(f"{moved.target}@{snapshot}")
    if again is not None:
        show_recomputation(again, terminal)


def show_log(versions: Sequence["Version"], terminal: Terminal) -> None:
    """One line for each commit."""
    terminal.result([{**asdict(each), "when": each.when.isoformat()} for each in versions])
    terminal.table(
        ("version", "when (UTC)", "who", "rows", "size", "tags", "what"),
        [
            (
                each.snapshot,
                f"{each.when:%Y-%m-%d %H:%M}",
                each.who,
                _number(each.facts.get("rows")),
                _size(each.facts.get("bytes")),
                ", ".join(each.tags),
                each.message,
            )
            for each in versions
        ],
    )


def show_remote(listed: "Listed", terminal: Terminal) -> None:
    """As `featstore info`, and where it comes from."""
    last = listed.version
    terminal.result({**listed.facts, "version": {**asdict(last), "when": last.when.isoformat()}, "tags": listed.tags})
    show_info(listed.facts, terminal)
    said = f"version {last.snapshot}, {last.when:%Y-%m-%d %H:%M} UTC, by {last.who}: {last.message}"
    terminal.say(one_line(said))
    if listed.tags:
        terminal.say(f"tags: {', '.join(listed.tags)}")


def show_diff(found: "Diff", terminal: Terminal) -> None:
    """What each side alone has, and a line for each segment that both have."""
    terminal.result(
        {**asdict(found), "same": found.same, "segments": [{**asdict(s), "within": s.within} for s in found.segments]}
    )
    terminal.say(f"here: {found.here}\nthere: {found.there}")
    terminal.say(
        f"images: {found.n_shared} on both sides, {len(found.only_here)} only here{_some(found.only_here)}, "
        f"{len(found.only_there)} only there{_some(found.only_there)}"
    )
    for names, side in ((found.tensors_here, "here"), (found.tensors_there, "there")):
        if names:
            terminal.say(f"tensors only {side}: {', '.join(names)}")
    for name, differences in found.layouts.items():
        terminal.say(f"tensor {name}: " + "; ".join(differences))
    if not found.segments:
        terminal.say("no tensor has the same name on both sides: no features were compared")
        return
    terminal.table(
        ("tensor", "segment", "rows", "only here", "only there", "largest error", "of the row", "cosine", "equal", ""),
        [
            (
                each.tensor,
                each.segment,
                *map(str, (each.n_rows, each.only_here, each.only_there)),
                *(
                    (f"{each.largest_error:.1e}", f"{each.relative_error:.1e}", f"{each.lowest_cosine:.6f}",
                     f"{100 * each.equal_share:.1f} %")
                    if each.n_rows
                    else ("-", "-", "-", "-")
                ),
                _verdict(each),
            )
            for each in found.segments
        ],
    )  # fmt: skip
    for each in found.segments:
        for difference in each.differences:
            terminal.say(f"{each.tensor}, {each.segment}: {difference}")
        if each.within is False:
            terminal.say(
                f"{each.tensor}, {each.segment}: said to be the same features and further apart than "
                f"{each.tolerance:.1e} of a row, most of all {each.worst}"
            )
    if found.same:
        terminal.say("the same on both sides, to the last bit")


def _verdict(each: "SegmentDiff") -> str:
    if each.differences:
        return "other features"
    if not each.n_rows:
        return "no shared rows"
    if each.equal_share == 1:
        return "equal"
    return {True: "within tolerance", False: "TOO FAR", None: "not equal"}[each.within]


def _some(names: Sequence[str]) -> str:
    return one_line(f" ({few(names)})") if names else ""


def _number(value: object) -> str:
    """What somebody else's commit says is a number."""
    return str(value) if isinstance(value, int) else "-"


def _size(value: object) -> str:
    return size(value) if isinstance(value, int) else "-"
