"""Train on real cases through the module's own panel; files go to demo/, or to the folder given.

    python Testing/Demo/training_demo.py DATA [FOLDER [STEPS]]

DATA is the folder of a data set, such as Task04_Hippocampus. The panel is driven by clicks in the stand-in application:
check, make a plan, start, watch the curves, stop, close the module and open it again, resume to the end, evaluate,
import, and segment a case with the imported model. Writes pictures of the panel, the curves and the views.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 300


class Demo:
    """The steps of the demo.

    Args:
        data: folder of the data set.
        output: folder for pictures, plan, run and model.
        steps: number of training steps.
    """

    def __init__(self, data: Path, output: Path, steps: int):
        from slicer_host import start_application

        self.data, self.output, self.steps = data.resolve(), output.resolve(), steps
        self.app = start_application()
        self.app.moduleManager().load(REPOSITORY / "ConResSegmentation" / "ConResSegmentation.py")
        self.load()

    def load(self) -> None:
        """Load the module and open its panel."""
        import slicer

        self.module = self.app.moduleManager().load(REPOSITORY / "ConResTraining" / "ConResTraining.py")
        slicer.util.selectModule("ConResTraining")
        self.app.processEvents()
        self.widget = self.module.widgetRepresentation().self()
        self.ui = self.widget.ui

    def wait(self, condition) -> None:
        """Run the event loop until ``condition()`` holds."""
        while not condition():
            self.app.processEvents()
            time.sleep(0.02)

    def click(self, button) -> None:
        """Click a button. Raises RuntimeError if it is disabled."""
        self.app.processEvents()
        if not button.enabled:
            raise RuntimeError(button.toolTip)
        button.click()

    def run_command(self, button, label) -> None:
        """Click a button that runs a command of the backend, wait for it to finish, and print its result."""
        text = button.text
        self.click(button)
        self.wait(lambda: button.text == text)
        self.app.processEvents()
        print(label.text)

    def prepare(self) -> None:
        """Choose this Python and the data set, check the data, and make a plan."""
        ui = self.ui
        ui.placeSelector.setCurrentIndex(ui.placeSelector.findData("python"))
        ui.trainingPythonPathEdit.currentPath = sys.executable
        self.run_command(ui.testPlaceButton, ui.placeStatusLabel)
        self.wait(lambda: ui.testPlaceButton.text == "Test")
        ui.placeCollapsibleButton.collapsed = True
        ui.dataSetPathEdit.currentPath = str(self.data)
        self.wait(lambda: self.widget.dataSetPanel.isSettled)
        ui.planPathEdit.currentPath = str(self.output / "plan.yaml")
        ui.runPathEdit.currentPath = str(self.output / "run")
        print(ui.dataSetSummaryLabel.text)
        self.run_command(ui.checkButton, ui.checkStatusLabel)
        ui.stepsSpinBox.value = self.steps
        self.run_command(ui.makePlanButton, ui.planStatusLabel)
        plan = ui.planTextEdit.toPlainText()
        often = f"steps_between_checkpoints: {max(self.steps // 10, 1)}"
        ui.planTextEdit.setPlainText(plan.replace("steps_between_checkpoints: 250", often))

    def train(self) -> None:
        """Start, stop after a third of the steps, close the module, open it again, and resume to the end."""
        self.click(self.ui.startButton)
        job = self.widget.jobPanel.job
        self.wait(lambda: job.progress.step >= self.steps // 3 or not job.state.isRunning)
        self.widget.jobPanel.look()
        self.save_panel("training_panel.png")
        self.click(self.ui.stopButton)
        self.wait(lambda: not job.state.isRunning)
        print(self.ui.runStatusLabel.text)
        self.app.moduleManager().unload("ConResTraining")
        self.load()
        self.click(self.ui.resumeButton)
        job = self.widget.jobPanel.job
        self.wait(lambda: not job.state.isRunning)
        print(self.ui.runStatusLabel.text)
        self.save_curves()

    def use(self) -> None:
        """Evaluate the run, import its model, and segment a case with it."""
        import slicer

        from slicer_host import dialogs

        self.run_command(self.ui.evaluateButton, self.ui.resultsStatusLabel)
        # Whether to rename or replace, asked only if a model has this name, and whether to go to the other module.
        dialogs.answer("Yes", "Yes")
        self.run_command(self.ui.importButton, self.ui.resultsStatusLabel)
        dialogs.clear()
        slicer.util.loadVolume(str(sorted((self.data / "imagesTr").glob("[!.]*"))[0]))
        segmentation = slicer.modules.ConResSegmentationWidget
        self.wait(lambda: segmentation.ui.applyButton.enabled)
        segmentation.ui.applyButton.click()
        self.wait(lambda: not segmentation.runPanel.isRunning)
        print(segmentation.ui.statusLabel.text)
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        from slicer_host.views import four_views, save_png

        slicer.util.resetSliceViews()
        save_png(four_views(1200, 900, direction=(0.6, 0.7, 0.35)), self.output / "trained_views.png")

    def save_panel(self, name: str) -> None:
        """Save a picture of the panel."""
        from slicer_host.panel import panel_image
        from slicer_host.views import save_png

        save_png(panel_image(self.module.widgetRepresentation()), self.output / name)

    def save_curves(self) -> None:
        """Save a picture of both plot views, one above the other as in their layout."""
        import numpy as np
        import slicer

        from slicer_host.views import save_png

        manager = slicer.app.layoutManager()
        views = [manager.plotWidget(number).plotView() for number in range(manager.plotViewCount)]
        save_png(np.vstack([view.image(900, 420) for view in views]), self.output / "training_curves.png")


def main(data: Path, output: Path = REPOSITORY / "demo", steps: int = STEPS) -> None:
    """Run the whole demo, with all files in ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    # Install the model into this folder too, not into the user's models folder.
    os.environ["CONRESNET_MODELS"] = str(output / "models")
    demo = Demo(data, output, steps)
    try:
        demo.prepare()
        demo.train()
        demo.use()
    finally:
        demo.app.quit_host()


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "Testing" / "SlicerHost"))
    arguments = sys.argv[1:]
    if not 1 <= len(arguments) <= 3:
        sys.exit(__doc__)
    main(Path(arguments[0]), *map(Path, arguments[1:2]), *map(int, arguments[2:3]))
