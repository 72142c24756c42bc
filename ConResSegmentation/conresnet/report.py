"""What is said about a segmentation beside its voxels. Torch-free; everything in it is JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conresnet import __version__
from conresnet.grid import Grid
from conresnet.inference.painting import Painter
from conresnet.package.description import ModelDescription


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
