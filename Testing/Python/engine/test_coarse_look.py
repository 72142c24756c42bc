"""The coarse look: windows only where larger voxels show segments, and everywhere if that is not enough."""

from itertools import groupby

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional

from conresnet.errors import Cancelled, UserError
from conresnet.images import Volume
from conresnet.images.inputs import BoxROI
from conresnet.inference.devices import Backend
from conresnet.inference.segmentation import load_model, segment
from conresnet.package import parse_description
from conresnet.package.store import write_package
from conresnet.request import SegmentOptions
from engine.coarse_to_fine_cases import HUNDREDTHS, coarse_to_fine, threshold_weights
from engine.model_cases import WEIGHTS, description, use_test_networks
from engine.test_devices import spoil
from engine.test_progress import Recorded
from engine.volumes import grid, rotation

LOOK = {"scale": 2.0, "margin": 5.0}
SHAPE = (70, 80, 90)
CUBE = (slice(20, 40), slice(24, 40), slice(40, 64))


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    use_test_networks(monkeypatch)


def document(look=LOOK, **settings):
    inference = {"window": [32, 32, 32]} | ({"coarse_look": look} if look else {})
    preparation = {"spacing": [1, 1, 1], "roi": "limit"} | settings.pop("preparation", {})
    made = description(
        "pointwise", segments=1, intensity=HUNDREDTHS, inference=inference, preparation=preparation, **settings
    )
    return {**made, "format_version": 5}


def model(folder, look=LOOK, channels=1):
    """Finds what is brighter than 50 in the first channel."""
    weights = threshold_weights(50)
    weights["layer.weight"] = functional.pad(weights["layer.weight"], (0, 0) * 3 + (0, channels - 1))
    files = {WEIGHTS: safetensors.torch.save(weights)}
    made = parse_description(document(look, channels=channels))
    return load_model(write_package(made, files, folder / ("with" if look else "without")), "cpu", "fp32")


def image(cube=True, rod=False, place=None):
    """A dark image with a bright cube, or a bright rod that is too thin for the larger voxels."""
    array = np.full(SHAPE, 10, np.float32)
    if cube:
        array[CUBE] = 100
    if rod:
        array[:, 30, 50] = 60
    return Volume(array, place or grid(SHAPE), "image")


def passes(result):
    return [row["name"] for row in result.report["passes"]]


def test_only_the_part_around_what_the_look_finds_is_segmented(tmp_path):
    found, whole = (segment(model(tmp_path, look), [image()]) for look in (LOOK, None))
    assert passes(found) == ["look", "only"] and passes(whole) == ["only"]
    assert np.array_equal(found.labels.array, whole.labels.array) and whole.labels.array.any()
    box = found.report["passes"][1]["box"]
    # Windows have sides of a multiple of 8, so that they show more than the margin.
    for (low, high), cube in zip(box, CUBE, strict=True):
        assert cube.start - 14 <= low <= cube.start - 5 and cube.stop + 5 <= high <= cube.stop + 14
    assert found.report["windows"] < whole.report["windows"]


def test_an_oblique_image_gives_the_same_labels(tmp_path):
    turned = grid(SHAPE, rotation=rotation(20) @ rotation(10, 0))
    found, whole = (segment(model(tmp_path, look), [image(place=turned)]) for look in (LOOK, None))
    assert passes(found) == ["look", "only"]
    assert np.array_equal(found.labels.array, whole.labels.array) and whole.labels.array.any()


def test_a_segment_that_reaches_beyond_the_part_is_segmented_whole(tmp_path):
    found, whole = (segment(model(tmp_path, look), [image(rod=True)]) for look in (LOOK, None))
    assert passes(found) == ["look", "only"] and found.report["passes"][1]["box"] == [[0, side] for side in SHAPE]
    assert np.array_equal(found.labels.array, whole.labels.array)
    assert (found.labels.array[:, 30, 50] > 0).all()
    assert found.report["volumes_ml"] == whole.report["volumes_ml"]


def test_a_part_that_is_too_small_is_given_up_at_the_first_border(tmp_path, monkeypatch):
    # Larger windows are computed one by one.
    monkeypatch.setattr(Backend, "batch", lambda backend, size: 1)
    looking, sizes, computed = model(tmp_path), [], []
    predictor = looking.system.predictors[0]
    predict = predictor.predict
    monkeypatch.setattr(
        predictor, "predict", lambda *given: sizes.extend(one.shape[1:] for one in given[0]) or predict(*given)
    )
    for rod in (False, True):
        volume = image(cube=False)
        volume.array[10:60, 30:38, 40:48] = 100
        volume.array[20, 33, :] = 60 if rod else 10
        volume.array[10:60, 33, 40:48] = 100
        sizes.clear()
        *_, last = segment(looking, [volume], SegmentOptions(threads=1)).report["passes"]
        # Without those that measure the network, and without the pass over the whole image.
        computed.append(len([size for size in sizes if size != (16, 16, 16)]) - rod * last["windows"])
    assert computed[1] < computed[0]


@pytest.mark.parametrize(("start", "stop", "is_part"), [(15, 25, False), (23, 31, True)])
def test_segments_beyond_the_part_are_complete_where_windows_show_them(tmp_path, start, stop, is_part):
    """The part around the cube begins at 25, and windows of 24 voxels show what is from 22 on."""
    volume = image(cube=False)
    volume.array[30:38, 30:38, 40:48] = 100
    volume.array[start:stop, 33, 43] = 60
    found, whole = (segment(model(tmp_path, look), [volume]) for look in (LOOK, None))
    assert np.array_equal(found.labels.array, whole.labels.array)
    assert passes(found) == ["look", "only"]
    assert (found.report["passes"][1]["box"] != whole.report["passes"][0]["box"]) == is_part


def test_there_is_no_look_if_larger_voxels_miss_a_thin_channel(tmp_path):
    look = {"scale": 4.0, "margin": 5.0}
    channels = [image(), Volume(image().array[20:21], grid((1, *SHAPE[1:]), origin=(-3.0, 5.0, 42.0)), "thin")]
    found, whole = (segment(model(tmp_path, one, channels=2), channels) for one in (look, None))
    assert passes(found) == ["only"] and found.labels.array.any()
    assert np.array_equal(found.labels.array, whole.labels.array)


def test_cancel_takes_effect_while_the_look_is_prepared(tmp_path, monkeypatch):
    looking, calls = model(tmp_path), []
    monkeypatch.setattr(looking.system.predictors[0], "predict", lambda *arguments: calls.append(arguments))
    progress = Recorded()
    progress.cancelled = lambda: progress.reports[-1][0] == "locating"
    with pytest.raises(Cancelled):
        segment(looking, [image()], progress=progress)
    assert not calls


def test_a_warning_about_several_passes_is_shown_once(tmp_path):
    looking = model(tmp_path)
    spoil(looking, lambda number_format: number_format != torch.float32)
    result = segment(looking, [image()], SegmentOptions(precision="bf16"))
    assert passes(result) == ["look", "only"] and result.labels.array.any()
    assert len(result.report["warnings"]) == 1 and "bf16" in result.report["warnings"][0]


def test_the_whole_image_is_segmented_if_the_look_finds_nothing(tmp_path):
    found = segment(model(tmp_path), [image(cube=False, rod=True)])
    assert passes(found) == ["look", "only"]
    assert found.report["passes"][1]["box"] == [[0, side] for side in SHAPE]
    assert np.count_nonzero(found.labels.array) == SHAPE[0]


def test_there_is_no_look_at_an_image_of_one_window(tmp_path):
    small = Volume(image().array[10:42, 10:42, 20:52], grid((32, 32, 32)), "small")
    assert passes(segment(model(tmp_path), [small])) == ["only"]


@pytest.mark.parametrize(
    "options", [{"roi": BoxROI(grid(SHAPE).center, np.eye(3), np.full(3, 40.0))}, {"tiling": "authors"}]
)
def test_there_is_no_look_in_a_drawn_roi_or_with_the_authors_tiling(tmp_path, options):
    assert passes(segment(model(tmp_path), [image()], SegmentOptions(**options))) == ["only"]


def test_progress_shows_the_look_as_a_phase_and_always_goes_on(tmp_path, monkeypatch, one_by_one):
    monkeypatch.setattr("conresnet.request.Tracker._SECONDS_BETWEEN_REPORTS", 0.0)
    progress = Recorded()
    segment(model(tmp_path), [image(rod=True)], progress=progress)
    phases = list(dict.fromkeys(phase for phase, *_ in progress.reports))
    assert phases == ["preparing", "locating", "segmenting", "writing"]
    fractions = [fraction for _, fraction, *_ in progress.reports]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    # The whole image is segmented after the part, and each of its windows moves the bar.
    assert max(len(list(equal)) for _, equal in groupby(fractions)) < 5


@pytest.mark.parametrize(
    "wrong",
    [
        document(preparation={"spacing": None}),
        coarse_to_fine(document()),
        document(look={"scale": 1.0, "margin": 5.0}),
        {**document(), "format_version": 4},
    ],
)
def test_descriptions_in_which_a_look_makes_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match="coarse_look") as refused:
        parse_description(wrong)
    assert refused.value.code == "package-description"
