"""The few codes that Slicer's terminology logic needs at start. Slicer's own lists are part of the application."""

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

# Types from Slicer's DICOM master list, which has them in no other category, and whether they have modifiers.
_STRUCTURES = (
    ("Hippocampus", "5366008", True),
    ("Cerebrospinal Fluid", "65216001", True),
    ("Gray Matter", "389081007", False),
    ("White Matter", "389080008", False),
    ("Cerebral White Matter", "68523003", True),
    ("Cerebral cortex", "40146001", True),
    ("Lateral ventricle", "66720007", True),
    ("Third ventricle", "49841001", False),
    ("Fourth ventricle", "35918002", False),
    ("Cerebellum", "113305005", False),
    ("Cerebellar white matter", "33060004", False),
    ("Thalamus", "42695009", True),
    ("Caudate nucleus", "11000004", True),
    ("Putamen", "89278009", True),
    ("Globus pallidus", "14738005", True),
    ("Brain stem", "119238007", False),
    ("Amygdala", "4958002", True),
    ("Nucleus accumbens", "427667007", True),
    ("Diencephalon", "87563008", False),
    ("Spinal cord", "2748008", False),
    ("Parotid gland", "45289007", True),
    ("Mandible", "91609006", False),
)
_SIDES = (("Right", "24028007"), ("Left", "7771000"), ("Right and left", "51440002"))


def _code(meaning: str, value: str, **more: object) -> dict:
    return {"CodeMeaning": meaning, "CodingSchemeDesignator": "SCT", "CodeValue": value, **more}


def write_terminologies(folder: Path) -> Path:
    """Write the three files that the logic reads when it starts; returns the folder."""
    folder.mkdir(parents=True)
    categories = [
        _code(name, value, Type=[_code(type_name, type_value, recommendedDisplayRGBValue=color)])
        for name, value, type_name, type_value, color in _CATEGORIES
    ]
    gray = [128, 128, 128]
    structures = [
        _code(name, value, recommendedDisplayRGBValue=gray)
        | ({"Modifier": [_code(*side, recommendedDisplayRGBValue=gray) for side in _SIDES]} if has_sides else {})
        for name, value, has_sides in _STRUCTURES
    ]
    for title, file in (("3D Slicer General Anatomy", "SlicerGeneralAnatomy"), ("DICOM master", "DICOM-Master")):
        if file == "DICOM-Master":
            categories = [
                {**one, "Type": one["Type"] + structures} if one["CodeMeaning"] == "Anatomical Structure" else one
                for one in categories
            ]
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
