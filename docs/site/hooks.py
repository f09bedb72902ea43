"""What the site has besides the pages of docs/: the help of every command, the public names, README and its like.

mkdocs calls the functions that begin with `on_`. Nothing is copied by hand, so nothing goes stale.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.testing import CliRunner

import featstore
import featstore.cli
import heads
import heads.cli
import pipelines.__main__

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "LICENSE.txt",
}
"""Files outside docs/ that are on the site, and where."""
NOTEBOOK = "notebook.ipynb"
WIDE = ("architecture.md", "commands.md")
"""Pages whose long lines take the place of the table of contents."""
PROGRAMS = {"featstore": featstore.cli.app, "heads": heads.cli.app, "python -m pipelines": pipelines.__main__.app}
PACKAGES = (featstore, heads)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "help.md", content=write_help()))
    files.append(File.generated(config, "api.md", content=write_api()))
    files.append(File.generated(config, "notebook.md", content=write_notebook(ROOT / "docs" / NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead where files are on the site; in the repository they lead to the files themselves."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    source = page.file.abs_src_path
    if source is None:
        return markdown
    return mend_links(markdown, Path(source).parent)


def mend_links(markdown: str, folder: Path) -> str:
    """The links of a file in `folder`, with the addresses of the site; all pages of the site are in one folder."""
    places = {ROOT / source: page for source, page in OUTSIDE.items()}
    places[ROOT / "docs" / NOTEBOOK] = "notebook.md"

    def mend(link: re.Match[str]) -> str:
        file = Path(posixpath.normpath(folder / link["file"]))
        if file not in places and not file.is_relative_to(ROOT / "docs"):
            return link[0]  # a web address; or a file that is not on the site, which mkdocs then complains about
        return f"]({places.get(file) or file.relative_to(ROOT / 'docs')}{link['anchor'] or ''})"

    return re.sub(r"\]\((?P<file>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)", mend, markdown)


# ---------------------------------------------------------------------------------------------------- generated pages


def write_help() -> str:
    """What every command prints with `--help` in a terminal of 80 columns."""
    lines = ["# Help of every command", "", "What the commands print with `--help`.", ""]
    for program, app in PROGRAMS.items():
        lines += [f"## {program}", "", *_show_help(program, app)]
        for name in _commands(typer.main.get_command(app)):
            lines += [f"### {program} {name}", "", *_show_help(program, app, *name.split())]
    return "\n".join(lines)


def _commands(command: Any, before: str = "") -> Iterator[str]:
    for name, below in getattr(command, "commands", {}).items():
        yield before + name
        yield from _commands(below, f"{before}{name} ")


def _show_help(program: str, app: typer.Typer, *words: str) -> list[str]:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name=program, env={"COLUMNS": "80"}, catch_exceptions=False)
    return ["```text", done.stdout.rstrip(), "```", ""]


def write_api() -> str:
    """Every public name of both packages; mkdocstrings puts signature and docstring below it."""
    lines = [
        "# Python API",
        "",
        "Everything that `import featstore` and `import heads` offer. [Examples](python.md).",
        "",
    ]
    for package in PACKAGES:
        lines += [f"## {package.__name__}", ""]
        lines += [line for name in package.__all__ for line in (f"::: {package.__name__}.{name}", "")]
    return "\n".join(lines)


def write_notebook(file: Path) -> str:
    """The cells of a notebook as a page."""
    parts = []
    for cell in json.loads(file.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n[The notebook itself]({file.name}), to run.\n{rest}\n"
