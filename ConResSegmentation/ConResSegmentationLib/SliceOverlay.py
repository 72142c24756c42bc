"""A map over the input in the slice views: the foreground layer, its opacity and its colors."""

import slicer
from slicer.i18n import tr as _

from . import MapVolumes

# What the user had in the foreground before a map.
_COVERED_ROLE = "conresnetCovered"
_COVERED_OPACITY_ATTRIBUTE = "ConResNet.CoveredOpacity"


def show(mapNode, backgroundNode, opacity: float) -> None:
    """Lay a map over the slices; the input becomes their background where another volume is."""
    for composite in _composites():
        foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        if foreground is None or not foreground.GetAttribute(MapVolumes.MAP_ATTRIBUTE):
            # Kept on the view's own node, so that a saved scene has it too.
            composite.SetNodeReferenceID(_COVERED_ROLE, foreground.GetID() if foreground else None)
            composite.SetAttribute(_COVERED_OPACITY_ATTRIBUTE, f"{composite.GetForegroundOpacity():g}")
    background = backgroundNode if backgroundNode is not None else "keep-current"
    slicer.util.setSliceViewerLayers(background=background, foreground=mapNode, foregroundOpacity=opacity)


def setOpacity(opacity: float) -> None:
    """Make the foreground of all slice views more or less opaque, 0 to 1."""
    slicer.util.setSliceViewerLayers(foregroundOpacity=opacity)


def hide(mapNode) -> None:
    """Take a map off the slices where it lies, give back what it has covered, and leave what else the user shows.

    None stands for a map that was removed from the scene, and so from the slices.
    """
    for composite in _composites():
        if composite.GetForegroundVolumeID() != (mapNode.GetID() if mapNode is not None else None):
            continue
        composite.SetForegroundVolumeID(composite.GetNodeReferenceID(_COVERED_ROLE))
        opacity = composite.GetAttribute(_COVERED_OPACITY_ATTRIBUTE)
        if opacity is not None:
            composite.SetForegroundOpacity(float(opacity))
        composite.SetNodeReferenceID(_COVERED_ROLE, None)
        composite.SetAttribute(_COVERED_OPACITY_ATTRIBUTE, None)


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
