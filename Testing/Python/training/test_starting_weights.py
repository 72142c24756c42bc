"""Fine-tuning a model: what a run takes from it, and which models are refused."""

import pytest
import torch

from conresnet.networks import build_network
from conresnet.systems.predictors import load_network
from conresnet_training.runs.run import read_checkpoint, without_prefix
from conresnet_training.training import begin_with
from conresnet_training.training.trainer import PREPARED_FOLDER
from training.commands import refused, run_command
from training.tiny_plan import write_tiny_plan

SHIPPED = "hippocampus"


def network(**arguments):
    return build_network("conresnet", {"input_channels": 1, "outputs": 3, "residual_outputs": 2, **arguments})


def test_run_starts_with_weights_of_a_model(data_set, tmp_path, monkeypatch):
    plan, run = write_tiny_plan(data_set, tmp_path / "plan.yaml"), tmp_path / "run"
    settings = ("model.system.networks.0.arguments.base_width=16", "training.learning_rate=1e-9", "training.steps=1")
    options = [part for setting in (*settings, f"training.start_from={SHIPPED}") for part in ("--set", setting)]
    assert run_command(monkeypatch, "train", plan, "--output", run, *options) == 0
    trained = without_prefix(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    shipped = load_network(SHIPPED).state_dict()
    assert all(torch.allclose(trained[name], shipped[name], atol=1e-6) for name in shipped)


def test_layers_for_other_channels_or_segments_are_reinitialized():
    other = network(base_width=16, input_channels=4, outputs=5, residual_outputs=4)
    before, shipped = {name: tensor.clone() for name, tensor in other.state_dict().items()}, load_network(SHIPPED)
    reinitialized = begin_with(SHIPPED, other)
    kept = [name for name, tensor in other.state_dict().items() if torch.equal(tensor, before[name])]
    heads = {"segmentation_head", "residual_head_full", "residual_head_half", "residual_head_quarter"}
    input_layers = {"encoder.stage1.0.weight", "decoder_quarter.residual_input.weight"}
    assert {name for name in kept if name.split(".")[0] not in heads} == input_layers
    assert len(kept) == len(input_layers) + 2 * len(heads)
    assert set(reinitialized) == {name.rpartition(".")[0] for name in kept}
    expected = {**shipped.state_dict(), **{name: before[name] for name in kept}}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_model_of_another_size_is_refused_without_changes():
    other = network(base_width=8)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with refused("start-does-not-fit"):
        begin_with(SHIPPED, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("model", "message"), [("no-such-model", "no-such-model"), (SHIPPED, "a different kind or size of network")]
)
def test_unusable_starting_model_is_refused_before_preparation(data_set, tmp_path, monkeypatch, capsys, model, message):
    plan, run = write_tiny_plan(data_set, tmp_path / "plan.yaml"), tmp_path / "run"
    options = ("--output", run, "--set", f"training.start_from={model}")
    assert run_command(monkeypatch, "train", plan, *options) == 2
    assert message in capsys.readouterr().err
    assert not (run / PREPARED_FOLDER).exists()
