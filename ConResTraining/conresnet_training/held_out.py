"""The cases that a fold holds out, whole, for validation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from conresnet_training.preparation import TrainingCase


class HeldOutCases(Dataset):
    """Whole prepared cases, one a sample, as (image (C, S, H, W), target (segments, S, H, W))."""

    def __init__(self, cases: Sequence[TrainingCase], targets: Sequence[Sequence[int]]):
        self.cases, self.targets = cases, targets

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        case = self.cases[index]
        label = torch.from_numpy(case.label.copy())
        target = torch.stack([torch.isin(label, torch.tensor(values, dtype=label.dtype)) for values in self.targets])
        return torch.from_numpy(case.image.copy()), target.float()
