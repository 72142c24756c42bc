"""Many cases segmented one after another, and the table of their volumes.

Cases are volumes and sequences of the scene, image files and DICOM folders. One that fails does not stop the others.
Volumes loaded from files stay in the scene with their results, unless results are saved to a folder. The frames of a
volume sequence become one sequence of segmentations.
"""

import gzip
import math
import re
import shutil
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet.images.inputs import Candidate, match_channels

from . import Loading, ResultParts
from .Processes import callLater
from .ResultSegmentation import parentItem
from .Review import addTable, exportCsv, showTable
from .SceneInputs import candidates
from .SegmentationRun import RunListener, SegmentationOutcome, SegmentationTask
from .Widgets import errorSentence, nameOf, notStarted, timeLeft

_MOST_BYTES = 150
# With less free space than this, a file was not written completely because the disk is full.
_LEAST_BYTES = 1 << 20


@dataclass(frozen=True)
class BatchCase:
    """One case of a batch.

    Args:
        channels: one function per channel, which returns its volume node in a list. They are called one after another,
            because reading a file takes a while, and may raise UserError or RuntimeError.
        isFromFile: whether to remove the volumes from the scene if the result is saved to a folder.
        series, frame: the sequence and the index value of the frame, if the case is a frame.
    """

    name: str
    channels: Sequence[Callable[[], list]]
    isFromFile: bool = False
    series: "Series | None" = None
    frame: str = ""

    def close(self, volumeNodes: Sequence, outcome: SegmentationOutcome | None, folder: Path | None) -> None:
        """Keep the result in the scene or save it to a folder; ``outcome`` is None if it failed. Raises UserError."""
        isKept, isInSeries = not folder and not self.series, False
        try:
            if outcome and self.series:
                self.series.addResult(self.frame, outcome.segmentationNode)
                isInSeries = True
            if outcome and folder:
                save(outcome.segmentationNode, folder, self.name)
        except Exception:
            # A result that could not be saved stays in the scene, unless it is in the sequence of results.
            isKept = not isInSeries
            raise
        finally:
            if not isKept:
                if outcome:
                    ResultParts.removeResult(outcome.segmentationNode)
                ResultParts.remove([*volumeNodes] if self.isFromFile or self.series else [])


class Series:
    """The frames of a sequence node, and the sequence of their segmentations."""

    def __init__(self, node):
        self.node, self._results = node, None
        browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
        self._browser = next((one for one in browsers if one.IsSynchronizedSequenceNode(node, True)), None)

    @property
    def proxy(self):
        """The volume that shows the current frame; None if there is none."""
        return self._browser.GetProxyNode(self.node) if self._browser else None

    def cases(self) -> list[BatchCase]:
        # The numbers of frames change when one is removed during the run; their index values do not.
        frames = [self.node.GetNthIndexValue(number) for number in range(self.node.GetNumberOfDataNodes())]
        names = [f"{nameOf(self.node)} [{frame}]" for frame in frames]
        return [
            BatchCase(name, [partial(self._volume, frame, name)], series=self, frame=frame)
            for frame, name in zip(frames, names, strict=True)
        ]

    def _volume(self, frame: str, name: str) -> list:
        content = self.node.GetDataNodeAtValue(frame) if slicer.mrmlScene.IsNodePresent(self.node) else None
        if content is None:
            raise UserError("frame-removed", name=name)
        volume = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
        volume.UnRegister(None)
        volume.CopyContent(content)
        volume.SetName(name)
        # Keep it out of node selectors.
        volume.SetHideFromEditors(True)
        slicer.mrmlScene.AddNode(volume)
        volume.SetAndObserveTransformNodeID(self.proxy.GetTransformNodeID() if self.proxy else None)
        return [volume]

    def addResult(self, frame: str, segmentationNode) -> None:
        """Add the segmentation of a frame to the sequence of results, which is shown with the frames."""
        if self._results is None or not slicer.mrmlScene.IsNodePresent(self._results):
            name = _("{series} segmentation").format(series=nameOf(self.node))
            name = slicer.mrmlScene.GenerateUniqueName(name)
            self._results = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
            self._results.SetIndexName(self.node.GetIndexName())
            self._results.SetIndexUnit(self.node.GetIndexUnit())
            if self._browser and slicer.mrmlScene.IsNodePresent(self._browser):
                self._browser.AddSynchronizedSequenceNodeID(self._results.GetID())
        self._results.SetDataNodeAtValue(segmentationNode, frame)


@dataclass(frozen=True)
class BatchEntry:
    """A row of the panel's list: a case, or a volume sequence of several.

    Args:
        key: identifies the entry when the list is refreshed: the IDs of its nodes, or the path of its file or folder.
        title: the text in the list.
        cases: creates the cases when it is their turn. Raises UserError if a sequence cannot be read.
    """

    key: Path | tuple[str, ...]
    title: str
    cases: Callable[[], list[BatchCase]]


def sceneEntries(inputs: Sequence) -> list[BatchEntry]:
    """What a model with these inputs can segment in the scene: volumes, or complete groups of them, and sequences."""
    series = [Series(node) for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if Loading.hasVolumes(node)]
    if len(inputs) == 1:
        # The volume that shows the frames of a sequence is not a case of its own.
        proxies = [one.proxy for one in series]
        chosen = [[node] for node in candidates() if node not in proxies]
    else:
        chosen = []
        for members in _grouped(candidates(), parentItem):
            found = match_channels(inputs, [Candidate(nameOf(node)) for node in members])
            chosen += [] if None in found else [[members[place] for place in found]]
    entries = []
    for nodes in chosen:
        case = BatchCase(", ".join(map(nameOf, nodes)), [partial(list, [node]) for node in nodes])
        entries.append(_entry(tuple(node.GetID() for node in nodes), case))
    for one in series if len(inputs) == 1 else ():
        title = _("{name} ({count} frames)").format(name=nameOf(one.node), count=one.node.GetNumberOfDataNodes())
        entries.append(BatchEntry((one.node.GetID(),), title, one.cases))
    return entries


def fileEntries(inputs: Sequence, found: dict[Path, bool], root: Path) -> list[BatchEntry]:
    """The cases of a model among what `Loading.imagesIn` has found; with several channels, a folder is a case.

    Their names are relative to the folder ``root``.
    """
    if len(inputs) == 1:
        return [_fileEntry(path, root, hasFrames) for path, hasFrames in found.items()]
    entries = []
    for members in _grouped(list(found), lambda path: path.parent):
        folder = members[0].parent
        name = folder.name if folder == root else folder.relative_to(root).as_posix()
        places = match_channels(inputs, [Candidate(path.name) for path in members])
        missing = ", ".join(item.name for item, place in zip(inputs, places, strict=True) if place is None)
        if missing:
            channels = [partial(_raise, "batch-channels-missing", folder=str(folder), channels=missing)]
        else:
            channels = [_loading(members[place]) for place in places]
        entries.append(_entry(folder, BatchCase(name, channels, isFromFile=True)))
    return entries


def _fileEntry(path: Path, root: Path, hasFrames: bool) -> BatchEntry:
    name = Loading.withoutEnding(path.relative_to(root).as_posix())
    if not hasFrames:
        return _entry(path, BatchCase(name, [_loading(path)], isFromFile=True))
    title = _("{name} (sequence)").format(name=name)
    return BatchEntry(path, title, lambda: Series(Loading.readSeries(path)).cases())


def _loading(path: Path) -> Callable[[], list]:
    return partial(Loading.loadImages, [str(path)])


def _raise(code: str, **values: str) -> list:
    raise UserError(code, **values)


def _entry(key: Path | tuple[str, ...], case: BatchCase) -> BatchEntry:
    return BatchEntry(key, case.name, lambda: [case])


def _grouped(items: Sequence, group: Callable[[object], object]) -> Iterator[list]:
    groups: dict = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    yield from groups.values()


def save(segmentationNode, folder: Path, name: str) -> None:
    """Save a segmentation to a file that does not exist yet, completely or not at all. Raises UserError."""
    path = _freePath(folder, name, ".seg.nrrd")
    try:
        with replacing(path) as temporary:
            # Slicer may not notice a full disk.
            if not slicer.util.saveNode(segmentationNode, str(temporary)) or not _isComplete(temporary):
                isFull = shutil.disk_usage(folder).free < _LEAST_BYTES
                raise UserError("disk-full" if isFull else "result-not-saved", path=str(path))
    except Exception:
        # Otherwise Slicer would take it for saved, and offer the temporary name.
        segmentationNode.StorableModified()
        if segmentationNode.GetStorageNode():
            segmentationNode.GetStorageNode().SetFileName("")
        raise


def _freePath(folder: Path, name: str, suffix: str) -> Path:
    stem = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]+', "_", name)
    # File systems allow 255 bytes, some programs fewer.
    stem = stem.encode(errors="replace")[:_MOST_BYTES].decode(errors="ignore").strip(" ._") or "result"
    names = (stem, *(f"{stem} {number}" for number in range(2, 10_000)))
    try:
        if folder.is_dir():
            return next(path for one in names if not (path := folder / f"{one}{suffix}").exists())
    except OSError as error:
        raise UserError("result-not-saved", path=str(folder / f"{stem}{suffix}")) from error
    raise UserError("result-not-saved", path=str(folder / f"{stem}{suffix}"))


def _isComplete(path: Path) -> bool:
    """Whether an NRRD file has all its voxels. Slicer's reader may end the process at a file that is cut off."""
    with open(path, "rb") as file:
        lines = iter(lambda: file.readline().strip(), b"")
        fields = dict(line.split(b": ", 1) for line in lines if b": " in line)
        voxels = math.prod(map(int, fields.get(b"sizes", b"0").split()))
        try:
            data = gzip.open(file) if fields.get(b"encoding") in (b"gzip", b"gz") else file
            size = sum(map(len, iter(lambda: data.read(1 << 20), b"")))
        except (OSError, EOFError, zlib.error):
            return False
    return voxels > 0 and size > 0 and size % voxels == 0


@dataclass
class BatchRow:
    """The outcome of a case, as a row of the table."""

    name: str
    volumes: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    warnings: Sequence[str] = ()
    problem: str = ""


class BatchRun(RunListener):
    """Segments the cases of several entries one after another.

    Args:
        task: the choices; its volumes are replaced by those of each case.
        control: receives progress, lines for the log, and the result.
        onEntry: called with an entry's key, a sentence and warnings when its status changes.
        folder: where results are saved. Defaults to the scene.
    """

    def __init__(
        self,
        entries: Sequence[BatchEntry],
        task: SegmentationTask,
        segment: Callable[[SegmentationTask, RunListener], object],
        control,
        onEntry: Callable[[Path | tuple, str, Sequence[str]], None],
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
        share = (self._number + done) / len(self._entries)
        name = self._case.name if self._case else self._entries[self._number].title
        where = _("{number} of {count}, {name}").format(number=self._number + 1, count=len(self._entries), name=name)
        # The text already shows the time remaining for the current case.
        if self.rows and (self._cases or self._number + 1 < len(self._entries)):
            left = timeLeft((time.monotonic() - self._began) * (1 / share - 1))
            text = _("{step}; all cases: {left}").format(step=text, left=left)
        self._control.onProgress(f"{where}: {text}", share)

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        volumes = dict(outcome.report.get("volumes_ml", {}))
        self._close(BatchRow(self._case.name, volumes, outcome.seconds, outcome.notes), outcome)

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
        for text in filter(None, (*row.warnings, row.problem)):
            self._control.log(f"{row.name}: {text}")
        warnings = [text for one in self._entryRows for text in one.warnings]
        self._onEntry(self._entries[self._number].key, self._summary(), warnings)

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
                # Maps are not saved in a sequence or in a folder of results.
                isWithoutMaps = self._case.series or self._folder
                options = replace(self._task.options, maps=()) if isWithoutMaps else self._task.options
                task = replace(self._task, volumeNodes=tuple(self._volumeNodes), options=options)
                self._run = self._segment(task, self)
        except UserError as error:
            self.onFailed(errorSentence(error), "")
        except RuntimeError as error:
            self.onFailed(str(error), "")
        except Exception:
            self.onFailed(notStarted(), traceback.format_exc())

    def _end(self, text: str) -> None:
        self._isOver = True
        self._case = None
        count, failed = len(self.rows), sum(bool(row.problem) for row in self.rows)
        parts = [text] if text else []
        if self.rows and not slicer.mrmlScene.IsClosing():
            table, seconds = volumesTable(self.rows), time.monotonic() - self._began
            sentence = _("{done} of {count} segmented in {seconds:.0f} s; the volumes are in the table {table}.")
            parts.append(sentence.format(done=count - failed, count=count, seconds=seconds, table=table.GetName()))
            if warned := sum(bool(row.warnings) for row in self.rows):
                parts.append(_("With warnings: {count}.").format(count=warned))
            try:
                if self._folder:
                    exportCsv(table, _freePath(self._folder, table.GetName(), ".csv"))
            except UserError as error:
                parts.append(errorSentence(error))
        self._control.onEnded(" ".join(parts), failed == count > 0)


def volumesTable(rows: Sequence[BatchRow]):
    """A table node with one row per case: its name, each segment's volume in mL, seconds, warnings, what went wrong."""
    segments = dict.fromkeys(name for row in rows for name in row.volumes)
    columns: dict[str, list] = {_("Case"): [row.name for row in rows]}
    columns |= {f"{name} (mL)": [row.volumes.get(name, math.nan) for row in rows] for name in segments}
    columns[_("Seconds")] = [row.seconds for row in rows]
    columns[_("Warnings")] = [" ".join(row.warnings) for row in rows]
    columns[_("Problem")] = [row.problem for row in rows]
    node = addTable(slicer.mrmlScene.GenerateUniqueName(_("ConResNet volumes")), columns)
    showTable(node)
    return node
