"""What the network thought, as volumes in the scene: residual, attention, probability and feature maps."""

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from conresnet.images.grid import bounding_box, whole_box

from . import ResultSegmentation

MAP_ATTRIBUTE = "ConResNet.Map"
SEGMENT_ATTRIBUTE = "ConResNet.MapSegment"
TITLE_ATTRIBUTE = "ConResNet.MapTitle"
_CLEAR_BELOW_ATTRIBUTE = "ConResNet.MapClearBelow"
_ROLE = "conresnetMap"
_INPUT_ROLE = "conresnetInput"
# Below this a map says nothing, and the image shall show through.
_CLEAR_BELOW = 0.05
# So many values tell the scale of a map well enough.
_SAMPLE = 100_000
_COLORS = {
    "residual": ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLPETProceduralColorNodePET-Heat"),
    "attention": ("vtkMRMLColorTableNodeFileViridis.txt", "vtkMRMLColorTableNodeOcean"),
    "probability": ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeIron"),
    "features": ("vtkMRMLColorTableNodeFileViridis.txt", "vtkMRMLColorTableNodeRainbow"),
}


@dataclass(frozen=True)
class MapVolume:
    """One component of a map, not in the scene yet: kind, its segment's name (or ""), title, [k, j, i]."""

    kind: str
    segment: str
    title: str
    array: np.ndarray


def split(maps: dict[str, np.ndarray], segmentNames: list[str]) -> list[MapVolume]:
    """The components of the engine's maps, each [c, k, j, i], one by one; nothing is copied."""
    volumes = []
    for kind, array in maps.items():
        for component, values in enumerate(array):
            # A model may have one residual for all segments together.
            isOfSegment = kind in ("residual", "probability") and len(array) == len(segmentNames)
            segment = segmentNames[component] if isOfSegment else ""
            volumes.append(MapVolume(kind, segment, _title(kind, segment, component), values))
    return volumes


def mapNodes(segmentationNode) -> list:
    """The maps that belong to a segmentation, in their order."""
    count = segmentationNode.GetNumberOfNodeReferences(_ROLE)
    return [node for n in range(count) if (node := segmentationNode.GetNthNodeReference(_ROLE, n)) is not None]


def inputOf(mapNode):
    """The volume that a map belongs to; None when it is gone."""
    return mapNode.GetNodeReference(_INPUT_ROLE)


def segmentationOf(mapNode):
    """The segmentation that a map belongs to; None when it is gone."""
    segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return next((node for node in segmentations if node.HasNodeReferenceID(_ROLE, mapNode.GetID())), None)


def put(volumes: list[MapVolume], segmentationNode, volumeNode) -> list:
    """Put the maps of a result into the scene, in place of those of the result that it replaces.

    They end where what was computed ends: the rest, 0, would be drawn as a value, and may be most of a large image.

    A node whose map is there again is kept, with the colors and the place that the user has chosen; others of the
    earlier result go. New maps lie beside those that are kept, else in a folder of their own.
    """
    earlier = {_key(node): node for node in mapNodes(segmentationNode)}
    segmentationNode.RemoveNodeReferenceIDs(_ROLE)
    folder = next((ResultSegmentation.parentItem(node) for node in earlier.values()), None)
    box = _computedBox(volumes)
    nodes = []
    for volume in volumes:
        values = volume.array[box]
        node = earlier.pop((volume.kind, volume.segment, volume.title), None)
        isNew = node is None
        if isNew:
            node = _newNode(volume, volumeNode)
        _fill(node, values, [part.start for part in box], volumeNode)
        if isNew:
            _display(node, volume.kind, values)
            name = _("{segmentation} maps").format(segmentation=segmentationNode.GetName())
            folder = folder or ResultSegmentation.folderBeside(segmentationNode, name)
            ResultSegmentation.place(node, folder)
        _clearWhereNothing(node, volume.kind, values)
        segmentationNode.AddNodeReferenceID(_ROLE, node.GetID())
        nodes.append(node)
    for node in earlier.values():
        slicer.mrmlScene.RemoveNode(node)
    return nodes


def _title(kind: str, segment: str, component: int) -> str:
    if kind == "residual" and not segment:
        return _("residual")
    if kind == "residual":
        return _("residual {segment}").format(segment=segment)
    if kind == "probability":
        return _("probability {segment}").format(segment=segment)
    if kind == "attention":
        return _("attention")
    return _("features before attention") if component == 0 else _("features after attention")


def _key(node) -> tuple[str, str, str]:
    return tuple(node.GetAttribute(name) for name in (MAP_ATTRIBUTE, SEGMENT_ATTRIBUTE, TITLE_ATTRIBUTE))


def _newNode(volume: MapVolume, volumeNode):
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(f"{volumeNode.GetName()} {volume.title}"))
    # Selectors look at the attributes of a node when it comes into the scene.
    node.SetAttribute(MAP_ATTRIBUTE, volume.kind)
    node.SetAttribute(SEGMENT_ATTRIBUTE, volume.segment)
    node.SetAttribute(TITLE_ATTRIBUTE, volume.title)
    return slicer.mrmlScene.AddNode(node)


def _computedBox(volumes: list[MapVolume]) -> tuple[slice, slice, slice]:
    """The box [k, j, i] around what the engine has computed of any of the maps: everywhere else they are 0."""
    boxes = [box for volume in volumes if (box := bounding_box(_bits(volume.array))) is not None]
    if not boxes:
        return whole_box(volumes[0].array.shape if volumes else (0, 0, 0))
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in axes)


def _bits(array: np.ndarray) -> np.ndarray:
    """The same numbers as unsigned integers, in the same order where none is negative, and 0 where they are 0.

    numpy compares half precision about ten times slower than integers, and maps may have a hundred million voxels.
    """
    return array.view(f"u{array.dtype.itemsize}")


def _fill(node, array: np.ndarray, first: list[int], volumeNode) -> None:
    """Fill a node with an array whose first voxel is the volume's one at [k, j, i]."""
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    for axis, place in enumerate(ijkToRas.MultiplyPoint((*first[::-1], 1))[:3]):
        ijkToRas.SetElement(axis, 3, place)
    with slicer.util.NodeModify(node):
        # VTK has no half precision. A map at a time is converted: together they may be larger than the memory.
        slicer.util.updateVolumeFromArray(node, array.astype(np.float32))
        node.SetIJKToRASMatrix(ijkToRas)
        node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        node.SetNodeReferenceID(_INPUT_ROLE, volumeNode.GetID())


def _display(node, kind: str, array: np.ndarray) -> None:
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    colors = next((c for c in _COLORS[kind] if slicer.mrmlScene.GetNodeByID(c)), None)
    if colors:
        display.SetAndObserveColorNodeID(colors)
    low, high = 0.0, 1.0
    if kind in ("attention", "features"):
        # Only differences say something: their scale is the network's own.
        step = max(1, round((array.size / _SAMPLE) ** (1 / 3)))
        every = array[::step, ::step, ::step]
        some = every[every != 0].astype(np.float32)
        low, high = np.percentile(some, (1, 99)) if some.size else (0.0, 1.0)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-3)))


def _clearWhereNothing(node, kind: str, array: np.ndarray) -> None:
    """Draw nothing where a map says nothing, unless the user has chosen another threshold."""
    display = node.GetDisplayNode()
    if display is None or kind == "features":
        # Features have both signs: no threshold tells their values from the 0 of what was not computed.
        return
    chosen = f"{display.GetLowerThreshold():g}" if display.GetApplyThreshold() else ""
    if node.GetAttribute(_CLEAR_BELOW_ATTRIBUTE) not in (None, chosen):
        return
    low = _CLEAR_BELOW
    if kind == "attention":
        # A region that is rotated against the voxels leaves corners of the box empty.
        bits = _bits(array)
        low = float(bits.min(where=bits != 0, initial=_bits(np.ones(1, array.dtype))[0]).view(array.dtype))
    highest = _bits(array).max(initial=0).view(array.dtype)
    display.SetThreshold(low, max(1.0, float(highest)))
    display.SetApplyThreshold(True)
    node.SetAttribute(_CLEAR_BELOW_ATTRIBUTE, f"{low:g}")
