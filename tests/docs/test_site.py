"""The site of the documentation: every command and every public name is on it, and links lead to pages."""

import importlib.util
from pathlib import Path

import pytest
import typer

import featstore
import heads

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "site" / "hooks.py")
assert SPEC is not None
assert SPEC.loader is not None
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)


def test_the_help_of_every_command_is_on_one_page() -> None:
    page = hooks.write_help()
    commands = [
        f"{program} {name}"
        for program, app in hooks.PROGRAMS.items()
        for name in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    ]
    assert {"featstore extract", "heads train", "python -m pipelines demo"} < set(commands)
    for command in (*hooks.PROGRAMS, *commands):
        assert f"# {command}\n\n```text\nUsage: {command} " in page
    assert "  --hold-out " in page.partition("### heads train\n")[2].partition("\n### ")[0]
    assert max(map(len, page.splitlines())) <= 80


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    lines = hooks.write_api().splitlines()
    named = [line.removeprefix("::: ") for line in lines if line.startswith("::: ")]
    assert named == [f"{each.__name__}.{name}" for each in (featstore, heads) for name in each.__all__]


@pytest.mark.parametrize(
    ("folder", "link", "mended"),
    [
        ("", "docs/heads.md#labels", "heads.md#labels"),
        ("", "CHANGELOG.md", "changelog.md"),
        ("", "docs/notebook.ipynb", "notebook.md"),
        ("docs", "../CONTRIBUTING.md#tests", "contributing.md#tests"),
        ("docs", "../README.md", "index.md"),
        ("docs", "timeline.png", "timeline.png"),
        ("docs", "https://icechunk.io", "https://icechunk.io"),
        ("docs", "../heads/plan.py", "../heads/plan.py"),  # not on the site: the build fails
    ],
)
def test_a_link_that_works_in_the_repository_works_on_the_site(folder: str, link: str, mended: str) -> None:
    assert hooks.mend_links(f"See [this]({link}), and more.", ROOT / folder) == f"See [this]({mended}), and more."


def test_the_notebook_is_a_page() -> None:
    page = hooks.write_notebook(ROOT / "docs" / "notebook.ipynb")
    assert page.startswith("# ")
    assert "](notebook.ipynb)" in page
    assert "```python\nfeatstore.list_backbones" in page
