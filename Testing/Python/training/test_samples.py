"""Training samples: each depends only on its number."""

import pickle
from collections import Counter
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch

from conresnet_training.data.augmentation import SampleChanges
from conresnet_training.data.label_maps import LabelPlaces, index_of_labels
from conresnet_training.data.preparation import TrainingCase
from conresnet_training.data.samples import Sampling, TrainingSamples, step_samples
from conresnet_training.planning.plan import Augmentation
from conresnet_training.training import signed_distances

WINDOW = (8, 16, 8)
STILL = Augmentation(flip_axes=[], scaling=0, rotation_degrees=0, brightness=0, contrast=0, noise=0, coarsening=1)


@dataclass
class Case:
    """A prepared case in memory."""

    name: str
    image: np.ndarray
    label: np.ndarray

    @property
    def places(self) -> LabelPlaces:
        return LabelPlaces(index_of_labels(self.label))


def case(name: str, shape: tuple[int, int, int]) -> Case:
    """A labeled voxel in a corner, and an image whose values encode the position."""
    label = np.zeros(shape, np.uint8)
    label[-1, -1, -1] = 1
    return Case(name, np.arange(label.size, dtype=np.float32).reshape(1, *shape) + 1, label)


def samples(cases, settings=STILL, **sampling) -> TrainingSamples:
    return TrainingSamples(cases, WINDOW, [[1], [1, 2]], SampleChanges(settings), Sampling(**sampling))


def test_sample_depends_only_on_seed_and_number():
    cases = [case("a", (20, 20, 20)), case("b", (6, 30, 9))]
    first, again = samples(cases, Augmentation()), samples(cases, Augmentation())
    for number in (5, 0, 3):
        again[number + 1]
        for one, other in zip(first[number], again[number], strict=True):
            assert torch.equal(one, other)
    other_seed = samples(cases, Augmentation(), seed=1)
    assert not torch.equal(first[5][0], other_seed[5][0])


def test_every_case_is_drawn_once_per_epoch():
    cases = [case(str(index), (8, 16, 8)) for index in range(7)]
    for index, item in enumerate(cases):
        item.image[...] = index
    drawn = [int(samples(cases)[number][0].max()) for number in range(21)]
    for turn in range(3):
        assert sorted(drawn[7 * turn : 7 * turn + 7]) == list(range(7))
    assert len(Counter(tuple(drawn[7 * turn : 7 * turn + 7]) for turn in range(3))) > 1


@pytest.mark.parametrize("shape", [(20, 20, 20), (3, 30, 5), (8, 16, 8)])
def test_window_is_cropped_from_the_case_and_padded_with_zeros(shape):
    drawn = samples([case("a", shape)])
    for number in range(6):
        image, target = drawn[number]
        assert image.shape == (1, *WINDOW) and target.shape == (2, *WINDOW)
        inside = np.prod(np.minimum(shape, WINDOW))
        assert int((image > 0).sum()) == inside
        # Inside, the crop is contiguous: neighbors along W differ by one.
        values = image[image > 0].view(*np.minimum(shape, WINDOW).tolist())
        assert torch.equal(values[..., 1:] - values[..., :-1], torch.ones_like(values[..., 1:]))


def test_output_region_reaches_every_corner_of_the_case():
    """Around that part, the window shows the case, and nothing outside the case."""
    shape, answered = (20, 30, 20), (4, 8, 4)
    item = case("a", shape)
    drawn = samples([item], answered=answered, foreground_share=0.5)
    places = set()
    for number in range(400):
        image, target = drawn[number]
        part = image[0, 2:6, 4:12, 2:6]
        assert (part > 0).all()
        if number % 2 == 0:
            assert target[0, 2:6, 4:12, 2:6].any()
        first = np.array(np.unravel_index(int(part[0, 0, 0]) - 1, shape))
        before, after = np.minimum(first, (2, 4, 2)), np.minimum(np.array(shape) - first, (6, 12, 6))
        assert int((image > 0).sum()) == np.prod(before + after)
        places.update(zip(range(3), first.tolist(), strict=True))
    assert {(0, 0), (0, 16), (1, 0), (1, 22), (2, 0), (2, 16)} <= places


def test_every_second_window_contains_a_label():
    drawn = samples([case("a", (60, 60, 60))])
    assert all(drawn[number][1].any() for number in range(0, 40, 2))
    assert not all(drawn[number][1].any() for number in range(1, 40, 2))


def test_targets_combine_label_values():
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
    drawn = samples([Case("a", image, item.label)], settings)
    for number in range(12):
        moved, target = drawn[number]
        assert ((moved[0] > 50).float() != target[0]).float().mean() < 0.02


@pytest.mark.parametrize("axes", [["W"], ["S"], ["S", "W"], ["S", "H", "W"]])
def test_left_and_right_are_swapped_only_in_mirror_images(axes):
    """Two flips rotate the patient by 180 degrees, after which the left organ is still the left one."""
    item = case("a", WINDOW)
    item.label[...] = 0
    item.label[:, :, :2], item.label[:, :, 6:] = 1, 2
    item.image[...] = item.label
    settings = STILL.model_copy(update={"flip_axes": axes})
    drawn = TrainingSamples([item], WINDOW, [[1], [2]], SampleChanges(settings), Sampling(), mirrored=[1, 0])
    flip_counts = set()
    for number in range(60):
        image, target = drawn[number]
        # The image values identify where each organ was before the flips.
        is_swapped = torch.equal(target[0], (image[0] == 2).float())
        assert is_swapped or torch.equal(target[0], (image[0] == 1).float())
        assert torch.equal(target[1], (image[0] == (1 if is_swapped else 2)).float())
        flips = drawn.changes.draw_warp(WINDOW, _random_after_corner(drawn, number)).flips
        assert is_swapped == (len(flips) in (1, 3))
        flip_counts.add(len(flips))
    assert flip_counts == set(range(len(axes) + 1))


def _random_after_corner(drawn: TrainingSamples, number: int) -> np.random.Generator:
    """The random generator of a sample, in the state from which its warp is drawn."""
    random = np.random.default_rng([drawn.sampling.seed, number])
    item = drawn.cases[0]
    drawn._corner(item, item.label, random, drawn._is_around_label(number))
    return random


def test_label_can_be_anywhere_in_its_window():
    """If it were mostly at the edges, rotation would lose it, and its surroundings would not be seen."""
    item = case("a", (120, 120, 120))
    item.label[...] = 0
    item.label[60, 60, 60] = 1
    drawn = samples([item], foreground_share=1)
    places = np.array([np.argwhere(drawn[number][1][0].numpy())[0] for number in range(60)])
    edges = (places == 0) | (places == np.array(WINDOW) - 1)
    assert edges.mean() < 0.3
    assert (np.ptp(places, axis=0) >= np.array(WINDOW) - 3).all()


@pytest.mark.parametrize("share", [0, 0.25, 1 / 3, 0.8, 1])
def test_share_of_windows_around_a_label_follows_settings(share):
    """Other windows of this case hardly ever contain its only label."""
    drawn = samples([case("a", (120, 120, 120))], foreground_share=share)
    found = [bool(drawn[number][1].any()) for number in range(60)]
    assert sum(found) == pytest.approx(60 * share, abs=1)
    assert max(sum(found[start : start + 12]) for start in range(0, 60, 12)) <= 12 * share + 1


def test_balanced_segments_are_drawn_equally_often():
    item = case("a", (60, 60, 60))
    item.label[...] = 0
    item.label[:30] = 1
    item.label[50, 50, 50] = 2
    values = [[1], [2], [9]]
    drawn = TrainingSamples([item], WINDOW, values, SampleChanges(STILL), Sampling(0, 1.0, balanced=True))
    with_small = sum(bool(drawn[number][1][1].any()) for number in range(60))
    assert 20 <= with_small <= 40
    uniform = TrainingSamples([item], WINDOW, values, SampleChanges(STILL), Sampling(0, 1.0))
    assert sum(bool(uniform[number][1][1].any()) for number in range(60)) <= 3


@pytest.mark.parametrize("balanced", [False, True])
def test_windows_are_drawn_around_targets_only(balanced):
    """Otherwise, one small organ in a data set with many would be in hardly any window."""
    item = case("a", (60, 60, 60))
    item.label[...] = 1
    item.label[50, 50, 50] = 7
    changes, sampling = SampleChanges(STILL), Sampling(0, 1.0, balanced=balanced)
    drawn = TrainingSamples([item], WINDOW, [[7], [9]], changes, sampling)
    assert all(drawn[number][1][0].any() for number in range(20))
    elsewhere = TrainingSamples([item], WINDOW, [[9]], changes, sampling)
    assert len({float(elsewhere[number][0].min()) for number in range(20)}) > 10


def test_distances_match_augmented_target():
    item = case("a", (20, 30, 20))
    item.label[5:12, 8:20, 5:12] = 1
    drawn = samples([item], Augmentation(), distances=True)
    for number in range(4):
        _, target, distances = drawn[number]
        assert torch.equal(distances, signed_distances(target.bool()))
        assert ((distances <= 0) >= target.bool()).all()


def test_elastic_deformation_is_the_same_for_image_and_label():
    item = case("a", WINDOW)
    item.label[...] = 0
    item.label[2:6, 4:12, 2:6] = 1
    image = item.label[None].astype(np.float32) * 100
    bent = samples([Case("a", image, item.label)], STILL.model_copy(update={"elastic": 0.3}))
    moved = [bent[number] for number in range(20)]
    assert any(not torch.equal(target[0], torch.from_numpy(item.label).float()) for _, target in moved)
    assert all(((image[0] > 50).float() != target[0]).float().mean() < 0.05 for image, target in moved)


def test_steps_use_sample_numbers_in_order():
    assert list(step_samples(range(2, 4), 3)) == [[6, 7, 8], [9, 10, 11]]


def test_processes_share_each_step():
    parts = [list(step_samples(range(5, 8), 6, process, 3)) for process in range(3)]
    whole = list(step_samples(range(5, 8), 6))
    assert [[number for part in step for number in part] for step in zip(*parts, strict=True)] == whole


def test_many_cases_keep_no_files_open_and_are_passed_by_name(tmp_path):
    """Processes that make samples get no arrays, and the limit of open files is not reached."""
    item = case("a", (20, 20, 20))
    files = [tmp_path / f"{part}.npy" for part in ("image", "label", "places")]
    for array, file in zip((item.image, item.label, index_of_labels(item.label)), files, strict=True):
        np.save(file, array)
    many = samples([TrainingCase(str(number), *files) for number in range(1000)])
    open_before = psutil.Process().num_fds()
    again = pickle.loads(pickle.dumps(many))
    drawn = [again[number] for number in range(300)]
    assert psutil.Process().num_fds() <= open_before + 1
    assert len(pickle.dumps(many)) < 200 * 1000
    assert all(torch.equal(one, other) for one, other in zip(drawn[7], samples([item])[7], strict=True))
