"""The user's choices in a scene, which are saved with it."""

import enum
from collections.abc import Collection
from typing import Annotated

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

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


@parameterNodeWrapper
class ConResSegmentationParameterNode:
    """The choices of a scene.

    model - name of the model; empty for the one chosen last, or the first one.
    channels - one volume per channel of the model, in its order.
    region - the ROI to segment in; the whole image if there is none. The name is that in scenes saved earlier.
    segmentation - where the result goes; a new segmentation if there is none.
    residualMap, attentionMap, probabilityMap, featuresMap - which maps to compute.
    show3D - whether to create surfaces.
    device, precision - how to compute.
    shownMap, mapOpacity - the map over the slices.
    """

    model: str
    channels: list[vtkMRMLScalarVolumeNode]
    region: vtkMRMLMarkupsROINode
    segmentation: vtkMRMLSegmentationNode
    residualMap: bool = True
    attentionMap: bool = True
    probabilityMap: bool = False
    featuresMap: bool = False
    show3D: bool = True
    device: str = "auto"
    precision: Precision = Precision.auto
    shownMap: vtkMRMLScalarVolumeNode
    mapOpacity: Annotated[float, WithinRange(0, 1)] = 0.5


def engineOptions(parameterNode: ConResSegmentationParameterNode, provided: Collection[str]) -> SegmentOptions:
    """What the engine is asked for, without the ROI: the choices of a scene as the engine names them.

    Args:
        provided: the maps that the model can compute; others are left out.
    """
    wanted = {
        "residual": parameterNode.residualMap,
        "attention": parameterNode.attentionMap,
        "probability": parameterNode.probabilityMap,
        "features": parameterNode.featuresMap,
    }
    return SegmentOptions(
        maps=tuple(name for name, isWanted in wanted.items() if isWanted and name in provided),
        device=parameterNode.device,
        precision=parameterNode.precision.value,
    )
