"""What is public, and what a command may cost before it does anything."""

import ast
import enum
import inspect
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import featstore
import heads

FEATSTORE = [
    "Augmentation", "Config", "FeatstoreError", "FeatureFile", "ImageState", "PAPER_SETS", "RowState", "Runtime",
    "Selection", "Store", "StoredTensor", "Summary", "TensorSpec", "Trainable", "View", "WeightsPolicy",
    "choose_device", "concepts", "diff", "export", "extract", "find_config", "import_features", "list_backbones",
    "merge", "open", "open_trainable", "pull", "push", "read_config", "read_photo", "recompute", "released_weights",
    "repair", "retry", "show_progress", "verify", "write_config",
]  # fmt: skip
HEADS = [
    "Evaluation", "HeadsError", "Join", "Labels", "Option", "Plan", "Run", "Stage", "Swept", "System", "Target",
    "Validation", "compare", "evaluate", "find_system", "join", "join_parts", "predict", "read_labels", "register",
    "sweep", "train", "write_comparison", "write_report",
]  # fmt: skip


@pytest.mark.parametrize(("package", "names"), [(featstore, FEATSTORE), (heads, HEADS)], ids=["featstore", "heads"])
def test_the_public_names_are_these_and_all_are_there(package: object, names: list[str]) -> None:
    assert sorted(package.__all__) == sorted(names)  # type: ignore[attr-defined]
    assert dir(package) == sorted(names)
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


PUBLIC = [(package, name) for package in (featstore, heads) for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{p.__name__}.{name}" for p, name in PUBLIC])
def test_what_is_public_is_documented_and_so_is_every_field_of_it(package: object, name: str) -> None:
    value = getattr(package, name)
    if not callable(value):  # a constant: the string below it says what it is
        source = next(
            file for file in Path(featstore.__file__).parent.rglob("*.py") if f"\n{name} = " in file.read_text()
        )
        assert dict(_said(ast.parse(source.read_text())))[name], f"nothing is said of {name}"
        return
    doc = inspect.getdoc(value) if inspect.isfunction(value) else vars(value).get("__doc__")
    assert doc, f"{name} has no docstring"
    assert not doc.startswith(f"{name}("), f"{name} has only the docstring that dataclasses make"
    if inspect.isclass(value) and not issubclass(value, enum.Enum):
        body = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
        silent = [field for field, said in _said(body) if not said and not re.search(rf"`{field}`|\b{field}: ", doc)]
        assert silent == [], f"{name} does not say what its fields are: {', '.join(silent)}"


def _said(body: ast.AST) -> Iterator[tuple[str, bool]]:
    """Of every name that is assigned there and public, whether a string below says what it is."""
    statements = getattr(body, "body", [])
    for statement, below in zip(statements, [*statements[1:], None], strict=True):
        target = statement.target if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [None])[0]
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            yield target.id, isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)


def test_the_first_lines_of_python_name_what_is_there() -> None:
    for package in (featstore, heads):
        for where, name in re.findall(r"(?<![\w/])(featstore|heads)\.(\w+)", package.__doc__ or ""):
            assert name in {"featstore": featstore, "heads": heads}[where].__all__


def test_open_is_the_store_and_not_the_builtin() -> None:
    assert featstore.open is not open
    assert featstore.open.__name__ == "open_store"


@pytest.mark.parametrize("package", ["featstore", "heads"])
def test_help_is_quick_it_imports_nothing_heavy(package: str) -> None:
    script = f"""
import json, sys
sys.argv = [{package!r}, "--help"]
from {package}.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
heavy = {{"torch", "timm", "zarr", "numpy", "pandas", "dask", "xarray", "sklearn", "matplotlib"}}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    *shown, heavy = done.stdout.splitlines()
    assert any("Usage: " in line for line in shown)
    assert json.loads(heavy) == []


@pytest.mark.parametrize("package", ["featstore", "heads"])
def test_a_store_is_opened_without_torch(package: str) -> None:
    script = f"import {package}, featstore, sys; featstore.open, featstore.extract; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
