"""Peak memory, measured in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.model_cases import description, use_test_networks, write_model
from peak_memory import PEAK_MEMORY, REASON

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = [str(ROOT / "ConResSegmentation"), str(ROOT / "Testing" / "Python")]

SIDE = 128

SCRIPT = f"""
SIDE = {SIDE}
import sys
import numpy as np
from conresnet.images import Grid, Volume
from conresnet.networks import register_network
from conresnet.inference.segmentation import load_model, segment
from conresnet.request import SegmentOptions
from engine.model_cases import Pointwise

register_network("pointwise")(Pointwise)
model, depth = load_model(sys.argv[1], "cpu", "fp32"), int(sys.argv[2])
grid = Grid((depth, SIDE, SIDE), np.eye(4))
array = np.zeros(grid.shape, np.int16)
for plane in array:
    plane[:] = np.random.default_rng(0).integers(0, 999, plane.shape)
result = segment(model, [Volume(array, grid, "deep")], SegmentOptions(threads=1))
assert result.labels.array[0].any() and result.labels.array[-1].any()
print(result.report["windows"], {PEAK_MEMORY})
"""


def peak(model: Path, depth: int) -> tuple[int, int]:
    """Number of windows and peak memory in bytes when segmenting a volume with this many slices."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(model), str(depth)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    windows, size = done.stdout.split()
    return int(windows), int(size)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
def test_peak_memory_does_not_grow_with_depth(tmp_path, monkeypatch):
    use_test_networks(monkeypatch)
    document = description("pointwise", segments=4, inference={"window": [32, 64, 64], "overlap": 0.25})
    model = write_model(tmp_path / "model", document).path
    shallow, deep = 200, 1400
    few, low = peak(model, shallow)
    many, high = peak(model, deep)
    assert many > 5 * few
    # The image takes two bytes per voxel and the labels one; four float32 probabilities would take sixteen more.
    assert (high - low) / ((deep - shallow) * SIDE * SIDE) < 8
