"""The report of a result as a web page, made in Slicer's process from what is in the scene."""

import json
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from conresnet.errors import UserError
from conresnet.images.grid import Volume

from . import ResultOrigin, ResultParts, Review, SceneInputs

_REPORT_ATTRIBUTE = "ConResNet.Report"
_STATISTICS_OF_A_CHANNEL = "mean_intensity "


def keep(segmentationNode, report: dict) -> None:
    """Store the engine's report of a result in the scene; its lists become tables, see ``Review.put``."""
    kept = {key: value for key, value in report.items() if key != "statistics"}
    kept["review"] = {key: value for key, value in (report.get("review") or {}).items() if key != "rows"}
    segmentationNode.SetAttribute(_REPORT_ATTRIBUTE, json.dumps(kept))


def isPossible(segmentationNode) -> bool:
    """Whether there is enough about a result for a report."""
    return (
        segmentationNode is not None
        and bool(segmentationNode.GetAttribute(_REPORT_ATTRIBUTE))
        and Review.tableOf(segmentationNode, Review.STATISTICS) is not None
    )


def write(segmentationNode, path: Path) -> Iterator[None]:
    """Write the page with the current 3D view, in steps between which Slicer can handle events.

    Raises:
        UserError: the model, the volume or the segmentation is no longer there, or the file cannot be written.
    """
    # They import SimpleITK, which takes time when Slicer starts.
    from conresnet.inference.labels import packed_size
    from conresnet.package import read_package
    from conresnet.package.store import find_model
    from conresnet.report import write_in_steps

    volumeNode = segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())
    if volumeNode is None:
        raise UserError("input-removed", name=segmentationNode.GetName())
    package = read_package(find_model(_modelOf(segmentationNode)), verify=False)
    report, surfaces = _report(segmentationNode), _pictureOf3D()
    yield
    output = package.description.located_output if "located" in report else package.description.output
    channel = SceneInputs.volumeInput(volumeNode)
    labels, regions = np.zeros(channel.array.shape, np.uint8), None
    if output.kind == "regions":
        regions = np.zeros((packed_size(len(output.segments)), *labels.shape), np.uint8)
    for index, item in enumerate(output.segments):
        if segmentationNode.GetScene() is None:
            raise UserError("result-removed", name=segmentationNode.GetName())
        mask = _mask(segmentationNode, f"Segment_{item.label}", volumeNode)
        labels[mask] = item.label
        if regions is not None:
            regions[index // 8] |= mask.astype(np.uint8) << np.uint8(index % 8)
        yield
    maps = yield from _maps(segmentationNode, volumeNode)
    channels = {package.description.inputs[0].name: channel}
    shown = package, Volume(labels, channel.grid, ""), channels, maps, report
    yield from write_in_steps(path, *shown, regions=regions, output=output, surfaces=surfaces)


def _modelOf(segmentationNode) -> str:
    name, _space, _version = (segmentationNode.GetAttribute(ResultOrigin.MODEL_ATTRIBUTE) or "").rpartition(" ")
    return name


def _mask(segmentationNode, segmentId: str, volumeNode) -> np.ndarray:
    if segmentationNode.GetSegmentation().GetSegment(segmentId) is None:
        return np.zeros(slicer.util.arrayFromVolume(volumeNode).shape, bool)
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segmentId, volumeNode) != 0


def _report(segmentationNode) -> dict:
    report = json.loads(segmentationNode.GetAttribute(_REPORT_ATTRIBUTE))
    if not ResultOrigin.isUntouched(segmentationNode):
        edited = _(
            "The segmentation was edited after it was computed. The pictures show it as edited; the figures and the "
            "places worth checking are those from before."
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
        for row in Review.rowsOf(Review.tableOf(segmentationNode, Review.STATISTICS))
    ]
    tableNode = Review.tableOf(segmentationNode, Review.REVIEW)
    if tableNode is None:
        del report["review"]
    else:
        report["review"]["rows"] = Review.rowsOf(tableNode)
    return report


def _maps(segmentationNode, volumeNode) -> Generator[None, None, dict[str, np.ndarray]]:
    """The maps by kind, [c, k, j, i] on the voxels of the volume; in the scene they are cropped."""
    nodes = ResultParts.mapNodes(segmentationNode)
    counts = Counter(node.GetAttribute(ResultParts.MAP_ATTRIBUTE) for node in nodes)
    shape = slicer.util.arrayFromVolume(volumeNode).shape
    maps = {kind: np.zeros((count, *shape), np.float16) for kind, count in counts.items()}
    rasToIjk = vtk.vtkMatrix4x4()
    volumeNode.GetRASToIJKMatrix(rasToIjk)
    for node in reversed(nodes):
        kind, values = node.GetAttribute(ResultParts.MAP_ATTRIBUTE), slicer.util.arrayFromVolume(node)
        counts[kind] -= 1
        first = np.rint(rasToIjk.MultiplyPoint((*node.GetOrigin(), 1))[2::-1]).astype(int)
        box = tuple(slice(start, start + size) for start, size in zip(first, values.shape, strict=True))
        maps[kind][(counts[kind], *box)] = values
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
