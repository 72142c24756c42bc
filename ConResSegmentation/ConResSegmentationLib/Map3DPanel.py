"""The panel's controls for maps in 3D. The 3D view follows these controls, the chosen map, and the segments."""

from collections.abc import Iterator

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from . import ResultParts
from .Map3D import (
    PAINTED_ATTRIBUTE,
    Map3D,
    coverSegments,
    hasVoxels,
    isCurrent,
    makeIsosurface,
    nodes,
    paint,
    remove,
    renderVolume,
    shows,
    style,
)
from .Widgets import WorkInSteps, offer, singleShotTimer

_MILLISECONDS_AFTER_LAST_MOVE = 200
_MILLISECONDS_AFTER_LAST_EDIT = 1000


class Map3DPanel(VTKObservationMixin):
    """The controls for a map in 3D, below those of the map over the slices; they are parameters of the module.

    The map is shown in steps, such as one segment's surface at a time, so that Slicer can handle events between them.
    Nothing is done unless a map is to be shown in 3D.
    """

    def __init__(self, section):
        VTKObservationMixin.__init__(self)
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._segmentationNode = self._mapNode = None
        self._isStale = False
        self._tip = ui.map3DSelector.toolTip
        self._updateTimer = singleShotTimer(section, self.update)
        self._work = WorkInSteps(section)
        ui.mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._updateTimer.start(0))
        ui.map3DSelector.connect("currentIndexChanged(int)", lambda _index: self._updateTimer.start(0))
        ui.mapThresholdSlider.connect("valueChanged(double)", self._onThresholdMoved)
        ui.mapOpacitySlider.connect("valueChanged(double)", lambda _opacity: self._restyle())
        self._showThreshold()

    def close(self) -> None:
        self._updateTimer.stop()
        self.forget()

    @property
    def how(self) -> Map3D:
        return list(Map3D)[max(self._ui.map3DSelector.currentIndex, 0)]

    @property
    def isBusy(self) -> bool:
        return self._updateTimer.isActive() or self._work.isBusy

    def update(self) -> None:
        """Show the chosen map in 3D in the chosen way; up-to-date parts are kept."""
        # Work that is interrupted here leaves an incomplete result.
        self._isStale |= self._work.isBusy
        self._work.stop()
        mapNode, how = self._ui.mapSelector.currentNode(), self.how
        segmentationNode = ResultParts.segmentationOf(mapNode) if mapNode else None
        if self._segmentationNode not in (None, segmentationNode) and mapNode is not None:
            if self._segmentationNode.GetScene() is not None:
                remove(self._segmentationNode)
        self._observe(segmentationNode, mapNode)
        self._showIfPossible(mapNode)
        self._showThreshold()
        if how is Map3D.nothing and segmentationNode is not None:
            remove(segmentationNode)
        if segmentationNode is None or how is Map3D.nothing or not hasVoxels(mapNode):
            self._restyle()
            return
        threshold = self._threshold(mapNode)
        if not self._isStale and isCurrent(segmentationNode, mapNode, how, threshold):
            self._restyle()
            return
        self._isStale = False
        self._removeOthers(segmentationNode, mapNode, how)
        if how is Map3D.surfaces:
            self._work.start(self._inSteps(paint(segmentationNode, mapNode)))
        elif how is Map3D.isosurface:
            self._work.start(self._inSteps(makeIsosurface(segmentationNode, mapNode, threshold)))
        else:
            renderVolume(segmentationNode, mapNode)
            self._restyle()

    def refresh(self) -> None:
        """Show the segments' own surfaces again if the user has removed all that shows a map in 3D."""
        self._showIfPossible(self._ui.mapSelector.currentNode())
        self._restyle()

    def _showIfPossible(self, mapNode) -> None:
        """A map whose segmentation was removed stays over the slices only."""
        isPossible = mapNode is None or ResultParts.segmentationOf(mapNode) is not None
        problem = _("The segmentation of this map was removed, so the map can be shown only in the slice views.")
        offer(self._ui.map3DSelector, "" if isPossible else problem, self._tip)

    def _removeOthers(self, segmentationNode, mapNode, how: Map3D) -> None:
        segmentIds = segmentationNode.GetSegmentation().GetSegmentIDs()
        ResultParts.remove(
            [
                node
                for node in nodes(segmentationNode)
                if not shows(node, how)
                or (how is Map3D.volume and ResultParts.mapOf(node) is not mapNode)
                or (how is Map3D.surfaces and node.GetAttribute(PAINTED_ATTRIBUTE) not in segmentIds)
            ]
        )

    def _inSteps(self, steps: Iterator[None]) -> Iterator[None]:
        """Do the steps, and stop early if the map or its segmentation is removed."""
        needed = (self._segmentationNode, self._mapNode)
        while all(node.GetScene() for node in needed) and hasVoxels(self._mapNode) and next(steps, "done") is None:
            self._restyle()
            yield
        self._restyle()

    def _onStyled(self, caller, event) -> None:
        self._restyle()
        if self.how is Map3D.isosurface:
            # The isosurface's value depends on the displayed range.
            self._updateTimer.start(_MILLISECONDS_AFTER_LAST_MOVE)

    def _restyle(self) -> None:
        segmentationNode, mapNode = self._segmentationNode, self._mapNode
        if segmentationNode is None or segmentationNode.GetScene() is None:
            return
        isVisible = self._ui.mapSelector.currentNode() is not None and self.how is not Map3D.nothing
        coverSegments(segmentationNode, isVisible and bool(nodes(segmentationNode)))
        if mapNode.GetScene() is not None:
            style(segmentationNode, mapNode, self._ui.mapOpacitySlider.value, isVisible)

    def _observe(self, segmentationNode, mapNode) -> None:
        """Observe a map and its segmentation. If no map is chosen, the last ones stay observed, but hidden."""
        if mapNode is None or (segmentationNode is self._segmentationNode and mapNode is self._mapNode):
            return
        self.forget()
        self._segmentationNode, self._mapNode = segmentationNode, mapNode
        self.addObserver(mapNode, mapNode.ImageDataModifiedEvent, self._onChanged)
        self.addObserver(mapNode, mapNode.DisplayModifiedEvent, self._onStyled)
        if segmentationNode is not None:
            segmentation = segmentationNode.GetSegmentation()
            self.addObserver(segmentationNode, segmentationNode.DisplayModifiedEvent, self._onStyled)
            for event in ("SourceRepresentationModified", "SegmentAdded", "SegmentRemoved"):
                self.addObserver(segmentation, getattr(segmentation, event), self._onChanged)

    def forget(self) -> None:
        """Stop observing, because the scene is closed, or the map or its segmentation is removed."""
        self.removeObservers()
        self._work.stop()
        self._segmentationNode = self._mapNode = None

    def _onChanged(self, caller, event) -> None:
        """Update the 3D view after a new result or an edit, once the user pauses."""
        self._isStale = True
        if self.how is not Map3D.nothing:
            self._updateTimer.start(_MILLISECONDS_AFTER_LAST_EDIT)

    def _onThresholdMoved(self, _threshold: float) -> None:
        if self.how is Map3D.isosurface:
            self._updateTimer.start(_MILLISECONDS_AFTER_LAST_MOVE)

    def _threshold(self, mapNode) -> float:
        display = mapNode.GetScalarVolumeDisplayNode()
        low, high = (display.GetWindowLevelMin(), display.GetWindowLevelMax()) if display else (0.0, 1.0)
        return low + (high - low) * self._ui.mapThresholdSlider.value

    def _showThreshold(self) -> None:
        isWanted = self.how is Map3D.isosurface
        self._ui.mapThresholdLabel.visible = self._ui.mapThresholdSlider.visible = isWanted
