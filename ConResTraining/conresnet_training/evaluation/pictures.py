"""Pictures of a case: slices with the outlines of the reference's segments and of the result's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from conresnet.boxes import Box, bounding_box, whole_box
from conresnet.grid import Volume
from conresnet.orientation import reordering
from conresnet_training.drawing import outline, to_png
from conresnet_training.evaluation.label_maps import SegmentValues

Color = Sequence[int]

# Index grows to inferior, posterior, left: rows of the slices then run downward as radiologists look at them.
ORIENTATION = "IPL"
MARGIN_MM = 12.0
PANEL_INCHES, DPI = 3.0, 110
REFERENCE_COLOR = "white"


@dataclass(frozen=True)
class Masks:
    """One segment in two label maps, both [k, j, i] on the image's grid."""

    found: np.ndarray
    truth: np.ndarray
    values: SegmentValues

    def cut(self, view, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """The segment's masks (result, reference), bool, after ``view`` in ``box``."""
        return (
            np.isin(view(self.found)[box], self.values.found),
            np.isin(view(self.truth)[box], self.values.truth),
        )


def draw_case(
    image: Volume, masks: Mapping[str, Masks], colors: Mapping[str, Color], planes: int = 3, worst: bool = True
) -> bytes:
    """A PNG of slices of a case, one a plane.

    The image is cut to what either label map holds with a margin around it, and turned to its nearest anatomical axes.
    The result is outlined in the segments' colors, the reference's segments in dashed white.

    Args:
        planes: how many of axial, coronal and sagittal, in this order.
        worst: of the slices with most voxels in the wrong segment; else, and where none is wrong, of those with most
            voxels of the reference's segments.
    """
    reorder = reordering(image.grid, ORIENTATION)
    spacing = reorder.grid(image.grid).spacing[::-1]
    first = next(iter(masks.values()))
    shown = reorder.view((first.found != 0) | (first.truth != 0))
    box = _with_margin(bounding_box(shown) or whole_box(shown.shape), spacing)
    gray = reorder.view(image.array)[box].astype(np.float32)
    pairs = {name: item.cut(reorder.view, box) for name, item in masks.items()}
    place = _place_with_most([found != truth for found, truth in pairs.values()]) if worst else None
    place = place or _place_with_most([truth for _, truth in pairs.values()]) or [side // 2 for side in gray.shape]
    low, high = np.percentile(gray[np.isfinite(gray)], [1, 99.5]) if np.isfinite(gray).any() else (0, 1)
    figure = Figure(figsize=(PANEL_INCHES * planes, PANEL_INCHES), facecolor="black", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis, axes in enumerate(np.ravel(figure.subplots(1, planes))):
        rows, columns = (other for other in range(3) if other != axis)
        axes.imshow(
            gray.take(place[axis], axis),
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            aspect=spacing[rows] / spacing[columns],
            interpolation="nearest",
        )
        for name, (found, truth) in pairs.items():
            shade = np.array(colors[name]) / 255
            outline(axes, found.take(place[axis], axis), colors=[shade], linewidths=1.6)
            outline(axes, truth.take(place[axis], axis), colors=REFERENCE_COLOR, linewidths=0.9, linestyles="dashed")
        # Outlines reach half a voxel beyond the slice.
        height, width = gray.take(place[axis], axis).shape
        axes.set(xlim=(-1, width), ylim=(height, -1))
        axes.set_axis_off()
    return to_png(figure, DPI)


def _with_margin(box: Box, spacing: np.ndarray) -> Box:
    margins = np.ceil(MARGIN_MM / spacing).astype(int)
    return tuple(
        slice(max(0, part.start - margin), part.stop + margin) for part, margin in zip(box, margins, strict=True)
    )


def _place_with_most(masks: Sequence[np.ndarray]) -> list[int] | None:
    """Along each axis the slice with most voxels of all masks together; None where they are empty."""
    total = sum(mask.astype(np.int32) for mask in masks)
    if not total.any():
        return None
    return [int(total.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
