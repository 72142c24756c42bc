"""Adding cases from the scene to a data set."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

from conresnet.errors import UserError
from conresnet.images import Grid
from conresnet.images.files import read_image
from conresnet_training.data.layouts import read_data_set
from training_module.training_driver import TrainingDriver

SHAPE = (20, 18, 16)


def add_volume(name: str, shape: tuple[int, ...] = SHAPE, spacing: float = 1.0) -> object:
    """A volume with increasing values, whose first axis points to the left and whose origin is not 0."""
    matrix = np.diag([-spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = (5, -7, 3)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return slicer.util.addVolumeFromArray(array, matrix, name)


def add_segmentation(volume: object, **masks: tuple[slice, ...]) -> object:
    """A segmentation with one box per segment."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Drawn")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, box in masks.items():
        name = name.replace("_", " ")
        identifier = node.GetSegmentation().AddEmptySegment(name, name)
        array = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
        array[box] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, identifier, volume)
    return node


NEAR, FAR = np.s_[2:8, 3:9, 2:7], np.s_[10:16, 3:9, 2:7]


def open_section(driver: TrainingDriver) -> None:
    driver.ui.sceneCaseCollapsibleButton.collapsed = False
    driver.settle()


def add(driver: TrainingDriver) -> str:
    driver.click(driver.ui.addCaseButton)
    return driver.ui.sceneCaseStatusLabel.text


def test_case_is_added_on_the_volumes_grid_with_labels_by_segment_name(
    training: TrainingDriver, data_set: Path
) -> None:
    volume = add_volume("Müller T1")
    add_segmentation(volume, far_box=FAR, Near_box=NEAR)
    training.choose_data_set(data_set)
    open_section(training)
    assert training.ui.caseNameEdit.text == "Müller_T1", "suggested from the volume's name"
    training.ui.caseNameEdit.text = "case_new"
    assert add(training) == "Added the case case_new: far box, Near box."
    assert "7 labeled cases" in training.ui.dataSetSummaryLabel.text
    found = read_data_set(data_set)
    case = next(case for case in found.cases if case.name == "case_new")
    image, label = read_image(case.images[0]), read_image(case.label)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(image.grid.affine, slicer.util.arrayFromVTKMatrix(matrix), atol=1e-5)
    assert label.grid.matches(image.grid)
    np.testing.assert_array_equal(image.components[0], slicer.util.arrayFromVolume(volume))
    expected = np.zeros(SHAPE)
    expected[NEAR], expected[FAR] = 1, 2
    np.testing.assert_array_equal(label.components[0], expected)
    content = json.loads((data_set / "dataset.json").read_text(encoding="utf-8"))
    assert content["numTraining"] == 7 and content["licence"] == "none"


def test_channels_of_different_grids_are_added_to_a_new_data_set(training: TrainingDriver, tmp_path: Path) -> None:
    t1 = add_volume("T1")
    add_volume("T2", shape=(10, 9, 8), spacing=2.0)
    add_segmentation(t1, Lesion=NEAR)
    folder = tmp_path / "neuer Datensatz"
    training.choose_data_set(folder)
    open_section(training)
    assert not training.ui.addCaseButton.enabled
    training.ui.newChannelsEdit.text = "T1, T2"
    training.ui.newChannelsEdit.editingFinished.emit()
    training.settle()
    assert [combo.currentNode().GetName() for combo in training.widget.sceneCasePanel.channels.combos] == ["T1", "T2"]
    assert "Added the case" in add(training)
    found = read_data_set(folder)
    assert found.channels == ("T1", "T2") and found.labels == {1: "Lesion"} and found.layout == "decathlon"
    image = read_image(found.cases[0].images[0])
    assert len(image.components) == 2 and image.components[0].shape == SHAPE
    # Now that the data set has channels, the field for them is hidden.
    assert training.ui.newChannelsEdit.isHidden()
    assert training.ui.caseNameEdit.text == "T1_2"


def test_label_map_and_parent_transforms_are_supported(training: TrainingDriver, tmp_path: Path) -> None:
    volume = add_volume("CT")
    segmentation = add_segmentation(volume, Liver=NEAR)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 11)
    transform.SetMatrixTransformToParent(matrix)
    for node in (volume, segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    slicer.modules.segmentations.logic().ExportAllSegmentsToLabelmapNode(segmentation, labels, 0)
    folder = tmp_path / "data"
    training.choose_data_set(folder)
    open_section(training)
    training.ui.newChannelsEdit.text = "CT"
    training.ui.newChannelsEdit.editingFinished.emit()
    training.ui.sceneLabelsSelector.setCurrentNode(segmentation)
    add(training)
    case = read_data_set(folder).cases[0]
    assert read_image(case.images[0]).grid.affine[0, 3] == pytest.approx(16)
    assert (read_image(case.label).components[0] > 0).sum() == 6 * 6 * 5
    training.ui.sceneLabelsSelector.setCurrentNode(labels)
    training.ui.caseNameEdit.text = "again"
    # A label map that was cropped to its labels is not on the volume's voxel grid.
    assert "is not on the voxel grid" in add(training) or "Added the case" in training.ui.sceneCaseStatusLabel.text


@pytest.mark.parametrize(
    ("masks", "name", "message"),
    [
        ({"Tumor": NEAR}, "a", "The data set has no label Tumor; its labels are Near box, Far box."),
        ({"Near_box": NEAR, "Far_box": NEAR}, "a", "The segment Far box overlaps another segment"),
        ({"Near_box": np.s_[0:0]}, "a", "No voxel of the image is segmented"),
        ({"Near_box": NEAR}, "case_2", "already has a case case_2"),
        ({"Near_box": NEAR}, "../a", "cannot be the name of a case"),
    ],
)
def test_unsuitable_case_is_refused_and_changes_nothing(
    training: TrainingDriver, data_set: Path, masks: dict, name: str, message: str
) -> None:
    add_segmentation(add_volume("T1"), **masks)
    before = {path: path.read_bytes() for path in data_set.rglob("*") if path.is_file()}
    training.choose_data_set(data_set)
    open_section(training)
    training.ui.caseNameEdit.text = name
    assert message in add(training)
    assert "color" in training.ui.sceneCaseStatusLabel.styleSheet
    assert {path: path.read_bytes() for path in data_set.rglob("*") if path.is_file()} == before


BOX = np.zeros((9, 8, 7), bool)
BOX[2:5] = True


def add_to(folder: Path, *names: str, case: str = "a", image: np.ndarray = BOX) -> None:
    """Add a case with one channel, in which the first segment has the voxels of BOX and the others are empty."""
    from ConResTrainingLib import SceneCase

    masks = {name: BOX & (name == names[0]) for name in names}
    SceneCase.addCase(folder, case, {"CT": image}, masks, Grid(BOX.shape, np.eye(4)))


@pytest.mark.parametrize(
    ("segments", "case", "code"),
    [
        (("Liver", "liver"), "a", "case-segment-repeated"),
        (("straße", "STRASSE"), "a", "case-segment-repeated"),
        (("Liver", "Liver "), "a", "case-segment-repeated"),
        (("Liver", " "), "a", "case-segment-name"),
        (("Background",), "a", "case-segment-name"),
        (("ignore", "Liver"), "a", "case-segment-name"),
        ((), "a", "case-segments-empty"),
        ([f"Piece {number}" for number in range(300)], "a", "data-set-label-range"),
        (("Liver",), "scan.nii", "case-name-invalid"),
        (("Liver",), "scan.NII.gz", "case-name-invalid"),
        (("Liver",), "scan.img", "case-name-invalid"),
        (("Liver",), "x" * 240, "case-name-long"),
        (("Liver",), "ü" * 120, "case-name-long"),
    ],
)
def test_new_data_set_that_could_not_be_read_is_not_created(
    training: TrainingDriver, tmp_path: Path, segments: tuple[str, ...], case: str, code: str
) -> None:
    with pytest.raises(UserError) as caught:
        add_to(tmp_path / "new", *segments, case=case)
    assert caught.value.code == code and not (tmp_path / "new").exists()


def test_segments_with_the_same_label_are_refused_and_spaces_around_names_are_ignored(
    training: TrainingDriver, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    add_to(folder, "Liver ", image=BOX)
    assert read_data_set(folder).labels == {1: "Liver"}
    add_to(folder, " LIVER", case="b" * 200)
    assert len(read_data_set(folder).cases) == 2
    with pytest.raises(UserError) as caught:
        add_to(folder, "liver", "Liver", case="c")
    assert caught.value.code == "case-segment-repeated" and len(list((folder / "imagesTr").iterdir())) == 2


@pytest.mark.parametrize(("volume", "name"), [("T1 head.nii.gz", "T1_head"), ("ü" * 300, "ü" * 95), (".nii", "nii")])
def test_suggested_name_is_valid(training: TrainingDriver, volume: str, name: str, tmp_path: Path) -> None:
    from ConResTrainingLib import SceneCase

    folder = tmp_path / "new"
    assert SceneCase.proposedName(None, volume) == name
    add_to(folder, "Liver", case=name)
    add_to(folder, "Liver", case=SceneCase.proposedName(read_data_set(folder), volume))
    assert len(read_data_set(folder).cases) == 2


def test_existing_case_is_recognized_regardless_of_file_suffix(training: TrainingDriver, data_set: Path) -> None:
    description = data_set / "dataset.json"
    content = json.loads(description.read_text(encoding="utf-8"))
    for entry in content["training"]:
        for kind in ("image", "label"):
            packed = data_set / entry[kind]
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
            entry[kind] = entry[kind].removesuffix(".gz")
    description.write_text(json.dumps(content), encoding="utf-8")
    add_segmentation(add_volume("T1"), Near_box=NEAR)
    training.choose_data_set(data_set)
    open_section(training)
    training.ui.caseNameEdit.text = "Case_2"
    assert "already has a case Case_2" in add(training)


def test_cases_cannot_be_added_to_another_layout(training: TrainingDriver, tmp_path: Path) -> None:
    folder = tmp_path / "nnU-Net"
    folder.mkdir()
    content = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    training.choose_data_set(folder)
    open_section(training)
    assert not training.ui.addCaseButton.enabled and "nnU-Net layout" in training.ui.addCaseButton.toolTip
