"""A group of hand-made features as a network: a formula that is run on one picture after the other, on the CPU."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Picture: TypeAlias = NDArray[np.uint8]
"""(height, width, 3), RGB."""
Vector: TypeAlias = NDArray[np.float64]
"""(F,)"""


class Group(nn.Module):
    """A formula in place of a network."""

    by_formula = True
    """That no engine has anything to make faster."""

    def __init__(self, describe: Callable[[Picture], Vector]) -> None:
        super().__init__()
        self.describe = describe

    def forward(self, pixels: Tensor) -> Tensor:
        """(T, 3, height, width), of values 0 to 1 -> (T, F) float32."""
        pictures = (255 * pixels).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        found = np.stack([self.describe(np.ascontiguousarray(each)) for each in pictures])
        return torch.from_numpy(found).to(pixels.device, torch.float32)
