"""Label values from probabilities, masks of segments, and post-processing.

Importing this module imports neither torch nor SimpleITK, because Slicer's process uses it when it starts.
Probabilities are tensors on the device that the network runs on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Box, Grid, bounding_box
from conresnet.messages import sentence
from conresnet.package import ModelDescription
from conresnet.package.outputs import Output

if TYPE_CHECKING:
    from torch import Tensor

    from conresnet.images.preparation import PreparedCase
    from conresnet.inference.results import Results
    from conresnet.request import SegmentOptions


def small_components(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The mask of the connected components that are smaller than a share (0 to 1) of a whole mask.

    Voxels that touch at a face, an edge or a corner are connected (our choice). The largest component always counts as
    large, so that an object in many pieces does not vanish (our choice).
    """
    components, sizes = _components_by_size(mask)
    large = np.count_nonzero(sizes >= smallest * sizes.sum())
    return components > max(1, large)


def _components_by_size(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each voxel's component, 1 for the largest and 0 outside the mask, and the voxels of each component."""
    import SimpleITK as sitk

    by_size = sitk.RelabelComponentImageFilter()
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    components = sitk.GetArrayFromImage(by_size.Execute(sitk.ConnectedComponent(image, True)))
    return components, np.array(by_size.GetSizeOfObjectsInPixels())


def packed_size(regions: int) -> int:
    """Bytes per voxel for one bit per region."""
    return -(-regions // 8)


def region_mask(packed: np.ndarray, index: int) -> np.ndarray:
    """The mask (...) bool of a region in ``packed``, see ``LabelWriter.labels``, including where another covers it."""
    return (packed[index // 8] >> (index % 8) & 1).astype(bool)


def segment_mask(labels: np.ndarray, regions: np.ndarray | None, output: Output, index: int) -> np.ndarray:
    """The mask (...) bool of a segment, including parts where another region covers it.

    Args:
        labels: (...) uint8.
        regions: (b, ...) uint8, see ``LabelWriter.labels``; None where segments exclude each other.
    """
    return labels == output.segments[index].label if regions is None else region_mask(regions, index)


def segment_masks(labels: np.ndarray, regions: np.ndarray | None, output: Output) -> np.ndarray:
    """(K, ...) bool: where each segment is, see ``segment_mask``."""
    return np.stack([segment_mask(labels, regions, output, index) for index in range(len(output.segments))])


def segment_boxes(labels: np.ndarray, regions: np.ndarray | None, output: Output) -> list[Box | None]:
    """The bounding box of each segment in three axes, see ``segment_mask``; None for an empty one."""
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
    """The value (...) uint8 of the most likely segment, or 0 for the background, which has the rest of the probability.

    Args:
        probability: (K, ...), one per segment.
        values: the label of each.
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
            labels: the whole result, in any order of axes; changed in place.
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
        self, labels: np.ndarray, packed: np.ndarray | None, change: Callable[[int, np.ndarray, np.ndarray], np.ndarray]
    ) -> None:
        """Change each segment that has voxels, and count again. Parts lose what is removed from their region.

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


def segment_rows(
    output: Output, voxels: Sequence[int], grid: Grid, region_voxels: Sequence[int] | None = None
) -> list[dict]:
    """For each segment its name, label, voxels and mL in the label map; for a region also its whole volume."""
    milliliters = grid.voxel_volume / 1000
    rows = []
    for index, (segment, count) in enumerate(zip(output.segments, voxels, strict=True)):
        voxel_count = int(count)
        row = {
            "name": segment.name,
            "label": segment.label,
            "voxels": voxel_count,
            "volume_ml": voxel_count * milliliters,
        }
        if region_voxels is not None:
            row["region_volume_ml"] = int(region_voxels[index]) * milliliters
        rows.append(row)
    return rows


class FoundSegments:
    """The segments found by a pass before the last one, without their probabilities.

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
        self._writer.drop_small_components(self.labels, self._regions, smallest)


def check_postprocessing(options: SegmentOptions) -> None:
    """Raise UserError("volume-not-positive") if the volume is not a positive number."""
    below = options.drop_below
    if below is not None and not 0 < below < math.inf:
        raise UserError("volume-not-positive", option="drop_below", value=below)


class PostProcessing:
    """Make the requested changes: first remove components of every segment, then fill holes.

    It works on the label map and the regions on the input's grid. Maps are not changed: they show the
    network's output.

    Voxels that touch at a face, an edge or a corner belong to one component, as in ``small_components``. A hole is
    background that a segment encloses on all sides: it reaches the segment's outside only through edges and corners,
    and contains no voxel of another segment. Regions are processed whole, including where another covers them, and a
    part stays inside the region that includes it.

    Args:
        options: ``keep_largest``, which the model may also request, ``drop_below`` in mL, and ``fill_holes``.
        done: called with the share that is done; an exception from it ends the work.

    Attributes:
        report: section of ``report.json``: the steps, and the change of each segment in mL.
        warnings: sentences for the user.
    """

    def __init__(
        self, description: ModelDescription, options: SegmentOptions, grid: Grid, done: Callable[[float], None]
    ):
        self._segments = segments = description.output.segments
        self._options, self._done = options, done
        self._in_one_piece = {item.name for item in segments if options.keep_largest or item.pieces == "largest"}
        self._voxel_ml = grid.voxel_volume / 1000
        self._fewest = 0 if options.drop_below is None else options.drop_below / self._voxel_ml
        self._steps = [self._remove] if self._in_one_piece or options.drop_below is not None else []
        self._steps += [self._fill] if options.fill_holes else []
        self.report: dict = {}
        self.warnings: list[str] = []

    @property
    def is_wanted(self) -> bool:
        """Whether ``apply`` does anything."""
        return bool(self._steps)

    def apply(self, results: Results) -> None:
        """Change labels and regions in place, and count again."""
        options = self._options
        self.report = {
            "keep_largest": options.keep_largest,
            "in_one_piece": sorted(self._in_one_piece),
            "drop_below_ml": options.drop_below,
            "fill_holes": options.fill_holes,
            "removed_ml": {},
            "filled_ml": {},
        }
        for number, step in enumerate(self._steps):

            def change(index: int, mask: np.ndarray, free: np.ndarray, number: int = number, step=step) -> np.ndarray:
                self._done((number + index / len(self._segments)) / len(self._steps))
                return step(self._segments[index].name, mask, free)

            results.writer.revise(results.labels, results.regions, change)

    def _remove(self, segment: str, mask: np.ndarray, free: np.ndarray) -> np.ndarray:
        kept = _kept(mask, segment in self._in_one_piece, self._fewest)
        self.report["removed_ml"][segment] = np.count_nonzero(mask & ~kept) * self._voxel_ml
        if mask.any() and not kept.any():
            values = {"segment": segment, "volume": f"{self._options.drop_below:g}"}
            self.warnings.append(sentence("segment-dropped", values))
        return kept

    def _fill(self, segment: str, mask: np.ndarray, free: np.ndarray) -> np.ndarray:
        filled = _filled(mask, free)
        self.report["filled_ml"][segment] = np.count_nonzero(filled & ~mask) * self._voxel_ml
        return filled


def _kept(mask: np.ndarray, only_largest: bool, fewest: float) -> np.ndarray:
    """A mask without components of fewer voxels; or its largest one, if that has enough."""
    components, sizes = _components_by_size(mask)
    # A millionth of a voxel allows for rounding.
    count = int(np.count_nonzero(sizes >= fewest - 1e-6))
    return (components > 0) & (components <= (min(count, 1) if only_largest else count))


def _filled(mask: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A mask with its holes. The array ends at the mask's box, so that what reaches its border is outside."""
    import SimpleITK as sitk

    padded = np.pad(mask, 1).astype(np.uint8)
    closed = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(padded), False, 1))
    holes = (closed != 0)[1:-1, 1:-1, 1:-1] & ~mask
    if (holes & ~free).any():
        pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(holes.astype(np.uint8)), False))
        holes &= ~np.isin(pieces, np.unique(pieces[holes & ~free]))
    return mask | holes
