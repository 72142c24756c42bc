"""Messages about training: data sets, plans, runs, evaluation."""

from conresnet.messages.images import _

TRAINING: dict[str, str] = {
    "training-packages-missing": _(
        'Training requires packages that this Python does not have; run "{python} -m pip install {names}" to install '
        "them."
    ),
    # Data sets
    "folder-not-found": _("The folder {path} does not exist."),
    "folder-unreadable": _("The data set {path} cannot be read ({reason}); check its permissions."),
    "data-set-not-found": _(
        "{path} is not a data set: it has no dataset.json (Medical Segmentation Decathlon, nnU-Net), no case folders "
        "with CASE/CASE_t1.nii.gz and so on (BraTS), and no label_maps.json. Choose a data set in one of these "
        'layouts, or write a dataset.json (see "Your own cases" in the training documentation).'
    ),
    "run-data-not-found": _(
        "The data set {path} of the run {run} does not exist. If it was moved, give its new folder with --data (with "
        "evaluate, as the second argument)."
    ),
    "data-set-mixed": _(
        "{path} has cases named as in BraTS 2021 and earlier (_t1) and cases named as in BraTS 2023 and later "
        "(-t1n), whose label values differ. Move them to two folders."
    ),
    "labels-unclear": _(
        "{path} contains {case} from BraTS-PEDs, whose label values changed their meaning in 2024. Add a "
        "dataset.json that lists the files of each case and the meaning of its values, as for nnU-Net."
    ),
    "no-cases": _("{path} has no labeled cases to train on."),
    "one-case": _("{path} has only one case, which cannot be used for both training and validation. Add more cases."),
    "one-patient": _(
        "All cases in {path} are from one patient, who cannot be used for both training and validation. Add cases "
        "from other patients."
    ),
    "case-name-repeated": _('{path} has two cases named "{case}" ({first} and {second}). Rename one of them.'),
    "case-listed-twice": _('The case "{case}" is listed twice in {path}. Remove one of the two entries.'),
    "case-file-missing": _(
        'The case {case} has no file {path}. Run "python -m conresnet_training check" to list all missing files.'
    ),
    "in-case": _("Case {case}: {sentence}"),
    "no-foreground": _("No training case of {path} contains a labeled voxel, so there is nothing to learn."),
    # dataset.json
    "data-set-unreadable": _("{path} cannot be read ({reason})."),
    "data-set-not-json": _("{path} is not JSON text. Save it as UTF-8, and check its quotes, commas and brackets."),
    "data-set-key-repeated": _('{path} has the key "{key}" twice in one object; remove one of them.'),
    "data-set-no-object": _("{path} must contain a JSON object."),
    "data-set-channels": _('{path} needs "modality" or "channel_names", such as {{"0": "T1"}}.'),
    "data-set-no-labels": _('{path} needs "labels", such as {{"0": "background", "1": "tumor"}}.'),
    "data-set-label-invalid": _("In {path}, the label {label} is not a name with a value."),
    "data-set-label-ignore": _(
        '{path} has the label "ignore", which is not supported. Give those voxels another label, and remove this one.'
    ),
    "data-set-label-range": _('In {path}, the label "{label}" has a value that is not between 1 and 255.'),
    "data-set-label-repeated": _('In {path}, two labels are named "{label}".'),
    "data-set-value-repeated": _("In {path}, two labels have the same value."),
    "data-set-only-background": _("{path} names no labels other than the background."),
    "data-set-region-order": _('In {path}, "regions_class_order" must have one value for each region, all different.'),
    "data-set-no-list": _('{path} needs "training", a list of images and labels.'),
    "data-set-entry": _('In {path}, the entry {entry} of "training" does not have an "image" and a "label".'),
    "data-set-case-files": _('In {path}, the case "{case}" does not have {count} "images" and a "label".'),
    "data-set-ending": _('In {path}, "file_ending" must be an ending such as ".nii.gz".'),
    "data-set-without-spacing": _(
        "{path} lists {ending} files, which do not store the voxel size. Convert them to NIfTI with the correct "
        "spacing."
    ),
    # label_maps.json
    "label-maps-key-unknown": _('In {path}, the key "{key}" is unknown. Known keys are {known}.'),
    "label-maps-no-segments": _('{path} needs "segments", such as {{"Left thalamus": [10]}}.'),
    "label-maps-segment-range": _('In {path}, the segment "{segment}" needs label values from 1 to {most}.'),
    "label-maps-value-shared": _(
        'In {path}, the segment "{segment}" has the value {value}, which also belongs to another segment.'
    ),
    "label-maps-too-many-values": _("{path} names {count} label values, but at most {most} are possible."),
    "label-maps-alike-unknown": _(
        'In {path}, "alike" names the value {value}, which is not in a segment, "inside" or "surroundings".'
    ),
    "label-maps-contrasts": _(
        'In {path}, "contrasts" must name a mean and a standard deviation per value, such as '
        '{{"T1": {{"10": [0.7, 0.04]}}}}.'
    ),
    "label-maps-no-values": _('In {path}, "{key}" must be a list of label values, which are whole numbers above 0.'),
    "label-maps-no-list": _('In {path}, "{key}" must be a list.'),
    "label-maps-no-pattern": _(
        '{path} needs "label_maps", a pattern such as "label_maps/*.nii.gz" or a list of patterns.'
    ),
    "label-maps-pattern-absolute": _(
        'In {path}, "label_maps" has {pattern}, which is not a pattern relative to the folder of this file.'
    ),
    "label-maps-no-match": _('No file matches {pattern}, which {path} names as "label_maps".'),
    "label-maps-image-entry": _('In {path}, the entry {entry} of "images" does not have an "image" and a "label".'),
    "unexpected-value": _(
        'The label map {path} has the value {value:g}, which the data set does not name. Add it to "inside" or '
        '"surroundings" in label_maps.json, or to a segment.'
    ),
    # Label maps
    "label-not-whole": _(
        "The label map {path} has values that are not whole numbers, such as {value:g}. If it was interpolated, "
        "resample it again with nearest-neighbor interpolation. Replace NaN with 0."
    ),
    "label-range": _("The label map {path} has the value {value:g}, but labels are whole numbers from 0 to 255."),
    "unexpected-labels": _(
        "The label map {path} has values that the data set does not name: {found} (with the number of voxels). The "
        "data set names {known}. Correct the label map, or name the values in dataset.json."
    ),
    "label-grid-differs": _(
        "The label map {path} is not on the grid of {image} ({difference}). Resample the label map to the image, or "
        "correct its header."
    ),
    "output-in-data": _("{path} is inside the data set's folder, which is never modified. Choose another --output."),
    # Planning
    "plan-system-unknown": _('Unknown system "{system}". Did you mean "{nearest}"? "plan --help" lists all systems.'),
    "spacing-unknown": _(
        "The plan keeps the spacing of every image, so there is no spacing to double; make a plan with a fixed spacing."
    ),
    "no-regions": _("No label of {path} is part of a region, so regions cannot be planned; plan labels instead."),
    "no-residuals": _("{title} does not compare slices along an axis; do not set a residual axis, or plan ConResNet."),
    "base-width-invalid": _("The base width must be a multiple of {multiple}, not {width}."),
    "memory-too-small": _(
        "Even the smallest network needs {gigabytes} GB of memory (available: {available}); train on a computer with "
        "more, and give its memory with --memory."
    ),
    "synthesis-missing": _(
        "The data set has label maps without images, but the plan has no synthesis section; make a new plan."
    ),
    "synthesis-spacing": _("Images are synthesized at one spacing; set model.preparation.spacing in the plan."),
    "plan-network-wrong": _("The plan's network cannot be built: {reason}."),
    "runs-not-joined": _(
        "The runs {first} and {second} have several networks each and cannot become one model; choose one of them."
    ),
    # Plans
    "plan-not-found": _("The plan {path} cannot be read: {reason}."),
    "plan-not-text": _("The plan {path} is not plain text. Save it as UTF-8."),
    "plan-not-yaml": _("The plan {path} is not valid YAML: {reason}."),
    "plan-invalid": _("In the plan {path}, {reason}."),
    "in-plan": _("In the plan {path}: {sentence}"),
    "setting-without-value": _(
        "The setting {setting} is not of the form KEY=VALUE; write it as in training.steps=500."
    ),
    "setting-not-yaml": _("The value of the setting {setting} is not YAML; quote it or write it as in the plan."),
    "setting-unknown": _("The plan has no {setting}; the closest match is {nearest}."),
    "setting-too-deep": _("The plan has no {setting}; {above} has no settings inside it."),
    "setting-invalid": _("With {settings}, the plan is invalid: {reason}."),
    "plan-model-wrong": _('"model.{field}" {reason}; correct it, or make a new plan.'),
    "targets-incomplete": _("The targets must name exactly the segments {segments}."),
    "system-not-trained": _("model.system.type must be one of {known}, not {kind}."),
    "targets-share-value": _(
        "The targets {first} and {second} share the label value {value}. Give it to one of them, or set "
        "model.output.kind to regions."
    ),
    "swapped-segments": _(
        "augmentation.swapped_segments must name pairs of different segments, each segment at most once."
    ),
    "swapped-segment-unknown": _(
        "augmentation.swapped_segments names {name}, which is not a segment of the plan; its segments are {names}."
    ),
    "in-plan-with-settings": _("With {settings}, the plan is invalid: {sentence}"),
    "inputs-not-channels": _(
        "The plan has the inputs {inputs}, but the data set {data} has the channels {channels}. Make a new plan from "
        "the data set."
    ),
    "input-of-another-channel": _(
        "Input {place} of the plan is named {input}, which is another channel of the data set. List model.inputs in "
        "the order of the data set's channels ({channels})."
    ),
    "target-unknown": _(
        "The target {segment} has the label value {value}, which the data set does not name; it names {known}. Correct "
        "the targets in the plan."
    ),
    "target-of-another-label": _(
        "The target {segment} has the label values {ours}, but in the data set {data}, {segment} has the values "
        "{theirs}. Correct the targets in the plan, or the labels of the data set."
    ),
    # Folds
    "plan-exists": _(
        "{path} already exists. Choose another file, or give --overwrite to replace it along with any edits in it."
    ),
    "not-a-plan": _("{path} is not a plan, so --overwrite does not replace it. Choose another file."),
    "synthesis-filters": _(
        "Images cannot be synthesized for a model with the intensity step {step}, which needs the whole image. Plan "
        "another system."
    ),
    "too-many-folds": _(
        "{cases} cases of {patients} patients cannot be divided into {folds} folds. Plan fewer folds (training.folds)."
    ),
    "fold-unknown": _("There is no fold {fold}; the plan has folds 0 to {last}."),
    "window-invalid": _(
        "The sides of the window ({window}) must be multiples of {multiple}; change model.inference.window in the plan."
    ),
    # Runs
    "run-exists": _("The folder {path} is not empty. Resume the run in it, or choose a new folder."),
    "run-not-found": _(
        "{path} is not the folder of a training run, which contains plan.yaml and fold.txt. Choose the folder that was "
        "the --output of the train command."
    ),
    "run-inside": _("{path} is not the folder of a training run, but contains some. Choose one of them: {names}."),
    "run-is-crossval": _("{path} is a cross-validation, not a single run. Continue it with: {command}"),
    "run-unreadable": _("The folder {path} cannot be read ({reason}); check its permissions."),
    "run-in-use": _("Process {pid} is training in {path}. Stop it, or wait until it ends."),
    "run-not-running": _("No training is running in {path}."),
    "fold-file-damaged": _(
        '{path} must contain the number of the fold that the run holds out (0 to {last}) or "none". Correct it.'
    ),
    "nothing-held-out": _(
        "The run {run} was trained on all cases, so there are no held-out cases to evaluate it on. Evaluate a run "
        "that holds out a fold. To export this run, name such a run with --measured-by."
    ),
    "split-damaged": _("{path} does not list the run's cases ({part}). Restore it from a backup, or start a new run."),
    "cases-gone": _(
        "Cases that the run {run} was started with are missing from the data set {data}: {names}. Restore them, or "
        "start a new run."
    ),
    "plan-changed": _(
        "In {path}, {part} was changed after training began, so the plan no longer describes what the network has "
        "learned. Undo the change, or start a new run."
    ),
    "steps-changed": _(
        "The run was started with training.steps={steps}, which cannot be changed, because {stages} stages "
        "are trained one after the other. Change it back, or start a new run."
    ),
    "checkpoint-damaged": _("The checkpoint {path} cannot be read. Restore it from a backup, or start a new run."),
    "checkpoint-of-another-plan": _(
        "The checkpoint {path} does not fit the network in the plan. Undo the changes to the plan, or start a new run."
    ),
    "checkpoint-not-found": _(
        "The run {run} has no checkpoint {path} yet. Continue training, or choose another checkpoint."
    ),
    "stage-not-reached": _(
        "The checkpoint {path} was saved after {steps} steps, before the last of {stages} stages was trained. Resume "
        "the run."
    ),
    "not-finite": _(
        "Step {step} produced values that are not finite, with samples of {names}. Check these cases, or lower the "
        "learning rate in {plan}, and resume; the checkpoints are from earlier steps."
    ),
    "start-does-not-fit": _(
        "The model {model} has a different kind or size of network than the plan: only {fitting} of {tensors} tensors "
        "fit. Plan a network like the model's, or remove start_from."
    ),
    # Devices
    "processes-differ": _(
        "{launched} processes were launched, but --devices and --nodes require {processes}. Change these options or "
        "the launch command."
    ),
    "batch-not-divisible": _(
        "A batch of {batch} cannot be divided among {processes} processes. Change training.batch or --devices."
    ),
    "more-processes-than-cores": _(
        "--devices {devices} would start {devices} processes on the {cores} processor cores of this computer. Set it "
        "to {cores} or less."
    ),
    "devices-not-available": _("The requested devices are not available: {reason}."),
    "bf16-window-too-small": _(
        "With {precision}, CPUs compute wrong gradients if a side of the window ({window}) has {smallest} voxels or "
        "fewer. Set training.precision to auto or 32-true, or plan a larger window."
    ),
    "step-exceeds-memory": _(
        "A training step with windows of {window} voxels and a batch of {batch} needs at least {needed} GB of memory, "
        "but this computer has {total} GB. Set a smaller model.inference.window, training.batch or base_width."
    ),
    "warn-step-memory": _(
        "A training step with windows of {window} voxels and a batch of {batch} needs about {needed} GB of memory, "
        "but only {free} GB are free, so the system may kill the training without a message. Close other programs, or "
        "set a smaller model.inference.window, training.batch or base_width."
    ),
    "training-out-of-memory": _(
        "There is not enough memory to train {path}. Close other programs that use the device and resume, or start a "
        "new run with a smaller training.batch, inference.window or base_width."
    ),
    "run-files-gone": _(
        "Files of the run {path} were deleted while it trained. Resume it if its checkpoints still exist; otherwise, "
        "start a new run."
    ),
    "process-lost": _(
        "Another process that trains in {path} ended or cannot be reached. Check its message, and whether it was "
        "killed, possibly because memory ran out. Then resume."
    ),
    "workers-died": _(
        "A process that made samples for {path} died ({reason}), possibly because memory (in a container, "
        "shared memory) ran out. Lower training.workers or provide more memory, and resume."
    ),
    # Cross-validation and export
    "crossval-plan-differs": _(
        "{path} was started with a different plan. Choose a new folder, or use the plan {plan}."
    ),
    "crossval-cases-differ": _(
        "The data set {data} has changed since {run} was started ({what}). Folds that are started now would not match "
        "that run. Restore the cases, or start a cross-validation in a new folder."
    ),
    "fold-plan-differs": _(
        "{path} no longer has the model, targets and folds of {plan}. Change them back; only training settings may "
        "differ."
    ),
    "fold-failed": _(
        "Training failed in {path} for these folds: {folds}. Fix the problems that their messages describe, and "
        "repeat the command."
    ),
    "runs-differ": _(
        "The plans of {first} and {second} differ in {part} ({one} and {other}). Only runs that agree can become one "
        "model."
    ),
    "run-repeated": _("The run {path} is listed twice. List it once."),
    # Evaluation
    "predictions-not-found": _(
        "{path} is not a training run and has no label map named like a case of {data}, such as {case}.nii.gz or "
        "{case}/segmentation.nii.gz."
    ),
    "prediction-repeated": _(
        "The case {case} has two label maps, {first} and {second}. Remove the one that is not to be measured."
    ),
    "regions-cross": _(
        "The regions {first} and {second} of {data} partly overlap, which a label map cannot show. Evaluate the "
        "training run itself, or define nested regions."
    ),
    "evaluation-not-found": _(
        'The evaluation {path} cannot be read ({reason}). Create it with "python -m conresnet_training evaluate".'
    ),
    "run-not-evaluated": _("{path} has not been evaluated yet. Evaluate it first: {command}"),
    "evaluation-invalid": _("{path} is not an evaluation, or is damaged. Evaluate again."),
    "evaluation-segments-differ": _("In {path}, not all cases have the same segments. Evaluate again."),
    "in-comparison": _("{one} and {other} cannot be compared. {sentence}"),
    "no-common-case": _("The evaluations of {first} and of {second} have no case in common."),
    "evaluation-segments-unlike": _(
        "The two evaluations measured different segments ({first}; {second}), so they cannot be compared."
    ),
    "tolerances-differ": _(
        "The two evaluations used different tolerances for surface Dice ({first:g} mm and {second:g} mm). Evaluate "
        "again with the same tolerance."
    ),
    "comparison-path-taken": _(
        "{path} already exists, is not a comparison, and was not changed; choose another file with --output."
    ),
    # The review list.
    "review-cases-unknown": _(
        "The package {model} does not list the cases that were held out from its training; name them with --cases."
    ),
    "review-case-missing": _("The data set {data} has no case {case}; check --data, or name other cases with --cases."),
    "review-case-without-images": _(
        "The case {case} of {data} has no images; name cases with images with --cases, or fit the review list by "
        "exporting the training run again."
    ),
    "review-labels-differ": _(
        "The model {model} has the segments {segments}, but the data set {data} has the labels {labels}; use a data "
        "set with the same names or values."
    ),
    "review-empty": _(
        "The model {model} found nothing in these cases, so there is nothing to fit; check that they show what it "
        "segments."
    ),
}
