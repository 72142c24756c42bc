"""Post-processing, the fast mode and the smoothing of surfaces in the panel."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from vtk.util import numpy_support

from module.panel_driver import PanelDriver, label_array

pytestmark = pytest.mark.usefixtures("warm_engine")


def surface(segmentation: object) -> np.ndarray:
    """The points of the first segment's surface."""
    name = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    polydata = segmentation.GetSegmentation().GetNthSegment(0).GetRepresentation(name)
    return numpy_support.vtk_to_numpy(polydata.GetPoints().GetData()).copy()


def test_fast_mode_and_post_processing_are_applied_and_reported(panel: PanelDriver, volume: object) -> None:
    before = label_array(panel.segment(), volume)
    assert "(fast)" not in panel.status and "removed" not in panel.status
    ui = panel.ui
    for box in (ui.keepLargestCheckBox, ui.fillHolesCheckBox, ui.fastCheckBox):
        box.click()
    # The segments have 1.84 mL and 1.74 mL.
    ui.dropBelowSpinBox.value = 1.8
    after = label_array(panel.segment(), volume)
    assert (before == 2).any() and not (after == 2).any() and np.count_nonzero(after == 1) > 1700
    assert "(fast)" in panel.status and "Pieces removed:" in panel.status and "Posterior hippocampus" in panel.status
    choices = panel.choices
    assert choices.fast and choices.keepLargest and choices.fillHoles and choices.dropBelow == 1.8


def test_smoothing_slider_applies_to_current_and_later_results(panel: PanelDriver, volume: object) -> None:
    node = panel.segment()
    name = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule.GetSmoothingFactorParameterName()
    smooth = surface(node)
    panel.ui.smoothingSlider.value = 0.0
    panel.settle()
    rough = surface(node)
    assert rough.shape != smooth.shape or not np.allclose(rough, smooth)
    assert panel.segment() is node and np.allclose(surface(node), rough), "an unedited result is replaced"
    panel.choices.segmentation = None
    assert panel.segment().GetSegmentation().GetConversionParameter(name) == "0"
