"""Stand-ins for Slicer's own widgets other than the node selector."""

from __future__ import annotations

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .ctk_values import ctkDoubleSpinBox, ctkSliderWidget
from .ctk_widgets import ctkCollapsibleButton
from .node_combo_box import qMRMLNodeComboBox
from .standin import stored

_SCENE_SIGNAL = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
_SCENE_SLOT = ("setMRMLScene(vtkMRMLScene*)",)


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that stores the scene and passes it on."""

    _closed = True
    SIGNALS, SLOTS = _SCENE_SIGNAL, _SCENE_SLOT
    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> object:
        return self._scene

    def setMRMLScene(self, scene: object) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qSlicerWidget(qMRMLWidget):
    """The earlier name of a module's top-level widget."""


class _WithScene:
    SLOTS: tuple[str, ...] = ()

    def mrmlScene(self) -> object:
        return self.__dict__.get("_scene")

    def setMRMLScene(self, scene: object) -> None:
        self._scene = scene


class qMRMLSliderWidget(_WithScene, ctkSliderWidget):
    """A slider in the scene's units."""

    SLOTS = ctkSliderWidget.SLOTS + _SCENE_SLOT
    quantity, setQuantity = stored("quantity", str, "")


class qMRMLSpinBox(_WithScene, ctkDoubleSpinBox):
    """A spin box in the scene's units."""

    SLOTS = ctkDoubleSpinBox.SLOTS + _SCENE_SLOT
    quantity, setQuantity = stored("quantity", str, "")


class qMRMLCollapsibleButton(_WithScene, ctkCollapsibleButton):
    """A titled section that stores the scene."""

    SLOTS = ctkCollapsibleButton.SLOTS + _SCENE_SLOT


class _SegmentationView:
    """Shows a segmentation, and updates whenever it changes."""

    _node, _tag = None, None

    def segmentationNode(self) -> object:
        return self._node

    def setSegmentationNode(self, node: object) -> None:
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver(vtk.vtkCommand.AnyEvent, lambda *_: self._show())
        self._show()


class qMRMLSegmentsTableView(_SegmentationView, qMRMLWidget):
    """A table of a segmentation's segments: visibility, color, name."""

    SIGNALS = _SCENE_SIGNAL
    SLOTS = (*_SCENE_SLOT, "setSegmentationNode(vtkMRMLNode*)", "setReadOnly(bool)", "setSelectionMode(int)")
    selectionChanged = QtCore.Signal(QtCore.QItemSelection, QtCore.QItemSelection)
    segmentAboutToBeModified = QtCore.Signal(str)
    selectionMode, setSelectionMode = stored("selectionMode", int, 3)
    headerVisible, setHeaderVisible = stored("headerVisible", bool, True)
    visibilityColumnVisible, setVisibilityColumnVisible = stored("visibilityColumnVisible", bool, True)
    colorColumnVisible, setColorColumnVisible = stored("colorColumnVisible", bool, True)
    opacityColumnVisible, setOpacityColumnVisible = stored("opacityColumnVisible", bool, True)
    statusColumnVisible, setStatusColumnVisible = stored("statusColumnVisible", bool, False)
    readOnly, setReadOnly = stored("readOnly", bool, False)
    filterBarVisible, setFilterBarVisible = stored("filterBarVisible", bool, False)
    textFilter, setTextFilter = stored("textFilter", str, "")
    segmentCount = QtCore.Property(int, lambda self: self._table.rowCount)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._table = QtWidgets.QTableWidget(0, 2)
        self._table.setHorizontalHeaderLabels(["Color", "Name"])
        self._table.horizontalHeader().stretchLastSection = True
        self._table.verticalHeader().visible = False
        box = QtWidgets.QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(self._table)

    def segmentIDForRow(self, row: int) -> str:
        return self._node.GetSegmentation().GetNthSegmentID(row)

    def selectedSegmentIDs(self) -> list[str]:
        rows = sorted({index.row() for index in self._table.selectedIndexes()})
        return [self.segmentIDForRow(row) for row in rows]

    def _show(self) -> None:
        if not shiboken6.isValid(self):
            return
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        count = segmentation.GetNumberOfSegments() if segmentation is not None else 0
        self._table.setRowCount(count)
        for row in range(count):
            segment = segmentation.GetNthSegment(row)
            swatch = QtWidgets.QTableWidgetItem()
            swatch.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            self._table.setItem(row, 0, swatch)
            self._table.setItem(row, 1, QtWidgets.QTableWidgetItem(segment.GetName()))


class qMRMLSegmentationShow3DButton(_SegmentationView, QtWidgets.QPushButton):
    """Creates, shows and removes the surfaces of a segmentation."""

    _closed = True
    SLOTS = ("setSegmentationNode(vtkMRMLSegmentationNode*)", "setLocked(bool)")
    locked, setLocked = stored("locked", bool, False, lambda self: self._show())

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.text, self.checkable, self.enabled = "Show 3D", True, False
        self.toggled.connect(self._toggled)

    def _toggled(self, on: bool) -> None:
        if self._node is None:
            return
        if on:
            self._node.CreateClosedSurfaceRepresentation()
            self._node.GetDisplayNode().SetVisibility(True)
            self._node.GetDisplayNode().SetVisibility3D(True)
        else:
            self._node.RemoveClosedSurfaceRepresentation()

    def _show(self) -> None:
        if not shiboken6.isValid(self):
            return
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        self.enabled = not self.locked and segmentation is not None and segmentation.GetNumberOfSegments() > 0
        self.blockSignals(True)
        self.checked = segmentation is not None and segmentation.ContainsRepresentation("Closed surface")
        self.blockSignals(False)


_CLASSES = (
    qMRMLWidget,
    qSlicerWidget,
    qMRMLNodeComboBox,
    qMRMLSliderWidget,
    qMRMLSpinBox,
    qMRMLSegmentsTableView,
    qMRMLSegmentationShow3DButton,
    qMRMLCollapsibleButton,
)
WIDGETS = {cls.__name__: cls for cls in _CLASSES}


def install() -> None:
    """Make the widgets available as ``slicer.qMRMLNodeComboBox`` and so on."""
    for name, cls in WIDGETS.items():
        setattr(slicer, name, cls)
