"""The ROI in the panel: when one is recommended, and where a new one is placed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

from conresnet.package.reader import read_package
from conresnet.package.store import find_model, install_model, write_package
from module.panel_driver import PanelDriver
from module.test_scene_inputs import rotation

pytestmark = pytest.mark.usefixtures("warm_engine")


def test_automatic_roi_is_announced_for_a_head_and_new_roi_is_placed_where_slices_cross(
    panel: PanelDriver, head: object
) -> None:
    panel.settle()
    assert "brain-structures" in panel.ui.regionHintLabel.text
    assert panel.ui.regionHintLabel.styleSheet == "", "not in the color of a warning"
    assert panel.ui.regionSelector.noneDisplay == "Automatic"
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        slicer.mrmlScene, -29.0, -22.0, -12.0, slicer.vtkMRMLSliceNode.OffsetJumpSlice
    )
    roi = panel.ui.regionSelector.addNode()
    center, size = [0.0] * 3, [0.0] * 3
    roi.GetCenterWorld(center)
    roi.GetSizeWorld(size)
    np.testing.assert_allclose(center, (-29, -22, -12), atol=1.5)
    assert max(size) < 120 and min(size) > 20
    assert panel.choices.region is roi
    assert panel.ui.regionHintLabel.text == ""


def test_new_roi_is_placed_where_rotated_slices_cross(panel: PanelDriver, head: object) -> None:
    matrix = vtk.vtkMatrix4x4()
    head.GetIJKToRASMatrix(matrix)
    turned = rotation(12, (0, 0, 0)) @ slicer.util.arrayFromVTKMatrix(matrix)
    head.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(turned))
    crossing = (rotation(12, (0, 0, 0)) @ (-29.0, -22.0, -12.0, 1.0))[:3]
    views = [slicer.util.getNode(f"vtkMRMLSliceNode{name}") for name in ("Red", "Yellow", "Green")]
    # A slice view that the current layout does not show.
    hidden = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Elsewhere")
    hidden.SetOrientation("Coronal")
    panel.settle()

    def placed() -> np.ndarray:
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *crossing, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
        hidden.JumpSliceByOffsetting(90.0, 90.0, 90.0)
        center = [0.0] * 3
        panel.ui.regionSelector.addNode().GetCenterWorld(center)
        return np.array(center)

    for view in views:
        view.RotateToVolumePlane(head)
    assert {view.GetOrientation() for view in views} == {"Reformat"}
    np.testing.assert_allclose(placed(), crossing, atol=2)
    for view, orientation in zip(views, ("Axial", "Axial", "Coronal"), strict=True):
        view.SetOrientation(orientation)
    bounds = [0.0] * 6
    head.GetRASBounds(bounds)
    np.testing.assert_allclose(placed(), ((bounds[0] + bounds[1]) / 2, *crossing[1:]), atol=2)


def test_roi_is_used_as_it_was_when_segment_was_clicked(panel: PanelDriver, volume: object) -> None:
    panel.widget.logic.engine.stop()
    panel.settle()
    roi = panel.ui.regionSelector.addNode()
    panel.click_segment()
    roi.SetCenter(500, 500, 500)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in"), panel.status


def test_no_roi_is_recommended_for_a_crop(panel: PanelDriver, volume: object) -> None:
    panel.settle()
    assert panel.ui.regionHintLabel.text == ""
    assert panel.ui.regionSelector.noneDisplay == "Whole image"


def test_roi_is_recommended_if_the_model_has_no_locator(panel: PanelDriver, head: object, tmp_path: Path) -> None:
    source = read_package(find_model("hippocampus"))
    changed = replace(source.description, name="no-locator", locator=None)
    files = {name: source.read_file(name) for name in changed.files}
    install_model(write_package(changed, files, tmp_path / "no-locator").path)
    panel.widget.modelPanel.refresh()
    panel.choose_model("no-locator")
    assert panel.ui.regionHintLabel.text.startswith("The image is much larger")
    assert "color" in panel.ui.regionHintLabel.styleSheet


def test_both_hippocampi_of_a_head_are_found_with_one_click(panel: PanelDriver, head: object) -> None:
    node = panel.segment()
    ids = node.GetSegmentation().GetSegmentIDs()
    assert [node.GetSegmentation().GetSegment(name).GetName() for name in ids] == [
        "Left anterior hippocampus",
        "Left posterior hippocampus",
        "Right anterior hippocampus",
        "Right posterior hippocampus",
    ]
    for name in ids:
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, name, head)
        assert 0.6 < mask.sum() * np.prod(head.GetSpacing()) / 1000 < 4, "in mL"
    rights = [node.GetSegmentCenterRAS(name)[0] for name in ids]
    assert max(rights[:2]) + 30 < min(rights[2:])
