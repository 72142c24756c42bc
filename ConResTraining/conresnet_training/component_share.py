"""Which small components of a segment may be dropped without losing what the labels themselves have."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from conresnet.boxes import bounding_box
from conresnet.inference.components import small_components
from conresnet_training.data_sets import DataSet
from conresnet_training.label_maps import read_label

# ResDSN's for an organ (4.2) and for one with lesions (4.3); tissue, and organs that come in many pieces, keep all.
SHARES = (0.2, 0.05)
MOST_CASES = 10
# Of a segment's labelled voxels in all the cases that are looked at.
MOST_LOST = 0.01


def planned_share(data_set: DataSet, targets: Mapping[str, Sequence[int]]) -> float:
    """The largest of ``SHARES`` by which the labels of no segment lose more than ``MOST_LOST``; 0 where there is none.

    Raises:
        UserError: any of reading a label map.
    """
    labels = [read_label(data_set.cases[index].label).array for index in data_set.spread(MOST_CASES)]
    return next((share for share in SHARES if _most_lost(labels, targets.values(), share) <= MOST_LOST), 0.0)


def _most_lost(labels: Sequence[np.ndarray], targets: Iterable[Sequence[int]], share: float) -> float:
    """Of all segments the largest part of the labelled voxels that is dropped."""
    return max(_lost([np.isin(label, values) for label in labels], share) for values in targets)


def _lost(masks: Sequence[np.ndarray], share: float) -> float:
    there = [mask[box] for mask in masks if (box := bounding_box(mask)) is not None]
    voxels = sum(np.count_nonzero(mask) for mask in there)
    return sum(np.count_nonzero(small_components(mask, share)) for mask in there) / max(voxels, 1)
