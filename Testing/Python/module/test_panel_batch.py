"""Many cases in one run: volumes, folders and sequences, with cases that fail among them."""

from __future__ import annotations

import csv
import math
import shutil
import sys
import types
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from PySide6 import QtCore

from ConResSegmentationLib import Loading
from ConResSegmentationLib.Loading import isSeries
from module.models import write_four_channels
from module.panel_driver import PanelDriver, folders
from slicer_host import dialogs

pytestmark = pytest.mark.usefixtures("warm_engine")

CHECKED, UNCHECKED = QtCore.Qt.CheckState.Checked, QtCore.Qt.CheckState.Unchecked


@pytest.fixture
def batch(panel: PanelDriver) -> PanelDriver:
    """The panel with the list open, without surfaces and maps, which take time."""
    panel.ui.show3DCheckBox.checked = False
    for kind in ("residual", "attention"):
        panel.map_box(kind).click()
    panel.ui.batchCollapsibleButton.collapsed = False
    panel.settle()
    return panel


def cases(panel: PanelDriver) -> dict[str, str]:
    """The result text of each case in the list."""
    table = panel.ui.batchTable
    return {table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount)}


def check(panel: PanelDriver, *titles: str) -> None:
    """Check these cases in the list."""
    table = panel.ui.batchTable
    for row in range(table.rowCount):
        if table.item(row, 0).text() in titles:
            table.item(row, 0).setCheckState(CHECKED)


def add(panel: PanelDriver, entry: str, answer: object) -> None:
    """Choose an entry in the menu of the button Add."""
    dialogs.answer(answer)
    next(action for action in panel.ui.addBatchButton.menu().actions() if action.text == entry).trigger()
    panel.wait(lambda: panel.ui.addBatchButton.enabled)
    panel.settle()


def run(panel: PanelDriver) -> None:
    panel.settle()
    assert panel.ui.batchButton.enabled, panel.ui.batchButton.toolTip
    panel.ui.batchButton.click()
    assert not panel.ui.batchButton.enabled and not panel.ui.applyButton.enabled
    panel.wait(lambda: not panel.widget.runPanel.isRunning)


def volumes() -> dict[str, list]:
    """The columns of the latest table of volumes."""
    table = slicer.util.getNodesByClass("vtkMRMLTableNode")[-1].GetTable()
    columns = [table.GetColumn(number) for number in range(table.GetNumberOfColumns())]
    return {column.GetName(): [column.GetValue(row) for row in range(table.GetNumberOfRows())] for column in columns}


def write_series(path: Path, image: Path, frames: int) -> np.ndarray:
    """Write a 4D file of an image that moves from frame to frame; returns its array [frame, k, j, i]."""
    one = nibabel.load(image)
    array = one.get_fdata().astype(np.float32)
    series = np.stack([np.roll(array, 2 * number, axis=1) for number in range(frames)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(series, one.affine), path)
    return series.T


def test_broken_volume_does_not_stop_the_others(batch: PanelDriver, hippocampus_image: Path, tmp_path: Path) -> None:
    names = [hippocampus_image.name, "hippocampus_123.nii.gz", "hippocampus_210.nii.gz"]
    nodes = [slicer.util.loadVolume(str(hippocampus_image.with_name(name))) for name in names]
    nodes.append(slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(nodes[0]).copy(), name="copy"))
    broken = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "broken")
    batch.settle()
    assert len(cases(batch)) == 5 and batch.ui.batchButton.toolTip == "Check at least one case."
    batch.ui.checkAllButton.click()
    values, texts = [], []
    batch.ui.progressBar.valueChanged.connect(lambda value: (values.append(value), texts.append(batch.status)))
    run(batch)
    timed = [text for text in texts if "; all cases: " in text]
    assert timed and not any(text.startswith(("1 of", "5 of")) for text in timed), "after one case, before the last"
    batch.picture(tmp_path / "batch.png")
    texts = cases(batch)
    assert all("Anterior hippocampus" in texts[node.GetName()] for node in nodes)
    assert "broken" in texts["broken"] and "mL" not in texts["broken"]
    table = volumes()
    assert table["Case"] == list(texts) and len(table["Case"]) == 5
    row = table["Case"].index("hippocampus_004")
    assert table["Anterior hippocampus (mL)"][row] == pytest.approx(1.84, abs=0.01)
    failed = table["Case"].index("broken")
    assert math.isnan(table["Anterior hippocampus (mL)"][failed]) and table["Problem"][failed] == texts["broken"]
    results = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert {node.GetName().split(" ")[0] for node in results} == {node.GetName() for node in nodes}
    assert "4 of 5" in batch.status and table is not None and broken is not None
    values = [value for value in values if value > 0]
    assert values == sorted(values), "one progress bar for all cases"
    assert batch.ui.batchButton.enabled and batch.ui.applyButton.enabled


def test_warnings_are_marked_in_the_list_and_saved_in_the_table(batch: PanelDriver, volume: object) -> None:
    ct = np.full((48, 48, 48), -1000, np.int16)
    ct[8:40, 8:40, 8:40] = np.random.default_rng(0).normal(40, 20, (32, 32, 32))
    slicer.util.addVolumeFromArray(ct, name="thorax")
    batch.settle()
    batch.ui.checkAllButton.click()
    run(batch)
    texts, table, list_ = cases(batch), volumes(), batch.ui.batchTable
    assert texts["thorax"].startswith("\N{WARNING SIGN} Anterior") and texts["hippocampus_004"].startswith("Anterior")
    warnings = dict(zip(table["Case"], table["Warnings"], strict=True))
    assert warnings["hippocampus_004"] == "" != warnings["thorax"] and table["Problem"] == ["", ""]
    tips = {list_.item(row, 0).text(): list_.item(row, 1).toolTip() for row in range(list_.rowCount)}
    first = tips["thorax"].splitlines()[0]
    assert first in warnings["thorax"] and first in batch.ui.logTextEdit.toPlainText()
    assert "With warnings: 1." in batch.status
    # Each frame of a long sequence can have a warning.
    key = batch.widget.batchPanel.chosen[0].key
    batch.widget.batchPanel.setText(key, "300 of 300", [f"Frame {number % 200}." for number in range(300)])
    assert len(list_.item(0, 1).toolTip().splitlines()) == 12


def test_results_are_not_shown_for_other_models_or_volumes(
    batch: PanelDriver, volume: object, hippocampus_image: Path
) -> None:
    batch.settle()
    batch.ui.checkAllButton.click()
    run(batch)
    assert "mL" in cases(batch)["hippocampus_004"]
    batch.choose_model("brain-tissue")
    assert cases(batch) == {"hippocampus_004": ""}, "not the result of this model"
    batch.choose_model("hippocampus")
    assert "mL" in cases(batch)["hippocampus_004"]
    slicer.mrmlScene.Clear(0)
    other = slicer.util.loadVolume(str(hippocampus_image.with_name("hippocampus_123.nii.gz")))
    batch.settle()
    assert other.GetID() == "vtkMRMLScalarVolumeNode1", "the same ID as the volume of the closed scene"
    assert cases(batch) == {"hippocampus_123": ""} and batch.widget.batchPanel.chosen == []


def test_sequence_of_label_maps_is_not_a_case(batch: PanelDriver, volume: object) -> None:
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "labels over time")
    label_map = slicer.vtkMRMLLabelMapVolumeNode()
    label_map.SetAndObserveImageData(volume.GetImageData())
    sequence.SetDataNodeAtValue(label_map, "0")
    batch.settle()
    assert list(cases(batch)) == ["hippocampus_004"]


def test_frame_removed_during_the_run_does_not_affect_other_frames(
    batch: PanelDriver, hippocampus_image: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "cine.nii.gz", hippocampus_image, 3)
    node = Loading.readSeries(tmp_path / "cine.nii.gz")
    batch.settle()
    batch.ui.checkAllButton.click()
    batch.ui.batchButton.click()
    batch.wait(lambda: "[" in batch.status)
    first, second, third = (node.GetNthIndexValue(number) for number in range(3))
    node.RemoveDataNodeAtValue(second)
    batch.wait(lambda: not batch.widget.runPanel.isRunning)
    texts = cases(batch)["cine (2 frames)"]
    assert texts.startswith("2 of 3 frames segmented.") and f"cine [{second}] was removed from its sequence" in texts
    results = slicer.util.getNodesByClass("vtkMRMLSequenceNode")[-1]
    assert [results.GetNthIndexValue(number) for number in range(2)] == [first, third]
    batch.ui.batchButton.click()
    batch.wait(lambda: "[" in batch.status)
    slicer.mrmlScene.RemoveNode(node)
    batch.wait(lambda: not batch.widget.runPanel.isRunning)
    assert "was removed from its sequence" in volumes()["Problem"][-1]


def test_long_names_and_unexpected_errors_do_not_stop_a_batch(
    batch: PanelDriver, volume: object, hippocampus_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.SetName("ü" * 140 + "1")
    slicer.util.loadVolume(str(hippocampus_image)).SetName("ü" * 140 + "2")
    batch.ui.batchFolderPathEdit.currentPath = str(tmp_path)
    batch.settle()
    batch.ui.checkAllButton.click()
    run(batch)
    assert "2 of 2" in batch.status
    assert {path.name for path in tmp_path.glob("*.nrrd")} == {"ü" * 75 + end for end in (".seg.nrrd", " 2.seg.nrrd")}
    save, failures = slicer.util.saveNode, [OSError("the network is gone"), ValueError("a bug")]

    def fail(*arguments: object) -> object:
        if failures:
            raise failures.pop(0)
        return save(*arguments)

    monkeypatch.setattr(slicer.util, "saveNode", fail)
    run(batch)
    assert "0 of 2" in batch.status
    one, other = cases(batch).values()
    assert "the network is gone" in one and other == "The result could not be kept; see the log."
    assert "a bug" in batch.ui.logTextEdit.toPlainText()
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 2, "unsaved results stay in the scene"


def test_missing_results_folder_is_reported_before_the_first_case(
    batch: PanelDriver, volume: object, tmp_path: Path
) -> None:
    batch.ui.batchFolderPathEdit.currentPath = str(tmp_path / "missing")
    batch.settle()
    batch.ui.checkAllButton.click()
    batch.ui.batchButton.click()
    assert batch.status.startswith(f"The results folder {tmp_path / 'missing'} does not exist")
    assert not batch.widget.runPanel.isRunning and cases(batch) == {"hippocampus_004": ""}


def test_sequence_becomes_a_sequence_of_segmentations(
    batch: PanelDriver, hippocampus_image: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "cine.nii.gz", hippocampus_image, 3)
    assert isSeries(tmp_path / "cine.nii.gz") and not isSeries(hippocampus_image)
    add(batch, "Image files...", [str(tmp_path / "cine.nii.gz")])
    assert list(cases(batch)) == ["cine (sequence)"], "it is checked immediately"
    run(batch)
    assert cases(batch)["cine (sequence)"] == "3 of 3 frames segmented."
    images, results = slicer.util.getNodesByClass("vtkMRMLSequenceNode")
    assert results.GetName() == "cine segmentation"
    assert images.GetNumberOfDataNodes() == results.GetNumberOfDataNodes() == 3
    browser = slicer.util.getNode("cine browser")
    assert browser.IsSynchronizedSequenceNode(results, False)
    table = volumes()
    assert len(table["Case"]) == 3 and min(table["Anterior hippocampus (mL)"]) > 0.5
    frame = results.GetNthDataNode(0)
    assert frame.IsA("vtkMRMLSegmentationNode") and frame.GetSegmentation().GetNumberOfSegments() == 2
    nodes = [
        *slicer.util.getNodesByClass("vtkMRMLSegmentationNode"),
        *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"),
    ]
    proxies = {browser.GetProxyNode(node) for node in (images, results)}
    assert set(nodes) <= proxies, "frames do not stay in the scene"
    assert list(cases(batch)) == ["cine (3 frames)", "cine (sequence)"]


def test_folder_is_segmented_into_a_folder(
    batch: PanelDriver, hippocampus_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "scans", tmp_path / "results"
    (source / "deep").mkdir(parents=True)
    target.mkdir()
    for name in ("a.nii.gz", "deep/b.nii.gz"):
        (source / name).write_bytes(hippocampus_image.read_bytes())
    (source / "bad.nii.gz").write_bytes(b"not an image")
    (source / "notes.txt").write_text("not an image")
    add(batch, "A folder...", str(source))
    assert list(cases(batch)) == ["a", "bad", "deep/b"]
    batch.ui.batchFolderPathEdit.currentPath = str(target)
    tasks, segment = [], batch.widget.runPanel.segment
    monkeypatch.setattr(
        batch.widget.runPanel, "segment", lambda task, listener: (tasks.append(task), segment(task, listener))[1]
    )
    batch.map_box("uncertainty").click()
    run(batch)
    assert [task.options.maps for task in tasks] == [(), ()], "maps are not saved, so they are not computed"
    written = {path.name for path in target.iterdir()}
    assert written == {"ConResNet volumes.csv", "a.seg.nrrd", "deep_b.seg.nrrd"}
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "a.seg.nrrd")))
    assert set(np.unique(labels)) == {0, 1, 2}
    with open(target / "ConResNet volumes.csv", encoding="utf-8", newline="") as file:
        rows = {row["Case"]: row for row in csv.DictReader(file)}
    assert float(rows["a"]["Anterior hippocampus (mL)"]) == pytest.approx(1.84, abs=0.01)
    assert "bad.nii.gz" in rows["bad"]["Problem"]
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode"), "the scene does not fill up"
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert folders() == [], "no folder in the Data tree"


def test_label_maps_of_a_data_set_for_training_are_listed_unchecked(
    batch: PanelDriver, hippocampus_image: Path, hippocampus_label: Path, tmp_path: Path
) -> None:
    for folder, image in (
        ("imagesTr", hippocampus_image),
        ("labelsTr", hippocampus_label),
        ("labelsts", hippocampus_label),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").write_bytes(image.read_bytes())
    add(batch, "A folder...", str(tmp_path))
    table = batch.ui.batchTable
    assert list(cases(batch)) == ["imagesTr/a", "labelsTr/a", "labelsts/a"]
    assert [table.item(row, 0).checkState() for row in range(3)] == [CHECKED, UNCHECKED, UNCHECKED]
    for column in range(2):
        tips = [table.item(row, column).toolTip() for row in range(3)]
        assert "label maps" not in tips[0] and "named labelsTr" in tips[1] and "named labelsts" in tips[2]
    for expected in ([UNCHECKED] * 3, [CHECKED, UNCHECKED, UNCHECKED]):
        batch.ui.checkAllButton.click()
        assert [table.item(row, 0).checkState() for row in range(3)] == expected
    check(batch, "labelsTr/a")
    batch.widget.batchPanel.refresh()
    assert table.item(1, 0).checkState() == CHECKED, "the user decides"


def test_added_files_can_be_removed_from_the_list(
    batch: PanelDriver, volume: object, hippocampus_image: Path, tmp_path: Path
) -> None:
    actions = {action.text: action for action in batch.ui.addBatchButton.menu().actions()}
    remove = actions["Remove all files from the list"]
    assert not remove.enabled
    (tmp_path / "wrong.nii.gz").write_bytes(hippocampus_image.read_bytes())
    add(batch, "A folder...", str(tmp_path))
    check(batch, "hippocampus_004")
    assert list(cases(batch)) == ["hippocampus_004", "wrong"] and remove.enabled
    remove.trigger()
    assert list(cases(batch)) == ["hippocampus_004"] and not remove.enabled
    assert [entry.title for entry in batch.widget.batchPanel.chosen] == ["hippocampus_004"]
    assert (tmp_path / "wrong.nii.gz").exists()
    add(batch, "Image files...", [str(tmp_path / "wrong.nii.gz")])
    assert list(cases(batch)) == ["hippocampus_004", "wrong"], "it can be added again"


def test_no_result_is_lost_when_the_disk_is_full(
    batch: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, bytes_written, free = slicer.util.saveNode, [400, 3000, -1], [0, 0, 1 << 40]

    def cut_off(node: object, path: str) -> bool:
        save(node, path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: bytes_written.pop(0)])
        return True

    monkeypatch.setattr(slicer.util, "saveNode", cut_off)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free.pop(0)))
    batch.ui.batchFolderPathEdit.currentPath = str(tmp_path)
    batch.settle()
    batch.ui.checkAllButton.click()
    for words in ("not enough disk space", "not enough disk space", "could not be saved"):
        run(batch)
        assert "0 of 1" in batch.status and words in next(iter(cases(batch).values()))
        assert not list(tmp_path.glob("*.nrrd"))
    unsaved = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert len(unsaved) == 3 and all(node.GetModifiedSinceRead() for node in unsaved)
    assert not any(node.GetStorageNode().GetFileName() for node in unsaved)


def test_result_that_cannot_be_moved_into_place_counts_as_unsaved(
    batch: PanelDriver, volume: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, path: object) -> None:
        raise PermissionError(13, "Permission denied")

    batch.ui.batchFolderPathEdit.currentPath = str(tmp_path)
    batch.settle()
    batch.ui.checkAllButton.click()
    monkeypatch.setattr("conresnet.files.move", refuse)
    run(batch)
    (unsaved,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert unsaved.GetModifiedSinceRead() and not unsaved.GetStorageNode().GetFileName()


def test_cancel_keeps_finished_cases(batch: PanelDriver, volume: object, head: object) -> None:
    # The volume shown in the slices is segmented first; the head takes minutes.
    slicer.util.setSliceViewerLayers(background=volume)
    batch.settle()
    batch.ui.checkAllButton.click()
    first, second = cases(batch)
    batch.ui.batchButton.click()
    batch.wait(lambda: "2 of 2" in batch.status and batch.ui.progressBar.value > 500)
    batch.ui.cancelButton.click()
    assert batch.status.startswith("Canceled.") and "1 of 1" in batch.status
    assert "mL" in cases(batch)[first] and cases(batch)[second] == ""
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1
    batch.wait(lambda: not batch.widget.logic.engine.isSegmenting)
    assert batch.ui.batchButton.enabled


def test_cancel_while_a_result_is_added_ends_the_run_after_that_case(
    batch: PanelDriver, volume: object, head: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.ui.show3DCheckBox.checked = True
    slicer.util.setSliceViewerLayers(background=volume)
    batch.settle()
    batch.ui.checkAllButton.click()
    first, second = cases(batch)
    runs = sys.modules["ConResSegmentationLib.SegmentationRun"]
    make = runs.ResultSegmentation._makeSurface

    def cancel_next(*arguments: object) -> object:
        # Runs before the next piece of the result is added.
        runs.callLater(batch.ui.cancelButton.click)
        return make(*arguments)

    monkeypatch.setattr(runs.ResultSegmentation, "_makeSurface", cancel_next)
    batch.ui.batchButton.click()
    batch.wait(lambda: "mL" in cases(batch)[first])
    assert not batch.widget.runPanel.isRunning and batch.status.startswith("Canceled.") and "1 of 1" in batch.status
    batch.settle()
    assert cases(batch)[second] == "" and not batch.widget.logic.engine.isSegmenting


def test_closing_scene_ends_the_batch(batch: PanelDriver, volume: object, head: object) -> None:
    batch.settle()
    batch.ui.checkAllButton.click()
    batch.ui.batchButton.click()
    batch.wait(lambda: batch.status.startswith("1 of 2"))
    slicer.mrmlScene.Clear(0)
    batch.settle()
    assert not batch.widget.runPanel.isRunning and cases(batch) == {}
    assert not slicer.util.getNodesByClass("vtkMRMLTableNode")


def test_images_of_several_channels_are_grouped_by_folder(
    batch: PanelDriver, tumor_images: list[Path], tmp_path: Path
) -> None:
    dialogs.answer("A folder", str(write_four_channels(tmp_path / "four")))
    batch.ui.installModelButton.click()
    for case in ("one", "two"):
        (tmp_path / "scans" / case).mkdir(parents=True)
        for path in tumor_images[: None if case == "one" else 2]:
            (tmp_path / "scans" / case / path.name).write_bytes(path.read_bytes())
    add(batch, "A folder...", str(tmp_path / "scans"))
    assert list(cases(batch)) == ["one", "two"]
    run(batch)
    texts = cases(batch)
    assert "Whole" in texts["one"] and "FLAIR" in texts["two"] and "mL" not in texts["two"]


def test_images_are_read_one_by_one_and_reading_can_be_canceled(
    batch: PanelDriver, tumor_images: list[Path], tmp_path: Path
) -> None:
    dialogs.answer("A folder", str(write_four_channels(tmp_path / "four")))
    batch.ui.installModelButton.click()
    (tmp_path / "scans" / "one").mkdir(parents=True)
    for path in tumor_images:
        (tmp_path / "scans" / "one" / path.name).write_bytes(path.read_bytes())
    add(batch, "A folder...", str(tmp_path / "scans"))
    batch.ui.batchButton.click()
    (tmp_path / "more" / "two").mkdir(parents=True)
    (tmp_path / "more" / "two" / "t1.nii.gz").touch()
    add(batch, "A folder...", str(tmp_path / "more"))
    batch.wait(lambda: slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))
    assert "Reading the images" in batch.status
    read = len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))
    assert read < len(tumor_images), "a folder was added to the list while images were read"
    batch.ui.cancelButton.click()
    batch.settle()
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == read
    assert batch.status == "Canceled." and batch.ui.batchButton.enabled
    chosen = [entry.title for entry in batch.widget.batchPanel.chosen]
    assert chosen == ["one", "two"], "cases added during the run are checked, too"


def test_slicer_stays_responsive_while_a_folder_is_searched(
    batch: PanelDriver, hippocampus_image: Path, tmp_path: Path
) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.nii.gz").write_bytes(hippocampus_image.read_bytes())
    enabled = []
    timer = QtCore.QTimer()
    timer.timeout.connect(lambda: enabled.append(batch.ui.addBatchButton.enabled))
    timer.start(0)
    add(batch, "A folder...", str(tmp_path))
    timer.stop()
    assert enabled.count(False) >= 30, "other events are handled after each file"
    assert len(cases(batch)) == 30 and len(batch.widget.batchPanel.chosen) == 30
