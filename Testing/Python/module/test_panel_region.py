"""The region in the panel: when one is advised, and where a new one is placed."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from module.panel_driver import PanelDriver
from module.test_scene_inputs import rotation

pytestmark = pytest.mark.usefixtures("warm_engine")


def test_a_region_is_advised_for_a_head_and_placed_where_the_slices_cross(panel: PanelDriver, head: object) -> None:
    panel.settle()
    assert panel.ui.regionHintLabel.text.startswith("The image is much larger")
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        slicer.mrmlScene, -29.0, -22.0, -12.0, slicer.vtkMRMLSliceNode.OffsetJumpSlice
    )
    region = panel.ui.regionSelector.addNode()
    center, size = [0.0] * 3, [0.0] * 3
    region.GetCenterWorld(center)
    region.GetSizeWorld(size)
    np.testing.assert_allclose(center, (-29, -22, -12), atol=1.5)
    assert max(size) < 120 and min(size) > 20
    assert panel.choices.region is region
    assert panel.ui.regionHintLabel.text == ""


def test_a_region_is_placed_where_turned_slices_cross(panel: PanelDriver, head: object) -> None:
    matrix = vtk.vtkMatrix4x4()
    head.GetIJKToRASMatrix(matrix)
    turned = rotation(12, (0, 0, 0)) @ slicer.util.arrayFromVTKMatrix(matrix)
    head.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(turned))
    crossing = (rotation(12, (0, 0, 0)) @ (-29.0, -22.0, -12.0, 1.0))[:3]
    views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    panel.settle()

    def placed() -> np.ndarray:
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *crossing, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
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


def test_no_region_is_advised_for_a_crop(panel: PanelDriver, volume: object) -> None:
    panel.settle()
    assert panel.ui.regionHintLabel.text == ""


def test_no_region_is_advised_for_a_model_of_whole_scans(panel: PanelDriver, head: object) -> None:
    panel.settle()
    assert panel.ui.regionHintLabel.text
    panel.choose_model("brain-tissue")
    panel.settle()
    assert panel.ui.regionHintLabel.text == ""
