"""`push`, `pull` and `merge`: transfer rows into a shared repository, out of one, or from several stores into one."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from os import PathLike, fspath
from typing import Any
from uuid import uuid4

from featstore.errors import BrokenOffError, ConfigError, LockedError, StoreError
from featstore.sharing.remote import find_remote
from featstore.sharing.selection import Selection
from featstore.sharing.transfer import Carried, Transfer, carry_out, plan_transfer
from featstore.store import Store, Writer, existing_store, open_store
from featstore.store.format.limits import check_space
from featstore.store.format.metadata import BLOCK_ROWS
from featstore.store.places.locate import locate
from featstore.store.places.place import Place, plain
from featstore.store.places.repository import Repository, is_repository, split_version, who
from featstore.support import Progress, no_progress, version

COMMIT_BYTES = 256_000_000
"""A push commits so much at a time; a broken connection costs no more than that."""
TRIES = 1000
"""So often may somebody else's commit come first before a push gives up."""
LONGEST_WAIT_S = 2.0
MARK = "push"
"""The fact in which a commit carries a random number, so that the push that made it can find it."""
BROKEN_TRIES = 4
"""So often may the connection break between two commits before a push gives up."""


@dataclass
class Moved:
    """What a transfer did."""

    source: str
    target: str
    n_images: int = 0
    """Images that the target did not list before."""
    n_rows: int = 0
    n_bytes: int = 0
    """Of features that were moved for good."""
    tensors: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    """The commits that a push made."""
    n_overtaken: int = 0
    """Commits that had to be made again, because somebody else's came first."""
    n_outdated: int = 0
    """Images not moved, because the target has a newer photo under their path."""
    n_gone: int = 0
    """Images of the target marked as gone, because the source has a newer photo under their path."""
    n_different: int = 0
    """Images not moved, because the sides have different values of the same features."""
    elapsed_s: float = 0.0

    def add(self, carried: Carried, snapshot: str | None = None) -> None:
        self.snapshots += [] if snapshot is None else [snapshot]
        self.n_images += carried.n_images
        self.n_gone += carried.n_gone
        self.n_rows += carried.n_rows
        self.n_bytes += carried.n_bytes
        self.tensors = sorted({*self.tensors, *carried.tensors})


def push(
    place: Place,
    remote: PathLike[str] | str,
    *,
    message: str,
    selection: Selection | None = None,
    leave_different: bool = False,
    on_progress: Progress | None = None,
) -> Moved:
    """Add what a store has and a shared repository lacks; makes the repository if nothing is there.

    Args:
        leave_different: where both sides have different values of one feature (two machines may differ in the last
            bits), leave each side its own instead of refusing.

    Raises:
        StoreError: they hold different values for the same image, mean different photos by one path, or the
            repository cannot be reached or written. What was committed before stays.
        LayoutError: they hold different features under one name.
    """
    remote = fspath(remote)
    if not message.strip():
        raise ConfigError("a push needs a message that says what it is: -m 'four backbones on all of OASIS'")
    if split_version(remote)[1] is not None and not is_repository(remote):
        raise StoreError(f"{remote}: a version never changes; push to {split_version(remote)[0]}")
    started, report = time.perf_counter(), on_progress or no_progress
    source = open_store(place)
    wanted = selection or Selection()
    wanted.rows_of(source), wanted.tensors_of(source)  # refused before a repository is made
    repository = Repository(remote)
    if not repository.exists:
        repository.create()
    moved = Moved(source.path, repository.name)
    limit, n_overtaken, n_broken = COMMIT_BYTES, 0, 0
    unanswered: tuple[str, Carried] | None = None
    while True:
        try:
            if unanswered is not None and (snapshot := _find(repository, unanswered[0])) is not None:
                moved.add(unanswered[1], snapshot)
            unanswered = None
            transaction = repository.begin()
            with Writer(transaction.location, block_rows=source.block_rows) as writer:
                transfer = plan_transfer(source, writer.store, wanted, leave_different=leave_different)
                if not transfer.work:
                    moved.n_outdated, moved.n_different = len(transfer.pairs.outdated), len(transfer.different)
                    break
                count = _counter(report, "push", transfer, moved.n_rows)
                carried = carry_out(transfer, writer, limit_bytes=limit, on_block=count)
            unanswered = uuid4().hex, carried
            snapshot = transaction.commit(message, {**_facts(carried), MARK: unanswered[0]})
        except BrokenOffError:
            n_broken += 1
            if n_broken == BROKEN_TRIES:
                raise
            repository = Repository(remote)
            continue
        except LockedError:
            unanswered = None
            n_overtaken += 1
            moved.n_overtaken += 1
            if n_overtaken == TRIES:
                raise
            limit //= 2  # what is lost to the next one is half as much
            time.sleep(random.uniform(0, min(LONGEST_WAIT_S, 0.05 * 2**n_overtaken)))
            continue
        unanswered = None
        moved.add(carried, snapshot)
        limit, n_overtaken, n_broken = min(2 * max(limit, 1), COMMIT_BYTES), 0, 0
    moved.elapsed_s = time.perf_counter() - started
    return moved


def pull(
    remote: PathLike[str] | str,
    place: Place,
    *,
    version: str | None = None,
    selection: Selection | None = None,
    leave_different: bool = False,
    on_progress: Progress | None = None,
) -> Moved:
    """Add what a shared repository has and a store lacks; makes the store if nothing is there.

    Args:
        version: a tag, or the beginning of a snapshot's name; the newest if not said.
        leave_different: as for `push`.

    Raises:
        StoreError: as for `push`, or the disk has no room. What was committed before stays, and is right.
        LayoutError: they hold different features under one name.
    """
    repository, at = find_remote(fspath(remote), version)
    source = open_store(repository.at(at))
    return _bring([source], place, selection or Selection(), "pull", on_progress or no_progress, leave_different)


def merge(
    sources: Sequence[Place],
    place: Place,
    *,
    selection: Selection | None = None,
    leave_different: bool = False,
    on_progress: Progress | None = None,
) -> Moved:
    """The union of stores, or versions of repositories, in one; what the target has already stays.

    Args:
        leave_different: where some have different values of the same features, the first one counts.

    Raises:
        StoreError: two of them disagree; says which.
        LayoutError: they hold different features under one name.
    """
    stores, wanted = list(map(open_store, sources)), selection or Selection()
    for one, other in combinations(stores, 2):
        plan_transfer(other, one, wanted, leave_different=leave_different)  # refuses before the first is copied
    return _bring(stores, place, wanted, "merge", on_progress or no_progress, leave_different)


def _bring(
    sources: list[Store], place: Place, selection: Selection, stage: str, report: Progress, leave_different: bool
) -> Moved:
    started, place = time.perf_counter(), plain(place)
    target = existing_store(place)
    plan = partial(plan_transfer, selection=selection, leave_different=leave_different)
    plans = [plan(source, target) for source in sources]  # refused before anything is made
    moved = Moved(", ".join(source.path for source in sources), str(place))
    moved.n_outdated = sum(len(each.pairs.outdated) for each in plans)
    if target is not None and not any(each.work for each in plans):
        moved.n_different = sum(len(each.different) for each in plans)
        moved.elapsed_s = time.perf_counter() - started
        return moved
    location = locate(place, writable=True)
    if location.folder is not None:
        check_space(location.folder, sum(each.n_bytes for each in plans))
    block_rows = sources[0].block_rows if sources else BLOCK_ROWS
    with Writer(place, block_rows=block_rows) as writer:
        for source, planned in zip(sources, plans, strict=True):
            # What was planned for a store that is not there yet holds for the first one that fills it.
            fresh = target is None and not len(writer.store.images) and planned.block_rows == writer.store.block_rows
            transfer = planned if fresh else plan(source, writer.store)
            moved.n_different += len(transfer.different)
            moved.add(carry_out(transfer, writer, on_block=_counter(report, stage, transfer, 0)))
    moved.elapsed_s = time.perf_counter() - started
    return moved


def _counter(report: Progress, stage: str, transfer: Transfer, before: int) -> Callable[[int], None]:
    done, total = before, before + transfer.n_rows

    def count(n_rows: int) -> None:
        nonlocal done
        done += n_rows
        report(stage, done, total)

    return count


def _find(repository: Repository, mark: str) -> str | None:
    """The snapshot of a commit whose answer was lost; None if the commit was not made."""
    return next((each.snapshot for each in repository.history() if each.facts.get(MARK) == mark), None)


def _facts(carried: Carried) -> dict[str, Any]:
    """What a commit notes beside its message."""
    return {
        "who": who(),
        "featstore": version(),
        "images": carried.n_images,
        "rows": carried.n_rows,
        "bytes": carried.n_bytes,
        "tensors": sorted(carried.tensors),
    }
