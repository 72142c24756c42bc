"""Every system from the plan to a model that segments: planned, trained, exported, used and evaluated."""

import json

import numpy as np
import pytest
import torch

from conresnet.cli import main as conresnet_main
from conresnet.images.files import read_volume
from conresnet.package.reader import read_package
from conresnet_training.planning.plan import read_plan
from conresnet_training.planning.systems import SYSTEMS
from conresnet_training.runs import PROGRESS_FILE, read_progress
from conresnet_training.training import SegmentationTraining
from training.commands import run_command
from training.data_folders import brats
from training.tiny_plan import write_tiny_plan

WINDOWS = {"pyramid": "[32, 32, 32]"}
# After few training steps, a network with batch norm finds nothing.
STEPS = {"pyramid": 10}


def planned(data_set, folder, system: str):
    """A plan file with two steps per stage, or the fewest steps that give a result."""
    window = f"model.inference.window={WINDOWS.get(system, '[16, 16, 16]')}"
    settings = f"training.steps={STEPS.get(system, 2)}", "training.steps_between_checkpoints=100", window
    return write_tiny_plan(data_set, folder / "plan.yaml", *settings, system=system)


def trained(data_set, folder, monkeypatch, system: str):
    """Folder of a run."""
    plan = planned(data_set, folder, system)
    assert run_command(monkeypatch, "train", plan, "--output", folder / "run") == 0
    return folder / "run"


def few(systems, quick):
    """Test parameters: the systems that ``make test`` uses, and the others, which ``make test-all`` adds."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in systems]


# One of each kind: with or without residuals, a single network, the same twice, two networks, several levels.
@pytest.mark.parametrize(
    "system", few(SYSTEMS, {"conresnet", "conresnet-baseline", "voxresnet-auto-context", "coarse-to-fine", "pyramid"})
)
def test_losses_reach_exactly_the_parameters_of_the_stage(data_set, tmp_path, system):
    plan = read_plan(planned(data_set, tmp_path, system))
    torch.manual_seed(0)
    training = SegmentationTraining(plan).train()
    window = plan.model.inference.window
    image = torch.randn(1, plan.model.channel_count, *window)
    label = torch.randint(3, window)
    target = torch.stack([label == 1, label == 2])[None].float()
    reached = []
    for stage in range(training.stages):
        if training.stages > 1:
            training.network.begin_stage(stage)
        training(image, target)["loss"].backward()
        reached.append({name for name, value in training.named_parameters() if value.grad is not None})
        assert [name for name in reached[-1] if not training.get_parameter(name).grad.any()] == []
        training.zero_grad()
    assert set().union(*reached) == {name for name, _ in training.named_parameters()}
    assert sum(map(len, reached)) == len(set().union(*reached))


@pytest.mark.parametrize(
    "system",
    few(
        ["conresnet-unet", "conresnet-refined", "voxresnet", "resdsn", "coarse-to-fine", "unet", "pyramid"],
        {"voxresnet", "coarse-to-fine"},
    ),
)
def test_system_is_trained_and_segments(data_set, tmp_path, monkeypatch, capsys, system):
    run, package = trained(data_set, tmp_path, monkeypatch, system), tmp_path / "package"
    progress = read_progress(run / PROGRESS_FILE)
    assert progress.state == "finished" and len(progress.points) == progress.started["stages"]
    assert all(0 < point["loss"] < 20 for point in progress.points)
    assert run_command(monkeypatch, "export", run, "--output", package) == 0
    description = read_package(package).description
    assert description.channel_count == (2 if system == "voxresnet" else 1)
    metrics = json.loads(read_package(package).read_file("metrics.json"))
    assert list(metrics["dice_a_case"]) == ["case_0", "case_3"]

    image = data_set / "imagesTr" / "case_3.nii.gz"
    command = ["segment", str(image), "--model", str(package), "--output", str(tmp_path / "out"), "--threads", "1"]
    assert conresnet_main(command) == 0
    found, truth = (read_volume(path) for path in (tmp_path / "out" / "segmentation.nii.gz", image))
    assert found.array.shape == truth.array.shape and np.allclose(found.grid.affine, truth.grid.affine)
    # The command's result matches the evaluation.
    label = read_volume(data_set / "labelsTr" / "case_3.nii.gz").array
    far = (found.array == 2), (label == 2)
    dice = 2 * (far[0] & far[1]).sum() / (far[0].sum() + far[1].sum())
    assert metrics["dice_a_case"]["case_3"]["Far box"] == pytest.approx(dice, abs=0.02)


@pytest.mark.parametrize("system", ["voxresnet-auto-context", "pyramid"])
def test_overlapping_regions_of_several_channels_are_trained(tmp_path, monkeypatch, capsys, system):
    """Overlapping regions from four channels; the context maps are computed per region."""
    data_set = brats(tmp_path / "brats")
    run = trained(data_set, tmp_path, monkeypatch, system)
    assert run_command(monkeypatch, "evaluate", run) == 0
    content = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(content["cases"]) == 1
    assert all(len(rows) == 3 for rows in content["cases"].values())
