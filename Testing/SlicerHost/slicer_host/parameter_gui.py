"""Connectors between widgets and parameters of a parameter node, chosen by the widget's exact class and the type."""

from __future__ import annotations

import enum
import pathlib
import types
import typing
from collections.abc import Callable

import slicer
from PySide6 import QtWidgets

from . import ctk_path_edit, ctk_values, ctk_widgets, parameter_checks, qmrml_widgets
from .parameter_types import split_annotated

_DOUBLES = (
    QtWidgets.QDoubleSpinBox,
    ctk_values.ctkSliderWidget,
    ctk_values.ctkDoubleSlider,
    ctk_values.ctkDoubleSpinBox,
    qmrml_widgets.qMRMLSliderWidget,
    qmrml_widgets.qMRMLSpinBox,
)
_COMBOS = (QtWidgets.QComboBox, ctk_widgets.ctkComboBox)


class Connector:
    """Reads and writes a widget's value; ``on_changed`` sets or removes (None) the callback for the user's changes."""

    def __init__(self, widget: object, signal: str | None, read: Callable, write: Callable) -> None:
        self.widget, self._signal, self.read, self.write = widget, signal, read, write
        self._callback: Callable | None = None

    def on_changed(self, callback: Callable | None) -> None:
        signal = getattr(self.widget, self._signal) if self._signal else None
        if signal is not None and self._callback is not None:
            signal.disconnect(self._callback)
        self._callback = None if callback is None else lambda *_: callback()
        if signal is not None and self._callback is not None:
            signal.connect(self._callback)


def _attribute(widget: object, signal: str, name: str, convert: Callable = lambda v: v) -> Connector:
    def write(value: object) -> None:
        shown = str(value) if convert in (pathlib.Path,) else value
        if getattr(widget, name) != shown:
            setattr(widget, name, shown)

    return Connector(widget, signal, lambda: convert(getattr(widget, name)), write)


def _first(annotations: list, kind: type) -> object:
    return next((a for a in annotations if isinstance(a, kind)), None)


def _bounded(widget: object, annotations: list, must: bool, unbounded: tuple[float, float]) -> None:
    kinds = (parameter_checks.WithinRange, parameter_checks.Minimum, parameter_checks.Maximum)
    within, low, high = (_first(annotations, kind) for kind in kinds)
    if must and within is None and (low is None or high is None):
        raise RuntimeError(f"A parameter connected to a {type(widget).__name__} must have bounds (WithinRange)")
    widget.minimum = within.minimum if within else low.minimum if low else unbounded[0]
    widget.maximum = within.maximum if within else high.maximum if high else unbounded[1]
    step = _first(annotations, parameter_checks.SingleStep)
    if step is not None:
        widget.singleStep = step.value


def _number(widget: object, kind: type, annotations: list) -> Connector:
    slider = type(widget) in (QtWidgets.QSlider, ctk_values.ctkSliderWidget, qmrml_widgets.qMRMLSliderWidget)
    decimals = _first(annotations, parameter_checks.Decimals)
    if hasattr(widget, "decimals"):
        if kind is int:
            widget.decimals = 0
        elif decimals is not None:
            widget.decimals = decimals.value
    whole = type(widget) in (QtWidgets.QSlider, QtWidgets.QSpinBox)
    _bounded(widget, annotations, slider, (-(2**31), 2**31 - 1) if whole else (float("-inf"), float("inf")))
    return _attribute(widget, "valueChanged", "value", kind)


def _choices(widget: object, labels: list[str], values: list) -> Connector:
    widget.clear()
    widget.addItems(labels)

    def write(value: object) -> None:
        if value not in values:
            raise ValueError(f"{value!r} is not one of the choices {values}")
        widget.currentIndex = values.index(value)

    return Connector(widget, "currentIndexChanged", lambda: values[widget.currentIndex], write)


def _node_classes(kind: object) -> list[str] | None:
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else [kind]
    members = [split_annotated(m)[0] for m in members]
    members = [m for m in members if m is not type(None)]
    if not members or not all(isinstance(m, type) and issubclass(m, slicer.vtkMRMLNode) for m in members):
        return None
    return [m.__name__ for m in members]


def connector_for(widget: object, annotated: object) -> Connector:
    """Return a connector; RuntimeError if Slicer has none for this widget class and parameter type."""
    kind, annotations = split_annotated(annotated)
    cls, choice = type(widget), _first(annotations, parameter_checks.Choice)
    if kind is bool and cls in (QtWidgets.QCheckBox, ctk_widgets.ctkCheckBox):
        return _attribute(widget, "stateChanged", "checked")
    if kind is bool and cls is QtWidgets.QPushButton:
        widget.checkable = True
        return _attribute(widget, "toggled", "checked")
    if kind is int and cls in (QtWidgets.QSlider, QtWidgets.QSpinBox):
        return _number(widget, int, annotations)
    if kind in (int, float) and cls in _DOUBLES:
        return _number(widget, kind, annotations)
    if kind in (int, float, str, bool) and cls in _COMBOS:
        if choice is None:
            raise RuntimeError("A parameter connected to a combo box must have the annotation Choice")
        return _choices(widget, [str(c) for c in choice.choices], list(choice.choices))
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and cls in _COMBOS:
        label = getattr(kind, "label", lambda member: member.name)
        return _choices(widget, [label(member) for member in kind], list(kind))
    if kind is str and cls is QtWidgets.QLineEdit:
        return _attribute(widget, "textChanged", "text")
    if kind is str and cls is QtWidgets.QLabel:
        return Connector(widget, None, lambda: widget.text, widget.setText)
    if kind is str and cls is QtWidgets.QTextEdit:
        return Connector(widget, "textChanged", widget.toPlainText, widget.setPlainText)
    if kind in (pathlib.Path, pathlib.PurePath) and cls is ctk_path_edit.ctkPathLineEdit:
        return _attribute(widget, "currentPathChanged", "currentPath", pathlib.Path)
    if kind in (pathlib.Path, pathlib.PurePath) and cls is ctk_widgets.ctkDirectoryButton:
        return _attribute(widget, "directoryChanged", "directory", pathlib.Path)
    if cls is qmrml_widgets.qMRMLNodeComboBox and _node_classes(kind) is not None:
        widget.nodeTypes = _node_classes(kind)
        return Connector(widget, "currentNodeChanged", widget.currentNode, widget.setCurrentNode)
    raise RuntimeError(f"Unable to create GUI connector from datatype {kind} to widget type {cls.__name__}")
