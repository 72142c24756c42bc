"""ConRes Training: from a folder of labelled scans to a model in Slicer, trained in a process of its own."""

import importlib
import logging
import sys
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from ConResTrainingLib import SelfTest, TrainingCurves, TrainingDiagnostics
from ConResTrainingLib.Backend import Backend
from ConResTrainingLib.DataSetPanel import DataSetPanel
from ConResTrainingLib.JobPanel import JobPanel
from ConResTrainingLib.PlacePanel import PlacePanel
from ConResTrainingLib.PlanPanel import PlanPanel
from ConResTrainingLib.ResultsPanel import ResultsPanel
from ConResTrainingLib.SceneCasePanel import SceneCasePanel
from ConResTrainingLib.TrainingJob import TrainingJob


class ConResTraining(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("ConRes Training")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["ConResSegmentation"]
        self.parent.contributors = ["ConResNet for 3D Slicer contributors"]
        self.parent.helpText = _(
            "Trains models for ConRes Segmentation from a folder of labelled images, in a Python environment of its "
            "own, with live curves. A training goes on when Slicer is closed. See the {documentation}."
        ).format(
            documentation='<a href="https://github.com/ConResNet/SlicerConResNet">{}</a>'.format(_("documentation"))
        )
        self.parent.acknowledgementText = _(
            "The network is that of J. Zhang, Y. Xie, Y. Wang and Y. Xia, Inter-Slice Context Residual Learning for 3D "
            "Medical Image Segmentation, IEEE Transactions on Medical Imaging 40(2), 2021."
        )
        # A scene that was saved with the curves may be opened before this module is.
        slicer.app.connect("startupCompleted()", TrainingCurves.describeLayout)


class ConResTrainingWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: its parts, and what one of them must hear of another."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None

    def setup(self) -> None:
        """Build the panel; Slicer calls this when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ConResTraining.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ConResTrainingLogic()
        backend = self.logic.backend
        self.placePanel = PlacePanel(self.ui, backend, self.addToLog, self.updateButtons)
        self.dataSetPanel = DataSetPanel(self.ui, backend, self.addToLog, self.onDataSetChanged)
        self.sceneCasePanel = SceneCasePanel(self.ui, self.dataSetPanel, self.onCaseAdded)
        self.planPanel = PlanPanel(self.ui, backend, self.dataSetPanel, self.addToLog, self.onPlanChanged)
        self.jobPanel = JobPanel(self.ui, backend, self.planPanel, self.dataSetPanel, self.addToLog, self.onRunChanged)
        self.resultsPanel = ResultsPanel(self.ui, backend, self.jobPanel, self.addToLog)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.NodeAddedEvent, self.onNodeAdded)
        self.ui.copyDiagnosticsButton.connect("clicked(bool)", self.onCopyDiagnostics)
        self.enter()

    def cleanup(self) -> None:
        """Slicer ends, or the module is reloaded; a training that runs goes on."""
        for panel in (self.placePanel, self.dataSetPanel, self.planPanel, self.jobPanel, self.resultsPanel):
            panel.close()
        self.removeObservers()

    def enter(self) -> None:
        """The user opens the module: see what has become of the files meanwhile, and of the run."""
        self.dataSetPanel.refresh()
        self.sceneCasePanel.refresh()
        self.planPanel.refresh()
        self.jobPanel.adopt()
        self.updateButtons()

    def onReload(self) -> None:
        """Reload the library with the module file, whose imports would otherwise find the old one."""
        importlib.invalidate_caches()
        ours = ("ConResTrainingLib", "conresnet_training")
        for name in [name for name in sys.modules if name.split(".")[0] in ours]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneEndClose(self, caller, event) -> None:
        """The curves' nodes went with the scene; the run did not, and may be looked at."""
        qt.QTimer.singleShot(0, self.jobPanel.updateCurves)

    def onNodeAdded(self, caller, event) -> None:
        """A volume may be a channel of the case that is to be added; its name and image may come only after it was."""
        qt.QTimer.singleShot(0, self.sceneCasePanel.fill)

    def onDataSetChanged(self) -> None:
        """Another data set: its plan and its run have other names, once its folder has been looked at."""
        if self.dataSetPanel.isSettled:
            self.sceneCasePanel.refresh()
            self.planPanel.proposePath()
            self.jobPanel.proposeFolder()
        else:
            self.sceneCasePanel.update()
        self.updateButtons()

    def onCaseAdded(self) -> None:
        """The data set has one case more."""
        self.dataSetPanel.refresh()
        self.sceneCasePanel.refresh()
        self.updateButtons()

    def onPlanChanged(self) -> None:
        """A run may start now, or not any more."""
        self.jobPanel.updateButtons()

    def onRunChanged(self) -> None:
        """Another run, or it has come on."""
        self.resultsPanel.runChanged()

    def updateButtons(self) -> None:
        """What can be done depends on the place, the data set, the plan and the run."""
        for panel in (self.dataSetPanel, self.planPanel, self.jobPanel, self.resultsPanel):
            panel.updateButtons()

    def addToLog(self, line: str) -> None:
        """Add a line to the log."""
        self.ui.logTextEdit.appendPlainText(line)

    def onCopyDiagnostics(self) -> None:
        """Put a report on the clipboard that holds no name of a case."""
        log = self.ui.logTextEdit.toPlainText()
        text = TrainingDiagnostics.report(self.logic.backend, self.jobPanel.job, self.dataSetPanel.dataSet, log)
        slicer.app.clipboard().setText(text)
        slicer.util.showStatusMessage(_("The diagnostics are on the clipboard."), 3000)


class ConResTrainingLogic(ScriptedLoadableModuleLogic):
    """Training without a panel, for scripts:

    logic = ConResTrainingLogic()
    logic.backend.place, logic.backend.python = Place.python, "/path/to/python"
    job = logic.train("plan.yaml", "run")
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.backend = Backend()

    def train(self, plan: str | Path, run: str | Path, fold: int = 0) -> TrainingJob:
        """Start a training that outlives Slicer, and return at once; `TrainingJob.look` follows it.

        Raises:
            UserError: when it cannot be started.
        """
        job = TrainingJob(Path(run))
        job.start(self.backend.launch("train", str(plan), "--output", str(run), "--fold", str(fold)))
        return job

    def resume(self, run: str | Path) -> TrainingJob:
        """Go on with a run, alike."""
        job = TrainingJob(Path(run))
        job.start(self.backend.launch("resume", str(run)))
        return job


class ConResTrainingTest(ScriptedLoadableModuleTest):
    """The module's test in a user's own Slicer (Developer tools: Reload and Test)."""

    def setUp(self):
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """All there is to test; what this Slicer cannot run is said aloud."""
        self.setUp()
        self.test_caseFromScene()
        self.setUp()
        self.test_curves()
        self.setUp()
        self.test_backend()
        self.delayDisplay("Test passed")

    def test_caseFromScene(self):
        """What is segmented becomes a case of a data set."""
        self.delayDisplay("Adding a case")
        SelfTest.checkCaseFromScene()

    def test_curves(self):
        """A run's progress becomes curves in the plot views."""
        if not TrainingCurves.isPossible():
            logging.warning("NOT TESTED: the curves. This Slicer runs without a main window.")
            return
        self.delayDisplay("Showing curves")
        SelfTest.checkCurves()

    def test_backend(self):
        """The backend starts, where its environment was made."""
        problem = SelfTest.backendProblem(Backend())
        if problem:
            logging.warning("NOT TESTED: the training backend. %s", problem)
            self.delayDisplay(f"Not tested: the training backend. {problem}", 3000)
