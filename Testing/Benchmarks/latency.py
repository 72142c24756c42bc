"""Measure how long a user waits beyond the network's own time: first click, second click, first piece of the preview.

Each round starts the stand-in application and an engine anew, and clicks in it. Rounds alternate between starting the
engine with the click and starting it in the background when the module is opened. The table shows medians
and ranges in seconds, by phase. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import click
import numpy as np

TESTING = Path(__file__).resolve().parents[1]
REPOSITORY = TESTING.parent
IMAGES = {
    "hippocampus": TESTING / "Data" / "MSD_Task04_Hippocampus" / "imagesTr" / "hippocampus_004.nii.gz",
    "brain-tissue": TESTING / "Data" / "IXI_T1_2mm" / "IXI034.nii.gz",
}
WAYS = {"click": "engine started by the click", "opened": "engine started with the module"}
PHASES = {
    "looking": "checking the engine's Python",
    "starting": "starting the engine, importing torch",
    "sending": "writing the image for the engine",
    "loading": "loading the model",
    "network": "the network itself",
    "around": "the engine's other work: preparing, collecting, statistics",
    "scene": "segments, surfaces and maps in the scene",
    "segments": "click to segments in the slices, without the network",
    "total": "click to result",
    "beyond": "click to result, without the network",
}


class Clock:
    """Records when each event first happened since the last click."""

    def __init__(self):
        self.at: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.labels: np.ndarray | None = None

    def restart(self) -> None:
        self.at, self.labels = {"click": time.monotonic()}, None

    def mark(self, name: str) -> None:
        self.at.setdefault(name, time.monotonic())

    def look(self) -> None:
        """Record when the first piece of the result is available."""
        if self.labels is not None and "windows" not in self.at and self.labels.any():
            self.mark("windows")

    def between(self, first: str, last: str) -> float:
        return max(self.at[last] - self.at[first], 0.0) if {first, last} <= self.at.keys() else 0.0


def measure_once(model: str, way: str) -> dict[str, dict[str, float]]:
    """Open the module in a new application, click twice, and return the seconds of each phase for both clicks."""
    sys.path[:0] = [str(TESTING / "SlicerHost"), str(TESTING / "Python")]
    from module.panel_driver import PanelDriver
    from slicer_host import start_application

    app = start_application()
    import slicer

    slicer.app.userSettings().setValue("ConResSegmentation/StartEngine", way == "opened")
    app.moduleManager().load(REPOSITORY / "ConResSegmentation" / "ConResSegmentation.py")
    from ConResSegmentationLib import ResultSegmentation
    from ConResSegmentationLib.EngineConnection import EngineConnection
    from ConResSegmentationLib.SegmentationRun import SegmentationRun

    clock = Clock()
    _listen(clock, EngineConnection, ResultSegmentation, SegmentationRun)
    panel = PanelDriver(app)
    panel.open()
    panel.choose_model(model)
    slicer.util.loadVolume(str(IMAGES[model]))
    panel.settle()
    if way == "opened":
        panel.wait(lambda: "ready" in clock.at)
    found = {}
    for name in ("first click", "second click"):
        clock.restart()
        panel.click_segment()
        panel.wait(lambda: clock.look() or not panel.widget.runPanel.isRunning)
        clock.mark("end")
        found[name] = _phases(clock, panel.status)
    app.quit_host()
    return found


def _listen(clock: Clock, connection: type, results: ModuleType, run: type) -> None:
    """Record when the engine starts and responds, and when the preview and the segments are computed and shown."""
    preview, fill = results.ResultPreview, results.fill
    start, receive, show = connection.open, connection._receive, preview._show
    sent, array, done = run.onSent, run.onArray, run.onDone

    def on_open(self) -> None:
        clock.mark("starting")
        start(self)

    def on_message(self, message: dict) -> None:
        clock.mark(message["event"])
        if message["event"] == "progress":
            clock.mark("first progress")
            if message["phase"] != "loading":
                clock.mark("loaded")
        receive(self, message)

    def on_show(self) -> None:
        show(self)
        clock.mark("preview")

    def on_sent(self, checksums: tuple) -> None:
        clock.mark("sent")
        sent(self, checksums)

    def on_array(self, name: str, values: np.ndarray) -> None:
        if name == "labels":
            clock.labels = values
        array(self, name, values)

    def on_done(self, result: object) -> None:
        clock.labels, clock.seconds = None, result.report["seconds"]
        done(self, result)

    def on_fill(*arguments: object) -> None:
        fill(*arguments)
        clock.mark("segments")

    connection.open, connection._receive, preview._show, results.fill = on_open, on_message, on_show, on_fill
    run.onSent, run.onArray, run.onDone = on_sent, on_array, on_done


def _phases(clock: Clock, status: str) -> dict[str, float]:
    assert status.startswith("Done in"), status
    # The networks' time includes a model's coarse look.
    network = clock.seconds.get("locating", 0.0) + clock.seconds["segmenting"]
    total = clock.between("click", "end")
    phases = {
        "looking": clock.between("click", "starting"),
        "starting": clock.between("starting", "ready"),
        "sending": clock.between("ready" if "ready" in clock.at else "click", "sent"),
        "loading": clock.between("first progress", "loaded"),
        "network": network,
        "around": clock.between("loaded", "done") - network,
        "scene": clock.between("done", "end"),
        "segments": clock.between("click", "segments") - network,
        "total": total,
        "beyond": total - network,
    }
    if {"windows", "preview"} <= clock.at.keys():
        phases["preview"] = clock.between("windows", "preview")
    return phases


def table(rounds: dict[str, list[dict]]) -> str:
    """One row per phase, one column per way to start the engine and click."""
    from measures import spread

    columns = [(way, name) for way in WAYS for name in ("first click", "second click")]
    heads = [f"{name}, {WAYS[way]}" for way, name in columns]
    lines = ["| seconds | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for phase, title in {**PHASES, "preview": "first windows computed to preview shown"}.items():
        cells = []
        for way, name in columns:
            values = [each[name][phase] for each in rounds[way] if phase in each[name]]
            cells.append(spread(values) if values else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(list(IMAGES)), default="hippocampus", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--once", type=click.Choice(list(WAYS)), help="Run one round, and print it as JSON.")
def main(model: str, rounds: int, once: str | None) -> None:
    if once:
        print(json.dumps(measure_once(model, once)))
        return
    results: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _round in range(rounds):
        for way, found in results.items():
            command = [sys.executable, __file__, "--model", model, "--once", way]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(run.stdout.splitlines()[-1]))
    print(table(results))


if __name__ == "__main__":
    main()
