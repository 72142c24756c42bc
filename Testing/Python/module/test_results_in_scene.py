"""Results in the scene: segments, codes, geometry, subject hierarchy, and how edits are recognized."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

from conresnet.images.inputs import BoxROI
from conresnet.package.store import list_models
from ConResSegmentationLib import ResultOrigin, ResultParts, ResultSegmentation, Review
from module.panel_driver import label_array
from module.result_cases import SEGMENTS, fill, origin_of, put_maps
from module.test_scene_inputs import add_transform, rotation
from slicer_host.subject_hierarchy import delete


def segment_of(node: object, number: int) -> object:
    return node.GetSegmentation().GetNthSegment(number)


def reloaded(node: object, folder: Path) -> object:
    path = folder / "saved.seg.nrrd"
    assert slicer.util.saveNode(node, str(path))
    return slicer.util.loadSegmentation(str(path))


def test_labels_are_those_of_the_engine(result: object, volume: object, labels: np.ndarray) -> None:
    np.testing.assert_array_equal(label_array(result, volume), labels)
    assert result.GetSegmentation().GetNumberOfLayers() == 1


def test_segments_have_names_colors_and_codes_of_the_model(result: object) -> None:
    assert [segment_of(result, n).GetName() for n in (0, 1)] == ["Anterior", "Posterior"]
    np.testing.assert_allclose(segment_of(result, 0).GetColor(), np.array([220, 20, 30]) / 255)
    entry = slicer.vtkSlicerTerminologyEntry()
    text = vtk.mutable("")
    segment_of(result, 1).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
    logic = slicer.modules.terminologies.logic()
    assert logic.DeserializeTerminologyEntry(str(text), entry)
    assert entry.GetTypeObject().GetCodeValue() == "64033007"
    assert entry.GetTypeModifierObject().GetCodeMeaning() == "Left"
    assert entry.GetCategoryObject().GetCodingSchemeDesignator() == "SCT"
    # Slicer's list "3D Slicer General Anatomy" does not contain the codes of the shipped models.
    assert "DICOM master list" in entry.GetTerminologyContextName()
    assert "DICOM master list" in entry.GetRegionContextName()


def test_segments_name_the_model_as_algorithm_for_dicom(volume: object, labels: np.ndarray) -> None:
    for packed in (None, (labels > 0).astype(np.uint8)[None]):
        for _id, segment in ResultSegmentation.makeSegments(labels, SEGMENTS, volume, packed, algorithm="organ 1.0.0"):
            kind, name = vtk.mutable(""), vtk.mutable("")
            assert segment.GetTag("DICOM.SegmentAlgorithmType", kind) and str(kind) == "AUTOMATIC"
            assert segment.GetTag("DICOM.SegmentAlgorithmName", name) and str(name) == "ConResNet organ 1.0.0"


def test_result_with_many_segments_is_compared_with_an_roi_quickly(slicer_app: object) -> None:
    count, size = 40, 256
    labels = np.zeros((size,) * 3, np.uint8)
    for number in range(count):
        labels[10 + number * 236 // count : 10 + (number + 1) * 236 // count, 10:246, 10:246] = number + 1
    image = slicer.util.addVolumeFromArray(np.zeros(labels.shape, np.int16))
    segments = [dataclasses.replace(SEGMENTS[0], name=f"s{n}", label=n) for n in range(1, count + 1)]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    ResultSegmentation.setSegments(node, ResultSegmentation.makeSegments(labels, segments, image), image)
    whole, half = (BoxROI.from_bounds([-400, 400, -400, 400, 0, height]) for height in (400, 120))
    origin_of(image).sign(node)
    started = time.process_time()
    assert origin_of(image, whole).mayReplace(node)
    assert time.process_time() - started < 1.2
    assert not origin_of(image, half).mayReplace(node), "most segments are outside"


@pytest.mark.parametrize("overlapping", [False, True])
def test_segment_that_was_not_found_is_empty_without_an_error_in_the_log(
    volume: object, labels: np.ndarray, capfd: pytest.CaptureFixture, overlapping: bool
) -> None:
    nothing = np.zeros_like(labels)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    made = ResultSegmentation.makeSegments(nothing, SEGMENTS, volume, nothing[None] if overlapping else None)
    fill(node, made, volume)
    origin_of(volume).sign(node)
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(label_array(node, volume), nothing)
    assert ResultOrigin.isUntouched(node)
    assert [segment_of(node, n).GetName() for n in (0, 1)] == ["Anterior", "Posterior"]


def test_codes_and_geometry_are_saved_in_a_file(
    result: object, volume: object, labels: np.ndarray, tmp_path: Path
) -> None:
    again = reloaded(result, tmp_path)
    text = vtk.mutable("")
    segment_of(again, 0).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
    assert "SCT^91609005^Hippocampus" in str(text)
    np.testing.assert_array_equal(label_array(again, volume), labels)


def test_result_has_geometry_of_input(result: object, volume: object) -> None:
    assert result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole()) is volume
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    expected = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    expected.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    geometry = expected.GetSegmentation().GetConversionParameter(name)
    assert result.GetSegmentation().GetConversionParameter(name) == geometry


def test_surfaces_are_created_and_shown(result: object) -> None:
    assert result.GetClosedSurfaceInternalRepresentation("Segment_1").GetNumberOfPoints() > 100
    assert result.GetDisplayNode().GetVisibility3D()


def test_replacing_a_result_keeps_the_users_display_settings(
    result: object, volume: object, labels: np.ndarray
) -> None:
    display = result.GetDisplayNode()
    around = [dataclasses.replace(SEGMENTS[0], includes=("Posterior",)), SEGMENTS[1]]
    ResultSegmentation.letPartsShowThrough(result, around)
    assert display.GetSegmentOpacity3D("Segment_1") == ResultSegmentation.OPACITY_AROUND_PARTS
    chosen = {
        "Visibility": False,
        "Visibility3D": False,
        "Visibility2DFill": False,
        "Visibility2DOutline": False,
        "Opacity3D": 0.2,
        "Opacity2DFill": 0.3,
        "Opacity2DOutline": 0.4,
        "Pickable": False,
    }
    for name, value in chosen.items():
        getattr(display, f"SetSegment{name}")("Segment_1", value)
    # A segment that the user removed is added again with default settings.
    result.GetSegmentation().RemoveSegment("Segment_2")
    fill(result, ResultSegmentation.makeSegments(labels, around, volume), volume)
    assert {name: getattr(display, f"GetSegment{name}")("Segment_1") for name in chosen} == chosen
    assert display.GetSegmentVisibility("Segment_2") and display.GetSegmentOpacity3D("Segment_2") == 1


def test_replacing_a_result_keeps_tags_of_other_modules(
    result: object, volume: object, labels: np.ndarray, tmp_path: Path
) -> None:
    segment_of(result, 0).SetTag("Study.Reader", "two")
    segment_of(result, 1).SetName("not the model's")
    segment_of(result, 1).SetTag("Study.Reader", "two")
    again = reloaded(result, tmp_path)
    fill(again, ResultSegmentation.makeSegments(labels, SEGMENTS, volume), volume)
    kept = [segment_of(again, number).HasTag("Study.Reader") for number in range(2)]
    assert kept == [True, False], "a segment with another name is a different segment"
    assert segment_of(again, 1).GetName() == "Posterior"
    np.testing.assert_array_equal(label_array(again, volume), labels)


@pytest.mark.parametrize("place", ["scene", "folder", "study"])
def test_results_are_next_to_the_input_and_are_kept_when_it_is_deleted(
    volume: object, labels: np.ndarray, place: str
) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    expected, item = hierarchy.GetSceneItemID(), hierarchy.GetItemByDataNode(volume)
    if place == "folder":
        expected = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "folder")
        hierarchy.SetItemParent(item, expected)
    elif place == "study":
        expected = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
        hierarchy.SetItemParent(item, expected)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "result")
    fill(node, ResultSegmentation.makeSegments(labels, SEGMENTS, volume), volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == expected
    (map_node,) = put_maps({"attention": np.zeros((1, *labels.shape), np.float16)}, node, volume)
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(map_node))
    assert hierarchy.GetItemName(folder) == "result maps"
    assert hierarchy.GetItemParent(folder) == expected
    delete(volume)
    assert slicer.mrmlScene.GetNodeByID(volume.GetID()) is None
    for kept in (node, map_node):
        assert slicer.mrmlScene.GetNodeByID(kept.GetID()) is kept


def test_overlapping_segments_are_complete_in_the_scene_and_in_a_file(
    volume: object, labels: np.ndarray, tmp_path: Path
) -> None:
    both = labels > 0
    packed = (both * np.uint8(1) + (labels == 2) * np.uint8(2))[None]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "result")
    made = ResultSegmentation.makeSegments(labels, SEGMENTS, volume, packed)
    fill(node, made, volume)
    origin_of(volume).sign(node)
    for one in (node, reloaded(node, tmp_path)):
        content = one.GetSegmentation()
        whole, part = (
            slicer.util.arrayFromSegmentBinaryLabelmap(one, content.GetNthSegmentID(n), volume) != 0 for n in (0, 1)
        )
        np.testing.assert_array_equal(whole, both)
        np.testing.assert_array_equal(part, labels == 2)
    assert node.GetSegmentation().GetNumberOfLayers() == 2
    assert origin_of(volume).mayReplace(node)


def test_unedited_result_is_replaced(result: object, volume: object, tmp_path: Path) -> None:
    assert origin_of(volume).mayReplace(result)
    again = reloaded(result, tmp_path)
    assert ResultOrigin.fingerprint(again) == ResultOrigin.fingerprint(result)


def paint_a_voxel(node: object, volume: object) -> None:
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "Segment_2", volume)
    array[0, 0, 0] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "Segment_2", volume)


def test_unedited_result_is_still_unedited_after_save_and_load(labels: np.ndarray, tmp_path: Path) -> None:
    image = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "axial")
    slicer.util.updateVolumeFromArray(image, np.zeros(labels.shape, np.int16))
    # With 240 mm in 256 voxels, saving changes the last bit of some coordinates.
    to_ras = np.diag((-0.9375, -0.9375, 1, 1))
    to_ras[:3, 3] = (-55.265, -78.478, 74.875)
    image.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras))
    labels = labels[:, ::-1, ::-1]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "result")
    fill(node, ResultSegmentation.makeSegments(labels, SEGMENTS, image), image)
    ResultOrigin.sign(node)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    (again,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert ResultOrigin.isUntouched(again)
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 0.01)
    moved = vtk.vtkTransform()
    moved.SetMatrix(matrix)
    again.ApplyTransform(moved)
    assert not ResultOrigin.isUntouched(again), "a hundredth of a millimeter is an edit"


EDITS = {
    "a painted voxel": paint_a_voxel,
    "a new name": lambda node, volume: segment_of(node, 0).SetName("mine"),
    "a new color": lambda node, volume: segment_of(node, 0).SetColor(0, 1, 0),
    "a removed segment": lambda node, volume: node.GetSegmentation().RemoveSegment("Segment_1"),
    "a new segment": lambda node, volume: node.GetSegmentation().AddEmptySegment(),
    "a status": lambda node, volume: set_status(segment_of(node, 1), "Completed"),
    "a transform": lambda node, volume: node.SetAndObserveTransformNodeID(
        add_transform(rotation(0, (5, 0, 0))).GetID()
    ),
    "another order": lambda node, volume: node.GetSegmentation().SetSegmentIndex("Segment_2", 0),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_result_is_not_replaced(result: object, volume: object, edit: str) -> None:
    EDITS[edit](result, volume)
    assert not origin_of(volume).mayReplace(result)


def set_status(segment: object, name: str) -> None:
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment, getattr(logic, name))


def test_display_and_transform_of_the_volume_do_not_count_as_edits(result: object, volume: object) -> None:
    set_status(segment_of(result, 0), "NotStarted")
    volume.SetAndObserveTransformNodeID(add_transform(rotation(0, (5, 0, 0))).GetID())
    assert origin_of(volume).mayReplace(result), "only the volume was moved"
    result.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    result.GetDisplayNode().SetOpacity(0.3)
    result.GetDisplayNode().SetSegmentVisibility("Segment_1", False)
    result.RemoveClosedSurfaceRepresentation()
    result.SetName("my name for it")
    result.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert origin_of(volume).mayReplace(result)


def test_results_of_other_models_or_volumes_are_not_replaced(
    result: object, volume: object, hippocampus_image: Path
) -> None:
    assert not origin_of(volume, model="other 1.0.0").mayReplace(result)
    other = slicer.util.loadVolume(str(hippocampus_image))
    assert not origin_of(other).mayReplace(result)
    foreign = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert origin_of(volume).mayReplace(foreign), "an empty segmentation can be filled"
    foreign.GetSegmentation().AddEmptySegment()
    assert not origin_of(volume).mayReplace(foreign)


def test_reviewed_result_is_replaced_only_by_one_with_the_same_roi(result: object, volume: object) -> None:
    place = {"kind": "slice", "segment": "all", "slice": 1, "r": 1.0, "a": 2.0, "s": 3.0, "reason": "small"}
    Review.keep(result, {"review": {"rows": [place]}})
    whole, wide = None, BoxROI.from_bounds([-400, 400, -400, 400, -400, 400])
    assert origin_of(volume, wide).mayReplace(result)
    (table,) = ResultParts.parts(result, "review")
    table.GetTable().GetColumnByName("seen").SetValue(0, 1)
    assert not origin_of(volume, wide).mayReplace(result)
    assert origin_of(volume, whole).mayReplace(result)


def test_codes_of_shipped_models_are_in_slicers_lists(slicer_app: object) -> None:
    """Otherwise, Slicer's selector would drop a modifier or show nothing."""
    logic = slicer.app.applicationLogic().GetModuleLogic("Terminologies")

    def listed(count: object, get: object, kind: type, *within: object) -> dict[tuple[str, str, str], object]:
        found = {}
        for number in range(count(*within)):
            one = kind()
            get(*within, number, one)
            found[one.GetCodingSchemeDesignator(), one.GetCodeValue(), one.GetCodeMeaning()] = one
        return found

    category, kind = slicer.vtkSlicerTerminologyCategory, slicer.vtkSlicerTerminologyType
    segments = [segment for entry in list_models() for segment in entry.description.output.segments]
    for segment in segments:
        context, *parts = segment.terminology.entry.split("~")
        codes = [tuple(part.split("^")) for part in parts[:3]]
        within = listed(logic.GetNumberOfCategoriesInTerminology, logic.GetNthCategoryInTerminology, category, context)[
            codes[0]
        ]
        where = (context, within)
        types = listed(logic.GetNumberOfTypesInTerminologyCategory, logic.GetNthTypeInTerminologyCategory, kind, *where)
        where = (*where, types[codes[1]])
        modifiers = listed(
            logic.GetNumberOfTypeModifiersInTerminologyType, logic.GetNthTypeModifierInTerminologyType, kind, *where
        )
        assert not any(codes[2]) or codes[2] in modifiers, segment.name
    assert len(segments) >= 5


def test_surfaces_are_created_even_if_the_display_is_removed_meanwhile(result: object) -> None:
    closed = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    result.GetSegmentation().RemoveRepresentation(closed)
    steps = ResultSegmentation.showSurfaces(result)
    next(steps)
    slicer.mrmlScene.RemoveNode(result.GetDisplayNode())
    assert sum(1 for _step in steps) == 1 and segment_of(result, 1).GetRepresentation(closed)


@pytest.mark.parametrize("change", ["smoothing", "edit"])
def test_surfaces_reflect_changes_made_while_they_are_created(result: object, volume: object, change: str) -> None:
    """Slicer handles events after each surface; all are added to the scene together after the last one."""
    closed = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    result.GetSegmentation().RemoveRepresentation(closed)
    steps = ResultSegmentation.showSurfaces(result)
    next(steps)
    if change == "smoothing":
        assert list(ResultSegmentation.smoothSurfaces(result, 0.0)) == []
    else:
        array = slicer.util.arrayFromSegmentBinaryLabelmap(result, "Segment_1", volume).copy()
        array[array.shape[0] // 2 :] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, result, "Segment_1", volume)
    for _step in steps:
        pass
    shown = [segment_of(result, number).GetRepresentation(closed) for number in (0, 1)]
    result.GetSegmentation().RemoveRepresentation(closed)
    for number, surface in enumerate(shown):
        wanted = ResultSegmentation.surfaceOf(result, segment_of(result, number))
        assert surface.GetNumberOfPoints() == wanted.GetNumberOfPoints() > 0
        np.testing.assert_allclose(surface.GetBounds(), wanted.GetBounds())
