"""The losses of the papers, compared with their equations."""

import math

import pytest
import torch
from torch import nn

from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import with_settings
from conresnet_training.planning.planner import make_plan
from conresnet_training.training import (
    SegmentationTraining,
    boundary_loss,
    dice_loss,
    region_weight,
    residual_loss,
    segmentation_loss,
    signed_distances,
    total_loss,
)


def blocks(batch: int = 1) -> torch.Tensor:
    """(batch, 2, 6, 8, 8): two boxes that do not touch."""
    target = torch.zeros(batch, 2, 6, 8, 8)
    target[:, 0, 1:4, 1:4, 1:4] = 1
    target[:, 1, 2:5, 5:7, 5:7] = 1
    return target


def test_dice_of_a_half_found_segment_matches_hand_calculation():
    target = torch.zeros(1, 1, 1, 1, 4)
    target[..., :2] = 1
    found = torch.zeros_like(target)
    found[..., 0] = 1
    assert dice_loss(found, target).item() == pytest.approx(1 - 2 / 3, abs=1e-4)


def test_perfect_logits_have_zero_loss_in_both_modes():
    target = blocks()
    regions = 40 * target - 20
    assert segmentation_loss(regions, target, exclusive=False) < 1e-3
    background = 40 * (1 - target.sum(1, keepdim=True)) - 20
    assert segmentation_loss(torch.cat([background, regions], 1), target, exclusive=True) < 1e-3


@pytest.mark.parametrize("kind", ["cross_entropy_dice", "cross_entropy", "dice"])
def test_false_positives_are_penalized_in_windows_without_a_segment(kind):
    """The Dice of segments alone is constant there, so networks trained with it find segments everywhere."""
    empty = torch.zeros(1, 2, 6, 8, 8)
    logits = torch.zeros(1, 3, 6, 8, 8)
    logits[:, 1] = 2
    logits.requires_grad_()
    segmentation_loss(logits, empty, True, kind).backward()
    background, wrong, _ = logits.grad.sum((0, 2, 3, 4))
    assert background < -0.01 and wrong > 0.01


def test_dice_loss_is_mean_over_all_classes():
    """Eq. 1 of the pyramid's paper, where the background is one of the K classes (section 3), and 1 is added."""
    target = torch.zeros(1, 1, 1, 1, 4)
    target[..., :2] = 1
    found = torch.zeros_like(target)
    found[..., 0] = 1
    logits = 40 * torch.cat([1 - found, found], 1)
    segment, background = 2 * 1 / (1 + 2), 2 * 2 / (3 + 2)
    expected = 1 - (segment + background) / 2
    assert segmentation_loss(logits, target, True, "dice").item() == pytest.approx(expected, abs=1e-4)


def test_residual_voxels_are_weighted_by_log_of_their_rarity():
    target = torch.zeros(1, 1, 4, 4, 4)
    target[0, 0, 0, 0, :2] = 1
    weight = math.log(64 / 2)
    expected = math.log(2) * (62 + 2 * weight) / 64
    assert residual_loss(torch.zeros_like(target), target).item() == pytest.approx(expected, rel=1e-5)


def test_residual_voxels_never_have_lower_weight_than_others():
    """For more than 1/e of the window, eq. 8 would make the background weigh more."""
    target = torch.zeros(1, 1, 4, 4, 4)
    target[0, 0, :2] = 1
    assert residual_loss(torch.zeros_like(target), target).item() == pytest.approx(math.log(2), rel=1e-5)


def test_empty_and_full_residuals_have_finite_loss():
    for target in (torch.zeros(1, 1, 2, 4, 4), torch.ones(1, 1, 2, 4, 4)):
        assert torch.isfinite(residual_loss(torch.zeros_like(target), target))


def test_deep_supervision_weights_the_coarser_residuals():
    target = blocks()
    logits = torch.zeros(1, 3, 6, 8, 8)
    outputs = {"segmentation": logits, "residuals": [torch.zeros_like(target)] * 3}
    with_coarser = total_loss(outputs, target, True, "S", deep_weight=0.5)
    without = total_loss(outputs, target, True, "S", deep_weight=0.0)
    assert with_coarser["residual_loss"].item() == pytest.approx(2 * without["residual_loss"].item())
    assert with_coarser["loss"] == with_coarser["segmentation_loss"] + with_coarser["residual_loss"]


def test_baseline_has_only_the_segmentation_loss():
    losses = total_loss({"segmentation": torch.zeros(1, 2, 6, 8, 8)}, blocks(), False, "S", 0.5)
    assert losses["loss"] == losses["segmentation_loss"] and "residual_loss" not in losses


def test_residual_targets_exclude_the_background():
    """Eq. 13: where two segments meet, both have a residual; the background has none."""
    target = torch.zeros(1, 2, 4, 2, 2)
    target[0, 0, :2], target[0, 1, 2:] = 1, 1
    expected = torch.zeros_like(target)
    expected[0, :, 2] = 1
    logits = 40 * expected - 20
    assert residual_loss(logits, expected) < 1e-6
    outputs = {"segmentation": torch.zeros(1, 3, 4, 2, 2), "residuals": [logits]}
    assert total_loss(outputs, target, True, "S", 0.5)["residual_loss"] < 1e-6


def test_signed_distance_matches_hand_calculation():
    inside = torch.zeros(2, 1, 1, 7, dtype=torch.bool)
    inside[0, ..., 2:5] = True
    distances = signed_distances(inside)
    assert distances[0].flatten().tolist() == [2, 1, 0, -1, 0, 1, 2]
    assert (distances[1] == 0.5).all()
    assert not signed_distances(~inside[1:]).any()


def test_missing_segment_has_distance_of_half_the_smallest_side():
    """Each segment of a window is treated separately: those that are present keep the paper's distances."""
    target = blocks()[0].bool()
    target[0] = False
    distances = signed_distances(target)
    assert (distances[0] == 3).all()
    assert torch.equal(distances[1], signed_distances(target[1:])[0])


def plan_of_kind(data_set, kind):
    """A plan of a narrow network for two segments."""
    arguments, outputs = "model.system.networks.0.arguments", 3 if kind == "labels" else 2
    settings = [f"model.output.kind={kind}", f"{arguments}.outputs={outputs}", f"{arguments}.base_width=8"]
    return with_settings(make_plan(read_data_set(data_set), data_set)[0], settings)


@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_false_positives_are_still_penalized_at_the_end_of_eq_14(kind, data_set):
    """With the other losses weighted 1%, the boundary loss still penalizes a segment that is not there."""
    plan, outputs = plan_of_kind(data_set, kind), 3 if kind == "labels" else 2
    training = SegmentationTraining(plan)
    target = torch.zeros(1, 2, 16, 16, 16)
    target[0, 1, 6:10, 6:10, 6:10] = 1
    logits = torch.zeros(1, outputs, 16, 16, 16)
    in_vain = (0, outputs - 2, slice(0, 4), slice(0, 4), slice(0, 4))
    logits[in_vain] = 2
    logits.requires_grad_()

    class Network(nn.Module):
        def forward(self, image):
            return {"segmentation": logits}

    training.network = Network()
    distances = signed_distances(target[0].bool())[None]
    training(torch.zeros(1, 1, 16, 16, 16), target, distances, progress=1.0)["loss"].backward()
    # The other losses alone give less than 0.02.
    assert (target.numel() * logits.grad[in_vain] > 0.3).all()


def test_boundary_loss_is_minimal_for_the_truth():
    target = blocks()[0].bool()
    distances = signed_distances(target)[None]
    truth = boundary_loss(target[None].float(), distances)
    grown = boundary_loss((distances <= 1).float(), distances)
    shrunk = boundary_loss((distances < 0).float(), distances)
    assert truth <= shrunk < grown and truth < 0


def test_weight_of_boundary_loss_increases_with_steps():
    assert region_weight(0.0) == 1
    assert region_weight(1.0) == pytest.approx(0.01)
    assert region_weight(0.5) == pytest.approx(0.505)


@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_compound_loss_is_a_mean_over_samples_mixed_by_eq_14(kind, data_set):
    plan = plan_of_kind(data_set, kind)
    torch.manual_seed(0)
    training = SegmentationTraining(plan).eval()
    target = torch.zeros(2, 2, 16, 16, 16)
    target[0, 0, 2:9, 3:9, 4:12], target[1, 1, 8:12, 2:6, 3:5] = 1, 1
    image = torch.randn(2, 1, 16, 16, 16)
    distances = torch.stack([signed_distances(sample.bool()) for sample in target])
    with torch.no_grad():
        plain = training(image, target)
        # alpha is then 0.3
        when = {"progress": 0.7 / 0.99}
        mixed = training(image, target, distances, **when)
        halves = [training(*(part[i : i + 1] for part in (image, target, distances)), **when) for i in range(2)]
    assert "boundary_loss" not in plain
    torch.testing.assert_close(mixed["loss"], 0.3 * plain["loss"] + 0.7 * mixed["boundary_loss"])
    for name in mixed:
        torch.testing.assert_close(mixed[name], torch.stack([half[name] for half in halves]).mean())


@pytest.mark.parametrize("exclusive", [False, True])
def test_losses_are_means_over_samples(exclusive):
    """A batch costs the mean of its samples, so it can be split among processes."""
    torch.manual_seed(0)
    target = blocks(2)
    target[1, 0] = target[1, 0].roll(2, dims=0)
    outputs = {
        "segmentation": torch.randn(2, 3 if exclusive else 2, 6, 8, 8),
        "residuals": [torch.randn(2, 2, 6, 8, 8) for _ in range(3)],
    }
    batch_loss = total_loss(outputs, target, exclusive, "S", 0.5)["loss"]
    halves = [
        total_loss(
            {
                "segmentation": outputs["segmentation"][i : i + 1],
                "residuals": [r[i : i + 1] for r in outputs["residuals"]],
            },
            target[i : i + 1],
            exclusive,
            "S",
            0.5,
        )["loss"]
        for i in range(2)
    ]
    torch.testing.assert_close(batch_loss, torch.stack(halves).mean())


def test_rare_labels_have_higher_weight_in_cross_entropy():
    """At 1, each label present counts equally, at 0.5 by the root of its voxel count, sample by sample."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 4, 4, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.zeros(2, 4, 6, 5, dtype=torch.long)
    labels[0, :2], labels[0, 2, 0, :3], labels[1, 0, 0, 0] = 1, 2, 2
    target = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)[:, 1:].double()
    voxels = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    means = [[voxels[n][labels[n] == label].mean() for label in labels[n].unique()] for n in (0, 1)]
    expected = sum(torch.stack(each).mean() for each in means) / 2
    torch.testing.assert_close(segmentation_loss(logits, target, True, "cross_entropy", 1.0), expected)
    sizes = [[(labels[n] == label).sum().double().sqrt() for label in labels[n].unique()] for n in (0, 1)]
    sums = [sum(m * s for m, s in zip(*each, strict=True)) for each in zip(means, sizes, strict=True)]
    expected = sum(total / sum(each) for total, each in zip(sums, sizes, strict=True)) / 2
    torch.testing.assert_close(segmentation_loss(logits, target, True, "cross_entropy", 0.5), expected)
    assert segmentation_loss(logits, target, True, "cross_entropy", 0.0) == pytest.approx(float(voxels.mean()))
