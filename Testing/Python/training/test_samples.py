"""Training samples: what a number stands for, and nothing else."""

from collections import Counter

import numpy as np
import pytest
import torch

from conresnet_training.augmentation import Augmentation, build_augmentation
from conresnet_training.preparation import TrainingCase
from conresnet_training.samples import NumberedSamples, TrainingSamples

WINDOW = (8, 16, 8)
STILL = Augmentation(flip_axes=[], scaling=0, rotation_degrees=0, brightness=0, contrast=0, noise=0, coarsening=1)


def case(name: str, shape: tuple[int, int, int]) -> TrainingCase:
    """A labelled voxel in a corner, and an image whose value tells the place."""
    label = np.zeros(shape, np.uint8)
    label[-1, -1, -1] = 1
    return TrainingCase(name, np.arange(label.size, dtype=np.float32).reshape(1, *shape) + 1, label)


def samples(cases, settings=STILL, seed=0) -> TrainingSamples:
    return TrainingSamples(cases, WINDOW, [[1], [1, 2]], build_augmentation(settings), seed)


def test_sample_depends_on_seed_and_number_alone():
    cases = [case("a", (20, 20, 20)), case("b", (6, 30, 9))]
    first, again = samples(cases, Augmentation()), samples(cases, Augmentation())
    for number in (5, 0, 3):
        again[number + 1]
        for one, other in zip(first[number], again[number], strict=True):
            assert torch.equal(one, other)
    other_seed = samples(cases, Augmentation(), seed=1)
    assert not torch.equal(first[5][0], other_seed[5][0])


def test_every_case_comes_once_a_turn():
    cases = [case(str(index), (8, 16, 8)) for index in range(7)]
    for index, item in enumerate(cases):
        item.image[...] = index
    drawn = [int(samples(cases)[number][0].max()) for number in range(21)]
    for turn in range(3):
        assert sorted(drawn[7 * turn : 7 * turn + 7]) == list(range(7))
    assert len(Counter(tuple(drawn[7 * turn : 7 * turn + 7]) for turn in range(3))) > 1


@pytest.mark.parametrize("shape", [(20, 20, 20), (3, 30, 5), (8, 16, 8)])
def test_window_is_cut_from_the_case_and_padded_with_zeros(shape):
    drawn = samples([case("a", shape)])
    for number in range(6):
        image, target = drawn[number]
        assert image.shape == (1, *WINDOW) and target.shape == (2, *WINDOW)
        inside = np.prod(np.minimum(shape, WINDOW))
        assert int((image > 0).sum()) == inside
        # Inside, what is cut is in one piece: neighbors along W differ by one.
        values = image[image > 0].view(*np.minimum(shape, WINDOW).tolist())
        assert torch.equal(values[..., 1:] - values[..., :-1], torch.ones_like(values[..., 1:]))


def test_every_second_window_holds_a_label():
    drawn = samples([case("a", (60, 60, 60))])
    assert all(drawn[number][1].any() for number in range(0, 40, 2))
    assert not all(drawn[number][1].any() for number in range(1, 40, 2))


def test_targets_join_label_values():
    item = case("a", WINDOW)
    item.label[0, 0, 0] = 2
    target = samples([item])[0][1]
    assert target[0].sum() == 1 and target[1].sum() == 2


def test_label_moves_with_the_image():
    item = case("a", WINDOW)
    item.label[...] = 0
    item.label[2:5, 4:9, 1:4] = 1
    image = item.label[None].astype(np.float32) * 100
    settings = Augmentation(brightness=0, contrast=0, noise=0, coarsening=1)
    drawn = samples([TrainingCase("a", image, item.label)], settings)
    for number in range(12):
        moved, target = drawn[number]
        assert ((moved[0] > 50).float() != target[0]).float().mean() < 0.02


def test_epochs_go_on_where_the_last_ended():
    sampler = NumberedSamples(6, lambda: 12)
    assert list(sampler) == [12, 13, 14, 15, 16, 17] and len(sampler) == 6
