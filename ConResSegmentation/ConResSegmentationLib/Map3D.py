"""A map in 3D: painted on the segments' surfaces, as a surface of its own, or as a rendered volume.

What is shown are nodes of the scene, to which the segmentation refers: Slicer saves them with it, and its own modules
can change them. Colors, range and opacity are those of the map over the slices.
"""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from conresnet.images.grid import bounding_box
from conresnet.package.maps import MAPS

from . import MapVolumes, ResultParts
from .ParameterNode import Map3D
from .Widgets import singleShotTimer

_PAINTED_ATTRIBUTE = "ConResNet.PaintedSegment"
_THRESHOLD_ATTRIBUTE = "ConResNet.MapThreshold"
_STYLE_ATTRIBUTE = "ConResNet.MapStyle"
# Whether the segmentation's own surfaces were shown; they would hide a map.
_COVERED_ATTRIBUTE = "ConResNet.CoveredVisibility3D"
SCALARS = "Map"
# An isosurface of more voxels is made of every second one, or fewer: it takes a second for each 100 million.
_MOST_VOXELS = 60_000_000
_MILLISECONDS_AFTER_LAST_MOVE = 200
_MILLISECONDS_AFTER_LAST_EDIT = 1000
_LEGEND_SIZE, _LEGEND_FONT_SIZE = (0.12, 0.45), 14


def nodes(segmentationNode) -> list:
    """Everything that shows a map of a segmentation in 3D: models, or the display node of a rendered volume."""
    return [node for how in Map3D for node in ResultParts.parts(segmentationNode, _kind(how))]


def remove(segmentationNode) -> None:
    """Remove everything that shows a map in 3D, and show the segments' own surfaces again."""
    ResultParts.remove(nodes(segmentationNode))
    _coverSegments(segmentationNode, False)


def paintSegment(segmentationNode, segmentId: str, mapNode):
    """Put the surface of a segment into the scene, with a map's values at its points (array ``SCALARS``).

    It is painted with the segment's own map if there is one of this kind for each segment.

    Returns:
        the model node, which is kept when the segment is painted again; None for an empty segment.
    """
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    mapNode = _mapOfSegment(mapNode, segmentationNode, segment.GetName())
    surface = vtk.vtkPolyData()
    if not _isEmpty(segment):
        # This is the surface shown anyway, or it is made for this segment alone.
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        logic.GetSegmentClosedSurfaceRepresentation(segmentationNode, segmentId, surface, False)
    if not surface.GetNumberOfPoints():
        return None
    surface.GetPointData().SetScalars(_sample(surface, segmentationNode, mapNode))
    name = f"{segment.GetName()} {MAPS[mapNode.GetAttribute(MapVolumes.MAP_ATTRIBUTE)].title.lower()}"
    return _put(segmentationNode, mapNode, surface, Map3D.surfaces, name, segmentId)


def makeIsosurface(segmentationNode, mapNode, threshold: float):
    """Put the surface of a map at a value into the scene; returns the model node."""
    surface = _isosurface(mapNode, threshold)
    node = _put(segmentationNode, mapNode, surface, Map3D.isosurface, _("{map} surface").format(map=mapNode.GetName()))
    node.SetAttribute(_THRESHOLD_ATTRIBUTE, f"{threshold:g}")
    return node


def renderVolume(segmentationNode, mapNode):
    """Render a map as a volume; returns the display node."""
    for node in nodes(segmentationNode):
        if _shows(node, Map3D.volume) and ResultParts.mapOf(node) is mapNode:
            return node
    logic = slicer.modules.volumerendering.logic()
    # A display of its own: the user may have made another one for this volume.
    display = logic.CreateVolumeRenderingDisplayNode()
    display.UnRegister(None)
    display.SetName(_("{map} volume rendering").format(map=mapNode.GetName()))
    slicer.mrmlScene.AddNode(display)
    mapNode.AddAndObserveDisplayNodeID(display.GetID())
    logic.UpdateDisplayNodeFromVolumeNode(display, mapNode, None, None, False)
    display.SetFollowVolumeDisplayNode(False)
    ResultParts.add(segmentationNode, display, _kind(Map3D.volume))
    ResultParts.setMap(display, mapNode)
    return display


def style(segmentationNode, mapNode, opacity: float, isVisible: bool = True) -> None:
    """Give everything that shows a map in 3D the map's color table and display range, and an opacity from 0 to 1.

    A painted surface is shown if its segment is, and as translucent as that is in 3D.
    """
    mapDisplay, segmentDisplay = mapNode.GetDisplayNode(), segmentationNode.GetDisplayNode()
    if mapDisplay is None or mapDisplay.GetColorNode() is None:
        return
    low, high = mapDisplay.GetWindowLevelMin(), mapDisplay.GetWindowLevelMax()
    first = None
    for node in nodes(segmentationNode):
        display, visible, nodeOpacity = _displayOf(node), isVisible, opacity
        if display is None:
            continue
        segmentId = node.GetAttribute(_PAINTED_ATTRIBUTE)
        if segmentId and segmentDisplay:
            visible = visible and segmentDisplay.GetSegmentVisibility(segmentId)
            visible = bool(visible and segmentDisplay.GetSegmentVisibility3D(segmentId))
            nodeOpacity *= segmentDisplay.GetSegmentOpacity3D(segmentId)
        with slicer.util.NodeModify(display):
            display.SetAndObserveColorNodeID(mapDisplay.GetColorNodeID())
            display.SetScalarRange(low, high)
            display.SetOpacity(nodeOpacity)
            display.SetVisibility(visible)
            if node is display:
                _setTransferFunctions(node, mapDisplay, nodeOpacity)
        first = node if visible and first is None else first
    _setLegend(segmentationNode, first, mapNode)


def isCurrent(segmentationNode, mapNode, how: Map3D, threshold: float) -> bool:
    """Whether a map is in 3D in this way already, for example in a scene just loaded."""
    shown = nodes(segmentationNode)
    if not shown or not all(_shows(node, how) and ResultParts.mapOf(node) is not None for node in shown):
        return False
    if how is Map3D.isosurface and shown[0].GetAttribute(_THRESHOLD_ATTRIBUTE) != f"{threshold:g}":
        return False
    kind = mapNode.GetAttribute(MapVolumes.MAP_ATTRIBUTE)
    if how is Map3D.surfaces and mapNode.GetAttribute(MapVolumes.SEGMENT_ATTRIBUTE):
        return all(ResultParts.mapOf(node).GetAttribute(MapVolumes.MAP_ATTRIBUTE) == kind for node in shown)
    return all(ResultParts.mapOf(node) is mapNode for node in shown)


def _displayOf(node):
    return node if node.IsA("vtkMRMLDisplayNode") else node.GetDisplayNode()


def _shows(node, how: Map3D) -> bool:
    return ResultParts.kindOf(node) == _kind(how)


def _kind(how: Map3D) -> str:
    return f"map3D {how.value}"


def _isEmpty(segment) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = segment.GetRepresentation(name)
    return image is not None and image.GetNumberOfPoints() == 0


def _mapOfSegment(mapNode, segmentationNode, name: str):
    if not mapNode.GetAttribute(MapVolumes.SEGMENT_ATTRIBUTE):
        return mapNode
    kind = mapNode.GetAttribute(MapVolumes.MAP_ATTRIBUTE)
    for node in MapVolumes.mapNodes(segmentationNode):
        if (node.GetAttribute(MapVolumes.MAP_ATTRIBUTE), node.GetAttribute(MapVolumes.SEGMENT_ATTRIBUTE)) == (
            kind,
            name,
        ):
            return node
    return mapNode


def _sample(surface, segmentationNode, mapNode):
    """The values of a map at the points of a surface, interpolated; outside the map those at its border."""
    toVoxels = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        segmentationNode.GetParentTransformNode(), mapNode.GetParentTransformNode(), toVoxels
    )
    rasToIjk = vtk.vtkMatrix4x4()
    mapNode.GetRASToIJKMatrix(rasToIjk)
    toVoxels.PostMultiply()
    toVoxels.Concatenate(rasToIjk)
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    toVoxels.TransformPoints(surface.GetPoints(), points)
    # A surface lies up to half a voxel outside the centers of its voxels.
    places = numpy_support.vtk_to_numpy(points.GetData())
    np.clip(places, 0, np.array(mapNode.GetImageData().GetDimensions()) - 1, out=places)
    probe = vtk.vtkProbeFilter()
    sites = vtk.vtkPolyData()
    sites.SetPoints(points)
    probe.SetInputData(sites)
    probe.SetSourceData(mapNode.GetImageData())
    probe.Update()
    scalars = probe.GetOutput().GetPointData().GetScalars()
    scalars.SetName(SCALARS)
    return scalars


def _isosurface(mapNode, threshold: float):
    box = bounding_box(slicer.util.arrayFromVolume(mapNode) >= threshold)
    if box is None:
        return vtk.vtkPolyData()
    # Around it lie smaller values, or nothing: the surface is closed.
    crop = vtk.vtkImageConstantPad()
    crop.SetInputData(mapNode.GetImageData())
    crop.SetOutputWholeExtent([end for part in box[::-1] for end in (part.start - 1, part.stop)])
    crop.SetConstant(min(0.0, threshold - 1))
    edges = vtk.vtkFlyingEdges3D()
    step = int(np.ceil((np.prod([part.stop - part.start + 2 for part in box]) / _MOST_VOXELS) ** (1 / 3)))
    if step > 1:
        shrink = vtk.vtkImageShrink3D()
        shrink.SetInputConnection(crop.GetOutputPort())
        shrink.SetShrinkFactors(step, step, step)
        edges.SetInputConnection(shrink.GetOutputPort())
    else:
        edges.SetInputConnection(crop.GetOutputPort())
    edges.SetValue(0, threshold)
    toRas = vtk.vtkTransform()
    ijkToRas = vtk.vtkMatrix4x4()
    mapNode.GetIJKToRASMatrix(ijkToRas)
    toRas.SetMatrix(ijkToRas)
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetInputConnection(edges.GetOutputPort())
    placed.SetTransform(toRas)
    if ijkToRas.Determinant() < 0:
        outward = vtk.vtkReverseSense()
        outward.SetInputConnection(placed.GetOutputPort())
        placed = outward
    placed.Update()
    surface = placed.GetOutput()
    if surface.GetPointData().GetScalars():
        surface.GetPointData().GetScalars().SetName(SCALARS)
    return surface


def _put(segmentationNode, mapNode, surface, how: Map3D, name: str, segmentId: str = ""):
    """Put a surface into the model node that there is for it, or into a new one."""
    for node in nodes(segmentationNode):
        if _shows(node, how) and (node.GetAttribute(_PAINTED_ATTRIBUTE) or "") == segmentId:
            break
    else:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLModelNode")
        node.UnRegister(None)
        if segmentId:
            node.SetAttribute(_PAINTED_ATTRIBUTE, segmentId)
        slicer.mrmlScene.AddNode(node)
        ResultParts.add(segmentationNode, node, _kind(how))
    node.SetName(name)
    node.SetAndObservePolyData(surface)
    node.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
    ResultParts.setMap(node, mapNode)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)
        display.SetActiveScalar(SCALARS, vtk.vtkAssignAttribute.POINT_DATA)
        display.SetScalarVisibility(True)
        # Shines in no color but that of the legend.
        display.SetSpecular(0)
    return node


def _setTransferFunctions(display, mapDisplay, opacity: float) -> None:
    """Give a rendered volume the colors of a map: transparent at the low end of the range, opaque at the other."""
    low, high = mapDisplay.GetWindowLevelMin(), mapDisplay.GetWindowLevelMax()
    clear = max(low, mapDisplay.GetLowerThreshold()) if mapDisplay.GetApplyThreshold() else low
    clear = min(clear, high - 1e-6)
    wanted = f"{mapDisplay.GetColorNodeID()} {low:g} {clear:g} {high:g} {opacity:g}"
    if display.GetAttribute(_STYLE_ATTRIBUTE) == wanted:
        return
    display.SetAttribute(_STYLE_ATTRIBUTE, wanted)
    colors, table = vtk.vtkColorTransferFunction(), mapDisplay.GetColorNode().GetScalarsToColors()
    first, last = table.GetRange()
    for part in np.linspace(0, 1, 33):
        rgb = [0.0, 0.0, 0.0]
        table.GetColor(first + (last - first) * part, rgb)
        colors.AddRGBPoint(low + (high - low) * part, *rgb)
    opacities = vtk.vtkPiecewiseFunction()
    for value, share in ((clear, 0), (high, opacity)):
        opacities.AddPoint(value, share)
    volumeProperty = display.GetVolumePropertyNode().GetVolumeProperty()
    volumeProperty.SetColor(colors)
    volumeProperty.SetScalarOpacity(opacities)
    volumeProperty.ShadeOff()


def _setLegend(segmentationNode, node, mapNode) -> None:
    """Show one legend, at the first visible node; its place and size are the user's once it is there."""
    if node is None:
        return
    for other in nodes(segmentationNode):
        legend = ResultParts.legendOf(_displayOf(other)) if other is not node else None
        if legend is not None:
            slicer.mrmlScene.RemoveNode(legend)
    if ResultParts.legendOf(_displayOf(node)) is not None:
        return
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(_displayOf(node))
    legend.SetTitleText(MAPS[mapNode.GetAttribute(MapVolumes.MAP_ATTRIBUTE)].title)
    legend.SetLabelFormat("%.2f")
    legend.SetSize(*_LEGEND_SIZE)
    for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
        text.SetFontFamilyToArial()
        text.SetFontSize(_LEGEND_FONT_SIZE)


def _coverSegments(segmentationNode, isCovered: bool) -> None:
    """Hide the segments' own surfaces, which lie where a painted one does and around the others; or show them again."""
    display = segmentationNode.GetDisplayNode()
    if display is None:
        return
    before = segmentationNode.GetAttribute(_COVERED_ATTRIBUTE)
    if isCovered:
        if before is None:
            segmentationNode.SetAttribute(_COVERED_ATTRIBUTE, str(int(display.GetVisibility3D())))
        display.SetVisibility3D(False)
    elif before is not None:
        segmentationNode.RemoveAttribute(_COVERED_ATTRIBUTE)
        display.SetVisibility3D(before == "1")


class Map3DPanel:
    """The choices of a map in 3D, below those of the map over the slices; they are parameters of the module.

    Surfaces are made one at a time between the user's clicks, and only while a map is wanted in 3D.

    Args:
        section: the collapsible button that contains the widgets.
    """

    def __init__(self, section):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._segmentationNode = self._mapNode = None
        self._isStale = False
        self._followed: list[tuple] = []
        self._segmentIds: list[str] = []
        self._updateTimer = singleShotTimer(section, self.update)
        self._workTimer = singleShotTimer(section, self._paintNext)
        ui.mapSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._updateTimer.start(0))
        ui.map3DSelector.connect("currentIndexChanged(int)", lambda _index: self._updateTimer.start(0))
        ui.mapThresholdSlider.connect("valueChanged(double)", self._onThresholdMoved)
        ui.mapOpacitySlider.connect("valueChanged(double)", lambda _opacity: self._restyle())
        self._showThreshold()

    def close(self) -> None:
        """Stop following the scene."""
        for timer in (self._updateTimer, self._workTimer):
            timer.stop()
        self.forget()

    @property
    def how(self) -> Map3D:
        """The chosen way to show the map in 3D."""
        return list(Map3D)[max(self._ui.map3DSelector.currentIndex, 0)]

    @property
    def isBusy(self) -> bool:
        """Whether something remains to be made."""
        return any(timer.isActive() for timer in (self._updateTimer, self._workTimer))

    def update(self) -> None:
        """Show the chosen map in 3D in the chosen way; what is there already is kept."""
        self._workTimer.stop()
        mapNode, how = self._ui.mapSelector.currentNode(), self.how
        segmentationNode = MapVolumes.segmentationOf(mapNode) if mapNode else None
        if self._segmentationNode not in (None, segmentationNode) and mapNode is not None:
            if self._segmentationNode.GetScene() is not None:
                remove(self._segmentationNode)
        self._observe(segmentationNode, mapNode)
        self._showThreshold()
        if how is Map3D.nothing and segmentationNode is not None:
            remove(segmentationNode)
        if segmentationNode is None or how is Map3D.nothing:
            self._restyle()
            return
        threshold = self._threshold(mapNode)
        if not self._isStale and isCurrent(segmentationNode, mapNode, how, threshold):
            self._restyle()
            return
        self._isStale = False
        self._removeOthers(segmentationNode, mapNode, how)
        if how is Map3D.surfaces:
            self._segmentIds = list(segmentationNode.GetSegmentation().GetSegmentIDs())
            self._workTimer.start(0)
            return
        if how is Map3D.isosurface:
            makeIsosurface(segmentationNode, mapNode, threshold)
        else:
            renderVolume(segmentationNode, mapNode)
        self._restyle()

    def _removeOthers(self, segmentationNode, mapNode, how: Map3D) -> None:
        segmentIds = segmentationNode.GetSegmentation().GetSegmentIDs()
        ResultParts.remove(
            [
                node
                for node in nodes(segmentationNode)
                if not _shows(node, how)
                or (how is Map3D.volume and ResultParts.mapOf(node) is not mapNode)
                or (how is Map3D.surfaces and node.GetAttribute(_PAINTED_ATTRIBUTE) not in segmentIds)
            ]
        )

    def _paintNext(self) -> None:
        if not self._segmentIds or any(node.GetScene() is None for node in (self._segmentationNode, self._mapNode)):
            return
        segmentId = self._segmentIds.pop(0)
        if self._segmentationNode.GetSegmentation().GetSegment(segmentId) is not None:
            node = paintSegment(self._segmentationNode, segmentId, self._mapNode)
            if node is None:
                earlier = [n for n in nodes(self._segmentationNode) if n.GetAttribute(_PAINTED_ATTRIBUTE) == segmentId]
                ResultParts.remove(earlier)
        self._restyle()
        if self._segmentIds:
            self._workTimer.start(0)

    def _onStyled(self, caller, event) -> None:
        self._restyle()
        if self.how is Map3D.isosurface:
            # It moves with the displayed range.
            self._updateTimer.start(_MILLISECONDS_AFTER_LAST_MOVE)

    def _restyle(self) -> None:
        segmentationNode, mapNode = self._segmentationNode, self._mapNode
        if segmentationNode is None or segmentationNode.GetScene() is None:
            return
        isVisible = self._ui.mapSelector.currentNode() is not None and self.how is not Map3D.nothing
        _coverSegments(segmentationNode, isVisible and bool(nodes(segmentationNode)))
        if mapNode.GetScene() is not None:
            style(segmentationNode, mapNode, self._ui.mapOpacitySlider.value, isVisible)

    def _observe(self, segmentationNode, mapNode) -> None:
        """Follow a map and its segmentation; without a map, those that were shown last stay known, but hidden."""
        if mapNode is None or (segmentationNode is self._segmentationNode and mapNode is self._mapNode):
            return
        self.forget()
        self._segmentationNode, self._mapNode = segmentationNode, mapNode
        self._follow(mapNode, self._onChanged, mapNode.ImageDataModifiedEvent)
        self._follow(mapNode, self._onStyled, mapNode.DisplayModifiedEvent)
        if segmentationNode is not None:
            events = slicer.vtkSegmentation
            changes = (events.SourceRepresentationModified, events.SegmentAdded, events.SegmentRemoved)
            self._follow(segmentationNode.GetSegmentation(), self._onChanged, *changes)
            self._follow(segmentationNode, self._onStyled, segmentationNode.DisplayModifiedEvent)

    def _follow(self, followed, react, *events: int) -> None:
        self._followed += [(followed, followed.AddObserver(event, react)) for event in events]

    def forget(self) -> None:
        """Follow nothing any longer: the scene is closed, or the map or its segmentation is removed."""
        for followed, tag in self._followed:
            followed.RemoveObserver(tag)
        self._followed, self._segmentIds = [], []
        self._segmentationNode = self._mapNode = None

    def _onChanged(self, caller, event) -> None:
        """A new result, or an edited one: what is in 3D is made again, once the user pauses."""
        self._isStale = True
        if self.how is not Map3D.nothing:
            self._updateTimer.start(_MILLISECONDS_AFTER_LAST_EDIT)

    def _onThresholdMoved(self, _threshold: float) -> None:
        if self.how is Map3D.isosurface:
            self._updateTimer.start(_MILLISECONDS_AFTER_LAST_MOVE)

    def _threshold(self, mapNode) -> float:
        display = mapNode.GetDisplayNode()
        low, high = (display.GetWindowLevelMin(), display.GetWindowLevelMax()) if display else (0.0, 1.0)
        return low + (high - low) * self._ui.mapThresholdSlider.value

    def _showThreshold(self) -> None:
        isWanted = self.how is Map3D.isosurface
        self._ui.mapThresholdLabel.visible = self._ui.mapThresholdSlider.visible = isWanted
