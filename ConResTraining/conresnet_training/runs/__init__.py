"""Run folders: the state of a run as files, that is whether a process is active, its progress, and a request to stop.

Standard library only, because Slicer's process uses it too.

``running.json`` names the process: {"pid", "host", "started"}. Whether it is still active is shown by a lock on a file,
which the operating system releases however its owner ends. A process id would not be enough, because ids are reused.

``progress.jsonl`` contains the run's events, one JSON object per line. Each has "event" and "time" (seconds since the
epoch), and depending on the event:

- started: step (made so far), steps (in total), stages (each takes an equal share of the steps), fold (null without
  one), pid, host, device, devices, precision, version, cases (used for training), segments (their names)
- preparing: done, of (cases)
- step: step, loss and its parts, learning_rate, seconds_left, samples_per_second, gpu_memory (bytes, or null)
- validation: step, dice (mean over segments), dice_a_segment {name: value}, best (whether it is the best so far)
- checkpoint: step, name
- stopping: reason; stopped: step; finished: step; failed: code, message, and the cases that caused it, if known

Steps count from 1. After a run was killed, the resumed run repeats the steps since the last checkpoint; readers drop
the older lines.
"""

import contextlib
import datetime
import errno
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conresnet.errors import UserError
from conresnet.files import lock, write_error, write_text

PLAN_FILE, FOLD_FILE, CHECKPOINTS_FOLDER = "plan.yaml", "fold.txt", "checkpoints"
# In place of a fold's number: nothing is held out.
NO_FOLD = "none"
# The plan that a cross-validation was started with. Not a run's PLAN_FILE, because its folder is not a run's.
CROSSVAL_FILE = "crossval.yaml"
RUNNING_FILE = "running.json"
STOP_FILE = "stop"
_LOCK_FILE = "running.lock"
_SECONDS_TO_TRY = 1.0
# Some network file systems have no locks; a second process goes unnoticed there.
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def sole_process(folder: Path) -> Iterator[None]:
    """Make this process the only one that trains in ``folder``, and record it there. Earlier stop requests are dropped.

    Raises:
        UserError: ``run-in-use``, ``disk-full`` or ``cannot-write``.
    """
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_error(error, folder / _LOCK_FILE) from error
    try:
        if not _locked(descriptor, _SECONDS_TO_TRY):
            other = _read(folder) or {}
            raise UserError("run-in-use", path=str(folder), pid=other.get("pid", "unknown"))
        try:
            # The second is what a killed process was writing.
            for left in (folder / STOP_FILE, *folder.glob(".part-*")):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, left) from error
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        write_text(folder / RUNNING_FILE, json.dumps(content))
        try:
            yield
        finally:
            for name in (RUNNING_FILE, STOP_FILE):
                with contextlib.suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def running_process(folder: Path) -> dict | None:
    """Content of ``running.json`` while a process trains in ``folder``, else None.

    Whether a process on another computer was killed cannot be known from here.
    """
    content = _read(folder)
    if content is None or content.get("host") != socket.gethostname():
        return content
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _locked(descriptor, 0) else content
    finally:
        os.close(descriptor)


def can_begin_in(folder: Path, is_locked: bool = False) -> bool:
    """Whether a new run may use a folder: it does not exist, is empty, or holds a run that ended before it had a
    checkpoint, such as one that was refused, or killed before its plan was written.

    Args:
        is_locked: this process is the only one that trains in the folder.
    """
    if not folder.exists():
        return True
    if not is_locked and running_process(folder) is not None:
        return False
    if all(path.name in (_LOCK_FILE, RUNNING_FILE) or path.name.startswith(".part-") for path in folder.iterdir()):
        return True
    return (folder / FOLD_FILE).is_file() and not has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has any checkpoint; one that a killed process was writing does not count."""
    return any((folder / CHECKPOINTS_FOLDER).glob("[!.]*.ckpt"))


def ask_to_stop(folder: Path) -> str | None:
    """Ask the process that trains in ``folder`` to stop after the current step, with a checkpoint.

    Returns:
        None, or the name of another computer if the process was started there and may no longer be running.

    Raises:
        UserError: ``run-not-running``, ``disk-full`` or ``cannot-write``.
    """
    process = running_process(folder)
    if process is None:
        raise UserError("run-not-running", path=str(folder))
    try:
        (folder / STOP_FILE).touch()
    except OSError as error:
        raise write_error(error, folder / STOP_FILE) from error
    host = str(process.get("host"))
    return None if host == socket.gethostname() else host


def _read(folder: Path) -> dict | None:
    try:
        content = json.loads((folder / RUNNING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _locked(descriptor: int, seconds: float) -> bool:
    """Try to lock for this long: whoever only checks the lock holds it for a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            # Processes that make samples would otherwise inherit it, and keep it after their parent is killed.
            lock(descriptor, inherited=False)
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        else:
            return True


PROGRESS_FILE = "progress.jsonl"
# What the readers of events rely on: fields that an event must have, and the types of fields wherever they are.
_NEEDED = {
    "started": {"step", "steps"},
    "preparing": {"done", "of"},
    "step": {"step"},
    "validation": {"step", "dice"},
    "failed": {"message"},
}
_NUMBER = (int, float, type(None))
FIGURES = ("loss", "segmentation_loss", "residual_loss", "auxiliary_loss", "boundary_loss", "learning_rate", "dice")
_TYPES = {
    **dict.fromkeys((*FIGURES, "seconds_left", "samples_per_second", "gpu_memory"), _NUMBER),
    **dict.fromkeys(("step", "steps", "done", "of"), int),
    "message": str,
    "segments": list,
    "dice_a_segment": dict,
}


class ProgressWriter:
    """Appends events to a progress file; each is written completely when ``write`` returns.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path):
        self._file = open(path, "ab")
        # The first line must not be appended to one that a killed process left unfinished.
        if self._file.tell():
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._file.write(b"\n")

    def write(self, event: str, **values: Any) -> None:
        """Append one event; numbers that are not finite become null, since JSON has none."""
        values = {name: _plain(value) for name, value in values.items()}
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ProgressReader:
    """Reads what was added to a progress file since the last call; the file need not exist yet.

    Args:
        last_bytes: how much of the end of the file to read at first, which is fast for a file of any size. Defaults to
            all of it.
    """

    def __init__(self, path: Path, last_bytes: int | None = None):
        self._path, self._last_bytes = Path(path), last_bytes
        self._position, self._rest = 0, b""

    def new_events(self) -> list[dict]:
        """The events of the lines completed since then. A file that became shorter is read from its start."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._position:
                    self._position, self._rest = 0, b""
                if self._last_bytes is not None:
                    # What is left of a line that is cut here is not an event.
                    self._position, self._last_bytes = max(0, size - self._last_bytes), None
                file.seek(self._position)
                added = file.read()
        except OSError:
            return []
        self._position += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        return [event for event in map(_event, lines) if event]


@dataclass
class Progress:
    """A run's progress, from the events of all its starts.

    Args:
        state: "new", "preparing", "training", "stopping", "stopped", "finished" or "failed": the last state in the
            file. A killed process leaves it at "training"; ``running_process`` knows whether one is active.
        step, steps: made so far, and in total.
        points: the "step" events by ascending step, as of an uninterrupted run.
        validations: the same of the "validation" events.
        started: the latest "started" event.
        failed: the "failed" event while the state is "failed".
        prepared: (done, of) cases while the state is "preparing".
    """

    state: str = "new"
    step: int = 0
    steps: int = 0
    points: list[dict] = field(default_factory=list)
    validations: list[dict] = field(default_factory=list)
    started: dict | None = None
    failed: dict | None = None
    prepared: tuple[int, int] | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds left according to the latest step, while the run is training."""
        return self.points[-1].get("seconds_left") if self.points and self.state == "training" else None

    @property
    def best(self) -> dict | None:
        """The validation with the best Dice so far."""
        return next((event for event in reversed(self.validations) if event.get("best")), None)

    def add(self, event: dict) -> None:
        """Include the next event of the file."""
        kind = event["event"]
        if kind == "started":
            self.started, self.failed, self.prepared = event, None, None
            self.state, self.step, self.steps = "training", event["step"], event["steps"]
            # The previous process may have continued after the checkpoint that this one starts from.
            self.points = [point for point in self.points if point["step"] <= self.step]
            self.validations = [point for point in self.validations if point["step"] <= self.step]
        elif kind == "preparing":
            self.state, self.prepared = "preparing", (event["done"], event["of"])
        elif kind == "step":
            self.points.append(event)
            self.step = event["step"]
            self.state = "stopping" if self.state == "stopping" else "training"
        elif kind == "validation":
            self.validations.append(event)
        elif kind in ("stopping", "stopped", "finished", "failed"):
            self.state, self.step = kind, event.get("step", self.step)
            self.failed = event if kind == "failed" else None


def read_progress(path: Path) -> Progress:
    """The progress recorded in a file; that of a new run if there is no file."""
    progress = Progress()
    for event in ProgressReader(path).new_events():
        progress.add(event)
    return progress


def _event(line: bytes) -> dict | None:
    """None for a line that a killed process left unfinished, or that lacks what readers rely on."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    if not _NEEDED.get(event["event"], set()) <= event.keys():
        return None
    return event if all(isinstance(event[name], _TYPES[name]) for name in _TYPES.keys() & event.keys()) else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value
