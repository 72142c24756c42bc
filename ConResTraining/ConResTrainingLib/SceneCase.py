"""Add volumes and segments of the scene to a data set in the layout of the Medical Segmentation Decathlon.

The group Add a case from the scene chooses them.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import replacing, write_error, write_text
from conresnet.images import LPS_TO_RAS, Grid
from conresnet.package import Input
from conresnet_training.data import (
    ENDINGS,
    FILE_NAME,
    DataSet,
    Description,
    case_name,
    description_from,
    read_description,
)
from conresnet_training.data.layouts import is_nnunet
from ConResSegmentationLib.SceneInputs import ChannelSelectors, volumeInput
from ConResSegmentationLib.Widgets import errorSentence, offer, say, singleShotTimer, stayNarrow

from .DataSetPanel import DataSetPanel

_NAME = re.compile(r"[^\W_][\w.-]*")
# ITK writes "scan.nii.nii.gz" and "scan.img.nii.gz" under other names.
_ENDINGS = re.compile(f"({'|'.join(map(re.escape, (*ENDINGS, '.hdr', '.img')))})+$", re.IGNORECASE)
# File systems allow 255 bytes, and commands make longer names from this one.
_MOST_BYTES = 200
_NO_SEGMENTS = ("", "background", "ignore")


def describe(folder: Path) -> Description | None:
    """The content of a folder's dataset.json; None if there is none yet.

    Raises:
        UserError: cases cannot be added: ``data-set-invalid``, ``case-folder-used``, ``case-folder-nnunet`` or
            ``case-folder-regions``.
    """
    if not os.path.isfile(folder / FILE_NAME):
        try:
            isUsed = os.path.isdir(folder) and any(not name.startswith(".") for name in os.listdir(folder))
        except OSError:
            isUsed = True
        if isUsed:
            raise UserError("case-folder-used", folder=str(folder))
        return None
    description = read_description(folder / FILE_NAME)
    if is_nnunet(description):
        raise UserError("case-folder-nnunet", folder=str(folder))
    if description.without_cases.regions:
        raise UserError("case-folder-regions", folder=str(folder))
    return description


def addCase(
    folder: Path, name: str, channels: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], grid: Grid
) -> None:
    """Write a case, and finally add it to dataset.json, so that a data set never lists a missing file.

    Args:
        folder: the data set's folder; created if needed.
        name: of the case and its files.
        channels: [k, j, i] by channel name, in order; all on ``grid``.
        masks: boolean [k, j, i] by segment name.

    Raises:
        UserError: ``case-name-invalid``, ``case-name-long``, ``case-name-taken``, ``case-channels-differ``,
            ``case-segment-name``, ``case-segment-repeated``, ``case-segment-unknown``, ``case-segments-overlap``,
            ``case-segments-empty``, ``case-grid-sheared``, as for `describe`, or a file cannot be written.
    """
    _checkSegments(masks)
    # The reader refuses a new data set here, before anything is written.
    description = describe(folder) or description_from(folder / FILE_NAME, _newContent(folder, channels, masks))
    _checkName(folder, name, description)
    if list(description.without_cases.channels) != list(channels):
        values = {"wanted": ", ".join(description.without_cases.channels), "given": ", ".join(channels)}
        raise UserError("case-channels-differ", **values)
    label = _labelMap(masks, _valuesByName(description.without_cases.labels, masks))
    if np.abs(grid.direction.T @ grid.direction - np.eye(3)).max() > 1e-4:
        raise UserError("case-grid-sheared")
    arrays = list(channels.values())
    image = arrays[0] if len(arrays) == 1 else np.stack([array.astype(np.float32) for array in arrays])
    for kind, array in (("imagesTr", image), ("labelsTr", label)):
        try:
            (folder / kind).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, folder) from error
        _writeImage(array, grid, folder / kind / f"{name}.nii.gz")
    content = dict(description.content)
    entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
    content["training"] = [*content.get("training", []), entry]
    content["numTraining"] = len(content["training"])
    write_text(folder / FILE_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def proposedName(dataSet: DataSet | None, wished: str) -> str:
    """An unused name for a case, as close to the wanted one as file names allow."""
    base = _ENDINGS.sub("", re.sub(r"[^\w.-]+", "_", wished).strip("._-")) or "case"
    # With room for a number.
    base = base.encode()[: _MOST_BYTES - 10].decode(errors="ignore")
    taken = {case.name.casefold() for case in dataSet.cases} if dataSet else set()
    name, number = base, 2
    while name.casefold() in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _checkSegments(names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        # Labels are compared in this way.
        key = name.strip().casefold()
        if key in _NO_SEGMENTS:
            raise UserError("case-segment-name", name=name)
        if key in seen:
            raise UserError("case-segment-repeated", name=name)
        seen.add(key)
    if not seen:
        raise UserError("case-segments-empty")


def _checkName(folder: Path, name: str, description: Description) -> None:
    if not _NAME.fullmatch(name) or _ENDINGS.search(name):
        raise UserError("case-name-invalid", name=name)
    if len(name.encode()) > _MOST_BYTES:
        raise UserError("case-name-long", name=name)
    there = [folder / kind / f"{name}.nii.gz" for kind in ("imagesTr", "labelsTr")]
    # Listed cases may have files of another kind, or in other folders.
    entries = description.content.get("training", [])
    listed = {case_name(Path(str(entry.get("image", "")))).casefold() for entry in entries if isinstance(entry, dict)}
    if any(os.path.lexists(path) for path in there) or name.casefold() in listed:
        raise UserError("case-name-taken", name=name)


def _valuesByName(labels: Mapping[int, str], masks: Mapping[str, np.ndarray]) -> dict[str, int]:
    values = {name.strip().casefold(): value for value, name in labels.items()}
    unknown = [name for name in masks if name.strip().casefold() not in values]
    if unknown:
        raise UserError("case-segment-unknown", segments=", ".join(unknown), labels=", ".join(labels.values()))
    return {name: values[name.strip().casefold()] for name in masks}


def _labelMap(masks: Mapping[str, np.ndarray], values: Mapping[str, int]) -> np.ndarray:
    label = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for name, mask in masks.items():
        if (label[mask] != 0).any():
            raise UserError("case-segments-overlap", name=name)
        label[mask] = values[name]
    if not label.any():
        raise UserError("case-segments-empty")
    return label


def _writeImage(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Write [k, j, i], or [c, k, j, i] as a 4D file; Slicer's Python has no nibabel."""
    # Imported when needed: it takes time when Slicer starts.
    import SimpleITK as sitk

    array = array.astype(np.float32) if array.dtype in (bool, np.float16, np.float64, np.int64, np.uint64) else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=False)
    # ITK uses LPS, and LPS_TO_RAS is its own inverse.
    more = image.GetDimension() - 3
    direction = np.eye(3 + more)
    direction[:3, :3] = LPS_TO_RAS @ grid.direction
    image.SetSpacing([*map(float, grid.spacing), *[1.0] * more])
    image.SetOrigin([*map(float, LPS_TO_RAS @ grid.affine[:3, 3]), *[0.0] * more])
    image.SetDirection(direction.ravel().tolist())
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(str(error).splitlines()[-1]) from error


def _newContent(folder: Path, channels: Iterable[str], segments: Iterable[str]) -> dict:
    channels = {str(number): name for number, name in enumerate(channels)}
    return {
        "name": folder.name,
        "description": "",
        "licence": "",
        "tensorImageSize": "3D" if len(channels) == 1 else "4D",
        "modality": channels,
        "labels": {"0": "background", **{str(value): name.strip() for value, name in enumerate(segments, start=1)}},
        "numTraining": 0,
        "training": [],
    }


def channelArrays(nodes: dict[str, object]) -> tuple[dict[str, np.ndarray], Grid]:
    """The voxels of each channel, [k, j, i] by name, on the grid of the first volume, which is returned too.

    Raises:
        UserError: as for ``volumeInput``.
    """
    # It imports SimpleITK.
    from conresnet.images.geometry import sample

    volumes = {name: volumeInput(node) for name, node in nodes.items()}
    grid = next(iter(volumes.values())).grid
    arrays = {}
    for name, volume in volumes.items():
        arrays[name] = volume.array
        if not volume.grid.matches(grid):
            indexMap = np.linalg.inv(volume.grid.array_affine) @ grid.array_affine
            arrays[name] = sample(volume.array, indexMap, grid.shape, antialias=True)
    return arrays, grid


def segmentMasks(node, volumeNode) -> dict[str, np.ndarray]:
    """Boolean [k, j, i] on the voxels of a volume, by segment name.

    Args:
        node: a segmentation, or a label map, whose labels are named by its color table.
        volumeNode: the first channel.

    Raises:
        UserError: ``case-segment-repeated``, ``case-label-grid-differs`` or ``case-label-unnamed``.
    """
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _labelMasks(node, volumeNode)
    segmentation = node.GetSegmentation()
    masks = {}
    for number in range(segmentation.GetNumberOfSegments()):
        segmentId, name = segmentation.GetNthSegmentID(number), segmentation.GetNthSegment(number).GetName()
        if name in masks:
            raise UserError("case-segment-repeated", name=name)
        # Slicer resamples the segment to the grid of the volume, including the transforms above both.
        masks[name] = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volumeNode) != 0
    return masks


def _labelMasks(node, volumeNode) -> dict[str, np.ndarray]:
    labels = volumeInput(node)
    if not labels.grid.matches(volumeInput(volumeNode).grid):
        raise UserError("case-label-grid-differs", label=node.GetName(), volume=volumeNode.GetName())
    display = node.GetDisplayNode()
    colors = display.GetColorNode() if display else None
    masks = {}
    for value in np.unique(labels.array[labels.array != 0]):
        name = (colors.GetColorName(int(value)) if colors and value < colors.GetNumberOfColors() else "") or ""
        if not name or name in masks:
            raise UserError("case-label-unnamed", value=int(value), label=node.GetName())
        masks[name] = labels.array == value
    return masks


class SceneCasePanel:
    """The widgets for choosing volumes, a segmentation and a name, and for writing the case.

    Args:
        onAdded: called when a case was written.
    """

    def __init__(self, section, dataSetPanel: DataSetPanel, onAdded: Callable[[], None]):
        self._section, self._ui = section, slicer.util.childWidgetVariables(section)
        self._dataSetPanel, self._onAdded = dataSetPanel, onAdded
        ui = self._ui
        self._timer = singleShotTimer(section, self.fill)
        self._problem = ""
        self._proposed = ""
        self._names: list[str] = []
        self.channels = ChannelSelectors(section.layout(), 1, ui.newChannelsEdit, self.update)
        ui.newChannelsEdit.connect("editingFinished()", self.refresh)
        stayNarrow(ui.sceneLabelsSelector)
        ui.sceneLabelsSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.update)
        ui.caseNameEdit.connect("textChanged(QString)", self._checkCanAdd)
        ui.addCaseButton.connect("clicked(bool)", self._onAdd)
        section.connect("contentsCollapsed(bool)", self._onCollapsed)

    def refresh(self) -> None:
        """Called when another folder was chosen, or its contents have changed."""
        self._problem, description, folder = "", None, self._dataSetPanel.folder
        if folder is None:
            self._problem = _("Choose the folder of a data set, or a new one, above.")
        else:
            try:
                description = describe(folder)
            except UserError as error:
                self._problem = errorSentence(error)
        isNew = description is None and not self._problem
        self._ui.newChannelsLabel.visible = self._ui.newChannelsEdit.visible = isNew
        names = description.without_cases.channels if description else self._ui.newChannelsEdit.text.split(",")
        self._names = list(dict.fromkeys(name.strip() for name in names if name.strip())) if not self._problem else []
        self.channels.setInputs([Input(name, modality=name) for name in self._names])
        self.fill()

    def fill(self) -> None:
        """Choose volumes by their names for empty channels, and a segmentation if there is only one."""
        if self._section.collapsed:
            return
        self.channels.fillEmpty()
        selector = self._ui.sceneLabelsSelector
        if selector.currentNode() is None and selector.nodeCount() == 1:
            selector.setCurrentNodeIndex(0)
        self.update()

    def fillLater(self) -> None:
        """Call `fill` once newly added nodes have their names and images."""
        if not self._section.collapsed:
            self._timer.start()

    def close(self) -> None:
        self._timer.stop()

    def update(self, _node=None) -> None:
        """Propose a name, unless the user has entered one, and check whether the case can be added."""
        first = self.channels.firstNode
        if first is not None and self._ui.caseNameEdit.text in ("", self._proposed):
            self._proposed = proposedName(self._dataSetPanel.dataSet, first.GetName())
            self._ui.caseNameEdit.text = self._proposed
        self._checkCanAdd()

    def _onCollapsed(self, collapsed: bool) -> None:
        if not collapsed:
            self.refresh()

    def _checkCanAdd(self, _text: str = "") -> None:
        # Until the data set is read, the channels are those of the previous folder.
        problem = "" if self._dataSetPanel.isSettled else self._dataSetPanel.problem
        problem = problem or self._problem or self.channels.problem()
        if not problem and not self._names:
            problem = _("Enter the names of the channels of the new data set.")
        if not problem and self._ui.sceneLabelsSelector.currentNode() is None:
            problem = _("Choose the segmentation of these volumes.")
        if not problem and not self._ui.caseNameEdit.text.strip():
            problem = _("Enter a name for the case.")
        tip = _("Save the volumes and segments as a case of the data set, on the voxel grid of the first volume.")
        offer(self._ui.addCaseButton, problem, self.channels.hint() or tip)

    def _onAdd(self) -> None:
        folder, name = self._dataSetPanel.folder, self._ui.caseNameEdit.text.strip()
        labelsNode = self._ui.sceneLabelsSelector.currentNode()
        nodes = dict(zip(self._names, self.channels.nodes, strict=True))
        try:
            with slicer.util.WaitCursor():
                arrays, grid = channelArrays(nodes)
                masks = segmentMasks(labelsNode, self.channels.firstNode)
                addCase(folder, name, arrays, masks, grid)
        except UserError as error:
            say(self._ui.sceneCaseStatusLabel, error)
            return
        self._proposed = self._ui.caseNameEdit.text
        self._dataSetPanel.namesSeen.add(name)
        self._onAdded()
        sentence = _("Added the case {name}: {segments}.").format(name=name, segments=", ".join(masks))
        say(self._ui.sceneCaseStatusLabel, sentence)
