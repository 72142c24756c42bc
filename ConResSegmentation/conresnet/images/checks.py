"""Refusals that all readers of images share: each names the image in one sentence. NumPy and the standard library."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images.grid import Volume

_SPACING_RANGE = (1e-3, 1e2)
_MOST_SHEAR = float(np.sin(np.radians(1)))
_LARGEST_VALUE = 1e30
# gzip stores a byte in no less than 1/1032 of one.
_MOST_COMPRESSION = 1032


def check_channel_count(given: Sequence[str], channels: Sequence[str]) -> None:
    """Refuse a number of images other than the model's number of channels.

    Args:
        given: the images, as messages name them.
        channels: the model's channels.

    Raises:
        UserError: "wrong-channel-count".
    """
    if len(given) != len(channels):
        raise UserError(
            "wrong-channel-count",
            images=", ".join(given),
            given=len(given),
            wanted=len(channels),
            channels=", ".join(channels),
        )


def check_volume(volume: Volume) -> None:
    """Refuse an image that no model can use.

    Raises:
        UserError: "image-empty", "image-type", "absurd-spacing", "image-sheared", "image-not-finite",
            "intensity-range" or "image-constant".
    """
    name, array = volume.name, volume.array
    _check_grid(volume)
    if array.dtype.kind not in "biuf":
        raise UserError("image-type", name=name, type=str(array.dtype))
    low, high, bad = np.inf, -np.inf, 0
    for block in array:
        if block.dtype.kind == "f":
            bad += int(block.size - np.isfinite(block).sum())
        if not bad:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if bad:
        raise UserError("image-not-finite", name=name, count=bad)
    if max(-low, high) > _LARGEST_VALUE:
        raise UserError("intensity-range", name=name, value=max(-low, high))
    if low == high:
        raise UserError("image-constant", name=name, value=low)


def _check_grid(volume: Volume) -> None:
    name, grid = volume.name, volume.grid
    if 0 in grid.shape:
        raise UserError("image-empty", name=name)
    spacing = grid.spacing
    low, high = _SPACING_RANGE
    if not np.isfinite(grid.affine).all() or not ((spacing >= low) & (spacing <= high)).all():
        raise absurd_spacing(name, spacing)
    directions = grid.direction
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MOST_SHEAR:
        raise UserError("image-sheared", name=name)


def absurd_spacing(name: str, spacing: Sequence[float]) -> UserError:
    """The error for a voxel size that cannot be right."""
    return UserError("absurd-spacing", name=name, size=" x ".join(f"{value:g}" for value in spacing))


def truncated(path: Path, shape: Sequence[int]) -> UserError:
    """The error for a file that holds fewer voxels than its header describes."""
    return UserError("image-truncated", path=str(path), size=_size(shape))


def check_size(path: Path, shape: Sequence[int], claimed: int, held: int, compressed: bool) -> None:
    """Refuse a header that describes more voxels than its file can hold, or than memory can, before any are read.

    Args:
        shape: what the header says, for the message.
        claimed: bytes according to the header.
        held: bytes of the file that they are in.
        compressed: whether they are compressed there.

    Raises:
        UserError: "image-truncated" or "image-beyond-memory".
    """
    if claimed > held * (_MOST_COMPRESSION if compressed else 1) + (1024 if compressed else 0):
        raise truncated(path, shape)
    check_memory(path, shape, claimed)


def check_memory(path: Path, shape: Sequence[int], needed: int) -> None:
    """Refuse an image that takes more bytes than are free. Raises UserError("image-beyond-memory")."""
    if needed > free_memory():
        raise UserError("image-beyond-memory", path=str(path), size=_size(shape), gigabytes=f"{needed / 1e9:.1f}")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def free_memory() -> int:
    """Bytes that this process can still allocate; all of the memory if the system does not say how much is free."""
    free = 2**62
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        group = Path("/sys/fs/cgroup")  # a container's own limit; not counting the file cache, which is given up
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            rows = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            free = min(free, int(limit) - used + int(dict(rows).get("inactive_file", 0)))
    if free == 2**62 and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free
