"""Segment names that contain a side of the body: such samples are never flipped left to right."""

import pytest

from conresnet_training.planning.planner import planned_flips


@pytest.mark.parametrize(
    "names",
    [
        ("left kidney", "right kidney"),
        ("LeftLung", "RightLung"),
        ("kidneyLeft", "kidneyRight"),
        ("kidneyleft", "kidneyright"),
        ("ParotidL", "ParotidR"),
        ("LKidney", "RKidney"),
        ("Lkidney", "Rkidney"),
        ("lhippo", "rhippo"),
        ("liver", "rkid", "lkid"),
        ("LK", "RK"),
        ("optic nerve2l", "optic nerve2r"),
        ("rein gauche", "foie"),
        ("Niere links", "Niere rechts"),
        ("Linke Niere", "Leber"),
        ("riñón izquierdo", "riñón derecho"),
        ("左肾", "右肾"),
        ("ParotidL",),
    ],
)
def test_names_with_sides_are_not_flipped(names):
    assert planned_flips("SAR", names) == []
    assert planned_flips("SAR", names[::-1]) == []


@pytest.mark.parametrize(
    "names",
    [
        ("Liver", "Lung", "Kidney"),
        ("Renal cortex", "Lesion"),
        ("near", "far"),
        ("cleft", "bright spot"),
        ("Enhancing tumor", "Tumor core", "Whole tumor"),
        ("CSF", "GM", "WM"),
        ("L1", "L2", "T12"),
        ("XRay marker", "GTVp", "MRLesion"),
        ("RECTUM", "LIVER", "Bladder", "FemoralHead"),
        ("Anterior hippocampus", "Posterior hippocampus"),
        ("",),
    ],
)
def test_names_without_sides_are_flipped(names):
    assert planned_flips("SAR", names) == ["W"]
