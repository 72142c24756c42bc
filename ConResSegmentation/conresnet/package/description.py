"""The description of a model, `model.json`: what it takes, how it computes, what comes out, and who made it from what.

The dataclasses here are its schema; a whole example stands in the docstring of `conresnet.package`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from conresnet.package.terminology import Terminology

FORMAT = "conresnet-model"
# Version 2 added the copies of an input, regions that hold others, and systems and intensity steps that version 1 did
# not know; version 3 what an ROI means to a model.
FORMAT_VERSION = 3
DESCRIPTION_FILE = "model.json"
CARD_FILE = "MODEL_CARD.md"
WEIGHTS_SUFFIX = ".safetensors"
AXES = ("S", "H", "W")
ROI_USES = ("limit", "cut")
FOREGROUNDS = ("not_background", "all")
TILINGS = ("fitted", "authors")
BLENDINGS = ("gaussian", "uniform")

# The plane of slices that follow one another in a direction.
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}


@dataclass(frozen=True)
class Input:
    """One image: name, modality, words in a node's or file's name that speak for or against it, intensity steps.

    It is one channel of the network by its ``intensity``, and one more by the steps of each of its ``copies``.
    """

    name: str
    modality: str
    keywords: tuple[str, ...]
    exclude_keywords: tuple[str, ...]
    intensity: tuple[dict[str, Any], ...]
    copies: tuple[tuple[dict[str, Any], ...], ...] = ()

    @property
    def channels(self) -> tuple[tuple[dict[str, Any], ...], ...]:
        """The intensity steps of each of its channels, in the network's order: its own, then those of its copies."""
        return (self.intensity, *self.copies)


@dataclass(frozen=True)
class Preparation:
    """The model's space: direction of increasing index along (S, H, W), voxel size in mm (None: the image's own).

    ``roi`` is what an ROI does. "cut": nothing else is seen of the image, as for a model that learned from crops around
    its structure. "limit": intensity is measured on the whole image and the network sees what is around the ROI, as for
    a model that learned from whole scans; only the result ends there.
    """

    orientation: str
    spacing: tuple[float, float, float] | None
    foreground: str
    roi: str


@dataclass(frozen=True)
class Network:
    """One network of the system: type and arguments for `conresnet.networks.build_network`, and its weights' file."""

    type: str
    arguments: dict[str, Any]
    weights: str


@dataclass(frozen=True)
class System:
    """How networks make a segmentation; `arguments` are the system's own, such as a margin."""

    type: str
    networks: tuple[Network, ...]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Inference:
    """The sliding-window pass: window in voxels (S, H, W), overlap as a fraction of it, axes to mirror (of S, H, W)."""

    window: tuple[int, int, int]
    overlap: float
    tiling: str
    blending: str
    mirror_axes: tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """One output structure: name, value in the labelmap (1 to 255), color (red, green, blue; 0 to 255), codes.

    Of regions also the names of those that are part of it, as the enhancing tumor is of the whole tumor.
    """

    name: str
    label: int
    color: tuple[int, int, int]
    terminology: Terminology | None
    includes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """What comes out, in the order of the network's output channels.

    ``labels``: one softmax over the background and the segments. ``regions``: one sigmoid a segment, cut at `threshold`
    and painted in `paint_order` (names), a later one over an earlier one. Where a region is, those that include it are
    too, whatever the network says: so a region is the same by itself and in a labelmap, by the values of its parts.
    """

    kind: str
    threshold: float
    segments: tuple[Segment, ...]
    paint_order: tuple[str, ...]


@dataclass(frozen=True)
class PackedFile:
    """What a file of the package must be: its SHA-256 in hexadecimal, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelDescription:
    """A whole `model.json`; made by `parse_description`, which has checked it."""

    name: str
    title: str
    version: str
    description: str
    license: str
    attribution: str
    citations: tuple[str, ...]
    training_data: str
    intended_use: str
    limitations: str
    inputs: tuple[Input, ...]
    preparation: Preparation
    system: System
    inference: Inference
    output: Output
    files: dict[str, PackedFile]

    @property
    def channel_count(self) -> int:
        """The channels that the network takes: each input and its copies."""
        return sum(len(item.channels) for item in self.inputs)

    @property
    def residual_axis(self) -> str:
        """The anatomical plane whose neighboring slices the residual compares: axial, coronal or sagittal."""
        axis = self.system.networks[0].arguments.get("residual_axis", "S")
        return PLANES[self.preparation.orientation[AXES.index(axis)]]

    def with_files(self, files: Mapping[str, PackedFile]) -> "ModelDescription":
        """The same description of other files, as the writer makes it."""
        return replace(self, files=dict(files))

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON knows it; `parse_description` brings it back."""
        inputs = [
            {
                **vars(item),
                **_lists(item, "keywords", "exclude_keywords", "intensity"),
                "copies": [list(steps) for steps in item.copies],
            }
            for item in self.inputs
        ]
        spacing = self.preparation.spacing
        system = {**vars(self.system), "networks": [dict(vars(network)) for network in self.system.networks]}
        segments = [
            {
                **vars(segment),
                **_lists(segment, "color", "includes"),
                "terminology": segment.terminology.to_dict() if segment.terminology else None,
            }
            for segment in self.output.segments
        ]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **vars(self),
            "citations": list(self.citations),
            "residual_axis": self.residual_axis,
            "inputs": inputs,
            "preparation": {**vars(self.preparation), "spacing": list(spacing) if spacing else None},
            "system": system,
            "inference": {**vars(self.inference), **_lists(self.inference, "window", "mirror_axes")},
            "output": {**vars(self.output), "segments": segments, "paint_order": list(self.output.paint_order)},
            "files": {name: dict(vars(entry)) for name, entry in self.files.items()},
        }

    def to_json(self) -> str:
        """The text of `model.json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _lists(item: object, *names: str) -> dict[str, list]:
    return {name: list(getattr(item, name)) for name in names}
