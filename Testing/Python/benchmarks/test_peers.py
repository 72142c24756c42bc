"""MONAI's networks in our loop: built as their authors configure them, and with their loss."""

import pytest
import torch

from conresnet_training.planning.plan import read_plan, with_settings
from conresnet_training.training import SegmentationTraining, segmentation_loss


@pytest.mark.parametrize(
    ("window", "spacing", "strides", "kernels"),
    [
        # From nnU-Net 2.8.1; the first is its plan for the Decathlon's hippocampus.
        ((40, 56, 40), (1, 1, 1), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 4),
        (
            (20, 256, 256),
            (5, 0.8, 0.8),
            [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
            [[1, 3, 3], [1, 3, 3], *[[3, 3, 3]] * 5],
        ),
        # The last halving would affect only one axis, with fewer than 12 voxels.
        ((12, 160, 96), (0.8, 0.7, 0.9), [[1, 1, 1], [2, 2, 2], *[[1, 2, 2]] * 3], [[3, 3, 3]] * 5),
        (
            (80, 160, 160),
            None,
            [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 2, 2]],
            [[3, 3, 3]] * 6,
        ),
    ],
)
def test_stages_match_nnunets_plan(peers, window, spacing, strides, kernels):
    assert peers.nnunet_stages(window, spacing) == (strides, kernels)


def test_dynunet_has_nnunets_features_and_scales(peers):
    network = peers.DynUNetPeer(1, 3, *peers.nnunet_stages((40, 56, 40), (1, 1, 1)))
    assert network.network.filters == [32, 64, 128, 256]
    outputs = network(torch.zeros(1, 1, 16, 24, 16))
    assert outputs["segmentation"].shape == (1, 3, 16, 24, 16)
    # The coarsest of the three decoder scales has weight 0 in nnU-Net, and the finest is the segmentation.
    assert [logits.shape for logits in outputs["auxiliary"]] == [(1, 3, 16, 24, 16)]


@pytest.mark.parametrize("size", [(17, 16, 19), (3, 4, 5)])
@pytest.mark.parametrize("kind", ["dynunet", "segresnet", "basicunet"])
def test_peer_accepts_any_size_and_has_the_interface_of_our_networks(peers, kind, size, plan_file):
    description = peers.with_peer(read_plan(plan_file), kind).model.system.networks[0]
    network = peers.PEERS[kind](**description.arguments).eval()
    with torch.no_grad():
        outputs = network(torch.randn(1, 1, *size), wanted=("segmentation",))
    assert {name: value.shape for name, value in outputs.items()} == {"segmentation": (1, 3, *size)}


def test_loss_of_a_peer_weights_scales_like_nnunet(peers, plan_file):
    plan = with_settings(read_plan(plan_file), ["model.inference.window=[32, 32, 32]"])
    training = SegmentationTraining(peers.with_peer(plan, "dynunet"))
    target = (torch.rand(1, 2, 16, 16, 16) > 0.8).float()
    target[:, 1] *= 1 - target[:, 0]
    outputs = training.network(torch.randn(1, 1, 16, 16, 16))
    fine, coarse = (segmentation_loss(x, target, True) for x in (outputs["segmentation"], *outputs["auxiliary"]))
    assert training.losses(outputs, target)["loss"].item() == pytest.approx((fine + coarse / 2).item())
