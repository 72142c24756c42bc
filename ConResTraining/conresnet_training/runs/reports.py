"""Where the events of a run go: its progress file, TensorBoard and the terminal."""

import contextlib
from typing import Any

import click
from lightning_fabric.loggers import TensorBoardLogger
from torch.utils import tensorboard  # noqa: F401 - a missing package must be noticed before there is a run folder
from tqdm import tqdm

from conresnet.files import write_error
from conresnet.messages import printable
from conresnet_training.runs.run import Run
from conresnet_training.runs.state import FIGURES, PROGRESS_FILE, ProgressWriter


class SilentReports:
    """What all processes but the first report to: nothing is written or shown."""

    def __call__(self, event: str, **values: Any) -> None:
        """Report an event."""

    def note(self, sentence: str) -> None:
        """Show a sentence."""


class Reports(SilentReports):
    """Writes and shows each event of ``conresnet_training.runs.state``."""

    def __init__(self, run: Run):
        self._path = run.folder / PROGRESS_FILE
        try:
            self._progress = ProgressWriter(self._path)
        except OSError as error:
            raise write_error(error, self._path) from error
        # Every start of the run logs into a folder of its own, so that resuming keeps what came before.
        self._curves = TensorBoardLogger(run.folder, name="tensorboard")
        self._bar: tqdm | None = None
        self._step = 0

    def __call__(self, event: str, **values: Any) -> None:
        """Report an event. Raises UserError ``disk-full`` or ``cannot-write``."""
        try:
            self._progress.write(event, **values)
            self._log(event, values)
        except OSError as error:
            raise write_error(error, self._path) from error
        # If the terminal was closed, the run must still end with its checkpoint.
        with contextlib.suppress(OSError):
            self._show(event, values)

    def note(self, sentence: str) -> None:
        """Show a sentence on the terminal, above the progress bar."""
        with contextlib.suppress(OSError), tqdm.external_write_mode():
            click.echo(printable(sentence), err=True)

    def close(self) -> None:
        """Close the files; what no longer fits on the disk, or into a closed terminal, is dropped."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
        for close in (lambda: self._curves.finalize("success"), self._progress.close):
            with contextlib.suppress(OSError):
                close()

    def _log(self, event: str, values: dict) -> None:
        curves = {name: value for name, value in values.items() if name in (*FIGURES, "samples_per_second")}
        curves |= {f"dice_{name}": value for name, value in values.get("dice_a_segment", {}).items()}
        if curves:
            self._curves.log_metrics(curves, values["step"])
        if event == "checkpoint":
            self._curves.save()

    def _show(self, event: str, values: dict) -> None:
        if event == "started":
            # Only a terminal gets the bar; a log keeps the lines.
            self._bar = tqdm(
                total=values["steps"], initial=values["step"], unit="step", disable=None, dynamic_ncols=True
            )
            self._step = values["step"]
        elif event == "preparing":
            self._bar.set_description(f"Preparing case {values['done']} of {values['of']}")
        elif event == "step":
            self._bar.set_description("Training")
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            self._bar.update(values["step"] - self._step)
            self._step = values["step"]
        elif event == "validation":
            segments = ", ".join(f"{name} {dice:.3f}" for name, dice in values["dice_a_segment"].items())
            best = "; best so far" if values["best"] else ""
            with tqdm.external_write_mode():
                click.echo(printable(f"Step {values['step']}: mean Dice {values['dice']:.3f} ({segments}){best}."))
        elif event == "stopping":
            self.note(f"Stopping after the current step ({values['reason']}). Stop again to end immediately.")
