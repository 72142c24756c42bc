"""The volumes and the ROI of a segmentation, in world coordinates, and the ROI's row in the panel."""

import contextlib
from collections.abc import Callable

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.images.grid import Grid, Volume
from conresnet.images.roi import BoxROI, seen_at_once, wants_roi

from .Widgets import stayNarrow


def volumeInput(volumeNode) -> Volume:
    """The voxels of a volume node and their grid in the world, with all transforms above the node applied.

    The array is the node's own memory, not a copy.

    Raises:
        UserError: ``volume-empty``, ``volume-color`` or ``transform-not-linear``.
    """
    image = volumeNode.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or image.GetNumberOfPoints() == 0:
        raise UserError("volume-empty", name=volumeNode.GetName())
    if image.GetNumberOfScalarComponents() != 1:
        raise UserError("volume-color", name=volumeNode.GetName(), count=image.GetNumberOfScalarComponents())
    array = slicer.util.arrayFromVolume(volumeNode)
    return Volume(array, Grid(array.shape, ijkToWorld(volumeNode)), volumeNode.GetName())


def ijkToWorld(volumeNode) -> np.ndarray:
    """(4, 4) voxel index (i, j, k, 1) to RAS mm in the world."""
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    return _linearToWorld(volumeNode) @ slicer.util.arrayFromVTKMatrix(ijkToRas)


def roiInput(roiNode) -> BoxROI:
    """The box of an ROI node in the world, including its rotation.

    Raises:
        UserError: ``roi-not-placed``, ``roi-inside-out``, ``transform-not-linear`` or ``bad-roi``.
    """
    size = [0.0] * 3
    roiNode.GetSizeWorld(size)
    if roiNode.GetNumberOfControlPoints() == 0 or min(size) <= 0:
        raise UserError("roi-not-placed", name=roiNode.GetName())
    if roiNode.GetInsideOut():
        raise UserError("roi-inside-out", name=roiNode.GetName())
    _linearToWorld(roiNode)
    matrix = slicer.util.arrayFromVTKMatrix(roiNode.GetObjectToWorldMatrix())
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return BoxROI(matrix[:3, 3], axes, np.array(size))


def _linearToWorld(node) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    transformNode = node.GetParentTransformNode()
    if transformNode is not None:
        if not transformNode.IsTransformToWorldLinear():
            raise UserError("transform-not-linear", name=node.GetName(), transform=transformNode.GetName())
        transformNode.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


_AXES = {"L": 0, "R": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def fieldOfView(description, volumeNode) -> np.ndarray:
    """(3,) size of one window of the model in mm, along right, anterior and superior; errors as for `isAdvised`."""
    axes = [_AXES[direction] for direction in description.preparation.orientation]
    size = np.zeros(3)
    size[axes] = seen_at_once(description, _grid(volumeNode))
    return size


def isAdvised(description, volumeNode) -> bool:
    """Whether the image is so large that the model needs an ROI, from the user or from its locator.

    Raises:
        UserError: ``transform-not-linear``.
    """
    return wants_roi(description, _grid(volumeNode))


def place(roiNode, description, volumeNode) -> None:
    """Place a new ROI where the slices intersect, or else in the middle of the image, in the size of one window.

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
    # A filled box would hide the structure inside it.
    roiNode.GetDisplayNode().SetFillVisibility(False)


def _slicesCross(start: np.ndarray) -> np.ndarray:
    """(3,) The common point of all slices shown, in any orientation, that is nearest to ``start``."""
    # Views of other layouts keep their nodes.
    shown = [node for node in slicer.util.getNodesByClass("vtkMRMLSliceNode") if node.IsMappedInLayout()]
    planes = [slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS()) for sliceNode in shown]
    normals = np.array([plane[:3, 2] for plane in planes]).reshape(-1, 3)
    distances = np.array([plane[:3, 2] @ (plane[:3, 3] - start) for plane in planes])
    return start + np.linalg.pinv(normals, rcond=1e-3) @ distances


def _grid(volumeNode) -> Grid:
    return Grid(volumeNode.GetImageData().GetDimensions()[::-1], ijkToWorld(volumeNode))


class ROIPanel:
    """The widgets of the ROI; the ROI itself is a parameter of the module.

    Args:
        selector: the selector of ROI nodes.
        hintLabel: shows the advice to draw an ROI.
        current: returns the description of the chosen model and the first chosen volume; either may be None.
    """

    def __init__(self, selector, hintLabel, current: Callable[[], tuple[object, object]]):
        self._selector, self._hintLabel, self._current = selector, hintLabel, current
        stayNarrow(selector)
        selector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onAdded)

    def update(self) -> None:
        """Say what no ROI means, and show or hide the advice to draw one."""
        description, volumeNode = self._whenComplete()
        needed = False
        if description is not None:
            # A volume that cannot be segmented is refused with a sentence when the user clicks Segment.
            with contextlib.suppress(UserError):
                needed = isAdvised(description, volumeNode)
        isFound = needed and description.locator is not None
        self._selector.noneDisplay = _("Automatic") if isFound else _("Whole image")
        advised = needed and self._selector.currentNode() is None
        if not advised:
            hint = ""
        elif isFound:
            hint = _("The model {locator} finds the structure in the image.").format(locator=description.locator.model)
        else:
            hint = _(
                "The image is much larger than the model's field of view: create an ROI and move it to the structure."
            )
        self._hintLabel.text = hint
        self._hintLabel.visible = advised

    def _onAdded(self, roiNode) -> None:
        description, volumeNode = self._whenComplete()
        if description is not None:
            with contextlib.suppress(UserError):
                place(roiNode, description, volumeNode)

    def _whenComplete(self) -> tuple[object, object]:
        description, volumeNode = self._current()
        isComplete = description is not None and volumeNode is not None and volumeNode.GetImageData() is not None
        return (description, volumeNode) if isComplete else (None, None)
