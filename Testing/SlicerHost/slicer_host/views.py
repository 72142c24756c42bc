"""Slice and 3D views rendered without a window, and a figure of all four as in Slicer's conventional layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui
from vtk.util.numpy_support import vtk_to_numpy

_BAR = 22  # height in pixels of the colored bar above a view


class OffscreenView:
    """An offscreen render window whose contents Slicer's displayable managers draw."""

    def __init__(self, application_logic: object) -> None:
        self._application_logic = application_logic
        self._window: object = None
        self._group: object = None
        scene = slicer.mrmlScene
        scene.AddObserver(slicer.vtkMRMLScene.StartImportEvent, lambda *_: self._detach())

    def _node(self) -> object:
        raise NotImplementedError

    def _factory(self) -> object:
        raise NotImplementedError

    def _start(self) -> None:
        """Create the window on first use, because tests without views do not need OpenGL."""
        if self._window is not None:
            return
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)  # with multisampling, depth-peeled translucent surfaces vanish
        self._renderer = vtk.vtkRenderer()
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._window.SetSize(400, 400)
        self._group = self._factory().InstantiateDisplayableManagers(self._renderer)

    def _detach(self) -> None:
        """Detach the displayable managers while a scene is loaded; see ``_attach``."""
        if self._group is not None:
            self._group.SetMRMLDisplayableNode(None)

    def _attach(self) -> None:
        """Attach the displayable managers at the first use of the view, and again after a scene was loaded.

        While a scene is loaded, the folders of the subject hierarchy do not exist yet, and the managers would search
        for them forever. In Slicer, the subject hierarchy resolves them first.
        """
        self._start()
        # Plot views have no displayable managers.
        if self._group is None or self._group.GetMRMLDisplayableNode() is not None:
            return
        self._group.SetMRMLDisplayableNode(self._node())
        for legend in slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode"):
            # Their displayable manager draws only legends added while a view exists, as one always does in Slicer.
            # The managers of other views receive these events, too. Without the first event, they would draw it twice.
            for event in (slicer.vtkMRMLScene.NodeRemovedEvent, slicer.vtkMRMLScene.NodeAddedEvent):
                slicer.mrmlScene.InvokeEvent(event, legend)

    def renderWindow(self) -> object:
        self._attach()
        return self._window

    def renderer(self) -> object:
        self._attach()
        return self._renderer

    def scheduleRender(self) -> None:
        """Do nothing, because a view is rendered only on request."""

    def forceRender(self) -> None:
        self.renderWindow().Render()

    def image(self, width: int = 400, height: int = 400) -> np.ndarray:
        """Render and return the picture: (height, width, 3) uint8, first row at the top."""
        self._attach()
        self._window.SetSize(width, height)
        self._prepare(width, height)
        self._window.Render()
        grabber = vtk.vtkWindowToImageFilter()
        grabber.SetInput(self._window)
        grabber.ReadFrontBufferOff()
        grabber.Update()
        picture = grabber.GetOutput()
        columns, rows, _ = picture.GetDimensions()
        return vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3].copy()

    def _prepare(self, width: int, height: int) -> None:
        pass


class SliceView(OffscreenView):
    """A slice view: background, foreground and label layers, segmentations, models, crosshair."""

    def __init__(self, name: str, logic: object, application_logic: object) -> None:
        super().__init__(application_logic)
        self.name, self._logic = name, logic

    def mrmlSliceNode(self) -> object:
        return self._logic.GetSliceNode()

    _node = mrmlSliceNode

    def _factory(self) -> object:
        return slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()

    def _start(self) -> None:
        if self._window is not None:
            return
        super()._start()
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        # As in Slicer, the picture of the volumes has a separate renderer below that of the displayable managers. With
        # a single renderer, translucent fills would replace the picture.
        self._renderer.SetLayer(1)
        below = vtk.vtkRenderer()
        below.InteractiveOff()
        self._window.SetNumberOfLayers(2)
        self._window.AddRenderer(below)
        self._actor, self._mapper = vtk.vtkActor2D(), vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        below.AddViewProp(self._actor)

    def _detach(self) -> None:
        super()._detach()
        # The displayable manager of segmentations draws nothing after it is attached again.
        self._window = self._group = None

    def _prepare(self, width: int, height: int) -> None:
        node = self._logic.GetSliceNode()
        x, y, z = node.GetFieldOfView()
        if tuple(node.GetDimensions()[:2]) != (width, height):
            node.SetDimensions(width, height, 1)
            per_pixel = max(x / width, y / height)
            node.SetFieldOfView(per_pixel * width, per_pixel * height, z)
        self._logic.UpdatePipeline()
        connection = self._logic.GetImageDataConnection()
        self._actor.SetVisibility(connection is not None)
        if connection is not None:
            self._mapper.SetInputConnection(connection)


class ThreeDView(OffscreenView):
    """The 3D view: models, segmentations' surfaces, slices if they are shown."""

    def __init__(self, node: object, application_logic: object) -> None:
        super().__init__(application_logic)
        self._view_node = node

    def mrmlViewNode(self) -> object:
        return self._view_node

    _node = mrmlViewNode

    def _factory(self) -> object:
        return slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()

    def _start(self) -> None:
        if self._window is None:
            self.mrmlViewNode().SetBoxVisible(False)
            self.mrmlViewNode().SetAxisLabelsVisible(False)
            super()._start()
            self._window.SetAlphaBitPlanes(1)
            self._renderer.SetUseDepthPeeling(1)

    def look(self, direction: tuple[float, float, float] = (0.6, 0.7, 0.35), zoom: float = 1.2) -> None:
        """Show everything from a direction (RAS, from the center toward the camera), with superior up.

        ``zoom``: at 1, the bounding sphere fills the view.
        """
        self._attach()
        bounds = vtk.vtkBoundingBox(self._renderer.ComputeVisiblePropBounds())
        if not bounds.IsValid():
            return
        center = [0.0, 0.0, 0.0]
        bounds.GetCenter(center)
        distance = max(bounds.GetDiagonalLength(), 1.0) * 1.6
        length = float(np.linalg.norm(direction))
        camera = self._renderer.GetActiveCamera()
        camera.SetFocalPoint(center)
        camera.SetPosition([c + d / length * distance for c, d in zip(center, direction, strict=True)])
        camera.SetViewUp(0, 0, 1)
        self._renderer.ResetCamera()
        camera.Zoom(zoom)
        self._renderer.ResetCameraClippingRange()

    def resetFocalPoint(self) -> None:
        """Show everything."""
        self.look()


def _to_qimage(image: np.ndarray) -> QtGui.QImage:
    image = np.ascontiguousarray(image)
    height, width, _ = image.shape
    return QtGui.QImage(image.data, width, height, 3 * width, QtGui.QImage.Format.Format_RGB888).copy()


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Write an RGB picture, (height, width, 3) uint8."""
    if not _to_qimage(image).save(str(path)):
        raise OSError(f"The picture {path} could not be written")


def _toward(node: object, column: int, sign: int) -> str:
    """The patient's side (R, L, A, P, S, I) toward which an axis of a slice view points."""
    matrix = node.GetSliceToRAS()
    vector = [sign * matrix.GetElement(row, column) for row in range(3)]
    axis = int(np.argmax(np.abs(vector)))
    return ("RAS" if vector[axis] > 0 else "LPI")[axis]


def _draw_letters(painter: QtGui.QPainter, place: QtCore.QRect, node: object) -> None:
    flags = QtCore.Qt.AlignmentFlag
    sides = (
        (flags.AlignLeft | flags.AlignVCenter, 0, -1),
        (flags.AlignRight | flags.AlignVCenter, 0, 1),
        (flags.AlignHCenter | flags.AlignTop, 1, 1),
        (flags.AlignHCenter | flags.AlignBottom, 1, -1),
    )
    painter.setPen(QtGui.QColor(230, 200, 120))
    for side, column, sign in sides:
        painter.drawText(place.adjusted(6, 4, -6, -4), int(side), _toward(node, column, sign))


def _draw_bar(painter: QtGui.QPainter, place: QtCore.QRect, color: tuple, label: str, offset: str) -> None:
    flags = QtCore.Qt.AlignmentFlag
    painter.fillRect(place, QtGui.QColor.fromRgbF(*color))
    painter.setPen(QtGui.QColor("black"))
    painter.drawText(place.adjusted(8, 0, -8, 0), int(flags.AlignLeft | flags.AlignVCenter), label)
    painter.drawText(place.adjusted(8, 0, -8, 0), int(flags.AlignRight | flags.AlignVCenter), offset)


def four_views(width: int = 1200, height: int = 900, direction: tuple | None = None) -> np.ndarray:
    """Return Slicer's conventional four views in one picture: axial and 3D above, coronal and sagittal below.

    ``direction``: direction of the 3D view (see ``ThreeDView.look``); None keeps the camera.
    """
    manager = slicer.app.layoutManager()
    w, h = width // 2 - 2, height // 2 - 2 - _BAR
    three_d = manager.threeDWidget(0).threeDView()
    if direction is not None:
        three_d.look(direction)
    figure = QtGui.QImage(width, height, QtGui.QImage.Format.Format_RGB888)
    figure.fill(QtGui.QColor(64, 64, 64))
    painter = QtGui.QPainter(figure)
    for name, row, column in (("Red", 0, 0), ("1", 0, 1), ("Green", 1, 0), ("Yellow", 1, 1)):
        left, top = column * (w + 4), row * (h + _BAR + 4)
        bar, place = QtCore.QRect(left, top, w, _BAR), QtCore.QRect(left, top + _BAR, w, h)
        if name == "1":
            painter.drawImage(place, _to_qimage(three_d.image(w, h)))
            _draw_bar(painter, bar, three_d.mrmlViewNode().GetLayoutColor(), "1", "")
            continue
        view = manager.sliceWidget(name).sliceView()
        painter.drawImage(place, _to_qimage(view.image(w, h)))
        node = view.mrmlSliceNode()
        side = _toward(node, 2, 1)
        text = f"{side}: {manager.sliceWidget(name).sliceLogic().GetSliceOffset():.1f} mm"
        _draw_bar(painter, bar, node.GetLayoutColor(), node.GetLayoutLabel(), text)
        _draw_letters(painter, place, node)
    painter.end()
    rows = np.frombuffer(figure.constBits(), np.uint8).reshape(height, figure.bytesPerLine())
    return rows[:, : 3 * width].reshape(height, width, 3).copy()
