"""Existing results when segmenting again with another ROI, image or model."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

from conresnet.package.store import find_model, install_model
from module.models import write_four_channels
from module.panel_driver import PanelDriver, label_array, result_nodes, slice_composites
from module.result_cases import put_maps
from module.test_scene_inputs import add_roi
from slicer_host import dialogs
from worker.models import make_model

pytestmark = pytest.mark.usefixtures("warm_engine")


def half_roi(volume: object, side: int) -> object:
    """An ROI around the posterior (-1) or the anterior (1) half of a volume."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = np.array(bounds).reshape(3, 2).T
    size = (high - low) * (1, 0.5, 1)
    return add_roi(tuple((low + high) / 2 + (0, side * size[1] / 2, 0)), tuple(size))


def roi_mask(roi: object, volume: object) -> np.ndarray:
    """Mask of the voxels of a volume whose centers are in an ROI."""
    to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(to_ras)
    matrix = slicer.util.arrayFromVTKMatrix(to_ras)
    k, j, i = np.indices(slicer.util.arrayFromVolume(volume).shape)
    ras = np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    return (np.abs(ras - roi.GetCenter()) <= np.array(roi.GetSize()) / 2).all(axis=-1)


def segmentations() -> list[object]:
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def foregrounds() -> set[str | None]:
    return {c.GetForegroundVolumeID() for c in slice_composites()}


def test_result_of_another_roi_is_kept(panel: PanelDriver, volume: object) -> None:
    roi = half_roi(volume, -1)
    panel.ui.regionSelector.setCurrentNode(roi)
    posterior = panel.segment()
    before = label_array(posterior, volume)
    roi.SetCenter(half_roi(volume, 1).GetCenter())
    anterior = panel.segment()
    assert anterior is not posterior
    np.testing.assert_array_equal(label_array(posterior, volume), before)
    assert label_array(anterior, volume).any() and before.any()
    roi.SetSize(np.array(roi.GetSize()) + 2)
    assert panel.segment() is anterior, "a larger ROI around the earlier one replaces its result"
    panel.ui.regionSelector.setCurrentNode(None)
    assert panel.segment() is anterior
    assert len(segmentations()) == 2


def test_result_whose_display_was_deleted_is_replaced(panel: PanelDriver, volume: object) -> None:
    node = panel.segment()
    slicer.mrmlScene.RemoveNode(node.GetDisplayNode())
    panel.settle()
    assert panel.segment() is node and panel.status.startswith("Done in")
    assert node.GetDisplayNode().GetVisibility()


def test_deleted_display_is_kept_in_memory_until_the_scene_is_closed(panel: PanelDriver, result: object) -> None:
    deleted = []
    result.GetDisplayNode().AddObserver("DeleteEvent", lambda caller, event: deleted.append(event))
    slicer.mrmlScene.RemoveNode(result.GetDisplayNode())
    panel.settle()
    gc.collect()
    assert not deleted
    slicer.mrmlScene.Clear(0)
    gc.collect()
    assert deleted


def test_module_loaded_at_run_time_also_keeps_existing_displays_in_memory(repository: Path) -> None:
    """Runs in a separate process, because other tests have loaded the module."""
    program = """
import gc, sys
from slicer_host import slot_errors, start_application
import slicer
app = start_application()
node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
node.CreateDefaultDisplayNodes()
module = app.moduleManager().load(sys.argv[1], at_run_time=True)
slicer.util.selectModule("ConResSegmentation")
module.widgetRepresentation().self().onReload()
deleted = []
node.GetDisplayNode().AddObserver("DeleteEvent", lambda caller, event: deleted.append(event))
slicer.mrmlScene.RemoveNode(node.GetDisplayNode())
app.processEvents()
gc.collect()
print(bool(deleted), slot_errors)
slicer.mrmlScene.Clear(0)
gc.collect()
print(bool(deleted), slot_errors)
app.quit_host()
"""
    module = repository / "ConResSegmentation" / "ConResSegmentation.py"
    host = repository / "Testing" / "SlicerHost"
    run = subprocess.run(
        [sys.executable, "-c", program, str(module)], cwd=host, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.splitlines()[-2:] == ["False []", "True []"], run.stderr


def test_images_segmented_in_turn_each_keep_their_result(
    panel: PanelDriver, volume: object, hippocampus_image: Path
) -> None:
    other = slicer.util.loadVolume(str(hippocampus_image))
    selector = panel.widget.channels.combos[0]
    results = []
    for node in (volume, other, volume, other):
        selector.setCurrentNode(node)
        results.append(panel.segment())
        assert "was kept unchanged" not in panel.warnings
    assert results[:2] == results[2:] and len(segmentations()) == 2
    assert len(result_nodes()) == 2 * 4


def test_another_image_in_any_channel_creates_another_result(panel: PanelDriver, tmp_path: Path) -> None:
    install_model(write_four_channels(tmp_path / "four"))
    panel.widget.modelPanel.refresh()
    panel.choose_model("four")
    for name in ("FLAIR", "T1", "T1c", "T2", "follow-up"):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(node, np.random.default_rng(len(name)).random((12, 12, 12), np.float32))
    panel.settle()
    first = panel.segment()
    panel.widget.channels.combos[2].setCurrentNode(slicer.util.getNode("follow-up"))
    assert panel.segment() is not first


def test_inputs_are_those_chosen_when_segment_was_clicked(
    panel: PanelDriver, volume: object, hippocampus_image: Path
) -> None:
    other = slicer.util.loadVolume(str(hippocampus_image))
    panel.widget.channels.combos[0].setCurrentNode(volume)
    panel.click_segment()
    panel.widget.channels.combos[0].setCurrentNode(other)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    (node,) = segmentations()
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume


def test_model_replaced_after_the_click_is_refused(panel: PanelDriver, volume: object, tmp_path: Path) -> None:
    install_model(make_model(tmp_path / "first"))
    panel.widget.modelPanel.refresh()
    panel.choose_model("organ")
    panel.click_segment()
    install_model(make_model(tmp_path / "second", base_width=16), overwrite=True)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "was replaced" in panel.status and not segmentations()
    assert panel.segment() is not None
    # The same applies to a model that was replaced while the panel still showed the earlier one.
    install_model(make_model(tmp_path / "third"), overwrite=True)
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "was replaced" in panel.status


def test_internal_error_of_the_panel_ends_the_run(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel.widget.runPanel, "_onFinished", lambda outcome: 1 / 0)
    panel.segment()
    assert panel.status.startswith("Done in") and panel.ui.applyButton.enabled
    assert "ZeroDivisionError" in panel.ui.logTextEdit.toPlainText()


def test_roi_removed_after_the_click_does_not_mean_the_whole_image(panel: PanelDriver, volume: object) -> None:
    roi = half_roi(volume, 1)
    panel.ui.regionSelector.setCurrentNode(roi)
    panel.click_segment()
    inside = roi_mask(roi, volume)
    slicer.mrmlScene.RemoveNode(roi)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    if not result_nodes():
        assert panel.status == "R was removed before the segmentation started; choose the inputs and click Segment."
        return
    # A warm engine may have received the request before the ROI was removed.
    labels = label_array(panel.choices.segmentation, volume)
    assert labels.any() and not labels[~inside].any()


def test_replaced_result_stays_in_the_users_folder_and_is_shown(panel: PanelDriver, volume: object) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    node = panel.segment()
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Final")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), folder)
    node.SetName("left")
    node.GetDisplayNode().SetVisibility(False)
    places = {map_node: hierarchy.GetItemParent(hierarchy.GetItemByDataNode(map_node)) for map_node in result_nodes()}
    panel.map_box("probability").click()
    assert panel.segment() is node
    assert node.GetDisplayNode().GetVisibility()
    for result, place in places.items():
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == place
    new = next(n for n in result_nodes() if n.GetAttribute("ConResNet.Map") == "probability")
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(new)) in places.values()


def test_run_continues_and_map_is_shown_while_another_module_is_open(panel: PanelDriver, volume: object) -> None:
    panel.click_segment()
    panel.leave()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    residual = result_nodes()[1]
    assert foregrounds() == {residual.GetID()}
    panel.open()
    assert panel.ui.segmentationSelector.currentNode() is result_nodes()[0]
    assert panel.ui.mapSelector.currentNode() is residual
    panel.ui.mapOpacitySlider.value = 0.9
    assert {c.GetForegroundOpacity() for c in slice_composites()} == {0.9}


def test_map_that_was_replaced_in_the_slices_is_shown_again_when_chosen_again(
    panel: PanelDriver, volume: object
) -> None:
    panel.segment()
    residual = result_nodes()[1]
    slicer.util.setSliceViewerLayers(foreground=None)
    assert foregrounds() == {None}
    panel.ui.mapSelector.nodeActivated.emit(residual)
    assert foregrounds() == {residual.GetID()}


def test_users_foreground_is_restored_when_no_map_is_shown(
    panel: PanelDriver, volume: object, hippocampus_image: Path, tmp_path: Path
) -> None:
    pet = slicer.util.loadVolume(str(hippocampus_image), {"name": "PET"})
    panel.settle()
    panel.widget.channels.combos[0].setCurrentNode(volume)
    composites = slice_composites()

    def layers() -> set[tuple]:
        return {(c.GetForegroundVolumeID(), round(c.GetForegroundOpacity(), 6)) for c in composites}

    slicer.util.setSliceViewerLayers(background=volume, foreground=pet, foregroundOpacity=0.3)
    panel.segment()
    residual, _other, attention = result_nodes()[1:]
    assert layers() == {(residual.GetID(), 0.5)}
    panel.ui.mapSelector.setCurrentNode(attention)
    panel.segment()
    panel.ui.mapSelector.setCurrentNode(None)
    assert layers() == {(pet.GetID(), 0.3)}
    panel.ui.mapSelector.setCurrentNode(attention)
    slicer.util.setSliceViewerLayers(foreground=volume)
    panel.ui.mapSelector.setCurrentNode(None)
    assert layers() == {(volume.GetID(), 0.5)}, "the user's replacement for the map is kept"
    slicer.util.setSliceViewerLayers(foreground=pet, foregroundOpacity=0.3)
    panel.ui.mapSelector.setCurrentNode(attention)
    for node in result_nodes()[1:]:
        slicer.mrmlScene.RemoveNode(node)
    assert panel.ui.mapSelector.currentNode() is None and layers() == {(pet.GetID(), 0.3)}
    panel.segment()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.settle()
    composites = slice_composites()
    assert layers() == {(panel.choices.shownMap.GetID(), 0.5)}
    panel.ui.mapSelector.setCurrentNode(None)
    assert layers() == {(slicer.util.getNode("PET").GetID(), 0.3)}
    panel.ui.mapSelector.setCurrentNode(result_nodes()[1])
    slicer.mrmlScene.RemoveNode(slicer.util.getNode("PET"))
    panel.ui.mapSelector.setCurrentNode(None)
    assert layers() == {(None, 0.3)}


def test_map_of_an_imported_scene_can_be_hidden_and_shown(
    panel: PanelDriver, result: object, volume: object, hippocampus_image: Path, tmp_path: Path
) -> None:
    shape = slicer.util.arrayFromVolume(volume).shape
    (node,) = put_maps({"attention": np.ones((1, *shape), np.float16)}, result, volume)
    panel.choices.shownMap = node
    panel.settle()
    before = node.GetID()
    assert foregrounds() == {before}
    shown, hidden = (str(tmp_path / f"{name}.mrb") for name in ("shown", "hidden"))
    assert slicer.util.saveScene(shown)
    panel.widget.overlayPanel.toggle()
    assert slicer.util.saveScene(hidden)

    def import_into_other(scene: str) -> None:
        slicer.mrmlScene.Clear(0)
        others = [slicer.util.loadVolume(str(hippocampus_image)) for _number in range(3)]
        assert before in [other.GetID() for other in others], "an ordinary volume has the ID of the map"
        slicer.mrmlScene.ReadFromMRB(scene, False)
        panel.settle()

    import_into_other(hidden)
    assert panel.ui.mapSelector.currentNode() is None
    panel.widget.overlayPanel.toggle()
    assert panel.ui.mapSelector.currentNode() is not None
    import_into_other(shown)
    assert foregrounds() == {panel.ui.mapSelector.currentNode().GetID()} != {before}
    panel.ui.mapSelector.setCurrentNode(None)
    assert foregrounds() == {None}


def test_no_map_is_shown_for_the_next_result_if_none_was_chosen(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    panel.ui.mapSelector.setCurrentNode(None)
    node = panel.segment()
    assert foregrounds() == {None} and panel.ui.mapSelector.currentNode() is None
    assert node.GetDisplayNode().GetVisibility2DFill()


@pytest.mark.parametrize("names", [("FLAIR", "T1", "T1c", "T2"), ("a", "b", "c", "d")])
def test_channels_of_a_scene_are_kept_while_its_model_is_not_installed(
    panel: PanelDriver, tmp_path: Path, names: tuple[str, ...]
) -> None:
    source = write_four_channels(tmp_path / "four")
    install_model(source)
    panel.widget.modelPanel.refresh()
    panel.choose_model("four")
    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in names]
    for selector, node in zip(panel.widget.channels.combos, nodes, strict=True):
        slicer.util.updateVolumeFromArray(node, np.zeros((4, 4, 4)))
        selector.setCurrentNode(node)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    panel.choose_model("hippocampus")
    shutil.rmtree(find_model("four"))
    panel.widget.modelPanel.refresh()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.settle()
    assert not panel.ui.applyButton.enabled
    assert [node.GetName() for node in panel.choices.channels] == list(names)
    dialogs.answer("A folder", str(source))
    panel.ui.installModelButton.click()
    panel.settle()
    assert [node.GetName() for node in panel.widget.channels.nodes] == list(names)


def test_map_selected_after_removal_of_the_volume_is_not_segmented(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    slicer.mrmlScene.RemoveNode(volume)
    panel.settle()
    (selected,) = panel.widget.channels.nodes
    assert selected is result_nodes()[1]
    assert not panel.ui.applyButton.enabled
    assert panel.ui.applyButton.toolTip == f"{selected.GetName()} is a map; choose an image for T1."
