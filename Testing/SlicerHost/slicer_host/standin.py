"""Properties stored in the widget, for the stand-ins for CTK's and Slicer's widgets."""

from __future__ import annotations

from collections.abc import Callable

from PySide6 import QtCore

from .pythonqt import convert

_KINDS = {bool: "bool", int: "int", float: "double", str: "QString", "QStringList": "QStringList"}


def stored(
    name: str, kind: object, default: object, changed: Callable | None = None
) -> tuple[QtCore.Property, Callable]:
    """Return a Qt property that stores its value in the widget, and its setter.

    ``changed(widget)`` runs after each change. Enumerations and flags are stored unchanged (``kind`` object).
    """

    def get(self: QtCore.QObject) -> object:
        return self.__dict__.get("_" + name, default)

    def set_(self: QtCore.QObject, value: object) -> None:
        value = convert(value, _KINDS.get(kind, ""), name)
        value = tuple(value) if kind == "QStringList" else value  # as PythonQt returns lists of strings
        if value != get(self):
            self.__dict__["_" + name] = value
            if changed is not None:
                changed(self)

    return QtCore.Property("QVariant" if kind is object else kind, get, set_), set_
