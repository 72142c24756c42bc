"""What computes, as the worker sees it; `conresnet.worker.torch_engine` has the real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from conresnet.worker.job import Job
from conresnet.worker.requests import SegmentRequest


@dataclass(frozen=True)
class Segmented:
    """A finished segmentation.

    Args:
        maps: the names of the maps made; they and "labels" were allocated by the job.
        report: as `conresnet.segmentation` has it.
        overlapping: whether the segments overlap, so that "regions" was allocated too.
    """

    maps: tuple[str, ...]
    report: dict
    overlapping: bool = False


class Engine(Protocol):
    """Anything that segments. Tests put their own in its place."""

    def segment(self, request: SegmentRequest, job: Job) -> Segmented:
        """Segment into arrays that the job allocates: "labels", uint8 [k, j, i], "regions" where they overlap, and one
        a map.

        Raises:
            UserError, Cancelled, MemoryError: and anything else for a fault of ours.
        """

    def devices(self) -> list[dict]:
        """The devices to choose from: each a dict with ``name`` and ``title``."""

    def forget(self) -> None:
        """Free the memory that is kept for the next request."""
