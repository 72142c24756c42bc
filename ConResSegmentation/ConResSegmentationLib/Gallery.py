"""The gallery: a card for each model, including models that can be downloaded, and the download itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.package.download import (
    CatalogEntry,
    catalog_source,
    is_address,
    parse_catalog,
    read_catalog,
    remove_download,
)
from conresnet.package.reader import read_package

from .EnginePython import EnginePython
from .Loading import EXAMPLES
from .Models import ModelChoice, ModelPanel, lastSeconds, measured, modelChoices, structures
from .Processes import ChildProcess, lastLine
from .RunPanel import RunPanel, endWith, notInstalled
from .Widgets import errorSentence, plain

_PICTURE = "thumbnail.png"
_PICTURE_SIDE = 112


@dataclass(frozen=True)
class Card:
    """What the gallery shows for a model.

    Args:
        lines: modality and structures, description, measured figures, license, and time on this computer or size.
        entry: the catalog's entry if the model can be downloaded.
        picture: the contents of a PNG file.
    """

    name: str
    title: str
    lines: tuple[str, ...]
    segments: tuple[str, ...]
    choice: ModelChoice | None = None
    entry: CatalogEntry | None = None
    picture: bytes = b""

    def matches(self, text: str) -> bool:
        """Whether every word of a search is found on the card."""
        here = " ".join((self.name, self.title, *self.lines, *self.segments)).casefold()
        return all(word in here for word in text.casefold().split())


def cards(entries: Sequence[CatalogEntry]) -> list[Card]:
    """Cards of all usable models, then of models in the catalog that are not installed in the same version."""
    choices = [choice for choice in modelChoices() if choice.description]
    versions = {(choice.description.name, choice.description.version) for choice in choices}
    more = [entry for entry in entries if (entry.name, entry.version) not in versions]
    return [*map(_installed, choices), *map(_available, more)]


def _installed(choice: ModelChoice) -> Card:
    description = choice.description
    segments = tuple(segment.name for segment in description.output.segments)
    seconds = lastSeconds(description.name)
    lines = (
        _contents({item.modality for item in description.inputs}, segments),
        description.description,
        _("Measured: {figures}").format(figures="; ".join(measured(choice.path, isBrief=True))),
        _("License: {license}").format(license=description.license),
        _("Last run on this computer: {seconds} s").format(seconds=seconds)
        if seconds
        else _("Not run on this computer yet"),
    )
    try:
        package = read_package(choice.path, verify=False)
        picture = package.read_file(_PICTURE) if _PICTURE in description.files else b""
    except UserError:
        picture = b""
    return Card(choice.name, choice.title, tuple(filter(None, lines)), segments, choice=choice, picture=picture)


def _available(entry: CatalogEntry) -> Card:
    lines = (
        _contents({entry.modality} - {""}, entry.segments),
        _("Measured, according to the catalog: {figures}").format(figures=entry.measured) if entry.measured else "",
        _("License: {license}").format(license=entry.license),
        _("Not installed: {megabytes:.1f} MB from {host}").format(
            megabytes=entry.bytes / 1e6, host=urlsplit(entry.url).hostname
        ),
    )
    title = f"{entry.title} {entry.version}"
    return Card(entry.name, title, tuple(line for line in lines if line), entry.segments, entry=entry)


def _contents(modalities: set[str], segments: Sequence[str]) -> str:
    """Modality and structures."""
    return " · ".join(part for part in (", ".join(sorted(modalities)), structures(segments)) if part)


class Gallery:
    """The dialog that shows the cards.

    Args:
        python: the engine's Python, which downloads a catalog from a web address when the user asks for it.

    Attributes:
        card, wantsExample: the card whose button was clicked, and whether it was the example's; None and False if none.
    """

    def __init__(self, python: EnginePython):
        self.card: Card | None = None
        self.wantsExample = False
        self._python = python
        self._process: ChildProcess | None = None
        self._frames: list[tuple[Card, qt.QFrame]] = []
        self._said = ""
        self._source = catalog_source()
        self._dialog = qt.QDialog(slicer.util.mainWindow())
        self._dialog.windowTitle = _("Models")
        self._dialog.resize(680, 620)
        layout = qt.QVBoxLayout(self._dialog)
        self._search = qt.QLineEdit()
        self._search.objectName = "searchEdit"
        self._search.placeholderText = _("Search by name, structure, modality or license")
        self._search.clearButtonEnabled = True
        self._search.connect("textChanged(QString)", self._filter)
        layout.addWidget(self._search)
        area = qt.QScrollArea()
        area.widgetResizable = True
        self._list = qt.QWidget()
        self._listLayout = qt.QVBoxLayout(self._list)
        area.setWidget(self._list)
        layout.addWidget(area)
        self._message = qt.QLabel()
        self._message.objectName = "messageLabel"
        self._message.textFormat = qt.Qt.PlainText
        self._message.wordWrap = True
        layout.addWidget(self._message)
        buttons = qt.QDialogButtonBox(qt.QDialogButtonBox.Close)
        buttons.connect("rejected()", self._dialog.reject)
        if is_address(self._source):
            self._more = qt.QPushButton(_("Look for more models"))
            self._more.objectName = "catalogButton"
            self._more.toolTip = plain(_("Download the list of models from {url}.").format(url=self._source))
            self._more.connect("clicked(bool)", self._onLookForMore)
            buttons.addButton(self._more, qt.QDialogButtonBox.ActionRole)
            self._show(())
        else:
            try:
                self._show(read_catalog(self._source))
            except UserError as error:
                self._show(())
                self._say(errorSentence(error))
        layout.addWidget(buttons)
        # Return in the search must not close the dialog, nor download a list.
        for button in buttons.buttons():
            button.autoDefault = False

    def exec(self) -> bool:
        """Show the dialog until it is closed; returns whether the user clicked a button on a card."""
        try:
            return bool(self._dialog.exec_())
        finally:
            if self._process:
                self._process.drop()
            # Otherwise the dialog would remain a child of the main window.
            self._dialog.deleteLater()

    def _show(self, entries: Sequence[CatalogEntry]) -> None:
        for _card, frame in self._frames:
            frame.deleteLater()
        self._frames = [(card, self._frame(card)) for card in cards(entries)]
        while self._listLayout.count():
            self._listLayout.takeAt(0)
        for _card, frame in self._frames:
            self._listLayout.addWidget(frame)
        self._listLayout.addStretch(1)
        self._filter(self._search.text)

    def _frame(self, card: Card):
        frame = qt.QFrame()
        frame.objectName = f"card {card.name}"
        frame.frameShape = qt.QFrame.StyledPanel
        row = qt.QHBoxLayout(frame)
        picture = qt.QLabel()
        picture.setFixedSize(_PICTURE_SIDE, _PICTURE_SIDE)
        picture.alignment = qt.Qt.AlignCenter
        pixmap = qt.QPixmap()
        if card.picture and pixmap.loadFromData(card.picture):
            picture.setPixmap(
                pixmap.scaled(_PICTURE_SIDE, _PICTURE_SIDE, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation)
            )
        else:
            picture.text = _("No picture")
            picture.enabled = False
        row.addWidget(picture, 0, qt.Qt.AlignTop)
        column = qt.QVBoxLayout()
        for number, line in enumerate((card.title, *card.lines)):
            label = qt.QLabel(line)
            label.textFormat = qt.Qt.PlainText
            label.wordWrap = True
            if number == 0:
                label.styleSheet = "font-weight: bold"
            elif number == 1:
                label.toolTip = plain(", ".join(card.segments))
            column.addWidget(label)
        column.addStretch(1)
        row.addLayout(column, 1)
        actions = qt.QVBoxLayout()
        if card.choice:
            actions.addWidget(self._button(_("Use"), "useButton", card, False))
            if card.choice.description.name in EXAMPLES:
                actions.addWidget(self._button(_("Try an example"), "exampleButton", card, True))
        else:
            actions.addWidget(self._button(_("Download..."), "downloadButton", card, False))
        actions.addStretch(1)
        row.addLayout(actions)
        return frame

    def _button(self, text: str, name: str, card: Card, wantsExample: bool):
        button = qt.QPushButton(text)
        button.objectName = name
        button.autoDefault = False
        button.connect("clicked(bool)", lambda _checked: self._choose(card, wantsExample))
        return button

    def _choose(self, card: Card, wantsExample: bool) -> None:
        self.card, self.wantsExample = card, wantsExample
        self._dialog.accept()

    def _filter(self, text: str) -> None:
        for card, frame in self._frames:
            frame.visible = card.matches(text)
        isEmpty = not any(card.matches(text) for card, _frame in self._frames)
        self._message.text = _("No model matches the search.") if isEmpty else self._said

    def _say(self, text: str) -> None:
        """Show a sentence at once, and show it again after a search."""
        self._said = text
        self._filter(self._search.text)
        # A failure must be seen even if the earlier search matches nothing.
        self._message.text = text or self._message.text

    def _onLookForMore(self) -> None:
        try:
            launch = self._python.launchModule("conresnet.worker", "catalog", self._source)
        except UserError as error:
            self._say(errorSentence(error))
            return
        self._more.enabled = False
        self._say(_("Looking for more models..."))
        self._process = ChildProcess(launch, self._onCatalog)
        self._process.start()

    def _onCatalog(self, exitCode: int | None, output: str, errors: str) -> None:
        self._more.enabled = True
        if exitCode != 0:
            self._say(lastLine(errors, output) or _("The list of models could not be downloaded."))
            return
        try:
            self._show(parse_catalog(lastLine(output).encode(), self._source))
        except UserError as error:
            self._say(errorSentence(error))
        else:
            isNew = any(card.entry for card, _frame in self._frames)
            self._say("" if isNew else _("There are no other models to download."))


def chooseModel(python: EnginePython, modelPanel: ModelPanel, control: RunPanel, loadExample: Callable) -> None:
    """Let the user choose a model in the gallery, try its example, or download it."""
    gallery = Gallery(python)
    if not gallery.exec():
        return
    card = gallery.card
    if card.entry is None:
        modelPanel.choose(card.name)
        if gallery.wantsExample:
            loadExample()
    elif control.isFree() and confirmDownload(card.entry):
        control.launch(
            lambda: lambda: PackageDownload(python, card.entry, control, modelPanel.install), usesScene=False
        )


def confirmDownload(entry: CatalogEntry) -> bool:
    question = _("Download {title} {version} ({megabytes:.1f} MB) from {host}? Its license is {license}.").format(
        title=entry.title,
        version=entry.version,
        megabytes=entry.bytes / 1e6,
        host=urlsplit(entry.url).hostname,
        license=entry.license,
    )
    return slicer.util.confirmOkCancelDisplay(plain(question), _("Download a model"))


class PackageDownload:
    """Downloads a model package in a process of the engine's Python, and installs it.

    If the download is canceled or interrupted, the part received is kept, and the next download continues it.

    Args:
        control: receives progress and the result.
        install: called with the path of the package; returns the name of the installed model, or "" if canceled.

    Raises:
        UserError: the engine's Python cannot be started.
    """

    def __init__(self, python: EnginePython, entry: CatalogEntry, control, install: Callable[[str], str]):
        self._entry, self._control, self._install = entry, control, install
        launch = python.launchModule("conresnet.worker", "download", entry.url, entry.sha256, str(entry.bytes))
        self._onLine(f"0 {entry.bytes}")
        self._process = ChildProcess(launch, self._onEnded, self._onLine)
        self._process.start()

    def cancel(self) -> None:
        self._process.drop()
        self._control.onCancelled()

    def _onLine(self, line: str) -> None:
        have, _space, total = line.partition(" ")
        if have.isdecimal() and total.isdecimal():
            share = min(int(have) / max(int(total), 1), 1.0)
            text = _("Downloading {model}: {have:.1f} of {total:.1f} MB")
            sizes = {"have": int(have) / 1e6, "total": int(total) / 1e6}
            self._control.onProgress(text.format(model=self._entry.name, **sizes), share)

    def _onEnded(self, exitCode: int | None, output: str, errors: str) -> None:
        if exitCode != 0:
            self._control.onEnded(lastLine(errors) or _("The download failed; see the log."), True)
            return
        path = lastLine(output)
        endWith(self._control, lambda: self._installed(path))
        remove_download(path)

    def _installed(self, path: str) -> str:
        entry = self._entry
        found = read_package(path, verify=False).description.name
        if found != entry.name:
            raise UserError("download-other-model", url=entry.url, found=found, name=entry.name)
        name = self._install(path)
        return _("Installed {model}.").format(model=name) if name else notInstalled(entry.name)
