"""Files that cannot be read as images are refused with one sentence each."""

from __future__ import annotations

import gzip
import os
import stat
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images import Grid, Volume, check_volume
from conresnet.images.files import read_channels, read_image
from conresnet.results import image_state
from engine.image_cases import ramp, refused, save_nifti, write_with_itk
from engine.volumes import grid, random_volume


def test_missing_file_is_refused(tmp_path):
    refused("image-not-found", tmp_path / "none.nii.gz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipe_is_refused_without_waiting(tmp_path):
    """As the shell creates for <(zcat image.nii.gz): its first bytes would be lost, or reading would never end."""
    os.mkfifo(tmp_path / "pipe.nii")
    refused("image-pipe", tmp_path / "pipe.nii")
    with pytest.raises(UserError):
        read_channels([tmp_path / "pipe.nii"], ["T1"])
    image_state(tmp_path / "pipe.nii")


@pytest.mark.parametrize("name", ["text.nii.gz", "text.nii", "text.nrrd", "text.txt", "text"])
@pytest.mark.parametrize("content", [b"no image at all", b""])
def test_file_that_is_not_an_image_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused("not-an-image" if content else "file-empty", tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_truncated_file_is_refused(tmp_path, suffix, capfd):
    path = write_with_itk(random_volume(grid((20, 20, 20))), tmp_path / f"cut{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused("image-truncated", path)
    assert capfd.readouterr().err == ""


def test_damaged_gz_file_is_refused(tmp_path):
    path = write_with_itk(random_volume(grid((20, 20, 20))), tmp_path / "damaged.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused("image-damaged", path)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
@pytest.mark.parametrize("name", [b"caf\xe9.nii.gz", b"caf\xe9.nrrd", b"caf\xe9/1.dcm", b"ct/caf\xe9.dcm"])
def test_undecodable_file_name_is_refused(tmp_path, name):
    """ITK would end the process."""
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="rename it") as caught:
        read_image(path.parent if name.endswith(b"dcm") else path)
    assert caught.value.code == "image-name-not-text" and "caf" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_file_without_read_permission_is_refused(tmp_path):
    path = write_with_itk(random_volume(grid()), tmp_path / "locked.nii")
    path.chmod(0)
    refused("cannot-read", path)
    path.chmod(stat.S_IRWXU)


def test_2d_images_are_refused(tmp_path):
    refused("image-2d", save_nifti(tmp_path / "flat.nii", ramp((5, 6))))
    for suffix in (".png", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(ramp((5, 6), np.uint8)), str(tmp_path / f"flat{suffix}"))
        refused("image-2d", tmp_path / f"flat{suffix}")


def test_color_images_are_refused(tmp_path):
    color = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused("image-color", save_nifti(tmp_path / "color.nii.gz", color))
    vector = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for suffix in (".nrrd", ".mha"):
        sitk.WriteImage(vector, str(tmp_path / f"color{suffix}"))
        refused("image-color", tmp_path / f"color{suffix}")
        refused("image-color", tmp_path / f"color{suffix}", channels=("a", "b", "c"))


def test_complex_images_are_refused(tmp_path):
    refused("image-complex", save_nifti(tmp_path / "complex.nii", ramp().astype(np.complex64)))
    sitk.WriteImage(sitk.GetImageFromArray(ramp().astype(np.complex64)), str(tmp_path / "complex.nrrd"))
    refused("image-complex", tmp_path / "complex.nrrd")


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 2), (-np.inf, 3)])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_nan_and_infinite_voxels_are_refused(tmp_path, value, count, suffix):
    volume = random_volume(grid(), np.float32)
    volume.array[0, 0, :count] = value
    error = refused("image-not-finite", write_with_itk(volume, tmp_path / f"bad{suffix}"))
    assert error.values["count"] == count


@pytest.mark.parametrize("value", [0, 7])
def test_empty_or_constant_image_is_refused(tmp_path, value):
    error = refused("image-constant", save_nifti(tmp_path / "even.nii", np.full((4, 5, 6), value, np.int16)))
    assert f"the same value ({value})" in error.message


def test_implausibly_large_values_are_refused(tmp_path):
    refused("intensity-range", save_nifti(tmp_path / "wild.nii", ramp(dtype=np.float64) * 1e200))


@pytest.mark.parametrize("size", [1e-7, 5000.0])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_absurd_spacing_is_refused(tmp_path, size, suffix):
    error = refused(
        "absurd-spacing", write_with_itk(random_volume(grid(spacing=(1, 1, size))), tmp_path / f"a{suffix}")
    )
    assert f"{size:g} mm" in error.message


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("compress", [False, True])
def test_absurd_spacing_hidden_by_libraries_is_refused(tmp_path, size, compress, capfd):
    path = save_nifti(tmp_path / "odd.nii", ramp())
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 76 + 8, size)
    struct.pack_into("<h", content, 254, 0)
    if compress:
        path = tmp_path / "odd.nii.gz"
    path.write_bytes(gzip.compress(bytes(content)) if compress else bytes(content))
    refused("absurd-spacing", path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("value", [0, np.nan])
def test_invalid_transform_is_refused(tmp_path, value, capfd):
    path = save_nifti(tmp_path / "odd.nii", ramp())
    content = bytearray(path.read_bytes())
    struct.pack_into("<12f", content, 280, *[value] * 12)
    path.write_bytes(bytes(content))
    refused("absurd-spacing", path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("column", "code"), [(1, "absurd-spacing"), (3, "image-place-not-finite")])
def test_non_finite_matrix_is_not_called_transposed(column, code):
    affine = np.eye(4)
    # The result of a multiplication by another matrix, such as a transform: 0 times NaN is NaN.
    affine[:, column] = np.nan
    volume = Volume(ramp(), Grid(ramp().shape, affine), "odd")
    with pytest.raises(UserError) as caught:
        check_volume(volume)
    assert caught.value.code == code


def test_sheared_axes_are_refused(tmp_path, capfd):
    affine = np.eye(4)
    affine[0, 1] = 0.03
    refused("image-sheared", save_nifti(tmp_path / "sheared.nii", ramp(), affine))
    assert capfd.readouterr().err == ""


def test_arrays_without_a_file_get_same_checks():
    of = grid()
    check_volume(random_volume(of))
    with pytest.raises(UserError, match="T1 node contains complex"):
        check_volume(Volume(np.zeros(of.shape, complex), of, "T1 node"))
    with pytest.raises(UserError, match="has no voxels"):
        check_volume(Volume(np.zeros((0, 4, 4)), grid((0, 4, 4)), "T1 node"))
    with pytest.raises(UserError, match="voxel size"):
        check_volume(Volume(random_volume(of).array, Grid(of.shape, np.diag([0, 1, 1, 1])), "T1 node"))
