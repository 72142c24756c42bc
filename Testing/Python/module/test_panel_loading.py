"""Loading images from the panel, opening results in the Segment Editor, drag and drop, menus and shortcuts."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from ConResSegmentationLib import Loading
from module.models import write_four_channels
from module.panel_driver import PanelDriver, result_nodes, slice_composites
from slicer_host import dialogs, sample_data
from slicer_host.subject_hierarchy import context_menu

pytestmark = pytest.mark.usefixtures("warm_engine")

EDITOR = '''
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget


class SegmentEditor(ScriptedLoadableModule):
    pass


class Editor:
    """Replaces qMRMLSegmentEditorWidget."""

    def setSegmentationNode(self, node):
        self.segmentationNode = node

    def setSourceVolumeNode(self, node):
        self.sourceVolumeNode = node


class SegmentEditorWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.editor = Editor()
'''


def load_action(panel: PanelDriver, text: str) -> object:
    """An entry of the button's menu."""
    return next(action for action in panel.ui.loadButton.menu().actions() if action.text == text)


def test_example_is_segmented_with_one_click(panel: PanelDriver) -> None:
    assert panel.ui.exampleButton.enabled
    panel.ui.exampleButton.click()
    (volume,) = panel.widget.channels.nodes
    composites = slice_composites()
    assert {c.GetBackgroundVolumeID() for c in composites} == {volume.GetID()}
    panel.segment()
    for name in ("Left anterior", "Left posterior", "Right anterior", "Right posterior"):
        assert 1 < float(re.search(rf"{name} hippocampus (\S+) mL", panel.status)[1]) < 3
    panel.choose_model("brain-tissue")
    panel.ui.exampleButton.click()
    assert panel.widget.channels.nodes == [volume], "the same head is loaded only once"
    panel.choose_model("head-neck-organs")
    panel.ui.exampleButton.click()
    assert panel.widget.channels.nodes != [volume] and panel.ui.applyButton.enabled


def test_examples_are_registered_as_sample_data(panel: PanelDriver) -> None:
    sample_data.sources.clear()
    Loading.registerSampleData()
    offered = {source.nodeNames[0]: Path(source.fileNames[0]).name for source in sample_data.sources}
    # The panel uses a whole head as this model's example. The crop is for comparison with the data set's labels.
    assert offered.pop("hippocampus") == "hippocampus.nii.gz"
    assert offered == {name: path.name for name, path in Loading.EXAMPLES.items() if name != "hippocampus"}
    assert set(Loading.EXAMPLES) == {"hippocampus", "brain-structures", "brain-tissue", "head-neck-organs"}


def test_module_loaded_at_run_time_registers_its_examples_and_menu(
    slicer_app: object, volume: object, repository: Path
) -> None:
    """The module is loaded after Slicer's start, as with "Select module to load" in the Extension Wizard."""
    handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()
    handler._plugins.clear()
    sample_data.sources.clear()
    slicer_app.moduleManager().load(repository / "ConResSegmentation" / "ConResSegmentation.py", at_run_time=True)
    assert len(sample_data.sources) == 4
    assert [action.text for action in context_menu(volume)] == ["Segment with ConResNet"]
    slicer_app.moduleManager().unload("ConResSegmentation")


def test_loaded_images_are_assigned_by_name(panel: PanelDriver, tumor_images: list[Path], tmp_path: Path) -> None:
    dialogs.answer("A folder", str(write_four_channels(tmp_path / "four")))
    panel.ui.installModelButton.click()
    assert not panel.ui.exampleButton.enabled
    dialogs.answer([str(path) for path in tumor_images])
    load_action(panel, "Image files...").trigger()
    names = [node.GetName() for node in panel.widget.channels.nodes]
    assert names == ["pat2_flair", "pat2_t1", "pat2_t1ce", "pat2_t2"]
    assert panel.ui.applyButton.enabled


def test_loaded_image_replaces_the_chosen_one_regardless_of_its_name(
    panel: PanelDriver, volume: object, hippocampus_image: Path, tmp_path: Path
) -> None:
    panel.settle()
    assert panel.widget.channels.nodes == [volume]
    shutil.copy(hippocampus_image, tmp_path / "scan 7.nii.gz")
    panel.drop(tmp_path / "scan 7.nii.gz")
    assert [node.GetName() for node in panel.widget.channels.nodes] == ["scan 7"]
    (tmp_path / "broken.nii").write_bytes(b"not an image")
    panel.drop(tmp_path / "broken.nii")
    assert "broken.nii" in dialogs.shown[-1].text or "load" in dialogs.shown[-1].text.casefold()
    assert [node.GetName() for node in panel.widget.channels.nodes] == ["scan 7"]


def test_dicom_folder_is_loaded_by_slicers_dicom_module(
    panel: PanelDriver, hippocampus_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = []

    @contextlib.contextmanager
    def database():
        yield types.SimpleNamespace(patients=lambda: ["1"] if imported else [])

    utilities = types.SimpleNamespace(
        TemporaryDICOMDatabase=database,
        importDicom=lambda folder, _database: imported.append(folder) if list(Path(folder).iterdir()) else None,
        loadPatientByUID=lambda _patient: slicer.util.loadVolume(str(hippocampus_image)),
    )
    library = types.ModuleType("DICOMLib")
    library.DICOMUtils = utilities
    monkeypatch.setitem(sys.modules, "DICOMLib", library)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "image.dcm").touch()
    dialogs.answer(str(tmp_path / "empty"))
    load_action(panel, "DICOM folder...").trigger()
    assert "contains no DICOM images" in dialogs.shown[-1].text
    panel.drop(tmp_path / "full")
    assert imported == [str(tmp_path / "full")] and panel.ui.applyButton.enabled


def test_dropped_model_package_is_installed(panel: PanelDriver, tmp_path: Path) -> None:
    panel.drop(write_four_channels(tmp_path / "four.zip"))
    assert panel.choices.model == "four"


def test_result_is_opened_in_the_segment_editor(panel: PanelDriver, volume: object, tmp_path: Path) -> None:
    assert not panel.ui.editButton.enabled
    (tmp_path / "SegmentEditor.py").write_text(EDITOR, encoding="utf-8")
    panel.app.moduleManager().load(tmp_path / "SegmentEditor.py")
    node = panel.segment()
    panel.ui.editButton.click()
    editor = slicer.util.getModuleWidget("SegmentEditor").editor
    assert (editor.segmentationNode, editor.sourceVolumeNode) == (node, volume)
    assert panel.app.moduleManager()._selected == "SegmentEditor"
    other = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(volume).copy(), name="other")
    panel.open()
    panel.widget.channels.combos[0].setCurrentNode(other)
    panel.ui.editButton.click()
    assert editor.sourceVolumeNode is volume, "the input of the result"
    panel.app.moduleManager().unload("SegmentEditor")


def test_volume_is_segmented_from_its_context_menu(panel: PanelDriver, volume: object) -> None:
    panel.leave()
    (entry,) = context_menu(volume)
    assert entry.text == "Segment with ConResNet"
    models = {action.text: action for action in entry.menu().actions()}
    assert "Hippocampus, anterior and posterior, in T1 MR" in models and len(models) == 4
    models["Hippocampus, anterior and posterior, in T1 MR"].trigger()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert panel.status.startswith("Done in") and panel.choices.segmentation is not None
    assert context_menu(panel.choices.segmentation) == []
    assert context_menu(result_nodes()[1]) == [], "a map is not an image"


def test_context_menu_changes_no_choice_during_a_run(panel: PanelDriver, head: object, volume: object) -> None:
    panel.widget.channels.combos[0].setCurrentNode(head)
    panel.click_segment()
    panel.wait_until_computing()
    (entry,) = context_menu(volume)
    next(action for action in entry.menu().actions() if "tissue" in action.text).trigger()
    assert dialogs.shown[-1].text == "Wait until the current run has ended, or cancel it."
    assert panel.choices.model == "hippocampus" and panel.widget.channels.nodes == [head]
    panel.ui.cancelButton.click()


def test_color_image_is_refused(panel: PanelDriver, tmp_path: Path) -> None:
    colors = np.zeros((4, 5, 6, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colors, isVector=True), str(tmp_path / "photo.nrrd"))
    panel.drop(tmp_path / "photo.nrrd")
    assert dialogs.shown[-1].text.startswith("The volume photo has 3 values per voxel, like a color image")
    assert panel.widget.channels.nodes == [None]


def test_volume_without_a_name_is_segmented(panel: PanelDriver, hippocampus_image: Path) -> None:
    node = slicer.util.loadVolume(str(hippocampus_image))
    node.SetName(None)
    panel.ui.batchCollapsibleButton.collapsed = False
    panel.settle()
    assert panel.ui.batchTable.item(0, 0).text() == "unnamed volume"
    assert panel.segment().GetName() == "unnamed volume hippocampus"
    assert result_nodes()[1].GetName().startswith("unnamed volume residual")
    node.SetName("")
    assert panel.segment() and panel.status.startswith("Done in")


def test_shortcuts_work_only_while_the_module_is_open(panel: PanelDriver, volume: object) -> None:
    shortcuts = {shortcut.key.toString(): shortcut for shortcut in panel.widget._shortcuts}
    assert set(shortcuts) == {"Ctrl+Return", "Ctrl+Backspace", "Ctrl+Shift+M"}
    panel.settle()
    shortcuts["Ctrl+Return"].activated.emit()
    assert panel.widget.runPanel.isRunning
    shortcuts["Ctrl+Backspace"].activated.emit()
    assert panel.status == "Canceled."
    panel.segment()
    shown = panel.choices.shownMap
    assert shown in result_nodes()
    shortcuts["Ctrl+Shift+M"].activated.emit()
    assert panel.choices.shownMap is None
    shortcuts["Ctrl+Shift+M"].activated.emit()
    assert panel.choices.shownMap is shown
    panel.leave()
    assert not any(shortcut.enabled for shortcut in shortcuts.values())
