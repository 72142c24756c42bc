"""Driving a module's panel in the stand-in application."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from slicer_host.panel import panel_image
from slicer_host.views import save_png


class ModuleDriver:
    """The panel of the module ``moduleName``.

    Args:
        app: the stand-in application.
    """

    moduleName = ""
    patience = 300.0
    """Seconds to wait before a test fails."""

    def __init__(self, app: object):
        self.app = app

    @property
    def told(self) -> str:
        """The panel's current message, for a test that has waited too long."""
        raise NotImplementedError

    @property
    def representation(self) -> object:
        """The module's widget, as the application has it."""
        return self.app.moduleManager().module(self.moduleName).widgetRepresentation()

    @property
    def widget(self) -> object:
        """The module's own widget object; another one after a reload."""
        return self.representation.self()

    @property
    def ui(self) -> object:
        """The panel's widgets by name."""
        return self.widget.ui

    def open(self) -> None:
        """Go to the module."""
        slicer.util.selectModule(self.moduleName)
        self.settle()

    def settle(self) -> None:
        """Process pending events."""
        for _round in range(3):
            self.app.processEvents()

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Process events until a condition is met."""
        seconds = seconds or self.patience
        end = time.monotonic() + seconds
        while not condition():
            self.app.processEvents()
            time.sleep(0.005)
            assert time.monotonic() < end, f"waited {seconds} s; the panel shows: {self.told}"

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

    def picture(self, path: Path) -> Path:
        """Write a picture of the panel."""
        save_png(panel_image(self.representation), path)
        return path
