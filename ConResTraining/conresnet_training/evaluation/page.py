"""The page of an evaluation: one HTML file with everything in it, to be read, sent or printed."""

from collections.abc import Mapping, Sequence

from conresnet import __version__
from conresnet_training.evaluation.metrics import METRICS, VOLUME
from conresnet_training.evaluation.plots import bland_altman, dice_against_volume, metric_plot
from conresnet_training.evaluation.results import Evaluation
from conresnet_training.evaluation.summary import OVERALL, remarks, summary_cells
from conresnet_training.templates import data_uri, fill_template
from conresnet_training.words import listed


def make_page(evaluation: Evaluation, pictures: Mapping[str, bytes], colors: Mapping[str, Sequence[int]]) -> str:
    """HTML text.

    Args:
        pictures: PNG images of the worst cases, the worst first.
        colors: red, green and blue, 0 to 255, by segment.
    """
    cases, summary = evaluation.cases, evaluation.summary
    blocks = [(name, summary["segments"][name]) for name in evaluation.segments]
    if len(blocks) > 1:
        blocks.append(("Mean of segments", summary[OVERALL]))
    tables = [
        (name, [(METRICS[metric].heading, summary_cells(metric, found)) for metric, found in metrics.items() if found])
        for name, metrics in blocks
    ]
    captions = {
        name: ", ".join(f"{segment} {row['dice']:.3f}" for segment, row in cases[name].items()) for name in pictures
    }
    return fill_template(
        "evaluation/page.html",
        evaluation=evaluation,
        version=__version__,
        metrics=METRICS,
        volume=VOLUME,
        tables=tables,
        missing=listed(evaluation.missing),
        remarks=remarks(summary),
        plots=[data_uri(metric_plot(cases, metric, colors), "svg+xml") for metric in METRICS],
        volume_plot=data_uri(dice_against_volume(cases, colors), "svg+xml"),
        agreement_plots=[data_uri(bland_altman(cases, segment, colors), "svg+xml") for segment in evaluation.segments],
        pictures=[(name, data_uri(picture, "png"), captions[name]) for name, picture in pictures.items()],
        swatches={name: "#{:02x}{:02x}{:02x}".format(*colors[name]) for name in evaluation.segments},
        shown=_shown,
    )


def _shown(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
