"""The house keeps its rules: who may import whom, no import in a circle, and nothing but commands prints."""

import ast
from pathlib import Path

import pytest

from .house import draw_map, find_circles, read_imports

ROOT = Path(__file__).parents[1]
FACES = {
    "heads": {"featstore", "featstore.files", "featstore.support"},
    "heads.cli": {"featstore", "featstore.files", "featstore.support", "featstore.terminal"},
    "pipelines": {"featstore", "featstore.files", "featstore.support", "featstore.terminal", "heads"},
}
TALKING = ("print", "exit", "sys.exit", "SystemExit", "typer.echo", "typer.Exit", "sys.stdout.write")
# Each imports from its own floor and those before it.
FLOORS = (
    ("featstore.errors",),
    ("featstore.support",),
    ("featstore.files",),
    ("featstore.terminal",),
    ("featstore.photos", "featstore.backbones"),
    ("featstore.identity",),
    ("featstore.engines",),
    ("featstore.store",),
    ("featstore.config", "featstore.toml"),
    ("featstore.extraction",),
    ("featstore.exchange", "featstore.sharing"),
    ("featstore",),  # the face
    ("featstore.cli",),
)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return read_imports(ROOT)


def test_featstore_knows_nothing_of_heads_and_recipes(imports: dict[str, set[str]]) -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if module.startswith("featstore") and not other.startswith("featstore")
    ]
    assert wrong == []


def test_other_packages_are_used_through_their_faces(imports: dict[str, set[str]]) -> None:
    def may_use(module: str) -> set[str]:
        return FACES["heads.cli" if module.startswith("heads.cli") else module.partition(".")[0]]

    wrong = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if not module.startswith("featstore")
        and module.partition(".")[0] != other.partition(".")[0]
        and other not in may_use(module)
    ]
    assert wrong == []


def test_a_floor_of_featstore_stands_on_those_below(imports: dict[str, set[str]]) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

    def of(module: str) -> int | None:
        return floor.get(".".join(module.split(".")[:2]))

    unknown = {module for module in imports if module.startswith("featstore") and of(module) is None}
    assert unknown == set(), "name their floor"
    wrong = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if (here := of(module)) is not None and (there := of(other)) is not None and there > here
    ]
    assert wrong == []


def test_no_imports_in_a_circle(imports: dict[str, set[str]]) -> None:
    assert find_circles(imports) == []


def test_a_circle_would_be_found() -> None:
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_only_commands_print_and_exit() -> None:
    wrong = []
    for file in (each for package in ("featstore", "heads") for each in (ROOT / package).rglob("*.py")):
        if {"cli", "terminal"} & set(file.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in TALKING:
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_every_file_says_what_it_is() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for package in ("featstore", "heads", "pipelines")
        for file in (ROOT / package).rglob("*.py")
        if not ast.get_docstring(ast.parse(file.read_text("utf-8")))
    ]
    assert silent == []


def test_the_map_is_that_of_today() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert draw_map(ROOT) in text, "put in what `python tests/house.py --map` prints"
