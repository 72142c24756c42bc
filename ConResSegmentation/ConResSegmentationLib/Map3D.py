"""A map in 3D: painted on the segments' surfaces, as a surface of its own, or as a rendered volume.

What is shown are nodes of the scene, to which the segmentation refers: Slicer saves them with it, and its own modules
can change them. Colors, range and opacity are those of the map over the slices.
"""

import enum
from collections.abc import Generator, Iterator

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from conresnet.images import box_of_flags
from conresnet.package.outputs import MAPS

from . import ResultParts, ResultSegmentation
from .Widgets import nameOf

PAINTED_ATTRIBUTE = "ConResNet.PaintedSegment"
_THRESHOLD_ATTRIBUTE = "ConResNet.MapThreshold"
_STYLE_ATTRIBUTE = "ConResNet.MapStyle"
# Whether the segmentation's own surfaces were shown; they would hide a map.
_COVERED_ATTRIBUTE = "ConResNet.CoveredVisibility3D"
SCALARS = "Map"
# In a larger box, an isosurface is computed from every second voxel along each axis, or from fewer.
_MOST_VOXELS = 30_000_000
_LEGEND_SIZE, _LEGEND_FONT_SIZE = (0.12, 0.45), 14
# Formats of the legend's numbers, for small and for large ones.
_NUMBERS = "%.2f", "%.0f"


class Map3D(enum.Enum):
    """How the map over the slices is shown in 3D."""

    nothing = "nothing"
    surfaces = "surfaces"
    isosurface = "isosurface"
    volume = "volume"

    def label(self) -> str:
        titles = {
            "nothing": _("Not shown"),
            "surfaces": _("On surfaces"),
            "isosurface": _("Isosurface"),
            "volume": _("Volume rendering"),
        }
        return titles[self.value]


def nodes(segmentationNode) -> list:
    """Everything that shows a map of a segmentation in 3D: models, or the display node of a rendered volume."""
    return [node for how in Map3D for node in ResultParts.parts(segmentationNode, _kind(how))]


def remove(segmentationNode) -> None:
    """Remove everything that shows a map in 3D, and show the segments' own surfaces again."""
    ResultParts.remove(nodes(segmentationNode))
    coverSegments(segmentationNode, False)


def hasVoxels(mapNode) -> bool:
    """Whether a map has values; the user may have removed its image, or it could not be read from its file."""
    image = mapNode.GetImageData()
    return image is not None and image.GetPointData().GetScalars() is not None


def paintSegment(segmentationNode, segmentId: str, mapNode):
    """Put the surface of a segment into the scene, with a map's values at its points (array ``SCALARS``).

    It is painted with the segment's own map if there is one of this kind for each segment.

    Returns:
        the model node, which is kept when the segment is painted again; None for an empty segment.
    """
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    mapNode = _mapOfSegment(mapNode, segmentationNode, segment.GetName())
    surface = vtk.vtkPolyData()
    surface.DeepCopy(ResultSegmentation.surfaceOf(segmentationNode, segment))
    if not surface.GetNumberOfPoints():
        return None
    surface.GetPointData().SetScalars(_sample(surface, segmentationNode, mapNode))
    name = f"{segment.GetName()} {MAPS[mapNode.GetAttribute(ResultParts.MAP_ATTRIBUTE)].title.lower()}"
    return _put(segmentationNode, mapNode, surface, Map3D.surfaces, name, segmentId)


def paint(segmentationNode, mapNode) -> Iterator[None]:
    """Paint the surfaces of all segments, one per step; segments may be removed between the steps."""
    segmentation = segmentationNode.GetSegmentation()
    for segmentId in segmentation.GetSegmentIDs():
        if segmentation.GetSegment(segmentId) is None:
            continue
        if paintSegment(segmentationNode, segmentId, mapNode) is None:
            earlier = [node for node in nodes(segmentationNode) if node.GetAttribute(PAINTED_ATTRIBUTE) == segmentId]
            ResultParts.remove(earlier)
        yield


def makeIsosurface(segmentationNode, mapNode, threshold: float) -> Iterator[None]:
    """Add the surface of a map at a value to the scene, in short steps."""
    surface = yield from _isosurface(mapNode, threshold)
    node = _put(segmentationNode, mapNode, surface, Map3D.isosurface, _("{map} surface").format(map=nameOf(mapNode)))
    node.SetAttribute(_THRESHOLD_ATTRIBUTE, f"{threshold:g}")


def renderVolume(segmentationNode, mapNode):
    """Render a map as a volume; returns the display node."""
    for node in nodes(segmentationNode):
        if shows(node, Map3D.volume) and ResultParts.mapOf(node) is mapNode:
            return node
    logic = slicer.modules.volumerendering.logic()
    # A display of its own: the user may have made another one for this volume.
    display = logic.CreateVolumeRenderingDisplayNode()
    display.UnRegister(None)
    display.SetName(_("{map} volume rendering").format(map=nameOf(mapNode)))
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
    # A volume without it gives a legend or a volume rendering as its display.
    mapDisplay, segmentDisplay = mapNode.GetScalarVolumeDisplayNode(), segmentationNode.GetDisplayNode()
    if mapDisplay is None or mapDisplay.GetColorNode() is None:
        return
    low, high = mapDisplay.GetWindowLevelMin(), mapDisplay.GetWindowLevelMax()
    first = None
    for node in nodes(segmentationNode):
        display, visible, nodeOpacity = _displayOf(node), isVisible, opacity
        if display is None:
            continue
        segmentId = node.GetAttribute(PAINTED_ATTRIBUTE)
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
    """Whether a map is already shown in 3D in this way, for example in a scene just loaded."""
    shown = nodes(segmentationNode)
    if not shown or not all(shows(node, how) and ResultParts.mapOf(node) is not None for node in shown):
        return False
    if how is Map3D.isosurface and shown[0].GetAttribute(_THRESHOLD_ATTRIBUTE) != f"{threshold:g}":
        return False
    kind = mapNode.GetAttribute(ResultParts.MAP_ATTRIBUTE)
    if how is Map3D.surfaces and mapNode.GetAttribute(ResultParts.SEGMENT_ATTRIBUTE):
        return all(ResultParts.mapOf(node).GetAttribute(ResultParts.MAP_ATTRIBUTE) == kind for node in shown)
    return all(ResultParts.mapOf(node) is mapNode for node in shown)


def _displayOf(node):
    return node if node.IsA("vtkMRMLDisplayNode") else node.GetDisplayNode()


def shows(node, how: Map3D) -> bool:
    return ResultParts.kindOf(node) == _kind(how)


def _kind(how: Map3D) -> str:
    return f"map3D {how.value}"


def _mapOfSegment(mapNode, segmentationNode, name: str):
    """The map of this kind for the named segment, if there is one for each; otherwise the map itself."""
    if not mapNode.GetAttribute(ResultParts.SEGMENT_ATTRIBUTE):
        return mapNode
    wanted = mapNode.GetAttribute(ResultParts.MAP_ATTRIBUTE), name
    attributes = ResultParts.MAP_ATTRIBUTE, ResultParts.SEGMENT_ATTRIBUTE
    maps = filter(hasVoxels, ResultParts.mapNodes(segmentationNode))
    found = (node for node in maps if tuple(map(node.GetAttribute, attributes)) == wanted)
    return next(found, mapNode)


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


def _isosurface(mapNode, threshold: float) -> Generator[None, None, object]:
    values = slicer.util.arrayFromVolume(mapNode)
    occupied = [np.zeros(size, bool) for size in values.shape]
    for slab in ResultParts.slabs(values.shape):
        above = values[slab] >= threshold
        occupied[0][slab] = above.any(axis=(1, 2))
        for axis, others in ((1, (0, 2)), (2, (0, 1))):
            occupied[axis] |= above.any(axis=others)
        yield
    box = box_of_flags(occupied)
    if box is None:
        return vtk.vtkPolyData()
    step = int(np.ceil((np.prod([part.stop - part.start for part in box]) / _MOST_VOXELS) ** (1 / 3)))
    # Around it lie smaller values, or nothing: the surface is closed.
    places = [np.arange(part.start - step, part.stop + step, step) for part in box]
    inside = [np.flatnonzero((0 <= axis) & (axis < size)) for axis, size in zip(places, values.shape, strict=True)]
    voxels = np.full([len(axis) for axis in places], min(0.0, threshold - 1), np.float32)
    target = voxels[tuple(slice(axis[0], axis[-1] + 1) for axis in inside)]
    ends = [(axis[kept[0]], axis[kept[-1]] + 1) for axis, kept in zip(places, inside, strict=True)]
    source = values[tuple(slice(*end, step) for end in ends)]
    for slab in ResultParts.slabs(source.shape):
        target[slab] = source[slab]
        yield
    image, edges = vtk.vtkImageData(), vtk.vtkFlyingEdges3D()
    image.SetDimensions(voxels.shape[::-1])
    image.SetOrigin([float(axis[0]) for axis in places[::-1]])
    image.SetSpacing([float(step)] * 3)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(voxels.ravel()))
    edges.SetInputData(image)
    edges.SetValue(0, threshold)
    edges.Update()
    yield
    toRas, ijkToRas = vtk.vtkTransform(), vtk.vtkMatrix4x4()
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
        if shows(node, how) and (node.GetAttribute(PAINTED_ATTRIBUTE) or "") == segmentId:
            break
    else:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLModelNode")
        node.UnRegister(None)
        if segmentId:
            node.SetAttribute(PAINTED_ATTRIBUTE, segmentId)
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
    """Give a rendered volume the colors of a map: transparent at the low end of the range, opaque at the high end."""
    low, high = mapDisplay.GetWindowLevelMin(), mapDisplay.GetWindowLevelMax()
    clear = max(low, mapDisplay.GetLowerThreshold()) if mapDisplay.GetApplyThreshold() else low
    clear = min(clear, high - 1e-6)
    wanted = f"{mapDisplay.GetColorNodeID()} {low:g} {clear:g} {high:g} {opacity:g}"
    propertyNode = display.GetVolumePropertyNode()
    if propertyNode is None:
        # The user has deleted it.
        propertyNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumePropertyNode")
        display.SetAndObserveVolumePropertyNodeID(propertyNode.GetID())
    elif display.GetAttribute(_STYLE_ATTRIBUTE) == wanted:
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
    volumeProperty = propertyNode.GetVolumeProperty()
    volumeProperty.SetColor(colors)
    volumeProperty.SetScalarOpacity(opacities)
    volumeProperty.ShadeOff()


def _setLegend(segmentationNode, node, mapNode) -> None:
    """Show one legend, at the first visible node; the user may then move and resize it."""
    if node is None:
        return
    legendOf = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode
    for other in nodes(segmentationNode):
        if other is not node and legendOf(other) is not None:
            slicer.mrmlScene.RemoveNode(legendOf(other))
    title, legend = MAPS[mapNode.GetAttribute(ResultParts.MAP_ATTRIBUTE)].title, legendOf(node)
    # Features may be above 100; with decimals, Slicer would shrink all texts of the legend.
    numbers = _NUMBERS[abs(mapNode.GetScalarVolumeDisplayNode().GetWindowLevelMax()) >= 100]
    if legend is not None:
        # The same surface may show another map now. What the user has changed is kept.
        if legend.GetTitleText() in {entry.title for entry in MAPS.values()}:
            legend.SetTitleText(title)
        if legend.GetLabelFormat() in _NUMBERS:
            legend.SetLabelFormat(numbers)
        return
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(_displayOf(node))
    legend.SetTitleText(title)
    legend.SetLabelFormat(numbers)
    legend.SetSize(*_LEGEND_SIZE)
    for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
        text.SetFontFamilyToArial()
        text.SetFontSize(_LEGEND_FONT_SIZE)


def coverSegments(segmentationNode, isCovered: bool) -> None:
    """Hide the segments' own surfaces, which would cover the map in 3D, or show them again."""
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
