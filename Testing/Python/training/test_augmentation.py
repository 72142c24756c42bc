"""Augmentation of samples: source of the voxels, frequency and strength of the changes, and intensities."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from conresnet_training.data.augmentation import RandCoilField, SampleChanges, Warp, draw_bend, draw_turn, isolated
from conresnet_training.planning.plan import Augmentation

WINDOW = (10, 16, 12)
CORNER = np.array([6, 5, 7])
INTENSITIES = {
    "brightness": 0.3,
    "contrast": 0.3,
    "noise": 0.15,
    "bias_field": 0.1,
    "isolation": 1.0,
    "coarsening": 0.5,
}
OFF = {name: 1 if name == "coarsening" else 0 for name in INTENSITIES}
GEOMETRY = {"flip_axes", "swapped_segments", "scaling", "rotation_degrees", "quarter_turns", "elastic"}
# Changes only the outside of the body; see test_surroundings.
OUTSIDE = {"couch_and_mask"}


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    """An image with two channels and a label map, (24, 26, 28), larger than the window on every side."""
    random = np.random.default_rng(1)
    return random.random((2, 24, 26, 28), np.float32), random.integers(0, 4, (24, 26, 28)).astype(np.uint8)


def warps(count: int = 400, spacing=(1, 1, 1), **settings) -> list[Warp]:
    changes = SampleChanges(Augmentation(**settings), spacing)
    return [changes.draw_warp(WINDOW, np.random.default_rng(number)) for number in range(count)]


def test_rotated_window_matches_scipy_on_whole_case(case):
    image, label = case
    turn = draw_turn(30, 0.3, (1, 1, 1), np.random.default_rng(3))
    moved, values = Warp(WINDOW, turn).cut(image, label, CORNER)
    middle = (np.array(WINDOW) - 1) / 2
    offset = CORNER + middle - turn @ middle
    for channel, found in zip(image, moved, strict=True):
        expected = affine_transform(channel, turn, offset, WINDOW, order=1, mode="grid-constant")
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(values, affine_transform(label, turn, offset, WINDOW, order=0, mode="grid-constant"))


def test_quarter_turns_never_mirror(case):
    """Each is one of the 24 rotations of a cube; with anisotropic voxels, the sides become longer or shorter."""
    image, label = case
    window = (8, 8, 8)
    whole = tuple(slice(begin, begin + size) for begin, size in zip(CORNER, window, strict=True))
    turns = set()
    for warp in warps(quarter_turns=True, flip_axes=[], scaling=0, rotation_degrees=0):
        assert np.linalg.det(warp.turn) == pytest.approx(1)
        turns.add(tuple(warp.turn.ravel().astype(int)))
    assert len(turns) == 24
    for turn in sorted(turns)[::5]:
        turn = np.array(turn, float).reshape(3, 3)
        values = Warp(window, turn).cut(image, label, CORNER)[1]
        expected = np.transpose(label[whole], [int(np.flatnonzero(column)[0]) for column in turn.T])
        expected = np.flip(expected, [axis for axis, column in enumerate(turn.T) if column.sum() < 0])
        np.testing.assert_array_equal(values, expected)
    long = warps(1, (4, 1, 1), quarter_turns=True, flip_axes=[], scaling=0, rotation_degrees=0)[0].turn
    assert np.abs(long[long != 0]).prod() == pytest.approx(1)


def test_flipped_window_has_exact_values(case):
    image, label = case
    moved, values = Warp(WINDOW, flips=(0, 2)).cut(image, label, CORNER)
    window = tuple(slice(begin, begin + size) for begin, size in zip(CORNER, WINDOW, strict=True))
    np.testing.assert_array_equal(moved, np.flip(image[:, *window], (1, 3)))
    np.testing.assert_array_equal(values, np.flip(label[window], (0, 2)))


def test_rotated_window_shows_surroundings_and_zeros_outside_the_case():
    ones, label = np.ones((1, 40, 40, 40), np.float32), np.full((40, 40, 40), 3, np.uint8)
    for warp in warps(30, flip_axes=[], elastic=0.3):
        image, values = warp.cut(ones, label, np.array([15, 12, 14]))
        torch.testing.assert_close(image, torch.ones_like(image))
        assert (values == 3).all()
        image, values = warp.cut(ones[:, :10, :16, :12], label[:10, :16, :12], np.zeros(3, int))
        assert (image[0, values == 0] <= 0.5 + 1e-4).all()
        assert image.shape == (1, *WINDOW) and values.shape == WINDOW
    image, values = warp.cut(ones, label, np.array([90, 90, 90]))
    assert not image.any() and not values.any()


def test_frequency_and_strength_of_changes_follow_settings():
    drawn = warps(flip_axes=["S", "W"], scaling=0.2, rotation_degrees=20, elastic=0.3)
    assert np.mean([any(np.any(bend) for bend in warp.bends) for warp in drawn]) == pytest.approx(0.3, abs=0.07)
    for axis, share in enumerate((0.5, 0, 0.5)):
        assert np.mean([axis in warp.flips for warp in drawn]) == pytest.approx(share, abs=0.07)
    turned = [warp.turn for warp in drawn if warp.turn is not None and not np.array_equal(warp.turn, np.eye(3))]
    assert len(turned) / len(drawn) == pytest.approx(0.8, abs=0.06)
    # The lengths of the columns are the scales along the window's axes.
    scales = np.linalg.norm(turned, axis=1)
    assert 0.8 <= scales.min() < 0.82 and 1.18 < scales.max() <= 1.2
    assert scales.mean() == pytest.approx(1, abs=0.01)
    rotations = np.array(turned) / scales[:, None]
    angles = np.rad2deg(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0]))
    assert -20 <= angles.min() < -18 and 18 < angles.max() <= 20


def test_nothing_is_changed_if_everything_is_off(case):
    off = {"scaling": 0, "rotation_degrees": 0, "brightness": 0, "contrast": 0, "noise": 0, "coarsening": 1}
    assert all(warp == Warp(WINDOW) for warp in warps(20, flip_axes=[], **off))
    changes = SampleChanges(Augmentation(flip_axes=[], **off))
    image = torch.from_numpy(case[0])
    unlabelled = torch.zeros(image.shape[1:], dtype=torch.uint8)
    assert torch.equal(changes.change_intensities(image.clone(), unlabelled, np.random.default_rng(0)), image)


def test_thick_slices_are_rotated_in_patient_space():
    """Rotated in voxels, 15 degrees about an axis in the plane would be over 50 degrees in the patient."""
    spacing = np.array([5.0, 1.0, 1.0])
    turn = draw_turn(15, 0, spacing, np.random.default_rng(0))
    in_millimeters = turn * spacing[:, None] / spacing
    np.testing.assert_allclose(in_millimeters @ in_millimeters.T, np.eye(3), atol=1e-12)
    assert not np.allclose(turn @ turn.T, np.eye(3), atol=0.1)


def test_bends_stretch_and_compress_cells_around_the_center():
    bends = np.array([draw_bend(40, 4, 0.3, np.random.default_rng(number)) for number in range(300)])
    widths = 1 + np.diff(bends)
    assert 0.7 <= widths.min() < 0.75 and 1.25 < widths.max() <= 1.3
    np.testing.assert_allclose(bends[:, 0] + bends[:, -1], 0, atol=0.3)
    assert np.abs(bends.mean(axis=0)).max() < 0.5


def test_intensity_changes_follow_settings():
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32))
    unlabelled = torch.zeros(20, 20, 20, dtype=torch.uint8)
    quiet = {"contrast": 0, "noise": 0, "coarsening": 1}

    def changed(**settings) -> list[torch.Tensor]:
        changes = SampleChanges(Augmentation(**settings))
        draws = (np.random.default_rng(number) for number in range(200))
        return [changes.change_intensities(image.clone(), unlabelled, random) for random in draws]

    shifts = np.array([float((moved - image).mean()) for moved in changed(**quiet, brightness=0.4)])
    assert np.mean(shifts != 0) == pytest.approx(0.5, abs=0.1)
    assert -0.4 <= shifts.min() < -0.35 and 0.35 < shifts.max() <= 0.4
    noise = np.array([float((moved - image).std()) for moved in changed(**quiet | {"noise": 0.2}, brightness=0)])
    assert np.mean(noise > 0) == pytest.approx(0.2, abs=0.08)
    assert 0.15 < noise.max() <= 0.21
    coarse = [float(moved.std()) for moved in changed(**quiet | {"coarsening": 0.5}, brightness=0)]
    assert min(coarse) < 0.9 * float(image.std()) and max(coarse) <= 1.01 * float(image.std())
    again = changed()
    assert all(torch.equal(one, other) for one, other in zip(again[:5], changed()[:5], strict=True))
    assert not torch.equal(again[0], again[1]) and all(type(moved) is torch.Tensor for moved in again)


@pytest.mark.parametrize("setting", ["contrast", "brightness"])
def test_each_channel_gets_its_own_scale_shift_and_exponent(setting):
    """If drawn jointly, the contrast between the sequences of a scan would never vary."""
    changes = SampleChanges(Augmentation(**OFF | {setting: 0.3}))
    one = torch.from_numpy(np.random.default_rng(0).random((1, 6, 6, 6), np.float32))
    unlabelled = torch.zeros(6, 6, 6, dtype=torch.uint8)
    draws = range(60)
    alone = [changes.change_intensities(one, unlabelled, np.random.default_rng(number)) for number in draws]
    pairs = [changes.change_intensities(one.repeat(2, 1, 1, 1), unlabelled, np.random.default_rng(n)) for n in draws]
    apart = [not torch.equal(first, second) for first, second in pairs]
    assert sum(apart) > 30
    assert sum(torch.equal(first, one[0]) != torch.equal(second, one[0]) for first, second in pairs) > 10
    if setting == "brightness":
        assert all(torch.equal(pair[:1], single) for pair, single in zip(pairs, alone, strict=True))


def test_isolation_puts_air_around_labels_and_normalizes_the_rest():
    random = np.random.default_rng(4)
    image = torch.from_numpy(random.normal(5, 2, (2, 20, 20, 20)).astype(np.float32))
    label = torch.zeros(20, 20, 20, dtype=torch.uint8)
    label[6:14, 6:14, 6:14] = 2
    found = isolated(image, label, margin=1)
    kept = torch.zeros(20, 20, 20, dtype=torch.bool)
    kept[5:15, 5:15, 5:15] = True
    for before, after in zip(image, found, strict=True):
        assert after[kept].mean().abs() < 1e-4 and (after[kept].std() - 1).abs() < 1e-4
        assert (after[~kept] == after.min()).all()
        assert torch.corrcoef(torch.stack([before[kept], after[kept]]))[0, 1] > 0.9999
    assert isolated(image, torch.zeros_like(label), margin=1) is image


def test_share_of_isolated_samples_follows_settings():
    still = {"brightness": 0, "contrast": 0, "noise": 0, "coarsening": 1}
    changes = SampleChanges(Augmentation(**still, isolation=0.25))
    image = torch.from_numpy(np.random.default_rng(5).random((1, 8, 8, 8), np.float32))
    label = torch.zeros(8, 8, 8, dtype=torch.uint8)
    label[2:6, 2:6, 2:6] = 1
    changed = [changes.change_intensities(image, label, np.random.default_rng(number)) for number in range(400)]
    assert 70 < sum(not torch.equal(image, other) for other in changed) < 130


def test_coil_brightens_tissue_smoothly_and_keeps_air():
    image = torch.full((1, 16, 16, 16), -1.0)
    image[0, 4:12, 4:12, 4:12] = 2.0
    transform = RandCoilField(0.3).set_random_state(seed=3)
    fields = [found for found in (transform(image.clone()) for _ in range(20)) if not torch.equal(found, image)]
    assert 3 < len(fields) < 17
    for found in fields:
        assert torch.allclose(found[image == -1], torch.tensor(-1.0), atol=1e-6)
        gain = ((found + 1) / 3)[0, 4:12, 4:12, 4:12]
        assert (gain > 0).all() and gain.std() > 1e-3 and gain.diff(dim=0).abs().max() < 0.3


@pytest.mark.parametrize("name", sorted(set(Augmentation.model_fields) - GEOMETRY - OUTSIDE))
@pytest.mark.parametrize("side", [24, 25])
def test_intensity_changes_keep_image_aligned_with_labels(name, side):
    """MONAI's simulation of low resolution shifts the image by most of a voxel, unless configured otherwise."""
    places = torch.arange(side) - (side - 1) / 2
    bell = torch.exp(-(places**2) / (2 * 2.5**2))
    image = 100 * (bell[:, None, None] * bell[None, :, None] * bell)[None]
    label = (image[0] > 5).byte()
    changes = SampleChanges(Augmentation(**OFF | {name: INTENSITIES[name]}))

    def center(image):
        weights = (image - image.amin())[0].double()
        sides = [weights.sum([other for other in range(3) if other != axis]) for axis in range(3)]
        return [float((side * places).sum() / side.sum()) for side in sides]

    drawn = (changes.change_intensities(image.clone(), label, np.random.default_rng(number)) for number in range(150))
    shifts = np.array([center(changed) for changed in drawn if not torch.equal(changed, image)])
    assert len(shifts) > 15
    assert np.abs(shifts.mean(axis=0)).max() < 0.06 and np.abs(shifts).max() < 0.3
