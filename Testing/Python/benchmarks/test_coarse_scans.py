"""Benchmark of coarse scans: they are blurred but not shifted, and the held-out cases are segmented."""

import numpy as np
import SimpleITK as sitk


def test_coarse_scan_is_not_shifted(benchmark):
    module = benchmark("coarse_scans")
    place = np.stack(np.meshgrid(*(np.arange(side) - 15.2 for side in (33, 31, 32)), indexing="ij"))
    blob = sitk.GetImageFromArray(np.exp(-(place**2).sum(0) / 40).astype(np.float32))
    blob.SetSpacing((1, 2, 0.5))
    (_, same), (_, coarse) = module.scans(blob)
    assert same is blob
    arrays = [sitk.GetArrayFromImage(image) for image in (blob, coarse)]
    before, after = ([(array * axis).sum() / array.sum() for axis in place] for array in arrays)
    np.testing.assert_allclose(after, before, atol=0.02)
    assert arrays[1].max() < 0.98 * arrays[0].max()


def test_held_out_cases_are_measured(run_benchmark, repository):
    lines = run_benchmark(
        "coarse_scans.py", repository / "Testing" / "Data" / "MSD_Task04_Hippocampus"
    ).stdout.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in lines[2:]}
    sharp, coarse = (np.array(rows[name], float) for name in ("unchanged", "half the resolution"))
    assert (sharp > coarse).all() and (coarse > 0.75).all()
