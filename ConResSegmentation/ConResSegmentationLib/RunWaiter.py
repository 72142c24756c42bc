"""Waiting for a segmentation while Slicer stays responsive, for scripts."""

import time

import slicer
from slicer.i18n import tr as _

from .SegmentationRun import RunListener, SegmentationOutcome


class RunWaiter(RunListener):
    """Hears how a run has ended."""

    def __init__(self):
        self._outcome: SegmentationOutcome | None = None
        self._failure: str | None = None

    def wait(self) -> SegmentationOutcome:
        """The result, once it is there.

        Raises:
            RuntimeError: when it has failed or was cancelled; with the sentence for the user.
        """
        while self._outcome is None and self._failure is None:
            slicer.app.processEvents()
            time.sleep(0.01)
        if self._failure is not None:
            raise RuntimeError(self._failure)
        return self._outcome

    def onFinished(self, outcome: SegmentationOutcome) -> None:
        self._outcome = outcome

    def onFailed(self, sentence: str, details: str) -> None:
        self._failure = "\n".join(filter(None, (sentence, details)))

    def onCancelled(self) -> None:
        self._failure = _("Cancelled.")
