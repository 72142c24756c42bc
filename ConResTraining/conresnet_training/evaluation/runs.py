"""Measures training runs on the cases they held out, segmented by the engine as for a user, and other predictions."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from conresnet.errors import UserError
from conresnet.files import make_folder
from conresnet.images import Volume
from conresnet.images.files import read_single, write_volume
from conresnet.inference.segmentation import LoadedModel, load_model, segment
from conresnet.package import ModelDescription
from conresnet.package.reader import MAY_HAVE_LEARNED, ModelPackage, held_out_cases, read_metrics
from conresnet.package.store import read_model, write_package
from conresnet.request import SegmentOptions
from conresnet.results import SEGMENTATION_FILE
from conresnet.results.review import Ranking
from conresnet_training.data import ENDINGS, Case, DataSet
from conresnet_training.data.label_maps import MOST_VALUES, Tissues, check_expected, on_image_grid, whole_labels
from conresnet_training.data.preparation import file_stem, read_case, read_reference
from conresnet_training.data.synthesis import Synthesizer, synthesizer_of
from conresnet_training.evaluation import Evaluation
from conresnet_training.evaluation.metrics import compare_label_maps, crossing, values_of_data_set, values_of_model
from conresnet_training.evaluation.report import Measured, write_results
from conresnet_training.evaluation.review_fit import ReviewSamples
from conresnet_training.reporting import case_count, listed, progress_bar, segment_color
from conresnet_training.runs.packing import PackedRuns, check_agreement, pack_runs
from conresnet_training.runs.run import FOLD_FILE, Run, check_target_names, held_out_of_run, open_run

SEGMENTATIONS = "segmentations"


def evaluate_predictions(
    folder: Path, data_set: DataSet, output: Path, surface_tolerance_mm: float = 1.0
) -> Evaluation:
    """Measure the label maps in a folder, see ``measure_predictions``, and write the results into ``output``."""
    is_new = not output.exists()
    # Before the work, so that a folder that cannot be written to is reported at once.
    make_folder(output)
    try:
        measured = measure_predictions(folder, data_set, surface_tolerance_mm)
    except UserError:
        if is_new:
            with contextlib.suppress(OSError):
                output.rmdir()
        raise
    write_results(measured, output)
    return measured.evaluation


def measure_predictions(folder: Path, data_set: DataSet, surface_tolerance_mm: float = 1.0) -> Measured:
    """Measure the label maps in a folder.

    They have the data set's own label values, any of them for a segment of several, and are named like the cases:
    ``<case>.nii.gz`` (or one of the other `ENDINGS`; an unsuitable name also as ``file_stem`` writes it), or
    ``<case>/segmentation.nii.gz`` as ``python -m conresnet segment --cases`` writes them. Cases without one, and those
    that cannot be measured, such as with two, are named in the result.

    Raises:
        UserError: ``predictions-not-found`` or ``regions-cross``; if no case can be measured, what is wrong with the
            first.
    """
    found = {case.name: paths for case in data_set.cases if (paths := _predictions(folder, case.name))}
    if not found:
        first = data_set.cases[0].name
        raise UserError("predictions-not-found", path=str(folder), data=data_set.name, case=first)
    values = values_of_data_set(data_set)
    if pair := crossing(values):
        raise UserError("regions-cross", data=data_set.name, first=pair[0], second=pair[1])
    known = data_set.known_values.union(*(item.found for item in values.values()))
    files = {case.name: (case, found[case.name][0]) for case in data_set.cases if case.name in found}
    cases, errors = {}, {}
    with progress_bar(len(files)) as done:
        for name, (case, path) in files.items():
            try:
                if len(found[name]) > 1:
                    first, second, *_ = map(str, found[name])
                    raise UserError("prediction-repeated", case=name, first=first, second=second)
                truth = read_reference(case, data_set.tissues)
                result = on_image_grid(_read_prediction(path, None if case.images else data_set.tissues), truth)
                check_expected(result, known)
                cases[name] = compare_label_maps(result, truth, values, surface_tolerance_mm)
            except UserError as error:
                errors[name] = error
            done(name)
    _need_any(cases, errors)
    evaluation = Evaluation(
        data=data_set.name,
        split=f"{len(cases)} of {len(data_set.cases)} cases, those with a label map among the predictions",
        model=folder.resolve().name,
        surface_tolerance_mm=surface_tolerance_mm,
        cases=cases,
        missing=tuple(case.name for case in data_set.cases if case.name not in files),
        failed={name: error.message for name, error in errors.items()},
    )
    colors = {name: segment_color(place) for place, name in enumerate(values)}
    return Measured(evaluation, files, values, colors, errors)


def _read_prediction(path: Path, tissues: Tissues | None) -> Volume:
    """A label map as uint8; values above 255 that the data set names become 0, as in ``read_reference``."""
    label = read_single(path)
    large = [value for value in tissues.values if value > MOST_VALUES] if tissues else []
    if large:
        label = Volume(np.where(np.isin(label.array, large), 0, label.array), label.grid, label.name)
    return whole_labels(label)


def _need_any(cases: Mapping, errors: Mapping[str, UserError]) -> None:
    if not cases:
        raise next(iter(errors.values()))


def _predictions(folder: Path, case: str) -> list[Path]:
    """The label maps of a case; with more than one, some may be left from before."""
    names = dict.fromkeys((case, file_stem(case)))
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ENDINGS]
    candidates += [folder / name / SEGMENTATION_FILE for name in names]
    # Path.is_file fails for a name that is longer than a file's may be.
    return [path for path in candidates if os.path.isfile(path)]


def evaluate_runs(
    runs: Sequence[Run],
    output: Path,
    checkpoint: str = "last",
    surface_tolerance_mm: float = 1.0,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure runs, see ``measure_runs``, and write results and label maps (``segmentations/``) into ``output``.

    Files of an earlier evaluation are replaced.
    """
    check_held_out(runs)
    make_folder(output / SEGMENTATIONS)
    measured = measure_runs(runs, output / SEGMENTATIONS, checkpoint, surface_tolerance_mm, check=check)
    write_results(measured, output)
    return measured.evaluation


def measure_runs(
    runs: Sequence[Run],
    folder: Path,
    checkpoint: str = "last",
    surface_tolerance_mm: float = 1.0,
    samples: ReviewSamples | None = None,
    check: Callable[[], None] = lambda: None,
) -> Measured:
    """Segment and measure every case that a run held out.

    A case that several runs held out, such as those of different seeds, is segmented by their ensemble; never by a run
    that was trained on it. Cases with files that cannot be read are named in the result.

    Args:
        runs: of one data set: one run, the folds of a cross-validation, or several seeds.
        folder: for the label maps, ``<case>.nii.gz``, the case as ``file_stem`` writes it.
        checkpoint: "last", or "best" by validation Dice; results of "best" are optimistic, because the held-out cases
            chose it.
        samples: receives what the review list is fitted on.
        check: called before each case; an exception that it raises ends the work.

    Raises:
        UserError: ``checkpoint-not-found``, ``runs-differ``, ``nothing-held-out``, ``target-of-another-label``, or any
            of segmenting; if no case can be measured, what is wrong with the first.
    """
    check_agreement(runs)
    check_held_out(runs)
    plan = runs[0].plan
    data_set, values = runs[0].data_set(), values_of_model(plan.model.output.segments, plan.targets)
    synthesizer = synthesizer_of(plan, data_set.tissues)
    cases, files, errors = {}, {}, {}
    groups = _by_who_held_them_out(runs, data_set)
    # All of them first, so that a missing checkpoint is reported before hours of work.
    packed = [pack_runs([runs[index] for index in indices], checkpoint) for indices in groups]
    check_target_names(data_set, plan)
    with progress_bar(sum(map(len, groups.values()))) as done:
        for runs_of_group, held_out in zip(packed, groups.values(), strict=True):
            with _loaded(runs_of_group) as model:
                for case in held_out:
                    check()
                    try:
                        images, truth = _read(case, model, synthesizer)
                    except UserError as error:
                        errors[case.name] = error
                        done(case.name)
                        continue
                    options = SegmentOptions() if samples is None else samples.options(model, images[0].grid)
                    result = segment(model, images, options)
                    if samples is not None:
                        samples.add(case.name, model, result, [item.truth for item in values.values()], truth)
                    file = folder / f"{file_stem(case.name)}.nii.gz"
                    write_volume(result.labels.array, result.labels.grid, file)
                    cases[case.name] = compare_label_maps(
                        result.labels, truth, values, surface_tolerance_mm, result.regions
                    )
                    files[case.name] = (case, file)
                    done(case.name)
    _need_any(cases, errors)
    made_by = {
        index: facts
        for indices, model in zip(groups, packed, strict=True)
        for index, facts in zip(indices, model.made_by, strict=True)
    }
    evaluation = Evaluation(
        data=data_set.name,
        split=_sentence(runs, data_set, cases),
        model=plan.model.name,
        surface_tolerance_mm=surface_tolerance_mm,
        cases={name: cases[name] for name in sorted(cases)},
        made_by=tuple(made_by[index] for index in range(len(runs))),
        failed={name: error.message for name, error in errors.items()},
    )
    colors = {item.name: item.color for item in plan.model.output.segments}
    return Measured(evaluation, files, values, colors, errors)


def check_held_out(runs: Sequence[Run]) -> None:
    """Raises UserError ``nothing-held-out`` if a run was trained on all cases."""
    for run in runs:
        if run.fold is None:
            raise UserError("nothing-held-out", run=str(run.folder))


def open_runs(folder: Path, data: Path | None = None) -> list[Run]:
    """The run in a folder, or the runs of a cross-validation in it (``fold_0``, ``fold_1``, ...); else none."""
    if os.path.isfile(folder / FOLD_FILE):
        return [open_run(folder, data)]
    # Others, such as a copy named fold_0_before, are no folds of their own.
    folds = [path for path in folder.glob("fold_*") if re.fullmatch(r"fold_\d+", path.name)]
    folds.sort(key=lambda path: (len(path.name), path.name))
    return [open_run(path, data) for path in folds if (path / FOLD_FILE).is_file()]


def _by_who_held_them_out(runs: Sequence[Run], data_set: DataSet) -> dict[tuple[int, ...], list[Case]]:
    """The cases, grouped by the indices of the runs that held them out and may segment them."""
    holders: dict[str, list[int]] = {}
    cases = {}
    for index, run in enumerate(runs):
        for case in held_out_of_run(run, data_set):
            holders.setdefault(case.name, []).append(index)
            cases[case.name] = case
    groups: dict[tuple[int, ...], list[Case]] = {}
    for name in sorted(cases):
        groups.setdefault(tuple(holders[name]), []).append(cases[name])
    return groups


@contextlib.contextmanager
def _loaded(packed: PackedRuns) -> Iterator[LoadedModel]:
    """The model of packed runs, as a user would load it."""
    with tempfile.TemporaryDirectory() as folder:
        package = write_package(packed.description, packed.files, Path(folder) / packed.description.name)
        yield load_model(package)


def _read(case: Case, model: LoadedModel, synthesizer: Synthesizer | None = None) -> tuple[list[Volume], Volume]:
    """The channels of a case and its label map. Raises UserError ``case-file-missing``, or that of ``read_case``."""
    case.check_files()
    return read_case(case, [item.name for item in model.description.inputs], synthesizer)


def fit_review(package: ModelPackage, data_set: DataSet, cases: Sequence[str] = ()) -> Ranking:
    """Fit a package's review list to cases that its training never saw.

    The ranking says so if that is not known of these cases.

    Args:
        cases: their names; by default those in the package's metrics.json.

    Raises:
        UserError: ``review-cases-unknown`` if neither names any case, ``review-case-missing`` if the data set does not
            have one, ``review-case-without-images``, ``review-labels-differ`` if its labels are not the model's
            segments, ``review-empty`` if the model finds nothing, or any error of reading and segmenting.
    """
    names = tuple(dict.fromkeys(cases)) or held_out_cases(package)
    if not names:
        raise UserError("review-cases-unknown", model=package.description.name)
    by_name = {case.name: case for case in data_set.cases}
    for name in names:
        if name not in by_name:
            raise UserError("review-case-missing", case=name, data=data_set.name)
        # A package does not say how the images of its training were synthesized.
        if not by_name[name].images:
            raise UserError("review-case-without-images", case=name, data=data_set.name)
    references = _values_of_segments(package.description, data_set)
    model, samples = load_model(package), ReviewSamples()
    with progress_bar(len(names)) as done:
        for name in names:
            images, truth = _read(by_name[name], model)
            samples.add(name, model, segment(model, images, samples.options(model, images[0].grid)), references, truth)
            done(name)
    # Cases of another data set may have the same names.
    held_out = held_out_cases(package) if read_metrics(package).get("data") == data_set.name else ()
    are_held_out = set(names) <= set(held_out)
    origin = "that were held out of training" if are_held_out else "not known to be held out of training"
    what = f"Fitted on {case_count(len(names))} of {data_set.name} {origin}, segmented by the package"
    ranking = samples.fit(what, package.description.output.names, are_held_out)
    if ranking is None:
        raise UserError("review-empty", model=package.description.name)
    return ranking


def _values_of_segments(description: ModelDescription, data_set: DataSet) -> list[tuple[int, ...]]:
    """The values of each of a model's segments in the label maps of a data set, by its name or its value."""
    values = values_of_data_set(data_set)
    by_name = {name.casefold(): item.truth for name, item in values.items()}
    segments = description.output.segments
    if all(item.name.casefold() in by_name for item in segments):
        return [by_name[item.name.casefold()] for item in segments]
    if data_set.regions or {item.label for item in segments} != set(data_set.labels):
        ours, theirs = ", ".join(description.output.names), ", ".join(by_name)
        raise UserError(
            "review-labels-differ", model=description.name, segments=ours, data=data_set.name, labels=theirs
        )
    return [values[data_set.labels[item.label]].truth for item in segments]


def _sentence(runs: Sequence[Run], data_set: DataSet, cases: Collection[str]) -> str:
    folds = sorted({run.fold for run in runs})
    named = f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(map(str, folds))}"
    of = f"{len(cases)} of {len(data_set.cases)} cases"
    sentence = f"{named} of {runs[0].plan.training.folds}: {of}, held out of training"
    if synthesized := [case.name for case in data_set.cases if case.name in cases and not case.images]:
        sentence += f"; synthesized images of {listed(synthesized)}"
    if len(runs) > 1:
        sentence += "; each case was segmented only by runs that never saw it"
    begun = dict.fromkeys(run.plan.training.start_from for run in runs if run.plan.training.start_from)
    for model in begun:
        held_out = set(cases) <= _held_out_by(model, data_set.name)
        known = "which names them among those it held out" if held_out else MAY_HAVE_LEARNED
        sentence += f"; training started with the weights of {Path(model).name}, {known}"
    return sentence


def _held_out_by(model: str, data: str) -> set[str]:
    """The cases of a data set that no training of a model saw, according to its own figures; empty if unknown."""
    try:
        package = read_model(model)
        return set(held_out_cases(package)) if read_metrics(package).get("data") == data else set()
    except UserError:
        return set()
