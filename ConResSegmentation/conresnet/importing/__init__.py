"""Convert checkpoints of the paper's authors to model packages; the defaults are those of their BraTS 2018 models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conresnet.errors import UserError
from conresnet.package import FORMAT, FORMAT_VERSION, ModelDescription, describe_new
from conresnet.package.reader import ModelPackage
from conresnet.package.store import write_package

CHECKPOINT_SUFFIXES = (".pth", ".pt")
WEIGHTS_FILE = "network.safetensors"
# What settings may replace; the rest follows from the checkpoint.
SETTINGS = (
    *("name", "title", "version", "description", "license", "attribution", "citations", "training_data"),
    *("intended_use", "limitations", "inputs", "preparation", "inference", "output"),
)
# Of these a setting replaces single keys, of the others the whole.
_MERGED = ("preparation", "inference")

# Each channel by itself: the sparse end of its histogram clipped, then the z-score over what differs from the corner.
INTENSITY = [
    {"step": "clip_sparse_tail", "bins": "int_max", "min_count": 50},
    {"step": "z_score", "over": "foreground", "outside": "zero"},
]
# The authors' windows step by ceil(2/3) of a side, are averaged with equal weight, and never mirrored.
INFERENCE = {
    "authors": {"tiling": "authors", "overlap": 1 / 3, "blending": "uniform"},
    "fitted": {"tiling": "fitted", "overlap": 0.25, "blending": "gaussian"},
}
COLORS = ([230, 80, 60], [110, 180, 110], [240, 190, 70], [100, 150, 220], [190, 120, 200], [120, 200, 200])

_NEOPLASM_OF_BRAIN = {
    "category": {"scheme": "SCT", "value": "49755003", "meaning": "Morphologically Altered Structure"},
    "type": {"scheme": "SCT", "value": "108369006", "meaning": "Neoplasm"},
    "region": {"scheme": "SCT", "value": "12738006", "meaning": "Brain"},
}
# What scans after a contrast agent are called besides T1ce, and the contrary, which has the same word in it.
_WITH_CONTRAST = [
    *("t1ce", "t1c", "t1gd", "gd", "gad", "gadolinium"),
    *("t1wce", "ct1", "t1 km", "postcontrast", "post contrast"),
]
_WITHOUT_CONTRAST = ["precontrast", "pre contrast", "noncontrast", "non contrast", "no contrast", "without contrast"]
# The channels' names in files: of BraTS until 2021 and since 2023 (t1n, t1c, t2w, t2f), research and hospitals;
# T2FSE has a word of its own, since it begins as t2f does. Below, the regions with the values they are painted by.
CHANNELS = [
    {"name": "FLAIR", "keywords": ["flair", "t2flair", "t2f", "dark fluid"], "exclude_keywords": []},
    {"name": "T1", "keywords": ["t1", "t1n", "t1w", "mprage", "spgr"], "exclude_keywords": [*_WITH_CONTRAST, "flair"]},
    {
        "name": "T1ce",
        "keywords": [*_WITH_CONTRAST, "t1post", "t1 post", "contrast"],
        "exclude_keywords": [*_WITHOUT_CONTRAST, "flair"],
    },
    {"name": "T2", "keywords": ["t2", "t2w", "t2fse"], "exclude_keywords": ["flair", "t2flair", "dark fluid"]},
]
SEGMENTS = [
    {"name": "Enhancing tumor", "label": 4, "color": COLORS[0], "includes": []},
    {"name": "Whole tumor", "label": 2, "color": COLORS[1], "includes": ["Enhancing tumor", "Tumor core"]},
    {"name": "Tumor core", "label": 1, "color": COLORS[2], "includes": ["Enhancing tumor"]},
]
SEGMENTS = [{**segment, "terminology": _NEOPLASM_OF_BRAIN} for segment in SEGMENTS]
TITLE = "Brain tumor (BraTS 2018)"
_BRATS = {
    "title": TITLE,
    "version": "1.0.0",
    "description": "Glioma regions in four MR channels, segmented by a network that the authors of ConResNet trained.",
    "license": "Not stated in the checkpoint; ask its authors",
    "citations": [
        "J. Zhang, Y. Xie, Y. Wang, Y. Xia: Inter-slice Context Residual Learning for 3D Medical Image Segmentation. "
        "IEEE Transactions on Medical Imaging 40(2):661-672, 2021."
    ],
    "training_data": "BraTS 2018, as the authors of the checkpoint state",
    "intended_use": "Research on images prepared as for BraTS: skull-stripped, registered, 1 mm.",
    "limitations": "Not a medical device. Imported from a checkpoint; its figures were not measured here.",
    "inputs": CHANNELS,
    # The array (i, j, k) of a BraTS file, whose axes run left, posterior, superior, taken as S = k, H = i, W = j.
    "preparation": {"orientation": "SLP", "spacing": None, "foreground": "not_background", "roi": "limit"},
    "inference": {"window": [80, 160, 160], "mirror_axes": [], **INFERENCE["authors"]},
    "output": {
        "kind": "regions",
        "threshold": 0.5,
        "segments": SEGMENTS,
        "paint_order": ["Whole tumor", "Tumor core", "Enhancing tumor"],
    },
}


def inputs_named(channels: Sequence[str]) -> list[dict[str, Any]]:
    """The setting ``inputs`` for channels that are known by their names alone."""
    return [{"name": channel, "keywords": [channel.lower()]} for channel in channels]


def segments_named(texts: Sequence[str]) -> dict[str, Any]:
    """The setting ``output`` for segments as NAME=LABEL. Raises UserError("import-segment-form")."""
    segments = []
    for index, text in enumerate(texts):
        name, _, label = text.rpartition("=")
        if not name or not re.fullmatch("[0-9]{1,9}", label.strip()):
            raise UserError("import-segment-form", text=text)
        segments.append({"name": name.strip(), "label": int(label), "color": COLORS[index % len(COLORS)]})
    return {"kind": "regions", "segments": segments}


def spacing_named(texts: Sequence[str]) -> list[float]:
    """The spacing in mm from the text of its numbers. Raises UserError("import-spacing-form")."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UserError("import-spacing-form", text=",".join(texts)) from None


def describe(arguments: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> ModelDescription:
    """The description of a model with an authors' network.

    Args:
        arguments: the network's, from `conresnet.importing.checkpoint.convert`.
        settings: fields of `model.json` that replace those of the BraTS 2018 models, ``name`` at least. Of
            ``preparation`` and ``inference`` single keys are replaced; an input needs its name alone.
        source: the checkpoint, for messages.

    Raises:
        UserError: ``import-setting-unknown``, ``import-channels-differ``, or as `describe_new`.
    """
    for key in settings:
        if key not in SETTINGS:
            raise UserError("import-setting-unknown", path=source, key=str(key), known=", ".join(SETTINGS))
    document = {**_BRATS, **settings}
    for key in _MERGED:
        if isinstance(settings.get(key), Mapping):
            document[key] = {**_BRATS[key], **settings[key]}
    network = {"type": "conresnet", "arguments": dict(arguments), "weights": WEIGHTS_FILE}
    document["system"] = {"type": "single", "networks": [network]}
    inputs = document["inputs"]
    if isinstance(inputs, list) and all(isinstance(item, Mapping) for item in inputs):
        document["inputs"] = [{"modality": "MR", "intensity": INTENSITY, **item} for item in inputs]
    _check_counts(document, arguments, source)
    return describe_new({"format": FORMAT, "format_version": FORMAT_VERSION, **document})


def _check_counts(document: Mapping[str, Any], arguments: Mapping[str, Any], source: str) -> None:
    """Report a wrong count in terms of the import, before the reader does so in terms of a description."""
    inputs, output = document["inputs"], document["output"]
    segments = output.get("segments") if isinstance(output, Mapping) else None
    if not isinstance(inputs, list) or not isinstance(segments, list):
        return
    outputs = arguments["outputs"] - (output.get("kind") == "labels")
    if len(inputs) != arguments["input_channels"] or len(segments) != outputs:
        given = {"given_channels": len(inputs), "given_segments": len(segments)}
        channels = arguments["input_channels"]
        raise UserError("import-channels-differ", path=source, channels=channels, segments=outputs, **given)


def import_checkpoint(
    checkpoint: Path, settings: Mapping[str, Any], output: Path, overwrite: bool = False
) -> tuple[ModelPackage, str]:
    """Write a model package from a checkpoint by the paper's authors.

    Args:
        settings: see ``describe``.
        output: the package: a .zip file if its name ends in .zip, otherwise a folder.
        overwrite: whether it may replace an existing package.

    Returns:
        The package; and where in the checkpoint a running average of the weights was found, which was taken, or "".

    Raises:
        UserError: as ``read_checkpoint`` and ``convert`` for the checkpoint, ``describe`` for the settings, and
            ``write_package``.
    """
    import safetensors.torch

    from conresnet.importing.checkpoint import convert, read_checkpoint

    read = read_checkpoint(checkpoint)
    arguments, weights = convert(read.tensors, checkpoint)
    description = describe(arguments, settings, str(checkpoint))
    package = write_package(description, {WEIGHTS_FILE: safetensors.torch.save(weights)}, output, overwrite)
    return package, read.average


def network_arguments(checkpoint: Path) -> dict[str, Any]:
    """The arguments of the network in a checkpoint. Raises UserError as ``read_checkpoint`` and ``convert``."""
    from conresnet.importing.checkpoint import convert, read_checkpoint

    return convert(read_checkpoint(checkpoint).tensors, checkpoint)[0]


def model_name(text: str) -> str:
    """The valid model name that is closest to a text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100].strip("-._") or "imported"
