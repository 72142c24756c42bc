"""The benchmark of a CT with a couch: the painted objects are outside the body, and the body is not moved."""

import numpy as np
import SimpleITK as sitk


def test_body_is_unchanged_and_surroundings_look_like_a_scanner(benchmark):
    module = benchmark("ct_with_couch")
    h, w = np.mgrid[:40, :60]
    plane = np.where(np.hypot(h - 18, w - 30) < 14, 40, module.AIR)
    # A trachea, in which nothing is painted.
    plane[np.hypot(h - 18, w - 30) < 4] = module.AIR
    image = sitk.GetImageFromArray(np.repeat(plane[None], 12, axis=0).astype(np.float32))
    image.SetSpacing((4.5, 4.5, 3.0))
    scan = module.with_surroundings(image, np.random.default_rng(0))
    assert np.allclose(scan.GetSpacing(), module.FINE_SPACING)
    assert scan.GetSize()[1] * scan.GetSpacing()[1] > 40 * 4.5 + 100

    again = sitk.GetArrayFromImage(sitk.Resample(scan, image, sitk.Transform(), sitk.sitkLinear))
    tissue = np.hypot(h - 18, w - 30) < 12
    tissue &= np.hypot(h - 18, w - 30) > 6
    assert np.abs(again[:, tissue] - 40).max() < 40
    assert (again[:, np.hypot(h - 18, w - 30) < 2] < -900).all()

    values = sitk.GetArrayFromImage(scan)
    back = int((18 + 14) * 4.5 / 1.5)
    is_plate = (values[:, back:] > -400).mean(axis=(0, 2)) > 0.9
    plates = np.flatnonzero(np.diff(is_plate.astype(int)) == 1)
    assert len(plates) == 2 and np.diff(plates)[0] * 1.5 == 49.5
    unpainted = sitk.GetArrayFromImage(sitk.Resample(image, scan, sitk.Transform(), sitk.sitkLinear, module.AIR))
    mask = np.argwhere((values > -300) & (unpainted == module.AIR))[:, 1:] * 1.5
    mask = mask[mask[:, 0] < 18 * 4.5]
    assert len(mask) > 1000
    assert np.hypot(*(mask - np.array([18.5, 30.5]) * 4.5).T).max() < 14 * 4.5 + 4.5 + 4
    corner = values[:, :20, :20]
    assert corner.std() > 5 and abs(corner.mean() + 1000) < 15
