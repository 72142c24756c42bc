"""From probabilities to label values. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conresnet.boxes import bounding_box
from conresnet.inference.components import small_components
from conresnet.package.description import Output


def packed_size(regions: int) -> int:
    """How many bytes a voxel takes that keeps which of so many regions it belongs to."""
    return -(-regions // 8)


def region_mask(packed: np.ndarray, index: int) -> np.ndarray:
    """Where a region is, whatever overlies it.

    Args:
        packed: (b, ...) uint8, see `Painter.paint`.
        index: of the region in the segments' order.

    Returns:
        (...) bool.
    """
    return (packed[index // 8] >> (index % 8) & 1).astype(bool)


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
        # Pairs of a region and a part of it, the last painted first, so that each is whole before it is a part itself.
        self._parts = [
            (index, names.index(part)) for index in reversed(self._order) for part in output.segments[index].includes
        ]
        self.voxels = np.zeros(len(names), dtype=np.int64)
        self.region_voxels = None if output.kind == "labels" else np.zeros(len(names), dtype=np.int64)

    def paint(
        self, probability: np.ndarray, mask: np.ndarray | None = None, packed: np.ndarray | None = None
    ) -> np.ndarray:
        """Label values of a block.

        Args:
            probability: (K, ...), one a segment; 0 where there is nothing.
            mask: where False there is no segment, as outside a ROI.
            packed: (b, ...) uint8, b as ``packed_size`` has it; where given, which regions each voxel belongs to is
                written there, a bit a region: that of the n-th is bit n % 8 of byte n // 8.

        Returns:
            (...) uint8; 0 is the background.
        """
        if self._output.kind == "labels":
            labels = self._exclusive(probability)
            if mask is not None:
                labels *= mask
        else:
            labels = self._overlaid(probability, mask, packed)
        self.voxels += np.bincount(labels.ravel(), minlength=256)[self._values]
        return labels

    def _exclusive(self, probability: np.ndarray) -> np.ndarray:
        """The likeliest of the segments and the background, which has what they leave of 1."""
        # One segment after another: argmax over the leading axis takes three times as long.
        highest = probability[0].copy()
        labels = np.full(highest.shape, self._values[0])
        for value, values in zip(self._values[1:], probability[1:], strict=True):
            labels[values > highest] = value
            np.maximum(highest, values, out=highest)
        labels *= highest > 1 - probability.sum(axis=0)
        return labels

    def _overlaid(self, probability: np.ndarray, mask: np.ndarray | None, packed: np.ndarray | None) -> np.ndarray:
        regions = probability > self._output.threshold
        if mask is not None:
            regions &= mask
        for index, part in self._parts:
            regions[index] |= regions[part]
        if packed is not None:
            packed[...] = np.packbits(regions, axis=0, bitorder="little")
        for index, region in enumerate(regions):
            self.region_voxels[index] += np.count_nonzero(region)
        labels = np.zeros(probability.shape[1:], dtype=np.uint8)
        self._paint_over(labels, lambda index: regions[index])
        return labels

    def _paint_over(self, labels: np.ndarray, region: Callable[[int], np.ndarray]) -> None:
        for index in self._order:
            labels[region(index)] = self._values[index]

    def drop_small_components(self, labels: np.ndarray, packed: np.ndarray | None, smallest: float) -> None:
        """Take away, segment by segment, the components that are less than a share of it, and count anew.

        Regions are judged whole, with what overlies them.

        Args:
            labels: (S, H, W) or any other order of axes, all that was painted; changed in place.
            packed: the regions painted with them, or None for labels; changed in place.
            smallest: see ``small_components``.
        """
        box = bounding_box(labels)
        if box is None:
            return
        labels = labels[box]
        packed = None if packed is None else packed[(slice(None), *box)]
        for index, value in enumerate(self._values):
            mask = labels == value if packed is None else region_mask(packed, index)
            small = small_components(mask, smallest)
            if packed is None:
                labels[small] = 0
            else:
                packed[index // 8][small] &= 255 - (1 << index % 8)
        if packed is not None:
            for index, part in self._parts:
                packed[index // 8][region_mask(packed, part)] |= 1 << index % 8
            self.region_voxels[:] = [np.count_nonzero(region_mask(packed, index)) for index in range(len(self._values))]
            labels[...] = 0
            self._paint_over(labels, lambda index: region_mask(packed, index))
        self.voxels[:] = [np.count_nonzero(labels == value) for value in self._values]
