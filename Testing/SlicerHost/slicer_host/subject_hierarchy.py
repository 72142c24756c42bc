"""Subject hierarchy items for nodes, which a plugin of the application creates in Slicer, and scripted plugins."""

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


def delete(node: object) -> None:
    """What Delete in the Data module does with the only selected item: its children are removed with it, unasked.

    As qMRMLSubjectHierarchyTreeView::deleteSelectedItems, in Slicer 5.10 and 5.12.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), True, True)


class qSlicerSubjectHierarchyPluginHandler:
    """The registered scripted plugins, and the item on which a context menu is open."""

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
    """Creates the Python class that has the name of its file, and calls its methods."""

    name = ""

    def setPythonSource(self, path: str) -> bool:
        if not self.name:
            raise ValueError("the name of a plugin is set before its source")
        name = Path(path).stem
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.python = getattr(module, name)(self)
        return True


def context_menu(node: object) -> list[QtGui.QAction]:
    """The actions of scripted plugins that a right click on a node's item in the Data module shows."""
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
