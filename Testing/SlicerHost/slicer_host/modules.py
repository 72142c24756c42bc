"""Modules: ``slicer.modules``, the module manager, and the loading of scripted modules from their .py files."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import shiboken6
import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .pythonqt import connections_of, report_exception
from .qmrml_widgets import qMRMLWidget
from .standin import stored


class _Module(QtCore.QObject):
    """The base class of modules in C++ and Python: properties, a logic, a widget."""

    _closed = True

    def __init__(self, name: str, path: str = "") -> None:
        super().__init__()
        self._name, self._path, self._logic, self._representation = name, path, None, None

    name = property(lambda self: self._name)
    path = property(lambda self: self._path)
    isInstalled = property(lambda self: False)
    isBuiltIn = property(lambda self: False)
    title, setTitle = stored("title", str, "")
    categories, setCategories = stored("categories", "QStringList", ())
    contributors, setContributors = stored("contributors", "QStringList", ())
    dependencies, setDependencies = stored("dependencies", "QStringList", ())
    associatedNodeTypes, setAssociatedNodeTypes = stored("associatedNodeTypes", "QStringList", ())
    defaultDocumentationLink = property(lambda self: f'<a href="{slicer.app.documentationBaseUrl}">Documentation</a>')
    helpText, setHelpText = stored("helpText", str, "")
    acknowledgementText, setAcknowledgementText = stored("acknowledgementText", str, "")
    extensions, setExtensions = stored("extensions", object, {})
    hidden, setHidden = stored("hidden", bool, False)
    index, setIndex = stored("index", int, -1)
    icon, setIcon = stored("icon", QtGui.QIcon, QtGui.QIcon())
    widgetRepresentationCreationEnabled, setWidgetRepresentationCreationEnabled = stored(
        "widgetRepresentationCreationEnabled", bool, True
    )

    def logic(self) -> object:
        """Return the module's VTK logic."""
        return self._logic

    def mrmlScene(self) -> object:
        return slicer.mrmlScene

    def widgetRepresentation(self) -> object:
        """Return the module's widget; None for modules in C++, whose widgets are not in slicer-core."""
        return self._representation


class qSlicerLoadableModule(_Module):
    """A module written in C++."""


class qSlicerScriptedLoadableModule(_Module):
    """A module written in Python."""

    def widgetRepresentation(self) -> object:
        if self._representation is None:
            self._representation = self.createNewWidgetRepresentation()
        return self._representation

    def createNewWidgetRepresentation(self) -> object:
        """Build the module's widget and run its ``setup``."""
        representation = qSlicerScriptedLoadableModuleWidget(self)
        representation._build()
        return representation


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The widget that contains a scripted module's panel and passes enter and exit on to the module."""

    def __init__(self, module: qSlicerScriptedLoadableModule) -> None:
        super().__init__()
        self._module, self._python, self._entered = module, None, False
        QtWidgets.QVBoxLayout(self)
        self.setMRMLScene(slicer.mrmlScene)

    isEntered = property(lambda self: self._entered)

    def _build(self) -> None:
        name = self._module.name + "Widget"
        self._python = getattr(sys.modules[self._module.name], name)(self)
        setattr(slicer.modules, name, self._python)
        self._python.setup()

    def self(self) -> object:
        """Return the module's Python widget object."""
        return self._python

    def reload(self) -> None:
        """Build the panel again from the reloaded source."""
        self._build()

    def enter(self) -> None:
        """The user has opened the module."""
        self._entered = True
        self._call("enter")

    def exit(self) -> None:
        """The user has gone to another module."""
        self._entered = False
        self._call("exit")

    def _call(self, name: str) -> None:
        # Slicer calls these from C++, where exceptions are printed and not passed on.
        try:
            getattr(self._python, name, lambda: None)()
        except Exception:
            report_exception(*sys.exc_info())

    def setEditedNode(self, node: object, role: str = "", context: str = "") -> bool:
        """Show a node in the module, as "Edit properties" of the Data module does."""
        edit = getattr(self._python, "setEditedNode", None)
        return bool(edit(node, role, context)) if edit is not None else False


@contextlib.contextmanager
def _no_main_window() -> Iterator[None]:
    """Hide the main window, because modules are created before it at start-up (qSlicerApplicationHelper.txx)."""
    window = slicer.util.mainWindow()
    if window is None:
        yield
        return
    name, window.objectName = window.objectName, ""
    try:
        yield
    finally:
        window.objectName = name


@contextlib.contextmanager
def _scene_observers() -> Iterator[list[int]]:
    """Yield the tags of the observers that the block adds to the scene."""
    scene, tags = slicer.mrmlScene, []
    add = scene.AddObserver

    def add_observer(*arguments: object) -> int:
        tags.append(add(*arguments))
        return tags[-1]

    scene.AddObserver = add_observer
    try:
        yield tags
    finally:
        del scene.AddObserver


class ModuleManager(QtCore.QObject):
    """Registers modules and opens them."""

    _closed = True
    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)
    moduleUnloaded = QtCore.Signal(str)

    def __init__(self, logics: dict[str, object]) -> None:
        super().__init__()
        self._modules: dict[str, _Module] = {}
        self._selected = ""
        slicer.modules = types.ModuleType("slicer.modules")
        sys.modules["slicer.modules"] = slicer.modules
        slicer.moduleNames = types.SimpleNamespace()
        for name, logic in logics.items():
            module = qSlicerLoadableModule(name)
            module._logic = logic
            self._add(module)

    def _add(self, module: _Module) -> None:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)
        self.moduleLoaded.emit(module.name)

    def module(self, name: str) -> object:
        """Return a module by its name; None if there is none."""
        return self._modules.get(name)

    def modulesNames(self) -> list[str]:
        return list(self._modules)

    def load(self, path: str | Path, at_run_time: bool = False) -> qSlicerScriptedLoadableModule:
        """Load a scripted module from its .py file, as the application's module factory does at start-up.

        ``at_run_time``: load it after the start of the application, as the Extension Wizard does; no signal is emitted.
        """
        path = Path(path).resolve()
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        python_module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = python_module
        spec.loader.exec_module(python_module)
        module = qSlicerScriptedLoadableModule(path.stem, str(path))
        module.setTitle(path.stem)
        waiting = connections_of(slicer.app, "startupCompleted()")
        waited = len(waiting)
        with contextlib.nullcontext() if at_run_time else _no_main_window(), _scene_observers() as module._observers:
            instance = getattr(python_module, path.stem)(module)
        setattr(slicer.modules, path.stem + "Instance", instance)
        self._add(module)
        # The module may wait for the signal that the application has started, which was emitted before it was loaded.
        for _, deliver in () if at_run_time else waiting[waited:]:
            deliver()
        return module

    def select(self, name: str) -> None:
        """Leave the open module, if any, and open another ("" opens none)."""
        if self._selected and self._modules[self._selected].widgetRepresentation():
            self._modules[self._selected].widgetRepresentation().exit()
        self._selected = name
        if name:
            self._modules[name].widgetRepresentation().enter()

    def unload(self, name: str) -> None:
        """Unload a module, as the application does when it quits: its ``cleanup`` runs."""
        if self._selected == name:
            self.select("")
        self.moduleAboutToBeUnloaded.emit(name)
        module = self._modules.pop(name)
        for tag in getattr(module, "_observers", ()):
            slicer.mrmlScene.RemoveObserver(tag)
        for attribute in (name.lower(), name + "Widget", name + "Instance"):
            if hasattr(slicer.modules, attribute):
                delattr(slicer.modules, attribute)
        if isinstance(module, qSlicerScriptedLoadableModule) and module._representation is not None:
            representation, module._representation = module._representation, None
            # deleteLater would wait for an event loop, and the observers of the widgets would remain until then.
            shiboken6.delete(representation)
        self.moduleUnloaded.emit(name)


class ModuleSelector:
    """The module selector in the toolbar."""

    def __init__(self, manager: ModuleManager) -> None:
        self._manager = manager

    selectedModule = property(lambda self: self._manager._selected)

    def selectModule(self, name: str) -> None:
        self._manager.select(name)


def install() -> None:
    """Put the classes where ``slicer.util`` looks for them."""
    for cls in (qSlicerLoadableModule, qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, cls.__name__, cls)
