"""Networks of others by our loop: built as theirs, with their loss, and measured as ours."""

import pytest
import torch

from conresnet.networks import NETWORKS
from conresnet_training.evaluation import read_evaluation
from conresnet_training.losses import segmentation_loss
from conresnet_training.plan import read_plan
from conresnet_training.progress import PROGRESS_FILE, read_progress


@pytest.fixture
def peers(benchmark, monkeypatch):
    """The benchmark's module, its networks in the engine's table as long as the test lasts."""
    module = benchmark("peer_networks")
    for name, network in module.PEERS.items():
        monkeypatch.setitem(NETWORKS, name, network)
    return module


@pytest.mark.parametrize(
    ("window", "spacing", "strides", "kernels"),
    [
        # As nnU-Net 2.8.1 plans for these; the first is its plan for the Decathlon's hippocampus.
        ((40, 56, 40), (1, 1, 1), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 4),
        (
            (20, 256, 256),
            (5, 0.8, 0.8),
            [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
            [[1, 3, 3], [1, 3, 3], *[[3, 3, 3]] * 5],
        ),
        # The last halving would be of one axis alone, of fewer than 12 voxels.
        ((12, 160, 96), (0.8, 0.7, 0.9), [[1, 1, 1], [2, 2, 2], *[[1, 2, 2]] * 3], [[3, 3, 3]] * 5),
        (
            (80, 160, 160),
            None,
            [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 2]],
            [[3, 3, 3]] * 6,
        ),
    ],
)
def test_stages_are_those_that_nnunet_plans(peers, window, spacing, strides, kernels):
    assert peers.nnunet_stages(window, spacing) == (strides, kernels)


def test_dynunet_has_nnunets_features_and_scales(peers):
    network = peers.DynUNetPeer(1, 3, *peers.nnunet_stages((40, 56, 40), (1, 1, 1)))
    assert network.network.filters == [32, 64, 128, 256]
    outputs = network(torch.zeros(1, 1, 16, 24, 16))
    assert outputs["segmentation"].shape == (1, 3, 16, 24, 16)
    # Of three decoder scales the coarsest has weight 0 in nnU-Net, and the finest is the segmentation.
    assert [logits.shape for logits in outputs["deeper"]] == [(1, 3, 16, 24, 16)]


@pytest.mark.parametrize("kind", ["dynunet", "segresnet"])
def test_peer_takes_any_size_and_answers_as_ours_do(peers, kind, plan_file):
    description = peers.with_peer(read_plan(plan_file), kind).description.system.networks[0]
    network = peers.PEERS[kind](**description.arguments).eval()
    with torch.no_grad():
        outputs = network(torch.randn(1, 1, 17, 16, 19), wanted=("segmentation",))
    assert {name: value.shape for name, value in outputs.items()} == {"segmentation": (1, 3, 17, 16, 19)}


def test_peers_loss_weighs_scales_as_nnunet_does(peers, plan_file):
    training = peers.PeerTraining(peers.with_peer(read_plan(plan_file), "dynunet"))
    target = (torch.rand(1, 2, 8, 8, 8) > 0.8).float()
    target[:, 1] *= 1 - target[:, 0]
    fine, coarse = torch.randn(2, 1, 3, 8, 8, 8)
    losses = training.losses({"segmentation": fine, "deeper": [coarse]}, target)
    parts = [segmentation_loss(logits, target, exclusive=True) for logits in (fine, coarse)]
    assert losses["loss"] == pytest.approx(float(2 * parts[0] + parts[1]) / 3)
    assert losses["segmentation_loss"] == parts[0]


def test_peer_is_trained_resumed_and_measured_on_the_held_out_cases(run_benchmark, plan_file, tmp_path):
    run = tmp_path / "run"
    options = [plan_file, "--network", "dynunet", "--fold", 1, "--output", run]
    stopped = run_benchmark("peers.py", *options, "--max-steps", 1)
    assert "Stopped after 1 of 2 steps" in stopped.stderr
    assert not (run / "evaluation").exists()
    table = run_benchmark("peers.py", *options).stdout
    assert "Near box" in table
    assert read_progress(run / PROGRESS_FILE).state == "finished"
    evaluation = read_evaluation(run / "evaluation")
    assert evaluation.model == "dynunet"
    assert list(evaluation.cases) == ["case_1"]
    assert evaluation.made_by[0]["steps"] == 2
