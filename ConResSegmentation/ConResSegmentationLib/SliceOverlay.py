"""A map over the input in the slice views: the foreground layer, its opacity and its colors."""

import slicer
from slicer.i18n import tr as _


def show(mapNode, backgroundNode, opacity: float) -> None:
    """Lay a map over the slices; the input becomes their background where another volume is."""
    background = backgroundNode if backgroundNode is not None else "keep-current"
    slicer.util.setSliceViewerLayers(background=background, foreground=mapNode, foregroundOpacity=opacity)


def setOpacity(opacity: float) -> None:
    """Make the foreground of all slice views more or less opaque, 0 to 1."""
    slicer.util.setSliceViewerLayers(foregroundOpacity=opacity)


def hide(mapNode) -> None:
    """Take a map off the slices where it lies, and leave what else the user shows."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetForegroundVolumeID() == mapNode.GetID():
            composite.SetForegroundVolumeID(None)


def isShown(mapNode) -> bool:
    """Whether a map lies over the slices of any view."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return any(composite.GetForegroundVolumeID() == mapNode.GetID() for composite in composites)


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
