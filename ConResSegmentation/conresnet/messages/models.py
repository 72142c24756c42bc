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
    "coarse-pass-empty": _(
        "The coarse pass of {model} found nothing in this case, so the result is empty. Check that the image shows "
        "what the model segments, or draw an ROI around it."
    ),
    "map-unknown": _("Unknown map {map}; choose from {known}."),
    "map-unavailable": _("The model {model} has no {map} map; it has {available}."),
    # Files of a package
    "package-not-found": _("There is no model package at {file}; check the path."),
    "package-without-description": _(
        "{file} has no model.json, so it is not a model package; choose the folder or .zip file that has one."
    ),
    "model-is-checkpoint": _(
        "{name} is a checkpoint, not a model package. Convert it with the command 'python -m conresnet import', or "
        "'python -m conresnet_training export' if you trained it; then install the result."
    ),
    "package-damaged": _("The model package {file} cannot be read ({reason}); get a fresh copy."),
    "package-unsafe": _("The model package {file} was refused because {reason}; get it from a source that you trust."),
    "package-file-missing": _("The model package {file} is incomplete: {name} is missing; get a fresh copy."),
    "package-truncated": _(
        "{name} in the model package {file} has {bytes} bytes instead of {expected}; get a fresh copy."
    ),
    "package-checksum": _(
        "{name} in the model package {file} does not match the checksum in its model.json, so it is damaged or was "
        "changed; get a fresh copy."
    ),
    "package-weights": _(
        "{file} is not a complete safetensors file, and weights in other formats are not read; get a fresh copy of the "
        "model package."
    ),
    "package-exists": _("{file} already exists and was not changed; choose another name, or allow overwriting."),
    "package-path-taken": _(
        "{file} already exists, is not a model package, and was not changed; choose another name, or move it."
    ),
    # Importing checkpoints
    "import-not-found": _("There is no checkpoint at {path}; check the path."),
    "import-cannot-read": _("{path} cannot be read ({reason}); check the file."),
    "import-folder": _("{path} is a folder; choose the checkpoint file in it."),
    "import-of-package": _(
        "{path} is a model package already; install it with the command 'python -m conresnet models install'."
    ),
    "import-of-run": _(
        "{path} belongs to a training run of ConResNet; make a model package of the run with the command "
        "'python -m conresnet_training export'."
    ),
    "import-torchscript": _(
        "{path} is a TorchScript program, which is not run; save the network's state_dict with torch.save instead."
    ),
    "import-unreadable": _(
        "{path} is not a complete checkpoint as torch.save writes it; get a fresh copy, or check that it is the right "
        "file."
    ),
    "import-object": _(
        "{path} was refused because it contains Python objects besides tensors ({objects}), which could run code when "
        "read; save the network's state_dict alone."
    ),
    "import-content": _(
        "{path} has no tensors with names (a state_dict); save the network's state_dict with torch.save."
    ),
    "import-several": _(
        "{path} has several networks of the paper's authors ({places}); save the one to import in a file of its own."
    ),
    "import-missing": _(
        "{path} does not have the tensor {tensor} ({count} others are missing too); only checkpoints of the paper "
        "authors' ConResNet can be imported."
    ),
    "import-left-over": _(
        "{path} has the tensor {tensor} (and {count} others) that ConResNet does not have; only checkpoints of the "
        "paper authors' ConResNet can be imported."
    ),
    "import-shape": _(
        "In {path} the tensor {tensor} has the shape {shape} instead of {wanted}; only checkpoints of the paper "
        "authors' ConResNet can be imported."
    ),
    "import-values": _(
        "In {path} the tensor {tensor} has values that are not finite numbers in 32 bits; get a fresh copy, or "
        "train the network again."
    ),
    "import-setting-unknown": _("{key} cannot be set when {path} is imported; the fields that can be set are {known}."),
    "import-channels-differ": _(
        "{path} has {channels} channels and {segments} segments, but {given_channels} channels and {given_segments} "
        "segments are described; name them with --channel and --segment."
    ),
    # Finding models
    "models-folder-not-found": _("There is no models folder at {file}; check the path."),
    "model-not-found": _(
        'There is no model named "{name}" and no model package at that path; the available models are: {names}.'
    ),
    "model-not-found-near": _(
        'There is no model named "{name}" and no model package at that path; did you mean "{near}"?'
    ),
}
