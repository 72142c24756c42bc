"""The cases that a fold holds out, whole, and how well a network segments them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils.data import Dataset

from conresnet.boxes import Box, whole_box
from conresnet_training.label_places import VALUES
from conresnet_training.preparation import TrainingCase

# The logits of a case are put together on the device up to so many bytes, else in the computer's own memory.
MOST_BYTES_ON_DEVICE = 2 * 1024**3


def whole_case(case: TrainingCase) -> Box:
    """All of a case (S, H, W)."""
    return whole_box(case.label.shape)


class HeldOutCases(Dataset):
    """Prepared cases, as (image (C, s, h, w) in a box, label map (S, H, W) uint8 of the whole case, the box).

    The label map is mapped from its file, not in memory.

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
        self.cases, self.box_of = cases, box_of
        self.targets = [sorted({*values}) for values in targets]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, np.ndarray, Box]:
        case = self.cases[index]
        box = self.box_of(case) or (slice(0, 0),) * 3
        return torch.from_numpy(case.image[(slice(None), *box)].copy()), case.label, box


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
            image, label, box = cases[index]
            # Of the whole case: what lies outside the box was missed.
            there = sum((np.bincount(plane.ravel(), minlength=VALUES) for plane in label), np.zeros(VALUES, np.int64))
            found = np.zeros((len(cases.targets), VALUES), np.int64)
            if image.numel():
                segments = found_segments(network, image, window, len(found), exclusive, device)
                found = _label_counts(segments, label[box], len(found))
            for segment, values in enumerate(cases.targets):
                volume = int(found[segment].sum() + there[values].sum())
                dice[index, segment] = 2 * int(found[segment, values].sum()) / volume if volume else 1.0
    finally:
        network.train(training)
    return dice


def _label_counts(found: np.ndarray, label: np.ndarray, segments: int) -> np.ndarray:
    """(segments, 256): how many voxels of each segment that was found have each label value.

    Slice by slice, since numpy counts in eight bytes a voxel.
    """
    counts = np.zeros((segments, VALUES), np.int64)
    for place, values in enumerate(label):
        if found.ndim == 4:
            counts += [np.bincount(values[mask], minlength=VALUES) for mask in found[:, place]]
        else:
            pairs = found[place].astype(np.intp) * VALUES + values
            counts += np.bincount(pairs.ravel(), minlength=(segments + 1) * VALUES).reshape(-1, VALUES)[1:]
    return counts


def found_segments(
    network: nn.Module,
    image: Tensor,
    window: Sequence[int],
    segments: int,
    exclusive: bool,
    device: torch.device,
) -> np.ndarray:
    """What a network finds in an image (C, S, H, W) by windows that overlap by half.

    Held as small as it may be, since a case may have many voxels and many segments: beside the logits, a byte a voxel
    for labels and a byte a voxel and segment for regions.

    Returns:
        for labels (S, H, W) uint8, 0 or the segment's place from 1; for regions (segments, S, H, W) bool.
    """

    def predict(x: Tensor) -> Tensor:
        return network(x, wanted=("segmentation",))["segmentation"].float()

    fits = image[0].numel() * (segments + 1) * 4 <= MOST_BYTES_ON_DEVICE
    stitched_on = device if fits else torch.device("cpu")
    options = {"overlap": 0.5, "mode": "gaussian", "sw_device": device, "device": stitched_on}
    logits = sliding_window_inference(image[None], window, 1, predict, **options)[0]
    if not exclusive:
        return (logits > 0).cpu().numpy()
    # Slice by slice, since torch gives eight bytes a voxel.
    return torch.stack([plane.argmax(0).to(torch.uint8) for plane in logits.unbind(1)]).cpu().numpy()


def segment_mask(found: np.ndarray, segment: int) -> np.ndarray:
    """(S, H, W) bool of one segment, counted from 0, in what ``found_segments`` gives."""
    return found[segment] if found.ndim == 4 else found == segment + 1
