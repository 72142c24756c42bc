"""The volumes and the region that a segmentation starts from, read from the scene as they lie in the world."""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.grid import Grid, Volume
from conresnet.roi import BoxROI


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
