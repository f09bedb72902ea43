"""What is public, and what a command may cost before it does anything."""

import json
import subprocess
import sys

import pytest

import featstore
import heads

FEATSTORE = [
    "Config", "FeatstoreError", "FeatureFile", "ImageState", "RowState", "Store", "StoredTensor", "Summary",
    "check_scheduler", "choose_device", "console", "export", "extract", "find_config", "import_features", "open",
    "parse_scale", "parse_store", "read_config", "read_photo", "recompute", "repair", "retry", "suggest", "verify",
    "wait_briefly",
]  # fmt: skip
HEADS = [
    "Evaluation", "HeadsError", "Labels", "Option", "Plan", "Run", "Stage", "Swept", "System", "Target", "Validation",
    "compare", "evaluate", "find_system", "predict", "read_labels", "register", "sweep", "train", "write_report",
]  # fmt: skip


@pytest.mark.parametrize(("package", "names"), [(featstore, FEATSTORE), (heads, HEADS)], ids=["featstore", "heads"])
def test_the_public_names_are_these_and_all_are_there(package: object, names: list[str]) -> None:
    assert sorted(package.__all__) == sorted(names)  # type: ignore[attr-defined]
    assert dir(package) == sorted(names)
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


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
