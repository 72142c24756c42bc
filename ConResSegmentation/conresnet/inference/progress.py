"""Progress: how far the work is, the time remaining, and whether to stop. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable

from conresnet.errors import Cancelled


class Progress:
    """Receives the engine's progress and can ask it to stop; this one does nothing. Subclasses override two methods."""

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        """Receive the progress of the work.

        Args:
            phase: "loading", "reading", "locating", "preparing", "segmenting" or "writing".
            fraction: 0 to 1 of the whole work; never decreases.
            seconds_left: for the whole work, or None while that is not known.
        """

    def cancelled(self) -> bool:
        """Whether to stop. Called many times per second, so it must be quick."""
        return False

    def check(self) -> None:
        """Raise Cancelled if it is to stop."""
        if self.cancelled():
            raise Cancelled("The user asked to stop.")


class Part(Progress):
    """A part of a longer work, with a progress of its own.

    Args:
        whole: the progress of the longer work.
        first, last: where the part begins and ends, 0 to 1 of the whole.
        phase: what all of the part is reported as; "" for its own phases.
    """

    def __init__(self, whole: Progress, first: float, last: float, phase: str = ""):
        self._whole, self._first, self._last, self._phase = whole, first, last, phase

    def report(self, phase: str, fraction: float, seconds_left: float | None) -> None:
        done = self._first + (self._last - self._first) * fraction
        if seconds_left is not None and done < self._last:
            # As if the rest took as long for its share as the rest of this part.
            seconds_left *= (1 - done) / (self._last - done)
        self._whole.report(self._phase or phase, done, seconds_left if done < self._last else None)

    def cancelled(self) -> bool:
        return self._whole.cancelled()


class Tracker:
    """Turns work done within a phase into a fraction of the whole and the time remaining.

    ``shares`` are those of the phases in the whole, in order; they add up to 1. ``clock`` gives seconds.
    """

    _QUIET = 0.1  # seconds between two reports of one phase
    _SURE = 1.0  # seconds of a phase or part after which its rate is trusted

    def __init__(self, progress: Progress, shares: dict[str, float], clock: Callable[[], float] = time.monotonic):
        self._progress = progress
        self._shares = shares
        self._clock = clock
        self._begun = {}
        self._phase = ""
        self._offset, self._share = 0.0, 0.0
        self._part_begun = 0.0
        self._fraction = 0.0
        self._told = -float("inf")
        self._left, self._left_at = None, 0.0

    def begin(self, phase: str) -> None:
        """Begin a phase, which ends the previous one."""
        self._phase, self._left = phase, None
        self._begun[phase] = self._clock()
        self.part(0.0, 1.0)

    def part(self, first: float, last: float) -> None:
        """Begin the part ``first`` to ``last`` (0 to 1) of the phase, such as a pass, which has a speed of its own."""
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(self._phase)])
        self._offset = before + self._shares[self._phase] * first
        self._share = self._shares[self._phase] * (last - first)
        self._part_begun = self._clock()
        self._tell(self._offset)

    def update(self, done: float) -> None:
        """Report how much of the phase, or of its part, is done, 0 to 1. Raises Cancelled if the user asked to stop."""
        self._progress.check()
        now = self._clock()
        if now - self._told >= self._QUIET:
            self._estimate(done, now)
            self._tell(self._offset + self._share * done)

    def finish(self) -> dict[str, float]:
        """Report the end; returns the seconds that each phase took."""
        self._left = 0.0
        self._tell(1.0)
        times = [*self._begun.values(), self._clock()]
        return {phase: times[n + 1] - times[n] for n, phase in enumerate(self._begun)}

    def _estimate(self, done: float, now: float) -> None:
        elapsed = now - self._part_begun
        if elapsed < self._SURE or done <= 0.01:
            return
        left = elapsed / done * ((1 - self._offset) / self._share - done)
        if self._left is not None:
            # Smoothed, but counting down as time passes.
            left = 0.8 * max(0.0, self._left - (now - self._left_at)) + 0.2 * left
        self._left, self._left_at = left, now

    def _tell(self, fraction: float) -> None:
        self._fraction = max(self._fraction, min(1.0, fraction))
        self._told = self._clock()
        self._progress.report(self._phase, self._fraction, self._left)
