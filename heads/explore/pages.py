"""The files that the page is made of: one HTML page, its style, its scripts and the library that they draw with."""

from importlib.resources import files
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from heads.web import SCRIPTS

SCRIPT_NAMES = (
    "dom.js",
    "source.js",
    "study.js",
    "ridge.js",
    "scatter.js",
    "gallery.js",
    "emotion.js",
    "map.js",
    "photo.js",
    "run.js",
    "mine.js",
    "app.js",
)
"""In the order in which the page loads them: each uses those before it."""
ASSETS = ("explore.css", "d3.js", *SCRIPT_NAMES)
"""Files that the page asks for."""

Mode = Literal["server", "static"]


def index(mode: Mode, title: str = "") -> str:
    """The HTML page."""
    environment = Environment(
        loader=PackageLoader("heads.explore", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("index.jinja").render(mode=mode, title=title, scripts=["d3.js", *SCRIPT_NAMES])


def asset(name: str) -> str:
    """One of `ASSETS`, as text."""
    if name == "d3.js":
        return SCRIPTS["d3"].text()
    return (files("heads.explore") / "page" / name).read_text("utf-8")
