"""Where finished slabs go: onto the input's grid at once, or by way of the model's where it has another. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from conresnet.boxes import Box
from conresnet.inference.painting import Painter, packed_size
from conresnet.maps import to_half
from conresnet.package.description import Output
from conresnet.preparation import PreparedCase

Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]


class Results:
    """The label map and the maps wanted, on the grid of the case's first channel, growing as slabs come in.

    Args:
        case: what is segmented.
        output: the model's segments.
        components: of each map wanted, by name.
        allocate: makes each result's array of zeros, by name, shape and type.
        watched: whether somebody looks at the labels while they grow.

    Attributes:
        labels: [k, j, i] uint8.
        regions: [b, k, j, i] uint8, which regions each voxel belongs to as ``Painter.paint`` packs it; None for a
            model of labels, which exclude each other.
        maps: [c, k, j, i] float16 by name.
        painter: has counted the voxels, once ``complete`` is done.
    """

    def __init__(
        self,
        case: PreparedCase,
        output: Output,
        components: Mapping[str, int],
        allocate: Allocate,
        watched: bool = False,
    ):
        self._case = case
        self._output = output
        self._watched = watched
        shape = case.space.reference.shape
        self.labels = allocate("labels", shape, np.dtype(np.uint8))
        self.regions = None
        if output.kind == "regions":
            self.regions = allocate("regions", (packed_size(len(output.segments)), *shape), np.dtype(np.uint8))
        self.maps = {name: allocate(name, (count, *shape), np.dtype(np.float16)) for name, count in components.items()}
        self.painter = Painter(output)
        self._smallest_component = 0.0
        # On the model's grid; pages of an array of zeros that nobody writes to take no memory.
        self._kept: dict[str, np.ndarray] = {}

    def drop_components_under(self, share: float) -> None:
        """Have ``complete`` take away each segment's components of less than a share of it; maps stay as they are."""
        self._smallest_component = share

    def restart(self) -> None:
        """Forget all slabs: the windows are made anew, of another size."""
        for array in (self.labels, self.regions, *self.maps.values()):
            if array is not None:
                array[...] = 0
        self.painter = Painter(self._output)
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
        """Lay a slab onto the input's grid for those who watch; ``complete`` puts the final labels over it."""
        labels = self._case.space.reference_view(self.labels)
        for place, block in self._case.space.slabs_from_model(probability, [part.start for part in where]):
            painted = Painter(self._output).paint(block)
            # What lies around an oblique slab is another one's.
            np.copyto(labels[place], painted, where=painted != 0)

    def _finish_exactly(self, where: Box, values: Mapping[str, np.ndarray]) -> None:
        space = self._case.space
        mask = None if self._case.inside is None else self._case.inside[where]
        packed = None if self.regions is None else space.output_view(self.regions)[(slice(None), *where)]
        space.output_view(self.labels)[where] = self.painter.paint(values["probability"], mask, packed)
        for name, target in self.maps.items():
            value = to_half(values[name])
            if mask is not None:
                value *= mask
            space.output_view(target)[(slice(None), *where)] = value

    def complete(self, done: Callable[[float], None]) -> None:
        """Bring what was kept on the model's grid onto the input's, and drop small components where that was asked for.

        Args:
            done: called with the share that is done.
        """
        if not self._case.space.exact:
            self._bring_back(done)
        if self._smallest_component:
            self.painter.drop_small_components(self.labels, self.regions, self._smallest_component)
            done(1.0)

    def _bring_back(self, done: Callable[[float], None]) -> None:
        space = self._case.space
        labels = space.reference_view(self.labels)
        regions = None if self.regions is None else space.reference_view(self.regions)
        # Nothing is there where no pass came as far.
        names = sorted(self._kept, key=lambda name: name != "probability")
        for number, name in enumerate(names):
            target = space.reference_view(self.maps[name]) if name in self.maps else None
            for where, block in space.slabs_from_model(self._kept.pop(name)):
                if name == "probability":
                    packed = None if regions is None else regions[(slice(None), *where)]
                    labels[where] = self.painter.paint(block, packed=packed)
                if target is not None:
                    target[(slice(None), *where)] = to_half(block)
                done(number / len(names))
