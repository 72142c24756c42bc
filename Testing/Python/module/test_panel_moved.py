"""Volumes that are moved during their segmentation: the result is moved with them, or refused."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import slicer

from module.models import write_four_channels
from module.panel_driver import PanelDriver, label_array, result_nodes
from module.test_scene_inputs import add_roi, add_transform, add_warp_transform, rotation

pytestmark = pytest.mark.usefixtures("warm_engine")


@pytest.mark.parametrize("change", ["spacing", "scaled", "mirrored", "warp", "channel"])
def test_result_is_refused_if_the_image_was_changed_during_the_segmentation(
    panel: PanelDriver, volume: object, tumor_images: list[Path], tmp_path: Path, change: str
) -> None:
    moved = volume
    if change == "channel":
        panel.drop(write_four_channels(tmp_path / "four.zip"))
        moved = [slicer.util.loadVolume(str(path)) for path in tumor_images][2]
    panel.click_segment()
    panel.wait_until_requested()
    if change == "spacing":
        moved.SetSpacing(2, 2, 2)
    elif change == "warp":
        moved.SetAndObserveTransformNodeID(add_warp_transform().GetID())
    else:
        scale = {"scaled": (1, 1.1, 1), "mirrored": (-1, 1, 1), "channel": (1, 1, 1)}[change]
        matrix = rotation(30, (5, 0, 0)) @ np.diag((*scale, 1))
        moved.SetAndObserveTransformNodeID(add_transform(matrix).GetID())
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status == f"The volume {moved.GetName()} was changed during the segmentation; segment it again."
    assert result_nodes() == []


def test_result_moves_with_a_volume_moved_during_the_segmentation(
    panel: PanelDriver, volume: object, hippocampus_label: Path
) -> None:
    """The result and the places of its review list are under the volume's transform, like those of earlier results."""
    plain = panel.segment()
    expected = label_array(plain, volume)
    places = review_places(panel, plain)
    panel.choices.segmentation = None
    panel.click_segment()
    panel.wait_until_requested()
    transform = add_transform(rotation(30, (5, 0, 0)))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    node = panel.choices.segmentation
    assert panel.status.startswith("Done in") and node is not plain
    assert node.GetParentTransformNode() is transform
    assert {one.GetParentTransformNode() for one in result_nodes() if one is not plain} >= {transform}
    np.testing.assert_array_equal(label_array(node, volume), expected)
    moved = places @ rotation(30, (5, 0, 0)).T
    np.testing.assert_allclose(review_places(panel, node), moved, atol=1e-3)
    slicer.mrmlScene.RemoveNode(volume)
    np.testing.assert_allclose(
        review_places(panel, node), moved, atol=1e-3, err_msg="the volume to compare with was removed"
    )


def test_result_of_channels_moved_together_is_kept(
    panel: PanelDriver, tumor_images: list[Path], tmp_path: Path
) -> None:
    panel.drop(write_four_channels(tmp_path / "four.zip"))
    volumes = [slicer.util.loadVolume(str(path)) for path in tumor_images]
    panel.click_segment()
    panel.wait_until_requested()
    transform = add_transform(rotation(10, (5, 0, 0)))
    for one in volumes:
        one.SetAndObserveTransformNodeID(transform.GetID())
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in"), panel.status
    assert panel.choices.segmentation.GetParentTransformNode() is transform


def review_places(panel: PanelDriver, node: object) -> np.ndarray:
    """The places in a result's review list in world coordinates, (n, 4)."""
    review = sys.modules["ConResSegmentationLib.Review"]
    rows = review.rowsOf(review.tableOf(node, "review"))
    return np.array([[*place, 1] for place in review.placesOf(rows, node)])


@pytest.mark.parametrize("change", ["hardened", "centered"])
def test_result_is_kept_if_the_volume_is_moved_while_it_is_added(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    volume.SetAndObserveTransformNodeID(add_transform(rotation(30, (5, 0, 0))).GetID())
    expected = label_array(panel.segment(), volume)
    panel.choices.segmentation = None
    run = sys.modules["ConResSegmentationLib.SegmentationRun"]
    make = run.ResultSegmentation.makeSegments

    def move_after_making(*arguments: object) -> object:
        run.callLater(volume.HardenTransform if change == "hardened" else lambda: volume.SetOrigin(1, 2, 3))
        return make(*arguments)

    monkeypatch.setattr(run.ResultSegmentation, "makeSegments", move_after_making)
    node = panel.segment()
    assert panel.status.startswith("Done in"), panel.status
    assert (volume.GetParentTransformNode() is None) == (change == "hardened")
    np.testing.assert_array_equal(label_array(node, volume), expected)


@pytest.mark.parametrize("change", ["centered", "transform"])
def test_maps_stay_with_the_segments_if_the_volume_is_moved_before_they_are_added(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run = sys.modules["ConResSegmentationLib.SegmentationRun"]
    fill = run.ResultSegmentation.fill

    def move_after_filling(*arguments: object) -> None:
        fill(*arguments)
        moved = add_transform(rotation(30, (5, 0, 0))).GetID()
        centered = partial(volume.SetOrigin, 1, 2, 3)
        run.callLater(centered if change == "centered" else lambda: volume.SetAndObserveTransformNodeID(moved))

    monkeypatch.setattr(run.ResultSegmentation, "fill", move_after_filling)
    node = panel.segment()
    assert panel.status.startswith("Done in"), panel.status
    geometry = sys.modules["ConResSegmentationLib.Review"]._geometryOf(node)
    maps = result_nodes()[1:]
    assert len(maps) == 3
    for one in maps:
        assert sys.modules["ConResSegmentationLib.Review"]._boxIn(geometry, one) is not None, one.GetName()


def test_roi_of_a_result_moves_with_a_volume_moved_during_the_segmentation(panel: PanelDriver, volume: object) -> None:
    """Otherwise, its ROI would be compared with those of earlier results, which were moved, at the wrong place."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = np.array(bounds[::2]), np.array(bounds[1::2])
    panel.choices.region = add_roi(tuple((low + high) / 2), tuple(high - low))
    earlier = panel.segment()
    assert label_array(earlier, volume).any()
    panel.click_segment()
    panel.wait_until_requested()
    volume.SetAndObserveTransformNodeID(add_transform(rotation(0, (500, 0, 0))).GetID())
    earlier.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in"), panel.status
    assert panel.choices.segmentation is earlier, "it is replaced"
