"""Cases brought into the model's space by the engine's own code, and kept on disk for training."""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet.images import Volume
from conresnet.images.files import read_channels, read_single
from conresnet.images.geometry import ModelSpace
from conresnet.images.preparation import PreparedCase, prepare
from conresnet.package import ModelDescription
from conresnet.results import image_files
from conresnet_training.data import Case
from conresnet_training.data.label_maps import (
    OVERSAMPLING,
    VALUES,
    LabelPlaces,
    Tissues,
    check_expected,
    index_of_labels,
    label_counts,
    on_image_grid,
    read_label,
)
from conresnet_training.data.synthesis import Synthesizer

# Slices of the image that are computed at a time.
SLAB = 16
LONGEST_NAME = 100


@dataclass(frozen=True)
class TrainingCase:
    """A labeled case in the model's space, in files that are memory-mapped anew at each access.

    Even many cases thus take no memory or open files, and processes that make samples are sent only file names.
    """

    name: str
    image_file: Path
    label_file: Path
    places_file: Path

    @property
    def image(self) -> np.ndarray:
        """(channel, S, H, W) float32, the network's input."""
        return np.load(self.image_file, mmap_mode="r")

    @property
    def label(self) -> np.ndarray:
        """(S, H, W) uint8, label values."""
        return np.load(self.label_file, mmap_mode="r")

    @property
    def places(self) -> LabelPlaces:
        """Where each value is in ``label``."""
        return LabelPlaces(np.load(self.places_file, mmap_mode="r"))

    def is_whole(self, has_image: bool = True) -> bool:
        """Whether the files exist and have sizes that fit each other; somebody may have damaged or removed them."""
        try:
            label, index = self.label, np.load(self.places_file, mmap_mode="r")
            image_fits = not has_image or (self.image.dtype == np.float32 and self.image.shape[1:] == label.shape)
            counts = np.array(index[:VALUES])
            return bool(image_fits and label.dtype == np.uint8 and len(index) == VALUES + counts.sum() == index.size)
        except (OSError, ValueError, EOFError, TypeError):
            return False


def prepare_case(
    case: Case,
    model: ModelDescription,
    folder: Path,
    labels: Collection[int] | None = None,
    synthesizer: Synthesizer | None = None,
    on_change: Callable[[str], None] = lambda case: None,
) -> TrainingCase:
    """Bring a case into ``model``'s space and keep it in ``folder``; a case that is there already is only opened.

    It is prepared again if its files, or the preparation that ``model`` describes, have changed since. Channels may be
    on different grids, in one file each or in one 4D file; the label map must be on the first channel's grid.

    Args:
        labels: the values other than 0 that may occur in the label map. Defaults to any.
        synthesizer: makes the images of a case without any.
        on_change: called with the case's name if it was prepared before and has changed since.

    Raises:
        UserError: ``case-file-missing``, ``label-grid-differs``, ``unexpected-labels``, or any of reading the files and
            writing the arrays; the sentence names the case.
    """
    drawn = () if case.images else (synthesizer.tissues, synthesizer.settings)
    made = _files(case, folder, model, *drawn)
    if not made.is_whole():
        # What was prepared of it is kept, because the file may come back.
        case.check_files()
        with _replacing_earlier(made, folder, on_change):
            channels, label = read_case(case, [item.name for item in model.inputs], synthesizer)
            if labels is not None and case.images:
                check_expected(label, labels)
            prepared = prepare(model, channels)
            _write_image(prepared, made.image_file)
            _write_label(label, prepared.space, made)
    return made


def prepare_label_map(
    case: Case,
    model: ModelDescription,
    folder: Path,
    tissues: Tissues,
    on_change: Callable[[str], None] = lambda case: None,
) -> TrainingCase:
    """Bring a label map without images into ``model``'s orientation, at twice its resolution; keep it in ``folder``.

    Its values become places in ``tissues.values``, counted from 1; it has no image file. ``on_change`` is called as
    in ``prepare_case``.

    Raises:
        UserError: ``case-file-missing``, ``unexpected-labels``, or any of reading the file and writing the arrays; the
            sentence names the case.
    """
    how = replace(model.preparation, spacing=tuple(mm / OVERSAMPLING for mm in model.preparation.spacing))
    made = _files(case, folder, replace(model, preparation=how), tissues.values)
    if not made.is_whole(has_image=False):
        case.check_files()
        with _replacing_earlier(made, folder, on_change):
            label = tissues.as_places(read_single(case.label))
            space = ModelSpace(label.grid, how.orientation, how.spacing, name=label.name)
            _write_label(label, space, made)
    return made


@contextlib.contextmanager
def _replacing_earlier(made: TrainingCase, folder: Path, on_change: Callable[[str], None]) -> Iterator[None]:
    """Name the case in errors, and remove its earlier arrays once the block has prepared it again.

    If the block fails, they stay: the change is reported again next time, and they are valid if the file comes back.
    """
    parts = re.compile(rf"{re.escape(file_stem(made.name))}_[0-9a-f]{{12}}_([a-z]+)\.npy")
    found = {path: match[1] for path in folder.glob("*.npy") if (match := parts.fullmatch(path.name))}
    damaged = [path for path in found if path in (made.image_file, made.label_file, made.places_file)]
    earlier = [path for path in found if path not in damaged]
    if "places" in [found[path] for path in earlier]:
        on_change(made.name)
    _remove(damaged)
    try:
        yield
    except UserError as error:
        raise error.within("in-case", case=made.name) from error
    _remove(earlier)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files(case: Case, folder: Path, model: ModelDescription, *further: object) -> TrainingCase:
    """Where a case is kept, by what it is made from: size and time of its files, and the preparation."""
    present = [path for path in (*case.images, case.label) if path.exists()]
    files = [file.stat() for path in present for file in _with_voxels(path)]
    made_from = [(file.st_size, file.st_mtime_ns) for file in files], model.preparation, model.inputs, *further
    stem = f"{file_stem(case.name)}_{hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]}"
    return TrainingCase(case.name, *(folder / f"{stem}_{part}.npy" for part in ("image", "label", "places")))


def _with_voxels(path: Path) -> list[Path]:
    """The files of an image; the file itself if it cannot be read, which is reported when it is."""
    try:
        return sorted(image_files(path))
    except (OSError, ValueError):
        return [path]


def file_stem(name: str) -> str:
    """A case's name for use in file names: unchanged if it is short and plain, else shortened, with its digest."""
    plain = re.sub(r"[^\w.-]", "_", name)
    short = plain.encode()[:LONGEST_NAME].decode(errors="ignore")
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
    return name if short == name else f"{short}-{digest}"


def read_case(
    case: Case, channels: Sequence[str], synthesizer: Synthesizer | None = None
) -> tuple[list[Volume], Volume]:
    """The channels of a case and its label map (uint8), on the first channel's grid.

    Without images they are synthesized, whole and always the same; values above 255 in the label map become 0.

    Args:
        channels: their names in messages.

    Raises:
        UserError: ``label-grid-differs``, or any of reading the files.
    """
    if not case.images:
        places = synthesizer.tissues.as_places(read_single(case.label))
        return synthesizer.whole(places, case.name), synthesizer.tissues.as_values(places)
    volumes = read_channels(list(case.images), channels)
    return volumes, on_image_grid(read_label(case.label), volumes[0])


def read_reference(case: Case, tissues: Tissues | None) -> Volume:
    """A case's label map (uint8) as it is in its file; values above 255 become 0 if images are synthesized from it.

    Raises:
        UserError: any of reading the file.
    """
    if case.images:
        return read_label(case.label)
    return tissues.as_values(tissues.as_places(read_single(case.label)))


def _write_image(prepared: PreparedCase, path: Path) -> None:
    depth, *plane = prepared.shape
    shape = (len(prepared.channels), depth, *plane)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    slice_bytes = 4 * plane[0] * plane[1]
    # Written rather than memory-mapped, because a full disk would then kill the process.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        begin = file.tell()
        for first in range(0, depth, SLAB):
            block = prepared.block((first, 0, 0), (min(SLAB, depth - first), *plane))
            for channel, values in enumerate(block):
                file.seek(begin + (channel * depth + first) * slice_bytes)
                file.write(values.tobytes())


def _write_label(label: Volume, space: ModelSpace, made: TrainingCase) -> None:
    array = _label(label, space)
    for path, content in ((made.label_file, array), (made.places_file, index_of_labels(array))):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, content)


def _label(label: Volume, space: ModelSpace) -> np.ndarray:
    """(S, H, W) uint8; if the case is resampled, each voxel gets the label with the largest interpolated share."""
    if space.exact:
        return np.ascontiguousarray(space.to_model(label))
    largest = space.to_model(Volume((label.array == 0).astype(np.float32), label.grid, ""))
    result = np.zeros(largest.shape, np.uint8)
    for value in label_counts(label):
        share = space.to_model(Volume((label.array == value).astype(np.float32), label.grid, ""))
        won = share > largest
        result[won] = value
        np.maximum(largest, share, out=largest)
    return result
