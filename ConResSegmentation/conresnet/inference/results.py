"""From probabilities to label values, and onto the input's grid while slabs of slices come in. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from conresnet.images.grid import Box, bounding_box
from conresnet.images.preparation import PreparedCase
from conresnet.images.resampling import translation
from conresnet.inference.result_maps import result_residual, slice_step, uncertainty
from conresnet.package.description import Output
from conresnet.package.maps import MAPS, to_half


def small_components(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The voxels of connected components that are smaller than a share of the whole.

    Voxels that touch at a face, an edge or a corner are connected (our choice). The largest component is never small,
    so that an object in many pieces does not vanish (our choice).

    Args:
        mask: bool, three axes.
        smallest: 0 to 1.

    Returns:
        bool of the same shape.
    """
    # Not at the top, because Slicer's process uses this module and must not load SimpleITK when it starts.
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    by_size = sitk.RelabelComponentImageFilter()
    components = sitk.GetArrayFromImage(by_size.Execute(sitk.ConnectedComponent(image, True)))
    sizes = np.array(by_size.GetSizeOfObjectsInPixels())
    large = np.count_nonzero(sizes >= smallest * sizes.sum())
    return components > max(1, large)


# Most slabs of a scan have nothing of most segments of a large model; such entropies are not summed.
_HARDLY_LIKELY = 1e-3


def packed_size(regions: int) -> int:
    """Bytes per voxel for one bit per region."""
    return -(-regions // 8)


def region_mask(packed: np.ndarray, index: int) -> np.ndarray:
    """Where a region is, including what lies over it.

    Args:
        packed: (b, ...) uint8, see ``LabelWriter.labels``.
        index: of the region, in the order of the model's segments.

    Returns:
        (...) bool.
    """
    return (packed[index // 8] >> (index % 8) & 1).astype(bool)


def segment_mask(labels: np.ndarray, regions: np.ndarray | None, output: Output, index: int) -> np.ndarray:
    """(...) bool: where a segment is in a result or a part of it; a region with what lies over it.

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
    """The box around each segment, see ``segment_mask``; None for one that is not there.

    Args:
        labels, regions: with three axes for voxels.
    """
    # Slice by slice, because looking for each of many segments in a whole scan takes long.
    counts = np.array([np.bincount(plane.ravel(), minlength=256) for plane in labels])
    boxes = []
    for index, segment in enumerate(output.segments):
        held = np.flatnonzero(counts[:, segment.label] if regions is None else counts[:, 1:].any(axis=1))
        planes = slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, 0)
        mask = segment_mask(labels[planes], None if regions is None else regions[:, planes], output, index)
        box = bounding_box(mask) if len(held) else None
        boxes.append(box and (slice(planes.start + box[0].start, planes.start + box[0].stop), *box[1:]))
    return boxes


def exclusive_labels(probability: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of the most likely of the segments, or 0 for the background, which has what they leave of 1.

    Args:
        probability: (K, ...), one per segment.
        values: (K,) uint8, the label of each.

    Returns:
        (...) uint8.
    """
    # One segment after another: argmax over the leading axis takes three times as long.
    highest = probability[0].copy()
    labels = np.full(highest.shape, values[0])
    for value, one in zip(values[1:], probability[1:], strict=True):
        labels[one > highest] = value
        np.maximum(highest, one, out=highest)
    labels *= highest > 1 - probability.sum(axis=0)
    return labels


class LabelWriter:
    """Decides each voxel's label by the probabilities, and counts voxels.

    Args:
        output: the model's segments, which exclude or overlap each other.

    Attributes:
        voxels: how many have each segment's label so far, in the order of the segments.
        region_voxels: how many belong to each region, including those where another lies over it; None for labels.
    """

    def __init__(self, output: Output):
        self._output = output
        self._values = np.array([segment.label for segment in output.segments], dtype=np.uint8)
        names = [segment.name for segment in output.segments]
        self._order = [names.index(name) for name in output.paint_order]
        # Pairs of a region and a part of it, the last written first, so that each is whole before it is a part itself.
        self._parts = [
            (index, names.index(part)) for index in reversed(self._order) for part in output.segments[index].includes
        ]
        self.voxels = np.zeros(len(names), dtype=np.int64)
        self.region_voxels = None if output.kind == "labels" else np.zeros(len(names), dtype=np.int64)

    def labels(
        self, probability: np.ndarray, mask: np.ndarray | None = None, packed: np.ndarray | None = None
    ) -> np.ndarray:
        """Label values of a block.

        Args:
            probability: (K, ...), one per segment; 0 where there is nothing.
            mask: False where there is no segment, such as outside an ROI.
            packed: (b, ...) uint8 with b of ``packed_size``; if given, receives the regions that each voxel belongs
                to, one bit per region: bit n % 8 of byte n // 8 for the n-th.

        Returns:
            (...) uint8; 0 is the background.
        """
        if self._output.kind == "labels":
            labels = exclusive_labels(probability, self._values)
            if mask is not None:
                labels *= mask
        else:
            labels = self._overlaid(probability, mask, packed)
        self.voxels += np.bincount(labels.ravel(), minlength=256)[self._values]
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
        self._write_over(labels, lambda index: regions[index])
        return labels

    def _write_over(self, labels: np.ndarray, region: Callable[[int], np.ndarray]) -> None:
        for index in self._order:
            labels[region(index)] = self._values[index]

    def drop_small_components(self, labels: np.ndarray, packed: np.ndarray | None, smallest: float) -> None:
        """Remove each segment's components that are smaller than a share of it, and count again.

        Regions are judged whole, including where another lies over them.

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
        """Replace each segment that has voxels, and count again. What leaves a region leaves its parts too.

        Args:
            labels, packed: see ``drop_small_components``; changed in place.
            change: called for one segment after another, a region before its parts, with the number of the segment,
                its mask, and where it may grow: where no other segment is, or anywhere for regions. Both are cut to
                the box around the segment, and so is the mask that it returns.
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
        """Make the labels those of changed regions, and count."""
        if packed is not None:
            self.region_voxels[:] = [np.count_nonzero(region_mask(packed, index)) for index in range(len(self._values))]
            labels[...] = 0
            self._write_over(labels, lambda index: region_mask(packed, index))
        self.voxels[:] = [np.count_nonzero(labels == value) for value in self._values]


def _set_bits(packed: np.ndarray, index: int, mask: np.ndarray) -> None:
    packed[index // 8] &= 255 - (1 << index % 8)
    packed[index // 8] |= mask.astype(np.uint8) << index % 8


class FoundSegments:
    """The segments that a pass finds which is not the last one: a byte per voxel, and a bit per segment where they
    overlap. Probabilities are not kept.

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
        self._writer = LabelWriter(output)

    def restart(self) -> None:
        """Forget all slabs."""
        self.labels[...] = 0
        if self._regions is not None:
            self._regions[...] = 0
        self._writer = LabelWriter(self._output)

    def finish(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        """Take a finished slab; outside an ROI there is nothing."""
        mask = None if self._case.inside is None else self._case.inside[where]
        packed = None if self._regions is None else self._regions[(slice(None), *where)]
        self.labels[where] = self._writer.labels(values["probability"], mask, packed)

    def drop_small_components(self, smallest: float) -> None:
        """Remove each segment's components that are smaller than a share of it."""
        self._writer.drop_small_components(self.labels, self._regions, smallest)


Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]


class Results:
    """The label map and the requested maps on the grid of the case's first channel, which grow as slabs come in.

    Args:
        case: what is segmented.
        output: the model's segments.
        components: number of components of each requested map, by name.
        hidden: likewise those of maps that others, or the review, need without their being requested.
        allocate: makes each result's array of zeros from name, shape and type.
        watched: whether the labels are shown while they grow.
        slice_axis: of the model's array, along which slices follow one another for maps of the result's residual.
        sums_entropy: whether to sum the entropy of each slice.

    Attributes:
        labels: [k, j, i] uint8.
        regions: [b, k, j, i] uint8, the regions each voxel belongs to as ``LabelWriter.labels`` packs them; None for
            labels, which exclude each other.
        maps: [c, k, j, i] float16 by name; ``hidden`` likewise.
        entropy: (K + 1, slices) float64 along the slice axis of the image, in the model's direction: the sum of the
            uncertainty over each slice, then of each segment's binary entropy. None unless asked for.
        writer: has counted the voxels once ``complete`` is done.
    """

    def __init__(
        self,
        case: PreparedCase,
        output: Output,
        components: Mapping[str, int],
        allocate: Allocate,
        watched: bool = False,
        slice_axis: int = 0,
        hidden: Mapping[str, int] | None = None,
        sums_entropy: bool = False,
    ):
        self._slice_axis = slice_axis
        self._case = case
        self._output = output
        self._watched = watched
        shape = case.space.reference.shape
        self.labels = allocate("labels", shape, np.dtype(np.uint8))
        self.regions = None
        if output.kind == "regions":
            self.regions = allocate("regions", (packed_size(len(output.segments)), *shape), np.dtype(np.uint8))
        self.maps = {name: allocate(name, (count, *shape), np.dtype(np.float16)) for name, count in components.items()}
        self.hidden = {name: np.zeros((count, *shape), np.float16) for name, count in (hidden or {}).items()}
        self._all_maps = {**self.maps, **self.hidden}
        self._predicted = {name: array for name, array in self._all_maps.items() if not MAPS[name].from_result}
        self.entropy = None
        if sums_entropy:
            slices = case.space.reference_view(self.labels).shape[slice_axis]
            self.entropy = np.zeros((len(output.segments) + 1, slices))
        self.writer = LabelWriter(output)
        self._smallest_component = 0.0
        # On the model's grid; pages of an array of zeros that nobody writes to take no memory.
        self._kept: dict[str, np.ndarray] = {}

    def drop_components_under(self, share: float) -> None:
        """Have ``complete`` remove each segment's components that are smaller than a share of it, but not from maps."""
        self._smallest_component = share

    def restart(self) -> None:
        """Forget all slabs, because the pass starts over with other windows."""
        for array in (self.labels, self.regions, *self._all_maps.values(), self.entropy):
            if array is not None:
                array[...] = 0
        self.writer = LabelWriter(self._output)
        self._kept = {}

    def finish(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        """Take a finished slab."""
        if self._case.space.exact:
            self._finish_exactly(where, values)
            return
        for name, value in values.items():
            if name not in self._kept:
                self._kept[name] = np.zeros((len(value), *self._case.shape), dtype=np.float16)
            self._kept[name][(slice(None), *where)] = to_half(value)
        if self._watched:
            self._show(where, values["probability"])

    def _show(self, where: Box, probability: np.ndarray) -> None:
        """Show a slab on the input's grid; ``complete`` replaces it with the final labels."""
        labels = self._case.space.reference_view(self.labels)
        for place, block in self._case.space.slabs_from_model(probability, [part.start for part in where]):
            shown = LabelWriter(self._output).labels(block)
            # What lies around an oblique slab belongs to another one.
            np.copyto(labels[place], shown, where=shown != 0)

    def _finish_exactly(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        space = self._case.space
        mask = None if self._case.inside is None else self._case.inside[where]
        packed = None if self.regions is None else space.output_view(self.regions)[(slice(None), *where)]
        space.output_view(self.labels)[where] = self.writer.labels(values["probability"], mask, packed)
        for name, target in self._predicted.items():
            value = to_half(values[name])
            if mask is not None:
                value *= mask
            space.output_view(target)[(slice(None), *where)] = value
        if "uncertainty" in self._all_maps or self.entropy is not None:
            offset = round(space.index_map[self._slice_axis, 3])
            view = space.output_view(self._all_maps["uncertainty"]) if "uncertainty" in self._all_maps else None
            self._measure(view, where, offset, values["probability"], mask)

    def _measure(
        self, view: np.ndarray | None, where: Box, offset: int, probability: np.ndarray, mask: np.ndarray | None = None
    ) -> None:
        """Fill in the uncertainty of a block, and add its entropies to those of its slices.

        Args:
            view: of the map of the uncertainty (1, ...), if that is made; ``where`` is the block's place in it.
            offset: number of the slice that ``where`` counts slices from.
            probability: (K, ...).
            mask: False where there is no segment.
        """
        exclusive, axis = self._output.kind == "labels", self._slice_axis
        uncertain = uncertainty(probability, exclusive)
        if mask is not None:
            uncertain *= mask
        if view is not None:
            view[(0, *where)] = to_half(uncertain)
        if self.entropy is None:
            return
        others = tuple({0, 1, 2} - {axis})
        place = slice(offset + where[axis].start, offset + where[axis].stop)
        self.entropy[0, place] += uncertain.sum(axis=others)
        for index, one in enumerate(probability, start=1):
            if one.max() < _HARDLY_LIKELY:
                continue
            entropy = uncertainty(one[None], exclusive=False)
            self.entropy[index, place] += (entropy if mask is None else entropy * mask).sum(axis=others)

    def complete(self, done: Callable[[float], None], revise: Callable[[Results], None] | None = None) -> None:
        """Resample what was kept on the model's grid onto the input's, and drop small components if asked to.

        Args:
            done: called with the share that is done.
            revise: changes the labels and regions in place, before maps are made from them.
        """
        if not self._case.space.exact:
            self._bring_back(done)
        if self._smallest_component:
            self.writer.drop_small_components(self.labels, self.regions, self._smallest_component)
            done(1.0)
        if revise:
            revise(self)
        if self._all_maps.keys() & {"result_residual", "residual_difference"}:
            self._find_residual()
            done(1.0)

    def _bring_back(self, done: Callable[[float], None]) -> None:
        space = self._case.space
        labels = space.reference_view(self.labels)
        regions = None if self.regions is None else space.reference_view(self.regions)
        # Empty if no pass came this far.
        names = sorted(self._kept, key=lambda name: name != "probability")
        for number, name in enumerate(names):
            target = space.reference_view(self._predicted[name]) if name in self._predicted else None
            measured = name == "probability" and ("uncertainty" in self._all_maps or self.entropy is not None)
            for where, block in space.slabs_from_model(self._kept.pop(name)):
                if name == "probability":
                    packed = None if regions is None else regions[(slice(None), *where)]
                    labels[where] = self.writer.labels(block, packed=packed)
                if measured:
                    uncertain = self._all_maps.get("uncertainty")
                    self._measure(None if uncertain is None else space.reference_view(uncertain), where, 0, block)
                if target is not None:
                    target[(slice(None), *where)] = to_half(block)
                done(number / len(names))

    def _find_residual(self) -> None:
        """Fill in the maps of the result's residual, on the image's own slices."""
        space, axis = self._case.space, self._slice_axis
        arrays = {name: self._along(array) for name, array in self._all_maps.items()}
        labels = self._along(self.labels[None])[:, 0]
        regions = None if self.regions is None else self._along(self.regions)
        source = space.reorder.grid(space.reference)
        step = slice_step(space.grid.spacing[::-1], source.spacing[::-1], axis)
        together = next(arrays[n].shape[1] for n in ("result_residual", "residual_difference") if n in arrays) == 1

        def masks(number: int) -> np.ndarray:
            if together:
                return (labels[number] if regions is None else regions[number])[None]
            part = None if regions is None else regions[number]
            return segment_masks(labels[number], part, self._output)

        def inside(number: int) -> np.ndarray:
            start, shape = [0, 0, 0], list(source.shape)
            start[axis], shape[axis] = number, 1
            return space.roi.contains(source.array_affine @ translation(start), shape).squeeze(axis)

        def write(number: int, residual: np.ndarray) -> None:
            if together and residual.ndim == 4:
                residual = residual.any(axis=1)
            if "result_residual" in arrays:
                arrays["result_residual"][number] = residual
            if "residual_difference" in arrays:
                arrays["residual_difference"][number] = np.abs(arrays["residual"][number] - residual)

        if "residual_difference" in arrays:
            # Slices that have no predecessor keep what was predicted: nothing changes there.
            arrays["residual_difference"][...] = arrays["residual"]
        result_residual(len(labels), masks, step, inside if space.roi is not None else None, write)

    def _along(self, array: np.ndarray) -> np.ndarray:
        """An array [c, k, j, i] as a view (slices, c, ...) along the residual axis, in the model's direction."""
        return np.moveaxis(self._case.space.reference_view(array), 1 + self._slice_axis, 0)
