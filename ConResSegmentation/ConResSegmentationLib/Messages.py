"""What the user reads while the engine works and when something fails, in the user's language where there is one."""

from slicer.i18n import tr as _

from .ErrorSentences import errorSentences


def sentence(error) -> str:
    """The sentence for an error with ``code``, ``message`` and ``values``; without one of ours, the error's English."""
    template = errorSentences().get(error.code)
    if template is not None:
        try:
            return template.format(**error.values)
        except (KeyError, IndexError, ValueError):
            # An engine of another version may bring other values.
            pass
    return error.message


def phase(name: str) -> str:
    """A phase of the engine's work in words."""
    return {
        "loading": _("Loading the model"),
        "reading": _("Reading the images"),
        "preparing": _("Preparing the images"),
        "segmenting": _("Segmenting"),
        "writing": _("Collecting the result"),
    }.get(name, name)


def timeLeft(seconds: float | None) -> str:
    """How long it will take, as roughly as it can be known; empty when nobody knows."""
    if seconds is None:
        return ""
    if seconds < 1.5:
        return _("almost done")
    if seconds < 90:
        return _("about {seconds} s left").format(seconds=round(seconds) if seconds < 20 else 5 * round(seconds / 5))
    return _("about {minutes} min left").format(minutes=round(seconds / 60))


def finished(report: dict, seconds: float) -> str:
    """How long the user has waited and how large the segments are; regions with what overlies them, as in the scene."""
    volumes = ", ".join(f"{name} {size:.2f} mL" for name, size in report.get("volumes_ml", {}).items())
    return _("Done in {seconds:.1f} s: {volumes}.").format(seconds=seconds, volumes=volumes)


def logOf(report: dict) -> str:
    """What the log keeps of how a result was computed."""
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in report.get("seconds", {}).items())
    kept = {key: report[key] for key in ("device", "precision", "windows", "window", "tiling") if key in report}
    return "; ".join([*(f"{key} {value}" for key, value in kept.items()), f"seconds: {seconds}"])
