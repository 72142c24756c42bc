"""Damaged images in four formats, and damaged DICOM folders, segmented with ``segment --cases``."""

from __future__ import annotations

import csv
import functools
import gzip
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from mutations import damaged_bytes, damaged_lines
from pydicom.uid import generate_uid
from robustness import Outcome, Trial, campaign

from engine.model_cases import description, write_model
from engine.test_dicom_frames import new_object, write_frames
from engine.test_dicom_series import write_series

# pydicom warns about the invalid values that are set here.
warnings.filterwarnings("ignore", module="pydicom")

PRELOADED = ("conresnet.cli", "conresnet.api", "conresnet.images.files", "conresnet.inference.segmentation")
AT_ONCE = 50
FOLDERS_AT_ONCE = 20
SHAPE = (11, 12, 13)


@functools.cache
def model() -> Path:
    """A model with random weights, small enough to segment in a moment."""
    folder = Path(tempfile.mkdtemp(prefix="robustness-model-"))
    write_model(folder / "model", description(inference={"window": [16, 16, 16]}))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "model"


def segment_all(folder: Path, images: dict[str, Path]) -> Trial:
    """Segment a list of images, each of which must get a result or an error message."""
    rows = "".join(f'{name},"{path}"\n' for name, path in images.items())
    (folder / "list.csv").write_text(f"name,T1\n{rows}", encoding="utf-8")

    def check(outcome: Outcome) -> list[str]:
        # The lines about a case on stderr may also be warnings about its result.
        table = folder / "out" / "cohort.csv"
        lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
        refused = {row["name"] for row in csv.DictReader(lines) if row["problem"]}
        done = {name for name in images if (folder / "out" / name / "report.json").exists()}
        reported = {name for name in refused if any(line.startswith(f"{name}: ") for line in outcome.lines)}
        found = [f"{name} ({images[name].name}) has both a result and an error" for name in sorted(done & refused)]
        missing = sorted(set(images) - done - reported)
        found += [f"{name} ({images[name].name}) has neither a result nor an error message" for name in missing]
        found += [f"{name} has no readable segmentation" for name in done if not _is_readable(folder / "out" / name)]
        return found[:10]

    command = ("conresnet", "segment", "--cases", folder / "list.csv", "--model", model(), "--output", folder / "out")
    options = ("--device", "cpu", "--threads", 1)
    return Trial((*command, *options), len(images), check=check, seconds=1800.0, preload=PRELOADED)


def _is_readable(folder: Path) -> bool:
    try:
        return bool(nibabel.load(folder / "segmentation.nii.gz").get_fdata().size)
    except Exception:
        return False


def voxels(random: random.Random) -> np.ndarray:
    """int16 [k, j, i]."""
    return np.random.default_rng(random.randrange(2**32)).integers(0, 900, SHAPE).astype(np.int16)


def nifti_bytes(random: random.Random) -> bytes:
    """A valid file, NIfTI-1 or 2, in either byte order."""
    kind, header = random.choice(
        [(nibabel.Nifti1Image, nibabel.Nifti1Header), (nibabel.Nifti2Image, nibabel.Nifti2Header)]
    )
    image = kind(voxels(random).T, np.diag([1.0, 1, 2, 1]), header(endianness=random.choice("<>")))
    image.set_qform(image.affine, random.choice((0, 1)))
    image.set_sform(image.affine, random.choice((0, 1, 2, 4)))
    return image.to_bytes()


def damaged_nifti(random: random.Random, path: Path) -> Path:
    path.write_bytes(damaged_bytes(nifti_bytes(random), random, 352))
    return path


def damaged_compressed_nifti(random: random.Random, path: Path) -> Path:
    """Damaged before compression, after it, or both."""
    data = nifti_bytes(random)
    if random.random() < 0.7:
        data = damaged_bytes(data, random, 352)
    packed = gzip.compress(data, 1)
    path.write_bytes(damaged_bytes(packed, random) if random.random() < 0.5 else packed)
    return path


def damaged_nrrd(random: random.Random, path: Path) -> Path:
    lines = [
        *("NRRD0004", "type: short", "dimension: 3", f"sizes: {' '.join(map(str, SHAPE[::-1]))}"),
        *("space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,2)", "kinds: domain domain domain"),
        *("endian: little", "space origin: (0,0,0)"),
    ]
    body = voxels(random).tobytes()
    if random.random() < 0.5:
        lines.append("encoding: gzip")
        body = gzip.compress(body)
    else:
        lines.append("encoding: raw")
    return _text_image(random, path, "\n".join(lines), "\n\n", body)


def damaged_metaimage(random: random.Random, path: Path) -> Path:
    lines = [
        *("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"),
        *("CompressedData = False", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 1 1 2"),
        *(f"DimSize = {' '.join(map(str, SHAPE[::-1]))}", "ElementType = MET_SHORT", "ElementDataFile = LOCAL"),
    ]
    return _text_image(random, path, "\n".join(lines), "\n", voxels(random).tobytes())


def _text_image(random: random.Random, path: Path, header: str, end: str, body: bytes) -> Path:
    if random.random() < 0.7:
        header = damaged_lines(header, random)
    data = (header + end).encode("utf-8", "surrogateescape") + body
    path.write_bytes(damaged_bytes(data, random, len(header)) if random.random() < 0.4 else data)
    return path


FORMATS: dict[str, Callable[[random.Random, Path], Path]] = {
    ".nii": damaged_nifti,
    ".nii.gz": damaged_compressed_nifti,
    ".nrrd": damaged_nrrd,
    ".mha": damaged_metaimage,
}


@campaign("images", full=1000)
def images(random: random.Random, folder: Path) -> Trial:
    """Images of all formats, some of them with the suffix of another format."""
    made = {}
    for number in range(AT_ONCE):
        suffix = list(FORMATS)[number % len(FORMATS)]
        name = suffix if random.random() < 0.95 else random.choice((*FORMATS, ".dcm", ".img", ".mhd", ".tif", ""))
        made[f"c{number:02}"] = FORMATS[suffix](random, folder / f"image{number:02}{name}")
    return segment_all(folder, made)


@campaign("dicom", full=200)
def dicom(random: random.Random, folder: Path) -> Trial:
    """Damaged folders with a series, single slices, or frames in one file."""
    made = {}
    for number in range(FOLDERS_AT_ONCE):
        place = folder / f"series{number:02}"
        if random.random() < 0.3:
            heights = sorted(random.sample(range(20), 6)) if random.random() < 0.2 else range(0, 12, 2)
            write_frames(place / "frames.dcm", heights, random.choice((None, random.sample(range(6), 6))))
        else:
            write_series(place)
        for _ in range(random.choice((1, 1, 2, 3))):
            random.choice(_DICOM_CHANGES)(place, random)
        one = random.random() < 0.1 and any(place.iterdir())
        made[f"c{number:02}"] = sorted(place.iterdir())[0] if one else place
    return segment_all(folder, made)


def _damage_bytes(place: Path, random: random.Random) -> None:
    for file in _some(place, random):
        file.write_bytes(damaged_bytes(file.read_bytes(), random, 1200))


def _delete_element(place: Path, random: random.Random) -> None:
    tag, files = None, _some(place, random)
    for file in files:
        try:
            data = pydicom.dcmread(file)
            tag = tag if tag in data else random.choice(list(data.keys()))
            del data[tag]
            data.save_as(file)
        except Exception:  # it was damaged before
            continue


def _change_element(place: Path, random: random.Random) -> None:
    names = ("PixelSpacing", "ImagePositionPatient", "Rows", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel")
    name = random.choice((*names, "ImageOrientationPatient", "RescaleSlope", "SeriesInstanceUID", "SliceThickness"))
    for file in _some(place, random):
        try:
            data = pydicom.dcmread(file)
            setattr(data, name, random.choice((0, 1, 65535, -1, [0, 0, 0], [1, 1], [1e30, -5], "", None)))
            data.save_as(file)
        except Exception:  # the value does not fit, or the file was damaged before
            continue


def _remove(place: Path, random: random.Random) -> None:
    for file in _some(place, random)[:2]:
        file.unlink()


def _copy(place: Path, random: random.Random) -> None:
    for file in _some(place, random):
        shutil.copy(file, file.with_name(f"copy-{file.name}"))


def _add(place: Path, random: random.Random) -> None:
    kinds = ("1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.3.10", "1.2.3")
    kind = random.choice(kinds)
    match random.randrange(4):
        case 0:
            new_object(kind, generate_uid(), generate_uid()).save_as(place / "object.dcm", enforce_file_format=True)
        case 1:
            (place / "text.dcm").write_bytes(random.randbytes(300))
        case 2:
            write_series(place, [0, 2], description="other")
        case _:
            (place / "deeper").mkdir(exist_ok=True)
            for file in _some(place, random):
                shutil.move(file, place / "deeper" / file.name)


def _some(place: Path, random: random.Random) -> list[Path]:
    files = sorted(path for path in place.iterdir() if path.is_file())
    return random.sample(files, min(len(files), random.choice((1, 1, 2, len(files)))))


_DICOM_CHANGES = (_damage_bytes, _damage_bytes, _damage_bytes, _delete_element, _change_element, _remove, _copy, _add)
