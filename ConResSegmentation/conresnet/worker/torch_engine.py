"""The engine that computes with torch, and keeps the last model ready for the next request."""

from __future__ import annotations

import platform

import torch

from conresnet.inference.devices import default_threads, has_mps
from conresnet.inference.segmentation import WarmModel, segment
from conresnet.package import read_package
from conresnet.package.store import find_model
from conresnet.request import SegmentRequest
from conresnet.worker.engine import Job, Segmented


class TorchEngine:
    """See `conresnet.worker.engine.Engine`."""

    def __init__(self):
        self._warm = WarmModel()

    def segment(self, request: SegmentRequest, job: Job) -> Segmented:
        package = read_package(find_model(request.model), verify=False)
        if not self._warm.has(package):
            job.report("loading", 0.0, None)
        model = self._warm.get(package)
        job.check()
        result = segment(model, request.channels, request.options, job, job.allocate)
        return Segmented(tuple(result.maps), result.report, overlapping=result.regions is not None)

    def devices(self) -> list[dict]:
        found = [{"name": "cpu", "title": f"{platform.processor() or platform.machine()}, {default_threads()} threads"}]
        for index in range(torch.cuda.device_count()):
            found.append({"name": f"cuda:{index}", "title": torch.cuda.get_device_name(index)})
        if has_mps():
            found.append({"name": "mps", "title": "Apple GPU"})
        return found

    def forget(self) -> None:
        self._warm.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
