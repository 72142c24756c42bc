"""Sentences about running the engine: devices, memory, requests, results, the command line."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


COMPUTING: dict[str, str] = {
    # Devices, precision and memory.
    "device-unknown": _("Unknown device {device!r}; choose auto, cpu, cuda, cuda:N or mps."),
    "device-unavailable": _(
        "The device {device} is not available (or this PyTorch, {torch}, cannot use it); choose auto or another device."
    ),
    "precision-unknown": _("Unknown precision {precision!r}; choose one of {known}."),
    "precision-unavailable": _("fp16 is not supported on the CPU; choose auto, bf16 or fp32."),
    "tiling-unknown": _("Unknown tiling {tiling!r}; choose one of {known}."),
    "volume-not-positive": _("{option} must be a volume above 0 mL, not {value}."),
    "out-of-memory": _(
        "The computer does not have enough memory to segment {name}; close other programs, or draw an ROI around the "
        "structure."
    ),
    "gpu-failed": _("The GPU failed ({reason}); restart the program, or choose the CPU as the device."),
    # Warnings that come with a result.
    "half-precision-exceeded": _("Values exceeded the range of {precision}; fp32 was used instead."),
    "smaller-windows": _(
        "{where} ran out of memory with windows of {size} voxels; windows of {smaller} were used instead."
    ),
    "cpu-for-windows": _(
        "{where} ran out of memory with windows of {size} voxels; the CPU, which takes longer, was used instead."
    ),
    "cpu-for-network": _(
        "{where} does not have enough memory for the network; the CPU, which takes longer, was used instead."
    ),
    "cpu-for-failure": _("{where} failed ({reason}); the CPU, which takes longer, was used instead."),
    "segment-dropped": _(
        "Nothing is left of {segment}: every piece of it is smaller than {volume} mL. Choose a smaller volume."
    ),
    # The locator, which finds ROIs.
    "no-locator": _("{model} has no locator, so it cannot find its ROI; draw an ROI around the structure."),
    "locator-not-installed": _(
        "{model} finds its ROI with the model {locator}, which is not installed; install that model, or draw an ROI "
        "around the structure."
    ),
    "locator-differs": _(
        "The installed model {locator} cannot find the ROI, because it does not have the segments {segments} in one "
        "image; install the version that belongs to the model, or draw an ROI around the structure."
    ),
    "nothing-located": _(
        "{locator} found none of these structures in {name}: {structures}. Check that the image shows them, or draw an "
        "ROI around the structure."
    ),
    "warn-not-located": _(
        "{locator} did not find this place in {name}: {place}. Nothing was segmented there; if it is wanted, draw an "
        "ROI around it."
    ),
    # The engine's process.
    "bad-request": _("The engine did not understand the request ({reason}); restart Slicer, and segment again."),
    "channel-unreadable": _("The array of {name} cannot be read from {path} ({reason}); segment again."),
    "engine-incomplete": _(
        "The engine's Python, {python}, does not have {package}; install what the engine needs, or choose another "
        "Python."
    ),
    "engine-broken": _(
        "The engine's Python, {python}, cannot run it ({reason}); install PyTorch again, in a build for this computer, "
        "or choose another Python."
    ),
    "engine-fault": _("An internal error occurred in the engine ({reason}); please report it with the diagnostics."),
    # Files.
    "disk-full": _("There is not enough disk space to write {path}; free some space and try again."),
    "cannot-write": _("{path} cannot be written ({reason}); choose a folder you may write to."),
    "file-empty": _("{path} is an empty file; copy, download or export it again."),
    "file-lfs-pointer": _(
        '{path} is a Git LFS pointer and not the file itself; run "git lfs pull", or download the file.'
    ),
    "file-web-page": _(
        "{path} is a web page; check the link that it was downloaded from, which may need a login, and download the "
        "file itself."
    ),
    "cannot-access": _("{path} cannot be accessed ({reason}); check its name and permissions."),
    # The folder of a case's results.
    "output-not-folder": _("The output {path} is a file; name a folder for the results."),
    "results-exist": _(
        "{path} already holds results ({files}); name another folder, or replace them with --overwrite."
    ),
    "results-not-ours": _(
        "{path} holds {files}, which no report there lists as a result of ConResNet; move that away, or name another "
        "folder."
    ),
    "input-in-the-way": _("Writing to {path} would replace the input {file}; name another folder."),
    # The command line: models, images given by channel or in memory, and lists of cases.
    "packages-wrong": _("{wrong} of {count} models cannot be used, for the reasons above."),
    "settings-unreadable": _("The settings {file} cannot be read ({reason}); check the path."),
    "channel-unknown": _("Unknown channel {name!r}; the model's channels are {channels}."),
    "channel-repeated": _("The channel {name} is given twice."),
    "channel-missing": _("The model also needs {missing}; name an image for each channel."),
    "image-kind": _(
        "{name} cannot be segmented because it is a {kind}; give a path, a SimpleITK or nibabel image, or a pair "
        "(array, affine)."
    ),
    "image-components": _(
        "{name} holds {given} images, but {wanted} are needed ({channels}); give one image per channel, or one that "
        "holds all of them."
    ),
    "array-shape": _(
        "{name} has an array of the shape {array} and an affine of the shape {affine}; the array needs three axes, or "
        "a fourth for channels, and the affine 4 x 4 numbers."
    ),
    "argument-blank": _("The value of {option} is empty; give it a value, or leave the option out."),
    "package-missing": _("This needs {package}, which the Python at {python} does not have; install it there."),
    "memory-short": _("The computer does not have enough memory for this; close other programs, and try again."),
    "internal-error": _("An internal error occurred ({reason}); please report it with the log {log}."),
    "internal-error-no-log": _("An internal error occurred ({reason}), and no log could be written."),
    "cases-unreadable": _("The list of cases {path} cannot be read ({reason})."),
    "cases-columns": _(
        "The list of cases {path} must have the columns {columns}, separated by commas, and may have {roi}, but its "
        "first line is {line!r}."
    ),
    "cases-empty": _("The list of cases {path} has no case below its first line."),
    "cases-failed": _("{failed} of {cases} cases could not be segmented, for the reasons above."),
    "case-line-incomplete": _("Line {line} of the list of cases {path} has no {column}."),
    "case-too-long": _(
        "Line {line} of the list of cases {path} has more fields than there are columns; put quotes around a field "
        "that contains commas."
    ),
    "case-name": _(
        "Line {line} of the list of cases {path} has the name {name!r}, which cannot be a folder's name on every "
        "system; rename the case."
    ),
    "case-names-collide": _(
        "The list of cases {path} has the names {other!r} and {name!r}, whose results would be in the same folder on "
        "some systems; rename one."
    ),
}
