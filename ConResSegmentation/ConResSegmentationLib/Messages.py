"""What the user reads while the engine works and when something fails, translated where a translation exists."""

from slicer.i18n import tr as _

from conresnet.messages import sentence as catalogSentence


def errorSentences() -> dict[str, str]:
    """Sentences whose codes are not in the catalog yet."""
    return {**_aboutComputing(), **_aboutModels()}


def _aboutComputing() -> dict[str, str]:
    return {
        "network-not-finite": _(
            "The network of {model} answers with values that are not numbers; its training may have diverged, or this "
            "volume has intensities unlike those it was trained on: check the volume, or choose another model."
        ),
        "map-unavailable": _("The model {model} has no {map} map; choose other maps."),
    }


def _aboutModels() -> dict[str, str]:
    return {
        "model-not-found": _("The model {name} is not there any longer; install it again, or choose another one."),
        "package-not-found": _(
            "There is no model package at {file}; choose the folder that holds a model.json, or a .zip file of it."
        ),
        "package-exists": _(
            "{file} exists already and was left as it is; move it elsewhere, and install the model again."
        ),
        "package-newer": _(
            "The model {file} was made for a newer version of ConResNet (format {version}); update the extension."
        ),
        "package-json": _("The model {file} cannot be read ({reason}); get a fresh copy of it."),
        "package-description": _(
            "The description of the model {file} is wrong ({field} {reason}); get a fresh copy of it."
        ),
        "package-damaged": _("The model package {file} cannot be read ({reason}); get a fresh copy of it."),
        "package-unsafe": _(
            "The model package {file} was refused because {reason}; get it from a source that you trust."
        ),
        "package-file-missing": _("The model package {file} lacks {name}; get a fresh copy of it."),
        "package-truncated": _(
            "The file {name} of the model package {file} has {bytes} bytes instead of {expected}; get a fresh copy."
        ),
        "package-checksum": _(
            "The file {name} of the model package {file} is damaged or was changed, as its checksum says; get a fresh "
            "copy."
        ),
        "package-weights": _("The weights {file} are damaged, or of a kind that is not read; get a fresh copy."),
        "weights-damaged": _("The weights {source} are damaged; get the model again."),
        "weights-missing": _("The weights {source} lack the tensor {tensor}; get the model again."),
        "weights-shape": _("The tensor {tensor} of the weights {source} has another shape; get the model again."),
        "weights-left-over": _(
            "The weights {source} have a tensor {tensor} that the network has not; get the model again."
        ),
        "network-unknown": _("The model {model} cannot be built ({reason}); update the extension."),
        "system-unknown": _(
            "The model {model} needs the system {system}, which this version of ConResNet lacks; update the extension."
        ),
    }


def sentence(error) -> str:
    """The translated sentence for an error with ``code``, ``message`` and ``values``; in English if it has no code."""
    try:
        return catalogSentence(error.code, error.values, _)
    except (KeyError, IndexError, ValueError):
        # An engine of another version may send other codes or values.
        pass
    template = errorSentences().get(error.code)
    if template is not None:
        try:
            return template.format(**error.values)
        except (KeyError, IndexError, ValueError):
            pass
    return error.message


def phase(name: str) -> str:
    """The name of a phase of the engine's work."""
    return {
        "loading": _("Loading the model"),
        "reading": _("Reading the images"),
        "preparing": _("Preparing the images"),
        "segmenting": _("Segmenting"),
        "writing": _("Collecting the result"),
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
    """How long the user waited and the volume of each segment, including what is painted over it."""
    volumes = ", ".join(f"{name} {size:.2f} mL" for name, size in report.get("volumes_ml", {}).items())
    return _("Done in {seconds:.1f} s: {volumes}.").format(seconds=seconds, volumes=volumes)


def logOf(report: dict) -> str:
    """How a result was computed, for the log."""
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in report.get("seconds", {}).items())
    kept = {key: report[key] for key in ("device", "precision", "windows", "window", "tiling") if key in report}
    return "; ".join([*(f"{key} {value}" for key, value in kept.items()), f"seconds: {seconds}"])
