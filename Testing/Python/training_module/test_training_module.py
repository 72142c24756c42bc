"""The module as a whole: how it looks, its own test, reloading, diagnostics, and what Slicer never imports."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import slicer

from training_module.training_driver import TrainingDriver


def test_the_panel_is_drawn_and_says_what_is_to_be_done_first(training: TrainingDriver, tmp_path: Path) -> None:
    picture = matplotlib.image.imread(training.picture(tmp_path / "panel.png"))
    assert picture.shape[0] > 600 and picture[..., :3].std() > 0.05
    ui = training.ui
    for button in (ui.checkButton, ui.makePlanButton, ui.startButton, ui.resumeButton, ui.stopButton, ui.importButton):
        assert not button.enabled and len(button.toolTip) > 10
    assert "no training environment yet" in ui.placeStatusLabel.text and not ui.placeCollapsibleButton.collapsed


def test_reloading_gives_a_working_panel(here: TrainingDriver, data_set: Path) -> None:
    here.choose_data_set(data_set)
    before = here.widget
    before.onReload()
    here.settle()
    assert here.widget is not before
    assert "6 labelled cases" in here.ui.dataSetSummaryLabel.text
    assert here.ui.makePlanButton.enabled


def test_the_modules_own_test_passes(training: TrainingDriver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        slicer.selfTests["ConResTraining"]()
    assert "NOT TESTED: the training backend. There is no training environment yet" in caplog.text


def test_diagnostics_say_what_helps_and_name_no_case(here: TrainingDriver, data_set: Path) -> None:
    here.choose_data_set(data_set)
    here.widget.addToLog("case_3 cannot be read")
    here.click(here.ui.copyDiagnosticsButton)
    text = here.app.clipboard().text()
    assert "case_3" not in text and "cannot be read" in text
    for part in ("Slicer 5.12", "ConResNet ", "decathlon, 6 cases", sys.executable):
        assert part in text, part


def test_slicers_process_never_imports_what_trains(repository: Path, data_set: Path) -> None:
    program = """
import sys
for name in ("torch", "yaml", "pydantic", "monai", "lightning", "tensorboard", "nibabel", "click", "safetensors"):
    sys.modules[name] = None
from slicer_host import slot_errors, start_application
import slicer
app = start_application()
for path in sys.argv[1:3]:
    module = app.moduleManager().load(path)
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
    assert "6 labelled cases" in run.stdout
