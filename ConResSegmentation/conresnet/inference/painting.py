"""From probabilities to label values. Torch-free."""

from __future__ import annotations

import numpy as np

from conresnet.package.description import Output


class Painter:
    """Decides voxels and counts them.

    Args:
        output: the model's segments and how they exclude or overlie each other.

    Attributes:
        voxels: how many have each segment's label so far, in the segments' order.
        region_voxels: how many belong to each region before others were painted over it; None for labels.
    """

    def __init__(self, output: Output):
        self._output = output
        self._values = np.array([segment.label for segment in output.segments], dtype=np.uint8)
        names = [segment.name for segment in output.segments]
        self._order = [names.index(name) for name in output.paint_order]
        self.voxels = np.zeros(len(names), dtype=np.int64)
        self.region_voxels = None if output.kind == "labels" else np.zeros(len(names), dtype=np.int64)

    def paint(self, probability: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Label values of a block.

        Args:
            probability: (K, ...), one a segment; 0 where there is nothing.
            mask: where False there is no segment, as outside a ROI.

        Returns:
            (...) uint8; 0 is the background.
        """
        labels = self._exclusive(probability) if self._output.kind == "labels" else self._overlaid(probability, mask)
        if mask is not None:
            labels *= mask
        self.voxels += np.bincount(labels.ravel(), minlength=256)[self._values]
        return labels

    def _exclusive(self, probability: np.ndarray) -> np.ndarray:
        """The likeliest of the segments and the background, which has what they leave of 1."""
        labels = self._values[probability.argmax(axis=0)]
        labels *= probability.max(axis=0) > 1 - probability.sum(axis=0)
        return labels

    def _overlaid(self, probability: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        labels = np.zeros(probability.shape[1:], dtype=np.uint8)
        for index in self._order:
            region = probability[index] > self._output.threshold
            if mask is not None:
                region &= mask
            labels[region] = self._values[index]
            self.region_voxels[index] += np.count_nonzero(region)
        return labels
