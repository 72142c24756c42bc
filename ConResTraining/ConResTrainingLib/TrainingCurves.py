"""The curves of a run in Slicer's plot views: one chart for the losses and one for Dice, each with a table and series.

The nodes are not saved with the scene, since the run's folder contains the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from conresnet_training.runs import Progress
from ConResSegmentationLib.Widgets import ViewLayout

CURVES_ATTRIBUTE = "ConResNet.Curves"
_EXTENT_ATTRIBUTE = "ConResNet.CurvesExtent"
_VIEWS = {"loss": "ConResLoss", "dice": "ConResDice"}
_LAYOUT_DESCRIPTION = '<layout type="vertical">{}</layout>'.format(
    "".join(
        f'<item><view class="vtkMRMLPlotViewNode" singletontag="{tag}">'
        f'<property name="viewlabel" action="default">{tag[6]}</property></view></item>'
        for tag in _VIEWS.values()
    )
)
layout = ViewLayout(5127, lambda: _LAYOUT_DESCRIPTION)
# Black for the total, then colors that color-blind people can distinguish (Okabe and Ito).
_COLORS = (
    (0.0, 0.0, 0.0),
    (0.0, 0.45, 0.70),
    (0.84, 0.37, 0.0),
    (0.0, 0.62, 0.45),
    (0.80, 0.47, 0.65),
    (0.90, 0.62, 0.0),
    (0.34, 0.71, 0.91),
)


def update(name: str, progress: Progress) -> None:
    """Show the progress of a run of this name in the nodes of the charts, which are created if needed."""
    parts = {
        "loss": _("Loss"),
        "segmentation_loss": _("Segmentation"),
        "residual_loss": _("Residual"),
        "auxiliary_loss": _("Auxiliary classifiers"),
        "boundary_loss": _("Boundary"),
    }
    points = progress.points
    there = [key for key in parts if any(point.get(key) is not None for point in points)] or ["loss"]
    columns = {parts[key]: [point.get(key) for point in points] for key in there}
    title = _("Loss of {name}").format(name=name)
    _fill("loss", title, _("Loss"), [point["step"] for point in points], columns, progress.steps)
    validations = progress.validations
    segments = (progress.started or {}).get("segments", [])
    columns = {_("Mean"): [point.get("dice") for point in validations]}
    for segment in segments:
        column = segment
        while column in columns or column == _("Step") or (column != segment and column in segments):
            column = _("{name} (segment)").format(name=column)
        columns[column] = [point.get("dice_a_segment", {}).get(segment) for point in validations]
    title = _("Dice of {name} on the held-out cases").format(name=name)
    _fill("dice", title, _("Dice"), [point["step"] for point in validations], columns, progress.steps)


def updateFolds(name: str, folds: Mapping[int, Progress]) -> None:
    """Show a cross-validation in the same charts: the loss and the mean Dice of each fold, by its number."""
    last = max((progress.steps for progress in folds.values()), default=0)
    for kind, key, title, yTitle in (
        ("loss", "loss", _("Loss of {name} by fold"), _("Loss")),
        ("dice", "dice", _("Mean Dice of {name} by fold, on the held-out cases"), _("Dice")),
    ):
        points = {number: fold.points if kind == "loss" else fold.validations for number, fold in folds.items()}
        values = {number: {point["step"]: point.get(key) for point in of} for number, of in points.items()}
        # All folds report at the same steps; those that one has not reached yet are gaps at the end of its curve.
        steps = sorted({step for of in values.values() for step in of})
        columns = {_("Fold {number}").format(number=n): [of.get(step) for step in steps] for n, of in values.items()}
        _fill(kind, title.format(name=name), yTitle, steps, columns, last)


def charts() -> dict[str, object]:
    """The chart nodes of this scene by "loss" and "dice"."""
    return {kind: node for kind in _VIEWS if (node := _find("vtkMRMLPlotChartNode", kind)) is not None}


def viewNodes() -> dict[str, object]:
    """The nodes of the curves' plot views by "loss" and "dice"; the layout creates them when it is first used."""
    # Slicer's layout manager would also list its own plot views, even hidden ones.
    found = {kind: slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLPlotViewNode") for kind, tag in _VIEWS.items()}
    return {kind: node for kind, node in found.items() if node is not None}


def show() -> None:
    """Choose the curves' layout: losses above, Dice below."""
    if not layout.isPossible:
        return
    layout.show()
    for viewNode in viewNodes().values():
        # Charts of other modules do not belong here.
        viewNode.SetDoPropagatePlotChartSelection(False)
    _assignCharts()


def _assignCharts() -> None:
    nodes = charts()
    for kind, viewNode in viewNodes().items():
        chartId = nodes[kind].GetID() if kind in nodes else None
        if viewNode.GetPlotChartNodeID() != chartId:
            viewNode.SetPlotChartNodeID(chartId)


def _fill(kind: str, title: str, yTitle: str, steps: Sequence[int], columns: dict[str, list], lastStep: int) -> None:
    table = vtk.vtkTable()
    stepName = _("Step")
    for name, values in {stepName: steps, **columns}.items():
        # Values that are not a number are not drawn: the curve has a gap.
        array = numpy_support.numpy_to_vtk(np.array(values, dtype=float), deep=True)
        array.SetName(name)
        table.AddColumn(array)
    tableNode = _findOrMake("vtkMRMLTableNode", kind)
    tableNode.SetAndObserveTable(table)
    chart = _findOrMake("vtkMRMLPlotChartNode", kind)
    with slicer.util.NodeModify(chart):
        chart.SetTitle(title)
        # The legend covers part of the curves.
        chart.SetLegendFontSize(12)
        chart.SetXAxisTitle(stepName)
        chart.SetYAxisTitle(yTitle)
        # The user's zoom is kept as long as the run is the same.
        extent = f"{title} {lastStep}"
        isNew = chart.GetAttribute(_EXTENT_ATTRIBUTE) != extent
        chart.SetAttribute(_EXTENT_ATTRIBUTE, extent)
        if isNew:
            chart.SetXAxisRangeAuto(lastStep <= 0)
            chart.SetXAxisRange(0, max(lastStep, 1))
        if isNew and kind == "dice":
            chart.SetYAxisRangeAuto(False)
            chart.SetYAxisRange(0, 1)
        _setSeries(chart, tableNode, stepName, list(columns), hasMarkers=kind == "dice")
    # Observers of the node do not notice new content of its table.
    tableNode.Modified()
    _assignCharts()


def _setSeries(chart, tableNode, stepName: str, names: list[str], hasMarkers: bool) -> None:
    series = [chart.GetNthPlotSeriesNode(number) for number in range(chart.GetNumberOfPlotSeriesNodes())]
    if [node.GetYColumnName() for node in series if node is not None] == names:
        return
    chart.RemoveAllPlotSeriesNodeIDs()
    for node in filter(None, series):
        slicer.mrmlScene.RemoveNode(node)
    for number, name in enumerate(names):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", name)
        node.SetSaveWithScene(False)
        node.SetAndObserveTableNodeID(tableNode.GetID())
        node.SetXColumnName(stepName)
        node.SetYColumnName(name)
        node.SetPlotType(node.PlotTypeScatter)
        node.SetColor(*_COLORS[number % len(_COLORS)])
        node.SetLineWidth(3 if number == 0 else 2)
        node.SetMarkerStyle(node.MarkerStyleCircle if hasMarkers else node.MarkerStyleNone)
        node.SetMarkerSize(6)
        chart.AddAndObservePlotSeriesNodeID(node.GetID())


def _findOrMake(className: str, kind: str):
    node = _find(className, kind)
    if node is None:
        names = {"loss": _("Training loss"), "dice": _("Training Dice")}
        node = slicer.mrmlScene.AddNewNodeByClass(className, names[kind])
        node.SetAttribute(CURVES_ATTRIBUTE, kind)
        node.SetSaveWithScene(False)
        # Otherwise Slicer would ask to save the table whenever the user closes a scene.
        node.SetHideFromEditors(node.IsA("vtkMRMLStorableNode"))
    return node


def _find(className: str, kind: str):
    nodes = slicer.util.getNodesByClass(className)
    return next((node for node in nodes if node.GetAttribute(CURVES_ATTRIBUTE) == kind), None)
