"""Nodes that belong to a result besides its maps: what shows a map in 3D, the review list, the statistics.

The segmentation refers to them, so that they are saved with it; they are replaced and removed with it.
"""

import slicer
import vtk
from slicer.util import VTKObservationMixin

from . import MapVolumes, ResultSegmentation
from .Widgets import singleShotTimer

# From the segmentation to its parts, and from a part to the map that it shows.
_ROLE, _MAP_ROLE = "conresnetPart", "conresnetMap"
_KIND_ATTRIBUTE = "ConResNet.Part"


def parts(segmentationNode, kind: str = "") -> list:
    """The parts of a result, of one kind or of all kinds."""
    count = segmentationNode.GetNumberOfNodeReferences(_ROLE)
    found = (segmentationNode.GetNthNodeReference(_ROLE, number) for number in range(count))
    return [node for node in found if node is not None and kind in ("", node.GetAttribute(_KIND_ATTRIBUTE))]


def kindOf(node) -> str:
    """The kind that a part was added as."""
    return node.GetAttribute(_KIND_ATTRIBUTE) or ""


def add(segmentationNode, node, kind: str) -> None:
    """Make a node of the scene a part of a result. In the subject hierarchy it goes into the folder of the maps."""
    node.SetAttribute(_KIND_ATTRIBUTE, kind)
    segmentationNode.AddNodeReferenceID(_ROLE, node.GetID())
    if not node.IsA("vtkMRMLDisplayNode"):
        ResultSegmentation.place(node, MapVolumes.folder(segmentationNode))


def mapOf(node):
    """The map that a part shows; None if it shows none, or one that was removed."""
    return node.GetNodeReference(_MAP_ROLE)


def setMap(node, mapNode) -> None:
    """Remember which map a part shows."""
    node.SetNodeReferenceID(_MAP_ROLE, mapNode.GetID())


def legendOf(displayNode):
    """The color legend of a display node; None if it has none."""
    legends = slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode")
    return next((legend for legend in legends if legend.GetPrimaryDisplayNode() is displayNode), None)


def remove(nodes: list) -> None:
    """Remove nodes with their displays, legends and files, as far as they still are in the scene."""
    for node in nodes:
        if node.GetScene() is None:
            continue
        # The legend goes before the display that it describes.
        if node.IsA("vtkMRMLDisplayNode"):
            others = [legendOf(node), node.GetVolumePropertyNode()]
        elif node.IsA("vtkMRMLDisplayableNode"):
            others = [legendOf(node.GetDisplayNode()), node.GetDisplayNode()] if node.GetDisplayNode() else []
        else:
            others = []
        others += [other.GetStorageNode() for other in (node, *others) if other and other.IsA("vtkMRMLStorableNode")]
        for other in (*filter(None, others), node):
            slicer.mrmlScene.RemoveNode(other)


class PartRemover(VTKObservationMixin):
    """Removes the parts of a result when its segmentation is removed, and what shows a map when the map is.

    Args:
        widget: the remover works until `close`, or until this widget ends.
    """

    def __init__(self, widget):
        VTKObservationMixin.__init__(self)
        self._orphans: list = []
        # Slicer may be in the middle of removing a folder with all of it.
        self._timer = singleShotTimer(widget, self._remove)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeAboutToBeRemoved)
        self.addObserver(scene, scene.StartCloseEvent, lambda caller, event: self._orphans.clear())

    def close(self) -> None:
        """Stop watching the scene."""
        self._timer.stop()
        self.removeObservers()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        if node is None or slicer.mrmlScene.IsClosing():
            return
        if node.IsA("vtkMRMLSegmentationNode"):
            self._orphans += parts(node)
        elif node.GetAttribute(MapVolumes.MAP_ATTRIBUTE):
            for segmentationNode in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
                self._orphans += [part for part in parts(segmentationNode) if mapOf(part) is node]
        if self._orphans:
            self._timer.start()

    def _remove(self) -> None:
        orphans, self._orphans = self._orphans, []
        remove(orphans)
