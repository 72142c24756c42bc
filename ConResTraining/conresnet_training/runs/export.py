"""Trained runs as a model package, with figures measured by the engine on held-out cases, and a model card."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conresnet import __version__
from conresnet.errors import UserError
from conresnet.images import Volume
from conresnet.package import CARD_FILE, ModelDescription, describe_new
from conresnet.package.outputs import residual_plane
from conresnet.package.reader import METRICS_FILE, OWN_WEIGHTS
from conresnet.package.store import check_package_path, write_package
from conresnet.results import check_writable
from conresnet.results.review import RANKING_FILE
from conresnet_training.data import Case, DataSet
from conresnet_training.data.label_maps import volume_ranges
from conresnet_training.data.preparation import read_reference
from conresnet_training.evaluation import Evaluation, name_of_fold, unfinished
from conresnet_training.evaluation.metrics import METRICS, remarks, summary_cells
from conresnet_training.evaluation.report import picture_of
from conresnet_training.evaluation.review_fit import ReviewSamples, describe_ranking, ranking_file
from conresnet_training.evaluation.runs import check_held_out, measure_runs
from conresnet_training.reporting import case_count, fill_template, listed
from conresnet_training.runs.packing import check_same_recipe, pack_runs
from conresnet_training.runs.run import Run, names_of_cases

THUMBNAIL_FILE = "thumbnail.png"
REPORTED = ("dice", "surface_dice", "hd95", "volume_difference_ml")
LOWEST_CASES = 3
# At most this many cases, spread over the data set, are read for the volumes.
MOST_CASES = 100


def export_runs(
    runs: Sequence[Run],
    output: Path,
    checkpoint: str = "last",
    overwrite: bool = False,
    name: str | None = None,
    title: str | None = None,
    measured_by: Sequence[Run] = (),
) -> str:
    """Write the package ``output`` and return a sentence about it.

    Several runs, such as the folds of a cross-validation, become one model, an ensemble. The package also contains
    ``metrics.json`` (the figures of every held-out case), ``review.json`` (how the places worth checking are found,
    fitted on these cases), ``MODEL_CARD.md`` and ``thumbnail.png``, a slice of the case with median Dice.

    Args:
        checkpoint: "last", or "best" by validation Dice; the results of "best" are optimistic, because the held-out
            cases chose it, and the card says so.
        name, title: instead of those in the plan.
        measured_by: runs of the same plan, trained with cases held out, whose figures the package gets. By default
            ``runs`` themselves. The package says how many cases these were trained on, and whether they share the
            cases of ``runs``.

    Raises:
        UserError: ``package-exists``, ``cannot-write``, ``checkpoint-not-found``, ``runs-differ``,
            ``nothing-held-out``, or any of reading the data and writing the package.
    """
    check_package_path(output, overwrite)
    # Before the work, which may take hours.
    check_writable(output.parent)
    measured_by = measured_by or runs
    are_measured = {run.folder.resolve() for run in measured_by} == {run.folder.resolve() for run in runs}
    if are_measured:
        measured_by = runs
    check_held_out(measured_by)
    if not are_measured:
        check_same_recipe(runs, measured_by)
    packed = pack_runs(runs, checkpoint)
    changes = {"name": name, "title": title}
    description = replace(packed.description, **{key: text for key, text in changes.items() if text is not None})
    # Checked before the work, so that an invalid name is reported at once.
    describe_new(description.to_dict())
    description = _with_volumes(description, runs)
    with tempfile.TemporaryDirectory() as folder:
        samples = ReviewSamples()
        measured = measure_runs(measured_by, Path(folder), checkpoint=checkpoint, samples=samples)
        for error in measured.errors.values():
            raise error
        by_dice = measured.evaluation.worst_first()
        shown = by_dice[len(by_dice) // 2]
        thumbnail = picture_of(shown, measured, planes=1, worst=False)
    evaluation = measured.evaluation
    own = () if are_measured else packed.made_by
    notes = remarks(evaluation.summary) + ([] if are_measured else _on_other_cases(runs, measured_by))
    metrics = _metrics(evaluation, runs, [] if are_measured else measured_by, packed.made_by, notes)
    ranking = samples.fit(f"{metrics['what']}: {metrics['split']}", description.output.names)
    review = describe_ranking(ranking) if ranking else "No review list was fitted, because the model found nothing."
    card = write_card(description, evaluation, metrics, notes, review, shown if thumbnail else None, own)
    files = {
        **packed.files,
        METRICS_FILE: json.dumps(metrics, indent=1, ensure_ascii=False).encode(errors="backslashreplace"),
        CARD_FILE: card.encode(errors="backslashreplace"),
        **({THUMBNAIL_FILE: thumbnail} if thumbnail else {}),
        **({RANKING_FILE: ranking_file(ranking)} if ranking else {}),
    }
    write_package(description, files, output, overwrite)
    cases = case_count(len(evaluation.cases))
    seen = f"{cases} it never saw" if len(runs) == 1 else f"{cases}, each by the networks that never saw it"
    if not are_measured:
        seen = f"{cases} that {listed([str(run.folder) for run in measured_by])} never saw"
    sentence = f"Wrote {output}: mean Dice {metrics['mean_dice']:.3f} on {seen}."
    # Warnings are on lines of their own, where they are not overlooked.
    return "\n".join([" ".join([sentence, *notes, review]), *unfinished([*evaluation.made_by, *own])])


def _with_volumes(description: ModelDescription, runs: Sequence[Run]) -> ModelDescription:
    """The description with the volumes of its segments in the labels of the runs' cases, trained on or held out, unless
    the plan gives them.
    """
    data_set = runs[0].data_set()
    # Cases that were added later are not part of the runs, and may be damaged.
    names = _names_of_all(runs, data_set)
    data_set = replace(data_set, cases=tuple(case for case in data_set.cases if case.name in names))
    cases = [data_set.cases[index] for index in data_set.spread(MOST_CASES)]
    ranges = volume_ranges((_label_of(case, data_set) for case in cases), runs[0].plan.targets)
    rounded = {name: tuple(float(f"{volume:.3g}") for volume in volumes) for name, volumes in ranges.items()}
    output = description.output
    segments = [replace(item, volume_ml=item.volume_ml or rounded.get(item.name)) for item in output.segments]
    return replace(description, output=replace(output, segments=tuple(segments)))


def _names_of_all(runs: Sequence[Run], data_set: DataSet) -> set[str]:
    return set().union(*(part for run in runs for part in names_of_cases(run, data_set)))


def _label_of(case: Case, data_set: DataSet) -> Volume:
    try:
        return read_reference(case, data_set.tissues)
    except UserError as error:
        raise error.within("in-case", case=case.name) from error


def write_card(
    description: ModelDescription,
    evaluation: Evaluation,
    metrics: Mapping[str, Any],
    notes: Sequence[str],
    review: str,
    pictured: str | None,
    own: Sequence[Mapping[str, Any]],
) -> str:
    """The text of ``MODEL_CARD.md``.

    Args:
        notes: sentences about what the figures do not show.
        pictured: the case in the thumbnail, or None without one.
        own: facts of the runs that the weights are from, if others were measured.
    """
    rows = [
        (segment, METRICS[metric].heading, summary_cells(metric, found))
        for segment, found_by_metric in evaluation.summary["segments"].items()
        for metric, found in found_by_metric.items()
        if found
    ]
    lowest = {
        segment: sorted((rows[segment]["dice"], case) for case, rows in evaluation.cases.items())[:LOWEST_CASES]
        for segment in evaluation.segments
    }
    return fill_template(
        "runs/model_card.md",
        model=description,
        networks=description.system.networks,
        spacing=" x ".join(f"{side:g}" for side in description.preparation.spacing or ()),
        residual_plane=residual_plane(description),
        evaluation=evaluation,
        own=own,
        unfinished=unfinished([*evaluation.made_by, *own]),
        name_of_fold=name_of_fold,
        metrics=metrics,
        review=review,
        rows=rows,
        lowest=lowest,
        remarks=notes,
        pictured=pictured,
        version=__version__,
    )


def _on_other_cases(runs: Sequence[Run], measured_by: Sequence[Run]) -> list[str]:
    """A sentence about each measured run that did not divide the cases of ``runs``."""
    data_set = runs[0].data_set()
    ours = _names_of_all(runs, data_set)
    sentences = []
    for run in measured_by:
        training, held_out = names_of_cases(run, data_set)
        if training | held_out != ours:
            sentences.append(
                f"The measurements may not describe this model: {run.folder.name} was trained on "
                f"{case_count(len(training))} and held out {len(held_out)}, but the package's own weights come "
                f"from a different set of {case_count(len(ours))}."
            )
    return sentences


def _metrics(
    evaluation: Evaluation,
    runs: Sequence[Run],
    measured_by: Sequence[Run],
    made_by: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """``metrics.json``: summary figures, means by segment, and the figures of all cases by metric.

    Args:
        measured_by: the runs whose figures these are, if not those of ``runs``.
        made_by: facts of ``runs``, see ``PackedRuns``.
        notes: as in ``write_card``.
    """
    networks = len(runs)
    what = "Whole cases, segmented by the exported package through the engine, on the images' own grids"
    # How the package's own weights were trained, if they may have learned from the cases.
    own = ""
    if networks > 1:
        if len({run.fold for run in runs}) > 1:
            own = f"a mean of {networks} networks, most of which learned from each case; not measured as a whole"
        what = (
            "Whole cases on the images' own grids, each segmented through the engine by those of the package's "
            f"{networks} networks that never saw it; the package averages all of them"
        )
    if measured_by:
        data_set = runs[0].data_set()
        counts = sorted({len(names_of_cases(run, data_set)[0]) for run in measured_by})
        trained = case_count(counts[0]) if len(counts) == 1 else f"{counts[0]} to {case_count(counts[-1])}"
        learned = "all cases" if all(run.fold is None for run in runs) else "other cases, which may include these"
        own = f"trained on {learned}; not measured"
        what = (
            "Whole cases on the images' own grids, segmented through the engine by networks that were trained in the "
            f"same way on {trained} but never saw these cases; the package's own weights were trained on {learned}"
        )
    overall, segments = evaluation.summary["overall"], evaluation.summary["segments"]
    content = {
        "what": what,
        "data": evaluation.data,
        "split": evaluation.split,
        "mean_dice": round(overall["dice"]["mean"], 4),
        "mean_dice_interval": overall["dice"]["interval"],
        "lowest_dice_a_segment": {name: round(rows["dice"]["lowest"], 4) for name, rows in segments.items()},
        "surface_tolerance_mm": evaluation.surface_tolerance_mm,
    }
    for metric in REPORTED:
        means = {name: round(rows[metric]["mean"], 4) for name, rows in segments.items() if rows[metric]}
        content[f"mean_{metric}_a_segment"] = means
    for metric in REPORTED:
        content[f"{metric}_a_case"] = {
            case: {name: None if row[metric] is None else round(row[metric], 4) for name, row in rows.items()}
            for case, rows in evaluation.cases.items()
        }
    content["checkpoint"] = made_by[0]["checkpoint"]
    steps = [facts["steps"] for facts in made_by]
    content["steps"] = steps[0] if networks == 1 else steps
    return content | ({"remarks": " ".join(notes)} if notes else {}) | ({OWN_WEIGHTS: own} if own else {})
