"""Training steps: synchronization, non-finite values, and the optimizer's state."""

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from conresnet_training.planning.plan import Plan, read_plan
from conresnet_training.runs import PROGRESS_FILE, read_progress
from conresnet_training.runs.run import Run
from conresnet_training.training import SegmentationTraining, loop
from conresnet_training.training.loop import STEPS_BETWEEN_POINTS, StageCases, TrainingLoop
from conresnet_training.training.validation import HeldOutCases
from training.broken_runs import assert_same, checkpoint
from training.commands import refused, run_command
from training.tiny_plan import write_tiny_plan


class Samples:
    """Samples of two cases in turn, "first" and "second".

    Args:
        too_large: number of the sample whose image is finite, but too large for the loss to be finite.
    """

    def __init__(self, plan: Plan, too_large: int | None = None):
        self.shape = (plan.model.channel_count, *plan.model.inference.window)
        self.segments, self.too_large = len(plan.targets), too_large

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.randn(self.shape, generator=torch.Generator().manual_seed(number))
        target = torch.zeros(self.segments, *self.shape[1:])
        target[0, 4:9, 4:9, 4:9] = 1
        return (image.clamp(-3, 3) * 1e38 if number == self.too_large else image), target

    def case_name(self, number: int) -> str:
        return ("first", "second")[number % 2]


def loop_of(plan: Plan, folder, samples: Samples | None = None, **precision) -> TrainingLoop:
    torch.manual_seed(0)
    training = SegmentationTraining(plan)
    cases = [StageCases(samples, HeldOutCases([], []))] * training.stages
    fabric = Fabric(accelerator="cpu", devices=1, **precision)
    made = TrainingLoop(Run(folder, plan, 0), fabric, training, cases, None, lambda *_, **__: None, None)
    made._started, made._first_step, made._seconds, made._timed = 0.0, 0, 0.0, 0
    return made


def make_steps(made: TrainingLoop, samples: Samples, count: int) -> None:
    for _ in range(count):
        pair = [samples[2 * made.step], samples[2 * made.step + 1]]
        made._make_step([torch.stack(part) for part in zip(*pair, strict=True)])


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in weights.values()])


@pytest.fixture
def planned(data_set, tmp_path):
    """A function that makes a plan of 100 steps without a checkpoint in between, with additional settings."""

    def make(*settings: str, system: str = "conresnet") -> Plan:
        long = ("training.steps=100", "training.steps_between_checkpoints=100")
        return read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml", *long, *settings, system=system))

    return make


@pytest.mark.parametrize(
    ("system", "settings"),
    [
        ("conresnet", ("training.rare_labels=0.5", "training.weight_average=0.9")),
        ("resdsn", ("training.optimizer=sgd", "training.boundary=true", "training.batch=8")),
        ("voxresnet-auto-context", ("training.weight_average=0.9",)),
        ("coarse-to-fine", ("training.weight_average=0.9",)),
    ],
)
def test_steps_do_not_synchronize_with_the_device(planned, tmp_path, monkeypatch, system, settings):
    """Fake tensors have no values: reading one, which would make a GPU synchronize, is an error.

    Values are read once in ten steps.
    """
    monkeypatch.setattr(Fabric, "_move_model_to_device", lambda self, model, optimizers: model)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    plan = planned(*settings, "model.inference.window=[32, 32, 32]", system=system)
    with FakeTensorMode():
        made = loop_of(plan, tmp_path)
        image, target = (torch.zeros(2, parts, 32, 32, 32) for parts in (plan.model.channel_count, 2))
        batch = [image, target, *([target] * plan.training.boundary)]
        for _ in range(STEPS_BETWEEN_POINTS - 1):
            made._make_step(batch)
        with pytest.raises(DataDependentOutputException):
            made._make_step(batch)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_non_finite_step_changes_nothing_and_is_reported_later(planned, tmp_path, optimizer):
    """The case responsible is found with the weights of that step."""
    plan = planned(f"training.optimizer={optimizer}", "model.system.networks.0.arguments.dropout=0")
    good, bad = Samples(plan), Samples(plan, too_large=9)
    alone, made = loop_of(plan, tmp_path, good), loop_of(plan, tmp_path, bad)
    make_steps(alone, good, 4)
    make_steps(made, bad, STEPS_BETWEEN_POINTS - 1)
    assert made.step == STEPS_BETWEEN_POINTS - 1
    assert_same(made.training.network.state_dict(), alone.training.network.state_dict())
    assert_same(made.bare_optimizer.state_dict()["state"], alone.bare_optimizer.state_dict()["state"])
    with refused("not-finite", step=5, cases=["second"]):
        make_steps(made, bad, 1)


def test_steps_are_checked_before_a_checkpoint_is_saved(planned, tmp_path):
    plan = planned()
    bad = Samples(plan, too_large=3)
    made = loop_of(plan, tmp_path, bad)
    make_steps(made, bad, 3)
    with refused("not-finite", step=2):
        made._save()
    assert not (tmp_path / "checkpoints").exists()


# In smaller windows, bf16 on a CPU computes wrong gradients.
SCALED = ("model.inference.window=[24, 24, 24]", "model.system.networks.0.arguments.dropout=0")


def scaled(scale: float) -> MixedPrecision:
    """As for fp16 on a GPU, but computing in bf16."""
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    precision._desired_input_dtype = torch.bfloat16
    return precision


def test_gradient_overflow_only_lowers_the_scale(planned, tmp_path):
    """A scale that falls below 1 ends the run."""
    plan, precision = planned(*SCALED), scaled(2.0**127)
    samples = Samples(plan)
    made = loop_of(plan, tmp_path, samples, plugins=[precision])
    before = {name: value.clone() for name, value in made.training.network.state_dict().items()}
    make_steps(made, samples, 1)
    assert_same(dict(made.training.network.state_dict()), before)
    assert precision.scaler.get_scale() == 2.0**126
    precision.scaler.update(2.0**10)
    make_steps(made, samples, STEPS_BETWEEN_POINTS - 1)
    still = [name for name, value in made.training.network.named_parameters() if torch.equal(value, before[name])]
    assert not still
    precision.scaler.update(0.5)
    with refused("not-finite"):
        make_steps(made, samples, STEPS_BETWEEN_POINTS)


def test_gradients_are_unscaled_before_clipping(planned, tmp_path):
    plan = planned(*SCALED, "training.optimizer=sgd")
    samples, weights = Samples(plan), []
    for steps, scale in ((0, 1), (3, 1), (3, 2.0**10)):
        made = loop_of(plan, tmp_path, samples, plugins=[scaled(scale)])
        make_steps(made, samples, steps)
        weights.append(flat(made.training.network.state_dict()))
    begun, plain, other = weights
    assert (other - plain).abs().mean() < 0.05 * (plain - begun).abs().mean()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_fused_updates_match_unfused_updates(planned, tmp_path, monkeypatch, optimizer):
    plan = planned(f"training.optimizer={optimizer}")
    samples, weights = Samples(plan), []
    for steps, devices in ((0, ()), (5, ("cpu",)), (5, ())):
        monkeypatch.setattr(loop, "FUSED", devices)
        made = loop_of(plan, tmp_path, samples)
        if optimizer == "adam":
            # With the usual 1e-8, Adam amplifies the last bits of gradients close to 0.
            made.bare_optimizer.param_groups[0]["eps"] = 1e-3
        make_steps(made, samples, steps)
        assert bool(made.bare_optimizer.param_groups[0]["fused"]) == bool(devices)
        weights.append(flat(made.training.network.state_dict()))
    begun, fused, plain = weights
    assert (fused - plain).abs().mean() < 0.01 * (plain - begun).abs().mean()


def test_checkpoint_with_unfused_updates_continues_with_fused_ones(data_set, tmp_path, monkeypatch):
    """For example, a checkpoint of an earlier version, or of a device without fused updates."""
    plan = write_tiny_plan(data_set, tmp_path / "plan.yaml", "training.steps=6")
    run, uninterrupted = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as earlier:
        earlier.setattr(loop, "FUSED", ())
        assert run_command(monkeypatch, "train", plan, "--output", run, "--max-steps", 3) == 0
        assert run_command(monkeypatch, "train", plan, "--output", uninterrupted) == 0
    begun = checkpoint(run)
    assert not begun["optimizer"]["param_groups"][0]["fused"]
    assert run_command(monkeypatch, "resume", run) == 0
    resumed, plain = checkpoint(run), checkpoint(uninterrupted)
    assert resumed["optimizer"]["param_groups"][0]["fused"]
    assert {float(state["step"]) for state in resumed["optimizer"]["state"].values()} == {6.0}
    begun, resumed, plain = (flat(content["state_dict"]) for content in (begun, resumed, plain))
    assert (resumed - plain).abs().mean() < 0.05 * (plain - begun).abs().mean()
    assert read_progress(run / PROGRESS_FILE).state == "finished"
