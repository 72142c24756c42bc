"""What a client may ask, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.images.grid import Grid, Volume
from conresnet.images.roi import BoxROI


@dataclass(frozen=True)
class SegmentRequest:
    """A request for a segmentation.

    Args:
        model: name of a model, or path of its package.
        channels: one volume an input of the model; the arrays are read-only maps of the client's files.
        roi: where to segment; None for the whole image.
        maps: the maps that are wanted.
        device: "auto" or a device's name.
        precision: "auto" or a precision's name.
    """

    model: str
    channels: list[Volume]
    roi: BoxROI | None
    maps: tuple[str, ...]
    device: str
    precision: str

    @classmethod
    def from_message(cls, message: Mapping) -> SegmentRequest:
        """The request in a message.

        Raises:
            UserError: "bad-request" for one that does not follow `conresnet.worker.protocol`, "channel-unreadable" for
                a channel whose file is missing or is not an array, "bad-grid", "bad-roi".
        """
        channels, maps = message.get("channels"), message.get("maps", [])
        if not isinstance(channels, list) or not channels:
            raise _bad("it has no channels")
        if not isinstance(maps, list) or not all(isinstance(name, str) for name in maps):
            raise _bad("its maps are no list of names")
        roi = message.get("roi")
        return cls(
            model=_text(message, "model"),
            channels=[_channel(entry) for entry in channels],
            roi=None if roi is None else BoxROI.from_dict(_object(roi, "roi")),
            maps=tuple(maps),
            device=_text(message, "device", "auto"),
            precision=_text(message, "precision", "auto"),
        )


def _channel(entry: object) -> Volume:
    entry = _object(entry, "a channel")
    path, name = Path(_text(entry, "npy")), _text(entry, "name")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            "channel-unreadable",
            f"The array of {name} cannot be read from {path} ({error}); try again.",
            name=name,
            path=str(path),
        ) from error
    grid = Grid.from_dict(_object(entry.get("grid"), "grid"))
    if not isinstance(array, np.ndarray) or array.shape != grid.shape:
        raise _bad(f"the array in {path} is not of the shape {grid.shape} of its grid")
    return Volume(array, grid, name)


def _text(message: Mapping, key: str, default: str | None = None) -> str:
    value = message.get(key, default)
    if not isinstance(value, str) or not value:
        raise _bad(f"its {key} is no text")
    return value


def _object(value: object, what: str) -> Mapping:
    if not isinstance(value, dict):
        raise _bad(f"{what} is no object")
    return value


def _bad(reason: str) -> UserError:
    return UserError("bad-request", f"The request cannot be understood: {reason}.", reason=reason)
