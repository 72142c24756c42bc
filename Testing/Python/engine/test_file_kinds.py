"""Files mistaken for images, text headers that declare too much or too little, and readers that crash."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from conresnet.errors import UserError
from conresnet.images import files
from conresnet.images.files import read_grid, read_image, read_volume
from engine.image_cases import TILTED, ramp, refused, write_with_itk
from engine.volumes import random_volume

SHAPE = (4, 5, 6)
VOXELS = ramp(SHAPE[::-1])


def metaimage(path: Path, voxels: bytes | None = None, **changes: str | None) -> Path:
    fields = {
        **{"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"},
        **{"CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0"},
        **{"ElementSpacing": "1 1 1", "DimSize": "4 5 6", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL"},
    }
    fields |= changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # must be last
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(lines.encode() + (VOXELS.tobytes() if voxels is None else voxels))
    return path


def nrrd(path: Path, body: bytes | None = None, **changes: str | None) -> Path:
    fields = {
        **{"type": "short", "dimension": "3", "sizes": "4 5 6", "space": "right-anterior-superior"},
        **{"space directions": "(1,0,0) (0,1,0) (0,0,1)", "space origin": "(0,0,0)", "endian": "little"},
        "encoding": "raw",
    }
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(f"NRRD0004\n{lines}\n".encode() + (VOXELS.tobytes() if body is None else body))
    return path


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.nii"), io.BytesIO())
    return buffer.getvalue()


def zipped(name="a.nii") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "text")
    return buffer.getvalue()


def checkpoint(is_zip=True) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("file-empty", b""),
        ("file-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"),
        ("file-web-page", b"<!DOCTYPE html><html><body>Please log in</body></html>"),
        ("file-web-page", b"\n  <HTML><head></head></HTML>"),
        ("image-archive", zipped()),
        ("image-archive", tar()),
        ("image-is-checkpoint", checkpoint()),
        ("image-is-checkpoint", checkpoint(is_zip=False)),
        ("image-is-checkpoint", safetensors.torch.save({"weight": torch.ones(3)})),
        ("image-is-model", zipped("organ/model.json")),
        ("image-is-scene", zipped("scene/scene.mrml")),
    ],
    # Ids instead of contents: the archives contain the time of their creation.
    ids=[
        "empty",
        "lfs-pointer",
        "web-page",
        "web-page-later",
        "zip",
        "tar",
        "pth",
        "old-pth",
        "safetensors",
        "model",
        "mrb",
    ],
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.dcm", "a"])
def test_files_that_are_not_images_are_identified(tmp_path, code, content, name):
    (tmp_path / name).write_bytes(content)
    refused(code, tmp_path / name)


def test_model_package_is_not_an_image(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    refused("image-is-model", tmp_path)


def test_slicer_segmentation_is_a_label_map_but_not_an_image(tmp_path):
    path = nrrd(tmp_path / "a.seg.nrrd")
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\nSegment0_ID:=Segment_1\n\n", 1))
    refused("image-is-segmentation", path)
    assert np.array_equal(read_image(path).components[0], VOXELS)


@pytest.mark.parametrize("make", [nrrd, metaimage])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii", "a.dcm", "a"])
def test_text_headers_are_recognized_whatever_the_name(tmp_path, make, name):
    read = read_volume(make(tmp_path / name))
    assert np.array_equal(read.array, VOXELS) and read.warnings == ()
    assert np.array_equal(read_grid(tmp_path / name).affine, read.grid.affine)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("image-no-spacing", {"space_directions": None, "space": None, "space_origin": None}),
        ("image-no-spacing", {"space_directions": "none none none"}),
        ("image-no-spacing", {"space_directions": None, "spacings": "nan nan nan"}),
        ("image-no-spacing", {"space_directions": None, "spacings": "1 nan 1"}),
        ("image-no-spacing", {"space_directions": "(1,0,0) none (0,0,1)"}),
        ("absurd-spacing", {"space_directions": "(1,0,0) (0,0,0) (0,0,1)"}),
        ("image-header", {"space_units": '"furlong" "furlong" "furlong"'}),
        ("image-header", {"space_units": '"mm" "mm" "cm"'}),
        ("image-truncated", {"sizes": "4 5 7"}),
        ("image-truncated", {"sizes": "40000 50000 60000"}),
        ("image-truncated", {"sizes": "40000 50000 60000", "encoding": "gzip"}),
        ("image-empty", {"sizes": "4 0 6"}),
        ("image-header", {"sizes": "4 -5 6"}),
        ("image-header", {"sizes": "4 five 6"}),
        ("image-data-file", {"data_file": "not-there.raw"}),
        ("image-data-file", {"data_file": "."}),
        ("image-data-file", {"data_file": "x" * 5000}),
        ("not-an-image", {"dimension": "two"}),
    ],
)
def test_nrrd_header_is_compared_with_its_file(tmp_path, code, changes):
    refused(code, nrrd(tmp_path / "a.nrrd", **changes))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("image-no-spacing", {"ElementSpacing": None}),
        ("absurd-spacing", {"ElementSpacing": "1 -1 1"}),
        ("absurd-spacing", {"ElementSpacing": "1 0 1"}),
        ("absurd-spacing", {"ElementSpacing": "nan 1 1"}),
        ("image-header", {"TransformMatrix": "-2 0 0 0 -2 0 0 0 2"}),
        ("image-header", {"DistanceUnits": "furlong"}),
        ("image-truncated", {"DimSize": "4 5 7"}),
        ("image-truncated", {"DimSize": "40000 50000 60000", "CompressedData": "True"}),
        ("image-empty", {"DimSize": "0 5 6"}),
        ("image-header", {"NDims": "-1"}),
        ("image-header", {"NDims": "1000000"}),
        ("image-header", {"NDims": "4"}),
        ("image-header", {"DimSize": None}),
        ("image-data-file", {"ElementDataFile": "%s%s%s%s 1 10 1"}),
        ("image-data-file", {"ElementDataFile": "%n 1 10 1"}),
        ("image-data-file", {"ElementDataFile": "not-there.raw"}),
        ("image-data-file", {"ElementDataFile": None}),
    ],
)
def test_metaimage_header_is_compared_with_its_file(tmp_path, code, changes):
    refused(code, metaimage(tmp_path / "a.mha", **changes))


def test_unprintable_characters_in_header_are_escaped(tmp_path):
    path = nrrd(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes().replace(b"sizes: 4 5", b"sizes: 4\xa5\xaf\x1b[2J 5"))
    message = refused("image-header", path).message
    assert message.isprintable() and message.encode("utf-8") and "4" in message


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (nrrd, {"space_directions": None, "space": None, "space_origin": None, "spacings": "1 1 1"}),
        *((nrrd, {"space": space}) for space in ("scanner-xyz", "3D-right-handed", "3D-left-handed")),
        (metaimage, {"TransformMatrix": None}),
    ],
)
def test_header_without_orientation_gets_a_warning(tmp_path, make, changes):
    assert "patient's orientation" in read_volume(make(tmp_path / "a", **changes)).warnings[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("make", [nrrd, metaimage])
def test_header_that_names_a_pipe_is_refused_immediately(tmp_path, make):
    os.mkfifo(tmp_path / "pipe")
    key = {"data_file": "pipe"} if make is nrrd else {"ElementDataFile": "pipe"}
    refused("image-data-file", make(tmp_path / "a.nhdr", b"", **key))


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (metaimage, {"DistanceUnits": "um", "ElementSpacing": "1000 1000 1000", "Offset": "-7000 -8000 9000"}),
        (metaimage, {"DistanceUnits": "mm", "Offset": "-7 -8 9"}),
        (
            nrrd,
            {
                **{"space_directions": "(0.1,0,0) (0,0.1,0) (0,0,0.1)", "space_origin": "(0.7,0.8,0.9)"},
                **{"space_units": '"cm" "cm" "cm"', "space": "right-anterior-superior"},
            },
        ),
    ],
)
def test_units_are_converted(tmp_path, make, changes):
    path = make(tmp_path / "a", **changes)
    volume = read_volume(path)
    assert np.allclose(volume.grid.spacing, 1)
    # Slicer shows such an image at another position.
    assert sum("converted to mm" in text for text in volume.warnings) == (changes.get("DistanceUnits") != "mm")
    assert np.allclose(read_grid(path).affine[:3, 3], [7, 8, 9])


def in_slices(folder: Path, make, field: str) -> tuple[Path, list[str]]:
    """Write a header, and return it with the names of the files that it lists, one per slice."""
    names = [f"slice{number:02}.raw" for number in range(len(VOXELS))]
    for name, plane in zip(names, VOXELS, strict=True):
        (folder / name).write_bytes(plane.tobytes())
    key = "ElementDataFile" if make is metaimage else "data file"
    path = make(folder / "a.mhd", b"", **{key: field})
    # The list follows immediately.
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n")
    return path, names


@pytest.mark.parametrize("make", [metaimage, nrrd])
@pytest.mark.parametrize("field", ["LIST", "LIST 2", "slice%02d.raw 0 5 1"])
def test_slices_in_separate_files_are_read(tmp_path, make, field):
    path, names = in_slices(tmp_path, make, field)
    if "LIST" in field:
        path.write_bytes(path.read_bytes() + "".join(f"{name}\n" for name in names).encode())
    assert np.array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize("make", [metaimage, nrrd])
def test_inconsistent_list_of_slice_files_is_refused(tmp_path, make):
    path, names = in_slices(tmp_path, make, "LIST")
    header = path.read_bytes()
    path.write_bytes(header + "\n".join(names[:3] + names[4:]).encode())
    assert "5 files instead of 6" in refused("image-header", path).message
    path.write_bytes(header + "\n".join(names).encode())
    (tmp_path / names[3]).write_bytes(VOXELS[3].tobytes()[:-1])
    refused("image-truncated", path)
    (tmp_path / names[3]).unlink()
    assert names[3] in refused("image-data-file", path).message


@pytest.mark.parametrize("numbers", ["0 4", "0 6 1", "1 5 2"])
def test_file_pattern_with_wrong_number_of_slices_is_refused(tmp_path, numbers):
    path, _ = in_slices(tmp_path, metaimage, f"slice%02d.raw {numbers}")
    refused("image-header", path)


def test_image_format_without_spacing_is_refused(tmp_path):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.astype(np.uint8)), str(tmp_path / "a.tif"))
    refused("image-no-spacing", tmp_path / "a.tif")


# The reader process


def test_single_process_reads_all_images(tmp_path):
    read_image(nrrd(tmp_path / "a.nrrd"))
    reader = files._reader
    read_image(metaimage(tmp_path / "a.mha"))
    with pytest.raises(UserError):
        read_image(nrrd(tmp_path / "b.nrrd", sizes="4 5 7"))
    read_image(nrrd(tmp_path / "a.nrrd"))
    assert files._reader is reader


@pytest.mark.skipif(os.name == "nt", reason="ends a process by a signal")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGSEGV, "image-reader-crashed"), (signal.SIGKILL, "image-out-of-memory")]
)
def test_crash_affects_only_one_image(tmp_path, number, code):
    path = nrrd(tmp_path / "a.nrrd")
    read_image(path)
    process = files._reader._process
    os.kill(process.pid, signal.SIGSTOP)
    # The request is in progress when the process ends, as in a crash of ITK.
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    refused(code, path)
    assert np.array_equal(read_volume(path).array, VOXELS)


def test_large_images_are_transferred_completely(tmp_path):
    volume = random_volume(TILTED)
    large = np.tile(volume.array, (20, 20, 20))
    path = nrrd(tmp_path / "a.nrrd", large.tobytes(), sizes=" ".join(map(str, large.shape[::-1])))
    assert np.array_equal(read_volume(path).array, large)


def test_relative_names_refer_to_current_folder(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_with_itk(random_volume(TILTED, seed=len(name)), tmp_path / name / f"{name}.nrrd")
        monkeypatch.chdir(tmp_path / name)
        assert read_volume(f"{name}.nrrd").name == f"{name}.nrrd"


@pytest.mark.skipif(os.name == "nt", reason="looks for a process by its number")
@pytest.mark.parametrize("end", ["pass", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_reader_process_ends_with_the_program(tmp_path, end):
    path = nrrd(tmp_path / "a.nrrd")
    code = f"""
        import os
        from conresnet.images import files
        from conresnet.images.files import read_image
        read_image(__import__("pathlib").Path({str(path)!r}))
        print(files._reader._process.pid, flush=True)
        {end}
    """
    folder = Path(sys.modules["conresnet"].__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, timeout=100
    )
    number = int(finished.stdout)
    for _ in range(100):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{number}/stat").exists() and ") Z " in Path(f"/proc/{number}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the reader process outlives its program")


def test_truncated_gzip_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(5000))[:12])
    refused("image-damaged", tmp_path / "a.nii.gz")
