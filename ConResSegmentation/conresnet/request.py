"""Requests to the engine and their progress, described once for the panel, the command line, Python and the pipe.

To add an option, add a field to ``SegmentOptions`` and use it in ``conresnet.inference.segmentation``: the command line
offers it, the pipe carries it and ``conresnet.segment`` accepts it. Torch-free.
"""

from __future__ import annotations

import math
import numbers
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.errors import Cancelled, UserError
from conresnet.images import Grid, Volume
from conresnet.images.inputs import AUTOMATIC, WHOLE_IMAGE, BoxROI, roi_from_text
from conresnet.package import TILINGS
from conresnet.package.outputs import MAPS

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DEVICES = re.compile("auto|cpu|mps|cuda(:[0-9]{1,4})?")


@dataclass(frozen=True)
class OptionSpec:
    """How one field of ``SegmentOptions`` is written outside Python.

    Args:
        help: for --help.
        metavar: what stands for the value in --help.
        choices: all values, where there are few.
        least: of a number; whole numbers only if it is an int.
        is_flag: whether the option is given without a value, for True.
        of_labels: whether it decides which label each voxel gets, so that earlier results made with another value are
            not kept.
        from_text: from the command line's text.
        to_plain, from_plain: to and from what JSON has. ``from_plain`` raises TypeError, ValueError or UserError for
            anything else.
    """

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    least: int | float | None = None
    is_flag: bool = False
    of_labels: bool = True
    from_text: Callable[[str], Any] = str
    to_plain: Callable[[Any], Any] = lambda value: value
    from_plain: Callable[[Any], Any] = lambda value: value


def option(default: Any, help: str, **spec: Any) -> Any:
    """A field of ``SegmentOptions``, by its default and the arguments of its ``OptionSpec``."""
    return field(default=default, metadata={"spec": OptionSpec(help, **spec)})


def _checked(complaint: str, fits: Callable[[Any], object], convert: Callable[[Any], Any]) -> Callable[[object], Any]:
    """An ``OptionSpec.from_plain`` that converts a value that fits, and raises TypeError(complaint) for any other."""

    def from_plain(value: object) -> Any:
        if not fits(value):
            raise TypeError(complaint)
        return convert(value)

    return from_plain


def _is_positive(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < math.inf


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_text = _checked("it is not text", lambda value: isinstance(value, str) and value, str)
_names = _checked("it is not a list of names", _are_names, tuple)
_whole_number = _checked("it is not a whole number above 0", lambda value: _is_positive(value, numbers.Integral), int)
_volume = _checked("it is not a number above 0", lambda value: _is_positive(value, numbers.Real), float)
_truth = _checked("it is neither true nor false", lambda value: isinstance(value, bool), bool)


def flag(help: str, **spec: Any) -> Any:
    """A field that is False by default."""
    return option(False, help, is_flag=True, from_text=bool, from_plain=_truth, **spec)


def _roi(value: object) -> BoxROI | str:
    if value in (AUTOMATIC, WHOLE_IMAGE):
        return value
    if not isinstance(value, dict):
        raise TypeError("it is not an object")
    return BoxROI.from_dict(value)


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment a case.

    Each field is an option of ``python -m conresnet segment`` of the same name, and its help says what it does.
    Besides, "auto" as ``device`` or ``precision`` prefers what the model was loaded with, and ``fast`` also means the
    tiling "fitted" unless ``tiling`` is given.
    """

    roi: BoxROI | str | None = option(
        None,
        "Segment only in this box: R0,R1,A0,A1,S0,S1 in mm as Slicer shows it, or a .mrk.json file from Slicer. "
        "auto: the model's locator finds the box; all: the whole image.  [default: auto if the model has a locator "
        "and the image is much larger than those it was trained on, otherwise all]",
        metavar="BOX|auto|all",
        from_text=roi_from_text,
        to_plain=lambda roi: roi if isinstance(roi, str) else roi.to_dict(),
        from_plain=_roi,
    )
    maps: tuple[str, ...] = option(
        (),
        f"Also write these maps, separated by commas: {', '.join(MAPS)}.",
        metavar="NAMES",
        of_labels=False,
        from_text=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        to_plain=list,
        from_plain=_names,
    )
    device: str = option(
        "auto", "auto, cpu, cuda, cuda:N or mps.  [default: auto]", metavar="NAME", of_labels=False, from_plain=_text
    )
    precision: str = option(
        "auto",
        "auto uses half precision where the processor benefits from it.  [default: auto]",
        choices=PRECISIONS,
        from_plain=_text,
    )
    tiling: str | None = option(
        None,
        "How windows are placed: fitted to the foreground, or as the paper's authors did.  [default: the model's]",
        choices=TILINGS,
        from_plain=_text,
    )
    threads: int | None = option(
        None,
        "CPU threads, at most one per core.  [default: all cores, minus one if there are three or more]",
        metavar="N",
        least=1,
        of_labels=False,
        from_text=int,
        from_plain=_whole_number,
    )
    fast: bool = flag("Faster and less accurate: no mirroring, less overlap between windows.")
    keep_largest: bool = flag("Keep only the largest connected piece of each segment.")
    drop_below: float | None = option(
        None,
        "Remove pieces of a segment that are smaller than this many mL.",
        metavar="ML",
        least=0.0,
        from_text=float,
        from_plain=_volume,
    )
    fill_holes: bool = flag("Fill holes that a segment encloses on all sides.")
    seg_nrrd: bool = flag(
        "Also write segmentation.seg.nrrd, from which 3D Slicer loads the segments with names, colors and codes.",
        of_labels=False,
    )
    review: bool = flag(
        "Also write review.csv, the places worth checking, most expected errors first.", of_labels=False
    )
    statistics: bool = flag(
        "Also write statistics.csv: volume, surface area, mean intensity and uncertainty of each segment.",
        of_labels=False,
    )
    report: bool = flag(
        "Also write report.html, a page with pictures and measurements, without names of patients or files.",
        of_labels=False,
    )
    report_name: str | None = option(
        None, "Name of the case in the report.  [default: none]", metavar="NAME", of_labels=False, from_plain=_text
    )

    def checked(self) -> SegmentOptions:
        """The same options with values of the right types. Raises UserError("bad-option") or UserError("bad-roi")."""
        values = {}
        for item in fields(self):
            value, spec = getattr(self, item.name), item.metadata["spec"]
            try:
                values[item.name] = value if value is item.default else spec.from_plain(spec.to_plain(value))
            except (TypeError, ValueError, AttributeError) as error:
                raise UserError("bad-option", option=item.name, value=repr(value), reason=str(error)) from error
        return replace(self, **values)

    @classmethod
    def specs(cls) -> dict[str, OptionSpec]:
        """Each option's description, by name."""
        return {item.name: item.metadata["spec"] for item in fields(cls)}

    def to_dict(self) -> dict:
        """As JSON; options at their defaults are left out."""
        return {
            item.name: item.metadata["spec"].to_plain(value)
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default
        }

    def of_labels(self) -> dict:
        """As ``to_dict``, only the options that decide which label each voxel gets."""
        specs = self.specs()
        return {name: value for name, value in self.to_dict().items() if specs[name].of_labels}

    @classmethod
    def from_dict(cls, values: Mapping) -> SegmentOptions:
        """The options that ``to_dict`` wrote. Raises UserError("bad-request") for anything else, or "bad-roi"."""
        specs = cls.specs()
        found = {}
        for name, value in values.items():
            if name not in specs:
                raise UserError("bad-request", reason=f"unknown option {name!r}")
            try:
                found[name] = specs[name].from_plain(value)
            except (TypeError, ValueError) as error:
                raise UserError("bad-request", reason=f"{name}: {error}") from error
        return cls(**found)


def check_backend(device: str, precision: str) -> None:
    """Refuse devices and precisions that no computer supports, without importing torch.

    Raises UserError "device-unknown", "precision-unknown" or, for fp16 on the CPU, "precision-unavailable".
    """
    if not _DEVICES.fullmatch(device):
        raise UserError("device-unknown", device=device)
    if precision not in PRECISIONS:
        raise UserError("precision-unknown", precision=precision, known=", ".join(PRECISIONS))
    if (device, precision) == ("cpu", "fp16"):
        raise UserError("precision-unavailable")


@dataclass(frozen=True)
class SegmentRequest:
    """A case to segment, a model and how: what the client sends through the pipe, and what arrives there.

    Args:
        model: name of a model, or path of its package.
        channels: one volume per input of the model, in its order; the results are on the first one's grid.
        digest: `conresnet.package.store.digest_with_locator` of the model that is meant. Defaults to any.
    """

    model: str
    channels: tuple[Volume, ...]
    options: SegmentOptions = SegmentOptions()
    digest: str | None = None

    def to_dict(self, arrays: Sequence[str | Path]) -> dict:
        """As JSON; ``arrays`` are the .npy files that the channels' arrays were saved to."""
        channels = [
            {"npy": str(path), "grid": volume.grid.to_dict(), "name": volume.name}
            for path, volume in zip(arrays, self.channels, strict=True)
        ]
        values = {"model": self.model, "channels": channels, "options": self.options.to_dict()}
        return values if self.digest is None else {**values, "digest": self.digest}

    @classmethod
    def from_dict(cls, values: Mapping, folder: str | Path = "") -> SegmentRequest:
        """The request that ``to_dict`` wrote; its arrays are read-only maps of their files, relative to ``folder``.

        Raises UserError "bad-request" for anything else, "channel-unreadable" for a file that is not an array,
        "bad-grid" or "bad-roi".
        """
        channels, options = values.get("channels"), values.get("options", {})
        if not isinstance(channels, list) or not channels:
            raise UserError("bad-request", reason="it has no channels")
        if not isinstance(options, dict):
            raise UserError("bad-request", reason="its options are not an object")
        try:
            model, digest = _text(values.get("model")), values.get("digest")
            digest = None if digest is None else _text(digest)
        except TypeError as error:
            raise UserError("bad-request", reason=f"model or digest: {error}") from error
        volumes = tuple(_channel(entry, folder) for entry in channels)
        return cls(model, volumes, SegmentOptions.from_dict(options), digest)


def _channel(entry: object, folder: str | Path) -> Volume:
    if not isinstance(entry, dict) or not isinstance(entry.get("grid"), dict):
        raise UserError("bad-request", reason="a channel or its grid is not an object")
    try:
        path, name = Path(folder, _text(entry.get("npy"))), _text(entry.get("name"))
    except TypeError as error:
        raise UserError("bad-request", reason=f"a channel's file or name: {error}") from error
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError("channel-unreadable", name=name, path=str(path), reason=str(error)) from error
    grid = Grid.from_dict(entry["grid"])
    if not isinstance(array, np.ndarray) or array.shape != grid.shape:
        raise UserError("bad-request", reason=f"the array in {path} does not have the shape {grid.shape} of its grid")
    return Volume(array, grid, name)


class Progress:
    """Receives the engine's progress and can ask it to stop; this one does nothing. Subclasses override two methods."""

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        """Receive the progress of the work.

        Args:
            phase: "loading", "reading", "locating", "preparing", "segmenting" or "writing".
            fraction: fraction of the whole work that is done, 0 to 1; never decreases.
            seconds_left: time remaining for the whole work, or None while it is unknown.
        """

    def cancelled(self) -> bool:
        """Whether to stop. Called many times per second, so it must be quick."""
        return False

    def check(self) -> None:
        """Raise Cancelled if the user asked to stop."""
        if self.cancelled():
            raise Cancelled("The user asked to stop.")


class Part(Progress):
    """Progress of one part of longer work, reported as progress of the whole.

    Args:
        whole: progress of the whole work.
        first, last: fractions of the whole, 0 to 1, at which the part begins and ends.
        phase: phase reported for the whole part; "" reports the part's own phases.
    """

    def __init__(self, whole: Progress, first: float, last: float, phase: str = ""):
        self._whole, self._first, self._last, self._phase = whole, first, last, phase

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        done = self._first + (self._last - self._first) * fraction
        if seconds_left is not None and done < self._last:
            # Assumes that the remaining work proceeds at the same rate as the rest of this part.
            seconds_left *= (1 - done) / (self._last - done)
        self._whole.report(self._phase or phase, done, seconds_left if done < self._last else None)

    def cancelled(self) -> bool:
        return self._whole.cancelled()


class Tracker:
    """Converts progress within a phase to a fraction of the whole work and the time remaining.

    ``shares`` are the phases' fractions of the whole, in order, with a sum of 1. ``clock`` returns seconds.
    """

    _SECONDS_BETWEEN_REPORTS = 0.1
    _SECONDS_BEFORE_ESTIMATE = 1.0  # of a phase or part, after which its rate is reliable

    def __init__(self, progress: Progress, shares: dict[str, float], clock: Callable[[], float] = time.monotonic):
        self._progress = progress
        self._shares = shares
        self._clock = clock
        self._started = {}
        self._phase = ""
        self._offset, self._share = 0.0, 0.0
        # After a phase starts over, reports rise from where it was given up, not from where it began.
        self._begins_at, self._given_up_at = 0.0, 0.0
        self._part_started = 0.0
        self._fraction = 0.0
        self._reported_at = -float("inf")
        self._left, self._left_at = None, 0.0

    def begin(self, phase: str) -> None:
        """Start a phase, which ends the previous one."""
        self._phase, self._left = phase, None
        self._started[phase] = self._clock()
        self.part(0.0, 1.0)

    def start_over(self) -> None:
        """Start the phase over; the reported fraction keeps growing, within what is left of the whole."""
        self._given_up_at, self._begins_at, self._left = self._fraction, self._before(), None
        self.part(0.0, 1.0)

    def part(self, first: float, last: float) -> None:
        """Start the part ``first`` to ``last`` (0 to 1) of the phase, such as a pass, which has its own rate."""
        self._offset = self._before() + self._shares[self._phase] * first
        self._share = self._shares[self._phase] * (last - first)
        self._part_started = self._clock()
        self._report(self._offset)

    def update(self, done: float) -> None:
        """Report the fraction of the phase or part that is done, 0 to 1. Raises Cancelled if the user asked to stop."""
        self._progress.check()
        now = self._clock()
        if now - self._reported_at >= self._SECONDS_BETWEEN_REPORTS:
            self._estimate(done, now)
            self._report(self._offset + self._share * done)

    def finish(self) -> dict[str, float]:
        """Report that the work is done; returns the duration of each phase in seconds."""
        self._left = 0.0
        self._report(1.0)
        times = [*self._started.values(), self._clock()]
        return {phase: times[n + 1] - times[n] for n, phase in enumerate(self._started)}

    def _before(self) -> float:
        """The share of all earlier phases."""
        names = list(self._shares)
        return sum(self._shares[name] for name in names[: names.index(self._phase)])

    def _estimate(self, done: float, now: float) -> None:
        elapsed = now - self._part_started
        if elapsed < self._SECONDS_BEFORE_ESTIMATE or done <= 0.01:
            return
        left = elapsed / done * ((1 - self._offset) / self._share - done)
        if self._left is not None:
            # Smoothed, but counting down as time passes.
            left = 0.8 * max(0.0, self._left - (now - self._left_at)) + 0.2 * left
        self._left, self._left_at = left, now

    def _report(self, fraction: float) -> None:
        further = (fraction - self._begins_at) / (1 - self._begins_at)
        reached = self._given_up_at + (1 - self._given_up_at) * further
        self._fraction = max(self._fraction, min(1.0, reached))
        self._reported_at = self._clock()
        self._progress.report(self._phase, self._fraction, self._left)
