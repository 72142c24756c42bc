"""Images in two files, .hdr and .img, as NIfTI and as Analyze 7.5, whose header is the same without a magic number."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conresnet.errors import UserError
from conresnet.images.files import read_grid, read_volume, write_volume
from engine.image_cases import ramp, refused, save_nifti, sitk_affine

VOXELS = ramp((6, 5, 4))
KINDS = ["Nifti1Pair", "Nifti2Pair", "AnalyzeImage", "Spm99AnalyzeImage"]


def save_pair(folder: Path, kind: str = "Nifti1Pair", code: int = 1, affine: np.ndarray | None = None) -> Path:
    image = getattr(nibabel, kind)(VOXELS.T, np.diag([-1.0, 2, 3, 1]) if affine is None else affine)
    if kind.startswith("Nifti"):
        image.set_sform(image.affine, code)
        image.set_qform(image.affine, code)
    nibabel.save(image, folder / "a.hdr")
    return folder / "a.hdr"


def edited(path: Path, place: int, form: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [0, 1])
def test_pair_is_read_by_either_name_as_by_itk(tmp_path, kind, code):
    path = save_pair(tmp_path, kind, code)
    if "Analyze" in kind:
        # Analyze stores other fields where NIfTI has scaling, units and codes.
        edited(edited(path, 112, "<f", 3.0), 252, "<bh", 2, 7)
    for name in ("a.hdr", "a.img"):
        read = read_volume(tmp_path / name)
        assert np.array_equal(read.array, VOXELS)
        if kind != "Nifti2Pair":  # ITK cannot read it
            assert np.array_equal(read.array, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))))
            assert np.allclose(read.grid.affine, sitk_affine(tmp_path / name))
        assert np.array_equal(read_grid(tmp_path / name).affine, read.grid.affine)
        is_placed = code and kind.startswith("Nifti")
        assert len(read.warnings) == (not is_placed) and all("orientation" in text for text in read.warnings)


def test_result_has_grid_of_pair(tmp_path):
    read = read_volume(save_pair(tmp_path))
    write_volume(read.array, read.grid, tmp_path / "result.nii.gz")
    assert np.array_equal(nibabel.load(tmp_path / "result.nii.gz").affine, nibabel.load(tmp_path / "a.hdr").affine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("header_ending", ["", ".gz"])
def test_compressed_pair_is_read_and_truncated_one_refused(tmp_path, kind, ending, header_ending):
    save_pair(tmp_path, kind)
    files = []
    for name, wanted in (("a.hdr", header_ending), ("a.img", ending)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        files.append(tmp_path / f"{name}{wanted}")
        files[-1].write_bytes(gzip.compress(content) if wanted else content)
    header, voxels = files
    assert np.array_equal(read_volume(header).array, VOXELS) and np.array_equal(read_volume(voxels).array, VOXELS)
    voxels.write_bytes(voxels.read_bytes()[: voxels.stat().st_size * 2 // 3])
    refused("image-truncated", voxels)
    voxels.write_bytes(b"")
    assert voxels.name in refused_with_other("image-truncated", header)
    voxels.unlink()
    assert "a.img" in refused("image-half", header).message


def refused_with_other(code: str, path: Path) -> str:
    """Check that the message names the file with the voxels rather than the one that was read; returns the message."""
    with pytest.raises(UserError) as caught:
        read_volume(path)
    assert caught.value.code == code
    return caught.value.message


def test_voxels_without_header_are_refused(tmp_path):
    save_pair(tmp_path).unlink()
    assert "a.hdr" in refused("image-half", tmp_path / "a.img").message


def test_other_formats_may_have_extensions_of_a_pair(tmp_path):
    save_nifti(tmp_path / "b.nii", VOXELS.T).rename(tmp_path / "b.img")
    (tmp_path / "b.hdr").write_text("ENVI\nsamples = 4\n")
    assert np.array_equal(read_volume(tmp_path / "b.img").array, VOXELS)
    refused("not-an-image", tmp_path / "b.hdr")


@pytest.mark.parametrize(
    ("place", "form", "values", "code"),
    [
        (80, "<f", [0.0], "absurd-spacing"),
        (80, "<f", [-1.0], "absurd-spacing"),
        (80, "<f", [np.nan], "absurd-spacing"),
        (280, "<4f", [1, 0.3, 0, 0], "image-sheared"),
        (280, "<f", [np.nan], "absurd-spacing"),
        (42, "<h", [9999], "image-truncated"),
    ],
)
def test_header_of_a_pair_is_checked_like_that_of_a_single_file(tmp_path, place, form, values, code):
    path = edited(save_pair(tmp_path), place, form, *values)
    # Remove the qform, so that only the sform is used.
    edited(path, 252, "<h", 0)
    if code == "image-truncated":
        refused_with_other(code, path)
    else:
        refused(code, path)


@pytest.mark.parametrize(("place", "values"), [(116, [np.nan]), (268, [40.0])])
def test_questionable_header_of_a_pair_gets_a_warning(tmp_path, place, values):
    path = save_pair(tmp_path)
    if place == 116:
        edited(path, 112, "<f", 1.0)
    (warning,) = read_volume(edited(path, place, "<f", *values)).warnings
    assert "header" in warning
