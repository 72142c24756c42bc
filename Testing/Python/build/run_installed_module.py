"""Run in a separate process: load the installed modules into the stand-in application, and segment with one.

    python run_installed_module.py MODULES IMAGE RESULT.npz

The segments go to RESULT.npz, one array per segment; the last line on stdout is JSON: the locations of our loaded
files, the loaded modules, where the engine's process looks for the engine and the training for its backend, and the
resulting maps.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import slicer

from slicer_host import slot_errors, start_application


def main(modules: Path, image: Path, result: Path) -> dict[str, object]:
    app = start_application()
    try:
        app.moduleManager().load(modules / "ConResSegmentation.py")
        slicer.util.selectModule("ConResSegmentation")
        widget = slicer.modules.ConResSegmentationWidget
        choose_model(widget, "hippocampus")
        volume = slicer.util.loadVolume(str(image))
        app.processEvents()  # the panel fills in the channel
        if not widget.ui.applyButton.enabled:
            raise RuntimeError(widget.ui.applyButton.toolTip)
        report = segment(widget, volume, result)
        report["training_path"] = training_path(app, modules)
        report["engine_path"] = widget.logic.enginePython.launch().environment["PYTHONPATH"].split(os.pathsep)[0]
    finally:
        app.quit_host()
    if slot_errors:
        raise RuntimeError("\n".join(slot_errors))
    own_modules = {
        name: module for name, module in sys.modules.items() if name.split(".")[0].lower().startswith("conres")
    }
    return {
        **report,
        "files": {name: module.__file__ for name, module in own_modules.items()},
        "modules": sorted({name.split(".")[0] for name in sys.modules}),
    }


def training_path(app: object, modules: Path) -> str:
    """Where training looks for its packages once the module's panel is built."""
    app.moduleManager().load(modules / "ConResTraining.py")
    slicer.util.selectModule("ConResTraining")
    backend = slicer.modules.ConResTrainingWidget.logic.backend
    backend.place, backend.python = type(backend.place).python, sys.executable
    return backend.launch("--version").environment["PYTHONPATH"]


def choose_model(widget: object, name: str) -> None:
    """Choose a model in the same way as a click on its entry."""
    selector = widget.ui.modelSelector
    selector.setCurrentIndex(selector.findData(name))
    selector.activated.emit(selector.currentIndex)


def segment(widget: object, volume: object, result: Path) -> dict[str, object]:
    """Segment with the logic, as a script in Slicer would, using the model chosen in the panel."""
    from conresnet.request import SegmentOptions
    from ConResSegmentationLib.SegmentationRun import SegmentationTask

    options = SegmentOptions(maps=("residual",))
    task = SegmentationTask(str(widget.modelPanel.choice.path), (volume,), options=options)
    outcome = widget.logic.segmentAndWait(task)
    node = outcome.segmentationNode
    segmentation = node.GetSegmentation()
    segments = {}
    for number in range(segmentation.GetNumberOfSegments()):
        name = segmentation.GetNthSegment(number).GetName()
        segments[name] = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation.GetNthSegmentID(number), volume)
    np.savez_compressed(result, **segments)
    attributes = ("ConResNet.Map", "ConResNet.MapSegment")
    return {"maps": [[node.GetAttribute(name) for name in attributes] for node in outcome.mapNodes]}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
