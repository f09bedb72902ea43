"""Small things that both packages need: progress, paths, lists in messages, versions, memory, command-line words.

`heads` and `pipelines` use this module, `featstore.files`, `featstore.terminal` and the names of `featstore` itself,
and nothing else of the package. It imports nothing heavy, so that a command can use it before it says `--help`.
"""

import ctypes
import math
import os
import platform
import re
import socket
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from html import escape
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, TextIO, overload
from urllib.parse import urlsplit

from featstore.errors import ClusterError, ConfigError, harmless, suggest

__all__ = [
    "LISTED",
    "NAMED",
    "MaybePath",
    "PathField",
    "Progress",
    "as_path",
    "but_for_case",
    "check_scheduler",
    "clock",
    "connect_scheduler",
    "counted",
    "delimiter_of",
    "device_full",
    "device_lost",
    "few",
    "from_cell",
    "harmless",
    "html_table",
    "is_number",
    "is_scale",
    "n_cores",
    "nearly_number",
    "no_progress",
    "numbers_rows",
    "parse_names",
    "parse_scale",
    "parse_store",
    "reason_of",
    "repr_of_said",
    "reuse_freed_memory",
    "size",
    "suggest",
    "to_cell",
    "version",
    "versions",
    "wait_briefly",
]

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # of full width too: some spreadsheets take them
Progress = Callable[[str, int, int], None]
"""Is told the stage of a long piece of work, how much of it is done, and of how much."""

NAMED = 5
"""How many names a message has where there may be thousands."""
LISTED = 12
"""How many it has where there are seldom more, and the reader looks for one of them."""
CONNECT_S = 5.0
SCHEMES = ("tcp", "tls", "ws", "wss")
_FULL = (  # how CUDA's libraries say it, other than by PyTorch's own exception
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine",  # cuDNN has no workspace for any of its ways
    "unable to find a valid cuDNN",
)
_LOST = (
    "GPU is lost",
    "requires reset",
    "unspecified launch failure",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "hardware stack error",
    "uncorrectable",
    "launch timed out",
    "busy or unavailable",
    "no CUDA-capable device",
    "EXECUTION_FAILED",
    "CUDA error: unknown error",
    "driver shutting down",
)
"""In what CUDA and its libraries say, after which a process has to begin anew."""
_TRIM, _MMAP, _ARENAS = -1, -3, -8  # of mallopt, in glibc's malloc.h


def no_progress(stage: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def few(names: Iterable[str], most: int = NAMED, *, quoted: bool = False) -> str:
    """The first names of a list that may be long: `a, b, c, d, e and 3 more`; `none` of an empty one.

    A name that may steer a terminal is quoted.
    """
    some = [repr(name) if quoted or not name.isprintable() else name for name in names]
    more = f" and {len(some) - most} more" if len(some) > most else ""
    return (", ".join(some[:most]) or "none") + more


def reason_of(error: BaseException) -> str:
    """The first line that an error says, or its kind."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def device_full(error: BaseException) -> bool:
    """Whether an error, or the one that it came of, says that the memory of a device is full.

    A recording of CUDA calls that ends early says only that, and hides why it did.
    """
    return any(
        type(each).__name__ == "OutOfMemoryError"  # PyTorch's own, which is not imported for this
        or any(sign in str(each) for sign in _FULL)
        for each in _that_it_came_of(error)
    )


def device_lost(error: BaseException) -> bool:
    """Whether an error, or the one that it came of, says that a GPU computes no more for this process."""
    return any(
        isinstance(each, RuntimeError) and any(sign in str(each) for sign in _LOST) for each in _that_it_came_of(error)
    )


def _that_it_came_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what was being handled when it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def clock(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def to_cell(text: str) -> str:
    """A text as a cell of CSV, which no spreadsheet takes for a formula: with an apostrophe before a first `=+-@`.

    A tab and an end of line count as these do; a number, as -1, is none. `from_cell` gives the text back.
    """
    return f"'{text}" if _FORMULA.match(text) and not is_number(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` wrote; any other cell as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def size(n_bytes: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def version(package: str = "featstore") -> str:
    """The version of an installed package; `unknown` where it runs from its sources without an installation."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "unknown"


def versions(*packages: str) -> dict[str, str]:
    """The versions of some packages, and of Python, for the record."""
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def n_cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def wait_briefly() -> None:
    """Let an idle thread of OpenMP spin for microseconds, not milliseconds, before it sleeps.

    On a machine where anything else runs, long spinning makes the threads of a network wait for each other's time
    slices: with one other busy process on two cores a small network ran at a quarter of its speed or less.
    It has to be said before torch is imported; what the user has set already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def reuse_freed_memory(*, mmap_bytes: int, trim_bytes: int, arenas: int | None = None, override: bool = False) -> None:
    """Let memory that was freed stay with this process and be used again (glibc; other C libraries do as they do).

    Args:
        mmap_bytes: arrays from this size on are asked of the system each time.
        trim_bytes: so much free memory at the end of the heap is kept.
        arenas: heaps that threads share; as many as glibc likes if None.
        override: whether also where the environment has settings of malloc, as that of Dask's workers; otherwise what
            the user has set there stays.
    """
    if not override and any(name.startswith("MALLOC_") for name in os.environ):
        return
    settings = {_ARENAS: arenas, _MMAP: mmap_bytes, _TRIM: trim_bytes}
    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in settings.items():
            if value is not None:
                mallopt(setting, value)


# ---------------------------------------------------------------------------------------- fields and their looks


class PathField:
    """A field of a frozen dataclass that takes a path or its text, and is a `Path` when it is read.

    ```
    @dataclass(frozen=True)
    class Plan:
        out: PathField = PathField()    # has to be said
        runs: PathField = PathField("cache/runs")
    ```
    """

    def __init__(self, default: str | None = None) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Path:
        if instance is not None:
            found: Path = vars(instance)[self._name]
            return found
        if self._default is None:  # dataclasses ask for the default of a field so
            raise AttributeError(f"{self._name} has no default")
        return Path(self._default)

    def __set__(self, instance: object, value: Path | str) -> None:
        vars(instance)[self._name] = as_path(value)


class MaybePath:
    """The same, of a path that may be None, and is if it is not said."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Path | None:
        found: Path | None = None if instance is None else vars(instance)[self._name]
        return found

    def __set__(self, instance: object, value: Path | str | None) -> None:
        vars(instance)[self._name] = as_path(value)


@overload
def as_path(said: Path | str) -> Path: ...
@overload
def as_path(said: None) -> None: ...
@overload
def as_path(said: Path | str | None) -> Path | None: ...
def as_path(said: Path | str | None) -> Path | None:
    """What a parameter that takes a path or its text means; `~` is the user's folder, if there is such a user."""
    if said is None:
        return None
    with suppress(RuntimeError):
        return Path(said).expanduser()
    return Path(said)


def repr_of_said(value: Any) -> str:
    """A dataclass as the call that makes it: fields that are as they are by default are left out, paths are text."""
    said = []
    for field in fields(value):
        here = getattr(value, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is MISSING or here != default:
            said.append(f"{field.name}={str(here)!r}" if isinstance(here, Path) else f"{field.name}={here!r}")
    return f"{type(value).__name__}({', '.join(said)})"


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, above: str = "", below: str = "") -> str:
    """A table for a notebook, with a line above and lines below it; every text is escaped."""

    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    def paragraph(text: str) -> str:
        return f"<p>{escape(text).replace(chr(10), '<br>')}</p>" if text else ""

    body = "".join(line(row, "td") for row in rows)
    table = f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>" if body else ""
    return f"<div>{paragraph(above)}{table}{paragraph(below)}</div>"


# ---------------------------------------------------------------------------------------- tables that people bring


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def is_number(text: str) -> bool:
    """Whether it is a finite number, as people write one: not `1_000`, `inf` or `0x10`, which Python reads."""
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(float(text))


def nearly_number(text: str) -> bool:
    """Whether it is what a spreadsheet, or Python, would take for a number: 4,86 or 4_86 or 1 234 or 0x10 or inf."""
    plain = re.sub(r"[\s_,'’%]", "", unicodedata.normalize("NFKC", text).replace("−", "-"))
    for read in (float, lambda digits: int(digits, 0)):
        with suppress(ValueError):
            read(plain)
            return True
    return False


def delimiter_of(text: TextIO, usual: str) -> str:
    """What parts the column names of a table: the usual, or else a semicolon, a tab or a comma; the text is rewound."""
    names = next((line for line in text if line.strip()), "")
    text.seek(0)
    return usual if usual in names else next((other for other in ";\t," if other in names), usual)


def numbers_rows(column: str) -> bool:
    """Whether a column of this name has the numbers or ids of rows, as `Unnamed: 0`, `index`, `id` or `photo_id`."""
    return bool(re.fullmatch(r"(?i:unnamed: ?\d+|level_\d+|index|(.*[_ .-])?(id|idx))|.*[a-z](Id|ID)", column))


def but_for_case(keys: Sequence[str], known: Iterable[str]) -> str | None:
    """How many keys differ from known ones in upper and lower case alone, where, and what to do; None if none does."""
    there = dict.fromkeys(known)
    folded = {each.casefold(): each for each in there}
    pairs = [(key, folded[key.casefold()]) for key in keys if key not in there and key.casefold() in folded]
    if not pairs:
        return None
    parted = [(os.path.splitext(key), os.path.splitext(other)) for key, other in pairs]  # noqa: PTH122
    if all(here[0] == other[0] for here, other in parted):
        wrong, right = (few(sorted({each[side][1] for each in parted})) for side in (0, 1))
        what, to_do = f"the case of {wrong}", f"write {right}, as the store does"
    else:
        what = f"upper and lower case, as {pairs[0][0]!r} and {pairs[0][1]!r}"
        to_do = "write them as the store does"
    return f"{len(pairs)} of {len(keys)} would match but for {what}; {to_do}"


# ---------------------------------------------------------------------------------------- words of the command line


def parse_scale(text: str) -> tuple[float, float]:
    """LOW:HIGH as --scale takes it, as in 1:7.

    Raises:
        ConfigError: it does not have that form, or LOW is not below HIGH.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--scale {text!r} is not of the form LOW:HIGH, as 1:7") from None
    if not is_scale(low, high):
        raise ConfigError(f"--scale {text!r}: the first end has to be below the second")
    return low, high


def is_scale(low: float, high: float) -> bool:
    """Whether two numbers are the ends of a rating scale."""
    return math.isfinite(low) and math.isfinite(high) and low < high


def parse_names(text: str | None) -> tuple[str, ...]:
    """NAME,NAME as many options take it; nothing if it is not said."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_store(text: str, base: Path = Path()) -> Path | str:
    """A URL as it is; a path relative to `base`."""
    return text if "://" in text else base / as_path(text)


def check_scheduler(address: str) -> None:
    """Refuse the address of a Dask scheduler that cannot be reached.

    Dask itself would try for long, and leave a client behind that cannot be closed.

    Raises:
        ClusterError: there can be no scheduler, or none listens there.
    """
    shown = "`dask scheduler` shows its address when it starts, as tcp://192.168.0.7:8786"
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in SCHEMES:
        raise ClusterError(f"--scheduler {address!r} is not of the form tcp://HOST:PORT; {shown}")
    if parts.scheme in ("tls", "wss") and not _has_certificates():
        raise ClusterError(
            f"--scheduler {address} takes certificates, and Dask's configuration (distributed.comm.tls) names none"
        )
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            if parts.scheme == "tcp" and not connection.recv(1):  # a scheduler speaks first
                raise OSError("what listens there closes the connection")
    except TimeoutError as error:
        raise ClusterError(f"no Dask scheduler answers at {address} in {CONNECT_S:.0f} s; {shown}") from error
    except OSError as error:
        raise ClusterError(f"no Dask scheduler answers at {address} ({error}); {shown}") from error


def connect_scheduler(address: str) -> Any:
    """A client of a Dask scheduler that somebody has started; whoever asks for it closes it.

    Raises:
        ClusterError: Dask is not installed, or there can be no scheduler at the address, or none of this version
            answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError("--scheduler needs one more package: pip install 'featstore[cluster]'") from error
    check_scheduler(address)
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (TimeoutError, OSError, ValueError) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ClusterError(
            f"what listens at {address} does not answer as a Dask scheduler of this version: {said}"
        ) from error


def _has_certificates() -> bool:
    from distributed.security import Security

    return Security().get_connection_args("client").get("ssl_context") is not None  # type: ignore[no-untyped-call]
