"""The section Advanced: device, the engine's Python, setting it up, and freeing its memory."""

from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import Messages
from .EngineProcess import EngineObserver, EngineProcess
from .EnginePython import EngineCheck, EnginePython, Installation, torchProblem
from .Widgets import EditedPath, plain

PYTHON_SETTING = "ConResSegmentation/EnginePython"


class EnginePanel(EngineObserver):
    """The widgets of the engine.

    The Python is a setting of this computer, kept in the application's settings; the device belongs to the scene.

    Args:
        section: the collapsible button that contains the widgets.
        enginePython: the Python that runs the engine.
        engine: the engine process.
        onDeviceChosen: called with the name of a device that the user has chosen.
        onInstalling: called with True when an installation starts and with False when it has ended.
        onLine: called with each line that an installation prints.
    """

    def __init__(
        self,
        section,
        enginePython: EnginePython,
        engine: EngineProcess,
        onDeviceChosen: Callable[[str], None],
        onInstalling: Callable[[bool], None],
        onLine: Callable[[str], None],
    ):
        self._section, self._ui = section, slicer.util.childWidgetVariables(section)
        self._python, self._engine = enginePython, engine
        self._onDeviceChosen, self._onInstalling, self._onLine = onDeviceChosen, onInstalling, onLine
        self._check: EngineCheck | None = None
        self._waiting: tuple[Callable[[], None], Callable[[str], None]] | None = None
        self._installation: Installation | None = None
        self._devices: list[dict] = []
        self._device = "auto"
        self._isOutdated = False
        self._python.program = slicer.util.settingsValue(PYTHON_SETTING, "")
        self._ui.pythonPathEdit.currentPath = self._python.program
        self._path = EditedPath(self._ui.pythonPathEdit, self._onPythonChanged)
        self._ui.freeMemoryButton.connect("clicked(bool)", self._onFreeMemory)
        self._ui.deviceSelector.connect("activated(int)", self._onDeviceActivated)
        section.connect("contentsCollapsed(bool)", self._onCollapsed)
        self.selectDevice("auto")
        self._showCheck()

    def selectDevice(self, device: str) -> None:
        """Show a device as the chosen one, even if the engine has not listed it (yet)."""
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
        """Continue once the engine's Python has the required packages, after offering to install missing ones.

        Args:
            proceed: called when the engine can run; at once if that is known.
            refuse: called otherwise, with a sentence that says why.
        """
        self._path.flush()
        if self._isOutdated and not self._engine.isSegmenting:
            self._isOutdated = False
            self._engine.stop()
            if self._check and not self._check.problem:
                self._engine.listDevices(self)
        if self._engine.isRunning or (self._check and not self._check.problem):
            proceed()
            return
        self._waiting = (proceed, refuse)
        self._look(self._installMissing)

    def stopWaiting(self) -> None:
        """Forget who waits in `whenReady`, and stop an installation."""
        self._waiting = None
        if self._installation:
            self._installation.stop()

    def close(self) -> None:
        """The panel is about to be deleted: a pending answer must not start the engine again."""
        self._waiting = None
        if self._installation:
            self._installation.stop(wait=True)
        self._python.dropCheck()

    def unfold(self) -> None:
        """Show the section."""
        self._section.collapsed = False

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
        if not collapsed and self._check is None and not self._waiting:
            self._look(lambda: None)

    def _onPythonChanged(self, path: str) -> None:
        if path == self._python.program:
            return
        slicer.app.userSettings().setValue(PYTHON_SETTING, path)
        self._python.program = path
        # A running segmentation is not interrupted; the next one uses the other Python.
        self._isOutdated = self._engine.isSegmenting
        if not self._isOutdated:
            self._engine.stop()
        self._devices = []
        self.selectDevice(self._device)
        self._check = None
        self._look(self._installMissing)

    def _look(self, then: Callable[[], None]) -> None:
        """Check which packages the engine's Python has, and continue with ``then``."""
        self._ui.engineStatusLabel.text = _("Checking the engine's Python...")

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

    def _installMissing(self) -> None:
        """Install what is missing for the one who waits, after asking."""
        if self._installation:
            # It was canceled and is about to end, and will answer.
            return
        if self._waiting is None or not self._check.canInstall:
            self._answer(self._check.problem)
            return
        problem = torchProblem() if "torch" in self._check.missing else ""
        if problem:
            self._answer(problem)
            return
        installation = Installation(self._python, self._check.missing, self._onLine, self._onInstalled)
        question = _("Install {requirements} into Slicer's Python? Its other packages are not changed.")
        question = question.format(requirements=", ".join(installation.requirements))
        if slicer.util.confirmOkCancelDisplay(plain(question)):
            self._installation = installation
            self._setInstalling(True)
            installation.start()
        else:
            self._answer(self._check.problem)

    def _onInstalled(self, problem: str) -> None:
        self._installation = None
        self._setInstalling(False)
        self._look(lambda: self._answer(problem or self._check.problem))

    def _setInstalling(self, isInstalling: bool) -> None:
        for widget in (self._ui.pythonPathEdit, self._ui.installEngineButton, self._ui.freeMemoryButton):
            widget.enabled = not isInstalling
        if isInstalling:
            self._ui.engineStatusLabel.text = _("Installing packages; see the log for details.")
        self._onInstalling(isInstalling)

    def _answer(self, problem: str) -> None:
        """Tell the one who waits whether the engine can run."""
        if self._waiting is None:
            return
        (proceed, refuse), self._waiting = self._waiting, None
        if problem:
            refuse(problem)
        else:
            proceed()

    def _onFreeMemory(self) -> None:
        if self._engine.isSegmenting:
            text = _("The engine is segmenting; cancel that first.")
        else:
            self._engine.stop()
            text = _("The engine was stopped and its memory freed.")
        slicer.util.showStatusMessage(text, 3000)

    def _showCheck(self) -> None:
        if self._check is None:
            text = _("Slicer's own Python.") if self._python.isSlicers else ""
        else:
            text = self._check.problem or _("Ready: all required packages are installed.")
        self._ui.engineStatusLabel.text = text
        self._ui.installEngineButton.visible = self._check is not None and self._check.canInstall
