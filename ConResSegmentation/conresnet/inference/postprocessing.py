"""What a user may ask to be changed in a finished segmentation: islands removed, the largest piece kept, holes filled.

It works on the label map and the regions on the input's grid. Maps are not changed: they show what the network said.
Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.messages import sentence

if TYPE_CHECKING:
    from conresnet.images.grid import Grid
    from conresnet.inference.results import Results
    from conresnet.package.description import ModelDescription
    from conresnet.request import SegmentOptions


def check_postprocessing(options: SegmentOptions) -> None:
    """Raise UserError("volume-not-positive") if the volume is not a positive number."""
    below = options.drop_below
    if below is not None and not 0 < below < math.inf:
        raise UserError("volume-not-positive", option="drop_below", value=below)


class PostProcessing:
    """What the options ask to be changed: first components of every segment are removed, then holes filled.

    Voxels that touch at a face, an edge or a corner belong to one component, as in ``small_components``. A hole is
    background that a segment encloses on all sides: it reaches the segment's outside only through edges and corners,
    and holds no voxel of another segment. Regions are judged whole, including where another lies over them, and a part
    stays inside the region that includes it.

    Args:
        description: the model's.
        options: ``keep_largest``, which the model may ask for too, ``drop_below`` in mL, and ``fill_holes``.
        grid: the result's.
        done: called with the share that is done; an exception from it ends the work.

    Attributes:
        report: what ``report.json`` holds: the steps, and per segment what they have changed, in mL.
        warnings: sentences for the user.
    """

    def __init__(
        self, description: ModelDescription, options: SegmentOptions, grid: Grid, done: Callable[[float], None]
    ):
        self._segments, self._options, self._done = description.output.segments, options, done
        segments = description.output.segments
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
    by_size = sitk.RelabelComponentImageFilter()
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    components = sitk.GetArrayFromImage(by_size.Execute(sitk.ConnectedComponent(image, True)))
    sizes = np.array(by_size.GetSizeOfObjectsInPixels())
    # A millionth of a voxel allows for rounding.
    count = int(np.count_nonzero(sizes >= fewest - 1e-6))
    return (components > 0) & (components <= (min(count, 1) if only_largest else count))


def _filled(mask: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A mask with its holes. The array ends at the mask's box, so that what reaches its border is outside."""
    padded = np.pad(mask, 1).astype(np.uint8)
    closed = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(padded), False, 1))
    holes = (closed != 0)[1:-1, 1:-1, 1:-1] & ~mask
    if (holes & ~free).any():
        pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(holes.astype(np.uint8)), False))
        holes &= ~np.isin(pieces, np.unique(pieces[holes & ~free]))
    return mask | holes
