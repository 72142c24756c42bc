"""Whether a segmentation is still as it was made: a digest of all that a user can edit in it."""

import hashlib

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from conresnet.boxes import bounding_box

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
