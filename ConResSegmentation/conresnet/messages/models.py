"""Sentences about model packages, their networks, and imported checkpoints."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


MODELS: dict[str, str] = {
    # model.json
    "package-json": _("{file} cannot be read as JSON ({reason}); get a fresh copy of the model package."),
    "package-newer": _(
        "{file} has the newer format version {version}, and this version reads versions up to {ours}; update ConResNet."
    ),
    "package-description": _(
        'The model description {file} is wrong: "{field}" {reason}; correct it or get a fresh copy of the package.'
    ),
    # Networks, systems and maps
    "network-unknown": _("The model {model} cannot be built: {reason}; update ConResNet, or install what adds it."),
    "network-ambiguous": _(
        "The model {model} has {count} networks, which only together give its answer; load one of them by its index, 0 "
        "to {last}, or segment with the whole model."
    ),
    "network-not-found": _("The model {model} has no network {index}, only 0 to {last}."),
    "network-not-finite": _(
        "The network of {model} gives values that are not numbers; its training may have diverged, or the intensities "
        "of this image are unlike those it was trained on. Check the image, or choose another model."
    ),
    "system-unknown": _(
        "The model {model} needs the system {system}, which this version of ConResNet does not have (it has {known}); "
        "update ConResNet."
    ),
    "weights-damaged": _("{source} cannot be read ({reason}); get the model again."),
    "weights-missing": _("{source} does not have the tensor {tensor}; get the model again."),
    "weights-shape": _("In {source} the tensor {tensor} has the shape {shape} instead of {expected}."),
    "weights-left-over": _("{source} has the tensor {tensor}, which the network does not have."),
    "map-unknown": _("Unknown map {map}; choose from {known}."),
    "map-unavailable": _("The model {model} has no {map} map; it has {available}."),
}
