"""A small model package that tests can write, change and damage."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from conresnet.errors import UserError

WEIGHTS = "network.safetensors"
ARGUMENTS = {"input_channels": 1, "outputs": 3, "residual_outputs": 2}


def safetensors_bytes(numbers: int = 8) -> bytes:
    """A safetensors file with one float32 tensor named ``weight``."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * numbers)


def document(**changes: Any) -> dict[str, Any]:
    """A complete and valid `model.json` without its files; top-level fields are changed as given."""
    description = {
        "format": "conresnet-model",
        "format_version": 3,
        "name": "organ",
        "title": "An organ",
        "version": "1.2.0",
        "license": "CC-BY-4.0",
        "inputs": [{"name": "CT", "modality": "CT", "intensity": [{"step": "clip", "low": -100, "high": 240}]}],
        "preparation": {"orientation": "SAR", "spacing": [2, 1, 1], "foreground": "all", "roi": "cut"},
        "system": {
            "type": "single",
            "networks": [{"type": "conresnet", "arguments": dict(ARGUMENTS), "weights": WEIGHTS}],
        },
        "inference": {"window": [16, 32, 32], "overlap": 0.5, "tiling": "fitted", "blending": "gaussian"},
        "output": {
            "kind": "labels",
            "segments": [
                {
                    "name": "Left part",
                    "label": 1,
                    "color": [200, 100, 50],
                    "terminology": {
                        "category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"},
                        "type": {"scheme": "SCT", "value": "64033007", "meaning": "Kidney"},
                        "type_modifier": {"scheme": "SCT", "value": "7771000", "meaning": "Left"},
                    },
                },
                {"name": "Right part", "label": 2, "color": [50, 100, 200]},
            ],
        },
    }
    return {**copy.deepcopy(description), **changes}


def older(description: dict[str, Any], version: int) -> dict[str, Any]:
    """The document as it was before version 3 of the format, which introduced the meaning of an ROI."""
    preparation = {key: value for key, value in description["preparation"].items() if key != "roi"}
    return {**description, "format_version": version, "preparation": preparation}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid document with one value replaced; `path` is like ``output.segments.0.label``."""
    description = document()
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = description
    for step in steps:
        place = place[step]
    place[last] = value
    return description


def make_folder(path: Path, description: dict[str, Any] | None = None, files: dict[str, bytes] | None = None) -> Path:
    """Create a package folder on disk without the package writer, so that it may be invalid in any way."""
    path.mkdir(parents=True)
    files = {WEIGHTS: safetensors_bytes()} if files is None else files
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    for name, data in files.items():
        (path / name).write_bytes(data)
    text = json.dumps({**(description or document()), "files": listed})
    (path / "model.json").write_text(text, encoding="utf-8")
    return path


def refusal(code: str, function, *arguments: Any, **keywords: Any) -> str:
    """Call the function and return the message of the `UserError` with this `code` that it must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = caught.value.message
    assert caught.value.code == code, message
    assert "\n" not in message and message.endswith((".", "?")), message
    return message
