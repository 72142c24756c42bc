"""The results of a case on the input's grid, filled slab by slab, and the maps that are computed from them.

Uncertainty is the predictive entropy, and disagreement the mutual information between the prediction and the member of
an ensemble that makes it: the entropy of the members' mean minus the mean of their entropies (Lakshminarayanan et al.,
"Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017; Smith and Gal,
"Understanding Measures of Uncertainty for Adversarial Example Detection", UAI 2018, eqs 1 to 5).

Both are divided by the largest possible entropy. For overlapping regions, each of which is decided separately, the
largest value counts: a mean would make a voxel look certain even if one of its many regions is undecided.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from conresnet.images import Box, translation
from conresnet.images.preparation import PreparedCase
from conresnet.inference.labels import LabelWriter, packed_size, segment_masks
from conresnet.package.outputs import MAPS, Output

if TYPE_CHECKING:
    from torch import Tensor

# Most slabs of a scan contain few of a large model's segments; the entropies of the others are not summed.
_HARDLY_LIKELY = 1e-3

_HALF_MAXIMUM = float(np.finfo(np.float16).max)

Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]


def to_half(values: np.ndarray) -> np.ndarray:
    """Values as float16; those outside its range become its largest."""
    return np.clip(values, -_HALF_MAXIMUM, _HALF_MAXIMUM).astype(np.float16)


def _copied(values: Tensor) -> np.ndarray:
    """The same as ``to_half``, but converted on the device, before the values are copied from it."""
    return values.clamp(-_HALF_MAXIMUM, _HALF_MAXIMUM).half().cpu().numpy()


class Results:
    """The label map and the requested maps on the grid of the case's first channel, which grow as slabs come in.

    Args:
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

    def finish(self, where: Box, values: Mapping[str, Tensor]) -> None:
        """Take a finished slab."""
        if self._case.space.exact:
            self._finish_exactly(where, values)
            return
        for name, value in values.items():
            if name not in self._kept:
                self._kept[name] = np.zeros((len(value), *self._case.shape), dtype=np.float16)
            self._kept[name][(slice(None), *where)] = _copied(value)
        if self._watched:
            self._show(where, values["probability"].cpu().numpy())

    def _show(self, where: Box, probability: np.ndarray) -> None:
        """Show a slab on the input's grid; ``complete`` replaces it with the final labels."""
        import torch

        labels = self._case.space.reference_view(self.labels)
        for place, block in self._case.space.slabs_from_model(probability, [part.start for part in where]):
            shown = LabelWriter(self._output).labels(torch.from_numpy(block))
            # What lies around an oblique slab belongs to another one.
            np.copyto(labels[place], shown, where=shown != 0)

    def _finish_exactly(self, where: Box, values: Mapping[str, Tensor]) -> None:
        space = self._case.space
        mask = None if self._case.inside is None else self._case.inside[where]
        packed = None if self.regions is None else space.output_view(self.regions)[(slice(None), *where)]
        space.output_view(self.labels)[where] = self.writer.labels(values["probability"], mask, packed)
        for name, target in self._predicted.items():
            value = _copied(values[name])
            if mask is not None:
                value *= mask
            space.output_view(target)[(slice(None), *where)] = value
        if "uncertainty" in self._all_maps or self.entropy is not None:
            offset = round(space.index_map[self._slice_axis, 3])
            view = space.output_view(self._all_maps["uncertainty"]) if "uncertainty" in self._all_maps else None
            self._measure(view, where, offset, values["probability"].cpu().numpy(), mask)

    def _measure(
        self, view: np.ndarray | None, where: Box, offset: int, probability: np.ndarray, mask: np.ndarray | None = None
    ) -> None:
        """Fill in the uncertainty of a block of probabilities (K, ...), and add its entropies to those of its slices.

        ``where`` is its place in ``view``, the map (1, ...) if that is wanted; ``offset`` is the slice it counts from.
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

        ``done`` is called with the share done; ``revise`` changes labels and regions in place, before maps of them.
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
        import torch

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
                    labels[where] = self.writer.labels(torch.from_numpy(block), packed=packed)
                if measured:
                    uncertain = self._all_maps.get("uncertainty")
                    self._measure(None if uncertain is None else space.reference_view(uncertain), where, 0, block)
                if target is not None:
                    target[(slice(None), *where)] = to_half(block)
                done(number / len(names))

    def _find_residual(self) -> None:
        """Fill in the maps of the result's residual (eq. 1): where a segment differs from the slice before.

        It is found on the image's own slices. The one before is as far away as for the model, whose slices may be
        thicker. Slices without a predecessor are 0, as in training. So is what has its predecessor outside an ROI: a
        segment that the ROI cuts off does not end there.
        """
        space, axis = self._case.space, self._slice_axis
        arrays = {name: self._along(array) for name, array in self._all_maps.items()}
        labels = self._along(self.labels[None])[:, 0]
        regions = None if self.regions is None else self._along(self.regions)
        source = space.reorder.grid(space.reference)
        step = max(1, round(space.grid.spacing[::-1][axis] / source.spacing[::-1][axis]))
        together = next(arrays[n].shape[1] for n in ("result_residual", "residual_difference") if n in arrays) == 1

        def masks(number: int) -> np.ndarray:
            """(c, ...): each segment in a slice, or what stands for all of them."""
            if together:
                return (labels[number] if regions is None else regions[number])[None]
            part = None if regions is None else regions[number]
            return segment_masks(labels[number], part, self._output)

        def inside(number: int) -> np.ndarray:
            start, shape = [0, 0, 0], list(source.shape)
            start[axis], shape[axis] = number, 1
            return space.roi.contains(source.array_affine @ translation(start), shape).squeeze(axis)

        if "residual_difference" in arrays:
            # Slices that have no predecessor keep what was predicted: nothing changes there.
            arrays["residual_difference"][...] = arrays["residual"]
        earlier: list[tuple[np.ndarray, np.ndarray | None]] = []
        for number in range(len(labels)):
            now = masks(number), None if space.roi is None else inside(number)
            earlier.append(now)
            if number < step:
                continue
            before = earlier.pop(0)
            residual = now[0] != before[0]
            if space.roi is not None:
                residual &= now[1] & before[1]
            if together and residual.ndim == 4:
                residual = residual.any(axis=1)
            if "result_residual" in arrays:
                arrays["result_residual"][number] = residual
            if "residual_difference" in arrays:
                arrays["residual_difference"][number] = np.abs(arrays["residual"][number] - residual)

    def _along(self, array: np.ndarray) -> np.ndarray:
        """An array [c, k, j, i] as a view (slices, c, ...) along the residual axis, in the model's direction."""
        return np.moveaxis(self._case.space.reference_view(array), 1 + self._slice_axis, 0)


def entropies(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """The entropy of each decision about a voxel, 0 to 1.

    Args:
        probability: (K, ...), one per segment; where segments exclude each other, the background has what they leave.
        exclusive: whether they exclude each other.

    Returns:
        (1, ...) over the background and all segments, divided by log(K + 1); for regions (K, ...), that of each region
        and its complement, divided by log 2.
    """
    rest = 1 - (probability.sum(axis=0) if exclusive else probability)
    if not exclusive:
        return (_information(probability) + _information(rest)) / np.float32(np.log(2))
    total = _information(rest)
    # One segment after another, so that no second array of all of them is needed.
    for one in probability:
        total += _information(one)
    return (total / np.float32(np.log(len(probability) + 1)))[None]


def uncertainty(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """Predictive entropy of the segments' probabilities (K, ...), as described above: (...) float, 0 to 1."""
    return entropies(probability, exclusive).max(axis=0)


def disagreement(mean: np.ndarray, mean_entropies: np.ndarray, exclusive: bool) -> np.ndarray:
    """Mutual information between the prediction and the member of an ensemble, 0 (all agree) to 1: (...) float.

    Args:
        mean: (K, ...), the mean of the members' probabilities.
        mean_entropies: the mean of what ``entropies`` gives for each member.
    """
    # The entropy is concave, so that only rounding makes a difference negative.
    return np.maximum(entropies(mean, exclusive) - mean_entropies, 0).max(axis=0)


def _information(probability: np.ndarray) -> np.ndarray:
    """-p log p, 0 at 0; rounding may have led out of 0 to 1."""
    bounded = np.clip(probability, np.float32(1e-12), 1)
    return -bounded * np.log(bounded)
