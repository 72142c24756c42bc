"""From probabilities to label values: each voxel's segment, the voxels of a segment, and small components.

Importing this module does not import torch. Probabilities are tensors on the device that the network runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conresnet.images.grid import Box, bounding_box
from conresnet.package.description import Output

if TYPE_CHECKING:
    from torch import Tensor

    from conresnet.images.preparation import PreparedCase


def small_components(mask: np.ndarray, smallest: float) -> np.ndarray:
    """Find the connected components that are smaller than a share of the whole mask.

    Voxels that touch at a face, an edge or a corner are connected (our choice). The largest component always counts as
    large, so that an object in many pieces does not vanish (our choice).

    Args:
        mask: bool, three axes.
        smallest: share of the mask's voxels, 0 to 1.

    Returns:
        the voxels of these components, bool of the same shape.
    """
    # Not at the top, because Slicer's process uses this module and must not load SimpleITK when it starts.
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    by_size = sitk.RelabelComponentImageFilter()
    components = sitk.GetArrayFromImage(by_size.Execute(sitk.ConnectedComponent(image, True)))
    sizes = np.array(by_size.GetSizeOfObjectsInPixels())
    large = np.count_nonzero(sizes >= smallest * sizes.sum())
    return components > max(1, large)


def packed_size(regions: int) -> int:
    """Bytes per voxel for one bit per region."""
    return -(-regions // 8)


def region_mask(packed: np.ndarray, index: int) -> np.ndarray:
    """The mask of a region, including parts where another region covers it.

    Args:
        packed: (b, ...) uint8, see ``LabelWriter.labels``.
        index: of the region, in the order of the model's segments.

    Returns:
        (...) bool.
    """
    return (packed[index // 8] >> (index % 8) & 1).astype(bool)


def segment_mask(labels: np.ndarray, regions: np.ndarray | None, output: Output, index: int) -> np.ndarray:
    """The mask of a segment (...) bool, including parts where another region covers it.

    Args:
        labels: (...) uint8.
        regions: (b, ...) uint8, see ``LabelWriter.labels``; None where segments exclude each other.
        output: the model's segments.
        index: of the segment.
    """
    return labels == output.segments[index].label if regions is None else region_mask(regions, index)


def segment_masks(labels: np.ndarray, regions: np.ndarray | None, output: Output) -> np.ndarray:
    """(K, ...) bool: where each segment is, see ``segment_mask``."""
    return np.stack([segment_mask(labels, regions, output, index) for index in range(len(output.segments))])


def segment_boxes(labels: np.ndarray, regions: np.ndarray | None, output: Output) -> list[Box | None]:
    """The bounding box of each segment, see ``segment_mask``; None for an empty one.

    Args:
        labels, regions: with three axes for voxels.
    """
    # Count labels slice by slice, because searching a whole scan for each of many segments is slow.
    counts = np.array([np.bincount(plane.ravel(), minlength=256) for plane in labels])
    boxes = []
    for index, segment in enumerate(output.segments):
        held = np.flatnonzero(counts[:, segment.label] if regions is None else counts[:, 1:].any(axis=1))
        planes = slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, 0)
        mask = segment_mask(labels[planes], None if regions is None else regions[:, planes], output, index)
        box = bounding_box(mask) if len(held) else None
        boxes.append(box and (slice(planes.start + box[0].start, planes.start + box[0].stop), *box[1:]))
    return boxes


def exclusive_labels(probability: Tensor, values: Sequence[int]) -> Tensor:
    """The value of the most likely segment, or 0 for the background, whose probability is what remains of 1.

    Args:
        probability: (K, ...), one per segment.
        values: the label of each.

    Returns:
        (...) uint8, on the same device.
    """
    import torch

    # One segment after another: argmax over the leading axis takes three times as long.
    highest, total = probability[0].clone(), probability[0].clone()
    labels = torch.full_like(highest, int(values[0]), dtype=torch.uint8)
    for value, one in zip(values[1:], probability[1:], strict=True):
        labels.masked_fill_(one > highest, int(value))
        torch.maximum(highest, one, out=highest)
        total += one
    labels *= highest > 1 - total
    return labels


class LabelWriter:
    """Converts probabilities to labels, and counts voxels.

    Args:
        output: the model's segments, which exclude or overlap each other.

    Attributes:
        voxels: number of voxels with each segment's label so far, in the order of the segments.
        region_voxels: number of voxels in each region, including those that another region covers; None for labels.
    """

    def __init__(self, output: Output):
        self._output = output
        self._values = np.array([segment.label for segment in output.segments], dtype=np.uint8)
        names = [segment.name for segment in output.segments]
        self._order = [names.index(name) for name in output.paint_order]
        # Pairs of a region and its part, innermost first, so that a part is complete before it is added to a region.
        self._parts = [
            (index, names.index(part)) for index in reversed(self._order) for part in output.segments[index].includes
        ]
        self.voxels = np.zeros(len(names), dtype=np.int64)
        self.region_voxels = None if output.kind == "labels" else np.zeros(len(names), dtype=np.int64)

    def labels(
        self, probability: Tensor, mask: np.ndarray | None = None, packed: np.ndarray | None = None
    ) -> np.ndarray:
        """Label values of a block, computed on the device of the probabilities, so that only bytes are copied from it.

        Args:
            probability: (K, ...), one per segment.
            mask: False where there is no segment, such as outside an ROI.
            packed: (b, ...) uint8 with b of ``packed_size``; if given, receives the regions that each voxel belongs
                to, one bit per region: bit n % 8 of byte n // 8 for the n-th.

        Returns:
            (...) uint8; 0 is the background.
        """
        if self._output.kind == "labels":
            labels = exclusive_labels(probability, self._values).cpu().numpy()
            if mask is not None:
                labels *= mask
        else:
            labels = self._overlaid(probability, mask, packed)
        self.voxels += np.bincount(labels.ravel(), minlength=256)[self._values]
        return labels

    def _overlaid(self, probability: Tensor, mask: np.ndarray | None, packed: np.ndarray | None) -> np.ndarray:
        regions = (probability > self._output.threshold).cpu().numpy()
        if mask is not None:
            regions &= mask
        for index, part in self._parts:
            regions[index] |= regions[part]
        if packed is not None:
            packed[...] = np.packbits(regions, axis=0, bitorder="little")
        for index, region in enumerate(regions):
            self.region_voxels[index] += np.count_nonzero(region)
        labels = np.zeros(probability.shape[1:], dtype=np.uint8)
        self._write_over(labels, lambda index: regions[index])
        return labels

    def _write_over(self, labels: np.ndarray, region: Callable[[int], np.ndarray]) -> None:
        for index in self._order:
            labels[region(index)] = self._values[index]

    def drop_small_components(self, labels: np.ndarray, packed: np.ndarray | None, smallest: float) -> None:
        """Remove components of each segment that are smaller than a share of it, and count again.

        Regions are measured whole, including parts that another region covers.

        Args:
            labels: (S, H, W) or any other order of axes, the whole result; changed in place.
            packed: the regions that belong to them, or None for labels; changed in place.
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
        self._repaint(labels, packed)

    def revise(
        self,
        labels: np.ndarray,
        packed: np.ndarray | None,
        change: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """Change each segment that has voxels, and count again. What leaves a region leaves its parts, too.

        Args:
            labels, packed: see ``drop_small_components``; changed in place.
            change: called for each segment, a region before its parts, with the number of the segment, its mask, and
                the mask of where it may grow: voxels of no other segment, or any voxel for regions. Both are cropped
                to the box around the segment, and so is the new mask that it returns.
        """
        around = bounding_box(labels)
        if around is None:
            return
        labels = labels[around]
        packed = None if packed is None else packed[(slice(None), *around)]
        for index in self._order:
            mask = labels == self._values[index] if packed is None else region_mask(packed, index)
            box = bounding_box(mask)
            if box is None:
                continue
            mask = mask[box]
            if packed is None:
                block = labels[box]
                new = change(index, mask, block == 0)
                block[mask & ~new] = 0
                block[new & ~mask] = self._values[index]
                continue
            block = packed[(slice(None), *box)]
            new = change(index, mask, np.ones_like(mask))
            _set_bits(block, index, new)
            for whole, part in self._parts:
                if whole == index:
                    _set_bits(block, part, region_mask(block, part) & new)
        self._repaint(labels, packed)

    def _repaint(self, labels: np.ndarray, packed: np.ndarray | None) -> None:
        """Recompute the labels from changed regions, and count."""
        if packed is not None:
            self.region_voxels[:] = [np.count_nonzero(region_mask(packed, index)) for index in range(len(self._values))]
            labels[...] = 0
            self._write_over(labels, lambda index: region_mask(packed, index))
        self.voxels[:] = [np.count_nonzero(labels == value) for value in self._values]


def _set_bits(packed: np.ndarray, index: int, mask: np.ndarray) -> None:
    packed[index // 8] &= 255 - (1 << index % 8)
    packed[index // 8] |= mask.astype(np.uint8) << index % 8


class FoundSegments:
    """The segments found by a pass before the last one: a byte per voxel, and a bit per segment if segments overlap.
    Probabilities are not kept.

    Args:
        case: the case being segmented.
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
        self._writer = LabelWriter(output)

    def restart(self) -> None:
        """Forget all slabs."""
        self.labels[...] = 0
        if self._regions is not None:
            self._regions[...] = 0
        self._writer = LabelWriter(self._output)

    def finish(self, where: Box, values: Mapping[str, Tensor]) -> None:
        """Add a finished slab; voxels outside an ROI are left empty."""
        mask = None if self._case.inside is None else self._case.inside[where]
        packed = None if self._regions is None else self._regions[(slice(None), *where)]
        self.labels[where] = self._writer.labels(values["probability"], mask, packed)

    def drop_small_components(self, smallest: float) -> None:
        """Remove components of each segment that are smaller than a share of it."""
        self._writer.drop_small_components(self.labels, self._regions, smallest)
