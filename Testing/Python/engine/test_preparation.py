"""A case in a model's space, read block by block."""

import numpy as np
import pytest
import safetensors.numpy

from conresnet.errors import Cancelled
from conresnet.images import Grid, Volume
from conresnet.images.files import read_volume
from conresnet.images.inputs import BoxROI
from conresnet.images.preparation import prepare, without_offset
from conresnet.inference.segmentation import load_model, segment
from conresnet.package import parse_description
from conresnet.request import SegmentOptions
from engine.model_cases import description, use_test_networks, write_model
from engine.package_cases import refusal
from engine.volumes import anatomy, grid, random_volume

ZERO_OUTSIDE = [{"step": "z_score", "over": "foreground", "outside": "zero"}]
SLICES = {"step": "z_score_slices", "over": "foreground", "outside": "zero"}
# The two channels that VoxResNet makes from an image.
OWN = [{"step": "clip_percentiles", "low": 0.5, "high": 99.5}, SLICES]
COPY = [
    {"step": "subtract_gaussian", "sigma_mm": 5.0},
    {"step": "equalize", "clip_limit": 0.01, "tiles": 8},
    SLICES,
]
VOXRESNET = {"preparation": {"foreground": "not_background", "spacing": None}, "intensity": OWN, "copies": [COPY]}


def model(**settings):
    return parse_description(description(**settings))


@pytest.mark.parametrize("spacing", [None, [3, 2, 2.5]])
@pytest.mark.parametrize("steps", [{"intensity": ZERO_OUTSIDE}, {"intensity": OWN, "copies": [COPY]}])
def test_blocks_match_whole_image_and_are_zero_outside(head_image, spacing, steps):
    chosen = model(preparation={"foreground": "not_background", "spacing": spacing}, **steps)
    case = prepare(chosen, [read_volume(head_image)])
    whole = case.block((0, 0, 0), case.shape)
    assert whole.dtype == np.float32 and whole.shape == (chosen.channel_count, *case.shape)
    start, size = tuple(side - 10 for side in case.shape), (16, 24, 8)
    block = case.block(start, size)
    inside = tuple(slice(0, min(10, side)) for side in size)
    place = tuple(slice(a, a + part.stop) for a, part in zip(start, inside, strict=True))
    assert np.array_equal(block[(slice(None), *inside)], whole[(slice(None), *place)])
    assert not block[:, 10:].any() and not block[:, :, 10:].any()


def test_background_becomes_zero_and_foreground_is_standardized():
    of = grid((20, 20, 20))
    array = np.full(of.shape, -7.0)
    array[5:12, 3:9, 4:17] = np.random.default_rng(0).normal(100, 30, (7, 6, 13))
    chosen = model(preparation={"foreground": "not_background"}, intensity=ZERO_OUTSIDE)
    case = prepare(chosen, [Volume(array, of, "blob")])
    assert case.box() == (slice(5, 12), slice(3, 9), slice(4, 17))
    block = case.block((0, 0, 0), case.shape)[0]
    assert not block[array == -7].any()
    assert abs(block[array != -7].mean()) < 1e-5 and abs(block[array != -7].std() - 1) < 1e-5


def test_intensity_is_measured_only_inside_a_rotated_roi():
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


def test_voxels_not_covered_by_a_channel_are_not_measured():
    first = random_volume(grid((20, 20, 20)))
    part = grid((10, 20, 20))
    second = Volume(random_volume(part, seed=1).array, part, "half")
    case = prepare(model(channels=2), [first, second])
    covered = case.block((0, 0, 0), (10, 20, 20))[1]
    assert covered.mean() == pytest.approx(0, abs=1e-5) and covered.std() == pytest.approx(1, abs=1e-5)


def test_channels_are_inputs_followed_by_their_copies(head_image):
    head = read_volume(head_image)
    other = Volume(np.sqrt(head.array), head.grid, "other")
    case = prepare(model(channels=2, **VOXRESNET), [head, other])
    block = case.block((20, 10, 30), (16, 24, 32))
    expected = []
    for volume in (head, other):
        for steps in (OWN, COPY):
            alone = prepare(model(**{**VOXRESNET, "intensity": steps, "copies": []}), [volume])
            expected.append(alone.block((20, 10, 30), (16, 24, 32))[0])
    assert np.array_equal(block, expected)
    assert not np.array_equal(block[0], block[1])


def test_every_slice_of_every_channel_is_standardized(head_image):
    case = prepare(model(**VOXRESNET), [read_volume(head_image)])
    whole = case.block((0, 0, 0), case.shape).astype(np.float64)
    mask = case.images[0] != case.backgrounds[0]
    slices = [index for index in range(case.shape[0]) if mask[index].mean() > 0.1]
    assert len(slices) > 80 and np.isfinite(whole).all()
    for channel in whole:
        values = [channel[index][mask[index]] for index in slices]
        assert np.allclose([v.mean() for v in values], 0, atol=1e-4)
        assert np.allclose([v.std() for v in values], 1, atol=1e-4)


def test_roi_matches_cropping_beforehand(head_image):
    head = read_volume(head_image)
    low, high = np.array([30, 20, 25]), np.array([70, 84, 100])
    where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = head.grid.array_affine.copy()
    affine[:3, 3] = head.grid.to_ras(low)
    cut = Volume(head.array[where], Grid(tuple(high - low), affine[:, [2, 1, 0, 3]]), "cut")
    corners = cut.grid.corners()
    box = BoxROI(cut.grid.center, np.eye(3), np.ptp(corners, axis=0))
    chosen = model(**VOXRESNET)
    inside, before = prepare(chosen, [head], box), prepare(chosen, [cut])
    assert inside.shape == before.shape and inside.inside is None
    assert np.array_equal(inside.block((0, 0, 0), inside.shape), before.block((0, 0, 0), before.shape))


@pytest.mark.parametrize(("scale", "offset"), [(1, -3000), (1e-3, 0), (3.7, 1e5)])
def test_unit_of_an_image_does_not_matter(head_image, scale, offset):
    head = read_volume(head_image)
    other = Volume(head.array.astype(np.float64) * scale + offset, head.grid, "other")
    blocks = []
    for volume in (head, other):
        case = prepare(model(**VOXRESNET), [volume])
        blocks.append(case.block((0, 0, 0), case.shape))
    assert np.abs(blocks[0] - blocks[1]).mean() < 1e-4


@pytest.mark.parametrize(
    "steps",
    [
        {"intensity": [{"step": "clip_percentiles", "low": 0.5, "high": 99.5}, *ZERO_OUTSIDE]},
        {"intensity": OWN, "copies": [COPY]},
    ],
)
@pytest.mark.parametrize("spacing", [None, [1.6, 1.7, 1.8]])
def test_large_offset_does_not_matter(steps, spacing):
    of = grid((24, 26, 28), (2, 2, 2))
    body = np.rint(anatomy(of)).astype(np.int64) * 256
    # With so many different values, hardly any voxel equals the corners, whose value counts as air.
    body += np.random.default_rng(0).integers(0, 2000, of.shape) - body.min() + 1
    chosen = model(preparation={"foreground": "not_background", "spacing": spacing}, **steps)

    def block(array: np.ndarray) -> np.ndarray:
        case = prepare(chosen, [Volume(array, of, "body")])
        return case.block((0, 0, 0), case.shape)

    expected = block(body.astype(np.float32))
    for moved in ((body + 2**31).astype(np.uint32), body + 2**40, body + 1e9, (body - 2**31).astype(np.int32)):
        np.testing.assert_allclose(block(moved), expected, atol=1e-4)


def test_large_offset_without_air_does_not_matter():
    body = np.pad(np.random.default_rng(0).integers(1, 500, (10, 12, 14)).astype(np.uint32), 2)
    steps = [{"step": "clip_percentiles", "low": 0.5, "high": 99.5}, *ZERO_OUTSIDE]
    chosen = model(preparation={"foreground": "not_background"}, intensity=steps)
    blocks = []
    for array in (body.astype(np.int16), body + 2**31 * (body > 0).astype(np.uint32)):
        case = prepare(chosen, [Volume(array, grid(body.shape), "body")])
        blocks.append(case.block((0, 0, 0), case.shape))
    np.testing.assert_allclose(*blocks, atol=2e-5)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(60).reshape(3, 4, 5),
        np.arange(60.0).reshape(3, 4, 5) * 1e-3 + 1,
        np.arange(60, dtype=np.int32).reshape(3, 4, 5) + 2**14,
        np.where(np.arange(60).reshape(3, 4, 5) == 30, 1e9, np.arange(60.0).reshape(3, 4, 5)),
        (np.arange(60).reshape(3, 4, 5) > 7).astype(np.int64),
        (np.arange(60).reshape(3, 4, 5) + 2**31).astype(np.float32),
    ],
)
def test_other_images_keep_their_values(array):
    assert without_offset(array) is array


def test_offset_is_kept_for_a_model_with_absolute_values():
    of = grid((6, 7, 8))
    array = np.arange(6 * 7 * 8, dtype=np.int64).reshape(of.shape) + 2**31
    chosen = model(intensity=[{"step": "clip", "low": 0, "high": 300}, *ZERO_OUTSIDE])
    case = prepare(chosen, [Volume(array, of, "ramp")])
    assert not case.block((0, 0, 0), case.shape).any()


def test_arrays_are_not_copied_without_filters(head_image):
    head = read_volume(head_image)
    case = prepare(model(**{**VOXRESNET, "copies": [OWN, COPY]}), [head])
    own, twin, copy = case.channels
    for channel in (own, twin):
        assert np.shares_memory(channel.values, head.array)
    assert copy.values.dtype == np.float32 and not np.shares_memory(copy.values, head.array)


def test_network_gets_the_copies(monkeypatch, tmp_path, head_image):
    use_test_networks(monkeypatch)
    head = read_volume(head_image)
    package = write_model(tmp_path / "model", description(network="pointwise", **VOXRESNET), scale=5)
    case = prepare(package.description, [head])
    weights = safetensors.numpy.load(package.read_file("network.safetensors"))
    kernel, bias = weights["layer.weight"][:, :, 0, 0, 0], weights["layer.bias"]
    logits = np.einsum("oc,cshw->oshw", kernel, case.block((0, 0, 0), case.shape)) + bias[:, None, None, None]
    expected = np.array([0, 10, 20])[logits.argmax(axis=0)]
    assert kernel.shape == (3, 2) and len(np.unique(expected)) == 3
    found = segment(load_model(package, "cpu", "fp32"), [head], SegmentOptions(threads=1)).labels.array
    box = np.zeros(case.shape, bool)
    box[case.box()] = True
    labels = case.space.output_view(found)
    assert np.mean(labels[box] != expected[box]) < 1e-4


@pytest.mark.parametrize("settings", [{}, VOXRESNET])
def test_channels_that_do_not_overlap_are_refused(settings):
    far = Volume(random_volume(grid((9, 9, 9)), seed=1).array, grid((9, 9, 9), origin=(900, 0, 0)), "knee")
    message = refusal("channels-apart", prepare, model(channels=2, **settings), [random_volume(grid((9, 9, 9))), far])
    assert "knee does not overlap the ROI, or the image random" in message


@pytest.mark.parametrize("settings", [{}, VOXRESNET])
def test_preparation_can_be_cancelled(settings):
    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        prepare(model(**settings), [random_volume(grid((9, 9, 9)))], check=stop)


def test_preparation_can_be_cancelled_during_filtering(head_image):
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == 20:
            raise Cancelled

    with pytest.raises(Cancelled):
        prepare(model(**VOXRESNET), [read_volume(head_image)], check=stop)


@pytest.mark.parametrize(
    ("shape", "spacing", "words"),
    [
        ((20, 20, 20), (1.0, 1.0, 1.0), None),
        ((20, 20, 7), (1.0, 1.0, 1.0), ("covers only 7 mm of the 32 mm", "head-foot")),
        ((1, 20, 20), (3.0, 1.0, 1.0), ("covers only 3 mm of the 32 mm", "left-right")),
        ((20, 20, 20), (1.0, 1.0, 3.0), None),
        ((20, 20, 20), (1.0, 3.5, 1.0), ("spacing of 3.5 mm", "front-back", "than the 1 mm")),
    ],
)
def test_too_few_or_too_thick_slices_get_a_warning(shape, spacing, words):
    """Sizes are (right-left, front-back, head-foot)."""
    of = Grid(shape[::-1], np.diag([*spacing, 1]))
    chosen = model(preparation={"spacing": [1, 1, 1]})
    case = prepare(chosen, [Volume(np.random.default_rng(1).random(of.shape), of, "scan")])
    assert len(case.warnings) == (words is not None)
    assert all(word in case.warnings[0] for word in words or ())


def test_questionable_channels_get_a_warning():
    of, shifted = grid((8, 9, 10)), grid((8, 9, 10), origin=(-2.8, 5, 20))
    first, second = (random_volume(of, seed=seed).array for seed in (1, 2))
    chosen = model(channels=2, inference={"window": [8, 8, 8]})

    def warnings(*volumes: Volume) -> list[str]:
        return list(prepare(chosen, volumes).warnings)

    one = Volume(first, of, "one", (), "MR", "a")
    assert warnings(one, Volume(second, of, "two", (), "MR", "a")) == []
    assert warnings(one, Volume(second, of, "two", (), "", "")) == []
    assert warnings(one, Volume(first, shifted, "two", (), "OT", "a")) == []
    (text,) = warnings(one, Volume(first.astype(np.float64), of, "two", (), "MR", "a"))
    assert "T1 and T2 are the same" in text
    almost = first.copy()
    almost[-1, -1, -1] += 1
    assert warnings(one, Volume(almost, of, "two")) == []
    (text,) = warnings(one, Volume(second, of, "two", (), "MR", "b"))
    assert "patient" in text
    (text,) = warnings(one, Volume(second, of, "two", (), "CT", "a"))
    assert text.startswith("two is CT according to its DICOM header, but A model for tests was made for MR;")


def ct(shape=(24, 40, 40), air=True) -> np.ndarray:
    """Hounsfield units of a head: air around it unless it is cropped, soft tissue with fat, and a skull."""
    rng = np.random.default_rng(0)
    radius = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, side) for side in shape[1:]], indexing="ij"))[None]
    array = 40 + rng.normal(0, 15, shape) - 130 * (rng.random(shape) < 0.1)
    if air:
        array = np.where((radius > 0.6) & (radius < 0.68), rng.normal(900, 300, shape), array)
        array = np.where(radius > 0.75, np.maximum(rng.normal(-1000, 15, shape), -1024), array)
    return array.astype(np.float32)


def lungs() -> np.ndarray:
    """Hounsfield units inside a chest: mostly lungs, with a heart, but without the air around the patient."""
    rng = np.random.default_rng(0)
    array = np.maximum(rng.normal(-800, 60, (24, 40, 40)), -1024)
    array[:, 10:20, 10:20] = rng.normal(50, 15, (24, 10, 10))
    return array


def padded(*values: int, overshoot: float = 0) -> np.ndarray:
    """A head with slabs of padding, as left by interpolation: inexact, and with an overshooting edge."""
    array = ct().astype(np.float64)
    for index, value in enumerate(values):
        array[..., 6 * index : 6 * index + 6] = value
    array += np.random.default_rng(0).normal(0, 1e-4, array.shape)
    array[..., 6 * len(values)] -= overshoot
    return array


@pytest.mark.parametrize(
    ("array", "is_doubtful"),
    [
        (ct(), False),
        (ct().round().astype(np.int16), False),
        (ct(air=False), False),
        (ct(air=False) * (np.indices((24, 40, 40))[2] > 5), False),
        (ct() + 1024, True),
        (ct(air=False) + 1024, True),
        (lungs() + 1024, True),
        (lungs(), False),
        (ct() - 1024, True),
        (ct(air=False) - 1024, True),
        (np.where(np.indices((24, 40, 40))[2] < 12, -3024, ct()), False),
        (padded(-3024), False),
        (padded(-3024, overshoot=2500), False),
        (padded(-32768, -2000), False),
        (ct() + np.random.default_rng(1).normal(0, 90, (24, 40, 40)), False),
        (np.where(np.prod(np.indices((24, 40, 40))[1:], axis=0) < 1400, -1000, ct(air=False)), False),
        (np.random.default_rng(0).normal(60, 8, (24, 40, 40)), False),
        (np.clip(ct(air=False), 0, 80), True),
        (np.where(ct() < 0, ct() + 65536, ct()), True),
        (ct() / 1000, True),
        (np.clip((ct() + 160) / 400, 0, 1) * 255, True),
        (np.clip((ct() + 160) / 400, 0, 1), True),
    ],
)
def test_ct_not_in_hounsfield_units_gets_a_warning(array, is_doubtful):
    of, wanted = grid(array.shape), "do not look like Hounsfield units"
    settings = description()
    settings["inputs"][0]["modality"] = "CT"
    warnings = prepare(parse_description(settings), [Volume(array, of, "scan")]).warnings
    assert [wanted in text for text in warnings].count(True) == is_doubtful
    warnings = prepare(model(), [Volume(array, of, "scan")]).warnings
    assert not any(wanted in text for text in warnings), "MR has any values"


@pytest.mark.parametrize(
    ("array", "is_like_ct"),
    [
        (ct(), True),
        (lungs(), True),
        (padded(-3024), True),
        (ct() + 1024, False),
        ((ct() - 40) / 500, False),
        (np.random.default_rng(0).normal(0, 400, (24, 40, 40)), False),
    ],
    ids=["head", "chest", "padded", "shifted", "normalized", "noise around 0"],
)
def test_ct_for_an_mr_model_gets_a_warning(array, is_like_ct):
    # The modality in a DICOM header takes precedence; CT has a separate warning.
    for modality, is_warned in (("", is_like_ct), ("MR", False), ("CT", False)):
        warnings = prepare(model(), [Volume(array, grid(array.shape), "scan", (), modality)]).warnings
        assert any("has the values of a CT" in text for text in warnings) == is_warned


@pytest.mark.parametrize(
    ("file", "is_labels"),
    [
        *[(f"{name}.nii.gz", True) for name in ("CT_Abdomen_3mm/ct_organs", "IXI_T1_2mm/IXI034_tissue")],
        ("SynthSeg_4mm/label_maps/training_seg_03.nii.gz", True),
        ("UPENN_GBM_4mm/pat2/pat2_flair.nii.gz", False),
        ("MSD_Task04_Hippocampus/imagesTr/hippocampus_123.nii.gz", False),
    ],
)
def test_label_map_for_an_mr_model_gets_a_warning(data_folder, file, is_labels):
    warnings = prepare(model(), [read_volume(data_folder / file)]).warnings
    assert any("looks like a label map" in warning for warning in warnings) == is_labels


def test_image_with_few_counts_is_not_a_label_map():
    """As in nuclear medicine: smooth, with small whole numbers."""
    counts = np.zeros((24, 40, 40))
    counts[4:20, 8:32, 8:32] = np.linspace(1, 9, 16)[:, None, None].round()
    settings = description()
    for modality, is_warned in (("NM", False), ("PT", True)):
        settings["inputs"][0]["modality"] = modality
        warnings = prepare(parse_description(settings), [Volume(counts, grid(counts.shape), "scan")]).warnings
        assert any("looks like a label map" in warning for warning in warnings) == is_warned
