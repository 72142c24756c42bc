"""Stand-in for qMRMLNodeComboBox, with the same selection after nodes were added or removed."""

from __future__ import annotations

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .ctk_widgets import ctkComboBox
from .dialogs import Shown, dialogs
from .standin import stored


def _refill(self: qMRMLNodeComboBox) -> None:
    self._refill()


def _remove(tags: list[tuple[object, int]]) -> None:
    """Remove observers, each given by what it observes and its tag."""
    for observed, tag in tags:
        observed.RemoveObserver(tag)
    tags.clear()


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """A combo box of the scene's nodes of given classes; optionally None, and entries that create, rename or delete."""

    _closed = True
    SIGNALS = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_validity_changed",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
        "nodeAddedByUserAction(vtkMRMLNode*)": "nodeAddedByUserAction",
        "nodeAboutToBeRemoved(vtkMRMLNode*)": "nodeAboutToBeRemoved",
        "nodeAboutToBeEdited(vtkMRMLNode*)": "nodeAboutToBeEdited",
    }
    SLOTS = (
        "setMRMLScene(vtkMRMLScene*)",
        "setCurrentNode(vtkMRMLNode*)",
        "setCurrentNodeID(QString)",
        "setCurrentNodeIndex(int)",
        "addNode(QString)",
        "addNode()",
        "removeCurrentNode()",
        "editCurrentNode()",
        "renameCurrentNode()",
    )
    currentNodeChanged, nodeActivated = QtCore.Signal(object), QtCore.Signal(object)
    nodeAdded, nodeAddedByUser = QtCore.Signal(object), QtCore.Signal(object)
    nodeAddedByUserAction, nodeAboutToBeRemoved = QtCore.Signal(object), QtCore.Signal(object)
    nodeAboutToBeEdited, _validity_changed = QtCore.Signal(object), QtCore.Signal(bool)
    currentNodeIDChanged, currentNodeRenamed = QtCore.Signal(str), QtCore.Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene, self._requested, self._current = None, "", ""
        self._ids: list[str] = []
        self._attributes: dict[str, dict[str, str | None]] = {}
        self._labels: dict[str, str] = {}
        self._scene_tags: list[tuple[object, int]] = []
        self._node_tags: list[tuple[object, int]] = []
        # Not a method: a widget's own methods are no longer called when it is destroyed.
        self.destroyed.connect(lambda *_, tags=(self._scene_tags, self._node_tags): [_remove(each) for each in tags])
        self._combo = ctkComboBox()
        self._combo.elideMode = QtCore.Qt.ElideMiddle
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._combo)
        self._combo.activated.connect(self._activated)
        self._combo.currentIndexChanged.connect(self._index_changed)
        self.enabled = False

    nodeTypes, setNodeTypes = stored("nodeTypes", "QStringList", (), _refill)
    showHidden, setShowHidden = stored("showHidden", bool, False, _refill)
    showChildNodeTypes, setShowChildNodeTypes = stored("showChildNodeTypes", bool, True, _refill)
    hideChildNodeTypes, setHideChildNodeTypes = stored("hideChildNodeTypes", "QStringList", (), _refill)
    noneEnabled, setNoneEnabled = stored("noneEnabled", bool, False, _refill)
    noneDisplay, setNoneDisplay = stored("noneDisplay", str, "None", _refill)
    addEnabled, setAddEnabled = stored("addEnabled", bool, True, _refill)
    removeEnabled, setRemoveEnabled = stored("removeEnabled", bool, True, _refill)
    editEnabled, setEditEnabled = stored("editEnabled", bool, False, _refill)
    renameEnabled, setRenameEnabled = stored("renameEnabled", bool, False, _refill)
    selectNodeUponCreation, setSelectNodeUponCreation = stored("selectNodeUponCreation", bool, True)
    interactionNodeSingletonTag, setInteractionNodeSingletonTag = stored("interactionNodeSingletonTag", str, "")
    sizeAdjustPolicy, setSizeAdjustPolicy = stored("sizeAdjustPolicy", object, 0)
    baseName = stored("baseName", str, "")[0]

    def setBaseName(self, name: str, nodeType: str = "") -> None:
        self.baseName = name

    def mrmlScene(self) -> object:
        return self._scene

    def setMRMLScene(self, scene: object) -> None:
        if scene is self._scene:
            return
        _remove(self._scene_tags)
        self._scene = scene
        if scene is not None:
            events = slicer.vtkMRMLScene
            for event, handler in (
                (events.NodeAddedEvent, self._node_added),
                (events.NodeAboutToBeRemovedEvent, self._node_about_to_be_removed),
                (events.NodeRemovedEvent, self._node_removed),
            ):
                handler.__func__.CallDataType = vtk.VTK_OBJECT
                self._scene_tags.append((scene, scene.AddObserver(event, handler)))
            self._scene_tags.append((scene, scene.AddObserver(events.EndImportEvent, self._scene_changed)))
            self._scene_tags.append((scene, scene.AddObserver(events.EndCloseEvent, self._scene_closed)))
        self.enabled = scene is not None
        self._refill(self._requested)
        self._requested = ""

    def addAttribute(self, nodeType: str, name: str, value: object = None) -> None:
        self._attributes.setdefault(nodeType, {})[name] = None if value is None else str(value)
        self._refill()

    def removeAttribute(self, nodeType: str, name: str) -> None:
        self._attributes.get(nodeType, {}).pop(name, None)
        self._refill()

    def setNodeTypeLabel(self, label: str, nodeType: str) -> None:
        self._labels[nodeType] = label
        self._refill()

    def nodeTypeLabel(self, nodeType: str) -> str:
        named = self._scene.GetTypeDisplayNameByClassName(nodeType) if self._scene and nodeType else ""
        return self._labels.get(nodeType) or named or "node"

    def nodeCount(self) -> int:
        return len(self._ids)

    def nodeFromIndex(self, index: int) -> object:
        return self._scene.GetNodeByID(self._ids[index]) if 0 <= index < len(self._ids) else None

    def currentNode(self) -> object:
        return self._scene.GetNodeByID(self._current) if self._scene and self._current else None

    def setCurrentNode(self, node: object) -> None:
        if node is not None and not isinstance(node, slicer.vtkMRMLNode):
            raise ValueError(f"setCurrentNode takes a MRML node or None, not {type(node).__name__}")
        self.setCurrentNodeID(node.GetID() or "" if node is not None else "")

    def setCurrentNodeID(self, identifier: str) -> None:
        identifier = identifier or ""
        if self._scene is None:
            self._requested = identifier
            return
        self._select(identifier if identifier in self._ids else "")

    currentNodeID = QtCore.Property(str, lambda self: self._current, setCurrentNodeID)

    def setCurrentNodeIndex(self, index: int) -> None:
        self._select(self._ids[index] if 0 <= index < len(self._ids) else "")

    def addNode(self, nodeType: str | None = None) -> object:
        """Create a node, as the entry "Create new ..." does; select it unless ``selectNodeUponCreation`` is off."""
        nodeType = nodeType or self.nodeTypes[0]
        if nodeType not in self.nodeTypes:
            return None
        name = self._scene.GenerateUniqueName(self.baseName or self.nodeTypeLabel(nodeType))
        node = self._scene.CreateNodeByClass(nodeType)
        node.UnRegister(None)
        for attribute, value in self._attributes.get(nodeType, {}).items():
            node.SetAttribute(attribute, value or "")
        node.SetName(name)
        node = self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self.currentNode())

    def editCurrentNode(self) -> None:
        self.nodeAboutToBeEdited.emit(self.currentNode())

    def renameCurrentNode(self) -> None:
        node = self.currentNode()
        answer = dialogs.next_answer(Shown("input", "Rename", "New name:")) if node is not None else None
        if answer:
            node.SetName(answer)
            self.currentNodeRenamed.emit(answer)

    # The following methods are not in Slicer.

    def _matches(self, node: object) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        for kind in self.nodeTypes:
            exact = node.GetClassName() == kind
            if not exact and not (self.showChildNodeTypes and node.IsA(kind)):
                continue
            if any(node.IsA(hidden) for hidden in self.hideChildNodeTypes):
                continue
            wanted = self._attributes.get(kind, {})
            if all(node.GetAttribute(k) is not None and v in (None, node.GetAttribute(k)) for k, v in wanted.items()):
                return True
        return False

    def _refill(self, select: str | None = None) -> None:
        if self._scene is None or not shiboken6.isValid(self):
            return
        select = self._current if select is None else select
        before = self._ids.index(select) if select in self._ids else -1
        was_empty = not self._ids
        _remove(self._node_tags)
        everything = (self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes()))
        nodes = [node for node in everything if self._matches(node)]
        self._node_tags += [(n, n.AddObserver(vtk.vtkCommand.ModifiedEvent, self._renamed)) for n in nodes]
        self._ids = [n.GetID() for n in nodes]
        self._combo.blockSignals(True)
        self._combo.clear()
        self._combo.setDefaultText(f"Select a {self.nodeTypeLabel(self.nodeTypes[0] if self.nodeTypes else '')}")
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay, "")
        for node in nodes:
            self._combo.addItem(node.GetName() or "", node.GetID())
        has_actions = self._add_actions()
        self._combo.blockSignals(False)
        if select not in self._ids:
            # As in Qt's combo box, on which Slicer's is based: when the current entry is removed, the next one is
            # selected (none if it was the first), and the first entry of an empty combo box is selected immediately.
            follows = before + self.noneEnabled > 0 and before >= 0
            first = was_empty and not self.noneEnabled and not has_actions
            select = self._ids[min(max(before, 0), len(self._ids) - 1)] if self._ids and (follows or first) else ""
        self._select(select)

    def _add_actions(self) -> bool:
        label = self.nodeTypeLabel(self.nodeTypes[0]) if len(self.nodeTypes) == 1 else "node"
        actions = [
            (self.renameEnabled, f"Rename current {label}", self.renameCurrentNode),
            (self.editEnabled, f"Edit current {label}", self.editCurrentNode),
            (self.addEnabled, f"Create new {label}", self._create),
            (self.removeEnabled, f"Delete current {label}", self.removeCurrentNode),
        ]
        shown = [(text, action) for wanted, text, action in actions if wanted]
        if shown:
            self._combo.insertSeparator(self._combo.count)
        for text, action in shown:
            self._combo.addItem(text, action)
        return bool(shown)

    def _create(self) -> None:
        node = self.addNode()
        self.setCurrentNode(node)
        self.nodeAddedByUserAction.emit(node)

    def _select(self, identifier: str) -> None:
        index = self._ids.index(identifier) + self.noneEnabled if identifier else 0 if self.noneEnabled else -1
        self._combo.blockSignals(True)
        self._combo.currentIndex = index
        self._combo.blockSignals(False)
        if identifier != self._current:
            self._current = identifier
            node = self.currentNode()
            self.currentNodeChanged.emit(node)
            self._validity_changed.emit(node is not None)
            self.currentNodeIDChanged.emit(identifier)

    def _index_changed(self, index: int) -> None:
        data = self._combo.itemData(index)
        if isinstance(data, str):
            self._select(data)

    def _activated(self, index: int) -> None:
        data = self._combo.itemData(index)
        if callable(data):
            self._select(self._current)
            data()
        elif isinstance(data, str):
            self.nodeActivated.emit(self.currentNode())

    def _node_added(self, caller: object, event: str, node: object) -> None:
        if node is not None and shiboken6.isValid(self) and not self._scene.IsImporting() and self._matches(node):
            self._refill()
            self.nodeAdded.emit(node)

    def _node_about_to_be_removed(self, caller: object, event: str, node: object) -> None:
        if node is not None and shiboken6.isValid(self) and node.GetID() in self._ids:
            self.nodeAboutToBeRemoved.emit(node)

    def _node_removed(self, caller: object, event: str, node: object) -> None:
        if node is not None and not self._scene.IsClosing():
            self._refill()

    def _scene_changed(self, caller: object, event: str) -> None:
        self._refill()

    def _scene_closed(self, caller: object, event: str) -> None:
        self._ids = []
        self._refill("")

    def _renamed(self, caller: object, event: str) -> None:
        if not shiboken6.isValid(self):
            return
        rows = range(len(self._ids))
        shown = [self._combo.itemText(i + self.noneEnabled) for i in rows]
        if shown != [(node.GetName() or "") if node is not None else "" for node in map(self.nodeFromIndex, rows)]:
            self._refill()
