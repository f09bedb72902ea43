"""Light heads that train from a feature store, with validation that nobody can fault.

from heads import Plan, read_labels, train

run = train(Plan(system="amtl", store=..., labels=read_labels(...), out=...))
run.metrics["beauty"]["pearson"]["mean"]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.errors import HeadsError
    from heads.experiment import sweep, train
    from heads.inference.comparing import compare
    from heads.labels.labels import Labels, read_labels
    from heads.plan import Plan
    from heads.report.page import write_report
    from heads.runs.applying import evaluate, predict
    from heads.runs.run import Run
    from heads.splits.validation import Validation
    from heads.systems.system import find_system

# Imported at first use, so that `heads --help` need not wait for torch.
_PUBLIC = {
    "HeadsError": "errors",
    "Labels": "labels.labels",
    "Plan": "plan",
    "Run": "runs.run",
    "Validation": "splits.validation",
    "compare": "inference.comparing",
    "evaluate": "runs.applying",
    "find_system": "systems.system",
    "predict": "runs.applying",
    "read_labels": "labels.labels",
    "sweep": "experiment",
    "train": "experiment",
    "write_report": "report.page",
}

__all__ = [
    "HeadsError",
    "Labels",
    "Plan",
    "Run",
    "Validation",
    "compare",
    "evaluate",
    "find_system",
    "predict",
    "read_labels",
    "sweep",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'heads' has no attribute {name!r}")
    return getattr(import_module(f"heads.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
