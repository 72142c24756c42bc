"""Networks trained in stages: which parts change when, and how they are combined."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from conresnet.networks.resdsn import ResDSN
from conresnet.package.store import write_package
from conresnet.systems.predictors import load_network
from conresnet_training.planning.plan import read_plan, with_settings
from conresnet_training.runs import PROGRESS_FILE, read_progress
from conresnet_training.runs.packing import pack_runs
from conresnet_training.runs.run import Run, open_run, start_run
from conresnet_training.training import SegmentationTraining, loop, stages_of, steps_of_run
from conresnet_training.training.trainer import fit
from conresnet_training.training.validation import FirstStageBoxes, whole_case
from training.broken_runs import assert_same, checkpoint
from training.commands import refused
from training.tiny_plan import write_tiny_plan

STEPS = 4
SETTINGS = (f"training.steps={STEPS}", "training.steps_between_checkpoints=100")
# For each system, the prefix of its first part's tensors, and the setting for the paper's norm.
FIRST_PART = {"coarse-to-fine": "network.0.", "voxresnet-auto-context": "network.rounds.0."}
BATCH_NORM = {
    "coarse-to-fine": tuple(f"model.system.networks.{place}.arguments.norm=batch" for place in (0, 1)),
    "voxresnet-auto-context": ("model.system.networks.0.arguments.network.arguments.norm=batch",),
}
STAGED = sorted(FIRST_PART)


def staged_plan(data_set: Path, folder: Path, system: str, *settings: str) -> Path:
    path = folder / f"{system}.yaml"
    return write_tiny_plan(data_set, path, *SETTINGS, *BATCH_NORM[system], *settings, system=system)


def staged_run(data_set: Path, folder: Path, system: str, *settings: str) -> Run:
    return start_run(read_plan(staged_plan(data_set, folder, system, *settings)), folder / "run", 0)


@pytest.mark.parametrize("system", STAGED)
def test_each_stage_trains_only_its_part(data_set, tmp_path, system):
    """Weights, statistics of the batch norms, and the optimizer's state."""
    run = staged_run(data_set, tmp_path, system)
    with torch.random.fork_rng():
        torch.manual_seed(run.plan.training.seed)
        fresh = SegmentationTraining(run.plan)
    fit(run, STEPS)
    between = checkpoint(run.folder)
    fit(run)
    end = checkpoint(run.folder)
    names = list(dict(fresh.named_parameters()))
    for name, tensor in end["state_dict"].items():
        is_first = name.startswith(FIRST_PART[system])
        assert torch.equal(tensor, between["state_dict"][name]) == is_first, name
        assert torch.equal(between["state_dict"][name], fresh.state_dict()[name]) != is_first, name
    first = {place for place, name in enumerate(names) if name.startswith(FIRST_PART[system])}
    assert set(between["optimizer"]["state"]) == first
    assert set(end["optimizer"]["state"]) == set(range(len(names)))
    for place in first:
        assert_same(end["optimizer"]["state"][place], between["optimizer"]["state"][place])


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 2])
def test_changed_steps_are_refused_once_a_stage_started(data_set, tmp_path, steps):
    """In a finished run, steps of the second stage would count as steps of the first."""
    run = staged_run(data_set, tmp_path, "coarse-to-fine")
    fit(run, 1)
    other = Run(run.folder, with_settings(run.plan, [f"training.steps={steps}"]), 0)
    with refused("steps-changed"):
        fit(other)
    assert fit(run, 2).step == 2


def test_schedules_restart_with_each_stage(data_set, tmp_path, monkeypatch):
    run, observed = staged_run(data_set, tmp_path, "coarse-to-fine"), []
    original = ResDSN.auxiliary_weights
    monkeypatch.setattr(ResDSN, "auxiliary_weights", lambda self, share: observed.append(share) or original(share))
    monkeypatch.setattr(loop, "STEPS_BETWEEN_POINTS", 1)
    outcome = fit(run)
    assert (outcome.step, outcome.steps, outcome.finished) == (2 * STEPS, 2 * STEPS, True)
    assert observed == [step / STEPS for step in range(STEPS)] * 2
    progress = read_progress(run.folder / PROGRESS_FILE)
    assert (progress.steps, progress.started["stages"]) == (2 * STEPS, 2)
    rate = run.plan.training.learning_rate
    expected = [rate * (1 - step / STEPS) ** 0.9 for step in range(STEPS)] * 2
    assert [point["learning_rate"] for point in progress.points] == pytest.approx(expected)
    for point in progress.points:
        assert point["loss"] == pytest.approx(point["segmentation_loss"] + point["auxiliary_loss"], rel=1e-5)


def test_best_checkpoint_is_from_the_last_stage(data_set, tmp_path, monkeypatch):
    """The coarse network is not the goal of the run, however good it is."""
    dice = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(loop, "dice_of_cases", lambda *_: torch.full((2, 2), next(dice)))
    run = staged_run(data_set, tmp_path, "coarse-to-fine", f"training.steps_between_checkpoints={STEPS + 2}")
    fit(run)
    progress = read_progress(run.folder / PROGRESS_FILE)
    assert [(event["step"], event["best"]) for event in progress.validations] == [(4, True), (6, True), (8, False)]
    assert checkpoint(run.folder, "best")["global_step"] == progress.best["step"] == 6


def test_second_stage_builds_on_the_average_of_the_first(data_set, tmp_path):
    """The first part that is exported is the one that the second was trained on."""
    run = staged_run(data_set, tmp_path, "voxresnet-auto-context", "training.weight_average=0.8")
    fit(run, STEPS)
    between = checkpoint(run.folder)
    first = [name for name in between["state_dict"] if name.startswith(FIRST_PART["voxresnet-auto-context"])]
    filters = [name for name in first if between["state_dict"][name].ndim == 5]
    assert not any(torch.equal(between["state_dict"][name], between["training_state_dict"][name]) for name in filters)
    fit(run)
    end = checkpoint(run.folder)
    for name in first:
        assert torch.equal(end["training_state_dict"][name], between["state_dict"][name]), name
        assert torch.equal(end["state_dict"][name], between["state_dict"][name]), name


def test_fine_network_is_trained_around_the_segments(data_set, tmp_path, monkeypatch):
    observed = []
    monkeypatch.setattr(loop.TrainingLoop, "__init__", lambda self, *arguments: observed.extend(arguments[3]))
    monkeypatch.setattr(loop.TrainingLoop, "run_to", lambda self, last: loop.Outcome(0, 0, True))
    settings = "training.foreground_share=0", "model.inference.window=[8, 8, 8]"
    unchanged = "augmentation.scaling=0", "augmentation.rotation_degrees=0"
    run = staged_run(data_set, tmp_path, "coarse-to-fine", *settings, *unchanged)
    monkeypatch.setattr("conresnet_training.training.trainer.shutil.rmtree", lambda *_, **__: None)
    fit(run)
    coarse, fine = observed
    assert all(fine.samples[number][1].any() for number in range(40))
    assert not all(coarse.samples[number][1].any() for number in range(40))
    assert coarse.held_out.box_of is whole_case
    boxes = fine.held_out.box_of
    assert isinstance(boxes, FirstStageBoxes) and boxes.network is not None
    arguments = run.plan.model.system.arguments
    assert boxes.find_box.keywords == {"margin": arguments["margin"], "smallest": arguments["smallest_component"]}


def test_case_without_labels_is_validated(data_set, tmp_path):
    file = data_set / "labelsTr" / "case_0.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), file)
    run = staged_run(data_set, tmp_path, "coarse-to-fine", "training.steps=1")
    assert fit(run).finished


@pytest.mark.parametrize("system", STAGED)
def test_model_requires_all_stages_to_be_trained(data_set, tmp_path, system):
    run = staged_run(data_set, tmp_path, system)
    fit(run, STEPS)
    with refused("stage-not-reached"):
        pack_runs([run])
    fit(run, STEPS + 1)
    packed = pack_runs([open_run(run.folder)])
    assert packed.made_by[0]["steps"] == STEPS + 1


def test_package_of_coarse_to_fine_has_the_weights_of_each_network(data_set, tmp_path):
    run = staged_run(data_set, tmp_path, "coarse-to-fine")
    fit(run)
    packed = pack_runs([run])
    assert set(packed.files) == {"coarse.safetensors", "fine.safetensors"}
    package = write_package(packed.description, packed.files, tmp_path / "package")
    trained = checkpoint(run.folder)["state_dict"]
    for place in (0, 1):
        for name, tensor in load_network(package, place).state_dict().items():
            expected = trained[f"network.{place}.{name}"]
            assert torch.equal(tensor, expected.half().to(expected.dtype) if expected.ndim > 1 else expected), name


def test_runs_with_several_networks_are_not_combined(data_set, tmp_path):
    plan = read_plan(staged_plan(data_set, tmp_path, "coarse-to-fine"))
    runs = [start_run(plan, tmp_path / str(fold), fold) for fold in (0, 1)]
    with refused("runs-not-joined"):
        pack_runs(runs)


def test_steps_of_a_run_include_all_stages(data_set, tmp_path):
    plans = {system: read_plan(staged_plan(data_set, tmp_path, system)) for system in STAGED}
    plans["conresnet"] = read_plan(write_tiny_plan(data_set, tmp_path / "plain.yaml", *SETTINGS))
    assert {system: stages_of(plan) for system, plan in plans.items()} == {**dict.fromkeys(STAGED, 2), "conresnet": 1}
    assert [steps_of_run(plans[system]) for system in ("conresnet", STAGED[0])] == [STEPS, 2 * STEPS]
    plans["conresnet"].model.system.networks[0].arguments["base_width"] = 12
    with refused("plan-network-wrong"):
        steps_of_run(plans["conresnet"])
