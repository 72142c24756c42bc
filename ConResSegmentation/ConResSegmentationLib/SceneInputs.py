"""The volumes and the region that a segmentation starts from, read from the scene as they lie in the world.

A first place and size for a region that the user has just created, and when to advise one.

The region's selector: placing a new region, and advising one where the image is large and the structure small.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.images.grid import Grid, Volume
from conresnet.images.roi import BoxROI, seen_at_once, wants_roi


def volumeInput(volumeNode) -> Volume:
    """The voxels of a volume node and where they lie in the world; the transforms above the node are applied.

    The array is the node's own memory, not a copy.

    Raises:
        UserError: ``volume-empty``, ``volume-color`` or ``transform-not-linear``.
    """
    image = volumeNode.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or image.GetNumberOfPoints() == 0:
        sentence = _("The volume {name} holds no image; load it again or choose another one.")
        raise UserError("volume-empty", sentence.format(name=volumeNode.GetName()))
    if image.GetNumberOfScalarComponents() != 1:
        sentence = _("The volume {name} has {count} values a voxel, as a color image has; choose one of gray values.")
        count = image.GetNumberOfScalarComponents()
        raise UserError("volume-color", sentence.format(name=volumeNode.GetName(), count=count))
    array = slicer.util.arrayFromVolume(volumeNode)
    return Volume(array, Grid(array.shape, ijkToWorld(volumeNode)), volumeNode.GetName())


def ijkToWorld(volumeNode) -> np.ndarray:
    """(4, 4) voxel index (i, j, k, 1) to RAS mm in the world."""
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    return _linearToWorld(volumeNode) @ slicer.util.arrayFromVTKMatrix(ijkToRas)


def regionInput(roiNode) -> BoxROI:
    """The box of an ROI node in the world, rotated as it is.

    Raises:
        UserError: ``roi-not-placed``, ``roi-inside-out``, ``transform-not-linear`` or ``bad-roi``.
    """
    size = [0.0] * 3
    roiNode.GetSizeWorld(size)
    if roiNode.GetNumberOfControlPoints() == 0 or min(size) <= 0:
        sentence = _("The region {name} is not placed yet; draw it around the structure in the slices, or choose none.")
        raise UserError("roi-not-placed", sentence.format(name=roiNode.GetName()))
    if roiNode.GetInsideOut():
        sentence = _("The region {name} is turned inside out; switch that off in the Markups module.")
        raise UserError("roi-inside-out", sentence.format(name=roiNode.GetName()))
    _linearToWorld(roiNode)
    matrix = slicer.util.arrayFromVTKMatrix(roiNode.GetObjectToWorldMatrix())
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return BoxROI(matrix[:3, 3], axes, np.array(size))


def _linearToWorld(node) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    transformNode = node.GetParentTransformNode()
    if transformNode is not None:
        if not transformNode.IsTransformToWorldLinear():
            sentence = _(
                "{name} lies under the transform {transform}, which is not linear, so that it is no box in the world; "
                "harden the transform in the Transforms module, or take {name} out of it."
            )
            values = {"name": node.GetName(), "transform": transformNode.GetName()}
            raise UserError("transform-not-linear", sentence.format(**values))
        transformNode.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


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


class RegionPanel:
    """The widgets of the region; the region itself is a parameter of the module.

    Args:
        ui: the module's widgets by name.
        current: returns the description of the chosen model and the first chosen volume; either may be None.
    """

    def __init__(self, ui, current: Callable[[], tuple[object, object]]):
        self._ui, self._current = ui, current
        ui.regionSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onAdded)

    def update(self) -> None:
        """Advise a region, or not."""
        description, volumeNode = self._whenComplete()
        advised = False
        if description is not None and self._ui.regionSelector.currentNode() is None:
            # A volume that cannot be segmented at all is refused with its sentence when it is to be.
            with contextlib.suppress(UserError):
                advised = isAdvised(description, volumeNode)
        hint = _(
            "The image is much larger than what this model looks at: create a region and move it to the structure."
        )
        self._ui.regionHintLabel.text = hint if advised else ""
        self._ui.regionHintLabel.visible = advised

    def _onAdded(self, roiNode) -> None:
        description, volumeNode = self._whenComplete()
        if description is not None:
            with contextlib.suppress(UserError):
                place(roiNode, description, volumeNode)

    def _whenComplete(self) -> tuple[object, object]:
        description, volumeNode = self._current()
        isComplete = description is not None and volumeNode is not None and volumeNode.GetImageData() is not None
        return (description, volumeNode) if isComplete else (None, None)
