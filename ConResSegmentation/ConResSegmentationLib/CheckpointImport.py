"""Import of a checkpoint by the paper's authors: asks about its contents, and runs the engine to convert it."""

import json
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    describe,
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


def askForSettings(checkpoint: Path, arguments: Mapping[str, Any]) -> dict | None:
    """Ask for settings of `conresnet.importing.describe` that the checkpoint does not contain; None if canceled.

    Fields left empty take the defaults. The dialog is shown again until the settings suit the network.

    Args:
        arguments: of the network in the checkpoint.
    """
    dialog = _Dialog(checkpoint, arguments)
    try:
        while dialog.widget.exec_():
            try:
                settings = dialog.settings()
                describe(arguments, settings, checkpoint.name)
                return settings
            except UserError as error:
                showError(errorSentence(error))
        return None
    finally:
        # Otherwise it would stay as a child of the main window.
        dialog.widget.deleteLater()


class _Dialog:
    """The dialog with the questions."""

    def __init__(self, checkpoint: Path, arguments: Mapping[str, Any]):
        self.widget = qt.QDialog(slicer.util.mainWindow())
        self.widget.windowTitle = _("Import a checkpoint")
        self.widget.minimumWidth = 480
        form = qt.QFormLayout(self.widget)
        contents = _(
            "The network in this file has {channels} channels and {outputs} outputs. Fields left empty take the values "
            "of the authors' BraTS 2018 models."
        )
        counts = {"channels": arguments["input_channels"], "outputs": arguments["outputs"]}
        hint = qt.QLabel(contents.format(**counts))
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


class CheckpointImport:
    """Converts a checkpoint in a process of the engine's Python, and installs the model package.

    Args:
        settings: see `askForSettings`; None to ask for them, once another process has found that the file is suitable.
        control: receives progress, lines for the log, and the result.
        install: called with the path of the package; it returns the name of the installed model, or "". May raise
            UserError.

    Raises:
        UserError: the engine's Python cannot be started.
    """

    def __init__(
        self, python: EnginePython, checkpoint: Path, settings: dict | None, control, install: Callable[[str], str]
    ):
        self._python, self._checkpoint, self._control, self._install = python, checkpoint, control, install
        self._name, self._isCanceled = "", False
        self._folder: Path | None = None
        if settings is None:
            self._start(_("Reading {file}"), self._onRead)
        else:
            self._convert(settings)

    def _start(self, text: str, onEnded: Callable[[int | None, str, str], None], *arguments: str) -> None:
        launch = self._python.launchModule("conresnet.worker", "import", str(self._checkpoint), *arguments)
        self._control.onProgress(text.format(file=self._checkpoint.name), None)
        self._process = ChildProcess(launch, onEnded, self._control.log)
        self._process.start()

    def _onRead(self, exitCode: int | None, output: str, errors: str) -> None:
        """The file was read; ask for what it does not contain."""
        if exitCode != 0:
            self._onEnded(exitCode, output, errors)
            return
        try:
            settings = askForSettings(self._checkpoint, json.loads(lastLine(output)))
            # Slicer may have been closed while the dialog was open.
            if settings is not None and not self._isCanceled:
                self._convert(settings)
            elif not self._isCanceled:
                self.cancel()
        except UserError as error:
            self._control.onEnded(errorSentence(error), True)
        except Exception:
            # Otherwise the run would never end.
            self._control.log(traceback.format_exc())
            self._fail()

    def _convert(self, settings: dict) -> None:
        self._name, self._folder = settings["name"], Path(tempfile.mkdtemp(prefix="conresnet-import-"))
        answers = self._folder / "settings.json"
        answers.write_text(json.dumps(settings), encoding="utf-8")
        try:
            self._start(_("Importing {file}"), self._onEnded, str(self._folder / "package"), str(answers))
        except UserError:
            self._cleanUp()
            raise

    def cancel(self) -> None:
        self._isCanceled = True
        self._process.drop()
        self._cleanUp()
        self._control.onCancelled()

    def _onEnded(self, exitCode: int | None, output: str, errors: str) -> None:
        if exitCode == 0:
            endWith(self._control, self._installed)
        else:
            self._fail(lastLine(errors, output))
        self._cleanUp()

    def _fail(self, sentence: str = "") -> None:
        self._control.onEnded(sentence or _("The import failed; see the log."), True)

    def _installed(self) -> str:
        name = self._install(str(self._folder / "package"))
        return _("Imported {model}.").format(model=name) if name else notInstalled(self._name)

    def _cleanUp(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
