"""Files in and out: every kind that is read, and one sentence for every kind that is not."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.geometry import ModelSpace
from conresnet.grid import Grid, Volume
from conresnet.image_checks import check_volume
from conresnet.image_files import read_channels, read_volume, write_volume
from engine.volumes import every_reordering, grid, random_volume, rotation, stored

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"]
TILTED = grid((7, 8, 9), (0.7, 1.1, 2.5), (-31.5, 12.25, 100), rotation(20) @ rotation(-7, axis=0))


def refused(code: str, *paths: Path, channels=("image",)) -> UserError:
    """Reading raises a UserError of this code with one sentence that names the first file."""
    with pytest.raises(UserError) as caught:
        read_channels(list(paths), list(channels))
    message = caught.value.message
    assert caught.value.code == code
    assert str(paths[0]) in message
    assert message.endswith(".") and "\n" not in message and "Traceback" not in message
    return caught.value


def write_with_itk(volume: Volume, path: Path) -> Path:
    image = sitk.GetImageFromArray(volume.array)
    lps = np.diag([-1, -1, 1, 1]) @ volume.grid.affine
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.grid.spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def save_nifti(path: Path, array: np.ndarray, affine=None, **header) -> Path:
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def ramp(shape=(4, 5, 6), dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# What is read


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("of", [grid(), TILTED], ids=["straight", "oblique"])
def test_every_format_gives_the_same_voxels_in_the_same_places(tmp_path, suffix, of):
    volume = random_volume(of)
    folder = tmp_path / "Aufnahme vom März (neu)"
    folder.mkdir()
    read = read_volume(write_with_itk(volume, folder / f"Schädel 頭 1{suffix}"))
    assert np.array_equal(read.array, volume.array)
    assert read.array.dtype == np.int16
    assert read.grid.matches(of, 1e-4)


@pytest.mark.parametrize("way", list(every_reordering())[::7])
def test_nifti_storages_are_read_as_nibabel_places_them(tmp_path, way):
    volume = stored(random_volume(TILTED), way)
    path = save_nifti(tmp_path / "stored.nii.gz", volume.array.T, volume.grid.affine)
    read = read_volume(path)
    assert np.array_equal(read.array, volume.array)
    assert read.grid.matches(volume.grid, 1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_the_stored_type_is_kept(tmp_path, dtype, suffix):
    volume = random_volume(grid(), dtype)
    if dtype == np.int8:
        volume.array //= 2
    read = read_volume(write_with_itk(volume, tmp_path / f"image{suffix}"))
    assert read.array.dtype == dtype
    assert np.array_equal(read.array, volume.array)


def test_niftis_slope_is_applied(tmp_path):
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


def test_of_two_nifti_transforms_the_one_slicer_uses_is_taken(tmp_path):
    for name, sform, qform in [("s", 1, 0), ("q", 0, 1), ("both", 1, 1), ("scanner", 2, 1), ("neither", 0, 0)]:
        image = nibabel.Nifti1Image(ramp(), np.eye(4))
        image.set_sform(np.diag([-1, 1, 1, 1]), sform)
        image.set_qform(np.diag([1, -1, 1, 1]), qform)
        path = tmp_path / f"{name}.nii"
        nibabel.save(image, path)
        assert np.allclose(read_volume(path).grid.affine, sitk_affine(path))


def sitk_affine(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    corners = [image.TransformIndexToPhysicalPoint(index) for index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    origin, *ends = np.array(corners) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.column_stack([end - origin for end in ends]), origin
    return affine


def test_a_nifti_whose_axes_are_almost_at_right_angles_is_read_where_itk_refuses_it(tmp_path):
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


def test_all_48_storages_of_a_head_in_nifti_files_give_bitwise_the_same_model_arrays(tmp_path, head_image):
    """Through the headers' float32, once as sform and once as qform."""
    head = read_volume(head_image)
    head = Volume(
        head.array[20:50, 30:62, 40:68], Grid((30, 32, 28), head.grid.affine @ np.diag([0.9, 1.3, 0.7, 1])), ""
    )
    expected = [
        ModelSpace.fit(head.grid, "SLP", spacing).to_model(head) for spacing in (None, (1, 1, 1), (3, 2.1, 2.6))
    ]
    for way in every_reordering():
        image = stored(head, way)
        for sform, qform in ((1, 0), (0, 1)):
            nifti = nibabel.Nifti1Image(image.array.T, image.grid.affine)
            nifti.set_sform(image.grid.affine, sform)
            nifti.set_qform(image.grid.affine, qform)
            nibabel.save(nifti, tmp_path / "head.nii")
            again = read_volume(tmp_path / "head.nii")
            arrays = [
                ModelSpace.fit(again.grid, "SLP", spacing).to_model(again)
                for spacing in (None, (1, 1, 1), (3, 2.1, 2.6))
            ]
            assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))


def test_one_slice_is_a_volume(tmp_path):
    save_nifti(tmp_path / "slice.nii.gz", ramp((5, 6, 1)))
    assert read_volume(tmp_path / "slice.nii.gz").array.shape == (1, 6, 5)


@pytest.mark.parametrize("values", [ramp(dtype=np.float64) * 1.7e6, -ramp(dtype=np.float32) * 1e9])
def test_huge_and_negative_values_are_read(tmp_path, values):
    save_nifti(tmp_path / "huge.nii", values)
    assert np.array_equal(read_volume(tmp_path / "huge.nii").array.T, values)


def test_the_real_cases_are_read(hippocampus_image, head_image, ct_image):
    for path in (hippocampus_image, head_image, ct_image):
        volume = read_volume(path)
        assert volume.array.flags.c_contiguous
        assert np.array_equal(volume.array, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
        assert np.allclose(volume.grid.affine, sitk_affine(path), atol=1e-4)


# Channels


def test_one_file_a_channel_in_the_models_order(tmp_path):
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


def test_the_wrong_number_of_files_is_refused(tmp_path):
    paths = [write_with_itk(random_volume(grid()), tmp_path / f"{name}.nrrd") for name in "ab"]
    error = refused("wrong-channel-count", *paths, channels=("FLAIR", "T1", "T1c", "T2"))
    assert "2 images" in error.message and "takes 4 (FLAIR, T1, T1c, T2)" in error.message
    refused("wrong-channel-count", *paths, channels=("CT",))
    refused("wrong-component-count", paths[0], channels=("FLAIR", "T1"))


def test_a_4d_file_of_another_number_of_channels_is_refused(tmp_path):
    path = save_nifti(tmp_path / "four.nii.gz", ramp((4, 5, 6, 3)))
    error = refused("wrong-component-count", path, channels=("FLAIR", "T1"))
    assert "holds 3 images" in error.message and "2 channels (FLAIR, T1)" in error.message
    refused("image-4d", path)
    refused("image-4d", path, path, channels=("FLAIR", "T1"))


# What is refused


def test_a_missing_file_is_refused(tmp_path):
    refused("image-not-found", tmp_path / "none.nii.gz")


@pytest.mark.parametrize("name", ["text.nii.gz", "text.nii", "text.nrrd", "text.txt", "text"])
@pytest.mark.parametrize("content", [b"no image at all", b""])
def test_what_is_no_image_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused("not-an-image", tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_ends_too_early_is_refused(tmp_path, suffix, capfd):
    path = write_with_itk(random_volume(grid((20, 20, 20))), tmp_path / f"cut{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused("not-an-image", path)
    assert capfd.readouterr().err == ""


def test_a_damaged_gz_file_is_refused(tmp_path):
    path = write_with_itk(random_volume(grid((20, 20, 20))), tmp_path / "damaged.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused("not-an-image", path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read_is_refused(tmp_path):
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
    assert f"has {count} voxel" in error.message


@pytest.mark.parametrize("value", [0, 7])
def test_an_empty_or_constant_image_is_refused(tmp_path, value):
    error = refused("image-constant", save_nifti(tmp_path / "even.nii", np.full((4, 5, 6), value, np.int16)))
    assert f"all its voxels are {value}" in error.message


def test_values_beyond_any_scanner_are_refused(tmp_path):
    refused("intensity-range", save_nifti(tmp_path / "wild.nii", ramp(dtype=np.float64) * 1e200))


@pytest.mark.parametrize("size", [1e-7, 5000.0])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_an_absurd_spacing_is_refused(tmp_path, size, suffix):
    error = refused(
        "absurd-spacing", write_with_itk(random_volume(grid(spacing=(1, 1, size))), tmp_path / f"a{suffix}")
    )
    assert f"{size:g} mm" in error.message


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("compress", [False, True])
def test_an_absurd_spacing_that_the_libraries_would_hide_is_refused(tmp_path, size, compress, capfd):
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
def test_a_transform_without_sense_is_refused(tmp_path, value, capfd):
    path = save_nifti(tmp_path / "odd.nii", ramp())
    content = bytearray(path.read_bytes())
    struct.pack_into("<12f", content, 280, *[value] * 12)
    path.write_bytes(bytes(content))
    refused("absurd-spacing", path)
    assert capfd.readouterr().err == ""


def test_sheared_axes_are_refused(tmp_path, capfd):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    refused("image-sheared", save_nifti(tmp_path / "sheared.nii", ramp(), affine))
    assert capfd.readouterr().err == ""


def test_arrays_that_come_without_a_file_are_checked_alike():
    of = grid()
    check_volume(random_volume(of))
    with pytest.raises(UserError, match="T1 node holds complex"):
        check_volume(Volume(np.zeros(of.shape, complex), of, "T1 node"))
    with pytest.raises(UserError, match="has no voxels"):
        check_volume(Volume(np.zeros((0, 4, 4)), grid((0, 4, 4)), "T1 node"))
    with pytest.raises(UserError, match="voxel size"):
        check_volume(Volume(random_volume(of).array, Grid(of.shape, np.diag([0, 1, 1, 1])), "T1 node"))


# Writing


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_written_volume_reads_back_the_same(tmp_path, suffix, dtype):
    for way in list(every_reordering())[::5]:
        volume = stored(random_volume(TILTED, dtype), way)
        path = tmp_path / f"Ergebnis für R{suffix}"
        write_volume(volume.array, volume.grid, path)
        assert np.allclose(sitk_affine(path), volume.grid.affine, atol=1e-4)
        assert np.allclose(nibabel.load(path).affine, volume.grid.affine, atol=1e-4)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), volume.array)
        assert read_volume(path).array.dtype == dtype
    assert [entry.name for entry in tmp_path.iterdir()] == [f"Ergebnis für R{suffix}"]


def test_components_become_the_last_axis_of_a_4d_file(tmp_path):
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


def test_an_unwritable_place_is_refused_and_left_clean(tmp_path):
    volume = random_volume(grid())
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "none" / "r.nii.gz", tmp_path / "file" / "r.nii.gz", tmp_path / "r.xyz"):
        with pytest.raises(UserError) as caught:
            write_volume(volume.array, volume.grid, path)
        assert caught.value.code == "cannot-write"
        assert str(path) in caught.value.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write_to_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied"):
        write_volume(ramp(), grid((4, 5, 6)), tmp_path / "r.nii.gz")
    tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, suffix):
    """In a process of its own, whose files may grow to 20 kB."""
    (tmp_path / f"result{suffix}").write_bytes(b"the last result")
    code = f"""
        import resource, sys
        import numpy as np
        from conresnet.errors import UserError
        from conresnet.grid import Grid
        from conresnet.image_files import write_volume
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
    assert finished.stderr.startswith("disk-full: There is no room left")
    assert finished.stderr.count("\n") == 1
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [
        (f"result{suffix}", b"the last result")
    ]


def test_reading_holds_little_more_than_the_image(tmp_path):
    """In a process of its own: the peak while a 64 MB image is read stays below three times that."""
    save_nifti(tmp_path / "large.nii.gz", np.zeros((320, 320, 320), np.int16) + ramp((320, 1, 1)))
    code = f"""
        import resource
        from conresnet import nifti_files
        from conresnet.image_files import read_volume
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read_volume({str(tmp_path / "large.nii.gz")!r})
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    folder = Path(sys.modules["conresnet"].__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert float(finished.stdout) < 190, finished.stderr
