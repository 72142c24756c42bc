"""Run in a separate process: Slicer with additional module paths and another Python for the engine, as on a Mac.

    python run_module_paths.py PYTHON IMAGE PATH...

The last line on stdout is JSON: the loaded modules, the locations of our files, the engine's program, and the status
shown in the panel after a click on Segment.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

FOLDERS = ("ConResSegmentation", "ConResTraining")
# A development environment has the source tree on its path; Slicer does not.
sys.path[:] = [entry for entry in sys.path if Path(entry).name not in FOLDERS]

import slicer  # noqa: E402

from slicer_host import slot_errors, start_application  # noqa: E402


def main(python: str, image: str, *paths: str) -> dict[str, object]:
    app = start_application()
    try:
        # Slicer appends the paths to Python's, and loads the modules whose files are directly in them.
        sys.path += paths
        names = [app.moduleManager().load(file).name for path in paths for file in sorted(Path(path).glob("*.py"))]
        for name in reversed(names):
            slicer.util.selectModule(name)
        widget = slicer.modules.ConResSegmentationWidget
        ui = widget.ui
        ui.modelSelector.setCurrentIndex(ui.modelSelector.findData("hippocampus"))
        ui.modelSelector.activated.emit(ui.modelSelector.currentIndex)
        ui.pythonPathEdit.currentPath = python
        slicer.util.loadVolume(image)
        app.processEvents()
        ui.applyButton.click()
        end = time.monotonic() + 240
        while widget.runPanel.isRunning and time.monotonic() < end:
            app.processEvents()
            time.sleep(0.01)
        status, program = ui.statusLabel.text, widget.logic.enginePython.launch().program
    finally:
        app.quit_host()
    if slot_errors:
        raise RuntimeError("\n".join(slot_errors))
    own_modules = {name: module.__file__ for name, module in sys.modules.items() if name.startswith(FOLDERS)}
    return {"modules": names, "files": own_modules, "program": program, "status": status}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
