"""Helpers for the panels of both modules: sentences and errors, paths, work in steps, and keeping a panel narrow."""

import html
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate

from conresnet import messages
from conresnet.errors import UserError

# On a light and on a dark background.
_ERROR_COLORS = "#b03024", "#ff8a80"
_HINT_COLORS = "#8a5a00", "#ffb74d"
_MIDDLE_LIGHTNESS = 128
_MILLISECONDS_AFTER_LAST_KEY = 500
_FEWEST_LETTERS = 12


def describeModule(parent, title: str, text: str) -> None:
    """What Slicer shows about a module; the help ``text`` names ``{documentation}``, a link."""
    parent.title = title
    parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
    parent.contributors = ["ConResNet for 3D Slicer contributors"]
    link = '<a href="https://github.com/ConResNet/SlicerConResNet">{}</a>'.format(_("documentation"))
    parent.helpText = text.format(documentation=link)
    parent.acknowledgementText = _(
        "The network was published by J. Zhang, Y. Xie, Y. Wang and Y. Xia: Inter-Slice Context Residual Learning "
        "for 3D Medical Image Segmentation, IEEE Transactions on Medical Imaging 40(2), 2021."
    )


def sayResearchUse(label) -> None:
    """Show the last line of both panels."""
    label.text = _("For research use only. Not for diagnosis.")


def whenStarted(react: Callable[[], None]) -> None:
    """Call a function once Slicer has started, or immediately if Slicer is already running.

    For the constructor of a module: at start-up, Slicer creates modules before its main window.
    """
    if slicer.util.mainWindow() is None:
        slicer.app.connect("startupCompleted()", react)
    else:
        react()


def forgetModules(*packages: str) -> None:
    """Unload packages so that the next import loads them again, for when a module is reloaded.

    The classes of errors stay: the other module, which is not reloaded, would no longer catch the new ones.
    """
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.split(".")[0] in packages and name != "conresnet.errors"]:
        del sys.modules[name]


def volumeOf(segmentationNode):
    """The volume that defines a segmentation's geometry; None if it was removed."""
    return segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())


def editSegmentation(segmentationNode, otherVolumeNode) -> None:
    """Open a segmentation in the Segment Editor, on the volume it was made from, or else on another one, if any."""
    volumeNode = volumeOf(segmentationNode) or otherVolumeNode
    slicer.util.selectModule("SegmentEditor")
    editor = slicer.util.getModuleWidget("SegmentEditor").editor
    editor.setSegmentationNode(segmentationNode)
    if volumeNode is not None:
        editor.setSourceVolumeNode(volumeNode)


def notStarted() -> str:
    """The sentence for an internal error that keeps a segmentation from starting."""
    return _("The segmentation could not be started; see the log.")


def errorSentence(error) -> str:
    """The translated sentence for an error with ``code``, ``message`` and ``values``; in English for unknown codes.

    It names the other computer if the error occurred there, since it is that computer's disk that is full.
    """
    try:
        text = messages.sentence(error.code, error.values, translate)
    except (KeyError, IndexError, ValueError):
        # An engine of another version may send other codes or values.
        text = error.message
    server = getattr(error, "server", "")
    return f"{server}: {text}" if server else text


def showError(what: str | UserError) -> None:
    """Show a sentence, or that of an error, in a message box."""
    slicer.util.errorDisplay(plain(what if isinstance(what, str) else errorSentence(what)))


def say(label, what: str | UserError, isError: bool = False) -> None:
    """Show a sentence, or that of an error, in a label, or hide the label if there is none."""
    text = what if isinstance(what, str) else errorSentence(what)
    isError = isError or not isinstance(what, str)
    _show(label, text, f"color: {_readable(label, _ERROR_COLORS)}; font-weight: bold" if isError else "")


def hint(label, text: str) -> None:
    """Show a warning in a label, or hide the label if there is none."""
    _show(label, text, f"color: {_readable(label, _HINT_COLORS)}")


def _show(label, text: str, style: str) -> None:
    label.text = text
    label.toolTip = plain(text)
    label.styleSheet = style
    label.visible = bool(text)


def _readable(label, colors: tuple[str, str]) -> str:
    """The color of two that can be read on the background of a label, which is dark if Slicer's style is."""
    isDark = label.palette.color(qt.QPalette.Window).lightness() < _MIDDLE_LIGHTNESS
    return colors[isDark]


def offer(button, problem: str, tip: str) -> None:
    """Enable a button if there is no problem; its tooltip says what it does, or why it is not available."""
    button.enabled = not problem
    button.toolTip = plain(problem or tip)


def textItem(text: str, tip: str = ""):
    """An item of a table, with the text as its tooltip, or another one."""
    item = qt.QTableWidgetItem(text)
    item.setToolTip(plain(tip or text))
    return item


def plain(text: str) -> str:
    """A text for a tooltip or message box, which would otherwise interpret markup in the names of nodes and models.

    Qt would load the pictures that such markup names, from any file of this computer.
    """
    return f"<qt>{html.escape(text)}</qt>" if "<" in text or "&lt" in text else text


def nameOf(node) -> str:
    """The name of a node, for messages, lists and the names of other nodes; it may have none."""
    return node.GetName() or (_("unnamed volume") if node.IsA("vtkMRMLVolumeNode") else _("unnamed node"))


def timeLeft(seconds: float | None) -> str:
    """The time remaining, rounded as far as it is uncertain; empty if unknown."""
    if seconds is None:
        return ""
    if seconds < 1.5:
        return _("almost done")
    if seconds < 90:
        return _("about {seconds} s left").format(seconds=round(seconds) if seconds < 20 else 5 * round(seconds / 5))
    return _("about {minutes} min left").format(minutes=round(seconds / 60))


def textSetting(key: str) -> str:
    """A text in the application's settings; empty if there is none, or if an edited file has something else there."""
    value = slicer.util.settingsValue(key, "")
    return str(value) if isinstance(value, str | int | float) else ""


def megabytesOf(path: Path) -> float:
    """The size of a file or folder on disk."""
    files = [path] if path.is_file() else (file for file in path.rglob("*") if not file.is_dir())
    return sum(file.lstat().st_size for file in files) / 1e6


def openFile(path: Path, label) -> None:
    """Open a file in the desktop's program for it; if there is none, the label says where the file is."""
    if not qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path))):
        sentence = _("This desktop cannot open the report. Open it in a web browser: {path}")
        say(label, sentence.format(path=path), isError=True)


def singleShotTimer(widget, react: Callable[[], None], milliseconds: int = 0):
    """A timer that calls a function once each time it is started, and starts over if it is started again.

    It is a child of a widget, because PythonQt keeps what a timer calls for as long as the timer lives. Without a
    widget, disconnect it when it is no longer needed.
    """
    timer = qt.QTimer(widget) if widget is not None else qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", react)
    return timer


class WorkInSteps:
    """Runs work in steps, each in its own turn of the event loop, so that Slicer handles events between them.

    The work stops when the widget is deleted.
    """

    def __init__(self, widget):
        self._steps: Iterator[None] = iter(())
        self._timer = singleShotTimer(widget, self._next)

    def start(self, steps: Iterator[None]) -> None:
        """Start new work, one step per ``next``; the rest of earlier work is dropped."""
        self._steps = steps
        self._timer.start(0)

    def stop(self) -> None:
        self._timer.stop()
        self._steps = iter(())

    @property
    def isBusy(self) -> bool:
        return self._timer.isActive()

    def _next(self) -> None:
        for _step in self._steps:
            self._timer.start(0)
            return


def whenPathChanges(edit, react: Callable[[str], None]) -> None:
    """Call a function with the new text at every change of a ctkPathLineEdit.

    The field's own signal, ``currentPathChanged``, leaves out an emptied path and a path with an extension that is not
    among the field's: the previous choice would stay in use.
    """
    edit.comboBox().lineEdit().connect("textChanged(QString)", react)


def pathIn(edit) -> Path | None:
    """The path in a ctkPathLineEdit, which may not exist; None if the field is empty."""
    text = edit.currentPath.strip()
    return Path(text) if text else None


class EditedPath:
    """Calls a function with the path of a ctkPathLineEdit once the path is settled.

    That is at Return, when the field loses the focus, and when it was not changed for a moment: a path that is being
    typed may pass through other files and folders.

    Args:
        onEdited: called at every change before; what is known then belongs to an earlier path.

    Attributes:
        isSettled: whether the function was called with what is in the field.
    """

    def __init__(self, edit, react: Callable[[str], None], onEdited: Callable[[], None] = lambda: None):
        self._edit, self._react, self._onEdited = edit, react, onEdited
        self.isSettled = True
        self._timer = singleShotTimer(edit, self.flush, _MILLISECONDS_AFTER_LAST_KEY)
        whenPathChanges(edit, self._onTextChanged)
        edit.comboBox().lineEdit().connect("editingFinished()", self.flush)

    def flush(self) -> None:
        """Use what is in the field now, if it has changed."""
        self._timer.stop()
        if not self.isSettled:
            self.isSettled = True
            self._react(self._edit.currentPath)

    def close(self) -> None:
        """The panel is about to be deleted: do not use what is in the field."""
        self._timer.stop()
        # The field may still lose the focus.
        self._react = lambda _path: None

    def _onTextChanged(self, _path: str) -> None:
        self.isSettled = False
        self._timer.start()
        self._onEdited()


def comboBoxOf(selector):
    """The combo box inside a qMRMLNodeComboBox."""
    return next(child for child in selector.children() if hasattr(child, "minimumContentsLength"))


def stayNarrow(selector) -> None:
    """Let a qMRMLNodeComboBox be narrower than the longest name in it; call this before it is shown.

    Slicer's module panel has no horizontal scroll bar, and would widen at the cost of the slice views.
    """
    comboBox = comboBoxOf(selector)
    comboBox.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
    comboBox.minimumContentsLength = _FEWEST_LETTERS


class FittedHeight(qt.QObject):
    """Gives a label with much text the height that its text needs at the current width.

    The label's width must be free (size policy Ignored), since the layouts around it do not ask for its height.
    """

    def __init__(self, label):
        qt.QObject.__init__(self, label)
        self._label = label
        label.installEventFilter(self)

    def eventFilter(self, watched, event) -> bool:
        if event.type() in (qt.QEvent.Resize, qt.QEvent.Show):
            self.fit()
        return False

    def fit(self) -> None:
        """Call this after the text has changed."""
        # Qt reports no height below the minimum, and a shorter text would keep that of the longer one.
        self._label.minimumHeight = 0
        # Before it is shown its width means nothing.
        if self._label.visible:
            self._label.minimumHeight = max(self._label.heightForWidth(self._label.width), 0)


class DroppedFiles(qt.QObject):
    """Calls a function with the paths of files that are dropped on a widget."""

    def __init__(self, widget, onDropped: Callable[[list[str]], None]):
        qt.QObject.__init__(self, widget)
        self._onDropped = onDropped
        widget.acceptDrops = True
        widget.installEventFilter(self)

    def eventFilter(self, watched, event) -> bool:
        if event.type() not in (qt.QEvent.DragEnter, qt.QEvent.Drop):
            return False
        paths = [url.toLocalFile() for url in event.mimeData().urls()]
        if not any(paths):
            return False
        event.acceptProposedAction()
        if event.type() == qt.QEvent.Drop:
            self._onDropped([path for path in paths if path])
        return True


class ViewLayout:
    """A layout of views next to Slicer's own. Slicer without a main window has no views, and shows nothing.

    Args:
        number: above those of Slicer's layouts.
        describe: returns its description, as Slicer stores it.
    """

    def __init__(self, number: int, describe: Callable[[], str]):
        self.number, self._describe, self._attribute = number, describe, f"ConResNet.LayoutBefore{number}"

    @property
    def isPossible(self) -> bool:
        return slicer.app.layoutManager() is not None

    @property
    def isShown(self) -> bool:
        return self.isPossible and slicer.app.layoutManager().layout == self.number

    def register(self) -> None:
        """Describe it to Slicer; a scene that was saved with it contains only its number."""
        if self.isPossible:
            node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
            # If it is registered already, this changes nothing.
            node.AddLayoutDescription(self.number, self._describe())

    def show(self) -> None:
        """Choose it; the layout before is remembered in the scene."""
        self.register()
        manager = slicer.app.layoutManager()
        if not self.isShown:
            manager.layoutLogic().GetLayoutNode().SetAttribute(self._attribute, str(manager.layout))
        manager.setLayout(self.number)

    def hide(self) -> None:
        """Go back to the layout before, or to Slicer's default one."""
        if self.isShown:
            manager = slicer.app.layoutManager()
            before = manager.layoutLogic().GetLayoutNode().GetAttribute(self._attribute)
            manager.setLayout(int(before or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView))


def addShortcuts(widget, actions: dict[str, Callable[[], object]]) -> list:
    """Keyboard shortcuts, by keys such as "Ctrl+Return", that work in the whole application while they are enabled."""
    shortcuts = []
    for keys, action in actions.items():
        shortcut = qt.QShortcut(qt.QKeySequence(keys), widget)
        shortcut.setContext(qt.Qt.ApplicationShortcut)
        shortcut.connect("activated()", action)
        shortcuts.append(shortcut)
    return shortcuts
