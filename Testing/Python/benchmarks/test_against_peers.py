"""The comparison with MONAI and nnU-Net, and the GPU benchmark: every program runs, and on the same image."""

import numpy as np
import pytest


@pytest.fixture
def task(benchmark, tmp_path):
    """The head of the test data, cropped so that it takes seconds."""
    data = benchmark("against_peers").DATA / "IXI_T1_2mm"
    files = {"images": [str(data / "IXI034.nii.gz")], "labels": str(data / "IXI034_tissue.nii.gz")}
    return {"row": "head", "folder": str(tmp_path), "quick": True, "threads": 1, "precision": "fp32", **files}


def test_both_programs_segment_the_image_prepared_by_the_engine(benchmark, task, tmp_path):
    peers = benchmark("against_peers")
    assert tuple(peers.measure({**task, "way": "prepare"})["shape"]) == (40, 40, 40)
    case, *_ = peers._case(task)
    image = np.load(tmp_path / "image.npy")
    assert np.array_equal(image, case.block((0, 0, 0), case.shape)[(slice(None), *case.box())])
    ours, monai = (peers.measure({**task, "way": way}) for way in ("ours", "monai"))
    assert ours["windows"] == monai["windows"] == 1
    # MONAI pads the small image to the window of the model, so that the two see different surroundings.
    assert ours["agreement"] == 1 and 0.3 < monai["agreement"] < 1
    assert all(min(run["dice"]) > 0.1 and run["peak"] > 1e8 and run["wall"] > 0 for run in (ours, monai))


def test_ratios_compare_runs_of_the_same_round(benchmark, capsys):
    def run(seconds):
        return {"windows": 4, "wall": seconds, "cpu": 2 * seconds, "peak": 1.5e9, "dice": [0.9], "agreement": 1.0}

    runs = {"ours": [run(1.0), run(10.0), run(2.0)], "monai": [run(3.0), run(31.0), run(5.0)]}
    benchmark("against_peers")._print_table("head", runs)
    line = capsys.readouterr().out.splitlines()[-1]
    # A machine that was ten times as slow in one round changes no ratio.
    assert "| 5.00 (3.00 to 31.00) | 3.00 (2.50 to 3.10) |" in line and "1.50 GB | 0.900" in line


@pytest.mark.slow
def test_comparison_runs_as_one_command(run_benchmark):
    ways = ("--way", "ours", "--way", "fast", "--way", "monai", "--way", "plain")
    done = run_benchmark("against_peers.py", "--quick", "--rows", "tumor,ct", "--precision", "bf16", *ways)
    tables = [line for line in done.stdout.splitlines() if line.startswith("| ours") or line.startswith("| MONAI")]
    assert len(tables) == 6


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu(run_benchmark):
    options = "--device", "cpu", "--quick", "--without-nnunet", "--no-compile"
    lines = run_benchmark("gpu.py", *options).stdout.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| full width", "| brain-structures"))]
    assert len(rows) == 8 and all(float(row[3]) > 0 for row in rows)
    assert any(line.startswith("A case of 4 x 16 x 24 x 24 voxels, 1 windows") for line in lines)
    assert [line.partition(":")[0] for line in lines if line.startswith("Training")] == [
        "Training, plain",
        "Training, ours, 0 workers",
    ]
