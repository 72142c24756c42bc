"""Plot views rendered without a window: VTK draws the chart of a view node, as in Slicer's plot view."""

from __future__ import annotations

import slicer
import vtk

from .views import OffscreenView

_Series = slicer.vtkMRMLPlotSeriesNode
_LINES = {
    _Series.LineStyleNone: vtk.vtkPen.NO_PEN,
    _Series.LineStyleSolid: vtk.vtkPen.SOLID_LINE,
    _Series.LineStyleDash: vtk.vtkPen.DASH_LINE,
    _Series.LineStyleDot: vtk.vtkPen.DOT_LINE,
    _Series.LineStyleDashDot: vtk.vtkPen.DASH_DOT_LINE,
    _Series.LineStyleDashDotDot: vtk.vtkPen.DASH_DOT_DOT_LINE,
}
_MARKERS = {
    _Series.MarkerStyleNone: vtk.vtkPlotPoints.NONE,
    _Series.MarkerStyleCross: vtk.vtkPlotPoints.CROSS,
    _Series.MarkerStylePlus: vtk.vtkPlotPoints.PLUS,
    _Series.MarkerStyleSquare: vtk.vtkPlotPoints.SQUARE,
    _Series.MarkerStyleCircle: vtk.vtkPlotPoints.CIRCLE,
    _Series.MarkerStyleDiamond: vtk.vtkPlotPoints.DIAMOND,
}


class PlotView(OffscreenView):
    """Shows the chart of its view node: lines and points with legend and titles."""

    def __init__(self, node: object, application_logic: object) -> None:
        super().__init__(application_logic)
        self._view_node = node

    def mrmlPlotViewNode(self) -> object:
        return self._view_node

    def chart(self) -> object:
        """The VTK chart, updated from the nodes."""
        self._start()
        self._update()
        return self._chart

    def fitToContent(self) -> None:
        """Do nothing, because the axes always show everything, unless the chart node sets a range."""

    def _start(self) -> None:
        if self._window is not None:
            return
        view = vtk.vtkContextView()
        view.GetRenderer().SetBackground(1, 1, 1)
        self._chart = vtk.vtkChartXY()
        view.GetScene().AddItem(self._chart)
        self._context_view, self._window = view, view.GetRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)

    def _prepare(self, width: int, height: int) -> None:
        self._update()

    def _update(self) -> None:
        chart, node = self._chart, self._view_node.GetPlotChartNode()
        chart.ClearPlots()
        if node is None:
            chart.SetTitle("")
            return
        for number in range(node.GetNumberOfPlotSeriesNodes()):
            _add_plot(chart, node.GetNthPlotSeriesNode(number))
        chart.SetTitle((node.GetTitle() or "") if node.GetTitleVisibility() else "")
        chart.GetTitleProperties().SetFontSize(node.GetTitleFontSize())
        chart.SetShowLegend(bool(node.GetLegendVisibility()))
        chart.GetLegend().SetLabelSize(node.GetLegendFontSize())
        sides = (
            (vtk.vtkAxis.BOTTOM, node.GetXAxisTitle(), node.GetXAxisTitleVisibility(), node.GetXAxisRangeAuto()),
            (vtk.vtkAxis.LEFT, node.GetYAxisTitle(), node.GetYAxisTitleVisibility(), node.GetYAxisRangeAuto()),
        )
        for side, title, is_shown, is_auto in sides:
            axis = chart.GetAxis(side)
            axis.SetTitle((title or "") if is_shown else "")
            axis.GetTitleProperties().SetFontSize(node.GetAxisTitleFontSize())
            axis.GetLabelProperties().SetFontSize(node.GetAxisLabelFontSize())
            axis.SetGridVisible(bool(node.GetGridVisibility()))
            axis.SetBehavior(vtk.vtkAxis.AUTO if is_auto else vtk.vtkAxis.FIXED)
            if not is_auto:
                axis.SetRange(*(node.GetXAxisRange() if side == vtk.vtkAxis.BOTTOM else node.GetYAxisRange()))
        chart.RecalculateBounds()


def _add_plot(chart: object, series: object) -> None:
    """Add a series as lines and points, as in Slicer; nothing if a column is missing in its table."""
    table_node = series.GetTableNode()
    table = table_node.GetTable() if table_node is not None else None
    names = (series.GetXColumnName(), series.GetYColumnName()) if table is not None else ()
    if not names or table.GetNumberOfRows() == 0 or None in map(table.GetColumnByName, names):
        return
    plot = chart.AddPlot(vtk.vtkChart.LINE)
    plot.SetInputData(table, *names)
    plot.SetColorF(*series.GetColor())
    plot.SetWidth(series.GetLineWidth())
    plot.SetLabel(series.GetName())
    plot.GetPen().SetLineType(_LINES[series.GetLineStyle()])
    plot.GetPen().SetOpacityF(series.GetOpacity())
    plot.SetMarkerStyle(_MARKERS[series.GetMarkerStyle()])
    plot.SetMarkerSize(series.GetMarkerSize())


class PlotWidget:
    """A plot view with its controller."""

    def __init__(self, view: PlotView) -> None:
        self._view = view

    def plotView(self) -> PlotView:
        return self._view

    def mrmlPlotViewNode(self) -> object:
        return self._view.mrmlPlotViewNode()
