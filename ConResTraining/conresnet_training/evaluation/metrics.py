"""The figures of one segment in one case, on the image's own grid.

Where a segment is empty:

- in both label maps: Dice and surface Dice are 1, for what is not there was rightly left out; there is no distance.
- in one alone: Dice and surface Dice are 0; there is no distance. The summary counts such cases, as "missed" where the
  reference has the segment and as "invented" where only the result has it.

A distance that is not there is None. It is in no mean, since neither 0 nor the size of the image would say how far off
the result is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance

from conresnet.boxes import bounding_box

Figures = dict[str, float | None]

PERCENTILE = 95.0
DECIMALS = 8


@dataclass(frozen=True)
class Metric:
    """What people read of a metric.

    Args:
        unit: "" for a share.
        better: "higher", "lower", or "zero" of one with a sign.
        decimals: to show.
    """

    title: str
    unit: str
    better: str
    decimals: int

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "dice": Metric("Dice", "", "higher", 3),
    "surface_dice": Metric("Surface Dice", "", "higher", 3),
    "hd95": Metric("Hausdorff 95 %", "mm", "lower", 2),
    "hd": Metric("Hausdorff", "mm", "lower", 2),
    "volume_difference_ml": Metric("Volume difference", "mL", "zero", 3),
}
VOLUME = "volume_ml"


def segment_figures(
    found: np.ndarray, truth: np.ndarray, spacing: Sequence[float], voxel_ml: float, tolerance_mm: float
) -> Figures:
    """Compare one segment of a result with the reference's.

    Surfaces are the voxels of a mask with a face neighbor outside of it, distances those between voxel centers, both
    by MONAI. The Hausdorff distance is the longest way from any voxel of one surface to the other surface; its 95th
    percentile is the larger of the two directions' 95th percentiles, each over its own surface. Surface Dice is the
    share of the voxels of both surfaces that lie within the tolerance of the other surface (not weighted by area).

    Args:
        found, truth: bool [k, j, i].
        spacing: mm along k, j, i.
        voxel_ml: of one voxel.
        tolerance_mm: of surface Dice.

    Returns:
        "dice", "surface_dice", "hd95" and "hd" (mm), "volume_difference_ml" (result less reference), and "volume_ml",
        the reference's.
    """
    size_found, size_truth = np.count_nonzero(found), np.count_nonzero(truth)
    both = size_found + size_truth
    figures: Figures = {
        "dice": 2 * np.count_nonzero(found & truth) / both if both else 1.0,
        "surface_dice": 0.0 if both else 1.0,
        "hd95": None,
        "hd": None,
        "volume_difference_ml": (int(size_found) - int(size_truth)) * voxel_ml,
        VOLUME: int(size_truth) * voxel_ml,
    }
    if size_found and size_truth:
        figures |= _surface_figures(found, truth, spacing, tolerance_mm)
    return {name: None if value is None else round(float(value), DECIMALS) for name, value in figures.items()}


def _surface_figures(found: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> Figures:
    box = bounding_box(found | truth)
    surfaces = get_mask_edges(found[box], truth[box])
    ways = [get_surface_distance(*pair, spacing=list(spacing)) for pair in (surfaces, surfaces[::-1])]
    return {
        "surface_dice": sum(np.count_nonzero(way <= tolerance_mm) for way in ways) / sum(way.size for way in ways),
        "hd95": max(np.percentile(way, PERCENTILE) for way in ways),
        "hd": max(way.max() for way in ways),
    }
