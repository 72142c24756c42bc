"""Models of systems other than ConResNet in the panel: maps that they do not provide, and warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conresnet.package.store import install_model
from engine.coarse_to_fine_cases import coarse_to_fine, random_weights, write_pair
from engine.model_cases import description
from module.panel_driver import PanelDriver, label_array, result_nodes

pytestmark = pytest.mark.usefixtures("warm_engine")


@pytest.fixture
def coarse_to_fine_panel(panel: PanelDriver, volume: object, tmp_path: Path) -> PanelDriver:
    """The panel with two coarse-to-fine models: "Found" finds something, "Blind" finds nothing."""
    one = description("resdsn", base_width=8)
    for name, background in (("Found", -2.0), ("Blind", 1000.0)):
        document = coarse_to_fine(one, coarse_windows=1, fine_windows=1)
        document |= {"name": name.lower(), "title": name}
        weights = [random_weights(document, index) for index in (0, 1)]
        weights[0]["head.bias"][0] = background
        install_model(write_pair(tmp_path / name, document, *weights).path)
    panel.widget.modelPanel.refresh()
    return panel


def test_maps_that_a_model_does_not_provide_are_not_requested(
    coarse_to_fine_panel: PanelDriver, volume: object
) -> None:
    panel = coarse_to_fine_panel
    assert panel.map_box("residual").enabled and panel.map_box("residual").checked
    panel.choose(panel.ui.modelSelector, "Found")
    boxes = (panel.map_box("residual"), panel.map_box("attention"), panel.map_box("features"))
    assert [box.enabled for box in boxes] == [False, False, False] and panel.map_box("probability").enabled
    assert "Residual" not in panel.ui.modelDetailsLabel.text
    panel.map_box("probability").click()
    node = panel.segment()
    assert panel.status.startswith("Done in") and label_array(node, volume).any()
    assert {node.GetAttribute("ConResNet.Map") for node in result_nodes()[1:]} == {"probability"}
    panel.choose_model("hippocampus")
    assert all(box.enabled for box in boxes) and panel.map_box("residual").checked


def test_coarse_pass_that_finds_nothing_gets_a_warning(coarse_to_fine_panel: PanelDriver, volume: object) -> None:
    panel = coarse_to_fine_panel
    panel.choose(panel.ui.modelSelector, "Blind")
    node = panel.segment()
    assert "The model found nothing in this image" in panel.warnings
    assert "The model found nothing in this image" in panel.ui.logTextEdit.toPlainText()
    assert not np.any(label_array(node, volume))
