"""What a case of a data set takes from the scene: volumes brought onto one grid, and segments as masks on it."""

import numpy as np
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.grid import Grid
from conresnet.resampling import sample
from ConResSegmentationLib.SceneInputs import volumeInput


def channelArrays(nodes: dict[str, object]) -> tuple[dict[str, np.ndarray], Grid]:
    """The voxels of each channel's volume, [k, j, i] by its name, on the grid of the first, which is returned too.

    Raises:
        UserError: as ``volumeInput`` does.
    """
    volumes = {name: volumeInput(node) for name, node in nodes.items()}
    grid = next(iter(volumes.values())).grid
    arrays = {}
    for name, volume in volumes.items():
        arrays[name] = volume.array
        if not volume.grid.matches(grid):
            indexMap = np.linalg.inv(volume.grid.array_affine) @ grid.array_affine
            arrays[name] = sample(volume.array, indexMap, grid.shape, antialias=True)
    return arrays, grid


def segmentMasks(node, volumeNode) -> dict[str, np.ndarray]:
    """Boolean [k, j, i] on the voxels of a volume, by the segment's name.

    Args:
        node: a segmentation, or a label map, whose labels go by the names in its color table.
        volumeNode: the first channel.

    Raises:
        UserError: ``segment-name-repeated``, ``label-grid-differs`` or ``label-unnamed``.
    """
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _labelMasks(node, volumeNode)
    segmentation = node.GetSegmentation()
    masks = {}
    for number in range(segmentation.GetNumberOfSegments()):
        segmentId, name = segmentation.GetNthSegmentID(number), segmentation.GetNthSegment(number).GetName()
        if name in masks:
            sentence = _("Two segments are named {name}; rename one of them.")
            raise UserError("segment-name-repeated", sentence.format(name=name))
        # Slicer brings the segment onto the grid of the volume, the transforms above both included.
        masks[name] = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volumeNode) != 0
    return masks


def _labelMasks(node, volumeNode) -> dict[str, np.ndarray]:
    labels = volumeInput(node)
    if not labels.grid.matches(volumeInput(volumeNode).grid):
        sentence = _(
            "The label map {label} does not lie on the voxels of {volume}; resample it, or make it a segmentation."
        )
        names = {"label": node.GetName(), "volume": volumeNode.GetName()}
        raise UserError("label-grid-differs", sentence.format(**names))
    display = node.GetDisplayNode()
    colors = display.GetColorNode() if display else None
    masks = {}
    for value in np.unique(labels.array[labels.array != 0]):
        name = (colors.GetColorName(int(value)) if colors and value < colors.GetNumberOfColors() else "") or ""
        if not name or name in masks:
            sentence = _(
                "The value {value} of the label map {label} has no name of its own in its color table; name it."
            )
            raise UserError("label-unnamed", sentence.format(value=value, label=node.GetName()))
        masks[name] = labels.array == value
    return masks
