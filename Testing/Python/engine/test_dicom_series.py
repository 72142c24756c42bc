"""DICOM folders, written by pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    ParametricMapStorage,
    generate_uid,
)

from conresnet.errors import UserError
from conresnet.images.dicom_headers import subfolder_with_dicom
from conresnet.images.files import read_channels, read_volume
from engine.volumes import rotation

PIXELS = np.random.default_rng(0).integers(0, 2000, (6, 7, 9)).astype(np.int16)


def write_series(
    folder: Path,
    heights: Sequence[float] = range(0, 12, 2),
    axes: np.ndarray | None = None,
    shift: float | Sequence[float] = 0,
    description: str = "Thorax",
    **changes,
) -> None:
    """Write CT slices at ``heights`` mm along the third column of ``axes`` (LPS), each ``shift`` mm below the last one.

    ``shift`` may also be a list of offsets, one per slice; a change may be a list of values, one per slice.
    """
    down = [number * shift for number in range(len(heights))] if np.isscalar(shift) else shift
    axes = np.eye(3) if axes is None else axes
    folder.mkdir(exist_ok=True)
    series, study = generate_uid(), generate_uid()
    for number, height in enumerate(heights):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, study, "CT"
        data.SeriesDescription, data.SeriesNumber, data.InstanceNumber = description, 3, number + 1
        data.ImagePositionPatient = (axes @ [10, 20 + down[number], 30 + height]).round(6).tolist()
        data.ImageOrientationPatient = axes[:, :2].T.ravel().round(6).tolist()
        data.PixelSpacing, data.SliceThickness = [0.8, 1.2], 2
        data.Rows, data.Columns = PIXELS.shape[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1000
        data.PixelData = PIXELS[number % len(PIXELS)].tobytes()
        for key, given in changes.items():
            value = given[number] if isinstance(given, list) else given
            if value is None:
                delattr(data, key)
            else:
                setattr(data, key, value)
        # Named so that the order of names differs from the order of slices.
        data.save_as(folder / f"{description}-{(number * 5) % 7}-{number}.dcm", enforce_file_format=True)


def refused(folder: Path, code: str) -> str:
    with pytest.raises(UserError) as caught:
        read_volume(folder)
    assert caught.value.code == code
    assert str(folder) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("axes", [np.eye(3), rotation(25) @ rotation(10, axis=0)], ids=["straight", "oblique"])
def test_series_is_read_with_correct_geometry(tmp_path, axes):
    folder = tmp_path / "CT vom 3. März"
    write_series(folder, axes=axes)
    volume = read_volume(folder)
    assert np.array_equal(volume.array, PIXELS - 1000)
    assert volume.array.dtype == np.int16
    lps = axes @ [10 + 1.2 * 4, 20 + 0.8 * 3, 30 + 2 * 5]
    assert np.allclose(volume.grid.to_ras([5, 3, 4]), lps * [-1, -1, 1], atol=1e-3)
    assert np.allclose(volume.grid.spacing, (1.2, 0.8, 2), atol=1e-4)


def test_slices_written_from_top_to_bottom_are_sorted(tmp_path):
    write_series(tmp_path / "ct", heights=[10, 8, 6, 4, 2, 0])
    volume = read_volume(tmp_path / "ct")
    assert np.array_equal(volume.array, PIXELS[::-1] - 1000)
    assert volume.grid.affine[2, 3] == pytest.approx(30)


def test_series_can_be_one_of_several_channels(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    assert len(read_channels([tmp_path / "a", tmp_path / "b"], ["CT", "CT late"])) == 2


def test_rounded_positions_are_accepted(tmp_path):
    write_series(tmp_path / "ct", heights=[0, 1.2, 2.5, 3.7, 5, 6.2])
    assert read_volume(tmp_path / "ct").grid.spacing[2] == pytest.approx(1.24)


def test_single_slice_is_a_volume(tmp_path):
    write_series(tmp_path / "ct", heights=[0])
    assert read_volume(tmp_path / "ct").array.shape == (1, 7, 9)
    assert read_volume(next((tmp_path / "ct").iterdir())).array.shape == (1, 7, 9)


def changed(folder: Path, change) -> None:
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        change(data)
        data.save_as(file)


def compressed(syntax: str):
    def change(data: pydicom.Dataset) -> None:
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = pydicom.encaps.encapsulate([b"\1" * 64])
        data["PixelData"].VR = "OB"

    return change


def kind(uid: str):
    def change(data: pydicom.Dataset) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid

    return change


def table(data: pydicom.Dataset) -> None:
    del data.RescaleSlope, data.RescaleIntercept
    entries = pydicom.Dataset()
    entries.add_new("LUTDescriptor", "US", [4, 0, 16])
    entries.add_new("LUTData", "US", [0, 10, 20, 30])
    data.ModalityLUTSequence = [entries]


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_lookup_table_that_changes_nothing_is_accepted(tmp_path, kind):
    def change(data: pydicom.Dataset) -> None:
        table(data)
        (entries,) = data.ModalityLUTSequence
        entries.LUTDescriptor = [4096, 0, 16]
        values = np.arange(4096, dtype="<u2")
        entries.add_new("LUTData", kind, values.tobytes() if kind == "OW" else values.tolist())

    write_series(tmp_path / "ct")
    changed(tmp_path / "ct", change)
    assert np.array_equal(read_volume(tmp_path / "ct").array, PIXELS)


@pytest.mark.parametrize(
    ("change", "code", "shown"),
    [
        (compressed(pydicom.uid.HTJ2KLossless), "dicom-pixels", "High-Throughput JPEG 2000"),
        (compressed(pydicom.uid.RLELossless), "dicom-compressed", "RLE Lossless"),
        (kind("1.3.12.2.1107.5.9.1"), "dicom-kind", "1.3.12.2.1107.5.9.1"),
        (table, "dicom-pixels", "ModalityLUTSequence"),
        (lambda data: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "dicom-pixels", "mosaic"),
    ],
)
def test_reason_for_unreadable_pixels_is_given(tmp_path, change, code, shown):
    write_series(tmp_path / "ct")
    changed(tmp_path / "ct", change)
    assert shown in refused(tmp_path / "ct", code)


def colored(data: pydicom.Dataset) -> None:
    data.PhotometricInterpretation, data.SamplesPerPixel, data.PlanarConfiguration = "RGB", 3, 0
    data.PixelData = data.PixelData * 3


def test_color_image_next_to_scan_is_skipped(tmp_path):
    write_series(tmp_path / "ct")
    write_series(tmp_path / "report", heights=[0], description="report")
    changed(tmp_path / "report", colored)
    refused(tmp_path / "report", "image-color")
    (picture,) = (tmp_path / "report").iterdir()
    picture.rename(tmp_path / "ct" / "report.dcm")
    assert np.array_equal(read_volume(tmp_path / "ct").array, PIXELS - 1000)
    data = pydicom.dcmread(tmp_path / "ct" / "report.dcm")
    data.SeriesInstanceUID = pydicom.dcmread(next((tmp_path / "ct").glob("Thorax*"))).SeriesInstanceUID
    data.save_as(tmp_path / "ct" / "report.dcm")
    assert "report.dcm" in refused(tmp_path / "ct", "image-color")
    # Without series names, it may belong to the scan's series.
    changed(tmp_path / "ct", lambda data: delattr(data, "SeriesInstanceUID"))
    refused(tmp_path / "ct", "image-color")


def test_other_files_in_folder_are_ignored(tmp_path, capfd):
    write_series(tmp_path / "ct")
    (tmp_path / "ct" / "notes.txt").write_text("patient lay still")
    (tmp_path / "ct" / "sub").mkdir()
    assert read_volume(tmp_path / "ct").array.shape == PIXELS.shape
    assert capfd.readouterr().err == ""


def test_folder_without_dicom_is_refused(tmp_path, capfd):
    refused(tmp_path, "dicom-none")
    (tmp_path / "text.dcm").write_text("no DICOM")
    refused(tmp_path, "dicom-none")
    assert capfd.readouterr().err == ""


def test_several_series_are_refused_and_named(tmp_path):
    write_series(tmp_path / "ct", description="Thorax native")
    write_series(tmp_path / "ct", description="Thorax venous", heights=[0, 2, 4])
    message = refused(tmp_path / "ct", "dicom-several")
    native, venous = (min(path.name for path in (tmp_path / "ct").glob(f"*{name}*")) for name in ("native", "venous"))
    # Series of one scan often have the same number and description, and only files tell them apart.
    assert f"native (6 files, first {native}), series 3 Thorax venous (3 files, first {venous})." in message


def test_only_a_few_of_many_series_are_named(tmp_path):
    for number in range(7):
        write_series(tmp_path / "ct", [0] if number else [0, 2], description=f"Scan {number}")
    message = refused(tmp_path / "ct", "dicom-several")
    assert "7 DICOM series: series 3 Scan 0 (2 files, first" in message and "series 3 Scan 1 (1 file, first" in message
    assert message.endswith(") and 2 more. Move the one you need to a folder of its own.") and "Scan 5" not in message


@pytest.mark.parametrize("heights", [[0, 2, 4, 8, 10, 12], [0, 2, 4, 6, 8, 9], [0, 3, 4, 6], [0, 2, 4, 1e20]])
def test_uneven_slices_are_refused(tmp_path, heights, capfd):
    write_series(tmp_path / "ct", heights=heights)
    assert "mm apart" in refused(tmp_path / "ct", "dicom-uneven")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("heights", [[0, 0, 2, 2, 4, 4], [5, 5]])
def test_several_slices_at_same_position_are_refused(tmp_path, heights):
    write_series(tmp_path / "ct", heights=heights)
    refused(tmp_path / "ct", "dicom-same-place")


def test_gantry_tilt_is_refused(tmp_path, capfd):
    write_series(tmp_path / "ct", shift=2 * np.tan(np.radians(15)))
    assert "15.00 degrees of gantry tilt" in refused(tmp_path / "ct", "dicom-tilt")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("down", [[0, 0, 3, 3, 0, 0], [0, 0, 0, 3, 0, 0], [3, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0]])
def test_slices_beside_each_other_are_refused(tmp_path, down):
    write_series(tmp_path / "ct", shift=down)
    refused(tmp_path / "ct", "dicom-sideways")


def test_small_tilt_over_many_slices_is_refused(tmp_path):
    write_series(tmp_path / "ct", heights=range(0, 200, 2), shift=2 * np.tan(np.radians(0.3)))
    assert "0.30 degrees of gantry tilt" in refused(tmp_path / "ct", "dicom-tilt")


def test_rounded_slice_positions_are_accepted(tmp_path):
    write_series(tmp_path / "ct", shift=[0, 0.1, -0.1, 0.05, 0, 0.1])
    assert np.array_equal(read_volume(tmp_path / "ct").array, PIXELS - 1000)


def test_rescale_slope_per_slice_is_applied(tmp_path):
    slopes = [1, 0.5, 0.25, 2, 0.125, 1.5]
    write_series(tmp_path / "pet", RescaleSlope=slopes, RescaleIntercept=0)
    array = read_volume(tmp_path / "pet").array
    assert array.dtype == np.float32
    assert np.array_equal(array, PIXELS * np.float32(slopes)[:, None, None])


def test_slices_without_position_are_refused(tmp_path):
    write_series(tmp_path / "ct", ImagePositionPatient=None)
    refused(tmp_path / "ct", "dicom-no-position")


def test_slices_with_different_directions_are_refused(tmp_path):
    write_series(tmp_path / "ct", heights=[0, 2])
    files = sorted((tmp_path / "ct").iterdir())
    data = pydicom.dcmread(files[1])
    data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    data.save_as(files[1])
    refused(tmp_path / "ct", "dicom-mixed")


@pytest.mark.parametrize("name", ["A.dcm", "z.dcm"])
def test_localizer_among_slices_is_named(tmp_path, name):
    write_series(tmp_path / "ct")
    localizer = next((tmp_path / "ct").glob("*-3.dcm")).rename(tmp_path / "ct" / name)
    data = pydicom.dcmread(localizer)
    data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    data.save_as(localizer)
    assert name in refused(tmp_path / "ct", "dicom-mixed")


def test_color_slices_are_refused(tmp_path):
    write_series(
        tmp_path / "us",
        PhotometricInterpretation="RGB",
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        RescaleSlope=None,
        RescaleIntercept=None,
        PixelData=bytes(7 * 9 * 3 + 1),
    )
    refused(tmp_path / "us", "image-color")


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_color_slice_that_claims_one_sample_is_not_called_truncated(tmp_path, kind):
    write_series(tmp_path / "ct", PhotometricInterpretation=kind)
    refused(tmp_path / "ct", "image-color")


def store_otherwise(path: Path, is_deflated: bool) -> pydicom.Dataset:
    """Store a slice's file in a way that ITK cannot read: deflated, or with floating-point pixels."""
    data = pydicom.dcmread(path)
    if is_deflated:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    else:
        data.FloatPixelData, data.BitsAllocated = data.pixel_array.astype(np.float32).tobytes(), 32
        del data.PixelData
    data.save_as(path)
    return data


@pytest.mark.parametrize("is_deflated", [True, False])
def test_unsupported_pixels_are_not_called_damaged(tmp_path, is_deflated):
    write_series(tmp_path / "ct", [0, 2])
    for path in (tmp_path / "ct").iterdir():
        store_otherwise(path, is_deflated)
    message = refused(tmp_path / "ct", "dicom-pixels")
    assert ("Deflated" if is_deflated else "floating-point") in message


@pytest.mark.parametrize("is_deflated", [True, False])
def test_other_objects_next_to_series_may_have_unsupported_pixels(tmp_path, is_deflated):
    write_series(tmp_path / "ct", [0, 2])
    write_series(tmp_path / "ct", [0], description="Map")
    (path,) = (tmp_path / "ct").glob("Map*")
    data = store_otherwise(path, is_deflated)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ParametricMapStorage
    data.save_as(path)
    assert len(read_volume(tmp_path / "ct").array) == 2


def test_slices_of_different_patients_get_a_warning(tmp_path):
    write_series(tmp_path / "ct", PatientID=["a", "a", "", "a", "a", "a"])
    assert read_volume(tmp_path / "ct").warnings == ()
    write_series(tmp_path / "mixed", PatientID=["a", "a", "b", "a", "a", "a"])
    (warning,) = read_volume(tmp_path / "mixed").warnings
    assert "different patient IDs" in warning


def test_truncated_slice_is_refused(tmp_path, capfd):
    write_series(tmp_path / "ct")
    last = next(tmp_path.glob("ct/*-5.dcm"))
    last.write_bytes(last.read_bytes()[:-60])
    assert last.name in refused(tmp_path / "ct", "image-truncated")
    assert capfd.readouterr().err == ""


def test_slices_stored_with_different_types_keep_their_values(tmp_path):
    """For example, some slices of a series were compressed to 8 bits or stored as signed numbers."""
    counts, low = np.full((7, 9), 2000, np.uint16), np.full((7, 9), 200, np.uint8)
    write_series(
        tmp_path / "bits",
        BitsAllocated=[8, *[16] * 5],
        BitsStored=[8, *[16] * 5],
        HighBit=[7, *[15] * 5],
        PixelRepresentation=0,
        PixelData=[low.tobytes() + b"\0", *[counts.tobytes()] * 5],
    )
    assert read_volume(tmp_path / "bits").array[:, 0, 0].tolist() == [-800, *[1000] * 5]
    signed = np.full((7, 9), -200, np.int16)
    write_series(
        tmp_path / "signs",
        PixelRepresentation=[0, *[1] * 5],
        RescaleIntercept=0,
        PixelData=[counts.tobytes(), *[signed.tobytes()] * 5],
    )
    assert read_volume(tmp_path / "signs").array[:, 0, 0].tolist() == [2000, *[-200] * 5]


def test_link_that_must_not_be_followed_is_skipped(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    write_series(tmp_path / "inner" / "series")
    is_file = Path.is_file

    def refuses(path: Path) -> bool:
        if path.name == "cwd":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    (tmp_path / "inner" / "series" / "cwd").touch()
    monkeypatch.setattr(Path, "is_file", refuses)
    assert subfolder_with_dicom(tmp_path) == tmp_path / "inner" / "series"


@pytest.mark.parametrize("place", [0, 2, -1])
def test_damaged_slice_is_named(tmp_path, place):
    folder = tmp_path / "ct"
    write_series(folder)
    file = sorted(folder.iterdir())[place]
    content = file.read_bytes()
    for damaged, code in ((b"", "file-empty"), (bytes(len(content)), "image-damaged"), (b"x" * 99, "image-damaged")):
        file.write_bytes(damaged)
        assert file.name in refused(folder, code)
    file.unlink()
    file.symlink_to(tmp_path / "gone.dcm")
    assert file.name in refused(folder, "cannot-read")
    file.unlink()
    file.write_bytes(content)
    assert read_volume(folder).array.shape == PIXELS.shape


def test_slices_without_extension_are_recognized_by_name(tmp_path):
    folder = tmp_path / "ct"
    write_series(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"IM{number:04d}")
    for name in ("README", "done", "Thumbs.db", "._IM0003", ".complete", "notes.txt"):
        (folder / name).write_bytes(b"")
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = directory.SOPInstanceUID = generate_uid()
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    assert read_volume(folder).array.shape == PIXELS.shape
    (folder / "IM0006").write_bytes(b"")
    assert "IM0006" in refused(folder, "file-empty")


def test_inverted_gray_values_are_refused_in_a_ct_and_get_a_warning_elsewhere(tmp_path):
    write_series(tmp_path / "ct", PhotometricInterpretation="MONOCHROME1")
    assert "MONOCHROME2" in refused(tmp_path / "ct", "dicom-inverted")
    write_series(tmp_path / "mr", PhotometricInterpretation="MONOCHROME1", Modality="MR", RescaleIntercept=0)
    volume = read_volume(tmp_path / "mr")
    assert np.array_equal(volume.array, -1 - PIXELS)
    assert len(volume.warnings) == 1 and "MONOCHROME1" in volume.warnings[0]
    write_series(tmp_path / "usual", Modality="MR")
    assert not read_volume(tmp_path / "usual").warnings


def test_volume_has_modality_and_patient_hash_but_no_identity(tmp_path):
    write_series(tmp_path / "a", PatientID="Miller 1", Modality="MR")
    write_series(tmp_path / "b", PatientID="Miller 1 ", Modality="MR")
    write_series(tmp_path / "c", PatientID="Jones 2", Modality="CT")
    write_series(tmp_path / "d")
    volumes = [read_volume(tmp_path / name) for name in "abcd"]
    assert [volume.modality for volume in volumes] == ["MR", "MR", "CT", "CT"]
    one, same, other, unknown = (volume.patient for volume in volumes)
    assert one == same and one and other and one != other and unknown == ""
    assert "Miller" not in one
