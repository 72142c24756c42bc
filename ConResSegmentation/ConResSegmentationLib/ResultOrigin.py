"""Whether a segmentation is still as it was made: a digest of all that a user can edit in it.

What a result was made of, and so whether nothing is lost when another one takes its place.
"""

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from conresnet.images.grid import bounding_box
from conresnet.images.roi import BoxROI

FINGERPRINT_ATTRIBUTE = "ConResNet.Fingerprint"


def sign(segmentationNode) -> None:
    """Remember a segmentation's content as our own."""
    segmentationNode.SetAttribute(FINGERPRINT_ATTRIBUTE, fingerprint(segmentationNode))


def isUntouched(segmentationNode) -> bool:
    """Whether nobody has changed the segmentation since `sign`, also over saving and loading."""
    signed = segmentationNode.GetAttribute(FINGERPRINT_ATTRIBUTE)
    return signed is not None and signed == fingerprint(segmentationNode)


def fingerprint(segmentationNode) -> str:
    """A digest of the segments: names, colors, terminology, and the voxels with their place.

    It does not depend on how the voxels are held (shared labelmaps, their extent, label values, integer type), which
    changes when Slicer saves and loads.
    """
    digest = hashlib.blake2b(digest_size=16)
    segmentation = segmentationNode.GetSegmentation()
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        terminology = vtk.mutable("")
        segment.GetTag(segment.GetTerminologyEntryTagName(), terminology)
        color = [round(255 * value) for value in segment.GetColor()]
        digest.update(repr((segment.GetName(), color, str(terminology))).encode())
        digest.update(_voxels(segment))
    return digest.hexdigest()


def _voxels(segment) -> bytes:
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = segment.GetRepresentation(name)
    scalars = image.GetPointData().GetScalars() if image else None
    if scalars is None or image.GetNumberOfPoints() == 0:
        return b"no labelmap"
    extent = image.GetExtent()
    shape = [extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1]
    labels = numpy_support.vtk_to_numpy(scalars).reshape(shape)
    mask = labels == segment.GetLabelValue()
    box = bounding_box(mask)
    if box is None:
        return b"empty"
    first = [extent[0] + box[2].start, extent[2] + box[1].start, extent[4] + box[0].start, 1]
    toWorld = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(toWorld)
    matrix = slicer.util.arrayFromVTKMatrix(toWorld)
    # A file changes the last bit, and a micrometer is no edit. Spacings such as 240/256 = 0.9375 lie right between two
    # micrometers, where that bit would decide; an irrational boundary between up and down lies beside all of them.
    place = np.floor(np.column_stack([matrix[:3, :3], matrix[:3] @ first]) * 1e3 + 1 / np.pi)
    inside = mask[box]
    return repr((place.tolist(), inside.shape)).encode() + np.packbits(inside).tobytes()


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
        sign(segmentationNode)

    def isThatOf(self, segmentationNode) -> bool:
        """Whether a segmentation is an unedited result of the same model and images, wherever it was looked for."""
        role = segmentationNode.GetReferenceImageGeometryReferenceRole()
        return (
            segmentationNode.GetAttribute(MODEL_ATTRIBUTE) == self.model
            and segmentationNode.GetAttribute(IMAGES_ATTRIBUTE) == " ".join(self.images)
            and segmentationNode.GetNodeReference(role) is self.volumeNode
            and isUntouched(segmentationNode)
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
