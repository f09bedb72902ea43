"""The register of heads by name: those of this folder, of installed packages, and plugins of a user's own.

Code is loaded because a user names it, or has installed it. It is never loaded because a run or a plan names it.
"""

import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, get_args

from featstore.support import suggest
from heads.errors import HeadsError, UnknownSystemError
from heads.systems.system import KINDS, Origin, Reads, System, by_gradient, by_solving, from_whole_photos

ENTRY_POINTS = "heads.systems"
"""The group in which an installed package names its modules that register heads."""
_SOURCE = "__source__"
_SYSTEMS: dict[str, System] = {}
_LOADED: set[str] = set()
_BROKEN: list[str] = []


def register(system: System) -> System:
    """Make a head known by its name, with the options of training that it does not have itself.

    The file that registered a name may do so again, as a cell of a notebook that is run again.

    Raises:
        UnknownSystemError: another file has registered a head of that name, or it reads or learns what no head does.
    """
    origin = _origin_of(sys._getframe(1).f_globals)
    if origin.is_plugin:
        _load_own()
    _check(system, origin)
    known = _SYSTEMS.get(system.name)
    if known is not None and known.origin is not None and known.origin.where != origin.where:
        raise UnknownSystemError(
            f"{origin.where} registers a head {system.name!r}, and so does {known.origin.where}; "
            "give one of them another name"
        )
    if system.fit is not None:
        options = by_solving(**system.options)
    elif system.from_pixels:
        options = from_whole_photos("ours", **system.options)  # one that sees crops says so itself
    else:
        options = by_gradient("ours", **system.options)
    _SYSTEMS[system.name] = found = replace(system, options=options, origin=origin)
    return found


def load_systems() -> dict[str, System]:
    """Every head by name: those of this folder, of installed packages, and of plugins that were loaded.

    A package that cannot be loaded does not stand in the way of the other heads: `broken_packages` says why.
    """
    _load_own()
    _BROKEN.clear()
    for point in _installed():
        try:
            _load_module(point.module, f"{point.module} of the package {point.dist.name if point.dist else '?'}")
        except UnknownSystemError as error:
            _BROKEN.append(str(error))
    return dict(_SYSTEMS)


def broken_packages() -> list[str]:
    """Why the heads of some installed packages are not among those of `load_systems`."""
    return list(_BROKEN)


def find_system(name: str, *, plugin: str | None = None) -> System:
    """A head by name.

    Args:
        plugin: what `--plugin` was when a run was trained with this head, for the message; it is not loaded.

    Raises:
        UnknownSystemError: no such head; suggests the nearest, or says which plugin is missing.
    """
    known = load_systems()
    if name in known:
        return known[name]
    if plugin is None:
        raise UnknownSystemError(
            f"unknown head {name!r}; {suggest(name, known)} (`heads list` shows them; --plugin adds one of your own)"
            + "".join(f"\n{each}" for each in _BROKEN)
        )
    if not plugin:
        raise UnknownSystemError(
            f"head {name!r} was registered in a session of Python; register it again there, or put it in a file and "
            "say --plugin FILE.py"
        )
    raise UnknownSystemError(
        f"head {name!r} is from {plugin}, which is not loaded unless you say so: add --plugin {shlex.quote(plugin)}"
    )


def load_plugins(named: Iterable[str] | None) -> None:
    """Load plugins, each the path of a .py file or the name of a module that registers heads.

    Raises:
        UnknownSystemError: one is not there, cannot be loaded, registers nothing, or registers a name that is taken.
    """
    for each in named or ():
        if each.endswith(".py") or "/" in each:
            file = Path(each).resolve()
            try:
                _load_file(str(file), file.read_bytes())
            except OSError as error:
                raise UnknownSystemError(f"plugin {file} cannot be read: {error.strerror}") from error
        else:
            _load_module(each, each)


def system_like(name: str, origin: Origin | None) -> System:
    """The head that another process has: its plugin is run from the source that was sent, or imported.

    Call it in one thread at a time.

    Args:
        origin: that of a plugin; None of a head that is not one.

    Raises:
        UnknownSystemError: the plugin cannot be loaded here, or is another one.
    """
    if origin is None:
        return find_system(name)
    if not origin.is_file:
        load_plugins([origin.module])
    elif not _is_loaded(origin.file, origin.source):
        for each in [key for key, system in _SYSTEMS.items() if system.origin and system.origin.is_file]:
            del _SYSTEMS[each]  # of an earlier plan, perhaps of an earlier state of the file
        _load_file(origin.file, origin.source)
    found = find_system(name)
    if found.origin is None or found.origin.sha256 != origin.sha256:
        raise UnknownSystemError(f"{origin.module} is another one here; install the same version")
    return found


def _load_file(file: str, source: bytes) -> None:
    if not _is_loaded(file, source):
        _load(file, file, lambda: _run(file, source))


def _load_module(name: str, what: str) -> None:
    if name in _LOADED:
        return
    _LOADED.add(name)  # now, as it may itself ask which heads there are
    try:
        _load(what, name, lambda: import_module(name))
    except UnknownSystemError as error:
        _LOADED.discard(name)
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
            file = f"; there is a file: say --plugin {name}.py" if Path(f"{name}.py").is_file() else ""
            raise UnknownSystemError(
                f"plugin {what}: there is no module {missing.name!r}; name a .py file or an installed module{file}"
            ) from error
        raise


def _load(what: str, module: str, run: Callable[[], object]) -> None:
    """Run code that has to register a head in a module of that name, or in one below it."""
    _load_own()
    known = dict(_SYSTEMS)
    before = {id(system) for system in known.values()}
    try:
        run()
    except BaseException as error:
        _SYSTEMS.clear()  # what it registered before it failed is half a plugin
        _SYSTEMS.update(known)
        sys.modules.pop(module, None)
        if isinstance(error, HeadsError) or not isinstance(error, Exception | SystemExit):
            raise
        raise UnknownSystemError(f"plugin {what} cannot be loaded: {_why(error)}") from error
    if not any(id(system) not in before or _is_below(module, system) for system in _SYSTEMS.values()):
        raise UnknownSystemError(f"plugin {what} registers no head; it has to call heads.register(heads.System(...))")


def _run(file: str, source: bytes) -> None:
    """Run a plugin's file as a module of its own, whose name is the path.

    From its bytes, and not by importlib from the path: what runs is what is hashed, recorded and sent to workers.
    """
    module = ModuleType(file)
    module.__dict__.update({"__file__": file, "__package__": "", _SOURCE: source})
    sys.modules[file] = module
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)


@cache
def _load_own() -> None:
    for each in iter_modules([str(Path(__file__).parent)]):
        import_module(f"heads.systems.{each.name}")


@cache
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINTS))


def _origin_of(caller: Mapping[str, Any]) -> Origin:
    """Of whoever has these globals."""
    module, file = caller.get("__name__", "__main__"), caller.get("__file__") or ""
    file = str(Path(file).resolve()) if file else ""
    origin = Origin(module, file)
    if not origin.is_plugin:
        return origin
    try:
        return replace(origin, source=caller.get(_SOURCE) or (Path(file).read_bytes() if file else b""))
    except OSError:  # a module in a zip file
        return origin


def _check(system: System, origin: Origin) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", system.name):
        found = f"a head called {system.name!r}; a name has letters, digits, '-', '_' and '.'"
    elif not (isinstance(system.reads, tuple) and system.reads and set(system.reads) <= {*get_args(Reads)}):
        found = f"{system.name!r}, which reads {system.reads!r}; expected a tuple of {', '.join(get_args(Reads))}"
    elif not (isinstance(system.kinds, tuple) and system.kinds and {*system.kinds} <= {*KINDS}):
        found = f"{system.name!r}, of the kinds {system.kinds!r}; expected a tuple of {', '.join(KINDS)}"
    else:
        return
    raise UnknownSystemError(f"{origin.where} registers {found}")


def _is_loaded(file: str, source: bytes) -> bool:
    """Whether a plugin's file has been run as it is now; one that was edited since is run again."""
    origins = [system.origin for system in _SYSTEMS.values()]
    return any(origin is not None and origin.module == file and origin.source == source for origin in origins)


def _is_below(module: str, system: System) -> bool:
    return system.origin is not None and f"{system.origin.module}.".startswith(f"{module}.")


def _why(error: BaseException) -> str:
    """`FILE, line 3: NameError: ...`: where a plugin went wrong, and how."""
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {said}"
    ours = {__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in ours]
    frames = [frame for frame in frames if not frame.filename.endswith("/importlib/__init__.py")]
    return f"{frames[0].filename}, line {frames[0].lineno}: {said}" if frames else said
