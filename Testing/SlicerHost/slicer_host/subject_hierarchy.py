"""Subject hierarchy items for nodes, which in Slicer a plugin of the application creates, and slicer-core does not."""

from __future__ import annotations

import slicer
import vtk

_PLUGINS = (
    ("vtkMRMLScalarVolumeNode", "Volumes"),
    ("vtkMRMLSegmentationNode", "Segmentations"),
    ("vtkMRMLModelNode", "Models"),
    ("vtkMRMLMarkupsNode", "Markups"),
    ("vtkMRMLTransformNode", "Transforms"),
    ("vtkMRMLTableNode", "Tables"),
    ("vtkMRMLTextNode", "Texts"),
)


def follow(scene: object) -> None:
    """Give every shown data node of the scene an item, now and as nodes come; take it away when its node goes."""

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(caller: object, event: str, node: object) -> None:
        if node is not None and not scene.IsImporting():
            _add_item(scene, node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def removed(caller: object, event: str, node: object) -> None:
        # Asking for the hierarchy makes one where there is none, and resolves one that is just being loaded.
        if node is None or scene.IsClosing() or scene.IsImporting() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if hierarchy is not None:
            item = hierarchy.GetItemByDataNode(node)
            if item:
                hierarchy.RemoveItem(item, False, False)

    def imported(caller: object, event: str) -> None:
        for index in range(scene.GetNumberOfNodes()):
            _add_item(scene, scene.GetNthNode(index))

    scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, added)
    scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, removed)
    scene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, imported)


def _add_item(scene: object, node: object) -> None:
    plugin = next((name for kind, name in _PLUGINS if node.IsA(kind)), None)
    if plugin is None or node.GetHideFromEditors():
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node, plugin)
