"""How much memory a training step takes, and the largest network and window that fit what there is.

The rule was measured: steps of ConResNet with its losses (deep supervision on) and Adam in fp32 on a processor, their
peak memory taken in processes of their own at base widths 8, 16 and 32 and at windows of 40 x 56 x 40 and 48 x 80 x 64,
batch 2. Between the two windows a voxel took 2404 bytes at width 16 and 5224 at width 32 (one channel, two segments);
eight more segments took 61 bytes each, and three more channels 100 each. The constants are those figures and some to
spare. Under bf16 autocast it took about a quarter less, which is not counted on. It was not measured on a GPU.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError

BYTES_A_WIDTH, BYTES_A_CHANNEL, BYTES_A_SEGMENT = 170, 100, 65
# 18.5 thousand parameters for the square of the width; each with its gradient and two moments of Adam, in fp32.
BYTES_OF_PARAMETERS = 18_500 * 16
# Python, torch, a GPU's context, and what convolutions work in.
FIXED_BYTES = 2**30
# The rest is for fluctuation, and for others.
USED_SHARE = 0.8
# What a computer that does not tell is taken to have.
ASSUMED_BYTES = 8 * 2**30

BATCH = 2
SMALLEST_SIDE = 32
STEP = 8


@dataclass(frozen=True)
class Budget:
    """What training may use.

    Args:
        bytes: of memory.
        widths: base widths to choose from, the preferred first. The paper's is 32. A processor has the memory for it
            and not the time, so 16 is tried first there.
        source: where the figure comes from, for people.
    """

    bytes: int
    widths: tuple[int, ...]
    source: str

    @classmethod
    def given(cls, gigabytes: float) -> "Budget":
        """For a GPU with so much memory."""
        return cls(int(gigabytes * 2**30), (32, 16, 8), f"{gigabytes:g} GB of GPU memory, as you said")

    @classmethod
    def here(cls) -> "Budget":
        """What is free on this computer: of its first GPU where torch sees one, else of its memory."""
        import torch

        if torch.cuda.is_available():
            free = torch.cuda.mem_get_info()[0]
            return cls(free, (32, 16, 8), f"{free / 2**30:.1f} GB free on {torch.cuda.get_device_name()}")
        free = _free_memory()
        return cls(free, (16, 8), f"{free / 2**30:.1f} GB free on this computer, which has no GPU for torch")


@dataclass(frozen=True)
class Fit:
    """A network and a window that fit, and the memory they are expected to take."""

    width: int
    batch: int
    window: tuple[int, int, int]
    bytes: int


def step_bytes(width: int, channels: int, segments: int, batch: int, window: Sequence[int]) -> int:
    """Memory that training takes, by the module's rule."""
    a_voxel = BYTES_A_WIDTH * width + BYTES_A_CHANNEL * channels + BYTES_A_SEGMENT * segments
    return FIXED_BYTES + BYTES_OF_PARAMETERS * width**2 + a_voxel * batch * math.prod(window)


def fit_memory(budget: Budget, channels: int, segments: int, window: Sequence[int]) -> Fit:
    """The best that fits: first a narrower network is taken, then one sample a step, then a smaller window.

    Raises:
        UserError: ``memory-too-small``.
    """
    narrow = [width for width in budget.widths if width >= 16] or list(budget.widths)
    choices = [(width, BATCH, tuple(window)) for width in narrow] + [(narrow[-1], 1, tuple(window))]
    windows = [tuple(window)]
    while windows[-1] != (smaller := _smaller(windows[-1])):
        windows.append(smaller)
    choices += [(width, 1, smaller) for width in (narrow[-1], budget.widths[-1]) for smaller in windows]
    for width, batch, size in choices:
        needed = step_bytes(width, channels, segments, batch, size)
        if needed <= USED_SHARE * budget.bytes:
            return Fit(width, batch, size, needed)
    raise UserError(
        "memory-too-small",
        f"Even the smallest network needs {needed / USED_SHARE / 2**30:.1f} GB of memory (there is {budget.source}); "
        "train on a computer that has more, and say how much with --memory.",
        needed=needed,
    )


def _smaller(window: tuple[int, ...]) -> tuple[int, int, int]:
    """One step less along the longest side, down to a side below which a window shows too little."""
    longest = max(range(3), key=lambda axis: window[axis])
    side = max(min(window[longest], SMALLEST_SIDE), window[longest] - STEP)
    return tuple(side if axis == longest else size for axis, size in enumerate(window))


def _free_memory() -> int:
    """Bytes that programs could take: what Linux tells, else half of what there is, else an assumption."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return ASSUMED_BYTES
