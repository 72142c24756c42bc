"""Drives a module's panel in the stand-in application."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from slicer_host.ctk_widgets import ctkCollapsibleButton
from slicer_host.panel import panel_image
from slicer_host.views import save_png


class ModuleDriver:
    """The panel of the module ``moduleName``.

    Args:
        app: the stand-in application.
    """

    moduleName = ""
    timeout = 300.0
    """Seconds to wait before a test fails."""

    def __init__(self, app: object):
        self.app = app

    @property
    def message(self) -> str:
        """The panel's current message, for a test that has waited too long."""
        raise NotImplementedError

    @property
    def representation(self) -> object:
        """The widget that contains the module's panel."""
        return self.app.moduleManager().module(self.moduleName).widgetRepresentation()

    @property
    def widget(self) -> object:
        """The module's Python widget object; a reload creates a new one."""
        return self.representation.self()

    @property
    def ui(self) -> object:
        """The panel's widgets by name."""
        return self.widget.ui

    def open(self) -> None:
        """Open the module."""
        slicer.util.selectModule(self.moduleName)
        self.settle()

    def settle(self) -> None:
        """Process pending events."""
        for _round in range(3):
            self.app.processEvents()

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Process events until a condition is met."""
        seconds = seconds or self.timeout
        end = time.monotonic() + seconds
        while not condition():
            self.app.processEvents()
            time.sleep(0.005)
            assert time.monotonic() < end, f"waited {seconds} s; the panel shows: {self.message}"

    def drop(self, *paths: Path) -> None:
        """Drop files on the panel, which must accept them."""
        panel = self.representation.findChild(QtWidgets.QWidget, self.moduleName)
        data = QtCore.QMimeData()
        data.setUrls([QtCore.QUrl.fromLocalFile(str(path)) for path in paths])
        copy, left = QtCore.Qt.DropAction.CopyAction, QtCore.Qt.MouseButton.LeftButton
        none = QtCore.Qt.KeyboardModifier.NoModifier
        enter = QtGui.QDragEnterEvent(QtCore.QPoint(5, 5), copy, data, left, none)
        self.app.sendEvent(panel, enter)
        assert enter.isAccepted()
        self.app.sendEvent(panel, QtGui.QDropEvent(QtCore.QPointF(5, 5), copy, data, left, none))
        self.settle()

    def unfold(self) -> None:
        """Open all sections of the panel."""
        for widget in vars(self.ui).values():
            if isinstance(widget, ctkCollapsibleButton):
                widget.collapsed = False
        panel_image(self.representation)

    def tab_stops(self) -> list[QtWidgets.QWidget]:
        """The visible widgets that take the focus, in the order of the Tab key."""
        top, found = self.representation, []
        widget = top.nextInFocusChain()
        while widget is not top:
            takes_focus = bool(widget.focusPolicy.value & QtCore.Qt.FocusPolicy.TabFocus.value)
            if top.isAncestorOf(widget) and widget.isVisibleTo(top) and takes_focus:
                found.append(widget)
            widget = widget.nextInFocusChain()
        return found

    def tab_stops_out_of_order(self) -> list[str]:
        """Names of widgets that are neither below nor to the right of the previous one in the Tab order."""
        places, names = [], []
        for widget in self.tab_stops():
            corner = widget.mapTo(self.representation, QtCore.QPoint(0, 0))
            places.append(QtCore.QRect(corner, QtCore.QSize(widget.width, widget.height)))
            names.append(widget.objectName or widget.parent().objectName)
        return [
            name
            for name, before, here in zip(names[1:], places, places[1:], strict=False)
            if here.center().y() <= before.bottom() and (here.left() < before.left() or here.bottom() < before.top())
        ]

    def picture(self, path: Path) -> Path:
        """Write a picture of the panel."""
        save_png(panel_image(self.representation), path)
        return path
