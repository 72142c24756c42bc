"""Images of a real brain tumor in the panel: four volumes are assigned to channels, and regions become segments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import slicer

from conresnet.cli import main
from conresnet.package.store import find_model, install_model, write_package
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import with_settings
from conresnet_training.planning.planner import Choices, make_plan
from engine.coarse_to_fine_cases import random_weights
from module.panel_driver import PanelDriver
from training.data_folders import brats

# Named as by their publisher, in an order that no model has.
LOADED = {"pat2_FLAIR": 3, "pat2_T1": 0, "pat2_T2": 2, "pat2_T1GD": 1}
REGIONS = {"Enhancing tumor": (4,), "Tumor core": (1, 4), "Whole tumor": (1, 2, 4)}


@pytest.fixture
def tumor_model(tmp_path: Path) -> str:
    """An installed model with random weights, planned for BraTS."""
    data_set = brats(tmp_path / "tumor")
    plan = make_plan(read_data_set(data_set), data_set, choices=Choices(base_width=8))[0]
    plan = with_settings(plan, ["model.inference.window=[24, 32, 32]", "model.preparation.spacing=[4, 4, 4]"])
    package = write_package(
        plan.model,
        {"network.safetensors": safetensors.torch.save(random_weights(plan.document()["model"], 0))},
        tmp_path / "package" / "tumor",
    )
    install_model(package.path)
    return package.description.name


def test_four_channels_in_any_order_give_overlapping_segments(
    panel: PanelDriver, tumor_model: str, tumor_images: list[Path], tmp_path: Path
) -> None:
    loaded = {name: slicer.util.loadVolume(str(tumor_images[place]), {"name": name}) for name, place in LOADED.items()}
    panel.widget.modelPanel.refresh()
    panel.choose_model(tumor_model)
    assert panel.widget.channels.nodes == [loaded[name] for name in sorted(LOADED, key=LOADED.get)]
    node = panel.segment()
    assert node is not None and panel.status.startswith("Done in"), panel.status

    output = tmp_path / "out"
    images = [str(tumor_images[place]) for place in (2, 0, 3, 1)]
    command = ["segment", *images, "--model", str(find_model(tumor_model)), "--output", str(output)]
    assert main([*command, "--device", "cpu"]) == 0
    labels = slicer.util.loadLabelVolume(str(output / "segmentation.nii.gz"))
    labels = slicer.util.arrayFromVolume(labels)
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    volumes = json.loads((output / "report.json").read_text(encoding="utf-8"))["volumes_ml"]
    content, display = node.GetSegmentation(), node.GetDisplayNode()
    assert content.GetNumberOfSegments() == 3
    for name, values in REGIONS.items():
        segment_id = content.GetSegmentIdBySegmentName(name)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, loaded["pat2_T1"]) != 0
        np.testing.assert_array_equal(mask, np.isin(labels, values), name)
        assert f"{name} {volumes[name]:.2f} mL" in panel.status
        # A segment that encloses others is translucent.
        assert (display.GetSegmentOpacity3D(segment_id) < 1) == (len(values) > 1)
        display.SetSegmentOpacity3D(segment_id, 0.6)
    assert panel.segment() is node
    assert {display.GetSegmentOpacity3D(key) for key in content.GetSegmentIDs()} == {0.6}, "the user's choice is kept"
