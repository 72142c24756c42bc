"""Messages about images: files, DICOM series, and the channels of a case."""


def _(template: str) -> str:
    """Mark a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


IMAGES: dict[str, str] = {
    # Files
    "image-not-found": _("The image {path} does not exist."),
    "cannot-read": _("The image {path} cannot be read ({reason})."),
    "image-name-not-text": _("The image {path} cannot be read because its name is not valid UTF-8; rename it."),
    "image-pipe": _("The image {path} is a pipe, which cannot be read as an image; save it to a file first."),
    "image-archive": _("{path} is an archive; unpack it, and choose the image or DICOM folder inside."),
    "image-is-checkpoint": _(
        '{path} contains the weights of a network, not an image. Convert it with the command "python -m conresnet '
        'import", or "python -m conresnet_training export" if you trained it, and use the result as the model.'
    ),
    "image-is-model": _(
        '{path} is a model package, not an image; install it with the command "python -m conresnet models install".'
    ),
    "image-is-scene": _("{path} is a Slicer scene; open it in Slicer, save the image as a file, and choose that file."),
    "image-is-segmentation": _("{path} is a segmentation, not an image; choose the image that it was made from."),
    "not-an-image": _(
        "{path} is not an image in a supported format (NIfTI, Analyze, NRRD, MetaImage, MINC, HDF5, or a folder with "
        "one DICOM series), or its header is damaged."
    ),
    "image-damaged": _("{path} is damaged and cannot be read; copy, download or export it again."),
    "image-truncated": _(
        "{path} is cut off or has a damaged header: the header describes {size} voxels, which is more than the file "
        "holds; copy, download or export it again."
    ),
    "image-reader-crashed": _(
        "{path} cannot be read: the image reader crashed, most likely because the file is damaged; copy, download or "
        "export it again."
    ),
    "image-out-of-memory": _("{path} cannot be read because memory ran out; close other programs, or crop the image."),
    "image-header": _("{path} has an invalid header: {field} is {value}; export the image again."),
    "image-data-file": _(
        "{path} stores its voxels in {file}, which is missing or cannot be read; put that file back, or export the "
        "image again."
    ),
    "image-half": _("{path} is one of a pair of files, and {other} is missing; put both files in the same folder."),
    "image-unchecked-format": _(
        "{path} is in the format {format}, which is not supported, because a damaged file would go unnoticed; convert "
        "it to NIfTI or NRRD, for example with Slicer."
    ),
    "image-beyond-memory": _(
        "{path} does not fit into memory: according to its header it has {size} voxels ({gigabytes} GB); crop or "
        "resample it, or correct its header."
    ),
    "image-no-spacing": _(
        "{path} does not store a voxel size; save it in a format that does, such as NIfTI, with the correct size."
    ),
    "reader-needs-package": _(
        "Reading {path} requires the Python package {package}, which is not installed; install it with pip."
    ),
    # What an image must be like
    "image-2d": _("{path} is a 2D image, but a 3D image is required; choose the whole scan."),
    "image-4d": _("{path} contains {count} images, but one 3D image is required; split it first."),
    "image-color": _("{path} is a color (RGB) image, but a grayscale image is required; choose the original scan."),
    "image-complex": _("{path} contains complex numbers; save the magnitude first."),
    "image-empty": _("{name} has no voxels."),
    "image-type": _("{name} contains {type} values, but real numbers are required; convert it."),
    "image-constant": _("{name} has the same value ({value:g}) in all voxels; choose another image."),
    "image-not-finite": _(
        "{name} has voxels that are NaN or infinite ({count} of them); replace them, for example with the "
        "background value."
    ),
    "intensity-range": _("{name} has values up to {value:.1e}, which no scanner produces; check how it was made."),
    "absurd-spacing": _("{name} has a voxel size of {size} mm, which cannot be right; correct it in the image."),
    "image-place-not-finite": _(
        "{name} has NaN or infinite values in its origin or axes; correct them, or load the image again."
    ),
    "image-sheared": _("{name} has axes that are not at right angles to each other; resample it to a regular grid."),
    "image-too-large": _(
        "At the model's spacing, {name} has {size} voxels, which is too many; draw an ROI around the structure, or "
        "check the image's spacing."
    ),
    "image-too-large-to-measure": _(
        "At the spacing of {model}, {name} has {size} voxels, which is too many to measure its intensity; crop the "
        "image around the structure, or check its spacing."
    ),
    # DICOM
    "dicom-none": _("The folder {path} contains no DICOM series; choose an image file, or a folder with one series."),
    "folder-of-images": _(
        "The folder {path} contains image files, such as {file}, but no DICOM series; choose the files of one case, "
        "or list several cases with --cases (in Slicer, use Many cases)."
    ),
    "dicom-in-subfolder": _(
        "The folder {path} contains no DICOM series, but its subfolder {subfolder} does; choose that folder."
    ),
    "dicom-several": _(
        "The folder {path} contains {count} DICOM series: {series}. Move the one you need to a folder of its own."
    ),
    "dicom-not-scan": _("{path} is not a scan but a DICOM object of another kind ({kind}); choose the scan itself."),
    "dicom-one-slice": _("{path} is a single slice of a DICOM series; choose its folder, {folder}, instead."),
    "dicom-no-position": _(
        "{path} does not store the position and orientation of its slices; export the series again."
    ),
    "dicom-no-spacing": _(
        "{path} does not store its voxel size (PixelSpacing or slice thickness); export the series again."
    ),
    "dicom-mixed": _(
        "The DICOM slices in {path} differ in size, direction or spacing; {file} does not match most of the others. "
        "Move one scan to a folder of its own."
    ),
    "dicom-mixed-scale": _(
        "The frames of {path} have different rescale slopes, which is not supported; convert the file first."
    ),
    "dicom-tilt": _(
        "The DICOM slices in {path} are sheared by {degrees:.2f} degrees of gantry tilt; correct it first, for example "
        "with Slicer's DICOM module."
    ),
    "dicom-same-place": _(
        "Several DICOM slices in {path} are at the same position; the series may contain several scans or time "
        "points, which must be separated first, or copies of the same files, which must be removed."
    ),
    "dicom-uneven": _(
        "The DICOM slices in {path} are not evenly spaced ({smallest:.2f} to {largest:.2f} mm apart); slices may be "
        "missing, or several scans mixed."
    ),
    "dicom-pixels": _(
        "{path} stores its pixels as {what}, which is not supported; export the series as Explicit VR Little Endian "
        "with integers."
    ),
    "dicom-compressed": _(
        "{path} cannot be decompressed ({what}): it is damaged, or compressed in an unusual way; export the series as "
        "Explicit VR Little Endian, which is not compressed."
    ),
    "dicom-kind": _(
        "{path} is a DICOM object of an unknown kind ({kind}), which is not supported; export the series as CT or MR "
        "images."
    ),
    "dicom-inverted": _(
        "{path} is a CT with inverted gray values (PhotometricInterpretation MONOCHROME1), which is not supported; "
        "export the series as MONOCHROME2."
    ),
    "warn-inverted": _(
        "{path} has inverted gray values (PhotometricInterpretation MONOCHROME1); they were inverted back, as in "
        "Slicer. Check in a viewer that the image looks right."
    ),
    "dicom-sideways": _(
        "The DICOM slices in {path} are not aligned (shifted sideways by up to {largest:.2f} mm); several scans "
        "may be mixed."
    ),
    # Channels
    "wrong-channel-count": _(
        "The model needs one image for each of its channels ({channels}), but the number of images is {given} "
        "({images})."
    ),
    "wrong-component-count": _(
        "The model needs one image for each of its channels ({channels}), but the number of images in {path} is "
        "{given}; choose one file per channel, or a 4D file with all of them."
    ),
    "channels-apart": _(
        "{name} does not overlap the ROI, or the image {first}; choose images from the same examination, register "
        "them, or move the ROI."
    ),
    "channels-unclear": _(
        "{name} was given as {given}, but its name suggests {spoken}, and not all image names are clear; assign each "
        "image with --channel."
    ),
    "warn-channel-name": _(
        "The name of the image given as {given} suggests {spoken}; check that each image was given for its channel."
    ),
    "warn-excluded-name": _(
        'The name of the image given as {given} contains "{word}"; check that it is the kind of image that the '
        "model was made for."
    ),
    "warn-same-image": _(
        "The images for {first} and {second} are the same; check that each channel has its own image."
    ),
    "warn-two-patients": _(
        "The images for {first} and {second} have different patient IDs; check that they show the same patient."
    ),
    "warn-mixed-patients": _(
        "The DICOM slices in {path} have different patient IDs; check that they show the same patient."
    ),
    "warn-not-hounsfield": _(
        "{name} has values from {low:g} to {high:g}, which do not look like Hounsfield units, but {model} needs a CT "
        "in these units; check how the image was converted."
    ),
    "warn-modality": _(
        "{name} is {modality} according to its DICOM header, but {model} was made for {wanted}; choose another image "
        "or model."
    ),
    "warn-like-labels": _(
        "{name} looks like a label map, because it has only a few distinct values; choose the image that it was made "
        "from."
    ),
    "warn-like-ct": _(
        "{name} has the values of a CT, with air at about -1000, but {model} was made for MR; choose another image or "
        "model."
    ),
    # Images given by channel or in memory
    "channel-unknown": _('Unknown channel "{name}"; the channels of the model are {channels}.'),
    "channel-repeated": _("The channel {name} is given twice; give each channel one image."),
    "channel-missing": _("The model also needs {missing}; give an image for each channel."),
    "image-kind": _(
        "{name} cannot be segmented because its type is {kind}; give a path, a SimpleITK or nibabel image, or a pair "
        "(array, affine)."
    ),
    "image-components": _(
        "{name} contains {given} images instead of {wanted} ({channels}); give one image per channel, or one that "
        "contains all of them."
    ),
    "array-shape": _(
        "{name} has an array of shape {array} and an affine of shape {affine}. The array needs three axes, or a "
        "fourth one for channels; the affine must be 4 x 4 numbers."
    ),
    "array-masked": _(
        "{name} is a masked array, and {count} of its voxels are masked; fill them first, for example with "
        ".filled(value) and the background value."
    ),
}
