"""A check's results as files: one page with everything in it, and JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

from conresnet import __version__
from conresnet.atomic_file import replacing
from conresnet.errors import UserError
from conresnet_training.check import plots
from conresnet_training.check.report import ERROR, WARNING, SetReport
from conresnet_training.colors import bright_colors
from conresnet_training.folders import make_folder
from conresnet_training.templates import data_uri, fill_template
from conresnet_training.words import product

PAGE_FILE, JSON_FILE = "check.html", "check.json"
LAYOUTS = {"decathlon": "Medical Segmentation Decathlon", "nnunet": "nnU-Net", "brats": "BraTS"}
MOST_LISTED = 500


def make_output_folder(output: Path, data: Path) -> Path:
    """Make the folder for a check's files, so that a place that cannot be written to is known before the work.

    Raises:
        UserError: ``output-in-data`` for a place in the data set's folder, where nothing is written, or those of
            ``make_folder``.
    """
    folder, data = output.resolve(), data.resolve()
    if folder == data or data in folder.parents:
        raise UserError(
            "output-in-data",
            f"{output} lies in the data set's folder, where nothing is written; name another place with --output.",
            path=str(output),
        )
    make_folder(output)
    return output


def write_check(report: SetReport, output: Path) -> None:
    """Write ``check.html`` and ``check.json`` into the folder ``output``, each whole or not at all.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    for name, text in ((PAGE_FILE, make_page(report)), (JSON_FILE, json.dumps(report.to_dict(), indent=1))):
        with replacing(output / name) as path:
            path.write_text(text + "\n", encoding="utf-8", newline="\n")


def make_page(report: SetReport) -> str:
    """HTML text."""
    data_set, cases = report.data_set, report.cases
    colors = dict(zip(data_set.labels, bright_colors(len(data_set.labels)), strict=True))
    by_name = {name: colors[value] for value, name in data_set.labels.items()}
    listed = [case for level in (ERROR, WARNING) for case in cases if case.level == level]
    measured = any(case.patient_size for case in cases)
    return fill_template(
        "check/page.html",
        report=report,
        version=__version__,
        layout=LAYOUTS[data_set.layout],
        facts=_facts(report),
        listed=listed[:MOST_LISTED],
        unlisted=len(listed) - MOST_LISTED,
        swatches={name: "#" + "".join(f"{round(255 * part):02x}" for part in color) for name, color in by_name.items()},
        sizes=data_uri(plots.plot_sizes(cases), "png") if measured else None,
        intensities=data_uri(plots.plot_intensities(cases, data_set.channels), "png")
        if any(case.intensities for case in cases)
        else None,
        volumes=data_uri(plots.plot_volumes(cases, by_name), "png") if any(case.label_ml for case in cases) else None,
        tiles=[(case.name, data_uri(plots.draw_tile(case.tile, colors), "png")) for case in cases if case.tile],
    )


def _facts(report: SetReport) -> list[tuple[str, str]]:
    data_set = report.data_set
    facts = [
        ("Folder", str(report.data)),
        ("Layout", LAYOUTS[data_set.layout]),
        ("Cases", str(len(report.cases))),
        ("Channels", ", ".join(data_set.channels)),
        ("Labels", ", ".join(f"{value} {name}" for value, name in data_set.labels.items())),
    ]
    if data_set.regions:
        regions = (f"{name} ({_joined(values)})" for name, values in data_set.regions.items())
        facts.append(("Regions", ", ".join(regions)))
    if (size := report.median("patient_size")) and (spacing := report.median("patient_spacing")):
        facts.append(("Median size", f"{product(size)} voxels (superior-inferior, anterior-posterior, right-left)"))
        facts.append(("Median spacing", f"{product(spacing)} mm"))
    if data_set.licence:
        facts.append(("License", data_set.licence))
    return facts


def _joined(values: Iterable[int]) -> str:
    return " + ".join(map(str, values))
