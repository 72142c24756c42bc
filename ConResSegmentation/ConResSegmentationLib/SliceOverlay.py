"""A map over the input in the slice views: the foreground layer, its opacity and its colors."""

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
