"""The stand-in application, ``slicer.app``."""

from __future__ import annotations

import atexit
import os
import platform
import shutil
import sys
import tempfile
import types
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    # VTK would otherwise choose this itself, but print a warning.
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import slicer
import slicer_core
from PySide6 import QtCore, QtGui, QtWidgets

from . import (
    ctk_path_edit,
    ctk_values,
    ctk_widgets,
    dialogs,
    i18n,
    modules,
    packaging,
    parameter_node,
    pythonqt,
    qmrml_widgets,
    sample_data,
    scripted_module,
    slicer_python,
)
from . import subject_hierarchy as hierarchy
from .file_io import CoreIOManager
from .layout import LayoutManager
from .qt_module import QtModule
from .scene import add_default_nodes, start_scene
from .terminologies import write_terminologies
from .ui_loader import custom_classes


class qSlicerApplication(QtWidgets.QApplication):
    """Slicer's application object, with the methods that scripted modules use."""

    _closed = True
    startupCompleted = QtCore.Signal()

    def __init__(self, terminologies: Path | None) -> None:
        super().__init__(["Slicer"])
        self._folder = tempfile.mkdtemp(prefix="slicer-host-")
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        # The stand-in must not change the user's settings.
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.IniFormat)
        QtCore.QSettings.setPath(QtCore.QSettings.IniFormat, QtCore.QSettings.UserScope, self._folder)
        self.organizationName, self.applicationName, self.applicationVersion = "slicer.org", "Slicer", "5.12.4"
        self._settings = QtCore.QSettings()
        self._make_home()
        share = terminologies or write_terminologies(Path(self._folder) / "home" / "share" / "terminologies")
        self._logic, self._logics = start_scene(share, Path(self.temporaryPath), Path(self.slicerHome))
        self._io = CoreIOManager(self._logics, self._logic)
        self._manager = modules.ModuleManager(self._logics)
        self._kept_timers: list[QtCore.QTimer] = []
        self._extensions = packaging.ExtensionsManagerModel()
        self._testing = False

    def _start(self) -> None:
        self._layout = LayoutManager(self._logic)
        self._window = qSlicerMainWindow(self._manager)
        scene = slicer.mrmlScene
        scene.AddObserver(slicer.vtkMRMLScene.EndCloseEvent, lambda *_: add_default_nodes(scene))
        hierarchy.follow(scene)

    def _single_shot(self, milliseconds: int, receiver: object) -> None:
        """QTimer.singleShot as replaced by slicerqt.py: the timer keeps its callable and exists until Slicer quits."""
        timer = QtCore.QTimer(self)
        timer.setSingleShot(True)
        timer.connect("timeout()", receiver)
        timer.start(milliseconds)
        self._kept_timers.append(timer)

    def _make_home(self) -> None:
        """Create PythonSlicer, which starts the real interpreter as a child process, as in Slicer."""
        folder = Path(self._folder) / "home" / "bin"
        folder.mkdir(parents=True)
        launcher = folder / "PythonSlicer"
        launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n', encoding="utf-8")
        launcher.chmod(0o755)
        self._startup_environment = QtCore.QProcessEnvironment.systemEnvironment()
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        (Path(self._folder) / "tmp").mkdir()

    kept_timers = property(lambda self: self._kept_timers)
    """Not in Slicer: the timers that calls of QTimer.singleShot have left behind."""
    slicerHome = property(lambda self: str(Path(self._folder) / "home"))
    temporaryPath = property(lambda self: str(Path(self._folder) / "tmp"))
    extensionsInstallPath = property(lambda self: str(Path(self._folder) / "home" / "slicer.org" / "Extensions-33000"))
    majorVersion, minorVersion = property(lambda self: 5), property(lambda self: 12)
    revision = repositoryRevision = property(lambda self: "33000")
    mainApplicationName = property(lambda self: "Slicer")
    documentationBaseUrl = property(lambda self: "https://slicer.readthedocs.io/en/latest/")
    arch = property(lambda self: {"x86_64": "amd64", "AMD64": "amd64"}.get(platform.machine(), platform.machine()))

    def mrmlScene(self) -> object:
        return slicer.mrmlScene

    def applicationLogic(self) -> object:
        return self._logic

    def moduleLogic(self, name: str) -> object:
        return self._logics.get(name)

    def moduleManager(self) -> modules.ModuleManager:
        return self._manager

    def coreIOManager(self) -> CoreIOManager:
        return self._io

    ioManager = coreIOManager

    def layoutManager(self) -> LayoutManager:
        return self._layout

    def extensionsManagerModel(self) -> packaging.ExtensionsManagerModel:
        return self._extensions

    def settings(self) -> QtCore.QSettings:
        return self._settings

    userSettings = revisionUserSettings = settings

    def startupEnvironment(self) -> QtCore.QProcessEnvironment:
        return QtCore.QProcessEnvironment(self._startup_environment)

    def environment(self) -> QtCore.QProcessEnvironment:
        return QtCore.QProcessEnvironment.systemEnvironment()

    def testingEnabled(self) -> bool:
        return self._testing

    def pauseRender(self) -> None:
        """Do nothing, because views are rendered only on request."""

    resumeRender = pauseRender

    def setRenderPaused(self, pause: bool) -> None:
        """Do nothing, as in ``pauseRender``."""

    def toSlicerHomeAbsolutePath(self, path: str) -> str:
        return os.path.join(self.slicerHome, path)

    def quit_host(self) -> None:
        """Unload the scripted modules, as Slicer does when it quits."""
        for name in self._manager.modulesNames():
            if isinstance(self._manager.module(name), modules.qSlicerScriptedLoadableModule):
                self._manager.unload(name)
        self.processEvents()


# Assigned after the class statement, because "os" must be the module in the class body.
qSlicerApplication.os = property(
    lambda self: {"Linux": "linux", "Darwin": "macosx", "Windows": "win"}[platform.system()]
)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """The main window, which is never shown: the parent of dialogs, with the module selector and the status bar."""

    _closed = True

    def __init__(self, manager: modules.ModuleManager) -> None:
        super().__init__()
        self.objectName = "qSlicerMainWindow"
        self._selector = modules.ModuleSelector(manager)

    def moduleSelector(self) -> modules.ModuleSelector:
        return self._selector


def _use_fonts() -> None:
    """Use the same font on every computer. Without a font, Qt draws text as empty boxes."""
    import matplotlib  # a dependency of VTK, which contains the font

    for font in (Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuSans*.ttf"):
        QtGui.QFontDatabase.addApplicationFont(str(font))
    QtWidgets.QApplication.setFont(QtGui.QFont("DejaVu Sans", 9))


def _show_qt_message(kind: object, context: object, text: str) -> None:
    if "propagateSizeHints" not in text:  # the offscreen platform prints this for every window
        sys.stderr.write(text + "\n")


def install() -> None:
    """Make ``qt``, ``ctk`` and Slicer's Python modules importable, and patch PySide's classes, once per process."""
    if "qt" in sys.modules:
        return
    pythonqt.install()
    dialogs.install()
    sys.modules["qt"] = QtModule("qt")
    ctk = types.ModuleType("ctk")
    for module in (ctk_path_edit, ctk_values, ctk_widgets):
        for name, value in vars(module).items():
            if name.startswith("ctk"):
                setattr(ctk, name, value)
                custom_classes[name] = value
    sys.modules["ctk"] = ctk
    sys.modules["SampleData"] = sample_data
    sys.modules["vtkITK"] = slicer_core.vtkITK  # a separate module in Slicer
    custom_classes.update(qmrml_widgets.WIDGETS)
    qmrml_widgets.install()
    modules.install()
    real = slicer_python.folder()
    if real is not None:
        slicer_python.install(real)
    else:
        slicer.i18n = sys.modules["slicer.i18n"] = i18n
        slicer.ScriptedLoadableModule = sys.modules["slicer.ScriptedLoadableModule"] = scripted_module
        parameter_node.install()
    packaging.install()
    for name in ("qSlicerSubjectHierarchyPluginHandler", "qSlicerSubjectHierarchyScriptedPlugin"):
        setattr(slicer, name, getattr(hierarchy, name))


def start_application(terminologies: str | Path | None = None) -> qSlicerApplication:
    """Start the stand-in application, or return the running one.

    ``terminologies``: folder with Slicer's terminology files (*.term.json); None for a few built-in codes.
    """
    if getattr(slicer, "app", None) is None:
        QtCore.qInstallMessageHandler(_show_qt_message)
        slicer.app = qSlicerApplication(Path(terminologies) if terminologies else None)
        QtCore.QTimer.singleShot = staticmethod(slicer.app._single_shot)
        _use_fonts()
        slicer.app._start()
        slicer.app.startupCompleted.emit()
    return slicer.app
