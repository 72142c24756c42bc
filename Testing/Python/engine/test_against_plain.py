"""The engine with the authors' tiling, compared with the benchmark's plain inference, which shares no code with it."""

import importlib

import numpy as np
import pytest

from conresnet.images import Grid, Volume, reordering
from conresnet.images.files import read_volume
from conresnet.inference.segmentation import load_model, segment
from conresnet.request import SegmentOptions
from conresnet.systems.predictors import load_network
from engine.model_cases import description, write_model

STEPS = [
    {"step": "clip_sparse_tail", "bins": "int_max", "min_count": 50},
    {"step": "z_score", "over": "foreground", "outside": "zero"},
]
WINDOW = (32, 40, 24)


@pytest.fixture
def plain(repository, monkeypatch):
    """The benchmark's module; the benchmarks are scripts, not a package."""
    monkeypatch.syspath_prepend(repository / "Testing" / "Benchmarks")
    return importlib.import_module("plain")


@pytest.fixture
def channels(head_image) -> list[Volume]:
    """Two channels of a head with a constant background, as after skull stripping."""
    head = read_volume(head_image)
    array = np.where(head.array > 40, head.array, 0).round().astype(np.int16)
    array = np.ascontiguousarray(array[:48, :56, 48:])
    array[[0, -1]] = 0
    grid = Grid(array.shape, head.grid.affine)
    return [Volume(array, grid, "T1"), Volume(array[::-1] // 2, grid, "other")]


def test_authors_tiling_matches_plain_inference(tmp_path, channels, plain):
    document = description(
        channels=2,
        segments=3,
        regions=True,
        intensity=STEPS,
        preparation={"orientation": "SLP", "foreground": "not_background"},
        inference={"window": list(WINDOW), "tiling": "authors", "blending": "uniform", "overlap": 1 / 3},
    )
    package = write_model(tmp_path / "model", document, scale=2)
    model = load_model(package, "cpu", "fp32")
    result = segment(model, channels, SegmentOptions(maps=("probability",), threads=1))
    way = reordering(channels[0].grid, "SLP")
    image = plain.prepare([way.view(volume.array) for volume in channels])
    expected = plain.segment(load_network(package), image, WINDOW)
    found = way.view(result.maps["probability"].astype(np.float32))
    assert result.report["windows"] == np.prod(
        [len(plain.starts(side, size)) for side, size in zip(image.shape[1:], WINDOW, strict=True)]
    )
    # The maps may differ only where they are within the rounding of half precision.
    sure = np.abs(found - 0.5) > 1e-3
    assert sure.mean() > 0.9 and 0.001 < expected.mean() < 0.999
    assert np.array_equal((found > 0.5)[sure], expected[sure])
