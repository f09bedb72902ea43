"""Dataclasses whose fields become the options of a command."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which every parameter that is a dataclass of options stands for these options, at its place.

    ```
    @dataclass(frozen=True)
    class Output:
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False

    @app.command()
    @spread_options
    def info(store: StoreArgument = None, *, output: Output) -> None: ...    # featstore info [STORE] [--quiet]
    ```
    """
    signature = inspect.signature(command, eval_str=True)
    types = {name: each.annotation for name, each in signature.parameters.items()}
    groups = {name: each for name, each in types.items() if isinstance(each, type) and is_dataclass(each)}
    options = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}
    for group in groups.values():
        if any(each.default_factory is not MISSING for each in fields(group)):
            raise TypeError(f"{group.__name__}: an option has a plain default, and no default_factory")
    spread = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in signature.parameters.items()
        for option in (options[name].values() if name in groups else [each])
    ]

    @wraps(command)
    def call(**said: Any) -> None:
        made = {name: group(**{each: said.pop(each) for each in options[name]}) for name, group in groups.items()}
        command(**said, **made)

    call.__signature__ = signature.replace(parameters=spread)  # type: ignore[attr-defined]  # what Typer looks at
    return call
