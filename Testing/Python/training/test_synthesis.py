"""Training on images synthesized from label maps: real heads at 4 mm, from the data folder to a model package."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from conresnet.errors import UserError
from conresnet.images.files import read_single
from conresnet.inference.segmentation import load_model, segment
from conresnet.package import parse_description
from conresnet.request import SegmentOptions
from conresnet_training.data.augmentation import SampleChanges, Warp, draw_turn
from conresnet_training.data.label_maps import OVERSAMPLING
from conresnet_training.data.layouts import read_data_set
from conresnet_training.data.preparation import prepare_label_map, read_case
from conresnet_training.data.samples import MixedSamples, Sampling, SynthesizedSamples
from conresnet_training.data.synthesis import Synthesizer, target_places
from conresnet_training.planning.memory import Budget
from conresnet_training.planning.plan import Augmentation, Plan, Synthesis, read_plan, with_settings
from conresnet_training.planning.planner import Choices, make_plan
from conresnet_training.runs.run import read_checkpoint, start_run
from conresnet_training.training.trainer import fit
from training.commands import refused, run_command

STEPS = [
    {"step": "clip_percentiles", "low": 0.5, "high": 99.5},
    {"step": "z_score", "over": "foreground", "outside": "keep"},
]
PLAIN = {
    "known_contrasts": 1.0,
    "known_variation": 0.0,
    "stripped": 0.0,
    "bending": 0.0,
    "bias_field": 0.0,
    "gamma": 0.0,
    "blur": 0.0,
    "thick_slices": 0.0,
    "noise": 0.0,
    "normalization": 0.0,
}
WINDOW = (24, 24, 24)


@pytest.fixture
def heads(data_folder: Path, tmp_path: Path) -> Path:
    """The label maps of three heads, in a folder that tests may change."""
    return Path(shutil.copytree(data_folder / "SynthSeg_4mm", tmp_path / "heads"))


@pytest.fixture
def plan(heads: Path) -> Plan:
    """A plan with a network that trains in seconds."""
    made = make_plan(read_data_set(heads), heads, Budget.given(8), Choices(base_width=8))[0]
    window = ",".join(map(str, WINDOW))
    return with_settings(made, [f"model.inference.window=[{window}]", "training.steps=4", "training.batch=2"])


def described(folder: Path, **changes) -> Path:
    """The folder with changed lines in its description; None removes a line."""
    path = folder / "label_maps.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def synthesizer(data_set, **settings) -> Synthesizer:
    return Synthesizer(data_set.tissues, Synthesis(**{**PLAIN, **settings}), [STEPS], (4, 4, 4))


def samples(
    data_set, plan: Plan, tmp_path: Path, made: Synthesizer | None = None, **augmentation
) -> SynthesizedSamples:
    """Samples of all cases of a data set at 4 mm."""
    folder = tmp_path / "prepared"
    folder.mkdir(exist_ok=True)
    cases = [prepare_label_map(case, plan.model, folder, data_set.tissues) for case in data_set.cases]
    places = [data_set.tissues.places(plan.targets[item.name]) for item in plan.model.output.segments]
    changes = SampleChanges(Augmentation(**augmentation), plan.model.preparation.spacing)
    made = made or synthesizer(data_set)
    return SynthesizedSamples(cases, WINDOW, places, changes, Sampling(0, 1.0), plan.mirrored_segments, made)


def places_of(label: Path, data_set) -> torch.Tensor:
    """A label map at twice its resolution, so that its image has one voxel per voxel of the label map."""
    values = torch.from_numpy(data_set.tissues.as_places(read_single(label)).array)
    for axis in range(3):
        values = values.repeat_interleave(OVERSAMPLING, axis)
    return values


def test_changed_label_map_is_reported_and_prepared_again(heads, plan, tmp_path):
    data_set, folder, changed = read_data_set(heads), tmp_path / "prepared", []
    case, options = data_set.cases[0], (plan.model, folder, data_set.tissues, changed.append)
    folder.mkdir()
    first = prepare_label_map(case, *options)
    assert prepare_label_map(case, *options) == first and not changed
    image = nibabel.load(case.label)
    array = np.asarray(image.dataobj).copy()
    array[array == 17] = 0
    nibabel.save(nibabel.Nifti1Image(array, image.affine, image.header), case.label)
    again = prepare_label_map(case, *options)
    assert changed == [case.name] and again.places.counts.sum() < again.label.size
    assert set(folder.iterdir()) == {again.label_file, again.places_file}, "what is out of date takes no room"
    case.label.unlink()
    with refused("case-file-missing", case=case.name, path=str(case.label)):
        prepare_label_map(case, *options)


def test_contents_of_label_maps_are_read_from_the_folder(heads):
    data_set = read_data_set(heads)
    assert [case.name for case in data_set.cases] == [f"training_seg_0{number}" for number in (1, 2, 3)]
    assert not any(case.images or case.missing for case in data_set.cases)
    assert len(data_set.labels) == 32 and data_set.labels[17] == "Left hippocampus"
    assert data_set.values_of_labels["Right cerebral white matter"] == (41, 57, 62)
    tissues = data_set.tissues
    assert 507 in tissues.values and 507 in tissues.surroundings and 24 not in tissues.surroundings
    group = dict(zip(tissues.values, tissues.groups, strict=True))
    assert group[17] == group[53] != group[18]


@pytest.mark.parametrize(
    ("changes", "code", "values"),
    [
        ({"segments": None}, "label-maps-no-segments", {}),
        ({"segments": {"A": [2], "B": [2, 3]}}, "label-maps-value-shared", {"segment": "B", "value": 2}),
        ({"segments": {"A": [502]}}, "label-maps-segment-range", {"segment": "A", "most": 255}),
        ({"segments": {"A": [True]}}, "label-maps-no-values", {"key": "segments.A"}),
        ({"segments": {"A\x1b": [2], "A\\x1b": [3]}}, "data-set-label-repeated", {}),
        ({"segments": {"Left w": [2], "left W": [3]}}, "data-set-label-repeated", {"label": "left W"}),
        ({"surroundings": 502}, "label-maps-no-values", {"key": "surroundings"}),
        ({"inside": [10**30]}, "label-maps-no-values", {"key": "inside"}),
        ({"label_maps": None}, "label-maps-no-pattern", {}),
        ({"label_maps": "nowhere/*.nii.gz"}, "label-maps-no-match", {"pattern": "nowhere/*.nii.gz"}),
        ({"label_maps": "/etc/*"}, "label-maps-pattern-absolute", {"pattern": "/etc/*"}),
        ({"alike": [[2, 1000]]}, "label-maps-alike-unknown", {"value": 1000}),
        ({"alike": 2}, "label-maps-no-list", {"key": "alike"}),
        ({"contrasts": {"T1": {"2": 0.8}}}, "label-maps-contrasts", {}),
        ({"contrasts": {"T1": {"2": [0.8, float("nan")]}}}, "label-maps-contrasts", {}),
        ({"images": [{"image": "a.nii.gz"}]}, "label-maps-image-entry", {"entry": '{"image": "a.nii.gz"}'}),
        ({"images": "a.nii.gz"}, "label-maps-no-list", {"key": "images"}),
        ({"contrast": {}}, "label-maps-key-unknown", {"key": "contrast"}),
    ],
)
def test_invalid_description_is_refused(heads, changes, code, values):
    folder = described(heads, **changes)
    with refused(code, path=str(folder / "label_maps.json"), **values):
        read_data_set(folder)


def test_image_with_name_of_a_label_map_is_a_duplicate_case(heads):
    name = "training_seg_01.nii.gz"
    folder = described(heads, images=[{"image": f"images/{name}", "label": f"labels/{name}"}])
    with pytest.raises(UserError) as caught:
        read_data_set(folder)
    assert caught.value.code == "case-name-repeated"
    assert [Path(caught.value.values[key]).parent.name for key in ("first", "second")] == ["label_maps", "images"]


def test_windows_paths_are_found(heads):
    folder = described(heads, label_maps="label_maps\\*.nii.gz")
    assert len(read_data_set(folder).cases) == 3


def test_undescribed_value_is_refused(heads, plan, tmp_path):
    content = json.loads((heads / "label_maps.json").read_text(encoding="utf-8"))
    left = [value for value in content["surroundings"] if value != 507]
    data_set = read_data_set(described(heads, surroundings=left))
    with refused("unexpected-value", value=507, case="training_seg_01"):
        samples(data_set, plan, tmp_path)


def test_warped_label_map_matches_scipy():
    label = np.random.default_rng(0).integers(0, 200, (24, 26, 28)).astype(np.uint8)
    turn = draw_turn(30, 0.3, (1, 1, 1), np.random.default_rng(3))
    corner, window = np.array([6, 5, 7]), (10, 16, 12)
    middle = (np.array(window) - 1) / 2
    expected = affine_transform(label, turn, corner + middle - turn @ middle, window, order=0, mode="grid-constant")
    found = Warp(window, turn).cut_label(label, corner).numpy()
    np.testing.assert_array_equal(found, expected)
    # Outside the case, there is nothing.
    outside = Warp(window, turn).cut_label(label, np.array([-4, 3, 18]))
    _, same = Warp(window, turn).cut(np.zeros((1, *label.shape), np.float32), label, np.array([-4, 3, 18]))
    assert torch.equal(outside, same) and (outside == 0).any() and (outside > 0).any()
    # Constant displacements shift the window.
    moved = np.broadcast_to(np.array([2.0, -1.0, 3.0])[:, None, None, None], (3, 2, 3, 2))
    elsewhere = Warp(window).cut_label(label, corner + np.array([2, -1, 3]))
    assert torch.equal(Warp(window, displacements=moved).cut_label(label, corner), elsewhere)
    # A single node moves only the voxels at its end.
    at_end = np.zeros((3, 2, 2, 2))
    at_end[0, 1] = 4
    bent = Warp(window, displacements=at_end).cut_label(label, corner)
    assert torch.equal(bent[0], Warp(window).cut_label(label, corner)[0])
    assert torch.equal(bent[-1], Warp(window).cut_label(label, corner + np.array([4, 0, 0]))[-1])


def test_target_voxel_has_majority_label_of_its_eight_parts():
    values = torch.randint(0, 4, (8, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = values.view(4, 2, 3, 2, 5, 2).permute(0, 2, 4, 1, 3, 5).reshape(4, 3, 5, 8).long()
    votes = torch.nn.functional.one_hot(parts, 4).sum(3)
    found = target_places(values).long()
    assert torch.equal(votes.gather(3, found[..., None])[..., 0], votes.amax(3))


def test_described_contrast_is_reproduced_equally_on_both_sides(heads):
    data_set = read_data_set(heads)
    values = places_of(data_set.cases[0].label, data_set)
    counts = np.bincount(values.ravel(), minlength=256)
    (image,) = synthesizer(data_set).image(values, counts, np.random.default_rng(0))
    label = target_places(values)

    def mean(value: int) -> float:
        return float(image[label == data_set.tissues.values.index(value) + 1].mean())

    white, cortex, fluid = (mean(value) for value in (2, 3, 24))
    contrast = data_set.tissues.contrasts["T1"]
    expected = (contrast[2][0] - contrast[3][0]) / (contrast[2][0] - contrast[24][0])
    assert (white - cortex) / (white - fluid) == pytest.approx(expected, abs=0.05)
    assert mean(41) == pytest.approx(white, abs=0.05) and mean(42) == pytest.approx(cortex, abs=0.1)


def test_intensities_are_normalized_by_the_models_steps(heads):
    """Statistics measured on draws match those the engine would measure on the whole image."""
    data_set = read_data_set(heads)
    values = places_of(data_set.cases[1].label, data_set)
    counts = np.bincount(values.ravel(), minlength=256)
    label, measured = target_places(values), 0
    for seed in range(16):
        made = synthesizer(data_set, known_contrasts=0.5, gamma=0.3)
        (image,) = made.image(values, counts, np.random.default_rng(seed))
        # Air that is not black counts as image, as in the engine.
        if len(image[label == 0].unique()) == 1:
            assert float(image[label > 0].mean()) == pytest.approx(0, abs=0.05)
            assert float(image[label > 0].std()) == pytest.approx(1, abs=0.05)
            measured += 1
    assert 4 < measured < 12


def test_contrast_is_random_without_a_description(heads):
    data_set = read_data_set(heads)
    values = places_of(data_set.cases[0].label, data_set)
    counts = np.bincount(values.ravel(), minlength=256)
    made = synthesizer(data_set, known_contrasts=0.0)
    kinds = [target_places(values) == place for place in data_set.tissues.places([2, 3, 24])]
    orders = set()
    for seed in range(60):
        (image,) = made.image(values, counts, np.random.default_rng(seed))
        orders.add(tuple(np.argsort([float(image[kind].mean()) for kind in kinds])))
    assert len(orders) == 6


def test_skull_stripped_image_shows_nothing_around_the_brain(heads):
    data_set = read_data_set(heads)
    values = places_of(data_set.cases[0].label, data_set)
    counts = np.bincount(values.ravel(), minlength=256)
    (image,) = synthesizer(data_set, stripped=1.0, noise=0.0).image(values, counts, np.random.default_rng(1))
    label = target_places(values).numpy()
    around = torch.from_numpy(np.isin(label, data_set.tissues.places(data_set.tissues.surroundings)))
    assert around.sum() > 10_000 and float(image[around].std()) < 0.1
    assert torch.equal(image[around].min(), image[torch.from_numpy(label) == 0].min())
    assert float(image[torch.from_numpy(label) > 0][~around[torch.from_numpy(label) > 0]].std()) > 0.5


def test_left_stays_left_in_mirror_images(heads, plan, tmp_path):
    """The model's last axis runs from left to right, so a left structure comes before its right one in every sample."""
    made = samples(read_data_set(heads), plan, tmp_path, flip_axes=["W"], scaling=0.0, rotation_degrees=0.0)
    made.window = (80, 100, 100)
    names = [item.name for item in plan.model.output.segments]
    pairs = [[names.index(f"{side} {name}") for side in ("Left", "Right")] for name in ("thalamus", "cerebral cortex")]
    checked, mirrored = 0, set()
    for number in range(6):
        _, target = made[number]
        places = torch.arange(target.shape[-1]).float()
        for left, right in pairs:
            if target[left].any() and target[right].any():
                of_left, of_right = (
                    (target[one].sum((0, 1)) * places).sum() / target[one].sum() for one in (left, right)
                )
                assert of_left < of_right
                checked += 1
        mirrored.add(made.changes.draw_warp((1, 1, 1), np.random.default_rng(number)).is_mirror_image)
    assert checked >= 6 and mirrored == {True, False}


def test_sample_depends_only_on_its_number(heads, plan, tmp_path):
    data_set = read_data_set(heads)
    one, other = (
        samples(data_set, plan, tmp_path, Synthesizer(data_set.tissues, Synthesis(), [STEPS], (4, 4, 4))) for _ in "ab"
    )
    one[7]
    for first, second in zip(one[3], other[3], strict=True):
        assert torch.equal(first, second)
    image, target = one[3]
    assert image.shape == (1, *WINDOW) and target.shape == (32, *WINDOW) and image.isfinite().all()
    assert float(target.sum(0).max()) == 1 and not torch.equal(one[3][0], one[4][0])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_samples_of_both_kinds_alternate(share):
    class Numbered:
        def __init__(self, kind):
            self.kind = kind

        def __getitem__(self, number):
            return self.kind, number

        def case_name(self, number):
            return f"{self.kind} {number}"

    mixed = MixedSamples(Numbered("image"), Numbered("made"), share)
    drawn = [mixed[number] for number in range(40)]
    for kind, count in (("image", round(40 * share)), ("made", 40 - round(40 * share))):
        # Each kind is counted separately, so that no sample is skipped.
        assert [number for name, number in drawn if name == kind] == list(range(count))
    assert mixed.case_name(5) == "{} {}".format(*drawn[5])


def test_plan_for_label_maps_mirrors_pairs_and_shares_their_outputs(plan):
    assert plan.synthesis == Synthesis()
    assert plan.augmentation.flip_axes == ["W"] and len(plan.augmentation.swapped_segments) == 14
    arguments = plan.model.system.networks[0].arguments
    names = ["background", *(item.name for item in plan.model.output.segments)]
    assert ["Left hippocampus", "Right hippocampus"] in [[names[one] for one in pair] for pair in arguments["pairs"]]
    assert arguments["residual_outputs"] == 1 and arguments["outputs"] == 33
    assert plan.targets["Left cerebral white matter"] == [2, 25, 30]
    assert plan.model.preparation.spacing == (4, 4, 4)


def test_model_is_trained_from_label_maps_alone(heads, plan, tmp_path, monkeypatch):
    run = start_run(plan, tmp_path / "run", 0)
    assert fit(run, 2).step == 2
    assert fit(run).finished
    unbroken = start_run(plan, tmp_path / "unbroken", 0)
    fit(unbroken)
    weights = [read_checkpoint(one.checkpoint)["state_dict"] for one in (run, unbroken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert run_command(monkeypatch, "export", run.folder, "--output", tmp_path / "package") == 0
    metrics = json.loads((tmp_path / "package" / "metrics.json").read_text(encoding="utf-8"))
    assert "synthesized images of training_seg_01" in metrics["split"]
    assert list(metrics["dice_a_case"]["training_seg_01"]) == list(plan.targets)
    channels, label = read_case(read_data_set(heads).cases[0], ["MR"], synthesizer(read_data_set(heads)))
    result = segment(load_model(tmp_path / "package", "cpu"), channels, SegmentOptions(maps=("residual", "attention")))
    assert result.labels.array.shape == label.array.shape
    # One residual for all segments.
    assert result.maps["residual"].shape == (1, *label.array.shape)


def test_label_maps_and_images_are_trained_together(heads, plan, tmp_path):
    """Two of the heads have images; both kinds of samples are used in training."""
    data_set = read_data_set(heads)
    made = synthesizer(data_set)
    (heads / "images").mkdir()
    entries = []
    for case in data_set.cases[:2]:
        (image,), label = read_case(case, ["MR"], made)
        affine = nibabel.load(case.label).affine
        for kind, volume in (("image", image), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(volume.array.T, affine), heads / "images" / f"{case.name}_{kind}.nii.gz")
        entries.append({kind: f"images/{case.name}_{kind}.nii.gz" for kind in ("image", "label")})
    data_set = read_data_set(described(heads, images=entries))
    assert [bool(case.images) for case in data_set.cases] == [False, True, False, True, False]
    changed = with_settings(plan, ["training.folds=5", "synthesis.image_share=0.5"])
    run = start_run(replace_data(changed, heads), tmp_path / "run", 4)
    assert fit(run).finished


def replace_data(plan: Plan, folder: Path) -> Plan:
    return plan.model_copy(update={"data": folder})


def test_plan_without_synthesis_is_refused(plan, tmp_path):
    run = start_run(plan.model_copy(update={"synthesis": None}), tmp_path / "run", 0)
    with refused("synthesis-missing"):
        fit(run)


def test_steps_that_need_the_whole_image_are_refused(heads):
    data_set = read_data_set(heads)
    steps = [{"step": "subtract_gaussian", "sigma_mm": 20.0}, *STEPS]
    with refused("synthesis-filters"):
        Synthesizer(data_set.tissues, Synthesis(), [steps], (4, 4, 4))


def test_checking_label_maps_finds_nothing_wrong(heads, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "check", heads, "--output", tmp_path / "report") == 0
    assert "error" not in capsys.readouterr().out.lower()


def test_one_residual_for_all_segments_can_be_described(plan):
    content = plan.document()["model"]
    assert parse_description(content, "here")
    content["system"]["networks"][0]["arguments"]["residual_outputs"] = 2
    with pytest.raises(UserError) as caught:
        parse_description(content, "here")
    assert caught.value.values["field"] == "system.networks[0].arguments.residual_outputs"
    assert replace(plan.model, title="x").title == "x"


def test_data_set_of_the_recipe_uses_freesurfer_labels(repository: Path):
    maker = repository / "Utilities" / "make_brain_structures_data.py"
    spec = importlib.util.spec_from_file_location(maker.stem, maker)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    muse = np.zeros((12, 3, 3), np.uint8)
    # From left to right: thalamus, cortex, the corpus callosum, which has no side, cortex, thalamus.
    muse[:2], muse[2:4], muse[4:8], muse[8:10], muse[10:] = 60, 101, 95, 100, 59
    found = script.renumbered(muse)[:, 0, 0].tolist()
    assert found == [10, 10, 3, 3, 2, 2, 41, 41, 42, 42, 49, 49]
    plan = read_plan(repository / "ConResTraining" / "conresnet_training" / "recipes" / "brain-structures.yaml")
    described_segments = script.description()["segments"]
    assert described_segments == plan.targets
    for item in plan.model.output.segments:
        assert item.label == described_segments[item.name][0] and item.terminology is not None
