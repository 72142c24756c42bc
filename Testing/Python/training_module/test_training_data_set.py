"""The data set in the panel: its summary, the findings of the check, and the plan."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml

from conresnet_training.planning.systems import SYSTEMS
from slicer_host import dialogs
from training_module.test_training_run import script_as_python
from training_module.training_driver import TrainingDriver


def findings(driver: TrainingDriver) -> list[tuple[str, str]]:
    """(case, message) of each row of the table."""
    table = driver.ui.findingsTable
    return [tuple(table.item(row, column).text() for column in (1, 2)) for row in range(table.rowCount)]


def test_panel_shows_a_summary_of_the_data_set(training: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    assert not training.ui.checkButton.enabled
    training.choose_data_set(data_set)
    text = training.ui.dataSetSummaryLabel.text
    assert text == ("Medical Segmentation Decathlon: 6 labeled cases. Channels: MRI. Labels: 1 Near box, 2 Far box.")
    # There is no training environment yet that could check it.
    assert not training.ui.checkButton.enabled and "environment" in training.ui.checkButton.toolTip
    training.choose_data_set(tmp_path / "nothing here")
    assert "does not exist" in training.ui.dataSetSummaryLabel.text
    assert "does not exist" in training.ui.makePlanButton.toolTip


@pytest.fixture
def read_folders(here: TrainingDriver, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that the panel reads from now on."""
    from ConResTrainingLib import DataSetPanel

    folders, read = [], DataSetPanel.read_data_set
    monkeypatch.setattr(DataSetPanel, "read_data_set", lambda folder: folders.append(folder) or read(folder))
    return folders


def test_typed_path_is_read_after_its_last_letter(
    here: TrainingDriver, data_set: Path, read_folders: list[Path]
) -> None:
    here.choose_data_set(data_set)
    assert here.ui.makePlanButton.enabled and read_folders == [data_set]
    plan = here.ui.planPathEdit.currentPath
    other = data_set.with_name("other")
    shutil.copytree(data_set, other)
    read_folders.clear()
    for letter in range(len(str(other.parent)), len(str(other)) + 1):
        here.ui.dataSetPathEdit.currentPath = str(other)[:letter]
        here.settle()
    assert read_folders == [] and here.ui.planPathEdit.currentPath == plan
    # The summary would be that of the previous folder.
    for button in (here.ui.checkButton, here.ui.makePlanButton, here.ui.addCaseButton):
        assert not button.enabled and button.toolTip == "Reading the folder of the data set."
    assert here.ui.dataSetSummaryLabel.text == ""
    here.wait(lambda: here.ui.checkButton.enabled)
    assert read_folders == [other] and "6 labeled cases" in here.ui.dataSetSummaryLabel.text
    assert here.ui.makePlanButton.enabled and here.ui.planPathEdit.currentPath == f"{other}-plan.yaml"
    # Opening the module reads the folder immediately and updates the other paths.
    here.ui.dataSetPathEdit.currentPath = str(data_set)
    here.open()
    assert read_folders == [other, data_set] and here.ui.planPathEdit.currentPath == plan


def test_nothing_is_read_after_the_module_was_closed(
    here: TrainingDriver, data_set: Path, read_folders: list[Path]
) -> None:
    here.ui.dataSetPathEdit.currentPath = str(data_set)
    panel = here.widget.dataSetPanel
    here.widget.cleanup()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        here.app.processEvents()
    assert read_folders == [] and not panel.isSettled


def test_check_shows_errors_first_and_opens_its_page(here: TrainingDriver, data_set: Path) -> None:
    (data_set / "labelsTr" / "case_3.nii.gz").unlink()
    here.choose_data_set(data_set)
    here.run_command(here.ui.checkButton)
    rows = findings(here)
    assert any(case == "case_3" and "label" in message for case, message in rows)
    assert not here.ui.findingsTable.isHidden() and "color" in here.ui.checkStatusLabel.styleSheet
    here.click(here.ui.openCheckButton)
    (page,) = [Path(unquote(urlparse(url).path)) for url in dialogs.opened_urls]
    assert page.name == "check.html" and page.is_file() and data_set not in page.parents
    dialogs.can_open = False
    here.click(here.ui.openCheckButton)
    assert here.ui.checkStatusLabel.text.endswith(f"Open it in a web browser: {page}")
    # Another folder has not been checked yet.
    here.choose_data_set(data_set.parent)
    assert findings(here) == [] and here.ui.findingsTable.isHidden()


def test_error_of_the_data_set_as_a_whole_is_reported(training: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    finding = {"level": "error", "code": "one-case", "message": "There is only one case."}
    summary = {"cases": 1, "fine": 1, "with_errors": 0, "with_warnings": 0, "findings": [finding]}
    (tmp_path / "check.json").write_text(json.dumps({"summary": summary, "cases": []}), encoding="utf-8")
    training.choose_data_set(data_set)
    training.widget.dataSetPanel._showFindings(tmp_path)
    text = training.ui.checkStatusLabel.text
    assert text == "1 of 1 cases have no problems, the data set as a whole has problems."


def test_output_of_a_command_for_an_earlier_choice_is_not_shown(
    training: TrainingDriver, data_set: Path, tmp_path: Path
) -> None:
    ui, other = training.ui, tmp_path / "other"
    shutil.copytree(data_set, other)
    summary = '{"fine": 6, "cases": 6, "with_errors": 0, "with_warnings": 0, "findings": []}'
    report = f"""[ "$3" = check ] && echo '{{"summary": {summary}, "cases": []}}' > "$6/check.json" """
    script = f'[ "$3" = plan ] && echo "steps: 5" > "$6"\n{report}\necho "All done for 6 cases."'
    training.choose_data_set(data_set)
    plan, check = ui.planPathEdit.currentPath, data_set.with_name(f"{data_set.name}-check")
    check.mkdir()
    training.choose_python(script_as_python(tmp_path, script))
    training.run_command(ui.checkButton)
    assert ui.checkStatusLabel.text == "No problems were found in 6 cases."
    training.click(ui.checkButton)
    training.choose_data_set(other)
    training.wait(lambda: ui.checkButton.text != "Cancel")
    assert ui.checkStatusLabel.text == ""
    # The plan cannot be edited or saved while a new one is being made.
    training.choose_data_set(data_set)
    training.click(ui.makePlanButton)
    assert ui.planTextEdit.readOnly and ui.startButton.toolTip == "The plan is being made."
    ui.planPathEdit.currentPath = ""
    training.wait(lambda: ui.makePlanButton.text != "Cancel")
    assert ui.planStatusLabel.text == ui.planTextEdit.toPlainText() == "" and not ui.planTextEdit.readOnly
    assert ui.startButton.toolTip.startswith("Make a plan first")
    ui.planPathEdit.currentPath = plan
    assert ui.planTextEdit.toPlainText() == "steps: 5\n"


def test_plan_is_made_edited_saved_and_read_again(here: TrainingDriver, data_set: Path, tmp_path: Path) -> None:
    here.choose_data_set(data_set)
    assert not here.ui.startButton.enabled and here.ui.startButton.toolTip.startswith("Make a plan first")
    here.ui.stepsSpinBox.value, here.ui.foldsSpinBox.value, here.ui.widthSpinBox.value = 700, 3, 24
    here.run_command(here.ui.makePlanButton)
    plan = yaml.safe_load(here.ui.planTextEdit.toPlainText())
    assert plan["training"]["steps"] == 700 and plan["training"]["folds"] == 3
    assert plan["model"]["system"]["networks"][0]["arguments"]["base_width"] == 24
    assert here.ui.foldSpinBox.maximum == 2
    assert here.ui.startButton.enabled, here.ui.startButton.toolTip
    file = Path(here.ui.planPathEdit.currentPath)
    assert not here.ui.savePlanButton.enabled and not here.ui.resetPlanButton.enabled
    before = here.ui.planTextEdit.toPlainText()
    here.edit_plan(steps=50)
    here.click(here.ui.resetPlanButton)
    assert here.ui.planTextEdit.toPlainText() == before
    here.edit_plan(steps=60)
    here.click(here.ui.savePlanButton)
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["training"]["steps"] == 60
    here.unload()
    here.load()
    assert yaml.safe_load(here.ui.planTextEdit.toPlainText())["training"]["steps"] == 60
    # The panel asks before it discards edits.
    dialogs.answer("No")
    here.click(here.ui.makePlanButton)
    assert here.ui.makePlanButton.text == "Make plan" and "Replace the plan in" in dialogs.shown[-1].text
    dialogs.answer("Yes")
    here.choose_python(script_as_python(tmp_path, 'echo "steps: 80" > "$6"'))
    here.run_command(here.ui.makePlanButton)
    assert here.ui.planTextEdit.toPlainText() == "steps: 80\n"


def test_chosen_system_is_planned_and_remembered(here: TrainingDriver, data_set: Path) -> None:
    here.choose_data_set(data_set)
    selector = here.ui.systemSelector
    assert selector.currentText == "ConResNet" and selector.count == len(SYSTEMS)
    here.choose_system("voxresnet-auto-context")
    assert selector.currentText == "VoxResNet with auto-context"
    assert selector.toolTip == SYSTEMS["voxresnet-auto-context"].sentence == selector.itemData(selector.currentIndex, 3)
    # The width also applies to a network inside another one.
    here.ui.widthSpinBox.value = 8
    here.run_command(here.ui.makePlanButton)
    plan = yaml.safe_load(here.ui.planTextEdit.toPlainText())
    (network,) = plan["model"]["system"]["networks"]
    assert network["type"] == "auto_context" and network["arguments"]["network"]["type"] == "voxresnet"
    assert network["arguments"]["network"]["arguments"]["base_width"] == 8 and plan["model"]["inputs"][0]["copies"]
    assert "Planned for 6 cases" in here.ui.planStatusLabel.text
    # The panel reports if the plan was not made with the current values.
    for choose in (lambda: here.choose_system("pyramid"), lambda: setattr(here.ui.batchSpinBox, "value", 1)):
        choose()
        assert "was not made with the values chosen above" in here.ui.planStatusLabel.text
        here.choose_system("voxresnet-auto-context")
        here.ui.batchSpinBox.value = 0
        assert here.ui.planStatusLabel.text == ""
    here.unload()
    here.load()
    assert here.ui.systemSelector.currentText == "VoxResNet with auto-context"
    assert here.ui.planStatusLabel.text == ""


@pytest.mark.slow
def test_error_of_the_backend_is_shown_if_no_plan_can_be_made(
    here: TrainingDriver, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.choose_data_set(data_set)
    here.ui.foldsSpinBox.value = 1
    here.run_command(here.ui.makePlanButton)
    assert "training.folds" in here.ui.planStatusLabel.text
    assert "color" in here.ui.planStatusLabel.styleSheet
