"""The gallery: cards, search, examples, and downloads from a real server on this computer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import slicer
from PySide6 import QtCore, QtTest, QtWidgets

from conresnet.errors import UserError
from ConResSegmentationLib.EnginePython import EnginePython
from engine.test_download import Server, content, server, write_catalog
from module.panel_driver import PanelDriver
from slicer_host import dialogs

__all__ = ["content", "server"]


@pytest.fixture
def catalog(server: Server, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog that lists one model, which the server provides."""
    server.files["/tiny.zip"] = content
    path = write_catalog(tmp_path / "catalog.json", server, content, name="organ", version="1.2.0", modality="CT")
    monkeypatch.setenv("CONRESNET_CATALOG", str(path))
    monkeypatch.setenv("CONRESNET_MODELS", str(tmp_path / "models"))
    return path


def cards(dialog: QtWidgets.QDialog) -> dict[str, str]:
    """The text of each visible card, by the model's name."""
    frames = [frame for frame in dialog.findChildren(QtWidgets.QFrame) if frame.objectName.startswith("card ")]
    return {
        frame.objectName.removeprefix("card "): "\n".join(label.text for label in frame.findChildren(QtWidgets.QLabel))
        for frame in frames
        if not frame.isHidden()
    }


def click(dialog: QtWidgets.QDialog, card: str, button: str) -> int:
    """Click a button on a card; returns the dialog's result."""
    dialog.findChild(QtWidgets.QFrame, f"card {card}").findChild(QtWidgets.QPushButton, button).click()
    return dialog.result()


def open_gallery(panel: PanelDriver, use: Callable[[QtWidgets.QDialog], int]) -> None:
    dialogs.answer(use)
    panel.ui.galleryButton.click()


def end(panel: PanelDriver) -> str:
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    return panel.status


def test_every_model_has_a_card_and_search_finds_structures(panel: PanelDriver, tmp_path: Path) -> None:
    found = {}

    def look(dialog: QtWidgets.QDialog) -> int:
        found["all"] = cards(dialog)
        dialog.show()
        dialog.grab().save(str(Path(os.environ.get("CONRESNET_PICTURES", tmp_path)) / "gallery.png"))
        search = dialog.findChild(QtWidgets.QLineEdit, "searchEdit")
        search.setText("spinal CORD ct")
        found["cord"] = cards(dialog)
        search.setText("kneecap")
        found["none"] = cards(dialog), dialog.findChild(QtWidgets.QLabel, "messageLabel").text
        return 0

    open_gallery(panel, look)
    assert set(found["all"]) >= {"hippocampus", "brain-structures", "head-neck-organs"}
    text = found["all"]["brain-structures"]
    assert "MR · 32 structures: Left cerebral white matter" in text and "and 26 more" in text
    few = "too few cases for a reliable figure"
    measured = (
        f"Measured: mean Dice 0.824 on 3 cases not used for training; {few}; data set: Brain structures\nLicense: "
    )
    assert measured in text and "learned from synthetic images only" in text
    assert "silver labels" in found["all"]["brain-tissue"].partition("Measured: ")[2]
    assert few not in found["all"]["hippocampus"]
    assert "Not run on this computer yet" in text
    assert set(found["cord"]) == {"head-neck-organs"}
    assert found["none"] == ({}, "No model matches the search.")
    assert panel.choices.model == "hippocampus"


def test_return_in_search_keeps_gallery_open_and_escape_closes_it(panel, catalog, server, monkeypatch) -> None:
    monkeypatch.setenv("CONRESNET_CATALOG", f"{server.address}/catalog.json")
    results = []

    def search(dialog: QtWidgets.QDialog) -> int:
        dialog.show()
        edit = dialog.findChild(QtWidgets.QLineEdit, "searchEdit")
        QtTest.QTest.keyClicks(edit, "hippocampus")
        QtTest.QTest.keyClick(edit, QtCore.Qt.Key.Key_Return)
        results.append((dialog.isVisible(), set(cards(dialog)) & {"hippocampus", "brain-tissue"}))
        QtTest.QTest.keyClick(edit, QtCore.Qt.Key.Key_Escape)
        results.append(dialog.isVisible())
        return dialog.result()

    open_gallery(panel, search)
    assert results == [(True, {"hippocampus"}), False] and server.requests == []


def test_example_is_loaded_once_and_does_not_affect_current_run(panel: PanelDriver, many_windows: object) -> None:
    panel.click_segment()
    panel.wait_until_computing()
    for _click in range(2):
        open_gallery(panel, lambda dialog: click(dialog, "hippocampus", "exampleButton"))
    (example,) = panel.choices.channels
    images = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert [node.GetName() for node in images] == [many_windows.GetName(), "T1 example"]
    assert end(panel).startswith("Done in")
    role = panel.choices.segmentation.GetReferenceImageGeometryReferenceRole()
    assert panel.choices.segmentation.GetNodeReference(role) is many_windows
    assert panel.choices.model == "hippocampus" and panel.ui.applyButton.enabled
    # A changed image is no longer the example, so the example is loaded again.
    slicer.util.updateVolumeFromArray(example, slicer.util.arrayFromVolume(example) + 1)
    panel.ui.exampleButton.click()
    assert panel.choices.channels[0] is not example


def test_missing_example_is_reported(panel: PanelDriver, volume: object, tmp_path: Path) -> None:
    panel.widget.loadPanel._example = tmp_path / "gone.nii.gz"
    panel.ui.exampleButton.click()
    assert "gone.nii.gz" in dialogs.shown[-1].text and panel.widget.channels.nodes == [volume]


def test_card_shows_time_of_last_run(panel: PanelDriver) -> None:
    panel.choose_model("brain-structures")
    open_gallery(panel, lambda dialog: click(dialog, "hippocampus", "exampleButton"))
    assert panel.choices.model == "hippocampus"
    assert [node.GetName() for node in panel.choices.channels] == ["T1 example"]
    panel.segment()
    texts = []
    open_gallery(panel, lambda dialog: texts.append(cards(dialog)["hippocampus"]) or 0)
    assert "Last run on this computer: " in texts[0]


def test_model_from_catalog_is_downloaded_after_confirmation(panel, catalog, server, content) -> None:
    texts = []

    def download(dialog: QtWidgets.QDialog) -> int:
        texts.append(cards(dialog)["organ"])
        return click(dialog, "organ", "downloadButton")

    dialogs.answer(download, "Cancel")
    panel.ui.galleryButton.click()
    assert "Not installed: 0.2 MB from 127.0.0.1" in texts[0] and "License: CC0-1.0" in texts[0]
    assert server.requests == [] and not panel.widget.runPanel.isRunning

    # The first download is interrupted in the middle; the second one continues it.
    server.stops_after = len(content) // 2
    dialogs.answer(download, "OK")
    panel.ui.galleryButton.click()
    assert "interrupted; start it again" in end(panel)
    server.stops_after = None
    dialogs.answer(download, "OK")
    panel.ui.galleryButton.click()
    assert end(panel) == "Installed organ."
    assert server.requests[-1][1], "only the rest is requested"
    assert panel.choices.model == "organ"
    texts.clear()
    open_gallery(panel, lambda dialog: texts.append(cards(dialog)["organ"]) or 0)
    assert "Not installed" not in texts[0]


def test_downloaded_model_must_have_name_from_catalog(panel, catalog, server, content) -> None:
    write_catalog(catalog, server, content, name="lung")
    dialogs.answer(lambda dialog: click(dialog, "lung", "downloadButton"), "OK")
    panel.ui.galleryButton.click()
    assert "organ" in end(panel) and "lung" in panel.status
    assert panel.choices.model == "hippocampus"
    assert [choice.title for choice in panel.widget.modelPanel._choices if "Tiny" in choice.title] == []


def test_downloaded_model_that_cannot_be_installed_is_not_reported_as_canceled(
    panel, catalog, server, content, monkeypatch
) -> None:
    def fail(_source: str) -> str:
        raise UserError("disk-full", path="models")

    monkeypatch.setattr(sys.modules["ConResSegmentationLib.Models"], "installAsking", fail)
    dialogs.answer(lambda dialog: click(dialog, "organ", "downloadButton"), "OK")
    panel.ui.galleryButton.click()
    assert end(panel) == "organ was not installed."
    assert "not enough disk space" in dialogs.shown[-1].text


def test_download_can_be_canceled(panel, catalog, server, content) -> None:
    server.stalls_after = len(content) // 2
    dialogs.answer(lambda dialog: click(dialog, "organ", "downloadButton"), "OK")
    panel.ui.galleryButton.click()
    panel.wait(lambda: server.requests != [])
    assert panel.status.startswith("Downloading organ")
    panel.ui.cancelButton.click()
    assert end(panel) == "Canceled." and panel.choices.model == "hippocampus"
    # The child of the launcher of Slicer's Python has ended, too. Otherwise, it would keep the file open.
    server.stalls_after = None
    dialogs.answer(lambda dialog: click(dialog, "organ", "downloadButton"), "OK")
    panel.ui.galleryButton.click()
    assert end(panel) == "Installed organ."


def test_catalog_on_the_web_is_fetched_on_request(panel, catalog, server, monkeypatch) -> None:
    server.files["/catalog.json"] = catalog.read_bytes()
    monkeypatch.setenv("CONRESNET_CATALOG", f"{server.address}/catalog.json")
    before, after, messages = [], [], []

    def look(dialog: QtWidgets.QDialog) -> int:
        before.append((cards(dialog), list(server.requests)))
        button = dialog.findChild(QtWidgets.QPushButton, "catalogButton")
        button.click()
        panel.wait(lambda: button.enabled)
        after.append(cards(dialog))
        server.files.clear()
        button.click()
        panel.wait(lambda: button.enabled)
        messages.append(dialog.findChild(QtWidgets.QLabel, "messageLabel").text)
        with monkeypatch.context() as without:
            without.setattr(EnginePython, "launchModule", no_engine)
            button.click()
        messages.append(dialog.findChild(QtWidgets.QLabel, "messageLabel").text)
        assert button.enabled, "the user can try again"
        return 0

    def no_engine(*_arguments: object) -> None:
        raise UserError("engine-python-name", program="ls")

    open_gallery(panel, look)
    assert "organ" not in before[0][0] and before[0][1] == []
    assert "organ" in after[0]
    assert "cannot be downloaded (404" in messages[0] and "ls" in messages[1]


def test_message_about_more_models_stays_after_a_search(panel, catalog, server, content, tmp_path, monkeypatch) -> None:
    server.files["/catalog.json"] = catalog.read_bytes()
    monkeypatch.setenv("CONRESNET_CATALOG", f"{server.address}/catalog.json")
    (tmp_path / "organ.zip").write_bytes(content)
    panel.drop(tmp_path / "organ.zip")
    messages = []

    def look(dialog: QtWidgets.QDialog) -> int:
        button, search = dialog.findChild(QtWidgets.QPushButton, "catalogButton"), dialog.findChild(QtWidgets.QLineEdit)
        message = dialog.findChild(QtWidgets.QLabel, "messageLabel")
        for text in ("kneecap", ""):
            button.click()
            panel.wait(lambda: button.enabled)
            search.setText(text)
            messages.append(message.text)
        server.files.clear()
        button.click()
        search.setText("hippo")
        messages.append(message.text)
        panel.wait(lambda: button.enabled)
        search.setText("hippocampus")
        messages.append(message.text)
        search.setText("kneecap")
        button.click()
        panel.wait(lambda: button.enabled)
        messages.append(message.text)
        return 0

    open_gallery(panel, look)
    assert messages[:3] == [
        "No model matches the search.",
        "There are no other models to download.",
        "Looking for more models...",
    ]
    assert "404" in messages[3] and "404" in messages[4]


def test_names_in_catalog_are_plain_text_and_damaged_catalog_hides_no_model(panel, catalog, server, content) -> None:
    write_catalog(catalog, server, content, title="<img src='/dev/zero'>", measured="<b>best</b>")
    formats, texts = [], []

    def look(dialog: QtWidgets.QDialog) -> int:
        formats.extend(label.textFormat for label in dialog.findChildren(QtWidgets.QLabel))
        return 0

    open_gallery(panel, look)
    assert set(formats) <= {QtCore.Qt.PlainText, QtCore.Qt.AutoText}
    catalog.write_text("{}", encoding="utf-8")

    def read(dialog: QtWidgets.QDialog) -> int:
        texts.append((set(cards(dialog)), dialog.findChild(QtWidgets.QLabel, "messageLabel").text))
        return 0

    open_gallery(panel, read)
    assert texts[0][0] >= {"hippocampus"} and "cannot be read (format is missing)" in texts[0][1]
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
