"""What pages draw with: two libraries (d3, Observable Plot) as their makers released them, and our charts.

The libraries come from npm (`npm pack d3@7.9.2`, `@observablehq/plot@0.6.17`), file for file; `SCRIPTS` has their
SHA-256. Both are under the ISC licence, whose text is LICENSE-drawing.txt beside them. A page holds them, or a server
gives them from here: no network is needed.
"""

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Script:
    """A library of another maker: its version, where it is from, and the SHA-256 of its file here."""

    file: str
    package: str
    version: str
    path: str
    sha256: str

    def text(self) -> str:
        """The whole script."""
        return (files(__name__) / self.file).read_text("utf-8")


SCRIPTS = {
    "d3": Script(
        "d3.min.js", "d3", "7.9.2", "dist/d3.min.js", "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1"
    ),
    "plot": Script(
        "plot.min.js",
        "@observablehq/plot",
        "0.6.17",
        "dist/plot.umd.min.js",
        "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    ),
}
"""By name; in the order in which a page has to load them."""


def charts() -> str:
    """Our own script: `charts`, functions of data and a width that draw with these libraries."""
    return (files(__name__) / "charts.js").read_text("utf-8")


__all__ = ["SCRIPTS", "Script", "charts"]
