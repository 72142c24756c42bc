"""``python -m conresnet_training check``: whether a data set can be trained on."""

from pathlib import Path

import click

from conresnet_training.cli.options import FOLDER


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--output", type=FOLDER, help="Folder for the page and the JSON file.  [default: DATA's name and _check]")
def check(data: Path, output: Path | None) -> int:
    """Read every case of the data set in the folder DATA and list errors and warnings, one line per case.

    DATA is a folder in the layout of the Medical Segmentation Decathlon, nnU-Net (raw data) or BraTS, or a folder of
    label maps with a label_maps.json; it is not modified. The results are check.html, a page with sizes, spacings,
    intensities, label volumes and slices, and check.json. The exit status is 2 if there are errors, with which training
    would refuse the data, else 0.
    """
    from conresnet_training.check import check_data_set
    from conresnet_training.check.page import PAGE_FILE, make_output_folder, write_check
    from conresnet_training.data import read_data_set
    from conresnet_training.reporting.text import case_count, echo, progress_bar

    data_set = read_data_set(data)
    output = make_output_folder(output or Path(f"{data.resolve().name}_check"), data)
    with progress_bar(len(data_set.cases)) as done:
        report = check_data_set(data_set, data, done)
    for line in report.lines():
        echo(line)
    write_check(report, output)
    echo(
        f"Checked {case_count(len(report.cases))} of {data_set.name}: {report.count('error')} with errors, "
        f"{report.count('warning')} with warnings only. See {output / PAGE_FILE}.",
        err=True,
    )
    return 2 if report.has_errors else 0
