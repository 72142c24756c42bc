"""ROI boxes as Slicer shows and stores them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conresnet.errors import UserError
from conresnet.images.inputs import BoxROI
from engine.volumes import grid, rotation


def markup(system="LPS", **changes) -> dict:
    """What Slicer's Markups module writes for a box of 40 x 50 x 60 mm, rotated 30 degrees, around R 10, A 20, S 30."""
    sign = np.diag([-1, -1, 1]) if system == "LPS" else np.eye(3)
    return {
        "type": "ROI",
        "coordinateSystem": system,
        "coordinateUnits": "mm",
        "roiType": "Box",
        "center": (sign @ [10, 20, 30]).tolist(),
        "orientation": (sign @ rotation(30)).ravel().tolist(),
        "size": [40.0, 50.0, 60.0],
        "insideOut": False,
        **changes,
    }


def write(folder: Path, *markups: dict, name="R.mrk.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"@schema": "markups-schema-v1.0.3.json#", "markups": list(markups)}), encoding="utf-8")
    return path


def test_bounds_may_have_either_order():
    roi = BoxROI.from_text(" 30, -10, 5,25 ,-7.5,2.5")
    assert np.allclose(roi.center, (10, 15, -2.5))
    assert np.allclose(roi.size, (40, 20, 10))
    assert np.allclose(roi.corners().min(axis=0), (-10, 5, -7.5))
    assert np.allclose(roi.corners().max(axis=0), (30, 25, 2.5))


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5,x", "", "1,2,3,4,5,nan", "1,1,2,3,4,5", "1 2 3 4 5 6"])
def test_invalid_bounds_are_refused(text):
    with pytest.raises(UserError) as caught:
        BoxROI.from_text(text)
    assert caught.value.code == "bad-roi"


@pytest.mark.parametrize(
    "text", ["1e308,1.1e308,0,9,0,9", "-1e308,1e308,0,9,0,9", "0,9,0,9,1e200,2e200", "-9e307,9e307,-9e307,9e307,0,1"]
)
def test_numbers_too_large_to_compute_with_are_refused_without_numpy_warning(text):
    with pytest.raises(UserError, match="between -1e") as caught, np.errstate(all="raise"):
        BoxROI.from_text(text)
    assert caught.value.code == "bad-roi"


def test_large_box_is_accepted_and_described_briefly():
    assert (
        str(BoxROI.from_text("-1e50,1e50,-70,70,-4e9,4e9"))
        == "R -1e+50 to 1e+50, A -70.0 to 70.0, S -4e+09 to 4e+09 mm"
    )


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_slicer_file_gives_same_box_in_both_coordinate_systems(tmp_path, system):
    folder = tmp_path / "Hüfte links"
    folder.mkdir()
    roi = BoxROI.from_text(str(write(folder, markup(system))))
    assert np.allclose(roi.center, (10, 20, 30))
    assert np.allclose(roi.axes, rotation(30))
    assert np.allclose(roi.size, (40, 50, 60))


def test_unrotated_slicer_box_in_lps_is_axis_aligned(tmp_path):
    roi = BoxROI.from_markups_file(write(tmp_path, markup(orientation=[-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0, 0, 1])))
    assert np.allclose(roi.axes, np.eye(3))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_file_in_another_unicode_encoding_is_read(tmp_path, encoding):
    path = write(tmp_path, markup())
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert BoxROI.from_markups_file(path).size[0] == 40


def test_roi_is_found_among_other_markups(tmp_path):
    assert BoxROI.from_markups_file(write(tmp_path, {"type": "Fiducial"}, markup())).size[0] == 40


@pytest.mark.parametrize(
    ("markups", "why"),
    [
        ([], "contains 0 ROIs"),
        ([{"type": "Fiducial"}], "contains 0 ROIs"),
        ([markup(), markup()], "contains 2 ROIs"),
        ([markup(insideOut=True)], "Inside out"),
        ([markup(coordinateSystem="IJK")], "unknown coordinate system"),
        ([markup(center=None)], "center"),
        ([markup(size=[1, 2])], "size"),
        ([markup(size=[0, 2, 3])], "its size is 0"),
        ([markup(size=[1, -2, 3])], "its size is negative"),
        ([markup(center=[1e308, 2, 3])], "its center is not 3 numbers between"),
        ([markup(size=[1, 2, 1.7e308])], "its size is not 3 numbers between"),
        ([markup(orientation=[1, 2, 3])], "has no ROI center"),
        ([markup(orientation=[1, 1, 0, 0, 1, 0, 0, 0, 1])], "right angles"),
    ],
)
def test_file_without_exactly_one_valid_roi_is_refused(tmp_path, markups, why):
    with pytest.raises(UserError, match=why) as caught:
        BoxROI.from_markups_file(write(tmp_path, *markups))
    assert caught.value.code == "bad-roi"


def test_missing_or_broken_roi_file_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        BoxROI.from_text(str(tmp_path / "none.mrk.json"))
    assert caught.value.code == "roi-not-found"
    nested = b"[" * 100_000
    for content in (b"{", b"\xef\xbb\xbf", nested, b"[]", b"\xff\xfe\xff", b'{"markups": 3}', b'{"markups": null}'):
        (tmp_path / "broken.mrk.json").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.mrk\.json"):
            BoxROI.from_markups_file(tmp_path / "broken.mrk.json")


def test_box_round_trips_through_json_and_refuses_invalid_json():
    before = BoxROI(np.array([1, 2, 3]), rotation(20), np.array([4, 5, 6]))
    after = BoxROI.from_dict(json.loads(json.dumps(before.to_dict())))
    assert np.array_equal(after.corners(), before.corners())
    for wrong in ({}, None, {"center": "x", "axes": 1, "size": 2}):
        with pytest.raises(UserError):
            BoxROI.from_dict(wrong)


@pytest.mark.parametrize("turn", [np.eye(3), rotation(25, axis=1)])
def test_contains_matches_definition_of_a_box(turn):
    of = grid((12, 13, 14), (1.1, 0.9, 1.3), origin=(-7, -6, -7), rotation=rotation(10))
    roi = BoxROI(np.array([0.5, 0.2, 0.1]), turn, np.array([5, 6, 7]))
    places = of.to_ras(np.moveaxis(np.indices(of.shape), 0, -1))
    expected = (np.abs((places - roi.center) @ turn) <= roi.size / 2).all(axis=-1)
    assert np.array_equal(roi.contains(of.array_affine, of.shape), expected)
    assert expected.any()
