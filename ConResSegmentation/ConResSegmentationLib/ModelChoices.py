"""The models on offer, what the panel says of them, and their installation."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from conresnet.errors import UserError
from conresnet.maps import residual_plane
from conresnet.model_list import ModelEntry, install_model, list_models
from conresnet.package import ModelDescription, read_package
from conresnet.package.metrics import figures, read_metrics


@dataclass(frozen=True)
class ModelChoice:
    """A model as it stands in the selector; a broken one has no description but the sentence that says why."""

    name: str
    title: str
    path: Path
    description: ModelDescription | None
    problem: UserError | None


def modelChoices() -> list[ModelChoice]:
    """The models of the user and those that come with the extension, usable ones first, broken ones last."""
    choices = [_choice(entry) for entry in list_models() if entry.hidden_by is None]
    return sorted(choices, key=lambda choice: (choice.problem is not None, choice.title.casefold()))


def installAsking(source: str) -> str:
    """Copy a model package, a folder or a .zip file, into the user's models folder; asks before it replaces a model.

    Returns:
        its name; empty when one of that name is there and shall stay.

    Raises:
        UserError: when it is broken, or ``package-exists`` when what has its name there is no model package.
    """
    try:
        return install_model(source).description.name
    except UserError as error:
        if error.code != "package-exists":
            raise
    if not slicer.util.confirmYesNoDisplay(_("A model of this name is installed already. Replace it?")):
        return ""
    return install_model(source, overwrite=True).description.name


def summary(description: ModelDescription) -> str:
    """One sentence: what goes in and what comes out."""
    channels = ", ".join(f"{item.name} ({item.modality})" for item in description.inputs)
    segments = ", ".join(segment.name for segment in description.output.segments)
    return _("{channels} → {segments}").format(channels=channels, segments=segments)


def details(choice: ModelChoice) -> str:
    """All that a user should know of a model before trusting it, as rich text."""
    description = choice.description
    if description is None:
        return html.escape(f"{choice.path}")
    plane = residual_plane(description)
    rows = [
        ("", description.description),
        (_("Intended use"), description.intended_use),
        (_("Limits"), description.limitations),
        (_("Measured"), "; ".join(measured(choice.path))),
        (_("Trained on"), description.training_data),
        (_("Residual"), _("between {plane} slices").format(plane=plane) if plane else ""),
        (_("Version"), f"{description.name} {description.version}"),
        (_("License"), description.license),
        (_("Attribution"), description.attribution),
        *((_("Cite"), citation) for citation in description.citations),
    ]
    title = f"<b>{html.escape(description.title)}</b>"
    lines = [
        f"<b>{html.escape(key)}:</b> {html.escape(text)}" if key else html.escape(text) for key, text in rows if text
    ]
    return "".join(f'<p style="margin:0 0 6px 0">{line}</p>' for line in (title, *lines))


def measured(path: Path) -> list[str]:
    """The measured figures that a model brings, in words; empty when it brings none, or none that can be read."""
    try:
        return list(_sentences(read_metrics(read_package(path, verify=False))))
    except UserError:
        return []


def _sentences(metrics: dict) -> Iterator[str]:
    """Those that training writes in words; any others as they stand."""
    overall, segments, cases = (metrics.get(key) for key in ("mean_dice", "mean_dice_a_segment", "dice_a_case"))
    if isinstance(cases, dict) and isinstance(segments, dict) and _areNumbers(overall, *segments.values()):
        each = ", ".join(f"{name} {value:.3f}" for name, value in segments.items())
        sentence = _("mean Dice {overall:.3f} on {count} cases it never saw ({each})")
        yield sentence.format(overall=overall, count=len(cases), each=each)
        return
    for name, value in figures(metrics):
        if isinstance(value, str | int | float):
            yield f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


def _areNumbers(*values) -> bool:
    return all(isinstance(value, float | int) for value in values)


def _choice(entry: ModelEntry) -> ModelChoice:
    if entry.problem:
        title = _("{name} (cannot be used)").format(name=entry.name)
    else:
        title = entry.description.title
    return ModelChoice(entry.name, title, entry.path, entry.description, entry.problem)
