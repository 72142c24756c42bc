"""The panel as a window: reopening, reloading, diagnostics, remaining time, size, Tab order, fonts and colors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import slicer
from PySide6 import QtGui, QtTest, QtWidgets

from ConResSegmentationLib import Diagnostics, Widgets
from module.models import write_four_channels
from module.panel_driver import PanelDriver
from module.result_cases import put_maps
from module.test_scene_inputs import add_roi
from slicer_host import dialogs

pytestmark = pytest.mark.usefixtures("warm_engine")

NAME = "DOE^JANE 19700101"


def test_reopening_the_module_leaves_nothing_behind(panel: PanelDriver, volume: object) -> None:
    panel.segment()
    kept = len(panel.app.kept_timers)
    wrapper = panel.choices
    for _time in range(3):
        panel.leave()
        panel.open()
        panel.segment()
    assert len(panel.app.kept_timers) == kept == 0, "QTimer.singleShot keeps what it calls"
    assert panel.choices is wrapper, "each wrapper adds observers to the node"
    wrapper.show3D = False
    slicer.mrmlScene.Clear(0)
    panel.settle()
    assert panel.choices.show3D and panel.choices is not wrapper


def test_device_of_another_computer_is_shown_and_refused(panel: PanelDriver, volume: object) -> None:
    panel.choices.device = "cuda:7"
    assert panel.ui.deviceSelector.currentText == "cuda:7"
    assert panel.segment() is None
    assert "cuda:7" in panel.status


def test_diagnostics_are_complete_and_name_no_patient(panel: PanelDriver, volume: object) -> None:
    volume.SetName(NAME)
    panel.choices.region = None
    volume.GetImageData().GetPointData().GetScalars().Fill(1)
    panel.segment()
    assert NAME in panel.status, "the panel itself may name the image"
    panel.ui.copyDiagnosticsButton.click()
    text = panel.app.clipboard().text()
    assert NAME not in text and "DOE" not in text
    slicer.mrmlScene.Clear(0)
    panel.ui.copyDiagnosticsButton.click()
    assert "DOE" not in panel.app.clipboard().text(), "the log is kept after the scene was closed"
    for part in (
        "Slicer 5.12",
        "hippocampus 1.",
        "torch: 2",
        "device: auto",
        "fast: False",
        "<image ",
        "Log of the engine",
    ):
        assert part in text, part


def test_longest_names_are_replaced_first() -> None:
    text = Diagnostics.withoutNames("ann t1 residual, ann t1", ["ann t1", "ann t1 residual", "", "a"])
    assert text == "<image 2>, <image 1>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cannot read /data/Hans Doe/t1/scan.nii.gz: no file", "Cannot read <folder>/scan.nii.gz: no file"),
        ("Cannot read ~/Hans Doe/t1/scan.nii.gz", "Cannot read <folder>/scan.nii.gz"),
        ("There are no images in /data/Hans_Doe.", "There are no images in <folder>"),
        (r"'C:\MR\Hans Doe\a.nii' (archetype '\\server\Doe\b.nii')", "'<folder>/b.nii')"),
        (r"read C:\MR\Hans Doe\a.nii", "read <folder>/a.nii"),
        (r"'\\\\server\\Doe\\b.nii'", "'<folder>/b.nii'"),
        ("0.4 s/window, 3 mL / 5 mL, https://slicer.org/a/b.html", None),
        (f'File "{Diagnostics.__file__}", line 3', None),
    ],
)
def test_folder_names_are_replaced(text: str, expected: str | None) -> None:
    assert Diagnostics.withoutFolders(text) == (expected or text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.4, "almost done"), (12.3, "about 12 s left"), (63, "about 65 s left"), (200, "about 3 min left")],
)
def test_remaining_time_is_rounded(seconds: float | None, text: str) -> None:
    assert Widgets.timeLeft(seconds) == text


def test_panel_has_width_of_slicers_panel_and_fits_a_screen(panel: PanelDriver, volume: object, tmp_path: Path) -> None:
    volume.SetName("W" * 68)
    panel.segment()
    picture = panel.picture(tmp_path / "panel.png")
    height, width = matplotlib.image.imread(picture).shape[:2]
    assert height <= 1000 and width <= 420, "with the advanced sections collapsed"
    panel.ui.modelDetailsButton.collapsed = False
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.settle()
    panel.picture(tmp_path / "unfolded.png")
    assert panel.representation.minimumSizeHint.width() <= 420
    label = panel.ui.modelDetailsLabel
    assert label.height >= label.heightForWidth(label.width) > 100, "the whole text is visible"
    panel.drop(write_four_channels(tmp_path / "four.zip"))
    panel.picture(tmp_path / "short.png")
    assert 0 < label.height < 180, "a short text leaves no gap"


def test_panel_works_after_a_reload(panel: PanelDriver, volume: object) -> None:
    before = panel.widget
    before.onReload()
    panel.settle()
    assert panel.widget is not before
    assert panel.segment() is not None


def test_every_button_has_a_text_or_an_accessible_name(panel: PanelDriver) -> None:
    buttons = [widget for widget in vars(panel.ui).values() if isinstance(widget, QtWidgets.QAbstractButton)]
    unnamed = [button.objectName for button in buttons if not (button.text or button.accessibleName)]
    assert buttons and unnamed == ["qt_tableview_cornerbutton"], "only Qt's own button"


def test_tooltips_of_segment_and_cancel_show_their_shortcuts(panel: PanelDriver, volume: object) -> None:
    panel.settle()
    keys = {shortcut.key.toString() for shortcut in panel.widget._shortcuts}
    for button, shortcut in ((panel.ui.applyButton, "Ctrl+Return"), (panel.ui.cancelButton, "Ctrl+Backspace")):
        assert f"({shortcut})" in button.toolTip and shortcut in keys


def test_tab_order_matches_the_order_on_the_screen(panel: PanelDriver, tmp_path: Path) -> None:
    panel.drop(write_four_channels(tmp_path / "four.zip"))
    panel.unfold()
    assert panel.tab_stops_out_of_order() == []
    stops = {widget.parent().objectName for widget in panel.tab_stops()}
    assert {f"channelSelector{number}" for number in range(4)} <= stops
    for table in (panel.ui.reviewTable, panel.ui.batchTable):
        assert not table.tabKeyNavigation, "Tab would stop at each of its cells"


def test_maps_of_a_result_have_distinct_names_in_the_closed_selector(
    panel: PanelDriver, result: object, volume: object
) -> None:
    volume.SetName("5: T1 MPRAGE sagittal isotropic, contrast-enhanced")
    shape = slicer.util.arrayFromVolume(volume).shape
    kinds = ("residual", "result_residual", "residual_difference")
    names = ("Left inferior lateral ventricle", "Right inferior lateral ventricle")
    arrays = {kind: np.full((2, *shape), 0.5, np.float16) for kind in kinds}
    maps = put_maps({**arrays, "attention": np.ones((1, *shape), np.float16)}, result, volume, names)
    panel.unfold()
    combo = Widgets.comboBoxOf(panel.ui.mapSelector)
    shown = set()
    for node in maps:
        panel.choices.shownMap = node
        panel.settle()
        assert panel.ui.mapSelector.toolTip == node.GetName()
        shown.add(combo.shown_text())
    assert len(shown) == len(maps) == 7, shown


def test_long_names_and_paths_do_not_widen_the_panel(
    panel: PanelDriver, volume: object, slicer_app: object, tmp_path: Path
) -> None:
    long = " ".join(["a very long name"] * 8)
    path = write_four_channels(tmp_path / "four")
    model = json.loads((path / "model.json").read_text(encoding="utf-8"))
    model["title"], model["inputs"][0]["name"] = long, long
    (path / "model.json").write_text(json.dumps(model), encoding="utf-8")
    slicer_app.userSettings().setValue("ConResSegmentation/EnginePython", f"/{long}/python")
    panel.drop(path)
    assert dialogs.shown == []
    panel.widget.onReload()
    volume.SetName(long)
    add_roi((0, 0, 0), (5, 5, 5)).SetName(long)
    panel.choices.device = long
    assert panel.ui.modelSelector.currentText == long and panel.ui.pythonPathEdit.currentPath == f"/{long}/python"
    panel.unfold()
    assert panel.representation.minimumSizeHint.width() <= 400


def test_partly_typed_path_is_not_used_after_the_panel_was_closed(panel: PanelDriver, tmp_path: Path) -> None:
    panel.ui.pythonPathEdit.currentPath = str(tmp_path / "python")
    panel.widget.cleanup()
    # The field loses the focus when it is deleted.
    panel.ui.pythonPathEdit.comboBox().lineEdit().editingFinished.emit()
    QtTest.QTest.qWait(600)
    assert panel.widget.logic.enginePython.program == ""


@pytest.mark.parametrize("background", ["#efefef", "#353535"])
def test_warnings_and_errors_are_legible_on_light_and_dark_backgrounds(slicer_app: object, background: str) -> None:
    label = QtWidgets.QLabel()
    palette = QtGui.QPalette()
    palette.setColor(QtGui.QPalette.Window, QtGui.QColor(background))
    label.setPalette(palette)
    for show in (Widgets.hint, lambda label, text: Widgets.say(label, text, isError=True)):
        show(label, "Careful")
        color = re.search("color: (#[0-9a-f]{6})", label.styleSheet)[1]
        lighter, darker = sorted((luminance(color), luminance(background)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, "WCAG 2.1, success criterion 1.4.3"


def test_buttons_and_labels_follow_slicers_font_and_style(panel: PanelDriver) -> None:
    application = QtWidgets.QApplication.instance()
    font, palette, dark = application.font(), application.palette(), QtGui.QPalette()
    dark.setColor(QtGui.QPalette.WindowText, QtGui.QColor("white"))
    try:
        application.setFont(QtGui.QFont(font.family(), 3 * font.pointSize()))
        panel.widget.onReload()
        panel.unfold()
        for button in (panel.ui.previousPlaceButton, panel.ui.nextPlaceButton):
            assert button.width > button.fontMetrics().horizontalAdvance(button.text)
        assert panel.ui.researchUseLabel.font.pointSize() == 3 * font.pointSize()
        assert panel.ui.researchUseLabel.font.italic()
        application.setPalette(dark)
        panel.settle()
        assert panel.ui.researchUseLabel.palette.color(QtGui.QPalette.WindowText) == QtGui.QColor("white")
    finally:
        application.setPalette(palette)
        application.setFont(font)


def luminance(color: str) -> float:
    """Relative luminance as defined by WCAG, 0 to 1."""
    channels = np.array(QtGui.QColor(color).getRgbF()[:3])
    return np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ (
        0.2126,
        0.7152,
        0.0722,
    )
