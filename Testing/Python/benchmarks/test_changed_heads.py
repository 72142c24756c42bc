"""Benchmark of altered heads: the alterations keep the head in place, and each head is segmented."""

import numpy as np
import pytest
import SimpleITK as sitk


def test_altered_heads_are_not_shifted(benchmark, head_image, head_label):
    module = benchmark("changed_heads")
    head, truth = sitk.ReadImage(str(head_image), sitk.sitkFloat32), sitk.ReadImage(str(head_label), sitk.sitkUInt8)
    found = {name: (changed, labels) for name, changed, labels in module.changes(head, truth)}
    assert found["1 mm"][0].GetSpacing() == (1, 1, 1)
    for name, (changed, labels) in found.items():
        # Bright voxels of the brain stay bright however they are sampled, except where the head was cut off.
        there = sitk.GetArrayFromImage(nearest(changed, labels))
        white = sitk.GetArrayFromImage(labels) == 3
        gray = sitk.GetArrayFromImage(labels) == 2
        assert np.median(there[white & (there > 0)]) > 1.1 * np.median(there[gray & (there > 0)]), name


def test_labels_on_finer_voxels_are_not_shifted(benchmark):
    module = benchmark("changed_heads")
    coarse = sitk.Image([9, 9, 9], sitk.sitkUInt8)
    coarse.SetSpacing((2, 2, 2))
    fine = module.resampled(coarse, (1, 1, 1))
    distance = np.linalg.norm(np.indices((18, 18, 18)) - 8.5, axis=0)
    found = module.on_grid_of(coarse, module.like(fine, np.digitize(-distance, [-7.2, -4.1]).astype(np.uint8)))
    assert set(np.unique(found)) == {0, 1, 2}
    assert all(np.array_equal(found, np.flip(found, axis)) for axis in range(3))


def nearest(image: sitk.Image, reference: sitk.Image) -> sitk.Image:
    return sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor)


@pytest.mark.slow
def test_every_altered_head_is_segmented(run_benchmark):
    lines = run_benchmark("changed_heads.py").stdout.splitlines()
    dice = {line.split("|")[1].strip(): [float(cell) for cell in line.split("|")[2:-1]] for line in lines[2:]}
    assert len(dice) == 10 and all(min(values) > 0.5 for values in dice.values())
