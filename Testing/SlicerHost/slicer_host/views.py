"""Slice and 3D views rendered without a window, and the figure of all four as Slicer's conventional layout shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy


class _View:
    """An offscreen render window whose contents Slicer's displayable managers draw."""

    def __init__(self, application_logic: object) -> None:
        self._application_logic = application_logic
        self._window: object = None

    def _node(self) -> object:
        raise NotImplementedError

    def _factory(self) -> object:
        raise NotImplementedError

    def _start(self) -> None:
        """Create the window on first use: tests that look at no view need no OpenGL."""
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
        self._group.SetMRMLDisplayableNode(self._node())

    def renderWindow(self) -> object:
        self._start()
        return self._window

    def renderer(self) -> object:
        self._start()
        return self._renderer

    def scheduleRender(self) -> None:
        """Nothing to do: a view is drawn when it is looked at."""

    def forceRender(self) -> None:
        self.renderWindow().Render()

    def image(self, width: int = 400, height: int = 400) -> np.ndarray:
        """Render and return the picture: (height, width, 3) uint8, first row at the top."""
        self._start()
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


class SliceView(_View):
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
        self._actor, self._mapper = vtk.vtkActor2D(), vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._renderer.AddActor2D(self._actor)

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


class ThreeDView(_View):
    """The 3D view: models, segmentations' surfaces, slices if they are shown."""

    def __init__(self, logic: object, application_logic: object) -> None:
        super().__init__(application_logic)
        self._logic = logic

    def mrmlViewNode(self) -> object:
        return self._logic.GetViewNode()

    _node = mrmlViewNode

    def _factory(self) -> object:
        return slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()

    def _start(self) -> None:
        if self._window is None:
            self.mrmlViewNode().SetBoxVisible(False)
            self.mrmlViewNode().SetAxisLabelsVisible(False)
            super()._start()

    def look(self, direction: tuple[float, float, float] = (0.6, 0.7, 0.35)) -> None:
        """Look at everything from a direction (RAS, from the center toward the camera), the head's top up."""
        self._start()
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
        camera.Zoom(1.3)
        self._renderer.ResetCameraClippingRange()

    def resetFocalPoint(self) -> None:
        """Show everything."""
        self.look()


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Write an RGB picture, (height, width, 3) uint8."""
    from PySide6 import QtGui

    image = np.ascontiguousarray(image)
    height, width, _ = image.shape
    if not QtGui.QImage(image.data, width, height, 3 * width, QtGui.QImage.Format.Format_RGB888).save(str(path)):
        raise OSError(f"The picture {path} could not be written")


def four_views(width: int = 1200, height: int = 900, direction: tuple | None = None) -> np.ndarray:
    """Return Slicer's conventional four views in one picture: axial, 3D above; coronal, sagittal below."""
    manager = slicer.app.layoutManager()
    w, h = width // 2 - 2, height // 2 - 2
    three_d = manager.threeDWidget(0).threeDView()
    if direction is not None:
        three_d.look(direction)
    tiles = {name: manager.sliceWidget(name).sliceView().image(w, h) for name in manager.sliceViewNames()}
    figure = np.full((height, width, 3), 64, np.uint8)
    places = ((tiles["Red"], 0, 0), (three_d.image(w, h), 0, 1), (tiles["Green"], 1, 0), (tiles["Yellow"], 1, 1))
    for tile, row, column in places:
        top, left = row * (h + 4), column * (w + 4)
        figure[top : top + h, left : left + w] = tile
    return figure
