"""``progress.jsonl``: the events of a run, one JSON object per line, for people and programs that follow it.

Imports only the standard library, because Slicer's process reads the file too. Each line has "event" and "time"
(seconds since the epoch), and depending on the event:

- started: step (made so far), steps (in total), stages (each takes an equal share of the steps), fold, pid, host,
  device, devices, precision, version, cases (used for training), segments (their names)
- preparing: done, of (cases)
- step: step, loss and its parts, learning_rate, seconds_left, samples_per_second, gpu_memory (bytes, or null)
- validation: step, dice (mean over segments), dice_a_segment {name: value}, best (whether it is the best so far)
- checkpoint: step, name
- stopping: reason; stopped: step; finished: step; failed: code, message, and cases if some are to blame

Steps count from 1. What a killed run had written after its checkpoint is repeated by the resumed one; readers drop the
older lines.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRESS_FILE = "progress.jsonl"


class ProgressWriter:
    """Appends events to a progress file; each is written completely when ``write`` returns.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path):
        self._file = open(path, "ab")
        # The first line must not be appended to one that a killed process left unfinished.
        if self._file.tell() and not _ends_a_line(path):
            self._file.write(b"\n")

    def write(self, event: str, **values: Any) -> None:
        """Append one event; numbers that are not finite become null, since JSON has none."""
        values = {name: _plain(value) for name, value in values.items()}
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ProgressReader:
    """Reads what was added to a progress file since the last call; the file need not exist yet."""

    def __init__(self, path: Path):
        self._path, self._position, self._rest = Path(path), 0, b""

    def new_events(self) -> list[dict]:
        """The events of the lines completed since then. A file that became shorter is read from its start."""
        try:
            with open(self._path, "rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position, self._rest = 0, b""
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
            file. A killed process leaves it at "training"; ``conresnet_training.runs.running`` knows whether one is
            active.
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


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _event(line: bytes) -> dict | None:
    """None for a line that a killed process left unfinished."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value
