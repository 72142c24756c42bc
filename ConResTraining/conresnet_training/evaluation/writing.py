"""The folder of an evaluation: tables, and the page with plots and the worst cases' pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conresnet.atomic_file import replacing
from conresnet.grid import Volume
from conresnet.image_files import read_image
from conresnet_training.data_sets import Case
from conresnet_training.evaluation.label_maps import SegmentValues, crossing
from conresnet_training.evaluation.page import make_page
from conresnet_training.evaluation.pictures import Color, Masks, draw_case
from conresnet_training.evaluation.results import PAGE_FILE, Evaluation, write_tables
from conresnet_training.label_maps import read_label

WORST_CASES = 6


@dataclass(frozen=True)
class Measured:
    """An evaluation, and what pictures of its cases take.

    Args:
        files: each case with the label map that was found for it.
        values: label values by segment.
        colors: red, green and blue, 0 to 255, by segment.
    """

    evaluation: Evaluation
    files: Mapping[str, tuple[Case, Path]]
    values: Mapping[str, SegmentValues]
    colors: Mapping[str, Color]


def write_results(measured: Measured, output: Path) -> None:
    """Write the page, the CSV file and, last, the JSON file."""
    pictures = {
        name: picture
        for name in measured.evaluation.worst_first()[:WORST_CASES]
        if (picture := picture_of(name, measured)) is not None
    }
    page = make_page(measured.evaluation, pictures, measured.colors)
    with replacing(output / PAGE_FILE) as path:
        path.write_text(page, encoding="utf-8", newline="\n")
    write_tables(measured.evaluation, output)


def picture_of(name: str, measured: Measured, **options) -> bytes | None:
    """A case's PNG picture by ``draw_case``, which takes the options; None where its image is not at hand.

    None too where regions overlap in part: the label map, from which the outlines are drawn, does not hold all of them.
    """
    case, found_file = measured.files[name]
    if not case.images[0].exists() or crossing(measured.values):
        return None
    image, found, truth = read_image(case.images[0]), read_label(found_file), read_label(case.label)
    masks = {segment: Masks(found.array, truth.array, item) for segment, item in measured.values.items()}
    # Of several channels the first is shown.
    return draw_case(Volume(image.components[0], image.grid, name), masks, measured.colors, **options)
