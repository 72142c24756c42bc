"""Inputs of a segmentation from the scene: the volumes, the ROI and the user's choices, which are saved with it.

Volumes and ROI are in world coordinates, and have rows in the panel. Some choices are remembered for new scenes.
"""

import contextlib
import enum
import json
from collections.abc import Callable, Collection
from typing import Annotated

import numpy as np
import qt
import slicer
import vtk
from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from conresnet.errors import UserError
from conresnet.images import Grid, Volume
from conresnet.images.inputs import BoxROI, Candidate, match_channels, seen_at_once, wants_roi
from conresnet.package.outputs import MAPS
from conresnet.request import SegmentOptions

from . import ResultParts
from .Map3D import Map3D
from .ResultSegmentation import parentItem
from .Widgets import comboBoxOf, hint, nameOf, plain, say, stayNarrow, textSetting


class Precision(enum.Enum):
    """The number type used by the network."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"

    def label(self) -> str:
        return _("Automatic") if self is Precision.auto else self.value


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


_CHOICES_SETTING = "ConResSegmentation/Choices"
# The choices that are remembered. Those that change a result are not among them, because they may suit only one image,
# nor is the device, which may suit only one computer.
_REMEMBERED = {"maps": str, "show3D": bool, "review": bool}


class SceneChoices:
    """The choices of the current scene."""

    def __init__(self):
        self.forget()

    def of(self, node) -> ConResSegmentationParameterNode:
        # Each wrapper adds observers to the node that stay, so there is one per scene. A closed scene empties the node.
        isCurrent = self._wrapper is not None and self._wrapper.parameterNode is node
        # The node may be new even if it has values: an earlier wrapper may have filled it with defaults.
        isNew = self._isNewScene or not node.GetParameterNamesAsCommaSeparatedList()
        if not isCurrent or isNew:
            self._wrapper = ConResSegmentationParameterNode(node)
        self._isNewScene = False
        for name, value in _remembered().items() if isNew else ():
            with contextlib.suppress(KeyError, ValueError):
                setattr(self._wrapper, name, _REMEMBERED[name](value))
        return self._wrapper

    def forget(self, isNewScene: bool = False) -> None:
        """Read the choices again, after a scene was closed (``isNewScene``) or imported.

        Slicer's wrapper caches nodes; those of a scene that is being imported do not exist yet.
        """
        self._wrapper, self._isNewScene = None, isNewScene


def rememberChoices(ui, mapBoxes: dict) -> None:
    """From now on, remember the user's choices in the panel for new scenes.

    Args:
        mapBoxes: the check boxes of `MapChooser`, by map.
    """

    def remember(name: str, value: str | bool) -> None:
        slicer.app.userSettings().setValue(_CHOICES_SETTING, json.dumps(_remembered() | {name: value}))

    def onMapClicked(_checked: bool) -> None:
        remember("maps", " ".join(kind for kind, box in mapBoxes.items() if box.checked))

    ui.show3DCheckBox.connect("clicked(bool)", lambda isWanted: remember("show3D", isWanted))
    ui.reviewCheckBox.connect("clicked(bool)", lambda isWanted: remember("review", isWanted))
    for box in mapBoxes.values():
        box.connect("clicked(bool)", onMapClicked)


def _remembered() -> dict:
    try:
        kept = json.loads(textSetting(_CHOICES_SETTING))
    except ValueError:  # a user may have edited the settings
        kept = None
    return kept if isinstance(kept, dict) else {}


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


def volumeInput(volumeNode) -> Volume:
    """The voxels of a volume node and their grid in the world, with all transforms above the node applied.

    The array is the node's own memory, not a copy.

    Raises:
        UserError: ``volume-empty``, ``volume-color`` or ``transform-not-linear``.
    """
    image = volumeNode.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or image.GetNumberOfPoints() == 0:
        raise UserError("volume-empty", name=nameOf(volumeNode))
    if image.GetNumberOfScalarComponents() != 1:
        raise UserError("volume-color", name=nameOf(volumeNode), count=image.GetNumberOfScalarComponents())
    return Volume(slicer.util.arrayFromVolume(volumeNode), gridOf(volumeNode), nameOf(volumeNode))


def gridOf(volumeNode) -> Grid:
    """The voxels' grid in the world. Raises UserError: ``transform-not-linear``."""
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    affine = linearToWorld(volumeNode) @ slicer.util.arrayFromVTKMatrix(ijkToRas)
    return Grid(volumeNode.GetImageData().GetDimensions()[::-1], affine)


def roiInput(roiNode) -> BoxROI:
    """The box of an ROI node in the world, including its rotation.

    Raises:
        UserError: ``roi-not-placed``, ``roi-inside-out``, ``roi-flat``, ``transform-not-linear`` or ``bad-roi``.
    """
    if roiNode.GetNumberOfControlPoints() == 0:
        raise UserError("roi-not-placed", name=nameOf(roiNode))
    if roiNode.GetInsideOut():
        raise UserError("roi-inside-out", name=nameOf(roiNode))
    toWorld = linearToWorld(roiNode)[:3, :3]
    size = [0.0] * 3
    roiNode.GetSizeWorld(size)
    # Under a transform that flattens it, Slicer cannot compute the ROI's axes.
    if min(size) <= 0 or np.linalg.matrix_rank(toWorld) < 3:
        raise UserError("roi-flat", name=nameOf(roiNode))
    matrix = slicer.util.arrayFromVTKMatrix(roiNode.GetObjectToWorldMatrix())
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return BoxROI(matrix[:3, 3], axes, np.array(size))


def linearToWorld(node) -> np.ndarray:
    """(4, 4) of the transforms above a node. Raises UserError: ``transform-not-linear``."""
    transformNode = node.GetParentTransformNode()
    if transformNode is None:
        return np.eye(4)
    if not transformNode.IsTransformToWorldLinear():
        raise UserError("transform-not-linear", name=nameOf(node), transform=nameOf(transformNode))
    return slicer.util.arrayFromTransformMatrix(transformNode, toWorld=True)


# The axis of the world along which each of a model's axes lies.
_AXES = {"L": 0, "R": 0, "A": 1, "P": 1, "S": 2, "I": 2}


def place(roiNode, description, volumeNode) -> None:
    """Place a new ROI where the slices intersect, or else in the middle of the image, in the size of one window.

    Raises:
        UserError: ``transform-not-linear``; nothing is placed then.
    """
    grid, size = gridOf(volumeNode), np.zeros(3)
    size[[_AXES[direction] for direction in description.preparation.orientation]] = seen_at_once(description, grid)
    corners = grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle = (low + high) / 2
    crossing = _slicesCross(middle)
    roiNode.SetCenterWorld(crossing if (low < crossing).all() and (crossing < high).all() else middle)
    roiNode.SetSizeWorld(np.minimum(size, high - low))
    roiNode.CreateDefaultDisplayNodes()
    # A filled box would hide the structure inside it.
    roiNode.GetDisplayNode().SetFillVisibility(False)


def shownSliceNodes() -> list:
    # Views of other layouts keep their nodes.
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSliceNode") if node.IsMappedInLayout()]


def _slicesCross(start: np.ndarray) -> np.ndarray:
    """(3,) The common point of all slices shown, in any orientation, that is nearest to ``start``."""
    planes = [slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS()) for sliceNode in shownSliceNodes()]
    normals = np.array([plane[:3, 2] for plane in planes]).reshape(-1, 3)
    distances = np.array([plane[:3, 2] @ (plane[:3, 3] - start) for plane in planes])
    return start + np.linalg.pinv(normals, rcond=1e-3) @ distances


# In pixels. The names come from the model package, and the panel must not become wider.
_WIDEST_LABEL = 110


class ROIPanel:
    """The widgets of the ROI; the ROI itself is a parameter of the module.

    Args:
        hintLabel: shows the advice to draw an ROI.
        current: returns the description of the chosen model and the first chosen volume; either may be None.
    """

    def __init__(self, selector, hintLabel, current: Callable[[], tuple[object, object]]):
        self._selector, self._hintLabel, self._current = selector, hintLabel, current
        stayNarrow(selector)
        selector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onAdded)

    def update(self) -> None:
        """Show what choosing no ROI means, and show or hide the advice to draw one."""
        description, volumeNode = self._whenComplete()
        needed = False
        if description is not None:
            # A volume that cannot be segmented is refused with a sentence when the user clicks Segment.
            with contextlib.suppress(UserError):
                needed = wants_roi(description, gridOf(volumeNode))
        isFound = needed and description.locator is not None
        self._selector.noneDisplay = _("Automatic") if isFound else _("Whole image")
        if not needed or self._selector.currentNode() is not None:
            say(self._hintLabel, "")
        elif isFound:
            text = _("The model {locator} finds the structure in the image.")
            say(self._hintLabel, text.format(locator=description.locator.model))
        else:
            text = _(
                "The image is much larger than the model's field of view: create an ROI and move it to the structure."
            )
            hint(self._hintLabel, text)

    def _onAdded(self, roiNode) -> None:
        description, volumeNode = self._whenComplete()
        if description is not None:
            with contextlib.suppress(UserError):
                place(roiNode, description, volumeNode)

    def _whenComplete(self) -> tuple[object, object]:
        description, volumeNode = self._current()
        isComplete = description is not None and volumeNode is not None and volumeNode.GetImageData() is not None
        return (description, volumeNode) if isComplete else (None, None)


class ChannelSelectors:
    """The selectors, as rows of a form.

    Args:
        form: the QFormLayout that contains them.
        firstRow: the row of the first selector; existing rows move down.
        previous: the widget before them in the order of the Tab key.
        onChanged: called when the user, or the scene, has changed a selection.
    """

    def __init__(self, form, firstRow: int, previous, onChanged: Callable[[], None]):
        self._form, self._firstRow, self._previous, self._onChanged = form, firstRow, previous, onChanged
        self._inputs: tuple = ()
        # Rows that a model does not need are hidden, and reused by one that does.
        self._rows: list[tuple] = []
        self._quiet = False

    @property
    def combos(self) -> list:
        return [combo for _label, combo in self._rows[: len(self._inputs)]]

    @property
    def nodes(self) -> list:
        """The chosen volumes; None for a channel without one."""
        return [combo.currentNode() for combo in self.combos]

    @property
    def firstNode(self):
        """The first channel's volume, whose grid the result has; None if none is chosen."""
        return next(iter(self.nodes), None)

    def setInputs(self, inputs) -> None:
        """Show one selector per input of a model; an input that existed before keeps its volume."""
        earlier = {item.name: node for item, node in zip(self._inputs, self.nodes, strict=True)}
        self._inputs = tuple(inputs)
        while len(self._rows) < len(self._inputs):
            self._rows.append(self._newRow())
        for number, (label, combo) in enumerate(self._rows):
            label.visible = combo.visible = number < len(self._inputs)
        for item, (label, combo) in zip(self._inputs, self._rows, strict=False):
            label.text, label.toolTip = f"{item.name}:", plain(item.name)
            tip = _("The {modality} volume for this channel. It is recognized by these words in its name: {words}.")
            combo.toolTip = plain(tip.format(modality=item.modality, words=", ".join(item.keywords) or item.name))
        self.setNodes([earlier.get(item.name) for item in self._inputs])

    def setNodes(self, nodes) -> None:
        """Choose volumes without calling `onChanged`; those without a selector are ignored."""
        self._quiet = True
        for combo, node in zip(self.combos, nodes, strict=False):
            combo.setCurrentNode(node)
        self._quiet = False

    def fillEmpty(self, among: list | None = None) -> None:
        chosen = self.nodes
        empty = [number for number, node in enumerate(chosen) if node is None]
        nodes = [node for node in (candidates() if among is None else among) if node not in chosen]
        # Volumes of one patient are in one item of the subject hierarchy.
        groups = {parentItem(node) for node in chosen if node is not None}
        if groups:
            nodes = [node for node in nodes if parentItem(node) in groups]
        named = [Candidate(nameOf(node), parentItem(node)) for node in nodes]
        found = match_channels([self._inputs[number] for number in empty], named)
        for number, place in zip(empty, found, strict=True):
            chosen[number] = None if place is None else nodes[place]
        self.setNodes(chosen)

    def problem(self) -> str:
        """What still has to be chosen, as a sentence; empty if nothing."""
        nodes = self.nodes
        for item, node in zip(self._inputs, nodes, strict=True):
            if node is None:
                return _("Choose the volume for {channel}.").format(channel=item.name)
            # If a volume is removed, the selector chooses its next entry, which may be a map.
            if node.GetAttribute(ResultParts.MAP_ATTRIBUTE):
                return _("{volume} is a map; choose an image for {channel}.").format(
                    volume=nameOf(node), channel=item.name
                )
        for number, node in enumerate(nodes):
            if node in nodes[:number]:
                first, second = self._inputs[nodes.index(node)].name, self._inputs[number].name
                return _("{volume} is chosen for both {first} and {second}.").format(
                    volume=nameOf(node), first=first, second=second
                )
        return ""

    def hint(self) -> str:
        """A warning that the chosen volumes belong to different patients; empty if nothing indicates that."""
        patients = {}
        for node in filter(None, self.nodes):
            patients.setdefault(_patient(node), node)
        patients.pop(0, None)
        if len(patients) < 2:
            return ""
        one, other = list(patients)[:2]
        hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
        return _(
            "{first} belongs to patient {patient}, but {second} belongs to {other}. Choose images of the same patient."
        ).format(
            first=nameOf(patients[one]),
            patient=hierarchy.GetItemName(one),
            second=nameOf(patients[other]),
            other=hierarchy.GetItemName(other),
        )

    def _newRow(self) -> tuple:
        label, combo = qt.QLabel(), slicer.qMRMLNodeComboBox()
        # The name comes from the model package, and is not markup.
        label.textFormat = qt.Qt.PlainText
        label.wordWrap = True
        label.setMaximumWidth(_WIDEST_LABEL)
        stayNarrow(combo)
        combo.objectName = f"channelSelector{len(self._rows)}"
        combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        combo.showChildNodeTypes = False
        combo.addEnabled = combo.removeEnabled = False
        combo.noneEnabled = True
        combo.noneDisplay = _("Choose a volume")
        self._form.insertRow(self._firstRow + len(self._rows), label, combo)
        qt.QWidget.setTabOrder(self._previous, comboBoxOf(combo))
        self._previous = comboBoxOf(combo)
        combo.setMRMLScene(slicer.mrmlScene)
        combo.connect("currentNodeChanged(vtkMRMLNode*)", self._onCurrentNodeChanged)
        return label, combo

    def _onCurrentNodeChanged(self, node) -> None:
        if not self._quiet:
            self._onChanged()


def candidates() -> list:
    """The volumes of the scene that can be a channel; those shown in the slice views come first."""
    nodes = [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if node.GetClassName() == "vtkMRMLScalarVolumeNode"
        and not node.GetHideFromEditors()
        and not node.GetAttribute(ResultParts.MAP_ATTRIBUTE)
    ]
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = {composite.GetBackgroundVolumeID() for composite in composites}
    return sorted(nodes, key=lambda node: node.GetID() not in shown)


def _patient(node) -> int:
    """The subject hierarchy item of a volume's patient; 0 if unknown, as for a volume from a NIfTI file."""
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    return hierarchy.GetItemAncestorAtLevel(item, level) if item else 0
