"""What the user reads while the engine works and when something fails, translated where a translation exists."""

from collections.abc import Iterator

from slicer.i18n import tr as _

from conresnet.messages import reason as catalogReason
from conresnet.messages import sentence as catalogSentence


def sentence(error) -> str:
    """The translated sentence for an error with ``code``, ``message`` and ``values``; in English for unknown codes.

    It names the other computer if the error occurred there, since it is that computer's disk that is full.
    """
    try:
        text = catalogSentence(error.code, error.values, _)
    except (KeyError, IndexError, ValueError):
        # An engine of another version may send other codes or values.
        text = error.message
    server = getattr(error, "server", "")
    return f"{server}: {text}" if server else text


def reason(row: dict) -> str:
    """Why a place is in the review list, translated; in English if a code is unknown."""
    try:
        return catalogReason(row["reason_codes"], _)
    except KeyError:
        return row["reason"]


def phase(name: str) -> str:
    """The text for a phase of the engine's work."""
    return {
        "sending": _("Sending the images"),
        "loading": _("Loading the model"),
        "reading": _("Reading the images"),
        "locating": _("Finding the ROI"),
        "preparing": _("Preparing the images"),
        "segmenting": _("Segmenting"),
        "writing": _("Collecting the result"),
        "receiving": _("Receiving the result"),
    }.get(name, name)


def timeLeft(seconds: float | None) -> str:
    """The time remaining, rounded as far as it is uncertain; empty if unknown."""
    if seconds is None:
        return ""
    if seconds < 1.5:
        return _("almost done")
    if seconds < 90:
        return _("about {seconds} s left").format(seconds=round(seconds) if seconds < 20 else 5 * round(seconds / 5))
    return _("about {minutes} min left").format(minutes=round(seconds / 60))


def finished(report: dict, seconds: float) -> str:
    """How long the user waited, the volume of each segment, including what is painted over it, and what was changed."""
    volumes = ", ".join(f"{name} {size:.2f} mL" for name, size in report.get("volumes_ml", {}).items())
    done = (
        _("Done in {seconds:.1f} s (fast): {volumes}.")
        if report.get("fast")
        else _("Done in {seconds:.1f} s: {volumes}.")
    )
    return " ".join([done.format(seconds=seconds, volumes=volumes), *_changes(report.get("postprocessing") or {})])


def _changes(postprocessing: dict) -> Iterator[str]:
    """What post-processing has changed, in sentences."""
    sentences = {"removed_ml": _("Removed: {volumes}."), "filled_ml": _("Filled: {volumes}.")}
    for key, template in sentences.items():
        volumes = [f"{name} {size:.2f} mL" for name, size in postprocessing.get(key, {}).items() if size]
        if volumes:
            yield template.format(volumes=", ".join(volumes))


def logOf(report: dict) -> str:
    """How a result was computed, for the log."""
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in report.get("seconds", {}).items())
    kept = {key: report[key] for key in ("device", "precision", "windows", "window", "tiling") if key in report}
    return "; ".join([*(f"{key} {value}" for key, value in kept.items()), f"seconds: {seconds}"])
