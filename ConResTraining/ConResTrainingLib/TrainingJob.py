"""A training in its run folder: started so that it outlives Slicer, followed, stopped, and found again.

job = TrainingJob(runFolder)
job.start(backend.launch("train", plan, "--output", runFolder))
job.look()          # now and then: what is new; then job.state, job.progress, job.log()
job.requestStop()   # it ends after its step, with a checkpoint, wherever it runs
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
from conresnet_training.runs.progress import PROGRESS_FILE, Progress, ProgressReader
from conresnet_training.runs.running import STOP_FILE, running_process
from ConResSegmentationLib.Processes import ProcessLaunch, killTree, lastLine

# Of a run on another computer nothing but its files is seen: it counts as gone when it wrote nothing for so long.
SECONDS_OF_SILENCE = 600
_LOG_BYTES = 40_000


class JobState(enum.Enum):
    """How a run stands."""

    none = "none"
    starting = "starting"
    preparing = "preparing"
    training = "training"
    stopping = "stopping"
    stopped = "stopped"
    finished = "finished"
    failed = "failed"
    died = "died"

    @property
    def isRunning(self) -> bool:
        """Whether a process is at work."""
        return self in (JobState.starting, JobState.preparing, JobState.training, JobState.stopping)

    @property
    def canResume(self) -> bool:
        """Whether it ended before its last step."""
        return self in (JobState.stopped, JobState.failed, JobState.died)


class TrainingJob:
    """A run's folder, and the process that trains in it, if there is one.

    Args:
        folder: the run's folder; it need not be there yet.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.progress = Progress()
        self._reader = ProgressReader(self.folder / PROGRESS_FILE)
        self._process: subprocess.Popen | None = None
        # Whether the process that was started last has said so in the progress file.
        self._hasSpoken = True
        self._logPosition: int | None = None
        self._logRest = b""

    @property
    def logFile(self) -> Path:
        """What the backend prints. It lies beside the run's folder, which must be empty when a run starts in it."""
        return self.folder.parent / f"{self.folder.name}.log"

    def start(self, launch: ProcessLaunch) -> None:
        """Start a process that goes on when Slicer ends.

        Raises:
            UserError: ``training-not-started``, or where the log cannot be written.
        """
        self.look()
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.logFile, "ab")
        except OSError as error:
            raise write_error(error, self.logFile) from error
        with log:
            log.write(f"> {launch.program} {' '.join(launch.arguments)}\n".encode())
            log.flush()
            try:
                self._process = subprocess.Popen(
                    [launch.program, *launch.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=launch.environment,
                    **_detached(),
                )
            except OSError as error:
                sentence = _("The training could not be started with {program}: {reason}.")
                reason = error.strerror or str(error)
                raise UserError(
                    "training-not-started", sentence.format(program=launch.program, reason=reason)
                ) from error
        self._hasSpoken = False

    def look(self) -> bool:
        """Read what is new; returns whether anything was."""
        events = self._reader.new_events()
        for event in events:
            self._hasSpoken = self._hasSpoken or event["event"] == "started"
            self.progress.add(event)
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self.look()
        return bool(events)

    @property
    def state(self) -> JobState:
        """How it stands, as of the last `look`."""
        if not self._hasSpoken:
            return JobState.starting if self._process else JobState.died
        said = self.progress.state
        if said in ("stopped", "finished", "failed"):
            return JobState(said)
        if not self._isAlive():
            return JobState.none if said == "new" else JobState.died
        if said == "stopping" or (self.folder / STOP_FILE).exists():
            return JobState.stopping
        return JobState.starting if said == "new" else JobState(said)

    @property
    def problem(self) -> str:
        """What went wrong, as a sentence; empty when nothing did."""
        state = self.state
        if state is JobState.failed:
            return self.progress.failed["message"]
        if state is not JobState.died:
            return ""
        if not self._hasSpoken:
            # It ended before it began, and closed with a sentence.
            reason = lastLine(self._endOfLog())
            return _("The training did not start: {reason}").format(reason=reason)
        sentence = _("The training ended unexpectedly after step {step}; see the log, and resume it.")
        return sentence.format(step=self.progress.step)

    @property
    def host(self) -> str:
        """The other computer on which it runs, or ran; empty when it is this one."""
        host = (self.progress.started or {}).get("host", "")
        return "" if host == socket.gethostname() else host

    def newLogLines(self) -> list[str]:
        """The lines that the backend has printed since the last look; at first the end of what is there."""
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
        # Of a progress bar that was drawn over and over, its last state.
        texts = [line.rsplit(b"\r", 1)[-1].decode("utf-8", errors="replace") for line in lines[1 if isCut else 0 :]]
        return [text for text in texts if text.strip()]

    def requestStop(self) -> None:
        """Have it end after its step, with a checkpoint; one that has not begun yet is killed.

        Raises:
            UserError: where the run's folder cannot be written to.
        """
        if self.state is JobState.starting:
            # It would take away a file that asks it to stop: such a file may be from before it started.
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
        """Whether the process is within reach: one of this computer, or behind a command that was started here."""
        return self._pid() is not None

    def kill(self) -> None:
        """End the process at once, and those it has started."""
        pid = self._pid()
        if pid is not None:
            killTree(pid)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def _endOfLog(self) -> str:
        try:
            with open(self.logFile, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _pid(self) -> int | None:
        if self._process is not None:
            return self._process.pid
        running = running_process(self.folder)
        return running["pid"] if running and running.get("host") == socket.gethostname() else None

    def _isAlive(self) -> bool:
        if self._process is not None:
            return True
        running = running_process(self.folder)
        if running is None or running.get("host") == socket.gethostname():
            return running is not None
        try:
            return time.time() - (self.folder / PROGRESS_FILE).stat().st_mtime < SECONDS_OF_SILENCE
        except OSError:
            return False


def _detached() -> dict:
    """What makes a process live on when the one that started it ends."""
    if os.name == "nt":
        # Without a window; one of no console at all would give every process that it starts a window of its own.
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
