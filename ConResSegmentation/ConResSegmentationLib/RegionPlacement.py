"""A first place and size for a region that the user has just created, and when to advise one."""

import numpy as np
import slicer

from conresnet.grid import Grid

from .SceneInputs import ijkToWorld

# A whole head has about seventy times the volume of the window of a model for the hippocampus.
_MUCH_LARGER = 27
_AXES = {"L": 0, "R": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def fieldOfView(description, volumeNode) -> np.ndarray:
    """(3,) mm right, anterior, superior that the model looks at in one window."""
    axes = [_AXES[direction] for direction in description.preparation.orientation]
    spacing = description.preparation.spacing or [min(volumeNode.GetSpacing())] * 3
    size = np.zeros(3)
    size[axes] = np.multiply(description.inference.window, spacing)
    return size


def isAdvised(description, volumeNode) -> bool:
    """Whether the image is so much larger than the crops that the model is meant for that a region helps."""
    if description.preparation.roi == "limit":
        return False
    return float(np.prod(_extent(volumeNode))) > _MUCH_LARGER * float(np.prod(fieldOfView(description, volumeNode)))


def place(roiNode, description, volumeNode) -> None:
    """Put a new region where the slices cross, if that is in the image, in the size that the model looks at."""
    low, high = _bounds(volumeNode)
    center = (low + high) / 2
    for sliceNode in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        axis = {"Sagittal": 0, "Coronal": 1, "Axial": 2}.get(sliceNode.GetOrientation())
        if axis is not None:
            place = sliceNode.GetSliceToRAS().GetElement(axis, 3)
            center[axis] = place if low[axis] < place < high[axis] else center[axis]
    roiNode.SetCenterWorld(center)
    roiNode.SetSizeWorld(np.minimum(fieldOfView(description, volumeNode), high - low))
    roiNode.CreateDefaultDisplayNodes()
    # A filled box would hide the structure it is drawn around.
    roiNode.GetDisplayNode().SetFillVisibility(False)


def _extent(volumeNode) -> np.ndarray:
    low, high = _bounds(volumeNode)
    return high - low


def _bounds(volumeNode) -> tuple[np.ndarray, np.ndarray]:
    shape = volumeNode.GetImageData().GetDimensions()[::-1]
    corners = Grid(shape, ijkToWorld(volumeNode)).corners()
    return corners.min(axis=0), corners.max(axis=0)
