"""A result with two segments, for tests of results in the scene."""

from __future__ import annotations

import numpy as np
import slicer

from conresnet.images.inputs import BoxROI
from conresnet.package.outputs import Code, Segment, Terminology
from ConResSegmentationLib import ResultParts, ResultSegmentation
from ConResSegmentationLib.ResultOrigin import ResultOrigin, checksumInPieces

ANATOMY = Code("SCT", "123037004", "Anatomical Structure")
SEGMENTS = (
    Segment("Anterior", 1, (220, 20, 30), Terminology(ANATOMY, Code("SCT", "91609005", "Hippocampus"))),
    Segment("Posterior", 2, (20, 120, 230), Terminology(ANATOMY, Code("SCT", "64033007", "Kidney"),
                                                        Code("SCT", "7771000", "Left"))),
)  # fmt: skip
MODEL = "organ 1.0.0"


def origin_of(volume: object, roi: BoxROI | None = None, model: str = MODEL) -> ResultOrigin:
    *_, checksum = checksumInPieces(slicer.util.arrayFromVolume(volume))
    return ResultOrigin(model, (volume,), (checksum,), roi)


def fill(node: object, segments: list[tuple[str, object]], volume: object) -> None:
    """Add segments to a node and show them in 3D, as a run does."""
    ResultSegmentation.fill(node, segments, volume)
    for _step in ResultSegmentation.showSurfaces(node):
        pass


def put_maps(
    arrays: dict[str, np.ndarray], node: object, volume: object, names: tuple[str, ...] = ("Anterior", "Posterior")
) -> list[object]:
    """Add maps to the scene, as a run does."""
    for _step in ResultParts.putMaps(ResultParts.splitMaps(arrays, list(names)), node, volume):
        pass
    return ResultParts.mapNodes(node)
