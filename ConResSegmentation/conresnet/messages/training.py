"""Sentences about training: data sets, plans, runs, evaluation."""


def _(template: str) -> str:
    """Marks a template for translation; Slicer's module translates it when the sentence is shown."""
    return template


TRAINING: dict[str, str] = {
    # Planning
    "plan-system-unknown": _("There is no system {system}; the nearest is {nearest}."),
    "system-unchangeable": _(
        "The plan {title} prepares the images for its own system; make a new plan for {system} from the data, or "
        "change a plan of ConResNet."
    ),
    "spacing-unknown": _("The plan keeps the spacing of every image, so there is none to double; plan with a spacing."),
    "no-regions": _("No label of {path} is part of a region, so there are no regions to plan; plan labels."),
    "no-residuals": _(
        "{title} does not compare slices across an axis; leave the residual axis out, or plan ConResNet."
    ),
    "base-width-invalid": _("The base width must be a multiple of {multiple}, which {width} is not."),
    "memory-too-small": _(
        "Even the smallest network needs {gigabytes} GB of memory (available: {available}); train on a computer with "
        "more, and give its memory with --memory."
    ),
    "synthesis-missing": _(
        "The data set has label maps without images, but the plan has no synthesis; make a new plan from the data set."
    ),
    "synthesis-spacing": _("Images are synthesized at one spacing; set model.preparation.spacing in the plan."),
    "plan-network-wrong": _("The plan's network cannot be built: {reason}."),
    "runs-not-joined": _(
        "The runs {first} and {second} have several networks each and cannot become one model; name one run."
    ),
    # Plans
    "plan-not-found": _("The plan {path} cannot be read: {reason}."),
    "plan-not-yaml": _("The plan {path} is not YAML: {reason}."),
    "plan-invalid": _("In the plan {path}, {reason}."),
    "in-plan": _("In the plan {path}: {sentence}"),
    "setting-without-value": _("The setting {setting} has no value; write it as KEY=VALUE, as in training.steps=500."),
    "setting-not-yaml": _("The value of the setting {setting} is not YAML; quote it or write it as in the plan."),
    "setting-unknown": _("The plan has no {setting}; the nearest is {nearest}."),
    "setting-too-deep": _("The plan has no {setting}; {above} contains nothing further."),
    "setting-invalid": _("With {settings} the plan is wrong: {reason}."),
    "in-plan-with-settings": _("With {settings} the plan is wrong: {sentence}"),
}
