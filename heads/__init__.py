"""Light heads that train from a feature store, with validation that nobody can fault.

from heads import Plan, train

run = train(Plan(system="amtl", store=..., labels=...))
run.metrics["beauty"]["pearson"]["mean"]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.errors import HeadsError
    from heads.experiment import Plan, predict, train
    from heads.labels import Labels, read_labels
    from heads.runs import Run

# Imported at first use, so that `heads --help` need not wait for torch.
_PUBLIC = {
    "HeadsError": "errors",
    "Labels": "labels",
    "Plan": "experiment",
    "Run": "runs",
    "predict": "experiment",
    "read_labels": "labels",
    "train": "experiment",
}

__all__ = ["HeadsError", "Labels", "Plan", "Run", "predict", "read_labels", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'heads' has no attribute {name!r}")
    return getattr(import_module(f"heads.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
