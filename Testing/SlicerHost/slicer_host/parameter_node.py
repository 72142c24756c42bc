"""``slicer.parameterNodeWrapper``: typed access to a module's parameter node, and its connection to widgets."""

from __future__ import annotations

import sys
import types
import typing
import weakref

import slicer
import vtk
from PySide6 import QtWidgets

from . import parameter_checks
from .parameter_gui import connector_for
from .parameter_types import codec_for, split_annotated

SlicerParameterNamePropertyName = "SlicerParameterName"


class _Field:
    """One typed parameter of a wrapper class, as a property of its instances."""

    def __init__(self, owner: type, name: str, kind: object) -> None:
        annotations = split_annotated(kind)[1]
        defaults = [a for a in annotations if isinstance(a, parameter_checks.Default)]
        if len(defaults) > 1:
            raise TypeError(f"{owner.__name__}.{name} has several defaults")
        self.name, self.kind, self.codec = name, kind, codec_for(kind)
        if name in owner.__dict__:
            self.default = parameter_checks.Default(owner.__dict__[name])
        else:
            self.default = defaults[0] if defaults else parameter_checks.Default(generator=self.codec.default)

    def __get__(self, wrapper: object, owner: type | None = None) -> object:
        return self if wrapper is None else wrapper._values[self.name]

    def __set__(self, wrapper: object, value: object) -> None:
        self.codec.check(value)
        node, name = wrapper.parameterNode, wrapper._prefix + self.name
        with slicer.util.NodeModify(node):
            self.codec.write(node, name, value)
            wrapper._values[self.name] = self.codec.read(node, name)

    def read(self, wrapper: object) -> object:
        """Return the stored value; if there is none, the default is stored first."""
        node, name = wrapper.parameterNode, wrapper._prefix + self.name
        if not self.codec.holds(node, name):
            self.codec.write(node, name, self.default.value)
        return self.codec.read(node, name)


class _Wrapper:
    """The methods of every class decorated with ``parameterNodeWrapper``."""

    allParameters: typing.ClassVar[dict[str, _Field]] = {}

    def __init__(self, parameterNode: object, prefix: str | None = None) -> None:
        self.parameterNode, self._prefix = parameterNode, prefix or ""
        self._guis: dict[int, tuple[int, dict]] = {}
        self._updating = False
        self._next_tag = 0
        # As in Slicer, values are cached until the node reports a change, so a reference to a node that is not in the
        # scene yet stays None.
        self._values: dict[str, object] = {}
        with slicer.util.NodeModify(parameterNode):
            self._read_all()
        wrapper = weakref.ref(self)
        self._observer = parameterNode.AddObserver(
            vtk.vtkCommand.ModifiedEvent, lambda _caller, _event: wrapper()._read_all()
        )

    def __del__(self) -> None:
        self.parameterNode.RemoveObserver(self._observer)

    def _read_all(self) -> None:
        for name, field in self.allParameters.items():
            self._values[name] = field.read(self)

    def _field(self, name: str) -> _Field:
        if name not in self.allParameters:
            raise ValueError(f"There is no parameter {name}: {list(self.allParameters)}")
        return self.allParameters[name]

    def getValue(self, name: str) -> object:
        return self._field(name).__get__(self)

    def setValue(self, name: str, value: object) -> None:
        self._field(name).__set__(self, value)

    def default(self, name: str) -> parameter_checks.Default:
        return self._field(name).default

    def isCached(self, name: str) -> bool:
        """True: Slicer caches values of all types that this stand-in supports."""
        self._field(name)
        return True

    @classmethod
    def dataType(cls, name: str) -> object:
        return cls._field(cls, name).kind

    def connectGui(self, gui: object) -> int:
        """Connect the widgets with the property SlicerParameterName, below a widget or among an object's attributes."""
        widgets = gui.findChildren(QtWidgets.QWidget) if isinstance(gui, QtWidgets.QWidget) else vars(gui).values()
        named = {}
        for widget in widgets:
            name = widget.property(SlicerParameterNamePropertyName)
            if name:
                named[name] = widget
        return self.connectParametersToGui(named)

    def connectParametersToGui(self, mapping: dict[str, object]) -> int:
        connectors = {name: connector_for(widget, self._field(name).kind) for name, widget in mapping.items()}
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.on_changed(lambda name=name, connector=connector: self._from_gui(name, connector))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._to_gui())
        self._next_tag += 1
        self._guis[self._next_tag] = (observer, connectors)
        return self._next_tag

    def disconnectGui(self, tag: int) -> None:
        if tag in self._guis:
            observer, connectors = self._guis.pop(tag)
            self.RemoveObserver(observer)
            for connector in connectors.values():
                connector.on_changed(None)

    def _from_gui(self, name: str, connector: object) -> None:
        if not self._updating:
            self.setValue(name, connector.read())

    def _to_gui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for _, connectors in list(self._guis.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, before: int) -> None:
        self.parameterNode.EndModify(before)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def AddObserver(self, event: object, callback: object, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)


def parameterNodeWrapper(cls: type | None = None) -> type:
    """Class decorator: the annotated fields become typed parameters stored in a vtkMRMLScriptedModuleNode."""
    if cls is None:
        return parameterNodeWrapper
    fields = {}
    for name, kind in typing.get_type_hints(cls, include_extras=True).items():
        if hasattr(_Wrapper, name):
            raise ValueError(f"Cannot use the reserved name '{name}' in a parameterNodeWrapper")
        fields[name] = _Field(cls, name, kind)
    members = {k: v for k, v in vars(_Wrapper).items() if not k.startswith("__") or k in ("__init__", "__del__")}
    for name, value in (members | fields | {"allParameters": fields, "_is_parameter_node_wrapper": True}).items():
        setattr(cls, name, value)
    return cls


def isParameterNodeWrapper(thing: object) -> bool:
    """True for a wrapper class or an instance of one."""
    return getattr(thing, "_is_parameter_node_wrapper", False)


def findChildWidgetForParameter(widget: QtWidgets.QWidget, parameter: str) -> QtWidgets.QWidget | None:
    """Return the child widget whose property is a parameter's name."""
    children = widget.findChildren(QtWidgets.QWidget)
    return next((w for w in children if w.property(SlicerParameterNamePropertyName) == parameter), None)


def install() -> None:
    """Create the module ``slicer.parameterNodeWrapper``."""
    module = types.ModuleType("slicer.parameterNodeWrapper")
    checks = [c for c in vars(parameter_checks).values() if getattr(c, "__module__", "") == parameter_checks.__name__]
    public = {c.__name__: c for c in checks} | {
        "parameterNodeWrapper": parameterNodeWrapper,
        "isParameterNodeWrapper": isParameterNodeWrapper,
        "findChildWidgetForParameter": findChildWidgetForParameter,
        "SlicerParameterNamePropertyName": SlicerParameterNamePropertyName,
    }
    vars(module).update(public)
    module.__all__ = list(public)
    slicer.parameterNodeWrapper = sys.modules["slicer.parameterNodeWrapper"] = module
