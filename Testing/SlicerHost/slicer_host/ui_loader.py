"""Loads .ui files with CTK's and Slicer's widgets, as Slicer does, and refuses unknown names.

Qt's own loader creates Qt's widgets. It would silently replace an unknown class by its base class, create a dynamic
property for a misspelled one, and only print a warning about an invalid connection. This loader raises ``UiError``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import pythonqt
from .pythonqt import connect, find_slot

# Names that Designer writes although they are not properties of the class.
_LAYOUT_EXTRAS = {"leftMargin", "topMargin", "rightMargin", "bottomMargin", "margin", "horizontalSpacing"} | {
    "verticalSpacing",
    "spacing",
    "sizeConstraint",
}
_WIDGET_EXTRAS = {"Line": {"orientation"}, "QLabel": {"buddy"}}

custom_classes: dict[str, type] = {}


class UiError(RuntimeError):
    """A .ui file uses something that Slicer does not have."""


def widget_class(name: str) -> type:
    """Return the class that a .ui file names; UiError if there is none."""
    if name in custom_classes:
        return custom_classes[name]
    found = getattr(QtWidgets, "QFrame" if name == "Line" else name, None)
    if found is None:
        raise UiError(f"The .ui file uses the widget class {name}, which this stand-in for Slicer does not have")
    return found


class QUiLoader(QtUiTools.QUiLoader):
    """Qt's loader with CTK's and Slicer's widgets and with strict checks."""

    def createWidget(self, name: str, parent: QtWidgets.QWidget | None = None, object_name: str = "") -> object:
        cls = widget_class(name)
        if name not in custom_classes:
            return super().createWidget(name, parent, object_name)
        widget = cls(parent)
        widget.objectName = object_name
        return widget

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """Return the widget built from an open .ui file."""
        root = ET.fromstring(bytes(device.readAll().data()))
        special = _pop_custom_properties(root)
        connections = _pop_connections(root)
        for element in root.iter("layout"):
            _check(element, getattr(QtWidgets, element.get("class")), _LAYOUT_EXTRAS)
        buffer = QtCore.QBuffer()
        buffer.setData(ET.tostring(root, encoding="utf-8"))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        pythonqt.loading_ui = True
        try:
            top = super().load(buffer, parent)
        finally:
            pythonqt.loading_ui = False
        for name, property_name, value in special:
            setattr(_find(top, name), property_name, value)
        for sender, signal, receiver, slot in connections:
            try:
                connect(_find(top, sender), signal, find_slot(_find(top, receiver), slot))
            except ValueError as error:
                raise UiError(f"The .ui file's connection {sender}.{signal} -> {receiver}.{slot}: {error}") from None
        return top


def _find(top: QtWidgets.QWidget, name: str) -> QtWidgets.QWidget:
    found = top if top.objectName == name else top.findChild(QtCore.QObject, name)
    if found is None:
        raise UiError(f"The .ui file refers to {name}, which is not in it")
    return found


def _check(element: ET.Element, cls: type, extras: set[str]) -> None:
    for prop in element.findall("property"):
        name = prop.get("name")
        if prop.get("stdset") == "0" or name in extras or cls.staticMetaObject.indexOfProperty(name) >= 0:
            continue
        where = f"{element.get('class')} {element.get('name')}"
        raise UiError(f"The .ui file sets '{name}' on {where}, which has no such property")


def _pop_custom_properties(root: ET.Element) -> list[tuple[str, str, object]]:
    """Check all widgets, and remove the properties that only the stand-ins have, which are set from Python."""
    popped = []
    for element in root.iter("widget"):
        name = element.get("class")
        cls = widget_class(name)
        _check(element, cls, _WIDGET_EXTRAS.get(name, set()))
        if name not in custom_classes:
            continue
        base = next(c for c in cls.__mro__ if c.__module__.startswith("PySide6."))
        for prop in element.findall("property"):
            known = cls.staticMetaObject.indexOfProperty(prop.get("name")) >= 0
            if known and base.staticMetaObject.indexOfProperty(prop.get("name")) < 0:
                element.remove(prop)
                popped.append((element.get("name"), prop.get("name"), _value(prop[0])))
    return popped


def _value(element: ET.Element) -> object:
    text = element.text or ""
    match element.tag:
        case "bool":
            return text == "true"
        case "number":
            return int(text)
        case "double":
            return float(text)
        case "stringlist":
            return [item.text or "" for item in element.findall("string")]
        case "enum" | "set":
            value = None
            for name in text.split("|"):
                item = _enumerator(name)
                value = item if value is None else value | item
            return value
        case "string":
            return text
    raise UiError(f"A property of type <{element.tag}> of a CTK or Slicer widget is not supported")


def _enumerator(name: str) -> object:
    owner, _, rest = name.strip().partition("::")
    cls = custom_classes.get(owner) or getattr(QtWidgets, owner, None) or getattr(QtCore, owner, None)
    member = rest.split("::")[-1]
    if cls is None or not hasattr(cls, member):
        raise UiError(f"The .ui file uses the unknown value {name}")
    return getattr(cls, member)


def _pop_connections(root: ET.Element) -> list[tuple[str, ...]]:
    element = root.find("connections")
    if element is None:
        return []
    root.remove(element)
    return [tuple(c.findtext(k) for k in ("sender", "signal", "receiver", "slot")) for c in element]
