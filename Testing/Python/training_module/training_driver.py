"""Drives the training module's panel as a user does: clicks, choices and waiting."""

from __future__ import annotations

from pathlib import Path

import yaml

from slicer_host.module_driver import ModuleDriver

# Values with which a run on the synthetic cases takes seconds.
TINY = {
    "steps": 40,
    "steps_between_checkpoints": 10,
    "precision": "32-true",
    "learning_rate": 0.002,
    "workers": 0,
    "folds": 3,
}


class TrainingDriver(ModuleDriver):
    """The panel of ConRes Training.

    Args:
        app: the stand-in application.
        path: the module's file.
    """

    moduleName = "ConResTraining"

    def __init__(self, app: object, path: Path):
        super().__init__(app)
        self.path = path

    def load(self) -> None:
        """Load the module and open it, as when Slicer starts."""
        self.app.moduleManager().load(self.path)
        self.open()

    def unload(self) -> None:
        """Unload the module, as when Slicer is closed."""
        self.app.moduleManager().unload(self.moduleName)

    @property
    def job(self) -> object:
        """The chosen run."""
        return self.widget.jobPanel.job

    @property
    def state(self) -> str:
        """The state of the chosen run."""
        return self.widget.jobPanel.state.value

    @property
    def log(self) -> str:
        """The text of the panel's log."""
        return self.ui.logTextEdit.toPlainText()

    @property
    def message(self) -> str:
        return self.log

    def click(self, button: object) -> None:
        """Click a button, which must be enabled."""
        self.settle()
        assert button.enabled, button.toolTip
        button.click()

    def run_command(self, button: object) -> None:
        """Click a button that runs a command of the backend, and wait until the command has ended."""
        text = button.text
        self.click(button)
        assert button.text == "Cancel"
        self.wait(lambda: button.text == text)
        self.settle()

    def choose_python(self, program: str) -> None:
        """Choose another Python under "Where to run"."""
        selector = self.ui.placeSelector
        selector.setCurrentIndex(selector.findData("python"))
        self.ui.trainingPythonPathEdit.currentPath = program
        self.settle()

    def choose_command(self, command: str, python: str) -> None:
        """Choose a command to put before the Python."""
        selector = self.ui.placeSelector
        selector.setCurrentIndex(selector.findData("command"))
        self.ui.commandEdit.text = command
        self.ui.commandPythonEdit.text = python
        self.settle()

    def choose_data_set(self, folder: Path) -> None:
        """Choose the folder of the data set, and wait until it has been read."""
        self.ui.dataSetPathEdit.currentPath = str(folder)
        self.wait(lambda: self.widget.dataSetPanel.isSettled)
        self.settle()

    def choose_run(self, folder: Path | str) -> None:
        """Choose the folder of the run and leave the field, as a user does."""
        self.ui.runPathEdit.currentPath = str(folder)
        self.ui.runPathEdit.comboBox().lineEdit().editingFinished.emit()
        self.settle()

    def choose_system(self, name: str) -> None:
        """Choose the system to plan."""
        selector = self.ui.systemSelector
        selector.setCurrentIndex(selector.findData(name))
        self.settle()

    def edit_plan(self, base_width: int = 8, **values: object) -> None:
        """Edit training values of the plan, and the width of its network, in the panel's editor."""
        content = yaml.safe_load(self.ui.planTextEdit.toPlainText())
        content["training"] |= values
        content["model"]["system"]["networks"][0]["arguments"]["base_width"] = base_width
        self.ui.planTextEdit.setPlainText(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        self.settle()

    def use_tiny_plan(self, data_set: Path, **values: object) -> None:
        """Choose a data set and write and choose a plan for it that trains in seconds."""
        from conresnet_training.data.layouts import read_data_set
        from conresnet_training.planning.plan import write_plan
        from conresnet_training.planning.planner import make_plan

        self.choose_data_set(data_set)
        path = data_set.with_name("tiny plan.yaml")
        write_plan(make_plan(read_data_set(data_set), data_set)[0], path)
        self.ui.planPathEdit.currentPath = str(path)
        self.edit_plan(**{**TINY, **values})

    def check_runs(self, *names: str) -> None:
        """Check these runs, and no others, in the list of other runs."""
        from PySide6.QtCore import Qt

        self.ui.otherRunsCollapsibleButton.collapsed = False
        view = self.ui.otherRunsList
        listed = {view.item(number).text(): view.item(number) for number in range(view.count)}
        for name, item in listed.items():
            item.setCheckState(Qt.Checked if name in names else Qt.Unchecked)
        assert set(names) <= set(listed), listed
        self.settle()

    def points(self) -> int:
        """The number of points of the loss curve in Slicer's plot."""
        from ConResTrainingLib import TrainingCurves

        chart = TrainingCurves.charts().get("loss")
        return chart.GetNthPlotSeriesNode(0).GetTableNode().GetTable().GetNumberOfRows() if chart else 0

    def end_training(self) -> None:
        """Kill the chosen run if it is running, for example after a failed test."""
        if self.widget.jobPanel.state.isRunning:
            self.job.kill()
