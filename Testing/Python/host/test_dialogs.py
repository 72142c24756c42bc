"""Dialogs are recorded; questions get only the answers that a test has queued."""

import pytest
import qt
import slicer

from slicer_host import UnexpectedDialog, dialogs


def test_message_is_recorded(slicer_app):
    slicer.util.errorDisplay("It broke", detailedText="at line 1")
    slicer.util.infoDisplay("Done", windowTitle="Ready")
    assert [(d.title, d.text) for d in dialogs.shown] == [("Slicer error", "It broke"), ("Ready", "Done")]
    assert dialogs.shown[0].details == "at line 1"


def test_questions_require_queued_answers(slicer_app):
    dialogs.answer("Cancel", "Yes")
    assert not slicer.util.confirmOkCancelDisplay("Install it?")
    assert slicer.util.confirmYesNoDisplay("Really?")
    with pytest.raises(UnexpectedDialog, match="Once more"):
        slicer.util.confirmYesNoDisplay("Once more?")
    dialogs.answer("Maybe")
    with pytest.raises(UnexpectedDialog, match="not a button"):
        slicer.util.confirmYesNoDisplay("Yes or no?")


def test_file_dialogs_return_paths(slicer_app):
    dialogs.answer("/a/model.zip", "", "/a/folder")
    assert qt.QFileDialog.getOpenFileName(None, "Open", "", "*.zip") == "/a/model.zip"
    assert qt.QFileDialog.getOpenFileName(None, "Open", "", "*.zip") == ""
    assert qt.QFileDialog.getExistingDirectory(None, "Folder") == "/a/folder"


def test_urls_are_not_opened_on_the_desktop(slicer_app):
    qt.QDesktopServices.openUrl(qt.QUrl("https://example.org/"))
    assert dialogs.opened_urls == ["https://example.org/"]
