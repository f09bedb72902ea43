"""Early stopping: which epoch is the best so far, and whether training should end."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple


class Verdict(NamedTuple):
    """What follows from an epoch."""

    keep: bool
    """Its weights have to be kept, as later ones may be worse."""
    stop: bool
    """Training has nothing more to gain."""


@dataclass
class EarlyStopping:
    """Stop when the loss on the inner rows has not fallen for some epochs, and go back to the epoch of the least loss.

    Without inner rows or patience nothing is stopped, and the last epoch is the best.
    """

    patience: int
    """Epochs without a lower loss; 0: never stop."""
    best_loss: float = inf
    best_epoch: int = 0
    """Counted from 1; 0 before there was one."""

    def judge(self, epoch: int, loss: float | None) -> Verdict:
        """Take note of an epoch, counted from 1, and of its loss on the inner rows, None if there are none."""
        if not self.patience or loss is None:
            self.best_loss, self.best_epoch = loss or 0.0, epoch
            return Verdict(keep=False, stop=False)
        better = loss < self.best_loss
        if better:
            self.best_loss, self.best_epoch = loss, epoch
        return Verdict(keep=better, stop=epoch - self.best_epoch >= self.patience)
