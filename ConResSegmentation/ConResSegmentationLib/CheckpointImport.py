"""Importing a checkpoint by the paper's authors: the questions, and the engine's process that converts it."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.importing import (
    CHANNELS,
    CHECKPOINT_SUFFIXES,
    INFERENCE,
    SEGMENTS,
    TITLE,
    inputs_named,
    model_name,
    segments_named,
    spacing_named,
)

from .EnginePython import EnginePython
from .Processes import ChildProcess, lastLine
from .RunPanel import endWith, notInstalled
from .Widgets import errorSentence, showError


def askForCheckpoint() -> str:
    """Ask for a checkpoint file; empty if the user cancels."""
    kinds = _("Checkpoints ({patterns})").format(patterns=" ".join(f"*{one}" for one in CHECKPOINT_SUFFIXES))
    return qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Import a checkpoint"), "", kinds)


def askForSettings(checkpoint: Path) -> dict | None:
    """Ask for settings of `conresnet.importing.describe` that the checkpoint does not contain; None if canceled.

    What is left empty has the default.
    """
    dialog = _Dialog(checkpoint)
    try:
        while dialog.widget.exec_():
            try:
                return dialog.settings()
            except UserError as error:
                showError(errorSentence(error))
        return None
    finally:
        # Otherwise it would stay as a child of the main window.
        dialog.widget.deleteLater()


class _Dialog:
    """The dialog with the questions."""

    def __init__(self, checkpoint: Path):
        self.widget = qt.QDialog(slicer.util.mainWindow())
        self.widget.windowTitle = _("Import a checkpoint")
        self.widget.minimumWidth = 480
        form = qt.QFormLayout(self.widget)
        hint = qt.QLabel(_("Fields left empty take the values of the authors' BraTS 2018 models."))
        hint.wordWrap = True
        form.addRow(hint)
        channels = ", ".join(item["name"] for item in CHANNELS)
        segments = ", ".join(f"{item['name']}={item['label']}" for item in SEGMENTS)
        self._name = self._row(form, _("Name:"), "nameEdit", "")
        self._name.text = model_name(checkpoint.stem)
        self._title = self._row(form, _("Title:"), "titleEdit", TITLE)
        self._license = self._row(form, _("License:"), "licenseEdit", _("Not stated in the checkpoint"))
        self._channels = self._row(form, _("Channels:"), "channelsEdit", channels)
        self._channels.toolTip = _("All input channels in the network's order, separated by commas.")
        self._segments = self._row(form, _("Segments:"), "segmentsEdit", segments)
        self._segments.toolTip = _(
            "All regions and their label values in the network's order: NAME=LABEL, separated by commas. Later ones "
            "cover earlier ones."
        )
        self._orientation = self._row(form, _("Orientation:"), "orientationEdit", "SLP")
        self._orientation.toolTip = _(
            "The patient directions in which the model's axes S (slice), H (row) and W (column) increase."
        )
        self._spacing = self._row(form, _("Spacing:"), "spacingEdit", _("the image's own"))
        self._spacing.toolTip = _("Voxel size along S, H and W in mm: three numbers separated by commas.")
        self._tiling = qt.QComboBox()
        self._tiling.objectName = "tilingSelector"
        self._tiling.addItems(list(INFERENCE))
        self._tiling.toolTip = _("How windows are placed: as the authors did, or fitted to the foreground.")
        form.addRow(_("Tiling:"), self._tiling)
        buttons = qt.QDialogButtonBox(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
        buttons.connect("accepted()", self.widget.accept)
        buttons.connect("rejected()", self.widget.reject)
        form.addRow(buttons)

    @staticmethod
    def _row(form, label: str, name: str, placeholder: str):
        edit = qt.QLineEdit()
        edit.objectName, edit.placeholderText = name, placeholder
        form.addRow(label, edit)
        return edit

    def settings(self) -> dict:
        """The answers. Raises UserError("import-segment-form") or UserError("import-spacing-form")."""
        texts = {"title": self._title.text, "license": self._license.text}
        found: dict = {"name": model_name(self._name.text), "inference": INFERENCE[self._tiling.currentText]}
        found |= {key: text for key, text in texts.items() if text}
        if channels := _parts(self._channels.text):
            found["inputs"] = inputs_named(channels)
        if segments := _parts(self._segments.text):
            found["output"] = segments_named(segments)
        preparation: dict = {}
        if self._orientation.text:
            preparation["orientation"] = self._orientation.text.strip().upper()
        if spacing := _parts(self._spacing.text):
            preparation["spacing"] = spacing_named(spacing)
        return found | ({"preparation": preparation} if preparation else {})


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def importAsking(path: Path, control, start: Callable, install: Callable[[str], str]) -> None:
    """Import a checkpoint by the paper's authors, after asking what it does not say.

    Args:
        control: launches the import if nothing else is running, and follows it.
        start: starts it; called with the file's path, the settings, ``control`` and ``install``.
        install: see `CheckpointImport`.
    """
    settings = control.isFree() and askForSettings(path)
    if settings:
        control.launch(lambda: lambda: start(str(path), settings, control, install), usesScene=False)


class CheckpointImport:
    """Converts a checkpoint in a process of the engine's Python, and installs the model package.

    Args:
        settings: see `askForSettings`.
        control: receives progress, lines for the log, and the result.
        install: called with the path of the package; it returns the name of the installed model, or "". May raise
            UserError.

    Raises:
        UserError: the engine's Python cannot be started.
    """

    def __init__(self, python: EnginePython, checkpoint: Path, settings: dict, control, install: Callable[[str], str]):
        self._control, self._install, self._name = control, install, settings["name"]
        self._folder = Path(tempfile.mkdtemp(prefix="conresnet-import-"))
        self._package, answers = self._folder / "package", self._folder / "settings.json"
        answers.write_text(json.dumps(settings), encoding="utf-8")
        try:
            launch = python.launchModule("conresnet.importing", str(checkpoint), str(self._package), str(answers))
        except UserError:
            self._cleanUp()
            raise
        control.onProgress(_("Importing {file}").format(file=checkpoint.name), None)
        self._process = ChildProcess(launch, self._onEnded, control.log)
        self._process.start()

    def cancel(self) -> None:
        """Stop; nothing is installed."""
        self._process.drop()
        self._cleanUp()
        self._control.onCancelled()

    def _onEnded(self, exitCode: int | None, output: str, errors: str) -> None:
        if exitCode == 0:
            endWith(self._control, self._installed)
        else:
            self._control.onEnded(lastLine(errors, output) or _("The import failed; see the log."), True)
        self._cleanUp()

    def _installed(self) -> str:
        name = self._install(str(self._package))
        return _("Imported {model}.").format(model=name) if name else notInstalled(self._name)

    def _cleanUp(self) -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)
