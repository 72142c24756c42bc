"""The cases that a fold holds out, and the Dice that a network reaches on them as a whole."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from conresnet.images import Box, overlap_of, whole_box
from conresnet.inference import fitted_windows
from conresnet.inference.labels import exclusive_labels
from conresnet.inference.sliding import slide
from conresnet.networks.blocks import segment_probabilities
from conresnet.package.outputs import Output
from conresnet_training.data.label_maps import VALUES, value_counts
from conresnet_training.data.preparation import TrainingCase

# Overlap of neighboring windows.
OVERLAP = 0.5


def whole_case(case: TrainingCase) -> Box:
    """All of a case (S, H, W)."""
    return whole_box(case.label.shape)


@dataclass(frozen=True)
class HeldOutCases:
    """Prepared cases that a stage is validated on.

    Args:
        targets: for each segment, the label values that belong to it.
        box_of: the box (S, H, W) of a case that the network segments; None for nothing.
    """

    cases: Sequence[TrainingCase]
    targets: Sequence[Sequence[int]]
    box_of: Callable[[TrainingCase], Box | None] = whole_case


@torch.no_grad()
def dice_of_cases(
    network: nn.Module,
    cases: HeldOutCases,
    indices: Sequence[int],
    window: Sequence[int],
    output: Output,
    device: torch.device,
    is_cancelled: Callable[[], bool],
) -> Tensor | None:
    """Dice of the segments in some of the cases, 1 if a segment is absent from both; None once ``is_cancelled``.

    Args:
        indices: of the cases to segment.
        window: voxels (S, H, W) that the network sees at a time.
        output: of the plan's model.

    Returns:
        (all cases, segments) on the CPU, 0 for cases that are not among ``indices``.
    """
    dice = torch.zeros(len(cases.cases), len(cases.targets))
    targets = [sorted({*values}) for values in cases.targets]
    training = network.training
    network.eval()
    try:
        for index in indices:
            if is_cancelled():
                return None
            case = cases.cases[index]
            label, box = case.label, cases.box_of(case)
            # In the whole case: what is outside the box was missed.
            there = value_counts(label)
            found = np.zeros((len(targets), VALUES), np.int64)
            if box:
                segments = found_segments(network, case.image, box, window, output, device)
                found = _label_counts(segments, label[box], len(found))
            for segment, values in enumerate(targets):
                volume = int(found[segment].sum() + there[values].sum())
                dice[index, segment] = 2 * int(found[segment, values].sum()) / volume if volume else 1.0
    finally:
        network.train(training)
    return dice


def _label_counts(found: np.ndarray, label: np.ndarray, segments: int) -> np.ndarray:
    """(segments, 256): how many voxels of each segment in the result have each label value.

    One slice at a time, because numpy needs eight bytes per voxel to count.
    """
    counts = np.zeros((segments, VALUES), np.int64)
    for place, values in enumerate(label):
        if found.ndim == 4:
            counts += [np.bincount(values[mask], minlength=VALUES) for mask in found[:, place]]
        else:
            pairs = found[place].astype(np.intp) * VALUES + values
            counts += np.bincount(pairs.ravel(), minlength=(segments + 1) * VALUES).reshape(-1, VALUES)[1:]
    return counts


@torch.no_grad()
def found_segments(
    network: nn.Module, image: np.ndarray, box: Box, window: Sequence[int], output: Output, device: torch.device
) -> np.ndarray:
    """Segment a box of an image (C, S, H, W) by the engine's own pass over windows.

    The windows are fitted to the box as in the engine; if they are longer than the box, they include the image around
    it. Probabilities are blended and thresholded slab by slab, so that only one window's depth of them is kept.

    Returns:
        The box: for labels (S, H, W) uint8, 0 or the segment's index from 1; for regions (segments, S, H, W) bool.
    """
    shape = image.shape[1:]
    lengths = [part.stop - part.start for part in box]
    segments, exclusive = len(output.segments), output.kind == "labels"
    values = range(1, segments + 1)
    found = np.zeros(lengths, np.uint8) if exclusive else np.zeros((segments, *lengths), bool)

    def block(start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        shown = np.zeros((len(image), *size), np.float32)
        part = image[(slice(None), *(slice(first, first + side) for first, side in zip(start, size, strict=True)))]
        shown[tuple(map(slice, part.shape))] = part
        return shown

    def predict(shown: Tensor) -> list[dict[str, Tensor]]:
        logits = network(shown.to(device), wanted=("segmentation",))["segmentation"].float()
        return [{"probability": one} for one in segment_probabilities(logits, exclusive)]

    def finish(where: Box, slab: dict[str, Tensor]) -> None:
        place, cut = overlap_of(where, box)
        probability = slab["probability"][(slice(None), *cut)]
        if probability.numel() and exclusive:
            found[place] = exclusive_labels(probability, values).cpu().numpy()
        elif probability.numel():
            found[(slice(None), *place)] = (probability > output.threshold).cpu().numpy()

    plan = fitted_windows(box, shape, window, OVERLAP)
    slide(predict, block, plan, shape, "gaussian", finish)
    return found


@dataclass(eq=False)
class FirstStageBoxes:
    """The boxes in which a stage's network will be used, and is validated; called with a case.

    Each is computed once, because the network that finds it no longer learns.

    Args:
        network: the previous stage's network, on its device.
        window: voxels (S, H, W) that it sees at a time.
        output: of the plan's model.
        find_box: see ``conresnet.systems.Stage``.
    """

    network: nn.Module
    window: Sequence[int]
    output: Output
    find_box: Callable[[Iterable[np.ndarray]], Box | None]
    _boxes: dict[str, Box | None] = field(default_factory=dict, init=False)

    def __call__(self, case: TrainingCase) -> Box | None:
        """The box (S, H, W), or None where the network finds nothing."""
        if case.name not in self._boxes:
            device = next(self.network.parameters()).device
            box = whole_case(case)
            found = found_segments(self.network, case.image, box, self.window, self.output, device)
            segments = range(len(self.output.segments))
            masks = (found[segment] if found.ndim == 4 else found == segment + 1 for segment in segments)
            self._boxes[case.name] = self.find_box(masks)
        return self._boxes[case.name]
