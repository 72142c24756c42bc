"""All error and warning messages, by code. They are written here and nowhere else.

`conresnet.errors.UserError` looks up its sentence here. Slicer's module translates the same templates, so each is
marked with ``_()``. Names in braces are values that come with the error. Standard library only.

A good sentence names the file or setting, says what is wrong and what to do, and ends with a period. It says "image"
and "ROI", which fit the command line and Slicer alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conresnet.messages.engine import ENGINE
from conresnet.messages.images import IMAGES, _
from conresnet.messages.training import TRAINING

# Volumes and ROIs in the scene, the engine process, and training cases made from the scene.
SLICER: dict[str, str] = {
    "volume-empty": _("The volume {name} has no image; load it again or choose another one."),
    "volume-color": _("The volume {name} has {count} values per voxel, like a color image; choose a grayscale volume."),
    "volume-removed": _("The volume {name} was removed during the segmentation, so the result was discarded."),
    "volume-changed": _("The volume {name} was changed during the segmentation; segment it again."),
    "segmentation-module-not-loaded": _(
        "The model in {path} was not installed, because the module ConRes Segmentation is not loaded. Enable the "
        "module under Edit > Application Settings > Modules, restart Slicer, and install the model in ConRes "
        "Segmentation."
    ),
    "model-changed": _("The model {model} was replaced in the meantime; segment again."),
    "volume-moved": _(
        "{name}, its segmentation or one of its maps has been moved or changed since it was segmented; segment it "
        "again to make a report."
    ),
    "report-without-volume": _(
        "The volume that {name} was made from was removed; load it and segment it again to make a report."
    ),
    "result-removed": _("{name} was removed or replaced in the meantime; segment again."),
    "input-removed": _("{name} was removed before the segmentation started; choose the inputs and click Segment."),
    "channels-missing": _("The model {model} needs {count} volumes: {names}."),
    "roi-not-placed": _("The ROI {name} has not been placed yet; draw it around the structure, or choose no ROI."),
    "roi-inside-out": _("The ROI {name} is inverted (Inside out); turn Inside out off in the Markups module."),
    "roi-flat": _(
        "The ROI {name} has no thickness in at least one direction; enlarge it, and check the transform it is under."
    ),
    "transform-not-linear": _(
        "{name} is under the transform {transform}, which is not linear; harden the transform in the Transforms "
        "module, or move {name} out of it."
    ),
    "engine-python-not-found": _(
        "The Python for the engine, {program}, does not exist; choose another one under Advanced."
    ),
    "engine-python-name": _(
        "{program} does not look like a Python interpreter; choose a python executable under Advanced."
    ),
    "python-not-running": _("{program} does not run as a Python interpreter; choose another one."),
    "python-too-old": _("{program} is Python {found}, but {least} or later is needed; choose another one."),
    "python-packages-missing": _(
        "Missing packages: {names} ({first}: {reason}). Install them with: {program} -m pip install {wanted}"
    ),
    "engine-packages-missing": _("The engine needs {wanted}, which can be installed into Slicer's Python now."),
    "engine-slicer-old": _(
        "This version of Slicer is too old for the engine, which needs {wanted}; use a newer Slicer or another Python."
    ),
    "engine-python-intel": _(
        "PyTorch is no longer available for the Intel Python that Slicer uses on a Mac. Make a Python environment for "
        "Apple silicon with {wanted}, and choose it as Engine Python under Advanced."
    ),
    "engine-not-started": _("The engine could not be started with {program}; choose another Python under Advanced."),
    "engine-start-failed": _(
        "The engine stopped before it was ready ({reason}); check that the Python {program} has the required packages, "
        "and see the log."
    ),
    "engine-silent": _(
        "The engine did not respond for {seconds} seconds after it was started with {program}; check that this is a "
        "working Python, and segment again."
    ),
    "engine-version": _(
        "The engine that {program} runs has a different version ({version}, protocol {protocol} instead of {ours}); "
        "restart Slicer, and reinstall the extension if that does not help."
    ),
    "engine-died": _(
        "The engine stopped unexpectedly ({reason}); segment again, and see the log if it stops again. If memory may "
        "have run out, close other programs, draw a smaller ROI, or choose another device first."
    ),
    "engine-message": _("The engine sent something unexpected and was stopped; see the log."),
    "engine-answer-unused": _("The engine's response could not be used; see the log."),
    "engine-server-invalid": _(
        "{server} is not the name of a server; enter user@server, or a name from ssh's configuration, under Advanced."
    ),
    "engine-ssh-missing": _(
        "The engine cannot run on {server} because the program ssh is not installed on this computer; install OpenSSH."
    ),
    "engine-server-unknown": _(
        "ssh does not recognize the host key of {server}; run ssh {server} once in a terminal, check the key there, "
        "and click Segment again."
    ),
    "engine-server-key-changed": _(
        "The host key of {server} has changed, so ssh refused to connect. Ask the server's administrator whether this "
        "is expected. If so, run ssh {server} in a terminal, remove the old key that it names, and click Segment again."
    ),
    "engine-server-silent": _(
        "The engine on {server} did not start within {seconds} seconds; run ssh {server} in a terminal, check that the "
        "login is quick and does not ask for anything, and click Segment again."
    ),
    "engine-server-login": _(
        "ssh could not log in to {server} without a password; set up a key for it (ssh-copy-id {server}), and click "
        "Segment again."
    ),
    "engine-server-unreachable": _(
        "{server} cannot be reached ({reason}); check its name and the network, and click Segment again."
    ),
    "engine-server-failed": _(
        "The engine could not be started on {server} ({reason}); install ConResNet there with Python {python} or "
        "later, and enter the path of that Python under Advanced."
    ),
    "engine-server-version": _(
        "{server} has ConResNet {version}, but this Slicer has {ours}; install the same version there."
    ),
    "engine-server-lost": _(
        "The connection to {server} was lost, or the engine there stopped, possibly because it ran out of memory; "
        "click Segment to try again."
    ),
    "engine-folder-gone": _("The engine's temporary folder no longer exists; segment again."),
    "training-environment-missing": _(
        "There is no training environment yet; create one or choose another Python under Where to run."
    ),
    "training-python-missing": _("Choose the Python to use for training."),
    "training-python-not-found": _("The Python for training, {program}, does not exist; choose another one."),
    "training-command-missing": _("Enter a command prefix, such as ssh host."),
    "training-command-invalid": _("The command {command} cannot be started; check its spelling."),
    "training-not-started": _("Training could not be started with {program}: {reason}."),
    "batch-channels-missing": _(
        "No image in {folder} has a name that matches {channels}; rename the images, or load them."
    ),
    "series-unreadable": _(
        "{path} cannot be read as a volume sequence; load it in Slicer, and check the sequence there."
    ),
    "frame-removed": _("{name} was removed from its sequence before it was segmented; run the batch again."),
    "batch-folder-missing": _("The results folder {path} does not exist; create it, or choose another one."),
    "result-not-saved": _("The result could not be saved to {path}; choose a folder that you can write to."),
    "case-folder-used": _("{folder} is not empty and is not a data set; choose a new folder for a new data set."),
    "case-folder-nnunet": _(
        "{folder} uses the nnU-Net layout; cases can be added to a data set in the layout of the Medical Segmentation "
        "Decathlon, or to a new folder."
    ),
    "case-folder-regions": _(
        "The labels of {folder} are overlapping regions, which one label map cannot store; choose another data set."
    ),
    "case-name-invalid": _(
        '"{name}" cannot be the name of a case; use letters, digits, periods, hyphens and underscores, '
        "starting with a letter or digit, and no file ending such as .nii."
    ),
    "plan-edited-elsewhere": _("The plan was changed by another program; check it and click Start again."),
    "plan-gone": _(
        "{path} is missing or cannot be read; the plan is still in the editor. Click Start again to save and train it."
    ),
    "plan-kept": _(
        "The edits were not saved because {path} contains a different plan; choose another file, or click Reset to see "
        "that plan."
    ),
    "case-name-long": _('The name "{name}" is too long for a case; use a shorter one.'),
    "case-name-taken": _("The data set already has a case {name}; choose another name."),
    "case-channels-differ": _(
        "The data set has the channels {wanted}, but the case has {given}; choose one volume for each channel of the "
        "data set."
    ),
    "case-segment-unknown": _(
        "The data set has no label {segments}; its labels are {labels}. Rename or remove these segments."
    ),
    "case-segments-overlap": _(
        "The segment {name} overlaps another segment, which one label map cannot store; separate them first."
    ),
    "case-segments-empty": _("No voxel of the image is segmented; choose another segmentation."),
    "case-grid-sheared": _(
        "The axes of the volume are not at right angles, which NIfTI files cannot store; resample the volume first."
    ),
    "case-segment-name": _('A segment of a data set cannot be named "{name}"; rename it.'),
    "case-segment-repeated": _("Two segments are named {name}; rename one of them."),
    "case-label-grid-differs": _(
        "The label map {label} is not on the voxel grid of {volume}; resample it, or convert it to a segmentation."
    ),
    "case-label-unnamed": _(
        "The value {value} of the label map {label} has no unique name in its color table; give it one there."
    ),
}

# Commands in a terminal, and their lists of cases.
COMMAND_LINE: dict[str, str] = {
    "packages-wrong": _("{wrong} of {count} models cannot be used, for the reasons above."),
    "settings-unreadable": _("The settings {file} cannot be read ({reason}); check the file."),
    "argument-blank": _("The value of {option} is empty; give it a value, or leave the option out."),
    "internal-error": _("An internal error occurred ({reason}); please report it with the log {log}."),
    "internal-error-no-log": _("An internal error occurred ({reason}), and no log could be written."),
    "cases-unreadable": _("The list of cases {path} cannot be read ({reason})."),
    "cases-columns": _(
        "The first line of the list of cases {path} must name the columns {columns}, optionally {roi}, and no others, "
        'separated by commas, semicolons or tabs, but it is "{line}".'
    ),
    "cases-empty": _("The list of cases {path} has no case below its first line."),
    "several-slices": _("{sentence} To segment a DICOM series, give its folder instead of its slices."),
    "several-cases": _("{sentence} To segment several cases, list them with --cases."),
    "cohort-needs-package": _(
        "Segmenting several cases at once requires the Python packages distributed and cryptography; install them "
        "with: pip install distributed cryptography."
    ),
    "cohort-no-scheduler": _(
        "No Dask scheduler responds at {address}; check that the address has the form tcp://HOST:PORT, and that the "
        "scheduler is running."
    ),
    "cohort-versions-differ": _(
        "The workers have ConResNet {theirs}, but this is {ours}; install the same version everywhere."
    ),
    "cohort-no-certificate": _(
        "{address} requires TLS certificates; set them in Dask's configuration (distributed.comm.tls), as on the "
        "scheduler's computer."
    ),
    "cohort-worker-unusable": _(
        "The worker {worker} cannot run ConResNet ({reason}); install ConResNet {ours} in the Python of every worker."
    ),
    "cohort-worker-silent": _(
        "The worker {worker} does not respond; end or restart it, and run the command again. Finished cases were kept."
    ),
    "cohort-model-differs": _(
        "The worker {worker} does not have the model {model}, or has a different model at that path; with --scheduler, "
        "the same model must be at the same path on all computers."
    ),
    "cohort-folder-differs": _(
        "The worker {worker} cannot see the output folder {path}; with --scheduler, images and results must be in "
        "folders that all computers share."
    ),
    "cohort-image-elsewhere": _(
        "The worker cannot find {path}, but this computer can; put the images in a folder that all computers share."
    ),
    "cohort-scheduler-lost": _(
        "The connection to the Dask scheduler was lost; finished cases were kept. Run the command again to continue."
    ),
    "cohort-case-killed": _(
        "{count} worker processes died while segmenting it, possibly because memory ran out; segment this case "
        "alone, or give it an ROI."
    ),
    "cases-in-the-way": _(
        "The list of cases {path} would be replaced by the table of results; rename the list, or choose another output "
        "folder."
    ),
    "summary-not-ours": _(
        "{path} was not written by ConResNet and would be replaced by a summary of the results; move it, or choose "
        "another output folder."
    ),
    "results-differ": _(
        "The results in {path} do not match the command ({differences}); replace them with --overwrite, choose "
        "another output folder, or, if an option differs, change it back and repeat the command."
    ),
    "results-out-of-date": _(
        "The results in {path} are out of date because {changed} changed after they were made; replace them with "
        "--overwrite."
    ),
    "cases-failed": _("{failed} of {cases} cases could not be segmented, for the reasons above."),
    "case-line-incomplete": _("Line {line} of the list of cases {path} has no {column}."),
    "case-quotes": _(
        "Line {line} of the list of cases {path} has an unmatched quotation mark; remove it, or add the other one."
    ),
    "case-too-long": _(
        "Line {line} of the list of cases {path} has more fields than there are columns; put quotes around a field "
        "that contains commas."
    ),
    "case-name": _(
        'Line {line} of the list of cases {path} has the name "{name}", which cannot be the name of a folder on every '
        "system; rename the case."
    ),
    "case-line-repeated": _('The list of cases {path} has the name "{name}" twice; rename one of the cases.'),
    "case-names-collide": _(
        'The list of cases {path} has the names "{other}" and "{name}", which would share one folder on some systems; '
        "rename one."
    ),
}


# By the context that Slicer's translation tools use for the templates of a Python file: its package and its name.
_CATALOGS = {
    "messages.__init__": SLICER | COMMAND_LINE,
    "messages.engine": ENGINE,
    "messages.images": IMAGES,
    "messages.training": TRAINING,
}
_CONTEXTS = {code: context for context, catalog in _CATALOGS.items() for code in catalog}
MESSAGES: dict[str, str] = {code: text for catalog in _CATALOGS.values() for code, text in catalog.items()}

Translate = Callable[[str, str], str]
"""Translates an English template into the user's language, given its context; such as ``slicer.i18n.translate``."""


def _english(context: str, text: str) -> str:
    return text


def sentence(code: str, values: Mapping[str, Any], translate: Translate = _english) -> str:
    """Return the sentence for a code; in English if a translation has invalid placeholders.

    Args:
        code: a key of ``MESSAGES``.
        values: the values of the names in braces.

    Raises:
        KeyError: the code is unknown, or a value is missing.
    """
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
    try:
        return translate(_CONTEXTS[code], MESSAGES[code]).format(**shown)
    except (KeyError, IndexError, ValueError):
        return MESSAGES[code].format(**shown)


UNFITTED = "reason-unfitted"


def reason(codes: Sequence[str], translate: Translate = _english) -> str:
    """Return why a place is in the review list, as text; ``codes`` as in ``conresnet.results.review.ReviewRow``."""
    text = "; ".join(sentence(code, {}, translate) for code in codes if code != UNFITTED)
    return sentence(UNFITTED, dict(reason=text), translate) if UNFITTED in codes else text


def rounded(number: float) -> str:
    """A number with three significant digits, up to a million without an exponent."""
    return f"{float(f'{number:.3g}'):g}"


def printable(text: str) -> str:
    r"""``text`` with control characters and lone surrogates escaped (``\x1b``), so that it cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
