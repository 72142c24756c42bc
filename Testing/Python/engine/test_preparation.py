"""A case as a model sees it, read a block at a time."""

import numpy as np
import pytest

from conresnet.errors import Cancelled
from conresnet.grid import Volume
from conresnet.image_files import read_volume
from conresnet.package import parse_description
from conresnet.preparation import prepare
from conresnet.roi import BoxROI
from engine.model_cases import description
from engine.volumes import anatomy, grid, random_volume

ZERO_OUTSIDE = [{"step": "z_score", "over": "foreground", "outside": "zero"}]


def model(**settings):
    return parse_description(description(**settings))


@pytest.mark.parametrize("spacing", [None, [3, 2, 2.5]])
def test_blocks_are_the_parts_of_the_whole_and_zero_beyond(head_image, spacing):
    chosen = model(preparation={"foreground": "not_background", "spacing": spacing}, intensity=ZERO_OUTSIDE)
    case = prepare(chosen, [read_volume(head_image)])
    whole = case.block((0, 0, 0), case.shape)
    assert whole.dtype == np.float32 and whole.shape == (1, *case.shape)
    start, size = tuple(side - 10 for side in case.shape), (16, 24, 8)
    block = case.block(start, size)
    inside = tuple(slice(0, min(10, side)) for side in size)
    place = tuple(slice(a, a + part.stop) for a, part in zip(start, inside, strict=True))
    assert np.array_equal(block[(0, *inside)], whole[(0, *place)])
    assert not block[:, 10:].any() and not block[:, :, 10:].any()


def test_the_background_becomes_zero_and_the_foreground_standard():
    of = grid((20, 20, 20))
    array = np.full(of.shape, -7.0)
    array[5:12, 3:9, 4:17] = np.random.default_rng(0).normal(100, 30, (7, 6, 13))
    chosen = model(preparation={"foreground": "not_background"}, intensity=ZERO_OUTSIDE)
    case = prepare(chosen, [Volume(array, of, "blob")])
    assert case.box() == (slice(5, 12), slice(3, 9), slice(4, 17))
    block = case.block((0, 0, 0), case.shape)[0]
    assert not block[array == -7].any()
    assert abs(block[array != -7].mean()) < 1e-5 and abs(block[array != -7].std() - 1) < 1e-5


def test_intensity_is_measured_inside_a_rotated_roi_alone():
    of = grid((40, 40, 40), origin=(-20, -20, -20))
    volume = Volume(anatomy(of) + random_volume(of).array, of, "head")
    angle = np.radians(45)
    axes = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    box = BoxROI(np.zeros(3), axes, np.array([16.0, 16.0, 16.0]))
    case = prepare(model(), [volume], box)
    values = volume.array[box.contains(of.array_affine, of.shape)]
    block = case.block((0, 0, 0), case.shape)[0]
    assert case.inside.sum() == values.size < case.inside.size
    assert block[case.inside].mean() == pytest.approx(0, abs=1e-5)
    assert block[case.inside].std() == pytest.approx(1, abs=1e-5)


def test_places_that_a_channel_does_not_cover_do_not_count():
    first = random_volume(grid((20, 20, 20)))
    part = grid((10, 20, 20))
    second = Volume(random_volume(part, seed=1).array, part, "half")
    case = prepare(model(channels=2), [first, second])
    covered = case.block((0, 0, 0), (10, 20, 20))[1]
    assert covered.mean() == pytest.approx(0, abs=1e-5) and covered.std() == pytest.approx(1, abs=1e-5)


def test_it_can_be_stopped():
    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        prepare(model(), [random_volume(grid((9, 9, 9)))], check=stop)
