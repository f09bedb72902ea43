"""Looking into a shared repository: `log`, `tag`, `ls`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.info import show_info
from featstore.cli.options import Output
from featstore.terminal import Terminal, one_line, size

if TYPE_CHECKING:
    from featstore.sharing.remote import Listed
    from featstore.store.places.repository import Version as Commit

REMOTE_HELP = "A shared repository: a folder, s3://, gs:// or az://; REMOTE@VERSION is one version of it."
Remote = Annotated[str, typer.Argument(help=REMOTE_HELP)]
Version = Annotated[str | None, typer.Option("--version", "--tag", help="A tag or a snapshot [the newest version].")]


def log(
    remote: Remote,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="How many at most [all].")] = None,
    *,
    output: Output,
) -> None:
    """List the versions of a shared repository, the newest first.

    It says who pushed what and when, and the tags.
    """
    with output.terminal() as terminal:
        from featstore.sharing.remote import find_remote

        repository, version = find_remote(remote)
        _show_log(list(repository.history(version, limit=limit)), terminal)


def tag(
    remote: Remote,
    name: Annotated[str, typer.Argument(help="The name that the version gets, for ever.")],
    version: Version = None,
    *,
    output: Output,
) -> None:
    """Give a version of a repository a name that never moves.

    Cite it in a paper, as REMOTE@paper-v1.
    """
    with output.terminal() as terminal:
        from featstore.sharing.remote import find_remote

        repository, at = find_remote(remote, version)
        snapshot = repository.tag(name, at)
        terminal.result({"tag": name, "snapshot": snapshot})
        terminal.say(f"{repository.name}@{name} is {snapshot}")


def ls(remote: Remote, version: Version = None, *, output: Output) -> None:
    """Show what a shared repository holds; fetch no features."""
    with output.terminal() as terminal:
        from featstore.sharing.remote import list_remote

        _show_remote(list_remote(remote, version), terminal)


def _show_log(versions: Sequence["Commit"], terminal: Terminal) -> None:
    """One line for each commit."""
    terminal.result(list(map(_version_facts, versions)))
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


def _show_remote(listed: "Listed", terminal: Terminal) -> None:
    """As `featstore info`, and where it comes from."""
    last = listed.version
    terminal.result({**listed.facts, "version": _version_facts(last), "tags": listed.tags})
    show_info(listed.facts, terminal)
    said = f"version {last.snapshot}, {last.when:%Y-%m-%d %H:%M} UTC, by {last.who}: {last.message}"
    terminal.say(one_line(said))
    if listed.tags:
        terminal.say(f"tags: {', '.join(listed.tags)}")


def _version_facts(version: "Commit") -> dict[str, Any]:
    """A version, for scripts."""
    return {
        "snapshot": version.snapshot,
        "when": version.when.isoformat(),
        "message": version.message,
        "facts": dict(version.facts),
        "tags": version.tags,
    }


def _number(value: object) -> str:
    """What somebody else's commit says is a number."""
    return str(value) if isinstance(value, int) else "-"


def _size(value: object) -> str:
    return size(value) if isinstance(value, int) else "-"
