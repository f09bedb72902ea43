"""What a shared repository holds, without fetching features: its tensors, its last commit, its tags."""

from dataclasses import dataclass
from typing import Any

from featstore.errors import ConfigError
from featstore.store import Store, open_store
from featstore.store.describe import describe_store
from featstore.store.places.repository import Repository, Version, is_repository, split_version


@dataclass(frozen=True)
class Listed:
    """A version of a repository."""

    facts: dict[str, Any]
    """As of `featstore info`."""
    version: Version
    tags: dict[str, str]
    """By tag of this version or an earlier one, its snapshot."""


def list_remote(remote: str, version: str | None = None) -> Listed:
    """Look into a repository as it is now, or was at a version.

    Raises:
        StoreError: it is no repository, cannot be reached, or nothing was pushed to it yet.
    """
    repository, at = find_remote(remote, version)
    store: Store = open_store(repository.at(at))
    if at is None:
        (newest,), tags = repository.history(limit=1), repository.tags
        return Listed(describe_store(store), newest, tags)
    history = list(repository.history(at))
    return Listed(describe_store(store), history[0], {tag: each.snapshot for each in history for tag in each.tags})


def find_remote(remote: str, version: str | None = None) -> tuple[Repository, str | None]:
    """The repository of REMOTE or REMOTE@VERSION, and the version.

    Raises:
        ConfigError: two versions are named.
    """
    name, said = (remote, None) if is_repository(remote) else split_version(remote)
    if version is not None and said is not None and version != said:
        raise ConfigError(f"{remote} says version {said!r}, --version {version!r}; say one")
    return Repository(name), version or said
