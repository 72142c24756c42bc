"""Training samples as a function of the seed and the sample's number alone.

Order and augmentation then need no state: a resumed run goes on with the very samples an unbroken one would have had.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from conresnet_training.preparation import TrainingCase


class TrainingSamples(Dataset):
    """Windows around random places of the cases, every second one at a labelled voxel, augmented.

    Sample ``n`` is (image (C, S, H, W), target (segments, S, H, W)), both float32 of the window's size.

    Args:
        cases: prepared cases.
        window: voxels (S, H, W).
        targets: a segment each, the label values that belong to it.
        augment: see ``build_augmentation``.
        seed: of the whole run.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        window: Sequence[int],
        targets: Sequence[Sequence[int]],
        augment: Compose,
        seed: int,
    ):
        self.cases, self.window, self.targets, self.augment, self.seed = cases, tuple(window), targets, augment, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.seed, number])
        case = self.cases[self._case_index(number)]
        corner = self._corner(case, random, around_label=number % 2 == 0)
        label = self._cut(case.label[None], corner).astype(np.float32)
        sample = {"image": self._cut(case.image, corner), "label": label}
        self.augment.set_random_state(seed=int(random.integers(2**31)))
        sample = self.augment(sample)
        label = sample["label"]
        target = torch.cat([torch.isin(label, torch.tensor(values, dtype=label.dtype)) for values in self.targets])
        return sample["image"], target.float()

    def _case_index(self, number: int) -> int:
        """Every case once before any comes again, in an order of its own each time."""
        turn, place = divmod(number, len(self.cases))
        return int(np.random.default_rng([self.seed, turn, 1]).permutation(len(self.cases))[place])

    def _corner(self, case: TrainingCase, random: np.random.Generator, around_label: bool) -> np.ndarray:
        """Index (S, H, W) of the window's first voxel; negative where the case is smaller than the window."""
        shape, window = np.array(case.label.shape), np.array(self.window)
        free = shape - window
        corner = random.integers(np.minimum(free, 0), np.maximum(free, 0) + 1)
        if around_label and len(labelled := np.argwhere(case.label)):
            center = random.choice(labelled)
            low, high = np.maximum(center - window + 1, np.minimum(free, 0)), np.minimum(center, np.maximum(free, 0))
            corner = np.clip(corner, low, np.maximum(low, high))
        return corner

    def _cut(self, array: np.ndarray, corner: np.ndarray) -> np.ndarray:
        """(channel, S, H, W) of the window's size, 0 beyond the case."""
        window = np.zeros((array.shape[0], *self.window), array.dtype)
        source = tuple(
            slice(max(c, 0), min(c + w, n)) for c, w, n in zip(corner, self.window, array.shape[1:], strict=True)
        )
        place = tuple(slice(part.start - c, part.stop - c) for part, c in zip(source, corner, strict=True))
        window[(slice(None), *place)] = array[(slice(None), *source)]
        return window


class NumberedSamples(Sampler[int]):
    """The numbers of one epoch's samples, in order, from the first that the run has not seen.

    Args:
        count: samples an epoch.
        seen: asked at the start of each epoch for the samples seen so far. Lightning's own count of epochs will not do:
            it is one ahead after a resumption.
    """

    def __init__(self, count: int, seen: Callable[[], int]):
        self.count = count
        self.seen = seen

    def __iter__(self) -> Iterator[int]:
        first = self.seen()
        return iter(range(first, first + self.count))

    def __len__(self) -> int:
        return self.count
