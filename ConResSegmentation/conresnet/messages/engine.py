"""Messages about segmentation: ROIs, model packages and checkpoints, devices, requests, results."""

from conresnet.messages.images import _

ENGINE: dict[str, str] = {
    # ROI
    "bad-roi": _("The ROI cannot be used: {reason}."),
    "roi-not-found": _("The ROI file {path} does not exist."),
    "roi-outside": _("The ROI ({roi}) is outside {name}; move it onto the structure, in RAS mm as in Slicer."),
    "roi-too-small": _("The ROI ({roi}) contains no voxel of {name}; move it onto the structure, or make it larger."),
    "roi-empty": _("{name} is empty inside the ROI ({roi}): all voxels there are {value:g}; move the ROI."),
    # Model settings and requests
    "bad-option": _("The option {option} cannot be {value}: {reason}."),
    "bad-matrix": _(
        "The last row of the matrix of {name} is {row} instead of 0, 0, 0, 1; check whether the matrix is transposed."
    ),
    "bad-grid": _("The grid {grid} is not a shape with a 4 x 4 matrix ijk_to_ras."),
    # Results
    "output-not-nifti": _("{path} cannot be written: choose a name that ends in .nii or .nii.gz."),
    # Warnings
    "warn-much-larger": _(
        "{name} is much larger than the field of view of {model}; draw an ROI around the structure, unless the model "
        "is meant for whole scans."
    ),
    "warn-larger-crop": _(
        "{model} was trained on crops of at most {largest} mm around its structure, but sees {size} mm of {name}, so "
        "the result may be wrong. Draw a tighter ROI around the structure."
    ),
    "warn-much-smaller": _(
        "{name} covers only {covered} mm of the {seen} mm field of view of {model} along the {axis} axis; with so few "
        "slices, the result may be wrong."
    ),
    "warn-much-thicker": _(
        "{name} has a spacing of {spacing} mm along its {axis} axis, much coarser than the {wanted} mm that {model} "
        "was trained on; the result may be inaccurate."
    ),
    "warn-partly-covered": _(
        "{name} covers only {share:.0%} of the part of {first} to be segmented; elsewhere, the result depends on the "
        "other images."
    ),
    "warn-no-orientation": _(
        "{path} does not store the patient's orientation. It was placed as in Slicer; check left and right, front and "
        "back."
    ),
    "warn-units": _(
        "The voxel size and position of {path} are given in {unit} and were converted to mm. Slicer ignores this unit, "
        "so it shows the image and the result in different places."
    ),
    "warn-transforms-differ": _(
        "The header of {path} contradicts itself: the positions given by qform, sform and voxel size differ by up to "
        "{distance:.1f} mm; the {taken} was used."
    ),
    "warn-scaling-ignored": _("The value scl_inter in the header of {path} is not a number; it was treated as 0."),
    # model.json
    "package-json": _("{file} cannot be read as JSON ({reason}); get a fresh copy of the model package."),
    "package-newer": _(
        "{file} has format version {version}, but this version of ConResNet reads only versions up to {ours}; "
        "update ConResNet."
    ),
    "package-description": _(
        'The model description {file} is wrong: "{field}" {reason}; correct it or get a fresh copy of the package.'
    ),
    "package-setting": _(
        'No model package was written, because "{field}" {reason}; correct this value and repeat the command.'
    ),
    # Downloads
    "catalog-unreadable": _("The model catalog {file} cannot be read ({reason}); correct it, or choose another one."),
    "catalog-empty": _(
        'The catalog lists no models, so {name} cannot be downloaded; the command "python -m conresnet models list" '
        "shows the models that come with ConResNet."
    ),
    "catalog-unknown-model": _("The catalog has no model {name}; it has: {names}."),
    "download-local": _(
        '{file} is already on this computer; install it with the command "python -m conresnet models install".'
    ),
    "download-insecure": _("{url} was refused; use an https:// address, or give the SHA-256 checksum of the file."),
    "download-failed": _("{url} cannot be downloaded ({reason}); check the address and the connection."),
    "download-interrupted": _("The download of {url} was interrupted; start it again to continue where it stopped."),
    "download-differs": _(
        "The file downloaded from {url} was deleted because its size or checksum is wrong; try again later, or ask the "
        "publisher."
    ),
    "download-checksum": _(
        "{text} is not a SHA-256 checksum, which has 64 hexadecimal digits; copy it again from the publisher."
    ),
    "download-other-model": _(
        "The file downloaded from {url} is the model {found} instead of {name} and was not installed; tell the "
        "publisher of the catalog."
    ),
    "download-running": _("{url} is already being downloaded; wait until that download has finished."),
    "download-needs-package": _("Downloading requires the Python package requests; install it with pip."),
    # Networks, systems and maps
    "network-unknown": _(
        "The model {model} cannot be built: {reason}; update ConResNet, or install the package that provides this "
        "network."
    ),
    "network-wrong": _(
        "The model {model} cannot be built: {reason}; get a fresh copy of the model, or update ConResNet if the model "
        "is newer."
    ),
    "network-ambiguous": _(
        "The model {model} combines {count} networks; load one of them by its index, 0 to {last}, or segment with the "
        "whole model."
    ),
    "network-not-found": _("The model {model} has no network {index}, only 0 to {last}."),
    "network-not-finite": _(
        "The network of {model} computed values that are not finite. Its training may have diverged, or the "
        "intensities of this image are unlike those it was trained on. Check the image, or choose another model."
    ),
    "system-unknown": _(
        "The model {model} needs the system {system}, which this version of ConResNet does not have (it has {known}); "
        "update ConResNet."
    ),
    "weights-damaged": _("{source} cannot be read ({reason}); get a fresh copy of the model."),
    "weights-missing": _("{source} does not have the tensor {tensor}; get a fresh copy of the model."),
    "weights-shape": _(
        "In {source} the tensor {tensor} has the shape {shape} instead of {expected}; get a fresh copy of the model."
    ),
    "weights-type": _(
        "In {source} the tensor {tensor} does not contain floating-point numbers; get a fresh copy of the model."
    ),
    "weights-not-finite": _(
        "The tensor {tensor} in {source} has values that are not finite, as happens when training diverges; get a "
        "fresh copy of the model, or train it again."
    ),
    "weights-left-over": _(
        "{source} has the tensor {tensor}, which the network does not have; get a fresh copy of the model."
    ),
    "map-unknown": _('Unknown map "{map}"; choose from {known}.'),
    "map-unavailable": _("The model {model} has no {map} map; it has {available}."),
    # Files of a package
    "package-not-found": _("There is no model package at {file}; check the path."),
    "package-without-description": _(
        "{file} has no model.json, so it is not a model package; choose the folder or .zip file that has one. A "
        "training run must be exported first."
    ),
    "package-not-zip": _(
        "{file} is neither a folder nor a .zip file, so it is not a model package; choose the folder or .zip file that "
        "contains model.json."
    ),
    "model-is-checkpoint": _(
        '{name} is a checkpoint, not a model package. Convert it with the command "python -m conresnet import", or '
        '"python -m conresnet_training export" if you trained it; then install the result. In Slicer, use Install..., '
        "or Import into ConRes Segmentation in ConRes Training."
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
    "package-exists": _(
        "{file} already exists and was not changed; replace it with --overwrite, or move it to another folder."
    ),
    "package-path-ending": _(
        "A model package is a folder or a .zip file, but the name {file} ends in {ending}; choose a name that ends in "
        ".zip, or one without an ending."
    ),
    "package-is-link": _("{file} is a link and was not changed; remove it first."),
    "package-path-taken": _(
        "{file} already exists, is not a model package, and was not changed; move it to another folder first."
    ),
    "package-other-files": _(
        "{file} was not changed because it also has files that do not belong to the model package ({names}); move "
        "them to another folder first."
    ),
    # Importing checkpoints
    "import-not-found": _("There is no checkpoint at {path}; check the path."),
    "import-cannot-read": _("{path} cannot be read ({reason}); check the file."),
    "import-folder": _("{path} is a folder; choose the checkpoint file in it."),
    "import-of-package": _(
        '{path} is already a model package; install it with the command "python -m conresnet models install" (in '
        "Slicer, use Install...)."
    ),
    "import-of-run": _(
        "{path} belongs to a training run of ConResNet; make a model package of the run with the command "
        '"python -m conresnet_training export" (in Slicer, use Import into ConRes Segmentation in ConRes Training).'
    ),
    "import-of-own-weights": _(
        "{path} contains weights of a model package, which need no import; install the package with the command "
        '"python -m conresnet models install".'
    ),
    "import-torchscript": _(
        "{path} is a TorchScript program, which is not run; save the network's state_dict with torch.save instead."
    ),
    "import-unreadable": _(
        "{path} is not a complete checkpoint as torch.save writes it; get a fresh copy, or check that it is the right "
        "file."
    ),
    "import-object": _(
        "{path} was refused because it contains Python objects other than tensors ({objects}), which could run "
        "code when read; save the network's state_dict alone."
    ),
    "import-content": _(
        "{path} has no tensors with names (a state_dict); save the network's state_dict with torch.save."
    ),
    "import-several": _(
        "{path} contains several networks of the paper's authors ({places}); save the one to import in a file of its "
        "own."
    ),
    "import-missing": _(
        "{path} does not have all tensors of ConResNet (missing: {count}, such as {tensor}); only checkpoints of the "
        "paper authors' ConResNet can be imported."
    ),
    "import-left-over": _(
        "{path} has tensors that ConResNet does not have ({count}, such as {tensor}); only checkpoints of the paper "
        "authors' ConResNet can be imported."
    ),
    "import-shape": _(
        "In {path} the tensor {tensor} has the shape {shape} instead of {wanted}; only checkpoints of the paper "
        "authors' ConResNet can be imported."
    ),
    "import-values": _(
        "In {path} the tensor {tensor} has values that are not floating-point numbers, or not finite in 32-bit "
        "precision; get a fresh copy, or train the network again."
    ),
    "import-average": _("The weights are a running average, from {place} in {path}."),
    "import-segment-form": _("The segment {text} does not have the form NAME=LABEL, such as Tumor=1."),
    "import-spacing-form": _("The spacing {text} is not three numbers separated by commas, such as 1,1,1."),
    "import-setting-unknown": _("{key} cannot be set when {path} is imported; the fields that can be set are {known}."),
    "import-channels-differ": _(
        "{path} has {channels} channels and {segments} segments, but {given_channels} channels and {given_segments} "
        "segments were named; name them with --channel and --segment (in Slicer, under Channels and Segments)."
    ),
    # Finding models
    "models-folder-not-found": _("There is no models folder at {file}; check the path."),
    "models-folder-not-folder": _(
        "No model can be installed, because {file} is a model package or a file and not a folder of model packages; "
        "set {variable} to the folder that contains your model packages."
    ),
    "model-not-found": _(
        'There is no model named "{name}" and no model package at that path; the available models are: {names}.'
    ),
    "model-not-found-near": _(
        'There is no model named "{name}" and no model package at that path; did you mean "{near}"?'
    ),
    "warn-model-instead": _("{sentence} The model {name} at {path} was used instead."),
    "model-kind": _(
        "The model must be a name, the path of a package, or the return value of conresnet.read_model, not {kind}."
    ),
    "model-not-removable": _("{path} is not a model package in your models folder, so it was not deleted."),
    "model-other-files": _(
        "{file} was not deleted because it also has files that do not belong to the model package ({names}); move "
        "them to another folder first."
    ),
    # Why a place is in the review list; reasons are parts of a sentence.
    "reason-typical": _("typical slice"),
    "reason-end": _("first or last slice of the segment"),
    "reason-small": _("small cross-section"),
    "reason-large": _("large cross-section"),
    "reason-uncertain": _("uncertain boundary"),
    "reason-changing": _("the area changes from slice to slice"),
    "reason-little-overlap": _("little overlap with the neighboring slices"),
    "reason-disagreement": _("differs from what the residual predicts"),
    "reason-missed": _("uncertain place outside the segments"),
    "reason-unfitted": _("{reason} (ranked by area and entropy; not fitted to this model)"),
    "review-auroc": _(
        "Slices with a Dice below {dice} are found with an AUROC of {auroc:.3f} ({area:.3f} if slices are ranked by "
        "smallest area alone)."
    ),
    "review-not-fitted": _(
        "This model has no review.json, so the ranking is not fitted to it. It uses weights for area and entropy that "
        "were fitted to hippocampi, and the expected numbers are rough."
    ),
    # Devices, precision and memory.
    "device-unknown": _('Unknown device "{device}"; choose auto, cpu, cuda, cuda:N or mps.'),
    "device-unavailable": _(
        "The device {device} is not available, or this PyTorch ({torch}) cannot use it; choose auto or another device."
    ),
    "precision-unknown": _('Unknown precision "{precision}"; choose one of {known}.'),
    "precision-unavailable": _("fp16 is not supported on the CPU; choose auto, bf16 or fp32."),
    "tiling-unknown": _('Unknown tiling "{tiling}"; choose one of {known}.'),
    "volume-not-positive": _("{option} must be a volume above 0 mL, not {value}."),
    "out-of-memory": _(
        "The computer does not have enough memory to segment {name}; close other programs, or draw an ROI around the "
        "structure."
    ),
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
    "warn-nothing-found": _(
        "The model found nothing in this image. Check that the image shows what the model segments, or draw an ROI "
        "around it."
    ),
    "warn-nothing-in-roi": _("The model found nothing in the ROI; move it onto the structure, or make it larger."),
    "warn-volume-unusual": _(
        "{segment} measures {volume} mL; in the training labels, it measured {low} to {high} mL. Check whether the "
        "image shows the whole structure, and check the result."
    ),
    "warn-volumes-unusual": _(
        "{count} of {all} segments are much smaller or larger than in the training labels. For example, {segment} "
        "measures {volume} mL, compared with {low} to {high} mL. Check whether the image suits the model, and check "
        "the result."
    ),
    # The locator, which finds ROIs.
    "no-locator": _("{model} has no locator that finds the ROI; give the ROI as a box, or leave it out."),
    "locator-not-installed": _(
        "{model} finds its ROI with the model {locator}, which is not installed; install that model, or draw an ROI "
        "around the structure."
    ),
    "locator-differs": _(
        "The installed model {locator} cannot find the ROI, because it needs several images or does not have all "
        "of the segments {segments}. Install the version that belongs to the model, or draw an ROI around the "
        "structure."
    ),
    "nothing-located": _(
        "{locator} found none of these structures in {name}: {structures}. Check that the image shows them, or draw an "
        "ROI around the structure."
    ),
    "warn-not-located": _(
        "{locator} did not find this structure in {name}: {place}. Nothing was segmented there; draw an ROI around it "
        "if you need it."
    ),
    # The engine's process.
    "bad-request": _("The engine did not understand the request ({reason}); restart Slicer, and segment again."),
    "channel-unreadable": _("The array of {name} cannot be read from {path} ({reason}); segment again."),
    "engine-incomplete": _(
        "The engine's Python, {python}, is missing {package}; install the missing packages, or choose another Python."
    ),
    "engine-broken": _(
        "The engine's Python, {python}, cannot run the engine ({reason}); reinstall a PyTorch build for this "
        "computer, or choose another Python."
    ),
    "engine-fault": _(
        "An internal error occurred in the engine ({reason}); please report it with the text from Copy diagnostics."
    ),
    # Files.
    "disk-full": _("There is not enough disk space to write {path}; free some space and try again."),
    "no-temporary-folder": _(
        "Temporary files cannot be written; free some disk space, or set the environment variable TMPDIR to a folder "
        "that you can write to."
    ),
    "cannot-write": _("{path} cannot be written ({reason}); choose a folder that you can write to."),
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
    "warn-output-is-folder": _(
        "{path} will be a folder despite its name; the segmentation and all other results are files in it."
    ),
    "output-not-folder": _("The output {path} is not a folder; choose a folder for the results."),
    "results-exist": _(
        "{path} already contains results ({files}); choose another folder, or replace them with --overwrite "
        "(overwrite=True in Python)."
    ),
    "results-not-ours": _(
        "{path} contains files that no ConResNet report there lists as results ({files}); move them, or choose "
        "another folder."
    ),
    "input-in-the-way": _("Writing to {path} would replace the input {file}; choose another folder."),
    # Problems with this computer or its Python.
    "output-lost": _("Standard output cannot be written ({reason}); redirect it to another file."),
    "current-folder-gone": _("The current folder no longer exists; change to another folder, and try again."),
    "package-missing": _(
        "This requires {package}, which is not installed for the Python at {python}; install it there."
    ),
    "memory-short": _("The computer does not have enough memory for this; close other programs, and try again."),
}
