"""Label maps against each other, and which values a segment has in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from conresnet.boxes import bounding_box, whole_box
from conresnet.grid import Volume
from conresnet.inference.painting import region_mask
from conresnet.package.description import Segment
from conresnet_training.data_sets import DataSet
from conresnet_training.evaluation.metrics import Figures, segment_figures


@dataclass(frozen=True)
class SegmentValues:
    """The label values of one segment.

    Args:
        truth: in the reference's label map.
        found: in the result's, where regions that it contains may be painted over it with values of their own.
    """

    truth: tuple[int, ...]
    found: tuple[int, ...]


def values_of_model(segments: Sequence[Segment], targets: Mapping[str, Sequence[int]]) -> dict[str, SegmentValues]:
    """For the segments of a model that was trained for ``targets``: a region also has the values of those inside it."""
    painted = {segment.name: segment.label for segment in segments}
    return {name: SegmentValues(tuple(targets[name]), tuple(_inside(name, targets, painted))) for name in painted}


def values_of_data_set(data_set: DataSet) -> dict[str, SegmentValues]:
    """For label maps with the data set's own values, or with those that its regions are painted with."""
    if not data_set.regions:
        return {name: SegmentValues((value,), (value,)) for value, name in sorted(data_set.labels.items())}
    return {
        name: SegmentValues(own, tuple(sorted({*own, *_inside(name, data_set.regions, data_set.region_labels)})))
        for name, own in data_set.regions.items()
    }


def _inside(name: str, members: Mapping[str, Sequence[int]], painted: Mapping[str, int]) -> list[int]:
    return sorted(painted[other] for other in members if set(members[other]) <= set(members[name]))


def crossing(values: Mapping[str, SegmentValues]) -> tuple[str, str] | None:
    """The first two regions that overlap while neither lies inside the other; None where there are no such.

    Where they overlap, a label map has a value for one of them alone.
    """
    for (name, item), (other_name, other) in combinations(values.items(), 2):
        shared = set(item.truth) & set(other.truth)
        if shared and shared != set(item.truth) and shared != set(other.truth):
            return name, other_name
    return None


def compare_label_maps(
    found: Volume,
    truth: Volume,
    values: Mapping[str, SegmentValues],
    tolerance_mm: float,
    regions: np.ndarray | None = None,
) -> dict[str, Figures]:
    """The figures of every segment of a case whose label maps lie on one grid.

    Args:
        regions: where the result's regions overlap, all of each as in ``conresnet.segmentation.SegmentResult``, in the
            order of ``values``; they are measured instead of what ``found`` has of them.
    """
    box = bounding_box((found.array != 0) | (truth.array != 0)) or whole_box(truth.array.shape)
    ours, theirs = found.array[box], truth.array[box]
    packed = None if regions is None else regions[(slice(None), *box)]
    spacing, voxel_ml = truth.grid.spacing[::-1], truth.grid.voxel_volume / 1000
    figures = {}
    for place, (name, item) in enumerate(values.items()):
        mask = np.isin(ours, item.found) if packed is None else region_mask(packed, place)
        figures[name] = segment_figures(mask, np.isin(theirs, item.truth), spacing, voxel_ml, tolerance_mm)
    return figures
