"""What the scene keeps of the engine's report: the review list, the statistics, and what the report as a page needs."""

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from vtk.util import numpy_support

from conresnet.errors import UserError
from conresnet.files import csv_cell, replacing
from conresnet.images import Grid, Volume
from conresnet.messages import reason
from conresnet.package.outputs import Output, Segment

from . import ResultOrigin, ResultParts, SceneInputs
from .ResultParts import REVIEW, SEEN
from .Widgets import nameOf, volumeOf

STATISTICS = "statistics"
# What a table must have; the statistics also have the means of the channels.
_COLUMNS = {
    REVIEW: ("rank kind segment slice r a s expected_wrong_voxels expected_dice reason " + SEEN).split(),
    STATISTICS: "segment voxels volume_ml surface_cm2 mean_uncertainty".split(),
}
NOTE_ATTRIBUTE = "ConResNet.ReviewNote"
_REPORT_ATTRIBUTE = "ConResNet.Report"
# Where the volume's voxels were when the places of the list were computed.
_GRID_ATTRIBUTE = "ConResNet.ReviewGrid"
# The texts of a model card.
_CARD = ("description", "license", "attribution", "training_data", "intended_use", "limitations")
_STATISTICS_OF_A_CHANNEL = "mean_intensity "
# Field of view at a place, in mm: of a spot, and the most of a slice, which otherwise depends on the segments' size.
_SPOT_VIEW, _LARGEST_VIEW = 40.0, 160.0
_AROUND_SEGMENTS = 1.3


def keep(segmentationNode, report: dict, grid: Grid | None = None) -> None:
    """Keep the engine's report of a result in the scene, with its lists as tables, instead of the earlier report.

    The report's places are where they were while the voxels of the first volume lay on ``grid``; by default, now. They
    are stored as they are now, so that exported files, and lists whose volume is cropped or removed later, are correct.

    Tables of lists that it does not contain are removed. Places that the user has already checked off in an earlier
    list stay so.
    """
    now = _gridOf(volumeOf(segmentationNode))
    seen = _seenPlaces(segmentationNode)
    for kind in (REVIEW, STATISTICS):
        ResultParts.remove(ResultParts.parts(segmentationNode, kind))
    review = report.get("review") or {}
    if review.get("rows"):
        places = _moved(review["rows"], grid, now)
        rows = [_listed(row, place, seen) for row, place in zip(review["rows"], places, strict=True)]
        node = _addPart(segmentationNode, REVIEW, _("{segmentation} review list"), rows)
        note = review.get("note")
        node.SetAttribute(NOTE_ATTRIBUTE, _(note) if note else "")
    # They come back with the next list.
    hidden = json.dumps(sorted(seen, key=repr)) if seen and not review.get("rows") else None
    segmentationNode.SetAttribute(ResultParts.SEEN_ATTRIBUTE, hidden)
    if report.get("statistics"):
        rows = [_statistics(row) for row in report["statistics"]]
        _addPart(segmentationNode, STATISTICS, _("{segmentation} statistics"), rows)
    kept = {key: value for key, value in report.items() if key != "statistics"}
    kept["review"] = {key: value for key, value in review.items() if key != "rows"}
    segmentationNode.SetAttribute(_REPORT_ATTRIBUTE, json.dumps(kept))
    segmentationNode.SetAttribute(_GRID_ATTRIBUTE, json.dumps(now.to_dict()) if now else None)


def _gridOf(volumeNode) -> Grid | None:
    """Where a volume's voxels are in the world; None without a volume, or under a transform that is not linear."""
    if volumeNode is not None and volumeNode.GetImageData() is not None:
        with contextlib.suppress(UserError):
            return SceneInputs.gridOf(volumeNode)
    return None


def tableOf(segmentationNode, kind: str):
    """The table of a result: its ``REVIEW`` list or its ``STATISTICS``; None if it has none.

    A table from which the user has removed a column in the Tables module does not count.
    """

    def isComplete(table) -> bool:
        return all(table.GetColumnByName(name) is not None for name in _COLUMNS[kind])

    found = ResultParts.parts(segmentationNode, kind) if segmentationNode else ()
    return next((node for node in found if isComplete(node.GetTable())), None)


def rowsOf(tableNode) -> list[dict]:
    """The rows of a table by column; numbers that are missing are None."""
    table = tableNode.GetTable()
    columns = [table.GetColumn(number) for number in range(table.GetNumberOfColumns())]
    return [{column.GetName(): _value(column, row) for column in columns} for row in range(table.GetNumberOfRows())]


def exportCsv(tableNode, path: Path) -> None:
    """Write a table as CSV; missing numbers are empty fields. Raises UserError: "disk-full" or "cannot-write"."""
    table = tableNode.GetTable()
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([table.GetColumnName(number) for number in range(table.GetNumberOfColumns())])
        writer.writerows([_cell(value) for value in row.values()] for row in rowsOf(tableNode))


def _seenPlaces(segmentationNode) -> set[tuple]:
    tableNode, kept = tableOf(segmentationNode, REVIEW), segmentationNode.GetAttribute(ResultParts.SEEN_ATTRIBUTE)
    rows = [row for row in rowsOf(tableNode) if row[SEEN]] if tableNode else []
    places = placesOf(rows, segmentationNode)
    seen = {_placeKey(row, place) for row, place in zip(rows, places, strict=True)}
    return seen | {tuple(key) for key in json.loads(kept)} if kept else seen


def _placeKey(row: dict, place: list[float]) -> tuple:
    # A file changes the last bits of a place.
    return row["kind"], row["segment"], row["slice"], *(round(value, 1) for value in place)


def _listed(row: dict, place: list[float], seen: set[tuple]) -> dict:
    kept = {key: value for key, value in row.items() if key != "reason_codes"} | dict(zip("ras", place, strict=True))
    # An engine of another version may send other codes; its own reason is in English.
    with contextlib.suppress(KeyError):
        kept["reason"] = reason(row["reason_codes"], translate)
    return {**kept, SEEN: _placeKey(row, place) in seen}


def _statistics(row: dict) -> dict:
    means = {f"{_STATISTICS_OF_A_CHANNEL}{name}": value for name, value in row["mean_intensity"].items()}
    flat = {key: value for key, value in row.items() if key not in ("mean_intensity", "mean_uncertainty")}
    return {**flat, **means, "mean_uncertainty": row["mean_uncertainty"]}


def _addPart(segmentationNode, kind: str, title: str, rows: list[dict]):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    node = addTable(title.format(segmentation=nameOf(segmentationNode)), columns)
    ResultParts.add(segmentationNode, node, kind)
    return node


def addTable(name: str, columns: dict[str, list]):
    """Add a table node to the scene, with columns by title; numbers that are missing are None."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    node.SetUseColumnTitleAsColumnHeader(True)
    kinds = {bool: vtk.vtkBitArray, int: vtk.vtkIntArray, str: vtk.vtkStringArray}
    with slicer.util.NodeModify(node):
        for title, values in columns.items():
            # The first number tells the type; a missing one is no number.
            known = next((value for value in values if value is not None), 0.0)
            column = kinds.get(type(known), vtk.vtkDoubleArray)()
            column.SetName(title)
            for value in values:
                column.InsertNextValue(float("nan") if value is None else value)
            node.AddColumn(column)
    return node


def showTable(tableNode) -> None:
    slicer.app.applicationLogic().GetSelectionNode().SetActiveTableID(tableNode.GetID())
    slicer.app.applicationLogic().PropagateTableSelection()


def _value(column, row: int):
    value = column.GetValue(row)
    if column.IsA("vtkBitArray"):
        return bool(value)
    # Not a number is the only value that differs from itself.
    return None if value != value else value


def _cell(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else csv_cell(str(value))


def placesOf(rows: Sequence[dict], segmentationNode) -> list[list[float]]:
    """R, A and S in mm of places of the review list, which move with the volume."""
    kept = segmentationNode.GetAttribute(_GRID_ATTRIBUTE)
    then = Grid.from_dict(json.loads(kept)) if kept else None
    return _moved(rows, then, _gridOf(volumeOf(segmentationNode)))


def _moved(rows: Sequence[dict], then: Grid | None, now: Grid | None) -> list[list[float]]:
    places = [[row[axis] for axis in "ras"] for row in rows]
    # A cropped volume has another first voxel, in the same world. At rest, not even the last bits must change.
    if then is None or now is None or then.shape != now.shape or np.array_equal(then.affine, now.affine):
        return places
    moved = now.affine @ np.linalg.inv(then.affine)
    return [(moved @ [*place, 1])[:3].tolist() for place in places]


def goTo(row: dict, segmentationNode) -> None:
    """Show a place of the review list: slices, crosshair and field of view."""
    (place,) = placesOf([row], segmentationNode)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
    if crosshair is not None:
        if crosshair.GetCrosshairMode() == slicer.vtkMRMLCrosshairNode.NoCrosshair:
            crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowSmallBasic)
        crosshair.SetCrosshairRAS(place)
    wide = _SPOT_VIEW
    if row["kind"] == "slice":
        bounds = [0.0] * 6
        segmentationNode.GetRASBounds(bounds)
        extents = [bounds[axis + 1] - bounds[axis] for axis in (0, 2, 4)]
        wide = min(max(_AROUND_SEGMENTS * max(extents), _SPOT_VIEW), _LARGEST_VIEW)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        width, height, _depth = node.GetFieldOfView()
        scale = wide / min(width, height)
        node.SetFieldOfView(width * scale, height * scale, node.GetFieldOfView()[2])


def hasReport(segmentationNode) -> bool:
    """Whether there is enough about a result for a report."""
    return (
        segmentationNode is not None
        and bool(segmentationNode.GetAttribute(_REPORT_ATTRIBUTE))
        and tableOf(segmentationNode, STATISTICS) is not None
    )


def writeReport(segmentationNode, path: Path) -> Iterator[None]:
    """Write the page with the current 3D view, in steps between which Slicer can handle events.

    Raises:
        UserError: the model, the volume or the segmentation is no longer there, or the file cannot be written.
    """
    # They import SimpleITK, which takes time when Slicer starts.
    from conresnet.inference.labels import packed_size
    from conresnet.package.store import read_model
    from conresnet.results.report import write_in_steps

    volumeNode = volumeOf(segmentationNode)
    if volumeNode is None:
        raise UserError("report-without-volume", name=nameOf(segmentationNode))
    name, _space, version = (segmentationNode.GetAttribute(ResultOrigin.MODEL_ATTRIBUTE) or "").rpartition(" ")
    package = read_model(name, verify=False)
    _checkUnmoved(segmentationNode, volumeNode)
    report, surfaces = _keptReport(segmentationNode), _pictureOf3D()
    yield
    if version != package.description.version:
        package = _otherVersion(package, version, segmentationNode, report)
    output = package.description.output
    if "located" in report and package.description.locator:
        output = package.description.located_output
    channel = SceneInputs.volumeInput(volumeNode)
    changed = yield from ResultOrigin.changedImages(segmentationNode)
    if changed:
        names = ", ".join(item.name for number, item in enumerate(package.description.inputs) if number in changed)
        warning = _(
            "The voxels of {channels} were changed after the segmentation was computed, or this is another frame. The "
            "pictures show the current voxels; the numbers and the places worth checking are those of the original "
            "images."
        )
        report["warnings"] = [*report.get("warnings", []), warning.format(channels=names)]
    labels, regions = np.zeros(channel.array.shape, np.uint8), None
    if output.kind == "regions":
        regions = np.zeros((packed_size(len(output.segments)), *labels.shape), np.uint8)
    for index, item in enumerate(output.segments):
        if segmentationNode.GetScene() is None:
            raise UserError("result-removed", name=nameOf(segmentationNode))
        mask = _mask(segmentationNode, f"Segment_{item.label}", volumeNode)
        labels[mask] = item.label
        if regions is not None:
            regions[index // 8] |= mask.astype(np.uint8) << np.uint8(index % 8)
        yield
    maps = yield from _maps(segmentationNode, volumeNode)
    channels = {package.description.inputs[0].name: channel}
    shown = package, Volume(labels, channel.grid, ""), channels, maps, report
    yield from write_in_steps(path, *shown, regions=regions, output=output, surfaces=surfaces)


def _otherVersion(package, version: str, segmentationNode, report: dict):
    """The model version that made a result, in place of the installed one; the report gets a warning.

    It has the segments of the result, at all places where a locator has found some, but no model card and no measured
    figures.
    """
    installed = package.description
    warning = _(
        "This result was made with version {version} of the model, but version {installed} is installed now. "
        "The report leaves out the model card and the measured accuracy."
    ).format(version=version, installed=installed.version)
    report["warnings"] = [*report.get("warnings", []), warning]
    rows = report["segments"]
    output = Output(
        kind="regions" if "region_volume_ml" in rows[0] else "labels",
        segments=tuple(Segment(row["name"], row["label"], _color(segmentationNode, row["label"])) for row in rows),
        paint_order=tuple(row["name"] for row in rows),
    )
    emptied = dict.fromkeys(_CARD, "")
    package = copy(package)
    package.description = replace(
        installed, version=version, output=output, locator=None, citations=(), files={}, **emptied
    )
    return package


def _color(segmentationNode, label: int) -> tuple[int, int, int]:
    """The color of a segment; gray if it was removed."""
    segment = segmentationNode.GetSegmentation().GetSegment(f"Segment_{label}")
    return tuple(round(255 * value) for value in segment.GetColor()) if segment else (128, 128, 128)


def _checkUnmoved(segmentationNode, volumeNode) -> None:
    """Raise an error unless the result and its maps are still on the voxels of the volume."""
    grid, kept = SceneInputs.volumeInput(volumeNode).grid, segmentationNode.GetAttribute(_GRID_ATTRIBUTE)
    isThere = not kept or Grid.from_dict(json.loads(kept)).shape == grid.shape
    geometry = _geometryOf(segmentationNode)
    # Another size was chosen in the Segment Editor.
    isThere &= geometry is None or geometry.shape != grid.shape or geometry.matches(grid)
    isThere &= all(_boxIn(grid, node) is not None for node in ResultParts.mapNodes(segmentationNode))
    if not isThere:
        raise UserError("volume-moved", name=nameOf(volumeNode))


def _geometryOf(segmentationNode) -> Grid | None:
    """The grid of a segmentation in the world; None if it is unknown."""
    converter, image, ijkToRas = slicer.vtkSegmentationConverter, slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    name = converter.GetReferenceImageGeometryParameterName()
    text = segmentationNode.GetSegmentation().GetConversionParameter(name)
    if text and converter.DeserializeImageGeometry(text, image, False):
        image.GetImageToWorldMatrix(ijkToRas)
        with contextlib.suppress(UserError):
            affine = SceneInputs.linearToWorld(segmentationNode) @ slicer.util.arrayFromVTKMatrix(ijkToRas)
            return Grid(image.GetDimensions()[::-1], affine)
    return None


def _boxIn(grid: Grid, mapNode) -> tuple[slice, slice, slice] | None:
    """Which voxels of a grid a map is on; None if it is on none, or between them."""
    own = _gridOf(mapNode)
    if own is None:
        return None
    first = np.rint(np.linalg.inv(grid.array_affine) @ own.array_affine[:, 3])[:3].astype(int)
    box = tuple(slice(start, start + size) for start, size in zip(first, own.shape, strict=True))
    affine = grid.array_affine.copy()
    affine[:3, 3] = grid.to_ras(first)
    isInside = all(part.start >= 0 and part.stop <= size for part, size in zip(box, grid.shape, strict=True))
    return box if isInside and Grid.of_array(own.shape, affine).matches(own) else None


def _mask(segmentationNode, segmentId: str, volumeNode) -> np.ndarray:
    if segmentationNode.GetSegmentation().GetSegment(segmentId) is None:
        return np.zeros(slicer.util.arrayFromVolume(volumeNode).shape, bool)
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segmentId, volumeNode) != 0


def _keptReport(segmentationNode) -> dict:
    report = json.loads(segmentationNode.GetAttribute(_REPORT_ATTRIBUTE))
    if not ResultOrigin.isUntouched(segmentationNode):
        edited = _(
            "The segmentation was edited after it was computed. The pictures show the edited segmentation; the numbers "
            "and the places worth checking are those of the original result."
        )
        report["warnings"] = [*report.get("warnings", []), edited]
    report["statistics"] = [
        {
            **row,
            "mean_intensity": {
                name.removeprefix(_STATISTICS_OF_A_CHANNEL): value
                for name, value in row.items()
                if name.startswith(_STATISTICS_OF_A_CHANNEL)
            },
        }
        for row in rowsOf(tableOf(segmentationNode, STATISTICS))
    ]
    tableNode = tableOf(segmentationNode, REVIEW)
    if tableNode is None:
        del report["review"]
    else:
        rows = rowsOf(tableNode)
        places = placesOf(rows, segmentationNode)
        report["review"]["rows"] = [
            {**row, "r": r, "a": a, "s": s} for row, (r, a, s) in zip(rows, places, strict=True)
        ]
    return report


def _maps(segmentationNode, volumeNode) -> Generator[None, None, dict[str, np.ndarray]]:
    """The maps by kind, [c, k, j, i] on the voxels of the volume; in the scene they are cropped."""
    nodes = ResultParts.mapNodes(segmentationNode)
    counts = Counter(node.GetAttribute(ResultParts.MAP_ATTRIBUTE) for node in nodes)
    grid = SceneInputs.volumeInput(volumeNode).grid
    maps = {kind: np.zeros((count, *grid.shape), np.float16) for kind, count in counts.items()}
    for node in reversed(nodes):
        kind, box = node.GetAttribute(ResultParts.MAP_ATTRIBUTE), _boxIn(grid, node)
        counts[kind] -= 1
        if box is None:
            # Slicer handles events between the steps.
            raise UserError("volume-moved", name=nameOf(volumeNode))
        maps[kind][(counts[kind], *box)] = slicer.util.arrayFromVolume(node)
        yield
    return maps


def _pictureOf3D() -> bytes | None:
    """The first 3D view as a PNG file; None if it is not shown."""
    manager = slicer.app.layoutManager()
    widget = manager.threeDWidget(0) if manager is not None else None
    if widget is None or not widget.visible:
        return None
    widget.threeDView().forceRender()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(widget.threeDView().renderWindow())
    grabber.ReadFrontBufferOff()
    writer = vtk.vtkPNGWriter()
    writer.WriteToMemoryOn()
    writer.SetInputConnection(grabber.GetOutputPort())
    writer.Write()
    return numpy_support.vtk_to_numpy(writer.GetResult()).tobytes()
