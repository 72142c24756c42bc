"""The segmentation as a .seg.nrrd file with names, colors and codes for 3D Slicer, and the tags of Slicer's segments.

The format is described in Slicer's developer guide (Segmentations). Importing this module imports neither torch nor
SimpleITK, because Slicer's process uses it when it starts.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conresnet.files import replacing

if TYPE_CHECKING:
    from conresnet.images.grid import Box, Grid, Volume
    from conresnet.package.outputs import Output, Segment, Terminology

# Slicer's selector drops codes that are not in the list that an entry names. The list "3D Slicer General Anatomy" is
# short: it has no hippocampus and no cerebrospinal fluid.
_CATEGORY_CONTEXT = "Segmentation category and type - DICOM master list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"


def segment_id(segment: Segment) -> str:
    """The ID of a segment in Slicer, in a file and in the scene."""
    return f"Segment_{segment.label}"


def segment_tags(segment: Segment, algorithm: str) -> dict[str, str]:
    """The tags of a segment in Slicer: its codes, and for DICOM the name and version of the model (``algorithm``)."""
    # Slicer's DICOM export writes these; without them it declares the segments as drawn by hand.
    tags = {
        "DICOM.SegmentAlgorithmType": "AUTOMATIC",
        "DICOM.SegmentAlgorithmName": f"ConResNet {algorithm}".strip()[:64],
    }
    if segment.terminology:
        tags["TerminologyEntry"] = terminology_entry(segment.terminology)
    return tags


def terminology_entry(terminology: Terminology) -> str:
    """A model's codes as Slicer's terminology entry: seven parts separated by ~, codes by ^."""

    def triple(code) -> str:
        return f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^"

    return "~".join(
        (
            _CATEGORY_CONTEXT,
            triple(terminology.category),
            triple(terminology.type),
            triple(terminology.type_modifier),
            _REGION_CONTEXT,
            triple(terminology.region),
            triple(terminology.region_modifier),
        )
    )


def write_seg_nrrd(path: Path, labels: Volume, regions: np.ndarray | None, output: Output, algorithm: str) -> None:
    """Write label values [k, j, i] and what Slicer shows for each segment.

    Args:
        regions: (b, k, j, i) uint8 if segments overlap, see ``conresnet.inference.labels``; then each gets a layer.
        algorithm: as for `segment_tags`.

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    # Imported here, because its package imports SimpleITK, which would delay the start of Slicer.
    from conresnet.inference.labels import segment_boxes, segment_mask

    boxes = segment_boxes(labels.array, regions, output)
    lines = _header(labels.grid, 0 if regions is None else len(boxes))
    for index, (segment, box) in enumerate(zip(output.segments, boxes, strict=True)):
        for name, value in _fields(segment, box, 0 if regions is None else index, algorithm).items():
            escaped = value.replace("\\", "\\\\")
            lines.append(f"Segment{index}_{name}:={escaped}")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        # Fast rather than small, as for NIfTI.
        with gzip.open(file, "wb", compresslevel=1) as data:
            for k, plane in enumerate(labels.array):
                if regions is not None:
                    masks = (segment_mask(plane, regions[:, k], output, index) for index in range(len(boxes)))
                    layers = [mask * np.uint8(one.label) for mask, one in zip(masks, output.segments, strict=True)]
                    plane = np.stack(layers, axis=-1)
                data.write(np.ascontiguousarray(plane, np.uint8).tobytes())


def _header(grid: Grid, layers: int) -> list[str]:
    """The lines of the header; for overlapping segments, an axis of layers precedes those of the image."""
    axes = (np.diag([-1, -1, 1]) @ grid.affine[:3]).T.tolist()
    *directions, origin = [f"({','.join(map(repr, axis))})" for axis in axes]
    sizes, kinds = [*grid.shape[::-1]], ["domain"] * 3
    if layers:
        sizes, kinds, directions = [layers, *sizes], ["list", *kinds], ["none", *directions]
    return [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "encoding: gzip",
        f"space origin: {origin}",
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]


def _fields(segment: Segment, box: Box | None, layer: int, algorithm: str) -> dict[str, str]:
    ends = [(part.start, part.stop - 1) for part in reversed(box)] if box else [(0, -1)] * 3
    # A vertical bar would end a tag.
    tags = {name: text.replace("|", "/") for name, text in segment_tags(segment, algorithm).items()}
    return {
        "ID": segment_id(segment),
        "Name": segment.name,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{value / 255:.6g}" for value in segment.color),
        "ColorAutoGenerated": "0",
        "Extent": " ".join(f"{low} {high}" for low, high in ends),
        "LabelValue": str(segment.label),
        "Layer": str(layer),
        "Tags": "|".join(f"{name}:{text}" for name, text in tags.items()),
    }
