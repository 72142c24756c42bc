"""The panel with its engine on a server: a real OpenSSH server on this computer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import slicer

from module.panel_driver import PanelDriver, label_array
from worker.client import wait_until
from worker.ssh_server import NAME, SshServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A running server."""
    (tmp_path / "server").mkdir()
    server = SshServer(tmp_path / "server")
    monkeypatch.setenv("PATH", f"{server.bin}{os.pathsep}{os.environ['PATH']}")
    yield server
    server.stop()


def type_into(edit: object, text: str) -> None:
    """Type a text and leave the field."""
    edit.text = text
    edit.editingFinished.emit()


def test_segmentation_on_a_server_gives_the_same_result_as_here(
    panel: PanelDriver, volume: object, server: SshServer, tmp_path: Path
) -> None:
    local = label_array(panel.segment(), volume)
    panel.ui.advancedCollapsibleButton.collapsed = False
    assert panel.ui.serverPythonEdit.isHidden() and not panel.ui.pythonPathEdit.isHidden()
    type_into(panel.ui.serverEdit, f" {NAME} ")
    assert not panel.ui.serverPythonEdit.isHidden() and panel.ui.pythonPathEdit.isHidden()
    panel.wait(lambda: "could not be started on gpu-server" in panel.ui.engineStatusLabel.text)
    type_into(panel.ui.serverPythonEdit, server.python())
    panel.wait(lambda: panel.ui.engineStatusLabel.text == f"Ready on {NAME}.")
    assert panel.ui.deviceSelector.count > 1, "the server's devices"
    panel.picture(tmp_path / "ready.png")
    for name in ("keep", "other"):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    result = panel.segment()
    assert panel.status.startswith("Done in"), panel.status
    np.testing.assert_array_equal(label_array(result, volume), local)
    maps = [
        node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if node.GetAttribute("ConResNet.Map")
    ]
    assert maps
    server.cut()
    panel.wait(lambda: not panel.widget.logic.engine.isRunning)
    assert f"The connection to {NAME} was lost" in panel.ui.engineStatusLabel.text
    panel.click_segment()
    panel.wait_until_computing()
    server.cut()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert f"The connection to {NAME} was lost" in panel.status
    assert panel.ui.engineStatusLabel.text == panel.status
    panel.picture(tmp_path / "lost.png")
    assert panel.segment() is not None and panel.status.startswith("Done in"), panel.status
    assert panel.ui.engineStatusLabel.text == f"Ready on {NAME}."
    panel.leave()
    panel.open()
    assert (panel.ui.serverEdit.text.strip(), panel.ui.serverPythonEdit.text) == (NAME, str(server.bin / "python"))
    type_into(panel.ui.serverEdit, "")
    panel.wait(lambda: panel.ui.engineStatusLabel.text == "Ready: all required packages are installed.")
    wait_until(lambda: server.sessions() == [])


def test_server_name_that_ssh_would_read_as_an_option_is_refused(panel: PanelDriver, volume: object) -> None:
    panel.ui.serverEdit.text = "-oProxyCommand=touch${IFS}x"
    panel.click_segment()
    panel.wait(lambda: not panel.widget.runPanel.isRunning)
    assert "is not the name of a server" in panel.status
    assert not panel.ui.advancedCollapsibleButton.collapsed
