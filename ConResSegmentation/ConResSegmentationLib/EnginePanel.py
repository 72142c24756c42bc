"""The section Advanced: device, server, the engine's Python, its installation, and freeing its memory."""

from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from .EngineProcess import EngineError, EngineProcess
from .EnginePython import EngineCheck, EnginePython, Installation, torchProblem
from .Widgets import EditedPath, errorSentence, plain, textSetting

PYTHON_SETTING = "ConResSegmentation/EnginePython"
SERVER_SETTING = "ConResSegmentation/EngineServer"
SERVER_PYTHON_SETTING = "ConResSegmentation/EngineServerPython"
START_SETTING = "ConResSegmentation/StartEngine"


class EnginePanel:
    """The widgets of the engine.

    Where the engine runs and its Python are settings of this computer, kept in the application's settings; the device
    belongs to the scene.

    Args:
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
        self._onInstalling, self._onLine = onInstalling, onLine
        self._check: EngineCheck | None = None
        self._waiting: tuple[Callable[[], None], Callable[[str], None]] | None = None
        self._installation: Installation | None = None
        self._devices: list[dict] = []
        self._device = "auto"
        self._isOutdated = self._isFreed = False
        self._python.program, self._python.server = textSetting(PYTHON_SETTING), textSetting(SERVER_SETTING)
        self._python.serverProgram = textSetting(SERVER_PYTHON_SETTING)
        self._ui.pythonPathEdit.currentPath = self._python.program
        self._ui.serverEdit.text, self._ui.serverPythonEdit.text = self._python.server, self._python.serverProgram
        self._ui.startEngineCheckBox.checked = slicer.util.settingsValue(START_SETTING, True, slicer.util.toBool)
        self._path = EditedPath(self._ui.pythonPathEdit, self._onPlaceEdited)
        for edit in (self._ui.serverEdit, self._ui.serverPythonEdit):
            edit.connect("editingFinished()", self._onPlaceEdited)
        self._ui.startEngineCheckBox.connect(
            "toggled(bool)", lambda isWanted: slicer.app.userSettings().setValue(START_SETTING, isWanted)
        )
        self._ui.freeMemoryButton.connect("clicked(bool)", self._onFreeMemory)
        selector = self._ui.deviceSelector
        selector.connect("activated(int)", lambda index: onDeviceChosen(selector.itemData(index)))
        section.connect("contentsCollapsed(bool)", self._onCollapsed)
        engine.onReady, engine.onLost = self._onReady, self._onLost
        self.selectDevice("auto")
        self._showCheck()

    def selectDevice(self, device: str) -> None:
        """Show a device as the chosen one, even if the engine has not listed it (yet)."""
        self._device = device
        selector = self._ui.deviceSelector
        selector.clear()
        selector.addItem(_("Automatic"), "auto")
        for entry in self._devices:
            selector.addItem(entry["title"], entry["name"])
        if selector.findData(device) < 0:
            selector.addItem(device, device)
        selector.setCurrentIndex(selector.findData(device))

    def start(self) -> None:
        """Called when the module is opened: start the engine in the background, unless this is switched off.

        Nothing is installed and nothing is asked; what is missing is shown in the section.
        """
        isWanted = self._ui.startEngineCheckBox.checked and not self._isFreed
        if isWanted and not self._engine.hasProcess and not self._waiting and not self._installation:
            self._look(lambda: None)

    def leave(self) -> None:
        """Called when the user leaves the module: stop an engine that has not been used."""
        if self._waiting or self._installation:
            return
        self._python.dropCheck()
        self._showCheck()
        if self._engine.isUnused:
            self._engine.stop()

    def whenReady(self, proceed: Callable[[], None], refuse: Callable[[str], None]) -> None:
        """Continue once the engine's Python has the required packages, after offering to install missing ones.

        Args:
            proceed: called when the engine can run; at once if that is known.
            refuse: called otherwise, with a sentence that says why.
        """
        self._path.flush()
        self._onPlaceEdited()
        self._isFreed = False
        if self._isOutdated and not self._engine.isSegmenting:
            self._isOutdated = False
            self._engine.stop()
            if self._check and not self._check.problem:
                self._engine.start()
        if self._engine.isRunning or (self._check and not self._check.problem):
            proceed()
            return
        self._waiting = (proceed, refuse)
        self._look(self._installMissing)

    def stopWaiting(self) -> None:
        """Drop a pending `whenReady`, and stop an installation."""
        self._waiting = None
        if self._installation:
            self._installation.stop()

    def close(self) -> None:
        """The panel is about to be deleted: a pending answer must not start the engine again."""
        self._path.close()
        self._waiting = None
        self._engine.onReady = self._engine.onLost = lambda _message: None
        if self._installation:
            self._installation.stop(wait=True)
        self._python.dropCheck()

    @property
    def isInstalling(self) -> bool:
        return self._installation is not None

    def unfold(self) -> None:
        self._section.collapsed = False

    def _onReady(self, devices: list[dict]) -> None:
        if self._isOutdated:
            return
        self._devices = devices
        self.selectDevice(self._device)
        self._showCheck()

    def _onLost(self, error: EngineError) -> None:
        self._ui.engineStatusLabel.text = errorSentence(error)

    def _onCollapsed(self, collapsed: bool) -> None:
        if collapsed:
            return
        # What was hidden while the section was folded is shown with the rest.
        self._arrange()
        if self._check is None and not self._waiting:
            self._look(lambda: None)

    def _onPlaceEdited(self, *_path) -> None:
        ui, python = self._ui, self._python
        place = (ui.pythonPathEdit.currentPath, ui.serverEdit.text.strip(), ui.serverPythonEdit.text.strip())
        if place == (python.program, python.server, python.serverProgram):
            return
        for setting, value in zip((PYTHON_SETTING, SERVER_SETTING, SERVER_PYTHON_SETTING), place, strict=True):
            slicer.app.userSettings().setValue(setting, value)
        python.program, python.server, python.serverProgram = place
        # A running segmentation is not interrupted; the next one uses the other engine.
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
        self._arrange()

        def onChecked(check: EngineCheck) -> None:
            self._check = check
            self._showCheck()
            if not check.problem and not self._isOutdated:
                self._engine.start()
            then()

        try:
            self._python.check(onChecked)
        except UserError as error:
            onChecked(EngineCheck(problem=errorSentence(error)))

    def _installMissing(self) -> None:
        """Ask, install missing packages, and then continue `whenReady`."""
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
        if "torch" in self._check.missing:
            size = _(
                "PyTorch is a large download: several gigabytes if this computer has an NVIDIA graphics card, "
                "otherwise a few hundred megabytes."
            )
            question = f"{question} {size}"
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
        """Tell the caller of `whenReady` whether the engine can run."""
        if self._waiting is None:
            return
        (proceed, refuse), self._waiting = self._waiting, None
        if problem:
            refuse(problem)
        else:
            proceed()

    def _onFreeMemory(self) -> None:
        if self._engine.isSegmenting:
            text = _("The engine is segmenting; cancel the segmentation first.")
        else:
            self._isFreed = True
            self._engine.stop()
            text = _("The engine was stopped and its memory freed.")
        slicer.util.showStatusMessage(text, 3000)

    def _showCheck(self) -> None:
        if self._check is None:
            text = _("Slicer's own Python.") if self._python.isSlicers and not self._python.server else ""
        elif self._python.server and not self._check.problem:
            text = _("Ready on {server}.") if self._engine.isRunning else _("Connecting to {server}...")
            text = text.format(server=self._python.server)
        else:
            text = self._check.problem or _("Ready: all required packages are installed.")
        self._ui.engineStatusLabel.text = text
        self._arrange()

    def _arrange(self) -> None:
        """Show the widgets that apply to this computer or to a server, and to missing packages."""
        ui, isRemote = self._ui, bool(self._python.server)
        ui.serverPythonLabel.visible = ui.serverPythonEdit.visible = isRemote
        ui.pythonLabel.visible = ui.pythonPathEdit.visible = not isRemote
        ui.installEngineButton.visible = self._check is not None and self._check.canInstall
