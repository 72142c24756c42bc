"""Auto-context: what is trained in each stage, what stays fixed, and that the second round uses the first's maps."""

import pytest
import torch
from torch import nn

from conresnet.networks import build_network

VOXRESNET = {"type": "voxresnet", "arguments": {"base_width": 8}}
CONRESNET = {"type": "conresnet", "arguments": {"base_width": 8, "residual_outputs": 2}}


def make(network=VOXRESNET, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return build_network("auto_context", {"input_channels": 2, "outputs": 3, "network": network} | arguments)


def image() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 2, 16, 16, 16)


def train_a_little(network: nn.Module, stage: int) -> None:
    network.begin_stage(stage)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    network.train()
    for _ in range(2):
        outputs = network(image())
        sum(logits.square().mean() for logits in (outputs["segmentation"], *outputs["auxiliary"])).backward()
        optimizer.step()
        optimizer.zero_grad()


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stage_changes_only_its_own_round(stage):
    """Weights and batch norm statistics, although ``train()`` applies to all modules."""
    network = make(rounds=3)
    assert network.stages == 3
    before = [state(one) for one in network.rounds]
    train_a_little(network, stage)
    changed = [
        {name for name, value in one.state_dict().items() if not torch.equal(value, old[name])}
        for one, old in zip(network.rounds, before, strict=True)
    ]
    assert [bool(names) for names in changed] == [number == stage for number in range(3)]
    assert changed[stage] == set(before[stage])


@pytest.mark.parametrize("network", [VOXRESNET, CONRESNET])
@pytest.mark.parametrize("stage", [0, 1])
def test_exactly_the_parameters_of_the_stage_get_gradients(network, stage):
    network = make(network).train()
    network.begin_stage(stage)
    outputs = network(image())
    outputs_in_loss = [outputs["segmentation"], *outputs.get("auxiliary", []), *outputs.get("residuals", [])]
    sum(logits.square().mean() for logits in outputs_in_loss).backward()
    for number, one in enumerate(network.rounds):
        reached = [value.grad is not None and bool(value.grad.any()) for value in one.parameters()]
        assert reached == [number == stage] * len(reached)


@pytest.mark.parametrize(
    ("network", "context", "exclusive", "channels"),
    [
        (VOXRESNET, ["probability"], True, 2),
        (VOXRESNET, ["probability"], False, 3),
        (CONRESNET, ["residual"], True, 2),
        (CONRESNET, ["probability", "residual"], True, 4),
    ],
)
def test_second_round_gets_image_and_maps_of_same_window(network, context, exclusive, channels):
    network = make(network, context=context, exclusive=exclusive).eval()
    recorded = []
    network.rounds[1].register_forward_pre_hook(lambda module, inputs: recorded.append(inputs[0]))
    x = image()[:1]
    network(x)
    first = network.rounds[0](x, wanted=("segmentation", "residual"))
    probability = first["segmentation"].softmax(1)[:, 1:] if exclusive else first["segmentation"].sigmoid()
    maps = {"probability": probability, "residual": first["residual"].sigmoid() if "residual" in first else None}
    assert recorded[0].shape[1] == 2 + channels
    torch.testing.assert_close(recorded[0], torch.cat([x, *(maps[name] for name in context)], dim=1))


def test_training_gets_same_maps_as_inference():
    network = make()
    train_a_little(network, 0)
    network.begin_stage(1)
    recorded = []
    network.rounds[1].register_forward_pre_hook(lambda module, inputs: recorded.append(inputs[0]))
    network.train()(image())
    network.eval()(image())
    assert torch.equal(recorded[0], recorded[1])


def test_interior_of_a_window_matches_whole_volume():
    """With batch norm; the distance to the border is twice as large as for one round."""
    network = make()
    for stage in (0, 1):
        # Norms with real statistics, so that they are not close to the identity in evaluation.
        train_a_little(network, stage)
    volume = torch.randn(1, 2, 8, 8, 480)
    whole = network.eval()(volume)["segmentation"]
    window = network(volume[..., 64:416])["segmentation"]
    torch.testing.assert_close(window[..., 160:192], whole[..., 224:256], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(window[..., :8], whole[..., 64:72], rtol=1e-4, atol=1e-4)


def test_output_is_that_of_the_stages_round_or_the_last():
    network, x = make().eval(), image()
    last = network(x)["segmentation"]
    assert network.provides == {"segmentation", "auxiliary"}
    network.begin_stage(0)
    assert torch.equal(network(x)["segmentation"], network.rounds[0](x)["segmentation"])
    network.begin_stage(1)
    assert torch.equal(network(x)["segmentation"], last) and not torch.equal(last, network.rounds[0](x)["segmentation"])
    assert network.auxiliary_weights(0) == (1.0,) * 4


@pytest.mark.parametrize("shape", [(1, 2, 3), (7, 20, 9)])
def test_outputs_have_size_of_input(shape):
    network = make(CONRESNET, context=["residual"]).eval()
    outputs = network(torch.randn(1, 2, *shape), wanted=("segmentation", "residual", "attention", "features"))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        "segmentation": (3, *shape),
        "residual": (2, *shape),
        "attention": (1, *shape),
        "features": (2, *shape),
    }


def test_residual_axis_applies_to_every_round():
    assert [one.axis for one in make(CONRESNET, residual_axis="W").rounds] == [4, 4]
    inner = {"type": "conresnet", "arguments": CONRESNET["arguments"] | {"residual_axis": "H"}}
    assert [one.axis for one in make(inner, residual_axis="H").rounds] == [3, 3]
    with pytest.raises(ValueError, match="'W' here and 'H' in the network"):
        make(inner, residual_axis="W")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"rounds": 1}, "rounds"),
        ({"rounds": 10_000_000}, "rounds"),
        ({"context": []}, "context"),
        ({"context": ["features"]}, "context"),
        ({"context": ["probability", "probability"]}, "context"),
        ({"context": ["residual"]}, "gives no residual"),
        ({"outputs": 1}, "outputs must be more than 1"),
        ({"network": "voxresnet"}, "network must be"),
        ({"network": {"type": "voxresnet"}}, "network must be"),
        ({"network": {"type": "vox", "arguments": {}}}, 'Unknown network "vox"'),
        ({"network": {"type": "auto_context", "arguments": {"network": VOXRESNET}}}, "in stages itself"),
        ({"residual_axis": "S"}, "residual_axis"),
    ],
)
def test_wrong_arguments_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**{"network": VOXRESNET} | arguments)
