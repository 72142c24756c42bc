"""Drives the module's panel as a user does: clicks, choices and waiting."""

from __future__ import annotations

import slicer
import vtk

from slicer_host.module_driver import ModuleDriver


class PanelDriver(ModuleDriver):
    """The panel of the loaded module."""

    moduleName = "ConResSegmentation"

    @property
    def choices(self) -> object:
        """The parameter node."""
        return self.widget.logic.getParameterNode()

    @property
    def status(self) -> str:
        """The status message below the buttons."""
        return self.ui.statusLabel.text

    @property
    def warnings(self) -> str:
        """The warnings about the last result, shown above the status."""
        label = self.ui.warningsLabel
        assert bool(label.text) is label.isVisibleTo(self.representation)
        return label.text

    @property
    def message(self) -> str:
        return self.status

    def leave(self) -> None:
        """Leave the module without opening another one."""
        self.app.moduleManager().select("")
        self.settle()

    def choose(self, selector: object, text: str) -> None:
        """Choose an entry of a combo box by its text, as a click on it does."""
        index = selector.findText(text)
        assert index >= 0, f"no entry {text!r}"
        selector.setCurrentIndex(index)
        selector.activated.emit(index)
        self.settle()

    def map_box(self, kind: str) -> object:
        """The check box of a map in the list of maps to compute."""
        return self.widget.mapChooser.boxes[kind]

    def choose_model(self, name: str) -> None:
        """Choose a model, as a click on its entry does."""
        index = self.ui.modelSelector.findData(name)
        assert index >= 0, f"no model {name!r}"
        self.choose(self.ui.modelSelector, self.ui.modelSelector.itemText(index))

    def click_segment(self) -> None:
        """Click Segment, which must be enabled."""
        self.settle()
        assert self.ui.applyButton.enabled, self.ui.applyButton.toolTip
        self.ui.applyButton.click()

    def segment(self) -> object:
        """Click Segment, wait until the run has ended, and return the chosen segmentation."""
        self.click_segment()
        self.wait(lambda: not self.widget.runPanel.isRunning)
        return self.choices.segmentation

    def wait_until_requested(self) -> None:
        """Wait until the panel has checked the engine's Python and sent the request."""
        self.wait(lambda: self.status != "Looking for the engine")

    def wait_until_computing(self) -> None:
        """Wait until the network is running."""
        self.wait(lambda: self.status.startswith("Segmenting") and self.ui.progressBar.value > 0)


def result_nodes() -> list[object]:
    """The segmentations and maps in the scene."""
    maps = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    maps = [node for node in maps if node.GetAttribute("ConResNet.Map")]
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode") + maps


def folders() -> list[str]:
    """The folders in the Data tree."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    found = [items.GetId(number) for number in range(items.GetNumberOfIds())]
    return [hierarchy.GetItemName(item) for item in found if hierarchy.GetItemDataNode(item) is None]


def slice_composites() -> list[object]:
    """Composite nodes of Slicer's own slice views. The views of Compare stay in the scene after a test used them."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [node for node in nodes if node.GetLayoutName() in ("Red", "Yellow", "Green")]


def label_array(segmentation: object, volume: object) -> object:
    """The segments as one label map on the voxel grid of a volume: 1 for the first segment, 2 for the second."""
    labels = slicer.util.arrayFromVolume(volume).astype("uint8") * 0
    content = segmentation.GetSegmentation()
    for number in range(content.GetNumberOfSegments()):
        segment_id = content.GetNthSegmentID(number)
        labels[slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume) != 0] = number + 1
    return labels
