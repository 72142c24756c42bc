"""What a result was made from, and whether nothing is lost if another result replaces it."""

import hashlib
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from conresnet.errors import UserError
from conresnet.images import box_corners, box_of_flags, transformed
from conresnet.images.inputs import BoxROI

from . import ResultParts, SceneInputs
from .Widgets import volumeOf

FINGERPRINT_ATTRIBUTE = "ConResNet.Fingerprint"
MODEL_ATTRIBUTE = "ConResNet.Model"
IMAGES_ATTRIBUTE = "ConResNet.Images"
_ROI_ATTRIBUTE = "ConResNet.ROI"
# From the segmentation to each volume after the first, which is that of the geometry. Each has a role of its own: when
# a volume is removed, the others must not get its number.
_IMAGE_ROLE = "conresnetImage"
# The status of a segment that the user has not set, in Slicer's words.
_NOT_STARTED = "notstarted"
# Volumes are read in pieces of this size.
BYTES_AT_ONCE = 1 << 25
# In a slice with more values than this, all voxels at once are faster than one value after another.
_MANY_VALUES = 20


def checksumInPieces(array: np.ndarray, use: Callable[[memoryview], object] = len, size: int = 0) -> Iterator[str]:
    """Checksum of a volume's voxels, used to detect that they were replaced; Slicer handles events between the pieces.

    Args:
        array: any that is not empty.
        use: called with the bytes of each piece.
        size: of a piece, in bytes; by default ``BYTES_AT_ONCE``.

    Yields:
        the checksum of the pieces so far; the last one is that of the array.
    """
    data, value = np.ascontiguousarray(array).data.cast("B"), zlib.adler32(b"")
    size = size or BYTES_AT_ONCE
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        use(piece)
        value = zlib.adler32(piece, value)
        yield f"{value:08x}"


def checksumInSteps(volumeNode) -> Generator[None, None, str]:
    """`checksumInPieces` of the voxels of a volume node as a whole, in short steps; empty if it has none."""
    image, found = volumeNode.GetImageData(), ""
    if image is not None and image.GetNumberOfPoints() > 0:
        for soFar in checksumInPieces(slicer.util.arrayFromVolume(volumeNode)):
            found = soFar
            yield
    return found


def sign(segmentationNode) -> None:
    """Store the fingerprint of a segmentation, so that later edits are noticed."""
    segmentationNode.SetAttribute(FINGERPRINT_ATTRIBUTE, fingerprint(segmentationNode))


def isUntouched(segmentationNode) -> bool:
    """Whether a segmentation has not been edited since `sign`, even if it was saved and loaded meanwhile."""
    signed = segmentationNode.GetAttribute(FINGERPRINT_ATTRIBUTE)
    return signed is not None and _isUnderVolumesTransform(segmentationNode) and signed == fingerprint(segmentationNode)


def changedImages(segmentationNode) -> Generator[None, None, list[int]]:
    """Compare the volumes with those that a result was made from, in short steps.

    Returns:
        which of them have other voxels now, from 0 in the model's order. Volumes that were removed do not count, nor do
        those after the first in a result of an earlier version of this module.
    """
    changed = []
    for number, sent in enumerate((segmentationNode.GetAttribute(IMAGES_ATTRIBUTE) or "").split()):
        other = segmentationNode.GetNodeReference(f"{_IMAGE_ROLE}{number}")
        volumeNode = other if number else volumeOf(segmentationNode)
        if volumeNode is None:
            continue
        now = yield from checksumInSteps(volumeNode)
        if now != sent:
            changed.append(number)
    return changed


def _isUnderVolumesTransform(segmentationNode) -> bool:
    """Whether a result is under its volume's transform or none; another one is an edit that would be lost."""
    volumeNode = volumeOf(segmentationNode)
    transformNode = segmentationNode.GetParentTransformNode()
    return transformNode is None or volumeNode is None or transformNode is volumeNode.GetParentTransformNode()


def fingerprint(segmentationNode) -> str:
    """Digest of all that a user can edit: names, colors, codes, status, order, and the voxels with their positions.

    It does not depend on how voxels are stored (shared labelmaps, extent, label values, integer type), which changes
    when Slicer saves and loads a segmentation.
    """
    digest = hashlib.blake2b(digest_size=16)
    for layer in _segmentVoxels(segmentationNode):
        segment = layer.segment
        color = [round(255 * value) for value in segment.GetColor()]
        entry = [segment.GetName(), color, _tag(segment, segment.GetTerminologyEntryTagName())]
        status = _tag(segment, slicer.vtkSlicerSegmentationsModuleLogic.GetStatusTagName())
        # Results signed before the status was part of the digest keep theirs.
        entry += [status] if status not in ("", _NOT_STARTED) else []
        digest.update(repr(tuple(entry)).encode())
        digest.update(layer.digestible())
    return digest.hexdigest()


def _tag(segment, name: str) -> str:
    value = vtk.mutable("")
    segment.GetTag(name, value)
    return str(value)


@dataclass(frozen=True)
class ResultOrigin:
    """What a result was made from.

    Args:
        model: name and version of the model.
        volumeNodes: the volumes, in the model's order; the result has the geometry of the first.
        images: `checksumInSteps` of each volume; another frame of a sequence has another one.
        roi: where it was searched for. Defaults to the whole image.
    """

    model: str
    volumeNodes: tuple
    images: tuple[str, ...]
    roi: BoxROI | None = None

    @property
    def volumeNode(self):
        return self.volumeNodes[0]

    def sign(self, segmentationNode) -> None:
        """Mark a segmentation as a result of this origin, unedited so far."""
        segmentationNode.SetAttribute(MODEL_ATTRIBUTE, self.model)
        segmentationNode.SetAttribute(IMAGES_ATTRIBUTE, " ".join(self.images))
        segmentationNode.SetAttribute(_ROI_ATTRIBUTE, self._roiText())
        for number, node in enumerate(self.volumeNodes[1:], 1):
            isThere = slicer.mrmlScene.IsNodePresent(node)
            segmentationNode.SetNodeReferenceID(f"{_IMAGE_ROLE}{number}", node.GetID() if isThere else None)
        sign(segmentationNode)

    def isThatOf(self, segmentationNode) -> bool:
        """Whether a segmentation is an unedited result of the same model and images, from any ROI."""
        return (
            segmentationNode.GetAttribute(MODEL_ATTRIBUTE) == self.model
            and segmentationNode.GetAttribute(IMAGES_ATTRIBUTE) == " ".join(self.images)
            and volumeOf(segmentationNode) is self.volumeNode
            and isUntouched(segmentationNode)
        )

    def mayReplace(self, segmentationNode) -> bool:
        """Whether nothing is lost if a result of this origin replaces what a segmentation contains.

        That is so if the segmentation is empty, or an unedited result of the same model and images that lies inside
        the ROI: the other hippocampus, found in another ROI, stays. So does a result from another ROI if the user has
        checked off places of its review list: the new list would have other places.
        """
        if segmentationNode.GetSegmentation().GetNumberOfSegments() == 0:
            return True
        isReviewed = self._isReviewedElsewhere(segmentationNode)
        return not isReviewed and self.isThatOf(segmentationNode) and self._covers(segmentationNode)

    def isKeptForReview(self, segmentationNode) -> bool:
        """Whether only the places that the user has checked off keep this earlier result from being replaced."""
        isReviewed = self._isReviewedElsewhere(segmentationNode)
        return isReviewed and self.isThatOf(segmentationNode) and self._covers(segmentationNode)

    def _isReviewedElsewhere(self, segmentationNode) -> bool:
        """Whether the user has checked off places in the list of another ROI."""
        isSameROI = segmentationNode.GetAttribute(_ROI_ATTRIBUTE) == self._roiText()
        return not isSameROI and ResultParts.isReviewed(segmentationNode)

    def _roiText(self) -> str:
        if self.roi is None:
            return "none"
        # A file changes the last bits. Adding 0 turns -0 into 0.
        numbers = np.concatenate([self.roi.center, self.roi.axes.ravel(), self.roi.size]).round(3) + 0.0
        return " ".join(f"{value:.3f}" for value in numbers)

    def _covers(self, segmentationNode) -> bool:
        if self.roi is None:
            return True
        try:
            toWorld = SceneInputs.linearToWorld(segmentationNode)
        except UserError:
            return False
        return all(layer.isInside(self.roi, toWorld) for layer in _segmentVoxels(segmentationNode))


@dataclass(frozen=True)
class _SegmentVoxels:
    """The voxels of one segment.

    Args:
        image: its labelmap, which other segments may share; None if it has none.
        labels: [k, j, i] the labelmap's values.
        box: around the voxels with the segment's value, as slices of ``labels``; None if there are none.
    """

    segment: object
    image: object = None
    labels: np.ndarray | None = None
    box: tuple[slice, slice, slice] | None = None

    def _affine(self) -> np.ndarray:
        """(4, 4) array index (k, j, i, 1) inside the box to RAS mm, without the transforms above the node."""
        matrix = vtk.vtkMatrix4x4()
        self.image.GetImageToWorldMatrix(matrix)
        affine = slicer.util.arrayFromVTKMatrix(matrix)[:, [2, 1, 0, 3]]
        first = self.image.GetExtent()[::2][::-1]
        affine[:3, 3] += affine[:3, :3] @ [start + part.start for start, part in zip(first, self.box, strict=True)]
        return affine

    def _mask(self) -> np.ndarray:
        return self.labels[self.box] == self.segment.GetLabelValue()

    def digestible(self) -> bytes:
        """Bytes that change with the segment's voxels and their positions."""
        if self.box is None:
            return b"no labelmap" if self.labels is None else b"empty"
        # A file changes the last bit, and a micrometer is not an edit. Spacings such as 240/256 = 0.9375 lie exactly
        # between two micrometers, where that bit would decide; an irrational rounding boundary avoids all of them.
        place = np.floor(self._affine()[:3, [2, 1, 0, 3]] * 1e3 + 1 / np.pi)
        inside = self._mask()
        return repr((place.tolist(), inside.shape)).encode() + np.packbits(inside).tobytes()

    def isInside(self, roi: BoxROI, toWorld: np.ndarray) -> bool:
        """Whether all voxels are inside an ROI; at its faces they may be outside by half a voxel."""
        if self.box is None:
            return True
        affine = toWorld @ self._affine()
        shape = [part.stop - part.start for part in self.box]
        tolerance = np.linalg.norm(affine[:3, :3], axis=0).max() / 2
        # A box is convex: if the corners are inside, so is everything between them.
        corners = transformed(box_corners(np.zeros(3), np.subtract(shape, 1)), affine)
        inROI = np.abs((corners - roi.center) @ roi.axes) <= roi.size / 2 + tolerance
        return bool(inROI.all()) or not np.any(self._mask() & ~roi.contains(affine, shape, tolerance))


def _segmentVoxels(segmentationNode) -> Iterator[_SegmentVoxels]:
    """The voxels of each segment, in order; every labelmap is searched only once."""
    segmentation = segmentationNode.GetSegmentation()
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    searched: dict[object, tuple[np.ndarray, dict]] = {}
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        image = segment.GetRepresentation(name)
        scalars = image.GetPointData().GetScalars() if image else None
        if scalars is None or image.GetNumberOfPoints() == 0:
            yield _SegmentVoxels(segment)
            continue
        if image not in searched:
            labels = numpy_support.vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])
            searched[image] = labels, _boxes(labels)
        labels, boxes = searched[image]
        yield _SegmentVoxels(segment, image, labels, boxes.get(segment.GetLabelValue()))


def _boxes(labels: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """The box around the voxels of each value other than 0."""
    count = int(labels.max(initial=0)) + 1
    found = [np.zeros((size, count), bool) for size in labels.shape]
    for k, plane in enumerate(labels):
        values = np.flatnonzero(np.bincount(np.maximum(plane, 0).ravel(), minlength=count)[1:]) + 1
        found[0][k, values] = True
        if len(values) > _MANY_VALUES:
            rows, columns = np.nonzero(plane > 0)
            of = plane[rows, columns]
            found[1][rows, of] = found[2][columns, of] = True
            continue
        for value in values:
            mask = plane == value
            found[1][:, value] |= mask.any(axis=1)
            found[2][:, value] |= mask.any(axis=0)
    values = np.flatnonzero(found[0].any(axis=0))
    return {int(value): box_of_flags([flags[:, value] for flags in found]) for value in values}
