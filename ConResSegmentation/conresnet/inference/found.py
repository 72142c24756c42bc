"""What a pass finds that is not the last one: kept aside on the model's grid, a byte a voxel. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conresnet.boxes import Box
from conresnet.inference.painting import Painter, packed_size
from conresnet.package.description import Output
from conresnet.preparation import PreparedCase


class FoundSegments:
    """The segments of a case as labels, and a bit a segment where they overlap; probabilities are not kept.

    Args:
        case: what is segmented.
        output: the model's segments.

    Attributes:
        labels: (S, H, W) uint8, 0 where no segment is.
    """

    def __init__(self, case: PreparedCase, output: Output):
        self._case = case
        self._output = output
        self._regions = None
        if output.kind == "regions":
            self._regions = np.zeros((packed_size(len(output.segments)), *case.shape), np.uint8)
        self.labels = np.zeros(case.shape, np.uint8)
        self._painter = Painter(output)

    def restart(self) -> None:
        """Forget all slabs."""
        self.labels[...] = 0
        if self._regions is not None:
            self._regions[...] = 0
        self._painter = Painter(self._output)

    def finish(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        """Take a finished slab; nothing is found outside an ROI."""
        mask = None if self._case.inside is None else self._case.inside[where]
        packed = None if self._regions is None else self._regions[(slice(None), *where)]
        self.labels[where] = self._painter.paint(values["probability"], mask, packed)

    def drop_small_components(self, smallest: float) -> None:
        """Take away each segment's components of less than a share of it."""
        self._painter.drop_small_components(self.labels, self._regions, smallest)
