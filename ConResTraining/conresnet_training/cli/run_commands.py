"""``python -m conresnet_training train``, ``resume``, ``stop``, ``crossval``, ``evaluate``, ``compare``, ``export`` and
``fit-review``: train runs, measure them, and make model packages of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from conresnet.errors import UserError
from conresnet_training.cli import FILE, FOLDER, FiniteRange, device_option, settings_option
from conresnet_training.runs import CROSSVAL_FILE, NO_FOLD

data_option = click.option("--data", type=FOLDER, help="Folder of the data set, if it is not where the plan says.")
steps_option = click.option(
    "--max-steps",
    "most_steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after this many steps in total, with exit status 0.",
)
devices_option = click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="GPUs to use on each computer, or processes on a computer without GPUs. They share the plan's batch.",
)
nodes_option = click.option(
    "--nodes",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Number of computers; torchrun or SLURM starts the command on each.",
)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Latest checkpoint of a run, or the one with the best validation Dice, whose results are optimistic.",
)
_EVALUATION = click.Path(path_type=Path)


class _Fold(click.ParamType):
    """The number of a fold, or "none", which becomes None."""

    name = "fold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if str(value).lower() == NO_FOLD:
            return None
        if not str(value).isdecimal():
            self.fail(f"{value} is neither the number of a fold nor {NO_FOLD}.", param, ctx)
        return int(value)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Folder of the run: new, or empty.")
@click.option(
    "--fold",
    type=_Fold(),
    metavar=f"K|{NO_FOLD}",
    default=0,
    show_default=True,
    help="The fold to hold out, or none to train on all cases.",
)
@settings_option
@data_option
@steps_option
@device_option
@devices_option
@nodes_option
def train(
    plan: Path,
    output: Path,
    fold: int | None,
    settings: tuple[str, ...],
    data: Path | None,
    most_steps: int | None,
    device: str,
    devices: int,
    nodes: int,
) -> int:
    """Train a model according to PLAN. Checkpoints, curves and a copy of the plan go into the run's folder.

    Ctrl-C, a batch queue's signal, or the stop command ends training after the current step and saves a checkpoint.
    The exit status is then 128 plus the signal's number (130 after the stop command).
    """
    from conresnet_training.planning.plan import read_plan, with_settings
    from conresnet_training.runs.run import Run
    from conresnet_training.training.trainer import fit

    run = Run(output, with_settings(read_plan(plan, data), settings), fold)
    return _report_end(run, fit(run, most_steps, devices, nodes, is_new=True, device=device))


@click.command()
@click.argument("run", type=FOLDER)
@data_option
@steps_option
@device_option
@devices_option
@nodes_option
def resume(run: Path, data: Path | None, most_steps: int | None, device: str, devices: int, nodes: int) -> int:
    """Continue the run in the folder RUN from its latest checkpoint, as if it had never stopped."""
    from conresnet_training.runs.run import open_run
    from conresnet_training.training.trainer import fit

    opened = open_run(run, data)
    return _report_end(opened, fit(opened, most_steps, devices, nodes, device=device))


@click.command()
@click.argument("run", type=FOLDER)
def stop(run: Path) -> None:
    """Ask the run or cross-validation in the folder RUN to stop after the current step, with a checkpoint.

    The evaluation of a cross-validation ends after the current case.
    """
    from conresnet_training.reporting import echo
    from conresnet_training.runs import ask_to_stop

    elsewhere = ask_to_stop(run)
    end = "after the current step; a checkpoint will be saved."
    if (run / CROSSVAL_FILE).exists():
        end = "after the current step, with a checkpoint, or, if it is being evaluated, after the current case."
    echo(f"Stopping {run} {end}", err=True)
    if elsewhere:
        echo(f"It was started on {elsewhere}. If it is no longer running there, just resume it.", err=True)


def _report_end(run: Any, outcome: Any) -> int:
    """Say how far the run came, and return the exit status. Processes other than the first are silent."""
    from conresnet_training.reporting import echo

    if outcome is None:
        return 0
    done = f"{outcome.step} of {outcome.steps} steps"
    if outcome.step > outcome.steps:
        done = f"{outcome.step} steps, more than the {outcome.steps} of its plan"
    if outcome.finished:
        # The folds of a cross-validation are followed by others and by its evaluation.
        is_fold = (run.folder.resolve().parent / CROSSVAL_FILE).exists()
        hint = "" if is_fold else ' Use "python -m conresnet_training export" to make a model.'
        echo(f"{run.folder} is finished, {done}.{hint}", err=True)
    else:
        echo(f'{run.folder} stopped at {done}. Use "python -m conresnet_training resume" to continue.', err=True)
    return outcome.status


@click.command()
@click.argument("plan", type=FILE)
@click.option("--output", type=FOLDER, help="Folder of the cross-validation.  [default: PLAN_crossval]")
@click.option("--folds", metavar="K,K,...", help="Folds to train, such as 0,1,2.  [default: all of the plan]")
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", default=1, show_default=True, help="Folds to train at once."
)
@settings_option
@data_option
@steps_option
@device_option
@devices_option
def crossval(
    plan: Path,
    output: Path | None,
    folds: str | None,
    jobs: int,
    settings: tuple[str, ...],
    data: Path | None,
    most_steps: int | None,
    device: str,
    devices: int,
) -> int:
    """Train the folds of PLAN, each in a separate process, and evaluate every case with the fold that held it out.

    The output folder gets a run per fold (fold_0, fold_1 and so on) and the measurements (evaluation). With several
    GPUs, folds that are trained in parallel use different ones.

    Repeat the command to continue the folds that are not finished; each one uses the training settings in its own
    plan.yaml. Stopping ends every fold after its current step; the exit status is then that of a stopped run. It
    is 2 if some cases could not be measured.
    """
    from conresnet.inference.devices import device_of_process
    from conresnet_training.evaluation import EVALUATION_FOLDER, PAGE_FILE
    from conresnet_training.evaluation.runs import evaluate_runs
    from conresnet_training.planning.plan import read_plan, with_settings
    from conresnet_training.reporting import echo
    from conresnet_training.runs.cross_validation import cross_validate
    from conresnet_training.runs.run import Run

    followed = with_settings(read_plan(plan, data), settings)
    output = output or Path(f"{plan.stem}_crossval")

    def options(place: int) -> list[str]:
        own = ["--device", device_of_process(device, place, devices), "--devices", str(devices)]
        steps = [] if most_steps is None else ["--max-steps", str(most_steps)]
        return [*own, "--data", str(followed.data), *steps]

    evaluations, measured = [], output / EVALUATION_FOLDER

    def evaluate(runs: list[Run], check: Callable[[], None]) -> None:
        evaluations.append(evaluate_runs(runs, measured, check=check))

    chosen = _numbers(folds, followed.training.folds)
    runs, status = cross_validate(followed, output, chosen, jobs, most_steps, options, echo, evaluate)
    if status:
        echo(f"The cross-validation {output} was stopped. Repeat the command to continue.", err=True)
        return status
    trained = "1 fold" if len(runs) == 1 else f"{len(runs)} folds"
    return _report_evaluation(evaluations[0], measured / PAGE_FILE, f"Trained {trained} and measured")


def _numbers(folds: str | None, count: int) -> list[int]:
    if folds is None:
        return list(range(count))
    try:
        return sorted({int(number) for number in folds.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{folds} is not a list of folds such as 0,1,2.", param_hint="--folds") from error


@click.command()
@click.argument("folder", metavar="RUN|PREDICTIONS", type=FOLDER)
@click.argument("data", type=FOLDER, required=False)
@click.option("--output", type=FOLDER, help="Folder to write to.  [default: RUN/evaluation or PREDICTIONS_evaluation]")
@checkpoint_option
@click.option(
    "--surface-tolerance",
    "tolerance",
    type=FiniteRange(min=0),
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
    for a run also its label maps. Results of predictions are written next to their folder, or, if it is inside
    DATA, to the current folder; DATA and PREDICTIONS are not modified.

    For each segment: Dice, surface Dice, Hausdorff distance (95th percentile and maximum, mm), and volume difference
    (mL). The exit status is 2 if some cases could not be measured.
    """
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.evaluation import EVALUATION_FOLDER, PAGE_FILE
    from conresnet_training.evaluation.runs import evaluate_predictions, evaluate_runs, open_runs

    if not folder.is_dir():
        raise click.UsageError(UserError("folder-not-found", path=str(folder)).message)
    runs = open_runs(folder, data)
    if runs:
        output = output or folder / EVALUATION_FOLDER
        evaluation = evaluate_runs(runs, output, checkpoint, tolerance)
    else:
        if data is None:
            raise click.UsageError(
                f"{folder} is not the folder of a training run. To measure predictions in it, name the data set too."
            )
        output = output or _beside(folder, data)
        evaluation = evaluate_predictions(folder, read_data_set(data), output, tolerance)
    return _report_evaluation(evaluation, output / PAGE_FILE, "Measured")


def _beside(predictions: Path, data: Path) -> Path:
    """Where an evaluation of predictions is written by default: next to them, or, if that is in the data set's folder,
    in the current folder.

    Raises:
        UserError: ``output-in-data`` if both are in the data set's folder, which is never modified.
    """
    named = predictions.resolve()  # "." and ".." are not names
    for output in (named.parent / f"{named.name}_evaluation", Path(f"{named.name}_evaluation")):
        if not output.resolve().is_relative_to(data.resolve()):
            return output
    raise UserError("output-in-data", path=str(output))


def _report_evaluation(evaluation: Any, place: Path, done: str) -> int:
    """Show the figures, and everything that they do not include; return the exit status.

    Args:
        place: the page of the results.
        done: "Measured", or what was done besides.
    """
    from conresnet_training.evaluation.metrics import remarks, summary_table
    from conresnet_training.reporting import case_count, echo, listed

    echo(summary_table(evaluation.summary))
    for sentence in remarks(evaluation.summary):
        echo(sentence)
    if evaluation.missing:
        echo(f"Not counted, because they have no label map: {listed(evaluation.missing)}.")
    for name, sentence in evaluation.failed.items():
        echo(f"{name} could not be measured: {sentence}", err=True)
    for sentence in evaluation.unfinished:
        echo(sentence, err=True)
    measured = f"{done} {case_count(len(evaluation.cases))} of {evaluation.data}"
    failed = f"; {case_count(len(evaluation.failed))} could not be measured" if evaluation.failed else ""
    echo(f"{measured}{failed}: mean Dice {evaluation.mean('dice'):.3f}. See {place}.", err=True)
    return 2 if evaluation.failed else 0


@click.command()
@click.argument("first", metavar="A", type=_EVALUATION)
@click.argument("second", metavar="B", type=_EVALUATION)
@click.option("--output", type=FILE, help="Also write the comparison as JSON. Only another comparison is replaced.")
def compare(first: Path, second: Path, output: Path | None) -> None:
    """Compare two evaluations case by case: A minus B.

    A and B are evaluation.json files, the folders that evaluate or crossval wrote, or folders of runs that were
    evaluated. Only cases that both have are compared. The table shows the mean difference, its 95% bootstrap interval
    over cases, and the p value of Wilcoxon's signed-rank test.
    """
    from conresnet_training.evaluation import (
        check_comparison_path,
        compare_evaluations,
        comparison_table,
        read_evaluation,
        write_comparison,
    )
    from conresnet_training.evaluation.metrics import remarks
    from conresnet_training.reporting import case_count, echo, listed

    if output:
        check_comparison_path(output)
    evaluations = [read_evaluation(path) for path in (first, second)]
    try:
        comparison = compare_evaluations(*evaluations)
    except UserError as error:
        raise error.within("in-comparison", one=str(first), other=str(second)) from error
    for letter, path, evaluation in zip("AB", (first, second), evaluations, strict=True):
        echo(f"{letter}: {path} ({evaluation.model}, {evaluation.data}, {evaluation.split})")
        for sentence in (*remarks(evaluation.summary), *evaluation.unfinished):
            echo(f"   {sentence}")
    echo(f"\n{comparison_table(comparison)}")
    if comparison.left_out:
        echo(f"\nLeft out, because only one evaluation has them: {listed(comparison.left_out)}.")
    for sentence in comparison.warnings:
        echo(sentence, err=True)
    if output:
        write_comparison(comparison, output)
    common = len(set(evaluations[0].cases) & set(evaluations[1].cases))
    echo(f"Compared {first} with {second} on {case_count(common)}.", err=True)


@click.command()
@click.argument("folders", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PACKAGE",
    required=True,
    help="The package to write: a .zip file or a folder.",
)
@checkpoint_option
@click.option("--name", metavar="NAME", help="The model's name, instead of the plan's.")
@click.option("--title", help="The model's title, instead of the plan's.")
@click.option("--overwrite", is_flag=True, help="Replace an existing package.")
@click.option(
    "--measured-by",
    metavar="RUN",
    type=FOLDER,
    multiple=True,
    help="A run of the same plan that held out cases. The package gets its measurements. May be repeated. Needed for a "
    "RUN that was trained on all cases.",
)
@data_option
def export(
    folders: tuple[Path, ...],
    output: Path,
    checkpoint: str,
    name: str | None,
    title: str | None,
    overwrite: bool,
    measured_by: tuple[Path, ...],
    data: Path | None,
) -> None:
    """Make a model package from RUN, or an ensemble from several runs (folds, seeds).

    RUN is the folder of a run, or of a cross-validation with fold_0, fold_1 and so on. Besides the model, the package
    contains its accuracy on the held-out cases, a model card, a picture, and review.json, which the engine uses to
    list the places worth checking. The engine itself segments the held-out cases, each with networks that never saw it.
    """
    from conresnet_training.evaluation.runs import open_runs
    from conresnet_training.reporting import echo
    from conresnet_training.runs.export import export_runs
    from conresnet_training.runs.run import open_run

    runs, measured = (
        [run for folder in named for run in open_runs(folder, data) or [open_run(folder, data)]]
        for named in (folders, measured_by)
    )
    echo(export_runs(runs, output, checkpoint, overwrite, name, title, measured), err=True)


@click.command("fit-review")
@click.argument("package", metavar="PACKAGE")
@click.option("--data", type=FOLDER, required=True, help="Folder of a labeled data set.")
@click.option(
    "--cases",
    metavar="NAMES",
    help="Cases that the model never saw, separated by commas.  [default: those in the package's metrics.json]",
)
def fit_review(package: str, data: Path, cases: str | None) -> None:
    """Fit the review list of PACKAGE, a model package or its name, and store it there as review.json.

    The engine segments the cases, and two small regressions are fitted to the errors in each slice. Their
    accuracy is cross-validated over the cases. Use only cases that the model never saw, because it makes fewer errors
    on others.
    """
    from conresnet.package.store import check_replaceable, read_model, write_package
    from conresnet.results import check_writable
    from conresnet.results.review import RANKING_FILE
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.evaluation.review_fit import describe_ranking, ranking_file
    from conresnet_training.evaluation.runs import fit_review
    from conresnet_training.reporting import echo

    model = read_model(package)
    # Before the work, because the package will be written anew.
    check_replaceable(model.path, overwrite=True)
    check_writable(model.path.parent)
    names = [name.strip() for name in (cases or "").split(",") if name.strip()]
    ranking = fit_review(model, read_data_set(data), names)
    files = {name: model.read_file(name) for name in model.description.files}
    write_package(model.description, {**files, RANKING_FILE: ranking_file(ranking)}, model.path, overwrite=True)
    echo(f"Wrote {RANKING_FILE} into {model.path}. {describe_ranking(ranking)}", err=True)
