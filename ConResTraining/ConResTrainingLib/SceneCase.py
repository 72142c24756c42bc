"""New cases for a folder in the form of the Medical Segmentation Decathlon, which is made where there is none.

What a case of a data set takes from the scene: volumes brought onto one grid, and segments as masks on it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet.images.grid import LPS_TO_RAS, Grid
from conresnet.images.resampling import sample
from conresnet_training.data.data_set import DataSet
from conresnet_training.data.description import FILE_NAME, Description, read_description
from conresnet_training.data.layouts import is_nnunet
from ConResSegmentationLib.SceneInputs import volumeInput

_NAME = re.compile(r"[^\W_][\w.-]*")


def describe(folder: Path) -> Description | None:
    """What a folder's dataset.json says; None where there is none yet.

    Raises:
        UserError: where cases cannot be added: ``data-set-invalid``, ``data-set-other-layout`` or
            ``data-set-with-regions``.
    """
    if not (folder / FILE_NAME).is_file():
        if folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
            sentence = _("{folder} is no data set, and not empty; choose a new folder for a new data set.")
            raise UserError("data-set-other-layout", sentence.format(folder=folder))
        return None
    description = read_description(folder / FILE_NAME)
    if is_nnunet(description):
        sentence = _(
            "{folder} has the layout of nnU-Net; cases can be added to one of the Medical Segmentation Decathlon, or "
            "to a new folder."
        )
        raise UserError("data-set-other-layout", sentence.format(folder=folder))
    if description.regions:
        sentence = _(
            "The labels of {folder} overlap as regions, which no single label map can hold; choose another one."
        )
        raise UserError("data-set-with-regions", sentence.format(folder=folder))
    return description


def addCase(
    folder: Path,
    name: str,
    channels: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    grid: Grid,
) -> None:
    """Write a case and add it to dataset.json, last, so that a data set never names what is not there.

    Args:
        folder: the data set's; made where it is not there.
        name: of the case, and of its files.
        channels: [k, j, i] by the channel's name, in order; all on ``grid``.
        masks: boolean [k, j, i] by the segment's name.
        grid: where the voxels lie.

    Raises:
        UserError: ``case-name-invalid``, ``case-repeated``, ``channels-differ``, ``segment-unknown``,
            ``segments-overlap``, ``segments-empty``, ``grid-sheared``, those of `describe`, or of writing.
    """
    description = describe(folder)
    _checkName(folder, name, description)
    if description and list(description.channels) != list(channels):
        sentence = _("The data set has the channels {wanted}, and the case has {given}.")
        values = {"wanted": ", ".join(description.channels), "given": ", ".join(channels)}
        raise UserError("channels-differ", sentence.format(**values))
    labels = description.labels if description else dict(enumerate(masks, start=1))
    label = _labelMap(masks, _valuesByName(labels, masks))
    _checkAxes(grid)
    arrays = list(channels.values())
    image = arrays[0] if len(arrays) == 1 else np.stack([array.astype(np.float32) for array in arrays])
    for kind, array in (("imagesTr", image), ("labelsTr", label)):
        try:
            (folder / kind).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sentence = _("{folder} cannot be written to ({reason}); choose another folder.")
            raise UserError("cannot-write", sentence.format(folder=folder, reason=error.strerror)) from error
        _writeImage(array, grid, folder / kind / f"{name}.nii.gz")
    content = dict(description.content) if description else _newContent(folder, channels, labels)
    entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
    content["training"] = [*content.get("training", []), entry]
    content["numTraining"] = len(content["training"])
    with replacing(folder / FILE_NAME) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def proposedName(dataSet: DataSet | None, wished: str) -> str:
    """A name for a case that no other has, as near to a wish as file names allow."""
    base = re.sub(r"[^\w.-]+", "_", wished).strip("._-") or "case"
    taken = {case.name.casefold() for case in dataSet.cases} if dataSet else set()
    name, number = base, 2
    while name.casefold() in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _checkName(folder: Path, name: str, description: Description | None) -> None:
    if not _NAME.fullmatch(name):
        sentence = _(
            '"{name}" cannot name a case; use letters, digits, dots, - and _, and begin with a letter or digit.'
        )
        raise UserError("case-name-invalid", sentence.format(name=name))
    there = [folder / kind / f"{name}.nii.gz" for kind in ("imagesTr", "labelsTr")]
    if any(path.exists() for path in there):
        sentence = _("The data set has a case {name} already; choose another name.")
        raise UserError("case-repeated", sentence.format(name=name))


def _valuesByName(labels: Mapping[int, str], masks: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The label value of each segment, found by its name."""
    values = {name.casefold(): value for value, name in labels.items()}
    unknown = [name for name in masks if name.strip().casefold() not in values]
    if unknown:
        sentence = _(
            "The data set has no label {segments}; its labels are {labels}. Rename the segments, or remove them."
        )
        raise UserError(
            "segment-unknown", sentence.format(segments=", ".join(unknown), labels=", ".join(labels.values()))
        )
    return {name: values[name.strip().casefold()] for name in masks}


def _labelMap(masks: Mapping[str, np.ndarray], values: Mapping[str, int]) -> np.ndarray:
    label = None
    for name, mask in masks.items():
        if label is None:
            label = np.zeros(mask.shape, np.uint8)
        if (label[mask] != 0).any():
            sentence = _("The segment {name} overlaps another one, which no label map can hold; separate them first.")
            raise UserError("segments-overlap", sentence.format(name=name))
        label[mask] = values[name]
    if label is None or not label.any():
        raise UserError("segments-empty", _("There is nothing segmented in the image; choose another segmentation."))
    return label


def _checkAxes(grid: Grid) -> None:
    axes = grid.direction
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        sentence = _(
            "The axes of the volume are not at right angles, which NIfTI files cannot hold; resample it first."
        )
        raise UserError("grid-sheared", sentence)


def _writeImage(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Write [k, j, i], or [c, k, j, i] as a 4-D file; Slicer's Python has no nibabel."""
    array = array.astype(np.float32) if array.dtype in (np.float16, np.float64, np.int64, np.uint64) else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=False)
    # LPS_TO_RAS is its own inverse, and ITK counts in LPS.
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


def _newContent(folder: Path, channels: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> dict:
    return {
        "name": folder.name,
        "description": "",
        "licence": "",
        "tensorImageSize": "3D" if len(channels) == 1 else "4D",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {"0": "background", **{str(value): name for value, name in labels.items()}},
        "numTraining": 0,
        "training": [],
    }


def channelArrays(nodes: dict[str, object]) -> tuple[dict[str, np.ndarray], Grid]:
    """The voxels of each channel's volume, [k, j, i] by its name, on the grid of the first, which is returned too.

    Raises:
        UserError: as ``volumeInput`` does.
    """
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
    """Boolean [k, j, i] on the voxels of a volume, by the segment's name.

    Args:
        node: a segmentation, or a label map, whose labels go by the names in its color table.
        volumeNode: the first channel.

    Raises:
        UserError: ``segment-name-repeated``, ``label-grid-differs`` or ``label-unnamed``.
    """
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _labelMasks(node, volumeNode)
    segmentation = node.GetSegmentation()
    masks = {}
    for number in range(segmentation.GetNumberOfSegments()):
        segmentId, name = segmentation.GetNthSegmentID(number), segmentation.GetNthSegment(number).GetName()
        if name in masks:
            sentence = _("Two segments are named {name}; rename one of them.")
            raise UserError("segment-name-repeated", sentence.format(name=name))
        # Slicer brings the segment onto the grid of the volume, the transforms above both included.
        masks[name] = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, volumeNode) != 0
    return masks


def _labelMasks(node, volumeNode) -> dict[str, np.ndarray]:
    labels = volumeInput(node)
    if not labels.grid.matches(volumeInput(volumeNode).grid):
        sentence = _(
            "The label map {label} does not lie on the voxels of {volume}; resample it, or make it a segmentation."
        )
        names = {"label": node.GetName(), "volume": volumeNode.GetName()}
        raise UserError("label-grid-differs", sentence.format(**names))
    display = node.GetDisplayNode()
    colors = display.GetColorNode() if display else None
    masks = {}
    for value in np.unique(labels.array[labels.array != 0]):
        name = (colors.GetColorName(int(value)) if colors and value < colors.GetNumberOfColors() else "") or ""
        if not name or name in masks:
            sentence = _(
                "The value {value} of the label map {label} has no name of its own in its color table; name it."
            )
            raise UserError("label-unnamed", sentence.format(value=value, label=node.GetName()))
        masks[name] = labels.array == value
    return masks
