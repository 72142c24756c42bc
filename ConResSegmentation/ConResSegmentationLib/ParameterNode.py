"""The user's choices in a scene, which are saved with it."""

import enum
from collections.abc import Collection
from typing import Annotated

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from conresnet.package.maps import MAPS
from conresnet.request import SegmentOptions


class Precision(enum.Enum):
    """The number type used by the network."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"

    def label(self) -> str:
        """The text in the selector."""
        return _("Automatic") if self is Precision.auto else self.value


class Map3D(enum.Enum):
    """How the map over the slices is shown in 3D."""

    nothing = "nothing"
    surfaces = "surfaces"
    isosurface = "isosurface"
    volume = "volume"

    def label(self) -> str:
        """The text in the selector."""
        titles = {
            "nothing": _("Not shown"),
            "surfaces": _("On surfaces"),
            "isosurface": _("Isosurface"),
            "volume": _("Volume rendering"),
        }
        return titles[self.value]


@parameterNodeWrapper
class ConResSegmentationParameterNode:
    """The choices of a scene.

    model - name of the model; empty for the one chosen last, or the first one.
    channels - one volume per channel of the model, in its order.
    region - the ROI to segment in; the whole image if there is none. The name is that in scenes saved earlier.
    segmentation - where the result goes; a new segmentation if there is none.
    maps - which maps to compute, by the engine's names, with spaces between.
    show3D - whether to create surfaces.
    review - whether to list the places worth checking, and to measure the segments.
    fast, keepLargest, dropBelow, fillHoles - as in SegmentOptions; dropBelow is 0 mL for off.
    smoothing - of surfaces in 3D, 0 for none. The default is Slicer's own.
    device, precision - how to compute.
    shownMap, mapOpacity - the map over the slices.
    map3D, mapThreshold - how that map is shown in 3D, and where its isosurface lies: 0 is the low end of the displayed
        range, 1 the high end.
    """

    model: str
    channels: list[vtkMRMLScalarVolumeNode]
    region: vtkMRMLMarkupsROINode
    segmentation: vtkMRMLSegmentationNode
    maps: str = "residual attention"
    show3D: bool = True
    review: bool = True
    fast: bool = False
    keepLargest: bool = False
    dropBelow: Annotated[float, WithinRange(0, 1000)] = 0.0
    fillHoles: bool = False
    smoothing: Annotated[float, WithinRange(0, 1)] = 0.5
    device: str = "auto"
    precision: Precision = Precision.auto
    shownMap: vtkMRMLScalarVolumeNode
    mapOpacity: Annotated[float, WithinRange(0, 1)] = 0.5
    map3D: Map3D = Map3D.nothing
    mapThreshold: Annotated[float, WithinRange(0, 1)] = 0.5


class SceneChoices:
    """The choices of the current scene."""

    def __init__(self):
        self._wrapper: ConResSegmentationParameterNode | None = None

    def of(self, node) -> ConResSegmentationParameterNode:
        """The choices in a scene's parameter node."""
        # Each wrapper adds observers to the node that stay, so there is one per scene. A closed scene empties the node.
        isCurrent = self._wrapper is not None and self._wrapper.parameterNode is node
        if not isCurrent or not node.GetParameterNamesAsCommaSeparatedList():
            self._wrapper = ConResSegmentationParameterNode(node)
        return self._wrapper

    def forget(self) -> None:
        """Read the choices again, after a scene was closed or imported.

        Slicer's wrapper caches nodes; those of a scene that is being imported do not exist yet.
        """
        self._wrapper = None


def engineOptions(parameterNode: ConResSegmentationParameterNode, provided: Collection[str]) -> SegmentOptions:
    """The choices of a scene as options of the engine, without the ROI, and with the provided maps only."""
    return SegmentOptions(
        maps=tuple(name for name in MAPS if name in provided and name in parameterNode.maps.split()),
        device=parameterNode.device,
        precision=parameterNode.precision.value,
        fast=parameterNode.fast,
        keep_largest=parameterNode.keepLargest,
        drop_below=parameterNode.dropBelow or None,
        fill_holes=parameterNode.fillHoles,
        review=parameterNode.review,
        statistics=parameterNode.review,
    )
