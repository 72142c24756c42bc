"""A training in its folder, of one run or of all folds: it outlives Slicer, and is followed and stopped through files.

job = TrainingJob(runFolder)
job.start(backend.launch("train", plan, "--output", runFolder))
job.look()          # from time to time; then job.state, job.progress, job.newLogLines()
job.requestStop()   # it stops after the current step with a checkpoint, on any computer
"""

import contextlib
import enum
import os
import socket
import subprocess
import time
from pathlib import Path

from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import write_error
from conresnet_training.runs import (
    CHECKPOINTS_FOLDER,
    CROSSVAL_FILE,
    PLAN_FILE,
    PROGRESS_FILE,
    STOP_FILE,
    Progress,
    ProgressReader,
    running_process,
)
from ConResSegmentationLib.Processes import ProcessLaunch, killTree, lastLine

# Only the files of a run on another computer are visible: it counts as dead if it has written nothing for this long.
SECONDS_OF_SILENCE = 600
# In a run's folder, where the command evaluate writes it.
REPORT_FILE, _LABEL_MAPS = "evaluation/report.html", "evaluation/segmentations"
_LOG_BYTES = 40_000


class JobState(enum.Enum):
    """The state of a run."""

    none = "none"
    starting = "starting"
    preparing = "preparing"
    training = "training"
    evaluating = "evaluating"
    stopping = "stopping"
    stopped = "stopped"
    finished = "finished"
    failed = "failed"
    died = "died"

    @property
    def isRunning(self) -> bool:
        """Whether a process is running."""
        active = (JobState.starting, JobState.preparing, JobState.training, JobState.evaluating, JobState.stopping)
        return self in active

    @property
    def canResume(self) -> bool:
        """Whether it ended before the last step."""
        return self in (JobState.stopped, JobState.failed, JobState.died)


class TrainingJob:
    """A run's folder, which may not exist yet, and the process that trains in it, if any."""

    _PLAN = PLAN_FILE

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.progress = Progress()
        self._reader = ProgressReader(self.folder / PROGRESS_FILE)
        self._process: subprocess.Popen | None = None
        # Whether the process started last has written to the progress file.
        self._hasSpoken = True
        # At the last look, before the events were read: a process may write its last ones and end meanwhile.
        self._wasAlive = False
        # Of this process; the log starts with the lines of earlier ones.
        self._startOfLog = 0
        self._exitCode: int | None = None
        self._logPosition: int | None = None
        self._logRest = b""

    @property
    def planFile(self) -> Path:
        """The plan that it was started with."""
        return self.folder / self._PLAN

    @property
    def resumeCommand(self) -> tuple[str, ...]:
        """The backend's command that continues it."""
        return ("resume", str(self.folder))

    @property
    def share(self) -> float:
        """How much of the training is done, from 0 to 1."""
        return self.progress.step / self.progress.steps if self.progress.steps else 0.0

    @property
    def secondsLeft(self) -> float | None:
        """Seconds left for the training; None if unknown."""
        return self.progress.seconds_left

    def hasCheckpoint(self, name: str) -> bool:
        """Whether the checkpoint "last" or "best" exists."""
        return os.path.isfile(self.folder / CHECKPOINTS_FOLDER / f"{name}.ckpt")

    @classmethod
    def glance(cls, folder: Path) -> "TrainingJob":
        """A run with only its latest events: enough for `state`, and fast for a progress file of any size."""
        job = cls(folder)
        job._wasAlive = job._isAlive()
        for event in ProgressReader(job.folder / PROGRESS_FILE, _LOG_BYTES).new_events():
            job.progress.add(event)
        return job

    @property
    def logFile(self) -> Path:
        """What the backend prints. It is next to the run's folder, which must be empty when a run starts."""
        return self.folder.parent / f"{self.folder.name}.log"

    def start(self, launch: ProcessLaunch) -> None:
        """Start a process that continues when Slicer ends.

        Raises:
            UserError: ``training-not-started``, or the log cannot be written.
        """
        self.look()
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.logFile, "ab")
        except OSError as error:
            raise write_error(error, self.logFile) from error
        with log:
            log.write(f"> {launch}\n".encode())
            log.flush()
            self._startOfLog = log.tell()
            try:
                self._process = launch.startDetached(log)
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError("training-not-started", program=launch.program, reason=reason) from error
        self._hasSpoken = False

    def look(self) -> bool:
        """Read new events; returns whether there were any."""
        self._wasAlive = self._isAlive()
        events = self._reader.new_events()
        for event in events:
            self._hasSpoken = self._hasSpoken or event["event"] == "started"
            self.progress.add(event)
        if self._process is not None and self._process.poll() is not None:
            self._exitCode, self._process = self._process.returncode, None
            self.look()
        return bool(events)

    @property
    def state(self) -> JobState:
        """The state at the last `look`."""
        if not self._hasSpoken:
            return JobState.starting if self._process else JobState.died
        reported = self.progress.state
        if reported in ("stopped", "finished", "failed"):
            return JobState(reported)
        if not self._wasAlive:
            return JobState.none if reported == "new" else JobState.died
        if reported == "stopping" or os.path.exists(self.folder / STOP_FILE):
            return JobState.stopping
        return JobState.starting if reported == "new" else JobState(reported)

    @property
    def problem(self) -> str:
        """What went wrong, as a sentence; empty if nothing did."""
        state = self.state
        if state is JobState.failed:
            return self.progress.failed["message"]
        if state is not JobState.died:
            return ""
        if not self._hasSpoken:
            # It ended before it started, with a closing sentence.
            reason = lastLine(self._endOfLog()) or _("exit code {code}").format(code=self._exitCode)
            return _("Training did not start: {reason}").format(reason=reason)
        sentence = _("Training ended unexpectedly after step {step}; see the log, and resume the run.")
        if not os.path.isdir(self.folder):
            sentence = _("Training ended unexpectedly after step {step}, and its folder no longer exists.")
        return sentence.format(step=self.progress.step)

    @property
    def host(self) -> str:
        """The other computer on which it runs or ran; empty for this one."""
        host = (self.progress.started or {}).get("host", "")
        return "" if host == socket.gethostname() else host

    def newLogLines(self) -> list[str]:
        """The lines printed since the last call; the first call returns the end of the log."""
        try:
            with open(self.logFile, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                isCut = self._logPosition is None and size > _LOG_BYTES
                if self._logPosition is None or self._logPosition > size:
                    self._logPosition, self._logRest = max(0, size - _LOG_BYTES), b""
                file.seek(self._logPosition)
                added = file.read()
        except OSError:
            return []
        self._logPosition += len(added)
        *lines, self._logRest = (self._logRest + added).replace(b"\r\n", b"\n").split(b"\n")
        # For a progress bar that was redrawn, the last state.
        texts = [line.rsplit(b"\r", 1)[-1].decode("utf-8", errors="replace") for line in lines[1 if isCut else 0 :]]
        return [text for text in texts if text.strip()]

    def requestStop(self) -> None:
        """Ask the run to stop after the current step, with a checkpoint. Before and after its steps, it is killed.

        On another computer, an evaluation is asked to stop after the current case.

        Raises:
            UserError: the run's folder cannot be written to.
        """
        isEvaluatingHere = self.state is JobState.evaluating and self.canKill and not self._isElsewhere()
        if self.state is JobState.starting or isEvaluatingHere:
            # When starting, it would delete the file that asks it to stop, which may be from before it started. The
            # evaluation looks for it only between cases, and is repeated as a whole anyway.
            self.kill()
            self._hasSpoken = True
            self.look()
            return
        try:
            (self.folder / STOP_FILE).touch()
        except OSError as error:
            raise write_error(error, self.folder / STOP_FILE) from error

    @property
    def canKill(self) -> bool:
        """Whether the process can be killed: it runs on this computer, or was started from it."""
        return self._pid() is not None

    def kill(self) -> None:
        """Kill the process and its children."""
        pid = self._pid()
        if pid is not None:
            killTree(pid)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def _endOfLog(self) -> str:
        try:
            with open(self.logFile, "rb") as file:
                file.seek(max(self._startOfLog, file.seek(0, os.SEEK_END) - _LOG_BYTES))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _pid(self) -> int | None:
        if self._process is not None:
            return self._process.pid
        running = running_process(self.folder)
        return running["pid"] if running and running.get("host") == socket.gethostname() else None

    def _isElsewhere(self) -> bool:
        """Whether it runs on another computer, even if a command (ssh, srun) here started it."""
        running = running_process(self.folder)
        return running is not None and running.get("host") != socket.gethostname()

    def _isAlive(self) -> bool:
        if self._process is not None:
            return True
        running = running_process(self.folder)
        if running is None or running.get("host") == socket.gethostname():
            return running is not None
        return time.time() - self._lastSign() < SECONDS_OF_SILENCE

    def _lastSign(self) -> float:
        """When it wrote to its progress file last, in seconds since 1970; 0 if it never did."""
        try:
            return (self.folder / PROGRESS_FILE).stat().st_mtime
        except OSError:
            return 0.0


class CrossValidation(TrainingJob):
    """The folder of a cross-validation, with the runs ``fold_0``, ``fold_1`` and so on, trained one after the other.

    Its progress is that of the current fold.

    Attributes:
        folds: the run of each fold, by its number.
        current: the fold that is trained, or was trained last; None before the first.
    """

    _PLAN = CROSSVAL_FILE

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.folds: dict[int, TrainingJob] = {}
        self.current: int | None = None

    @classmethod
    def glance(cls, folder: Path) -> "CrossValidation":
        job = cls(folder)
        job._wasAlive = job._isAlive()
        job.folds = {number: TrainingJob.glance(path) for number, path in job._foldFolders()}
        job._chooseCurrent()
        return job

    @property
    def resumeCommand(self) -> tuple[str, ...]:
        return ("crossval", str(self.planFile), "--output", str(self.folder))

    @property
    def count(self) -> int:
        """The number of folds; their folders are created together."""
        return max(len(self.folds), 1)

    @property
    def trained(self) -> int:
        return sum(fold.progress.state == "finished" for fold in self.folds.values())

    @property
    def share(self) -> float:
        shares = (1.0 if fold.progress.state == "finished" else fold.share for fold in self.folds.values())
        return sum(shares) / self.count

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
        self._wasAlive = self._isAlive()
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
            self._exitCode, self._process = self._process.returncode, None
            self.look()
        return isNew

    @property
    def state(self) -> JobState:
        if not self._hasSpoken:
            return JobState.starting if self._process else JobState.died
        states = {fold.progress.state for fold in self.folds.values()}
        isTrained = self.trained == self.count
        if self._wasAlive:
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
        signs = [fold._lastSign() for fold in self.folds.values()]
        with contextlib.suppress(OSError):
            # The evaluation adds a label map for each case.
            signs.append((self.folder / _LABEL_MAPS).stat().st_mtime)
        return max(signs, default=0.0)


def jobIn(folder: Path, isGlance: bool = False) -> TrainingJob:
    """The run or cross-validation in a folder; at a glance, with only its latest events, as `TrainingJob.glance`."""
    kind = CrossValidation if os.path.isfile(folder / CROSSVAL_FILE) else TrainingJob
    return kind.glance(folder) if isGlance else kind(folder)
