"""What is said about a segmentation beside its voxels. Torch-free; everything in it is JSON.

From images to a segmentation: what the command line, the engine process and Python programs call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

import numpy as np

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.images.grid import Grid, Volume
from conresnet.images.preparation import PreparedCase, prepare
from conresnet.images.roi import BoxROI
from conresnet.inference.devices import Backend, choose_backend, is_out_of_memory, reused_memory, using_threads
from conresnet.inference.progress import Progress, Tracker
from conresnet.inference.results import Allocate, Painter, Results
from conresnet.inference.sliding import Pass, Passes
from conresnet.inference.windows import Tiling
from conresnet.package import ModelPackage, read_package
from conresnet.package.description import ModelDescription
from conresnet.package.maps import check_maps, map_components
from conresnet.package.store import find_model
from conresnet.systems import System, build_system


def segment_rows(description: ModelDescription, painter: Painter, grid: Grid) -> list[dict]:
    """For each segment its name, label, voxels and mL as it lies in the label map.

    Regions overlie each other, so theirs also say how large they are with what was painted over them.
    """
    milliliters = grid.voxel_volume / 1000
    rows = []
    for index, segment in enumerate(description.output.segments):
        voxels = int(painter.voxels[index])
        row = {"name": segment.name, "label": segment.label, "voxels": voxels, "volume_ml": voxels * milliliters}
        if painter.region_voxels is not None:
            row["region_volume_ml"] = int(painter.region_voxels[index]) * milliliters
        rows.append(row)
    return rows


def make_report(
    description: ModelDescription,
    channels: Sequence[str],
    segments: Sequence[Mapping],
    computing: Mapping,
    seconds: Mapping[str, float],
    warnings: Sequence[str],
) -> dict:
    """The report of one case.

    Args:
        channels: the images' names, in the model's order.
        segments: from ``segment_rows``.
        computing: windows, device and the like.
        seconds: by phase.
        warnings: sentences for the user.
    """
    return {
        "conresnet": __version__,
        "model": {"name": description.name, "version": description.version, "title": description.title},
        "channels": dict(zip((item.name for item in description.inputs), channels, strict=True)),
        **computing,
        "seconds": dict(seconds),
        "segments": list(segments),
        # Of regions the whole ones, as they are in the scene; else the whole tumor would be less than its core.
        "volumes_ml": {row["name"]: row.get("region_volume_ml", row["volume_ml"]) for row in segments},
        "warnings": list(warnings),
    }


_SHARES = {"preparing": 0.03, "segmenting": 0.96, "writing": 0.01}


@dataclass(frozen=True)
class SegmentOptions:
    """What the user may choose for one case.

    Args:
        maps: names in ``conresnet.package.maps.MAPS``, made beside the labels.
        roi: where to segment; None is the whole image.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; None leaves the model where it was loaded.
        precision: "auto", "fp32", "bf16" or "fp16"; None leaves it as it was loaded.
        tiling: "fitted" (Gaussian blending) or "authors" (uniform, as the system's paper lays them); None is the
            model's.
        threads: of the CPU; None is all, less one that keeps a desktop of three or more alive.
    """

    maps: tuple[str, ...] = ()
    roi: BoxROI | None = None
    device: str | None = None
    precision: str | None = None
    tiling: str | None = None
    threads: int | None = None


@dataclass
class SegmentResult:
    """A segmentation on the grid of the case's first channel.

    Args:
        labels: uint8 [k, j, i].
        maps: float16 [c, k, j, i] by name; "probability" and "residual" have one component per segment, where
            the model does not have one residual for all segments together.
        report: see ``conresnet.inference.segmentation``.
        regions: of a model whose segments overlap, uint8 [b, k, j, i]: which ones each voxel belongs to, for
            ``conresnet.inference.results.region_mask``; None where segments exclude each other.
    """

    labels: Volume
    maps: dict[str, np.ndarray]
    report: dict
    regions: np.ndarray | None = None


@dataclass(eq=False)
class LoadedModel:
    """A model ready to segment any number of cases, one after the other. Made by ``load_model``."""

    description: ModelDescription
    system: System
    backend: Backend
    _asked: tuple[str, str] = field(default=("auto", "auto"))

    def move(self, device: str | None, precision: str | None) -> None:
        """Change where it computes; None leaves that as it was asked for last."""
        asked = (device or self._asked[0], precision or self._asked[1])
        backend = choose_backend(*asked)
        if backend != self.backend:
            self.system.place(backend)
        self.backend, self._asked = backend, asked


def load_model(package: ModelPackage | str | PathLike, device: str = "auto", precision: str = "auto") -> LoadedModel:
    """Read a model's weights and make it ready.

    Args:
        package: a package, or its path or name as ``conresnet.package.store.find_model`` takes it.
        device, precision: see ``SegmentOptions``.

    Raises:
        UserError: the model is not found or damaged, or the device is not there.
    """
    backend = choose_backend(device, precision)
    if not isinstance(package, ModelPackage):
        package = read_package(find_model(package), verify=False)
    system = build_system(package)
    system.place(backend)
    return LoadedModel(package.description, system, backend, (device, precision))


def segment(
    model: LoadedModel,
    channels: Sequence[Volume],
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
    allocate: Allocate | None = None,
) -> SegmentResult:
    """Segment one case.

    Args:
        channels: one image a channel, in the model's order; on whatever grids.
        progress: told how far it is, and asked whether to stop.
        allocate: makes the arrays of the results, zero everywhere, from name ("labels", "regions" or a map's), shape
            and type. They may be read while they grow; where the model takes the image's own voxels, slabs are final as
            they come, unless memory runs out, elsewhere labels alone grow, and their borders move at the end.

    Raises:
        UserError: an image, the ROI or an option cannot be used, or memory does not suffice.
        Cancelled: ``progress`` said so.
    """
    try:
        return _segment(model, channels, options, progress, allocate)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # By here the error is gone, and with it the arrays that it held.
    raise UserError(
        "out-of-memory",
        f"The memory of the computer does not hold what the segmentation of {channels[0].name} takes; close other "
        "programs, or draw an ROI around the structure.",
    )


def _segment(
    model: LoadedModel,
    channels: Sequence[Volume],
    options: SegmentOptions | None,
    progress: Progress | None,
    allocate: Allocate | None,
) -> SegmentResult:
    options = options or SegmentOptions()
    description = model.description
    maps = check_maps(options.maps, model.system.maps, description.name)
    tiling = model.system.tiling.chosen(options.tiling)
    model.move(options.device, options.precision)
    tracker = Tracker(progress or Progress(), _SHARES)
    with using_threads(options.threads) as threads, reused_memory():
        tracker.begin("preparing")
        case = prepare(description, channels, options.roi, tracker.check)
        tracker.begin("segmenting")
        counts = map_components(description)
        components = {name: counts[name] for name in maps}
        results = Results(case, description.output, components, allocate or _zeros, watched=allocate is not None)
        passes = Passes(model.backend, tiling, maps, results, tracker)
        model.system.segment(case, passes)
        tracker.begin("writing")
        results.complete(tracker.update)
        seconds = tracker.finish()
    reference = channels[0].grid
    report = make_report(
        description,
        [volume.name for volume in channels],
        segment_rows(description, results.painter, reference),
        _computing(case, tiling, passes.made, threads),
        seconds,
        [*case.warnings, *passes.warnings],
    )
    return SegmentResult(Volume(results.labels, reference, description.title), results.maps, report, results.regions)


def _zeros(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.zeros(shape, dtype)


def _computing(case: PreparedCase, tiling: Tiling, made: Sequence[Pass], threads: int) -> dict:
    """Windows and device of the whole; those of the last pass where they differ, beside each pass's own."""
    last = made[-1].made
    return {
        "device": str(last.backend),
        "precision": last.backend.precision,
        "threads": threads,
        "tiling": tiling.kind,
        "blending": tiling.blending,
        "windows": sum(len(one.made.plan) for one in made),
        "window": list(last.plan.size),
        "passes": [
            {
                "name": one.name,
                "box": [[part.start, part.stop] for part in one.box],
                "windows": len(one.made.plan),
                "window": list(one.made.plan.size),
                "device": str(one.made.backend),
                "seconds": one.seconds,
            }
            for one in made
        ],
        "model_shape": list(case.shape),
        "resampled": not case.space.exact,
    }
