"""The entry "Segment with ConResNet" in the context menu of a volume in the Data module.

Slicer creates the class with the name of this file (``qSlicerSubjectHierarchyScriptedPlugin.setPythonSource``), and
asks it for the actions of a menu, and which of them to show for an item.
"""

import qt
import slicer
from slicer.i18n import tr as _

from ConResSegmentationLib.Models import modelChoices
from ConResSegmentationLib.ResultParts import MAP_ATTRIBUTE

_MODULE = "ConResSegmentation"


def register() -> None:
    """Add the plugin to Slicer; called once, after Slicer has started."""
    if hasattr(slicer, "qSlicerSubjectHierarchyScriptedPlugin"):
        plugin = slicer.qSlicerSubjectHierarchyScriptedPlugin(None)
        plugin.name = _MODULE
        plugin.setPythonSource(__file__)


class ConResSegmentationSubjectHierarchyPlugin:
    """The plugin, which owns no items; it is called by ``scriptedPlugin``, a C++ object."""

    def __init__(self, scriptedPlugin):
        self._handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()
        self._action = qt.QAction(_("Segment with ConResNet"), scriptedPlugin)
        self._menu = qt.QMenu()
        self._action.setMenu(self._menu)
        self._handler.registerPlugin(scriptedPlugin)

    def itemContextMenuActions(self) -> list:
        """All actions of the menu of an item."""
        return [self._action]

    def sceneContextMenuActions(self) -> list:
        """All actions of the menu of the scene."""
        return []

    def canOwnSubjectHierarchyItem(self, itemID: int) -> float:
        """Confidence from 0 to 1 that an item belongs to this plugin."""
        return 0.0

    def showContextMenuActionsForItem(self, itemID: int) -> None:
        """Show the action for volumes, with the models that can be used."""
        hierarchy = self._handler.subjectHierarchyNode()
        node = hierarchy.GetItemDataNode(itemID) if itemID else None
        isImage = node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode"
        self._action.visible = isImage and not node.GetAttribute(MAP_ATTRIBUTE)
        self._menu.clear()
        if self._action.visible:
            for choice in modelChoices():
                if choice.description:
                    action = self._menu.addAction(choice.title)
                    action.connect("triggered(bool)", lambda _checked, name=choice.name: segment(node, name))


def segment(volumeNode, model: str) -> None:
    """Open the module with a model and a volume, and segment if the model needs no other volume."""
    slicer.util.selectModule(_MODULE)
    slicer.util.getModuleWidget(_MODULE).segmentVolume(volumeNode, model)
