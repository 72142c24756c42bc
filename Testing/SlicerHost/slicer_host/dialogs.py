"""Records the dialogs that a user would see, and answers them from a queue.

The stand-in application has no user, so a modal dialog must never wait. A box with one button is closed immediately; a
question without a queued answer raises ``UnexpectedDialog`` instead of guessing what the user would click.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from PySide6 import QtGui, QtWidgets


class UnexpectedDialog(AssertionError):
    """A dialog asked a question for which no answer was queued."""


@dataclass
class Shown:
    """A dialog that was shown: its kind, title, text, details and button captions."""

    kind: str
    title: str = ""
    text: str = ""
    details: str = ""
    buttons: list[str] = field(default_factory=list)


class Dialogs:
    """The record of dialogs and the queue of answers.

    Answers: a button's name ("Yes", or its text) for a message box; a path, a list of paths or "" (canceled) for a file
    dialog; a string or None (canceled) for an input dialog; for any other dialog, a function that takes the dialog and
    returns what ``exec_`` returns.
    """

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self.answers: deque[object] = deque()
        self.opened_urls: list[str] = []
        self.can_open = True

    def answer(self, *answers: object) -> None:
        """Queue answers for the next questions, in this order."""
        self.answers.extend(answers)

    def clear(self) -> None:
        """Clear all records and queued answers."""
        self.shown.clear()
        self.answers.clear()
        self.opened_urls.clear()
        self.can_open = True

    def next_answer(self, shown: Shown) -> object:
        """Record ``shown`` and return the next queued answer."""
        self.shown.append(shown)
        if not self.answers:
            what = f"the {shown.kind} dialog '{shown.title}'"
            raise UnexpectedDialog(f"No answer was queued for {what}: {shown.text} {shown.buttons}")
        return self.answers.popleft()


dialogs = Dialogs()
_Standard = QtWidgets.QMessageBox.StandardButton


def _run_message_box(box: QtWidgets.QMessageBox) -> object:
    # The button "Show Details..." expands the details and does not close the box.
    action = QtWidgets.QMessageBox.ActionRole
    buttons = [b for b in box.buttons() if box.buttonRole(b) != action or box.standardButton(b)]
    names = {}
    for button in buttons:
        standard = box.standardButton(button)
        names[button] = [button.text.replace("&", ""), standard.name or ""]
    details = "\n".join(t for t in (box.informativeText, box.detailedText) if t)
    shown = Shown("message", box.windowTitle.strip(), box.text, details, [n[0] for n in names.values()])
    if len(buttons) <= 1:
        dialogs.shown.append(shown)
        chosen = buttons[0] if buttons else None
    else:
        answer = dialogs.next_answer(shown)
        chosen = next((b for b in buttons if answer in names[b]), None)
        if chosen is None:
            raise UnexpectedDialog(f"'{answer}' is not a button of the dialog '{shown.title}': {shown.buttons}")
    if chosen is None:
        return _Standard.Ok
    box.__dict__["_chosen"] = chosen
    return box.standardButton(chosen)


def _static_message(kind: str) -> object:
    def show(parent: object, title: str, text: str, buttons: object = _Standard.Ok, default: object = None) -> object:
        box = QtWidgets.QMessageBox(parent)
        box.windowTitle, box.text = title, text
        box.setStandardButtons(buttons)
        return _run_message_box(box)

    show.__name__ = kind
    return staticmethod(show)


def _static_file(kind: str, several: bool = False) -> object:
    def show(parent: object = None, caption: str = "", directory: str = "", filters: str = "", *rest: object) -> object:
        answer = dialogs.next_answer(Shown(f"file:{kind}", caption, directory, str(filters)))
        # PythonQt returns only the path, and PySide also the filter.
        return tuple(answer) if several else str(answer)

    return staticmethod(show)


def _get_text(parent: object, title: str, label: str, *rest: object) -> str:
    answer = dialogs.next_answer(Shown("input", title, label))
    return "" if answer is None else str(answer)


def _run_dialog(dialog: QtWidgets.QDialog) -> object:
    answer = dialogs.next_answer(Shown("dialog", dialog.windowTitle))
    return answer(dialog)


class QDesktopServices:
    """Records the addresses that would open in the user's browser or file manager."""

    @staticmethod
    def openUrl(url: object) -> bool:
        dialogs.opened_urls.append(url.toString())
        return dialogs.can_open


def install() -> None:
    """Record all modal dialogs of Qt instead of showing them."""
    box = QtWidgets.QMessageBox
    for kind in ("information", "question", "warning", "critical"):
        setattr(box, kind, _static_message(kind))
    box.clickedButton = lambda self: self.__dict__.get("_chosen")
    box.exec = box.exec_ = _run_message_box
    chooser = QtWidgets.QFileDialog
    for kind in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
        setattr(chooser, kind, _static_file(kind))
    chooser.getOpenFileNames = _static_file("getOpenFileNames", several=True)
    QtWidgets.QInputDialog.getText = staticmethod(_get_text)
    QtWidgets.QDialog.exec = QtWidgets.QDialog.exec_ = _run_dialog
    for cls in (chooser, QtWidgets.QInputDialog, QtWidgets.QProgressDialog, QtWidgets.QColorDialog):
        cls.exec = cls.exec_ = _run_dialog
    QtGui.QDesktopServices.openUrl = staticmethod(QDesktopServices.openUrl)
