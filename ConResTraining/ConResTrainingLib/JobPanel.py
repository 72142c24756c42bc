"""The section Run: its folder, starting, stopping and resuming it, its progress, and earlier runs."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet_training.runs import Progress, can_begin_in
from ConResSegmentationLib.Widgets import (
    EditedPath,
    errorSentence,
    offer,
    pathIn,
    plain,
    say,
    singleShotTimer,
    timeLeft,
)

from . import TrainingCurves
from .Backend import Backend, Place
from .DataSetPanel import DataSetPanel, pathNextTo
from .PlanPanel import PlanPanel, dataOfPlan
from .TrainingJob import REPORT_FILE, CrossValidation, JobState, TrainingJob, jobIn

# Folders and runs belong to this computer and outlive every scene: they are kept in the application's settings.
_RUNS_SETTING, _MOST_RUNS = "ConResTraining/Runs", 12


def recentRuns() -> list[Path]:
    """The folders of the most recent runs that still exist, the latest first."""
    try:
        kept = json.loads(slicer.util.settingsValue(_RUNS_SETTING, "[]"))
    except (TypeError, ValueError):
        kept = []
    # Someone may have edited the settings.
    folders = [folder for folder in kept if isinstance(folder, str)] if isinstance(kept, list) else []
    return [Path(folder) for folder in folders if os.path.isdir(folder)]


def addRecentRun(folder: Path) -> None:
    folders = [folder, *(other for other in recentRuns() if other != folder)][:_MOST_RUNS]
    slicer.app.userSettings().setValue(_RUNS_SETTING, json.dumps([str(other) for other in folders]))


def sentenceOf(job: TrainingJob) -> str:
    """The state and progress of a run, in a line or two; empty if there is no run."""
    progress, state = job.progress, job.state
    if job.problem:
        return job.problem
    if state is JobState.none:
        return ""
    if state is JobState.starting:
        return _("Starting")
    parts = []
    if isinstance(job, CrossValidation):
        if state is JobState.evaluating:
            return _("All {count} folds are trained. Evaluating the held-out cases.").format(count=job.count)
        if state is JobState.finished and os.path.isfile(job.folder / REPORT_FILE):
            return _("Finished. All {count} folds are trained and evaluated.").format(count=job.count)
        if state is JobState.finished:
            sentence = _("All {count} folds are trained, but they were not evaluated. Click Evaluate.")
            return sentence.format(count=job.count)
        if job.current is not None:
            text = _("Fold {fold}, {trained} of {count} folds trained")
            parts.append(text.format(fold=job.current, trained=job.trained, count=job.count))
    if state is JobState.preparing and progress.prepared:
        done, of = progress.prepared
        return "; ".join([*parts, _("Preparing the cases: {done} of {of}").format(done=done, of=of)])
    parts.append(_("Step {step} of {steps}").format(step=progress.step, steps=progress.steps))
    if state is JobState.training:
        parts += [timeLeft(job.secondsLeft), *_speed(progress)]
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
        # A large network on a CPU needs many seconds for a sample.
        texts.append(_("{count:g} samples/s").format(count=float(f"{point['samples_per_second']:.2g}")))
    if point.get("gpu_memory"):
        texts.append(_("{memory:.1f} GB of GPU memory").format(memory=point["gpu_memory"] / 1e9))
    return texts


def stateName(state: JobState) -> str:
    return {
        JobState.none: _("empty"),
        JobState.starting: _("starting"),
        JobState.preparing: _("preparing"),
        JobState.training: _("training"),
        JobState.evaluating: _("evaluating"),
        JobState.stopping: _("stopping after the current step"),
        JobState.stopped: _("stopped"),
        JobState.finished: _("finished"),
        JobState.failed: _("failed"),
        JobState.died: _("ended unexpectedly"),
    }[state]


MILLISECONDS_BETWEEN_LOOKS = 1000
# The choice of a fold that means each in turn; the spin box shows it as a text.
_ALL_FOLDS = -1


class JobPanel:
    """The widgets of the run.

    Args:
        onChanged: called when another run was chosen, or this one has made progress.

    Attributes:
        job: the chosen run; None if no folder is chosen, and while its path is being typed.
    """

    def __init__(
        self, section, backend: Backend, planPanel: PlanPanel, dataSetPanel: DataSetPanel, onChanged: Callable[[], None]
    ):
        self._ui = ui = slicer.util.childWidgetVariables(section)
        self._backend, self._planPanel, self._dataSetPanel = backend, planPanel, dataSetPanel
        self._onChanged = onChanged
        self.job: TrainingJob | None = None
        self._shown: JobState | None = None
        self._isStopWished = False
        self._proposed = ""
        # A child of a widget: its connection keeps this object for as long as the timer lives.
        self._timer = qt.QTimer(section)
        self._timer.setInterval(MILLISECONDS_BETWEEN_LOOKS)
        self._timer.connect("timeout()", self.look)
        self._curvesTimer = singleShotTimer(section, self.updateCurves)
        ui.runPathEdit.currentPath = slicer.util.settingsValue("ConResTraining/Run", "")
        self._path = EditedPath(ui.runPathEdit, self._onPathSettled, self._onPathEdited)
        ui.runsSelector.connect("activated(int)", self._onRunChosen)
        ui.foldSpinBox.connect("valueChanged(int)", lambda _value: self.updateButtons())
        ui.allCasesCheckBox.connect("toggled(bool)", lambda _isChecked: self.updateButtons())
        ui.startButton.connect("clicked(bool)", self._onStart)
        ui.resumeButton.connect("clicked(bool)", self._onResume)
        ui.stopButton.connect("clicked(bool)", self._onStop)
        ui.curvesButton.connect("clicked(bool)", self._onCurves)

    @property
    def state(self) -> JobState:
        """The state of the chosen run at the last look."""
        return self.job.state if self.job else JobState.none

    def isTraining(self) -> bool:
        """Whether this computer trains in the chosen folder or in that of a recent run."""
        jobs = [self.job] if self.job else []
        jobs += [jobIn(folder, isGlance=True) for folder in recentRuns()]
        return any(job.state.isRunning and job.canKill for job in jobs)

    def adopt(self) -> None:
        """Show the run in the chosen folder, which may have made progress meanwhile."""
        if self._path.isSettled:
            self._adopt()
        else:
            self._path.flush()

    def _adopt(self) -> None:
        folder = pathIn(self._ui.runPathEdit)
        found = jobIn(folder) if folder else None
        isSame = (self.job.folder if self.job else None) == folder
        # A cross-validation may have been started in the folder elsewhere.
        if not isSame or (isinstance(found, CrossValidation) and not isinstance(self.job, CrossValidation)):
            self.job = found
            self._shown, self._isStopWished = None, False
        self.look()

    def proposeFolder(self) -> None:
        """Propose a new folder next to the data set, unless the user has chosen an unused one."""
        self._path.flush()
        folder = self._dataSetPanel.folder
        isTheUsers = self.job is not None and str(self.job.folder) != self._proposed and not _isUsed(self.job.folder)
        if not folder or self.state.isRunning or isTheUsers:
            return
        number = 1
        try:
            while not can_begin_in(pathNextTo(folder, f"-run-{number}")):
                number += 1
        except OSError:
            # Nothing next to this data set can be read, and so no folder there is any better.
            return
        self._proposed = str(pathNextTo(folder, f"-run-{number}"))
        self._choose(self._proposed)

    def look(self) -> None:
        """Read and show what is new. Repeats itself while the run is active."""
        if self.job is None:
            self._timer.stop()
            self._showState()
            return
        isNew = self.job.look()
        for line in self.job.newLogLines():
            self._backend.log(line)
        state = self.state
        if isNew or not TrainingCurves.charts():
            self.updateCurves()
        if state.isRunning != self._timer.isActive():
            self._timer.start() if state.isRunning else self._timer.stop()
        self._showState()
        if isNew:
            self._onChanged()

    def dataOptions(self) -> tuple[str, ...]:
        """The chosen data set as a command-line option, if the run's own data set is no longer where it was."""
        chosen = self._dataSetPanel.folder
        try:
            planned = dataOfPlan(self.job.planFile.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            planned = None
        # What a remote machine can see is not known here.
        isElsewhere = planned is None or chosen is None or self._backend.place is Place.command
        return () if isElsewhere or os.path.isdir(self.job.folder / planned) else ("--data", str(chosen))

    def updateCurves(self) -> None:
        """Update the curves, which are created if they are shown and the scene has none."""
        isWanted = TrainingCurves.layout.isShown or TrainingCurves.charts()
        if self.state is not JobState.none and isWanted:
            self._fillCurves()

    def updateCurvesLater(self) -> None:
        """Update the curves once Slicer has finished closing the scene."""
        self._curvesTimer.start()

    def updateButtons(self) -> None:
        """Enable the buttons, or show on them why they are not available."""
        state, ui = self.state, self._ui
        ui.foldSpinBox.maximum = max((self._planPanel.folds or 100) - 1, 0)
        ui.foldSpinBox.enabled = not ui.allCasesCheckBox.checked
        tip = _("Train as planned. Training continues if Slicer is closed.")
        if self._isOfAllFolds:
            tip = _("Train all folds one after the other and evaluate each case with the fold that held it out.")
        elif ui.allCasesCheckBox.checked:
            tip = _("Train on all cases, as planned. Training continues if Slicer is closed.")
        offer(ui.startButton, self._startProblem(state), tip)
        offer(ui.resumeButton, self._resumeProblem(state), _("Continue from the latest checkpoint."))
        ui.stopButton.enabled = state.isRunning
        stopTip = _("Stop after the current step and save a checkpoint, from which Resume continues.")
        if state is JobState.evaluating:
            stopTip = _("Stop the evaluation. The trained folds are kept; to evaluate them again, click Evaluate.")
        elif self._isStopWished:
            stopTip = _("Stopping after the current step. Click again to end it immediately.")
        ui.stopButton.toolTip = stopTip if state.isRunning else _("No training is running in this folder.")
        ui.curvesButton.enabled = state is not JobState.none
        ui.curvesButton.checked = TrainingCurves.layout.isShown
        ui.runPathEdit.enabled = ui.runsSelector.enabled = state is not JobState.starting

    def close(self) -> None:
        """The panel is about to be deleted; the training continues."""
        self._path.close()
        for timer in (self._timer, self._curvesTimer):
            timer.stop()

    def _startProblem(self, state: JobState) -> str:
        if state.isRunning:
            return _("Training is running in this folder; choose another folder for another run.")
        if self.job is None:
            return _("Choose a new folder for the run.")
        if _isUsed(self.job.folder):
            return errorSentence(UserError("run-exists", path=str(self.job.folder)))
        return self._planPanel.problem or self._backend.problem

    def _resumeProblem(self, state: JobState) -> str:
        if state.isRunning:
            return _("Training is running in this folder.")
        # A run that was stopped while starting has no progress yet, and can start.
        canResume = state.canResume or state is JobState.none
        if self.job is None or not canResume or not os.path.isfile(self.job.planFile):
            return _("This folder has no run that can be resumed.")
        return self._backend.problem

    def _onPathSettled(self, path: str) -> None:
        slicer.app.userSettings().setValue("ConResTraining/Run", path)
        self._adopt()

    def _onPathEdited(self) -> None:
        """The run in the folder before must not be started, resumed or evaluated any more."""
        if self.job is not None:
            self.job = self._shown = None
            self.look()

    def _choose(self, folder: str) -> None:
        self._ui.runPathEdit.currentPath = folder
        self._path.flush()

    def _onRunChosen(self, index: int) -> None:
        self._choose(self._ui.runsSelector.itemData(index))

    def _onStart(self) -> None:
        # Another program may have changed the plan, which must not be trained unseen.
        try:
            self._planPanel.confirmFile()
        except UserError as error:
            say(self._ui.runStatusLabel, error)
            return

        def launch():
            self._planPanel.save()
            where = (str(self._planPanel.path), "--output", str(self.job.folder))
            if self._isOfAllFolds:
                return self._backend.launch("crossval", *where)
            fold = "none" if self._ui.allCasesCheckBox.checked else str(self._ui.foldSpinBox.value)
            return self._backend.launch("train", *where, "--fold", fold)

        kind = CrossValidation if self._isOfAllFolds else TrainingJob
        if type(self.job) is not kind:
            self.job = kind(self.job.folder)
        self._launch(launch)

    @property
    def _isOfAllFolds(self) -> bool:
        return self._ui.foldSpinBox.value == _ALL_FOLDS and not self._ui.allCasesCheckBox.checked

    def _onResume(self) -> None:
        self._launch(lambda: self._backend.launch(*self.job.resumeCommand, *self.dataOptions()))

    def _launch(self, launch: Callable) -> None:
        try:
            self.job.start(launch())
        except UserError as error:
            say(self._ui.runStatusLabel, error)
            return
        self._isStopWished = False
        addRecentRun(self.job.folder)
        self._showCurves()
        self.look()

    def _onStop(self) -> None:
        if self._isStopWished and self.job.canKill:
            question = _(
                "End training immediately? The steps since the latest checkpoint will be lost, and will be repeated "
                "when you resume the run."
            )
            if slicer.util.confirmYesNoDisplay(question):
                self.job.kill()
                self.look()
            return
        try:
            self.job.requestStop()
        except UserError as error:
            say(self._ui.runStatusLabel, error)
            return
        self._isStopWished = True
        self.look()

    # Curves

    def _onCurves(self, checked: bool) -> None:
        if checked:
            self._showCurves()
        else:
            TrainingCurves.layout.hide()
        self.updateButtons()

    def _showCurves(self) -> None:
        self._fillCurves()
        if not TrainingCurves.layout.isShown:
            TrainingCurves.show()

    def _fillCurves(self) -> None:
        name = self.job.folder.name
        if isinstance(self.job, CrossValidation):
            TrainingCurves.updateFolds(name, {number: fold.progress for number, fold in self.job.folds.items()})
        else:
            TrainingCurves.update(name, self.job.progress)

    # How it goes

    def _showState(self) -> None:
        state = self.state
        if state is not self._shown:
            self._shown = state
            if not state.isRunning:
                self._isStopWished = False
            if state is not JobState.none:
                addRecentRun(self.job.folder)
            self._showRuns()
            self._onChanged()
        isKnown = state.isRunning and self.job.progress.steps > 0
        self._ui.progressBar.visible = state.isRunning
        self._ui.progressBar.maximum = 1000 if isKnown else 0
        self._ui.progressBar.value = round(1000 * self.job.share) if isKnown else 0
        isError = self.job is not None and bool(self.job.problem)
        say(self._ui.runStatusLabel, sentenceOf(self.job) if self.job else "", isError)
        self.updateButtons()

    def _showRuns(self) -> None:
        selector, runs = self._ui.runsSelector, recentRuns()
        selector.clear()
        for folder in runs:
            isChosen = self.job is not None and self.job.folder == folder
            job = self.job if isChosen else jobIn(folder, isGlance=True)
            selector.addItem(f"{folder.name}: {stateName(job.state)}", str(folder))
            selector.setItemData(selector.count - 1, plain(str(folder)), qt.Qt.ToolTipRole)
        folder = self.job.folder if self.job else None
        selector.setCurrentIndex(runs.index(folder) if folder in runs else -1)
        selector.visible = self._ui.runsLabel.visible = bool(runs)


def _isUsed(folder: Path) -> bool:
    """Whether a new run may not use a folder; one that cannot be read counts as used."""
    try:
        return not can_begin_in(folder)
    except OSError:
        return True
