"""A plan that trains in one or two seconds: three folds, 16 x 16 x 16 windows, base width 8, single precision."""

from pathlib import Path

from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import with_settings, write_plan
from conresnet_training.planning.planner import Choices, make_plan

SETTINGS = (
    "training.folds=3",
    "training.steps=12",
    "training.steps_between_checkpoints=3",
    "training.precision=32-true",
    "training.learning_rate=0.002",
    "training.workers=0",
    "model.inference.window=[16, 16, 16]",
)


def write_tiny_plan(data_set: Path, path: Path, *settings: str, system: str = "conresnet") -> Path:
    """Write a plan for ``data_set`` with additional settings, and return its file."""
    plan = make_plan(read_data_set(data_set), data_set, choices=Choices(system, base_width=8))[0]
    write_plan(with_settings(plan, [*SETTINGS, *settings]), path)
    return path
