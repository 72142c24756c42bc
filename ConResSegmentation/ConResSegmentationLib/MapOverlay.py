"""A map over the input in the slice views: which one, its opacity and its colors; and which maps to compute."""

from collections.abc import Callable, Collection

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.package.maps import MAPS

from . import MapComparison, MapVolumes
from .Widgets import plain, stayNarrow

# What the user had in the foreground before a map.
_COVERED_ROLE = "conresnetCovered"
_COVERED_OPACITY_ATTRIBUTE = "ConResNet.CoveredOpacity"
_COVERED_BY_ATTRIBUTE = "ConResNet.CoveredBy"

# Maps to compute that the button names.
_MOST_NAMED = 2


def show(mapNode, backgroundNode, opacity: float) -> None:
    """Show a map over the slices, with the input as their background."""
    for composite in _composites():
        foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        if foreground is None or not foreground.GetAttribute(MapVolumes.MAP_ATTRIBUTE):
            # Stored in the view's own node, so that it is saved with the scene.
            composite.SetNodeReferenceID(_COVERED_ROLE, foreground.GetID() if foreground else None)
            composite.SetAttribute(_COVERED_OPACITY_ATTRIBUTE, f"{composite.GetForegroundOpacity():g}")
        composite.SetAttribute(_COVERED_BY_ATTRIBUTE, mapNode.GetID())
        if backgroundNode is not None:
            composite.SetBackgroundVolumeID(backgroundNode.GetID())
        composite.SetForegroundVolumeID(mapNode.GetID())
        composite.SetForegroundOpacity(opacity)


def setOpacity(opacity: float) -> None:
    """Set the opacity of the foreground of all slice views, 0 to 1."""
    slicer.util.setSliceViewerLayers(foregroundOpacity=opacity)


def hide(mapID: str) -> None:
    """Remove a map from the slice views that show it, and restore what it covered there.

    This also works for a map that was removed from the scene. Views in which the user shows something else stay.
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
    """Whether any slice view shows a map."""
    return any(composite.GetForegroundVolumeID() == mapNode.GetID() for composite in _composites())


def _composites() -> list:
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [composite for composite in composites if not MapComparison.isView(composite)]


def colorNodes() -> list[tuple[str, object]]:
    """The offered color maps that this Slicer has: (title, color node)."""
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


class MapChooser:
    """A button with a menu of all maps, each with a check box; it stays open while the user clicks.

    Args:
        button: shows what is chosen.
        onChosen: called with the chosen maps after a click.
    """

    def __init__(self, button, onChosen: Callable[[list[str]], None]):
        self._button, self._onChosen = button, onChosen
        menu = qt.QMenu(button)
        self.boxes = {}
        for kind, entry in MAPS.items():
            box = qt.QCheckBox(_(entry.title), menu)
            box.toolTip = plain(_(entry.description))
            box.connect("clicked(bool)", lambda _checked: self._onClicked())
            action = qt.QWidgetAction(menu)
            action.setDefaultWidget(box)
            menu.addAction(action)
            self.boxes[kind] = box
        menu.toolTipsVisible = True
        button.setMenu(menu)

    def setProvided(self, kinds: Collection[str]) -> None:
        """Enable the maps that the model has; the choice of others is kept for the next model."""
        for kind, box in self.boxes.items():
            box.enabled = kind in kinds
        self._showChosen()

    def choose(self, kinds: Collection[str]) -> None:
        """Show what is chosen."""
        for kind, box in self.boxes.items():
            box.checked = kind in kinds
        self._showChosen()

    def _onClicked(self) -> None:
        self._showChosen()
        self._onChosen([kind for kind, box in self.boxes.items() if box.checked])

    def _showChosen(self) -> None:
        chosen = [box.text for box in self.boxes.values() if box.checked and box.enabled]
        if len(chosen) > _MOST_NAMED:
            others = _("and {count} more").format(count=len(chosen) - _MOST_NAMED)
            chosen = [*chosen[:_MOST_NAMED], others]
        self._button.text = ", ".join(chosen) or _("None")


class OverlayPanel:
    """The widgets of the overlay; the map and the opacity themselves are parameters of the module.

    Args:
        section: the collapsible button that contains the widgets.
    """

    def __init__(self, section):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        stayNarrow(ui.mapSelector)
        self._lastID = ""
        self._shownID = ""
        self._outlinedID = ""
        self._wasFilled = True
        self._colors: list = []
        ui.mapSelector.addAttribute("vtkMRMLScalarVolumeNode", MapVolumes.MAP_ATTRIBUTE)
        ui.mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.show)
        # Choosing a map again shows it again if something else has replaced it.
        ui.mapSelector.connect("nodeActivated(vtkMRMLNode*)", self._onMapChosen)
        ui.mapOpacitySlider.connect("valueChanged(double)", self._onOpacityChanged)
        ui.mapColorsSelector.connect("activated(int)", self._onColorsChosen)

    def adopt(self, mapNode) -> None:
        """Make a map the chosen one without changing the slice views."""
        self._shownID = mapNode.GetID() if mapNode else ""
        self._lastID = self._shownID or self._lastID
        segmentationNode = MapVolumes.segmentationOf(mapNode) if mapNode else None
        self._outlinedID = segmentationNode.GetID() if segmentationNode else ""
        self._updateColors(mapNode)

    def show(self, node) -> None:
        """Show a map over the slices in place of the current one; None for no map."""
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

    def toggle(self) -> None:
        """Hide the map, or show the one that was shown last."""
        selector = self._ui.mapSelector
        last = slicer.mrmlScene.GetNodeByID(self._lastID) or selector.nodeFromIndex(0)
        selector.setCurrentNode(None if selector.currentNode() is not None else last)

    def _onMapChosen(self, node) -> None:
        if node is not None and node.GetID() == self._shownID and not isShown(node):
            self._shownID = ""
            self.show(node)

    def _fillSegments(self, isFilled: bool) -> None:
        """Draw the segments of the map as outlines only, so that they do not hide it, or fill them as before."""
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
