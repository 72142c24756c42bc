"""NIfTI headers that are incomplete, contradictory or impossible, and file names that do not match the content."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conresnet.images.files import read_grid, read_volume, write_volume
from engine.image_cases import TILTED, ramp, refused, sitk_affine
from engine.volumes import rotation
from peak_memory import PEAK_MEMORY, REASON

SHAPE = (4, 5, 6)


def patched(path: Path, *changes, kind=nibabel.Nifti1Image) -> Path:
    """A NIfTI file whose header is overwritten at (offset, struct format, values...)."""
    image = kind(ramp(SHAPE), np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.eye(4), 1)
    nibabel.save(image, path.with_name("source.nii"))
    content = bytearray(path.with_name("source.nii").read_bytes())
    path.with_name("source.nii").unlink()
    for offset, form, *values in changes:
        struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def two_transforms(path: Path, qform: np.ndarray, sform: np.ndarray, codes=(1, 2)) -> Path:
    image = nibabel.Nifti1Image(ramp(SHAPE), np.eye(4))
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    nibabel.save(image, path)
    return path


def moved(degrees: float, shift=(0.0, 0, 0), spacing=1.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(degrees) * spacing, shift
    return matrix


# Position of an image


def test_image_without_orientation_gets_a_warning(tmp_path):
    read = read_volume(two_transforms(tmp_path / "none.nii", np.eye(4), np.eye(4), (0, 0)))
    (warning,) = read.warnings
    assert "does not store the patient's orientation" in warning and "none.nii" in warning
    assert np.allclose(read.grid.affine, sitk_affine(tmp_path / "none.nii"))


@pytest.mark.parametrize("codes", [(1, 2), (1, 1), (2, 4), (3, 3)])
def test_transforms_that_contradict_each_other_get_a_warning(tmp_path, codes):
    path = two_transforms(tmp_path / "two.nii", moved(0), moved(10, (12, -20, 25)), codes)
    read = read_volume(path)
    (warning,) = read.warnings
    taken = "sform" if codes[1] == 1 else "qform"
    assert "contradicts itself" in warning and f"the {taken} was used" in warning
    assert np.allclose(read.grid.affine, sitk_affine(path), atol=1e-5)


def test_voxel_size_that_contradicts_the_sform_gets_a_warning(tmp_path):
    path = patched(tmp_path / "size.nii", (80, "<f", 3.0))
    assert "contradicts itself" in read_volume(path).warnings[0]


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (1, 2), (4, 3)])
def test_transforms_that_differ_by_rounding_get_no_warning(tmp_path, codes):
    place = moved(13.7, (1.23456, -20.7, 33.3), 0.9)
    assert read_volume(two_transforms(tmp_path / "same.nii", place, place, codes)).warnings == ()


places = st.builds(
    moved, st.floats(-180, 180), st.tuples(*[st.floats(-200, 200, width=32)] * 3), st.sampled_from([0.5, 1.0, 2.5])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places, places, st.sampled_from([(1, 1), (1, 2), (2, 1), (0, 1), (0, 2), (1, 0), (4, 2), (0, 0)]), st.booleans())
def test_position_of_every_image_matches_itk(tmp_path, qform, sform, codes, same):
    path = two_transforms(tmp_path / "any.nii", sform if same else qform, sform, codes)
    # The voxel size is that of the qform, which nibabel writes to pixdim last, even without a code.
    assert np.allclose(read_volume(path).grid.affine, sitk_affine(path), atol=2e-3)
    assert np.array_equal(read_grid(path).affine, read_volume(path).grid.affine)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("unit", "size"), [("meter", 0.001), ("micron", 1000.0), ("mm", 1.0), ("unknown", 1.0)])
def test_units_of_length_are_converted(tmp_path, kind, unit, size):
    image = kind(ramp(SHAPE), np.diag([size, size, size, 1]))
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "unit.nii")
    read = read_volume(tmp_path / "unit.nii")
    assert np.allclose(read.grid.spacing, 1) and read.warnings == ()


@pytest.mark.parametrize("name", ["result.nii", "result.nii.gz"])
@pytest.mark.parametrize("codes", [(1, 4), (0, 2), (2, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_result_keeps_transforms_of_its_image(tmp_path, codes, name, kind):
    image = kind(ramp(SHAPE), np.eye(4))
    image.set_qform(moved(20, (3, 4, 5), 0.7), codes[0])
    image.set_sform(moved(30, (7, 8, 9), 0.7), codes[1])
    image.header.set_xyzt_units("micron" if codes == (2, 0) else "mm")
    nibabel.save(image, tmp_path / "image.nii")
    read = read_volume(tmp_path / "image.nii") if codes != (2, 0) else None
    if read is None:  # 0.7 micrometer voxels can be written, but not segmented
        from conresnet.images.files import read_image

        grid = read_image(tmp_path / "image.nii").grid
    else:
        grid = read.grid
    write_volume(np.zeros(SHAPE[::-1], np.uint8), grid, tmp_path / name)
    one, other = nibabel.load(tmp_path / "image.nii"), nibabel.load(tmp_path / name)
    for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_z", "xyzt_units"):
        assert np.allclose(one.header[field], other.header[field]), field
    assert np.allclose(one.header["pixdim"][:4], other.header["pixdim"][:4])
    assert np.allclose(one.affine, other.affine)


def test_maps_with_several_components_keep_transforms(tmp_path):
    image = two_transforms(tmp_path / "image.nii", moved(20, (3, 4, 5)), moved(30), (1, 4))
    grid = read_volume(image).grid
    write_volume(np.zeros((2, *SHAPE[::-1]), np.float32), grid, tmp_path / "maps.nii.gz")
    maps = nibabel.load(tmp_path / "maps.nii.gz")
    assert maps.shape == (*SHAPE, 2)
    assert np.allclose(maps.get_sform(), moved(30), atol=1e-5) and int(maps.header["sform_code"]) == 4


def test_results_for_other_formats_have_qform_and_sform(tmp_path):
    write_volume(np.zeros(TILTED.shape, np.uint8), TILTED, tmp_path / "a.nii")
    result = nibabel.load(tmp_path / "a.nii")
    assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (1, 1)


# File names


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.gz", "a.img", "a.dcm", "a.nrrd", "a"])
def test_file_type_is_recognized_by_content(tmp_path, name, compress):
    content = patched(tmp_path / "image.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if compress else content)
    assert np.array_equal(read_volume(tmp_path / name).array.T, ramp(SHAPE))


# Header fields


@pytest.mark.parametrize("offset", [0.0, 348.0, -5.0])
def test_voxel_offset_inside_header_is_refused(tmp_path, offset):
    assert np.array_equal(read_volume(patched(tmp_path / "a.nii", (108, "<f", offset))).array.T, ramp(SHAPE))


def test_voxels_after_an_extension_are_read(tmp_path):
    image = nibabel.Nifti1Image(ramp(SHAPE), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a comment" * 10))
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array.T, ramp(SHAPE))


@pytest.mark.parametrize("offset", [float("nan"), float("inf")])
def test_voxel_offset_nan_is_refused(tmp_path, offset):
    assert refused("image-header", patched(tmp_path / "a.nii", (108, "<f", offset))).values["field"] == "vox_offset"


@pytest.mark.parametrize(("slope", "warns"), [(1.0, True), (2.0, True), (0.0, False), (float("nan"), False)])
def test_intercept_nan_is_ignored(tmp_path, slope, warns):
    read = read_volume(patched(tmp_path / "a.nii", (112, "<2f", slope, float("nan"))))
    assert np.array_equal(read.array.T, ramp(SHAPE) * (slope if warns else 1))
    assert len(read.warnings) == warns and (not warns or "scl_inter" in read.warnings[0])


@pytest.mark.parametrize("dimensions", [4, 5, 7])
def test_size_0_after_the_third_dimension_means_one_image(tmp_path, dimensions):
    changes = [(40, "<h", dimensions), *((48 + 2 * place, "<h", 0) for place in range(dimensions - 3))]
    assert np.array_equal(read_volume(patched(tmp_path / "a.nii", *changes)).array.T, ramp(SHAPE))


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("image-header", (42, "<h", -1)),
        ("image-header", (40, "<h", 8)),
        ("image-header", (40, "<h", 0)),
        ("image-header", (40, "<h", -3)),
        ("image-empty", (44, "<h", 0)),
        ("image-truncated", (46, "<h", 7)),
        ("image-truncated", (42, "<3h", 32767, 32767, 32767)),
        ("image-truncated", (108, "<f", 1e30)),
        ("image-header", (70, "<h", 3)),
        ("image-header", (70, "<h", 1)),
        ("image-header", (70, "<h", -4)),
        ("image-color", (70, "<h", 128)),
        ("image-complex", (70, "<h", 1792)),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_impossible_fields_are_refused(tmp_path, code, change, name, capfd):
    refused(code, patched(tmp_path / name, change))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [2**33, 2**62, -(2**40)])
def test_impossible_nifti_2_sizes_are_refused(tmp_path, size):
    path = patched(tmp_path / "a.nii", (24, "<q", size), kind=nibabel.Nifti2Image)
    refused("image-header" if size < 0 else "image-truncated", path)


def test_image_larger_than_memory_is_refused_before_reading(tmp_path, monkeypatch):
    from conresnet.images import checks

    monkeypatch.setattr(checks, "free_memory", lambda: 100)
    error = refused("image-beyond-memory", patched(tmp_path / "a.nii"))
    assert error.values["size"] == "4 x 5 x 6"


def test_free_memory_is_plausible():
    from conresnet.images.checks import free_memory

    assert 2**26 < free_memory() < 2**50


@pytest.mark.parametrize(("total", "free"), [(2**35, 2**35), (None, 2**62)], ids=["all of it", "no limit"])
def test_free_memory_falls_back_to_total_memory(monkeypatch, total, free):
    from conresnet.images import checks

    monkeypatch.setattr(checks, "available_memory", lambda: None)
    monkeypatch.setattr(checks, "total_memory", lambda: total)
    assert checks.free_memory() == free


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=REASON)
def test_gzip_bomb_is_not_decompressed_into_memory(tmp_path):
    """In a separate process: 1.1 MB of gzip after the image are 1 GB of zeros."""
    path = patched(tmp_path / "image.nii")
    (tmp_path / "more.nii.gz").write_bytes(gzip.compress(path.read_bytes()) + gzip.compress(bytes(2**24)) * 60)
    code = f"""
        from conresnet.images.files import read_volume
        read_volume({str(path)!r})
        before = {PEAK_MEMORY}
        read_volume({str(tmp_path / "more.nii.gz")!r})
        print(({PEAK_MEMORY} - before) / 2**20)
    """
    folder = Path(sys.modules["conresnet"].__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert float(finished.stdout) < 50, finished.stderr


def test_slicer_reads_these_images_too(tmp_path):
    """ITK reads the valid images above in the same way."""
    for name, change in (("nan.nii", (112, "<2f", 1.0, float("nan"))), ("zero.nii", (40, "<h", 4))):
        path = patched(tmp_path / name, change)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).squeeze(), read_volume(path).array)
