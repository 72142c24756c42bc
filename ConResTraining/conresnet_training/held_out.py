"""The cases that a fold holds out, whole, and how well a network segments them."""

from collections.abc import Callable, Sequence

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils.data import Dataset

from conresnet.boxes import Box, whole_box
from conresnet_training.preparation import TrainingCase

# The logits of a case are put together on the device up to so many bytes, else in the computer's own memory.
MOST_BYTES_ON_DEVICE = 2 * 1024**3


def whole_case(case: TrainingCase) -> Box:
    """All of a case (S, H, W)."""
    return whole_box(case.label.shape)


class HeldOutCases(Dataset):
    """Prepared cases, as (image (C, s, h, w) in a box, target (segments, S, H, W) of the whole case, the box).

    Args:
        targets: a segment each, the label values that belong to it.
        box_of: where the network is to look in a case; None where it is to look nowhere. The image is empty then.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        targets: Sequence[Sequence[int]],
        box_of: Callable[[TrainingCase], Box | None] = whole_case,
    ):
        self.cases, self.targets, self.box_of = cases, targets, box_of

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Box]:
        case = self.cases[index]
        box = self.box_of(case) or (slice(0, 0),) * 3
        label = torch.from_numpy(case.label.copy())
        target = torch.stack([torch.isin(label, torch.tensor(values, dtype=label.dtype)) for values in self.targets])
        return torch.from_numpy(case.image[(slice(None), *box)].copy()), target.float(), box


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
            image, target, box = cases[index]
            found = torch.zeros_like(target[(slice(None), *box)])
            if image.numel():
                found = found_segments(network, image, window, len(target), exclusive, device)
            # What lies outside the box was missed. Only what lies in it goes to the device.
            volume = found.sum((1, 2, 3)).cpu() + target.sum((1, 2, 3))
            true = (found * target[(slice(None), *box)].to(found.device)).sum((1, 2, 3)).cpu()
            dice[index] = torch.where(volume > 0, 2 * true / volume.clamp(min=1), 1.0)
    finally:
        network.train(training)
    return dice


def found_segments(
    network: nn.Module,
    image: Tensor,
    window: Sequence[int],
    segments: int,
    exclusive: bool,
    device: torch.device,
) -> Tensor:
    """(segments, S, H, W) of 0 and 1, what a network finds in an image (C, S, H, W) by windows that overlap by half."""

    def predict(x: Tensor) -> Tensor:
        return network(x, wanted=("segmentation",))["segmentation"].float()

    fits = image[0].numel() * (segments + 1) * 4 <= MOST_BYTES_ON_DEVICE
    stitched_on = device if fits else torch.device("cpu")
    options = {"overlap": 0.5, "mode": "gaussian", "sw_device": device, "device": stitched_on}
    logits = sliding_window_inference(image[None], window, 1, predict, **options)[0]
    if not exclusive:
        return (logits > 0).float()
    label = logits.argmax(0, keepdim=True)
    return (label == torch.arange(1, len(logits), device=label.device).view(-1, 1, 1, 1)).float()
