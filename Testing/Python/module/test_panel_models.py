"""The list of models in the panel: installing, replacing and removing models, and models that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import slicer
from PySide6 import QtCore, QtWidgets

from conresnet.package.store import SHIPPED_FOLDER, find_model, install_model
from module.checkpoints import checkpoint
from module.models import write_broken, write_four_channels
from module.panel_driver import PanelDriver
from module.test_panel_choices import add_volume
from slicer_host import dialogs

__all__ = ["checkpoint"]

pytestmark = pytest.mark.usefixtures("warm_engine")


@pytest.fixture
def models_folder() -> Path:
    """The test's models folder."""
    return Path(os.environ["CONRESNET_MODELS"])


def titles(panel: PanelDriver) -> list[str]:
    return [panel.ui.modelSelector.itemText(n) for n in range(panel.ui.modelSelector.count)]


def test_broken_model_is_listed_with_its_error_and_hides_no_other(panel: PanelDriver, models_folder: Path) -> None:
    before = titles(panel)
    write_broken(models_folder / "half")
    panel.widget.modelPanel.refresh()
    assert titles(panel) == [*before, "half (cannot be used)"]
    panel.choose(panel.ui.modelSelector, "half (cannot be used)")
    add_volume("T1")
    panel.settle()
    assert not panel.ui.applyButton.enabled
    assert "cannot be read as JSON (Expecting property name" in panel.ui.applyButton.toolTip
    assert "cannot be read as JSON (Expecting property name" in panel.ui.modelSummaryLabel.text


@pytest.mark.parametrize("form", ["A .zip file", "A folder"])
def test_model_is_installed_from_a_file(panel: PanelDriver, tmp_path: Path, form: str) -> None:
    source = write_four_channels(tmp_path / ("four.zip" if form == "A .zip file" else "four"))
    dialogs.answer(form, str(source))
    panel.ui.installModelButton.click()
    assert panel.choices.model == "four"
    assert panel.ui.modelSelector.currentText == "Four channels"
    assert len(panel.widget.channels.nodes) == 4
    dialogs.answer(form, str(source), "Replace it")
    panel.ui.installModelButton.click()
    dialogs.answer("Cancel")
    panel.ui.installModelButton.click()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"split": "fold 0 of 2"}, "cases not used for training"),
        ({"own_weights": "trained on all cases; not measured"}, "for a model trained the same way without them"),
        (
            {"split": "training started with other weights, which may have learned from some of them"},
            "some of which may have been used for training",
        ),
    ],
)
def test_measurements_name_the_weights_and_the_cases_they_are_from(
    panel: PanelDriver, tmp_path: Path, more: dict, expected: str
) -> None:
    measured = {"mean_dice": 0.9, "mean_dice_a_segment": {"Whole": 0.9}, "dice_a_case": {"a": {"Whole": 0.9}}}
    metrics = json.dumps(measured | {"data": "<b>Few"} | more).encode()
    install_model(write_four_channels(tmp_path / "four", metrics))
    panel.widget.modelPanel.refresh()
    panel.choose_model("four")
    text = panel.ui.modelDetailsLabel.text
    for phrase in ("not used for training", "trained the same way without them", "may have been used for training"):
        assert (phrase in text) == (phrase in expected)
    assert "too few cases for a reliable figure; data set: &lt;b&gt;Few" in text and more.get("split", "") in text


@pytest.mark.parametrize(
    "metrics",
    [
        b'{"mean_dice": 0.9, "mean_dice_a_segment": {"Whole": null}, "dice_a_case": {}}',
        b'{"mean_dice": "good", "mean_dice_a_segment": {"Whole": "so-so"}, "dice_a_case": {"a": 1}}',
        b"[1, 2]",
        b"{",
    ],
)
def test_model_with_invalid_metrics_can_be_chosen(panel: PanelDriver, models_folder: Path, metrics: bytes) -> None:
    """The package is written to the models folder, because installing would refuse it."""
    write_four_channels(models_folder / "four", metrics)
    panel.widget.modelPanel.refresh()
    panel.choose_model("four")
    assert panel.choices.model == "four"
    assert "It is not trained." in panel.ui.modelDetailsLabel.text


def test_model_installed_outside_slicer_is_listed_when_the_module_is_opened_again(
    panel: PanelDriver, tmp_path: Path
) -> None:
    panel.leave()
    install_model(write_four_channels(tmp_path / "four"))
    panel.open()
    assert "Four channels" in titles(panel)
    assert panel.choices.model == "hippocampus"


def test_model_removed_while_slicer_is_open_is_reported_and_panel_keeps_working(
    panel: PanelDriver, tmp_path: Path, models_folder: Path
) -> None:
    install_model(write_four_channels(tmp_path / "four"))
    panel.widget.modelPanel.refresh()
    panel.choose_model("four")
    for name in ("FLAIR", "T1", "T1c", "T2"):
        add_volume(name)
    shutil.rmtree(models_folder / "four")
    panel.segment()
    assert str(models_folder / "four") in panel.status
    panel.leave()
    panel.open()
    assert "not installed here" in panel.ui.applyButton.toolTip and not panel.ui.applyButton.enabled
    panel.choose_model("hippocampus")
    roi = panel.ui.regionSelector.addNode()
    panel.settle()
    assert panel.choices.region is roi, "the widgets are still connected"


def test_model_of_the_same_name_is_not_replaced_if_user_declines(
    panel: PanelDriver, tmp_path: Path, models_folder: Path
) -> None:
    install_model(write_four_channels(tmp_path / "four"))
    kept = models_folder / "four" / "model.json"
    before = kept.stat()
    dialogs.answer("A folder", str(tmp_path / "four"), "Cancel")
    panel.ui.installModelButton.click()
    assert "Replace it, or" in dialogs.shown[-1].text, "no further message after the user declined"
    assert panel.choices.model == "hippocampus"
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_model_of_the_same_name_can_be_installed_next_to_the_other(
    panel: PanelDriver, tmp_path: Path, models_folder: Path
) -> None:
    install_model(write_four_channels(tmp_path / "four"))
    dialogs.answer("A folder", str(tmp_path / "four"), "Keep both")
    panel.ui.installModelButton.click()
    assert {path.name for path in models_folder.iterdir()} == {"four", "four-2"} and panel.choices.model == "four-2"
    assert "four-2" in dialogs.shown[-1].text
    assert {"Four channels (four)", "Four channels (four-2)"} < set(titles(panel)), "they can be told apart"
    dialogs.answer("A folder", str(tmp_path / "four"), "Replace it")
    panel.ui.installModelButton.click()
    assert len(list(models_folder.iterdir())) == 2 and panel.choices.model == "four"


def test_folder_that_is_not_a_model_is_not_replaced(panel: PanelDriver, tmp_path: Path, models_folder: Path) -> None:
    (models_folder / "four").mkdir()
    dialogs.answer("A folder", str(write_four_channels(tmp_path / "four")))
    panel.ui.installModelButton.click()
    assert "is not a model package, and was not changed" in dialogs.shown[-1].text
    assert not list((models_folder / "four").iterdir())


def test_broken_package_is_not_installed(panel: PanelDriver, tmp_path: Path, models_folder: Path) -> None:
    dialogs.answer("A folder", str(write_broken(tmp_path / "broken")))
    panel.ui.installModelButton.click()
    assert "cannot be read as JSON (Expecting property name" in dialogs.shown[-1].text
    assert not list(models_folder.iterdir())


def test_model_with_the_name_of_a_shipped_one_gets_another_name(panel: PanelDriver, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(find_model("hippocampus"), other)
    before = titles(panel)
    dialogs.answer("A folder", str(other), "No")
    panel.ui.installModelButton.click()
    assert "already ships a model named hippocampus" in dialogs.shown[-1].text and titles(panel) == before
    dialogs.answer("A folder", str(other), "Yes")
    panel.ui.installModelButton.click()
    assert panel.choices.model == "hippocampus-2"
    assert find_model("hippocampus") == SHIPPED_FOLDER / "hippocampus"


def test_shipped_model_is_listed_along_with_an_installed_one_of_the_same_name(panel: PanelDriver) -> None:
    install_model(find_model("hippocampus"))
    panel.widget.modelPanel.refresh()
    (installed,) = [title for title in titles(panel) if title.endswith("(installed)")]
    (shipped,) = [title for title in titles(panel) if title.endswith("(shipped)")]
    panel.choose(panel.ui.modelSelector, shipped)
    assert panel.widget.modelPanel.choice.path == SHIPPED_FOLDER / "hippocampus"
    assert not panel.ui.removeModelButton.enabled
    panel.choose(panel.ui.modelSelector, installed)
    assert panel.choices.model == "hippocampus" and panel.ui.removeModelButton.enabled
    dialogs.answer("No", "Yes")
    panel.ui.removeModelButton.click()
    assert installed in titles(panel) and " MB) from " in dialogs.shown[-1].text
    panel.ui.removeModelButton.click()
    assert not any(title.endswith(("(installed)", "(shipped)")) for title in titles(panel))
    assert panel.widget.modelPanel.choice.path == SHIPPED_FOLDER / "hippocampus"


def test_checkpoint_opens_the_import_dialog_and_no_dialog_remains(panel: PanelDriver, checkpoint: Path) -> None:
    for _time in range(2):
        dialogs.answer("A .zip file", str(checkpoint), lambda dialog: 0)
        panel.ui.installModelButton.click()
        panel.wait(lambda: not panel.widget.runPanel.isRunning)
        assert dialogs.shown[-1].title == "Import a checkpoint"
    panel.app.sendPostedEvents(None, QtCore.QEvent.DeferredDelete)
    assert slicer.util.mainWindow().findChildren(QtWidgets.QDialog) == []
