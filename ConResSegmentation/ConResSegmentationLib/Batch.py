"""Segment many cases one after another, and write the table of their volumes.

A case that fails does not stop the others. Volumes loaded from files stay in the scene with their results, unless
results are saved to a folder. The frames of a volume sequence become one sequence of segmentations.
"""

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _

from conresnet.errors import UserError

from .BatchCases import BatchCase, BatchEntry, save
from .Processes import callLater
from .SegmentationRun import RunListener, SegmentationOutcome, SegmentationTask
from .Widgets import errorSentence


@dataclass
class BatchRow:
    """The outcome of a case, as a row of the table."""

    name: str
    volumes: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    problem: str = ""


class BatchRun(RunListener):
    """Segments the cases of several entries one after another.

    Args:
        entries: what to segment.
        task: the choices; its volumes are replaced by those of each case.
        segment: starts a task with a listener.
        control: receives progress, lines for the log, and the result.
        onEntry: called with an entry's key and a sentence when its status changes.
        folder: where results are saved. Defaults to the scene.
    """

    def __init__(
        self,
        entries: Sequence[BatchEntry],
        task: SegmentationTask,
        segment: Callable[[SegmentationTask, RunListener], object],
        control,
        onEntry: Callable[[Path | tuple, str], None],
        folder: Path | None = None,
    ):
        self._entries, self._task, self._segment = list(entries), task, segment
        self._control, self._onEntry, self._folder = control, onEntry, folder
        self._number, self._count = -1, 0
        self._cases: deque[BatchCase] = deque()
        self._case: BatchCase | None = None
        self._unread: deque[Callable[[], list]] = deque()
        self._volumeNodes: list = []
        self._run = None
        self._isOver = self._isCanceled = False
        self._began = time.monotonic()
        self.rows: list[BatchRow] = []
        self._entryRows: list[BatchRow] = []
        self._later(self._next)

    def cancel(self) -> None:
        """Stop; finished cases keep their results."""
        self._isCanceled = True
        if self._run:
            self._run.cancel()
        elif not self._isOver:
            self.onCancelled()

    def onProgress(self, text: str, fraction: float) -> None:
        done = max(self._count - len(self._cases) - 1 + fraction, 0) / max(self._count, 1)
        name = self._case.name if self._case else self._entries[self._number].title
        where = _("{number} of {count}, {name}").format(number=self._number + 1, count=len(self._entries), name=name)
        self._control.onProgress(f"{where}: {text}", (self._number + done) / len(self._entries))

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        volumes = dict(outcome.report.get("volumes_ml", {}))
        for note in outcome.notes:
            self._control.log(f"{self._case.name}: {note}")
        self._close(BatchRow(self._case.name, volumes, outcome.seconds), outcome)

    def onFailed(self, sentence: str, details: str) -> None:
        if details:
            self._control.log(details)
        self._close(BatchRow(self._case.name, problem=sentence), None)

    def onCancelled(self) -> None:
        self._run = None
        if self._case:
            self._case.close(self._volumeNodes, None, self._folder)
        self._end(_("Canceled."))

    def _close(self, row: BatchRow, outcome: SegmentationOutcome | None) -> None:
        self._run = None
        try:
            self._case.close(self._volumeNodes, outcome, self._folder)
        except UserError as error:
            row.problem = errorSentence(error)
        except Exception:
            # Whatever happens to one case, the others go on.
            self._control.log(traceback.format_exc())
            row.problem = _("The result could not be kept; see the log.")
        self._case = None
        self._note(row)
        if self._isCanceled:
            # Its result was in the scene already.
            self._end(_("Canceled."))
        else:
            self._later(self._next)

    def _note(self, row: BatchRow) -> None:
        self.rows.append(row)
        self._entryRows.append(row)
        if row.problem:
            self._control.log(f"{row.name}: {row.problem}")
        self._onEntry(self._entries[self._number].key, self._summary())

    def _summary(self) -> str:
        """The text in the list for the current entry."""
        rows = self._entryRows
        if self._count <= 1 and len(rows) == 1:
            return rows[0].problem or ", ".join(f"{name} {size:.2f} mL" for name, size in rows[0].volumes.items())
        done = sum(not row.problem for row in rows)
        problem = next((row.problem for row in rows if row.problem), "")
        text = _("{done} of {count} frames segmented.").format(done=done, count=self._count)
        return f"{text} {problem}".strip()

    def _later(self, step: Callable[[], None]) -> None:
        """Continue once Slicer has handled its events, unless the run was canceled meanwhile."""
        callLater(lambda: None if self._isOver else step())

    def _next(self) -> None:
        """Go to the next case of this entry, or to the next entry."""
        if self._cases:
            self._case, self._volumeNodes = self._cases.popleft(), []
            self._unread = deque(self._case.channels)
            step = self._read
        elif self._number + 1 == len(self._entries):
            self._end("")
            return
        else:
            self._number, self._count, self._entryRows = self._number + 1, 0, []
            step = self._open
        self.onProgress(_("Reading the images"), 0.0)
        self._later(step)

    def _open(self) -> None:
        """Find the cases of an entry, which reads the file of a series."""
        entry = self._entries[self._number]
        try:
            self._cases = deque(entry.cases())
        except UserError as error:
            self._note(BatchRow(entry.title, problem=errorSentence(error)))
        except Exception:
            self._control.log(traceback.format_exc())
            self._note(BatchRow(entry.title, problem=_("The images could not be read; see the log.")))
        self._count = len(self._cases)
        self._later(self._next)

    def _read(self) -> None:
        """Read one more channel of a case, or start if all are there."""
        try:
            if self._unread:
                self._volumeNodes += self._unread.popleft()()
                self._later(self._read)
            else:
                options = replace(self._task.options, maps=()) if self._case.series else self._task.options
                task = replace(self._task, volumeNodes=tuple(self._volumeNodes), options=options)
                self._run = self._segment(task, self)
        except UserError as error:
            self.onFailed(errorSentence(error), "")
        except RuntimeError as error:
            self.onFailed(str(error), "")
        except Exception:
            self.onFailed(_("The segmentation could not be started; see the log."), traceback.format_exc())

    def _end(self, text: str) -> None:
        self._isOver = True
        self._case = None
        failed = sum(bool(row.problem) for row in self.rows)
        parts = [text] if text else []
        if self.rows and not slicer.mrmlScene.IsClosing():
            table = volumesTable(self.rows)
            sentence = _("{done} of {count} segmented in {seconds:.0f} s; the volumes are in the table {table}.")
            parts.append(
                sentence.format(
                    done=len(self.rows) - failed,
                    count=len(self.rows),
                    seconds=time.monotonic() - self._began,
                    table=table.GetName(),
                )
            )
            parts += self._savedTable(table)
        self._control.onEnded(" ".join(parts), failed == len(self.rows) > 0)

    def _savedTable(self, table) -> list[str]:
        if self._folder:
            try:
                save(table, self._folder, table.GetName(), ".csv")
            except UserError as error:
                return [errorSentence(error)]
        return []


def volumesTable(rows: Sequence[BatchRow]):
    """A table node with one row per case: its name, the volume of each segment in mL, seconds, and what went wrong."""
    segments = dict.fromkeys(name for row in rows for name in row.volumes)
    columns: dict[str, list] = {_("Case"): [row.name for row in rows]}
    columns |= {f"{name} (mL)": [row.volumes.get(name, math.nan) for row in rows] for name in segments}
    columns |= {_("Seconds"): [row.seconds for row in rows], _("Problem"): [row.problem for row in rows]}
    name = slicer.mrmlScene.GenerateUniqueName(_("ConResNet volumes"))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    for title, values in columns.items():
        column = vtk.vtkStringArray() if isinstance(values[0], str) else vtk.vtkDoubleArray()
        column.SetName(title)
        for value in values:
            column.InsertNextValue(value)
        node.AddColumn(column)
    node.SetUseColumnTitleAsColumnHeader(True)
    if slicer.app.applicationLogic():
        # An open table view shows it.
        slicer.app.applicationLogic().GetSelectionNode().SetReferenceActiveTableID(node.GetID())
        slicer.app.applicationLogic().PropagateTableSelection()
    return node
