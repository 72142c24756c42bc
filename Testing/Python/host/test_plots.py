"""Plot views: a layout creates the views it needs, they persist, and their plots follow the nodes."""

import numpy as np
import slicer


def color_share(picture, color):
    """Share of a picture, (height, width, 3), whose color is close to ``color``, 0 to 255."""
    return float((np.abs(picture.astype(int) - color).max(axis=2) < 60).mean())


def test_slicer_util_plot_shows_a_chart_in_a_plot_layout(slicer_app):
    manager = slicer_app.layoutManager()
    assert manager.plotViewCount == 0 and manager.plotWidget(0) is None
    before = manager.layout
    points = np.column_stack([np.arange(20.0), np.linspace(2, 1, 20)])
    chart = slicer.util.plot(points, xColumnIndex=0, columnNames=["step", "loss"])
    assert manager.layout != before and manager.plotViewCount == 1
    widget = manager.plotWidget(0)
    assert widget.mrmlPlotViewNode().GetPlotChartNode() is chart
    # As in Slicer, where each view node of the scene keeps its view, shown or not.
    manager.setLayout(before)
    assert manager.plotViewCount == 1 and manager.plotWidget(0) is widget


def test_plot_is_drawn_from_its_nodes_and_follows_changes(slicer_app):
    manager = slicer_app.layoutManager()
    points = np.column_stack([np.arange(20.0), np.linspace(2, 1, 20)])
    nodes = {}
    chart = slicer.util.plot(points, xColumnIndex=0, columnNames=["step", "loss"], nodes=nodes)
    series = nodes["series"][0]
    series.SetColor(1, 0, 0)
    series.SetLineWidth(4)
    view = manager.plotWidget(0).plotView()
    before = view.image(300, 200)
    assert color_share(before, (255, 0, 0)) > 0.005
    series.SetColor(0, 0, 1)
    after = view.image(300, 200)
    assert color_share(after, (0, 0, 255)) > 0.005 and color_share(after, (255, 0, 0)) < 0.001
    chart.SetTitle("Loss")
    assert view.chart().GetTitle() == "Loss"
    chart.RemoveAllPlotSeriesNodeIDs()
    assert color_share(view.image(300, 200), (0, 0, 255)) < 0.001


def test_custom_layout_has_the_views_it_describes(slicer_app):
    manager = slicer_app.layoutManager()
    view = '<item><view class="vtkMRMLPlotViewNode" singletontag="{0}"/></item>'
    description = f'<layout type="vertical">{view.format("First")}{view.format("Second")}</layout>'
    manager.layoutLogic().GetLayoutNode().AddLayoutDescription(7001, description)
    manager.setLayout(7001)
    tags = [manager.plotWidget(number).mrmlPlotViewNode().GetSingletonTag() for number in range(manager.plotViewCount)]
    assert tags == ["First", "Second"]
    manager.setLayout(4711)
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView
