"""The review list and the statistics in the panel."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from PySide6 import QtCore, QtTest

from module.panel_driver import PanelDriver
from module.test_scene_inputs import add_transform, rotation
from slicer_host import dialogs

REPORT = {
    "review": {
        "rows": [
            {"rank": 1, "kind": "slice", "segment": "all", "slice": 20, "r": 10.5, "a": 20.25, "s": 20.0,
             "expected_wrong_voxels": 31.5, "expected_dice": 0.71, "reason": "small and uncertain"},
            {"rank": 2, "kind": "slice", "segment": "Anterior", "slice": 20, "r": 10.5, "a": 20.25, "s": 20.0,
             "expected_wrong_voxels": 20.0, "expected_dice": 0.7, "reason": "small"},
            {"rank": 3, "kind": "spot", "segment": "=Posterior", "slice": 9, "r": 12.0, "a": 15.0, "s": 9.0,
             "expected_wrong_voxels": 7.0, "expected_dice": None, "reason": "uncertain boundary"},
        ],
        "note": "Not fitted.",
    },
    "statistics": [
        {"segment": "Anterior", "voxels": 1840, "volume_ml": 1.84, "surface_cm2": 9.5, "mean_intensity": {"T1": 311.5},
         "mean_uncertainty": 0.04},
        {"segment": "Posterior", "voxels": 0, "volume_ml": 0.0, "surface_cm2": 0.0, "mean_intensity": {"T1": None},
         "mean_uncertainty": None},
    ],
}  # fmt: skip


@pytest.fixture
def reviewed(panel: PanelDriver, result: object, volume: object) -> object:
    """A result with a review list and statistics, chosen in the panel."""
    review().keep(result, REPORT)
    panel.choices.segmentation = result
    panel.settle()
    return result


def review() -> object:
    """The module Review as the panel uses it, because the panel's fixture imports it again."""
    import ConResSegmentationLib.Review

    return ConResSegmentationLib.Review


def table_texts(panel: PanelDriver, row: int) -> list[str]:
    return [panel.ui.reviewTable.item(row, column).text() for column in range(5)]


def cross_point(node: object) -> list[float]:
    return [node.GetSliceToRAS().GetElement(axis, 3) for axis in range(3)]


def press(panel: PanelDriver, key: str) -> None:
    shortcut = next(s for s in panel.widget.reviewPanel._shortcuts if s.key.toString() == key)
    assert shortcut.enabled
    shortcut.activated.emit()


def test_list_navigates_from_place_to_place(panel: PanelDriver, reviewed: object) -> None:
    assert panel.ui.reviewTable.rowCount == 2, "all segments of a slice together, and spots"
    assert table_texts(panel, 0) == ["", "Slice 20", "32", "0.71", "small and uncertain"]
    assert table_texts(panel, 1)[0] == "" and "=Posterior" in table_texts(panel, 1)[1]
    assert table_texts(panel, 1)[2:4] == ["7", ""]
    crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
    fields = []
    for key, place in (("N", (10.5, 20.25, 20)), ("N", (12, 15, 9)), ("N", (12, 15, 9)), ("P", (10.5, 20.25, 20))):
        press(panel, key)
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            np.testing.assert_allclose(cross_point(node), place, atol=1e-6)
        np.testing.assert_allclose(crosshair.GetCrosshairRAS(), place)
        fields.append(min(slicer.util.getNode("Red").GetFieldOfView()[:2]))
    assert crosshair.GetCrosshairMode() != slicer.vtkMRMLCrosshairNode.NoCrosshair
    assert fields[1] == pytest.approx(40) and fields[0] == fields[3] > 40
    panel.ui.reviewTable.cellClicked.emit(1, 2)
    np.testing.assert_allclose(crosshair.GetCrosshairRAS(), (12, 15, 9))
    panel.ui.reviewTable.setCurrentCell(0, 0)
    QtTest.QTest.keyClick(panel.ui.reviewTable, QtCore.Qt.Key.Key_Return)
    np.testing.assert_allclose(crosshair.GetCrosshairRAS(), (10.5, 20.25, 20))


# Slice, expected wrong voxels and Dice, reasons; from hippocampus_004.
SLICES = [
    (17, 49.7, 0.87, "large cross-section; uncertain boundary"),
    (16, 44.9, 0.92, "uncertain boundary; large cross-section"),
    (15, 43.6, 0.93, "large cross-section"),
    (14, 41.3, 0.93, "large cross-section"),
    (18, 35.2, 0.88, "uncertain boundary"),
    (19, 21.6, 0.89, "typical slice"),
    (20, 13.1, 0.81, "typical slice"),
    (13, 11.6, 0.85, "typical slice"),
    (21, 11.5, 0.79, "typical slice"),
    (22, 10.7, 0.73, "small cross-section"),
    (24, 8.6, 0.53, "small cross-section"),
]


@pytest.fixture
def grouped(panel: PanelDriver, result: object) -> object:
    """A result with a longer list, in which adjacent slices are grouped."""
    rows = [
        {"rank": rank, "kind": "slice", "segment": "all", "slice": number, "r": 0.0, "a": 0.0, "s": float(number),
         "expected_wrong_voxels": wrong, "expected_dice": dice, "reason": reason}
        for rank, (number, wrong, dice, reason) in enumerate(SLICES, start=1)
    ]  # fmt: skip
    spot = {**REPORT["review"]["rows"][2], "rank": 12}
    review().keep(result, {**REPORT, "review": {"rows": [*rows, spot], "note": ""}})
    panel.choices.segmentation = result
    panel.settle()
    return result


def places(panel: PanelDriver) -> list[str]:
    return [panel.ui.reviewTable.item(row, 1).text() for row in range(panel.ui.reviewTable.rowCount)]


def click_header(panel: PanelDriver, column: int) -> None:
    header = panel.ui.reviewTable.horizontalHeader()
    x = header.sectionViewportPosition(column) + 5
    QtTest.QTest.mouseClick(header.viewport(), QtCore.Qt.MouseButton.LeftButton, pos=QtCore.QPoint(x, 5))


def test_similar_adjacent_slices_are_one_row(panel: PanelDriver, grouped: object, tmp_path: Path) -> None:
    import qt

    from conresnet.results.review import BAD_DICE

    panel.picture(tmp_path / "panel.png")
    table = panel.ui.reviewTable
    assert places(panel) == [
        "Slices 16-18", "Slices 13-15", "Slices 19-20", "Slice 21", "Slice 22", "Slice 24", "Spot: =Posterior"
    ]  # fmt: skip
    assert table_texts(panel, 0) == ["", "Slices 16-18", "50", "0.87", "uncertain boundary"]
    assert table_texts(panel, 1) == ["", "Slices 13-15", "44", "0.85", ""], "large and typical are not reasons"
    assert table.item(1, 0).toolTip() == "Rank 3 in the exported list"
    assert table_texts(panel, 2)[3] == "0.81" and table_texts(panel, 3)[3:] == ["0.79", ""], (
        "slices with a Dice below 0.8 are separate"
    )
    assert BAD_DICE == 0.8
    assert "0 of 7" in panel.ui.reviewCollapsibleButton.text
    assert table.viewport().height >= 7 * table.rowHeight(0), "all rows are visible"
    panel.widget.reviewPanel.go(1)
    assert cross_point(slicer.util.getNode("Red"))[2] == 15, "the slice with the most expected errors"
    table.item(1, 0).setCheckState(qt.Qt.Checked)
    assert "1 of 7" in panel.ui.reviewCollapsibleButton.text
    node = review().tableOf(grouped, "review")
    assert {row["slice"] for row in review().rowsOf(node) if row["seen"]} == {13, 14, 15}
    assert review().rowsOf(node)[2]["reason"] == "large cross-section", "the table node keeps all rows unchanged"
    assert node.GetNumberOfRows() == 12
    column = node.GetTable().GetColumnByName("seen")
    column.SetValue(2, 0)
    panel.widget.reviewPanel.show(None)
    panel.widget.reviewPanel.show(grouped)
    assert table.item(1, 0).checkState() == qt.Qt.PartiallyChecked
    assert "0 of 7" in panel.ui.reviewCollapsibleButton.text


def test_clicking_a_header_sorts_the_list(panel: PanelDriver, grouped: object, tmp_path: Path) -> None:
    import qt

    panel.picture(tmp_path / "panel.png")
    first = places(panel)
    panel.widget.reviewPanel.go(1)
    click_header(panel, 3)
    assert places(panel) == [
        "Slice 24", "Slice 22", "Slice 21", "Slices 19-20", "Slices 13-15", "Slices 16-18", "Spot: =Posterior"
    ]  # fmt: skip
    assert panel.ui.reviewTable.currentRow() == 4, "the current place stays selected"
    panel.widget.reviewPanel.go(4)
    assert cross_point(slicer.util.getNode("Red"))[2] == 13, "the slice with the lowest Dice of the group"
    press(panel, "P")
    assert cross_point(slicer.util.getNode("Red"))[2] == 20
    panel.ui.reviewTable.item(0, 0).setCheckState(qt.Qt.Checked)
    seen = [row["slice"] for row in review().rowsOf(review().tableOf(grouped, "review")) if row["seen"]]
    assert seen == [24], "the check mark is for the place in this row"
    click_header(panel, 3)
    assert places(panel)[-1] == "Slice 24"
    click_header(panel, 0)
    assert places(panel) == [*(place for place in first if place != "Slice 24"), "Slice 24"]
    click_header(panel, 1)
    assert places(panel) == [
        "Slices 13-15", "Slices 16-18", "Slices 19-20", "Slice 21", "Slice 22", "Slice 24", "Spot: =Posterior"
    ]  # fmt: skip
    click_header(panel, 2)
    assert places(panel) == first
    click_header(panel, 4)
    assert table_texts(panel, 6)[4] == "uncertain boundary"


def test_places_move_with_the_volume(panel: PanelDriver, reviewed: object, volume: object) -> None:
    place, crosshair = (10.5, 20.25, 20), slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")

    def shown() -> np.ndarray:
        panel.widget.reviewPanel.go(0)
        return np.array(crosshair.GetCrosshairRAS())

    node = add_transform(rotation(30, (100, 0, 5)))
    matrix = vtk.vtkMatrix4x4()
    node.GetMatrixTransformToParent(matrix)
    moved = matrix.MultiplyPoint((*place, 1))[:3]
    for one in (volume, reviewed):
        one.SetAndObserveTransformNodeID(node.GetID())
    np.testing.assert_allclose(shown(), moved)
    for one in (volume, reviewed):
        one.HardenTransform()
    np.testing.assert_allclose(shown(), moved)
    volume.SetOrigin(*np.add(volume.GetOrigin(), (0, 7, 0)))
    np.testing.assert_allclose(shown(), np.add(moved, (0, 7, 0)))
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume)[2:].copy())
    np.testing.assert_allclose(shown(), place, err_msg="a cropped volume was not moved")


def test_check_marks_are_saved_with_the_scene_and_in_the_file(
    panel: PanelDriver, reviewed: object, tmp_path: Path
) -> None:
    import qt

    note = panel.ui.reviewNoteLabel
    assert "0 of 2" in panel.ui.reviewCollapsibleButton.text and note.text == "Not fitted."
    assert note.isVisibleTo(panel.representation)
    panel.ui.reviewTable.item(1, 0).setCheckState(qt.Qt.Checked)
    assert "1 of 2" in panel.ui.reviewCollapsibleButton.text
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert panel.ui.reviewTable.rowCount == 0 and not panel.ui.nextPlaceButton.enabled
    assert not any(shortcut.enabled for shortcut in panel.widget.reviewPanel._shortcuts)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.settle()
    assert table_texts(panel, 0)[1:] == ["Slice 20", "32", "0.71", "small and uncertain"]
    states = [panel.ui.reviewTable.item(row, 0).checkState() for row in range(2)]
    assert states == [qt.Qt.Unchecked, qt.Qt.Checked]
    path = tmp_path / "list"
    dialogs.answer(str(path))
    panel.ui.exportReviewButton.click()
    rows = list(csv.DictReader(path.with_suffix(".csv").open(encoding="utf-8")))
    assert [row["seen"] for row in rows] == ["no", "no", "yes"]
    expected = REPORT["review"]["rows"]
    assert list(rows[0]) == [*expected[0], "seen"]
    for row, entry in zip(rows, expected, strict=True):
        for name in ("rank", "slice", "r", "a", "s", "expected_wrong_voxels"):
            assert float(row[name]) == pytest.approx(entry[name], rel=1e-5)
    assert (rows[0]["expected_dice"], rows[2]["expected_dice"]) == ("0.71", "")
    assert rows[2]["segment"] != "=Posterior", "spreadsheets must not read a name as a formula"


def test_existing_file_is_not_replaced_without_asking_if_the_suffix_was_added(
    panel: PanelDriver, reviewed: object, tmp_path: Path
) -> None:
    (tmp_path / "result.csv").write_text("another", encoding="utf-8")
    for button, ending, kept in (
        (panel.ui.exportReviewButton, ".csv", "another"),
        (panel.ui.reportButton, ".html", ""),
    ):
        path = (tmp_path / "result").with_suffix(ending)
        path.write_text(kept, encoding="utf-8")
        dialogs.answer(str(tmp_path / "result"), "No")
        button.click()
        assert path.name in dialogs.shown[-1].text and path.read_text(encoding="utf-8") == kept
    dialogs.answer(str(tmp_path / "result"), "Yes")
    panel.ui.exportReviewButton.click()
    assert "rank" in (tmp_path / "result.csv").read_text(encoding="utf-8")
    shown = len(dialogs.shown)
    # Qt's dialog already asked about the typed name.
    dialogs.answer(str(tmp_path / "result.csv"))
    panel.ui.exportReviewButton.click()
    assert len(dialogs.shown) == shown + 1


def test_check_marks_are_kept_in_the_new_list_of_the_same_result(
    panel: PanelDriver, reviewed: object, volume: object
) -> None:
    import qt

    for row in range(2):
        panel.ui.reviewTable.item(row, 0).setCheckState(qt.Qt.Checked)
    node = add_transform(rotation(0, (0, 0, 4)))
    for one in (volume, reviewed):
        one.SetAndObserveTransformNodeID(node.GetID())
    first, second, third = REPORT["review"]["rows"]
    rows = [{**first, "s": 24.04}, {**second, "s": 24.0}, {**third, "a": 18.0, "s": 13.0}]
    review().keep(reviewed, {"review": {"rows": rows, "note": ""}})
    panel.widget.reviewPanel.show(reviewed)
    kept = review().rowsOf(review().tableOf(reviewed, "review"))
    assert [row["seen"] for row in kept] == [True, False, False]
    assert "1 of 2" in panel.ui.reviewCollapsibleButton.text
    import ConResSegmentationLib.ResultParts

    assert ConResSegmentationLib.ResultParts.isReviewed(reviewed)


def test_check_marks_are_kept_while_the_list_is_turned_off(panel: PanelDriver, reviewed: object) -> None:
    import qt

    panel.ui.reviewTable.item(1, 0).setCheckState(qt.Qt.Checked)
    review().keep(reviewed, {})
    review().keep(reviewed, {})
    import ConResSegmentationLib.ResultParts

    assert review().tableOf(reviewed, "review") is None
    assert ConResSegmentationLib.ResultParts.isReviewed(reviewed)
    review().keep(reviewed, REPORT)
    assert [row["seen"] for row in review().rowsOf(review().tableOf(reviewed, "review"))] == [False, False, True]
    panel.widget.reviewPanel.show(reviewed)
    panel.ui.reviewTable.item(1, 0).setCheckState(qt.Qt.Unchecked)
    review().keep(reviewed, REPORT)
    assert not ConResSegmentationLib.ResultParts.isReviewed(reviewed)


def test_reasons_are_shown_in_users_language(
    panel: PanelDriver, result: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    german = {
        "small cross-section": "kleiner Querschnitt",
        "uncertain boundary": "unsicherer Rand",
        "{reason} (ranked by area and entropy; not fitted to this model)": "{reason} (nicht angepasst)",
    }
    monkeypatch.setattr(review(), "translate", lambda context, text: german.get(text, text))
    known = ["reason-small", "reason-uncertain", "reason-unfitted"]
    first, _second, third = REPORT["review"]["rows"]
    rows = [{**first, "reason_codes": known}, {**third, "reason_codes": ["reason-of-a-later-version"]}]
    review().keep(result, {"review": {"rows": rows, "note": ""}})
    panel.choices.segmentation = result
    panel.settle()
    reasons = [table_texts(panel, row)[4] for row in range(2)]
    assert reasons == ["kleiner Querschnitt; unsicherer Rand (nicht angepasst)", "uncertain boundary"]


def test_statistics_are_shown_as_a_table_and_exported(panel: PanelDriver, reviewed: object, tmp_path: Path) -> None:
    manager = slicer.app.layoutManager()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    before = manager.layout
    panel.ui.statisticsButton.click()
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView
    dialogs.answer(str(tmp_path / "figures.csv"))
    panel.ui.exportReviewButton.click()
    (node,) = [n for n in slicer.util.getNodesByClass("vtkMRMLTableNode") if "statistics" in n.GetName()]
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveTableID() == node.GetID()
    assert node.GetTable().GetColumnByName("volume_ml").GetValue(0) == 1.84
    rows = list(csv.DictReader((tmp_path / "figures.csv").open(encoding="utf-8")))
    assert rows[0] == {"segment": "Anterior", "voxels": "1840", "volume_ml": "1.84", "surface_cm2": "9.5",
                       "mean_intensity T1": "311.5", "mean_uncertainty": "0.04"}  # fmt: skip
    assert rows[1]["mean_intensity T1"] == rows[1]["mean_uncertainty"] == ""
    panel.ui.statisticsButton.click()
    assert manager.layout == before
    dialogs.answer(str(tmp_path / "list.csv"))
    panel.ui.exportReviewButton.click()
    assert (tmp_path / "list.csv").read_text(encoding="utf-8").startswith("rank,")


def test_shown_statistics_are_updated_with_the_result(panel: PanelDriver, reviewed: object) -> None:
    manager, selection = slicer.app.layoutManager(), slicer.app.applicationLogic().GetSelectionNode()
    before = manager.layout
    panel.ui.statisticsButton.click()
    review().keep(reviewed, REPORT)
    panel.widget.reviewPanel.show(reviewed)
    assert selection.GetActiveTableID() == review().tableOf(reviewed, "statistics").GetID()
    # Another table that the user has opened stays open.
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "another")
    review().showTable(other)
    panel.widget.reviewPanel.show(reviewed)
    assert selection.GetActiveTableID() == other.GetID()
    panel.ui.statisticsButton.click()
    assert selection.GetActiveTableID() != other.GetID() and manager.layout != before
    review().keep(reviewed, {"review": REPORT["review"]})
    panel.widget.reviewPanel.show(reviewed)
    assert manager.layout == before and not panel.ui.statisticsButton.enabled
    review().keep(reviewed, REPORT)
    panel.widget.reviewPanel.show(reviewed)
    panel.ui.statisticsButton.click()
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert manager.layout == before


def test_lists_are_replaced_and_removed_with_the_result(panel: PanelDriver, reviewed: object) -> None:
    before = slicer.util.getNodesByClass("vtkMRMLTableNode")
    review().keep(reviewed, {"review": {"rows": REPORT["review"]["rows"][:1], "note": ""}})
    (after,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert after not in before and after.GetNumberOfRows() == 1
    panel.widget.reviewPanel.show(reviewed)
    assert panel.ui.reviewTable.rowCount == 1 and not panel.ui.statisticsButton.enabled
    slicer.mrmlScene.RemoveNode(reviewed)
    panel.settle()
    assert not slicer.util.getNodesByClass("vtkMRMLTableNode") and panel.ui.reviewTable.rowCount == 0


def test_panel_handles_tables_that_the_user_removes_or_changes(
    panel: PanelDriver, reviewed: object, tmp_path: Path
) -> None:
    import qt

    list_node, statistics = (review().tableOf(reviewed, kind) for kind in ("review", "statistics"))
    list_node.RemoveRow(2)
    panel.ui.reviewTable.item(1, 0).setCheckState(qt.Qt.Checked)
    list_node.GetTable().RemoveColumnByName("kind")
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.RemoveNode(statistics)
    panel.settle()
    assert not panel.ui.statisticsButton.enabled and not panel.ui.reportButton.enabled
    slicer.mrmlScene.RemoveNode(list_node)
    panel.settle()
    assert panel.ui.reviewTable.rowCount == 0 and not panel.ui.exportReviewButton.enabled
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.settle()
    assert panel.ui.reviewTable.rowCount == 0 and panel.ui.statisticsButton.enabled
    assert panel.ui.applyButton.enabled


def test_list_adapts_to_the_font(panel: PanelDriver, reviewed: object) -> None:
    table = panel.ui.reviewTable
    header, height = table.horizontalHeader(), table.rowHeight(0)
    assert all(header.sectionSize(column) >= header.sectionSizeHint(column) for column in range(4))
    table.setStyleSheet("font-size: 20pt")
    panel.settle()
    assert table.rowHeight(0) > height


def test_check_marks_are_for_the_right_place_after_rows_were_removed(panel: PanelDriver, reviewed: object) -> None:
    import qt

    table = review().tableOf(reviewed, "review")
    for number in (0, 0):
        table.RemoveRow(number)
    panel.ui.reviewTable.item(0, 0).setCheckState(qt.Qt.Checked)
    assert [row["seen"] for row in review().rowsOf(table)] == [False], "the checked place is no longer in the table"
    panel.ui.reviewTable.item(1, 0).setCheckState(qt.Qt.Checked)
    assert [row["seen"] for row in review().rowsOf(table)] == [True]
