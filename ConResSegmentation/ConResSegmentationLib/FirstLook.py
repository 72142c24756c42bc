"""Brings a new result into view if no slice view shows any of it, as with small structures in a large image."""

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from .SceneInputs import linearToWorld

# Along each side of the part of a view that may show the result. More would only find what is too small to see.
_MOST_SAMPLES = 512


class FirstLook:
    """Records what the slice views show, and which segmentations are in the scene, when the user clicks Segment."""

    def __init__(self):
        self._slices = _slices()
        self._earlier = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}

    def show(self, segmentationNode, volumes: dict[str, float]) -> None:
        """Jump the slices to the largest segment if the result is new and out of view.

        They stay where they are if the user has moved them since the click.

        Args:
            volumes: each segment's volume in mL, by name.
        """
        isNew = segmentationNode.GetID() not in self._earlier
        largest = max(volumes, key=volumes.get, default=None)
        if not isNew or not volumes.get(largest) or not self._slices or self._slices != _slices():
            return
        if _isInView(segmentationNode):
            return
        content = segmentationNode.GetSegmentation()
        place = _middle(segmentationNode, content.GetSegment(content.GetSegmentIdBySegmentName(largest)))
        # The second jump also moves the image within the views, which is only needed if they are zoomed in elsewhere.
        for mode in (slicer.vtkMRMLSliceNode.OffsetJumpSlice, slicer.vtkMRMLSliceNode.CenteredJumpSlice):
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place, mode)
            if _isInView(segmentationNode):
                return


def _shownSliceNodes() -> list:
    # Views of other layouts keep their nodes.
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSliceNode") if node.IsMappedInLayout()]


def _slices() -> dict[str, tuple]:
    """The position of each slice view, and the part of the slice that it shows."""
    return {
        node.GetID(): (
            slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).tolist(),
            node.GetXYZOrigin(),
            node.GetFieldOfView(),
        )
        for node in _shownSliceNodes()
    }


def _isInView(segmentationNode) -> bool:
    """Whether a slice view shows a voxel of any segment."""
    content = segmentationNode.GetSegmentation()
    segments = map(content.GetSegment, content.GetSegmentIDs())
    # Segments that do not overlap share a labelmap.
    images = {id(image): image for image in map(_labelmap, segments) if image.GetNumberOfPoints() > 0}
    return any(
        _showsLabel(node, _array(image), _voxelToWorld(segmentationNode, image))
        for image in images.values()
        for node in _shownSliceNodes()
    )


def _showsLabel(sliceNode, labels: np.ndarray, toWorld: np.ndarray) -> bool:
    """Whether a slice view shows a nonzero voxel of an array [k, j, i]; ``toWorld`` is (4, 4), from i, j and k."""
    toView = np.linalg.inv(slicer.util.arrayFromVTKMatrix(sliceNode.GetXYToRAS())) @ toWorld
    size = np.array(labels.shape[::-1])
    corners = np.array(np.meshgrid(*((-0.5, end - 0.5) for end in size), [1.0])).reshape(4, -1)
    x, y, z = (toView @ corners)[:3]
    if z.min() > 0 or z.max() < 0:
        return False
    sides = []
    for ends, pixels in zip((x, y), sliceNode.GetDimensions(), strict=False):
        low, high = max(ends.min(), 0.0), min(ends.max(), float(pixels))
        sides.append(np.linspace(low, high, min(int(high - low) + 2, _MOST_SAMPLES)) if low <= high else [])
    columns, rows = np.meshgrid(*sides)
    points = np.stack([columns.ravel(), rows.ravel(), np.zeros(columns.size), np.ones(columns.size)])
    voxels = np.rint(np.linalg.inv(toView) @ points)[:3].astype(int)
    i, j, k = voxels[:, ((voxels >= 0) & (voxels < size[:, None])).all(axis=0)]
    return bool(labels[k, j, i].any())


def _middle(segmentationNode, segment) -> np.ndarray:
    """(3,) A voxel of a segment, in RAS mm: near its middle, in the slice that has most of it."""
    image = _labelmap(segment)
    mask = _array(image) == segment.GetLabelValue()
    k = np.argmax(mask.sum(axis=(1, 2)))
    # Of one slice only, because places take many times the memory of voxels.
    places = np.argwhere(mask[k])
    j, i = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
    return (_voxelToWorld(segmentationNode, image) @ [i, j, k, 1])[:3]


def _labelmap(segment):
    return segment.GetRepresentation(slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName())


def _array(image) -> np.ndarray:
    """[k, j, i] A view of a labelmap, from the first voxel of its extent."""
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def _voxelToWorld(segmentationNode, image) -> np.ndarray:
    """(4, 4) From an index into `_array` to RAS mm."""
    toWorld, shift = vtk.vtkMatrix4x4(), np.eye(4)
    image.GetImageToWorldMatrix(toWorld)
    shift[:3, 3] = image.GetExtent()[::2]
    return linearToWorld(segmentationNode) @ slicer.util.arrayFromVTKMatrix(toWorld) @ shift
