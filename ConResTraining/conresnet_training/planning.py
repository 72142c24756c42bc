"""A plan made from the data: what the cases are decides spacing, window and segments."""

import statistics
from pathlib import Path

import SimpleITK as sitk

from conresnet_training.data_sets import DataSet
from conresnet_training.plan import Plan

COLORS = ([111, 184, 210], [216, 101, 79], [128, 174, 128], [241, 214, 145], [177, 122, 101], [192, 104, 88])
MULTIPLE = 8
LARGEST_WINDOW = (80, 160, 160)


def make_plan(data_set: DataSet, folder: Path) -> Plan:
    """Plan a run from what the data are: median spacing and size, one segment a label, per-channel z-scores."""
    spacings, sizes = zip(*(_spacing_and_size(case.images[0]) for case in data_set.cases), strict=True)
    spacing = [statistics.median(values) for values in zip(*spacings, strict=True)]
    size = [statistics.median(values) for values in zip(*sizes, strict=True)]
    window = [min(-(-int(n) // MULTIPLE) * MULTIPLE, most) for n, most in zip(size, LARGEST_WINDOW, strict=True)]
    segments = [
        {"name": name, "label": value, "color": COLORS[place % len(COLORS)]}
        for place, (value, name) in enumerate(sorted(data_set.labels.items()))
    ]
    steps = [
        {"step": "clip_percentiles", "low": 0.5, "high": 99.5},
        {"step": "z_score", "over": "foreground", "outside": "keep"},
    ]
    model = {
        "format": "conresnet-model",
        "format_version": 1,
        "name": "".join(letter if letter.isalnum() else "-" for letter in data_set.name.lower()),
        "title": data_set.name,
        "version": "1.0.0",
        "description": "",
        "license": data_set.licence or "not stated",
        "attribution": "",
        "citations": [],
        "training_data": data_set.name,
        "intended_use": "Research only, not for diagnosis.",
        "limitations": "",
        "inputs": [
            {"name": name, "modality": name, "keywords": [], "exclude_keywords": [], "intensity": steps}
            for name in data_set.channels
        ],
        "preparation": {
            "orientation": "SAR",
            "spacing": [round(mm, 4) for mm in spacing],
            "foreground": "not_background",
        },
        "system": {
            "type": "single",
            "networks": [
                {
                    "type": "conresnet",
                    "arguments": {
                        "input_channels": len(data_set.channels),
                        "outputs": len(segments) + 1,
                        "residual_outputs": len(segments),
                        "base_width": 16,
                        "residual_axis": "S",
                        "residual_mapping": True,
                        "attention_mapping": True,
                        "dropout": 0.1,
                    },
                    "weights": "network.safetensors",
                }
            ],
        },
        "inference": {"window": window, "overlap": 0.5, "tiling": "fitted", "blending": "gaussian", "mirror_axes": []},
        "output": {
            "kind": "labels",
            "threshold": 0.5,
            "segments": segments,
            "paint_order": [segment["name"] for segment in segments],
        },
    }
    targets = {segment["name"]: [segment["label"]] for segment in segments}
    return Plan(data=folder.resolve(), targets=targets, model=model)


def _spacing_and_size(path: Path) -> tuple[list[float], list[float]]:
    """Of an image in the order (S, H, W) of orientation SAR, read from its header alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    direction = [reader.GetDirection()[row * reader.GetDimension() + column] for row in range(3) for column in range(3)]
    order = [max(range(3), key=lambda axis, row=row: abs(direction[row * 3 + axis])) for row in (2, 1, 0)]
    return [reader.GetSpacing()[axis] for axis in order], [reader.GetSize()[axis] for axis in order]
