"""Segmenting many cases one after another: where they come from, the run, and the table of their volumes.

A case that fails does not stop the others. What comes from a file stays in the scene with its result, unless results
are saved to a folder. The frames of a series become one series of segmentations.
"""

import gzip
import math
import re
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.images.channels import Candidate, match_channels

from . import Loading, Messages
from .Processes import callLater
from .SegmentationRun import RunListener, SegmentationOutcome, SegmentationTask

_SERIES = (".seq.nrrd", ".seq.nhdr")
_FILE_ATTRIBUTE = "ConResNet.File"
_NIFTI = (".nii", ".nii.gz")


class BatchCase:
    """One case: its volumes are in the scene between `open` and `close`.

    Args:
        name: the name in the table.
        maps: whether maps are wanted, too.
    """

    maps = True

    def __init__(self, name: str):
        self.name = name

    def open(self) -> list:
        """The volume nodes, one per channel. Raises UserError or RuntimeError."""
        raise NotImplementedError

    def close(self, outcome: SegmentationOutcome | None, folder: Path | None) -> None:
        """Keep the result, None if it failed, in the scene or in a folder. Raises UserError."""
        if outcome and folder:
            _save(outcome.segmentationNode, folder, self.name, ".seg.nrrd")
            _remove(outcome.segmentationNode, *outcome.mapNodes)


class SceneCase(BatchCase):
    """Volumes that are in the scene already."""

    def __init__(self, nodes: Sequence):
        super().__init__(", ".join(node.GetName() for node in nodes))
        self._nodes = list(nodes)

    def open(self) -> list:
        return self._nodes


class FileCase(BatchCase):
    """Image files, or a DICOM folder, one per channel."""

    def __init__(self, name: str, paths: Sequence[Path]):
        super().__init__(name)
        self._paths, self._nodes = paths, []

    def open(self) -> list:
        self._nodes = Loading.loadImages([str(path) for path in self._paths])
        return self._nodes

    def close(self, outcome: SegmentationOutcome | None, folder: Path | None) -> None:
        super().close(outcome, folder)
        if folder:
            _remove(*self._nodes)


class IncompleteCase(BatchCase):
    """Image files among which a channel is missing."""

    def __init__(self, name: str, folder: Path, channels: Sequence[str]):
        super().__init__(name)
        self._values = {"folder": str(folder), "channels": ", ".join(channels)}

    def open(self) -> list:
        raise UserError("batch-channels-missing", **self._values)


class FrameCase(BatchCase):
    """One frame of a series."""

    maps = False

    def __init__(self, series: "Series", number: int):
        super().__init__(f"{series.node.GetName()} [{series.node.GetNthIndexValue(number)}]")
        self._series, self._number, self._volume = series, number, None

    def open(self) -> list:
        volume = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
        volume.UnRegister(None)
        volume.CopyContent(self._series.node.GetNthDataNode(self._number))
        volume.SetName(self.name)
        # Selectors must not offer it, nor choose it.
        volume.SetHideFromEditors(True)
        self._volume = slicer.mrmlScene.AddNode(volume)
        proxy = self._series.proxy
        volume.SetAndObserveTransformNodeID(proxy.GetTransformNodeID() if proxy else None)
        return [volume]

    def close(self, outcome: SegmentationOutcome | None, folder: Path | None) -> None:
        if outcome:
            self._series.addResult(self._number, outcome.segmentationNode)
        super().close(outcome, folder)
        _remove(self._volume, *([outcome.segmentationNode] if outcome else []))


class Series:
    """The frames of a sequence node, and the sequence of their segmentations."""

    def __init__(self, node):
        self.node, self._results = node, None
        browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
        self._browser = next((one for one in browsers if one.IsSynchronizedSequenceNode(node, True)), None)

    @property
    def proxy(self):
        """The volume in which the frames are shown; None if they are not."""
        return self._browser.GetProxyNode(self.node) if self._browser else None

    def cases(self) -> list[BatchCase]:
        """One per frame."""
        return [FrameCase(self, number) for number in range(self.node.GetNumberOfDataNodes())]

    def addResult(self, number: int, segmentationNode) -> None:
        """Add the segmentation of a frame to the sequence of results, which is shown with the frames."""
        if self._results is None or not slicer.mrmlScene.IsNodePresent(self._results):
            name = _("{series} segmentation").format(series=self.node.GetName())
            name = slicer.mrmlScene.GenerateUniqueName(name)
            self._results = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
            self._results.SetIndexName(self.node.GetIndexName())
            self._results.SetIndexUnit(self.node.GetIndexUnit())
            if self._browser:
                self._browser.AddSynchronizedSequenceNodeID(self._results.GetID())
        self._results.SetDataNodeAtValue(segmentationNode, self.node.GetNthIndexValue(number))


@dataclass(frozen=True)
class BatchEntry:
    """A row of the panel's list: a case, or a series of several.

    Args:
        key: stays the same when the list is made anew.
        title: what the user reads.
        cases: makes the cases when it is their turn. Raises RuntimeError if a series cannot be read.
    """

    key: str
    title: str
    cases: Callable[[], list[BatchCase]]


def sceneEntries(inputs: Sequence, volumeNodes: Sequence, group: Callable[[object], object]) -> list[BatchEntry]:
    """What a model can segment in the scene: its volumes, or complete groups of them, and its series.

    Args:
        inputs: the model's.
        volumeNodes: the volumes to choose from.
        group: tells which volumes belong to one patient.
    """
    series = [Series(node) for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if _hasVolumes(node)]
    if len(inputs) == 1:
        # What shows the frames of a series is not a volume of its own.
        proxies = [one.proxy for one in series]
        chosen = [[node] for node in volumeNodes if node not in proxies]
    else:
        chosen = []
        for members in _grouped(volumeNodes, group):
            found = match_channels(inputs, [Candidate(node.GetName()) for node in members])
            chosen += [] if None in found else [[members[place] for place in found]]
    entries = [_entry(",".join(node.GetID() for node in nodes), SceneCase(nodes)) for nodes in chosen]
    for one in series if len(inputs) == 1 else ():
        title = _("{name} ({count} frames)").format(name=one.node.GetName(), count=one.node.GetNumberOfDataNodes())
        entries.append(BatchEntry(one.node.GetID(), title, one.cases))
    return entries


def _hasVolumes(sequenceNode) -> bool:
    return sequenceNode.GetNumberOfDataNodes() > 0 and sequenceNode.GetNthDataNode(0).IsA("vtkMRMLScalarVolumeNode")


def fileEntries(inputs: Sequence, paths: Sequence[Path], root: Path) -> list[BatchEntry]:
    """The cases among image files and DICOM folders; for several channels, those of one folder are a case.

    Args:
        inputs: the model's.
        paths: what `imagesIn` has found.
        root: names are relative to it.
    """
    if len(inputs) == 1:
        return [_fileEntry(path, _withoutSuffix(path.relative_to(root).as_posix())) for path in paths]
    entries = []
    for members in _grouped(paths, lambda path: path.parent):
        folder = members[0].parent
        name = folder.name if folder == root else folder.relative_to(root).as_posix()
        found = match_channels(inputs, [Candidate(path.name) for path in members])
        missing = [item.name for item, place in zip(inputs, found, strict=True) if place is None]
        if missing:
            entries.append(_entry(str(folder), IncompleteCase(name, folder, missing)))
        else:
            entries.append(_entry(str(folder), FileCase(name, [members[place] for place in found])))
    return entries


def _fileEntry(path: Path, name: str) -> BatchEntry:
    if not isSeries(path):
        return _entry(str(path), FileCase(name, [path]))
    title = _("{name} (series)").format(name=name)
    return BatchEntry(str(path), title, lambda: Series(_readSeries(path)).cases())


def _entry(key: str, case: BatchCase) -> BatchEntry:
    return BatchEntry(key, case.name, lambda: [case])


def imagesIn(folder: Path) -> list[Path]:
    """The image files in a folder and those below it, and folders with DICOM files, in order."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    series = dict.fromkeys(path.parent for path in files if path.suffix.casefold() == ".dcm")
    return [path for path in files if _isImage(path.name)] + list(series)


def isSeries(path: Path) -> bool:
    """Whether a file has several frames, by its header or name."""
    name = path.name.casefold()
    if name.endswith(_SERIES):
        return True
    if not name.endswith(_NIFTI):
        return False
    try:
        with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
            header = file.read(348)
        # Field "dim" of a NIfTI-1 header in the computer's order, or the other one.
        order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
        count, *sides = struct.unpack_from(f"{order}8h", header, 40)
    except (OSError, EOFError, struct.error):
        # It fails when it is loaded, with a sentence.
        return False
    return count >= 4 and sides[3] > 1


def _isImage(name: str) -> bool:
    endings = [pattern.removeprefix("*") for pattern in Loading.IMAGES]
    return name.casefold().endswith(tuple(endings))


def _withoutSuffix(name: str) -> str:
    endings = sorted([*_SERIES, *(pattern.removeprefix("*") for pattern in Loading.IMAGES)], key=len, reverse=True)
    ending = next((one for one in endings if name.casefold().endswith(one)), "")
    return name[: len(name) - len(ending)]


def _readSeries(path: Path):
    """A 4-D file as a sequence node with a browser, as Slicer loads it; if it was read before, that one."""
    for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode"):
        if node.GetAttribute(_FILE_ATTRIBUTE) == str(path):
            return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", _withoutSuffix(path.name))
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(path))
    isRead = storage.ReadData(node) and _hasVolumes(node)
    slicer.mrmlScene.RemoveNode(storage)
    if not isRead:
        slicer.mrmlScene.RemoveNode(node)
        raise UserError("series-unreadable", path=str(path))
    node.SetAttribute(_FILE_ATTRIBUTE, str(path))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{node.GetName()} browser")
    browser.SetAndObserveMasterSequenceNodeID(node.GetID())
    return node


def _grouped(items: Sequence, group: Callable[[object], object]) -> Iterator[list]:
    groups: dict = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    yield from groups.values()


def _save(node, folder: Path, name: str, suffix: str) -> None:
    """Save a node to a file that does not exist yet."""
    stem = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]+', "_", name).strip(" ._") or "result"
    names = (stem, *(f"{stem} {number}" for number in range(2, 10_000)))
    path = next(path for one in names if not (path := folder / f"{one}{suffix}").exists())
    if not folder.is_dir() or not slicer.util.saveNode(node, str(path)):
        raise UserError("result-not-saved", path=str(path))


def _remove(*nodes) -> None:
    for node in nodes:
        if node is not None and slicer.mrmlScene.IsNodePresent(node):
            slicer.mrmlScene.RemoveNode(node)


@dataclass
class BatchRow:
    """What became of a case."""

    name: str
    volumes: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    problem: str = ""


class BatchRun(RunListener):
    """Segments the cases of several entries one after another.

    Args:
        entries: what to segment.
        task: the choices; its volumes are those of each case.
        segment: starts a task, with a listener.
        control: told of progress, lines for the log, and the end.
        onEntry: called with an entry's key and a sentence each time something is known about it.
        folder: where results are saved. Defaults to the scene.
    """

    def __init__(
        self,
        entries: Sequence[BatchEntry],
        task: SegmentationTask,
        segment: Callable[[SegmentationTask, RunListener], object],
        control,
        onEntry: Callable[[str, str], None],
        folder: Path | None = None,
    ):
        self._entries, self._task, self._segment = list(entries), task, segment
        self._control, self._onEntry, self._folder = control, onEntry, folder
        self._number = -1
        self._cases: deque[BatchCase] = deque()
        self._count = 0
        self._case: BatchCase | None = None
        self._run = None
        self._isOver = False
        self._began = time.monotonic()
        self.rows: list[BatchRow] = []
        self._entryRows: list[BatchRow] = []
        callLater(self._next)

    def cancel(self) -> None:
        """Stop; finished cases keep their results."""
        if self._run:
            self._run.cancel()
        elif not self._isOver:
            self.onCancelled()

    def onProgress(self, text: str, fraction: float) -> None:
        done = (self._count - len(self._cases) - 1 + fraction) / max(self._count, 1)
        where = _("{number} of {count}, {name}").format(
            number=self._number + 1, count=len(self._entries), name=self._case.name
        )
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
            self._case.close(None, self._folder)
        self._end(_("Canceled."))

    def _close(self, row: BatchRow, outcome: SegmentationOutcome | None) -> None:
        self._run = None
        try:
            self._case.close(outcome, self._folder)
        except UserError as error:
            row.problem = Messages.sentence(error)
        self._case = None
        self._note(row)
        callLater(self._next)

    def _note(self, row: BatchRow) -> None:
        self.rows.append(row)
        self._entryRows.append(row)
        if row.problem:
            self._control.log(f"{row.name}: {row.problem}")
        self._onEntry(self._entries[self._number].key, self._summary())

    def _summary(self) -> str:
        """What the list says about the current entry."""
        rows = self._entryRows
        if self._count <= 1 and len(rows) == 1:
            return rows[0].problem or ", ".join(f"{name} {size:.2f} mL" for name, size in rows[0].volumes.items())
        done = sum(not row.problem for row in rows)
        problem = next((row.problem for row in rows if row.problem), "")
        text = _("{done} of {count} frames segmented.").format(done=done, count=self._count)
        return f"{text} {problem}".strip()

    def _next(self) -> None:
        if self._isOver:
            return
        if not self._cases and not self._nextEntry():
            return
        case = self._case = self._cases.popleft()
        self.onProgress(_("Reading the images"), 0.0)
        try:
            nodes = tuple(case.open())
            options = self._task.options if case.maps else replace(self._task.options, maps=())
            self._run = self._segment(replace(self._task, volumeNodes=nodes, options=options), self)
        except UserError as error:
            self.onFailed(Messages.sentence(error), "")
        except RuntimeError as error:
            self.onFailed(str(error), "")
        except Exception:
            self.onFailed(_("The segmentation could not be started; see the log."), traceback.format_exc())

    def _nextEntry(self) -> bool:
        """Go to the next entry; False if there is none, or if it has no cases and another turn is needed."""
        self._number += 1
        if self._number == len(self._entries):
            self._end("")
            return False
        entry = self._entries[self._number]
        self._entryRows = []
        try:
            cases = entry.cases()
        except UserError as error:
            self._count = 0
            self._note(BatchRow(entry.title, problem=Messages.sentence(error)))
            callLater(self._next)
            return False
        self._cases, self._count = deque(cases), len(cases)
        return bool(cases) or self._nextEntry()

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
                _save(table, self._folder, table.GetName(), ".csv")
            except UserError as error:
                return [Messages.sentence(error)]
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
