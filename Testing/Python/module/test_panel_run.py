"""Segmenting from the panel with a real engine process: results, progress, Cancel, errors, and changes of the scene."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import slicer

from module.panel_driver import PanelDriver, folders, label_array, result_nodes, slice_composites
from module.test_scene_inputs import add_roi, add_transform, add_warp_transform, rotation

pytestmark = pytest.mark.usefixtures("warm_engine")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_real_scan_is_segmented_with_one_click(panel: PanelDriver, volume: object, hippocampus_label: object) -> None:
    node = panel.segment()
    expert = slicer.util.arrayFromVolume(slicer.util.loadVolume(str(hippocampus_label)))
    labels = label_array(node, volume)
    assert dice(labels == 1, expert == 1) > 0.75
    assert dice(labels == 2, expert == 2) > 0.75
    assert panel.status.startswith("Done in") and "Anterior hippocampus" in panel.status
    assert [n.GetAttribute("ConResNet.Map") for n in result_nodes()[1:]] == ["residual", "residual", "attention"]
    assert not panel.ui.cancelButton.enabled and not panel.ui.progressBar.isVisible()


def test_roi_without_the_structure_gets_a_warning(panel: PanelDriver, volume: object) -> None:
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    panel.ui.regionSelector.setCurrentNode(add_roi((bounds[1] - 4, bounds[3] - 4, bounds[5] - 4), (6, 6, 6)))
    node = panel.segment()
    assert not label_array(node, volume).any()
    assert "found nothing in the ROI; move it" in panel.warnings and "in this image" not in panel.warnings


def test_warnings_are_shown_above_the_volumes(panel: PanelDriver, result: object, tmp_path: Path) -> None:
    from ConResSegmentationLib.SegmentationRun import SegmentationOutcome

    def finish(count: int, notes: list[str]) -> None:
        volumes = {f"Structure {number}": 1.0 for number in range(count - 1)} | {"<b>Last": 0.0}
        report = {"model": {"name": "organ"}, "volumes_ml": volumes, "postprocessing": {"removed_ml": volumes}}
        panel.widget.runPanel.onFinished(SegmentationOutcome(result, [], report, 2.0, notes))

    ui = panel.ui
    finish(32, ["T1 is a CT."])
    assert panel.warnings == "T1 is a CT." and "color" in ui.warningsLabel.styleSheet
    assert "CT" not in panel.status and "31 of 32 segments" in panel.status and "Structure" not in panel.status
    assert "Pieces removed: 31.00 mL in 31 segments" in panel.status
    panel.picture(tmp_path / "panel.png")
    assert ui.warningsLabel.geometry.bottom() < ui.statusLabel.geometry.top()
    assert ui.statusLabel.height < 5 * ui.statusLabel.fontMetrics().height()
    for place in (ui.statusLabel.toolTip, ui.logTextEdit.toPlainText()):
        assert "Structure 17 1.00 mL" in place
    assert "&lt;b&gt;Last" in ui.statusLabel.toolTip and "T1 is a CT." in ui.logTextEdit.toPlainText()
    finish(6, [])
    assert panel.warnings == "" and "Structure 4 1.00 mL" in panel.status
    finish(6, ["A warning."])
    panel.widget.runPanel.launch(lambda: lambda: None)
    assert panel.warnings == "", "the warning was about the last result"
    panel.widget.runPanel.cancel()
    finish(6, ["A warning."])
    slicer.mrmlScene.Clear(0)
    assert panel.warnings == panel.status == ""


def test_reported_time_is_the_users_waiting_time(panel: PanelDriver, volume: object) -> None:
    """It includes starting the engine and loading the model."""
    panel.widget.logic.engine.stop()
    panel.segment()
    reported = float(re.match(r"Done in (\S+) s", panel.status)[1])
    phases = panel.ui.logTextEdit.toPlainText().partition("seconds: ")[2]
    computing = sum(float(seconds) for seconds in re.findall(r"\d+\.\d+", phases))
    assert reported - computing > 0.1 < computing, "more than rounding errors"


def test_slicer_without_a_main_window_can_segment(
    panel: PanelDriver, volume: object, no_main_window: Callable[[], None]
) -> None:
    no_main_window()
    assert slicer.app.layoutManager() is None and slicer.util.mainWindow() is None
    # Slicer's generic tests of a module do this.
    another = panel.app.moduleManager().module(panel.moduleName).createNewWidgetRepresentation().self()
    assert another.logic
    another.cleanup()
    assert panel.choices.show3D and panel.segment() is not None
    assert panel.status.startswith("Done in")


def test_map_of_a_result_is_shown_over_the_slices(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    composites = slice_composites()
    residual, _other, attention = result_nodes()[1:]
    assert composites
    assert {c.GetForegroundVolumeID() for c in composites} == {residual.GetID()}
    assert {c.GetBackgroundVolumeID() for c in composites} == {volume.GetID()}
    panel.ui.mapSelector.setCurrentNode(attention)
    panel.ui.mapOpacitySlider.value = 0.25
    assert {c.GetForegroundVolumeID() for c in composites} == {attention.GetID()}
    assert {c.GetForegroundOpacity() for c in composites} == {0.25}
    panel.choose(panel.ui.mapColorsSelector, "Rainbow")
    assert attention.GetDisplayNode().GetColorNodeID() == "vtkMRMLColorTableNodeRainbow"
    panel.ui.mapSelector.setCurrentNode(None)
    assert {c.GetForegroundVolumeID() for c in composites} == {None}


def test_segments_are_outlines_while_a_map_is_shown(panel: PanelDriver, volume: object) -> None:
    display = panel.segment().GetDisplayNode()
    residual, _other, attention = result_nodes()[1:]

    def drawn() -> tuple[bool, bool]:
        return display.GetVisibility2DFill(), display.GetVisibility2DOutline()

    assert drawn() == (False, True)
    panel.ui.mapSelector.setCurrentNode(attention)
    assert drawn() == (False, True)
    panel.ui.mapSelector.setCurrentNode(None)
    assert drawn() == (True, True)
    panel.ui.mapSelector.setCurrentNode(residual)
    slicer.mrmlScene.RemoveNode(residual)
    panel.settle()
    assert drawn() == (panel.ui.mapSelector.currentNode() is None, True)
    display.SetVisibility2DFill(True)
    panel.leave()
    panel.open()
    assert drawn() == (True, True), "the user's setting is kept"
    panel.ui.mapSelector.setCurrentNode(None)
    display.SetVisibility2DFill(False)
    for node in (attention, None):
        panel.ui.mapSelector.setCurrentNode(node)
        assert drawn() == (False, True), "unfilled segments stay unfilled"


def test_only_the_chosen_maps_are_created(panel: PanelDriver, volume: object) -> None:
    for box in (panel.map_box("residual"), panel.map_box("attention")):
        box.click()
    panel.map_box("probability").click()
    panel.map_box("features").click()
    panel.segment()
    kinds = [node.GetAttribute("ConResNet.Map") for node in result_nodes()[1:]]
    assert sorted(kinds) == ["features", "features", "probability", "probability"]


def test_edited_segmentation_is_kept(panel: PanelDriver, volume: object) -> None:
    first = panel.segment()
    before = label_array(first, volume)
    first.GetSegmentation().GetNthSegment(0).SetName("corrected by hand")
    second = panel.segment()
    assert second is not first
    assert first.GetSegmentation().GetNthSegment(0).GetName() == "corrected by hand"
    np.testing.assert_array_equal(label_array(first, volume), before)
    assert f"{first.GetName()} was kept unchanged" in panel.warnings and second.GetName() in panel.warnings


def test_result_is_in_the_right_place_under_a_linear_transform(panel: PanelDriver, volume: object) -> None:
    plain = label_array(panel.segment(), volume)
    panel.choices.segmentation = None
    transform = add_transform(rotation(0, (30, -20, 10)))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    moved = panel.segment()
    assert moved.GetParentTransformNode() is transform
    assert all(node.GetParentTransformNode() is transform for node in result_nodes()[-3:])
    assert dice(label_array(moved, volume) > 0, plain > 0) > 0.99
    bounds = [[0.0] * 6, [0.0] * 6]
    moved.GetRASBounds(bounds[0])
    volume.GetRASBounds(bounds[1])
    low, high = np.array(bounds[0]).reshape(3, 2).T
    assert (low > np.array(bounds[1])[::2]).all() and (high < np.array(bounds[1])[1::2]).all()


def test_result_and_maps_are_limited_to_the_roi(panel: PanelDriver, volume: object) -> None:
    whole = label_array(panel.segment(), volume)
    panel.choices.segmentation = None
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = np.array(bounds).reshape(3, 2).T
    # The posterior half of the image, which does not contain the anterior hippocampus.
    roi = add_roi(tuple((low + high) / 2 - (0, (high - low)[1] / 4, 0)), tuple((high - low) * (1, 0.5, 1)))
    panel.ui.regionSelector.setCurrentNode(roi)
    labels = label_array(panel.segment(), volume)
    assert labels.any() and labels.sum() < whole.sum()
    inside = np.argwhere(labels)[:, 1]
    assert inside.max() - inside.min() <= labels.shape[1] / 2 + 1
    for node in result_nodes()[-3:]:
        assert node.GetImageData().GetNumberOfPoints() < 0.6 * labels.size, "maps are cropped to the ROI"
        node.GetRASBounds(bounds)
        assert bounds[3] < (low + high)[1] / 2 + 2 * max(node.GetSpacing())


@pytest.mark.parametrize("place", ["volume", "roi"])
def test_non_linear_transform_is_refused(panel: PanelDriver, volume: object, place: str) -> None:
    roi = add_roi()
    panel.ui.regionSelector.setCurrentNode(roi)
    node = {"volume": volume, "roi": roi}[place]
    node.SetAndObserveTransformNodeID(add_warp_transform().GetID())
    assert panel.segment() is None
    assert panel.status.startswith(f"{node.GetName()} is under the transform warp, which is not linear")
    assert result_nodes() == []


def test_panel_opens_with_a_volume_under_a_non_linear_transform(panel: PanelDriver, head: object) -> None:
    head.SetAndObserveTransformNodeID(add_warp_transform().GetID())
    panel.leave()
    panel.open()
    roi = panel.ui.regionSelector.addNode()
    assert roi.GetNumberOfControlPoints() == 0, "it cannot be placed"
    slicer.mrmlScene.RemoveNode(roi)
    assert panel.segment() is None
    assert panel.status.startswith(f"{head.GetName()} is under the transform warp, which is not linear")


def test_error_of_the_engine_is_reported_and_changes_nothing(panel: PanelDriver, volume: object) -> None:
    panel.ui.regionSelector.setCurrentNode(add_roi((5000, 0, 0)))
    assert panel.segment() is None
    assert "ROI" in panel.status
    assert panel.status in panel.ui.logTextEdit.toPlainText()
    assert result_nodes() == []
    panel.ui.regionSelector.setCurrentNode(None)
    assert panel.segment() is not None


def test_progress_is_shown_and_cancel_leaves_the_scene_unchanged(panel: PanelDriver, many_windows: object) -> None:
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    panel.click_segment()
    assert not panel.ui.applyButton.enabled and panel.ui.cancelButton.enabled
    panel.wait_until_computing()
    first = panel.ui.progressBar.value
    panel.wait(lambda: panel.ui.progressBar.value > first)
    panel.ui.cancelButton.click()
    assert panel.status == "Canceled."
    assert panel.ui.applyButton.enabled
    panel.wait(lambda: not panel.widget.logic.engine.isSegmenting, seconds=4)
    panel.settle()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes


def test_next_segmentation_works_after_cancel(
    panel: PanelDriver, many_windows: object, hippocampus_image: object
) -> None:
    panel.click_segment()
    panel.wait_until_computing()
    panel.ui.cancelButton.click()
    crop = slicer.util.loadVolume(str(hippocampus_image))
    panel.widget.channels.combos[0].setCurrentNode(crop)
    assert panel.segment() is not None


def test_closing_scene_stops_the_segmentation(panel: PanelDriver, many_windows: object) -> None:
    panel.click_segment()
    panel.wait_until_computing()
    slicer.mrmlScene.Clear(0)
    assert not panel.widget.runPanel.isRunning
    panel.wait(lambda: not panel.widget.logic.engine.isSegmenting, seconds=4)
    panel.settle()
    assert result_nodes() == []
    assert not panel.ui.applyButton.enabled


def test_killed_engine_is_reported_and_next_segmentation_works(
    panel: PanelDriver, many_windows: object, hippocampus_image: object
) -> None:
    panel.click_segment()
    panel.wait_until_computing()
    os.kill(panel.widget.logic.engine._connection.hello["pid"], signal.SIGKILL)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("The engine stopped unexpectedly")
    assert result_nodes() == []
    crop = slicer.util.loadVolume(str(hippocampus_image))
    panel.widget.channels.combos[0].setCurrentNode(crop)
    assert panel.segment() is not None


def test_volume_removed_during_the_segmentation_is_reported(panel: PanelDriver, volume: object) -> None:
    panel.click_segment()
    panel.wait_until_requested()
    slicer.mrmlScene.RemoveNode(volume)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "was removed during the segmentation" in panel.status
    assert result_nodes() == []


def test_voxels_changed_during_the_segmentation_are_reported(panel: PanelDriver, volume: object) -> None:
    panel.click_segment()
    panel.wait_until_requested()
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume)[::-1].copy())
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "was changed during the segmentation" in panel.status
    assert result_nodes() == []


def test_result_removed_while_its_maps_are_added_leaves_nothing_behind(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sys.modules["ConResSegmentationLib.SegmentationRun"]
    add = run.ResultParts._newNode

    def remove_after_the_next(*arguments: object) -> object:
        (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        run.callLater(lambda: slicer.mrmlScene.RemoveNode(node))
        monkeypatch.setattr(run.ResultParts, "_newNode", add)
        return add(*arguments)

    monkeypatch.setattr(run.ResultParts, "_newNode", remove_after_the_next)
    panel.segment()
    panel.settle()
    assert "was removed or replaced in the meantime" in panel.status
    assert result_nodes() == slicer.util.getNodesByClass("vtkMRMLTableNode") == folders() == []


def test_closing_scene_does_not_stop_a_download(panel: PanelDriver, volume: object) -> None:
    canceled = []
    download = types.SimpleNamespace(cancel=lambda: canceled.append(True))
    control = panel.widget.runPanel
    control.launch(lambda: lambda: download, usesScene=False)
    panel.wait(lambda: control._run is download)
    control.onProgress("Downloading organ", 0.5)
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert not canceled and panel.widget.runPanel.isRunning and panel.status == "Downloading organ"
    control.onEnded("Installed organ.")


def test_images_are_read_in_pieces_and_slicer_handles_events_in_between(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, run = (sys.modules[f"ConResSegmentationLib.{name}"] for name in ("Processes", "SegmentationRun"))
    # After a reload of the panel, they may come from different copies of a file, and so may the reused process.
    engine, kept = sys.modules[type(panel.widget.logic.engine).__module__], panel.widget.logic.engine._connection
    connection = (type(kept) if kept else engine.EngineConnection).bytesAtOnce.fget.__globals__
    for names in (engine.checksumInPieces.__globals__, vars(run.ResultOrigin), connection):
        monkeypatch.setitem(names, "BYTES_AT_ONCE", 1 << 16)
    turns, pieces, plain = [0], [], zlib.adler32

    def read(data: bytes, value: int = 1) -> int:
        if len(data):
            pieces.append((turns[0], len(data)))
        return plain(data, value)

    def turn() -> None:
        turns[0] += 1
        called()

    called = processes._callNext
    monkeypatch.setattr(zlib, "adler32", read)
    # An existing timer would still call the original function.
    processes._laterTimer = None
    monkeypatch.setattr(processes, "_callNext", turn)
    panel.click_segment()
    assert pieces == []
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in")
    size = slicer.util.arrayFromVolume(volume).nbytes
    assert sum(count for _turn, count in pieces) == 2 * size, "read once to send it and once to compare it"
    assert len({turn for turn, _count in pieces}) == len(pieces) == 2 * math.ceil(size / (1 << 16)), "one per turn"


def test_result_that_cannot_be_added_leaves_nothing_behind(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError("no memory for maps")

    show = sys.modules["ConResSegmentation"].SegmentationRun._show
    monkeypatch.setattr(show.__globals__["ResultParts"], "putMaps", fail)
    assert panel.segment() is None
    assert panel.status == "The result could not be added to the scene; see the log."
    assert "no memory for maps" in panel.ui.logTextEdit.toPlainText()
    assert result_nodes() == []
