"""The result that fills in while it computes: there in time, true to the engine's, and gone without a trace."""

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
    """A volume that is computed in so many pieces that a busy computer sees it grow; the preview looks often."""
    monkeypatch.setattr(sys.modules["ConResSegmentationLib.ResultSegmentation"], "MILLISECONDS_BETWEEN_LOOKS", 10)
    return many_windows


def previews() -> list[object]:
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if node.GetHideFromEditors()]


def node_ids() -> set[str]:
    scene = slicer.mrmlScene
    return {scene.GetNthNode(number).GetID() for number in range(scene.GetNumberOfNodes())}


def start(panel: PanelDriver) -> object:
    """Click Segment and wait for something to see."""
    panel.click_segment()
    panel.wait(lambda: previews() or not panel.widget.runPanel.isRunning)
    (node,) = previews()
    return node


def seen_in(panel: PanelDriver, node: object, volume: object) -> np.ndarray:
    """The labels of a preview; the engine stands still meanwhile, so that it does not end before they are looked at."""
    pid = panel.widget.logic.engine._connection.hello["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        return label_array(node, volume)
    finally:
        os.kill(pid, signal.SIGCONT)


def slices_filled(labels: np.ndarray) -> int:
    return int(labels.any(axis=(1, 2)).sum())


def test_the_result_fills_in_and_then_gives_way_to_the_real_one(panel: PanelDriver, windows: object) -> None:
    node = start(panel)
    seen = seen_in(panel, node, windows)
    first = slices_filled(seen)
    assert 0 < first < 112
    panel.wait(lambda: slices_filled(seen_in(panel, node, windows)) > first)
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
    # The engine may have been stopped while it wrote the last one.
    last = np.flatnonzero(done)[-1]
    assert ((seen[last] == final[last]) | (seen[last] == 0)).all()
    done[last] = False
    np.testing.assert_array_equal(seen[done], final[done])


@pytest.mark.parametrize("ending", ["cancelled", "engine killed", "scene closed"])
def test_nothing_of_it_stays_when_there_is_no_result(panel: PanelDriver, windows: object, ending: str) -> None:
    before = node_ids()
    start(panel)
    if ending == "cancelled":
        panel.ui.cancelButton.click()
    elif ending == "engine killed":
        os.kill(panel.widget.logic.engine._connection.hello["pid"], signal.SIGKILL)
    else:
        slicer.mrmlScene.Clear(0)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    panel.settle()
    assert previews() == []
    assert ending == "scene closed" or node_ids() == before


def test_an_edited_segmentation_is_not_touched_by_it(panel: PanelDriver, windows: object) -> None:
    edited = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "corrected by hand")
    labels = np.ones(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    ResultSegmentation.setSegments(edited, ResultSegmentation.makeSegments(labels, SEGMENTS, windows), windows)
    panel.ui.segmentationSelector.setCurrentNode(edited)
    before = label_array(edited, windows)
    assert start(panel) is not edited
    np.testing.assert_array_equal(label_array(edited, windows), before)
    panel.ui.cancelButton.click()
    assert panel.choices.segmentation is edited


def test_it_is_not_saved_with_the_scene(panel: PanelDriver, windows: object, tmp_path: Path) -> None:
    node = start(panel)
    name = node.GetName()
    path = tmp_path / "scene.mrml"
    slicer.mrmlScene.Commit(str(path))
    panel.ui.cancelButton.click()
    text = path.read_text(encoding="utf-8")
    assert windows.GetName() in text and name not in text and "vtkMRMLSegmentationDisplayNode" not in text


def test_nothing_is_put_into_the_scene_while_there_is_nothing_to_see(panel: PanelDriver, windows: object) -> None:
    labels = np.zeros(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    looks = []
    preview = sys.modules["ConResSegmentationLib.ResultSegmentation"].ResultPreview(labels, SEGMENTS, windows)
    look = preview._look
    preview._timer.disconnect("timeout()")
    preview._timer.connect("timeout()", lambda: (look(), looks.append(len(previews()))))
    panel.wait(lambda: len(looks) > 2)
    labels[3:5] = 2
    panel.wait(lambda: len(previews()) == 1)
    assert looks[:3] == [0, 0, 0]
    preview.remove()
    assert previews() == []


def test_it_follows_a_volume_that_is_moved_while_no_new_voxels_come(panel: PanelDriver, windows: object) -> None:
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


def test_nothing_of_it_stays_in_memory(panel: PanelDriver, windows: object) -> None:
    labels = np.zeros(slicer.util.arrayFromVolume(windows).shape, np.uint8)
    preview = sys.modules["ConResSegmentationLib.ResultSegmentation"].ResultPreview(labels, SEGMENTS, windows)
    kept = weakref.ref(preview)
    preview.remove()
    assert preview._volumeNode is None
    del preview
    gc.collect()
    # What is connected keeps what it calls, in PythonQt (PythonQtSignalReceiver.h, _callable) as in the stand-in.
    assert kept() is None
