"""The live preview of a result: shown in time, equal to the result, and removed completely."""

from __future__ import annotations

import gc
import os
import signal
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import slicer

from ConResSegmentationLib import ResultSegmentation
from module.panel_driver import PanelDriver, label_array
from module.result_cases import SEGMENTS
from module.test_scene_inputs import add_transform, rotation

pytestmark = pytest.mark.usefixtures("warm_engine")


@pytest.fixture
def windows(many_windows: object, monkeypatch: pytest.MonkeyPatch) -> object:
    """A volume with so many windows that the preview, updated often, grows visibly even on a busy computer."""
    monkeypatch.setattr(sys.modules["ConResSegmentationLib.ResultSegmentation"], "MILLISECONDS_BETWEEN_LOOKS", 10)
    return many_windows


def previews() -> list[object]:
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if node.GetHideFromEditors()]


def node_ids() -> set[str]:
    scene = slicer.mrmlScene
    return {scene.GetNthNode(number).GetID() for number in range(scene.GetNumberOfNodes())}


def start(panel: PanelDriver) -> object:
    """Click Segment and wait for the preview."""
    panel.click_segment()
    panel.wait(lambda: previews() or not panel.widget.runPanel.isRunning)
    (node,) = previews()
    return node


def labels_in(panel: PanelDriver, node: object, volume: object) -> np.ndarray:
    """The labels of a preview; the engine is paused while they are read, so that it does not finish first."""
    pid = panel.widget.logic.engine._connection.hello["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        return label_array(node, volume)
    finally:
        os.kill(pid, signal.SIGCONT)


def slices_filled(labels: np.ndarray) -> int:
    return int(labels.any(axis=(1, 2)).sum())


def test_preview_grows_and_is_replaced_by_the_result(panel: PanelDriver, windows: object) -> None:
    node = start(panel)
    seen = labels_in(panel, node, windows)
    first = slices_filled(seen)
    assert 0 < first < 112
    panel.wait(lambda: slices_filled(labels_in(panel, node, windows)) > first)
    names = [node.GetSegmentation().GetNthSegment(n).GetName() for n in range(2)]
    assert panel.ui.segmentationSelector.currentNode() is None
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert not hierarchy.GetItemByDataNode(node)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    result = panel.choices.segmentation
    assert previews() == [] and result is not node
    assert names == [result.GetSegmentation().GetNthSegment(n).GetName() for n in range(2)]
    final = label_array(result, windows)
    done = seen.any(axis=(1, 2))
    # The engine may have been paused while it wrote the last slice.
    last = np.flatnonzero(done)[-1]
    assert ((seen[last] == final[last]) | (seen[last] == 0)).all()
    done[last] = False
    np.testing.assert_array_equal(seen[done], final[done])


@pytest.mark.parametrize("ending", ["canceled", "engine killed", "scene closed"])
def test_preview_is_removed_if_there_is_no_result(panel: PanelDriver, windows: object, ending: str) -> None:
    before = node_ids()
    start(panel)
    if ending == "canceled":
        panel.ui.cancelButton.click()
    elif ending == "engine killed":
        os.kill(panel.widget.logic.engine._connection.hello["pid"], signal.SIGKILL)
    else:
        slicer.mrmlScene.Clear(0)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    panel.settle()
    assert previews() == []
    assert ending == "scene closed" or node_ids() == before


def test_preview_does_not_change_an_edited_segmentation(panel: PanelDriver, windows: object) -> None:
    edited = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "corrected by hand")
    labels = np.ones(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    ResultSegmentation.setSegments(edited, ResultSegmentation.makeSegments(labels, SEGMENTS, windows), windows)
    panel.ui.segmentationSelector.setCurrentNode(edited)
    before = label_array(edited, windows)
    assert start(panel) is not edited
    np.testing.assert_array_equal(label_array(edited, windows), before)
    panel.ui.cancelButton.click()
    assert panel.choices.segmentation is edited


def test_preview_is_not_saved_with_the_scene(panel: PanelDriver, windows: object, tmp_path: Path) -> None:
    node = start(panel)
    name = node.GetName()
    path = tmp_path / "scene.mrml"
    slicer.mrmlScene.Commit(str(path))
    panel.ui.cancelButton.click()
    text = path.read_text(encoding="utf-8")
    assert windows.GetName() in text and name not in text and "vtkMRMLSegmentationDisplayNode" not in text


def test_preview_is_added_only_once_it_has_voxels(panel: PanelDriver, windows: object) -> None:
    labels = np.zeros(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    counts = []
    preview = sys.modules["ConResSegmentationLib.ResultSegmentation"].ResultPreview(labels, SEGMENTS, windows)
    look = preview._look
    preview._timer.disconnect("timeout()")
    preview._timer.connect("timeout()", lambda: (look(), counts.append(len(previews()))))
    panel.wait(lambda: len(counts) > 2)
    labels[3:5] = 2
    panel.wait(lambda: len(previews()) == 1)
    assert counts[:3] == [0, 0, 0]
    preview.remove()
    assert previews() == []


def test_preview_follows_a_moved_volume_even_without_new_voxels(panel: PanelDriver, windows: object) -> None:
    labels = np.zeros(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    labels[3:5] = 2
    preview = sys.modules["ConResSegmentationLib.ResultSegmentation"].ResultPreview(labels, SEGMENTS, windows)
    panel.wait(lambda: len(previews()) == 1)
    (node,) = previews()
    transform = add_transform(rotation(30, (5, 0, 0)))
    windows.SetAndObserveTransformNodeID(transform.GetID())
    panel.wait(lambda: node.GetParentTransformNode() is transform)
    np.testing.assert_array_equal(label_array(node, windows) != 0, labels != 0)
    windows.HardenTransform()
    panel.wait(lambda: node.GetParentTransformNode() is None)
    np.testing.assert_array_equal(label_array(node, windows) != 0, labels != 0)
    preview.remove()


def test_removed_preview_is_freed(panel: PanelDriver, windows: object) -> None:
    labels = np.zeros(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    preview = sys.modules["ConResSegmentationLib.ResultSegmentation"].ResultPreview(labels, SEGMENTS, windows)
    kept = weakref.ref(preview)
    preview.remove()
    assert preview._volumeNode is None
    del preview
    gc.collect()
    # A connection keeps its callable alive, in PythonQt (PythonQtSignalReceiver.h, _callable) and in the stand-in.
    assert kept() is None
