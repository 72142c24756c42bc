"""The curves of a run: in the scene only while they are shown, and never to be saved."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import slicer
import vtk

from conresnet_training.runs import PROGRESS_FILE, ProgressWriter
from training_module.training_driver import TrainingDriver


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run with two points in its curve."""
    folder = tmp_path / "old run"
    folder.mkdir()
    progress = ProgressWriter(folder / PROGRESS_FILE)
    progress.write("started", step=0, steps=20, segments=["A"], host="elsewhere", pid=1)
    for step in (10, 20):
        progress.write("step", step=step, loss=1 / step)
    progress.write("finished", step=20)
    progress.close()
    return folder


def unsaved_nodes() -> list[str]:
    """Names of the nodes that Slicer would ask to save when the scene is closed."""
    found = vtk.vtkCollection()
    slicer.mrmlScene.GetStorableNodesModifiedSinceRead(found)
    return [found.GetItemAsObject(number).GetName() for number in range(found.GetNumberOfItems())]


def close_scene(driver: TrainingDriver) -> None:
    slicer.mrmlScene.Clear(0)
    driver.settle()


def test_curves_leave_nothing_unsaved_in_the_scene(training: TrainingDriver, run: Path) -> None:
    training.choose_run(run)
    training.settle()
    assert training.state == "finished"
    training.click(training.ui.curvesButton)
    assert training.points() == 2
    assert unsaved_nodes() == []
    # While the curves are shown, they are added to the next scene, too.
    close_scene(training)
    assert training.points() == 2 and unsaved_nodes() == []
    training.click(training.ui.curvesButton)
    close_scene(training)
    training.widget.jobPanel.look()
    assert training.points() == 0 and slicer.util.getNodesByClass("vtkMRMLTableNode") == []
    training.click(training.ui.curvesButton)
    assert training.points() == 2


def test_segment_named_like_the_mean_or_the_axis_has_its_own_curve(training: TrainingDriver, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    progress = ProgressWriter(folder / PROGRESS_FILE)
    progress.write("started", step=0, steps=20, segments=["Mean (segment)", "Mean", "Step"], host="elsewhere", pid=1)
    progress.write(
        "validation", step=10, dice=0.4, dice_a_segment={"Mean": 0.9, "Mean (segment)": 0.7, "Step": 0.2}, best=True
    )
    progress.close()
    training.choose_run(folder)
    training.click(training.ui.curvesButton)
    (table,) = [node.GetTable() for node in slicer.util.getNodesByClass("vtkMRMLTableNode") if "Dice" in node.GetName()]
    names = [table.GetColumnName(number) for number in range(table.GetNumberOfColumns())]
    assert names == ["Step", "Mean", "Mean (segment)", "Mean (segment) (segment)", "Step (segment)"]
    assert [table.GetColumn(number).GetValue(0) for number in range(5)] == [10, 0.4, 0.7, 0.9, 0.2]


def show_chart(name: str) -> object:
    """Show a chart in Slicer's own plot view, as another module does (vtkSlicerPlotsLogic::ShowChartInLayout)."""
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView)
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", name)
    slicer.app.applicationLogic().GetSelectionNode().SetActivePlotChartID(chart.GetID())
    slicer.app.applicationLogic().PropagatePlotChartSelection()
    return chart


def test_plots_of_other_modules_appear_in_slicers_own_view(training: TrainingDriver, run: Path) -> None:
    from ConResTrainingLib import TrainingCurves

    show_chart("Statistics")
    training.choose_run(run)
    training.click(training.ui.curvesButton)
    ours = TrainingCurves.viewNodes()
    assert len(ours) == 2
    chart = show_chart("Newer statistics")
    manager = slicer.app.layoutManager()
    shown = {manager.plotWidget(number).mrmlPlotViewNode() for number in range(manager.plotViewCount)}
    (theirs,) = shown - set(ours.values())
    assert theirs.GetPlotChartNode() is chart
    assert {kind: node.GetPlotChartNode() for kind, node in ours.items()} == TrainingCurves.charts()


def test_scene_saved_with_curves_can_be_opened_before_the_module(
    training: TrainingDriver, run: Path, tmp_path: Path
) -> None:
    from ConResTrainingLib import TrainingCurves

    training.choose_run(run)
    training.click(training.ui.curvesButton)
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    # Slicer is closed and started again: its new layout node has only Slicer's own layouts.
    training.unload()
    logic = slicer.app.layoutManager().layoutLogic()
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    logic.GetLayoutNode().SetLayoutDescription(TrainingCurves.layout.number, "")
    assert not logic.GetLayoutNode().IsLayoutDescription(TrainingCurves.layout.number)
    training.app.moduleManager().load(training.path)
    slicer.mrmlScene.Clear(0)
    assert slicer.mrmlScene.Connect()
    training.settle()
    assert slicer.app.layoutManager().layout == TrainingCurves.layout.number
    views = logic.GetViewNodes()
    shown = [views.GetItemAsObject(number) for number in range(views.GetNumberOfItems())]
    assert shown == list(TrainingCurves.viewNodes().values()) and len(shown) == 2


def test_module_works_without_a_main_window_but_shows_no_curves(
    training: TrainingDriver, no_main_window: Callable[[], None], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training.unload()
    no_main_window()
    assert slicer.app.layoutManager() is None and slicer.util.mainWindow() is None
    training.app.moduleManager().load(training.path)
    training.choose_run(run)
    training.click(training.ui.curvesButton)
    assert training.points() == 2 and not training.ui.curvesButton.checked
    training.click(training.ui.curvesButton)
    training.widget.onCopyDiagnostics()
    with caplog.at_level(logging.INFO):
        slicer.selfTests["ConResTraining"]()
    assert "NOT TESTED: the curves. This Slicer runs without a main window." in caplog.text
