"""README and the pages that it leads to: their Python runs, or names what there is; their commands exist."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featstore
import heads

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_first_lines_of_python_run_after_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "cache" / "demo" / "photos"
    photos.mkdir(parents=True)
    rows = ["path,source,calm"]
    for number, photo in enumerate(np.random.default_rng(0).integers(0, 255, (10, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(photo).save(photos / f"{number}.png")
        rows.append(f"{number}.png,{number // 2},{1 + number % 7}")
    (photos.parent / "labels.csv").write_text("\n".join([*rows, ""]), "utf-8")
    quick = 'engine = "eager"\n[backbones.test_resnet]\nweights = "random:0"\n'
    (tmp_path / "featstore.toml").write_text(quick, "utf-8")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README, "python")
    assert len(code.splitlines()) <= 10
    assert '["lite0", "lite1"]' in code
    names: dict[str, object] = {}
    exec(code.replace('["lite0", "lite1"]', '["test_resnet"]'), names)
    assert names["features"].shape == (10, 96)  # type: ignore[attr-defined]
    assert isinstance(names["run"], heads.Run)
    assert len(list(Path("cache/runs").glob("ridge-*/report.html"))) == 1


def test_readme_is_short_and_its_two_commands_are_there() -> None:
    assert len(README.splitlines()) <= 90
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (commands,) = blocks(README, "sh")
    targets = re.findall(r"^make (\w+)", commands, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in (*targets, *re.findall(r"`make (\w+)`", README)):
        assert re.search(rf"^{target}: ", makefile, re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_names_what_is_public(page: Path) -> None:
    for code in blocks(page.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                package = {"featstore": featstore, "heads": heads}.get(node.value.id)
                assert package is None or node.attr in package.__all__, f"{node.value.id}.{node.attr}"
