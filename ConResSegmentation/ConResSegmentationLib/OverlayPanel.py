"""Which map lies over the slices, how strongly, and in which colors."""

import slicer

from . import MapVolumes, SliceOverlay


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
            SliceOverlay.hide(earlierID)
        if node is not None:
            SliceOverlay.show(node, MapVolumes.inputOf(node), self._ui.mapOpacitySlider.value)
            self._fillSegments(False)

    def _onMapChosen(self, node) -> None:
        if node is not None and node.GetID() == self._shownID and not SliceOverlay.isShown(node):
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
        if node is not None and SliceOverlay.isShown(node):
            SliceOverlay.setOpacity(opacity)

    def _onColorsChosen(self, index: int) -> None:
        node = slicer.mrmlScene.GetNodeByID(self._shownID)
        if node is not None:
            node.GetDisplayNode().SetAndObserveColorNodeID(self._colors[index].GetID())

    def _updateColors(self, mapNode) -> None:
        selector = self._ui.mapColorsSelector
        named = SliceOverlay.colorNodes()
        self._colors = [node for _title, node in named]
        selector.clear()
        for title, _node in named:
            selector.addItem(title)
        display = mapNode.GetDisplayNode() if mapNode else None
        colorNode = display.GetColorNode() if display else None
        selector.setCurrentIndex(self._colors.index(colorNode) if colorNode in self._colors else -1)
        for widget in (selector, self._ui.mapOpacitySlider):
            widget.enabled = mapNode is not None
