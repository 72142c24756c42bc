"""Writing image files: completely or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.files import read_volume, write_volume
from engine.image_cases import TILTED, ramp, sitk_affine
from engine.volumes import every_reordering, grid, random_volume, stored


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_written_volume_is_read_back_unchanged(tmp_path, suffix, dtype):
    for way in list(every_reordering())[::5]:
        volume = stored(random_volume(TILTED, dtype), way)
        path = tmp_path / f"Ergebnis für R{suffix}"
        write_volume(volume.array, volume.grid, path)
        assert np.allclose(sitk_affine(path), volume.grid.affine, atol=1e-4)
        assert np.allclose(nibabel.load(path).affine, volume.grid.affine, atol=1e-4)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), volume.array)
        assert read_volume(path).array.dtype == dtype
    assert [entry.name for entry in tmp_path.iterdir()] == [f"Ergebnis für R{suffix}"]


def test_components_are_last_axis_of_a_4d_file(tmp_path):
    values = ramp((2, *TILTED.shape), np.float16)
    write_volume(values, TILTED, tmp_path / "maps.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "maps.nii.gz"))
    assert image.GetSize() == (9, 8, 7, 2)
    assert image.GetPixelID() == sitk.sitkFloat32
    assert np.array_equal(sitk.GetArrayFromImage(image), values)
    assert nibabel.load(tmp_path / "maps.nii.gz").shape == (9, 8, 7, 2)


def test_views_and_booleans_are_written(tmp_path):
    values = np.random.default_rng(0).random((14, 8, 9)) > 0.5
    write_volume(values[::-2], TILTED, tmp_path / "mask.nii")
    read = read_volume(tmp_path / "mask.nii")
    assert read.array.dtype == np.uint8
    assert np.array_equal(read.array, values[::-2])


def test_unwritable_path_is_refused_and_leaves_no_files(tmp_path):
    volume = random_volume(grid())
    (tmp_path / "file").write_text("in the way")
    places = {"none/r.nii.gz": "cannot-write", "file/r.nii.gz": "cannot-write", "r.xyz": "output-not-nifti"}
    for place, code in places.items():
        path = tmp_path / place
        with pytest.raises(UserError) as caught:
            write_volume(volume.array, volume.grid, path)
        assert caught.value.code == code
        assert str(path) in caught.value.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied"):
        write_volume(ramp(), grid((4, 5, 6)), tmp_path / "r.nii.gz")
    tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_full_disk_is_reported_and_keeps_existing_file(tmp_path, suffix):
    """In a separate process whose files are limited to 20 kB."""
    (tmp_path / f"result{suffix}").write_bytes(b"the last result")
    code = f"""
        import resource, sys
        import numpy as np
        from conresnet.errors import UserError
        from conresnet.images import Grid
        from conresnet.images.files import write_volume
        values = np.random.default_rng(0).random((40, 40, 40)).astype(np.float32)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write_volume(values, Grid(values.shape, np.eye(4)), {str(tmp_path / f"result{suffix}")!r})
        except UserError as error:
            sys.exit(f"{{error.code}}: {{error}}")
    """
    folder = Path(sys.modules["conresnet"].__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert finished.stderr.startswith("disk-full: There is not enough disk space")
    assert finished.stderr.count("\n") == 1
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [
        (f"result{suffix}", b"the last result")
    ]
