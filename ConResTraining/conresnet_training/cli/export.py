"""``python -m conresnet_training export`` and ``fit-review``: make a model package from runs, or add to one."""

from pathlib import Path

import click

from conresnet_training.cli.options import FOLDER, checkpoint_option, data_option


@click.command()
@click.argument("folders", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The package to write: a .zip file or a folder."
)
@checkpoint_option
@click.option("--name", help="The model's name, instead of the plan's.")
@click.option("--title", help="The model's title, instead of the plan's.")
@click.option("--overwrite", is_flag=True, help="Replace an existing package.")
@data_option
def export(
    folders: tuple[Path, ...],
    output: Path,
    checkpoint: str,
    name: str | None,
    title: str | None,
    overwrite: bool,
    data: Path | None,
) -> None:
    """Make a model of the network of RUN, or an ensemble of those of several runs (folds, seeds).

    RUN is the folder of a run, or of a cross-validation with fold_0, fold_1 and so on. The package contains figures of
    the held-out cases, measured by the engine itself, each case by the networks that never saw it; a model card; a
    picture; and review.json, by which the engine lists the places worth checking.
    """
    from conresnet_training.evaluation.runs import open_runs
    from conresnet_training.reporting.text import echo
    from conresnet_training.runs.export import export_runs
    from conresnet_training.runs.run import open_run

    runs = [run for folder in folders for run in open_runs(folder, data) or [open_run(folder, data)]]
    echo(export_runs(runs, output, checkpoint, overwrite, name, title), err=True)


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

    The engine segments the cases, and two small regressions are fitted to what is wrong in each slice. Their figures
    are cross-validated over the cases. Only use cases that the model never saw: on others it makes too few errors.
    """
    from conresnet.package import read_package, write_package
    from conresnet.package.store import find_model
    from conresnet.review import RANKING_FILE
    from conresnet_training.data import read_data_set
    from conresnet_training.evaluation.review_fit import describe_ranking, ranking_file
    from conresnet_training.evaluation.runs import fit_review
    from conresnet_training.reporting.text import echo

    model = read_package(find_model(package))
    names = [name.strip() for name in (cases or "").split(",") if name.strip()]
    ranking = fit_review(model, read_data_set(data), names)
    files = {name: model.read_file(name) for name in model.description.files}
    write_package(model.description, {**files, RANKING_FILE: ranking_file(ranking)}, model.path, overwrite=True)
    echo(f"Wrote {RANKING_FILE} into {model.path}. {describe_ranking(ranking)}", err=True)
