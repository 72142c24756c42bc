"""Nodes that belong to a result besides its segments: its maps as volumes, what shows a map in 3D, and tables.

The segmentation refers to them, so that they are saved with it; they are replaced and removed with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.util import VTKObservationMixin

from conresnet.images import Box, bounding_box, whole_box
from conresnet.package.outputs import MAPS, MAPS_CONTEXT

from . import ResultSegmentation
from .Widgets import nameOf, singleShotTimer

MAP_ATTRIBUTE = "ConResNet.Map"
SEGMENT_ATTRIBUTE = "ConResNet.MapSegment"
TITLE_ATTRIBUTE = "ConResNet.MapTitle"
# The plane of the slices between which the residual was predicted: "axial", "coronal" or "sagittal".
PLANE_ATTRIBUTE = "ConResNet.ResidualPlane"
_CLEAR_BELOW_ATTRIBUTE = "ConResNet.MapClearBelow"
_PART_ATTRIBUTE = "ConResNet.Part"
# The part that lists the places worth checking, and its column of those that the user has checked off.
REVIEW, SEEN = "review", "seen"
# Places checked off earlier, kept while the result has no review list.
SEEN_ATTRIBUTE = "ConResNet.SeenPlaces"
# From the segmentation to its maps, and from another part to the map that it shows.
_MAP_ROLE = "conresnetMap"
_INPUT_ROLE = "conresnetInput"
# From the segmentation to its other parts.
_PART_ROLE = "conresnetPart"
_FEATURES = "features before attention", "features after attention"
# Below this value a map is transparent.
_CLEAR_BELOW = 0.05
# Work for one turn of Slicer's event loop: about a tenth of a second.
_VOXELS_AT_ONCE = 8_000_000
# Number of values from which the display range is estimated.
_SAMPLE = 100_000
# Which every Slicer has; the tables that maps name are read from files.
_OTHER_COLORS = "vtkMRMLPETProceduralColorNodePET-Heat"


@dataclass(frozen=True)
class MapVolume:
    """One component of a map, not in the scene yet: kind, segment (or ""), title in English, array [k, j, i]."""

    kind: str
    segment: str
    title: str
    array: np.ndarray

    @property
    def name(self) -> str:
        """The title in the language of Slicer."""
        translated = {
            "features before attention": _("features before attention"),
            "features after attention": _("features after attention"),
        }
        if self.title in translated:
            return translated[self.title]
        return f"{translate(MAPS_CONTEXT, MAPS[self.kind].title).lower()} {self.segment}".strip()


def splitMaps(maps: dict[str, np.ndarray], segmentNames: list[str]) -> list[MapVolume]:
    """Split the engine's maps, each [c, k, j, i], into components; nothing is copied."""
    volumes = []
    for kind, array in maps.items():
        for component, values in enumerate(array):
            # A model may have one residual for all segments together.
            isOfSegment = MAPS[kind].per_segment and len(array) == len(segmentNames)
            segment = segmentNames[component] if isOfSegment else ""
            volumes.append(MapVolume(kind, segment, _title(kind, segment, component), values))
    return volumes


def mapNodes(segmentationNode) -> list:
    return _referred(segmentationNode, _MAP_ROLE)


def _referred(segmentationNode, role: str) -> list:
    count = segmentationNode.GetNumberOfNodeReferences(role)
    found = (segmentationNode.GetNthNodeReference(role, number) for number in range(count))
    return [node for node in found if node is not None]


def folder(segmentationNode) -> int:
    """The subject hierarchy item that contains the maps; a folder next to the segmentation if there are none yet."""
    for node in mapNodes(segmentationNode):
        return ResultSegmentation.parentItem(node)
    hierarchy, parent = slicer.mrmlScene.GetSubjectHierarchyNode(), ResultSegmentation.parentItem(segmentationNode)
    name = _("{segmentation} maps").format(segmentation=nameOf(segmentationNode))
    return hierarchy.GetItemChildWithName(parent, name) or hierarchy.CreateFolderItem(parent, name)


def inputOf(mapNode):
    """The volume that a map was computed from; None if it was removed."""
    return mapNode.GetNodeReference(_INPUT_ROLE)


def segmentationOf(mapNode):
    """The segmentation that a map belongs to; None if it was removed."""
    segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return next((node for node in segmentations if node.HasNodeReferenceID(_MAP_ROLE, mapNode.GetID())), None)


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Split the planes of an array [k, j, i] into pieces that each take only a moment."""
    step = max(1, _VOXELS_AT_ONCE // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def putMaps(volumes: list[MapVolume], segmentationNode, volumeNode, residualPlane: str = "") -> Iterator[None]:
    """Add the maps of a result to the scene, replacing those of the earlier result, in short steps.

    The user may move the volume or the segments between the steps. The maps are placed on the volume as it was at the
    first step, and follow the segments if these were under the same transform.

    They are cropped to what was computed: the rest, 0, would be drawn as a value, and may be most of a large image.

    The node of a map that exists again is kept with the colors and the place that the user has chosen; the other maps
    of the earlier result are removed, even if the rest of the steps is left out. New maps go next to the kept ones, or
    else into a folder next to the segmentation.
    """
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    transformID = volumeNode.GetTransformNodeID()
    isTogether = segmentationNode.GetTransformNodeID() == transformID
    earlier = {_key(node): node for node in mapNodes(segmentationNode)}
    place = folder(segmentationNode) if volumes else None
    segmentationNode.RemoveNodeReferenceIDs(_MAP_ROLE)
    try:
        boxes = []
        for volume in volumes:
            boxes.append(bounding_box(_bits(volume.array)))
            yield
        box = _around(boxes) or whole_box(volumes[0].array.shape if volumes else (0, 0, 0))
        for volume in volumes:
            values = volume.array[box]
            # VTK has no half precision. Maps are converted one at a time: together they may not fit into memory.
            voxels = np.empty(values.shape, np.float32)
            for slab in slabs(values.shape):
                voxels[slab] = values[slab]
                yield
            node = earlier.pop((volume.kind, volume.segment, volume.title), None)
            isNew = node is None or node.GetScene() is None
            if isNew:
                node = _newNode(volume, volumeNode)
            _fill(node, voxels, [part.start for part in box], ijkToRas)
            node.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID() if isTogether else transformID)
            node.SetNodeReferenceID(_INPUT_ROLE, volumeNode.GetID())
            if isNew:
                _display(node, volume.kind, values)
                ResultSegmentation.place(node, place)
            node.SetAttribute(PLANE_ATTRIBUTE, residualPlane)
            _clearWhereNothing(node, volume.kind, values)
            ResultSegmentation.ensureDisplay(segmentationNode)
            segmentationNode.AddNodeReferenceID(_MAP_ROLE, node.GetID())
            yield
    finally:
        for node in earlier.values():
            if node.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(node)


def _title(kind: str, segment: str, component: int) -> str:
    return _FEATURES[component > 0] if kind == "features" else f"{MAPS[kind].title.lower()} {segment}".strip()


def _key(node) -> tuple[str, str, str]:
    return tuple(node.GetAttribute(name) for name in (MAP_ATTRIBUTE, SEGMENT_ATTRIBUTE, TITLE_ATTRIBUTE))


def _newNode(volume: MapVolume, volumeNode):
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(f"{nameOf(volumeNode)} {volume.name}"))
    # Selectors read the attributes of a node when it is added to the scene.
    node.SetAttribute(MAP_ATTRIBUTE, volume.kind)
    node.SetAttribute(SEGMENT_ATTRIBUTE, volume.segment)
    node.SetAttribute(TITLE_ATTRIBUTE, volume.title)
    return slicer.mrmlScene.AddNode(node)


def _around(boxes: list[Box | None]) -> Box | None:
    """The box around some boxes; None if there are none."""
    axes = zip(*filter(None, boxes), strict=True)
    return tuple(slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in axes) or None


def _bits(array: np.ndarray) -> np.ndarray:
    """The same numbers as unsigned integers: 0 where they are 0, and in the same order if none is negative.

    numpy compares half-precision numbers about ten times slower than integers, and maps may have 100 million voxels.
    """
    return array.view(f"u{array.dtype.itemsize}")


def _fill(node, voxels: np.ndarray, first: list[int], ijkToRas) -> None:
    """Fill a node with voxels, the first of which is voxel [k, j, i] of a volume with this matrix."""
    own = vtk.vtkMatrix4x4()
    own.DeepCopy(ijkToRas)
    for axis, place in enumerate(ijkToRas.MultiplyPoint((*first[::-1], 1))[:3]):
        own.SetElement(axis, 3, place)
    with slicer.util.NodeModify(node):
        slicer.util.updateVolumeFromArray(node, voxels)
        node.SetIJKToRASMatrix(own)


def _display(node, kind: str, array: np.ndarray) -> None:
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    colors = f"vtkMRMLColorTableNodeFile{MAPS[kind].colors}.txt"
    display.SetAndObserveColorNodeID(colors if slicer.mrmlScene.GetNodeByID(colors) else _OTHER_COLORS)
    low, high = MAPS[kind].range or (0.0, 1.0)
    if kind in ("attention", "features"):
        # Only differences are meaningful: the scale depends on the network.
        step = max(1, round((array.size / _SAMPLE) ** (1 / 3)))
        every = array[::step, ::step, ::step]
        some = every[every != 0].astype(np.float32)
        low, high = np.percentile(some, (1, 99)) if some.size else (0.0, 1.0)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-3)))


def _clearWhereNothing(node, kind: str, array: np.ndarray) -> None:
    """Make a map transparent where it is near 0, unless the user has chosen another threshold."""
    display = node.GetScalarVolumeDisplayNode()
    if display is None or kind == "features":
        # Features have both signs: no threshold separates their values from the 0 outside the computed part.
        return
    chosen = f"{display.GetLowerThreshold():g}" if display.GetApplyThreshold() else ""
    if node.GetAttribute(_CLEAR_BELOW_ATTRIBUTE) not in (None, chosen):
        return
    low = _CLEAR_BELOW
    if kind == "attention":
        # A rotated ROI leaves corners of the box empty.
        bits = _bits(array)
        low = float(bits.min(where=bits != 0, initial=_bits(np.ones(1, array.dtype))[0]).view(array.dtype))
    highest = _bits(array).max(initial=0).view(array.dtype)
    display.SetThreshold(low, max(1.0, float(highest)))
    display.SetApplyThreshold(True)
    node.SetAttribute(_CLEAR_BELOW_ATTRIBUTE, f"{low:g}")


def parts(segmentationNode, kind: str = "") -> list:
    """The other parts of a result, of one kind or of all kinds."""
    found = _referred(segmentationNode, _PART_ROLE)
    return [node for node in found if kind in ("", node.GetAttribute(_PART_ATTRIBUTE))]


def isReviewed(segmentationNode) -> bool:
    """Whether the user has checked off any place of the review list, or of an earlier one that is not there now."""
    if segmentationNode.GetAttribute(SEEN_ATTRIBUTE):
        return True
    found = [node.GetTable().GetColumnByName(SEEN) for node in parts(segmentationNode, REVIEW)]
    columns = [column for column in found if column is not None]
    return any(column.GetValue(row) for column in columns for row in range(column.GetNumberOfValues()))


def kindOf(node) -> str:
    """The kind that a part was added as."""
    return node.GetAttribute(_PART_ATTRIBUTE) or ""


def add(segmentationNode, node, kind: str) -> None:
    """Make a node of the scene a part of a result. In the subject hierarchy it goes into the folder of the maps."""
    node.SetAttribute(_PART_ATTRIBUTE, kind)
    ResultSegmentation.ensureDisplay(segmentationNode)
    segmentationNode.AddNodeReferenceID(_PART_ROLE, node.GetID())
    if not node.IsA("vtkMRMLDisplayNode"):
        ResultSegmentation.place(node, folder(segmentationNode))


def mapOf(node):
    """The map that a part shows; None if it shows none, or one that was removed."""
    return node.GetNodeReference(_MAP_ROLE)


def setMap(node, mapNode) -> None:
    node.SetNodeReferenceID(_MAP_ROLE, mapNode.GetID())


def remove(nodes: list) -> None:
    """Remove nodes with their displays, legends and files, as far as they still are in the scene."""
    for node in nodes:
        if node.GetScene() is None:
            continue
        # The legend goes before the display that it describes.
        if node.IsA("vtkMRMLDisplayNode"):
            others = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node), node.GetVolumePropertyNode()]
        elif node.IsA("vtkMRMLDisplayableNode"):
            others = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node), node.GetDisplayNode()]
        else:
            others = []
        others += [other.GetStorageNode() for other in (node, *others) if other and other.IsA("vtkMRMLStorableNode")]
        for other in (*filter(None, others), node):
            slicer.mrmlScene.RemoveNode(other)


def mapsAndParts(segmentationNode) -> list:
    """Whatever belongs to a result besides its segmentation."""
    return [*mapNodes(segmentationNode), *parts(segmentationNode)]


def removeResult(segmentationNode, others: Sequence = ()) -> None:
    """Remove a result with its parts, and the folder that contained them if it is empty then.

    Args:
        others: parts that a segmentation no longer knows because it is not in the scene.
    """
    nodes = [*others, *mapsAndParts(segmentationNode)]
    folders = {ResultSegmentation.parentItem(node) for node in nodes if node.GetScene() is not None}
    remove(nodes)
    # Its display goes last: without one, a segmentation may crash Slicer's slice views.
    own = [segmentationNode.GetDisplayNode(), segmentationNode.GetStorageNode()]
    for node in (segmentationNode, *own):
        if node is not None and node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(node)
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyLevelFolder()
    for item in folders - {hierarchy.GetSceneItemID()}:
        if hierarchy.GetItemLevel(item) == level and hierarchy.GetNumberOfItemChildren(item) == 0:
            hierarchy.RemoveItem(item)


class PartRemover(VTKObservationMixin):
    """Removes the other parts of a result when its segmentation is removed, and what shows a map when the map is.

    Args:
        widget: the remover works until `close`, or until this widget ends.
        onRemoved: called soon after a segmentation, a map or another part was removed.
    """

    def __init__(self, widget, *onRemoved: Callable[[], None]):
        VTKObservationMixin.__init__(self)
        self._orphans: list = []
        self._onRemoved = onRemoved
        # Slicer may be in the middle of removing a folder with all of it.
        self._timer = singleShotTimer(widget, self._remove)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeAboutToBeRemoved)

    def forget(self) -> None:
        """The scene is closed, and removes all of its nodes."""
        self._orphans.clear()

    def close(self) -> None:
        self._timer.stop()
        self.removeObservers()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        if node is None or slicer.mrmlScene.IsClosing():
            return
        if node.IsA("vtkMRMLSegmentationNode"):
            self._orphans += parts(node)
        elif node.GetAttribute(MAP_ATTRIBUTE):
            for segmentationNode in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
                self._orphans += [part for part in parts(segmentationNode) if mapOf(part) is node]
        elif not kindOf(node):
            return
        self._timer.start()

    def _remove(self) -> None:
        orphans, self._orphans = self._orphans, []
        remove(orphans)
        for react in self._onRemoved:
            react()
