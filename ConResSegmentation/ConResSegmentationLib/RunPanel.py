"""Running from the panel: a segmentation, followed and canceled, with progress and log; and the cases of a batch."""

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import Loading, Messages
from .Batch import BatchEntry, BatchRun, fileEntries, sceneEntries
from .EnginePanel import EnginePanel
from .Models import ModelPanel
from .SceneInputs import candidates, group
from .SegmentationRun import RunListener, SegmentationOutcome, SegmentationRun, SegmentationTask
from .Widgets import plain, say, singleShotTimer

_WIDTH_OF_NAMES = 150


class RunPanel:
    """The widgets of a run.

    Args:
        ui: the widgets applyButton, batchButton, cancelButton, progressBar, statusLabel and logTextEdit.
        onIdle: called when a run has ended.
    """

    def __init__(self, ui, onIdle: Callable[[], None]):
        self._onIdle = onIdle
        self._apply, self._cancel, self._batch = ui.applyButton, ui.cancelButton, ui.batchButton
        self._progressBar, self._status, self._log = ui.progressBar, ui.statusLabel, ui.logTextEdit
        self._problem = self._batchProblem = ""
        self._isRunning = False

    @property
    def isRunning(self) -> bool:
        """Whether a segmentation, or the engine's setup, is running."""
        return self._isRunning

    @property
    def log(self) -> str:
        """Everything that was logged."""
        return self._log.toPlainText()

    def setProblem(self, problem: str) -> None:
        """Enable Segment, or show on it why it is not available."""
        self._problem = problem
        self._updateButtons()

    def setBatchProblem(self, problem: str) -> None:
        """The same for the button of the batch."""
        self._batchProblem = problem
        self._updateButtons()

    def begin(self, text: str) -> None:
        """A run starts."""
        self._isRunning = True
        self._updateButtons()
        self._progressBar.visible = True
        self.addToLog(text)
        self.progress(text, 0.0)

    def progress(self, text: str, fraction: float | None) -> None:
        """``fraction`` of the work is done, 0 to 1; None if unknown."""
        self._progressBar.maximum = 0 if fraction is None else 1000
        self._progressBar.value = round(1000 * (fraction or 0))
        say(self._status, text)

    def end(self, text: str, isError: bool = False) -> None:
        """The run has ended; the sentence stays in the panel, and is added to the status bar and the log."""
        self._isRunning = False
        self._updateButtons()
        self._progressBar.visible = False
        self._progressBar.maximum = 1000
        say(self._status, text, isError)
        self.addToLog(text)
        slicer.util.showStatusMessage(text, 5000)
        self._onIdle()

    def clear(self) -> None:
        """Remove the last sentence, because what it names no longer exists."""
        say(self._status, "")

    def addToLog(self, text: str) -> None:
        """Add one or more lines to the log."""
        self._log.appendPlainText(f"{time.strftime('%H:%M:%S')} {text}")

    def _updateButtons(self) -> None:
        busy = _("Wait until the current run has ended, or cancel it.")
        for button, problem, tip in (
            (self._apply, self._problem, _("Segment the chosen volumes.")),
            (self._batch, self._batchProblem, _("Segment all checked cases, one after another.")),
        ):
            button.enabled = not self._isRunning and not problem
            button.toolTip = plain(busy if self._isRunning else problem or tip)
        self._cancel.enabled = self._isRunning


class RunControl(RunListener):
    """What the buttons Segment, Set up the engine and Cancel do.

    Args:
        runPanel: shows the run.
        enginePanel: knows whether the engine can run.
        task: returns what to segment, as chosen in the panel.
        segment: starts it, with a listener.
        onFinished: called when a result is in the scene.
    """

    def __init__(
        self,
        runPanel: RunPanel,
        enginePanel: EnginePanel,
        task: Callable[[], SegmentationTask],
        segment: Callable[[SegmentationTask, RunListener], SegmentationRun],
        onFinished: Callable[[SegmentationOutcome], None],
    ):
        self._panel, self._enginePanel = runPanel, enginePanel
        self._task, self.segment, self._onFinished = task, segment, onFinished
        self._run: SegmentationRun | None = None

    def start(self) -> None:
        """Segment the chosen volumes."""

        def prepare() -> Callable[[], SegmentationRun]:
            task = self._task()
            return lambda: self.segment(task, self)

        self.launch(prepare)

    def launch(self, prepare: Callable[[], Callable[[], object]]) -> None:
        """Start something, once the engine's Python is known to have the required packages.

        Args:
            prepare: called now, with the choices at the click, which may change until the engine's Python is checked
                or set up. It returns what starts the run, which has a method ``cancel`` and tells this object how far
                it is and when it has ended.
        """
        self._panel.begin(_("Looking for the engine"))
        try:
            begin = prepare()
            self._enginePanel.whenReady(lambda: self._ask(begin), self._refuse)
        except Exception:
            self._enginePanel.stopWaiting()
            self._onNotStarted()

    def isFree(self) -> bool:
        """Whether nothing is running; otherwise, tell the user."""
        if self._panel.isRunning:
            slicer.util.errorDisplay(_("Wait until the current run has ended, or cancel it."))
        return not self._panel.isRunning

    def setUp(self) -> None:
        """Set up the engine without segmenting."""
        if not self._panel.isRunning:
            self._panel.begin(_("Setting up the engine"))
            self._enginePanel.whenReady(lambda: self._panel.end(_("The engine is ready.")), self._refuse)

    def cancel(self) -> None:
        """Stop the current run, or one that is about to start."""
        self._enginePanel.stopWaiting()
        if self._run:
            self._run.cancel()
        elif self._panel.isRunning:
            self.onCancelled()

    def onInstallationLine(self, line: str) -> None:
        """Show what an installation prints."""
        self._panel.addToLog(line)
        if self._panel.isRunning and not self._run:
            self._panel.progress(_("Installing: {line}").format(line=line.strip()[:90]), None)

    def log(self, text: str) -> None:
        """Add lines to the log."""
        self._panel.addToLog(text)

    def _ask(self, begin: Callable[[], object]) -> None:
        try:
            self._run = begin()
        except UserError as error:
            self.onFailed(Messages.sentence(error), "")
        except Exception:
            self._onNotStarted()

    def _onNotStarted(self) -> None:
        self.onFailed(_("The segmentation could not be started; see the log."), traceback.format_exc())

    def _refuse(self, problem: str) -> None:
        self._enginePanel.unfold()
        self.onFailed(problem, "")

    def onProgress(self, text: str, fraction: float | None) -> None:
        self._panel.progress(text, fraction)

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        self._run = None
        self._onFinished(outcome)
        # Warnings get lines of their own, lest they be overlooked behind the volumes.
        self._panel.end("\n".join([Messages.finished(outcome.report, outcome.seconds), *outcome.notes]))
        self._panel.addToLog(Messages.logOf(outcome.report))

    def onFailed(self, sentence: str, details: str) -> None:
        self._run = None
        self._panel.end(sentence, isError=True)
        if details:
            self._panel.addToLog(details)
            logging.error("%s\n%s", sentence, details)

    def onCancelled(self) -> None:
        self.onEnded(_("Canceled."))

    def onEnded(self, text: str, isError: bool = False) -> None:
        """A run has ended, with a sentence for the user."""
        self._run = None
        self._panel.end(text, isError)


class BatchPanel:
    """The widgets of a batch.

    Args:
        section: the collapsible button that contains them.
        modelPanel: the chosen model.
        runPanel: shows why the button is not available.
        control: runs the batch.
        task: returns the choices for cases with the given titles, without volumes.
    """

    def __init__(
        self,
        section,
        modelPanel: ModelPanel,
        runPanel: RunPanel,
        control: RunControl,
        task: Callable[[list[str]], SegmentationTask],
    ):
        self._section, self._ui = section, slicer.util.childWidgetVariables(section)
        self._modelPanel, self._runPanel, self._control = modelPanel, runPanel, control
        self._task = task
        self._entries: list[BatchEntry] = []
        self._checked: set[str] = set()
        self._texts: dict[str, str] = {}
        # Images found in each folder, including single files, and whether each is a sequence.
        self._added: dict[Path, dict[Path, bool]] = {}
        self._search: Iterator[tuple[Path, Path, bool]] = iter(())
        self._new: dict[Path, dict[Path, bool]] = {}
        self._sentenceIfNone = ""
        self._isFilling = self._isRunning = False
        table = self._ui.batchTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Case"), _("Result")])
        table.horizontalHeader().setStretchLastSection(True)
        table.verticalHeader().visible = False
        table.setColumnWidth(0, _WIDTH_OF_NAMES)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)
        menu = qt.QMenu(self._ui.addBatchButton)
        for title, ask in ((_("A folder..."), self._addFolder), (_("Image files..."), self._addFiles)):
            menu.addAction(title).connect("triggered(bool)", lambda _checked, ask=ask: ask())
        self._ui.addBatchButton.setMenu(menu)
        self._ui.batchButton.connect("clicked(bool)", lambda _checked: control.launch(self._prepare))
        self._ui.checkAllButton.connect("clicked(bool)", lambda _checked: self._checkAll())
        self._timer = singleShotTimer(section, self.refresh)
        self._searchTimer = singleShotTimer(section, self._searchOn)
        section.connect("contentsCollapsed(bool)", lambda _collapsed: self.refresh())

    @property
    def chosen(self) -> list[BatchEntry]:
        """The checked entries."""
        return [entry for entry in self._entries if entry.key in self._checked]

    @property
    def folder(self) -> Path | None:
        """Where results are to be saved; None for the scene."""
        text = self._ui.batchFolderPathEdit.currentPath.strip()
        return Path(text) if text else None

    def refreshSoon(self) -> None:
        """Refresh the list once the scene has settled."""
        self._timer.start()

    def refresh(self) -> None:
        """Refresh the list; check marks and status texts are kept."""
        if not self._section.collapsed and not self._isRunning:
            self._fill()
        self._onChanged()

    def _fill(self) -> None:
        description = self._modelPanel.description
        inputs = description.inputs if description else ()
        self._entries = sceneEntries(inputs, candidates(), group) if inputs else []
        for root, found in self._added.items() if inputs else ():
            self._entries += fileEntries(inputs, found, root)
        table, self._isFilling = self._ui.batchTable, True
        table.setRowCount(len(self._entries))
        for row, entry in enumerate(self._entries):
            item = qt.QTableWidgetItem(entry.title)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if entry.key in self._checked else qt.Qt.Unchecked)
            item.setToolTip(plain(entry.title))
            table.setItem(row, 0, item)
            self._show(row, entry.key)
        self._isFilling = False

    def _prepare(self) -> Callable[[], BatchRun]:
        """Prepare a run of the checked entries with the current choices; the list stays unchanged until it ends."""
        entries, folder = self.chosen, self.folder
        task = self._task([entry.title for entry in entries])
        self._isRunning = True
        for entry in entries:
            self.setText(entry.key, _("Waiting"))
        return lambda: BatchRun(entries, task, self._control.segment, self._control, self.setText, folder)

    def end(self) -> None:
        """The run has ended, perhaps early."""
        self._isRunning = False
        for key in [key for key, text in self._texts.items() if text == _("Waiting")]:
            self.setText(key, "")
        self.refresh()

    def setText(self, key: str, text: str) -> None:
        """Show the status of an entry."""
        self._texts[key] = text
        for row, entry in enumerate(self._entries):
            if entry.key == key:
                self._show(row, key)

    def _show(self, row: int, key: str) -> None:
        text, wasFilling = self._texts.get(key, ""), self._isFilling
        self._isFilling = True
        item = qt.QTableWidgetItem(text)
        item.setFlags(qt.Qt.ItemIsEnabled)
        item.setToolTip(plain(text))
        self._ui.batchTable.setItem(row, 1, item)
        self._isFilling = wasFilling

    def _onChanged(self) -> None:
        """Called when another model or other cases are chosen."""
        problem = self._modelPanel.problem
        if not problem and not self.chosen:
            problem = _("Check at least one case.")
        self._runPanel.setBatchProblem(problem)

    def _onItemChanged(self, item) -> None:
        if self._isFilling or item.column() != 0:
            return
        key = self._entries[item.row()].key
        (self._checked.add if item.checkState() == qt.Qt.Checked else self._checked.discard)(key)
        self._onChanged()

    def _checkAll(self) -> None:
        """Check all entries, or none if all are checked."""
        keys = {entry.key for entry in self._entries}
        self._checked = set() if keys <= self._checked else keys
        self.refresh()

    def _addFolder(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Add a folder of images"))
        if folder:
            root, sentence = Path(folder), _("There are no images in {folder}.").format(folder=folder)
            self._begin(((root, path, hasFrames) for path, hasFrames in Loading.imagesIn(root)), sentence)

    def _addFiles(self) -> None:
        paths = [Path(path) for path in Loading.askForImages()]
        self._begin((path.parent, path, Loading.isSeries(path)) for path in paths)

    def _begin(self, search: Iterator[tuple[Path, Path, bool]], sentenceIfNone: str = "") -> None:
        """Look through images, given as (folder, file, whether it is a sequence), and list them."""
        self._search, self._new, self._sentenceIfNone = search, {}, sentenceIfNone
        self._ui.addBatchButton.enabled = False
        self._searchOn()

    def _searchOn(self) -> None:
        """Look at one more file, because a folder may have thousands. After the last one, list them all as checked."""
        found = next(self._search, None)
        if found:
            root, path, hasFrames = found
            self._new.setdefault(root, {})[path] = hasFrames
            self._searchTimer.start()
            return
        self._ui.addBatchButton.enabled = True
        if not self._new and self._sentenceIfNone:
            slicer.util.errorDisplay(plain(self._sentenceIfNone))
        known = {entry.key for entry in self._entries}
        for root, images in self._new.items():
            self._added[root] = self._added.get(root, {}) | images
        self.refresh()
        self._checked |= {entry.key for entry in self._entries} - known
        self.refresh()
