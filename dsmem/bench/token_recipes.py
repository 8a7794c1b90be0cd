"""What people write today to read token files: like `recipes`, for what needs torch."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

Sample = tuple[torch.Tensor, torch.Tensor]


class PlainTokens(Dataset[Sample]):
    """Windows over np.memmap, one by one: the Dataset of every second training script."""

    def __init__(self, path: str, seq_len: int) -> None:
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.data) - self.seq_len

    def __getitem__(self, index: int) -> Sample:
        x = torch.from_numpy(self.data[index : index + self.seq_len].astype(np.int64))
        y = torch.from_numpy(self.data[index + 1 : index + 1 + self.seq_len].astype(np.int64))
        return x, y


def get_batch(path: str, batch_size: int, seq_len: int) -> Sample:
    """A batch of windows at random, the file opened anew: no epochs, no order, nothing to resume."""
    data = np.memmap(path, dtype=np.uint16, mode="r")
    places = torch.randint(len(data) - seq_len, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in places])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in places])
    return x, y
