"""Every error that heads raises on purpose.

```
HeadsError
├── LabelsError         the label table, its scale, tasks or groups do not make sense
│   └── RepeatsError    a photo has several rows, and nothing says how they become one label
├── FeaturesError       the store has no tensor for this head, or no labelled rows in it
├── UnknownSystemError  a head or an option of it is unknown
├── TrainingError       training cannot go on, or needs more memory than allowed
│   └── DivergedError   the loss of a model is no longer a number
└── RunError            a run folder is missing, incomplete, or does not fit the store
```

Each message says what was found, what was expected and what to do.
"""

from featstore.support import harmless


class HeadsError(Exception):
    """The root of the tree: catching it catches everything that heads raises on purpose."""

    def __str__(self) -> str:
        return harmless(super().__str__())


class LabelsError(HeadsError):
    pass


class RepeatsError(LabelsError):
    pass


class FeaturesError(HeadsError):
    pass


class UnknownSystemError(HeadsError):
    pass


class TrainingError(HeadsError):
    pass


class DivergedError(TrainingError):
    pass


class RunError(HeadsError):
    pass
