"""The cases that a fold holds out, whole, and how well a network segments them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils.data import Dataset

from conresnet_training.preparation import TrainingCase

# The logits of a case are put together on the device up to so many bytes, else in the computer's own memory.
MOST_BYTES_ON_DEVICE = 2 * 1024**3


class HeldOutCases(Dataset):
    """Whole prepared cases, one a sample, as (image (C, S, H, W), target (segments, S, H, W)).

    Args:
        targets: a segment each, the label values that belong to it.
        margin: cut each case to the box of its labels and so many voxels around it, as a fine network would get it from
            a coarse one that had found all segments and nothing else; None leaves the cases whole.
    """

    def __init__(self, cases: Sequence[TrainingCase], targets: Sequence[Sequence[int]], margin: int | None = None):
        self.cases, self.targets, self.margin = cases, targets, margin

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        case = self.cases[index]
        box = (slice(None),) * 3 if self.margin is None else labelled_box(case, self.margin)
        label = torch.from_numpy(case.label[box].copy())
        target = torch.stack([torch.isin(label, torch.tensor(values, dtype=label.dtype)) for values in self.targets])
        return torch.from_numpy(case.image[(slice(None), *box)].copy()), target.float()


def labelled_box(case: TrainingCase, margin: int) -> tuple[slice, slice, slice]:
    """The box (S, H, W) of a case's labels and so many voxels around it; all of a case that has none."""
    shape, labelled = case.label.shape, case.labelled
    if not len(labelled):
        return tuple(slice(0, side) for side in shape)
    places = np.unravel_index(labelled, shape)
    return tuple(slice(max(int(along.min()) - margin, 0), int(along.max()) + margin + 1) for along in places)


@torch.no_grad()
def dice_of_cases(
    network: nn.Module,
    cases: HeldOutCases,
    indices: Sequence[int],
    window: Sequence[int],
    exclusive: bool,
    device: torch.device,
    is_cancelled: Callable[[], bool],
) -> Tensor | None:
    """Dice of some of the cases' segments, 1 where a segment is in neither; None once ``is_cancelled``.

    Args:
        indices: of the cases.
        window: voxels (S, H, W) that the network sees at a time.
        exclusive: labels (softmax) rather than regions (a sigmoid a segment).

    Returns:
        (all cases, segments) on the CPU, 0 for cases that were not asked for.
    """
    dice = torch.zeros(len(cases), len(cases.targets))
    training = network.training
    network.eval()
    try:
        for index in indices:
            if is_cancelled():
                return None
            image, target = cases[index]
            fits = image[0].numel() * (len(cases.targets) + 1) * 4 <= MOST_BYTES_ON_DEVICE
            logits = _logits(network, image, window, device, stitched_on=device if fits else torch.device("cpu"))
            found = _segments(logits, exclusive)
            target = target.to(found.device)
            volume = found.sum((1, 2, 3)) + target.sum((1, 2, 3))
            shared = 2 * (found * target).sum((1, 2, 3)) / volume.clamp(min=1)
            dice[index] = torch.where(volume > 0, shared, 1.0).cpu()
    finally:
        network.train(training)
    return dice


def _logits(
    network: nn.Module, image: Tensor, window: Sequence[int], device: torch.device, stitched_on: torch.device
) -> Tensor:
    """(outputs, S, H, W) of a whole case."""

    def predict(x: Tensor) -> Tensor:
        return network(x, wanted=("segmentation",))["segmentation"].float()

    options = {"overlap": 0.5, "mode": "gaussian", "sw_device": device, "device": stitched_on}
    return sliding_window_inference(image[None], window, 1, predict, **options)[0]


def _segments(logits: Tensor, exclusive: bool) -> Tensor:
    """(segments, S, H, W) of 0 and 1."""
    if not exclusive:
        return (logits > 0).float()
    label = logits.argmax(0, keepdim=True)
    return (label == torch.arange(1, len(logits), device=label.device).view(-1, 1, 1, 1)).float()
