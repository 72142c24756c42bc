"""Where to segment: the part of an image where a coarse look finds something, and ROIs around what a locator finds.

Importing this module does not import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from conresnet.errors import UserError
from conresnet.images import Box, Grid, Volume, bounding_box, box_corners, transformed
from conresnet.images.inputs import BoxROI
from conresnet.images.preparation import PreparedCase, prepare
from conresnet.inference.labels import FoundSegments, segment_rows, small_components
from conresnet.inference.results import Allocate
from conresnet.messages import sentence
from conresnet.package import ModelDescription
from conresnet.package.outputs import MAPS, Locator, Output

if TYPE_CHECKING:
    from conresnet.inference.segmentation import SegmentResult
    from conresnet.inference.sliding import Passes
    from conresnet.systems import System

logger = logging.getLogger(__name__)


def look_for_segments(
    description: ModelDescription,
    system: System,
    channels: Sequence[Volume],
    case: PreparedCase,
    passes: Passes,
    check: Callable[[], None] = lambda: None,
) -> Box | None:
    """The part of a case where a pass with larger voxels finds segments, with the margin around it.

    Windows that cover only this part take less time, and show as much of an organ as most windows in training did.

    Args:
        description: the model's; it has a coarse look.
        channels, case: the images, as given and as prepared for the model.
        passes: makes the pass, with little overlap.
        check: called repeatedly; an exception that it raises ends the work.

    Returns:
        (S, H, W) in the case's array, everything that windows over the part show; None if a single window shows all of
        the case anyway, if nothing was found, or if the images cannot be used with larger voxels.
    """
    foreground = case.box()
    if len(passes.tiling.plan(foreground, case.shape)) == 1:
        return None
    look, how = description.inference.coarse_look, description.preparation
    spacing = tuple(look.scale * side for side in how.spacing)
    try:
        coarse = prepare(replace(description, preparation=replace(how, spacing=spacing)), channels, check=check)
    except UserError as error:
        # The model's own voxels led to no error, but larger ones may all miss a thin channel.
        logger.info("There is no coarse look: %s", error)
        return None
    found = FoundSegments(coarse, description.output)
    passes.make("look", system.predictors[0], coarse, coarse.box(), passes.tiling.faster(), found)
    box = bounding_box(found.labels)
    if box is None:
        return None
    # The outer faces of the outermost voxels are half a voxel beyond their centers.
    corners = coarse.space.grid.to_ras(box_corners(*np.array([(side.start, side.stop) for side in box]).T - 0.5))
    index = transformed(corners, np.linalg.inv(case.space.grid.array_affine)) + 0.5
    margin = look.margin / case.space.grid.spacing[::-1]
    low, high = np.floor(index.min(axis=0) - margin), np.ceil(index.max(axis=0) + margin)
    part = tuple(
        slice(max(int(a), side.start), min(int(b), side.stop)) for a, b, side in zip(low, high, foreground, strict=True)
    )
    if any(side.start >= side.stop for side in part):
        return None
    # Windows can be longer than the part. What they cut off would not be noticed at the part's borders.
    return passes.tiling.plan(part, case.shape).extent(case.shape)


def check_locator(locator: Locator, finder: ModelDescription) -> None:
    """Raise UserError "locator-differs" for a model of several images, or without the locator's segments."""
    wanted = {name for place in locator.places for name in place.segments}
    if len(finder.inputs) > 1 or finder.output.kind != "labels" or not wanted <= set(finder.output.names):
        raise UserError("locator-differs", locator=finder.title, segments=", ".join(sorted(wanted)))


def located_rois(locator: Locator, labels: Volume, output: Output) -> list[BoxROI | None]:
    """For each place the ROI around what was found of it: its largest connected part, and the margin on all sides.

    Args:
        labels: label values as the locator's model gives them.
        output: of the locator's model.

    Returns:
        Boxes along the patient's axes; None for a place of which nothing was found.
    """
    values = {segment.name: segment.label for segment in output.segments}
    rois: list[BoxROI | None] = []
    for place in locator.places:
        mask = np.isin(labels.array, [values[name] for name in place.segments])
        box = bounding_box(mask)
        if box is None:
            rois.append(None)
            continue
        mask = mask[box]
        # Sizes as shares of all: only the largest part is not smaller than all of it.
        index = np.argwhere(mask & ~small_components(mask, 1.0)) + [part.start for part in box]
        points = transformed(index, labels.grid.array_affine)
        low, high = points.min(axis=0) - locator.margin, points.max(axis=0) + locator.margin
        rois.append(BoxROI((low + high) / 2, np.eye(3), np.maximum(high - low, labels.grid.spacing.max())))
    return rois


def not_located(locator: Locator, rois: Sequence[BoxROI | None], finder: str, image: str) -> list[str]:
    """Warnings for the places that were not found. Raises UserError "nothing-located" if no place was."""
    missing = [place.name for place, roi in zip(locator.places, rois, strict=True) if roi is None]
    structures = ", ".join(name for place in locator.places for name in place.segments)
    if len(missing) == len(rois):
        raise UserError("nothing-located", name=image, locator=finder, structures=structures)
    return [sentence("warn-not-located", {"name": image, "locator": finder, "place": place}) for place in missing]


class LocatedResults:
    """The results at all places together, on the grid of the case's first channel.

    What has one component per segment gets one per place and segment, in the order of ``Locator.output``.

    Args:
        description: the model's; it names a locator.
        grid, allocate: of the results; see ``conresnet.inference.segmentation.segment``.

    Attributes:
        labels: uint8 [k, j, i]; the values are those of ``Locator.output``.
        maps, hidden: by name, [c, k, j, i], see ``conresnet.inference.results.Results``; ``hidden`` are those that
            were not requested.
        entropy: (1 + places x segments, slices), first the sums over all places; None unless asked for.
        output: the segments at all places.
        reports: of the places so far.
    """

    def __init__(self, description: ModelDescription, grid: Grid, allocate: Allocate):
        self.output = description.located_output
        self._count = len(description.output.segments)
        self._places = len(description.locator.places)
        self._allocate = allocate
        self._grid = grid
        self.labels = allocate("labels", grid.shape, np.dtype(np.uint8))
        self.maps: dict[str, np.ndarray] = {}
        self.hidden: dict[str, np.ndarray] = {}
        self.entropy: np.ndarray | None = None
        self.reports: list[dict] = []

    def add(self, place: int, result: SegmentResult) -> None:
        """Add the result at a place, with that place's label values; where two places overlap, the first one stays."""
        labels = result.labels.array
        box = bounding_box(labels)
        if box is not None:
            np.copyto(self.labels[box], labels[box], where=(labels[box] != 0) & (self.labels[box] == 0))
        for name, array in result.maps.items():
            self._merge(self.maps, name, array, place, self._allocate)
        for name, array in result.hidden.items():
            self._merge(self.hidden, name, array, place, lambda name, shape, dtype: np.zeros(shape, dtype))
        if result.entropy is not None:
            if self.entropy is None:
                self.entropy = np.zeros((1 + self._places * self._count, result.entropy.shape[1]))
            self.entropy[0] += result.entropy[0]
            self.entropy[1 + place * self._count :][: self._count] += result.entropy[1:]
        self.reports.append(result.report)

    def _merge(self, into: dict[str, np.ndarray], name: str, array: np.ndarray, place: int, allocate: Allocate) -> None:
        is_per_segment = MAPS[name].per_segment and len(array) == self._count
        if name not in into:
            components = self._count * self._places if is_per_segment else len(array)
            into[name] = allocate(name, (components, *self._grid.shape), array.dtype)
        target = into[name][place * self._count :][: self._count] if is_per_segment else into[name]
        # Where two places overlap, the value of larger magnitude is kept, because features can be negative.
        for kept, one in zip(target, array, strict=True):
            np.copyto(kept, one, where=np.abs(one) > np.abs(kept))

    def report(self) -> dict:
        """The reports of the places as one: what adds up is added up, and the rest is as at the last place."""
        changes = [each["postprocessing"] for each in self.reports if each["postprocessing"]]
        changed = {
            key: {name: volume for each in changes for name, volume in each[key].items()}
            for key in ("removed_ml", "filled_ml")
        }
        voxels = np.bincount(self.labels.ravel(), minlength=256)
        segments = segment_rows(self.output, [voxels[item.label] for item in self.output.segments], self._grid)
        in_one_piece = [name for each in changes for name in each["in_one_piece"]]
        return {
            **self.reports[-1],
            "windows": sum(each["windows"] for each in self.reports),
            "passes": [row for each in self.reports for row in each["passes"]],
            "seconds": {
                phase: sum(each["seconds"][phase] for each in self.reports) for phase in self.reports[0]["seconds"]
            },
            "segments": segments,
            "volumes_ml": {row["name"]: row["volume_ml"] for row in segments},
            "postprocessing": {**changes[-1], "in_one_piece": in_one_piece, **changed} if changes else {},
            "warnings": [text for each in self.reports for text in each["warnings"]],
        }
