"""A stored tensor as a torch dataset; apart because importing torch takes seconds."""

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from featstore.store.tensor import StoredTensor


class RowsDataset(Dataset[tuple[int, torch.Tensor]]):
    """The present rows of a tensor: item i is (row number, features)."""

    def __init__(self, tensor: "StoredTensor") -> None:
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
