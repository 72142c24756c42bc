"""DICOM: multi-frame files get the same checks as single slices, and objects that are not images are skipped."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from conresnet.errors import UserError
from conresnet.images.dicom_headers import read_header
from conresnet.images.files import read_volume
from engine.test_dicom_series import PIXELS, refused, write_series
from engine.volumes import rotation

FRAMES = PIXELS - PIXELS.min()


def numbers(values) -> list[float]:
    return np.round(np.asarray(values, float), 6).tolist()


def new_object(kind: str, series: str, study: str, modality="MR") -> pydicom.dataset.FileDataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, study, modality
    data.SeriesNumber, data.SeriesDescription = 1, "made here"
    return data


def write_frames(
    path: Path,
    heights: Sequence[float] = range(0, 12, 2),
    order: Sequence[int] | None = None,
    axes: np.ndarray | None = None,
    leave_out: Sequence[str] = (),
    slopes: Sequence[float] | None = None,
    sideways: Sequence[float] | None = None,
    series: str | None = None,
) -> Path:
    """Write one Enhanced MR file; the n-th stored frame shows PIXELS[order[n]]."""
    order = list(range(len(heights))) if order is None else order
    axes = np.eye(3) if axes is None else axes
    data = new_object(EnhancedMRImageStorage, series or generate_uid(), generate_uid())
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.Rows, data.Columns, data.NumberOfFrames = *PIXELS.shape[1:], len(order)
    data.PixelData = np.stack([FRAMES[index % len(FRAMES)] for index in order]).astype(np.uint16).tobytes()
    shared, measures, orientation = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 1.2], 2
    orientation.ImageOrientationPatient = numbers(axes[:, :2].T.ravel())
    if "measures" not in leave_out:
        shared.PixelMeasuresSequence = [measures]
    if "orientation" not in leave_out:
        shared.PlaneOrientationSequence = [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place, index in enumerate(order):
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        down = 0 if sideways is None else sideways[index]
        position.ImagePositionPatient = numbers(axes @ [10, 20 + down, 30 + heights[index]])
        if "positions" not in leave_out:
            frame.PlanePositionSequence = [position]
        if slopes:
            scale = pydicom.Dataset()
            scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = slopes[place], 0, "US"
            frame.PixelValueTransformationSequence = [scale]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("axes", [np.eye(3), rotation(25) @ rotation(10, axis=0)], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", [None, [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5]], ids=["up", "down", "interleaved"])
def test_frames_are_sorted_by_their_positions(tmp_path, order, axes, as_folder):
    path = write_frames(tmp_path / "mr" / "frames.dcm", order=order, axes=axes)
    volume = read_volume(path.parent if as_folder else path)
    assert np.array_equal(volume.array, FRAMES)
    lps = axes @ [10 + 1.2 * 4, 20 + 0.8 * 3, 30 + 2 * 5]
    assert np.allclose(volume.grid.to_ras([5, 3, 4]), lps * [-1, -1, 1], atol=1e-3)


def test_missing_frame_is_refused(tmp_path):
    refused(write_frames(tmp_path / "a.dcm", order=[0, 1, 3, 4, 5]), "dicom-uneven")


def test_frames_from_two_time_points_are_refused(tmp_path):
    refused(write_frames(tmp_path / "a.dcm", order=[0, 1, 2, 3, 4, 5] * 2), "dicom-same-place")


def test_two_multiframe_files_at_same_position_are_refused(tmp_path):
    uid = generate_uid()
    write_frames(tmp_path / "a" / "1.dcm", series=uid)
    write_frames(tmp_path / "a" / "2.dcm", series=uid)
    refused(tmp_path / "a", "dicom-same-place")


def test_frames_in_two_files_become_one_volume(tmp_path):
    uid = generate_uid()
    write_frames(tmp_path / "a" / "1.dcm", order=[5, 0, 3], series=uid)
    write_frames(tmp_path / "a" / "2.dcm", order=[1, 4, 2], series=uid)
    assert np.array_equal(read_volume(tmp_path / "a").array, FRAMES)


def test_tilted_frames_are_refused(tmp_path):
    sideways = 2 * np.arange(6) * np.tan(np.radians(15))
    assert "15.00 degrees" in refused(write_frames(tmp_path / "a.dcm", sideways=sideways), "dicom-tilt")


def test_frames_beside_each_other_are_refused(tmp_path):
    refused(write_frames(tmp_path / "a.dcm", sideways=[0, 0, 3, 3, 0, 0]), "dicom-sideways")


@pytest.mark.parametrize(
    ("part", "code"),
    [("positions", "dicom-no-position"), ("orientation", "dicom-no-position"), ("measures", "dicom-no-spacing")],
)
@pytest.mark.parametrize("as_folder", [True, False])
def test_frames_without_geometry_are_refused(tmp_path, part, code, as_folder):
    path = write_frames(tmp_path / "mr" / "a.dcm", leave_out=[part])
    assert "a.dcm" in refused_file(path.parent if as_folder else path, code)


def refused_file(path: Path, code: str) -> str:
    """Like ``refused``, for messages that name a file in the folder."""
    return refused(path, code)


def test_frames_with_different_rescaling_are_refused(tmp_path):
    refused(write_frames(tmp_path / "a.dcm", slopes=[1, 1, 1, 2, 1, 1]), "dicom-mixed-scale")


def test_frames_with_same_rescaling_are_scaled(tmp_path):
    path = write_frames(tmp_path / "a.dcm", slopes=[0.5] * 6, order=[5, 4, 3, 2, 1, 0])
    assert np.array_equal(read_volume(path).array, FRAMES * np.float32(0.5))


def test_damaged_transfer_syntax_does_not_end_the_program(tmp_path):
    path = write_frames(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.2.1\0"))
    with pytest.raises(UserError):
        read_volume(path)


def test_damaged_value_inside_a_sequence_is_refused(tmp_path):
    path = write_frames(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00DW", 1))
    assert "a.dcm" in refused(path, "image-damaged")


def test_file_with_fewer_frames_than_declared_is_refused(tmp_path):
    path = write_frames(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x08\x00IS\x02\x006 ", b"\x28\x00\x08\x00IS\x02\x0080"))
    refused(path, "image-truncated")
    cut = write_frames(tmp_path / "cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-100])
    refused(cut, "image-truncated")


def write_compressed(
    path: Path, frames: int = 6, syntax: str = pydicom.uid.RLELossless, side: int | None = None
) -> Path:
    """Frames of random bytes in a compressed file; with ``side``, the header claims that many rows and columns."""
    data = pydicom.dcmread(write_frames(path))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\1" * 64] * frames)
    data["PixelData"].VR = "OB"
    if side:
        data.Rows = data.Columns = side
    data.save_as(path)
    return path


def test_compressed_frames_are_counted(tmp_path):
    refused(write_compressed(tmp_path / "a.dcm", frames=4), "image-truncated")


def test_compressed_file_that_ends_in_zeros_is_refused(tmp_path):
    """An interrupted transfer may have reserved the space: GDCM then decodes the beginning of a JPEG image."""
    path = write_compressed(tmp_path / "a.dcm", syntax=pydicom.uid.JPEGLosslessSV1)
    content = path.read_bytes()
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0") and read_header(path) is not None
    path.write_bytes(content[:-40] + bytes(40))
    refused(path, "image-truncated")


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_fragment_of_odd_length_is_accepted(tmp_path, padding):
    path = write_compressed(tmp_path / "a.dcm")
    content, end = path.read_bytes(), 8 + 64
    assert content[-end - 8 : -end] == b"\xfe\xff\x00\xe0\x40\0\0\0"
    path.write_bytes(content[: -end - 4] + b"\x3f\0\0\0" + content[-end:-9] + padding + content[-8:])
    assert read_header(path) is not None


def test_frames_larger_than_memory_are_refused_before_reading(tmp_path, monkeypatch):
    """Compressed pixels may claim any size. Images are read in another process, so the check is called directly."""
    path = write_compressed(tmp_path / "a.dcm", side=20000)
    monkeypatch.setattr("conresnet.images.checks.free_memory", lambda: 4 * 10**9)
    with pytest.raises(UserError) as raised:
        read_header(path)
    assert raised.value.code == "image-beyond-memory" and raised.value.values["gigabytes"] == "4.8"


# Single slices


@pytest.mark.parametrize("changes", [{}, {"ImagerPixelSpacing": [[0.8, 1.2]] * 6}])
def test_series_without_pixel_spacing_is_refused(tmp_path, changes):
    write_series(tmp_path / "ct", PixelSpacing=None, **changes)
    refused(tmp_path / "ct", "dicom-no-spacing")


@pytest.mark.parametrize("spacing", [[0, 1], [-1, 1], [1]])
def test_impossible_pixel_spacing_is_refused(tmp_path, spacing):
    write_series(tmp_path / "ct", PixelSpacing=[spacing] * 6)
    refused(tmp_path / "ct", "dicom-no-spacing")


def test_single_slice_without_thickness_is_refused(tmp_path):
    write_series(tmp_path / "ct", heights=[0], SliceThickness=None)
    refused(tmp_path / "ct", "dicom-no-spacing")


@pytest.mark.parametrize("orientation", [None, [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 2, 0]])
def test_impossible_orientation_is_refused(tmp_path, orientation):
    write_series(tmp_path / "ct", ImageOrientationPatient=orientation and [orientation] * 6)
    refused(tmp_path / "ct", "dicom-no-position")


def test_single_file_of_a_series_is_refused_and_its_folder_named(tmp_path):
    write_series(tmp_path / "ct")
    error = refused(sorted((tmp_path / "ct").iterdir())[2], "dicom-one-slice")
    assert f"choose its folder, {tmp_path / 'ct'}" in error


def test_slice_among_slices_of_other_series_is_read(tmp_path):
    write_series(tmp_path / "ct", heights=[0], description="a")
    write_series(tmp_path / "ct", heights=[0, 2], description="b")
    assert read_volume(next((tmp_path / "ct").glob("a-*"))).array.shape == (1, 7, 9)


# Other objects next to a scan


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", "SR"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "KO"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
        ("1.2.840.10008.5.1.4.1.1.66", "OT"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"),
    ],
)
def test_objects_without_an_image_are_skipped(tmp_path, kind, modality):
    write_series(tmp_path / "ct")
    new_object(kind, generate_uid(), generate_uid(), modality).save_as(tmp_path / "ct" / "a", enforce_file_format=True)
    assert read_volume(tmp_path / "ct").array.shape == PIXELS.shape


def test_segmentation_next_to_scan_is_skipped(tmp_path):
    write_series(tmp_path / "ct")
    path = write_frames(tmp_path / "ct" / "seg.dcm")
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    data.save_as(path)
    assert read_volume(tmp_path / "ct").array.shape == PIXELS.shape


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize(
    ("uid", "kind"),
    [("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation Storage"), ("1.2.840.10008.5.1.4.1.1.481.2", "RT Dose Storage")],
)
def test_derived_images_are_not_used_as_scans(tmp_path, uid, kind, as_folder):
    path = write_frames(tmp_path / "made" / "a.dcm")
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid
    data.save_as(path)
    assert kind in refused(path.parent if as_folder else path, "dicom-not-scan")


def test_object_without_pixels_is_named(tmp_path):
    data = new_object("1.2.840.10008.5.1.4.1.1.481.3", generate_uid(), generate_uid(), "RTSTRUCT")
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "RT Structure Set Storage" in refused(tmp_path / "a.dcm", "dicom-not-scan")


def test_image_that_lost_its_pixels_is_refused(tmp_path):
    write_series(tmp_path / "ct")
    last = next(tmp_path.glob("ct/*-5.dcm"))
    for length in (400, 700):
        content = last.read_bytes()
        last.write_bytes(content[:length])
        assert last.name in refused(tmp_path / "ct", "image-damaged")
        last.write_bytes(content)


@pytest.mark.parametrize(("value", "code"), [(65535, "image-truncated"), (0, "image-damaged")])
@pytest.mark.parametrize("tag", [b"\x28\0\2\0US\2\0", b"\x28\0\x10\0US\2\0", b"\x28\0\0\1US\2\0"])
def test_slice_with_an_impossible_size_is_refused(tmp_path, tag, value, code):
    write_series(tmp_path / "ct")
    last = next(tmp_path.glob("ct/*-5.dcm"))
    content = bytearray(last.read_bytes())
    struct.pack_into("<H", content, content.index(tag) + 8, value)
    last.write_bytes(content)
    assert last.name in refused(tmp_path / "ct", code)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"\x28\0\2\0US\2\0", b"\x28\0\2\0Uf\2\0"),  # NotImplementedError
        (b"\x28\0\x10\0US\2\0", b"\x28\0\x10\0US\1\0"),  # BytesLengthException
        (b"\x28\0\0\1US\2\0", b"\x28\0\0\1USZ\0"),  # TypeError
    ],
)
def test_header_that_makes_library_fail_is_refused(tmp_path, good, bad):
    write_series(tmp_path / "ct")
    last = next(tmp_path.glob("ct/*-5.dcm"))
    assert last.read_bytes().count(good) == 1
    last.write_bytes(last.read_bytes().replace(good, bad))
    assert last.name in refused(tmp_path / "ct", "image-damaged")


@pytest.mark.skipif(os.name == "nt", reason="permissions are others there")
def test_slice_without_read_permission_is_refused_and_named(tmp_path, monkeypatch):
    write_series(tmp_path / "ct")
    last = next(tmp_path.glob("ct/*-5.dcm"))
    last.chmod(0)
    if os.geteuid() == 0:  # root may read everything, so simulate the error that others get
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != last)
    assert last.name in refused(tmp_path / "ct", "cannot-read")
    last.chmod(0o600)


def test_dicomdir_next_to_slices_is_ignored(tmp_path):
    write_series(tmp_path / "ct")
    directory = new_object("1.2.840.10008.1.3.10", generate_uid(), generate_uid())
    directory.save_as(tmp_path / "ct" / "DICOMDIR", enforce_file_format=True)
    assert read_volume(tmp_path / "ct").array.shape == PIXELS.shape


@pytest.mark.parametrize("depth", ["inner", "patient/study/inner"])
def test_series_in_subfolder_is_suggested(tmp_path, depth):
    (tmp_path / "export" / "aaa").mkdir(parents=True)
    (tmp_path / "export" / depth).parent.mkdir(parents=True, exist_ok=True)
    write_series(tmp_path / "export" / depth)
    assert f"subfolder {depth}" in refused(tmp_path / "export", "dicom-in-subfolder")


def test_old_files_without_a_preamble_are_read(tmp_path):
    write_series(tmp_path / "ct", heights=[0, 2, 4])
    for file in (tmp_path / "ct").iterdir():
        bare = pydicom.Dataset()
        bare.update(pydicom.dcmread(file))
        bare.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert file.read_bytes()[:2] == b"\x08\0"
    assert read_volume(tmp_path / "ct").array.shape == (3, 7, 9)


def test_slices_without_series_number_are_one_series(tmp_path):
    write_series(tmp_path / "ct", SeriesDescription=None, SeriesNumber=None)
    assert read_volume(tmp_path / "ct").array.shape == PIXELS.shape


def test_missing_pixels_are_recognized_by_storage_class(tmp_path):
    new_object(CTImageStorage, generate_uid(), generate_uid()).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path, "image-damaged")
