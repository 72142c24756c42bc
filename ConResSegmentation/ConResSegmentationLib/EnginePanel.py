"""Fields for a path (ctkPathLineEdit), which tell of fewer changes by themselves than a panel needs to hear of.

The sentence below the widgets of a section.

The engine's Python and its devices: what is there, what is missing, and getting it after asking.
"""

import logging
from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import Messages
from .EngineProcess import EngineObserver, EngineProcess
from .EnginePython import EngineCheck, EnginePython


def whenPathChanges(edit, react: Callable[[str], None]) -> None:
    """Call a function with the new text at every change of a path field.

    The field's own signal, ``currentPathChanged``, leaves out a path that is emptied, and one whose extension is not
    among the field's: what was chosen before would stay in use.

    Args:
        edit: a ctkPathLineEdit that shows the paths used before, as it does unless told otherwise.
        react: called with the text, whatever it is.
    """
    edit.comboBox().lineEdit().connect("textChanged(QString)", react)


_ERROR_STYLE = "color: #c0392b; font-weight: bold"


def say(label, text: str, isError: bool = False) -> None:
    """Show a sentence, or none: an empty label takes no room."""
    label.text = text
    label.styleSheet = _ERROR_STYLE if isError else ""
    label.visible = bool(text)


PYTHON_SETTING = "ConResSegmentation/EnginePython"


class EnginePanel(EngineObserver):
    """The widgets of the engine.

    The Python is a setting of this computer, kept in the application's settings; the device belongs to the scene.

    Args:
        ui: the module's widgets by name.
        enginePython: the Python that runs the engine.
        engine: the engine's process.
        onDeviceChosen: called with the name of a device that the user has chosen.
    """

    def __init__(self, ui, enginePython: EnginePython, engine: EngineProcess, onDeviceChosen: Callable[[str], None]):
        self._ui, self._python, self._engine, self._onDeviceChosen = ui, enginePython, engine, onDeviceChosen
        self._check: EngineCheck | None = None
        self._waiting: tuple[Callable[[], None], Callable[[str], None]] | None = None
        self._devices: list[dict] = []
        self._device = "auto"
        self._isOutdated = False
        self._python.program = slicer.util.settingsValue(PYTHON_SETTING, "")
        ui.pythonPathEdit.currentPath = self._python.program
        whenPathChanges(ui.pythonPathEdit, self._onPythonChanged)
        ui.installEngineButton.connect("clicked(bool)", lambda _checked: self._install())
        ui.freeMemoryButton.connect("clicked(bool)", self._onFreeMemory)
        ui.deviceSelector.connect("activated(int)", self._onDeviceActivated)
        ui.advancedCollapsibleButton.connect("contentsCollapsed(bool)", self._onCollapsed)
        self.selectDevice("auto")
        self._showCheck()

    def selectDevice(self, device: str) -> None:
        """Show a device as the chosen one, also when the engine has not listed it (yet)."""
        self._device = device
        names = [self._name(number) for number in range(len(self._devices) + 1)]
        selector = self._ui.deviceSelector
        selector.clear()
        selector.addItem(_("Automatic"))
        for entry in self._devices:
            selector.addItem(entry["title"])
        if device not in names:
            selector.addItem(device)
        selector.setCurrentIndex(names.index(device) if device in names else selector.count - 1)

    def whenReady(self, proceed: Callable[[], None], refuse: Callable[[str], None]) -> None:
        """Go on when the engine's Python has all it needs, after offering to install what is missing.

        Args:
            proceed: called when the engine can run; at once where that is known.
            refuse: called otherwise, with the sentence that says why.
        """
        if self._isOutdated and not self._engine.isSegmenting:
            self._isOutdated = False
            self._engine.stop()
            if self._check and not self._check.problem:
                self._engine.listDevices(self)
        if self._engine.isRunning or (self._check and not self._check.problem):
            proceed()
            return
        self._waiting = (proceed, refuse)
        self._look(self._offerMissing)

    def stopWaiting(self) -> None:
        """Forget who waits in `whenReady`."""
        self._waiting = None

    def close(self) -> None:
        """The panel goes: an answer that is still under way must not start the engine again."""
        self.stopWaiting()
        self._python.dropCheck()

    def onDevices(self, devices: list[dict]) -> None:
        """The engine has listed its devices."""
        if self._isOutdated:
            return
        self._devices = [entry for entry in devices if entry["name"] != "auto"]
        self.selectDevice(self._device)

    def _name(self, index: int) -> str:
        return "auto" if index == 0 else self._devices[index - 1]["name"]

    def _onDeviceActivated(self, index: int) -> None:
        if index <= len(self._devices):
            self._onDeviceChosen(self._name(index))

    def _onCollapsed(self, collapsed: bool) -> None:
        if not collapsed and self._check is None:
            self._look(self._offerMissing)

    def _onPythonChanged(self, path: str) -> None:
        if path == self._python.program:
            return
        slicer.app.userSettings().setValue(PYTHON_SETTING, path)
        self._python.program = path
        # Every letter that is typed comes here, and is no reason to stop what is computed; the next run is another's.
        self._isOutdated = self._engine.isSegmenting
        if not self._isOutdated:
            self._engine.stop()
        self._devices = []
        self.selectDevice(self._device)
        self._check = None
        self._look(self._offerMissing)

    def _look(self, then: Callable[[], None]) -> None:
        """Look at what the engine's Python has, and go on with ``then``."""
        self._ui.engineStatusLabel.text = _("Looking for what the engine needs...")

        def onChecked(check: EngineCheck) -> None:
            self._check = check
            self._showCheck()
            if not check.problem and not self._isOutdated:
                self._engine.listDevices(self)
            then()

        try:
            self._python.check(onChecked)
        except UserError as error:
            onChecked(EngineCheck(problem=Messages.sentence(error)))

    def _offerMissing(self) -> None:
        if self._waiting is not None and self._check.canInstall:
            self._install()
        else:
            self._answer()

    def _answer(self) -> None:
        """Tell who waits whether the engine can run."""
        if self._waiting is None:
            return
        (proceed, refuse), self._waiting = self._waiting, None
        if self._check.problem:
            refuse(self._check.problem)
        else:
            proceed()

    def _onFreeMemory(self) -> None:
        if self._engine.isSegmenting:
            text = _("The engine is segmenting; cancel that first.")
        else:
            self._engine.stop()
            text = _("The engine has ended, and what it held is free.")
        slicer.util.showStatusMessage(text, 3000)

    def _install(self) -> None:
        """Install what is missing into Slicer's Python, which asks, and look again, whatever has become of it."""
        try:
            with slicer.util.tryWithErrorDisplay(_("The installation failed.")):
                self._python.install(self._check.missing)
        except Exception:
            # The display raises anew what it has shown, and who waits would never get an answer.
            logging.exception("The installation failed.")
        self._look(self._answer)

    def _showCheck(self) -> None:
        if self._check is None:
            text = _("Slicer's own Python.") if self._python.isSlicers else ""
        else:
            text = self._check.problem or _("Has all that the engine needs.")
        self._ui.engineStatusLabel.text = text
        self._ui.installEngineButton.visible = self._check is not None and self._check.canInstall
