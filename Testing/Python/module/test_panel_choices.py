"""The panel before a run: the chosen model, channels, why Segment is disabled, and saved choices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import slicer
from PySide6 import QtCore, QtWidgets

from conresnet.package.store import find_model, install_model
from module.models import write_four_channels
from module.panel_driver import PanelDriver, result_nodes
from module.test_scene_inputs import add_roi
from slicer_host import dialogs

pytestmark = pytest.mark.usefixtures("warm_engine")


@pytest.fixture
def four_channels(panel: PanelDriver, tmp_path: Path) -> PanelDriver:
    """The panel with a model with four channels."""
    install_model(write_four_channels(tmp_path / "four"))
    panel.widget.modelPanel.refresh()
    panel.choose(panel.ui.modelSelector, "Four channels")
    return panel


def add_volume(name: str) -> object:
    array = np.random.default_rng(len(name)).normal(100, 20, (20, 22, 24)).astype(np.float32)
    return slicer.util.addVolumeFromArray(array, name=name)


def test_chosen_model_is_described(panel: PanelDriver) -> None:
    assert panel.choices.model == "hippocampus"
    assert "Anterior hippocampus" in panel.ui.modelSummaryLabel.text
    details = panel.ui.modelDetailsLabel.text
    for text in ("Intended use", "Limits", "Measured", "mean Dice 0.", "License", "CC-BY-SA-4.0", " slices", "Cite"):
        assert text in details, text
    panel.choose_model("brain-structures")
    summary, details = panel.ui.modelSummaryLabel.text, panel.ui.modelDetailsLabel.text
    assert summary.startswith("MR → 32 structures: Left cerebral white matter") and summary.endswith("and 26 more")
    listed = details.partition("Segments:</b> ")[2].partition("</p>")[0].split(", ")
    assert len(listed) == 32 and listed[-1] == "Right ventral diencephalon"


def test_new_scene_gets_the_last_chosen_model_or_else_the_first(four_channels: PanelDriver) -> None:
    panel = four_channels
    panel.choose_model("hippocampus")
    panel.choose_model("four")
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert panel.choices.model == "four" and panel.ui.modelSelector.currentText == "Four channels"
    shutil.rmtree(find_model("four"))
    panel.widget.modelPanel.refresh()
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert panel.choices.model == panel.ui.modelSelector.itemData(0) and panel.ui.modelSelector.currentIndex == 0


def test_tooltip_of_segment_says_why_it_is_disabled(panel: PanelDriver) -> None:
    assert not panel.ui.applyButton.enabled
    assert panel.ui.applyButton.toolTip == "Choose the volume for T1."
    add_volume("a T1")
    panel.settle()
    assert panel.ui.applyButton.enabled
    assert panel.ui.applyButton.toolTip == "Segment the chosen volumes (Ctrl+Return)."


def test_volume_added_later_is_assigned_to_the_empty_channel(panel: PanelDriver) -> None:
    node = add_volume("brain mprage")
    panel.settle()
    assert panel.widget.channels.nodes == [node]
    assert list(panel.choices.channels) == [node]


def test_users_choice_of_a_volume_is_kept(panel: PanelDriver) -> None:
    add_volume("T1")
    other = add_volume("other")
    panel.settle()
    panel.widget.channels.combos[0].setCurrentNode(other)
    add_volume("another T1")
    panel.settle()
    assert list(panel.choices.channels) == [other]


def test_four_channels_are_assigned_by_name_and_segmented(four_channels: PanelDriver) -> None:
    panel = four_channels
    nodes = {name: add_volume(f"p1_{name}") for name in ("T2", "t1gd", "T1", "FLAIR")}
    panel.settle()
    assert panel.widget.channels.nodes == [nodes[name] for name in ("FLAIR", "T1", "t1gd", "T2")]
    panel.map_box("probability").click()
    segmentation = panel.segment()
    assert segmentation is not None, panel.status
    content = segmentation.GetSegmentation()
    assert [content.GetNthSegment(n).GetName() for n in range(3)] == ["Whole", "Core", "Enhancing"]
    assert [content.GetNthSegment(n).GetLabelValue() for n in range(3)] == [2, 1, 3]
    probability = {
        node.GetAttribute("ConResNet.MapSegment"): slicer.util.arrayFromVolume(node)
        for node in result_nodes()
        if node.GetAttribute("ConResNet.Map") == "probability"
    }
    for number, name in enumerate(("Whole", "Core", "Enhancing")):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, content.GetNthSegmentID(number), nodes["FLAIR"])
        clear = np.abs(probability[name] - 0.5) > 1e-3
        np.testing.assert_array_equal(mask[clear] != 0, probability[name][clear] > 0.5)
        assert f"{name} {mask.sum() / 1000:.2f} mL" in panel.status
    assert (np.minimum(probability["Whole"], probability["Core"]) > 0.5).any(), "the regions do not overlap"


def test_one_volume_for_two_channels_is_refused(four_channels: PanelDriver) -> None:
    panel = four_channels
    node = add_volume("p1_T1")
    for combo in panel.widget.channels.combos:
        combo.setCurrentNode(node)
    assert panel.ui.applyButton.toolTip == "p1_T1 is chosen for both FLAIR and T1."


def test_volumes_of_two_patients_get_a_hint_but_can_be_segmented(four_channels: PanelDriver) -> None:
    panel = four_channels
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    nodes = {}
    for patient in ("Ada", "Bo"):
        item = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), patient)
        study = hierarchy.CreateStudyItem(item, "study")
        for name in ("FLAIR", "T1", "T1c", "T2"):
            nodes[patient, name] = add_volume(f"{name} {patient}")
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(nodes[patient, name]), study)
    panel.settle()
    for combo, name in zip(panel.widget.channels.combos, ("FLAIR", "T1", "T1c", "T2"), strict=True):
        combo.setCurrentNode(nodes["Ada", name])
    hint = panel.ui.channelsHintLabel
    assert hint.isHidden()
    combo = panel.widget.channels.combos[2]
    combo.setCurrentNode(nodes["Bo", "T1c"])
    assert not hint.isHidden()
    assert hint.text == "FLAIR Ada belongs to patient Ada, but T1c Bo belongs to Bo. Choose images of the same patient."
    assert panel.ui.applyButton.enabled
    combo.setCurrentNode(add_volume("T1c from a file"))
    assert hint.isHidden()
    combo.setCurrentNode(nodes["Bo", "T1c"])
    panel.choose_model("hippocampus")
    assert hint.isHidden()


def test_changing_the_model_keeps_the_channel_of_the_same_name(four_channels: PanelDriver) -> None:
    panel = four_channels
    add_volume("T1 A")
    chosen = add_volume("unrelated")
    panel.settle()
    panel.widget.channels.combos[1].setCurrentNode(chosen)
    panel.choose_model("hippocampus")
    assert panel.choices.model == "hippocampus"
    assert list(panel.choices.channels) == [chosen]


def widgets_with_markup() -> list[str]:
    """Names of the widgets in which Qt would interpret markup, which could load any file of this computer."""
    found = []
    for widget in QtWidgets.QApplication.allWidgets():
        texts = [widget.toolTip]
        if isinstance(widget, QtWidgets.QLabel) and widget.textFormat != QtCore.Qt.TextFormat.PlainText:
            texts.append(widget.text)
        found += [widget.objectName for text in texts if "<img" in text]
    return found


def test_markup_in_names_of_models_and_volumes_is_shown_as_text(panel: PanelDriver, tmp_path: Path) -> None:
    picture = f'<img src="{tmp_path}/picture.png">'
    source = write_four_channels(tmp_path / "four")
    content = json.loads((source / "model.json").read_text(encoding="utf-8"))
    for place in (content["inputs"][0], content["output"]["segments"][0]):
        place["name"] += picture
    content["inputs"][1]["modality"] += picture
    content["title"] += picture
    content["output"]["paint_order"][0] += picture
    (source / "model.json").write_text(json.dumps(content), encoding="utf-8")
    install_model(source)
    panel.widget.modelPanel.refresh()
    panel.choose_model("four")
    for name in ("T1", "T1c"):
        add_volume(name + picture)
    panel.settle()
    assert picture in panel.ui.modelSummaryLabel.text
    assert widgets_with_markup() == []
    dialogs.answer("A folder", str(source), "Cancel")
    panel.ui.installModelButton.click()
    node = add_volume(f"p1_T1 {picture}")
    for combo in panel.widget.channels.combos:
        combo.setCurrentNode(node)
    assert picture not in panel.ui.applyButton.toolTip and "p1_T1" in panel.ui.applyButton.toolTip
    assert widgets_with_markup() == []


def test_model_of_a_scene_that_is_not_installed_is_reported(panel: PanelDriver) -> None:
    add_volume("T1")
    panel.leave()
    panel.choices.model = "liver"
    panel.open()
    assert "The model liver is not installed here" in panel.ui.applyButton.toolTip
    assert panel.choices.model == "liver"


def test_choices_are_restored_with_a_saved_scene(four_channels: PanelDriver, tmp_path: Path) -> None:
    panel = four_channels
    names = ["FLAIR", "T1", "T1c", "T2"]
    for name in names:
        add_volume(name)
    panel.settle()
    panel.map_box("residual").click()
    panel.map_box("features").click()
    panel.ui.show3DCheckBox.click()
    panel.choose(panel.ui.precisionSelector, "fp32")
    panel.ui.mapOpacitySlider.value = 0.3
    roi = panel.ui.regionSelector.addNode()
    roi.SetName("my ROI")
    result = panel.segment()
    assert result is not None, panel.status
    shown = panel.choices.shownMap.GetName()
    path = tmp_path / "scene with spaces ü.mrb"
    assert slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert panel.widget.channels.nodes == [None] * 4
    # Other choices than in the saved scene, which must win.
    panel.map_box("residual").click()
    panel.ui.show3DCheckBox.click()
    panel.choose(panel.ui.precisionSelector, "bf16")
    assert "residual" in panel.choices.maps.split()
    slicer.util.loadScene(str(path))
    panel.settle()
    choices = panel.choices
    assert choices.model == "four" and panel.ui.modelSelector.currentText == "Four channels"
    assert [node.GetName() for node in panel.widget.channels.nodes] == names
    assert panel.ui.regionSelector.currentNode().GetName() == "my ROI"
    assert panel.ui.segmentationSelector.currentNode().GetName() == result.GetName()
    assert panel.ui.mapSelector.currentNode().GetName() == shown
    boxes = (panel.map_box("residual"), panel.map_box("attention"), panel.map_box("features"), panel.ui.show3DCheckBox)
    assert [box.checked for box in boxes] == [False, True, True, False]
    assert choices.precision.value == "fp32" and choices.mapOpacity == pytest.approx(0.3)
    again = panel.segment()
    assert again is panel.ui.segmentationSelector.currentNode()
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1, "the unedited result is replaced"


def test_new_scene_gets_the_last_choices_except_those_that_change_results(panel: PanelDriver) -> None:
    ui = panel.ui
    for kind in ("residual", "attention"):
        panel.map_box(kind).click()
    for box in (ui.show3DCheckBox, ui.reviewCheckBox, ui.fastCheckBox, ui.keepLargestCheckBox, ui.fillHolesCheckBox):
        box.click()
    ui.dropBelowSpinBox.value = 2.0
    panel.choose(ui.precisionSelector, "bf16")
    ui.deviceSelector.addItem("The CPU", "cpu")
    panel.choose(ui.deviceSelector, "The CPU")
    for _number in range(2):
        slicer.mrmlScene.Clear(0)
        panel.settle()
        choices = panel.choices
        assert (choices.device, choices.precision.value, choices.maps) == ("auto", "auto", "")
        assert not choices.show3D and not choices.review
        assert not choices.fast and not choices.keepLargest and not choices.fillHoles and choices.dropBelow == 0
        assert not any(panel.map_box(kind).checked for kind in ("residual", "attention"))
        assert not ui.show3DCheckBox.checked and ui.precisionSelector.currentText == "Automatic"
        panel.leave()
        panel.open()


@pytest.mark.parametrize("text", ["[1]", "{", '{"precision": "fp32", "maps": "residual", "fast": true, "model": 3}'])
def test_edited_settings_do_not_break_a_new_scene(panel: PanelDriver, text: str) -> None:
    panel.app.userSettings().setValue("ConResSegmentation/Choices", text)
    slicer.mrmlScene.Clear(0)
    panel.settle()
    choices = panel.choices
    assert choices.precision.value == "auto" and not choices.fast and choices.model
    assert choices.maps == ("residual" if "maps" in text else "residual attention")


def test_edited_segmentation_of_an_opened_scene_is_kept(panel: PanelDriver, volume: object, tmp_path: Path) -> None:
    panel.segment().GetSegmentation().GetNthSegment(1).SetName("mine")
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.settle()
    panel.segment()
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 2


def test_removing_the_parameter_node_resets_the_panel(panel: PanelDriver, volume: object) -> None:
    roi = add_roi((0, 0, 0), (10, 10, 10))
    panel.ui.regionSelector.setCurrentNode(roi)
    panel.ui.fastCheckBox.checked = True
    panel.settle()
    # Users can do this in the Data module, under All nodes.
    slicer.mrmlScene.RemoveNode(panel.choices.parameterNode)
    panel.settle()
    assert panel.ui.regionSelector.currentNode() is panel.choices.region is None
    assert not panel.ui.fastCheckBox.checked and panel.widget.channels.firstNode is volume
    panel.ui.regionSelector.setCurrentNode(roi)
    panel.ui.fastCheckBox.checked = True
    assert panel.choices.region is roi and panel.choices.fast, "the panel and the new node are connected"


def test_closing_scene_empties_the_panel(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert panel.status == ""
    assert panel.choices.segmentation is None and panel.choices.shownMap is None
    assert not panel.ui.applyButton.enabled
    assert result_nodes() == []
