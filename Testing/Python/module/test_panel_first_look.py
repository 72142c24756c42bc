"""The slices jump to a new result that would be out of view, and otherwise stay where they are."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from module.panel_driver import PanelDriver, slice_composites
from module.test_panel_batch import run

pytestmark = pytest.mark.usefixtures("warm_engine")

_VIEWS = ("Red", "Yellow", "Green")


def slice_nodes() -> list[object]:
    return [slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode() for name in _VIEWS]


def matrices() -> np.ndarray:
    return np.array([slicer.util.arrayFromVTKMatrix(node.GetXYToRAS()) for node in slice_nodes()])


def pictures() -> np.ndarray:
    manager = slicer.app.layoutManager()
    return np.array([manager.sliceWidget(name).sliceView().image(240, 240) for name in _VIEWS])


def pixels_of(segmentation: object) -> list[int]:
    """How many pixels of each slice view show the segmentation, from rendered pictures."""
    for composite in slice_composites():
        composite.SetForegroundVolumeID(None)
    display, shown = segmentation.GetDisplayNode(), []
    for visible in (True, False):
        display.SetVisibility(visible)
        shown.append(pictures())
    display.SetVisibility(True)
    return (shown[0] != shown[1]).any(axis=-1).sum(axis=(1, 2)).tolist()


def look_at_corner(volume: object) -> tuple[np.ndarray, np.ndarray]:
    """Show the slices at the first voxel, with the whole volume in view; returns that voxel and the center, in mm."""
    slicer.util.setSliceViewerLayers(background=volume)
    pictures()
    slicer.util.resetSliceViews()
    bounds = np.zeros(6)
    volume.GetRASBounds(bounds)
    corner, center = bounds[::2] + 0.6, bounds.reshape(3, 2).mean(axis=1)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *corner, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
    return corner, center


def test_slices_jump_once_to_a_new_result_out_of_view(panel: PanelDriver, volume: object) -> None:
    look_at_corner(volume)
    before = matrices()
    node = panel.segment()
    assert min(pixels_of(node)) > 20
    for matrix, change in zip(matrices(), matrices() - before, strict=True):
        across = np.cross(change[:3, 3], matrix[:3, 2])
        np.testing.assert_allclose(across, 0, atol=1e-6, err_msg="the image was moved within the view")
    look_at_corner(volume)
    before = matrices()
    assert panel.segment() is node
    np.testing.assert_array_equal(matrices(), before)


def test_slices_jump_to_a_result_where_views_are_zoomed_in_elsewhere(panel: PanelDriver, volume: object) -> None:
    corner, _center = look_at_corner(volume)
    for view in slice_nodes():
        view.JumpSliceByCentering(*corner)
        view.SetFieldOfView(4.0, 4.0, view.GetFieldOfView()[2])
    assert min(pixels_of(panel.segment())) > 20


def test_slices_stay_if_one_shows_the_result(panel: PanelDriver, volume: object) -> None:
    _corner, center = look_at_corner(volume)
    slice_nodes()[2].JumpSliceByOffsetting(*center)
    before = matrices()
    pixels = pixels_of(panel.segment())
    assert pixels[:2] == [0, 0] and pixels[2] > 20
    np.testing.assert_array_equal(matrices(), before)


def test_slices_stay_if_the_user_moved_them_during_the_run(panel: PanelDriver, volume: object) -> None:
    look_at_corner(volume)
    panel.click_segment()
    red = slice_nodes()[0]
    red.JumpSliceByOffsetting(*(np.array(red.GetSliceToRAS().MultiplyPoint((0, 0, 0.5, 1)))[:3]))
    before = matrices()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in")
    np.testing.assert_array_equal(matrices(), before)


def test_slices_stay_after_many_cases(panel: PanelDriver, volume: object) -> None:
    look_at_corner(volume)
    before = matrices()
    panel.ui.batchCollapsibleButton.collapsed = False
    panel.settle()
    panel.ui.checkAllButton.click()
    run(panel)
    assert panel.status.startswith("1 of 1"), panel.status
    np.testing.assert_array_equal(matrices(), before)
