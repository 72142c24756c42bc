"""Segmentation of a case, as used by the command line, the engine's process and Python programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike

import numpy as np

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.images.inputs import AUTOMATIC, WHOLE_IMAGE, uses_locator
from conresnet.images.preparation import PreparedCase, prepare
from conresnet.inference import Tiling
from conresnet.inference.devices import choose_backend, is_out_of_memory, reused_memory, using_threads
from conresnet.inference.labels import LabelWriter, PostProcessing, check_postprocessing, segment_rows
from conresnet.inference.locating import (
    LocatedResults,
    check_locator,
    located_rois,
    look_for_segments,
    not_located,
)
from conresnet.inference.results import Allocate, Results
from conresnet.inference.sliding import Passes, segment_part
from conresnet.messages import rounded, sentence
from conresnet.package import ModelDescription
from conresnet.package.outputs import Output, Segment, check_maps, map_components, predicted_maps, slice_axis
from conresnet.package.reader import ModelPackage
from conresnet.package.store import digest_with_locator, find_model, read_model
from conresnet.request import Part, Progress, SegmentOptions, Tracker
from conresnet.results import segment_statistics
from conresnet.results.review import Ranking, Slices, make_review, read_ranking
from conresnet.systems import System
from conresnet.systems.predictors import build_system

# Fractions of the whole work, without and with a coarse look.
_SHARES = {"preparing": 0.03, "segmenting": 0.96, "writing": 0.01}
_SHARES_WITH_LOOK = {"preparing": 0.03, "locating": 0.2, "segmenting": 0.76, "writing": 0.01}


@dataclass(eq=False)
class LoadedModel:
    """A model ready to segment any number of cases, one after another. Made by ``load_model``.

    It computes on its device, in its precision, unless the options of a case say otherwise.
    """

    description: ModelDescription
    system: System
    package: ModelPackage
    device: str = "auto"
    precision: str = "auto"
    _finder: LoadedModel | None = None

    def finder(self) -> LoadedModel:
        """The model that its locator names, loaded when it is first needed.

        Raises UserError "locator-not-installed", "locator-differs", or as ``find_model`` and ``load_model``.
        """
        if self._finder is None:
            locator = self.description.locator
            try:
                path = find_model(locator.model)
            except UserError as error:
                # A locator that is installed but damaged has its own message.
                if not error.code.startswith("model-not-found"):
                    raise
                raise UserError("locator-not-installed", model=self.description.title, locator=locator.model) from error
            finder = load_model(path, self.device, self.precision)
            check_locator(locator, finder.description)
            self._finder = finder
        return self._finder


@dataclass
class SegmentResult:
    """A segmentation on the grid of the case's first channel.

    Args:
        labels: uint8 [k, j, i].
        maps: float16 [c, k, j, i] by name; "probability" and the residuals have one component per segment, unless the
            model has one residual for all segments together.
        report: what ``report.json`` holds, see ``_report``.
        regions: for a model whose segments overlap, uint8 [b, k, j, i]: the ones each voxel belongs to, for
            ``conresnet.inference.labels.region_mask``; None where segments exclude each other.
        channels: the images by the model's names for them.
        hidden, entropy: further maps and sums for the review, see ``conresnet.inference.results.Results``.
        output: the segments: the model's, or those of all places where its locator looked.
    """

    labels: Volume
    maps: dict[str, np.ndarray]
    report: dict
    regions: np.ndarray | None = None
    channels: dict[str, Volume] = field(default_factory=dict)
    hidden: dict[str, np.ndarray] = field(default_factory=dict)
    entropy: np.ndarray | None = None
    output: Output | None = None

    @property
    def all_maps(self) -> dict[str, np.ndarray]:
        return {**self.maps, **self.hidden}

    def statistics(self) -> list[dict]:
        """Measurements from ``segment_statistics``, with uncertainties only if that map was computed."""
        uncertainty = self.all_maps["uncertainty"][0] if "uncertainty" in self.all_maps else None
        labels, channels = self.labels, self.channels
        return segment_statistics(labels.array, labels.grid, self.output, channels, uncertainty, self.regions)


def load_model(package: ModelPackage | str | PathLike, device: str = "auto", precision: str = "auto") -> LoadedModel:
    """Read a model's weights and make it ready.

    ``package`` is as for ``conresnet.package.store.read_model``. Raises UserError if the model is not found or is
    damaged, the device is not available, or memory is not sufficient.
    """
    choose_backend(device, precision)
    package = read_model(package, verify=False)
    try:
        return LoadedModel(package.description, build_system(package), package, device, precision)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    raise UserError("out-of-memory", name=package.description.title)


class WarmModel:
    """Keeps the model that was used last, so that a series of cases loads it once."""

    def __init__(self):
        # One pair, so that no thread sees a model with the key of another.
        self._kept: tuple[tuple, LoadedModel] | None = None

    def get(self, package: ModelPackage, progress: Progress | None = None) -> LoadedModel:
        """The package's model, loaded unless it is the last one. Raises UserError as ``load_model``."""
        # Digests of descriptions, which hold the checksums of the weights. Either model may be replaced at any time.
        key = (package.path.resolve(), digest_with_locator(package))
        kept = self._kept
        if kept is None or kept[0] != key:
            if progress:
                progress.report("loading", 0.0, None)
            # Both models might not fit into memory.
            kept = None
            self.forget()
            kept = self._kept = key, load_model(package)
        return kept[1]

    def forget(self) -> None:
        self._kept = None


def segment(
    model: LoadedModel,
    channels: Sequence[Volume],
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
    allocate: Allocate | None = None,
) -> SegmentResult:
    """Segment one case.

    Args:
        channels: one image per channel, in the model's order, each on any grid.
        progress: receives the progress, and can cancel the work.
        allocate: makes the arrays of the results, zero everywhere, from name ("labels", "regions" or a map's), shape
            and type. They may be read while they grow: where the model uses the image's own voxels, slabs are final
            as they come, unless a pass starts over; elsewhere only labels grow, and their borders move at the end.

    Raises:
        UserError: an image, the ROI or an option cannot be used, or memory is not sufficient.
        Cancelled: ``progress`` asked to stop.
    """
    options, progress = options or SegmentOptions(), progress or Progress()
    description = model.description
    try:
        ranking = read_ranking(model.package) if options.review or options.report else None
        options = _resolved(options, model)
        roi = None if options.roi in (AUTOMATIC, WHOLE_IMAGE) else options.roi
        if channels and uses_locator(description, options.roi, channels[0].grid):
            result = _segment_located(model, channels, options, ranking, progress, allocate or _zeros)
        else:
            result = _segment(model, channels, replace(options, roi=roi), ranking, progress, allocate)
        was_removed = any(result.report["postprocessing"].get("removed_ml", {}).values())
        if not any(result.report["volumes_ml"].values()) and not was_removed:
            code = "warn-nothing-in-roi" if roi else "warn-nothing-found"
            result.report["warnings"].append(sentence(code, {}))
        result.report |= _further(result, description, options, ranking, progress.check)
        return result
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # The error no longer exists here, nor do the arrays that it held.
    raise UserError("out-of-memory", name=channels[0].name)


def _resolved(options: SegmentOptions, model: LoadedModel) -> SegmentOptions:
    """The options with the model's own device and precision. Invalid ones are refused before a locator starts."""
    check_postprocessing(options)
    _tiling(options, model.description)
    return replace(
        options,
        maps=check_maps(options.maps, model.description),
        device=model.device if options.device == "auto" else options.device,
        precision=model.precision if options.precision == "auto" else options.precision,
    )


def _tiling(options: SegmentOptions, description: ModelDescription) -> Tiling:
    tiling = Tiling.of(description.inference).chosen(options.tiling)
    if options.fast:
        tiling = (tiling if options.tiling else tiling.chosen("fitted")).faster()
    return tiling


def _segment(
    model: LoadedModel,
    channels: Sequence[Volume],
    options: SegmentOptions,
    ranking: Ranking | None,
    progress: Progress,
    allocate: Allocate | None,
) -> SegmentResult:
    description, maps = model.description, options.maps
    tiling = _tiling(options, description)
    backend = choose_backend(options.device, options.precision)
    looks = description.inference.coarse_look and options.roi is None and tiling.kind == "fitted"
    tracker = Tracker(progress, _SHARES_WITH_LOOK if looks else _SHARES)
    with using_threads(options.threads) as threads, reused_memory():
        tracker.begin("preparing")
        case = prepare(description, channels, options.roi, progress.check)
        if description.preparation.roi == "cut":
            largest = description.preparation.largest_crop
            tiling = tiling.of_crop(case.shape, largest and np.divide(largest, case.space.grid.spacing[::-1]))
        counts = map_components(description)
        needed = _needed_maps(maps, options, ranking)
        results = Results(
            case,
            description.output,
            {name: counts[name] for name in maps},
            allocate or _zeros,
            watched=allocate is not None,
            slice_axis=slice_axis(description),
            hidden={name: counts[name] for name in needed if name not in maps},
            sums_entropy=ranking is not None,
        )
        passes = Passes(backend, tiling, predicted_maps(needed), results, tracker, options.precision, not options.fast)
        part = None
        if looks:
            tracker.begin("locating")
            passes_of_look = passes.without_mirrors()
            part = look_for_segments(description, model.system, channels, case, passes_of_look, progress.check)
        tracker.begin("segmenting")
        segment_part(model.system, case, part, passes, description.output)
        tracker.begin("writing")
        changes = PostProcessing(description, options, channels[0].grid, tracker.update)
        results.complete(tracker.update, changes.apply if changes.is_wanted else None)
        for warning in changes.warnings:
            passes.warn(warning)
        by_name = {item.name: volume for item, volume in zip(description.inputs, channels, strict=True)}
        labels = Volume(results.labels, channels[0].grid, description.title)
        seconds = tracker.finish()
    report = _report(description, channels, case, tiling, passes, results.writer, threads, seconds)
    report |= {"fast": options.fast, "postprocessing": changes.report}
    if options.roi is None:
        report["warnings"] += _unusual_volumes(description.output.segments, report["volumes_ml"], options)
    return SegmentResult(
        labels=labels,
        maps=results.maps,
        report=report,
        regions=results.regions,
        channels=by_name,
        hidden=results.hidden,
        entropy=results.entropy,
        output=description.output,
    )


# Volumes below this fraction of the smallest in training, or above the largest divided by it, are unusual.
_UNUSUAL = 0.5
_MOST_VOLUMES_NAMED = 3


def _unusual_volumes(segments: Sequence[Segment], volumes: Mapping[str, float], options: SegmentOptions) -> list[str]:
    """Sentences about segments that are much smaller or larger than any in the training labels.

    Such an image may not show them at all: a network finds something in almost every image. If it finds nothing,
    there is another warning.
    """
    # There is already a warning about dropped segments.
    segments = [item for item in segments if volumes[item.name] or not options.drop_below]
    found = []
    for segment in segments:
        low, high = segment.volume_ml or (0.0, float("inf"))
        if not low * _UNUSUAL <= volumes[segment.name] <= high / _UNUSUAL:
            numbers = {"volume": volumes[segment.name], "low": low, "high": high}
            found.append({"segment": segment.name, **{name: rounded(number) for name, number in numbers.items()}})
    if not any(volumes.values()):
        return []
    if len(found) <= _MOST_VOLUMES_NAMED:
        return [sentence("warn-volume-unusual", values) for values in found]
    return [sentence("warn-volumes-unusual", {**found[0], "count": len(found), "all": len(segments)})]


def _needed_maps(maps: Sequence[str], options: SegmentOptions, ranking: Ranking | None) -> tuple[str, ...]:
    """The requested maps, and those that the review, the statistics or the page need."""
    needed = list(maps)
    if options.review or options.statistics or options.report:
        needed.append("uncertainty")
    if ranking and "log_disagreement" in ranking.features:
        needed.append("residual_difference")
    return tuple(dict.fromkeys([*needed, *predicted_maps(needed)]))


def _further(
    result: SegmentResult,
    description: ModelDescription,
    options: SegmentOptions,
    ranking: Ranking | None,
    check: Callable[[], None],
) -> dict:
    """Optional parts of the report, if requested: "review" and "statistics", see ``_report``."""
    maps, further = result.all_maps, {}
    if ranking:
        slices, difference = Slices.of(result, description), maps.get("residual_difference")
        rows = make_review(slices, result.entropy, maps["uncertainty"][0], ranking, difference, check)
        further["review"] = {
            "rows": [asdict(row) for row in rows],
            "axis": slices.voxel_axis,
            "note": ranking.note,
            "figures": ranking.figures,
        }
    if options.statistics or options.report:
        further["statistics"] = result.statistics()
    return further


# The locator's share of the whole work; it segments the whole image.
_LOCATING = 0.6


def _segment_located(
    model: LoadedModel,
    channels: Sequence[Volume],
    options: SegmentOptions,
    ranking: Ranking | None,
    progress: Progress,
    allocate: Allocate,
) -> SegmentResult:
    """Segment in the ROIs that the model's locator finds, and combine the results."""
    description, locator = model.description, model.description.locator
    finder = model.finder()
    # Boxes with a margin do not need the last bit of accuracy.
    coarse = SegmentOptions(device=options.device, precision=options.precision, threads=options.threads, fast=True)
    found = _segment(finder, channels, coarse, None, Part(progress, 0.0, _LOCATING, "locating"), None)
    rois = located_rois(locator, found.labels, finder.description.output)
    warnings = not_located(locator, rois, finder.description.title, channels[0].name)
    together, seen = LocatedResults(description, channels[0].grid, allocate), []
    share = (1 - _LOCATING) / sum(roi is not None for roi in rois)
    for index, (roi, output) in enumerate(zip(rois, locator.outputs(description.output), strict=True)):
        if roi is not None:
            first = _LOCATING + share * len(together.reports)
            part = Part(progress, first, first + share)
            here = replace(model, description=replace(description, output=output))
            one = _segment(here, channels, replace(options, roi=roi), ranking, part, None)
            together.add(index, one)
            seen += output.segments
    report = together.report()
    warnings += _unusual_volumes(seen, report["volumes_ml"], options)
    report |= {
        "seconds": {"locating": sum(found.report["seconds"].values()), **report["seconds"]},
        "warnings": list(dict.fromkeys([*warnings, *report["warnings"]])),
        "located": {
            "model": found.report["model"],
            "rois": {place.name: roi and roi.to_dict() for place, roi in zip(locator.places, rois, strict=True)},
        },
    }
    labels = Volume(together.labels, channels[0].grid, description.title)
    hidden, entropy = together.hidden, together.entropy
    return SegmentResult(labels, together.maps, report, None, one.channels, hidden, entropy, together.output)


def _zeros(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.zeros(shape, dtype)


def _report(
    description: ModelDescription,
    channels: Sequence[Volume],
    case: PreparedCase,
    tiling: Tiling,
    passes: Passes,
    writer: LabelWriter,
    threads: int,
    seconds: dict[str, float],
) -> dict:
    """The report of one case; everything in it is JSON.

    "windows" counts those of all passes; "window", "device" and "precision" are the last pass's. "seconds" are by
    phase. "volumes_ml" are of whole regions, as in the scene; otherwise the whole tumor would be smaller than its core.

    "review", if requested, has "rows" (``conresnet.results.review.ReviewRow``), "axis" (that of the label map, 0 to
    2 for k, j, i, along which slices are numbered), "note" and "figures" about the ranking. "statistics" has what
    ``segment_statistics`` returns.
    """
    last = passes.passes[-1]
    segments = segment_rows(description.output, writer.voxels, channels[0].grid, writer.region_voxels)
    return {
        "conresnet": __version__,
        "model": {"name": description.name, "version": description.version, "title": description.title},
        "channels": {item.name: volume.name for item, volume in zip(description.inputs, channels, strict=True)},
        "device": str(last.backend),
        "precision": last.backend.precision,
        "threads": threads,
        "tiling": tiling.kind,
        "blending": tiling.blending,
        "windows": sum(len(one.plan) for one in passes.passes),
        "window": list(last.plan.size),
        "passes": [
            {
                "name": one.name,
                "box": [[part.start, part.stop] for part in one.box],
                "windows": len(one.plan),
                "window": list(one.plan.size),
                "device": str(one.backend),
                "seconds": one.seconds,
            }
            for one in passes.passes
        ],
        "model_shape": list(case.shape),
        "resampled": not case.space.exact,
        "seconds": dict(seconds),
        "segments": segments,
        "volumes_ml": {row["name"]: row.get("region_volume_ml", row["volume_ml"]) for row in segments},
        "warnings": [*case.warnings, *passes.warnings],
    }
