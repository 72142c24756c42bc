"""The widgets of a batch: the list of its cases, and their results."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError

from . import Loading
from .Batch import BatchEntry, BatchRun, fileEntries, sceneEntries
from .Models import ModelPanel
from .RunPanel import RunPanel
from .SegmentationRun import SegmentationTask
from .Widgets import WorkInSteps, pathIn, showError, singleShotTimer, textItem

_WIDTH_OF_NAMES = 150
# The folders of label maps in data sets for training (Medical Segmentation Decathlon, nnU-Net), in lowercase.
_LABEL_FOLDERS = ("labelstr", "labelsts")
# In a tooltip; the frames of a sequence may have one each.
_MOST_WARNINGS = 10


class BatchPanel:
    """The widgets of a batch.

    Args:
        runPanel: runs the batch, and shows why that is not possible.
        task: returns the choices for cases with the given titles, without volumes.
    """

    def __init__(
        self, section, modelPanel: ModelPanel, runPanel: RunPanel, task: Callable[[list[str]], SegmentationTask]
    ):
        self._section, self._ui = section, slicer.util.childWidgetVariables(section)
        self._modelPanel, self._runPanel, self._task = modelPanel, runPanel, task
        self._entries: list[BatchEntry] = []
        self._checked: set[Path | tuple] = set()
        # Status and warnings by model and entry: what another model has found in a case says nothing about this one.
        self._texts: dict[tuple[str, Path | tuple], tuple[str, Sequence[str]]] = {}
        # The model that the texts in the list belong to.
        self._model = ""
        # Images found in each folder, including single files, and whether each is a sequence.
        self._added: dict[Path, dict[Path, bool]] = {}
        self.isRunning = self._hasNewFiles = False
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
        menu.addSeparator()
        self._removeAction = menu.addAction(_("Remove all files from the list"))
        self._removeAction.connect("triggered(bool)", lambda _checked: self._removeFiles())
        self._removeAction.enabled = False
        self._ui.addBatchButton.setMenu(menu)
        self._ui.batchButton.connect("clicked(bool)", lambda _checked: runPanel.launch(self._prepare))
        self._ui.checkAllButton.connect("clicked(bool)", lambda _checked: self._checkAll())
        self._timer = singleShotTimer(section, self.refresh)
        self._search = WorkInSteps(section)
        section.connect("contentsCollapsed(bool)", lambda _collapsed: self.refresh())

    @property
    def chosen(self) -> list[BatchEntry]:
        return [entry for entry in self._entries if entry.key in self._checked]

    @property
    def folder(self) -> Path | None:
        """Where results are to be saved; None for the scene."""
        return pathIn(self._ui.batchFolderPathEdit)

    def refreshSoon(self) -> None:
        self._timer.start()

    def refresh(self) -> None:
        """Refresh the list; check marks and status texts are kept."""
        if not self._section.collapsed and not self.isRunning:
            self._fill()
        self._onChanged()

    def forgetScene(self) -> None:
        """The scene was closed: the next one gives the same IDs to other volumes."""
        self._keep(lambda nodeID: False)
        # A batch that only waited for an installation does not follow; the installation continues.
        self.end()

    def _keep(self, isKept: Callable[[str], object]) -> None:
        """Forget the check marks and texts of entries with a node whose ID is not to be kept."""

        def isCurrent(key: Path | tuple) -> bool:
            return isinstance(key, Path) or all(map(isKept, key))

        self._checked = set(filter(isCurrent, self._checked))
        self._texts = {place: text for place, text in self._texts.items() if isCurrent(place[1])}

    def _fill(self) -> None:
        self._keep(slicer.mrmlScene.GetNodeByID)
        known = {entry.key for entry in self._entries}
        description = self._modelPanel.description
        inputs = description.inputs if description else ()
        self._model = self._modelPanel.nameAndVersion
        self._entries = sceneEntries(inputs) if inputs else []
        for root, found in self._added.items() if inputs else ():
            self._entries += fileEntries(inputs, found, root)
        if self._hasNewFiles and inputs:
            new = {entry.key for entry in self._entries if isinstance(entry.key, Path)} - known
            self._checked |= {key for key in new if not _whyUnchecked(key)}
            self._hasNewFiles = False
        self._removeAction.enabled = bool(self._added)
        table = self._ui.batchTable
        table.blockSignals(True)
        table.setRowCount(len(self._entries))
        for row, entry in enumerate(self._entries):
            item = textItem(entry.title, "\n".join(filter(None, (entry.title, _whyUnchecked(entry.key)))))
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if entry.key in self._checked else qt.Qt.Unchecked)
            table.setItem(row, 0, item)
            self._show(row, entry.key)
        table.blockSignals(False)

    def _prepare(self) -> Callable[[], BatchRun]:
        """Prepare a run of the checked entries with the current choices; the list stays unchanged until it ends.

        Raises:
            UserError: ``batch-folder-missing``, or the ROI cannot be used.
        """
        entries, folder = self.chosen, self.folder
        if folder and not os.path.isdir(folder):
            raise UserError("batch-folder-missing", path=str(folder))
        task = self._task([entry.title for entry in entries])
        self.isRunning = True
        for entry in entries:
            self.setText(entry.key, _("Waiting"))
        return lambda: BatchRun(entries, task, self._runPanel.segment, self._runPanel, self.setText, folder)

    def end(self) -> None:
        """The run has ended, perhaps early."""
        self.isRunning = False
        for _model, key in [place for place, (text, _warnings) in self._texts.items() if text == _("Waiting")]:
            self.setText(key, "")
        self.refresh()

    def setText(self, key: Path | tuple, text: str, warnings: Sequence[str] = ()) -> None:
        """Show the status of an entry, marked if there are warnings, which are in the tooltip."""
        self._texts[self._model, key] = text, tuple(dict.fromkeys(warnings))
        for row, entry in enumerate(self._entries):
            if entry.key == key:
                self._show(row, key)

    def _show(self, row: int, key: Path | tuple) -> None:
        text, warnings = self._texts.get((self._model, key), ("", ()))
        shown, more = warnings[:_MOST_WARNINGS], "..." if len(warnings) > _MOST_WARNINGS else ""
        tip = "\n".join(filter(None, (*shown, more, text))) or _whyUnchecked(key)
        item = textItem(f"\N{WARNING SIGN} {text}" if warnings else text, tip)
        item.setFlags(qt.Qt.ItemIsEnabled)
        self._ui.batchTable.setItem(row, 1, item)

    def _onChanged(self) -> None:
        """Called when another model or other cases are chosen."""
        problem = self._modelPanel.problem
        if not problem and not self.chosen:
            problem = _("Check at least one case.")
        self._runPanel.setBatchProblem(problem)

    def _onItemChanged(self, item) -> None:
        if item.column() != 0:
            return
        key = self._entries[item.row()].key
        (self._checked.add if item.checkState() == qt.Qt.Checked else self._checked.discard)(key)
        self._onChanged()

    def _checkAll(self) -> None:
        """Check all entries except likely label maps, unless there are no others; if they are checked, uncheck all."""
        keys = {entry.key for entry in self._entries}
        wanted = {key for key in keys if not _whyUnchecked(key)} or keys
        self._checked = set() if wanted <= self._checked else self._checked | wanted
        self.refresh()

    def _addFolder(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Add a folder of images"))
        if folder:
            root, sentence = Path(folder), _("There are no images in {folder}.").format(folder=folder)
            images = ((root, path, hasFrames) for path, hasFrames in Loading.imagesIn(root))
            self._add(images, sentence)

    def _addFiles(self) -> None:
        paths = [Path(path) for path in Loading.askForImages()]
        self._add((path.parent, path, Loading.isSeries(path)) for path in paths)

    def _removeFiles(self) -> None:
        """Clear the added entries from the list; the files and the scene stay unchanged."""
        self._added = {}
        self._checked = {key for key in self._checked if not isinstance(key, Path)}
        self.refresh()

    def _add(self, found: Iterator[tuple[Path, Path, bool]], sentenceIfNone: str = "") -> None:
        """List images, given as (folder, file, whether it is a sequence); checked, except for likely label maps.

        A folder may have thousands.
        """
        self._ui.addBatchButton.enabled = False
        self._search.start(self._addInSteps(found, sentenceIfNone))

    def _addInSteps(self, found: Iterator[tuple[Path, Path, bool]], sentenceIfNone: str) -> Iterator[None]:
        new: dict[Path, dict[Path, bool]] = {}
        for root, path, hasFrames in found:
            new.setdefault(root, {})[path] = hasFrames
            yield
        self._ui.addBatchButton.enabled = True
        if not new and sentenceIfNone:
            showError(sentenceIfNone)
        for root, images in new.items():
            self._added[root] = self._added.get(root, {}) | images
        # During a run the list stays unchanged until the run has ended.
        self._hasNewFiles |= bool(new)
        self.refresh()


def _whyUnchecked(key: Path | tuple) -> str:
    """Why an added file or folder is listed unchecked, as a sentence; empty if it is listed checked."""
    for folder in (key, key.parent) if isinstance(key, Path) else ():
        if folder.name.casefold() in _LABEL_FOLDERS:
            sentence = _("Listed unchecked, because folders named {folder} usually contain label maps.")
            return sentence.format(folder=folder.name)
    return ""
