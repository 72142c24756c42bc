"""A map over the input in the slice views: the foreground layer, its opacity and its colors.

Which map lies over the slices, how strongly, and in which colors.
"""

import slicer
from slicer.i18n import tr as _

from . import MapVolumes

# What the user had in the foreground before a map.
_COVERED_ROLE = "conresnetCovered"
_COVERED_OPACITY_ATTRIBUTE = "ConResNet.CoveredOpacity"
_COVERED_BY_ATTRIBUTE = "ConResNet.CoveredBy"


def show(mapNode, backgroundNode, opacity: float) -> None:
    """Lay a map over the slices; the input becomes their background where another volume is."""
    for composite in _composites():
        foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        if foreground is None or not foreground.GetAttribute(MapVolumes.MAP_ATTRIBUTE):
            # Kept on the view's own node, so that a saved scene has it too.
            composite.SetNodeReferenceID(_COVERED_ROLE, foreground.GetID() if foreground else None)
            composite.SetAttribute(_COVERED_OPACITY_ATTRIBUTE, f"{composite.GetForegroundOpacity():g}")
        composite.SetAttribute(_COVERED_BY_ATTRIBUTE, mapNode.GetID())
    background = backgroundNode if backgroundNode is not None else "keep-current"
    slicer.util.setSliceViewerLayers(background=background, foreground=mapNode, foregroundOpacity=opacity)


def setOpacity(opacity: float) -> None:
    """Make the foreground of all slice views more or less opaque, 0 to 1."""
    slicer.util.setSliceViewerLayers(foregroundOpacity=opacity)


def hide(mapID: str) -> None:
    """Take a map off the slices where it lies, give back what it has covered, and leave what else the user shows.

    A map that was removed from the scene is gone from the slices too, and what it has covered comes back as well.
    """
    there = mapID if slicer.mrmlScene.GetNodeByID(mapID) else None
    for composite in _composites():
        if composite.GetForegroundVolumeID() != there or composite.GetAttribute(_COVERED_BY_ATTRIBUTE) != mapID:
            continue
        composite.SetForegroundVolumeID(composite.GetNodeReferenceID(_COVERED_ROLE))
        opacity = composite.GetAttribute(_COVERED_OPACITY_ATTRIBUTE)
        if opacity is not None:
            composite.SetForegroundOpacity(float(opacity))
        composite.SetNodeReferenceID(_COVERED_ROLE, None)
        for name in (_COVERED_OPACITY_ATTRIBUTE, _COVERED_BY_ATTRIBUTE):
            composite.SetAttribute(name, None)


def isShown(mapNode) -> bool:
    """Whether a map lies over the slices of any view."""
    return any(composite.GetForegroundVolumeID() == mapNode.GetID() for composite in _composites())


def _composites() -> list:
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def colorNodes() -> list[tuple[str, object]]:
    """The color maps on offer, (title, color node), of those that this Slicer has."""
    offered = (
        (_("Inferno"), "vtkMRMLColorTableNodeFileInferno.txt"),
        (_("Viridis"), "vtkMRMLColorTableNodeFileViridis.txt"),
        (_("Hot to cold"), "vtkMRMLColorTableNodeFileHotToColdRainbow.txt"),
        (_("Heat"), "vtkMRMLPETProceduralColorNodePET-Heat"),
        (_("Iron"), "vtkMRMLColorTableNodeIron"),
        (_("Ocean"), "vtkMRMLColorTableNodeOcean"),
        (_("Rainbow"), "vtkMRMLColorTableNodeRainbow"),
        (_("Gray"), "vtkMRMLColorTableNodeGrey"),
    )
    found = ((title, slicer.mrmlScene.GetNodeByID(nodeID)) for title, nodeID in offered)
    return [(title, node) for title, node in found if node is not None]


class OverlayPanel:
    """The widgets of the overlay; the map and the opacity themselves are parameters of the module.

    Args:
        ui: the module's widgets by name.
    """

    def __init__(self, ui):
        self._ui = ui
        self._shownID = ""
        self._outlinedID = ""
        self._wasFilled = True
        self._colors: list = []
        ui.mapSelector.addAttribute("vtkMRMLScalarVolumeNode", MapVolumes.MAP_ATTRIBUTE)
        ui.mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.show)
        # Chosen once more, a map comes back that something else has taken the place of.
        ui.mapSelector.connect("nodeActivated(vtkMRMLNode*)", self._onMapChosen)
        ui.mapOpacitySlider.connect("valueChanged(double)", self._onOpacityChanged)
        ui.mapColorsSelector.connect("activated(int)", self._onColorsChosen)

    def adopt(self, mapNode) -> None:
        """Take a map as the one that is chosen, and leave the slice views as the user has arranged them."""
        self._shownID = mapNode.GetID() if mapNode else ""
        segmentationNode = MapVolumes.segmentationOf(mapNode) if mapNode else None
        self._outlinedID = segmentationNode.GetID() if segmentationNode else ""
        self._updateColors(mapNode)

    def show(self, node) -> None:
        """Lay a map over the slices in place of the one that is there; None for no map."""
        nodeID = node.GetID() if node else ""
        if nodeID == self._shownID:
            return
        earlierID = self._shownID
        self._fillSegments(True)
        self.adopt(node)
        if earlierID:
            hide(earlierID)
        if node is not None:
            show(node, MapVolumes.inputOf(node), self._ui.mapOpacitySlider.value)
            self._fillSegments(False)

    def _onMapChosen(self, node) -> None:
        if node is not None and node.GetID() == self._shownID and not isShown(node):
            self._shownID = ""
            self.show(node)

    def _fillSegments(self, isFilled: bool) -> None:
        """Draw outlines alone of the segments that the map belongs to, which hide no map, or fill them as before."""
        segmentationNode = slicer.mrmlScene.GetNodeByID(self._outlinedID)
        display = segmentationNode.GetDisplayNode() if segmentationNode else None
        if display is None:
            return
        if not isFilled:
            self._wasFilled = display.GetVisibility2DFill()
        display.SetVisibility2DFill(isFilled and self._wasFilled)

    def _onOpacityChanged(self, opacity: float) -> None:
        node = slicer.mrmlScene.GetNodeByID(self._shownID)
        if node is not None and isShown(node):
            setOpacity(opacity)

    def _onColorsChosen(self, index: int) -> None:
        node = slicer.mrmlScene.GetNodeByID(self._shownID)
        if node is not None:
            node.GetDisplayNode().SetAndObserveColorNodeID(self._colors[index].GetID())

    def _updateColors(self, mapNode) -> None:
        selector = self._ui.mapColorsSelector
        named = colorNodes()
        self._colors = [node for _title, node in named]
        selector.clear()
        for title, _node in named:
            selector.addItem(title)
        display = mapNode.GetDisplayNode() if mapNode else None
        colorNode = display.GetColorNode() if display else None
        selector.setCurrentIndex(self._colors.index(colorNode) if colorNode in self._colors else -1)
        for widget in (selector, self._ui.mapOpacitySlider):
            widget.enabled = mapNode is not None
