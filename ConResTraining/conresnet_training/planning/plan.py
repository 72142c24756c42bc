"""The plan of a training run: made from the data, written as YAML to be read and edited, then followed exactly."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from conresnet.errors import UserError
from conresnet.files import write_text
from conresnet.package import ModelDescription, parse_description
from conresnet.package.outputs import mirrored_segments
from conresnet.systems import trained_systems
from conresnet_training.data import FEWEST_FOLDS, USUAL_FOLDS
from conresnet_training.planning.yaml_text import decoded, mistake, parse_yaml, yaml_text
from conresnet_training.reporting import shortened

LossKind = Literal["cross_entropy_dice", "cross_entropy", "dice"]

MOST_STEPS = 10**9
# What to write where pydantic finds another type.
_WANTED = {
    **dict(int="a whole number", float="a number", bool="true or false", string="text in quotes", path="a path"),
    **dict(list="a list", tuple="a list", dict="a group of settings", model="a group of settings"),
}
# The values in a label map that can belong to a segment; 0 is the background.
LabelValue = Annotated[int, Field(strict=True, ge=1, le=255)]


def _description(model: Any) -> ModelDescription:
    return model if isinstance(model, ModelDescription) else parse_description(model, code="plan-model-wrong")


def _document(model: ModelDescription) -> dict[str, Any]:
    """As in ``model.json``, without its files, and without the plane that follows from the network's axis."""
    return {key: value for key, value in model.to_dict().items() if key not in ("files", "residual_axis")}


Description = Annotated[ModelDescription, PlainValidator(_description), PlainSerializer(_document)]


class _Settings(BaseModel):
    # Strict, because "true" or "yes" would be one step.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Training(_Settings):
    """How long, how fast and with which loss to train. The description names the paper's value (IV-B) if it differs."""

    steps: int = Field(default=6000, gt=0, le=MOST_STEPS, description="per stage")
    batch: int = Field(
        default=2,
        gt=0,
        le=65_536,
        description="samples per step, over all devices together. ResDSN's paper uses 16. The network's norm does not "
        "change with it: plan with --set training.batch=8 or more for batch norm",
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam",
        description="adam, as in the paper; sgd with momentum 0.9, as in ResDSN's, whose learning rate is 0.01",
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="1e-4 in the paper, which trains much longer")
    weight_decay: float = Field(default=5e-4, ge=0)
    loss: LossKind = Field(
        default="cross_entropy_dice",
        description="of the segmentation and of auxiliary outputs: eq. 7; cross_entropy as in VoxResNet's and ResDSN's "
        "papers; dice as in the pyramid's. If outputs are regions, dice learns nothing about a region from windows "
        "without it",
    )
    rare_labels: float = Field(
        default=0,
        ge=0,
        le=1,
        description="weight of rare labels in the cross entropy: at 0, every voxel counts the same; at 1, every label "
        "does. Needed if there are many labels and some are tiny",
    )
    deep_supervision: float = Field(default=0.5, ge=0, description="lambda of eq. 9")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    gradient_clip: float = Field(default=10.0, ge=0, description="largest norm of the gradient; 0 turns it off")
    steps_between_checkpoints: int = Field(default=250, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    folds: int = Field(default=USUAL_FOLDS, ge=FEWEST_FOLDS)
    workers: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="processes that make samples, per device; null: none on a CPU; on a GPU, as many as the "
        "computer's cores allow",
    )
    boundary: bool = Field(default=False, description="mix in the boundary loss, with growing weight (eq. 14)")
    foreground_share: float = Field(default=0.5, ge=0, le=1, description="share of samples around a labeled voxel")
    balanced_segments: bool = Field(
        default=False,
        description="draw a segment first, all equally likely, then a voxel of it; else any labeled voxel",
    )
    start_from: str | None = Field(
        default=None, description="name or path of a model whose weights to start from; null: random weights"
    )
    weight_average: float = Field(
        default=0, ge=0, lt=1, description="decay per step of the moving average of the weights; 0 turns it off"
    )


class Augmentation(_Settings):
    """The strength of each random change; 0 turns a change off.

    The paper flips along all three axes and scales. Only flips from left to right keep the anatomy plausible; the plan
    names that axis. If segment names refer to a side, the plan has no flips, or lists the pairs of segments that trade
    places in a mirror image.
    """

    flip_axes: list[Literal["S", "H", "W"]] = Field(default=["W"], description="axes to flip along: any of S, H and W")
    swapped_segments: list[Annotated[tuple[str, str], Field(strict=False)]] = Field(
        default=[], description="pairs of segments, such as left and right, that trade places in a mirror image"
    )
    scaling: float = Field(
        default=0.2, ge=0, lt=1, description="largest fraction by which samples are enlarged or reduced"
    )
    rotation_degrees: float = Field(default=15, ge=0, le=180)
    quarter_turns: bool = Field(
        default=False, description="also rotate by 0, 90, 180 or 270 degrees about each axis, as in ResDSN's paper"
    )
    elastic: float = Field(
        default=0, ge=0, lt=0.5, description="bending: how much wider or narrower each quarter of an axis gets"
    )
    brightness: float = Field(default=0.3, ge=0, description="shift in standard deviations")
    contrast: float = Field(default=0.3, ge=0, lt=1, description="scale, and exponent of a gamma curve")
    noise: float = Field(default=0.15, ge=0, description="standard deviation")
    bias_field: float = Field(default=0, ge=0, description="largest coefficient of a smooth field, as from a coil")
    isolation: float = Field(
        default=0, ge=0, le=1, description="share of samples with air around the labels, as after skull stripping"
    )
    couch_and_mask: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of samples with a couch, cushion or mask painted into air that is all of one value",
    )
    coarsening: float = Field(
        default=0.5, gt=0, le=1, description="lowest simulated resolution, as a fraction of the image's own"
    )


class Synthesis(_Settings):
    """How images are synthesized from label maps; 0 turns a part off. Intensities are on a scale from 0 to 1."""

    image_share: float = Field(default=0.3, ge=0, le=1, description="share of samples from cases that have images")
    known_contrasts: float = Field(
        default=0.5, ge=0, le=1, description="share of synthesized samples with a contrast that the data set describes"
    )
    known_variation: float = Field(
        default=0.06, ge=0, description="standard deviation of a label's mean around that of a known contrast"
    )
    stripped: float = Field(default=0.3, ge=0, le=1, description="share without the labels around the organ")
    bending: float = Field(default=3.0, ge=0, description="standard deviation of smooth displacements, in mm")
    bending_cell: float = Field(default=25.0, gt=0, description="distance of independent displacements, in mm")
    bias_field: float = Field(default=0.3, ge=0, description="standard deviation of the logarithm of a smooth field")
    gamma: float = Field(default=0.25, ge=0, description="standard deviation of the logarithm of gamma")
    blur: float = Field(default=1.0, ge=0, description="largest standard deviation of a blur, in voxels")
    thick_slices: float = Field(default=0.3, ge=0, le=1, description="share with thick slices across a random axis")
    thickest: float = Field(default=5.0, gt=0, description="thickness of the thickest slices, in mm")
    noise: float = Field(default=0.05, ge=0, description="largest standard deviation")
    normalization: float = Field(
        default=0.2, ge=0, lt=1, description="how far scale and shift are off after the model's intensity steps"
    )


class Plan(BaseModel):
    """Everything a run follows.

    Args:
        data: the data set's folder; one that is relative is relative to the plan's file.
        targets: the label values that belong to each segment, by its name.
        synthesis: how images are synthesized where cases are label maps without images.
        model: the description of the package that the run exports, without its files. Parsed once, when the plan is.
    """

    model_config = ConfigDict(extra="forbid")

    data: Path
    targets: dict[str, Annotated[list[LabelValue], Field(min_length=1)]]
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    synthesis: Synthesis | None = None
    model: Description

    def document(self) -> dict[str, Any]:
        """The plan as its file has it."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _targets_fit_segments(self) -> "Plan":
        segments = self.model.output.names
        if sorted(self.targets) != sorted(segments):
            raise UserError("targets-incomplete", segments=", ".join(segments))
        return self

    @model_validator(mode="after")
    def _system_can_be_trained(self) -> "Plan":
        kind, trained = self.model.system.type, trained_systems()
        if kind not in trained:
            raise UserError("system-not-trained", known=", ".join(trained), kind=kind)
        return self

    @model_validator(mode="after")
    def _labels_share_no_value(self) -> "Plan":
        """A voxel with two labels would give the background a negative target, and a loss without bound."""
        output, owners = self.model.output, {}
        for name in output.names if output.kind == "labels" else ():
            for value in set(self.targets[name]):
                if value in owners:
                    raise UserError("targets-share-value", first=owners[value], second=name, value=value)
                owners[value] = name
        return self

    @model_validator(mode="after")
    def _swapped_segments_are_pairs(self) -> "Plan":
        """A segment in two pairs would have to become two others."""
        named = [name for pair in self.augmentation.swapped_segments for name in pair]
        unknown = [name for name in named if name not in self.targets]
        if unknown:
            raise UserError("swapped-segment-unknown", name=unknown[0], names=", ".join(self.targets))
        if len(set(named)) < len(named):
            raise UserError("swapped-segments")
        return self

    @property
    def mirrored_segments(self) -> list[int]:
        """For each segment, in the output's order, the index of the one that it becomes in a mirror image."""
        return mirrored_segments(self.model.output.names, self.augmentation.swapped_segments)


def write_plan(plan: Plan, path: Path) -> None:
    """Write ``plan`` as YAML. Raises UserError where the file cannot be written."""
    write_text(path, yaml_text(plan.document()))


def check_is_plan(path: Path) -> None:
    """Refuse to replace a file that is not a plan; one whose YAML is broken is still recognized.

    Raises:
        UserError: ``not-a-plan`` or ``plan-not-found``.
    """
    try:
        # Windows may save it as UTF-16.
        lines = path.read_bytes().replace(b"\0", b"").splitlines()
    except OSError as error:
        raise UserError("plan-not-found", path=str(path), reason=error.strerror) from error
    if lines and not all(any(line.startswith(key) for line in lines) for key in (b"targets:", b"model:")):
        raise UserError("not-a-plan", path=str(path))


def read_plan(path: Path, data: Path | None = None) -> Plan:
    """Read and check a plan.

    Args:
        data: where the data set is on this computer, instead of what the plan says.

    Raises:
        UserError: ``plan-not-found``, ``plan-not-text``, ``plan-not-yaml`` with the line, or ``plan-invalid`` or
            ``plan-model-wrong`` with the field.
    """
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise UserError("plan-not-found", path=str(path), reason=error.strerror) from error
    except UnicodeDecodeError as error:
        raise UserError("plan-not-text", path=str(path)) from error
    try:
        content = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError("plan-not-yaml", path=str(path), reason=mistake(error, text)) from error
    if content is None:
        raise UserError("plan-invalid", path=str(path), reason="there are no settings; make a new plan")
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise UserError("plan-invalid", path=str(path), reason=_first(error)) from error
    except UserError as error:
        raise error.within("in-plan", path=str(path)) from error
    return plan.model_copy(update={"data": (data or path.parent / plan.data).resolve()})


def with_settings(plan: Plan, settings: Iterable[str]) -> Plan:
    """``plan`` with some values replaced, checked like a plan from a file.

    Args:
        settings: each ``KEY=VALUE``, the key with dots for depth and numbers for list entries, the value in YAML:
            ``training.steps=500``, ``model.system.networks.0.arguments.attention_mapping=false``.

    Raises:
        UserError: ``setting-unknown`` with the nearest key there is, ``setting-too-deep``, ``setting-without-value``,
            ``setting-not-yaml``, ``setting-invalid`` or ``plan-model-wrong``.
    """
    settings = list(settings)
    if not settings:
        return plan
    content = plan.document()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(map(str.strip, key.split("."))):
            raise UserError("setting-without-value", setting=setting)
        try:
            _replace_setting(content, key.strip(), parse_yaml(value))
        except (yaml.YAMLError, ValueError) as error:
            raise UserError("setting-not-yaml", setting=setting) from error
    try:
        changed = Plan.model_validate(content)
    except ValidationError as error:
        raise UserError("setting-invalid", settings=", ".join(settings), reason=_first(error)) from error
    except UserError as error:
        raise error.within("in-plan-with-settings", settings=", ".join(settings)) from error
    return changed.model_copy(update={"data": changed.data.resolve()})


def _replace_setting(content: Any, key: str, value: Any) -> None:
    """Replace the item that ``key`` names in nested dicts and lists by ``value``.

    Args:
        key: the keys on the way to the setting, joined by dots, such as ``model.system.networks.0.base_width``.

    Raises:
        UserError: ``setting-unknown`` with the nearest key there is, or ``setting-too-deep``.
    """
    parts = key.split(".")
    place = content
    for depth, part in enumerate(parts):
        choices = _keys(place)
        if part not in choices:
            if whole := [known for known in _all_keys(content) if known.endswith(f".{key}")]:
                raise UserError("setting-unknown", setting=key, nearest=min(whole, key=lambda known: known.count(".")))
            above = "".join(f"{known}." for known in parts[:depth])
            nearest = difflib.get_close_matches(part, choices, 1, 0)
            if not nearest:
                raise UserError("setting-too-deep", setting=key, above=above[:-1])
            raise UserError("setting-unknown", setting=key, nearest=f"{above}{nearest[0]}")
        step = int(part) if isinstance(place, list) else part
        if depth + 1 == len(parts):
            place[step] = value
        place = place[step]


def _keys(place: Any) -> list[str]:
    if isinstance(place, dict):
        return list(place)
    return [str(index) for index in range(len(place))] if isinstance(place, list) else []


def _all_keys(place: Any, above: str = "") -> Iterator[str]:
    """The keys of nested dicts and lists, each with those above it."""
    for key in _keys(place):
        yield above + key
        yield from _all_keys(place[int(key) if isinstance(place, list) else key], f"{above}{key}.")


def chosen_batch(settings: Iterable[str]) -> int | None:
    """The batch among settings, on which a network's norm depends; None if it is missing or invalid."""
    batch = _chosen(settings, "training.batch")
    return batch if type(batch) is int and batch > 0 else None


def chosen_orientation(settings: Iterable[str]) -> str | None:
    """The orientation among settings, which orders spacing, window and flips; None if it is missing or invalid.

    An invalid one is refused by ``with_settings``.
    """
    code = _chosen(settings, "model.preparation.orientation")
    is_valid = isinstance(code, str) and sorted(_AXIS_OF.get(letter, -1) for letter in code) == [0, 1, 2]
    return code if is_valid else None


def chosen_spacing(settings: Iterable[str]) -> tuple[float | None, ...] | None:
    """The spacing that settings give, for planning the window; None if none is given, also for a single axis.

    An invalid one is refused by ``with_settings``.
    """
    key = "model.preparation.spacing"
    spacing = _chosen(settings, key) or [_chosen(settings, f"{key}.{axis}") for axis in range(3)]
    if not isinstance(spacing, list) or len(spacing) != 3:
        return None
    valid = tuple(mm if type(mm) in (int, float) and 0.01 <= mm <= 100 else None for mm in spacing)
    return valid if any(valid) else None


_AXIS_OF = {letter: axis for axis, letters in enumerate(("SI", "AP", "RL")) for letter in letters}


def _chosen(settings: Iterable[str], wanted: str) -> Any:
    """The value of a setting, None if it is missing or not YAML."""
    values = [value for key, _, value in (item.partition("=") for item in settings) if key.strip() == wanted]
    try:
        return parse_yaml(values[-1]) if values else None
    except (yaml.YAMLError, ValueError):
        return None


def _first(error: ValidationError) -> str:
    """The first error, with the field's name."""
    first = error.errors()[0]
    name, kind = ".".join(map(str, first["loc"])) or "the plan", first["type"]
    if kind == "missing":
        return f"{name} is missing; add it, or make a new plan"
    if kind == "extra_forbidden":
        return f"{name} is not a setting; correct its name, or remove it"
    wanted = _WANTED.get(kind.removesuffix("_type"))
    rule = f"must be {wanted}" if wanted else re.sub(r"^\w+ should", "must", first["msg"].split(" after validation")[0])
    value = shortened(json.dumps(first["input"], ensure_ascii=False, default=str))
    return f"{name} {rule}, but is {value}"
