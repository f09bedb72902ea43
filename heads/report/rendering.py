"""Pages from templates: one file each, with its scripts in it, which runs no other script and loads nothing."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from featstore.files import replacing
from featstore.support import harmless
from heads.errors import RunError
from heads.report.figures import embedded
from heads.web import SCRIPTS, charts


def render(template: str, shared: Mapping[str, Any], **values: object) -> str:
    """A page.

    Args:
        shared: what its charts have in common, as the paths of photos.
    """
    return _environment().get_template(template).render(shared=shared, **values)


def write(page: str, file: Path) -> None:
    """
    Raises:
        RunError: the page cannot be written.
    """
    try:
        with replacing(file) as out:
            out.write(page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}") from error


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("heads", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [
        *(script.text() for script in SCRIPTS.values()),
        charts(),
        (files(__package__) / "draw.js").read_text("utf-8"),
    ]
    environment.globals["scripts"] = [Markup(text) for text in scripts]
    environment.globals["script_hashes"] = [_hash(text) for text in scripts]
    environment.filters["embedded"] = embedded
    return environment


def _hash(script: str) -> str:
    """What a page's policy names a script by that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _printable(value: Any) -> Any:
    """Text of a run, whoever wrote it, without what steers a terminal or turns the direction of what is read."""
    return harmless(value) if isinstance(value, str) and not hasattr(value, "__html__") else value  # of macros: done
