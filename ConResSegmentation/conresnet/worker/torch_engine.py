"""The engine that computes with torch, and keeps the last model ready for the next request."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from conresnet.inference.devices import default_threads, has_mps, is_out_of_memory
from conresnet.inference.segmentation import LoadedModel, SegmentOptions, load_model, segment
from conresnet.package import ModelDescription, read_package
from conresnet.package.store import find_model
from conresnet.worker.engine import Job, Segmented
from conresnet.worker.requests import SegmentRequest


class TorchEngine:
    """See `conresnet.worker.engine.Engine`."""

    def __init__(self):
        self._model: LoadedModel | None = None
        self._loaded: tuple[Path, ModelDescription] | None = None

    def segment(self, request: SegmentRequest, job: Job) -> Segmented:
        options = SegmentOptions(maps=request.maps, roi=request.roi, device=request.device, precision=request.precision)
        try:
            model = self._prepared(request, job)
            result = segment(model, request.channels, options, job, job.allocate)
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise
        return Segmented(tuple(result.maps), result.report, overlapping=result.regions is not None)

    def devices(self) -> list[dict]:
        found = [{"name": "cpu", "title": f"{platform.processor() or platform.machine()}, {default_threads()} threads"}]
        for index in range(torch.cuda.device_count()):
            found.append({"name": f"cuda:{index}", "title": torch.cuda.get_device_name(index)})
        if has_mps():
            found.append({"name": "mps", "title": "Apple GPU"})
        return found

    def forget(self) -> None:
        self._model = self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prepared(self, request: SegmentRequest, job: Job) -> LoadedModel:
        """The model, loaded unless it is the last one; its description tells, which holds the weights' checksums."""
        package = read_package(find_model(request.model), verify=False)
        wanted = (package.path.resolve(), package.description)
        if self._model is None or self._loaded != wanted:
            self.forget()
            job.report("loading", 0.0, None)
            self._model = load_model(package, request.device, request.precision)
            self._loaded = wanted
        job.check()
        return self._model
