"""What a result was made of, and so whether nothing is lost when another one takes its place."""

import zlib
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from conresnet.roi import BoxROI

from . import SegmentationFingerprint

MODEL_ATTRIBUTE = "ConResNet.Model"
IMAGES_ATTRIBUTE = "ConResNet.Images"


@dataclass(frozen=True)
class ResultOrigin:
    """What a result is of.

    Args:
        model: its name and version.
        volumeNode: the first of the model's volumes, over which the result lies.
        images: the ``checksum`` of each of them; another frame of a sequence has another one.
        region: where it was looked for. Defaults to the whole image.
    """

    model: str
    volumeNode: object
    images: tuple[str, ...]
    region: BoxROI | None = None

    def sign(self, segmentationNode) -> None:
        """Remember that a segmentation is of this origin, and what is in it, so that edits are noticed."""
        segmentationNode.SetAttribute(MODEL_ATTRIBUTE, self.model)
        segmentationNode.SetAttribute(IMAGES_ATTRIBUTE, " ".join(self.images))
        SegmentationFingerprint.sign(segmentationNode)

    def isThatOf(self, segmentationNode) -> bool:
        """Whether a segmentation is an unedited result of the same model and images, wherever it was looked for."""
        role = segmentationNode.GetReferenceImageGeometryReferenceRole()
        return (
            segmentationNode.GetAttribute(MODEL_ATTRIBUTE) == self.model
            and segmentationNode.GetAttribute(IMAGES_ATTRIBUTE) == " ".join(self.images)
            and segmentationNode.GetNodeReference(role) is self.volumeNode
            and SegmentationFingerprint.isUntouched(segmentationNode)
        )

    def mayReplace(self, segmentationNode) -> bool:
        """Whether nothing is lost when a result of this origin takes the place of what a segmentation holds.

        So it is when that is empty, or an unedited result of the same model and images that lies in the region: the
        other hippocampus, found in another region, stays.
        """
        if segmentationNode.GetSegmentation().GetNumberOfSegments() == 0:
            return True
        return self.isThatOf(segmentationNode) and self._covers(segmentationNode)

    def _covers(self, segmentationNode) -> bool:
        if self.region is None:
            return True
        segmentation = segmentationNode.GetSegmentation()
        toWorld = np.eye(4)
        transformNode = segmentationNode.GetParentTransformNode()
        if transformNode is not None:
            matrix = vtk.vtkMatrix4x4()
            if not transformNode.GetMatrixTransformToWorld(matrix):
                return False
            toWorld = slicer.util.arrayFromVTKMatrix(matrix)
        segments = map(segmentation.GetNthSegment, range(segmentation.GetNumberOfSegments()))
        return all(_isInside(self.region, segment, toWorld) for segment in segments)


def checksum(array: np.ndarray) -> str:
    """Of the voxels of a volume, which others of the same size may take the place of."""
    return f"{zlib.adler32(np.ascontiguousarray(array).data.cast('B')):08x}"


def _isInside(region: BoxROI, segment, toWorld: np.ndarray) -> bool:
    """Whether all voxels of a segment are in a region, but for half a voxel at its faces."""
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = segment.GetRepresentation(name)
    scalars = image.GetPointData().GetScalars() if image else None
    if scalars is None or image.GetNumberOfPoints() == 0:
        return True
    first, shape = image.GetExtent()[::2][::-1], image.GetDimensions()[::-1]
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    # Of (k, j, i), which arrays have.
    affine = (toWorld @ slicer.util.arrayFromVTKMatrix(matrix))[:, [2, 1, 0, 3]]
    affine[:3, 3] += affine[:3, :3] @ first
    tolerance = np.linalg.norm(affine[:3, :3], axis=0).max() / 2
    mask = numpy_support.vtk_to_numpy(scalars).reshape(shape) == segment.GetLabelValue()
    return not np.any(mask & ~region.contains(affine, shape, tolerance))
