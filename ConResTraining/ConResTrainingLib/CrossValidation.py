"""A cross-validation in its folder: all folds of a plan, trained one after the other and then evaluated."""

import os
from pathlib import Path

from slicer.i18n import tr as _

from conresnet_training.runs.state import CROSSVAL_FILE, PLAN_FILE, STOP_FILE, Progress

from .TrainingJob import JobState, TrainingJob


class CrossValidation(TrainingJob):
    """The folder of a cross-validation, with the runs ``fold_0``, ``fold_1`` and so on, trained one after the other.

    Its progress is that of the current fold.

    Args:
        folder: of the cross-validation, which may not exist yet.

    Attributes:
        folds: the run of each fold, by its number.
        current: the fold that is trained, or was trained last; None before the first.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.folds: dict[int, TrainingJob] = {}
        self.current: int | None = None

    @classmethod
    def glance(cls, folder: Path) -> "CrossValidation":
        """As for a run."""
        job = cls(folder)
        job.folds = {number: TrainingJob.glance(path) for number, path in job._foldFolders()}
        job._chooseCurrent()
        return job

    @property
    def planFile(self) -> Path:
        """The plan that it was started with."""
        return self.folder / CROSSVAL_FILE

    @property
    def resumeCommand(self) -> tuple[str, ...]:
        """The backend's command that continues it."""
        return ("crossval", str(self.planFile), "--output", str(self.folder))

    @property
    def count(self) -> int:
        """The number of folds; their folders are created together."""
        return max(len(self.folds), 1)

    @property
    def trained(self) -> int:
        """How many folds are finished."""
        return sum(fold.progress.state == "finished" for fold in self.folds.values())

    @property
    def share(self) -> float:
        """How much of the training of all folds is done, from 0 to 1."""
        return (
            sum(1.0 if fold.progress.state == "finished" else fold.share for fold in self.folds.values()) / self.count
        )

    @property
    def secondsLeft(self) -> float | None:
        """Seconds left for all folds, if each takes as long as the current one; None if unknown."""
        seconds, progress = self.progress.seconds_left, self.progress
        if seconds is None or progress.step >= progress.steps:
            return None
        whole = seconds * progress.steps / (progress.steps - progress.step)
        return seconds + whole * max(self.count - self.trained - 1, 0)

    def hasCheckpoint(self, name: str) -> bool:
        """Whether every fold has the checkpoint "last" or "best"."""
        return bool(self.folds) and all(fold.hasCheckpoint(name) for fold in self.folds.values())

    def look(self) -> bool:
        """Read new events of all folds; returns whether there were any."""
        for number, folder in self._foldFolders():
            if number not in self.folds:
                self.folds[number] = TrainingJob(folder)
        before = [fold.progress.started for fold in self.folds.values()]
        isNew = any([fold.look() for fold in self.folds.values()])
        if [fold.progress.started for fold in self.folds.values()] != before:
            self._hasSpoken = True
        self._chooseCurrent()
        if self._process is not None and self._process.poll() is not None:
            # It may have had nothing to train.
            self._hasSpoken = self._hasSpoken or self._process.returncode == 0
            self._process = None
            self.look()
        return isNew

    @property
    def state(self) -> JobState:
        """The state at the last `look`."""
        if not self._hasSpoken:
            return JobState.starting if self._process else JobState.died
        states = {fold.progress.state for fold in self.folds.values()}
        isTrained = self.trained == self.count
        if self._isAlive():
            if os.path.exists(self.folder / STOP_FILE):
                return JobState.stopping
            if isTrained:
                return JobState.evaluating
            active = self.progress.state
            return JobState(active) if active in ("preparing", "stopping") else JobState.training
        if states <= {"new"}:
            return JobState.none
        if "failed" in states:
            return JobState.failed
        if isTrained:
            return JobState.finished
        return JobState.died if states & {"preparing", "training", "stopping"} else JobState.stopped

    @property
    def problem(self) -> str:
        """What went wrong, as a sentence; empty if nothing did."""
        failed = {number: fold for number, fold in self.folds.items() if fold.progress.state == "failed"}
        if self.state is JobState.failed and failed:
            number, fold = next(iter(failed.items()))
            return _("Fold {fold}: {problem}").format(fold=number, problem=fold.progress.failed["message"])
        return super().problem

    def _foldFolders(self) -> list[tuple[int, Path]]:
        """(number, folder) of each fold, by number."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        numbers = sorted(int(name[5:]) for name in names if name.startswith("fold_") and name[5:].isdecimal())
        folders = [(number, self.folder / f"fold_{number}") for number in numbers]
        return [(number, folder) for number, folder in folders if os.path.isfile(folder / PLAN_FILE)]

    def _chooseCurrent(self) -> None:
        """The fold that is not finished, but was started; otherwise the last one."""
        begun = [number for number, fold in self.folds.items() if fold.progress.started]
        active = [number for number in begun if self.folds[number].progress.state != "finished"]
        self.current = (active or begun or [None])[-1]
        self.progress = self.folds[self.current].progress if self.current is not None else Progress()

    def _lastSign(self) -> float:
        return max((fold._lastSign() for fold in self.folds.values()), default=0.0)


def jobIn(folder: Path, isGlance: bool = False) -> TrainingJob:
    """The run or cross-validation in a folder.

    Args:
        isGlance: read only the latest events, as `TrainingJob.glance` does.
    """
    kind = CrossValidation if os.path.isfile(folder / CROSSVAL_FILE) else TrainingJob
    return kind.glance(folder) if isGlance else kind(folder)
