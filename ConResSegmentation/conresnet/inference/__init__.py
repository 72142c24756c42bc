"""From prepared images to results: windows, the sliding pass, label maps and devices.

This file has the progress that all of them report: fraction done, time remaining, and cancellation. Torch-free.
"""

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
        # Once a phase starts over, fractions from where it begins become reports from where it was given up.
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
        """Start the phase over; the fraction goes on growing, in what is left of the whole."""
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
