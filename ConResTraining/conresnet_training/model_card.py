"""A model's card: what it is for, what it was trained on, how good it is and where it fails, as Markdown."""

from collections.abc import Mapping
from typing import Any

from conresnet import __version__
from conresnet.maps import residual_plane
from conresnet.package import ModelDescription
from conresnet_training.evaluation.metrics import METRICS
from conresnet_training.evaluation.results import Evaluation
from conresnet_training.evaluation.summary import remarks, summary_cells
from conresnet_training.templates import fill_template

LOWEST_CASES = 3


def write_card(
    description: ModelDescription, evaluation: Evaluation, metrics: Mapping[str, Any], pictured: str | None
) -> str:
    """The text of ``MODEL_CARD.md``.

    Args:
        metrics: what ``metrics.json`` holds.
        pictured: the case that the thumbnail shows, or None without one.
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
        "model_card.md",
        model=description,
        networks=description.system.networks,
        spacing=" x ".join(f"{side:g}" for side in description.preparation.spacing or ()),
        residual_plane=residual_plane(description),
        evaluation=evaluation,
        metrics=metrics,
        rows=rows,
        lowest=lowest,
        remarks=remarks(evaluation.summary),
        pictured=pictured,
        version=__version__,
    )
