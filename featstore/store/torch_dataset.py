"""A stored tensor as a torch dataset; a file of its own because importing torch takes seconds."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset


class ReadableRows(Protocol):
    """What a dataset needs of a `StoredTensor`."""

    @property
    def rows(self) -> NDArray[np.int64]: ...
    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]: ...


class RowsDataset(Dataset[tuple[int, torch.Tensor]]):
    """The present rows of a tensor: item i is (row number, features)."""

    def __init__(self, tensor: ReadableRows) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor.rows)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, torch.Tensor]]:
        """A whole minibatch in one read; torch's loader calls this when it is there."""
        rows = self.tensor.rows[indices]
        features = torch.from_numpy(self.tensor.read(rows))
        return list(zip(rows.tolist(), features, strict=True))
