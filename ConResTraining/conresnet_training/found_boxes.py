"""Where the coarse network of coarse-to-fine finds the segments of cases that it never saw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from conresnet.boxes import Box
from conresnet.inference.components import small_components
from conresnet.systems.coarse_to_fine import crop
from conresnet_training.held_out import found_segments, segment_mask, whole_case
from conresnet_training.preparation import TrainingCase


class FoundBoxes:
    """The boxes in which the fine network will be used, and is validated in; called with a case.

    The true ones would flatter it: what the coarse network misses is lost, and what it finds too much widens the box.
    Each is computed once, since the coarse network learns no more.

    Args:
        network: the coarse one, on its device.
        window: voxels (S, H, W) that it sees at a time.
        segments: how many there are.
        exclusive: labels rather than regions.
        arguments: of the system, see ``conresnet.systems.coarse_to_fine.CoarseToFine``.
    """

    def __init__(
        self, network: nn.Module, window: Sequence[int], segments: int, exclusive: bool, arguments: Mapping[str, Any]
    ):
        self.network, self.window, self.segments, self.exclusive = network, window, segments, exclusive
        self.margin, self.smallest = arguments["margin"], arguments["smallest_component"]
        self._boxes: dict[str, Box | None] = {}

    def __call__(self, case: TrainingCase) -> Box | None:
        """The box (S, H, W) around all that is found, with the margin; None where nothing is."""
        if case.name not in self._boxes:
            device = next(self.network.parameters()).device
            box = whole_case(case)
            found = found_segments(self.network, case.image, box, self.window, self.segments, self.exclusive, device)
            kept = np.zeros(found.shape[-3:], bool)
            for segment in range(self.segments):
                mask = segment_mask(found, segment)
                if mask.any():
                    kept |= mask & ~small_components(mask, self.smallest)
            self._boxes[case.name] = crop(kept, self.margin) if kept.any() else None
        return self._boxes[case.name]
