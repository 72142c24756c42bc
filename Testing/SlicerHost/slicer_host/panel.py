"""A module's panel as a picture."""

from __future__ import annotations

import numpy as np
from PySide6 import QtCore, QtGui, QtWidgets


def panel_image(widget: QtWidgets.QWidget, width: int = 420, height: int | None = None) -> np.ndarray:
    """Render a widget at a width of Slicer's module panel: (height, width, 3) uint8.

    ``height``: None for the widget's preferred height.
    """
    widget.setAttribute(QtCore.Qt.WidgetAttribute.WA_DontShowOnScreen)
    widget.show()
    layout = widget.layout()
    layout.activate()
    widget.resize(width, height or max(layout.totalSizeHint().height(), layout.totalMinimumSize().height()))
    QtWidgets.QApplication.processEvents()
    picture = widget.grab().toImage().convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(picture.constBits(), np.uint8).reshape(picture.height(), picture.bytesPerLine())
    return rows[:, : 3 * picture.width()].reshape(picture.height(), picture.width(), 3).copy()
