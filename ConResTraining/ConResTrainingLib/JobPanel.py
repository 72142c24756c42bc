"""How a run stands, in words.

The run: where it lies, starting, stopping and resuming it, how it goes, and finding it again.
"""

from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet_training.runs.progress import Progress
from ConResSegmentationLib import Messages
from ConResSegmentationLib.EnginePanel import say, whenPathChanges

from . import TrainingCurves, TrainingDiagnostics
from .Backend import Backend
from .DataSetPanel import DataSetPanel, pathBeside
from .PlanPanel import PlanPanel
from .TrainingJob import JobState, TrainingJob


def sentenceOf(job: TrainingJob) -> str:
    """How a run stands, in a line or two; empty where there is none."""
    progress, state = job.progress, job.state
    if job.problem:
        return job.problem
    if state is JobState.none:
        return ""
    if state is JobState.starting:
        return _("Starting")
    if state is JobState.preparing:
        done, of = progress.prepared
        return _("Preparing the cases: {done} of {of}").format(done=done, of=of)
    parts = [_("Step {step} of {steps}").format(step=progress.step, steps=progress.steps)]
    if state is JobState.training:
        parts += [Messages.timeLeft(progress.seconds_left), *_speed(progress)]
    if progress.validations:
        newest, best = progress.validations[-1]["dice"], (progress.best or progress.validations[-1])["dice"]
        if newest is not None and best is not None:
            parts.append(_("Dice {newest:.3f}, best {best:.3f}").format(newest=newest, best=best))
    if job.host and state.isRunning:
        parts.append(_("on {host}").format(host=job.host))
    text = "; ".join(filter(None, parts)) + "."
    if state in (JobState.stopping, JobState.stopped, JobState.finished):
        text = f"{stateName(state)[:1].upper()}{stateName(state)[1:]}. {text}"
    return text


def _speed(progress: Progress) -> list[str]:
    if not progress.points:
        return []
    point, texts = progress.points[-1], []
    if point.get("samples_per_second"):
        texts.append(_("{count:.1f} samples/s").format(count=point["samples_per_second"]))
    if point.get("gpu_memory"):
        texts.append(_("{memory:.1f} GB of GPU memory").format(memory=point["gpu_memory"] / 1e9))
    return texts


def stateName(state: JobState) -> str:
    """A state in a word or two."""
    return {
        JobState.none: _("empty"),
        JobState.starting: _("starting"),
        JobState.preparing: _("preparing"),
        JobState.training: _("training"),
        JobState.stopping: _("stopping after its step"),
        JobState.stopped: _("stopped"),
        JobState.finished: _("finished"),
        JobState.failed: _("failed"),
        JobState.died: _("ended unexpectedly"),
    }[state]


MILLISECONDS_BETWEEN_LOOKS = 1000


class JobPanel:
    """The widgets of the run.

    Args:
        ui: the module's widgets by name.
        backend: where it runs.
        planPanel: what it follows.
        dataSetPanel: what it learns from.
        log: called with what the run prints, line by line.
        onChanged: called when another run was chosen, or this one has come on.
    """

    def __init__(
        self,
        ui,
        backend: Backend,
        planPanel: PlanPanel,
        dataSetPanel: DataSetPanel,
        log: Callable[[str], None],
        onChanged: Callable[[], None],
    ):
        self._ui, self._backend, self._planPanel, self._dataSetPanel = ui, backend, planPanel, dataSetPanel
        self._log, self._onChanged = log, onChanged
        self._job: TrainingJob | None = None
        self._shown: JobState | None = None
        self._isStopWished = False
        self._proposed = ""
        self._layoutBefore: int | None = None
        # It ends with a widget of the panel: its connection would keep this object for good.
        self._timer = qt.QTimer(ui.runPathEdit)
        self._timer.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._timer.connect("timeout()", self.look)
        ui.runPathEdit.currentPath = TrainingDiagnostics.value("Run")
        whenPathChanges(ui.runPathEdit, self._onPathChanged)
        ui.runsSelector.connect("activated(int)", self._onRunChosen)
        ui.startButton.connect("clicked(bool)", self._onStart)
        ui.resumeButton.connect("clicked(bool)", self._onResume)
        ui.stopButton.connect("clicked(bool)", self._onStop)
        ui.curvesButton.connect("clicked(bool)", self._onCurves)

    @property
    def job(self) -> TrainingJob | None:
        """The chosen run; None while no folder is named."""
        return self._job

    @property
    def state(self) -> JobState:
        """How the chosen run stands, as of the last look."""
        return self._job.state if self._job else JobState.none

    def adopt(self) -> None:
        """Take up the run whose folder is named, which may have gone on while nobody looked."""
        text = self._ui.runPathEdit.currentPath.strip()
        folder = Path(text) if text else None
        if (self._job.folder if self._job else None) != folder:
            self._job = TrainingJob(folder) if folder else None
            self._shown, self._isStopWished = None, False
        self.look()

    def proposeFolder(self) -> None:
        """Name a new folder beside the data set for a run to come, unless the user has named one that is free."""
        folder = self._dataSetPanel.folder
        isTheUsers = self._job is not None and str(self._job.folder) != self._proposed and not _isUsed(self._job.folder)
        if not folder or self.state.isRunning or isTheUsers:
            return
        number = 1
        while _isUsed(pathBeside(folder, f"-run-{number}")):
            number += 1
        self._proposed = str(pathBeside(folder, f"-run-{number}"))
        self._ui.runPathEdit.currentPath = self._proposed

    def look(self) -> None:
        """See what is new, and show it. Looks again by itself while the run is at work."""
        if self._job is None:
            self._timer.stop()
            self._showState()
            return
        isNew = self._job.look()
        for line in self._job.newLogLines():
            self._log(line)
        state = self.state
        if isNew or not TrainingCurves.charts():
            self.updateCurves()
        if state.isRunning != self._timer.isActive():
            self._timer.start() if state.isRunning else self._timer.stop()
        self._showState()
        if isNew:
            self._onChanged()

    def updateCurves(self) -> None:
        """Bring the curves up to the run, which are made where they are shown and the scene has none."""
        isWanted = TrainingCurves.isShown() or TrainingCurves.charts()
        if self.state is not JobState.none and isWanted:
            TrainingCurves.update(self._job.folder.name, self._job.progress)

    def updateButtons(self) -> None:
        """Allow what can be done, and say on the buttons why the rest cannot."""
        state, ui = self.state, self._ui
        self._ui.foldSpinBox.maximum = max((self._planPanel.folds or 100) - 1, 0)
        startProblem = self._startProblem(state)
        ui.startButton.enabled = not startProblem
        ui.startButton.toolTip = startProblem or _("Train by the plan. The training goes on when Slicer is closed.")
        resumeProblem = self._resumeProblem(state)
        ui.resumeButton.enabled = not resumeProblem
        ui.resumeButton.toolTip = resumeProblem or _("Go on from the newest checkpoint, as if it had never stopped.")
        ui.stopButton.enabled = state.isRunning
        stopTip = _("End after the current step with a checkpoint, from which Resume goes on.")
        if self._isStopWished:
            stopTip = _("It ends after its step. Click again to end it at once.")
        ui.stopButton.toolTip = stopTip if state.isRunning else _("Nothing is training in this folder.")
        ui.curvesButton.enabled = state is not JobState.none
        ui.curvesButton.checked = TrainingCurves.isShown()
        ui.runPathEdit.enabled = ui.runsSelector.enabled = state is not JobState.starting

    def close(self) -> None:
        """The panel goes; the training stays."""
        self._timer.stop()

    def _startProblem(self, state: JobState) -> str:
        if state.isRunning:
            return _("A training is under way in this folder; choose another one for another run.")
        if self._job is None:
            return _("Name a new folder for the run.")
        if _isUsed(self._job.folder):
            return _("{name} is not empty; name a new folder, or resume the run in it.").format(
                name=self._job.folder.name
            )
        return self._planPanel.problem or self._backend.problem

    def _resumeProblem(self, state: JobState) -> str:
        if state.isRunning:
            return _("A training is under way in this folder.")
        # One that was stopped while it started has said nothing, and can begin.
        canResume = state.canResume or state is JobState.none
        if self._job is None or not canResume or not (self._job.folder / "plan.yaml").is_file():
            return _("There is no run in this folder that could go on.")
        return self._backend.problem

    def _onPathChanged(self, path: str) -> None:
        TrainingDiagnostics.setValue("Run", path)
        self.adopt()

    def _onRunChosen(self, index: int) -> None:
        self._ui.runPathEdit.currentPath = self._ui.runsSelector.itemData(index)

    def _onStart(self) -> None:
        def launch():
            self._planPanel.save()
            plan, fold = str(self._planPanel.path), str(self._ui.foldSpinBox.value)
            return self._backend.launch("train", plan, "--output", str(self._job.folder), "--fold", fold)

        self._launch(launch)

    def _onResume(self) -> None:
        self._launch(lambda: self._backend.launch("resume", str(self._job.folder)))

    def _launch(self, launch: Callable) -> None:
        try:
            self._job.start(launch())
        except UserError as error:
            say(self._ui.runStatusLabel, Messages.sentence(error), isError=True)
            return
        self._isStopWished = False
        TrainingDiagnostics.addRun(self._job.folder)
        self._showCurves()
        self.look()

    def _onStop(self) -> None:
        if self._isStopWished and self._job.canKill:
            question = _(
                "End the training at once? What it has learnt since its newest checkpoint is lost, and made again when "
                "it is resumed."
            )
            if slicer.util.confirmYesNoDisplay(question):
                self._job.kill()
                self.look()
            return
        try:
            self._job.requestStop()
        except UserError as error:
            say(self._ui.runStatusLabel, Messages.sentence(error), isError=True)
            return
        self._isStopWished = True
        self.look()

    # Curves

    def _onCurves(self, checked: bool) -> None:
        if checked:
            self._showCurves()
        elif TrainingCurves.isShown():
            TrainingCurves.hide(self._layoutBefore)
        self.updateButtons()

    def _showCurves(self) -> None:
        TrainingCurves.update(self._job.folder.name, self._job.progress)
        if not TrainingCurves.isShown():
            self._layoutBefore = TrainingCurves.show()

    # How it goes

    def _showState(self) -> None:
        state = self.state
        if state is not self._shown:
            self._shown = state
            if not state.isRunning:
                self._isStopWished = False
            if state is not JobState.none:
                TrainingDiagnostics.addRun(self._job.folder)
            self._showRuns()
            self._onChanged()
        progress = self._job.progress if self._job else None
        isKnown = state.isRunning and progress.steps > 0
        self._ui.progressBar.visible = state.isRunning
        self._ui.progressBar.maximum = 1000 if isKnown else 0
        self._ui.progressBar.value = round(1000 * progress.step / progress.steps) if isKnown else 0
        if self._job:
            say(self._ui.runStatusLabel, sentenceOf(self._job), isError=bool(self._job.problem))
        else:
            say(self._ui.runStatusLabel, "")
        self.updateButtons()

    def _showRuns(self) -> None:
        selector, runs = self._ui.runsSelector, TrainingDiagnostics.runs()
        selector.clear()
        for folder in runs:
            job = self._job if self._job and self._job.folder == folder else TrainingJob(folder)
            if job is not self._job:
                job.look()
            selector.addItem(f"{folder.name}: {stateName(job.state)}", str(folder))
            selector.setItemData(selector.count - 1, str(folder), qt.Qt.ToolTipRole)
        folder = self._job.folder if self._job else None
        selector.setCurrentIndex(runs.index(folder) if folder in runs else -1)
        selector.visible = self._ui.runsLabel.visible = bool(runs)


def _isUsed(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
