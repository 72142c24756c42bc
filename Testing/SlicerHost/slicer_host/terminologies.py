"""The few codes that Slicer's terminology logic needs to start; Slicer's own long lists come with the application."""

from __future__ import annotations

import json
from pathlib import Path

_SCHEMAS = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/"
# SNOMED CT codes of DICOM's CID 7150, with one general type in each category.
_CATEGORIES = (
    ("Tissue", "85756007", "Tissue", "85756007", [128, 174, 128]),
    ("Anatomical Structure", "123037004", "Anatomical Structure", "123037004", [221, 130, 101]),
    ("Morphologically Altered Structure", "49755003", "Neoplasm", "108369006", [144, 238, 144]),
)


def _code(meaning: str, value: str, **more: object) -> dict:
    return {"CodeMeaning": meaning, "CodingSchemeDesignator": "SCT", "CodeValue": value, **more}


def write_terminologies(folder: Path) -> Path:
    """Write the three files that the logic reads when it starts; returns the folder."""
    folder.mkdir(parents=True)
    categories = [
        _code(name, value, Type=[_code(type_name, type_value, recommendedDisplayRGBValue=color)])
        for name, value, type_name, type_value, color in _CATEGORIES
    ]
    for title, file in (("3D Slicer General Anatomy", "SlicerGeneralAnatomy"), ("DICOM master", "DICOM-Master")):
        content = {
            "SegmentationCategoryTypeContextName": f"Segmentation category and type - {title} list",
            "@schema": _SCHEMAS + "segment-context-schema.json#",
            "SegmentationCodes": {"Category": categories},
        }
        (folder / f"SegmentationCategoryTypeModifier-{file}.term.json").write_text(
            json.dumps(content), encoding="utf-8"
        )
    regions = {
        "AnatomicContextName": "Anatomic codes - DICOM master list",
        "@schema": _SCHEMAS + "anatomic-context-schema.json#",
        "AnatomicCodes": {"AnatomicRegion": [_code("Brain", "12738006")]},
    }
    (folder / "AnatomicRegionAndModifier-DICOM-Master.term.json").write_text(json.dumps(regions), encoding="utf-8")
    return folder
