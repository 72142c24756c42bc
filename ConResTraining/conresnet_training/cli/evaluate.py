"""``python -m conresnet_training evaluate`` and ``compare``: measure runs or predictions, compare evaluations."""

from pathlib import Path

import click

from conresnet_training.cli.options import FILE, FOLDER, checkpoint_option

_EVALUATION = click.Path(path_type=Path)


@click.command()
@click.argument("folder", metavar="RUN|PREDICTIONS", type=FOLDER)
@click.argument("data", type=FOLDER, required=False)
@click.option("--output", type=FOLDER, help="Folder to write to.  [default: RUN/evaluation or PREDICTIONS_evaluation]")
@checkpoint_option
@click.option(
    "--surface-tolerance",
    "tolerance",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="MM",
    help="Distance up to which a surface counts as correct in surface Dice.",
)
def evaluate(folder: Path, data: Path | None, output: Path | None, checkpoint: str, tolerance: float) -> int:
    """Measure a training run on the cases that it never saw, or predictions on the cases they are named after.

    RUN is the folder of a run, or of a cross-validation with fold_0, fold_1 and so on: the engine segments every
    held-out case. DATA is the data set's folder, which may be omitted if it is where the plan says.

    PREDICTIONS is a folder of label maps with the values of the data set DATA, named like its cases: CASE.nii.gz (or
    .nii, .nrrd, .mha), or CASE/segmentation.nii.gz as python -m conresnet segment --cases writes them.

    The results are evaluation.json, evaluation.csv and report.html, a page with plots and pictures of the worst cases;
    for a run also its label maps. For each segment: Dice, surface Dice, Hausdorff distance (95th percentile and
    maximum, mm), and volume difference (mL). The exit status is 2 if some cases could not be measured; the others are.
    """
    from conresnet_training.data import read_data_set
    from conresnet_training.evaluation import evaluate_predictions, evaluate_runs, summary_table
    from conresnet_training.evaluation.results import PAGE_FILE, remarks
    from conresnet_training.evaluation.runs import open_runs
    from conresnet_training.reporting.text import case_count, echo, listed

    if not folder.is_dir():
        raise click.UsageError(f"The folder {folder} does not exist.")
    runs = open_runs(folder, data)
    if runs:
        output = output or folder / "evaluation"
        evaluation = evaluate_runs(runs, output, checkpoint, tolerance)
    else:
        if data is None:
            raise click.UsageError(
                f"{folder} is not the folder of a training run. To measure predictions in it, name the data set too."
            )
        named = folder.resolve()  # "." and ".." are not names
        output = output or named.parent / f"{named.name}_evaluation"
        evaluation = evaluate_predictions(folder, read_data_set(data), output, tolerance)
    echo(summary_table(evaluation.summary))
    for sentence in remarks(evaluation.summary):
        echo(sentence)
    if evaluation.missing:
        echo(f"Not counted, because they have no label map: {listed(evaluation.missing)}.")
    for name, sentence in evaluation.failed.items():
        echo(f"{name} could not be measured: {sentence}", err=True)
    for sentence in evaluation.unfinished:
        echo(sentence, err=True)
    measured = f"Measured {case_count(len(evaluation.cases))} of {evaluation.data}"
    failed = f"; {case_count(len(evaluation.failed))} could not be measured" if evaluation.failed else ""
    echo(f"{measured}{failed}: mean Dice {evaluation.mean('dice'):.3f}. See {output / PAGE_FILE}.", err=True)
    return 2 if evaluation.failed else 0


@click.command()
@click.argument("first", metavar="A", type=_EVALUATION)
@click.argument("second", metavar="B", type=_EVALUATION)
@click.option("--output", type=FILE, help="Also write the comparison as JSON.")
def compare(first: Path, second: Path, output: Path | None) -> None:
    """Compare two evaluations case by case: A minus B.

    A and B are evaluation.json files, or the folders that evaluate wrote. Only cases that both have are compared. The
    table shows the mean difference, its 95 % bootstrap interval over cases, and the p value of Wilcoxon's signed-rank
    test.
    """
    from conresnet_training.evaluation import read_evaluation
    from conresnet_training.evaluation.compare import compare_evaluations, comparison_table
    from conresnet_training.evaluation.results import remarks, write_json
    from conresnet_training.reporting.text import case_count, echo, listed

    evaluations = [read_evaluation(path) for path in (first, second)]
    comparison = compare_evaluations(*evaluations)
    for letter, path, evaluation in zip("AB", (first, second), evaluations, strict=True):
        echo(f"{letter}: {path} ({evaluation.model}, {evaluation.data}, {evaluation.split})")
        for sentence in (*remarks(evaluation.summary), *evaluation.unfinished):
            echo(f"   {sentence}")
    echo(f"\n{comparison_table(comparison)}")
    if comparison.left_out:
        echo(f"\nLeft out, because only one evaluation has them: {listed(comparison.left_out)}.")
    if output:
        write_json(comparison.to_dict(), output)
    common = len(set(evaluations[0].cases) & set(evaluations[1].cases))
    echo(f"Compared {first} with {second} on {case_count(common)}.", err=True)
