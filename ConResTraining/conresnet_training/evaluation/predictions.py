"""Label maps that anything made, measured against a data set's labels."""

import os
from pathlib import Path

from conresnet.errors import UserError
from conresnet.result_folder import SEGMENTATION_FILE
from conresnet_training.colors import segment_color
from conresnet_training.data_sets import DataSet
from conresnet_training.evaluation.label_maps import compare_label_maps, crossing, values_of_data_set
from conresnet_training.evaluation.results import Evaluation
from conresnet_training.evaluation.writing import Measured, write_results
from conresnet_training.folders import make_folder
from conresnet_training.label_maps import check_expected, read_label
from conresnet_training.preparation import check_label_grid, file_stem
from conresnet_training.progress_bar import counted

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def evaluate_predictions(
    folder: Path, data_set: DataSet, output: Path, surface_tolerance_mm: float = 1.0
) -> Evaluation:
    """Measure the label maps in a folder, see ``measure_predictions``, and write what was found.

    Args:
        output: a folder for ``evaluation.json``, ``evaluation.csv`` and ``report.html``.
    """
    make_folder(output)
    measured = measure_predictions(folder, data_set, surface_tolerance_mm)
    write_results(measured, output)
    return measured.evaluation


def measure_predictions(folder: Path, data_set: DataSet, surface_tolerance_mm: float = 1.0) -> Measured:
    """Measure the label maps in a folder.

    They carry the data set's own label values and are named like the cases: ``<case>.nii.gz`` (.nii, .nrrd, .mha or
    .mhd; a name that is no short file name also as ``file_stem`` writes it), or ``<case>/segmentation.nii.gz`` as
    ``python -m conresnet segment --cases`` writes them. Cases without one are named in the result and not counted.

    Raises:
        UserError: ``predictions-not-found``, ``regions-cross``, ``unexpected-labels``, ``label-grid-differs``, or any
            of reading one.
    """
    files = {case.name: (case, path) for case in data_set.cases if (path := _prediction(folder, case.name))}
    if not files:
        first = data_set.cases[0].name
        raise UserError(
            "predictions-not-found",
            f"{folder} is no training run and holds no label map named like a case of {data_set.name}, such as "
            f"{first}.nii.gz or {first}/{SEGMENTATION_FILE}.",
            path=str(folder),
        )
    values = values_of_data_set(data_set)
    if pair := crossing(values):
        raise UserError(
            "regions-cross",
            f"The regions {pair[0]} and {pair[1]} of {data_set.name} overlap in part, which a label map cannot hold; "
            "evaluate the training run itself, or describe regions of which one lies inside the other.",
            regions=list(pair),
        )
    known = {*data_set.labels, *(value for item in values.values() for value in (*item.truth, *item.found))}
    cases = {}
    with counted(len(files)) as done:
        for name, (case, path) in files.items():
            found, truth = read_label(path), read_label(case.label)
            check_expected(found, known)
            check_label_grid(found, truth)
            cases[name] = compare_label_maps(found, truth, values, surface_tolerance_mm)
            done(name)
    evaluation = Evaluation(
        data=data_set.name,
        split=f"{len(cases)} of {len(data_set.cases)} cases, those with a label map among the predictions",
        model=folder.resolve().name,
        surface_tolerance_mm=surface_tolerance_mm,
        cases=cases,
        missing=tuple(case.name for case in data_set.cases if case.name not in files),
    )
    colors = {name: segment_color(place) for place, name in enumerate(values)}
    return Measured(evaluation, files, values, colors)


def _prediction(folder: Path, case: str) -> Path | None:
    names = dict.fromkeys((case, file_stem(case)))
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    candidates += [folder / name / SEGMENTATION_FILE for name in names]
    # Path.is_file fails where a name is longer than a file's may be.
    return next((path for path in candidates if os.path.isfile(path)), None)
