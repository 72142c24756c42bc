"""Subject hierarchy items for nodes, which one of Slicer's plugins creates in Slicer, and scripted plugins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import slicer
import vtk
from PySide6 import QtCore, QtGui

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
    """Create an item for each visible data node, including those added later, and remove it along with its node."""

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(caller: object, event: str, node: object) -> None:
        if node is not None and not scene.IsImporting():
            _add_item(scene, node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def removed(caller: object, event: str, node: object) -> None:
        # GetSubjectHierarchyNode would create a hierarchy if there is none, or resolve one that is being loaded.
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


def delete(node: object) -> None:
    """Delete a node's item as the Data module does, which removes its children, too, without asking.

    See qMRMLSubjectHierarchyTreeView::deleteSelectedItems in Slicer 5.10 and 5.12.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), True, True)


class qSlicerSubjectHierarchyPluginHandler:
    """The registered scripted plugins, and the item whose context menu is open."""

    _instance: qSlicerSubjectHierarchyPluginHandler | None = None

    def __init__(self) -> None:
        self._plugins: dict[str, qSlicerSubjectHierarchyScriptedPlugin] = {}
        self._current = 0

    @classmethod
    def instance(cls) -> qSlicerSubjectHierarchyPluginHandler:
        cls._instance = cls._instance or cls()
        return cls._instance

    def registerPlugin(self, plugin: qSlicerSubjectHierarchyScriptedPlugin) -> bool:
        if not plugin.name:
            raise ValueError("a plugin without a name cannot be registered")
        self._plugins[plugin.name] = plugin
        return True

    def subjectHierarchyNode(self) -> object:
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

    def currentItem(self) -> int:
        return self._current


class qSlicerSubjectHierarchyScriptedPlugin(QtCore.QObject):
    """Creates the Python class that is named like its file, and calls its methods."""

    name = ""

    def setPythonSource(self, path: str) -> bool:
        if not self.name:
            raise ValueError("the name of a plugin must be set before its source")
        name = Path(path).stem
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.python = getattr(module, name)(self)
        return True


def context_menu(node: object) -> list[QtGui.QAction]:
    """The actions of scripted plugins in the context menu of a node's item in the Data module."""
    handler = qSlicerSubjectHierarchyPluginHandler.instance()
    handler._current = handler.subjectHierarchyNode().GetItemByDataNode(node)
    shown = []
    for plugin in handler._plugins.values():
        for action in plugin.python.itemContextMenuActions():
            action.visible = False
        plugin.python.showContextMenuActionsForItem(handler._current)
        shown += [action for action in plugin.python.itemContextMenuActions() if action.visible]
    return shown


def _add_item(scene: object, node: object) -> None:
    plugin = next((name for kind, name in _PLUGINS if node.IsA(kind)), None)
    if plugin is None or node.GetHideFromEditors():
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node, plugin)
