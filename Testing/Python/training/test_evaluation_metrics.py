"""Metrics of a segment, compared with values computed by hand and with MONAI."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceHelper, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from conresnet.images import Grid, Volume
from conresnet_training.evaluation.metrics import SegmentValues, compare_label_maps, segment_figures

SPACING = (3.0, 1.0, 0.5)
VOXEL_ML = 1.5e-3


def figures(found, truth, tolerance=1.0, spacing=SPACING):
    return segment_figures(found, truth, spacing, VOXEL_ML, tolerance)


def empty() -> np.ndarray:
    return np.zeros((12, 14, 16), bool)


def box(*corners: tuple[int, int]) -> np.ndarray:
    mask = empty()
    mask[tuple(slice(low, high) for low, high in corners)] = True
    return mask


@pytest.mark.parametrize(("axis", "expected"), [(0, 6.0), (1, 2.0), (2, 1.0)])
def test_distance_of_two_voxels_follows_spacing(axis, expected):
    found, truth = empty(), empty()
    place = [5, 5, 5]
    truth[tuple(place)] = True
    place[axis] += 2
    found[tuple(place)] = True
    row = figures(found, truth)
    assert (row["hd"], row["hd95"], row["dice"]) == (expected, expected, 0)
    assert row["surface_dice"] == (1 if expected <= 1 else 0)
    assert row["volume_difference_ml"] == 0 and row["volume_ml"] == VOXEL_ML


def test_dice_and_volumes_by_hand():
    # 2 x 3 x 4 voxels and 2 x 3 x 6, of which 2 x 3 x 3 overlap: 2 * 18 / (24 + 36).
    row = figures(box((2, 4), (3, 6), (1, 5)), box((2, 4), (3, 6), (2, 8)))
    assert row["dice"] == pytest.approx(0.6)
    assert row["volume_ml"] == pytest.approx(36 * VOXEL_ML)
    assert row["volume_difference_ml"] == pytest.approx(-12 * VOXEL_ML)


def test_hd95_is_larger_of_both_directed_percentiles():
    truth = empty()
    truth[5, 5, :] = True
    stray = truth.copy()
    stray[5, 10, 0] = True
    # One of 17 voxels is 5 mm off, beyond the 95th percentile: between the 16th (0 mm) and the 17th (5 mm), at 0.2.
    row = figures(stray, truth)
    assert row["hd"] == 5 and row["hd95"] == pytest.approx(1.0)
    # From the expert's line to the half that was found, 8 of 16 voxels are 0.5, 1, ... 4 mm off; back all are 0.
    half = truth.copy()
    half[5, 5, 8:] = False
    row = figures(half, truth)
    assert row["hd"] == 4 and row["hd95"] == pytest.approx(np.percentile([0] * 8 + [0.5 * n for n in range(1, 9)], 95))
    assert figures(truth, half)["hd95"] == row["hd95"]


def test_surface_dice_counts_voxels_within_the_tolerance_by_hand():
    # Two sheets one voxel thick, one voxel apart, along each axis in turn.
    for axis, (near, far) in enumerate([(3.0, 2.9), (1.0, 0.9), (0.5, 0.4)]):
        truth, found = empty(), empty()
        truth[(slice(None),) * axis + (4,)] = True
        found[(slice(None),) * axis + (5,)] = True
        assert figures(found, truth, near)["surface_dice"] == 1
        assert figures(found, truth, far)["surface_dice"] == 0
    # Half of the voxels of each line are on the other line; with 0.5 mm tolerance, their neighbors count, too.
    line, shifted = empty(), empty()
    line[5, 5, :8], shifted[5, 5, 4:12] = True, True
    assert figures(shifted, line, 0.0)["surface_dice"] == 0.5
    assert figures(shifted, line, 0.5)["surface_dice"] == pytest.approx(10 / 16)


@pytest.mark.parametrize(
    ("found", "truth", "dice", "sign"),
    [
        (empty(), empty(), 1.0, 0),
        (empty(), box((2, 4), (2, 4), (2, 4)), 0.0, -1),
        (box((2, 4), (2, 4), (2, 4)), empty(), 0.0, 1),
    ],
)
def test_empty_segment_has_a_dice_but_no_distance(found, truth, dice, sign):
    row = figures(found, truth)
    assert row["dice"] == row["surface_dice"] == dice
    assert row["hd"] is None and row["hd95"] is None
    assert row["volume_difference_ml"] == pytest.approx(sign * 8 * VOXEL_ML)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_match_monai_at_any_position(seed):
    random = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(random.normal(size=(20, 24, 18)), 2) for _ in range(2)]
    truth = smooth[0] > np.percentile(smooth[0], 80)
    found = smooth[0] + 0.4 * smooth[1] > np.percentile(smooth[0], 85)
    row = figures(found, truth)
    one_hot = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (found, truth)]
    options = {"include_background": True, "spacing": list(SPACING)}
    dice = DiceHelper(include_background=True, activate=False, threshold=True, reduction="none")
    assert row["dice"] == pytest.approx(float(dice(*one_hot)[0]), abs=1e-6)
    assert row["hd"] == pytest.approx(float(compute_hausdorff_distance(*one_hot, **options)), abs=1e-5)
    assert row["hd95"] == pytest.approx(float(compute_hausdorff_distance(*one_hot, percentile=95, **options)), abs=1e-5)
    surface = compute_surface_dice(*one_hot, class_thresholds=[1.0], **options)
    assert row["surface_dice"] == pytest.approx(float(surface), abs=1e-6)
    # The same in the corner of a much larger volume, touching its border as before.
    larger = [np.pad(mask, ((0, 40), (0, 0), (0, 31))) for mask in (found, truth)]
    inner = [np.pad(mask, 3) for mask in (found, truth)]
    assert figures(*larger) == figures(*inner) == row


def test_two_empty_label_maps_agree():
    nothing = Volume(empty().astype(np.uint8), Grid(empty().shape, np.eye(4)), "nothing")
    rows = compare_label_maps(nothing, nothing, {"Part": SegmentValues((1,), (1,))}, 1.0)
    assert rows == {"Part": figures(empty(), empty())}
