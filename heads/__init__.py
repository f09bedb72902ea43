"""Light heads that train from a feature store, with honest cross-validation.

```python
from heads import predict, train, write_report

run = train("amtl", "features.zarr", labels="labels.csv", scale=(1, 7), group="source", out="runs/first")
run  # the figures of each task, out of fold, with their intervals
run.metrics["beauty"]["pearson"]["mean"]
run.predictions  # a table: what models said of photos that they had not seen
write_report(run)  # runs/first/report.html
predict(run, "more.zarr")  # a table for photos without labels
```

A `Plan` says the same at once. A head of your own is a `System` that you `register` and then name; docs/heads.md shows
one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.errors import HeadsError
    from heads.experiment import Swept, sweep, train
    from heads.inference.comparing import compare
    from heads.labels.joining import Join, join
    from heads.labels.labels import Labels, join_parts, read_labels
    from heads.labels.target import Target
    from heads.plan import Plan
    from heads.report.comparison import write_comparison
    from heads.report.page import write_report
    from heads.runs.applying import Evaluation, evaluate, predict
    from heads.runs.run import Run
    from heads.splits.validation import Validation
    from heads.systems.registry import find_system, register
    from heads.systems.system import Option, Stage, System

# Imported at first use, so that `heads --help` need not wait for torch.
_PUBLIC = {
    "Evaluation": "runs.applying",
    "HeadsError": "errors",
    "Join": "labels.joining",
    "Labels": "labels.labels",
    "Option": "systems.system",
    "Plan": "plan",
    "Run": "runs.run",
    "Stage": "systems.system",
    "Swept": "experiment",
    "System": "systems.system",
    "Target": "labels.target",
    "Validation": "splits.validation",
    "compare": "inference.comparing",
    "evaluate": "runs.applying",
    "find_system": "systems.registry",
    "join": "labels.joining",
    "join_parts": "labels.labels",
    "predict": "runs.applying",
    "read_labels": "labels.labels",
    "register": "systems.registry",
    "sweep": "experiment",
    "train": "experiment",
    "write_comparison": "report.comparison",
    "write_report": "report.page",
}

__all__ = [
    "Evaluation",
    "HeadsError",
    "Join",
    "Labels",
    "Option",
    "Plan",
    "Run",
    "Stage",
    "Swept",
    "System",
    "Target",
    "Validation",
    "compare",
    "evaluate",
    "find_system",
    "join",
    "join_parts",
    "predict",
    "read_labels",
    "register",
    "sweep",
    "train",
    "write_comparison",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'heads' has no attribute {name!r}")
    return getattr(import_module(f"heads.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
