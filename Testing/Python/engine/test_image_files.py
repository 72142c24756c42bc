"""Reading image files: all formats, as one channel or several."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.images import Grid, Volume
from conresnet.images.files import read_channels, read_volume, write_volume
from conresnet.images.geometry import ModelSpace
from engine.image_cases import TILTED, ramp, refused, save_nifti, sitk_affine, write_with_itk
from engine.volumes import every_reordering, grid, random_volume, rotation, stored
from peak_memory import PEAK_MEMORY, REASON

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("of", [grid(), TILTED], ids=["straight", "oblique"])
def test_every_format_gives_same_voxels_and_positions(tmp_path, suffix, of):
    volume = random_volume(of)
    folder = tmp_path / "Aufnahme vom März (neu)"
    folder.mkdir()
    read = read_volume(write_with_itk(volume, folder / f"Schädel 頭 1{suffix}"))
    assert np.array_equal(read.array, volume.array)
    assert read.array.dtype == np.int16
    assert read.grid.matches(of, 1e-4)


@pytest.mark.parametrize("way", list(every_reordering())[::7])
def test_nifti_orientations_match_nibabel(tmp_path, way):
    volume = stored(random_volume(TILTED), way)
    path = save_nifti(tmp_path / "stored.nii.gz", volume.array.T, volume.grid.affine)
    read = read_volume(path)
    assert np.array_equal(read.array, volume.array)
    assert read.grid.matches(volume.grid, 1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_data_type_is_kept(tmp_path, dtype, suffix):
    volume = random_volume(grid(), dtype)
    if dtype == np.int8:
        volume.array //= 2
    read = read_volume(write_with_itk(volume, tmp_path / f"image{suffix}"))
    assert read.array.dtype == dtype
    assert np.array_equal(read.array, volume.array)


def test_nifti_slope_is_applied(tmp_path):
    path = tmp_path / "scaled.nii"
    image = nibabel.Nifti1Image(ramp(), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    stored_values = np.frombuffer(bytes(raw[352:]), "<i2").astype(np.float64)
    read = read_volume(path)
    assert read.array.dtype == np.float32
    assert np.allclose(read.array.ravel(), stored_values * 0.5 - 3)


def test_big_endian_nifti_is_read(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.save(nibabel.Nifti1Image(ramp(), np.eye(4), header), tmp_path / "big.nii")
    read = read_volume(tmp_path / "big.nii")
    assert np.array_equal(read.array.T, ramp())
    assert read.array.dtype.isnative


def test_nifti_2_is_read(tmp_path):
    nibabel.save(nibabel.Nifti2Image(ramp(), np.eye(4)), tmp_path / "two.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "two.nii.gz").array.T, ramp())


def test_nifti_transform_is_chosen_as_in_slicer(tmp_path):
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = rotation(10), (1, 2, 3)
    for name, sform, qform in [("s", 1, 0), ("q", 0, 1), ("both", 1, 1), ("scanner", 2, 1), ("neither", 0, 0)]:
        image = nibabel.Nifti1Image(ramp(), np.eye(4))
        image.set_sform(turned, sform)
        image.set_qform(np.diag([1, -1, 1, 1]), qform)
        path = tmp_path / f"{name}.nii"
        nibabel.save(image, path)
        assert np.allclose(read_volume(path).grid.affine, sitk_affine(path), atol=1e-5)


def test_result_has_grid_of_image_with_slightly_skewed_axes(tmp_path):
    """ITK would use the qform, which has no shear; its position would be a millimeter off."""
    affine = np.diag([0.5, 0.5, 3, 1.0])
    affine[0, 1] = 0.5 * np.sin(np.radians(0.9))
    image = nibabel.Nifti1Image(np.arange(60 * 200 * 5, dtype=np.int16).reshape(60, 200, 5), affine)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "image.nii")
    read = read_volume(tmp_path / "image.nii")
    write_volume(read.array, read.grid, tmp_path / "result.nii")
    assert read_volume(tmp_path / "result.nii").grid.matches(read.grid)
    result = nibabel.load(tmp_path / "result.nii")
    assert np.allclose(result.affine, affine)
    assert np.allclose(result.header.get_zooms(), (0.5, 0.5, 3), atol=0.01)


def test_nifti_with_slightly_skewed_axes_is_read_although_itk_refuses_it(tmp_path):
    affine = np.array([[1, 0.004, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(ramp(), affine)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "registered.nii")
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(tmp_path / "registered.nii"))
    read = read_volume(tmp_path / "registered.nii")
    assert np.allclose(read.grid.affine, affine)
    write_volume(read.array, read.grid, tmp_path / "result.nii")
    assert np.allclose(nibabel.load(tmp_path / "result.nii").affine, affine)
    assert np.allclose(sitk.ReadImage(str(tmp_path / "result.nii")).GetSpacing(), (1, 1, 2), atol=1e-4)


def test_all_48_orientations_of_a_nifti_head_give_bitwise_same_model_arrays(tmp_path, head_image):
    """Through the headers' float32, once as sform and once as qform."""
    head = read_volume(head_image)
    head = Volume(
        head.array[20:50, 30:62, 40:68], Grid((30, 32, 28), head.grid.affine @ np.diag([0.9, 1.3, 0.7, 1])), ""
    )
    expected = [ModelSpace(head.grid, "SLP", spacing).to_model(head) for spacing in (None, (1, 1, 1), (3, 2.1, 2.6))]
    for way in every_reordering():
        image = stored(head, way)
        for sform, qform in ((1, 0), (0, 1)):
            nifti = nibabel.Nifti1Image(image.array.T, image.grid.affine)
            nifti.set_sform(image.grid.affine, sform)
            nifti.set_qform(image.grid.affine, qform)
            nibabel.save(nifti, tmp_path / "head.nii")
            again = read_volume(tmp_path / "head.nii")
            arrays = [
                ModelSpace(again.grid, "SLP", spacing).to_model(again) for spacing in (None, (1, 1, 1), (3, 2.1, 2.6))
            ]
            assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))


def test_single_slice_is_a_volume(tmp_path):
    save_nifti(tmp_path / "slice.nii.gz", ramp((5, 6, 1)))
    assert read_volume(tmp_path / "slice.nii.gz").array.shape == (1, 6, 5)


@pytest.mark.parametrize("values", [ramp(dtype=np.float64) * 1.7e6, -ramp(dtype=np.float32) * 1e9])
def test_huge_and_negative_values_are_read(tmp_path, values):
    save_nifti(tmp_path / "huge.nii", values)
    assert np.array_equal(read_volume(tmp_path / "huge.nii").array.T, values)


def test_real_cases_are_read(hippocampus_image, head_image, ct_image):
    for path in (hippocampus_image, head_image, ct_image):
        volume = read_volume(path)
        assert volume.array.flags.c_contiguous
        assert np.array_equal(volume.array, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        assert np.allclose(volume.grid.affine, sitk_affine(path), atol=1e-4)


# Channels


def test_one_file_per_channel_in_model_order(tmp_path):
    paths = [write_with_itk(random_volume(grid(), seed=seed), tmp_path / f"{seed}.nrrd") for seed in range(3)]
    channels = read_channels(paths, ["a", "b", "c"])
    assert [channel.name for channel in channels] == [str(path) for path in paths]
    assert np.array_equal(channels[2].array, random_volume(grid(), seed=2).array)


@pytest.mark.parametrize("kind", ["nifti-4d", "nifti-5d", "nrrd-4d", "vector"])
def test_one_4d_file_is_split_into_channels(tmp_path, kind):
    values = ramp((2, 4, 5, 6))
    path = tmp_path / ("four.nii.gz" if kind.startswith("nifti") else "four.nrrd")
    if kind == "vector":
        sitk.WriteImage(sitk.GetImageFromArray(np.moveaxis(values, 0, -1), isVector=True), str(path))
    elif kind == "nrrd-4d":
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(value) for value in values]), str(path))
    else:
        save_nifti(path, values.T if kind == "nifti-4d" else values.T[:, :, :, None])
    channels = read_channels([path], ["FLAIR", "T1"])
    assert [np.array_equal(channel.array, value) for channel, value in zip(channels, values, strict=True)] == [True] * 2
    assert channels[1].name == f"{path} (T1)"
    assert channels[0].grid.shape == (4, 5, 6)


def test_wrong_number_of_files_is_refused(tmp_path):
    paths = [write_with_itk(random_volume(grid()), tmp_path / f"{name}.nrrd") for name in "ab"]
    error = refused("wrong-channel-count", *paths, channels=("FLAIR", "T1", "T1c", "T2"))
    assert error.values["given"] == 2 and error.values["wanted"] == 4
    refused("wrong-channel-count", *paths, channels=("CT",))
    refused("wrong-component-count", paths[0], channels=("FLAIR", "T1"))


def test_4d_file_with_wrong_number_of_channels_is_refused(tmp_path):
    path = save_nifti(tmp_path / "four.nii.gz", ramp((4, 5, 6, 3)))
    error = refused("wrong-component-count", path, channels=("FLAIR", "T1"))
    assert error.values["given"] == 3 and error.values["wanted"] == 2
    refused("image-4d", path)
    refused("image-4d", path, path, channels=("FLAIR", "T1"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
def test_reading_needs_little_more_memory_than_the_image(tmp_path):
    """In a separate process: the peak while a 64 MB image is read stays below three times its size."""
    save_nifti(tmp_path / "large.nii.gz", np.zeros((320, 320, 320), np.int16) + ramp((320, 1, 1)))
    code = f"""
        from conresnet.images import nifti
        from conresnet.images.files import read_volume
        before = {PEAK_MEMORY}
        read_volume({str(tmp_path / "large.nii.gz")!r})
        print(({PEAK_MEMORY} - before) / 2**20)
    """
    folder = Path(sys.modules["conresnet"].__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert float(finished.stdout) < 190, finished.stderr


@pytest.mark.parametrize("suffix", [".gipl", ".gipl.gz", ".vtk", ".mrc"])
def test_formats_that_itk_does_not_check_are_refused(tmp_path, suffix):
    path = write_with_itk(random_volume(grid()), tmp_path / f"image{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused("image-unchecked-format", path)


def test_nrrd_file_without_space_gets_a_warning(tmp_path):
    path = write_with_itk(random_volume(grid()), tmp_path / "image.nrrd")
    assert read_volume(path).warnings == ()
    before = path.read_bytes()
    path.write_bytes(before.replace(b"space: left-posterior-superior\n", b"space dimension: 3\n"))
    assert path.read_bytes() != before
    (warning,) = read_volume(path).warnings
    assert "does not store the patient's orientation" in warning
