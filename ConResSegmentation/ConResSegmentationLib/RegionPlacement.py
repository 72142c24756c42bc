"""A first place and size for a region that the user has just created, and when to advise one."""

import numpy as np
import slicer

from conresnet.grid import Grid
from conresnet.roi_advice import seen_at_once, wants_roi

from .SceneInputs import ijkToWorld

_AXES = {"L": 0, "R": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def fieldOfView(description, volumeNode) -> np.ndarray:
    """(3,) mm right, anterior, superior that the model looks at in one window; errors as for `isAdvised`."""
    axes = [_AXES[direction] for direction in description.preparation.orientation]
    size = np.zeros(3)
    size[axes] = seen_at_once(description, _grid(volumeNode))
    return size


def isAdvised(description, volumeNode) -> bool:
    """Whether the image is of use to the model only in a region.

    Raises:
        UserError: ``transform-not-linear``, so that the volume is no grid in the world.
    """
    return wants_roi(description, _grid(volumeNode))


def place(roiNode, description, volumeNode) -> None:
    """Put a new region where the slices cross, if that is in the image, in the size that the model looks at.

    Raises:
        UserError: as for `isAdvised`; nothing is placed then.
    """
    corners = _grid(volumeNode).corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle = (low + high) / 2
    crossing = _slicesCross(middle)
    roiNode.SetCenterWorld(crossing if (low < crossing).all() and (crossing < high).all() else middle)
    roiNode.SetSizeWorld(np.minimum(fieldOfView(description, volumeNode), high - low))
    roiNode.CreateDefaultDisplayNodes()
    # A filled box would hide the structure it is drawn around.
    roiNode.GetDisplayNode().SetFillVisibility(False)


def _slicesCross(start: np.ndarray) -> np.ndarray:
    """(3,) The point of all slices, however they are turned, nearest to ``start``: parallel ones leave it open."""
    planes = [
        slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS())
        for sliceNode in slicer.util.getNodesByClass("vtkMRMLSliceNode")
    ]
    normals = np.array([plane[:3, 2] for plane in planes]).reshape(-1, 3)
    distances = np.array([plane[:3, 2] @ (plane[:3, 3] - start) for plane in planes])
    return start + np.linalg.pinv(normals, rcond=1e-3) @ distances


def _grid(volumeNode) -> Grid:
    return Grid(volumeNode.GetImageData().GetDimensions()[::-1], ijkToWorld(volumeNode))
