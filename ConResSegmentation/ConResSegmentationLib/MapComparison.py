"""Predicted against actual: the predicted residual, that of the result, and their difference in linked slice views."""

import slicer
from slicer.i18n import tr as _

from . import MapVolumes

# One slice view per map, of its own, so that Slicer's are as before when the comparison ends.
_VIEWS = {
    "residual": "ConResPredicted",
    "result_residual": "ConResActual",
    "residual_difference": "ConResDifference",
}
LAYOUT = 21502
_VIEW_GROUP = 21502
# Which layout was there before.
_BEFORE_ATTRIBUTE = "ConResNet.LayoutBefore"


def mapsToCompare(segmentationNode, mapNode=None) -> dict[str, object]:
    """A result's predicted residual, its own residual, and their difference if there is one, of one segment.

    Args:
        segmentationNode: the result; None for none.
        mapNode: a map of the wanted segment. Defaults to the first segment.

    Returns:
        the maps by kind; empty if there is nothing to compare.
    """
    found: dict[str, object] = {}
    maps = MapVolumes.mapNodes(segmentationNode) if segmentationNode else []
    segment = mapNode.GetAttribute(MapVolumes.SEGMENT_ATTRIBUTE) if mapNode in maps else ""
    for node in maps:
        kind = node.GetAttribute(MapVolumes.MAP_ATTRIBUTE)
        if kind in _VIEWS and (not segment or node.GetAttribute(MapVolumes.SEGMENT_ATTRIBUTE) in ("", segment)):
            found.setdefault(kind, node)
    return found if {"residual", "result_residual"} <= set(found) else {}


def isView(compositeNode) -> bool:
    """Whether a slice view is one of the comparison's; the overlay leaves those alone."""
    return compositeNode.GetLayoutName() in _VIEWS.values()


def isShown() -> bool:
    """Whether the comparison's layout is chosen."""
    return slicer.app.layoutManager() is not None and slicer.app.layoutManager().layout == LAYOUT


def describeLayout() -> None:
    """Register the layout; a scene that was saved with it contains only its number."""
    if slicer.app.layoutManager() is None:
        return
    titles = {
        "residual": _("Predicted residual"),
        "result_residual": _("Residual of the result"),
        "residual_difference": _("Difference"),
    }
    items = "".join(
        f'<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
        f'<property name="orientation" action="default">Axial</property>'
        f'<property name="viewlabel" action="default">{titles[kind]}</property>'
        f'<property name="viewcolor" action="default">#8C8C8C</property></view></item>'
        for kind, tag in _VIEWS.items()
    )
    node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    node.AddLayoutDescription(LAYOUT, f'<layout type="horizontal">{items}</layout>')


def show(maps: dict[str, object], opacity: float) -> None:
    """Show maps side by side over the input, along the slices between which the residual was predicted."""
    manager = slicer.app.layoutManager()
    layoutNode = manager.layoutLogic().GetLayoutNode()
    if not isShown():
        layoutNode.SetAttribute(_BEFORE_ATTRIBUTE, str(manager.layout))
    describeLayout()
    manager.setLayout(LAYOUT)
    plane = maps["residual"].GetAttribute(MapVolumes.PLANE_ATTRIBUTE) or "axial"
    for kind, tag in _VIEWS.items():
        widget = manager.sliceWidget(tag)
        sliceNode, composite = widget.mrmlSliceNode(), widget.mrmlSliceCompositeNode()
        sliceNode.SetViewGroup(_VIEW_GROUP)
        sliceNode.SetOrientation(plane.capitalize())
        # Linked after they are filled: each shows another map.
        composite.SetLinkedControl(False)
        mapNode = maps.get(kind)
        inputNode = MapVolumes.inputOf(maps["residual"])
        composite.SetBackgroundVolumeID(inputNode.GetID() if inputNode else None)
        composite.SetForegroundVolumeID(mapNode.GetID() if mapNode else None)
        composite.SetForegroundOpacity(opacity)
    for tag in _VIEWS.values():
        widget = manager.sliceWidget(tag)
        widget.sliceLogic().FitSliceToBackground()
        widget.mrmlSliceCompositeNode().SetLinkedControl(True)


def hide() -> None:
    """Go back to the layout that was there before."""
    manager = slicer.app.layoutManager()
    before = manager.layoutLogic().GetLayoutNode().GetAttribute(_BEFORE_ATTRIBUTE)
    if isShown():
        manager.setLayout(int(before or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView))


class ComparisonButton:
    """The button that shows the comparison, and on a second click the earlier layout.

    Args:
        button: checkable.
        opacitySlider: of the map over the slices.
        mapSelector: with the chosen map, whose segment is compared.
    """

    def __init__(self, button, opacitySlider, mapSelector):
        self._button, self._opacitySlider, self._mapSelector = button, opacitySlider, mapSelector
        self._segmentationNode = None
        describeLayout()
        button.connect("clicked(bool)", self._onClicked)
        mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._onMapChosen())

    def update(self, segmentationNode) -> None:
        """Enable the button for a result whose residuals can be compared."""
        self._segmentationNode = segmentationNode
        maps = mapsToCompare(segmentationNode)
        isPossible = bool(maps) and slicer.app.layoutManager() is not None
        self._button.enabled = isPossible or isShown()
        self._button.checked = isShown()
        missing = _("Segment with the maps “Residual” and “Residual of the result” to compare them.")
        explained = _(
            "Show the predicted residual, that of the result and their difference side by side, in linked slice views. "
            "Click again to return to the earlier layout."
        )
        self._button.toolTip = explained if isPossible else missing

    def _onClicked(self, isChecked: bool) -> None:
        maps = mapsToCompare(self._segmentationNode, self._mapSelector.currentNode())
        if isChecked and maps:
            show(maps, self._opacitySlider.value)
        else:
            hide()
        self._button.checked = isShown()

    def _onMapChosen(self) -> None:
        """Compare those of the segment whose map was chosen."""
        maps = mapsToCompare(self._segmentationNode, self._mapSelector.currentNode())
        if isShown() and maps:
            show(maps, self._opacitySlider.value)
