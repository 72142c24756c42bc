"""Measurements of each segment of a result: volume, surface area, intensity, uncertainty. Torch-free, for Slicer."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conresnet.files import csv_cell, replacing
from conresnet.images.grid import Grid, Volume, transformed
from conresnet.inference.labels import segment_boxes, segment_mask
from conresnet.package.outputs import Output

# Voxels whose places are computed at a time.
_BLOCK = 1 << 20


def segment_statistics(
    labels: np.ndarray,
    grid: Grid,
    output: Output,
    channels: Mapping[str, Volume],
    uncertainty: np.ndarray | None = None,
    regions: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Measure each segment; regions are measured whole, including what lies over them.

    Args:
        labels: [k, j, i] uint8.
        grid: of the labels.
        output: the model's segments.
        channels: images by name, each on any grid; at each voxel of a segment, their nearest voxel counts.
        uncertainty: the map [k, j, i].
        regions: see ``SegmentResult``.

    Returns:
        For each segment "segment", "voxels", "volume_ml", "surface_cm2" (by Crofton's formula, as ITK estimates it from
        voxels), "mean_intensity" (by channel) and "mean_uncertainty". Means of nothing are None, as is the uncertainty
        without its map.
    """
    rows = []
    for index, box in enumerate(segment_boxes(labels, regions, output)):
        row: dict[str, Any] = {"segment": output.segments[index].name, "voxels": 0, "volume_ml": 0.0}
        row |= {"surface_cm2": 0.0, "mean_intensity": dict.fromkeys(channels), "mean_uncertainty": None}
        rows.append(row)
        if box is None:
            continue
        packed = None if regions is None else regions[(slice(None), *box)]
        mask = segment_mask(labels[box], packed, output, index)
        voxels = np.argwhere(mask)
        row["voxels"] = len(voxels)
        row["volume_ml"] = len(voxels) * grid.voxel_volume / 1000
        row["surface_cm2"] = surface_mm2(mask, grid.spacing) / 100
        if uncertainty is not None:
            row["mean_uncertainty"] = float(uncertainty[box][mask].mean(dtype=np.float64))
        voxels += [part.start for part in box]
        row["mean_intensity"] = {name: _mean(volume, grid, voxels) for name, volume in channels.items()}
    return rows


def surface_mm2(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """The surface of a mask [k, j, i] by Crofton's formula; ``spacing`` in mm along i, j, k."""
    import SimpleITK as sitk

    # What touches the border of the array ends there too.
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    image.SetSpacing([float(size) for size in spacing])
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.ComputePerimeterOn()
    shapes.Execute(image)
    return shapes.GetPerimeter(1)


def _mean(volume: Volume, grid: Grid, voxels: np.ndarray) -> float | None:
    """The mean of an image at the voxels (n, 3) of a grid, [k, j, i]; None where the image has none of them."""
    if volume.grid.matches(grid):
        return float(volume.array[tuple(voxels.T)].mean(dtype=np.float64))
    to_image, shape = np.linalg.inv(volume.grid.array_affine) @ grid.array_affine, np.array(volume.grid.shape)
    total, count = 0.0, 0
    for start in range(0, len(voxels), _BLOCK):
        places = np.rint(transformed(voxels[start : start + _BLOCK], to_image)).astype(np.int64)
        places = places[((places >= 0) & (places < shape)).all(axis=1)]
        total += float(volume.array[tuple(places.T)].sum(dtype=np.float64))
        count += len(places)
    return total / count if count else None


def write_statistics(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write statistics.csv: segment, voxels, volume_ml, surface_cm2, mean_intensity CHANNEL..., mean_uncertainty."""
    names = list(rows[0]["mean_intensity"])
    intensities = [f"mean_intensity {name}" for name in names]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["segment", "voxels", "volume_ml", "surface_cm2", *intensities, "mean_uncertainty"])
        for row in rows:
            means = [row["mean_intensity"][name] for name in names] + [row["mean_uncertainty"]]
            numbers = [row["volume_ml"], row["surface_cm2"], *means]
            cells = ["" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([csv_cell(row["segment"]), row["voxels"], *cells])
