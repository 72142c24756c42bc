"""Maps in the slice views: which to compute, one over the input, and the predicted residual next to the actual one."""

from collections.abc import Callable, Collection

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.util import VTKObservationMixin

from conresnet.package.outputs import MAPS, MAPS_CONTEXT

from . import ResultParts
from .Widgets import ViewLayout, comboBoxOf, nameOf, plain, stayNarrow

# What the user had in the foreground before a map.
_COVERED_ROLE = "conresnetCovered"
_COVERED_OPACITY_ATTRIBUTE = "ConResNet.CoveredOpacity"
# The map itself. A reference, because Slicer gives nodes other IDs when it imports a scene into another one.
_COVERED_BY_ROLE = "conresnetCoveredBy"
# Its ID in scenes saved by earlier versions.
_COVERED_BY_ATTRIBUTE = "ConResNet.CoveredBy"

# Maps to compute that the button names.
_MOST_NAMED = 2

# One slice view per compared map, of its own, so that Slicer's are as before when the comparison ends.
_VIEWS = {
    "residual": "ConResPredicted",
    "result_residual": "ConResActual",
    "residual_difference": "ConResDifference",
}
_VIEW_GROUP = 21502


def show(mapNode, backgroundNode, opacity: float) -> None:
    """Show a map over the slices, with the input as their background."""
    for composite in _composites():
        foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        if foreground is None or not foreground.GetAttribute(ResultParts.MAP_ATTRIBUTE):
            # Stored in the view's own node, so that it is saved with the scene.
            composite.SetNodeReferenceID(_COVERED_ROLE, foreground.GetID() if foreground else None)
            composite.SetAttribute(_COVERED_OPACITY_ATTRIBUTE, f"{composite.GetForegroundOpacity():g}")
        composite.SetNodeReferenceID(_COVERED_BY_ROLE, mapNode.GetID())
        composite.SetAttribute(_COVERED_BY_ATTRIBUTE, None)
        if backgroundNode is not None:
            composite.SetBackgroundVolumeID(backgroundNode.GetID())
        composite.SetForegroundVolumeID(mapNode.GetID())
        composite.SetForegroundOpacity(opacity)


def hide(mapID: str) -> None:
    """Remove a map from the slice views that show it, and restore what it covered there.

    This also works for a map that was removed from the scene. Views in which the user shows something else stay.
    """
    there = mapID if slicer.mrmlScene.GetNodeByID(mapID) else None
    for composite in _composites():
        opacity = composite.GetAttribute(_COVERED_OPACITY_ATTRIBUTE)
        # A reference ends with the node.
        coveredBy = composite.GetNodeReferenceID(_COVERED_BY_ROLE) or composite.GetAttribute(_COVERED_BY_ATTRIBUTE)
        if opacity is None or composite.GetForegroundVolumeID() != there or coveredBy not in (there, mapID):
            continue
        composite.SetForegroundVolumeID(composite.GetNodeReferenceID(_COVERED_ROLE))
        composite.SetForegroundOpacity(float(opacity))
        for role in (_COVERED_ROLE, _COVERED_BY_ROLE):
            composite.SetNodeReferenceID(role, None)
        for name in (_COVERED_OPACITY_ATTRIBUTE, _COVERED_BY_ATTRIBUTE):
            composite.SetAttribute(name, None)


def isShown(mapNode) -> bool:
    """Whether any slice view shows a map."""
    return any(composite.GetForegroundVolumeID() == mapNode.GetID() for composite in _composites())


def _composites() -> list:
    """The slice views, except those of the comparison."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [composite for composite in composites if composite.GetLayoutName() not in _VIEWS.values()]


def colorNodes() -> list[tuple[str, str]]:
    """The offered color maps that this Slicer has: (title, ID of the node)."""
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
    return [(title, nodeID) for title, nodeID in offered if slicer.mrmlScene.GetNodeByID(nodeID) is not None]


class MapChooser:
    """A button with a menu of all maps, each with a check box; it stays open while the user clicks.

    Args:
        onChosen: called with the chosen maps after a click.
    """

    def __init__(self, button, onChosen: Callable[[list[str]], None]):
        self._button, self._onChosen = button, onChosen
        menu = qt.QMenu(button)
        self.boxes = {}
        for kind, entry in MAPS.items():
            box = qt.QCheckBox(translate(MAPS_CONTEXT, entry.title), menu)
            box.toolTip = plain(translate(MAPS_CONTEXT, entry.description))
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
    """The widgets of the overlay; the map and the opacity themselves are parameters of the module."""

    def __init__(self, section):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        stayNarrow(ui.mapSelector)
        # The names of a result's maps begin with that of the volume.
        comboBoxOf(ui.mapSelector).elideMode = qt.Qt.ElideLeft
        self._tip = ui.mapSelector.toolTip
        self._lastID = ""
        self._shownID = ""
        self._outlinedID = ""
        self._wasFilled = True
        ui.mapSelector.addAttribute("vtkMRMLScalarVolumeNode", ResultParts.MAP_ATTRIBUTE)
        ui.mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.show)
        # Choosing a map again shows it again if something else has replaced it.
        ui.mapSelector.connect("nodeActivated(vtkMRMLNode*)", self._onMapChosen)
        ui.mapOpacitySlider.connect("valueChanged(double)", self._onOpacityChanged)
        ui.mapColorsSelector.connect("activated(int)", self._onColorsChosen)

    def adopt(self, mapNode) -> None:
        """Make a map the chosen one without changing the slice views."""
        self._shownID = mapNode.GetID() if mapNode else ""
        self._lastID = self._shownID or self._lastID
        segmentationNode = ResultParts.segmentationOf(mapNode) if mapNode else None
        self._outlinedID = segmentationNode.GetID() if segmentationNode else ""
        self._ui.mapSelector.toolTip = plain(nameOf(mapNode)) if mapNode else self._tip
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
            show(node, ResultParts.inputOf(node), self._ui.mapOpacitySlider.value)
            self._fillSegments(False)

    def toggle(self) -> None:
        """Hide the map, or show the one that was shown last."""
        selector = self._ui.mapSelector
        last = slicer.mrmlScene.GetNodeByID(self._lastID)
        if last is None or not last.GetAttribute(ResultParts.MAP_ATTRIBUTE):
            # In another scene, the ID may be that of another volume.
            last = selector.nodeFromIndex(0)
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
            slicer.util.setSliceViewerLayers(foregroundOpacity=opacity)

    def _onColorsChosen(self, index: int) -> None:
        node = slicer.mrmlScene.GetNodeByID(self._shownID)
        if node is not None and node.GetScalarVolumeDisplayNode() is not None:
            colorID = self._ui.mapColorsSelector.itemData(index)
            node.GetScalarVolumeDisplayNode().SetAndObserveColorNodeID(colorID)

    def _updateColors(self, mapNode) -> None:
        selector = self._ui.mapColorsSelector
        selector.clear()
        for title, colorID in colorNodes():
            selector.addItem(title, colorID)
        display = mapNode.GetScalarVolumeDisplayNode() if mapNode else None
        selector.setCurrentIndex(selector.findData(display.GetColorNodeID()) if display else -1)
        for widget in (selector, self._ui.mapOpacitySlider):
            widget.enabled = mapNode is not None


def mapsToCompare(segmentationNode, mapNode=None) -> dict[str, object]:
    """A result's predicted residual, its own residual, and their difference if there is one, by kind.

    They are those of the segment of ``mapNode``, or of the first one; empty if there is nothing to compare.
    """
    found: dict[str, object] = {}
    maps = ResultParts.mapNodes(segmentationNode) if segmentationNode else []
    segment = mapNode.GetAttribute(ResultParts.SEGMENT_ATTRIBUTE) if mapNode in maps else ""
    for node in maps:
        kind = node.GetAttribute(ResultParts.MAP_ATTRIBUTE)
        if kind in _VIEWS and (not segment or node.GetAttribute(ResultParts.SEGMENT_ATTRIBUTE) in ("", segment)):
            found.setdefault(kind, node)
    return found if {"residual", "result_residual"} <= set(found) else {}


def _layoutDescription() -> str:
    titles = {
        "residual": _("Predicted residual"),
        "result_residual": translate(MAPS_CONTEXT, MAPS["result_residual"].title),
        "residual_difference": _("Difference"),
    }
    items = "".join(
        f'<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
        f'<property name="orientation" action="default">Axial</property>'
        f'<property name="viewlabel" action="default">{titles[kind]}</property>'
        f'<property name="viewcolor" action="default">#8C8C8C</property></view></item>'
        for kind, tag in _VIEWS.items()
    )
    return f'<layout type="horizontal">{items}</layout>'


_comparison = ViewLayout(_VIEW_GROUP, _layoutDescription)


def compare(maps: dict[str, object], opacity: float) -> None:
    """Show maps side by side over the input, along the slices between which the residual was predicted."""
    _comparison.show()
    manager = slicer.app.layoutManager()
    plane = maps["residual"].GetAttribute(ResultParts.PLANE_ATTRIBUTE) or "axial"
    for kind, tag in _VIEWS.items():
        widget = manager.sliceWidget(tag)
        sliceNode, composite = widget.mrmlSliceNode(), widget.mrmlSliceCompositeNode()
        sliceNode.SetViewGroup(_VIEW_GROUP)
        sliceNode.SetOrientation(plane.capitalize())
        # Linked after they are filled: each shows another map.
        composite.SetLinkedControl(False)
        mapNode = maps.get(kind)
        inputNode = ResultParts.inputOf(maps["residual"])
        composite.SetBackgroundVolumeID(inputNode.GetID() if inputNode else None)
        composite.SetForegroundVolumeID(mapNode.GetID() if mapNode else None)
        composite.SetForegroundOpacity(opacity)
    for tag in _VIEWS.values():
        widget = manager.sliceWidget(tag)
        widget.sliceLogic().FitSliceToBackground()
        widget.mrmlSliceCompositeNode().SetLinkedControl(True)


class ComparisonButton(VTKObservationMixin):
    """The button that shows the comparison, and on a second click the earlier layout; it works until `close`.

    Args:
        button: checkable.
        opacitySlider: of the map over the slices.
        mapSelector: with the chosen map, whose segment is compared.
    """

    def __init__(self, button, opacitySlider, mapSelector):
        VTKObservationMixin.__init__(self)
        self._button, self._opacitySlider, self._mapSelector = button, opacitySlider, mapSelector
        self._segmentationNode = None
        _comparison.register()
        if _comparison.isPossible:
            layoutNode = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
            self.addObserver(layoutNode, vtk.vtkCommand.ModifiedEvent, self._onLayoutModified)
        button.connect("clicked(bool)", self._onClicked)
        mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._onMapChosen())

    def update(self, segmentationNode) -> None:
        """Enable the button for a result whose residuals can be compared."""
        self._segmentationNode = segmentationNode
        maps = mapsToCompare(segmentationNode)
        isPossible = bool(maps) and _comparison.isPossible
        self._button.enabled = isPossible or _comparison.isShown
        self._button.checked = _comparison.isShown
        missing = _("To compare, segment with the maps “Residual” and “Residual of the result”.")
        explained = _(
            "Show the predicted residual, the residual of the result and their difference side by side in linked "
            "slice views. Click again to return to the earlier layout."
        )
        self._button.toolTip = explained if isPossible else missing

    def close(self) -> None:
        self.removeObservers()

    def forget(self) -> None:
        """The scene is closed; the next one has nothing to compare."""
        self._segmentationNode = None
        _comparison.hide()

    def _onLayoutModified(self, caller, event) -> None:
        """The user may choose another layout in Slicer's menu."""
        if self._button.checked != _comparison.isShown:
            self.update(self._segmentationNode)

    def _onClicked(self, isChecked: bool) -> None:
        maps = mapsToCompare(self._segmentationNode, self._mapSelector.currentNode())
        if isChecked and maps:
            compare(maps, self._opacitySlider.value)
        else:
            _comparison.hide()
        self._button.checked = _comparison.isShown

    def _onMapChosen(self) -> None:
        """Compare the maps of the segment whose map was chosen."""
        maps = mapsToCompare(self._segmentationNode, self._mapSelector.currentNode())
        if _comparison.isShown and maps:
            compare(maps, self._opacitySlider.value)
