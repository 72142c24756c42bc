"""ConRes Training: trains a model for ConRes Segmentation from a folder of labeled images, in a separate process."""

import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.needs import TRAINING_PACKAGES, problem_of, read_report
from conresnet_training.data import DataSet
from conresnet_training.data.layouts import read_data_set
from conresnet_training.runs import Progress
from ConResSegmentationLib.Diagnostics import copyReport, makeVolume, notTested, slicerVersion, withoutNames
from ConResSegmentationLib.Models import isPackage
from ConResSegmentationLib.Processes import ChildProcess
from ConResSegmentationLib.Widgets import (
    DroppedFiles,
    describeModule,
    errorSentence,
    forgetModules,
    sayResearchUse,
    whenStarted,
)
from ConResTrainingLib import TrainingCurves
from ConResTrainingLib.Backend import Backend
from ConResTrainingLib.DataSetPanel import DataSetPanel, pathNextTo
from ConResTrainingLib.JobPanel import JobPanel
from ConResTrainingLib.PlacePanel import PlacePanel
from ConResTrainingLib.PlanPanel import PlanPanel, dataOfPlan
from ConResTrainingLib.ResultsPanel import ResultsPanel
from ConResTrainingLib.SceneCase import SceneCasePanel, addCase, channelArrays, segmentMasks
from ConResTrainingLib.TrainingJob import TrainingJob


class ConResTraining(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.dependencies = ["ConResSegmentation"]
        text = _(
            "Trains models for ConRes Segmentation from a folder of labeled images, in a separate Python environment, "
            "with live curves. Training continues when Slicer is closed. See the {documentation}."
        )
        describeModule(self.parent, _("ConRes Training"), text)
        # A scene that was saved with the curves may be opened before this module is.
        whenStarted(TrainingCurves.layout.register)


class ConResTrainingWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: its sections, and what connects them."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None

    def setup(self) -> None:
        """Build the panel. Slicer calls this when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ConResTraining.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ConResTrainingLogic()
        backend = self.logic.backend
        backend.log = self.addToLog
        self.placePanel = PlacePanel(
            ui.placeCollapsibleButton, backend, self.updateButtons, lambda: self.jobPanel.isTraining()
        )
        self.dataSetPanel = DataSetPanel(ui.dataSetCollapsibleButton, backend, self._checkFolder, self.onDataSetChanged)
        self.sceneCasePanel = SceneCasePanel(ui.sceneCaseCollapsibleButton, self.dataSetPanel, self.onCaseAdded)
        self.planPanel = PlanPanel(
            ui.planCollapsibleButton, backend, self.dataSetPanel, lambda: self.jobPanel.updateButtons()
        )
        self.jobPanel = JobPanel(
            ui.runCollapsibleButton, backend, self.planPanel, self.dataSetPanel, lambda: self.resultsPanel.runChanged()
        )
        self.resultsPanel = ResultsPanel(ui.resultsCollapsibleButton, backend, self.jobPanel)
        self._drops = DroppedFiles(uiWidget, self.onDropped)
        self._panels = (
            self.placePanel,
            self.dataSetPanel,
            self.sceneCasePanel,
            self.planPanel,
            self.jobPanel,
            self.resultsPanel,
        )
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodeAdded)
        self.ui.copyDiagnosticsButton.connect("clicked(bool)", self.onCopyDiagnostics)
        sayResearchUse(self.ui.researchUseLabel)
        self.enter()

    def cleanup(self) -> None:
        """Slicer quits, or the module is reloaded; a running training continues."""
        for panel in self._panels:
            panel.close()
        self.removeObservers()

    def enter(self) -> None:
        """The user opens the module: files and runs may have changed meanwhile."""
        self.dataSetPanel.refresh()
        self.sceneCasePanel.refresh()
        self.planPanel.refresh()
        self.jobPanel.adopt()
        self.updateButtons()

    def onReload(self) -> None:
        """Reload the library together with the module file, which would otherwise import the old one."""
        forgetModules("ConResTrainingLib", "conresnet_training")
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneEndClose(self, caller, event) -> None:
        """The nodes of the curves were removed with the scene, but the run's curves may still be shown."""
        self.jobPanel.updateCurvesLater()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller, event, node) -> None:
        """A volume or segmentation may belong to the case to be added."""
        isInput = isinstance(node, (slicer.vtkMRMLScalarVolumeNode, slicer.vtkMRMLSegmentationNode))
        if isInput and not slicer.mrmlScene.IsImporting() and self.parent.isEntered:
            self.sceneCasePanel.fillLater()

    def onDropped(self, paths: list[str]) -> None:
        """A dropped model package or checkpoint goes to ConRes Segmentation; any other folder is a data set."""
        for path in paths:
            if isPackage(path):
                self.resultsPanel.install(path)
            elif Path(path).is_dir():
                self.ui.dataSetPathEdit.currentPath = path

    def onDataSetChanged(self) -> None:
        """Another data set was chosen: once its folder has been read, other paths are proposed for plan and run."""
        if self.dataSetPanel.isSettled:
            self.sceneCasePanel.refresh()
            self.planPanel.proposePath()
            self.jobPanel.proposeFolder()
        else:
            self.sceneCasePanel.update()
        self.updateButtons()

    def onCaseAdded(self) -> None:
        self.dataSetPanel.refresh()
        self.sceneCasePanel.refresh()
        self.updateButtons()

    def updateButtons(self) -> None:
        """What is possible depends on the place, the data set, the plan and the run."""
        for panel in (self.dataSetPanel, self.planPanel, self.jobPanel, self.resultsPanel):
            panel.updateButtons()

    def addToLog(self, line: str) -> None:
        self.ui.logTextEdit.appendPlainText(line)

    def onCopyDiagnostics(self) -> None:
        """Copy a bug report without the names of cases to the clipboard."""
        log, data = self.ui.logTextEdit.toPlainText(), self.dataSetPanel
        text = diagnostics(self.logic.backend, self.jobPanel.job, data.dataSet, log, data.namesSeen)
        copyReport(text)

    def _checkFolder(self, dataSet: Path) -> Path:
        """Where the report of a check goes: next to the plan, which a remote machine can reach; never into the data."""
        folder, plan = pathNextTo(dataSet, "-check"), self.planPanel.path
        return plan.parent / folder.name if plan else folder


def diagnostics(
    backend: Backend, job: TrainingJob | None, dataSet: DataSet | None, log: str, names: Iterable[str]
) -> str:
    """The text of a bug report, with the given names of cases, and the user's home folder, replaced."""
    lines = [
        slicerVersion(),
        f"ConResNet {__version__}",
        f"Place: {backend.place.value} {backend.command} {backend.python}".rstrip(),
    ]
    if backend.problem:
        lines.append(f"Problem: {backend.problem}")
    if dataSet:
        layout = f"{dataSet.layout}, {len(dataSet.cases)} cases, channels {', '.join(dataSet.channels)}"
        lines.append(f"Data set: {layout}, labels {', '.join(dataSet.labels.values())}")
    if job:
        lines.append(f"Run: {job.state.value}, step {job.progress.step} of {job.progress.steps}")
        started = job.progress.started or {}
        kept = ("version", "device", "devices", "precision", "host", "fold")
        lines += [f"  {key}: {started[key]}" for key in kept if key in started]
        if job.problem:
            lines.append(f"  {job.problem}")
    lines += ["", "Log:", log]
    return withoutNames("\n".join(lines), sorted({*names, *_namesInRun(job)}))


def _namesInRun(job: TrainingJob | None) -> list[str]:
    """The cases of a run that was started in an earlier session, whose log the panel shows again."""
    if job is None:
        return []
    try:
        plan = job.planFile
        data = dataOfPlan(plan.read_text(encoding="utf-8"))
        return [case.name for case in read_data_set(plan.parent / data).cases] if data else []
    except (OSError, ValueError, UserError):
        return []


class ConResTrainingLogic(ScriptedLoadableModuleLogic):
    """Training without a panel, for scripts:

    logic = ConResTrainingLogic()
    logic.backend.place, logic.backend.python = Place.python, "/path/to/python"
    job = logic.train("plan.yaml", "run")
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.backend = Backend()

    def train(self, plan: str | Path, run: str | Path, fold: int | str = 0) -> TrainingJob:
        """Start a training that outlives Slicer, and return at once; `TrainingJob.look` follows it.

        Args:
            fold: the fold to hold out, or "none".

        Raises:
            UserError: it cannot be started.
        """
        job = TrainingJob(Path(run))
        job.start(self.backend.launch("train", str(plan), "--output", str(run), "--fold", str(fold)))
        return job

    def resume(self, run: str | Path) -> TrainingJob:
        """Continue a run, as for `train`."""
        job = TrainingJob(Path(run))
        job.start(self.backend.launch("resume", str(run)))
        return job


class ConResTrainingTest(ScriptedLoadableModuleTest):
    """The module's self-test in a user's Slicer (Developer tools: Reload and Test)."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests, and report those that this Slicer cannot run."""
        self.setUp()
        self.test_caseFromScene()
        self.setUp()
        self.test_curves()
        self.setUp()
        self.test_backend()
        self.delayDisplay("Test passed")

    def test_caseFromScene(self):
        """A volume and its segmentation become a case of a data set."""
        self.delayDisplay("Adding a case")
        volume = makeVolume()
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentId = segmentation.GetSegmentation().AddEmptySegment("Body", "Body")
        mask = (slicer.util.arrayFromVolume(volume) > 130).astype("uint8")
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segmentId, volume)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "data set"
            arrays, grid = channelArrays({"T1": volume})
            addCase(folder, "phantom", arrays, segmentMasks(segmentation, volume), grid)
            dataSet = read_data_set(folder)
        assert dataSet.channels == ("T1",) and list(dataSet.labels.values()) == ["Body"], "the data set has changed"

    def test_curves(self):
        """A run's progress becomes curves in the plot views."""
        if not TrainingCurves.layout.isPossible:
            logging.warning("NOT TESTED: the curves. This Slicer runs without a main window.")
            return
        self.delayDisplay("Showing curves")
        progress = Progress()
        progress.add({"event": "started", "step": 0, "steps": 20, "segments": ["Body"]})
        for step in (10, 20):
            progress.add({"event": "step", "step": step, "loss": 1 / step})
            dice = {"dice": 0.5, "dice_a_segment": {"Body": 0.5}, "best": True}
            progress.add({"event": "validation", "step": step, **dice})
        TrainingCurves.update("self-test", progress)
        TrainingCurves.show()
        charts = TrainingCurves.charts()
        shown = {viewNode.GetPlotChartNode() for viewNode in TrainingCurves.viewNodes().values()}
        TrainingCurves.layout.hide()
        assert set(charts.values()) <= shown, "the plot views do not show the curves"

    def test_backend(self):
        """The backend starts, if its environment was created."""
        backend, ended = Backend(), []
        problem = backend.problem
        if not problem:
            launch = backend.launchModule("conresnet.needs", "training")
            process = ChildProcess(launch, lambda *result: ended.append(result))
            process.start()
            while not ended:
                slicer.app.processEvents()
                time.sleep(0.01)
            error = problem_of(read_report(ended[0][1]), TRAINING_PACKAGES, backend.program)
            problem = errorSentence(error) if error else ""
        if problem:
            notTested(self, "the training backend", problem)
