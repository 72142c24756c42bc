"""Drives the module's panel as a user does: clicks, choices and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import slicer

from slicer_host.panel import panel_image
from slicer_host.views import save_png


class PanelDriver:
    """The panel of the loaded module.

    Args:
        app: the stand-in application.
        module: the loaded module.
    """

    def __init__(self, app: object, module: object):
        self.app, self.module = app, module

    @property
    def widget(self) -> object:
        """The module's own widget object; another one after a reload."""
        return self.module.widgetRepresentation().self()

    @property
    def ui(self) -> object:
        """The panel's widgets by name."""
        return self.widget.ui

    @property
    def choices(self) -> object:
        """The parameter node."""
        return self.widget.logic.getParameterNode()

    @property
    def status(self) -> str:
        """The sentence below the buttons."""
        return self.ui.statusLabel.text

    def open(self) -> None:
        """Go to the module."""
        slicer.util.selectModule("ConResSegmentation")
        self.settle()

    def leave(self) -> None:
        """Go to no module."""
        self.app.moduleManager().select("")
        self.settle()

    def settle(self) -> None:
        """Let timers and signals that are due arrive."""
        for _round in range(3):
            self.app.processEvents()

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Let Slicer's event loop run until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            self.app.processEvents()
            time.sleep(0.005)
            assert time.monotonic() < end, f"waited {seconds} s in vain; the panel says: {self.status}"

    def choose(self, selector: object, text: str) -> None:
        """Choose an entry of a combo box by its text, as a click does."""
        index = selector.findText(text)
        assert index >= 0, f"no entry {text!r}"
        selector.setCurrentIndex(index)
        selector.activated.emit(index)
        self.settle()

    def click_segment(self) -> None:
        """Click Segment, which must be enabled."""
        self.settle()
        assert self.ui.applyButton.enabled, self.ui.applyButton.toolTip
        self.ui.applyButton.click()

    def segment(self) -> object:
        """Click Segment, wait for the end, and return the chosen segmentation."""
        self.click_segment()
        self.wait(lambda: not self.widget.runPanel.isRunning)
        return self.choices.segmentation

    def wait_until_computing(self) -> None:
        """Wait until the network computes."""
        self.wait(lambda: self.status.startswith("Segmenting") and self.ui.progressBar.value > 0)

    def picture(self, path: Path) -> Path:
        """Write a picture of the panel."""
        save_png(panel_image(self.module.widgetRepresentation()), path)
        return path


def result_nodes() -> list[object]:
    """Everything that a segmentation puts into the scene."""
    maps = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    maps = [node for node in maps if node.GetAttribute("ConResNet.Map")]
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode") + maps


def label_array(segmentation: object, volume: object) -> object:
    """The segments as one labelmap on the grid of a volume: 1 for the first, 2 for the second."""
    labels = slicer.util.arrayFromVolume(volume).astype("uint8") * 0
    content = segmentation.GetSegmentation()
    for number in range(content.GetNumberOfSegments()):
        segment_id = content.GetNthSegmentID(number)
        labels[slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume) != 0] = number + 1
    return labels
