"""Comparing two stores: `diff`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import Output, SelectionOptions
from featstore.support import LISTED, few
from featstore.terminal import Terminal, one_line

if TYPE_CHECKING:
    from featstore.sharing.diff import Diff, SegmentDiff


def compare(
    here: Annotated[str, typer.Argument(help="A store, or a version of a shared repository.")],
    there: Annotated[str, typer.Argument(help="Another one.")],
    *,
    selection: SelectionOptions,
    output: Output,
) -> None:
    """Compare two stores: images, tensors, and shared features."""
    with output.terminal() as terminal:
        from featstore import diff
        from featstore.support import parse_store

        with terminal.progress() as progress:
            found = diff(parse_store(here), parse_store(there), selection=selection.parse(), on_progress=progress)
        _show_diff(found, terminal)


def _show_diff(found: "Diff", terminal: Terminal) -> None:
    """What each side alone has, and a line for each segment that both have."""
    terminal.result(_facts(found))
    terminal.say(f"here: {found.here}\nthere: {found.there}")
    terminal.say(
        f"images: {found.n_shared} on both sides, {len(found.only_here)} only here{_some(found.only_here)}, "
        f"{len(found.only_there)} only there{_some(found.only_there)}"
    )
    for names, side in ((found.tensors_here, "here"), (found.tensors_there, "there")):
        if names:
            terminal.say(f"tensors only {side}: {few(names, LISTED)}")
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


def _facts(found: "Diff") -> dict[str, Any]:
    """The same for scripts."""
    return {
        "here": found.here,
        "there": found.there,
        "same": found.same,
        "shared": found.n_shared,
        "only_here": found.only_here,
        "only_there": found.only_there,
        "tensors_here": found.tensors_here,
        "tensors_there": found.tensors_there,
        "layouts": found.layouts,
        "segments": [
            {
                "tensor": each.tensor,
                "segment": each.segment,
                "differences": each.differences,
                "rows": each.n_rows,
                "only_here": each.only_here,
                "only_there": each.only_there,
                "largest_error": each.largest_error,
                "relative_error": each.relative_error,
                "worst": each.worst,
                "lowest_cosine": each.lowest_cosine,
                "mean_cosine": each.mean_cosine,
                "equal_share": each.equal_share,
                "tolerance": each.tolerance,
                "within": each.within,
            }
            for each in found.segments
        ],
    }


def _some(names: Sequence[str]) -> str:
    return one_line(f" ({few(names)})") if names else ""
