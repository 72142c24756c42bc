"""The plan of a training run: made from the data, written as YAML to be read and edited, then followed exactly."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet.package import ModelDescription, parse_description
from conresnet_training.data.augmentation import Augmentation
from conresnet_training.data.label_map_folder import Tissues
from conresnet_training.data.synthesis import Synthesis, Synthesizer
from conresnet_training.training.losses import LossKind

# Of the engine's systems, those whose networks a run trains; an ensemble is made of runs that are exported together.
TRAINED_SYSTEMS = ("coarse_to_fine", "single")
# What a label map's voxel can be and belong to a segment; 0 is the background.
LabelValue = Annotated[int, Field(ge=1, le=255)]


class Training(BaseModel):
    """How long, how fast, by which loss. Where the paper (IV-B) gives another value, the description says so."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=6000, gt=0, description="of each stage, where parts are trained one after the other")
    batch: int = Field(default=2, gt=0, description="samples a step, of all devices together")
    learning_rate: float = Field(default=5e-4, gt=0, description="1e-4 in the paper, which trains much longer")
    weight_decay: float = Field(default=5e-4, ge=0)
    loss: LossKind = Field(
        default="cross_entropy_dice",
        description="of the segmentation and of auxiliary outputs: eq. 7; cross_entropy is VoxResNet's and ResDSN's, "
        "dice the pyramid's, which learns nothing from windows without a region where outputs are regions",
    )
    rare_labels: float = Field(
        default=0,
        ge=0,
        le=1,
        description="how much more a voxel of a small label weighs in the cross entropy: at 0 each voxel counts alike, "
        "at 1 each label; needed where labels are many and some of them tiny",
    )
    deep_supervision: float = Field(default=0.5, ge=0, description="lambda of eq. 9")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    gradient_clip: float = Field(default=10.0, ge=0, description="largest norm of the gradient; 0 is off")
    steps_between_checkpoints: int = Field(default=250, gt=0)
    seed: int = Field(default=0, ge=0)
    folds: int = Field(default=5, ge=2)
    workers: int | None = Field(
        default=None,
        ge=0,
        description="processes that make samples, for each device; null is none on a processor, and beside a GPU what "
        "the computer's cores allow",
    )
    boundary: bool = Field(default=False, description="mix in the boundary loss, more from step to step (eq. 14)")
    foreground_share: float = Field(default=0.5, ge=0, le=1, description="share of samples around a label")
    balanced_segments: bool = Field(
        default=False, description="draw a segment first, each as likely, then a voxel of it; else any labelled voxel"
    )
    start_from: str | None = Field(
        default=None, description="a model, by name or place, whose weights to begin with; null begins with random ones"
    )
    weight_average: float = Field(
        default=0, ge=0, lt=1, description="decay a step of the weights' moving average that is kept; 0 is off"
    )


class Plan(BaseModel):
    """Everything a run follows.

    Args:
        data: the data set's folder; one that is relative is relative to the plan's file.
        model: ``model.json`` of the package that the run exports (conresnet.package), without its files.
        targets: the label values that belong to each segment, by its name.
        synthesis: how images are synthesized where cases are label maps without images.
    """

    model_config = ConfigDict(extra="forbid")

    data: Path
    targets: dict[str, Annotated[list[LabelValue], Field(min_length=1)]]
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    synthesis: Synthesis | None = None
    model: dict[str, Any]

    @model_validator(mode="after")
    def _targets_fit_segments(self) -> "Plan":
        segments = [segment.name for segment in self.description.output.segments]
        if sorted(self.targets) != sorted(segments):
            raise ValueError(f"targets must name the segments {', '.join(segments)}")
        return self

    @model_validator(mode="after")
    def _system_can_be_trained(self) -> "Plan":
        """What is not known here would be trained as a single network, and could never be exported."""
        kind = self.description.system.type
        if kind not in TRAINED_SYSTEMS:
            raise ValueError(f"model.system.type must be one of {', '.join(TRAINED_SYSTEMS)}, not {kind!r}")
        return self

    @model_validator(mode="after")
    def _labels_share_no_value(self) -> "Plan":
        """A voxel of two labels would be less than no background, and its loss without a bound."""
        output, owners = self.description.output, {}
        for name in (segment.name for segment in output.segments) if output.kind == "labels" else ():
            for value in set(self.targets[name]):
                if value in owners:
                    raise ValueError(
                        f"the targets {owners[value]} and {name} share the label value {value}; give it to one of "
                        "them, or set model.output.kind to regions"
                    )
                owners[value] = name
        return self

    @model_validator(mode="after")
    def _swapped_segments_are_pairs(self) -> "Plan":
        """A segment in two pairs would have to become two others."""
        named = [name for pair in self.augmentation.swapped_segments for name in pair]
        if len(set(named)) < len(named) or not set(named) <= set(self.targets):
            raise ValueError("augmentation.swapped_segments must name pairs of different segments, each at most once")
        return self

    @property
    def mirrored_segments(self) -> list[int]:
        """For each segment, in the output's order, the index of the one that it becomes in a mirror image."""
        names = [segment.name for segment in self.description.output.segments]
        others = {one: other for pair in self.augmentation.swapped_segments for one, other in (pair, pair[::-1])}
        return [names.index(others.get(name, name)) for name in names]

    @property
    def description(self) -> ModelDescription:
        """The model's description, checked."""
        return parse_description(self.model, "the plan's model")


def synthesizer_of(plan: Plan, tissues: Tissues | None) -> Synthesizer | None:
    """What makes the plan's images of label maps; None where every case has images.

    Raises:
        UserError: ``synthesis-missing`` where the plan does not say how, ``synthesis-spacing``, ``synthesis-filters``.
    """
    if tissues is None:
        return None
    if plan.synthesis is None:
        sentence = "The data set has label maps without images, but the plan has no synthesis; plan the data set anew."
        raise UserError("synthesis-missing", sentence)
    description = plan.description
    if description.preparation.spacing is None:
        sentence = "Images are synthesized at one spacing; set model.preparation.spacing in the plan."
        raise UserError("synthesis-spacing", sentence)
    inputs = [steps for item in description.inputs for steps in item.channels]
    return Synthesizer(tissues, plan.synthesis, inputs, description.preparation.spacing)


def write_plan(plan: Plan, path: Path) -> None:
    """Write ``plan`` as YAML. Raises UserError where the file cannot be written."""
    text = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_plan(path: Path, data: Path | None = None) -> Plan:
    """Read and check a plan.

    Args:
        data: where the data set lies on this computer, instead of what the plan says.

    Raises:
        UserError: ``plan-not-found`` or ``plan-invalid``, naming the line's field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            "plan-not-found", f"The plan {path} cannot be read: {error.strerror}.", path=str(path)
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError("plan-invalid", f"The plan {path} is not YAML: {reason}.", path=str(path)) from error
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise UserError("plan-invalid", f"In the plan {path}, {_first(error)}.", path=str(path)) from error
    except UserError as error:
        raise UserError(error.code, f"In the plan {path}: {error.message}", path=str(path)) from error
    return plan.model_copy(update={"data": (data or path.parent / plan.data).resolve()})


def with_settings(plan: Plan, settings: Iterable[str]) -> Plan:
    """``plan`` with some values replaced, checked like a plan from a file.

    Args:
        settings: each ``KEY=VALUE``, the key with dots for depth and numbers for places in a list, the value in YAML:
            ``training.steps=500``, ``model.system.networks.0.arguments.attention_mapping=false``.

    Raises:
        UserError: ``setting-unknown``, with the nearest key there is, or ``setting-invalid``.
    """
    settings = list(settings)
    if not settings:
        return plan
    content = plan.model_dump(mode="json")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            sentence = f"The setting {setting} has no value; write it as KEY=VALUE, as in training.steps=500."
            raise UserError("setting-invalid", sentence, setting=setting)
        try:
            _replace(content, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            sentence = f"The value of the setting {setting} is not YAML; quote it or write it as in the plan."
            raise UserError("setting-invalid", sentence, setting=setting) from error
    try:
        changed = Plan.model_validate(content)
    except ValidationError as error:
        raise UserError("setting-invalid", f"With {', '.join(settings)} the plan is wrong: {_first(error)}.") from error
    except UserError as error:
        raise UserError(error.code, f"With {', '.join(settings)} the plan is wrong: {error.message}") from error
    return changed.model_copy(update={"data": changed.data.resolve()})


def _replace(content: Any, key: str, value: Any) -> None:
    """Put ``value`` in the place of what ``key`` names in nested dicts and lists."""
    parts = key.split(".")
    place = content
    for depth, part in enumerate(parts):
        choices = _keys(place)
        if part not in choices:
            above = "".join(f"{known}." for known in parts[:depth])
            nearest = difflib.get_close_matches(part, choices, 1, 0)
            hint = f"the nearest is {above}{nearest[0]}" if nearest else f"{above[:-1]} holds nothing further"
            raise UserError("setting-unknown", f"The plan has no {key}; {hint}.", setting=key)
        step = int(part) if isinstance(place, list) else part
        if depth + 1 == len(parts):
            place[step] = value
        place = place[step]


def _keys(place: Any) -> list[str]:
    if isinstance(place, dict):
        return list(place)
    return [str(index) for index in range(len(place))] if isinstance(place, list) else []


def _first(error: ValidationError) -> str:
    """The first fault, with the field's name."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the plan'}: {first['msg']}"
