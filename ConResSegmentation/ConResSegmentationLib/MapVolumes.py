"""What the network thought, as volumes in the scene: residual, attention, probability and feature maps."""

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from . import SegmentationInScene

MAP_ATTRIBUTE = "ConResNet.Map"
SEGMENT_ATTRIBUTE = "ConResNet.MapSegment"
TITLE_ATTRIBUTE = "ConResNet.MapTitle"
_ROLE = "conresnetMap"
_INPUT_ROLE = "conresnetInput"
# Below this a map says nothing, and the image shall show through.
_CLEAR_BELOW = 0.05
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
            segment = segmentNames[component] if kind in ("residual", "probability") else ""
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

    A node whose map is there again is kept, with the colors and the place that the user has chosen; others of the
    earlier result go. New maps lie beside those that are kept, else in a folder of their own.
    """
    earlier = {_key(node): node for node in mapNodes(segmentationNode)}
    segmentationNode.RemoveNodeReferenceIDs(_ROLE)
    folder = next((SegmentationInScene.parentItem(node) for node in earlier.values()), None)
    nodes = []
    for volume in volumes:
        node = earlier.pop((volume.kind, volume.segment, volume.title), None)
        isNew = node is None
        if isNew:
            node = _newNode(volume, volumeNode)
        _fill(node, volume.array, volumeNode)
        if isNew:
            _display(node, volume)
            name = _("{segmentation} maps").format(segmentation=segmentationNode.GetName())
            folder = folder or SegmentationInScene.folderBeside(segmentationNode, name)
            SegmentationInScene.place(node, folder)
        segmentationNode.AddNodeReferenceID(_ROLE, node.GetID())
        nodes.append(node)
    for node in earlier.values():
        slicer.mrmlScene.RemoveNode(node)
    return nodes


def _title(kind: str, segment: str, component: int) -> str:
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


def _fill(node, array: np.ndarray, volumeNode) -> None:
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    with slicer.util.NodeModify(node):
        # VTK has no half precision. A map at a time is converted: together they may be larger than the memory.
        slicer.util.updateVolumeFromArray(node, array.astype(np.float32))
        node.SetIJKToRASMatrix(ijkToRas)
        node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        node.SetNodeReferenceID(_INPUT_ROLE, volumeNode.GetID())


def _display(node, volume: MapVolume) -> None:
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    colors = next((c for c in _COLORS[volume.kind] if slicer.mrmlScene.GetNodeByID(c)), None)
    if colors:
        display.SetAndObserveColorNodeID(colors)
    low, high = 0.0, 1.0
    if volume.kind in ("attention", "features"):
        # Only differences say something: their scale is the network's own.
        every = volume.array[:: max(1, volume.array.shape[0] // 32)]
        computed = every[every != 0].astype(np.float32)
        low, high = np.percentile(computed, (1, 99)) if computed.size else (0.0, 1.0)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(float(low), float(max(high, low + 1e-3)))
    if volume.kind in ("residual", "probability"):
        display.SetThreshold(_CLEAR_BELOW, max(1.0, float(volume.array.max(initial=0))))
        display.SetApplyThreshold(True)
