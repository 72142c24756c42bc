"""How much memory a training step takes, and the largest network and window that fit into the available memory.

What a network keeps of a step for its backward pass is counted on the device "meta", where torch only computes shapes.
How much more a step takes was measured: steps in fp32 on a CPU with all losses and Adam, their peak memory taken in
separate processes at windows of 24 x 32 x 32 and 40 x 56 x 48, batch 2, base width 16. Between the two windows memory
rose by 1.5 (ResDSN) to 2.4 (VoxResNet) times what was kept, and by 1.85 for ConResNet. The estimate is twice what
is kept, plus the parameters and a fixed amount. Under bf16 autocast ConResNet took about a quarter less, which is
ignored. It was not measured on a GPU.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.images.checks import available_memory, total_memory
from conresnet.inference import MULTIPLE, SMALLEST_SIDE
from conresnet.inference.devices import choose_backend
from conresnet.messages import sentence
from conresnet.networks import build_network
from conresnet_training.planning.plan import Plan
from conresnet_training.planning.systems import Frame, Network
from conresnet_training.reporting import product
from conresnet_training.training import total_loss

# What is kept grows linearly with the voxels of the window.
COUNTED_WINDOWS = ((32, 32, 32), (48, 48, 48))
# A step's memory, as a multiple of what is kept for the backward pass.
TIMES_KEPT = 2.0
# Each parameter with its gradient, Adam's two moments and its average over steps, in fp32.
BYTES_PER_PARAMETER = 20
# Python, torch, a GPU's context, and the workspace of convolutions.
FIXED_BYTES = 2**30
# The rest is for fluctuation and other programs.
USED_SHARE = 0.8
# For a computer that does not report its memory.
ASSUMED_BYTES = 8 * 2**30

# Samples per step. Small windows leave most of a GPU idle, so a step takes more of them there: up to as many voxels as
# the engine's batches have, but no more than a share of the data's, as in nnU-Net.
BATCH = 2
# Steps of fewer voxels than this take less than two gigabytes with any network of ours, and are not estimated.
SMALL_STEP = 2**17
VOXELS_PER_STEP, SHARE_PER_STEP = 2**21, 0.05

Build = Callable[[Frame], Network]


@dataclass(frozen=True)
class Budget:
    """The memory that training may use.

    Args:
        widths: base widths to choose from, the preferred one first. The paper's is 32. A CPU has the memory for it but
            not the time, so 16 is tried first there.
        source: where the number comes from, for people.
        is_gpu: whether this is GPU memory, so that training runs on the GPU.
    """

    bytes: int
    widths: tuple[int, ...]
    source: str
    is_gpu: bool = False

    @classmethod
    def given(cls, gigabytes: float) -> "Budget":
        """For a GPU with this much memory."""
        return cls(int(gigabytes * 2**30), (32, 16, 8), f"{gigabytes:g} GB of GPU memory, as given", is_gpu=True)

    @classmethod
    def here(cls, device: str = "auto") -> "Budget":
        """The free memory of a GPU, or of this computer if the device has none of its own.

        Raises UserError as ``choose_backend``.
        """
        chosen = choose_backend(device).device
        if chosen.type == "cuda":
            free = torch.cuda.mem_get_info(chosen)[0]
            source = f"{free / 2**30:.1f} GB free on {torch.cuda.get_device_name(chosen)}"
            return cls(free, (32, 16, 8), source, is_gpu=True)
        free, total = available_memory(), total_memory()
        if free is None:
            free = ASSUMED_BYTES if total is None else total // 2
        why = ", which has no GPU that torch can use" if (device, chosen.type) == ("auto", "cpu") else ""
        return cls(free, (16, 8), f"{free / 2**30:.1f} GB free on this computer{why}")

    def largest_batch(self, window: Sequence[int], voxels: float) -> int:
        """The batch to try first, an even number.

        Args:
            window: (S, H, W).
            voxels: in the data set in total.
        """
        most = int(min(VOXELS_PER_STEP, SHARE_PER_STEP * voxels) // math.prod(window)) if self.is_gpu else BATCH
        return max(BATCH, most - most % 2)


@dataclass(frozen=True)
class Fit:
    """A network and a window that fit, and the memory that they are expected to take."""

    width: int
    batch: int
    window: tuple[int, int, int]
    bytes: int


@dataclass(frozen=True)
class StepCost:
    """The memory for a training step of a network, by this module's rule.

    Args:
        kept: bytes for the backward pass that do not depend on the window, such as standardized weights.
        kept_per_voxel: bytes per voxel of each sample.
    """

    parameters: int
    kept: float
    kept_per_voxel: float

    @classmethod
    def of(cls, network: Network, segments: int) -> "StepCost":
        """That of a network, as a plan names it, for so many segments. Raises UserError ``plan-network-wrong``."""
        return _step_cost(json.dumps(network), segments)

    def bytes(self, batch: int, window: Sequence[int]) -> int:
        """Memory for this many samples per step, with windows of this many voxels (S, H, W)."""
        kept = self.kept + self.kept_per_voxel * batch * math.prod(window)
        return round(FIXED_BYTES + BYTES_PER_PARAMETER * self.parameters + TIMES_KEPT * kept)


@functools.lru_cache(maxsize=256)
def _step_cost(network: str, segments: int) -> StepCost:
    """``StepCost.of``, computed once in a process for each network, given as JSON."""
    described = json.loads(network)
    try:
        with torch.device("meta"):
            built = build_network(described["type"], described["arguments"])
    except ValueError as error:
        raise UserError("plan-network-wrong", reason=str(error).rstrip(".")) from error
    small, large = (_kept(built, segments, window) for window in COUNTED_WINDOWS)
    voxels = [math.prod(window) for window in COUNTED_WINDOWS]
    per_voxel = (large - small) / (voxels[1] - voxels[0])
    parameters = sum(parameter.numel() for parameter in built.parameters())
    return StepCost(parameters, small - per_voxel * voxels[0], per_voxel)


def check_memory(plan: Plan, batch: int) -> str:
    """A warning if a step of a plan probably does not fit into this computer's free memory; otherwise "".

    For training on a CPU. Without enough memory, the system may kill it without a message, or become unusably slow.

    Args:
        batch: samples per step on this computer.

    Raises:
        UserError: ``step-exceeds-memory`` if what a step must keep exceeds the memory that the computer has.
    """
    window = plan.model.inference.window
    if batch * math.prod(window) <= SMALL_STEP:
        return ""
    try:
        networks = ({"type": item.type, "arguments": item.arguments} for item in plan.model.system.networks)
        # Systems train one network after the other.
        costs = [StepCost.of(network, len(plan.model.output.segments)) for network in networks]
    except Exception:  # a network of another package may fail in any way on the device "meta"; training goes on
        return ""
    values = {"window": product(window), "batch": batch}
    least = max(cost.kept + cost.kept_per_voxel * batch * math.prod(window) for cost in costs)
    if (total := total_memory()) is not None and least > total:
        raise UserError("step-exceeds-memory", needed=_gigabytes(least), total=_gigabytes(total), **values)
    needed, free = max(cost.bytes(batch, window) for cost in costs), available_memory()
    if free is None or needed <= free:
        return ""
    return sentence("warn-step-memory", {"needed": _gigabytes(needed), "free": _gigabytes(free), **values})


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f}"


def fit_memory(budget: Budget, build: Build, frame: Frame, window: Sequence[int], largest: int = 0) -> Fit:
    """The best that fits: first a smaller batch is tried, down to the frame's, then a narrower network, then one sample
    per step, then a smaller window.

    Args:
        frame: what the data decide about it; the base width is chosen here.
        window: voxels (S, H, W).
        largest: the batch that is tried first, if that is more than the frame's.

    Raises:
        UserError: ``memory-too-small`` or ``plan-network-wrong``.
    """
    narrow = [width for width in budget.widths if width >= 16] or list(budget.widths)
    choices = [(narrow[0], batch, tuple(window)) for batch in range(largest, frame.batch, -2)]
    choices += [(width, frame.batch, tuple(window)) for width in narrow] + [(narrow[-1], 1, tuple(window))]
    windows = [tuple(window)]
    while windows[-1] != (smaller := _smaller(windows[-1])):
        windows.append(smaller)
    choices += [(width, 1, smaller) for width in (narrow[-1], budget.widths[-1]) for smaller in windows]

    for width, batch, size in choices:
        network = build(replace(frame, base_width=width, batch=batch))
        needed = StepCost.of(network, frame.segments).bytes(batch, size)
        if needed <= USED_SHARE * budget.bytes:
            return Fit(width, batch, size, needed)
    raise UserError("memory-too-small", gigabytes=round(needed / USED_SHARE / 2**30, 1), available=budget.source)


def _kept(network: nn.Module, segments: int, window: Sequence[int]) -> int:
    """Bytes that a sample's forward pass and losses keep for the backward pass, without parameters."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(torch.empty(1, network.input_channels, *window))
        weights = network.auxiliary_weights(0.0) if "auxiliary" in outputs else ()
        target, exclusive = torch.empty(1, segments, *window), outputs["segmentation"].shape[1] > segments
        losses = total_loss(outputs, target, exclusive, "S", deep_weight=0.5, auxiliary_weights=weights)
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    # Storages are distinguished by their addresses, so all of them had to live until here.
    del losses
    return sum(kept.values())


def _smaller(window: tuple[int, ...]) -> tuple[int, int, int]:
    """One step less along the longest side, down to the smallest size."""
    longest = max(range(3), key=lambda axis: window[axis])
    side = max(min(window[longest], SMALLEST_SIDE), window[longest] - MULTIPLE)
    return tuple(side if axis == longest else size for axis, size in enumerate(window))
