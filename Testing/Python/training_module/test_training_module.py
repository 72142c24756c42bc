"""The module as a whole: layout, self-test, reloading, diagnostics, and modules that Slicer must not import."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import slicer
from PySide6 import QtWidgets

from training_module.test_training_job import write_run
from training_module.training_driver import TrainingDriver


def test_empty_panel_shows_what_to_do_first(training: TrainingDriver, tmp_path: Path) -> None:
    picture = matplotlib.image.imread(training.picture(tmp_path / "panel.png"))
    assert picture.shape[0] > 600 and picture[..., :3].std() > 0.05
    ui = training.ui
    for button in (ui.checkButton, ui.makePlanButton, ui.startButton, ui.resumeButton, ui.stopButton, ui.importButton):
        assert not button.enabled and len(button.toolTip) > 10
    assert "no training environment yet" in ui.placeStatusLabel.text and not ui.placeCollapsibleButton.collapsed


def test_every_button_has_a_text_or_an_accessible_name(training: TrainingDriver) -> None:
    buttons = [widget for widget in vars(training.ui).values() if isinstance(widget, QtWidgets.QAbstractButton)]
    unnamed = {button.objectName for button in buttons if not (button.text or button.accessibleName)}
    assert buttons and unnamed <= {"qt_tableview_cornerbutton"}, "only Qt's own button"


def test_panel_works_after_a_reload(here: TrainingDriver, data_set: Path) -> None:
    here.choose_data_set(data_set)
    before = here.widget
    before.onReload()
    here.settle()
    assert here.widget is not before
    assert "6 labeled cases" in here.ui.dataSetSummaryLabel.text
    assert here.ui.makePlanButton.enabled


def test_panel_works_after_a_reload_of_the_other_module(here: TrainingDriver, tmp_path: Path) -> None:
    slicer.util.selectModule("ConResSegmentation")
    slicer.modules.ConResSegmentationWidget.onReload()
    slicer.util.selectModule("ConResTraining")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text("{", encoding="utf-8")
    here.widget.onDropped([str(tmp_path / "broken")])
    assert "cannot be read as JSON" in here.ui.resultsStatusLabel.text


def test_self_test_passes(training: TrainingDriver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        slicer.selfTests["ConResTraining"]()
    assert "NOT TESTED: the training backend. There is no training environment yet" in caplog.text


def test_diagnostics_are_complete_and_name_no_case(here: TrainingDriver, data_set: Path) -> None:
    here.choose_data_set(data_set)
    here.widget.logic.backend.log("case_3 cannot be read")
    here.click(here.ui.copyDiagnosticsButton)
    text = here.app.clipboard().text()
    assert "case_3" not in text and "cannot be read" in text
    for part in ("Slicer 5.12", "ConResNet ", "decathlon, 6 cases", sys.executable):
        assert part in text, part


def test_diagnostics_name_no_case_of_earlier_data_sets(here: TrainingDriver, data_set: Path) -> None:
    other = data_set.with_name("another")
    shutil.copytree(data_set, other)
    for path in [*(other / "imagesTr").iterdir(), *(other / "labelsTr").iterdir()]:
        path.rename(path.with_name(path.name.replace("case_", "DOE_JANE_")))
    description = other / "dataset.json"
    description.write_text(description.read_text(encoding="utf-8").replace("case_", "DOE_JANE_"), encoding="utf-8")
    here.choose_data_set(other)
    here.widget.logic.backend.log("DOE_JANE_3: error: the label map has another grid")
    here.choose_data_set(data_set)
    here.click(here.ui.copyDiagnosticsButton)
    text = here.app.clipboard().text()
    assert "DOE_JANE" not in text and "error: the label map has another grid" in text


def test_selectors_are_updated_once_after_many_nodes_were_added(here: TrainingDriver, data_set: Path) -> None:
    here.choose_data_set(data_set)
    here.ui.sceneCaseCollapsibleButton.collapsed = False
    fills = []
    fill = here.widget.sceneCasePanel.fill
    here.widget.sceneCasePanel._timer.connect("timeout()", lambda: fills.append(1))
    for _number in range(200):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    here.settle()
    assert fills == [] and here.app.kept_timers == []
    for number in range(50):
        slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name=f"MRI {number}")
    here.settle()
    assert len(fills) == 1 and here.app.kept_timers == []
    assert here.widget.sceneCasePanel.channels.combos[0].currentNode() is not None
    fill()
    # A node added just before the module is closed is ignored.
    slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name="last")
    here.unload()
    here.settle()
    here.load()


def test_slicers_process_never_imports_training_packages(repository: Path, data_set: Path) -> None:
    program = """
import sys
for name in "torch yaml pydantic monai lightning_fabric tensorboard nibabel click safetensors".split():
    sys.modules[name] = None
from slicer_host import slot_errors, start_application
import slicer
app = start_application()
for path in sys.argv[1:3]:
    module = app.moduleManager().load(path)
assert "SimpleITK" not in sys.modules, "importing it would delay the start of Slicer"
slicer.util.selectModule("ConResTraining")
widget = module.widgetRepresentation().self()
ui = widget.ui
ui.dataSetPathEdit.currentPath = sys.argv[3]
while not widget.dataSetPanel.isSettled:
    app.processEvents()
assert not slot_errors, slot_errors
print(ui.dataSetSummaryLabel.text)
app.quit_host()
"""
    modules = [str(repository / name / f"{name}.py") for name in ("ConResSegmentation", "ConResTraining")]
    run = subprocess.run(
        [sys.executable, "-c", program, *modules, str(data_set)],
        cwd=repository / "Testing" / "SlicerHost",
        capture_output=True,
        text=True,
        timeout=120,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    assert "6 labeled cases" in run.stdout


def test_tab_order_matches_the_order_on_the_screen(here: TrainingDriver, data_set: Path) -> None:
    here.unfold()
    assert here.tab_stops_out_of_order() == [], "with a field for the names of new channels"
    here.choose_data_set(data_set)
    here.unfold()
    assert here.tab_stops_out_of_order() == []
    assert "channelSelector0" in {widget.parent().objectName for widget in here.tab_stops()}
    for table in (here.ui.findingsTable, here.ui.comparisonTable):
        assert not table.tabKeyNavigation
    assert here.ui.planTextEdit.tabChangesFocus, "YAML does not use tabs"


def test_long_names_are_distinguishable_and_do_not_widen_the_panel(training: TrainingDriver, tmp_path: Path) -> None:
    long = "a very long name " * 5
    runs = [write_run(tmp_path / f"{long}-run-{number}") for number in (1, 2)]
    training.ui.dataSetPathEdit.currentPath = str(tmp_path / long)
    for run in runs:
        training.choose_run(run)
    # The next session starts with these paths.
    training.unload()
    training.load()
    training.unfold()
    assert training.ui.runPathEdit.currentPath == str(runs[1])
    assert training.representation.minimumSizeHint.width() <= 400
    shown = set()
    for number in (0, 1):
        training.ui.runsSelector.setCurrentIndex(number)
        shown.add(training.ui.runsSelector.shown_text())
    assert len(shown) == 2 and all(text.endswith(": training") for text in shown)
    # The finding is visible next to the name of the case.
    finding = {"name": long, "findings": [{"level": "error", "message": "The label is empty."}]}
    summary = {"cases": 1, "fine": 0, "with_errors": 1, "with_warnings": 0, "findings": []}
    (tmp_path / "check.json").write_text(json.dumps({"summary": summary, "cases": [finding]}), encoding="utf-8")
    training.widget.dataSetPanel._showFindings(tmp_path)
    training.unfold()
    table = training.ui.findingsTable
    assert table.columnViewportPosition(2) < table.viewport().width / 2
