"""A real worker around a stand-in engine, which needs no torch and does what the name of the "model" says.

Run as a program, so that the worker's own code is tested.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time

from conresnet.errors import UserError
from conresnet.files import LOCK_FILE
from conresnet.request import SegmentRequest
from conresnet.worker.server import Job, serve


class FakeEngine:
    """Thresholds the image at its mean, slice by slice, so that the result grows."""

    def __init__(self):
        self.requests = 0

    def segment(self, request: SegmentRequest, job: Job) -> dict:
        self.requests += 1
        print(f"log of {request.model} ä")
        os.write(1, b'{"event":"nonsense"}\n')
        behave = getattr(self, f"_{request.model}", None)
        if behave:
            behave(job)
        array = request.channels[0].array
        labels = job.allocate("labels", array.shape, "uint8")
        maps = {name: job.allocate(name, (2, *array.shape), "float16") for name in request.options.maps}
        for k in range(len(array)):
            job.check()
            labels[k] = array[k] > array.mean()
            for values in maps.values():
                values[0, k] = array[k]
            job.report("segmenting", (k + 1) / len(array), None)
            if request.model == "slow":
                time.sleep(0.2)
        return {"requests": self.requests, "name": request.channels[0].name}

    def devices(self) -> list[dict]:
        return [{"name": "cpu", "title": "A processor"}]

    def forget(self) -> None:
        self.requests = 0

    def _deaf(self, job: Job) -> None:
        """Computes without ever checking whether it must stop."""
        job.allocate("labels", (2, 2, 2), "uint8")
        job.report("segmenting", 0.1, 60.0)
        time.sleep(60)

    def _patient(self, job: Job) -> None:
        """Computes for a minute, and stops when asked."""
        for step in range(1200):
            job.check()
            job.report("segmenting", step / 1200, 60.0)
            time.sleep(0.05)

    def _faulty(self, job: Job) -> None:
        raise RuntimeError("the fault of ä")

    def _hungry(self, job: Job) -> None:
        raise MemoryError

    def _refusing(self, job: Job) -> None:
        raise UserError("image-constant", "The image is constant.", path="a.nii", sizes=(1, 2))

    def _vague(self, job: Job) -> None:
        job.send("progress")

    def _misleading(self, job: Job) -> None:
        job.send("array", name="labels", npy="nowhere.npy", shape=[1], dtype="uint8")

    def _swept(self, job: Job) -> None:
        """Its temporary folder is removed while it computes."""
        job.allocate("labels", (2, 2, 2), "uint8")
        shutil.rmtree(job._session.path)

    def _unlocked(self, job: Job) -> None:
        """Killed while its temporary folder is being removed; the lock file is removed first."""
        (job._session.path / LOCK_FILE).unlink()
        self._misleading(job)

    def _crashing(self, job: Job) -> None:
        job.report("segmenting", 0.1, None)
        ctypes.string_at(0)


def load() -> FakeEngine:
    """Return the stand-in that the command line selects, or the real engine."""
    if "without-torch" in sys.argv:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if "broken-torch" in sys.argv:
        raise ImportError("DLL load failed while importing _C")
    return FakeEngine()


if __name__ == "__main__":
    sys.exit(serve(load, remote="--remote" in sys.argv))
