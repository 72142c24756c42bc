"""The engine's input from the scene: voxels and ROIs in world coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from conresnet.errors import UserError
from ConResSegmentationLib import SceneInputs


def add_transform(matrix: np.ndarray, parent: object = None) -> object:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(node, matrix)
    if parent:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def rotation(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    matrix, angle = np.eye(4), np.deg2rad(degrees)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift
    return matrix


def add_warp_transform() -> object:
    thin_plate = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for number, point in enumerate([(0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (20, 20, 20)]):
        source.InsertNextPoint(point)
        target.InsertNextPoint(point if number < 4 else (25, 15, 20))
    thin_plate.SetSourceLandmarks(source)
    thin_plate.SetTargetLandmarks(target)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    node.SetAndObserveTransformToParent(thin_plate)
    return node


def add_roi(center: tuple[float, ...] = (1, 2, 3), size: tuple[float, ...] = (10, 20, 30)) -> object:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    node.SetCenter(center)
    node.SetSize(size)
    return node


def test_volume_is_not_copied(volume: object) -> None:
    found = SceneInputs.volumeInput(volume)
    assert np.shares_memory(found.array, slicer.util.arrayFromVolume(volume))
    assert found.name == volume.GetName()
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(found.grid.affine, slicer.util.arrayFromVTKMatrix(matrix))


def test_all_parent_transforms_of_a_volume_are_applied(volume: object) -> None:
    before = SceneInputs.volumeInput(volume).grid.affine
    outer, inner = rotation(30, (5, 0, 1)), rotation(-10, (0, 7, 0))
    parent = add_transform(outer)
    volume.SetAndObserveTransformNodeID(add_transform(inner, parent).GetID())
    np.testing.assert_allclose(SceneInputs.volumeInput(volume).grid.affine, outer @ inner @ before)
    volume.HardenTransform()
    np.testing.assert_allclose(SceneInputs.volumeInput(volume).grid.affine, outer @ inner @ before, atol=1e-9)


def test_volume_under_a_non_linear_transform_is_refused(volume: object) -> None:
    volume.SetAndObserveTransformNodeID(add_warp_transform().GetID())
    with pytest.raises(UserError) as caught:
        SceneInputs.volumeInput(volume)
    assert caught.value.code == "transform-not-linear"
    assert caught.value.values == {"name": volume.GetName(), "transform": "warp"}


def test_empty_volume_and_color_volume_are_refused(slicer_app: object) -> None:
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    with pytest.raises(UserError) as caught:
        SceneInputs.volumeInput(empty)
    assert (caught.value.code, caught.value.values) == ("volume-empty", {"name": "nothing"})
    color = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5, 3), np.uint8), nodeClassName="vtkMRMLVectorVolumeNode")
    with pytest.raises(UserError) as caught:
        SceneInputs.volumeInput(color)
    assert caught.value.code == "volume-color" and caught.value.values["count"] == 3


def test_roi_is_in_world_coordinates(slicer_app: object) -> None:
    roi = add_roi()
    plain = SceneInputs.roiInput(roi)
    np.testing.assert_allclose(plain.center, (1, 2, 3))
    np.testing.assert_allclose(plain.axes, np.eye(3))
    np.testing.assert_allclose(plain.size, (10, 20, 30))
    matrix = rotation(40, (100, 0, 0))
    roi.SetAndObserveTransformNodeID(add_transform(matrix).GetID())
    moved = SceneInputs.roiInput(roi)
    np.testing.assert_allclose(moved.center, (matrix @ (1, 2, 3, 1))[:3])
    np.testing.assert_allclose(moved.axes, matrix[:3, :3], atol=1e-9)
    np.testing.assert_allclose(moved.size, (10, 20, 30))


def test_rotated_and_scaled_roi_keeps_its_corners(slicer_app: object) -> None:
    roi = add_roi((0, 0, 0), (10, 20, 30))
    rotated = slicer.util.vtkMatrixFromArray(rotation(25, (3, 2, 1)))
    roi.SetAndObserveObjectToNodeMatrix(rotated)
    roi.SetAndObserveTransformNodeID(add_transform(np.diag([2.0, 2.0, 2.0, 1.0])).GetID())
    found = SceneInputs.roiInput(roi)
    corners = np.array([[x, y, z, 1] for x in (-5, 5) for y in (-10, 10) for z in (-15, 15)]).T
    expected = (np.diag([2, 2, 2, 1]) @ rotation(25, (3, 2, 1)) @ corners)[:3].T
    assert np.abs(found.corners()[:, None] - expected[None]).max(axis=2).min(axis=1).max() < 1e-6


def test_rois_that_are_not_a_box_are_refused(slicer_app: object) -> None:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    with pytest.raises(UserError) as caught:
        SceneInputs.roiInput(node)
    assert (caught.value.code, caught.value.values) == ("roi-not-placed", {"name": "R"})
    flat, flattened = add_roi(size=(10, 10, 0)), add_roi()
    flattened.SetAndObserveTransformNodeID(add_transform(np.diag([0.0, 1.0, 1.0, 1.0])).GetID())
    for roi in (flat, flattened):
        with pytest.raises(UserError) as caught:
            SceneInputs.roiInput(roi)
        assert (caught.value.code, caught.value.values) == ("roi-flat", {"name": "R"})
    roi = add_roi()
    roi.SetInsideOut(True)
    with pytest.raises(UserError) as caught:
        SceneInputs.roiInput(roi)
    assert caught.value.code == "roi-inside-out"
    roi.SetInsideOut(False)
    roi.SetAndObserveTransformNodeID(add_warp_transform().GetID())
    with pytest.raises(UserError) as caught:
        SceneInputs.roiInput(roi)
    assert caught.value.code == "transform-not-linear"
