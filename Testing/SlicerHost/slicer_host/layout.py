"""Stand-in for Slicer's layout manager: the Red, Yellow and Green slice views, one 3D view, plot views; no windows."""

from __future__ import annotations

import slicer

from .plots import PlotView, PlotWidget
from .views import SliceView, ThreeDView

_SLICES = {
    "Red": ("Axial", (0.9529, 0.2902, 0.2)),
    "Yellow": ("Sagittal", (0.9294, 0.8353, 0.298)),
    "Green": ("Coronal", (0.4314, 0.6902, 0.2941)),
}


class SliceController:
    """The bar above a slice view."""

    def __init__(self, logic: object) -> None:
        self._logic = logic

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()

    def setSliceVisible(self, visible: bool) -> None:
        self._logic.GetSliceNode().SetSliceVisible(visible)


class SliceWidget:
    """A slice view with its controller."""

    def __init__(self, name: str, logic: object, application_logic: object) -> None:
        self._logic, self._controller = logic, SliceController(logic)
        self._view = SliceView(name, logic, application_logic)

    def sliceLogic(self) -> object:
        return self._logic

    def mrmlSliceNode(self) -> object:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> object:
        return self._logic.GetSliceCompositeNode()

    def sliceController(self) -> SliceController:
        return self._controller

    def sliceView(self) -> SliceView:
        return self._view

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()


class ThreeDWidget:
    """The 3D view with its controller."""

    def __init__(self, view: ThreeDView) -> None:
        self._view = view

    # True in all layouts that the tests use.
    visible = True

    def threeDView(self) -> ThreeDView:
        return self._view

    def mrmlViewNode(self) -> object:
        return self._view.mrmlViewNode()


class LayoutManager:
    """Slicer's layout manager; the current layout and the nodes of its views are real MRML.

    Slicer's own slice views and the 3D view always exist. There is also a view for every other slice node and plot view
    node in the scene: a layout adds the views that it needs, and they are kept when another layout is chosen
    (qMRMLLayoutViewFactory.cxx: onViewNodeAdded, viewCount, viewWidget).
    """

    def __init__(self, application_logic: object) -> None:
        self._application_logic, self._slices, self._three_d = application_logic, {}, None
        scene = slicer.mrmlScene
        for name, (orientation, color) in _SLICES.items():
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(application_logic)
            logic.SetMRMLScene(scene)
            node = logic.AddSliceNode(name)
            node.SetLayoutLabel(name[0])
            node.SetLayoutColor(*color)
            node.SetOrientation(orientation)
            application_logic.GetSliceLogics().AddItem(logic)
            self._slices[name] = SliceWidget(name, logic, application_logic)
        self._view_logic = slicer.vtkMRMLViewLogic()
        self._view_logic.SetMRMLApplicationLogic(application_logic)
        self._view_logic.SetMRMLScene(scene)
        view_node = self._view_logic.AddViewNode("1")
        application_logic.GetViewLogics().AddItem(self._view_logic)
        self._three_d = ThreeDWidget(ThreeDView(view_node, application_logic))
        self._plots: dict[str, PlotWidget] = {}
        self._layout_logic = slicer.vtkMRMLLayoutLogic()
        self._layout_logic.SetMRMLApplicationLogic(application_logic)
        self._layout_logic.SetMRMLScene(scene)
        self._layout_logic.AddObserver("ModifiedEvent", lambda caller, event: self._map_views())
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self._map_views()

    def _map_views(self) -> None:
        """Mark the slice views that the layout shows (qMRMLLayoutViewFactory.cxx: setViewNodes)."""
        shown = self._layout_logic.GetViewNodes()
        scene = slicer.mrmlScene
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
            node = scene.GetNthNodeByClass(number, "vtkMRMLSliceNode")
            node.SetMappedInLayout(bool(shown.IsItemPresent(node)))

    threeDViewCount, tableViewCount = 1, 0
    layout = property(lambda self: self.layoutLogic().GetLayoutNode().GetViewArrangement())
    plotViewCount = property(lambda self: len(self._plot_nodes()))

    def layoutLogic(self) -> object:
        return self._layout_logic

    def setLayout(self, layout: int) -> None:
        """Choose a layout; one without a description is replaced by the conventional layout, as in Slicer."""
        node = self._layout_logic.GetLayoutNode()
        known = node.IsLayoutDescription(layout)
        node.SetViewArrangement(layout if known else slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)

    def plotWidget(self, which: int) -> PlotWidget | None:
        """The n-th plot view, shown or not; None if there are fewer. In Slicer, their order is undefined."""
        nodes = self._plot_nodes()
        if not 0 <= which < len(nodes):
            return None
        node = nodes[which]
        if node.GetID() not in self._plots or self._plots[node.GetID()].mrmlPlotViewNode() is not node:
            self._plots[node.GetID()] = PlotWidget(PlotView(node, self._application_logic))
        return self._plots[node.GetID()]

    def _plot_nodes(self) -> list[object]:
        # A view node with its own parent layout is not in Slicer's layout (qMRMLLayoutViewFactory::onNodeAdded).
        nodes = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
        return [node for node in nodes if node.GetParentLayoutNode() is None]

    def sliceViewNames(self) -> list[str]:
        self._add_slice_views()
        return list(self._slices)

    def sliceWidget(self, name: str) -> SliceWidget | None:
        self._add_slice_views()
        return self._slices.get(name)

    def _add_slice_views(self) -> None:
        """Add widgets for the slice views that the layouts of modules have added to the scene."""
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            name = node.GetLayoutName()
            if name not in self._slices:
                logic = slicer.vtkMRMLSliceLogic()
                logic.SetMRMLApplicationLogic(self._application_logic)
                logic.SetMRMLScene(slicer.mrmlScene)
                logic.SetSliceNode(node)
                self._application_logic.GetSliceLogics().AddItem(logic)
                self._slices[name] = SliceWidget(name, logic, self._application_logic)

    def mrmlSliceLogics(self) -> object:
        return self._application_logic.GetSliceLogics()

    def threeDWidget(self, which: int | str) -> ThreeDWidget | None:
        return self._three_d if which in (0, "1", "View1") else None

    def resetSliceViews(self) -> None:
        for widget in self._slices.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        self._three_d.threeDView().resetFocalPoint()
