"""The module ``qt``: every class and namespace of Qt under one name, as PythonQt offers it to Slicer's Python."""

from __future__ import annotations

import types

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

from .ui_loader import QUiLoader

# PySide's own helpers, which PythonQt does not have.
_REFUSED = {"Slot", "Property", "ClassInfo", "QEnum", "QFlag", "SIGNAL", "SLOT", "SignalInstance", "MetaFunction"}


class QtModule(types.ModuleType):
    """Look a name up in QtCore, QtGui, QtWidgets and QtNetwork; an unknown one raises AttributeError."""

    def __getattr__(self, name: str) -> object:
        if name == "QUiLoader":
            return QUiLoader
        if name not in _REFUSED:
            for module in (QtCore, QtGui, QtWidgets, QtNetwork):
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module 'qt' has no attribute '{name}'")
