"""A map in 3D: values, colors, and that it is shown, hidden and removed along with the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from scipy.ndimage import map_coordinates
from vtk.util.numpy_support import vtk_to_numpy

from module.panel_driver import PanelDriver
from module.result_cases import put_maps
from module.test_scene_inputs import add_transform, rotation

BOX = np.s_[2:-2, 3:-3, 3:-3]


@pytest.fixture
def maps(result: object, volume: object) -> list[object]:
    """A residual for each of the two segments, and one attention map, all limited to a box."""
    shape = slicer.util.arrayFromVolume(volume).shape
    residual, attention = np.zeros((2, *shape), np.float16), np.zeros((1, *shape), np.float16)
    numbers = np.random.default_rng(3)
    for array in (*residual, *attention):
        array[BOX] = numbers.random(array[BOX].shape)
    return put_maps({"residual": residual, "attention": attention}, result, volume)


def points_of(model: object) -> np.ndarray:
    return vtk_to_numpy(model.GetPolyData().GetPoints().GetData()).astype(float)


def values_at(node: object, points: np.ndarray) -> np.ndarray:
    """A map's values at points (n, 3) in the node's coordinates, interpolated by scipy."""
    matrix = vtk.vtkMatrix4x4()
    node.GetRASToIJKMatrix(matrix)
    to_ijk = slicer.util.arrayFromVTKMatrix(matrix)
    ijk = points @ to_ijk[:3, :3].T + to_ijk[:3, 3]
    return map_coordinates(slicer.util.arrayFromVolume(node), ijk.T[::-1], order=1, mode="nearest")


def painted_values(model: object) -> np.ndarray:
    return vtk_to_numpy(model.GetPolyData().GetPointData().GetScalars())


class Driver3D(PanelDriver):
    """The panel with its controls for maps in 3D."""

    def show(self, node: object, how: str) -> list[object]:
        """Choose a map and how to show it in 3D; returns the nodes that show it."""
        self.choices.shownMap = node
        self.choose(self.ui.map3DSelector, how)
        return self.shown()

    def shown(self) -> list[object]:
        """The nodes that show a map in 3D, once all of them are complete."""
        self.settle()
        self.wait(lambda: not self.widget.map3DPanel.isBusy)
        segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        return [node for segmentation in segmentations for node in self.map3D.nodes(segmentation)]

    @property
    def map3D(self) -> object:
        import ConResSegmentationLib.Map3D

        return ConResSegmentationLib.Map3D

    @property
    def parts(self) -> object:
        import ConResSegmentationLib.ResultParts

        return ConResSegmentationLib.ResultParts

    def legend(self, node: object) -> object:
        """The color legend of a node shown in 3D."""
        return slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)


@pytest.fixture
def panel(panel: PanelDriver) -> Driver3D:
    return Driver3D(panel.app)


def nodes_in_3d() -> set[str]:
    """Names of all nodes that can be part of a map in 3D."""
    classes = (
        "vtkMRMLModelNode", "vtkMRMLModelDisplayNode", "vtkMRMLModelStorageNode", "vtkMRMLColorLegendDisplayNode",
        "vtkMRMLMarkupsROINode", "vtkMRMLVolumeRenderingDisplayNode", "vtkMRMLVolumePropertyNode",
        "vtkMRMLVolumePropertyStorageNode",
    )  # fmt: skip
    nodes = [node for name in classes for node in slicer.util.getNodesByClass(name)]
    return {node.GetName() for node in nodes if "Slice" not in node.GetName() and node.GetSaveWithScene()}


def test_surfaces_are_painted_with_the_maps_values_at_their_points(
    panel: Driver3D, result: object, volume: object, maps: list[object]
) -> None:
    volume.SetAndObserveTransformNodeID(add_transform(rotation(40, (1, 2, 3))).GetID())
    for node in (result, *maps):
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    anterior, posterior = panel.show(maps[2], "On surfaces")
    for model in (anterior, posterior):
        assert model.GetParentTransformNode() is volume.GetParentTransformNode()
        np.testing.assert_allclose(painted_values(model), values_at(maps[2], points_of(model)), atol=1e-3)
        assert painted_values(model).std() > 0.05
    # Each segment is painted with its own residual.
    models = panel.show(maps[0], "On surfaces")
    assert models == [anterior, posterior]
    for model, node in zip(models, maps, strict=False):
        assert panel.parts.mapOf(model) is node
        np.testing.assert_allclose(painted_values(model), values_at(node, points_of(model)), atol=1e-3)


def test_moved_map_is_sampled_at_its_new_position(panel: Driver3D, maps: list[object]) -> None:
    maps[2].SetAndObserveTransformNodeID(add_transform(rotation(0, (1.5, 0, 0))).GetID())
    model, _other = panel.show(maps[2], "On surfaces")
    np.testing.assert_allclose(painted_values(model), values_at(maps[2], points_of(model) - (1.5, 0, 0)), atol=1e-3)


def test_overlapping_segments_each_have_a_painted_surface(panel: Driver3D, result: object, maps: list[object]) -> None:
    whole = result.GetSegmentation().GetNthSegmentID(0)
    labels = slicer.util.arrayFromSegmentBinaryLabelmap(result, whole, panel.choices.channels[0])
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        np.ones_like(labels), result, result.GetSegmentation().AddEmptySegment(), panel.choices.channels[0]
    )
    result.GetSegmentation().AddEmptySegment()
    models = panel.show(maps[2], "On surfaces")
    assert len(models) == 3, "an empty segment has no surface"
    for model in models:
        np.testing.assert_allclose(painted_values(model), values_at(maps[2], points_of(model)), atol=1e-3)


def test_isosurface_is_where_the_map_has_the_chosen_value(panel: Driver3D, maps: list[object]) -> None:
    panel.ui.mapThresholdSlider.value = 0.6
    (model,) = panel.show(maps[0], "Isosurface")
    points = points_of(model)
    np.testing.assert_allclose(painted_values(model), 0.6, atol=1e-3)
    shape = np.array(slicer.util.arrayFromVolume(maps[0]).shape)
    matrix = vtk.vtkMatrix4x4()
    maps[0].GetRASToIJKMatrix(matrix)
    to_ijk = slicer.util.arrayFromVTKMatrix(matrix)
    ijk = points @ to_ijk[:3, :3].T + to_ijk[:3, 3]
    inside = ((ijk > 0.01) & (ijk < shape[::-1] - 1.01)).all(axis=1)
    assert inside.any()
    np.testing.assert_allclose(values_at(maps[0], points[inside]), 0.6, atol=1e-3)
    assert not panel.ui.mapThresholdSlider.isHidden()
    maps[0].GetDisplayNode().SetWindowLevelMinMax(0, 0.5)
    panel.shown()
    np.testing.assert_allclose(painted_values(model), 0.3, atol=1e-3, err_msg="updated with the range")


def test_isosurface_of_a_very_large_map_is_coarser_but_in_the_same_place(
    panel: Driver3D, result: object, volume: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Linear, so that interpolation between every second or third voxel is exact.
    ramp = np.tensordot((0.011, 0.007, 0.013), np.indices(slicer.util.arrayFromVolume(volume).shape), 1)
    (node,) = put_maps({"uncertainty": ramp[None].astype(np.float16)}, result, volume)
    panel.ui.mapThresholdSlider.value = 0.5
    counts = []
    for most in (10**9, 10_000, 3_000):
        monkeypatch.setattr(panel.map3D, "_MOST_VOXELS", most)
        panel.ui.mapThresholdSlider.value += 0.01
        (model,) = panel.show(node, "Isosurface")
        counts.append(model.GetPolyData().GetNumberOfPoints())
        values = values_at(node, points_of(model))
        inside = np.abs(values - panel.ui.mapThresholdSlider.value) < 1e-3
        # The other points close the surface at the map's borders.
        assert inside.sum() > 0.1 * counts[-1] and values.min() > panel.ui.mapThresholdSlider.value - 1e-3
    assert counts[0] > 2 * counts[1] > 2 * counts[2]


def test_colors_range_and_opacity_match_the_overlay(panel: Driver3D, result: object, maps: list[object]) -> None:
    display = maps[0].GetDisplayNode()
    for how in ("On surfaces", "Isosurface", "Volume rendering"):
        panel.ui.mapOpacitySlider.value = 0.5
        shown = panel.show(maps[0], how)
        assert shown and not result.GetDisplayNode().GetVisibility3D()
        for colors, low, high, opacity in (("Ocean", 0.1, 0.7, 0.25), ("Rainbow", 0.2, 0.9, 1.0)):
            panel.choose(panel.ui.mapColorsSelector, colors)
            display.SetWindowLevelMinMax(low, high)
            panel.ui.mapOpacitySlider.value = opacity
            for node in panel.shown():
                own = node if node.IsA("vtkMRMLDisplayNode") else node.GetDisplayNode()
                assert own.GetVisibility() and own.GetColorNodeID() == f"vtkMRMLColorTableNode{colors}"
                np.testing.assert_allclose(own.GetScalarRange(), (low, high))
                assert own.GetOpacity() == pytest.approx(opacity)
            legend = panel.legend(shown[0])
            assert legend.GetVisibility() and legend.GetTitleText() == "Residual"
            assert legend.GetPrimaryDisplayNode() is (
                shown[0] if how == "Volume rendering" else shown[0].GetDisplayNode()
            )
            assert len(slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode")) == 1
    properties = shown[0].GetVolumePropertyNode().GetVolumeProperty()
    table, rgb = display.GetColorNode().GetLookupTable(), [0.0] * 3
    table.GetColor(table.GetRange()[1], rgb)
    np.testing.assert_allclose(properties.GetRGBTransferFunction().GetColor(0.9), rgb, atol=0.01)
    opacities = properties.GetScalarOpacity()
    np.testing.assert_allclose(
        [opacities.GetValue(value) for value in (0.1, 0.2, 0.55, 0.9)], (0, 0, 0.5, 1), atol=1e-6
    )


@pytest.mark.parametrize("how", ["On surfaces", "Isosurface"])
def test_legend_has_name_of_shown_map(panel: Driver3D, maps: list[object], how: str) -> None:
    residual, _other, attention = maps
    (legend,) = filter(None, map(panel.legend, panel.show(residual, how)))
    panel.ui.mapSelector.setCurrentNode(attention)
    assert panel.legend(panel.shown()[0]) is legend and legend.GetTitleText() == "Attention"
    assert legend.GetLabelFormat() == "%.2f"
    attention.GetDisplayNode().SetWindowLevelMinMax(-20, 190)
    panel.settle()
    assert legend.GetLabelFormat() == "%.0f"
    legend.SetTitleText("My own title")
    panel.ui.mapSelector.setCurrentNode(residual)
    assert panel.legend(panel.shown()[0]).GetTitleText() == "My own title"


def test_hidden_or_translucent_segment_stays_so_when_painted(
    panel: Driver3D, result: object, maps: list[object]
) -> None:
    panel.ui.mapOpacitySlider.value = 0.5
    first, second = panel.show(maps[2], "On surfaces")
    display, segments = result.GetDisplayNode(), result.GetSegmentation()
    display.SetSegmentVisibility(segments.GetNthSegmentID(0), False)
    display.SetSegmentOpacity3D(segments.GetNthSegmentID(1), 0.4)
    panel.shown()
    assert not first.GetDisplayNode().GetVisibility() and second.GetDisplayNode().GetOpacity() == pytest.approx(0.2)
    assert panel.legend(first) is None and panel.legend(second).GetVisibility()


@pytest.mark.parametrize("how", ["On surfaces", "Isosurface", "Volume rendering"])
def test_map_in_3d_is_removed_with_the_result_and_restored_with_the_scene(
    panel: Driver3D, result: object, maps: list[object], tmp_path: Path, how: str
) -> None:
    count = len(panel.show(maps[0], how))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for model in slicer.util.getNodesByClass("vtkMRMLModelNode"):
        if panel.map3D.nodes(result).count(model):
            places = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in (model, maps[0])}
            assert len(places) == 1, "next to its map"
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    names = nodes_in_3d()
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert not nodes_in_3d()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    shown = panel.shown()
    assert nodes_in_3d() == names and len(shown) == count
    assert panel.ui.map3DSelector.currentText == how
    assert panel.legend(shown[0]).GetTitleText() == "Residual"
    (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert not segmentation.GetDisplayNode().GetVisibility3D()
    slicer.util.getNode("*residual Anterior").GetDisplayNode().SetWindowLevelMinMax(0, 0.5)
    for node in panel.shown():
        own = node if node.IsA("vtkMRMLDisplayNode") else node.GetDisplayNode()
        np.testing.assert_allclose(own.GetScalarRange(), (0, 0.5))
    slicer.mrmlScene.RemoveNode(segmentation)
    panel.shown()
    assert not nodes_in_3d()


def test_map_in_3d_is_hidden_with_the_overlay_and_removed_when_turned_off(
    panel: Driver3D, result: object, maps: list[object]
) -> None:
    models = panel.show(maps[2], "On surfaces")
    panel.widget.overlayPanel.toggle()
    panel.shown()
    assert not any(model.GetDisplayNode().GetVisibility() for model in models)
    assert result.GetDisplayNode().GetVisibility3D()
    panel.widget.overlayPanel.toggle()
    assert panel.shown() == models and all(model.GetDisplayNode().GetVisibility() for model in models)
    assert panel.show(maps[2], "Not shown") == [] and not nodes_in_3d()
    assert result.GetDisplayNode().GetVisibility3D()
    before = panel.show(maps[2], "Volume rendering")
    slicer.mrmlScene.RemoveNode(maps[2])
    # The selector selects another map.
    (after,) = panel.shown()
    assert panel.parts.mapOf(after) is panel.choices.shownMap and after is not before[0]
    assert len(nodes_in_3d()) == 3, "one rendering, its property and its legend"


def test_map_in_3d_survives_removal_of_its_nodes_in_other_modules(
    panel: Driver3D, result: object, maps: list[object]
) -> None:
    (rendering,) = panel.show(maps[2], "Volume rendering")
    slicer.mrmlScene.RemoveNode(rendering.GetVolumePropertyNode())
    panel.ui.mapOpacitySlider.value = 0.9
    assert rendering.GetVolumePropertyNode().GetVolumeProperty().GetScalarOpacity().GetValue(1) == pytest.approx(0.9)
    for model in panel.show(maps[2], "On surfaces"):
        assert not result.GetDisplayNode().GetVisibility3D()
        slicer.mrmlScene.RemoveNode(model)
    panel.shown()
    assert result.GetDisplayNode().GetVisibility3D(), "the 3D view is not left empty"
    maps[2].SetAndObserveImageData(None)
    for how in ("Isosurface", "On surfaces"):
        assert panel.show(maps[2], how) == []
    slicer.mrmlScene.RemoveNode(maps[2].GetDisplayNode())
    panel.choose(panel.ui.mapColorsSelector, "Rainbow")
    assert panel.ui.map3DSelector.enabled
    slicer.mrmlScene.RemoveNode(result)
    panel.shown()
    selector = panel.ui.map3DSelector
    assert panel.ui.mapSelector.currentNode() is maps[2] and not selector.enabled
    assert "was removed" in selector.toolTip, "explains why"
    panel.ui.mapSelector.setCurrentNode(None)
    panel.shown()
    assert selector.enabled and selector.toolTip.startswith("Also show the map in 3D")


@pytest.mark.parametrize("how", ["On surfaces", "Isosurface", "Volume rendering"])
def test_map_is_shown_in_3d_even_if_display_of_segmentation_was_removed(
    panel: Driver3D, result: object, maps: list[object], how: str
) -> None:
    slicer.mrmlScene.RemoveNode(result.GetDisplayNode())
    assert panel.show(maps[2], how) and result.GetDisplayNode() is not None


def test_new_result_is_painted_on_the_same_nodes(
    panel: Driver3D, result: object, volume: object, maps: list[object]
) -> None:
    before = panel.show(maps[2], "On surfaces")
    shape = slicer.util.arrayFromVolume(volume).shape
    attention = np.random.default_rng(9).random((1, *shape)).astype(np.float16)
    (again,) = put_maps({"attention": attention}, result, volume)
    assert panel.shown() == before
    for model in before:
        np.testing.assert_allclose(painted_values(model), values_at(again, points_of(model)), atol=1e-3)
    result.GetSegmentation().RemoveSegment(result.GetSegmentation().GetNthSegmentID(0))
    assert panel.shown() == before[1:] and before[0].GetScene() is None
