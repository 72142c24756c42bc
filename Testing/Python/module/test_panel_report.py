"""The report that the panel writes for a result."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import slicer

from module.models import write_four_channels
from module.panel_driver import PanelDriver
from module.result_cases import put_maps
from module.test_review import REPORT, review
from module.test_scene_inputs import add_transform, rotation
from slicer_host import dialogs


def write_report(panel: PanelDriver) -> None:
    panel.ui.reportButton.click()
    assert not panel.ui.reportButton.enabled
    panel.wait(lambda: not panel.widget.reviewPanel.isBusy)
    assert panel.ui.reportButton.enabled


def test_report_is_one_page_without_names_and_lists_edits(
    panel: PanelDriver, result: object, volume: object, tmp_path: Path
) -> None:
    names = ("Anterior hippocampus", "Posterior hippocampus")
    statistics = [{**row, "segment": name} for row, name in zip(REPORT["statistics"], names, strict=True)]
    report = {**REPORT, "statistics": statistics, "warnings": ["A warning."], "seconds": {"segmenting": 2.0}}
    review().keep(result, report)
    version = panel.widget.modelPanel.description.version
    result.SetAttribute("ConResNet.Model", f"hippocampus {version}")
    shape = slicer.util.arrayFromVolume(volume).shape
    arrays = {"attention": np.random.default_rng(0).random((1, *shape)).astype(np.float16)}
    (map_node,) = put_maps(arrays, result, volume)
    panel.choices.segmentation = result
    panel.settle()
    path = tmp_path / "page.html"
    dialogs.answer(str(path))
    write_report(panel)
    assert dialogs.opened_urls[-1].endswith("page.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4, "the 3D view, each segment and the map"
    for text in (*names, "A warning.", "small and uncertain", "1.84", "Not fitted.", "Evaluation"):
        assert text in page
    assert volume.GetName() not in page and "http" not in page.split("<h2>About")[0]
    warnings = page.count("<li>")
    result.GetSegmentation().GetNthSegment(0).SetColor(0, 1, 0)
    dialogs.answer(str(path))
    write_report(panel)
    assert path.read_text(encoding="utf-8").count("<li>") == warnings + 1
    voxels = slicer.util.arrayFromVolume(volume).copy()
    slicer.util.updateVolumeFromArray(volume, voxels[:, ::-1])
    dialogs.answer(str(path))
    write_report(panel)
    page = path.read_text(encoding="utf-8")
    assert page.count("<li>") == warnings + 2 and "another frame" in page
    slicer.util.updateVolumeFromArray(volume, voxels)
    path.unlink()
    for node, by in ((volume, 40), (map_node, 0.2), (map_node, -200)):
        origin = np.array(node.GetOrigin())
        node.SetOrigin(*np.add(origin, (0, by, 0)))
        dialogs.answer(str(path))
        write_report(panel)
        assert "moved" in panel.ui.reviewLabel.text and not path.exists()
        node.SetOrigin(*origin)
    slicer.mrmlScene.RemoveNode(map_node)
    for change, undo in (
        (lambda: volume.SetSpacing(1, 1, 2), lambda: volume.SetSpacing(1, 1, 1)),
        (lambda: slicer.util.updateVolumeFromArray(volume, voxels[1:]),
         lambda: slicer.util.updateVolumeFromArray(volume, voxels)),
    ):  # fmt: skip
        change()
        dialogs.answer(str(path))
        write_report(panel)
        assert "moved" in panel.ui.reviewLabel.text and not path.exists()
        undo()
    # The volume and its result are moved together.
    node = add_transform(rotation(20, (5, 0, 0)))
    for one in (volume, result):
        one.SetAndObserveTransformNodeID(node.GetID())
        one.HardenTransform()
    # Meanwhile, another version of the model was installed, with other segment names.
    result.SetAttribute("ConResNet.Model", "hippocampus 0.9.0")
    segments = [{"name": name, "label": label} for label, name in ((1, "Anterior"), (2, "Posterior"))]
    review().keep(result, {**REPORT, "segments": segments, "located": {}})
    dialogs.answer(str(path))
    write_report(panel)
    page = path.read_text(encoding="utf-8")
    for text in ("version 0.9.0", ">Anterior<", ">Posterior<", "1.84", f"version {version} is installed"):
        assert text in page
    for text in (f"(version {version})", "Anterior hippocampus", "Evaluation", "Training data"):
        assert text not in page
    path.unlink()
    result.SetAttribute("ConResNet.Model", "gone 1.0.0")
    dialogs.answer(str(path))
    write_report(panel)
    assert "gone" in panel.ui.reviewLabel.text and not path.exists()


def test_report_names_every_channel_that_was_changed(
    panel: PanelDriver, tumor_images: list[Path], tmp_path: Path
) -> None:
    panel.drop(write_four_channels(tmp_path / "four.zip"))
    volumes = [slicer.util.loadVolume(str(path)) for path in tumor_images]
    node = panel.segment()
    names = [item.name for item in panel.widget.modelPanel.description.inputs]
    path = tmp_path / "page.html"

    def changed() -> str | None:
        dialogs.answer(str(path))
        write_report(panel)
        found = re.search("The voxels of (.*) were changed", path.read_text(encoding="utf-8"))
        return found and found[1]

    assert changed() is None
    chosen = panel.widget.channels.nodes
    assert set(chosen) == set(volumes)
    slicer.util.updateVolumeFromArray(chosen[1], slicer.util.arrayFromVolume(chosen[1])[:, ::-1].copy())
    assert changed() == names[1]
    slicer.util.updateVolumeFromArray(chosen[0], slicer.util.arrayFromVolume(chosen[0])[:, ::-1].copy())
    assert changed() == f"{names[0]}, {names[1]}"
    # A removed volume does not count as changed, and the others keep their names.
    slicer.mrmlScene.RemoveNode(chosen[1])
    slicer.util.updateVolumeFromArray(chosen[3], slicer.util.arrayFromVolume(chosen[3])[:, ::-1].copy())
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.settle()
    assert panel.choices.segmentation is not node and changed() == f"{names[0]}, {names[3]}"
