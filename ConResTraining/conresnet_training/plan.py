"""The plan of a training run: made from the data, written as YAML to be read and edited, then followed exactly."""

import statistics
from pathlib import Path
from typing import Any, Literal

import SimpleITK as sitk
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from conresnet.atomic_file import replacing
from conresnet.errors import UserError
from conresnet.package import ModelDescription, parse_description
from conresnet_training.augmentation import Augmentation
from conresnet_training.data_set import DataSet

COLORS = ([111, 184, 210], [216, 101, 79], [128, 174, 128], [241, 214, 145], [177, 122, 101], [192, 104, 88])
MULTIPLE = 8
LARGEST_WINDOW = (80, 160, 160)


class Training(BaseModel):
    """How long and how fast. Where the paper gives a value (IV-B) and ours differs, the description says so."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=6000, gt=0)
    batch: int = Field(default=2, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0, description="1e-4 in the paper, which trains much longer")
    weight_decay: float = Field(default=5e-4, ge=0)
    deep_supervision: float = Field(default=0.5, ge=0, description="lambda of eq. 9")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    gradient_clip: float = Field(default=10.0, ge=0, description="largest norm of the gradient; 0 is off")
    steps_between_checkpoints: int = Field(default=250, gt=0)
    seed: int = Field(default=0, ge=0)
    folds: int = Field(default=5, ge=2)
    workers: int = Field(default=1, ge=0, description="processes that make samples")


class Plan(BaseModel):
    """Everything a run follows.

    Args:
        data: the data set's folder; one that is relative is relative to the plan's file.
        model: ``model.json`` of the package that the run exports (conresnet.package), without its files.
        targets: the label values that belong to each segment, by its name.
    """

    model_config = ConfigDict(extra="forbid")

    data: Path
    targets: dict[str, list[int]]
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    model: dict[str, Any]

    @model_validator(mode="after")
    def _targets_fit_segments(self) -> "Plan":
        segments = [segment.name for segment in self.description.output.segments]
        if sorted(self.targets) != sorted(segments):
            raise ValueError(f"targets must name the segments {', '.join(segments)}")
        return self

    @property
    def description(self) -> ModelDescription:
        """The model's description, checked."""
        return parse_description(self.model, "the plan's model")


def make_plan(data_set: DataSet, folder: Path) -> Plan:
    """Plan a run from what the data are: median spacing and size, one segment a label, per-channel z-scores."""
    spacings, sizes = zip(*(_spacing_and_size(case.images[0]) for case in data_set.cases), strict=True)
    spacing = [statistics.median(values) for values in zip(*spacings, strict=True)]
    size = [statistics.median(values) for values in zip(*sizes, strict=True)]
    window = [min(-(-int(n) // MULTIPLE) * MULTIPLE, most) for n, most in zip(size, LARGEST_WINDOW, strict=True)]
    segments = [
        {"name": name, "label": value, "color": COLORS[place % len(COLORS)]}
        for place, (value, name) in enumerate(sorted(data_set.labels.items()))
    ]
    steps = [
        {"step": "clip_percentiles", "low": 0.5, "high": 99.5},
        {"step": "z_score", "over": "foreground", "outside": "keep"},
    ]
    model = {
        "format": "conresnet-model",
        "format_version": 1,
        "name": "".join(letter if letter.isalnum() else "-" for letter in data_set.name.lower()),
        "title": data_set.name,
        "version": "1.0.0",
        "description": "",
        "license": data_set.licence or "not stated",
        "attribution": "",
        "citations": [],
        "training_data": data_set.name,
        "intended_use": "Research only, not for diagnosis.",
        "limitations": "",
        "inputs": [
            {"name": name, "modality": name, "keywords": [], "exclude_keywords": [], "intensity": steps}
            for name in data_set.channels
        ],
        "preparation": {
            "orientation": "SAR",
            "spacing": [round(mm, 4) for mm in spacing],
            "foreground": "not_background",
        },
        "system": {
            "type": "single",
            "networks": [
                {
                    "type": "conresnet",
                    "arguments": {
                        "input_channels": len(data_set.channels),
                        "outputs": len(segments) + 1,
                        "residual_outputs": len(segments),
                        "base_width": 16,
                        "residual_axis": "S",
                        "residual_mapping": True,
                        "attention_mapping": True,
                        "dropout": 0.1,
                    },
                    "weights": "network.safetensors",
                }
            ],
        },
        "inference": {"window": window, "overlap": 0.5, "tiling": "fitted", "blending": "gaussian", "mirror_axes": []},
        "output": {
            "kind": "labels",
            "threshold": 0.5,
            "segments": segments,
            "paint_order": [segment["name"] for segment in segments],
        },
    }
    targets = {segment["name"]: [segment["label"]] for segment in segments}
    return Plan(data=folder.resolve(), targets=targets, model=model)


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
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the plan"
        raise UserError("plan-invalid", f"In the plan {path}, {field}: {first['msg']}.", path=str(path)) from error
    except UserError as error:
        raise UserError(error.code, f"In the plan {path}: {error.message}", path=str(path)) from error
    return plan.model_copy(update={"data": (data or path.parent / plan.data).resolve()})


def _spacing_and_size(path: Path) -> tuple[list[float], list[float]]:
    """Of an image in the order (S, H, W) of orientation SAR, read from its header alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    direction = [reader.GetDirection()[row * reader.GetDimension() + column] for row in range(3) for column in range(3)]
    order = [max(range(3), key=lambda axis, row=row: abs(direction[row * 3 + axis])) for row in (2, 1, 0)]
    return [reader.GetSpacing()[axis] for axis in order], [reader.GetSize()[axis] for axis in order]
