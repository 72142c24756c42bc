"""Sentences about image files, their geometry, channels and ROIs. Those of warnings are at the end."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


IMAGES: dict[str, str] = {
    # Files
    "image-not-found": _("The image {path} does not exist."),
    "cannot-read": _("The image {path} cannot be read ({reason})."),
    "image-name-not-text": _("The image {path} cannot be read because its name is not valid UTF-8; rename it."),
    "image-archive": _("{path} is an archive; unpack it, and choose the image or DICOM folder inside."),
    "not-an-image": _(
        "{path} is not an image in a supported format (NIfTI, NRRD, MetaImage, or a folder with a DICOM series), or "
        "its header is damaged."
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
    "image-data-file": _("{path} stores its voxels in {file}, which is not a file that can be read."),
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
    "image-2d": _("{path} is a 2-D image, but a 3-D image is required."),
    "image-4d": _("{path} contains {count} images, but one 3-D image is required; split it first."),
    "image-color": _("{path} is a color (RGB) image, but a gray-scale scan is required."),
    "image-complex": _("{path} contains complex numbers; save the magnitude first."),
    "image-empty": _("{name} has no voxels."),
    "image-type": _("{name} contains {type} values, but real numbers are required."),
    "image-constant": _("{name} is empty: all its voxels are {value:g}; choose another image."),
    "image-not-finite": _(
        "{name} has voxels that are NaN or infinite ({count} of them); replace them, for example by the background "
        "value."
    ),
    "intensity-range": _("{name} has values up to {value:.1e}, which no scanner produces; check how it was made."),
    "absurd-spacing": _("{name} has a voxel size of {size} mm, which cannot be right; correct it in the image."),
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
    "dicom-in-subfolder": _(
        "The folder {path} contains no DICOM series, but its subfolder {subfolder} does; choose that folder."
    ),
    "dicom-several": _(
        "The folder {path} contains {count} DICOM series ({series}); move the one you need to a folder of its own."
    ),
    "dicom-one-slice": _("{path} is a single slice of a DICOM series; choose its folder, {folder}, instead."),
    "dicom-no-position": _("{path} does not say where in the patient its slices are (position or orientation)."),
    "dicom-no-spacing": _("{path} does not say how large its voxels are (PixelSpacing or slice thickness)."),
    "dicom-mixed": _(
        "The DICOM slices in {path} differ in size, direction or spacing; move one scan to a folder of its own."
    ),
    "dicom-mixed-scale": _(
        "The frames of {path} have different rescale slopes, which is not supported; convert it first."
    ),
    "dicom-tilt": _(
        "The DICOM slices in {path} are sheared by {degrees:.2f} degrees of gantry tilt; correct it first, for example "
        "with Slicer's DICOM module."
    ),
    "dicom-same-place": _(
        "Several DICOM slices in {path} are at the same place; the series may contain several scans or time points, "
        "which have to be separated first."
    ),
    "dicom-uneven": _(
        "The DICOM slices in {path} are not evenly spaced ({smallest:.2f} to {largest:.2f} mm apart); slices may be "
        "missing, or several scans mixed."
    ),
    "dicom-sideways": _(
        "The DICOM slices in {path} are not above one another (up to {largest:.2f} mm to the side of the first); "
        "several scans may be mixed."
    ),
    # Channels
    "wrong-channel-count": _(
        "The model has {wanted} channels ({channels}), but the number of images is {given} ({images})."
    ),
    "wrong-component-count": _(
        "The model has {wanted} channels ({channels}), but the number of images in {path} is {given}; choose one file "
        "per channel, or a 4-D file with all of them."
    ),
    "channels-apart": _(
        "{name} does not overlap the ROI, or the image {first}; choose images of one examination, register them, or "
        "move the ROI."
    ),
    "channels-unclear": _(
        "{name} was given as {given}, but its name suggests {spoken}, and not all image names are clear; name each "
        "image with --channel."
    ),
    # ROI
    "bad-roi": _("The ROI cannot be used: {reason}."),
    "roi-not-found": _("The ROI file {path} does not exist."),
    "roi-outside": _("The ROI ({roi}) is outside {name}; move it onto the structure, in RAS mm as in Slicer."),
    "roi-too-small": _("The ROI ({roi}) contains no voxel of {name}; move it onto the structure, or make it larger."),
    "roi-empty": _("{name} is empty inside the ROI ({roi}): all voxels there are {value:g}; move the ROI."),
    # Model settings and requests
    "bad-grid": _("The grid {grid} is not a shape with a 4 x 4 matrix ijk_to_ras."),
    "bad-orientation": _(
        "The orientation {orientation} is not three letters with one each of R or L, A or P, and S or I, such as SAR."
    ),
    "bad-spacing": _("The model's spacing {spacing} is not three positive numbers in mm."),
    "bad-foreground": _("Unknown foreground {foreground}; choose one of {known}."),
    "bad-intensity": _("The model's intensity step {step} cannot be used: {reason}."),
    # Results
    "output-not-nifti": _("{path} cannot be written: choose a name that ends in .nii or .nii.gz."),
    # Warnings
    "warn-much-larger": _(
        "{name} is much larger than the field of view of {model}; draw an ROI around the structure, unless the model "
        "is meant for whole scans."
    ),
    "warn-much-smaller": _(
        "{name} covers only {covered} mm of the {seen} mm that {model} looks at along its {axis} axis; with so few "
        "slices the result may be wrong."
    ),
    "warn-much-thicker": _(
        "{name} has a spacing of {spacing} mm along its {axis} axis, much thicker than the {wanted} mm that {model} "
        "was trained on; the result may be inaccurate."
    ),
    "warn-partly-covered": _(
        "{name} covers only {share:.0%} of what is segmented in {first}; elsewhere the result depends on the other "
        "images."
    ),
    "warn-no-orientation": _(
        "{path} does not store the patient's orientation (NIfTI: qform and sform codes are 0); it was placed as Slicer "
        "places it, so check left and right, front and back."
    ),
    "warn-transforms-differ": _(
        "The header of {path} contradicts itself: qform, sform and voxel size place the image up to {distance:.1f} mm "
        "apart; the {taken} was used."
    ),
    "warn-scaling-ignored": _("The value scl_inter in the header of {path} is not a number, and was taken as 0."),
}
