"""What becomes of the results there are when one segments again, with another region, image or model."""

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
from module.test_scene_inputs import add_region
from slicer_host import dialogs
from worker.models import make_model

pytestmark = pytest.mark.usefixtures("warm_engine")


def half_region(volume: object, side: int) -> object:
    """A region that holds the posterior (-1) or the anterior (1) half of a volume."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = np.array(bounds).reshape(3, 2).T
    size = (high - low) * (1, 0.5, 1)
    return add_region(tuple((low + high) / 2 + (0, side * size[1] / 2, 0)), tuple(size))


def region_mask(region: object, volume: object) -> np.ndarray:
    """The voxels of a volume whose centers lie in a region."""
    to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(to_ras)
    matrix = slicer.util.arrayFromVTKMatrix(to_ras)
    k, j, i = np.indices(slicer.util.arrayFromVolume(volume).shape)
    ras = np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    return (np.abs(ras - region.GetCenter()) <= np.array(region.GetSize()) / 2).all(axis=-1)


def segmentations() -> list[object]:
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def foregrounds() -> set[str | None]:
    return {c.GetForegroundVolumeID() for c in slice_composites()}


def test_a_result_of_another_region_stays(panel: PanelDriver, volume: object) -> None:
    region = half_region(volume, -1)
    panel.ui.regionSelector.setCurrentNode(region)
    back = panel.segment()
    before = label_array(back, volume)
    region.SetCenter(half_region(volume, 1).GetCenter())
    front = panel.segment()
    assert front is not back
    np.testing.assert_array_equal(label_array(back, volume), before)
    assert label_array(front, volume).any() and before.any()
    region.SetSize(np.array(region.GetSize()) + 2)
    assert panel.segment() is front, "a region that holds all of a result gives a better one of the same"
    panel.ui.regionSelector.setCurrentNode(None)
    assert panel.segment() is front
    assert len(segmentations()) == 2


def test_a_result_whose_display_was_deleted_is_computed_again(panel: PanelDriver, volume: object) -> None:
    node = panel.segment()
    slicer.mrmlScene.RemoveNode(node.GetDisplayNode())
    panel.settle()
    assert panel.segment() is node and panel.status.startswith("Done in")
    assert node.GetDisplayNode().GetVisibility()


def test_slicers_views_never_see_the_memory_of_a_deleted_display(panel: PanelDriver, result: object) -> None:
    deleted = []
    result.GetDisplayNode().AddObserver("DeleteEvent", lambda caller, event: deleted.append(event))
    slicer.mrmlScene.RemoveNode(result.GetDisplayNode())
    panel.settle()
    gc.collect()
    assert not deleted
    slicer.mrmlScene.Clear(0)
    gc.collect()
    assert deleted


def test_a_module_loaded_at_run_time_guards_displays_that_are_there_already(repository: Path) -> None:
    """In a process of its own: other tests have loaded the module."""
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


def test_images_segmented_in_turn_have_a_result_each(
    panel: PanelDriver, volume: object, hippocampus_image: Path
) -> None:
    other = slicer.util.loadVolume(str(hippocampus_image))
    selector = panel.widget.channels.combos[0]
    made = []
    for node in (volume, other, volume, other):
        selector.setCurrentNode(node)
        made.append(panel.segment())
        assert "was kept unchanged" not in panel.warnings
    assert made[:2] == made[2:] and len(segmentations()) == 2
    assert len(result_nodes()) == 2 * 4


def test_another_image_in_a_further_channel_makes_another_result(panel: PanelDriver, tmp_path: Path) -> None:
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


def test_what_was_chosen_at_the_click_is_segmented(panel: PanelDriver, volume: object, hippocampus_image: Path) -> None:
    other = slicer.util.loadVolume(str(hippocampus_image))
    panel.widget.channels.combos[0].setCurrentNode(volume)
    panel.click_segment()
    panel.widget.channels.combos[0].setCurrentNode(other)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    (node,) = segmentations()
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume


def test_a_model_replaced_after_the_click_is_not_taken_for_the_chosen_one(
    panel: PanelDriver, volume: object, tmp_path: Path
) -> None:
    install_model(make_model(tmp_path / "first"))
    panel.widget.modelPanel.refresh()
    panel.choose_model("organ")
    panel.click_segment()
    install_model(make_model(tmp_path / "second", base_width=16), overwrite=True)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "was replaced" in panel.status and not segmentations()
    assert panel.segment() is not None
    # Nor one that was replaced while the panel still showed another one.
    install_model(make_model(tmp_path / "third"), overwrite=True)
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "was replaced" in panel.status


def test_a_fault_of_the_panel_does_not_leave_the_run_running(
    panel: PanelDriver, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel.widget.runPanel, "_onFinished", lambda outcome: 1 / 0)
    panel.segment()
    assert panel.status.startswith("Done in") and panel.ui.applyButton.enabled
    assert "ZeroDivisionError" in panel.ui.logTextEdit.toPlainText()


def test_a_region_removed_after_the_click_never_means_the_whole_image(panel: PanelDriver, volume: object) -> None:
    region = half_region(volume, 1)
    panel.ui.regionSelector.setCurrentNode(region)
    panel.click_segment()
    inside = region_mask(region, volume)
    slicer.mrmlScene.RemoveNode(region)
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    if not result_nodes():
        assert panel.status == "R was removed before the segmentation started; choose the inputs and click Segment."
        return
    # A warm engine may have been asked before the region was gone.
    labels = label_array(panel.choices.segmentation, volume)
    assert labels.any() and not labels[~inside].any()


def test_a_result_stays_where_the_user_has_put_it_and_is_shown(panel: PanelDriver, volume: object) -> None:
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


def test_a_map_is_laid_over_the_slices_of_who_waits_in_another_module(panel: PanelDriver, volume: object) -> None:
    panel.click_segment()
    panel.leave()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    residual = result_nodes()[1]
    assert foregrounds() == {residual.GetID()}
    panel.open()
    assert panel.ui.mapSelector.currentNode() is residual
    panel.ui.mapOpacitySlider.value = 0.9
    assert {c.GetForegroundOpacity() for c in slice_composites()} == {0.9}


def test_a_map_that_something_else_took_the_place_of_comes_back_when_chosen_again(
    panel: PanelDriver, volume: object
) -> None:
    panel.segment()
    residual = result_nodes()[1]
    slicer.util.setSliceViewerLayers(foreground=None)
    assert foregrounds() == {None}
    panel.ui.mapSelector.nodeActivated.emit(residual)
    assert foregrounds() == {residual.GetID()}


def test_what_the_user_had_in_the_foreground_comes_back_when_no_map_is_over_it(
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
    assert layers() == {(volume.GetID(), 0.5)}, "what the user has put in the map's place stays"
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


def test_the_map_of_a_scene_that_is_imported_into_another_one_can_be_hidden_and_shown(
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


def test_who_chose_no_map_gets_none_over_the_next_result(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    panel.ui.mapSelector.setCurrentNode(None)
    node = panel.segment()
    assert foregrounds() == {None} and panel.ui.mapSelector.currentNode() is None
    assert node.GetDisplayNode().GetVisibility2DFill()


@pytest.mark.parametrize("names", [("FLAIR", "T1", "T1c", "T2"), ("a", "b", "c", "d")])
def test_a_scene_keeps_its_channels_while_its_model_is_not_here(
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


def test_a_map_that_takes_the_place_of_a_removed_volume_is_not_segmented(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    slicer.mrmlScene.RemoveNode(volume)
    panel.settle()
    (taken,) = panel.widget.channels.nodes
    assert taken is result_nodes()[1]
    assert not panel.ui.applyButton.enabled
    assert panel.ui.applyButton.toolTip == f"{taken.GetName()} is a map; choose an image for T1."
