"""Training samples as a function of the seed and the sample's number alone.

Order and augmentation therefore need no state: a resumed run continues with exactly the samples that an uninterrupted
one would have had, whichever process makes them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conresnet_training.data.augmentation import SampleChanges, Warp
from conresnet_training.data.label_maps import OVERSAMPLING, LabelPlaces
from conresnet_training.data.preparation import TrainingCase
from conresnet_training.data.synthesis import Synthesizer, target_places
from conresnet_training.training import signed_distances


@dataclass(frozen=True)
class Sampling:
    """Where the windows are cut.

    Args:
        seed: of the whole run.
        foreground_share: share of the samples that are around a voxel of the targets.
        balanced: first draw one of the case's segments, so that small ones are as frequent as large ones.
        distances: also return signed distances of the targets, see ``conresnet_training.training``.
        answered: size (S, H, W) of the central part of a window that the network segments, if not all of it. It is this
            part that may be anywhere in the case, so that the case's borders are learned too.
    """

    seed: int = 0
    foreground_share: float = 0.5
    balanced: bool = False
    distances: bool = False
    answered: tuple[int, int, int] | None = None


class TrainingSamples(Dataset):
    """Augmented windows at random positions in the cases, some of them around a voxel of the targets.

    Sample ``n`` is (image (C, S, H, W), target (segments, S, H, W)), both float32 and of the window's size; with
    ``sampling.distances`` a third array of the target's shape follows.

    Args:
        window: voxels (S, H, W).
        targets: for each segment, the label values that belong to it.
        mirrored: for each segment, the index of the one that it becomes in a mirror image. Defaults to itself.
    """

    # Distinguishes the random numbers of different kinds of samples.
    _stream: tuple[int, ...] = ()

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        window: Sequence[int],
        targets: Sequence[Sequence[int]],
        changes: SampleChanges,
        sampling: Sampling,
        mirrored: Sequence[int] | None = None,
    ):
        self.cases, self.window, self.changes, self.sampling = cases, tuple(window), changes, sampling
        # 0 is never foreground.
        self._targets = [sorted({*values} - {0}) for values in targets]
        # (segments, 256): 1 for the label values that belong to the segment.
        self._belonging = np.stack([np.isin(np.arange(256), values) for values in targets]).astype(np.float32)
        self._mirrored = list(range(len(targets)) if mirrored is None else mirrored)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        random = np.random.default_rng([self.sampling.seed, number, *self._stream])
        case = self.cases[self._case_index(number)]
        corner = self._corner(case, case.label, random, self._is_around_label(number))
        warp = self.changes.draw_warp(self.window, random)
        image, values = self._cut(case, corner, warp, random)
        belonging = self._belonging[self._mirrored] if warp.is_mirror_image else self._belonging
        target = torch.from_numpy(np.take(belonging, values.numpy(), axis=1))
        if self.sampling.distances:
            return image, target, signed_distances(target.bool())
        return image, target

    def _cut(
        self, case: TrainingCase, corner: np.ndarray, warp: Warp, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """The image (C, S, H, W) and the label values (S, H, W) of a window."""
        image, values = warp.cut(case.image, case.label, corner)
        return self.changes.change_intensities(image, values, random), values

    def case_name(self, number: int) -> str:
        """The name of the case that sample ``number`` is cut from."""
        return self.cases[self._case_index(number)].name

    def _case_index(self, number: int) -> int:
        """Each case once before any is repeated, in a new order every time."""
        turn, place = divmod(number, len(self.cases))
        return int(np.random.default_rng([self.sampling.seed, turn, 1]).permutation(len(self.cases))[place])

    def _is_around_label(self, number: int) -> bool:
        """Evenly spread over the numbers, starting with the first."""
        share = self.sampling.foreground_share
        return math.ceil((number + 1) * share) > math.ceil(number * share)

    def _corner(self, case: TrainingCase, label: np.ndarray, random: np.random.Generator, around: bool) -> np.ndarray:
        """Index (S, H, W) of the window's first voxel; negative if the window begins outside the case."""
        shape, window = np.array(label.shape), np.array(self.sampling.answered or self.window)
        free = shape - window
        low, high = np.minimum(free, 0), np.maximum(free, 0)
        if around and (place := self._center(case.places, random)) is not None:
            center = np.array(np.unravel_index(place, label.shape))
            # The voxel may be anywhere in the window.
            low, high = np.maximum(center - window + 1, low), np.minimum(center, high)
        return random.integers(low, np.maximum(low, high) + 1) - (np.array(self.window) - window) // 2

    def _center(self, places: LabelPlaces, random: np.random.Generator) -> int | None:
        """Flat index of a random voxel of the targets; None if the case has none."""
        present = [values for values in self._targets if places.count(values)]
        if not present:
            return None
        if self.sampling.balanced:
            return places.draw(present[random.integers(len(present))], random)
        return places.draw(sorted(set().union(*present)), random)


class SynthesizedSamples(TrainingSamples):
    """Windows of label maps, with images synthesized from them; otherwise like ``TrainingSamples``.

    Args:
        cases: label maps prepared at twice the model's resolution, see ``preparation.prepare_label_map``.
        targets: for each segment, the places in those label maps that belong to it.
    """

    _stream = (2,)

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        window: Sequence[int],
        targets: Sequence[Sequence[int]],
        changes: SampleChanges,
        sampling: Sampling,
        mirrored: Sequence[int] | None,
        synthesizer: Synthesizer,
    ):
        fine = [side * OVERSAMPLING for side in window]
        answered = sampling.answered and tuple(side * OVERSAMPLING for side in sampling.answered)
        super().__init__(cases, fine, targets, changes, replace(sampling, answered=answered), mirrored)
        self.synthesizer = synthesizer

    def _cut(
        self, case: TrainingCase, corner: np.ndarray, warp: Warp, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        warp = replace(warp, displacements=self._displacements(random))
        values = warp.cut_label(case.label, corner)
        counts = case.places.counts.copy()
        counts[0] = case.label.size - counts.sum()
        return self.synthesizer.image(values, counts, random), target_places(values)

    def _displacements(self, random: np.random.Generator) -> np.ndarray | None:
        settings = self.synthesizer.settings
        if not settings.bending:
            return None
        spacing = np.array(self.synthesizer.spacing) / OVERSAMPLING
        nodes = np.maximum(np.rint(self.window * spacing / settings.bending_cell).astype(int), 1) + 1
        strength = settings.bending * random.random()
        return random.normal(0, strength, (3, *nodes)) / spacing[:, None, None, None]


class MixedSamples(Dataset):
    """A mixture of samples of cases with images and of synthesized samples, spread evenly.

    Args:
        share: share of the samples that are of cases with images.
    """

    def __init__(self, images: TrainingSamples, synthesized: TrainingSamples, share: float):
        self.images, self.synthesized, self.share = images, synthesized, share

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        samples, own = self._of(number)
        return samples[own]

    def case_name(self, number: int) -> str:
        """The name of the case that sample ``number`` is made from."""
        samples, own = self._of(number)
        return samples.case_name(own)

    def _of(self, number: int) -> tuple[TrainingSamples, int]:
        before, after = (math.ceil(count * self.share) for count in (number, number + 1))
        return (self.images, before) if after > before else (self.synthesized, number - before)


def step_samples(steps: range, batch: int, process: int = 0, processes: int = 1) -> Iterator[list[int]]:
    """For each step, the numbers of the samples that one process uses.

    Step ``t`` of the whole run uses the samples ``t * batch`` to ``(t + 1) * batch - 1``, divided evenly among the
    processes, so that several processes make the same steps as one.

    Args:
        steps: the steps that remain.
        batch: samples per step, of all processes together.
        process, processes: which of how many; ``processes`` divides ``batch``.
    """
    share = batch // processes
    for step in steps:
        first = step * batch + process * share
        yield list(range(first, first + share))
