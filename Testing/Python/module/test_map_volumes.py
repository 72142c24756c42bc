"""Maps in the scene: position, display, comparison, and which of them are kept with a new result."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from ConResSegmentationLib import ResultParts
from module.panel_driver import PanelDriver
from module.result_cases import put_maps
from module.test_scene_inputs import add_transform, rotation


def test_maps_have_geometry_of_input_and_names_of_segments(result: object, volume: object) -> None:
    shape = slicer.util.arrayFromVolume(volume).shape
    residual = np.random.default_rng(0).random((2, *shape)).astype(np.float16)
    maps = {"residual": residual, "features": np.stack([residual[0], residual[1] * 5])}
    nodes = put_maps(maps, result, volume)
    name = volume.GetName()
    assert [node.GetName() for node in nodes] == [
        f"{name} residual Anterior",
        f"{name} residual Posterior",
        f"{name} features before attention",
        f"{name} features after attention",
    ]
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(nodes[1]), residual[1].astype(np.float32))
    for node in nodes:
        matrices = [vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()]
        for owner, matrix in zip((node, volume), matrices, strict=True):
            owner.GetIJKToRASMatrix(matrix)
        np.testing.assert_allclose(*map(slicer.util.arrayFromVTKMatrix, matrices))
        assert node.GetDisplayNode().GetColorNode() is not None
        assert ResultParts.inputOf(node) is volume
    assert nodes[0].GetDisplayNode().GetApplyThreshold()


def test_residual_of_all_segments_together_has_no_segment_name(result: object, volume: object) -> None:
    residual = np.zeros((1, *slicer.util.arrayFromVolume(volume).shape), np.float16)
    (node,) = put_maps({"residual": residual}, result, volume)
    assert node.GetName() == f"{volume.GetName()} residual"


def test_new_result_updates_its_maps_and_removes_the_others(result: object, volume: object) -> None:
    shape = slicer.util.arrayFromVolume(volume).shape
    residual, attention = np.zeros((1, *shape), np.float16), np.ones((1, *shape), np.float16)
    first = put_maps({"residual": residual, "attention": attention}, result, volume, ("A",))
    first[1].GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeRainbow")
    again = put_maps({"attention": attention * 2}, result, volume, ("A",))
    assert again == [first[1]]
    assert slicer.util.arrayFromVolume(again[0]).max() == 2
    assert again[0].GetDisplayNode().GetColorNodeID() == "vtkMRMLColorTableNodeRainbow"
    assert first[0].GetScene() is None


def test_maps_are_updated_if_slicers_language_was_changed(
    result: object, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.ones((2, *slicer.util.arrayFromVolume(volume).shape), np.float16)
    maps = {"residual": array, "features": array}
    first = put_maps(maps, result, volume)
    monkeypatch.setattr(ResultParts, "_", lambda text: f"{text} in French")
    monkeypatch.setattr(ResultParts, "translate", lambda context, text: f"{text} in French")
    assert put_maps(maps, result, volume) == first
    slicer.mrmlScene.RemoveNode(first[3])
    (*_kept, new) = put_maps(maps, result, volume)
    assert new.GetName().endswith("features after attention in French")


def test_display_removed_while_maps_are_added_is_restored(result: object, volume: object) -> None:
    """Without a display node, Slicer's slice views crash when the segmentation gets a node reference."""
    arrays = {"attention": np.ones((1, *slicer.util.arrayFromVolume(volume).shape), np.float16)}
    steps = ResultParts.putMaps(ResultParts.splitMaps(arrays, ["Anterior", "Posterior"]), result, volume)
    next(steps)
    slicer.mrmlScene.RemoveNode(result.GetDisplayNode())
    for _step in steps:
        pass
    assert len(ResultParts.mapNodes(result)) == 1
    assert result.GetDisplayNode() is not None and not result.GetDisplayNode().GetVisibility3D()


def put_map_in(box: tuple[slice, ...], result: object, volume: object, kind: str = "attention") -> object:
    """Add a map to the scene that has values from 0.2 to 0.8 in a box [k, j, i] and none elsewhere."""
    array = np.zeros((1, *slicer.util.arrayFromVolume(volume).shape), np.float16)
    part = array[(0, *box)]
    part[...] = np.random.default_rng(1).uniform(0.2, 0.8, part.shape)
    (node,) = put_maps({kind: array}, result, volume)
    return node


def ijk_to_world(node: object) -> np.ndarray:
    matrix, to_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    return slicer.util.arrayFromVTKMatrix(to_world) @ slicer.util.arrayFromVTKMatrix(matrix)


def test_map_is_cropped_to_the_computed_voxels(result: object, volume: object) -> None:
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(rotation(25, (30, -20, 10)) @ np.diag((-0.9, 0.8, 2.5, 1))))
    volume.SetAndObserveTransformNodeID(add_transform(rotation(40, (1, 2, 3))).GetID())
    for box in (np.s_[9:14, 21:40, 3:17], np.s_[2:4, 0:30, 15:36]):
        array = np.zeros((2, *slicer.util.arrayFromVolume(volume).shape), np.float16)
        array[(slice(None), *box)] = np.random.default_rng(1).normal(size=array[(slice(None), *box)].shape)
        # A network's value can be 0 anywhere: a voxel counts as not computed only if all maps are 0 there.
        array[0, :, :, 16:] = 0
        nodes = put_maps({"features": array}, result, volume)
        for node, component in zip(nodes, array, strict=True):
            values = slicer.util.arrayFromVolume(node)
            assert values.shape == component[box].shape
            np.testing.assert_array_equal(values, component[box])
            for corner, voxel in (((0, 0, 0), [part.start for part in box]), (values.shape, [p.stop for p in box])):
                world, expected = ijk_to_world(node) @ (*corner[::-1], 1), ijk_to_world(volume) @ (*voxel[::-1], 1)
                np.testing.assert_allclose(world, expected, atol=1e-9)
            assert node.GetParentTransformNode() is volume.GetParentTransformNode()


def test_display_range_covers_only_computed_voxels_even_in_a_single_slice(result: object, volume: object) -> None:
    tall = slicer.util.addVolumeFromArray(np.zeros((65, 4, 4), np.int16))
    display = put_map_in(np.s_[33:34, 0:4, 0:4], result, tall).GetDisplayNode()
    assert 0.2 <= display.GetWindowLevelMin() < display.GetWindowLevelMax() <= 0.8


def test_voxels_without_attention_are_hidden_unless_user_changes_the_threshold(result: object, volume: object) -> None:
    box = np.s_[9:14, 21:40, 3:17]
    node = put_map_in(box, result, volume)
    display, lowest = node.GetDisplayNode(), slicer.util.arrayFromVolume(node).min()
    assert display.GetApplyThreshold() and 0.2 <= lowest == display.GetLowerThreshold()
    display.SetWindowLevelMinMax(0.25, 0.75)
    other = np.s_[10:12, 21:23, 3:5]
    assert put_map_in(other, result, volume) is node
    assert display.GetLowerThreshold() == slicer.util.arrayFromVolume(node).min() > lowest
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.25, 0.75)
    display.SetThreshold(0.6, 1)
    put_map_in(box, result, volume)
    assert display.GetLowerThreshold() == 0.6, "chosen by the user"
    display.SetApplyThreshold(False)
    put_map_in(box, result, volume)
    assert not display.GetApplyThreshold()


def test_predicted_and_actual_residual_side_by_side(panel: PanelDriver, result: object, volume: object) -> None:
    shape = slicer.util.arrayFromVolume(volume).shape
    kinds = ("residual", "result_residual", "residual_difference")
    arrays = {kind: np.full((2, *shape), 0.5, np.float16) for kind in kinds}
    maps = put_maps({"residual": arrays["residual"]}, result, volume)
    panel.choices.segmentation = result
    panel.settle()
    assert not panel.ui.compareMapsButton.enabled and panel.ui.compareMapsButton.toolTip
    maps = put_maps(arrays, result, volume)
    for node in maps:
        node.SetAttribute("ConResNet.ResidualPlane", "coronal")
    panel.widget.comparisonButton.update(result)
    panel.choices.shownMap = maps[1]
    panel.settle()
    manager = slicer.app.layoutManager()
    before = (manager.layout, [foreground(name) for name in ("Red", "Green", "Yellow")])
    panel.ui.compareMapsButton.click()
    views = ("ConResPredicted", "ConResActual", "ConResDifference")
    assert manager.layout != before[0]
    assert [foreground(name) for name in views] == [maps[n].GetID() for n in (1, 3, 5)], "of the chosen map's segment"
    for name in views:
        composite = manager.sliceWidget(name).mrmlSliceCompositeNode()
        assert composite.GetLinkedControl() and composite.GetBackgroundVolumeID() == volume.GetID()
        assert manager.sliceWidget(name).mrmlSliceNode().GetOrientation() == "Coronal"
    panel.choices.shownMap = maps[0]
    panel.settle()
    assert [foreground(name) for name in views] == [maps[n].GetID() for n in (0, 2, 4)]
    panel.choices.shownMap = maps[1]
    panel.settle()
    panel.ui.compareMapsButton.click()
    assert (manager.layout, [foreground(name) for name in ("Red", "Green", "Yellow")]) == before
    assert not panel.ui.compareMapsButton.checked
    panel.ui.compareMapsButton.click()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    assert not panel.ui.compareMapsButton.checked and panel.ui.compareMapsButton.enabled
    panel.ui.compareMapsButton.click()
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
    assert not panel.ui.compareMapsButton.checked and not panel.ui.compareMapsButton.enabled


def foreground(view: str) -> str:
    return slicer.app.layoutManager().sliceWidget(view).mrmlSliceCompositeNode().GetForegroundVolumeID()
